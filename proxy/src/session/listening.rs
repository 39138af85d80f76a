//! Listening sockets: made here or taken over from the process before, and dealt to the data-plane threads.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::leg;
use crate::config;
use crate::splice::sockets;

/// One address of a listener with its sockets.
#[derive(Clone, Debug)]
pub struct Bound {
    /// As it is configured; its port may be 0.
    pub configured: SocketAddr,
    pub address: SocketAddr,
    /// By SO_REUSEPORT one a thread, unless they come from somebody who made fewer or more.
    pub sockets: Vec<Arc<Socket>>,
    /// The largest segment that is announced to clients, in bytes; `None`: what the way to each carries.
    max_segment: Option<u32>,
}

impl Bound {
    /// Binds one socket a thread.
    pub fn bind(
        configured: SocketAddr,
        threads: usize,
        listener: &config::Listener,
        max_segment: Option<u32>,
    ) -> io::Result<Self> {
        let mut bound = Self { configured, address: configured, sockets: Vec::new(), max_segment };
        bound.add(threads, listener)?;
        Ok(bound)
    }

    /// Goes on with sockets that listen already, and changes nothing about them before [`Self::make_ours`]. Threads they
    /// do not suffice for get new ones, or share where the address cannot be bound once more.
    pub fn adopt(
        configured: SocketAddr,
        sockets: Vec<Socket>,
        threads: usize,
        listener: &config::Listener,
        max_segment: Option<u32>,
    ) -> io::Result<Self> {
        let first = sockets.first().ok_or_else(|| io::Error::other("no socket to adopt"))?;
        let address = local_address(first)?;
        let shares = first.reuse_port()?;
        let sockets = sockets.into_iter().map(Arc::new).collect();
        let mut bound = Self { configured, address, sockets, max_segment };
        if shares && let Err(error) = bound.add(threads, listener) {
            tracing::info!(%address, "{} threads share {} sockets: {error}", threads, bound.sockets.len());
        }
        Ok(bound)
    }

    /// Gives sockets of before the options and the backlog of this configuration.
    pub fn make_ours(&self, listener: &config::Listener) {
        for socket in &self.sockets {
            let done =
                leg::tune(SockRef::from(&**socket), &listener.tcp).and_then(|()| socket.listen(listener.backlog));
            if let Err(error) = done {
                tracing::warn!(address = %self.address, "socket options: {error}");
            }
        }
        self.defer_accept(listener);
    }

    pub fn defer_accept(&self, listener: &config::Listener) {
        for socket in &self.sockets {
            if let Err(error) = sockets::defer_accept(socket.as_fd(), listener.defer_accept) {
                tracing::warn!(address = %self.address, "TCP_DEFER_ACCEPT: {error}");
            }
        }
    }

    /// The sockets that a thread accepts from. Each socket has a thread, and each thread a socket.
    pub fn of_thread(&self, thread: usize, threads: usize) -> impl Iterator<Item = &Arc<Socket>> {
        let count = self.sockets.len();
        (0..count.max(threads)).filter(move |at| at % threads == thread).map(move |at| &self.sockets[at % count])
    }

    /// Binds sockets up to `count`.
    fn add(&mut self, count: usize, listener: &config::Listener) -> io::Result<()> {
        while self.sockets.len() < count {
            let socket = new(self.address)?;
            socket.set_reuse_port(true)?;
            tune(&socket, listener, self.max_segment)?;
            socket.bind(&self.address.into())?;
            socket.listen(listener.backlog)?;
            self.address = local_address(&socket)?;
            self.sockets.push(Arc::new(socket));
        }
        Ok(())
    }
}

/// Accepted sockets inherit what a listening one has (tcp(7), socket(7)): six system calls less a session.
fn tune(socket: &Socket, listener: &config::Listener, max_segment: Option<u32>) -> io::Result<()> {
    leg::tune(SockRef::from(socket), &listener.tcp)?;
    max_segment.map_or(Ok(()), |most| socket.set_tcp_mss(most))
}

/// Fails with EADDRINUSE if anybody has a socket bound here, SO_REUSEPORT or not.
pub fn probe_free(address: SocketAddr) -> io::Result<()> {
    new(address)?.bind(&address.into())
}

fn new(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier process that are in TIME_WAIT do not keep the port.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // Both `0.0.0.0:5432` and `[::]:5432` may be configured.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// Of a TCP socket.
pub fn local_address(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("it is bound to no IP address"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;

    fn dealt(bound: &Bound, threads: usize) -> Vec<Vec<usize>> {
        let place = |socket: &Arc<Socket>| bound.sockets.iter().position(|one| Arc::ptr_eq(one, socket)).unwrap();
        (0..threads).map(|thread| bound.of_thread(thread, threads).map(place).collect()).collect()
    }

    #[test]
    fn no_socket_and_no_thread_is_left_out() {
        let listener = config::Listener::default();
        let made = Bound::bind("127.0.0.1:0".parse().unwrap(), 3, &listener, None).unwrap();
        assert_eq!(dealt(&made, 3), [[0], [1], [2]]);
        let sockets = |bound: &Bound| bound.sockets.iter().map(|one| one.try_clone().unwrap()).collect();
        let fewer = Bound::adopt(made.configured, sockets(&made), 2, &listener, None).unwrap();
        assert_eq!(dealt(&fewer, 2), [vec![0, 2], vec![1]]);
        let more = Bound::adopt(made.configured, sockets(&made), 4, &listener, None).unwrap();
        assert_eq!((more.sockets.len(), dealt(&more, 4)), (4, vec![vec![0], vec![1], vec![2], vec![3]]));
        assert!(more.sockets.iter().all(|socket| local_address(socket).unwrap() == made.address));
    }

    #[test]
    fn threads_share_a_socket_whose_maker_did_not_mean_it_to_have_company() {
        let alone = new("127.0.0.1:0".parse().unwrap()).unwrap();
        alone.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        alone.listen(8).unwrap();
        let shared =
            Bound::adopt("127.0.0.1:0".parse().unwrap(), vec![alone], 3, &config::Listener::default(), None).unwrap();
        assert_eq!(dealt(&shared, 3), [[0], [0], [0]]);
    }

    #[test]
    fn a_client_is_accepted_when_it_speaks_or_after_a_while() {
        let mut listener = config::Listener::default();
        let bound = Bound::bind("127.0.0.1:0".parse().unwrap(), 1, &listener, None).unwrap();
        bound.make_ours(&listener);
        let socket = &bound.sockets[0];
        let accepted = |limit: Duration| {
            socket.set_read_timeout(Some(limit)).unwrap();
            socket.accept().is_ok()
        };
        let long = Duration::from_secs(10);
        let mut client = TcpStream::connect(bound.address).unwrap();
        assert!(!accepted(Duration::from_millis(200)), "it has said nothing");
        client.write_all(b"\0").unwrap();
        assert!(accepted(Duration::from_millis(700)), "it has spoken");
        let _silent = TcpStream::connect(bound.address).unwrap();
        assert!(accepted(long), "one that stays silent shall not be forgotten");
        listener.defer_accept = false;
        bound.defer_accept(&listener);
        let _silent = TcpStream::connect(bound.address).unwrap();
        assert!(accepted(Duration::from_millis(700)), "a reload may take it back");
    }
}

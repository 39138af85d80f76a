//! Which of this host's addresses a connection to a backend starts from. It must be known before the connect, for the
//! leg is watched from its first packet on.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::netlink::Socket;
use crate::netlink::route::Route;

/// How long an answer of the routing table is used. A wrong one costs a retry, not a session.
const FRESH: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub struct Sources(Mutex<HashMap<IpAddr, (IpAddr, Instant)>>);

impl Sources {
    /// `None`: there is no route.
    pub fn towards(&self, backend: IpAddr) -> Option<IpAddr> {
        let mut known = self.0.lock();
        if let Some((source, since)) = known.get(&backend)
            && since.elapsed() < FRESH
        {
            return Some(*source);
        }
        let source = ask(backend).ok()?;
        known.insert(backend, (source, Instant::now()));
        Some(source)
    }

    /// A connect from there failed: ask again.
    pub fn forget(&self, backend: IpAddr) {
        self.0.lock().remove(&backend);
    }
}

/// The source that the routing table prefers on the way there, which is what a TCP connect takes. A UDP socket's connect(2)
/// would tell as well, but takes a port, and finding one takes tens of milliseconds where most are reserved
/// (net.ipv4.ip_local_reserved_ports).
fn ask(backend: IpAddr) -> io::Result<IpAddr> {
    let route = Route::to(&Socket::open(libc::NETLINK_ROUTE)?, backend, None)?;
    route
        .source
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("the route to {backend} names no source")))
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn it_is_the_one_a_connection_has() {
        for host in ["127.0.0.1", "127.1.2.3", "::1"] {
            let listener = TcpListener::bind(SocketAddr::new(host.parse().unwrap(), 0)).unwrap();
            let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let source = near.local_addr().unwrap().ip();
            assert_eq!(Sources::default().towards(host.parse().unwrap()), Some(source), "{host}");
        }
    }

    #[test]
    fn there_is_none_without_a_route() {
        let source = std::thread::spawn(|| {
            // SAFETY: unshare(2) takes no pointers, and changes this thread alone.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "run as root: {}", io::Error::last_os_error());
            Sources::default().towards("10.0.0.1".parse().unwrap())
        });
        assert_eq!(source.join().unwrap(), None);
    }
}

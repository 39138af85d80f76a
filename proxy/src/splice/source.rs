//! Which of this host's addresses a connection to a backend starts from. It must be known before the connect, for the
//! leg is watched from its first packet on.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::netlink::{self, Request};

/// linux/rtnetlink.h: `rtmsg` in bytes, two of its attributes.
const ROUTE_HEADER: usize = 12;
const RTA_DST: u16 = 1;
const RTA_PREFSRC: u16 = 7;

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
    let (family, octets) = match backend {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let mut header = [0; ROUTE_HEADER];
    header[0] = family as u8;
    header[1] = octets.len() as u8 * 8;
    let mut request = Request::new(libc::RTM_GETROUTE, 0, &header);
    request.attribute(RTA_DST, &octets);
    let answers = netlink::ask(libc::NETLINK_ROUTE, request)?;
    let route = answers.first().and_then(|answer| answer.get(ROUTE_HEADER..)).unwrap_or_default();
    let source = netlink::attributes(route).find(|(kind, _)| *kind == RTA_PREFSRC).and_then(|(_, value)| read(value));
    source.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("the route to {backend} names no source")))
}

fn read(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
    }
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

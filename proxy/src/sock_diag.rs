//! The kernel's sockets of this network namespace, whoever has them (sock_diag(7)): whether a TCP connection has one, and
//! an end to it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::netlink::{self, Request};

/// linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

/// include/net/tcp_states.h
const TCP_TIME_WAIT: u8 = 6;
const TCP_LISTEN: u8 = 10;

/// Whether the kernel has a socket of this connection that may still send: of a process, or one that a process has left
/// behind with bytes in it. Err also where the kernel does not answer such questions (CONFIG_INET_DIAG).
pub fn is_there(local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    let request = Request::new(SOCK_DIAG_BY_FAMILY, 0, &inet_diag_req(local, remote));
    match netlink::ask(libc::NETLINK_SOCK_DIAG, request) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
        // `inet_diag_msg`: family, state. Where the connection has no socket, the answer is its listener.
        Ok(answers) => {
            let states = answers.iter().filter_map(|answer| answer.get(1));
            Ok(states.into_iter().any(|state| !matches!(*state, TCP_TIME_WAIT | TCP_LISTEN)))
        }
    }
}

/// Ends a TCP connection of this network namespace as if its peer had reset it. Needs CAP_NET_ADMIN and a kernel with
/// CONFIG_INET_DIAG_DESTROY. One that is gone already is as good.
pub fn destroy(local: SocketAddr, remote: SocketAddr) -> io::Result<()> {
    let request = Request::new(SOCK_DESTROY, libc::NLM_F_ACK, &inet_diag_req(local, remote));
    match netlink::ask(libc::NETLINK_SOCK_DIAG, request) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        done => done.map(drop),
    }
}

/// `struct inet_diag_req_v2` (linux/inet_diag.h) of one connection, in any state.
fn inet_diag_req(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut bytes = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(local.port().to_be_bytes());
    bytes.extend(remote.port().to_be_bytes());
    for address in [local, remote] {
        let mut octets = [0; 16];
        match address.ip() {
            IpAddr::V4(ip) => octets[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => octets = ip.octets(),
        }
        bytes.extend(octets);
    }
    // Any interface; INET_DIAG_NOCOOKIE twice.
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([0xff; 8]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_request_names_one_connection() {
        let bytes = inet_diag_req(address("10.0.0.9:40000"), address("[fd77::1]:5432"));
        assert_eq!(bytes.len(), 56);
        assert_eq!(&bytes[8..12], &[0x9c, 0x40, 0x15, 0x38]);
        assert_eq!(&bytes[12..16], &[10, 0, 0, 9]);
        assert_eq!(&bytes[28..32], &[0xfd, 0x77, 0, 0]);
    }

    /// Where the kernel does not let us, the error is told; where it does, the other end reads a reset.
    #[test]
    fn a_destroyed_connection_is_reset_and_one_that_is_gone_is_no_error() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        match destroy(local, remote) {
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}"),
            Ok(()) => {
                let end = std::io::Read::read(&mut peer, &mut [0; 1]).map_err(|error| error.kind());
                assert!(matches!(end, Err(io::ErrorKind::ConnectionReset) | Ok(0)), "{end:?}");
                drop((client, peer));
                destroy(local, remote).unwrap();
            }
        }
    }

    #[test]
    fn a_connection_is_there_until_it_is_over_and_its_listener_does_not_stand_for_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (own, peer) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let (accepted, _) = listener.accept().unwrap();
        assert!(is_there(own, peer).unwrap() && is_there(peer, own).unwrap());
        // A RST leaves nothing behind.
        socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop((client, accepted));
        assert!(!is_there(own, peer).unwrap() && !is_there(peer, own).unwrap());
    }
}

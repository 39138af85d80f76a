//! The kernel's sockets of this network namespace, whoever has them (sock_diag(7)): which TCP connections there are, whether
//! one has a socket, and an end to it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::netlink::{self, Request};

/// linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

/// include/net/tcp_states.h
const TCP_TIME_WAIT: u8 = 6;
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;

/// Sets of states.
const CONNECTED: u32 = !(1 << TCP_CLOSE | 1 << TCP_LISTEN);
const ANY: u32 = u32::MAX;

/// Both ends, ours first, of every connection of this network namespace. One in TIME_WAIT is one.
pub fn connections() -> io::Result<Vec<(SocketAddr, SocketAddr)>> {
    let mut all = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let any = if family == libc::AF_INET { [0u8; 4].into() } else { [0u8; 16].into() };
        let request = inet_diag_req(libc::IPPROTO_TCP, CONNECTED, SocketAddr::new(any, 0), SocketAddr::new(any, 0));
        let ask = Request::new(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, &request);
        let answers = netlink::ask(libc::NETLINK_SOCK_DIAG, ask)?;
        all.extend(answers.iter().filter_map(|message| ends(message)));
    }
    Ok(all)
}

/// Whether the kernel has a socket of this connection that may still send: of a process, or one that a process has left
/// behind with bytes in it. Err also where the kernel does not answer such questions (CONFIG_INET_DIAG).
pub fn is_there(local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    is_there_by(libc::IPPROTO_TCP, local, remote)
}

fn is_there_by(protocol: libc::c_int, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    let request = Request::new(SOCK_DIAG_BY_FAMILY, 0, &inet_diag_req(protocol, ANY, local, remote));
    match netlink::ask(libc::NETLINK_SOCK_DIAG, request) {
        Err(error) if is_none(&error, protocol) => Ok(false),
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
    destroy_by(libc::IPPROTO_TCP, local, remote)
}

fn destroy_by(protocol: libc::c_int, local: SocketAddr, remote: SocketAddr) -> io::Result<()> {
    let request = Request::new(SOCK_DESTROY, libc::NLM_F_ACK, &inet_diag_req(protocol, ANY, local, remote));
    match netlink::ask(libc::NETLINK_SOCK_DIAG, request) {
        Err(error) if is_none(&error, protocol) => Ok(()),
        done => done.map(drop),
    }
}

/// Whether an error says that there is no such socket. Of a kernel that cannot answer at all it is the same one.
fn is_none(error: &io::Error, protocol: libc::c_int) -> bool {
    let answers = || {
        let any = SocketAddr::from(([0u8; 4], 0));
        // Of sockets in no state at all: an empty list, soon.
        let ask = Request::new(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, &inet_diag_req(protocol, 0, any, any));
        netlink::ask(libc::NETLINK_SOCK_DIAG, ask).is_ok()
    };
    error.raw_os_error() == Some(libc::ENOENT) && answers()
}

/// `struct inet_diag_req_v2` (linux/inet_diag.h). In a dump nothing but family and states is looked at.
fn inet_diag_req(protocol: libc::c_int, states: u32, local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut bytes = vec![family as u8, protocol as u8, 0, 0];
    bytes.extend(states.to_ne_bytes());
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

/// From a `struct inet_diag_msg`.
fn ends(message: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let family = libc::c_int::from(*message.first()?);
    let end = |port: usize, address: usize| {
        let number = u16::from_be_bytes(message.get(port..port + 2)?.try_into().ok()?);
        let octets: [u8; 16] = message.get(address..address + 16)?.try_into().ok()?;
        let ip = match family {
            libc::AF_INET => IpAddr::from([octets[0], octets[1], octets[2], octets[3]]),
            _ => IpAddr::from(octets).to_canonical(),
        };
        Some(SocketAddr::new(ip, number))
    };
    Some((end(4, 8)?, end(6, 24)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_request_names_one_connection() {
        let bytes = inet_diag_req(libc::IPPROTO_TCP, ANY, address("10.0.0.9:40000"), address("[fd77::1]:5432"));
        assert_eq!(bytes.len(), 56);
        assert_eq!(&bytes[8..12], &[0x9c, 0x40, 0x15, 0x38]);
        assert_eq!(&bytes[12..16], &[10, 0, 0, 9]);
        assert_eq!(&bytes[28..32], &[0xfd, 0x77, 0, 0]);
    }

    #[test]
    fn a_connection_is_told_of_while_it_lives_and_while_it_rests() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(any).unwrap();
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (peer, _) = listener.accept().unwrap();
            let ends = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            assert!(connections().unwrap().contains(&ends));
            let listening = listener.local_addr().unwrap();
            assert!(!connections().unwrap().iter().any(|(own, far)| *own == listening && far.port() == 0));
            // Who ends first is left in TIME_WAIT.
            drop(client);
            drop(peer);
            assert!(connections().unwrap().contains(&ends));
        }
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

    /// A kernel without CONFIG_INET_DIAG answers about TCP what every kernel does about a protocol whose sockets it cannot
    /// tell of: ENOENT, as if there were none.
    #[test]
    fn a_kernel_that_cannot_tell_is_not_taken_for_one_that_has_no_such_socket() {
        let (own, peer) = (address("127.0.0.1:1"), address("127.0.0.1:2"));
        assert!(!is_there(own, peer).unwrap());
        let error = is_there_by(libc::IPPROTO_EGP, own, peer).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
        let error = destroy_by(libc::IPPROTO_EGP, own, peer).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
    }
}

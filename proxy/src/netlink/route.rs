//! What the routing table says of the way to an address (RTM_GETROUTE).

use std::io;
use std::net::IpAddr;

use super::{Request, Socket, attributes, family, octets};

/// linux/rtnetlink.h: `rtmsg` in bytes, and attributes.
const HEADER: usize = 12;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_ENCAP: u16 = 22;

const RTN_UNICAST: u8 = 1;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// To another host: neither this one's own address, nor a broadcast, nor one that is refused.
    pub is_unicast: bool,
    /// Its packets are put into others.
    pub is_encapsulated: bool,
    /// 0: none.
    pub ifindex: u32,
    /// `None`: the address itself is on the link.
    pub gateway: Option<IpAddr>,
    /// The address that a connection starts from.
    pub source: Option<IpAddr>,
}

impl Route {
    /// The way to `end` from this host, or from `own`, an address of it. An error where there is none.
    pub fn to(socket: &Socket, end: IpAddr, own: Option<IpAddr>) -> io::Result<Self> {
        let bits = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        // Family, both prefixes' lengths, 9 bytes that may be zero.
        let mut header = [0; HEADER];
        header[..3].copy_from_slice(&[family(end), bits(end), own.map_or(0, bits)]);
        let mut request = Request::new(libc::RTM_GETROUTE, 0, &header);
        request.attribute(RTA_DST, &octets(end));
        if let Some(own) = own {
            request.attribute(RTA_SRC, &octets(own));
        }
        let answers = socket.ask(request)?;
        answers.first().and_then(|answer| Self::read(answer)).ok_or_else(|| io::Error::other("no answer of a route"))
    }

    fn read(answer: &[u8]) -> Option<Self> {
        let rest = answer.get(HEADER..)?;
        // The type is the eighth byte.
        let mut route = Self { is_unicast: answer[7] == RTN_UNICAST, ..Self::default() };
        for (kind, value) in attributes(rest) {
            match kind {
                RTA_OIF => route.ifindex = u32::from_ne_bytes(value.try_into().ok()?),
                RTA_GATEWAY => route.gateway = Some(address(value)?),
                RTA_PREFSRC => route.source = Some(address(value)?),
                RTA_ENCAP => route.is_encapsulated = true,
                _ => {}
            }
        }
        Some(route)
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(end: &str) -> io::Result<Route> {
        Route::to(&Socket::open(libc::NETLINK_ROUTE).unwrap(), end.parse().unwrap(), None)
    }

    #[test]
    fn the_way_to_oneself_is_by_loopback() {
        for end in ["127.0.0.1", "::1"] {
            let route = to(end).unwrap();
            assert_eq!((route.ifindex, route.is_unicast, route.source), (1, false, end.parse().ok()), "{end}");
        }
    }

    /// In a network of its own.
    #[test]
    fn a_way_has_an_interface_a_gateway_and_a_source_or_is_none() {
        let test = || {
            // SAFETY: unshare(2) takes no pointers, and changes this thread alone.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "run as root: {}", io::Error::last_os_error());
            let commands = "ip link add n0 type veth peer n1; ip link set n0 up; ip link set n1 up; \
                            ip address add 10.9.0.1/24 dev n0; ip address add fd09::1/64 dev n0 nodad; \
                            ip route add 10.8.0.0/16 via 10.9.0.2; ip route add fd08::/32 via fd09::2";
            let output = std::process::Command::new("sh").args(["-ec", commands]).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let address = |text: &str| text.parse::<IpAddr>().ok();
            for (end, gateway, source) in [
                ("10.9.0.7", "", "10.9.0.1"),
                ("10.8.1.1", "10.9.0.2", "10.9.0.1"),
                ("fd09::7", "", "fd09::1"),
                ("fd08::1", "fd09::2", "fd09::1"),
            ] {
                let route = to(end).unwrap();
                assert_eq!((route.gateway, route.source), (address(gateway), address(source)), "{end}");
                assert!(route.is_unicast && !route.is_encapsulated && route.ifindex > 1, "{route:?}");
            }
            for end in ["10.7.0.1", "fd07::1"] {
                assert_eq!(to(end).unwrap_err().raw_os_error(), Some(libc::ENETUNREACH), "{end}");
            }
        };
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_short_answer_is_no_panic() {
        for length in 0..40 {
            let _ = Route::read(&vec![0xff; length]);
        }
    }
}

//! The link-layer addresses of next hops. A packet that XDP forwards does not tell the kernel that a neighbour is in
//! use: an unknown one is never resolved and a stale one never checked. So user space says it for them (NTF_USE). Nor
//! does TCP of this host, which knows nothing of the sessions, doubt an address that leads nowhere: user space does.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::netlink::route::Route;
use crate::netlink::{Request, Socket, family, octets};

/// linux/neighbour.h
const NDA_DST: u16 = 1;
const NTF_USE: u8 = 0x01;
const NUD_REACHABLE: u16 = 0x02;
const NUD_STALE: u16 = 0x04;
const NUD_DELAY: u16 = 0x08;
const NUD_PROBE: u16 = 0x10;
const NUD_FAILED: u16 = 0x20;

/// One that is doubted is not asked again sooner.
const AGAIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Neighbours {
    netlink: Socket,
    /// When each was asked because it was doubted, in the last [`AGAIN`].
    asked: HashMap<NextHop, Instant>,
}

/// Where a packet to somewhere goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    pub address: IpAddr,
    pub ifindex: u32,
}

impl Neighbours {
    pub fn open() -> io::Result<Self> {
        Ok(Self { netlink: Socket::open(libc::NETLINK_ROUTE)?, asked: HashMap::new() })
    }

    /// Has the kernel resolve this neighbour, or check it if what it knows is stale. Does not wait for it.
    pub fn renew(&self, hop: NextHop) -> io::Result<()> {
        self.netlink.ask(about(hop, libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_ACK, 0, NTF_USE)).map(drop)
    }

    /// Nothing comes back by way of this neighbour. Has the kernel ask it whether it is there, at the address that is
    /// known first, unless that was done a moment ago; and everybody, where it has been given up.
    pub fn doubt(&mut self, hop: NextHop, now: Instant) -> io::Result<()> {
        self.asked.retain(|_, at| now.duration_since(*at) < AGAIN);
        match self.state(hop)? {
            None | Some(NUD_FAILED) => self.renew(hop),
            Some(NUD_REACHABLE | NUD_STALE | NUD_DELAY) if !self.asked.contains_key(&hop) => {
                self.asked.insert(hop, now);
                // Without NLM_F_REPLACE nothing but the state changes; with it IPv6 forgets that a neighbour is a router.
                self.netlink.ask(about(hop, libc::RTM_NEWNEIGH, libc::NLM_F_ACK, NUD_PROBE, 0)).map(drop)
            }
            // It is being asked; or an administrator has written its address down.
            Some(_) => Ok(()),
        }
    }

    /// `NUD_*`; `None` where the kernel has no such neighbour.
    fn state(&self, hop: NextHop) -> io::Result<Option<u16>> {
        match self.netlink.ask(about(hop, libc::RTM_GETNEIGH, 0, 0, 0)) {
            // ndmsg: family, 3 bytes of padding, ifindex, state.
            Ok(answers) => match answers.first().and_then(|answer| answer.get(8..10)?.try_into().ok()) {
                Some(state) => Ok(Some(u16::from_ne_bytes(state))),
                None => Err(io::Error::other("a netlink answer is cut off")),
            },
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the routing table says of the way to `address`.
    pub fn next_hop(&self, address: IpAddr) -> io::Result<NextHop> {
        let route = Route::to(&self.netlink, address, None)?;
        Ok(NextHop { address: route.gateway.unwrap_or(address), ifindex: route.ifindex })
    }
}

/// A request about one neighbour. ndmsg: family, 3 bytes of padding, ifindex, state, flags, type.
fn about(hop: NextHop, kind: u16, how: libc::c_int, state: u16, flags: u8) -> Request {
    let mut header = vec![family(hop.address), 0, 0, 0];
    header.extend((hop.ifindex as i32).to_ne_bytes());
    header.extend(state.to_ne_bytes());
    header.extend([flags, 0]);
    let mut request = Request::new(kind, how, &header);
    request.attribute(NDA_DST, &octets(hop.address));
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_oneself_is_by_loopback() {
        let neighbours = Neighbours::open().unwrap();
        let hop = neighbours.next_hop([127, 0, 0, 1].into()).unwrap();
        assert_eq!(hop, NextHop { address: [127, 0, 0, 1].into(), ifindex: 1 });
    }

    #[test]
    fn an_answer_is_never_taken_for_that_to_the_next_request() {
        let mut neighbours = Neighbours::open().unwrap();
        let nowhere = NextHop { address: [192, 0, 2, 1].into(), ifindex: i32::MAX as u32 };
        assert!(neighbours.renew(nowhere).is_err());
        assert!(neighbours.doubt(nowhere, Instant::now()).is_err());
        let hop = neighbours.next_hop([127, 0, 0, 1].into()).unwrap();
        assert_eq!(hop.ifindex, 1);
    }

    /// In a network of its own, on a link whose other end never answers.
    #[test]
    fn one_that_is_doubted_is_asked_where_it_is_known_to_be_and_stays_what_it_was() {
        let run = |command: &str| {
            let output = std::process::Command::new("sh").args(["-ec", command]).output().unwrap();
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let test = move || {
            // SAFETY: unshare(2) takes no pointers, and changes this thread alone.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
            run("ip link add n0 type veth peer n1; ip link set n0 addrgenmode none up; ip link set n1 up; \
                 ip address add 10.9.0.1/24 dev n0; ip address add fd09::1/64 dev n0 nodad; \
                 ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev n0 nud reachable; \
                 ip neigh add fd09::2 lladdr 02:00:00:00:00:02 dev n0 nud reachable router");
            let mut neighbours = Neighbours::open().unwrap();
            for address in ["10.9.0.2", "fd09::2"] {
                let hop = neighbours.next_hop(address.parse().unwrap()).unwrap();
                neighbours.doubt(hop, Instant::now()).unwrap();
                let shown = run(&format!("ip neigh show {address}"));
                assert!(shown.contains("lladdr 02:00:00:00:00:02") && shown.contains("PROBE"), "{shown}");
                assert_eq!(shown.contains("router"), hop.address.is_ipv6(), "{shown}");
            }
        };
        std::thread::spawn(test).join().unwrap();
    }
}

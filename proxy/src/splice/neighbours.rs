//! The link-layer addresses of next hops. A packet that XDP forwards does not tell the kernel that a neighbour is in
//! use: an unknown one is never resolved and a stale one never checked. So user space says it for them (NTF_USE). Nor
//! does TCP of this host, which knows nothing of the sessions, doubt an address that leads nowhere: user space does.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// linux/neighbour.h
const NDA_DST: u16 = 1;
const NTF_USE: u8 = 0x01;
const RTA_GATEWAY: u16 = 5;
const RTA_OIF: u16 = 4;
const RTA_DST: u16 = 1;
const NUD_REACHABLE: u16 = 0x02;
const NUD_STALE: u16 = 0x04;
const NUD_DELAY: u16 = 0x08;
const NUD_PROBE: u16 = 0x10;
const NUD_FAILED: u16 = 0x20;

/// One that is doubted is not asked again sooner.
const AGAIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Neighbours {
    /// Each request is followed by its one answer.
    netlink: OwnedFd,
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
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened and nobody else's.
        Ok(Self { netlink: unsafe { OwnedFd::from_raw_fd(fd) }, asked: HashMap::new() })
    }

    /// Has the kernel resolve this neighbour, or check it if what it knows is stale. Does not wait for it.
    pub fn renew(&self, hop: NextHop) -> io::Result<()> {
        self.ask(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_ACK, &ndmsg(hop, 0, NTF_USE)).map(drop)
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
                self.ask(libc::RTM_NEWNEIGH, libc::NLM_F_ACK, &ndmsg(hop, NUD_PROBE, 0)).map(drop)
            }
            // It is being asked; or an administrator has written its address down.
            Some(_) => Ok(()),
        }
    }

    /// `NUD_*`; `None` where the kernel has no such neighbour.
    fn state(&self, hop: NextHop) -> io::Result<Option<u16>> {
        match self.ask(libc::RTM_GETNEIGH, 0, &ndmsg(hop, 0, 0)) {
            // nlmsghdr (16 bytes), then ndmsg.
            Ok(answer) => match answer.get(24..26).and_then(|state| state.try_into().ok()) {
                Some(state) => Ok(Some(u16::from_ne_bytes(state))),
                None => Err(cut_off()),
            },
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the routing table says of the way to `address`.
    pub fn next_hop(&self, address: IpAddr) -> io::Result<NextHop> {
        // rtmsg: family, destination's prefix length, 10 bytes that may be zero.
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let mut body = vec![family(address), bits, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        attribute(&mut body, RTA_DST, &octets(address));
        read_route(&self.ask(libc::RTM_GETROUTE, 0, &body)?, address)
    }

    /// Sends a request that is answered, and returns the answer, from its nlmsghdr on.
    fn ask(&self, kind: u16, flags: libc::c_int, body: &[u8]) -> io::Result<Vec<u8>> {
        let length = 16 + body.len();
        let mut message = Vec::with_capacity(length);
        message.extend((length as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        // SAFETY: the message lives through the call and its length is its own.
        let sent = unsafe { libc::send(self.netlink.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut answer = vec![0u8; 4096];
        // SAFETY: the buffer lives through the call and its length is its own.
        let length = unsafe { libc::recv(self.netlink.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
        answer.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error())?);
        refused(&answer)?;
        Ok(answer)
    }
}

fn cut_off() -> io::Error {
    io::Error::other("a netlink answer is cut off")
}

/// Err with the code of an NLMSG_ERROR, unless that says that all is well.
fn refused(answer: &[u8]) -> io::Result<()> {
    let kind = u16::from_ne_bytes(answer.get(4..6).and_then(|v| v.try_into().ok()).ok_or_else(cut_off)?);
    if i32::from(kind) != libc::NLMSG_ERROR {
        return Ok(());
    }
    match i32::from_ne_bytes(answer.get(16..20).and_then(|v| v.try_into().ok()).ok_or_else(cut_off)?) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
    }
}

/// About one neighbour: family, 3 bytes of padding, ifindex, state, flags, type; its address.
fn ndmsg(hop: NextHop, state: u16, flags: u8) -> Vec<u8> {
    let mut body = vec![family(hop.address), 0, 0, 0];
    body.extend((hop.ifindex as i32).to_ne_bytes());
    body.extend(state.to_ne_bytes());
    body.extend([flags, 0]);
    attribute(&mut body, NDA_DST, &octets(hop.address));
    body
}

/// nlmsghdr (16 bytes), then rtmsg (12 bytes), then attributes.
fn read_route(reply: &[u8], address: IpAddr) -> io::Result<NextHop> {
    let mut hop = NextHop { address, ifindex: 0 };
    let mut rest = reply.get(28..).ok_or_else(cut_off)?;
    while let [a, b, c, d, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let Some(payload) = rest.get(4..length) else { break };
        match u16::from_ne_bytes([c, d]) {
            RTA_OIF => hop.ifindex = payload.try_into().map(u32::from_ne_bytes).map_err(|_| cut_off())?,
            RTA_GATEWAY => {
                let v4 = <[u8; 4]>::try_from(payload).map(IpAddr::from);
                let v6 = <[u8; 16]>::try_from(payload).map(IpAddr::from);
                hop.address = v4.or(v6).map_err(|_| cut_off())?;
            }
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(hop)
}

/// Appends a netlink attribute.
pub(super) fn attribute(message: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    message.extend((4 + payload.len() as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(payload);
    message.resize(message.len().next_multiple_of(4), 0);
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
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

    #[test]
    fn a_short_answer_is_an_error_and_no_panic() {
        for length in 0..40 {
            let _ = read_route(&vec![0xff; length], [127, 0, 0, 1].into());
            let _ = refused(&vec![0xff; length]);
            let _ = refused(&[0, 0, 0, 0, 2, 0].into_iter().cycle().take(length).collect::<Vec<u8>>());
        }
    }
}

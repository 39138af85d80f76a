//! The link-layer addresses of next hops. A packet that XDP forwards does not tell the kernel that a neighbour is in
//! use: an unknown one is never resolved and a stale one never checked. So user space says it for them (NTF_USE).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// linux/neighbour.h
const NDA_DST: u16 = 1;
const NTF_USE: u8 = 0x01;
const RTA_GATEWAY: u16 = 5;
const RTA_OIF: u16 = 4;
const RTA_DST: u16 = 1;

#[derive(Debug)]
pub struct Neighbours(OwnedFd);

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
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Has the kernel resolve this neighbour, or check it if what it knows is stale. Does not wait for it.
    pub fn renew(&self, hop: NextHop) -> io::Result<()> {
        // ndmsg: family, 3 bytes of padding, ifindex, state, flags, type.
        let mut body = vec![family(hop.address), 0, 0, 0];
        body.extend((hop.ifindex as i32).to_ne_bytes());
        body.extend([0, 0, NTF_USE, 0]);
        attribute(&mut body, NDA_DST, &octets(hop.address));
        self.send(libc::RTM_NEWNEIGH, (libc::NLM_F_REQUEST | libc::NLM_F_CREATE) as u16, &body)
    }

    /// What the routing table says of the way to `address`.
    pub fn next_hop(&self, address: IpAddr) -> io::Result<NextHop> {
        // rtmsg: family, destination's prefix length, 10 bytes that may be zero.
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let mut body = vec![family(address), bits, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        attribute(&mut body, RTA_DST, &octets(address));
        self.send(libc::RTM_GETROUTE, libc::NLM_F_REQUEST as u16, &body)?;
        let mut reply = [0u8; 4096];
        // SAFETY: the buffer lives through the call and its length is its own.
        let length = unsafe { libc::recv(self.0.as_raw_fd(), reply.as_mut_ptr().cast(), reply.len(), 0) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        read_route(&reply[..length], address)
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let length = 16 + body.len();
        let mut message = Vec::with_capacity(length);
        message.extend((length as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        // SAFETY: the message lives through the call and its length is its own.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// nlmsghdr (16 bytes), then rtmsg (12 bytes), then attributes.
fn read_route(reply: &[u8], address: IpAddr) -> io::Result<NextHop> {
    let cut = || io::Error::other("a netlink answer is cut off");
    let kind = u16::from_ne_bytes(reply.get(4..6).and_then(|v| v.try_into().ok()).ok_or_else(cut)?);
    if i32::from(kind) == libc::NLMSG_ERROR {
        let code = i32::from_ne_bytes(reply.get(16..20).and_then(|v| v.try_into().ok()).ok_or_else(cut)?);
        return Err(io::Error::from_raw_os_error(-code));
    }
    let mut hop = NextHop { address, ifindex: 0 };
    let mut rest = reply.get(28..).ok_or_else(cut)?;
    while let [a, b, c, d, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let Some(payload) = rest.get(4..length) else { break };
        match u16::from_ne_bytes([c, d]) {
            RTA_OIF => hop.ifindex = payload.try_into().map(u32::from_ne_bytes).map_err(|_| cut())?,
            RTA_GATEWAY => {
                let v4 = <[u8; 4]>::try_from(payload).map(IpAddr::from);
                let v6 = <[u8; 16]>::try_from(payload).map(IpAddr::from);
                hop.address = v4.or(v6).map_err(|_| cut())?;
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
    fn a_short_answer_is_an_error_and_no_panic() {
        for length in 0..40 {
            let _ = read_route(&vec![0xff; length], [127, 0, 0, 1].into());
        }
    }
}

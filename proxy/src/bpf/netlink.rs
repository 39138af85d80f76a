//! What XDP program an interface has, asked of the kernel by rtnetlink: aya attaches but does not tell.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// linux/if_link.h
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
const XDP_ATTACHED_DRV: u8 = 1;
const XDP_ATTACHED_SKB: u8 = 2;
const XDP_ATTACHED_HW: u8 = 3;
const XDP_ATTACHED_MULTI: u8 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpState {
    None,
    Native {
        program: u32,
    },
    Generic {
        program: u32,
    },
    Offloaded {
        program: u32,
    },
    /// One in each of several modes.
    Several,
}

/// rtnetlink(7): RTM_GETLINK for one interface, its `IFLA_XDP` attribute read.
pub fn xdp_state(ifindex: u32) -> io::Result<XdpState> {
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };

    // nlmsghdr (16 bytes), then ifinfomsg (16 bytes).
    let mut request = [0u8; 32];
    request[0..4].copy_from_slice(&32u32.to_ne_bytes());
    request[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request[20..24].copy_from_slice(&ifindex.to_ne_bytes());
    // SAFETY: the buffer lives through the call and its length is its own.
    if unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut reply = vec![0u8; 64 * 1024];
    // SAFETY: as above.
    let n = unsafe { libc::recv(socket.as_raw_fd(), reply.as_mut_ptr().cast(), reply.len(), 0) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    reply.truncate(n as usize);
    parse(&reply)
}

fn parse(reply: &[u8]) -> io::Result<XdpState> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "netlink reply is cut off");
    let kind = u16::from_ne_bytes(reply.get(4..6).and_then(|b| b.try_into().ok()).ok_or_else(cut)?);
    if i32::from(kind) == libc::NLMSG_ERROR {
        let code = i32::from_ne_bytes(reply.get(16..20).and_then(|b| b.try_into().ok()).ok_or_else(cut)?);
        return Err(io::Error::from_raw_os_error(-code));
    }
    let Some(xdp) = attribute(reply.get(32..).ok_or_else(cut)?, IFLA_XDP) else { return Ok(XdpState::None) };
    let attached = attribute(xdp, IFLA_XDP_ATTACHED).and_then(|v| v.first().copied()).unwrap_or(0);
    let program =
        attribute(xdp, IFLA_XDP_PROG_ID).and_then(|v| v.try_into().ok()).map(u32::from_ne_bytes).unwrap_or_default();
    Ok(match attached {
        XDP_ATTACHED_DRV => XdpState::Native { program },
        XDP_ATTACHED_SKB => XdpState::Generic { program },
        XDP_ATTACHED_HW => XdpState::Offloaded { program },
        XDP_ATTACHED_MULTI => XdpState::Several,
        _ => XdpState::None,
    })
}

/// The payload of the first attribute of this kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16::from_ne_bytes(attributes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let payload = attributes.get(4..len)?;
        // The top two bits are flags (nested, byte order).
        if kind & 0x3fff == wanted {
            return Some(payload);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_exists_and_index_4_billion_does_not() {
        assert!(xdp_state(1).is_ok());
        assert_eq!(xdp_state(0x7fff_fff0).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn a_short_reply_is_an_error_and_no_panic() {
        for n in 0..36 {
            let _ = parse(&vec![0xff; n]);
        }
    }
}

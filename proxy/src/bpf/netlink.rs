//! What XDP program an interface has, asked of the kernel by rtnetlink: aya attaches but does not tell.

use std::io;

use crate::netlink::{self, Request, find};

/// linux/rtnetlink.h: `ifinfomsg` in bytes.
const HEADER: usize = 16;
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
    // ifinfomsg: family, type, index, 8 bytes that may be zero.
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let answers = netlink::ask(libc::NETLINK_ROUTE, Request::new(libc::RTM_GETLINK, 0, &header))?;
    let link = answers.first().and_then(|answer| answer.get(HEADER..));
    Ok(parse(link.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a netlink answer is cut off"))?))
}

fn parse(link: &[u8]) -> XdpState {
    let Some(xdp) = find(link, IFLA_XDP) else { return XdpState::None };
    let attached = find(xdp, IFLA_XDP_ATTACHED).and_then(|v| v.first().copied()).unwrap_or(0);
    let program =
        find(xdp, IFLA_XDP_PROG_ID).and_then(|v| v.try_into().ok()).map(u32::from_ne_bytes).unwrap_or_default();
    match attached {
        XDP_ATTACHED_DRV => XdpState::Native { program },
        XDP_ATTACHED_SKB => XdpState::Generic { program },
        XDP_ATTACHED_HW => XdpState::Offloaded { program },
        XDP_ATTACHED_MULTI => XdpState::Several,
        _ => XdpState::None,
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

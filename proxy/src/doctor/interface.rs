//! What an interface is and can, asked of its driver: ethtool's ioctls, and the XDP features it announces by netlink.

use std::io;

use crate::ethtool::{ethtool, ioctl, request};
use crate::netlink::{self, Request, find};

/// linux/ethtool.h
const ETHTOOL_GDRVINFO: u32 = 0x3;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;
/// Where the driver's name lies in `struct ethtool_drvinfo`, and how long that is.
const DRIVER_AT: usize = 4;
const DRVINFO: usize = 196;

/// linux/genetlink.h, linux/netdev.h
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const XDP_BASIC: u64 = 1;
const XDP_REDIRECT: u64 = 2;
const XDP_RX_SG: u64 = 32;

/// What the driver's native XDP can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NativeXdp {
    /// Run a program and redirect its packets.
    pub redirects: bool,
    /// Packets in more than one buffer, as a large MTU brings them.
    pub fragments: bool,
}

/// As ethtool names it: `veth`, `ena`; `None` where there is none to ask.
pub fn driver(interface: &str) -> Option<String> {
    let mut info = [0u8; DRVINFO];
    info[..4].copy_from_slice(&ETHTOOL_GDRVINFO.to_ne_bytes());
    ethtool(interface, &mut info).ok()?;
    let name = &info[DRIVER_AT..DRIVER_AT + 32];
    let name = String::from_utf8_lossy(name.split(|byte| *byte == 0).next()?).into_owned();
    (!name.is_empty()).then_some(name)
}

/// Whether the card takes VLAN tags off the packets before XDP sees them.
pub fn strips_vlan(interface: &str) -> Option<bool> {
    let mut flags = [0u8; 8];
    flags[..4].copy_from_slice(&ETHTOOL_GFLAGS.to_ne_bytes());
    ethtool(interface, &mut flags).ok()?;
    let [_, _, _, _, data @ ..] = flags;
    Some(u32::from_ne_bytes(data) & ETH_FLAG_RXVLAN != 0)
}

/// The VLAN devices on top of this interface. Not from /sys, which may be that of another network namespace.
pub fn vlans_on(interface: &str) -> Vec<String> {
    vlans_in(&std::fs::read_to_string("/proc/net/vlan/config").unwrap_or_default(), interface)
}

/// Lines such as `eth0.5         | 5  | eth0`.
fn vlans_in(table: &str, interface: &str) -> Vec<String> {
    let on_it = |line: &str| {
        let mut columns = line.split('|').map(str::trim);
        let (vlan, lower) = (columns.next()?, columns.nth(1)?);
        (lower == interface).then(|| vlan.to_owned())
    };
    table.lines().filter_map(on_it).collect()
}

pub fn mtu(interface: &str) -> Option<u32> {
    let mut request = request(interface).ok()?;
    // SAFETY: the request lives through the call.
    unsafe { ioctl(libc::SIOCGIFMTU, &mut request) }.ok()?;
    // SAFETY: the kernel has filled this member.
    u32::try_from(unsafe { request.ifr_ifru.ifru_mtu }).ok()
}

/// What the driver announces (Linux 6.3). An error where the kernel does not tell.
pub fn native_xdp(ifindex: u32) -> io::Result<NativeXdp> {
    let unknown = || io::Error::from(io::ErrorKind::Unsupported);
    let mut named = Request::new(GENL_ID_CTRL, 0, &[CTRL_CMD_GETFAMILY, 1, 0, 0]);
    named.attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let answer = netlink::ask(libc::NETLINK_GENERIC, named)?;
    let family = answer.first().and_then(|message| u16_of(genl(message), CTRL_ATTR_FAMILY_ID)).ok_or_else(unknown)?;

    let mut get = Request::new(family, 0, &[NETDEV_CMD_DEV_GET, 1, 0, 0]);
    get.attribute(NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes());
    let answer = netlink::ask(libc::NETLINK_GENERIC, get)?;
    let features = answer
        .first()
        .and_then(|message| find(genl(message), NETDEV_A_DEV_XDP_FEATURES)?.try_into().ok().map(u64::from_ne_bytes))
        .ok_or_else(unknown)?;
    let has = |wanted: u64| features & wanted == wanted;
    Ok(NativeXdp { redirects: has(XDP_BASIC | XDP_REDIRECT), fragments: has(XDP_RX_SG) })
}

/// A generic netlink message without `genlmsghdr`.
fn genl(message: &[u8]) -> &[u8] {
    message.get(4..).unwrap_or_default()
}

fn u16_of(message: &[u8], wanted: u16) -> Option<u16> {
    find(message, wanted)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_strips_no_vlan_and_has_no_native_xdp() {
        assert_ne!(strips_vlan("lo"), Some(true));
        assert!(vlans_on("lo").is_empty());
        assert!(mtu("lo").is_some_and(|mtu| mtu >= 1500));
        assert!(native_xdp(1).is_ok_and(|native| !native.redirects) || native_xdp(1).is_err());
    }

    #[test]
    fn the_kernels_table_of_vlans_is_read() {
        let table = "VLAN Dev name\t | VLAN ID\nName-Type: VLAN_NAME_TYPE_RAW_PLUS_VID_NO_PAD\n\
            eth0.5         | 5  | eth0\nstorage        | 7  | eth0\neth1.5         | 5  | eth1\n";
        assert_eq!(vlans_in(table, "eth0"), ["eth0.5", "storage"]);
        assert_eq!(vlans_in(table, "eth2"), [""; 0]);
    }

    #[test]
    fn an_interface_that_is_not_there_has_nothing() {
        assert_eq!((driver("no-such-if"), strips_vlan("no-such-if"), mtu("no-such-if")), (None, None, None));
        assert_eq!(driver("a name that is far too long"), None);
        assert!(native_xdp(0x7fff_fff0).is_err());
    }
}

//! By which interface the kernel's own packets to an end leave. The programs send to an end where its packets come in, and
//! what works for a socket need not work there: the port of a bridge has no address, and another interface no route.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pgsplice_ebpf::flow::Watch;

use crate::netlink::route::Route;
use crate::netlink::{Request, Socket, find};

/// How long an answer is used.
const FRESH: Duration = Duration::from_secs(1);
/// Answers that are kept.
const KEPT: usize = 4096;

/// linux/if_link.h
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;

#[derive(Debug, Default)]
pub struct Routes(Mutex<HashMap<Pair, (Option<Way>, Instant)>>);

/// Our own address and the other end's.
type Pair = (IpAddr, IpAddr);

/// How packets leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub ifindex: u32,
    /// What a VLAN device makes of them: the interface below, and the tag that they have there.
    below: Option<(u32, u16)>,
}

impl Routes {
    /// `None`: there is none, or none that a packet takes as it is.
    pub fn way(&self, own: IpAddr, end: IpAddr) -> Option<Way> {
        let pair = (own, end);
        if let Some((way, since)) = self.0.lock().get(&pair)
            && since.elapsed() < FRESH
        {
            return *way;
        }
        let way = ask(own, end).unwrap_or_else(|error| {
            tracing::debug!(%own, %end, "no route: {error}");
            None
        });
        let mut known = self.0.lock();
        if known.len() >= KEPT {
            known.retain(|_, (_, since)| since.elapsed() < FRESH);
        }
        if known.len() < KEPT {
            known.insert(pair, (way, Instant::now()));
        }
        way
    }
}

impl Way {
    /// Whether it is the way that packets from there come by.
    pub fn is_that_of(&self, watch: &Watch) -> bool {
        let seen = (watch.ifindex, watch.vlan);
        seen == (self.ifindex, 0) || Some(seen) == self.below
    }
}

fn ask(own: IpAddr, end: IpAddr) -> io::Result<Option<Way>> {
    let socket = Socket::open(libc::NETLINK_ROUTE)?;
    let route = Route::to(&socket, end, Some(own))?;
    if !route.is_unicast || route.is_encapsulated {
        return Ok(None);
    }
    // ifinfomsg: family, type, index, 8 bytes that may be zero.
    let mut head = [0; 16];
    head[4..8].copy_from_slice(&route.ifindex.to_ne_bytes());
    let answer = socket.ask(Request::new(libc::RTM_GETLINK, 0, &head))?;
    Ok(Some(Way { ifindex: route.ifindex, below: answer.first().and_then(|answer| read_vlan(answer)) }))
}

/// The interface below a VLAN device, and its tag. `ifinfomsg` (16 bytes), then attributes.
fn read_vlan(answer: &[u8]) -> Option<(u32, u16)> {
    let rest = answer.get(16..)?;
    let info = find(rest, IFLA_LINKINFO)?;
    if find(info, IFLA_INFO_KIND)? != b"vlan\0" {
        return None;
    }
    let id = find(find(info, IFLA_INFO_DATA)?, IFLA_VLAN_ID)?;
    let below = find(rest, IFLA_LINK)?;
    Some((u32::from_ne_bytes(below.try_into().ok()?), u16::from_ne_bytes(id.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(ifindex: u32, vlan: u16) -> Watch {
        Watch { ifindex, vlan, ..Watch::default() }
    }

    #[test]
    fn the_way_of_a_vlan_is_that_of_its_device_or_of_its_tag_below() {
        let plain = Way { ifindex: 7, below: None };
        let tagged = Way { ifindex: 9, below: Some((7, 5)) };
        assert!(plain.is_that_of(&seen(7, 0)) && tagged.is_that_of(&seen(9, 0)) && tagged.is_that_of(&seen(7, 5)));
        for (way, other) in [(plain, seen(8, 0)), (plain, seen(7, 5)), (tagged, seen(7, 0)), (tagged, seen(7, 6))] {
            assert!(!way.is_that_of(&other), "{way:?} {other:?}");
        }
    }

    #[test]
    fn only_another_hosts_address_has_a_way() {
        let own = [127, 0, 0, 1].into();
        assert_eq!(ask(own, own).unwrap(), None, "its route is a local one");
    }

    /// As the kernel has it of `eth0.5` (RFC 3549, section 3.1.1), with the flag of nested attributes.
    #[test]
    fn a_vlan_device_names_what_is_below_it() {
        let nested = |inner: &Request| inner.payload().to_vec();
        let device = |kind: &[u8]| {
            let mut data = Request::new(0, 0, &[]);
            data.attribute(IFLA_VLAN_ID, &5u16.to_ne_bytes());
            let mut info = Request::new(0, 0, &[]);
            info.attribute(IFLA_INFO_KIND, kind);
            info.attribute(0x8000 | IFLA_INFO_DATA, &nested(&data));
            let mut link = Request::new(0, 0, &[0; 16]);
            link.attribute(IFLA_LINK, &7u32.to_ne_bytes());
            link.attribute(0x8000 | IFLA_LINKINFO, &nested(&info));
            nested(&link)
        };
        assert_eq!(read_vlan(&device(b"vlan\0")), Some((7, 5)));
        assert_eq!(read_vlan(&device(b"macvlan\0")), None);
        let whole = device(b"vlan\0");
        for length in 0..whole.len() {
            let _ = read_vlan(&whole[..length]);
        }
    }
}

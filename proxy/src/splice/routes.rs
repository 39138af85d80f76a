//! By which interface the kernel's own packets to an end leave. The programs send to an end where its packets come in, and
//! what works for a socket need not work there: the port of a bridge has no address, and another interface no route.

use std::collections::HashMap;
use std::hash::Hash;
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
pub struct Routes {
    ways: Answers<Pair, u32>,
    vlans: Answers<u32, Tagged>,
}

/// Our own address and the other end's.
type Pair = (IpAddr, IpAddr);

/// What a VLAN device makes of its packets: the interface below, and the tag that they have there.
type Tagged = (u32, u16);

#[derive(Debug)]
struct Answers<K, V>(Mutex<HashMap<K, (Option<V>, Instant)>>);

impl Routes {
    /// The interface by which packets leave. `None`: there is no way, or none that a packet takes as it is.
    pub fn way(&self, own: IpAddr, end: IpAddr) -> Option<u32> {
        self.ways.fresh((own, end), || ask_way(own, end))
    }

    /// Whether this interface is that of packets which came in so.
    pub fn is_that_of(&self, ifindex: u32, watch: &Watch) -> bool {
        match watch.vlan {
            0 => ifindex == watch.ifindex,
            // The kernel answers this under a lock that others may hold for long, the first not.
            id => self.vlans.fresh(ifindex, || ask_vlan(ifindex)) == Some((watch.ifindex, id)),
        }
    }
}

impl<K: Copy + Eq + Hash, V: Copy> Answers<K, V> {
    /// The answer of a second ago at most; an error is none.
    fn fresh(&self, key: K, ask: impl FnOnce() -> io::Result<Option<V>>) -> Option<V> {
        if let Some((answer, since)) = self.0.lock().get(&key)
            && since.elapsed() < FRESH
        {
            return *answer;
        }
        let answer = ask().unwrap_or_else(|error| {
            tracing::debug!("routing: {error}");
            None
        });
        let mut known = self.0.lock();
        if known.len() >= KEPT {
            known.retain(|_, (_, since)| since.elapsed() < FRESH);
        }
        if known.len() < KEPT {
            known.insert(key, (answer, Instant::now()));
        }
        answer
    }
}

impl<K, V> Default for Answers<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

fn ask_way(own: IpAddr, end: IpAddr) -> io::Result<Option<u32>> {
    let route = Route::to(&Socket::open(libc::NETLINK_ROUTE)?, end, Some(own))?;
    Ok((route.is_unicast && !route.is_encapsulated).then_some(route.ifindex))
}

fn ask_vlan(ifindex: u32) -> io::Result<Option<Tagged>> {
    // ifinfomsg: family, type, index, 8 bytes that may be zero.
    let mut head = [0; 16];
    head[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let answer = Socket::open(libc::NETLINK_ROUTE)?.ask(Request::new(libc::RTM_GETLINK, 0, &head))?;
    Ok(answer.first().and_then(|answer| read_vlan(answer)))
}

/// The interface below a VLAN device, and its tag. `ifinfomsg` (16 bytes), then attributes.
fn read_vlan(answer: &[u8]) -> Option<Tagged> {
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

    #[test]
    fn the_way_of_a_vlan_is_that_of_its_device_or_of_its_tag_below() {
        let routes = Routes::default();
        routes.vlans.0.lock().insert(9, (Some((7, 5)), Instant::now()));
        routes.vlans.0.lock().insert(7, (None, Instant::now()));
        let is_that = |way, ifindex, vlan| routes.is_that_of(way, &Watch { ifindex, vlan, ..Watch::default() });
        assert!(is_that(7, 7, 0) && is_that(9, 9, 0) && is_that(9, 7, 5));
        for (way, ifindex, vlan) in [(7, 8, 0), (7, 7, 5), (9, 7, 0), (9, 7, 6), (9, 8, 5)] {
            assert!(!is_that(way, ifindex, vlan), "{way}: {ifindex} {vlan}");
        }
    }

    #[test]
    fn only_another_hosts_address_has_a_way() {
        let own = [127, 0, 0, 1].into();
        assert_eq!(ask_way(own, own).unwrap(), None, "its route is a local one");
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

//! What the hand-offs and the programs count. Without a splice, or a sockmap, their own families are there and empty.

use std::fmt;

use pgsplice_ebpf::flow::counter;

use super::collect::Families;
use crate::proxy::Proxy;
use crate::splice::sockmap::Sockmap;
use crate::splice::{Road, Why};

/// What became of packets, as `outcome`; those forwarded stand in a family of their own.
const OUTCOMES: [(&str, u32); 12] = [
    ("held", counter::HELD),
    ("cut", counter::CUT),
    ("no-neighbour", counter::NO_NEIGH),
    ("too-big", counter::FRAG_NEEDED),
    ("forwarding-off", counter::FORWARDING_OFF),
    ("no-route", counter::NO_ROUTE),
    ("fragment", counter::FRAGMENT),
    ("extension-header", counter::EXTENSION),
    ("malformed", counter::MALFORMED),
    ("icmp", counter::ICMP),
    ("own", counter::OWN_END),
    ("events-lost", counter::EVENTS_LOST),
];

pub fn collect(proxy: &Proxy, out: &mut Families<'_>) -> fmt::Result {
    let (splice, sockmap) = (proxy.splice(), proxy.sockmap());
    let splice = splice.as_deref();
    let roads = [Road::Xdp, Road::Tc].map(|road| (road, proxy.hand_offs.handed_off(road)));
    let joined = (Road::Sockmap, sockmap.map_or(0, Sockmap::joined));
    let roads = roads.into_iter().chain([joined]).map(|(road, count)| ([("road", road.as_str())], count));
    out.counter("pgsplice_handoffs", "Sessions handed to the kernel", roads)?;
    let stays = Why::ALL.iter().map(|why| ([("why", why.as_str())], proxy.hand_offs.stayed(*why)));
    out.counter("pgsplice_handoffs_refused", "Attempts after which a session stayed in user space", stays)?;
    let moved = sockmap.map(Sockmap::moved).into_iter();
    let moved = moved.flat_map(|moved| [("kernel", moved.redirected), ("copied", moved.copied)]);
    let moved = moved.map(|(by, bytes)| ([("by", by)], bytes));
    out.counter("pgsplice_sockmap_bytes", "Bytes of sessions by sockmap, by what moved them", moved)?;
    let live = splice.map(|splice| splice.table.live() as u64);
    out.one_gauge("pgsplice_spliced_sessions", "Sessions in the kernel", live)?;
    let capacity = splice.map(|splice| u64::from(splice.maps().capacity()));
    out.one_gauge("pgsplice_splice_max_sessions", "Sessions the kernel's maps have room for", capacity)?;
    let bytes = splice.map(|splice| splice.maps().map_bytes());
    out.one_gauge("pgsplice_splice_map_bytes", "Memory of those maps", bytes)?;
    let packets = splice.and_then(|splice| {
        let read = splice.maps().counters();
        read.inspect_err(|error| tracing::warn!("the splice's counters cannot be read: {error}")).ok()
    });
    let of = |index: u32| packets.as_ref().and_then(|all| all.get(index as usize).copied());
    let forwarded = [("xdp", counter::FORWARDED_XDP), ("tc", counter::FORWARDED_TC)];
    let forwarded = forwarded.into_iter().filter_map(|(road, index)| Some(([("road", road)], of(index)?)));
    out.counter("pgsplice_splice_forwarded_packets", "Packets of spliced sessions, forwarded", forwarded)?;
    let others = OUTCOMES.into_iter().filter_map(|(outcome, index)| Some(([("outcome", outcome)], of(index)?)));
    out.counter("pgsplice_splice_other_packets", "Packets of spliced sessions that were not", others)
}

//! Admission: counts what comes for a listener and drops what comes from a denied source.
//!
//! Only packets to a listener are ever dropped, so no deny list can lock anybody out of ssh.

use aya_ebpf::maps::lpm_trie::Key as Prefix;
use pgsplice_ebpf::guard::MAX_LISTENERS;

use super::key::Address;
use super::maps::{COUNTERS, DENY4, DENY6, LISTENERS};
use super::packet::Packet;
use super::parse::Parsed;
use super::route;

/// Counts a packet to a listener. Must it be dropped?
#[inline(always)]
pub fn refuses(id: u32, parsed: &Parsed, len: usize) -> bool {
    let denied = denies(parsed);
    count(id, len as u64, parsed.opens(), denied);
    denied
}

/// The listener this packet is for: one on its address, else one on the wildcard address if this host is the end.
#[inline(always)]
pub fn listener(packet: impl Packet, parsed: &Parsed) -> Option<u32> {
    let exact = Address::of(&parsed.key);
    // SAFETY: the value is copied out at once; ids are small and a stale one only miscounts a packet.
    if let Some(id) = unsafe { LISTENERS.get(exact) } {
        return Some(*id);
    }
    // SAFETY: as above.
    let id = *unsafe { LISTENERS.get(exact.wildcard(parsed.v6())) }?;
    if route::is_forwarded(packet, &parsed.key, parsed.v6()) { None } else { Some(id) }
}

/// Is the source on a deny list? Counts on the entry that says so.
#[inline(always)]
pub fn denies(parsed: &Parsed) -> bool {
    let src = parsed.key.src;
    let entry = if parsed.v6() {
        // SAFETY: same size, and any bits are a value of either.
        DENY6.get(Prefix::new(128, unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(src) }))
    } else {
        DENY4.get(Prefix::new(32, src[3].to_ne_bytes()))
    };
    if let Some(entry) = entry {
        entry.count();
    }
    entry.is_some()
}

#[inline(always)]
fn count(id: u32, len: u64, opens: bool, denied: bool) {
    if id >= MAX_LISTENERS {
        return;
    }
    let Some(counters) = COUNTERS.get_ptr_mut(id) else { return };
    // SAFETY: the slot is this CPU's own and an XDP program is not preempted by another on its CPU.
    let counters = unsafe { &mut *counters };
    counters.packets += 1;
    counters.bytes += len;
    counters.syns += u64::from(opens);
    counters.denied += u64::from(denied);
}

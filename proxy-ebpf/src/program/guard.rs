//! Admission: counts what comes for a listener and drops what comes from a denied source.
//!
//! Only packets to a listener are ever dropped, so no deny list can lock anybody out of ssh.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::XdpContext;
use pgsplice_ebpf::guard::{ListenerKey, MAX_LISTENERS};

use super::maps::{COUNTERS, DENY4, DENY6, LISTENERS};
use super::parse::{Frame, Source, Tcp, parse};
use super::route;

/// The verdict on a frame of `len` bytes; `None` (a cut-off header) passes.
#[inline(always)]
pub fn admit(ctx: &XdpContext, len: u64) -> Option<u32> {
    let packet = match parse(ctx)? {
        Frame::Tcp(packet) => packet,
        // It may be for a listener and cannot be told: refuse it to those who are denied, and to nobody else.
        Frame::TooDeep(source) => return Some(if deny(&source) { XDP_DROP } else { XDP_PASS }),
        Frame::Other => return None,
    };
    let id = listener(ctx, &packet)?;
    let denied = deny(&packet.src);
    count(id, len, packet.opens, denied);
    Some(if denied { XDP_DROP } else { XDP_PASS })
}

/// The listener this packet is for: one on its address, else one on the wildcard address if this host is the end.
#[inline(always)]
fn listener(ctx: &XdpContext, packet: &Tcp) -> Option<u32> {
    let exact = ListenerKey::new(packet.dst, packet.dst_port);
    // SAFETY: the value is copied out at once; ids are small and a stale one only miscounts a packet.
    if let Some(id) = unsafe { LISTENERS.get(exact) } {
        return Some(*id);
    }
    // SAFETY: as above.
    let id = *unsafe { LISTENERS.get(exact.wildcard()) }?;
    if route::is_forwarded(ctx, packet) { None } else { Some(id) }
}

/// Is the source on a deny list? Counts on the entry that says so.
#[inline(always)]
fn deny(source: &Source) -> bool {
    let entry = match source {
        Source::V4(addr) => DENY4.get(Key::new(32, *addr)),
        Source::V6(addr) => DENY6.get(Key::new(128, *addr)),
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

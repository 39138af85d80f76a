//! What comes by before a session is handed off: see `Watch`.

use pgsplice_ebpf::flow::{WATCH_MOVED, WATCH_ODD, WATCH_TIMESTAMPS, Watch};

use super::key::Tuple;
use super::maps::{self, WATCHES};
use super::options;
use super::packet::Packet;
use super::parse::Parsed;
use super::tcp;
use super::track::before;

/// A packet that goes up: brings its watch up to date if there is one.
#[inline(always)]
pub fn update<P: Packet>(packet: P, parsed: &Parsed, key: &Tuple) {
    let Some(watch) = WATCHES.get_ptr_mut(key) else { return };
    let (ifindex, vlan) = (packet.ifindex(), parsed.vlan());
    // SAFETY: the verifier has proved the pointer to be a map value; packets of one connection come one after another,
    // and where they do not, a field of one packet beside a field of the next is as good.
    let seen = unsafe { &mut *watch };
    let mut flags = seen.flags | P::WATCH;
    if seen.ifindex != 0 && (seen.ifindex != ifindex || seen.vlan != vlan) {
        flags |= WATCH_MOVED;
    }
    if parsed.fragment() || parsed.strays(packet) {
        flags |= WATCH_ODD;
    }
    if let Some(tsval) = timestamp(packet, parsed)
        && (flags & WATCH_TIMESTAMPS == 0 || before(seen.tsval, tsval))
    {
        flags |= WATCH_TIMESTAMPS;
        seen.tsval = tsval;
    }
    seen.ifindex = ifindex;
    seen.vlan = vlan;
    seen.flags = flags;
}

/// A SYN to a listener: its connection is watched from here on or, where user space begins that, from then on.
#[inline(always)]
pub fn open<P: Packet>(packet: P, parsed: &Parsed, key: &Tuple, listener: u32) {
    if !maps::is_unwatched(listener) {
        return begin(packet, parsed, key);
    }
    if WATCHES.get_ptr(key).is_some() {
        let _ = WATCHES.remove(key);
    }
}

/// A connection is watched from this SYN on, whatever its tuple was before.
#[inline(always)]
pub fn begin<P: Packet>(packet: P, parsed: &Parsed, key: &Tuple) {
    // SAFETY: integers, of which zero is a value; written whole because the map takes every byte of it.
    let mut watch: Watch = unsafe { core::mem::zeroed() };
    watch.ifindex = packet.ifindex();
    watch.vlan = parsed.vlan();
    watch.flags = P::WATCH;
    if parsed.fragment() || parsed.strays(packet) {
        watch.flags |= WATCH_ODD;
    }
    if let Some(tsval) = timestamp(packet, parsed) {
        watch.flags |= WATCH_TIMESTAMPS;
        watch.tsval = tsval;
    }
    // Full: the session stays on the relay.
    let _ = WATCHES.insert(key, watch, 0);
}

#[inline(always)]
fn timestamp<P: Packet>(packet: P, parsed: &Parsed) -> Option<u32> {
    if parsed.fragment() {
        return None;
    }
    let header = tcp::header(packet, parsed)?;
    options::tsval(packet, parsed.l4, header.len).get()
}

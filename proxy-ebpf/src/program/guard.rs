//! Admission: counts what comes for a listener and drops what comes from a denied source.
//!
//! Only packets to a listener are ever dropped, so no deny list can lock anybody out of ssh.

use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::maps::lpm_trie::Key as Prefix;
use pgsplice_ebpf::guard::MAX_LISTENERS;

use super::key::{Tuple, v4};
use super::maps::{self, COUNTERS, DENY4, DENY6};
use super::packet::Packet;
use super::parse::Parsed;
use super::route;

/// Counts a packet to a listener. Must it be dropped?
#[inline(always)]
pub fn refuses(id: u32, parsed: &Parsed, key: &Tuple, len: usize) -> bool {
    let denied = denies(key, parsed.v6());
    count(id, len as u64, parsed.opens(), denied);
    denied
}

/// The listener this packet is for: one on its address, else one on the wildcard address if this host is the end.
#[inline(always)]
pub fn listener(packet: impl Packet, key: &Tuple, v6: bool) -> Option<u32> {
    let exact = key.destination();
    if let Some(id) = maps::listener(&exact) {
        return Some(id);
    }
    let id = maps::listener(&exact.wildcard(v6))?;
    if route::is_forwarded(packet, key, v6) { None } else { Some(id) }
}

/// Is the source on a deny list? Counts on the entry that says so.
#[inline(always)]
pub fn denies(key: &Tuple, v6: bool) -> bool {
    let [first, second] = key.src;
    is_denied(first, second, v6)
}

#[inline(never)]
fn is_denied(first: u64, second: u64, v6: bool) -> bool {
    let entry = if v6 {
        let mut key = MaybeUninit::<Prefix<[u8; 16]>>::uninit();
        let words = key.as_mut_ptr().cast::<u32>();
        let [a, b, c, d] = [first, first >> 32, second, second >> 32].map(|word| word as u32);
        for (at, word) in [128, a, b, c, d].into_iter().enumerate() {
            // Volatile, or LLVM writes the address in words of eight bytes, unaligned, which the verifier refuses.
            // SAFETY: five words are what the key consists of.
            unsafe { ptr::write_volatile(words.add(at), word) };
        }
        // SAFETY: all of it is written.
        DENY6.get(unsafe { key.assume_init_ref() })
    } else {
        DENY4.get(Prefix::new(32, v4([first, second]).to_ne_bytes()))
    };
    if let Some(entry) = entry {
        entry.count();
    }
    entry.is_some()
}

const _: () = assert!(size_of::<Prefix<[u8; 16]>>() == 20);

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

//! What user space is told by the ring buffer.

use core::ptr;

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use pgsplice_ebpf::flow::{Event, counter, event};

use super::key::{Addr, v4_mapped};
use super::maps::{EVENTS, NO_NEIGH_SLOTS, NO_NEIGH_TOLD, count};
use super::packet::{Packet, read};

/// Words of `Event::data`.
const DATA_WORDS: usize = 96 / 4;
const _: () = assert!(size_of::<Event>() == 32 + DATA_WORDS * 4);
/// See [`with_packet`].
pub const BYTES_OF_DATA: u64 = u64::MAX;
const MILLISECOND: u64 = 1_000_000;

/// An event about a session that needs no more than its slot.
#[inline(never)]
pub fn tell(kind: u32, slot: u32, ifindex: u32) {
    send(kind, slot, ifindex, 0, [0; 2], |_| None);
}

/// The next hop on this interface, as the kernel has it in its answer, has to be resolved. Says so at most once a millisecond.
#[inline(never)]
pub fn no_neighbour(slot: u32, ifindex: u32, next_hop: Addr, v4: bool) {
    let Some(told) = NO_NEIGH_TOLD.get_ptr_mut(ifindex % NO_NEIGH_SLOTS) else { return };
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: a value of an array map; two CPUs at once tell twice at worst.
    let last = unsafe { ptr::read_volatile(told) };
    if now.wrapping_sub(last) < MILLISECOND {
        return;
    }
    // SAFETY: as above.
    unsafe { ptr::write_volatile(told, now) };
    let address = if v4 { v4_mapped(next_hop[0] as u32) } else { next_hop };
    send(event::NO_NEIGH, slot, ifindex, 0, address, |_| None);
}

/// The packet from its IP header on goes with it. `value` is [`BYTES_OF_DATA`] for how many bytes of it did.
#[inline(never)]
pub fn with_packet(packet: impl Packet, l3: usize, kind: u32, slot: u32, value: u64) {
    send(kind, slot, packet.ifindex(), value as u32, [0; 2], |data| {
        let mut words = 0;
        while words < DATA_WORDS {
            let Some(word) = read::<u32>(packet, l3 + words * 4) else { break };
            // SAFETY: `words` is below the length of the field, which stands at a multiple of 4.
            unsafe { data.add(words).write(word) };
            words += 1;
        }
        (value == BYTES_OF_DATA).then_some(words as u32 * 4)
    });
}

/// `fill` gets the data field, all zero, and may set the value.
#[inline(always)]
fn send(
    kind: u32,
    slot: u32,
    ifindex: u32,
    value: u32,
    [first, second]: Addr,
    fill: impl FnOnce(*mut u32) -> Option<u32>,
) {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        count(counter::EVENTS_LOST);
        return;
    };
    let to = entry.as_mut_ptr();
    // SAFETY: the kernel has reserved room for an Event, aligned to 8; all of it is written before it is submitted.
    // Volatile, or LLVM makes a call of `memset` of it, which writes zeroes byte by byte.
    unsafe {
        for word in 0..size_of::<Event>() / 8 {
            to.cast::<u64>().add(word).write_volatile(0);
        }
        (&raw mut (*to).kind).write_volatile(kind);
        (&raw mut (*to).slot).write_volatile(slot);
        (&raw mut (*to).ifindex).write_volatile(ifindex);
        let address = (&raw mut (*to).address).cast::<u64>();
        address.write_volatile(first);
        address.add(1).write_volatile(second);
        let value = fill((&raw mut (*to).data).cast()).unwrap_or(value);
        (&raw mut (*to).value).write_volatile(value);
    }
    entry.submit(0);
}

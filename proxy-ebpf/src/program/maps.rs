//! The maps as the programs see them. Types and capacities are the library's; see `LAYOUT_VERSION` before changing one.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::ptr;

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use pgsplice_ebpf::flow::{
    DEFAULT_SESSIONS, EVENTS_BYTES, Flow, Label, MAX_LABELS, MAX_WATCHES, SessionMeta, SessionState, Watch, counter,
};
use pgsplice_ebpf::guard::{DenyEntry, GuardCounters, ListenerName, MAX_DENY, MAX_LISTENER_ADDRESSES, MAX_LISTENERS};

use super::key::{Address, Tuple};
use super::route::Remembered;

#[map]
pub static LISTENERS: HashMap<Address, u32> = HashMap::pinned(MAX_LISTENER_ADDRESSES, 0);

#[map]
pub static COUNTERS: PerCpuArray<GuardCounters> = PerCpuArray::pinned(MAX_LISTENERS, 0);

/// `DenyEntry` where every CPU may count at once.
#[repr(C)]
pub struct SharedDenyEntry {
    pub by: u32,
    pub pad: u32,
    dropped: UnsafeCell<u64>,
}

// SAFETY: its one field that changes is only added to, atomically.
unsafe impl Sync for SharedDenyEntry {}

impl SharedDenyEntry {
    /// One more packet dropped, on whichever CPU.
    #[inline(always)]
    pub fn count(&self) {
        // SAFETY: the verifier has proved the pointer to be a map value.
        unsafe { add(self.dropped.get(), 1) };
    }
}

const _: () = assert!(size_of::<SharedDenyEntry>() == size_of::<DenyEntry>());

#[map]
pub static DENY4: LpmTrie<[u8; 4], SharedDenyEntry> = LpmTrie::pinned(MAX_DENY, 0);

#[map]
pub static DENY6: LpmTrie<[u8; 16], SharedDenyEntry> = LpmTrie::pinned(MAX_DENY, 0);

#[map]
pub static NAMES: Array<ListenerName> = Array::pinned(MAX_LISTENERS, 0);

#[map]
pub static FLOWS: HashMap<Tuple, Flow> = HashMap::pinned(2 * DEFAULT_SESSIONS, 0);

/// The programs of every CPU write it, so only by the functions below and by volatile accesses.
#[map]
pub static SESSIONS: Array<SessionState> = Array::pinned(DEFAULT_SESSIONS, BPF_F_MMAPABLE);

#[map]
pub static CONTROL: Array<u32> = Array::pinned(DEFAULT_SESSIONS, BPF_F_MMAPABLE);

#[map]
pub static WATCHES: LruHashMap<Tuple, Watch> = LruHashMap::pinned(MAX_WATCHES, 0);

#[map]
pub static EVENTS: RingBuf = RingBuf::pinned(EVENTS_BYTES, 0);

#[map]
pub static SPLICE_COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(counter::COUNT, 0);

#[map]
pub static META: Array<SessionMeta> = Array::pinned(DEFAULT_SESSIONS, BPF_F_MMAPABLE);

#[map]
pub static LABELS: Array<Label> = Array::pinned(MAX_LABELS, 0);

#[map]
pub static UNWATCHED: Array<u32> = Array::with_max_entries(MAX_LISTENERS, BPF_F_MMAPABLE);

/// What [`crate::program::route::find_again`] remembers, by slot and side modulo the length.
#[map]
pub static WAYS: PerCpuArray<Remembered> = PerCpuArray::with_max_entries(WAYS_LENGTH, 0);
/// A power of two.
pub const WAYS_LENGTH: u32 = 4096;

/// When an interface was last named in an `event::NO_NEIGH`, by its index modulo the length.
#[map]
pub static NO_NEIGH_TOLD: Array<u64> = Array::with_max_entries(NO_NEIGH_SLOTS, 0);
pub const NO_NEIGH_SLOTS: u32 = 256;

// By reference: a key that is passed by value is copied, to where nothing aligns it.

#[inline(always)]
pub fn flow(key: &Tuple) -> Option<&'static Flow> {
    // SAFETY: a flow is constant until it is removed; then a packet of a dead session goes astray at worst.
    unsafe { FLOWS.get(key) }
}

/// The id of the listener on exactly this address.
#[inline(always)]
pub fn listener(address: &Address) -> Option<u32> {
    // SAFETY: the value is copied out at once; ids are small and a stale one only miscounts a packet.
    unsafe { LISTENERS.get(address) }.copied()
}

/// Whether the clients of this listener are not to be watched from their SYN on.
#[inline(always)]
pub fn is_unwatched(listener: u32) -> bool {
    // SAFETY: a value of an array map, aligned; user space writes it at any time.
    UNWATCHED.get_ptr(listener).is_some_and(|word| unsafe { ptr::read_volatile(word) } != 0)
}

/// One more packet of this kind.
#[inline(always)]
pub fn count(counter: u32) {
    if let Some(value) = SPLICE_COUNTERS.get_ptr_mut(counter) {
        // SAFETY: the slot is this CPU's own, and what may interrupt this program on its CPU loses a count at worst.
        unsafe { *value += 1 };
    }
}

// Rust has no atomic operations for this target, and plain ones would lose what two CPUs do at once.

/// # Safety
/// `to` is a value of a map, aligned to 8.
#[inline(always)]
pub unsafe fn add(to: *mut u64, n: u64) {
    // SAFETY: the caller's promise; the addition is atomic.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) to, in(reg) n, options(nostack)) };
}

/// Sets bits and returns what was there before.
///
/// # Safety
/// `to` is a value of a map, aligned to 4.
#[inline(always)]
pub unsafe fn set_bits(to: *mut u32, bits: u32) -> u32 {
    let mut value = bits;
    // SAFETY: the caller's promise; the operation is atomic and a full barrier (Linux 5.12).
    unsafe { asm!("{1} = atomic_fetch_or((u32 *)({0} + 0), {1})", in(reg) to, inout(wreg) value, options(nostack)) };
    value
}

//! The maps as the programs see them. Types and capacities are the library's; see `LAYOUT_VERSION` before changing one.

use core::arch::asm;
use core::cell::UnsafeCell;

use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use pgsplice_ebpf::guard::{
    DenyEntry, GuardCounters, ListenerKey, ListenerName, MAX_DENY, MAX_LISTENER_ADDRESSES, MAX_LISTENERS,
};

#[map]
pub static LISTENERS: HashMap<ListenerKey, u32> = HashMap::pinned(MAX_LISTENER_ADDRESSES, 0);

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
        // Rust has no atomic add for this target, and a plain one would lose counts under the very load it is for.
        // SAFETY: the verifier has proved the pointer to be a map value; the add is atomic and touches nothing else.
        unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) self.dropped.get(), in(reg) 1u64) };
    }
}

const _: () = assert!(size_of::<SharedDenyEntry>() == size_of::<DenyEntry>());

#[map]
pub static DENY4: LpmTrie<[u8; 4], SharedDenyEntry> = LpmTrie::pinned(MAX_DENY, 0);

#[map]
pub static DENY6: LpmTrie<[u8; 16], SharedDenyEntry> = LpmTrie::pinned(MAX_DENY, 0);

#[map]
pub static NAMES: Array<ListenerName> = Array::pinned(MAX_LISTENERS, 0);

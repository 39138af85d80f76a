//! The maps as the programs see them. Types and capacities are the library's; see `LAYOUT_VERSION` before changing one.

use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{HashMap, PerCpuArray};
use pgsplice_ebpf::guard::{GuardCounters, ListenerKey, MAX_DENY, MAX_LISTENER_ADDRESSES, MAX_LISTENERS};

#[map]
pub static LISTENERS: HashMap<ListenerKey, u32> = HashMap::pinned(MAX_LISTENER_ADDRESSES, 0);

#[map]
pub static COUNTERS: PerCpuArray<GuardCounters> = PerCpuArray::pinned(MAX_LISTENERS, 0);

#[map]
pub static DENY4: LpmTrie<[u8; 4], u32> = LpmTrie::pinned(MAX_DENY, 0);

#[map]
pub static DENY6: LpmTrie<[u8; 16], u32> = LpmTrie::pinned(MAX_DENY, 0);

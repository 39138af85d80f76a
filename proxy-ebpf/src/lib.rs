//! The types that user space and the BPF programs share through maps.
//!
//! A map outlives the process that made it (it is pinned), so what stands here is a format: a change to any size,
//! offset, meaning or capacity needs a new [`LAYOUT_VERSION`], which sends the new program to maps of its own. What is to
//! become of the sessions in the old ones stands in `proxy/src/bpf/older.rs`, which has to learn of it.
#![no_std]

pub mod flow;
pub mod guard;
pub mod sockmap;

/// The format of every pinned map, and the folder (`v3/`) they are pinned under.
pub const LAYOUT_VERSION: u32 = 3;

//! The types that user space and the BPF programs share through maps.
//!
//! A map outlives the process that made it (it is pinned), so what stands here is a format: a change to any size,
//! offset, meaning or capacity needs a new [`LAYOUT_VERSION`], which sends the new program to maps of its own.
#![no_std]

pub mod flow;
pub mod guard;
pub mod sockmap;

/// The format of every pinned map, and the folder (`v2/`) they are pinned under.
pub const LAYOUT_VERSION: u32 = 2;

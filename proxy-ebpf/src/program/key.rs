//! `FlowKey` and `ListenerKey` in words, which cost the processor a quarter of what bytes do.

use core::mem::offset_of;
use core::ptr;

use pgsplice_ebpf::flow::{Flow, FlowKey};
use pgsplice_ebpf::guard::ListenerKey;

/// `FlowKey`: each word holds its four bytes as they stand in the packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Key {
    pub src: [u32; 4],
    pub dst: [u32; 4],
    /// Source port, then destination port, as at the start of a TCP header.
    pub ports: u32,
}

const _: () = assert!(size_of::<Key>() == size_of::<FlowKey>());

/// What a packet of this flow leaves with.
#[inline(always)]
pub fn out(flow: &Flow) -> &Key {
    // SAFETY: Key is FlowKey in words, and FlowKey stands at the start of a value that is aligned for it.
    unsafe { &*ptr::from_ref(&flow.out).cast() }
}

const _: () = assert!(offset_of!(Flow, out) == 0 && align_of::<Flow>() >= align_of::<Key>());

impl Key {
    pub const ZERO: Self = Self { src: [0; 4], dst: [0; 4], ports: 0 };

    /// The packet that answers this one.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, ports: self.ports.rotate_left(16) }
    }
}

/// Third word of `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2).
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

#[inline(always)]
pub fn v4_words(addr: u32) -> [u32; 4] {
    [0, 0, MAPPED, addr]
}

/// `ListenerKey`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Address {
    pub addr: [u32; 4],
    pub port: u16,
    pub pad: u16,
}

const _: () = assert!(size_of::<Address>() == size_of::<ListenerKey>());

impl Address {
    /// Where a packet with this key goes.
    #[inline(always)]
    pub fn of(key: &Key) -> Self {
        let [_, _, a, b] = key.ports.to_ne_bytes();
        Self { addr: key.dst, port: u16::from_ne_bytes([a, b]), pad: 0 }
    }

    /// The same port on every address of the same family.
    #[inline(always)]
    pub fn wildcard(&self, v6: bool) -> Self {
        Self { addr: if v6 { [0; 4] } else { v4_words(0) }, port: self.port, pad: 0 }
    }
}

//! `FlowKey` and `ListenerKey` in words of eight bytes, each of which holds its bytes as they stand in the packet.
//!
//! The stack must be written as it is aligned, so what stands there is wrapped in a type that is aligned to 8; in maps
//! the same bytes are not.

use core::mem::offset_of;
use core::ops::Deref;
use core::ptr;

use pgsplice_ebpf::flow::{Flow, FlowKey};
use pgsplice_ebpf::guard::ListenerKey;

/// `FlowKey`.
#[repr(C, packed(4))]
#[derive(Clone, Copy)]
pub struct Tuple {
    pub src: Addr,
    pub dst: Addr,
    /// Source port, then destination port, as at the start of a TCP header.
    pub ports: u32,
}

/// IPv4 as `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2).
pub type Addr = [u64; 2];

const MAPPED: u64 = u32::from_ne_bytes([0, 0, 0xff, 0xff]) as u64;

#[inline(always)]
pub fn v4_mapped(addr: u32) -> Addr {
    [0, MAPPED | u64::from(addr) << 32]
}

/// The IPv4 address that is mapped.
#[inline(always)]
pub fn v4(addr: Addr) -> u32 {
    (addr[1] >> 32) as u32
}

/// `ListenerKey`.
#[repr(C, packed(4))]
#[derive(Clone, Copy)]
pub struct Address {
    pub addr: Addr,
    pub port: u16,
    pub pad: u16,
}

const _: () = assert!(size_of::<Tuple>() == size_of::<FlowKey>() && size_of::<Address>() == size_of::<ListenerKey>());

/// On the stack.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Aligned<T>(pub T);

pub type Key = Aligned<Tuple>;

impl<T> Deref for Aligned<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl Tuple {
    /// The packet that answers this one.
    #[inline(always)]
    pub fn reversed(&self) -> Key {
        Aligned(Self { src: self.dst, dst: self.src, ports: self.ports.rotate_left(16) })
    }

    /// Where a packet with this key goes.
    #[inline(always)]
    pub fn destination(&self) -> Aligned<Address> {
        let [_, _, a, b] = self.ports.to_ne_bytes();
        Aligned(Address { addr: self.dst, port: u16::from_ne_bytes([a, b]), pad: 0 })
    }
}

impl Address {
    /// The same port on every address of the same family.
    #[inline(always)]
    pub fn wildcard(&self, v6: bool) -> Aligned<Self> {
        Aligned(Self { addr: [0, if v6 { 0 } else { MAPPED }], ..*self })
    }
}

/// What a packet of this flow leaves with.
#[inline(always)]
pub fn out(flow: &Flow) -> &Tuple {
    // SAFETY: Tuple is FlowKey in words, and FlowKey stands at the start of a value that is aligned for it.
    unsafe { &*ptr::from_ref(&flow.out).cast() }
}

const _: () = assert!(offset_of!(Flow, out) == 0 && align_of::<Flow>() >= align_of::<Tuple>());

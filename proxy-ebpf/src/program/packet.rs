//! A packet as both kinds of program see it: [`crate::program::xdp::Xdp`] and [`crate::program::tc::Tc`] differ in how
//! bytes are changed and checksums kept, and in nothing else.

use core::arch::asm;
use core::ffi::c_void;
use core::ptr;

use pgsplice_ebpf::flow::Flow;

use super::parse::Parsed;
use super::sum::Sum;

/// Implementors are the context pointer and no more, so that one goes into a function in a register.
pub trait Packet: Copy {
    /// Is a VLAN tag part of the frame? TC finds it beside the packet.
    const TAG_IN_FRAME: bool;
    /// `FLOW_XDP` or `FLOW_TC`.
    const FLOW: u16;
    /// `WATCH_XDP` or `WATCH_TC`.
    const WATCH: u16;
    /// The counter of what this program forwarded.
    const FORWARDED: u32;

    /// Where `data` stands in the context; `data_end` follows it.
    const DATA_AT: usize;
    /// What [`Packet::way`] finds and [`Packet::send`] takes.
    type Way;

    fn ctx(self) -> *mut c_void;
    /// The interface it came in by.
    fn ifindex(self) -> u32;
    /// Bytes from the Ethernet header on, of which [`Packet::read`] may reach only the first.
    fn len(self) -> usize;
    /// The tag beside the packet: its TCI, 0 for none; `None` if it is of a kind that is not ours.
    fn tag(self) -> Option<u16>;
    /// The payload of one segment of a packet that stands for several, 0 for a plain one.
    fn segment(self) -> usize;
    /// Makes the first `end` bytes readable.
    fn hold(self, end: usize) -> bool;
    /// Writes at this offset. Nothing read before may be used as a pointer after.
    fn store<T: Copy>(self, at: usize, value: &T) -> Option<()>;
    /// Brings the checksum of a TCP header at `at`, which was `old`, up to date with changes of the pseudo header and
    /// of the segment. `l3` is what of the IP header changed and no checksum of its own makes up for.
    fn mend(self, at: usize, old: u16, pseudo: Sum, segment: Sum, l3: Option<Sum>) -> Option<()>;
    /// Writes the checksum of a TCP header at `at` whose segment, its checksum field zero, has this sum.
    fn seal(self, at: usize, pseudo: Sum, segment: Sum) -> Option<()>;
    /// The way out for a packet of this flow whose largest segment has `len` bytes of IP. `None`: it must be dropped,
    /// and that has been counted and told.
    fn way(self, parsed: &Parsed, flow: &Flow, len: usize) -> Option<Self::Way>;
    /// Sends the rewritten packet, which `ends` its side of the session, that way; what the program returns then.
    fn send(self, parsed: &Parsed, flow: &Flow, way: &Self::Way, ends: bool) -> Option<i32>;
    /// Cuts it off at `len` and sends it out by where it came in; what the program returns then.
    fn turn(self, len: usize) -> Option<i32>;
}

/// The start of the readable part and its end.
///
/// In assembly: the fields are 32 bits wide, and LLVM would now and then copy only so much of a pointer.
#[inline(always)]
pub fn bounds<P: Packet>(packet: P) -> (usize, usize) {
    let (start, end): (usize, usize);
    // SAFETY: reads two fields of the context the program was called with.
    unsafe {
        asm!("{0} = *(u32 *)({1} + {2})", out(reg) start, in(reg) packet.ctx(), const P::DATA_AT,
            options(pure, readonly, nostack));
        asm!("{0} = *(u32 *)({1} + {2})", out(reg) end, in(reg) packet.ctx(), const P::DATA_AT + 4,
            options(pure, readonly, nostack));
    }
    (start, end)
}

/// A pointer to the T at `offset` from the start of the frame, if the readable part of the frame holds all of it.
///
/// The sums are made in assembly, where LLVM cannot rearrange them: the verifier knows a bound only of the very pointer
/// that was compared, and learns nothing from the `start >= end` that a check for one byte would become.
#[inline(always)]
pub fn at<T>(packet: impl Packet, offset: usize) -> Option<*mut T> {
    let (mut start, end) = bounds(packet);
    // SAFETY: arithmetic on registers.
    unsafe { asm!("{0} += {1}", inout(reg) start, in(reg) offset, options(pure, nomem, nostack)) };
    let mut past = start;
    // SAFETY: as above.
    unsafe { asm!("{0} += {1}", inout(reg) past, const size_of::<T>(), options(pure, nomem, nostack)) };
    if past > end {
        return None;
    }
    Some(start as *mut T)
}

/// A copy of the T at `offset`, which is any type that any bits are a value of.
#[inline(always)]
pub fn read<T: Copy>(packet: impl Packet, offset: usize) -> Option<T> {
    let pointer = at::<T>(packet, offset)?;
    // SAFETY: `at` proved all of T within the frame.
    Some(unsafe { ptr::read_unaligned(pointer) })
}

//! The options of a TCP header (RFC 9293, section 3.1): timestamps (RFC 7323) and SACK blocks (RFC 2018), in any order.
//! And those of an IPv4 header, which are made alike: source routes (RFC 791, section 3.1).

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::bpf_loop;

use pgsplice_ebpf::flow::{FLOW_TIMESTAMPS, Flow};

use super::headers::{IPV4_LEN, TCP_LEN, be32};
use super::packet::{Packet, read};
use super::parse::MAX_L4;
use super::sum::Sum;

const END: u8 = 0;
const NOP: u8 = 1;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;
const TIMESTAMPS_LEN: usize = 10;
const LOOSE_ROUTE: u8 = 131;
const STRICT_ROUTE: u8 = 137;
/// NOP NOP TIMESTAMPS 10: what nearly every packet has, and nothing else.
const USUAL: u32 = u32::from_ne_bytes([NOP, NOP, TIMESTAMPS, TIMESTAMPS_LEN as u8]);
const USUAL_LEN: usize = TCP_LEN + 12;
/// Options in the longest header, each at least one byte.
const MAX_OPTIONS: u32 = 40;

const _: () = assert!(IPV4_LEN == TCP_LEN);

/// A TSval or none, in one word: of an `Option` LLVM would copy what was never written, which the verifier refuses.
#[derive(Clone, Copy)]
pub struct Tsval(u64);

impl Tsval {
    pub const NONE: Self = Self(u64::MAX);

    #[inline(always)]
    fn some(tsval: u32) -> Self {
        Self(tsval.into())
    }

    #[inline(always)]
    pub fn get(self) -> Option<u32> {
        (self.0 <= u64::from(u32::MAX)).then_some(self.0 as u32)
    }
}

/// What a rewriting did.
pub struct Rewritten {
    pub sum: Sum,
    /// The sender's own.
    pub tsval: Tsval,
    /// The packet has ACK.
    ack: bool,
}

/// Rewrites the options of a header of `len` bytes at `l4` for the other leg. `None`: they are malformed.
#[inline(always)]
pub fn rewrite<P: Packet>(packet: P, l4: usize, len: usize, ack: bool, flow: &Flow) -> Option<Rewritten> {
    let mut done = Rewritten { sum: Sum::ZERO, tsval: Tsval::NONE, ack };
    if len == TCP_LEN {
        return Some(done);
    }
    if len == USUAL_LEN && flow.flags & FLOW_TIMESTAMPS != 0 && read::<u32>(packet, l4 + TCP_LEN)? == USUAL {
        timestamps(packet, l4 + TCP_LEN + 4, 0, flow, &mut done)?;
        return Some(done);
    }
    rewrite_each(packet, l4, len, flow, &mut done).then_some(done)
}

/// In any order. False: they are malformed.
#[inline(never)]
fn rewrite_each<P: Packet>(packet: P, l4: usize, len: usize, flow: &Flow, done: &mut Rewritten) -> bool {
    let mut walk = Walk::new(packet, l4, len, flow, done);
    walk.run(rewrite_next::<P>);
    walk.malformed == 0
}

extern "C" fn rewrite_next<P: Packet>(_: u32, walk: &mut Walk<P, &Flow, &mut Rewritten>) -> i64 {
    let Some(option) = walk.next() else { return STOP };
    let rewritten = match option.kind {
        TIMESTAMPS if walk.flow.flags & FLOW_TIMESTAMPS != 0 && option.len == TIMESTAMPS_LEN => {
            timestamps(walk.packet, option.body, option.odd, walk.flow, walk.done)
        }
        TIMESTAMPS if walk.flow.flags & FLOW_TIMESTAMPS != 0 => None,
        SACK => sack(walk.packet, option.body, option.odd, option.len, walk.flow, walk.done),
        _ => Some(()),
    };
    if rewritten.is_none() {
        walk.malformed = 1;
        return STOP;
    }
    GO_ON
}

/// The TSval of a header of `len` bytes at `l4`; the last, if there are several.
#[inline(always)]
pub fn tsval<P: Packet>(packet: P, l4: usize, len: usize) -> Tsval {
    if len == TCP_LEN {
        return Tsval::NONE;
    }
    if len == USUAL_LEN
        && let Some([USUAL, tsval]) = read::<[u32; 2]>(packet, l4 + TCP_LEN)
    {
        return Tsval::some(be32(tsval));
    }
    find_tsval(packet, l4, len)
}

#[inline(never)]
fn find_tsval<P: Packet>(packet: P, l4: usize, len: usize) -> Tsval {
    let mut found = Tsval::NONE;
    let mut walk = Walk::new(packet, l4, len, (), &mut found);
    walk.run(find_next::<P>);
    found
}

extern "C" fn find_next<P: Packet>(_: u32, walk: &mut Walk<P, (), &mut Tsval>) -> i64 {
    let Some(option) = walk.next() else { return STOP };
    if option.kind == TIMESTAMPS && option.len == TIMESTAMPS_LEN {
        let Some(tsval) = read(walk.packet, option.body) else { return STOP };
        *walk.done = Tsval::some(be32(tsval));
    }
    GO_ON
}

/// Whether the options of an IPv4 header of `len` bytes at `l3` name hosts that it is to pass by, or cannot be read.
#[inline(never)]
pub fn route<P: Packet>(packet: P, l3: usize, len: usize) -> bool {
    let mut routed = 0u64;
    let mut walk = Walk::new(packet, l3, len, (), &mut routed);
    walk.run(route_next::<P>);
    let malformed = walk.malformed;
    routed != 0 || malformed != 0
}

extern "C" fn route_next<P: Packet>(_: u32, walk: &mut Walk<P, (), &mut u64>) -> i64 {
    let Some(option) = walk.next() else { return STOP };
    if matches!(option.kind, LOOSE_ROUTE | STRICT_ROUTE) {
        *walk.done = 1;
        return STOP;
    }
    GO_ON
}

/// On its way through the options of a header of `len` bytes at `l4`, TCP's or, of the same least length, IPv4's.
#[repr(C)]
struct Walk<P, F, D> {
    packet: P,
    l4: usize,
    flow: F,
    done: D,
    /// Not 0: an option's length was a lie.
    malformed: u8,
    /// From `l4` on. A byte, and not the first of eight: the verifier does not remember what is in it, so every step is
    /// the same to it, and it has to follow only one.
    at: u8,
    len: u8,
}

struct Opt {
    kind: u8,
    len: usize,
    /// Where what follows kind and length stands.
    body: usize,
    /// 1 where that is an odd offset in the segment.
    odd: u32,
}

const GO_ON: i64 = 0;
const STOP: i64 = 1;

impl<P: Packet, F, D> Walk<P, F, D> {
    #[inline(always)]
    fn new(packet: P, l4: usize, len: usize, flow: F, done: D) -> Self {
        Self { packet, l4, flow, done, malformed: 0, at: TCP_LEN as u8, len: len as u8 }
    }

    /// Calls `step` until it says [`STOP`].
    ///
    /// By the helper (Linux 5.17): of a plain loop the verifier would follow every way through the options apart, which
    /// is more than it can.
    #[inline(always)]
    fn run(&mut self, step: extern "C" fn(u32, &mut Self) -> i64) {
        // SAFETY: the helper calls the function with this context, which outlives the call, and nothing else uses it.
        unsafe { bpf_loop(MAX_OPTIONS, step as *mut c_void, ptr::from_mut(self).cast(), 0) };
    }

    /// The option at `at`, which goes on to the next. `None` after the last, and if it is malformed.
    #[inline(always)]
    fn next(&mut self) -> Option<Opt> {
        let (at, len_of_all) = (usize::from(self.at & 63), usize::from(self.len));
        // Nor how large this is.
        let l4 = self.l4 & MAX_L4;
        if at >= len_of_all {
            return None;
        }
        let kind = read::<u8>(self.packet, l4 + at)?;
        if kind == END {
            return None;
        }
        let mut len = 1;
        if kind != NOP {
            self.malformed = 1;
            if at + 2 > len_of_all {
                return None;
            }
            len = usize::from(read::<u8>(self.packet, l4 + at + 1)?);
            if len < 2 || at + len > len_of_all {
                return None;
            }
            self.malformed = 0;
        }
        self.at = (at + len) as u8;
        Some(Opt { kind, len, body: l4 + at + 2, odd: (at & 1) as u32 })
    }
}

/// TSval and TSecr at `at`; `odd` is 1 where that is an odd offset in the segment.
#[inline(always)]
fn timestamps(packet: impl Packet, at: usize, odd: u32, flow: &Flow, done: &mut Rewritten) -> Option<()> {
    let [val, ecr]: [u32; 2] = read(packet, at)?;
    let sent = be32(val);
    let new_val = sent.wrapping_add(flow.tsval_delta).to_be();
    // Without ACK, TSecr means nothing (RFC 7323, section 3.2).
    let new_ecr = if ecr != 0 && done.ack { be32(ecr).wrapping_add(flow.tsecr_delta).to_be() } else { ecr };
    packet.store(at, &[new_val, new_ecr])?;
    change(done, odd, Sum::ZERO.change(val, new_val).change(ecr, new_ecr));
    done.tsval = Tsval::some(sent);
    Some(())
}

#[inline(always)]
fn sack(packet: impl Packet, at: usize, odd: u32, len: usize, flow: &Flow, done: &mut Rewritten) -> Option<()> {
    if !matches!(len, 10 | 18 | 26 | 34) {
        return None;
    }
    for block in 0..4 {
        let start = block * 8;
        if start + 2 >= len {
            break;
        }
        let [left, right]: [u32; 2] = read(packet, at + start)?;
        let new_left = be32(left).wrapping_add(flow.ack_delta).to_be();
        let new_right = be32(right).wrapping_add(flow.ack_delta).to_be();
        packet.store(at + start, &[new_left, new_right])?;
        change(done, odd, Sum::ZERO.change(left, new_left).change(right, new_right));
    }
    Some(())
}

#[inline(always)]
fn change(done: &mut Rewritten, odd: u32, sum: Sum) {
    done.sum = done.sum.with(sum.shifted(odd));
}

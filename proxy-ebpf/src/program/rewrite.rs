//! The rewriting of IP and TCP headers from one leg into the other. `options` has the rest of the TCP header.

use core::mem::MaybeUninit;

use pgsplice_ebpf::flow::Flow;

use super::headers::*;
use super::key::{Addr, Tuple, out, v4};
use super::packet::{Packet, read};
use super::parse::Parsed;
use super::sum::Sum;
use super::tcp::Header;

/// Every packet leaves with this TTL or hop limit: it is one of this host's.
pub const TTL: u8 = 64;

/// IPv4 from its TTL on: what changes, and the protocol.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv4Tail {
    ttl: u8,
    protocol: u8,
    checksum: u16,
    src: u32,
    dst: u32,
}
const IPV4_TAIL_AT: usize = 8;

/// IPv6 from its payload length on.
#[repr(C, packed(4))]
#[derive(Clone, Copy)]
struct Ipv6Tail {
    payload_len: u16,
    next: u8,
    hop_limit: u8,
    src: Addr,
    dst: Addr,
}
const IPV6_TAIL_AT: usize = 4;

const _: () = assert!(IPV4_TAIL_AT + size_of::<Ipv4Tail>() == IPV4_LEN);
const _: () = assert!(IPV6_TAIL_AT + size_of::<Ipv6Tail>() == IPV6_LEN);

/// Rewrites both headers; `options` is what rewriting the TCP options did to the sum of the segment.
#[inline(always)]
pub fn headers(packet: impl Packet, parsed: &Parsed, flow: &Flow, header: &Header, options: Sum) -> Option<()> {
    let out = out(flow);
    let head = &header.tcp.head;
    let mut new = *head;
    new.ports = out.ports;
    new.seq = be32(head.seq).wrapping_add(flow.seq_delta).to_be();
    let mut segment = options.change(head.ports, new.ports).change(head.seq, new.seq);
    if head.flags & TCP_ACK != 0 {
        new.ack = be32(head.ack).wrapping_add(flow.ack_delta).to_be();
        segment = segment.change(head.ack, new.ack);
    }
    if head.flags & TCP_SYN == 0 {
        let window = window_bytes(head, flow) >> (flow.out_wscale & 31);
        new.window = (if window > 0xffff { 0xffff } else { window as u16 }).to_be();
        segment = segment.change(u32::from(head.window), u32::from(new.window));
    }
    packet.store(parsed.l4, &new)?;
    let (pseudo, rest) = if parsed.v6() { ipv6(packet, parsed, out)? } else { ipv4(packet, parsed, out)? };
    packet.mend(parsed.l4, header.tcp.checksum, pseudo, segment, rest)
}

/// What the window of a packet means.
#[inline(always)]
pub fn window_bytes(head: &TcpHead, flow: &Flow) -> u64 {
    let window = u64::from(be16(head.window));
    if head.flags & TCP_SYN != 0 { window } else { window << (flow.in_wscale & 31) }
}

/// Returns what changed of the pseudo header, and of the IP header beyond what its checksum makes up for.
#[inline(always)]
fn ipv4(packet: impl Packet, parsed: &Parsed, out: &Tuple) -> Option<(Sum, Option<Sum>)> {
    let at = parsed.l3 + IPV4_TAIL_AT;
    let old: Ipv4Tail = read(packet, at)?;
    let mut new = old;
    new.ttl = TTL;
    new.src = v4(out.src);
    new.dst = v4(out.dst);
    let pseudo = Sum::ZERO.change(old.src, new.src).change(old.dst, new.dst);
    let first = |tail: &Ipv4Tail| u32::from(u16::from_ne_bytes([tail.ttl, tail.protocol]));
    new.checksum = pseudo.change(first(&old), first(&new)).mend(old.checksum);
    packet.store(at, &new)?;
    Some((pseudo, None))
}

#[inline(always)]
fn ipv6<P: Packet>(packet: P, parsed: &Parsed, out: &Tuple) -> Option<(Sum, Option<Sum>)> {
    let mut changes = MaybeUninit::uninit();
    if !rewrite_ipv6(packet, parsed.l3, out, &mut changes) {
        return None;
    }
    // SAFETY: written where it could be done.
    let [pseudo, rest] = unsafe { changes.assume_init() };
    Some((pseudo, Some(rest)))
}

/// A function of its own for the room its addresses take on the stack. False: it could not be done.
#[inline(never)]
fn rewrite_ipv6<P: Packet>(packet: P, l3: usize, out: &Tuple, changes: &mut MaybeUninit<[Sum; 2]>) -> bool {
    let at = l3 + IPV6_TAIL_AT;
    let Some(old) = read::<Ipv6Tail>(packet, at) else { return false };
    let new = Ipv6Tail { hop_limit: TTL, src: out.src, dst: out.dst, ..old };
    let mut pseudo = Sum::ZERO;
    for i in 0..2 {
        pseudo = pseudo.change_two({ old.src }[i], { new.src }[i]).change_two({ old.dst }[i], { new.dst }[i]);
    }
    let second = |tail: &Ipv6Tail| u32::from(u16::from_ne_bytes([tail.next, tail.hop_limit]));
    changes.write([pseudo, pseudo.change(second(&old), second(&new))]);
    packet.store(at, &new).is_some()
}

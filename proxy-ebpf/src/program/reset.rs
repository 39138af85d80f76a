//! A packet of a cut session, turned round into the RST that answers it (RFC 9293, section 3.10.7.1).

use super::headers::*;
use super::packet::{Packet, read};
use super::parse::Parsed;
use super::rewrite::TTL;
use super::sum::Sum;
use super::tcp::Header;

/// Sends it back where it came from; what the program returns then.
#[inline(always)]
pub fn answer<P: Packet>(packet: P, parsed: &Parsed, header: &Header) -> Option<i32> {
    let sent = turn_round(packet, parsed.l3, parsed.l4, header.payload as u32, parsed.v6());
    (sent >= 0).then_some(sent)
}

/// Negative: it could not be done.
#[inline(never)]
fn turn_round<P: Packet>(packet: P, l3: usize, l4: usize, payload: u32, v6: bool) -> i32 {
    try_turn_round(packet, l3, l4, payload, v6).unwrap_or(-1)
}

#[inline(always)]
fn try_turn_round(packet: impl Packet, l3: usize, l4: usize, payload: u32, v6: bool) -> Option<i32> {
    let mut eth: Ethernet = read(packet, 0)?;
    (eth.src, eth.dst) = (eth.dst, eth.src);
    packet.store(0, &eth)?;
    let pseudo = if v6 { ipv6(packet, l3)? } else { ipv4(packet, l3, l4)? };

    let got: TcpHead = read(packet, l4)?;
    let acknowledged = got.flags & TCP_ACK != 0;
    let counted = payload + u32::from(got.flags & TCP_SYN != 0) + u32::from(got.flags & TCP_FIN != 0);
    let (seq, ack, flags) = match acknowledged {
        true => (got.ack, 0, TCP_RST),
        false => (0, be32(got.seq).wrapping_add(counted).to_be(), TCP_RST | TCP_ACK),
    };
    let offset_flags = u32::from_ne_bytes([(TCP_LEN as u8 / 4) << 4, flags, 0, 0]);
    let words = Words([got.ports.rotate_left(16), seq, ack, offset_flags, 0]);
    packet.store(l4, &words.0)?;
    packet.seal(l4, pseudo, words.0.iter().fold(Sum::ZERO, |sum, word| sum.add(*word)))?;
    packet.turn(l4 + TCP_LEN)
}

/// A TCP header, aligned so that the verifier takes it on the stack however LLVM writes it.
#[repr(align(8))]
struct Words([u32; TCP_LEN / 4]);

/// Turns the IP header round, options and all. Returns the sum of the pseudo header.
#[inline(always)]
fn ipv4(packet: impl Packet, l3: usize, l4: usize) -> Option<Sum> {
    let old: Ipv4 = read(packet, l3)?;
    let mut new = old;
    new.total_len = ((l4 - l3 + TCP_LEN) as u16).to_be();
    new.ttl = TTL;
    (new.src, new.dst) = (old.dst, old.src);
    let ttl = |ip: &Ipv4| u32::from(u16::from_ne_bytes([ip.ttl, ip.protocol]));
    new.checksum = Sum::ZERO
        .change(u32::from(old.total_len), u32::from(new.total_len))
        .change(ttl(&old), ttl(&new))
        .mend(old.checksum);
    packet.store(l3, &new)?;
    Some(pseudo().add(new.src).add(new.dst))
}

#[inline(always)]
fn ipv6(packet: impl Packet, l3: usize) -> Option<Sum> {
    let old: Ipv6 = read(packet, l3)?;
    let mut new = old;
    new.payload_len = (TCP_LEN as u16).to_be();
    new.hop_limit = TTL;
    (new.src, new.dst) = (old.dst, old.src);
    packet.store(l3, &new)?;
    let mut sum = pseudo();
    for i in 0..2 {
        sum = sum.add_two({ new.src }[i]).add_two({ new.dst }[i]);
    }
    Some(sum)
}

/// Of the pseudo header, what both versions of IP have: the protocol, and the length of a segment without payload.
#[inline(always)]
fn pseudo() -> Sum {
    Sum::ZERO.add(u32::from(u16::from(IPPROTO_TCP).to_be())).add(u32::from((TCP_LEN as u16).to_be()))
}

//! The RST that answers a packet of a cut session (RFC 9293, section 3.10.7.1).

use super::bytes::{Parsed, Segment, be16};
use super::options::{canonical, words};
use super::{ACK, FIN, RST, SYN};

/// The frame that goes back to where this one came from.
pub fn answer(frame: &[u8], parsed: &Parsed, segment: &Segment) -> Vec<u8> {
    let mut out = frame[..parsed.l4].to_vec();
    out[..6].copy_from_slice(&frame[6..12]);
    out[6..12].copy_from_slice(&frame[..6]);

    let ip = &mut out[parsed.l3..];
    let addresses = if parsed.v6 {
        ip[4..6].copy_from_slice(&20u16.to_be_bytes());
        ip[7] = 64;
        8..40
    } else {
        let old = words(&ip[..10]);
        let total = (ip.len() + 20) as u16;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip[8] = 64;
        let new = words(&ip[..10]);
        let checksum = be16(ip, 10).unwrap_or(0);
        let mended = !canonical(u64::from(!checksum) + new + old * 65_534);
        ip[10..12].copy_from_slice(&mended.to_be_bytes());
        12..20
    };
    let half = addresses.start + addresses.len() / 2;
    let (src, dst) = (ip[addresses.start..half].to_vec(), ip[half..addresses.end].to_vec());
    ip[addresses.clone()].copy_from_slice(&[dst, src].concat());
    let addresses = ip[addresses].to_vec();

    let length = segment.payload as u32 + u32::from(segment.has(SYN)) + u32::from(segment.has(FIN));
    let (seq, ack, flags) = match segment.has(ACK) {
        true => (segment.ack, 0, RST),
        false => (0, segment.seq.wrapping_add(length), RST | ACK),
    };
    let mut tcp = Vec::with_capacity(20);
    tcp.extend(&frame[parsed.l4 + 2..parsed.l4 + 4]);
    tcp.extend(&frame[parsed.l4..parsed.l4 + 2]);
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.to_be_bytes());
    tcp.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    let pseudo = words(&addresses) + 6 + 20;
    let checksum = !canonical(pseudo + words(&tcp));
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    out.extend(tcp);
    out
}

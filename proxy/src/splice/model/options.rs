//! The rewriting of the headers, and what the options say.

use pgsplice_ebpf::flow::{FLOW_TIMESTAMPS, Flow};

use super::bytes::{Parsed, Segment, be16, be32};
use super::{ACK, SYN};

/// What the rewriting saw on its way.
pub struct Rewritten {
    /// The sender's own.
    pub tsval: Option<u32>,
}

/// Kind, and where it stands with its length. `Err` where a length leads out of the header; what came before is good.
fn each(options: &[u8]) -> impl Iterator<Item = Result<(u8, std::ops::Range<usize>), ()>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let kind = *options.get(at)?;
        let len = match kind {
            0 => return None,
            1 => 1,
            _ => usize::from(options.get(at + 1).copied().unwrap_or(0)),
        };
        if (kind != 1 && len < 2) || at + len > options.len() {
            at = options.len();
            return Some(Err(()));
        }
        at += len;
        Some(Ok((kind, at - len..at)))
    })
}

/// The last TSval before anything malformed.
pub fn tsval(options: &[u8]) -> Option<u32> {
    let good = each(options).map_while(Result::ok);
    good.filter(|(kind, place)| *kind == 8 && place.len() == 10)
        .filter_map(|(_, place)| be32(options, place.start + 2))
        .last()
}

/// Rewrites a packet, from its IP header on, for the other leg. `None`: its options are malformed.
pub fn rewrite(ip: &mut [u8], parsed: &Parsed, segment: &Segment, flow: &Flow) -> Option<Rewritten> {
    let l4 = parsed.l4 - parsed.l3;
    let header = l4 + 20 + segment.options.len();
    let before = ip[..header].to_vec();
    let mut rewritten = Rewritten { tsval: None };

    for option in each(&segment.options) {
        let (kind, place) = option.ok()?;
        let body = l4 + 20 + place.start + 2;
        match kind {
            5 => {
                if !matches!(place.len(), 10 | 18 | 26 | 34) {
                    return None;
                }
                for edge in (body..body + place.len() - 2).step_by(4) {
                    add(ip, edge, flow.ack_delta)?;
                }
            }
            8 if flow.flags & FLOW_TIMESTAMPS != 0 => {
                if place.len() != 10 {
                    return None;
                }
                rewritten.tsval = be32(ip, body);
                add(ip, body, flow.tsval_delta)?;
                if be32(ip, body + 4)? != 0 && segment.has(ACK) {
                    add(ip, body + 4, flow.tsecr_delta)?;
                }
            }
            _ => {}
        }
    }

    ip[l4..l4 + 2].copy_from_slice(&flow.out.src_port);
    ip[l4 + 2..l4 + 4].copy_from_slice(&flow.out.dst_port);
    add(ip, l4 + 4, flow.seq_delta)?;
    if segment.has(ACK) {
        add(ip, l4 + 8, flow.ack_delta)?;
    }
    if !segment.has(SYN) {
        let window = ((u64::from(segment.window) << flow.in_wscale) >> flow.out_wscale).min(65_535) as u16;
        ip[l4 + 14..l4 + 16].copy_from_slice(&window.to_be_bytes());
    }
    if parsed.v6 {
        ip[7] = 64;
        ip[8..24].copy_from_slice(&flow.out.src);
        ip[24..40].copy_from_slice(&flow.out.dst);
    } else {
        ip[8] = 64;
        ip[12..16].copy_from_slice(&flow.out.src[12..]);
        ip[16..20].copy_from_slice(&flow.out.dst[12..]);
        mend(ip, &before, 10, &[0..10, 12..20])?;
    }
    let addresses = if parsed.v6 { 8..40 } else { 12..20 };
    mend(ip, &before, l4 + 16, &[addresses, l4..l4 + 16, l4 + 18..header])?;
    Some(rewritten)
}

fn add(bytes: &mut [u8], at: usize, delta: u32) -> Option<()> {
    let sum = be32(bytes, at)?.wrapping_add(delta);
    bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    Some(())
}

/// Brings the checksum at `at` up to date with how the bytes it covers differ from `before`. RFC 1624: a checksum that was
/// wrong stays as wrong. Each range starts at an even place.
fn mend(now: &mut [u8], before: &[u8], at: usize, covered: &[std::ops::Range<usize>]) -> Option<()> {
    let mut sum = u64::from(!be16(before, at)?);
    for range in covered {
        // In ones' complement, to take away is to add 65,535 less it.
        sum += words(&now[range.clone()]);
        sum += words(&before[range.clone()]) * 65_534;
    }
    now[at..at + 2].copy_from_slice(&(!canonical(sum)).to_be_bytes());
    Some(())
}

/// The sum of 16-bit words in 1..=65,535: it is never of nothing but zeroes, so 0 stands for 65,535.
pub fn canonical(sum: u64) -> u16 {
    ((sum - 1) % 65_535 + 1) as u16
}

/// The sum of the 16-bit words of these bytes, an odd one at the end padded with zero.
pub fn words(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let sum: u64 = pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum();
    sum + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

//! "Fragmentation needed" and "packet too big" about a packet of ours, which only user space can translate.

use pgsplice_ebpf::flow::{Flow, control, counter, event as kind};

use super::event;
use super::headers::{IPPROTO_TCP, IPV4_LEN, IPV6_LEN, Ipv4, Ipv6};
use super::key::{Key, Tuple, v4_mapped};
use super::maps::{self, CONTROL, count};
use super::packet::{Packet, read};

/// RFC 792 and RFC 1191: type 3, code 4.
const V4_FRAGMENTATION_NEEDED: [u8; 2] = [3, 4];
/// RFC 4443, section 3.2.
const V6_PACKET_TOO_BIG: u8 = 2;
const ICMP_LEN: usize = 8;

/// Was it about a flow that this program forwards? Then user space has been told and the packet must be dropped.
#[inline(never)]
pub fn taken<P: Packet>(packet: P, l3: usize, l4: usize, v6: bool) -> bool {
    let Some(key) = subject(packet, l4, v6) else { return false };
    let Some(&Flow { slot, flags, .. }) = maps::flow(&key) else { return false };
    if flags & P::FLOW == 0 || CONTROL.get(slot).copied() != Some(control::LIVE) {
        return false;
    }
    count(counter::ICMP);
    event::with_packet(packet, l3, kind::ICMP, slot, event::BYTES_OF_DATA);
    true
}

/// The key of the flow whose answers the packet is about: the tuple of the packet it quotes, reversed.
#[inline(always)]
fn subject(packet: impl Packet, l4: usize, v6: bool) -> Option<Key> {
    let inner = l4 + ICMP_LEN;
    // As much as is quoted at least: a header and eight bytes.
    if !packet.hold(inner + if v6 { IPV6_LEN } else { IPV4_LEN } + 8) {
        return None;
    }
    let kind: [u8; 2] = read(packet, l4)?;
    let (src, dst, next) = if v6 {
        let ip: Ipv6 = read(packet, inner)?;
        if kind[0] != V6_PACKET_TOO_BIG || ip.next != IPPROTO_TCP {
            return None;
        }
        (ip.src, ip.dst, inner + IPV6_LEN)
    } else {
        let ip: Ipv4 = read(packet, inner)?;
        if kind != V4_FRAGMENTATION_NEEDED || ip.protocol != IPPROTO_TCP || ip.header_len() < IPV4_LEN {
            return None;
        }
        (v4_mapped(ip.src), v4_mapped(ip.dst), inner + ip.header_len())
    };
    if !packet.hold(next + 4) {
        return None;
    }
    let ports: u32 = read(packet, next)?;
    Some(Tuple { src, dst, ports }.reversed())
}

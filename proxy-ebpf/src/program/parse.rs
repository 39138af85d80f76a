//! From a frame to the addresses and ports of a TCP packet, in one pass and with the bounds checks the verifier asks for.

use core::arch::asm;
use core::mem::MaybeUninit;

use super::headers::*;
use super::key::{Aligned, Key, Tuple, v4_mapped};
use super::options;
use super::packet::{Packet, read};

/// IPv6 extension headers that are followed; the stack takes more, so what has more is not called harmless.
const MAX_EXTENSIONS: usize = 6;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    /// ICMP or ICMPv6, not fragmented, without extension headers: `l4` is where it starts.
    Icmp,
    /// IPv6 with so many extension headers that the ports were not reached.
    TooDeep,
    /// Nothing of ours: other protocols, later fragments, more than one VLAN tag, lying headers.
    Other,
}

/// A TCP packet, or the first fragment of one. Offsets are from the start of the frame.
pub struct Parsed {
    pub l3: usize,
    pub l4: usize,
    /// What the IP header says: from `l3` on.
    pub ip_len: usize,
    /// The 802.1Q TCI, where there is a tag.
    pub tci: u16,
    /// Bits of the constants below.
    traits: usize,
    /// The TCP flags; 0 in a first fragment too short to tell.
    pub flags: u8,
}

const V6: usize = 1;
/// The frame has a tag in it.
const TAGGED: usize = 2;
/// It is the first fragment of several.
const FRAGMENT: usize = 4;
/// There are IPv6 extension headers.
const EXTENSIONS: usize = 8;

/// No header is followed so far into a frame that TCP starts beyond this, one less than a power of two.
pub const MAX_L4: usize = 0x3fff;
/// No interface takes super-packets beyond this, one less than a power of two.
const MAX_IP_LEN: usize = 0xf_ffff;

impl Parsed {
    pub const fn new() -> Self {
        Self { l3: 0, l4: 0, ip_len: 0, tci: 0, traits: 0, flags: 0 }
    }

    #[inline(always)]
    pub fn v6(&self) -> bool {
        self.traits & V6 != 0
    }

    #[inline(always)]
    pub fn tagged(&self) -> bool {
        self.traits & TAGGED != 0
    }

    #[inline(always)]
    pub fn fragment(&self) -> bool {
        self.traits & FRAGMENT != 0
    }

    #[inline(always)]
    fn extensions(&self) -> bool {
        self.traits & EXTENSIONS != 0
    }

    /// Whether there are IPv6 extension headers, or IPv4 options that say more than the addresses do about where it goes.
    /// Only for splices: the walk through the options takes Linux 5.17, and the guard shall run on less.
    #[inline(always)]
    pub fn strays(&self, packet: impl Packet) -> bool {
        let len = self.l4.wrapping_sub(self.l3);
        self.extensions() || !self.v6() && len != IPV4_LEN && options::route(packet, self.l3, len)
    }

    /// SYN without ACK.
    pub fn opens(&self) -> bool {
        self.flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    /// The 802.1Q VLAN id, 0 for untagged.
    pub fn vlan(&self) -> u16 {
        self.tci & 0x0fff
    }
}

/// `None` as soon as a header is cut off. Writes the key unless the frame is `Other`; its ports are true for TCP only.
#[inline(always)]
pub fn parse<P: Packet>(packet: P, out: &mut Parsed, key: &mut MaybeUninit<Key>) -> Option<Kind> {
    let kind = ethernet(packet, out, key.as_mut_ptr())?;
    // Without this the verifier would go through all that follows once for every way to here.
    let unknown = packet.ifindex();
    out.l3 = forget(out.l3, unknown) & 31;
    out.l4 = forget(out.l4, unknown) & MAX_L4;
    out.ip_len = forget(out.ip_len, unknown) & MAX_IP_LEN;
    out.traits = forget(out.traits, unknown) & (V6 | TAGGED | FRAGMENT | EXTENSIONS);
    Some(kind)
}

/// The same number, of which the verifier knows nothing if it knows nothing of `unknown`.
#[inline(always)]
fn forget(mut number: usize, unknown: u32) -> usize {
    // SAFETY: arithmetic on registers.
    unsafe { asm!("{0} ^= {1}", "{0} ^= {1}", inout(reg) number, in(reg) unknown, options(pure, nomem, nostack)) };
    number
}

#[inline(always)]
fn ethernet<P: Packet>(packet: P, out: &mut Parsed, key: *mut Key) -> Option<Kind> {
    let Some(tci) = packet.tag() else { return Some(Kind::Other) };
    out.tci = tci;
    if !packet.hold(size_of::<Ethernet>() + IPV4_LEN) {
        return None;
    }
    let eth: Ethernet = read(packet, 0)?;
    let mut kind = be16(eth.kind);
    out.l3 = size_of::<Ethernet>();
    if P::TAG_IN_FRAME && kind == ETH_P_8021Q {
        let vlan: Vlan = read(packet, out.l3)?;
        kind = be16(vlan.kind);
        out.tci = be16(vlan.tci);
        out.traits |= TAGGED;
        out.l3 += size_of::<Vlan>();
    }
    match kind {
        ETH_P_IP => ipv4(packet, out, key),
        ETH_P_IPV6 => ipv6(packet, out, key),
        _ => Some(Kind::Other),
    }
}

#[inline(always)]
fn ipv4(packet: impl Packet, out: &mut Parsed, key: *mut Key) -> Option<Kind> {
    let ip: Ipv4 = read(packet, out.l3)?;
    let header_len = ip.header_len();
    // A later fragment has no ports; it is of no use to the stack without the first, which is judged.
    if ip.is_later_fragment() || header_len < IPV4_LEN || ip.version_ihl >> 4 != 4 {
        return Some(Kind::Other);
    }
    out.l4 = out.l3 + header_len;
    out.ip_len = usize::from(be16(ip.total_len));
    if out.ip_len == 0 && packet.segment() != 0 {
        // A super-packet of more than 64 kB (BIG TCP).
        out.ip_len = packet.len() - out.l3;
    }
    if ip.is_fragment() {
        out.traits |= FRAGMENT;
    }
    // SAFETY: the caller's key; written as a whole.
    unsafe { key.write(Aligned(Tuple { src: v4_mapped(ip.src), dst: v4_mapped(ip.dst), ports: 0 })) };
    match ip.protocol {
        IPPROTO_TCP => tcp(packet, out, key),
        IPPROTO_ICMP if !ip.is_fragment() => Some(Kind::Icmp),
        _ => Some(Kind::Other),
    }
}

#[inline(always)]
fn ipv6(packet: impl Packet, out: &mut Parsed, key: *mut Key) -> Option<Kind> {
    if !packet.hold(out.l3 + IPV6_LEN) {
        return None;
    }
    let ip: Ipv6 = read(packet, out.l3)?;
    if be32(ip.version_class_flow) >> 28 != 6 {
        return Some(Kind::Other);
    }
    out.traits |= V6;
    out.l4 = out.l3 + IPV6_LEN;
    out.ip_len = IPV6_LEN + usize::from(be16(ip.payload_len));
    if ip.payload_len == 0 && packet.segment() != 0 {
        out.ip_len = packet.len() - out.l3;
    }
    // SAFETY: the caller's key; written as a whole.
    unsafe { key.write(Aligned(Tuple { src: ip.src, dst: ip.dst, ports: 0 })) };
    match ip.next {
        IPPROTO_TCP => tcp(packet, out, key),
        IPPROTO_ICMPV6 => Some(Kind::Icmp),
        next => extensions(packet, out, key, next),
    }
}

#[inline(always)]
fn extensions(packet: impl Packet, out: &mut Parsed, key: *mut Key, mut next: u8) -> Option<Kind> {
    out.traits |= EXTENSIONS;
    for _ in 0..MAX_EXTENSIONS {
        let units = match next {
            IPPROTO_TCP => return tcp(packet, out, key),
            IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS => 8,
            IPPROTO_FRAGMENT => 0,
            IPPROTO_AH => 4,
            _ => return Some(Kind::Other),
        };
        if !packet.hold(out.l4 + size_of::<Ipv6Extension>()) {
            return None;
        }
        let extension: Ipv6Extension = read(packet, out.l4)?;
        if next == IPPROTO_FRAGMENT {
            out.traits |= FRAGMENT;
            if be16(extension.fragment) & 0xfff8 != 0 {
                return Some(Kind::Other);
            }
        }
        next = extension.next;
        out.l4 += 8 + usize::from(extension.len) * units;
    }
    if next == IPPROTO_TCP {
        return tcp(packet, out, key);
    }
    Some(Kind::TooDeep)
}

#[inline(always)]
fn tcp(packet: impl Packet, out: &mut Parsed, key: *mut Key) -> Option<Kind> {
    if !packet.hold(out.l4 + TCP_LEN) && !packet.hold(out.l4 + size_of::<TcpPorts>()) {
        return None;
    }
    let ports: TcpPorts = read(packet, out.l4)?;
    // SAFETY: written as a whole before.
    unsafe { (*key).0.ports = ports.ports };
    out.flags = read(packet, out.l4 + TCP_FLAGS_AT).unwrap_or(0);
    Some(Kind::Tcp)
}

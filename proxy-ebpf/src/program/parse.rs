//! From a frame to the addresses and ports of a TCP packet, in one pass and with the bounds checks the verifier asks for.

use core::ptr;

use aya_ebpf::programs::XdpContext;
use pgsplice_ebpf::guard::v4_mapped;

use super::headers::*;

/// IPv6 extension headers that are followed; the stack takes more, so what has more is not called harmless.
const MAX_EXTENSIONS: usize = 6;

/// Where a packet comes from.
pub enum Source {
    V4([u8; 4]),
    V6([u8; 16]),
}

/// What the guard needs to know of a frame.
pub enum Frame {
    Tcp(Tcp),
    /// IPv6 with so many extension headers that the ports were not reached.
    TooDeep(Source),
    /// Nothing of ours: other protocols, later fragments, more than one VLAN tag, cut-off headers.
    Other,
}

/// A TCP packet, or the first fragment of one.
pub struct Tcp {
    pub src: Source,
    /// As in `ListenerKey`.
    pub dst: [u8; 16],
    pub dst_port: [u8; 2],
    /// SYN without ACK. False in a first fragment too short to tell.
    pub opens: bool,
}

/// The header at `offset` from the start of the frame, if the frame holds all of it.
#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*const T> {
    let start = ctx.data();
    if start + offset + size_of::<T>() > ctx.data_end() {
        return None;
    }
    Some((start + offset) as *const T)
}

/// Reads a copy of the header at `offset`.
#[inline(always)]
fn read<T>(ctx: &XdpContext, offset: usize) -> Option<T> {
    let header = at::<T>(ctx, offset)?;
    // SAFETY: `at` proved all of T within the frame; headers are byte arrays, any bits are a value.
    Some(unsafe { ptr::read_unaligned(header) })
}

/// `None` as soon as a header is cut off.
#[inline(always)]
pub fn parse(ctx: &XdpContext) -> Option<Frame> {
    let eth: Ethernet = read(ctx, 0)?;
    let mut kind = u16::from_be_bytes(eth.kind);
    let mut offset = size_of::<Ethernet>();
    if kind == ETH_P_8021Q {
        let vlan: Vlan = read(ctx, offset)?;
        kind = u16::from_be_bytes(vlan.kind);
        offset += size_of::<Vlan>();
    }
    match kind {
        ETH_P_IP => ipv4(ctx, offset),
        ETH_P_IPV6 => ipv6(ctx, offset),
        _ => Some(Frame::Other),
    }
}

#[inline(always)]
fn ipv4(ctx: &XdpContext, offset: usize) -> Option<Frame> {
    let ip: Ipv4 = read(ctx, offset)?;
    let header_len = ip.header_len();
    // A later fragment has no ports; it is of no use to the stack without the first, which is judged.
    if ip.protocol != IPPROTO_TCP || ip.is_later_fragment() || header_len < size_of::<Ipv4>() {
        return Some(Frame::Other);
    }
    tcp(ctx, offset + header_len, Source::V4(ip.src), v4_mapped(ip.dst))
}

#[inline(always)]
fn ipv6(ctx: &XdpContext, offset: usize) -> Option<Frame> {
    let ip: Ipv6 = read(ctx, offset)?;
    let mut next = ip.next;
    let mut offset = offset + size_of::<Ipv6>();
    for _ in 0..MAX_EXTENSIONS {
        let units = match next {
            IPPROTO_TCP => return tcp(ctx, offset, Source::V6(ip.src), ip.dst),
            IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS => 8,
            IPPROTO_FRAGMENT => 0,
            IPPROTO_AH => 4,
            _ => return Some(Frame::Other),
        };
        let extension: Ipv6Extension = read(ctx, offset)?;
        if next == IPPROTO_FRAGMENT && u16::from_be_bytes(extension.fragment) & 0xfff8 != 0 {
            return Some(Frame::Other);
        }
        next = extension.next;
        offset += 8 + usize::from(extension.len) * units;
    }
    if next == IPPROTO_TCP {
        return tcp(ctx, offset, Source::V6(ip.src), ip.dst);
    }
    Some(Frame::TooDeep(Source::V6(ip.src)))
}

#[inline(always)]
fn tcp(ctx: &XdpContext, offset: usize, src: Source, dst: [u8; 16]) -> Option<Frame> {
    let ports: TcpPorts = read(ctx, offset)?;
    let flags: u8 = read(ctx, offset + TCP_FLAGS_AT).unwrap_or(0);
    Some(Frame::Tcp(Tcp { src, dst, dst_port: ports.dst, opens: flags & (TCP_SYN | TCP_ACK) == TCP_SYN }))
}

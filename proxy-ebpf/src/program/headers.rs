//! Packet headers in wire order. Our own, because those of the kernel bindings are zero-sized: a bounds check by
//! their `size_of` would prove nothing to the verifier.
//!
//! Words hold the bytes as they stand in the packet, whatever the processor makes of them; [`be32`] tells the number.
//! A header may stand at any offset, so it is read and written unaligned.

pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_IPV6: u16 = 0x86dd;
pub const ETH_P_8021Q: u16 = 0x8100;

pub const IPPROTO_HOPOPTS: u8 = 0;
pub const IPPROTO_ICMP: u8 = 1;
pub const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_ROUTING: u8 = 43;
pub const IPPROTO_FRAGMENT: u8 = 44;
pub const IPPROTO_AH: u8 = 51;
pub const IPPROTO_ICMPV6: u8 = 58;
pub const IPPROTO_DSTOPTS: u8 = 60;

/// A number of the wire from the word that holds its bytes, and back.
#[inline(always)]
pub fn be32(word: u32) -> u32 {
    u32::from_be(word)
}

#[inline(always)]
pub fn be16(word: u16) -> u16 {
    u16::from_be(word)
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ethernet {
    pub dst: [u8; 6],
    pub src: [u8; 6],
    pub kind: u16,
}

/// IEEE 802.1Q: what follows the addresses when the Ethernet type is 0x8100.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Vlan {
    pub tci: u16,
    pub kind: u16,
}

/// RFC 791, without options.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_len: u16,
    pub id: u16,
    /// Three flags, then the offset in units of eight bytes.
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: u16,
    pub src: u32,
    pub dst: u32,
}

pub const IPV4_LEN: usize = size_of::<Ipv4>();

impl Ipv4 {
    /// Header length in bytes, 0..=60.
    #[inline(always)]
    pub fn header_len(&self) -> usize {
        usize::from(self.version_ihl & 0x0f) * 4
    }

    /// Not the start of its datagram.
    #[inline(always)]
    pub fn is_later_fragment(&self) -> bool {
        be16(self.fragment) & 0x1fff != 0
    }

    /// One of several.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        be16(self.fragment) & 0x3fff != 0
    }
}

/// RFC 8200, section 3.
#[repr(C, packed(4))]
#[derive(Clone, Copy)]
pub struct Ipv6 {
    pub version_class_flow: u32,
    pub payload_len: u16,
    pub next: u8,
    pub hop_limit: u8,
    pub src: [u64; 2],
    pub dst: [u64; 2],
}

pub const IPV6_LEN: usize = size_of::<Ipv6>();

/// The first eight bytes of any IPv6 extension header (RFC 8200, section 4).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv6Extension {
    pub next: u8,
    /// In units of eight bytes without the first; the authentication header has units of four without the first two.
    pub len: u8,
    /// In a fragment header: the offset in the upper 13 bits.
    pub fragment: u16,
    pub rest: u32,
}

/// The part of RFC 9293's header that even the smallest first fragment carries.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TcpPorts {
    pub ports: u32,
    pub seq: u32,
}

/// RFC 9293, section 3.1, up to the window.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TcpHead {
    pub ports: u32,
    pub seq: u32,
    pub ack: u32,
    /// Header length in words in the upper four bits.
    pub offset: u8,
    pub flags: u8,
    pub window: u16,
}

/// All of it, without options.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tcp {
    pub head: TcpHead,
    pub checksum: u16,
    pub urgent: u16,
}

pub const TCP_LEN: usize = size_of::<Tcp>();
pub const TCP_CHECKSUM_AT: usize = 16;
/// Byte 13 of the TCP header.
pub const TCP_FLAGS_AT: usize = 13;
pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

const _: () = assert!(size_of::<Ethernet>() == 14 && IPV4_LEN == 20 && IPV6_LEN == 40 && TCP_LEN == 20);

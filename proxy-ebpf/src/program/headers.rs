//! Packet headers in wire order. Our own, because those of the kernel bindings are zero-sized: a bounds check by
//! their `size_of` would prove nothing to the verifier.
//!
//! Every field is a byte array, so a header has alignment 1 and may stand at any offset.

pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_IPV6: u16 = 0x86dd;
pub const ETH_P_8021Q: u16 = 0x8100;

pub const IPPROTO_HOPOPTS: u8 = 0;
pub const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_ROUTING: u8 = 43;
pub const IPPROTO_FRAGMENT: u8 = 44;
pub const IPPROTO_AH: u8 = 51;
pub const IPPROTO_DSTOPTS: u8 = 60;

#[repr(C)]
pub struct Ethernet {
    pub dst: [u8; 6],
    pub src: [u8; 6],
    pub kind: [u8; 2],
}

/// IEEE 802.1Q: what follows the addresses when the Ethernet type is 0x8100.
#[repr(C)]
pub struct Vlan {
    pub tci: [u8; 2],
    pub kind: [u8; 2],
}

/// RFC 791, without options.
#[repr(C)]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_len: [u8; 2],
    pub id: [u8; 2],
    /// Three flags, then the offset in units of eight bytes.
    pub fragment: [u8; 2],
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: [u8; 2],
    pub src: [u8; 4],
    pub dst: [u8; 4],
}

impl Ipv4 {
    /// Header length in bytes, 0..=60.
    pub fn header_len(&self) -> usize {
        usize::from(self.version_ihl & 0x0f) * 4
    }

    /// Not the start of its datagram.
    pub fn is_later_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment) & 0x1fff != 0
    }
}

/// RFC 8200, section 3.
#[repr(C)]
pub struct Ipv6 {
    pub version_class_flow: [u8; 4],
    pub payload_len: [u8; 2],
    pub next: u8,
    pub hop_limit: u8,
    pub src: [u8; 16],
    pub dst: [u8; 16],
}

/// The first eight bytes of any IPv6 extension header (RFC 8200, section 4).
#[repr(C)]
pub struct Ipv6Extension {
    pub next: u8,
    /// In units of eight bytes without the first; the authentication header has units of four without the first two.
    pub len: u8,
    /// In a fragment header: the offset in the upper 13 bits.
    pub fragment: [u8; 2],
    pub rest: [u8; 4],
}

/// The part of RFC 9293's header that even the smallest first fragment carries.
#[repr(C)]
pub struct TcpPorts {
    pub src: [u8; 2],
    pub dst: [u8; 2],
    pub seq: [u8; 4],
}

/// Byte 13 of the TCP header.
pub const TCP_FLAGS_AT: usize = 13;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_ACK: u8 = 0x10;

//! Frames, byte by byte, as they come off the wire.

use std::net::{IpAddr, SocketAddr};

/// An Ethernet frame with an IP packet in it, TCP unless told otherwise.
#[derive(Clone)]
pub struct Packet {
    src: IpAddr,
    dst: SocketAddr,
    ethertype: Option<u16>,
    vlan: bool,
    /// IPv4: words of options.
    options: u8,
    /// IPv6: kind and length field of each extension header.
    extensions: Vec<(u8, u8)>,
    /// IPv4's flags and offset.
    fragment: u16,
    protocol: u8,
    flags: u8,
    payload: usize,
    /// How much of the TCP header is there.
    tcp_bytes: usize,
}

impl Packet {
    pub fn v4(src: &str, dst: &str) -> Self {
        Self::new(src, dst)
    }

    pub fn v6(src: &str, dst: &str) -> Self {
        Self::new(src, dst)
    }

    fn new(src: &str, dst: &str) -> Self {
        Self {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            ethertype: None,
            vlan: false,
            options: 0,
            extensions: Vec::new(),
            fragment: 0,
            protocol: 6,
            flags: 0,
            payload: 0,
            tcp_bytes: 20,
        }
    }

    pub fn syn(mut self) -> Self {
        self.flags = 0x02;
        self
    }

    pub fn ack(mut self) -> Self {
        self.flags = 0x10;
        self
    }

    pub fn payload(mut self, bytes: usize) -> Self {
        self.payload = bytes;
        self
    }

    pub fn vlan(mut self) -> Self {
        self.vlan = true;
        self
    }

    pub fn ip_options(mut self, words: u8) -> Self {
        self.options = words;
        self
    }

    pub fn extensions(mut self, extensions: &[(u8, u8)]) -> Self {
        self.extensions = extensions.to_vec();
        self
    }

    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = offset | if more { 0x2000 } else { 0 };
        self
    }

    pub fn protocol(mut self, protocol: u8) -> Self {
        self.protocol = protocol;
        self
    }

    pub fn ethertype(mut self, ethertype: u16) -> Self {
        self.ethertype = Some(ethertype);
        self
    }

    pub fn tcp_bytes(mut self, bytes: usize) -> Self {
        self.tcp_bytes = bytes;
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(40_000u16.to_be_bytes());
        tcp.extend(self.dst.port().to_be_bytes());
        tcp.extend([0; 8]);
        tcp.extend([0x50, self.flags]);
        tcp.extend([0; 6]);
        tcp.truncate(self.tcp_bytes);
        tcp.extend(vec![b'x'; self.payload]);

        let mut frame = vec![2; 12];
        if self.vlan {
            frame.extend([0x81, 0x00, 0x00, 0x2a]);
        }
        match (self.src, self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend(self.ethertype.unwrap_or(0x0800).to_be_bytes());
                let header = 20 + usize::from(self.options) * 4;
                frame.extend([0x45 + self.options, 0]);
                frame.extend(((header + tcp.len()) as u16).to_be_bytes());
                frame.extend([0, 1]);
                frame.extend(self.fragment.to_be_bytes());
                frame.extend([64, self.protocol, 0, 0]);
                frame.extend(src.octets());
                frame.extend(dst.octets());
                frame.extend(vec![1; usize::from(self.options) * 4]);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                frame.extend(self.ethertype.unwrap_or(0x86dd).to_be_bytes());
                let mut chain = Vec::new();
                for (i, (kind, len)) in self.extensions.iter().enumerate() {
                    let next = self.extensions.get(i + 1).map_or(self.protocol, |e| e.0);
                    // The authentication header counts words, the others eight bytes (RFC 4302, 8200).
                    let unit = if *kind == 51 { 4 } else { 8 };
                    chain.extend([next, *len]);
                    chain.extend(vec![0; 6 + usize::from(*len) * unit]);
                }
                frame.extend([0x60, 0, 0, 0]);
                frame.extend(((chain.len() + tcp.len()) as u16).to_be_bytes());
                frame.extend([self.extensions.first().map_or(self.protocol, |e| e.0), 64]);
                frame.extend(src.octets());
                frame.extend(dst.octets());
                frame.extend(chain);
            }
            _ => panic!("one address family"),
        }
        frame.extend(tcp);
        frame
    }
}

/// xorshift64: the same bytes in each run.
pub fn random(seed: &mut u64) -> u8 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed as u8
}

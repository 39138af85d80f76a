//! Frames put together field by field, true or not.

use pgsplice_ebpf::flow::FlowKey;

/// An Ethernet frame with TCP in it. What is not given is as it should be; `lie` changes the bytes afterwards.
#[derive(Clone, Debug)]
pub struct Packet {
    pub key: FlowKey,
    /// The TCI of a tag in the frame.
    pub tag: Option<u16>,
    /// Whole words.
    pub ip_options: Vec<u8>,
    /// IPv4's flags and offset.
    pub fragment: u16,
    /// Kind and length field of each IPv6 extension header.
    pub extensions: Vec<(u8, u8)>,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    /// Padded to whole words with zeroes.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
    /// Bytes after the end of IP.
    pub trailer: usize,
}

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

impl Packet {
    pub fn new(key: FlowKey) -> Self {
        Self {
            key,
            tag: None,
            ip_options: Vec::new(),
            fragment: 0x4000,
            extensions: Vec::new(),
            seq: 0,
            ack: 0,
            flags: ACK,
            window: 502,
            options: Vec::new(),
            payload: Vec::new(),
            trailer: 0,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 8, 1, 2, 0, 0, 0, 8, 2];
        if let Some(tci) = self.tag {
            frame.extend([0x81, 0x00]);
            frame.extend(tci.to_be_bytes());
        }
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let tcp_len = 20 + options.len() + self.payload.len();
        let (src, dst) = if self.key.is_v4() {
            frame.extend([0x08, 0x00]);
            let start = frame.len();
            let header = 20 + self.ip_options.len();
            frame.extend([0x40 + (header / 4) as u8, 0]);
            frame.extend(((header + tcp_len) as u16).to_be_bytes());
            frame.extend([0x12, 0x34]);
            frame.extend(self.fragment.to_be_bytes());
            frame.extend([57, 6, 0, 0]);
            frame.extend(&self.key.src[12..]);
            frame.extend(&self.key.dst[12..]);
            frame.extend(&self.ip_options);
            let sum = !fold(add(&frame[start..]));
            frame[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
            (&self.key.src[12..], &self.key.dst[12..])
        } else {
            frame.extend([0x86, 0xdd]);
            let mut chain = Vec::new();
            for (i, (kind, len)) in self.extensions.iter().enumerate() {
                let next = self.extensions.get(i + 1).map_or(6, |e| e.0);
                let unit = if *kind == 51 { 4 } else { 8 };
                chain.extend([next, *len]);
                chain.extend(vec![0; 6 + usize::from(*len) * unit]);
            }
            frame.extend([0x60, 0x01, 0x23, 0x45]);
            frame.extend(((chain.len() + tcp_len) as u16).to_be_bytes());
            frame.extend([self.extensions.first().map_or(6, |e| e.0), 57]);
            frame.extend(self.key.src);
            frame.extend(self.key.dst);
            frame.extend(chain);
            (&self.key.src[..], &self.key.dst[..])
        };
        let mut tcp = Vec::with_capacity(tcp_len);
        tcp.extend(self.key.src_port);
        tcp.extend(self.key.dst_port);
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([((20 + options.len()) as u8) << 2, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(options);
        tcp.extend(&self.payload);
        let sum = !fold(add(src) + add(dst) + 6 + tcp_len as u64 + add(&tcp));
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        frame.extend(tcp);
        frame.extend(vec![0; self.trailer]);
        frame
    }
}

/// The plain sum of 16-bit words (RFC 1071).
pub fn add(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low))).sum()
}

pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// NOP NOP and timestamps.
pub fn timestamps(val: u32, ecr: u32) -> Vec<u8> {
    [&[1, 1, 8, 10][..], &val.to_be_bytes(), &ecr.to_be_bytes()].concat()
}

/// A SACK option of these blocks.
pub fn sack(blocks: &[(u32, u32)]) -> Vec<u8> {
    let mut option = vec![5, 2 + 8 * blocks.len() as u8];
    for (left, right) in blocks {
        option.extend(left.to_be_bytes());
        option.extend(right.to_be_bytes());
    }
    option
}

//! Reads what tcpdump writes: TCP over IPv4 over Ethernet. Everything else in the file is passed over.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, bail, ensure};

/// Bytes of each packet that are needed: Ethernet, and both headers with all their options.
pub const SNAP: usize = 14 + 60 + 60;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// A TCP packet; with segmentation offload it may be larger than any frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Since 1970.
    pub micros: u64,
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    pub seq: u32,
    /// Bytes of payload.
    pub length: u32,
    pub flags: u8,
}

/// The packets of a file, in their order.
pub fn segments(file: &[u8]) -> Result<Vec<Segment>> {
    ensure!(word(file, 0) == Some(0xa1b2_c3d4), "not a capture file of this machine's byte order");
    ensure!(word(file, 20) == Some(1), "not a capture of Ethernet");
    let mut segments = Vec::new();
    let mut at = 24;
    while at < file.len() {
        let (Some(seconds), Some(micros), Some(length)) = (word(file, at), word(file, at + 4), word(file, at + 8))
        else {
            bail!("the capture is cut off at byte {at}");
        };
        let Some(frame) = file.get(at + 16..at + 16 + length as usize) else {
            bail!("the capture is cut off at byte {at}");
        };
        segments.extend(segment(u64::from(seconds) * 1_000_000 + u64::from(micros), frame));
        at += 16 + length as usize;
    }
    Ok(segments)
}

/// RFC 791, RFC 9293.
fn segment(micros: u64, frame: &[u8]) -> Option<Segment> {
    let ip = frame.strip_prefix(frame.get(..12)?)?.strip_prefix(&[8, 0])?;
    let ip_header = usize::from(ip.first()? & 15) * 4;
    let total = u32::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
    if *ip.get(9)? != libc::IPPROTO_TCP as u8 {
        return None;
    }
    let address = |at: usize| Some(Ipv4Addr::new(*ip.get(at)?, *ip.get(at + 1)?, *ip.get(at + 2)?, *ip.get(at + 3)?));
    let tcp = ip.get(ip_header..)?;
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let headers = ip_header as u32 + u32::from(tcp.get(12)? >> 4) * 4;
    Some(Segment {
        micros,
        from: SocketAddrV4::new(address(12)?, port(0)?),
        to: SocketAddrV4::new(address(16)?, port(2)?),
        seq: u32::from_be_bytes([*tcp.get(4)?, *tcp.get(5)?, *tcp.get(6)?, *tcp.get(7)?]),
        length: total.checked_sub(headers)?,
        flags: *tcp.get(13)?,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_read_and_a_cut_file_is_an_error() {
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        frame.extend([0x45, 0, 0, 20 + 32 + 7, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x15, 0x38, 0x1d, 0x08, 0, 0, 1, 0, 0, 0, 0, 9, 0x80, ACK | FIN, 0, 0, 0, 0, 0, 0]);
        frame.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        let mut file: Vec<u8> =
            [0xa1b2_c3d4_u32, 0, 0, 0, SNAP as u32, 1].into_iter().flat_map(u32::to_ne_bytes).collect();
        let length = frame.len() as u32;
        file.extend([5, 6, length, length + 7].into_iter().flat_map(u32::to_ne_bytes));
        file.extend(&frame);
        let from = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 0x1538);
        let to = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 0x1d08);
        let expected = Segment { micros: 5_000_006, from, to, seq: 256, length: 7, flags: ACK | FIN };
        assert_eq!(segments(&file).unwrap(), [expected]);
        assert!(segments(&file[..file.len() - 1]).is_err());
        assert!(segments(&file[..30]).is_err());
    }
}

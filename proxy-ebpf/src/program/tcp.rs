//! The TCP header of a packet, checked against what the headers before it say.

use super::headers::{TCP_LEN, Tcp};
use super::packet::{Packet, read};
use super::parse::Parsed;

pub struct Header {
    pub tcp: Tcp,
    /// With its options, 20..=60.
    pub len: usize,
    /// Bytes after it.
    pub payload: usize,
}

/// `None` if it is cut off, or lengths contradict each other. All of it is readable afterwards.
#[inline(always)]
pub fn header(packet: impl Packet, parsed: &Parsed) -> Option<Header> {
    let tcp: Tcp = read(packet, parsed.l4)?;
    let len = usize::from(tcp.head.offset >> 4) * 4;
    let headers = parsed.l4 - parsed.l3 + len;
    if len < TCP_LEN || headers > parsed.ip_len || parsed.l3 + parsed.ip_len > packet.len() {
        return None;
    }
    if !packet.hold(parsed.l4 + len) {
        return None;
    }
    Some(Header { tcp, len, payload: parsed.ip_len - headers })
}

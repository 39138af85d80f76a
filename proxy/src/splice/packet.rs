//! Packets made by hand: resets, keepalives and ICMP errors for connections whose sockets the kernel no longer has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pgsplice_ebpf::flow::FlowKey;

pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// IPPROTO_TCP.
const TCP: u8 = 6;
/// Hop limit of what this host sends (net.ipv4.ip_default_ttl).
const HOPS: u8 = 64;

/// A TCP segment without payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// As it leaves: `src` is this host.
    pub way: FlowKey,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    /// As on the wire, scaled.
    pub window: u16,
    /// (TSval, TSecr)
    pub timestamps: Option<(u32, u32)>,
}

impl Segment {
    /// From the IP header on. IPv4 or IPv6 as `way` is.
    pub fn bytes(&self) -> Vec<u8> {
        let mut tcp = Vec::with_capacity(32);
        tcp.extend(self.way.src_port);
        tcp.extend(self.way.dst_port);
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgement.to_be_bytes());
        let words: u8 = if self.timestamps.is_some() { 8 } else { 5 };
        tcp.extend([words << 4, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        if let Some((value, echo)) = self.timestamps {
            tcp.extend([1, 1, 8, 10]);
            tcp.extend(value.to_be_bytes());
            tcp.extend(echo.to_be_bytes());
        }
        let (source, destination) = (ip(self.way.src), ip(self.way.dst));
        let sum = transport_checksum(source, destination, TCP, &tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        let mut packet = ip_header(source, destination, TCP, tcp.len());
        packet.extend(tcp);
        packet
    }
}

/// "Fragmentation needed" (RFC 792, RFC 1191) or "packet too big" (RFC 4443) about a packet that `to` sent, of which
/// `quoted` is the beginning, from its IP header on.
pub fn too_big(from: IpAddr, to: IpAddr, mtu: u32, quoted: &[u8]) -> Vec<u8> {
    let v4 = to.is_ipv4();
    let mut icmp = if v4 { vec![3, 4, 0, 0, 0, 0] } else { vec![2, 0, 0, 0] };
    match v4 {
        true => icmp.extend((mtu.min(u32::from(u16::MAX)) as u16).to_be_bytes()),
        false => icmp.extend(mtu.to_be_bytes()),
    }
    icmp.extend(quoted);
    let protocol = if v4 { 1 } else { 58 };
    let sum = if v4 { fold(sum(0, &icmp)) } else { transport_checksum(from, to, protocol, &icmp) };
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = ip_header(from, to, protocol, icmp.len());
    packet.extend(icmp);
    packet
}

/// The beginning of a TCP packet, as an ICMP error quotes it: its IP header and the first eight bytes behind it.
pub fn quoted(way: &FlowKey, sequence: u32, length: u16) -> Vec<u8> {
    let mut packet = ip_header(ip(way.src), ip(way.dst), TCP, usize::from(length));
    packet.extend(way.src_port);
    packet.extend(way.dst_port);
    packet.extend(sequence.to_be_bytes());
    packet
}

/// What an ICMP error says, as far as a splice cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooBig {
    pub mtu: u32,
    /// Of the quoted packet, as it left us.
    pub way: FlowKey,
    pub sequence: u32,
}

/// Reads an ICMP packet, from its IP header on. `None` if it is anything else or cut off.
pub fn read_too_big(packet: &[u8]) -> Option<TooBig> {
    let (mtu, inner) = match packet.first()? >> 4 {
        4 => {
            let icmp = packet.get(usize::from(packet[0] & 0x0f) * 4..)?;
            if icmp.get(..2)? != [3, 4] {
                return None;
            }
            (u32::from(u16::from_be_bytes(icmp.get(6..8)?.try_into().ok()?)), icmp.get(8..)?)
        }
        6 => {
            let icmp = packet.get(40..)?;
            if *icmp.first()? != 2 {
                return None;
            }
            (u32::from_be_bytes(icmp.get(4..8)?.try_into().ok()?), icmp.get(8..)?)
        }
        _ => return None,
    };
    let (way, sequence) = read_tcp(inner)?;
    Some(TooBig { mtu, way, sequence })
}

/// The addresses, ports and SEQ of a TCP packet of which at least eight bytes of TCP are there.
pub fn read_tcp(packet: &[u8]) -> Option<(FlowKey, u32)> {
    let (src, dst, tcp) = match packet.first()? >> 4 {
        4 => {
            let mapped = |at: usize| -> Option<[u8; 16]> {
                let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
                Some(Ipv4Addr::from(octets).to_ipv6_mapped().octets())
            };
            (*packet.get(9)? == TCP).then_some(())?;
            (mapped(12)?, mapped(16)?, packet.get(usize::from(packet[0] & 0x0f) * 4..)?)
        }
        6 => {
            (*packet.get(6)? == TCP).then_some(())?;
            (packet.get(8..24)?.try_into().ok()?, packet.get(24..40)?.try_into().ok()?, packet.get(40..)?)
        }
        _ => return None,
    };
    let way =
        FlowKey { src, dst, src_port: tcp.get(0..2)?.try_into().ok()?, dst_port: tcp.get(2..4)?.try_into().ok()? };
    Some((way, u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?)))
}

/// The address in a key.
pub fn ip(octets: [u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
}

fn ip_header(source: IpAddr, destination: IpAddr, protocol: u8, payload: usize) -> Vec<u8> {
    let length = payload as u16;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, 0];
            header.extend((length + 20).to_be_bytes());
            // Id 0, "don't fragment".
            header.extend([0, 0, 0x40, 0, HOPS, protocol, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = fold(sum(0, &header));
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        }
        (source, destination) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length.to_be_bytes());
            header.extend([protocol, HOPS]);
            header.extend(octets(source));
            header.extend(octets(destination));
            header
        }
    }
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

/// Over pseudo header and segment (RFC 9293, section 3.1; RFC 8200, section 8.1).
fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let mut total = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => sum(sum(0, &source.octets()), &destination.octets()),
        (source, destination) => sum(sum(0, &octets(source)), &octets(destination)),
    };
    total = sum(total, &[0, protocol]);
    total = sum(total, &(segment.len() as u32).to_be_bytes());
    fold(sum(total, segment))
}

fn sum(start: u32, bytes: &[u8]) -> u32 {
    let (pairs, last) = bytes.as_chunks::<2>();
    let odd = last.first().map_or(0, |byte| u32::from(*byte) << 8);
    pairs.iter().fold(start + odd, |total, pair| total + u32::from(u16::from_be_bytes(*pair)))
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::splice::key;

    fn way(v4: bool) -> FlowKey {
        match v4 {
            true => key("10.0.0.1:5432".parse().unwrap(), "10.0.0.2:40000".parse().unwrap()),
            false => key("[fd00::1]:5432".parse().unwrap(), "[fd00::2]:40000".parse().unwrap()),
        }
    }

    #[test]
    fn a_checksum_over_what_it_is_in_is_zero() {
        for v4 in [true, false] {
            let segment = Segment {
                way: way(v4),
                sequence: 0xdead_beef,
                acknowledgement: 7,
                flags: ACK,
                window: 100,
                timestamps: Some((1, 2)),
            };
            let bytes = segment.bytes();
            let (source, destination) = (ip(segment.way.src), ip(segment.way.dst));
            let header = if v4 { 20 } else { 40 };
            assert_eq!(transport_checksum(source, destination, TCP, &bytes[header..]), 0);
            assert_eq!(read_tcp(&bytes), Some((segment.way, 0xdead_beef)));
            if v4 {
                assert_eq!(fold(sum(0, &bytes[..20])), 0);
            }
        }
    }

    #[test]
    fn an_icmp_error_is_read_as_it_was_written() {
        for v4 in [true, false] {
            let way = way(v4);
            let packet = too_big(ip(way.src), ip(way.dst), 1400, &quoted(&way, 99, 1460));
            assert_eq!(read_too_big(&packet), Some(TooBig { mtu: 1400, way, sequence: 99 }));
            for length in 0..packet.len() {
                assert_eq!(read_too_big(&packet[..length]), None, "cut off at {length}");
            }
        }
    }

    #[test]
    fn anything_else_is_not_read() {
        for length in 0..96 {
            for byte in [0, 0x45, 0x60, 0x4f, 0xff] {
                assert_eq!(read_too_big(&vec![byte; length]), None);
            }
        }
    }
}

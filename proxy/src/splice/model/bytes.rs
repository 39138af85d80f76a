//! Reading packets: what they are, and what their TCP header says.

use pgsplice_ebpf::flow::FlowKey;
use pgsplice_ebpf::guard::v4_mapped;

use super::{Arrival, Program};

/// A packet that may concern the splice. Offsets are from the start of the frame.
pub struct Parsed {
    pub subject: Subject,
    pub v6: bool,
    /// Where IP starts, and where TCP or ICMP does.
    pub l3: usize,
    pub l4: usize,
    /// Length from `l3` on, if IP is to be believed.
    pub ip_len: usize,
    /// Of the VLAN tag, 0 for none.
    pub tci: u16,
    /// The first of several fragments.
    pub fragment: bool,
    /// With IPv6 extension headers, or IPv4 options that are a source route or make no sense.
    pub extensions: bool,
    /// Of TCP; 0 where they are cut off.
    pub flags: u8,
}

pub enum Subject {
    Tcp(FlowKey),
    /// "Packet too big" about a packet that this flow's would answer.
    TooBig(FlowKey),
}

impl Parsed {
    /// Of a TCP packet.
    pub fn key(&self) -> FlowKey {
        match self.subject {
            Subject::Tcp(key) | Subject::TooBig(key) => key,
        }
    }
}

pub fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// `None`: of no concern, or too garbled to tell.
pub fn parse(program: Program, arrival: &Arrival<'_>) -> Option<Parsed> {
    let frame = arrival.frame;
    let (mut kind, mut l3, mut tci) = (be16(frame, 12)?, 14, arrival.tci);
    if kind == 0x8100 && program == Program::Xdp {
        (tci, kind, l3) = (be16(frame, 14)?, be16(frame, 16)?, 18);
    }
    let mut parsed = Parsed {
        subject: Subject::Tcp(FlowKey::default()),
        v6: kind == 0x86dd,
        l3,
        l4: 0,
        ip_len: 0,
        tci,
        fragment: false,
        extensions: false,
        flags: 0,
    };
    let protocol = match kind {
        0x0800 => ipv4(frame, &mut parsed)?,
        0x86dd => ipv6(frame, &mut parsed)?,
        _ => return None,
    };
    if arrival.segment != 0 && parsed.ip_len == if parsed.v6 { 40 } else { 0 } {
        parsed.ip_len = frame.len() - l3;
    }
    let (src, dst) = addresses(&frame[l3..], parsed.v6)?;
    match protocol {
        6 => {
            let ports = frame.get(parsed.l4..parsed.l4 + 8)?;
            let key = FlowKey { src, dst, src_port: [ports[0], ports[1]], dst_port: [ports[2], ports[3]] };
            parsed.flags = frame.get(parsed.l4 + 13).copied().unwrap_or(0);
            parsed.subject = Subject::Tcp(key);
            if !parsed.v6 {
                parsed.extensions = has_route(&frame[l3 + 20..parsed.l4]);
            }
        }
        1 if !parsed.v6 && !parsed.fragment => parsed.subject = Subject::TooBig(quoted(frame, &parsed)?),
        58 if parsed.v6 && !parsed.extensions => parsed.subject = Subject::TooBig(quoted(frame, &parsed)?),
        _ => return None,
    }
    Some(parsed)
}

fn addresses(ip: &[u8], v6: bool) -> Option<([u8; 16], [u8; 16])> {
    if v6 {
        return Some((ip.get(8..24)?.try_into().ok()?, ip.get(24..40)?.try_into().ok()?));
    }
    let [src, dst] = [12, 16].map(|at| ip.get(at..at + 4).and_then(|a| a.try_into().ok()).map(v4_mapped));
    Some((src?, dst?))
}

/// Returns the protocol.
fn ipv4(frame: &[u8], parsed: &mut Parsed) -> Option<u8> {
    let ip = frame.get(parsed.l3..parsed.l3 + 20)?;
    let header = usize::from(ip[0] & 15) * 4;
    let fragment = be16(ip, 6)? & 0x3fff;
    if ip[0] >> 4 != 4 || header < 20 || fragment & 0x1fff != 0 {
        return None;
    }
    parsed.fragment = fragment != 0;
    parsed.l4 = parsed.l3 + header;
    parsed.ip_len = usize::from(be16(ip, 2)?);
    Some(ip[9])
}

/// Whether these options of IPv4 (RFC 791, section 3.1) name hosts on the way, or lie about a length.
fn has_route(mut options: &[u8]) -> bool {
    loop {
        options = match *options {
            [] | [0, ..] => return false,
            [1, ..] => &options[1..],
            [131 | 137, length, ..] if (2..=options.len()).contains(&usize::from(length)) => return true,
            [_, length, ..] if (2..=options.len()).contains(&usize::from(length)) => &options[length.into()..],
            _ => return true,
        }
    }
}

/// Returns the protocol at the end of the extension headers.
fn ipv6(frame: &[u8], parsed: &mut Parsed) -> Option<u8> {
    let ip = frame.get(parsed.l3..parsed.l3 + 40)?;
    if ip[0] >> 4 != 6 {
        return None;
    }
    parsed.ip_len = 40 + usize::from(be16(ip, 4)?);
    parsed.l4 = parsed.l3 + 40;
    let mut next = ip[6];
    for _ in 0..6 {
        // A fragment header has no length; the authentication header counts words (RFC 4302).
        let unit = match next {
            0 | 43 | 60 => 8,
            44 => 0,
            51 => 4,
            _ => return Some(next),
        };
        let header = frame.get(parsed.l4..parsed.l4 + 8)?;
        parsed.extensions = true;
        if next == 44 {
            parsed.fragment = true;
            if be16(header, 2)? >> 3 != 0 {
                return None;
            }
        }
        next = header[0];
        parsed.l4 += 8 + unit * usize::from(header[1]);
    }
    Some(next)
}

/// What an ICMP message at `l4` is about.
fn quoted(frame: &[u8], parsed: &Parsed) -> Option<FlowKey> {
    let icmp = frame.get(parsed.l4..)?;
    let inner = icmp.get(8..)?;
    let (about_mtu, protocol, header) = if parsed.v6 {
        (icmp[0] == 2, *inner.get(6)?, 40)
    } else {
        (icmp[..2] == [3, 4], *inner.get(9)?, usize::from(inner[0] & 15) * 4)
    };
    // At least the header and eight bytes of what follows are quoted.
    if !about_mtu || protocol != 6 || header < 20 || inner.len() < if parsed.v6 { 48 } else { 28 } {
        return None;
    }
    let (src, dst) = addresses(inner, parsed.v6)?;
    let ports = inner.get(header..header + 4)?;
    let sent = FlowKey { src, dst, src_port: [ports[0], ports[1]], dst_port: [ports[2], ports[3]] };
    Some(sent.reversed())
}

/// A TCP header whose lengths can be true.
pub struct Segment {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub options: Vec<u8>,
    pub payload: usize,
}

impl Segment {
    pub fn read(frame: &[u8], parsed: &Parsed) -> Option<Self> {
        let tcp = frame.get(parsed.l4..)?;
        let header = tcp.get(..20)?;
        let len = usize::from(header[12] >> 4) * 4;
        let end = parsed.l3 + parsed.ip_len;
        if len < 20 || parsed.l4 + len > end || end > frame.len() {
            return None;
        }
        Some(Self {
            seq: be32(header, 4)?,
            ack: be32(header, 8)?,
            flags: header[13],
            window: be16(header, 14)?,
            options: tcp.get(20..len)?.to_vec(),
            payload: end - parsed.l4 - len,
        })
    }

    /// Any of these flags.
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
}

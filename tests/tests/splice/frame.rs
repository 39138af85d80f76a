//! A TCP frame of the test rig, read and altered: IPv4 without options, as Linux sends it.

const ETHERNET: usize = 14;
const IP: usize = 20;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// What the tests look at and change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    pub from_port: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub payload: usize,
    /// The TSval, where the header has timestamps and nothing else.
    pub tsval: Option<u32>,
}

/// The frame with other timestamps in place of those it has, wherever they stand.
pub fn retimed(frame: &[u8], change: impl FnOnce(u32, u32) -> (u32, u32)) -> Vec<u8> {
    let at = ETHERNET + IP;
    let options = &frame[at + 20..at + usize::from(frame[at + 12] >> 4) * 4];
    let Some(found) = options.windows(2).position(|pair| pair == [8, 10]) else { return frame.to_vec() };
    let stamps = at + 20 + found + 2;
    let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    let (tsval, tsecr) = change(word(stamps), word(stamps + 4));
    let mut new = frame.to_vec();
    new[stamps..stamps + 4].copy_from_slice(&tsval.to_be_bytes());
    new[stamps + 4..stamps + 8].copy_from_slice(&tsecr.to_be_bytes());
    let end = ETHERNET + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    sign(&mut new[..end]);
    new
}

/// `None`: not TCP over IPv4.
pub fn read(frame: &[u8]) -> Option<Tcp> {
    let word = |at: usize| Some(u32::from_be_bytes(frame.get(at..at + 4)?.try_into().ok()?));
    if frame.get(12..15)? != [8, 0, 0x45] || *frame.get(ETHERNET + 9)? != 6 {
        return None;
    }
    let tcp = ETHERNET + IP;
    let header = usize::from(frame.get(tcp + 12)? >> 4) * 4;
    let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let tsval = if frame.get(tcp + 20..tcp + 24) == Some(&[1, 1, 8, 10]) { word(tcp + 24) } else { None };
    Some(Tcp {
        from_port: u16::from_be_bytes([frame[tcp], frame[tcp + 1]]),
        seq: word(tcp + 4)?,
        ack: word(tcp + 8)?,
        flags: *frame.get(tcp + 13)?,
        payload: total.checked_sub(IP + header)?,
        tsval,
    })
}

/// The frame with these numbers and flags and none of its payload.
pub fn altered(frame: &[u8], tcp: Tcp) -> Vec<u8> {
    let at = ETHERNET + IP;
    let header = usize::from(frame[at + 12] >> 4) * 4;
    let mut new = frame[..at + header].to_vec();
    new[16..18].copy_from_slice(&((IP + header) as u16).to_be_bytes());
    new[at + 4..at + 8].copy_from_slice(&tcp.seq.to_be_bytes());
    new[at + 8..at + 12].copy_from_slice(&tcp.ack.to_be_bytes());
    new[at + 13] = tcp.flags;
    if let Some(tsval) = tcp.tsval {
        new[at + 24..at + 28].copy_from_slice(&tsval.to_be_bytes());
    }
    new[24..26].fill(0);
    let ip = checksum(0, &new[ETHERNET..at]);
    new[24..26].copy_from_slice(&ip.to_be_bytes());
    sign(&mut new);
    new
}

/// Writes the checksum of TCP; the frame ends where IP does.
fn sign(frame: &mut [u8]) {
    let at = ETHERNET + IP;
    frame[at + 16..at + 18].fill(0);
    let length = (frame.len() - at) as u32;
    let pseudo = frame[26..34].chunks(2).fold(6 + length, |sum, two| sum + u32::from(two[0]) * 256 + u32::from(two[1]));
    let sum = checksum(pseudo, &frame[at..]);
    frame[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
}

/// "Fragmentation needed" about a packet that was sent to the sender of this frame.
pub fn too_big(frame: &[u8], mtu: u16) -> Vec<u8> {
    let at = ETHERNET + IP;
    let ip = |from: &[u8], to: &[u8], protocol: u8, length: u16| {
        let mut ip = [&[0x45, 0][..], &length.to_be_bytes(), &[0, 0, 0x40, 0, 64, protocol, 0, 0], from, to].concat();
        let sum = checksum(0, &ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip
    };
    let (src, dst, ports) = (&frame[26..30], &frame[30..34], &frame[at..at + 4]);
    let quoted = [&ip(dst, src, 6, 1500)[..], &ports[2..], &ports[..2], &frame[at + 8..at + 12]].concat();
    let mut icmp = [&[3, 4, 0, 0, 0, 0][..], &mtu.to_be_bytes(), &quoted].concat();
    let sum = checksum(0, &icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    [&frame[..ETHERNET], &ip(src, dst, 1, (IP + icmp.len()) as u16), &icmp].concat()
}

fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = bytes
        .chunks(2)
        .fold(start, |sum, two| sum + u32::from(two[0]) * 256 + two.get(1).map_or(0, |low| u32::from(*low)));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

//! What a capture at one end shows of each connection: segments that came again, late, or to reset it.

use std::collections::HashMap;
use std::net::SocketAddrV4;

use super::pcap::{ACK, FIN, RST, SYN, Segment};

/// What should not happen on a path without loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oddity {
    /// Bytes that had been captured before.
    Retransmission,
    /// Bytes that later ones had overtaken.
    OutOfOrder,
    Reset,
    /// A keepalive or a window probe: nothing new, only a question.
    Probe,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub oddity: Oddity,
    pub segment: Segment,
    /// Whether it came between the first byte and the first FIN.
    pub in_the_middle: bool,
    /// Since the connection's first byte, in microseconds.
    pub after: u64,
}

/// All of a capture.
#[derive(Debug, Default)]
pub struct Analysis {
    pub packets: u64,
    pub connections: u64,
    pub found: Vec<Found>,
    /// Bytes that never came though later ones did: the capture is not whole.
    pub holes: u64,
}

impl Analysis {
    pub fn of(segments: &[Segment]) -> Self {
        let mut analysis = Self { packets: segments.len() as u64, ..Self::default() };
        let mut connections: HashMap<[SocketAddrV4; 2], Connection> = HashMap::new();
        for segment in segments {
            let mut key = [segment.from, segment.to];
            key.sort();
            let begins = segment.flags & (SYN | ACK) == SYN;
            // A port that is used again: another connection, unless the SYN is one that came before.
            let is_new = begins && connections.get(&key).is_none_or(|connection| connection.is_over());
            if is_new && let Some(old) = connections.insert(key, Connection::new(segment.from)) {
                analysis.holes += old.holes();
            }
            analysis.connections += u64::from(is_new);
            // What began before the capture is none of ours.
            let Some(connection) = connections.get_mut(&key) else { continue };
            analysis.found.extend(connection.take(segment));
        }
        analysis.holes += connections.values().map(Connection::holes).sum::<u64>();
        analysis
    }

    /// How often, in the middle of the connections.
    pub fn count(&self, oddity: Oddity) -> usize {
        self.found.iter().filter(|found| found.in_the_middle && found.oddity == oddity).count()
    }

    /// All of them before and after that.
    pub fn at_the_ends(&self) -> usize {
        self.found.iter().filter(|found| !found.in_the_middle).count()
    }
}

struct Connection {
    client: SocketAddrV4,
    /// What came from the client, and from the server.
    sides: [Side; 2],
    /// When the first payload came.
    first: Option<u64>,
    ended: bool,
}

#[derive(Default)]
struct Side {
    /// The number after the highest seen; `None` before the SYN.
    next: Option<u32>,
    /// Numbers below it that have not been seen, from and to.
    holes: Vec<(u32, u32)>,
    fin: bool,
}

impl Connection {
    fn new(client: SocketAddrV4) -> Self {
        Self { client, sides: Default::default(), first: None, ended: false }
    }

    fn is_over(&self) -> bool {
        self.ended && self.sides.iter().all(|side| side.fin)
    }

    fn holes(&self) -> u64 {
        self.sides.iter().flat_map(|side| &side.holes).map(|(from, to)| u64::from(to.wrapping_sub(*from))).sum()
    }

    fn take(&mut self, segment: &Segment) -> Option<Found> {
        let side = &mut self.sides[usize::from(segment.from != self.client)];
        let oddity = side.take(segment);
        if segment.length > 0 {
            self.first.get_or_insert(segment.micros);
        }
        let in_the_middle = self.first.is_some() && !self.ended;
        if segment.flags & (FIN | RST) != 0 {
            self.ended = true;
        }
        if segment.flags & RST != 0 {
            // The port may be used again at once.
            self.sides.iter_mut().for_each(|side| side.fin = true);
        }
        let after = segment.micros.saturating_sub(self.first.unwrap_or(segment.micros));
        oddity.map(|oddity| Found { oddity, segment: *segment, in_the_middle, after })
    }
}

impl Side {
    fn take(&mut self, segment: &Segment) -> Option<Oddity> {
        if segment.flags & RST != 0 {
            return Some(Oddity::Reset);
        }
        let marks = [SYN, FIN].into_iter().filter(|flag| segment.flags & flag != 0).count() as u32;
        let (from, to) = (segment.seq, segment.seq.wrapping_add(segment.length + marks));
        self.fin |= segment.flags & FIN != 0;
        let Some(next) = self.next else {
            self.next = Some(to);
            return None;
        };
        if from == next {
            self.next = Some(to);
            return None;
        }
        if is_before(next, from) {
            // An acknowledgement alone may overtake the bytes before it as well.
            if to != from {
                self.holes.push((next, from));
                self.next = Some(to);
            }
            return None;
        }
        if to == from || (from == next.wrapping_sub(1) && segment.length == 1 && marks == 0) {
            // An acknowledgement with an old number is one that was overtaken; a question has just the last number.
            return (from == next.wrapping_sub(1)).then_some(Oddity::Probe);
        }
        if is_before(next, to) {
            self.next = Some(to);
        }
        let filled = self.fill(from, to);
        Some(if filled { Oddity::OutOfOrder } else { Oddity::Retransmission })
    }

    /// Takes a range out of the holes; whether it was in one.
    fn fill(&mut self, from: u32, to: u32) -> bool {
        let before = std::mem::take(&mut self.holes);
        let mut filled = false;
        for (low, high) in before {
            if !is_before(from, high) || !is_before(low, to) {
                self.holes.push((low, high));
                continue;
            }
            filled = true;
            if is_before(low, from) {
                self.holes.push((low, from));
            }
            if is_before(to, high) {
                self.holes.push((to, high));
            }
        }
        filled
    }
}

/// Serial number arithmetic (RFC 1982).
fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[cfg(test)]
mod tests {
    use super::super::pcap::ACK;
    use super::*;

    const CLIENT: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(10, 0, 0, 1), 40_000);
    const SERVER: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(10, 0, 0, 2), 5432);
    /// Numbers wrap around in the middle of what is sent.
    const CLIENT_SEQ: u32 = u32::MAX - 150;
    const SERVER_SEQ: u32 = 5000;

    fn from_client(seq: u32, length: u32, flags: u8) -> Segment {
        Segment { micros: 0, from: CLIENT, to: SERVER, seq: CLIENT_SEQ.wrapping_add(seq), length, flags }
    }

    fn from_server(seq: u32, length: u32, flags: u8) -> Segment {
        Segment { micros: 0, from: SERVER, to: CLIENT, seq: SERVER_SEQ + seq, length, flags }
    }

    /// A connection whose middle is this.
    fn around(middle: &[Segment]) -> Vec<Segment> {
        let mut all = vec![from_client(0, 0, SYN), from_server(0, 0, SYN | ACK), from_client(1, 0, ACK)];
        all.extend([from_client(1, 100, ACK), from_server(1, 200, ACK), from_client(101, 0, ACK)]);
        all.extend(middle);
        all
    }

    fn end() -> [Segment; 3] {
        [from_client(301, 0, ACK | FIN), from_server(401, 0, ACK | FIN), from_client(302, 0, ACK)]
    }

    fn oddities(middle: &[Segment]) -> Vec<(Oddity, bool)> {
        let analysis = Analysis::of(&around(middle));
        assert_eq!((analysis.connections, analysis.holes), (1, 0));
        analysis.found.iter().map(|found| (found.oddity, found.in_the_middle)).collect()
    }

    #[test]
    fn a_plain_conversation_is_not_odd() {
        let plain = [from_client(101, 200, ACK), from_server(201, 200, ACK), from_client(301, 0, ACK)];
        assert_eq!(oddities(&[plain.as_slice(), &end()].concat()), []);
    }

    #[test]
    fn each_oddity_is_seen_for_what_it_is() {
        let asked = from_client(101, 100, ACK);
        let again = [asked, asked, from_client(201, 0, ACK)];
        assert_eq!(oddities(&again), [(Oddity::Retransmission, true)]);
        let late = [from_client(201, 100, ACK), asked];
        assert_eq!(oddities(&late), [(Oddity::OutOfOrder, true)]);
        assert_eq!(oddities(&[late.as_slice(), &[asked]].concat()).len(), 2);
        assert_eq!(oddities(&[from_server(200, 0, ACK)]), [(Oddity::Probe, true)]);
        assert_eq!(oddities(&[from_server(200, 1, ACK)]), [(Oddity::Probe, true)]);
        assert_eq!(oddities(&[from_server(201, 0, RST)]), [(Oddity::Reset, true)]);
        let at_the_end = [from_client(101, 200, ACK), from_server(201, 200, ACK)];
        let at_the_end = [at_the_end.as_slice(), &end(), &[from_client(302, 0, RST)]].concat();
        assert_eq!(oddities(&at_the_end), [(Oddity::Reset, false)]);
    }

    #[test]
    fn bytes_that_never_come_are_a_hole() {
        let analysis = Analysis::of(&around(&[from_client(201, 100, ACK)]));
        assert_eq!((analysis.holes, analysis.found.len()), (100, 0));
    }

    #[test]
    fn a_port_that_is_used_again_is_another_connection() {
        let whole = [around(&[from_client(101, 200, ACK), from_server(201, 200, ACK)]).as_slice(), &end()].concat();
        let twice = Analysis::of(&[whole.as_slice(), &whole].concat());
        assert_eq!((twice.connections, twice.found.len()), (2, 0));
        let mut open_again = around(&[]);
        open_again.push(from_client(0, 0, SYN));
        assert_eq!(Analysis::of(&open_again).found.len(), 1);
    }
}

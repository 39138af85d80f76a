//! Sessions and packets, by chance but the same for the same seed.

use pgsplice::splice::model::Program;
use pgsplice_ebpf::flow::{
    FLOW_FROM_CLIENT, FLOW_TC, FLOW_TIMESTAMPS, FLOW_XDP, Flow, FlowKey, NO_LISTENER, SLACK, SessionState, SideState,
    control,
};
use pgsplice_ebpf::guard::v4_mapped;

use crate::packet::{ACK, FIN, PSH, Packet, RST, SYN, sack};

/// xorshift64*
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn word(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    pub fn below(&mut self, n: u32) -> u32 {
        self.word() % n
    }

    /// In so many of a hundred cases.
    pub fn percent(&mut self, n: u32) -> bool {
        self.below(100) < n
    }

    pub fn of<T: Copy>(&mut self, choice: &[T]) -> T {
        choice[self.below(choice.len() as u32) as usize]
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.word() as u8).collect()
    }

    /// Often near where numbers wrap.
    pub fn number(&mut self) -> u32 {
        match self.below(4) {
            0 => self.below(200_000).wrapping_sub(100_000),
            1 => (1 << 31) + self.below(200_000) - 100_000,
            _ => self.word(),
        }
    }
}

/// Both flows of a session, that from the client first.
#[derive(Clone, Debug)]
pub struct Session {
    pub keys: [FlowKey; 2],
    pub flows: [Flow; 2],
}

impl Session {
    /// What it is like depends on the bits of `slot`: the program, the address family, timestamps, VLAN, the way out.
    pub fn new(slot: u32, interface: u32, chance: &mut Chance) -> Self {
        let bit = |n: u32| slot >> n & 1 == 1;
        let address = |net: u8, v6: bool, host: u32| match (net, v6) {
            (172, false) => v4_mapped([172, 16 + (host as u8 & 15), 3, host as u8]),
            (172, true) => [0xfd, 0x16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host as u8],
            (_, false) => v4_mapped([net, 200, host as u8, 7]),
            (_, true) => [0x20, 0x01, 0x0d, 0xb8, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host as u8],
        };
        let v6 = bit(1);
        let client = FlowKey {
            src: address(11, v6, slot),
            dst: address(192, v6, 0),
            src_port: (20_000 + slot as u16).to_be_bytes(),
            dst_port: 5432u16.to_be_bytes(),
        };
        let to_backend = FlowKey {
            src: address(192, v6, 1),
            dst: address(if bit(4) { 172 } else { 13 }, v6, slot),
            src_port: (chance.word() as u16).to_be_bytes(),
            dst_port: 6432u16.to_be_bytes(),
        };
        let flags = if bit(0) { FLOW_TC } else { FLOW_XDP } | if bit(2) { 0 } else { FLOW_TIMESTAMPS };
        let vlan = if bit(3) { 1 + chance.below(4094) as u16 } else { 0 };
        let (seq, ack) = (chance.number(), chance.number());
        let (val, ecr) = (chance.number(), chance.number());
        let (one, other) = (chance.below(15) as u8, chance.below(15) as u8);
        let from_client = Flow {
            out: to_backend,
            slot,
            seq_delta: seq,
            ack_delta: ack,
            tsval_delta: val,
            tsecr_delta: ecr,
            out_ifindex: interface,
            out_vlan: vlan,
            flags: flags | FLOW_FROM_CLIENT,
            in_wscale: one,
            out_wscale: other,
            pad: [0; 2],
            listener: NO_LISTENER,
        };
        let from_backend = Flow {
            out: client.reversed(),
            seq_delta: ack.wrapping_neg(),
            ack_delta: seq.wrapping_neg(),
            tsval_delta: ecr.wrapping_neg(),
            tsecr_delta: val.wrapping_neg(),
            out_vlan: 0,
            flags,
            in_wscale: other,
            out_wscale: one,
            ..from_client
        };
        Self { keys: [client, to_backend.reversed()], flows: [from_client, from_backend] }
    }

    pub fn program(&self) -> Program {
        if self.flows[0].flags & FLOW_TC != 0 { Program::Tc } else { Program::Xdp }
    }
}

pub fn state(chance: &mut Chance) -> SessionState {
    SessionState { side: [side(chance), side(chance)] }
}

fn side(chance: &mut Chance) -> SideState {
    let acked = chance.number();
    let seq_end = acked.wrapping_add(match chance.below(4) {
        0 => 0,
        1 => 1,
        2 => chance.below(70_000),
        _ => chance.below(3_000_000),
    });
    let fin_end = match chance.below(3) {
        0 => seq_end,
        1 => seq_end.wrapping_add(1),
        _ => acked,
    };
    SideState {
        packets: u64::from(chance.word()),
        bytes: u64::from(chance.word()),
        last_ns: 0,
        acked,
        seq_end,
        window: match chance.below(4) {
            0 => 0,
            1 => chance.below(65_536),
            2 => chance.below(1 << 20),
            _ => chance.below(1 << 30),
        },
        tsval: chance.number(),
        fin_end,
        flags: if chance.percent(60) { 0 } else { chance.below(32) },
    }
}

pub fn control_word(chance: &mut Chance) -> u32 {
    match chance.below(100) {
        0..80 => control::LIVE,
        80..88 => control::HOLD,
        88..96 => control::CUT,
        96..98 => control::FREE,
        _ => chance.word(),
    }
}

/// A frame with the tuple of this side of the session.
pub fn frame(chance: &mut Chance, session: &Session, side: usize, state: &SessionState) -> Vec<u8> {
    let mut packet = Packet::new(session.keys[side]);
    let (x, y) = (&state.side[side], &state.side[1 - side]);
    let ack_delta = session.flows[side].ack_delta;
    packet.seq = near(chance, x);
    packet.ack = near(chance, y).wrapping_sub(ack_delta);
    packet.flags = match chance.below(100) {
        0..40 => ACK,
        40..60 => ACK | PSH,
        60..75 => ACK | FIN,
        75..80 => RST,
        80..85 => RST | ACK,
        85..88 => SYN,
        88..90 => SYN | ACK,
        _ => chance.word() as u8,
    };
    let any = chance.word() as u16;
    packet.window = chance.of(&[0, 1, 127, 128, 502, 32_768, 65_535, any]);
    packet.options = options(chance);
    packet.payload = match chance.below(20) {
        0..8 => Vec::new(),
        8..16 => chance.bytes_cheap(300),
        16..19 => chance.bytes_cheap(1460),
        _ => chance.bytes_cheap(2000),
    };
    packet.trailer = if chance.percent(15) { chance.below(30) as usize } else { 0 };
    if session.program() == Program::Xdp && chance.percent(35) || chance.percent(2) {
        packet.tag = Some(chance.word() as u16);
    }
    if chance.percent(15) {
        let words = 1 + chance.below(10) as usize;
        packet.ip_options = match chance.below(3) {
            0 => chance.bytes(4 * words),
            // No-ops, a record of the route, a router alert, both source routes; or one that ends before its time.
            _ => {
                let any = [&[1; 4][..], &[7, 7, 4, 0, 0, 0, 0, 0], &[148, 4, 0, 0], &[131, 7, 4, 10, 0, 0, 1, 0]];
                let options = [any[chance.below(4) as usize], any[chance.below(4) as usize], &[137, 3, 4, 1], &[0; 4]];
                let all = options.concat();
                all[..(4 * words).min(all.len())].to_vec()
            }
        };
    }
    if chance.percent(4) {
        packet.fragment = chance.of(&[0x2000, 0x6000, 0x2001, 0x0001, 0x8000, 0xffff]);
    }
    if chance.percent(6) {
        let count = 1 + chance.below(8);
        packet.extensions =
            (0..count).map(|_| (chance.of(&[0, 43, 44, 51, 60, 50, 135]), chance.below(3) as u8)).collect();
    }
    let mut frame = packet.bytes();
    spoil(chance, &mut frame, if packet.tag.is_some() { 18 } else { 14 });
    frame
}

impl Chance {
    /// Up to so many, of which only the first few differ.
    fn bytes_cheap(&mut self, most: u32) -> Vec<u8> {
        let len = self.below(most) as usize;
        let mut bytes = vec![self.word() as u8; len];
        bytes.iter_mut().take(8).for_each(|byte| *byte = self.word() as u8);
        bytes
    }
}

/// A number about where rules change.
fn near(chance: &mut Chance, side: &SideState) -> u32 {
    if chance.percent(5) {
        return chance.word();
    }
    let reach = side.window.max(SLACK);
    let from = chance.of(&[
        side.acked,
        side.acked,
        side.seq_end,
        side.seq_end,
        side.acked.wrapping_sub(reach),
        side.acked.wrapping_add(side.window),
        side.acked.wrapping_add(side.window).wrapping_add(reach),
        side.seq_end.wrapping_add(reach),
        side.fin_end,
    ]);
    from.wrapping_add(chance.of(&[0, 0, 0, 1, u32::MAX, 2, 500, 0u32.wrapping_sub(500)]))
}

/// At most 40 bytes, mostly good.
fn options(chance: &mut Chance) -> Vec<u8> {
    let (val, ecr) = (chance.number(), if chance.percent(20) { 0 } else { chance.number() });
    let timestamps = || [&[8, 10][..], &val.to_be_bytes(), &ecr.to_be_bytes()].concat();
    if chance.percent(40) {
        return [vec![1, 1], timestamps()].concat();
    }
    let mut all = Vec::new();
    for _ in 0..chance.below(7) {
        let option = match chance.below(12) {
            0..4 => vec![1],
            4..6 => timestamps(),
            6..8 => {
                let blocks: Vec<_> = (0..1 + chance.below(4)).map(|_| (chance.number(), chance.number())).collect();
                sack(&blocks)
            }
            8 => vec![2, 4, 5, 0xb4],
            9 => vec![3, 3, 7],
            10 => {
                let len = 2 + chance.below(9) as u8;
                [vec![chance.word() as u8, len], chance.bytes(usize::from(len) - 2)].concat()
            }
            // Of a wrong length, or the end.
            _ => match chance.below(4) {
                0 => vec![8, chance.word() as u8],
                1 => [vec![5, 2 + chance.below(40) as u8], chance.bytes(12)].concat(),
                2 => vec![chance.word() as u8, 0],
                _ => vec![0],
            },
        };
        if all.len() + option.len() <= 40 {
            all.extend(option);
        }
    }
    all
}

/// Makes headers lie, cuts frames off, now and then.
fn spoil(chance: &mut Chance, frame: &mut Vec<u8>, l3: usize) {
    if chance.percent(8) {
        // A byte of the headers.
        let at = l3 + chance.below(80) as usize;
        if at < frame.len() {
            frame[at] = chance.word() as u8;
        }
    }
    if chance.percent(3) {
        // The length of the TCP header.
        let at = l3 + if frame[l3] >> 4 == 4 { usize::from(frame[l3] & 15) * 4 } else { 40 } + 12;
        if at < frame.len() {
            frame[at] = chance.word() as u8;
        }
    }
    if chance.percent(3) {
        // The length of IP, by little.
        let at = l3 + if frame[l3] >> 4 == 4 { 3 } else { 5 };
        frame[at] = frame[at].wrapping_add(chance.of(&[1, 2, 255, 254, 100]));
    }
    if chance.percent(4) {
        frame.truncate(14 + chance.below(frame.len() as u32 - 13) as usize);
    }
}

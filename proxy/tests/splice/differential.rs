//! Programs and model over generated packets: verdict, bytes, what was counted and told, the state of the session and
//! the watches must agree.
//!
//! `SPLICE_PACKETS` says how many, `SPLICE_SEED` which. A disagreement is reported with what it takes to run it again.

use std::fmt::Write;

use pgsplice::splice::model::{Arrival, Model, Outcome, Program, Route, Verdict};
use pgsplice_ebpf::flow::{self, FLOW_FROM_CLIENT, FlowKey, SessionState, Watch, counter};

use crate::generate::{self, Chance, Session};
use crate::packet::{ACK, Packet};
use crate::rig::{Rig, SESSIONS, on_a_rig};

const PACKETS: u64 = 1_000_000;
/// Rigs at a time.
const THREADS: u64 = 2;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

#[test]
fn the_programs_do_what_the_model_does() {
    let packets = setting("SPLICE_PACKETS", PACKETS);
    let seed = setting("SPLICE_SEED", 1);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || on_a_rig(move |rig| compare(rig, packets / THREADS, seed + thread)));
        }
    });
}

/// Both sides of the comparison, and what they are given.
struct Pair<'a> {
    rig: &'a mut Rig,
    model: Model,
    sessions: Vec<Session>,
    /// By the model.
    counted: [u64; counter::COUNT as usize],
}

fn compare(rig: &mut Rig, packets: u64, seed: u64) {
    let chance = &mut Chance::new(seed);
    let sessions: Vec<Session> = (0..SESSIONS).map(|slot| Session::new(slot, rig.out0.index, chance)).collect();
    let model = Model::new(SESSIONS as usize, Route::Unreachable);
    let mut pair = Pair { rig, model, sessions, counted: [0; counter::COUNT as usize] };
    for v6 in [0, 2] {
        let FlowKey { dst, dst_port, .. } = pair.sessions[v6].keys[0];
        pair.model.listeners.insert((dst, dst_port));
        pair.rig.listen(dst, dst_port);
    }
    let mut verdicts = [0u64; 3];
    for number in 0..packets {
        let slot = chance.below(SESSIONS) as usize;
        let outcome = match chance.below(100) {
            0..90 => pair.flow_packet(chance, slot),
            90..94 => pair.stranger(chance, slot),
            94..98 => pair.too_big(chance, slot),
            _ => pair.noise(chance, slot),
        };
        let outcome = outcome.unwrap_or_else(|why| panic!("packet {number} of seed {seed}: {why}"));
        verdicts[match outcome.verdict {
            Verdict::Pass => 0,
            Verdict::Drop => 1,
            Verdict::Send(_) => 2,
        }] += 1;
    }
    assert_eq!(pair.rig.counters(), pair.counted, "SPLICE_COUNTERS");
    // If nearly all were dropped for a reason of the generator's, little was tested.
    assert!(verdicts.iter().all(|n| *n > packets / 20), "passed, dropped, sent: {verdicts:?}");
    println!("seed {seed}: passed, dropped, sent: {verdicts:?}; counted: {:?}", pair.counted);
}

impl Pair<'_> {
    /// A packet with the tuple of one of the session's flows, in any state.
    fn flow_packet(&mut self, chance: &mut Chance, slot: usize) -> Result<Outcome, String> {
        let session = self.sessions[slot].clone();
        let side = chance.below(2) as usize;
        let state = generate::state(chance);
        let frame = generate::frame(chance, &session, side, &state);
        self.prepare(&session, slot, &state, generate::control_word(chance));
        self.run(chance, &session, side, frame)
    }

    /// A packet of nobody's flow: to a listener, or of a tuple that is watched.
    fn stranger(&mut self, chance: &mut Chance, slot: usize) -> Result<Outcome, String> {
        let mut session = self.sessions[slot].clone();
        for key in &mut session.keys {
            key.src_port = (30_000 + chance.below(4) as u16).to_be_bytes();
        }
        let side = chance.below(2) as usize;
        let key = session.keys[side];
        if chance.percent(20) {
            self.rig.watches.insert(key, Watch::default(), 0).unwrap();
            self.model.watches.insert(key, Watch::default());
        }
        if chance.percent(10) {
            self.model.unwatched = chance.percent(50);
            self.rig.watch_from_syn(!self.model.unwatched);
        }
        let state = generate::state(chance);
        let frame = generate::frame(chance, &session, side, &state);
        let outcome = self.run(chance, &session, side, frame)?;
        self.same_watch(&key)?;
        Ok(outcome)
    }

    /// A message about a packet that was too big, perhaps one of ours.
    fn too_big(&mut self, chance: &mut Chance, slot: usize) -> Result<Outcome, String> {
        let session = self.sessions[slot].clone();
        self.prepare(&session, slot, &generate::state(chance), generate::control_word(chance));
        let side = chance.below(2) as usize;
        let key = session.keys[side];
        let mut quoted = Packet::new(key.reversed());
        quoted.payload = chance.bytes(100);
        let quoted = quoted.bytes();
        let room = chance.of(&[28, 48, 68, 100]).min(quoted.len() - 14);
        let mut frame = Packet::new(FlowKey { src: session.keys[side].src, ..key }).bytes();
        if key.is_v4() {
            frame.truncate(34);
            frame[16..18].copy_from_slice(&(28 + room as u16).to_be_bytes());
            frame[20..22].copy_from_slice(&[0, 0]);
            frame[23] = 1;
            frame.extend([3, 4, 0, 0, 0, 0, 5, 0xdc]);
        } else {
            frame.truncate(54);
            frame[18..20].copy_from_slice(&(8 + room as u16).to_be_bytes());
            frame[20] = 58;
            frame.extend([2, 0, 0, 0, 0, 0, 5, 0xdc]);
        }
        frame.extend(&quoted[14..14 + room]);
        if chance.percent(30) {
            let at = 14 + chance.below(frame.len() as u32 - 14) as usize;
            frame[at] = chance.word() as u8;
        }
        self.run(chance, &session, side, frame)
    }

    fn noise(&mut self, chance: &mut Chance, slot: usize) -> Result<Outcome, String> {
        let session = self.sessions[slot].clone();
        let len = 14 + chance.below(120) as usize;
        let mut frame = chance.bytes(len);
        if chance.percent(80) {
            let kind = chance.of(&[[0x08, 0x00], [0x86, 0xdd], [0x81, 0x00], [0x08, 0x06]]);
            frame[12..14].copy_from_slice(&kind);
        }
        self.run(chance, &session, 0, frame)
    }

    /// The flows are there, the session is in this state.
    fn prepare(&mut self, session: &Session, slot: usize, state: &SessionState, word: u32) {
        for (key, flow) in session.keys.iter().zip(session.flows) {
            if self.model.flows.insert(*key, flow).is_none() {
                self.rig.flows.insert(key, flow, 0).unwrap();
            }
        }
        self.model.sessions[slot] = *state;
        self.rig.sessions.set(slot as u32, *state, 0).unwrap();
        self.model.control[slot] = word;
        self.rig.control.set(slot as u32, word, 0).unwrap();
    }

    /// Runs the session's program, now and then the other, on the frame.
    fn run(&mut self, chance: &mut Chance, session: &Session, side: usize, frame: Vec<u8>) -> Result<Outcome, String> {
        let flow = session.flows[side];
        // BPF_PROG_TEST_RUN makes no skb of a cut-off IP header.
        let short = frame.len() < if frame[12..14] == [0x86, 0xdd] { 54 } else { 34 };
        let program = match (session.program(), chance.percent(95)) {
            (Program::Xdp, true) | (Program::Tc, false) => Program::Xdp,
            _ if short => Program::Xdp,
            _ => Program::Tc,
        };
        let name = match program {
            Program::Xdp => chance.of(&[flow::PROGRAM_XDP, flow::PROGRAM_XDP_FRAGS]),
            Program::Tc => flow::PROGRAM_TC,
        };
        let mut frame = frame;
        let mut segment = 0;
        if program == Program::Tc && chance.percent(20) {
            segment = 1 + chance.below(1600) as usize;
            if chance.percent(30) && frame.len() > 34 {
                // Beyond 64 kB the header has no length.
                let at = if frame[12] == 0x86 { 18 } else { 16 };
                frame[at..at + 2].copy_from_slice(&[0, 0]);
            }
        }
        let arrival = Arrival { frame: &frame, ifindex: self.rig.in0.index, segment, tci: 0, now_ns: 1 };
        self.model.route = self.rig.route(&flow.out);
        let before = self.model.sessions[flow.slot as usize];
        let word = self.model.control[flow.slot as usize];

        let expected = self.model.receive(program, &arrival);
        if let Some(counter) = expected.counted {
            self.counted[counter as usize] += 1;
        }
        let answer = self.rig.run(name, &arrival);
        let way = if let Verdict::Send(ifindex) = expected.verdict { ifindex } else { 0 };
        let got = Outcome { counted: expected.counted, ..answer.outcome(program, &arrival, way) };

        let slot = flow.slot;
        let mut state = self.rig.sessions.get(&slot, 0).unwrap();
        state.side.iter_mut().for_each(|side| side.last_ns = u64::from(side.last_ns != 0));
        let flows = session.keys.map(|key| self.model.flows.contains_key(&key));
        let gone = flows.contains(&false) || expected.told.is_some();
        let flows_got = if gone { session.keys.map(|key| self.rig.flows.get(&key, 0).is_ok()) } else { flows };
        if got == expected
            && state == self.model.sessions[slot as usize]
            && flows == flows_got
            && answer.events.len() < 2
        {
            return Ok(expected);
        }
        let from = if flow.flags & FLOW_FROM_CLIENT != 0 { "client" } else { "backend" };
        let mut why =
            format!("{name}, control {word}, from the {from}, gso {segment}, {flow:?}\nframe {}\n", hex(&frame));
        let _ = writeln!(why, "before    {before:?}");
        let _ = writeln!(why, "model     {:?}", self.model.sessions[slot as usize]);
        let _ = writeln!(why, "program   {state:?}");
        let _ = writeln!(
            why,
            "model     {:?} told {:?} flows {flows:?}\n  {}",
            expected.verdict,
            expected.told,
            hex(&expected.frame)
        );
        let _ =
            writeln!(why, "program   {:?} told {:?} flows {flows_got:?}\n  {}", got.verdict, got.told, hex(&got.frame));
        let _ = writeln!(why, "program's events: {}", answer.events.len());
        Err(why)
    }

    fn same_watch(&mut self, key: &FlowKey) -> Result<(), String> {
        let got = self.rig.watches.get(key, 0).ok();
        let expected = self.model.watches.get(key).copied();
        if got == expected { Ok(()) } else { Err(format!("watch of {key:?}: model {expected:?}, program {got:?}")) }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The generator must be able to hit: a plain packet is forwarded by both programs.
#[test]
fn a_plain_packet_is_sent_by_both() {
    on_a_rig(|rig| {
        let chance = &mut Chance::new(7);
        for slot in [0, 1, 2, 3] {
            let session = Session::new(slot, rig.out0.index, chance);
            for (key, flow) in session.keys.iter().zip(session.flows) {
                rig.flows.insert(key, flow, 0).unwrap();
            }
            rig.control.set(slot, flow::control::LIVE, 0).unwrap();
            let mut packet = Packet::new(session.keys[0]);
            packet.flags = ACK;
            packet.payload = vec![1, 2, 3];
            let frame = packet.bytes();
            let arrival = Arrival { frame: &frame, ifindex: rig.in0.index, segment: 0, tci: 0, now_ns: 1 };
            let (name, sent) = match session.program() {
                Program::Xdp => (flow::PROGRAM_XDP_FRAGS, 4),
                Program::Tc => (flow::PROGRAM_TC, 7),
            };
            assert_eq!(rig.run(name, &arrival).action, sent, "session {slot}");
        }
    });
}

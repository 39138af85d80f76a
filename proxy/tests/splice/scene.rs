//! One session of each program, stepped packet by packet; every step must be the same in program and model.

use pgsplice::splice::model::{Arrival, Model, Outcome, Program, Route, Verdict};
use pgsplice_ebpf::flow::{
    self, FLOW_FROM_CLIENT, FLOW_TC, FLOW_TIMESTAMPS, FLOW_XDP, Flow, FlowKey, NO_LISTENER, SessionState, SideState,
    control,
};
use pgsplice_ebpf::guard::v4_mapped;

use crate::packet::Packet;
use crate::rig::{Answer, Rig, on_a_rig};

pub const CLIENT: usize = 0;
pub const BACKEND: usize = 1;
pub const SLOT: u32 = 5;
/// The next number of each side, in its own numbers, all before it acknowledged.
pub const AT: [u32; 2] = [1000, 50_000];
pub const SEQ_DELTA: u32 = 700_000;
pub const ACK_DELTA: u32 = 0u32.wrapping_sub(900);
pub const WINDOW: u32 = 10_000;

pub struct Scene<'a> {
    pub rig: &'a mut Rig,
    pub model: Model,
    pub program: Program,
    pub keys: [FlowKey; 2],
    /// What came in by one interface is routed to the other by this.
    pub route: Option<Route>,
}

/// Plays it with the XDP program, then with the TC program.
pub fn with_each_program(play: impl Fn(&mut Scene<'_>) + Send + Copy + 'static) {
    for program in [Program::Xdp, Program::Tc] {
        with_program(program, play);
    }
}

pub fn with_program(program: Program, play: impl FnOnce(&mut Scene<'_>) + Send + 'static) {
    on_a_rig(move |rig| {
        let model = Model::new(8, Route::Unreachable);
        let mut scene = Scene { rig, model, program, keys: [FlowKey::default(); 2], route: None };
        scene.open(false);
        play(&mut scene);
    });
}

pub fn key(src: [u8; 4], src_port: u16, dst: [u8; 4], dst_port: u16) -> FlowKey {
    FlowKey {
        src: v4_mapped(src),
        dst: v4_mapped(dst),
        src_port: src_port.to_be_bytes(),
        dst_port: dst_port.to_be_bytes(),
    }
}

impl Scene<'_> {
    /// A new session, LIVE, in which nothing has happened: `AT` is what each side will send next.
    pub fn open(&mut self, v6: bool) {
        let (mut client, mut backend) =
            (key([11, 0, 0, 1], 40_000, [192, 0, 2, 1], 5432), key([13, 0, 0, 1], 6432, [192, 0, 2, 2], 12_345));
        if v6 {
            for key in [&mut client, &mut backend] {
                for addr in [&mut key.src, &mut key.dst] {
                    addr[..12].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0]);
                }
            }
        }
        self.keys = [client, backend];
        let from_client = Flow {
            out: backend.reversed(),
            slot: SLOT,
            seq_delta: SEQ_DELTA,
            ack_delta: ACK_DELTA,
            tsval_delta: 11,
            tsecr_delta: 22,
            out_ifindex: self.rig.out0.index,
            out_vlan: 0,
            flags: FLOW_FROM_CLIENT | FLOW_TIMESTAMPS | self.road(),
            in_wscale: 7,
            out_wscale: 6,
            pad: [0; 2],
            listener: NO_LISTENER,
        };
        let from_backend = Flow {
            out: client.reversed(),
            seq_delta: ACK_DELTA.wrapping_neg(),
            ack_delta: SEQ_DELTA.wrapping_neg(),
            tsval_delta: 0u32.wrapping_sub(22),
            tsecr_delta: 0u32.wrapping_sub(11),
            flags: FLOW_TIMESTAMPS | self.road(),
            in_wscale: 6,
            out_wscale: 7,
            ..from_client
        };
        self.set_flow(CLIENT, from_client);
        self.set_flow(BACKEND, from_backend);
        let side = |at| SideState { acked: at, seq_end: at, window: WINDOW, ..SideState::default() };
        self.set_state(SessionState { side: [side(AT[0]), side(AT[1])] });
        self.set_control(control::LIVE);
    }

    fn road(&self) -> u16 {
        if self.program == Program::Xdp { FLOW_XDP } else { FLOW_TC }
    }

    pub fn set_flow(&mut self, side: usize, flow: Flow) {
        self.model.flows.insert(self.keys[side], flow);
        self.rig.flows.insert(self.keys[side], flow, 0).unwrap();
    }

    pub fn change_flow(&mut self, side: usize, change: impl FnOnce(&mut Flow)) {
        let mut flow = self.model.flows[&self.keys[side]];
        change(&mut flow);
        self.set_flow(side, flow);
    }

    pub fn set_state(&mut self, state: SessionState) {
        self.model.sessions[SLOT as usize] = state;
        self.rig.sessions.set(SLOT, state, 0).unwrap();
    }

    pub fn set_control(&mut self, word: u32) {
        self.model.control[SLOT as usize] = word;
        self.rig.control.set(SLOT, word, 0).unwrap();
    }

    pub fn state(&self) -> SessionState {
        self.model.sessions[SLOT as usize]
    }

    pub fn flags(&self) -> [u32; 2] {
        self.state().side.map(|side| side.flags)
    }

    pub fn has_flows(&self) -> bool {
        self.keys.iter().all(|key| self.model.flows.contains_key(key))
    }

    /// A packet of this side: the next one, `by` further, acknowledging the other side's `acked` more.
    pub fn packet(&self, side: usize, by: u32, acked: u32, flags: u8) -> Packet {
        let mut packet = Packet::new(self.keys[side]);
        let ack_delta = [ACK_DELTA, SEQ_DELTA.wrapping_neg()][side];
        packet.seq = AT[side].wrapping_add(by);
        packet.ack = AT[1 - side].wrapping_add(acked).wrapping_sub(ack_delta);
        packet.flags = flags;
        packet
    }

    /// The program's alone.
    pub fn answer(&mut self, frame: &[u8]) -> Answer {
        let arrival = Arrival { frame, ifindex: self.rig.in0.index, segment: 0, tci: 0, now_ns: 1 };
        self.rig.run(self.program_name(), &arrival)
    }

    pub fn program_name(&self) -> &'static str {
        match self.program {
            Program::Xdp => flow::PROGRAM_XDP_FRAGS,
            Program::Tc => flow::PROGRAM_TC,
        }
    }

    pub fn send(&mut self, packet: &Packet) -> Outcome {
        self.send_frame(&packet.bytes())
    }

    /// One run of program and model.
    pub fn send_frame(&mut self, frame: &[u8]) -> Outcome {
        let arrival = Arrival { frame, ifindex: self.rig.in0.index, segment: 0, tci: 0, now_ns: 1 };
        self.model.route = self.route.unwrap_or_else(|| self.rig.route(&self.keys[1].reversed()));
        let before = self.rig.counters();
        let expected = self.model.receive(self.program, &arrival);
        let answer = self.rig.run(self.program_name(), &arrival);
        let after = self.rig.counters();
        let mut changed = (0..).zip(before.iter().zip(after)).filter(|(_, (b, a))| a != *b).map(|(index, _)| index);
        let way = if let Verdict::Send(ifindex) = expected.verdict { ifindex } else { 0 };
        let got = Outcome { counted: changed.next(), ..answer.outcome(self.program, &arrival, way) };
        assert_eq!(changed.next(), None, "counted twice");
        assert_eq!(got, expected, "{:?}", self.program);

        let mut state = self.rig.sessions.get(&SLOT, 0).unwrap();
        state.side.iter_mut().for_each(|side| side.last_ns = side.last_ns.min(1));
        assert_eq!(state, self.state(), "{:?}", self.program);
        for key in self.keys {
            assert_eq!(self.rig.flows.get(&key, 0).is_ok(), self.model.flows.contains_key(&key), "{key:?}");
        }
        expected
    }
}

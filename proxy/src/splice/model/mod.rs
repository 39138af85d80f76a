//! What the BPF programs do to a packet, in plain Rust: the contract of `pgsplice_ebpf::flow` put down a second time, by
//! which the first is judged. It shares no code with the programs and takes the slow and obvious way everywhere.
//!
//! [`Model::receive`] is one run of a program. The guard is not in it, and of the routing table only one answer.

mod bytes;
mod options;
mod reset;
mod tracking;

use std::collections::{HashMap, HashSet};

use pgsplice_ebpf::flow::{
    FLOW_TC, FLOW_XDP, Flow, FlowKey, SIDE_FIN_ACKED, SIDE_HELD, SIDE_RST, SessionState, WATCH_MOVED, WATCH_ODD,
    WATCH_TC, WATCH_TIMESTAMPS, WATCH_XDP, Watch, control, counter, event,
};

use bytes::{Parsed, Segment, Subject, parse};
use tracking::{Change, Sides};

/// Which program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Xdp,
    Tc,
}

/// A frame at an interface.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    pub frame: &'a [u8],
    pub ifindex: u32,
    /// TC: the payload of one segment, where the frame stands for several; else 0.
    pub segment: usize,
    /// TC: the VLAN tag beside the frame; else 0.
    pub tci: u16,
    pub now_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To whoever comes next; in the end, this host's stack.
    Pass,
    Drop,
    /// Out by this interface, maybe the one it came in by. TC leaves the addresses of Ethernet to the kernel.
    Send(u32),
}

/// What the program did besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    /// What the frame is now, where it is sent.
    pub frame: Vec<u8>,
    /// `flow::counter`
    pub counted: Option<u32>,
    pub told: Option<Told>,
}

/// The part of an event that the packet decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// `flow::event`
    pub kind: u32,
    pub slot: u32,
    pub value: u32,
    pub data: Vec<u8>,
}

/// What the routing table answers, whatever it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `to` and `from` are the addresses of Ethernet.
    Way {
        ifindex: u32,
        to: [u8; 6],
        from: [u8; 6],
        mtu: usize,
    },
    ForwardingOff,
    Unreachable,
}

/// The maps, and what surrounds the program.
pub struct Model {
    pub flows: HashMap<FlowKey, Flow>,
    pub sessions: Vec<SessionState>,
    pub control: Vec<u32>,
    pub watches: HashMap<FlowKey, Watch>,
    /// Address and port of each.
    pub listeners: HashSet<([u8; 16], [u8; 2])>,
    /// Their clients are not watched from the SYN on.
    pub unwatched: bool,
    pub route: Route,
}

impl Model {
    pub fn new(sessions: usize, route: Route) -> Self {
        Self {
            flows: HashMap::new(),
            sessions: vec![SessionState::default(); sessions],
            control: vec![control::FREE; sessions],
            watches: HashMap::new(),
            listeners: HashSet::new(),
            unwatched: false,
            route,
        }
    }

    /// Runs the program on a frame.
    pub fn receive(&mut self, program: Program, arrival: &Arrival<'_>) -> Outcome {
        let Some(parsed) = parse(program, arrival) else { return pass() };
        let mine = if program == Program::Xdp { FLOW_XDP } else { FLOW_TC };
        match &parsed.subject {
            Subject::Tcp(key) => {
                let known = self.flows.get(key).copied();
                match known {
                    Some(flow) => {
                        let word = self.control[flow.slot as usize];
                        let active = matches!(word, control::HOLD | control::LIVE | control::CUT);
                        if flow.flags & mine == 0 || !active {
                            pass()
                        } else {
                            self.known(program, arrival, &parsed, &flow)
                        }
                    }
                    None => {
                        let opens = parsed.flags & (SYN | ACK) == SYN;
                        if opens && self.listeners.contains(&(key.dst, key.dst_port)) {
                            self.watches.remove(key);
                            if !self.unwatched {
                                self.watches.insert(*key, Watch::default());
                            }
                        }
                        self.watch(program, arrival, &parsed, key);
                        pass()
                    }
                }
            }
            Subject::TooBig(about) => match self.flows.get(about) {
                Some(flow) if flow.flags & mine != 0 && self.control[flow.slot as usize] == control::LIVE => {
                    let data = quote(&arrival.frame[parsed.l3..]);
                    let told = Told { kind: event::ICMP, slot: flow.slot, value: data.len() as u32, data };
                    Outcome { told: Some(told), ..drop(counter::ICMP) }
                }
                _ => pass(),
            },
        }
    }

    /// A packet of a flow that this program serves, in a session that is HOLD, LIVE or CUT.
    fn known(&mut self, program: Program, arrival: &Arrival<'_>, parsed: &Parsed, flow: &Flow) -> Outcome {
        if parsed.fragment {
            return drop(counter::FRAGMENT);
        }
        if parsed.extensions {
            return drop(counter::EXTENSION);
        }
        let Some(segment) = Segment::read(arrival.frame, parsed) else { return drop(counter::MALFORMED) };
        let slot = flow.slot as usize;
        let mut sides = Sides::of(flow, self.sessions[slot]);
        let opens = segment.has(SYN) && !segment.has(ACK | RST);
        let outcome = match self.control[slot] {
            control::HOLD => hold(arrival, &segment, flow, &mut sides),
            word if opens && (word == control::CUT || sides.may_be_reopened(&segment)) => {
                self.remove(flow, &parsed.key());
                self.watches.remove(&parsed.key());
                self.watches.insert(parsed.key(), Watch::default());
                self.watch(program, arrival, parsed, &parsed.key());
                return Outcome { told: Some(tell(event::REUSED, flow)), ..pass() };
            }
            control::CUT => self.cut(arrival, parsed, &segment),
            _ => self.live(program, arrival, parsed, &segment, flow, &mut sides),
        };
        self.sessions[slot] = sides.state();
        outcome
    }

    fn live(
        &mut self,
        program: Program,
        arrival: &Arrival<'_>,
        parsed: &Parsed,
        segment: &Segment,
        flow: &Flow,
        sides: &mut Sides,
    ) -> Outcome {
        let (ifindex, to, from, mtu) = match self.route {
            Route::Way { ifindex, to, from, mtu } => (ifindex, to, from, mtu),
            Route::ForwardingOff if program == Program::Xdp || flow.out_vlan != 0 => {
                return drop(counter::FORWARDING_OFF);
            }
            Route::Unreachable if program == Program::Xdp || flow.out_vlan != 0 => return drop(counter::NO_ROUTE),
            _ => (flow.out_ifindex, [0; 6], [0; 6], usize::MAX),
        };
        let one = if arrival.segment == 0 { segment.payload } else { arrival.segment };
        if parsed.ip_len - segment.payload + one > mtu {
            let mut data = quote(&arrival.frame[parsed.l3..]);
            data.resize(96, 0);
            let told = Told { kind: event::FRAG_NEEDED, slot: flow.slot, value: mtu as u32, data };
            return Outcome { told: Some(told), ..drop(counter::FRAG_NEEDED) };
        }
        let mut ip = arrival.frame[parsed.l3..].to_vec();
        let Some(rewritten) = options::rewrite(&mut ip, parsed, segment, flow) else {
            return drop(counter::MALFORMED);
        };

        let tagged = flow.out_vlan != 0;
        let mut frame = match program {
            Program::Tc if !tagged => arrival.frame[..12].to_vec(),
            _ => [to, from].concat(),
        };
        if tagged && program == Program::Xdp {
            frame.extend([0x81, 0x00]);
            frame.extend(flow.out_vlan.to_be_bytes());
        }
        frame.extend(&arrival.frame[parsed.l3 - 2..parsed.l3]);
        frame.extend(ip);

        sides.count();
        let told = match sides.track(segment, flow, rewritten.tsval, arrival.now_ns) {
            Change::None => None,
            Change::Closed => Some(tell(event::CLOSED, flow)),
            Change::Reset => {
                self.remove(flow, &parsed.key());
                Some(tell(event::RESET, flow))
            }
        };
        let ifindex = if tagged || program == Program::Tc { flow.out_ifindex } else { ifindex };
        let counted = if program == Program::Xdp { counter::FORWARDED_XDP } else { counter::FORWARDED_TC };
        Outcome { verdict: Verdict::Send(ifindex), frame, counted: Some(counted), told }
    }

    fn cut(&self, arrival: &Arrival<'_>, parsed: &Parsed, segment: &Segment) -> Outcome {
        if segment.has(RST) {
            return Outcome { verdict: Verdict::Drop, ..pass() };
        }
        let frame = reset::answer(arrival.frame, parsed, segment);
        Outcome { verdict: Verdict::Send(arrival.ifindex), frame, counted: Some(counter::CUT), told: None }
    }

    fn remove(&mut self, flow: &Flow, key: &FlowKey) {
        self.flows.remove(key);
        self.flows.remove(&flow.out.reversed());
    }

    fn watch(&mut self, program: Program, arrival: &Arrival<'_>, parsed: &Parsed, key: &FlowKey) {
        let Some(watch) = self.watches.get_mut(key) else { return };
        let vlan = parsed.tci & 0x0fff;
        if watch.ifindex != 0 && (watch.ifindex, watch.vlan) != (arrival.ifindex, vlan) {
            watch.flags |= WATCH_MOVED;
        }
        (watch.ifindex, watch.vlan) = (arrival.ifindex, vlan);
        watch.flags |= if program == Program::Xdp { WATCH_XDP } else { WATCH_TC };
        if parsed.fragment || parsed.extensions {
            watch.flags |= WATCH_ODD;
        }
        let segment = if parsed.fragment { None } else { Segment::read(arrival.frame, parsed) };
        if let Some(tsval) = segment.and_then(|segment| options::tsval(&segment.options))
            && (watch.flags & WATCH_TIMESTAMPS == 0 || tracking::is_after(tsval, watch.tsval))
        {
            watch.tsval = tsval;
            watch.flags |= WATCH_TIMESTAMPS;
        }
    }
}

fn hold(arrival: &Arrival<'_>, segment: &Segment, flow: &Flow, sides: &mut Sides) -> Outcome {
    if segment.has(ACK) && !segment.has(SYN | FIN | RST) && segment.payload == 0 {
        sides.track(segment, flow, options::tsval(&segment.options), arrival.now_ns);
        return pass();
    }
    sides.x.flags |= SIDE_HELD;
    if segment.has(RST) && sides.believes_rst(segment.seq) {
        sides.x.flags |= SIDE_RST;
    }
    drop(counter::HELD)
}

impl Sides {
    fn may_be_reopened(&self, segment: &Segment) -> bool {
        self.x.flags & self.y.flags & SIDE_FIN_ACKED != 0
            && (tracking::is_after(segment.seq, self.x.seq_end)
                || options::tsval(&segment.options).is_some_and(|tsval| tracking::is_after(tsval, self.x.tsval)))
    }
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

fn pass() -> Outcome {
    Outcome { verdict: Verdict::Pass, frame: Vec::new(), counted: None, told: None }
}

fn drop(counter: u32) -> Outcome {
    Outcome { verdict: Verdict::Drop, counted: Some(counter), ..pass() }
}

fn tell(kind: u32, flow: &Flow) -> Told {
    Told { kind, slot: flow.slot, value: 0, data: Vec::new() }
}

/// As much of a packet as goes with an event: whole words.
fn quote(packet: &[u8]) -> Vec<u8> {
    let len = packet.len().min(96) / 4 * 4;
    packet[..len].to_vec()
}

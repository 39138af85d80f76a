//! The object loaded in namespaces of its own, with two interfaces whose neighbours are known, and its maps.
//!
//! Packets come in by `in0`. Everything is routed to a neighbour on `out0`, except 172.16.0.0/12 and fd16::/16, which go
//! back by `in0`; `low0` has a small MTU.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::process::Command;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::links::LinkOrder;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use pgsplice::bpf::OBJECT;
use pgsplice::splice::model::{Arrival, Outcome, Program, Route, Told, Verdict};
use pgsplice_ebpf::flow::{self, Event, Flow, FlowKey, SessionState, Watch, counter, event};
use pgsplice_ebpf::guard::{self, ListenerKey};

pub const SESSIONS: u32 = 128;
pub const MTU: usize = 1500;
const NEIGHBOUR: [u8; 6] = [2, 0, 0, 0, 9, 2];

pub struct Rig {
    ebpf: Ebpf,
    pub flows: HashMap<MapData, FlowKey, Flow>,
    pub sessions: Array<MapData, SessionState>,
    pub control: Array<MapData, u32>,
    pub watches: HashMap<MapData, FlowKey, Watch>,
    pub listeners: HashMap<MapData, ListenerKey, u32>,
    unwatched: Array<MapData, u32>,
    counters: PerCpuArray<MapData, u64>,
    events: RingBuf<MapData>,
    pub in0: Interface,
    pub out0: Interface,
    /// What a run writes its frame to.
    room: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
pub struct Interface {
    pub index: u32,
    pub mac: [u8; 6],
}

/// A program's answer, in the model's terms.
pub struct Answer {
    pub action: u32,
    pub frame: Vec<u8>,
    pub events: Vec<Event>,
}

/// Runs the test on a rig.
pub fn on_a_rig(test: impl FnOnce(&mut Rig) + Send + 'static) {
    // SAFETY: geteuid takes nothing and cannot fail.
    assert_eq!(unsafe { libc::geteuid() }, 0, "this test loads BPF programs and makes namespaces: run it as root");
    let done = std::thread::spawn(move || {
        // SAFETY: changes only the calling thread, which was started for this.
        let done = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
        assert_eq!(done, 0, "unshare: {}: run this test as root", io::Error::last_os_error());
        test(&mut Rig::make());
    });
    if let Err(panic) = done.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Rig {
    fn make() -> Self {
        for command in [
            "mount --make-rprivate /",
            "mount -t bpf bpf /sys/fs/bpf",
            "ip link set lo up",
            "ip link add in0 type veth peer name in1",
            "ip link add out0 type veth peer name out1",
            "ip link add low0 type veth peer name low1",
            "ip addr add 10.8.0.1/24 dev in0",
            "ip addr add 10.9.0.1/24 dev out0",
            "ip -6 addr add fd08::1/64 dev in0 nodad",
            "ip -6 addr add fd09::1/64 dev out0 nodad",
            "ip link set in1 up",
            "ip link set out1 up",
            "ip link set low1 up",
            "ip link set in0 up",
            "ip link set out0 up",
            "ip link set low0 mtu 1000 up",
            "ip neigh add 10.8.0.2 lladdr 02:00:00:00:09:02 dev in0 nud permanent",
            "ip neigh add 10.9.0.2 lladdr 02:00:00:00:09:02 dev out0 nud permanent",
            "ip -6 neigh add fd08::2 lladdr 02:00:00:00:09:02 dev in0 nud permanent",
            "ip -6 neigh add fd09::2 lladdr 02:00:00:00:09:02 dev out0 nud permanent",
            "ip route add default via 10.9.0.2 dev out0",
            "ip route add 172.16.0.0/12 via 10.8.0.2 dev in0",
            "ip -6 route add default via fd09::2 dev out0",
            "ip -6 route add fd16::/16 via fd08::2 dev in0",
        ] {
            run(command);
        }
        set_forwarding(true);
        let mut loader = aya::EbpfLoader::new();
        for (name, capacity) in [
            (flow::FLOWS, 2 * SESSIONS),
            (flow::SESSIONS, SESSIONS),
            (flow::CONTROL, SESSIONS),
            (flow::META, SESSIONS),
            (flow::WAYS, 2 * SESSIONS),
        ] {
            loader.map_max_entries(name, capacity);
        }
        let mut ebpf = loader.default_map_pin_directory("/sys/fs/bpf").load(OBJECT).unwrap();
        let mut take = |name| ebpf.take_map(name).unwrap();
        Self {
            flows: take(flow::FLOWS).try_into().unwrap(),
            sessions: take(flow::SESSIONS).try_into().unwrap(),
            control: take(flow::CONTROL).try_into().unwrap(),
            watches: take(flow::WATCHES).try_into().unwrap(),
            listeners: take(guard::LISTENERS).try_into().unwrap(),
            unwatched: take(flow::UNWATCHED).try_into().unwrap(),
            counters: take(flow::SPLICE_COUNTERS).try_into().unwrap(),
            events: take(flow::EVENTS).try_into().unwrap(),
            ebpf,
            in0: interface("in0"),
            out0: interface("out0"),
            room: vec![0; 1 << 17],
        }
    }

    /// What the routing table says of a packet to this address.
    pub fn route(&self, to: &FlowKey) -> Route {
        let back = if to.is_v4() { to.dst[12] == 172 && to.dst[13] >> 4 == 1 } else { to.dst[..2] == [0xfd, 0x16] };
        let Interface { index, mac } = if back { self.in0 } else { self.out0 };
        Route::Way { ifindex: index, to: NEIGHBOUR, from: mac, mtu: MTU }
    }

    /// Runs one of the programs on a frame that comes in by `arrival.ifindex`.
    pub fn run(&mut self, program: &str, arrival: &Arrival<'_>) -> Answer {
        let run = self.runner(program);
        let mut room = std::mem::take(&mut self.room);
        let (action, length) = run.on(arrival, &mut room);
        let frame = room[..length].to_vec();
        self.room = room;
        Answer { action, frame, events: self.events() }
    }

    /// The program alone, for threads that run it at once.
    pub fn runner(&mut self, program: &str) -> Runner {
        let is_xdp = program == flow::PROGRAM_XDP || program == flow::PROGRAM_XDP_FRAGS;
        Runner { program: program.into(), fd: self.program(program).as_raw_fd(), is_xdp }
    }

    /// Until the namespace goes.
    pub fn attach(&mut self, program: &str, interface: &str, hook: TcAttachType) {
        self.program(program);
        let program: &mut SchedClassifier = self.ebpf.program_mut(program).unwrap().try_into().unwrap();
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        program.attach_with_options(interface, hook, order).unwrap();
    }

    /// Loads it where it is not: the verifier takes its time.
    fn program(&mut self, name: &str) -> BorrowedFd<'_> {
        use aya::programs::Program;
        let program = self.ebpf.program_mut(name).unwrap();
        while program.fd().is_err() {
            let loaded = match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => unreachable!("the object has no other kinds here"),
            };
            match loaded {
                // The verifier gives way to a signal.
                Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {}
                loaded => loaded.unwrap(),
            }
        }
        program.fd().unwrap().as_fd()
    }

    /// What the programs have told since last asked.
    pub fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            assert_eq!(item.len(), size_of::<Event>());
            // SAFETY: as long as an Event, of which any bits are a value.
            events.push(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
        }
        events
    }

    pub fn counters(&self) -> [u64; counter::COUNT as usize] {
        std::array::from_fn(|index| self.counters.get(&(index as u32), 0).unwrap().iter().sum())
    }

    pub fn listen(&mut self, addr: [u8; 16], port: [u8; 2]) {
        self.listeners.insert(ListenerKey::new(addr, port), 1, 0).unwrap();
    }

    /// Whether the clients of the listeners are watched from their SYN on.
    pub fn watch_from_syn(&mut self, on: bool) {
        self.unwatched.set(1, u32::from(!on), 0).unwrap();
    }
}

/// A program that the rig has loaded.
#[derive(Clone)]
pub struct Runner {
    program: String,
    fd: RawFd,
    is_xdp: bool,
}

impl Runner {
    /// What it returned, and how much of `room` its frame takes.
    pub fn on(&self, arrival: &Arrival<'_>, room: &mut [u8]) -> (u32, usize) {
        let mut context = [0u8; SK_BUFF];
        let len = if self.is_xdp {
            context[4..8].copy_from_slice(&(arrival.frame.len() as u32).to_ne_bytes());
            context[12..16].copy_from_slice(&arrival.ifindex.to_ne_bytes());
            XDP_MD
        } else {
            context[40..44].copy_from_slice(&arrival.ifindex.to_ne_bytes());
            context[176..180].copy_from_slice(&(arrival.segment as u32).to_ne_bytes());
            SK_BUFF
        };
        let mut attr = TestRun {
            prog_fd: self.fd as u32,
            data_size_in: arrival.frame.len() as u32,
            data_size_out: room.len() as u32,
            data_in: arrival.frame.as_ptr() as u64,
            data_out: room.as_mut_ptr() as u64,
            repeat: 1,
            ctx_size_in: len as u32,
            ctx_in: context.as_ptr() as u64,
            ..TestRun::default()
        };
        // SAFETY: everything attr points to lives through the call and has the length it says.
        let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &mut attr, size_of::<TestRun>()) };
        assert_eq!(done, 0, "test run of {}: {} on {:02x?}", self.program, io::Error::last_os_error(), arrival.frame);
        (attr.retval, attr.data_size_out as usize)
    }
}

impl Answer {
    /// In the model's terms; what was counted is not known here.
    pub fn outcome(&self, program: Program, arrival: &Arrival<'_>, way: u32) -> Outcome {
        let verdict = match (program, self.action) {
            (Program::Xdp, 1) | (Program::Tc, 2) => Verdict::Drop,
            (Program::Xdp, 2) | (Program::Tc, u32::MAX) => Verdict::Pass,
            (Program::Xdp, 3) => Verdict::Send(arrival.ifindex),
            // Where to is not told: by the model's interface, if it is not the one it came in by.
            (Program::Xdp, 4) => Verdict::Send(if way == arrival.ifindex { 0 } else { way }),
            (Program::Tc, 7) => Verdict::Send(way),
            (program, action) => panic!("{program:?} returned {action}"),
        };
        let frame = if matches!(verdict, Verdict::Send(_)) { self.frame.clone() } else { Vec::new() };
        let told = self.events.first().map(|e| Told {
            kind: e.kind,
            slot: e.slot,
            value: e.value,
            data: match e.kind {
                event::ICMP => e.data[..e.value as usize].to_vec(),
                event::FRAG_NEEDED => e.data.to_vec(),
                _ => Vec::new(),
            },
        });
        Outcome { verdict, frame, counted: None, told }
    }
}

const XDP_MD: usize = 24;
const SK_BUFF: usize = 192;
const BPF_PROG_TEST_RUN: libc::c_long = 10;

/// The part of union bpf_attr that BPF_PROG_TEST_RUN reads.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// In this thread's network namespace.
pub fn set_forwarding(on: bool) {
    for path in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"] {
        std::fs::write(path, if on { "1" } else { "0" }).unwrap();
    }
}

pub fn interface(name: &str) -> Interface {
    // Not by /sys, which still shows the namespace it was mounted in.
    let shown = Command::new("ip").args(["-o", "link", "show", name]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let index = shown.split(':').next().unwrap().parse().unwrap();
    let mac = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
    let mut bytes = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap());
    Interface { index, mac: std::array::from_fn(|_| bytes.next().unwrap()) }
}

/// Runs a command in the calling thread's namespaces.
pub fn run(command: &str) {
    let mut words = command.split_whitespace();
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{command}: {status}");
}

//! Frames in the test's hands: [`Wire`] is the cable between a host and its segment, [`Backlog`] what a host has received
//! and not yet come to. The test decides about each frame, by rule or one by one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use xtask::lab::{Host, Net};

use crate::frame::{self, FIN, RST, SYN, Tcp};
use crate::rig::SOON;

/// No frame of any MTU here is longer.
const MAX_FRAME: usize = 64 * 1024;

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Toward {
    Host,
    Segment,
}

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Pass,
    Drop,
    Late(Duration),
    Twice,
    /// Another one goes in its place.
    As(Vec<u8>),
}

type Judge = Box<dyn FnMut(Toward, &[u8]) -> Fate + Send>;

/// The cable of a host's first interface. The network must be a [`xtask::lab::NetSpec::wire`]: frames without checksums
/// cannot be carried by hand. Ends when dropped, and the host is cut off then.
pub struct Wire {
    judge: Arc<Mutex<Judge>>,
    inject: Sender<(Toward, Vec<u8>)>,
    end: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

impl Wire {
    pub fn of(net: &Net, host: &str, segment: &str) -> Result<Self> {
        let host = net.host(host);
        let (port, device) = (format!("{}.0", host.name()), format!("w-{}", host.name()));
        let (near, far) = in_switch(host, || -> Result<_> { Ok((packet_socket(&port)?, tap(&device)?)) })??;
        let commands = format!(
            "ip link set {port} nomaster addrgenmode none; ip link set {device} master br-{segment} addrgenmode none up; \
             ethtool -K {port} gro off"
        );
        let mut command = Command::new("nsenter");
        command.args(["--target", &host.holder().to_string(), "--mount"]).arg(format!("--net={}", switch(host)));
        let done = command.args(["sh", "-ec", &commands]).status().context("nsenter")?;
        ensure!(done.success(), "the wire of {} cannot be laid", host.name());
        let judge: Arc<Mutex<Judge>> = Arc::new(Mutex::new(Box::new(|_, _| Fate::Pass)));
        let (inject, injected) = channel();
        let end = Arc::new(AtomicBool::new(false));
        let mut carrier = Carrier { ends: [near, far], late: BinaryHeap::new(), count: 0, injected };
        let (judging, ending) = (judge.clone(), end.clone());
        let carrier = Some(std::thread::spawn(move || {
            while !ending.load(SeqCst) {
                carrier.carry(&judging);
            }
        }));
        Ok(Self { judge, inject, end, carrier })
    }

    /// From now on this decides.
    pub fn judge(&self, judge: impl FnMut(Toward, &[u8]) -> Fate + Send + 'static) {
        *self.judge.lock() = Box::new(judge);
    }

    /// A frame of the test's own.
    pub fn inject(&self, toward: Toward, frame: Vec<u8>) {
        self.inject.send((toward, frame)).unwrap();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.end.store(true, SeqCst);
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

/// The cable of a host, and the last of the host's frames on it.
pub struct Tap {
    wire: Wire,
    last: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    pub fn of(net: &Net, host: &str, segment: &str) -> Self {
        let wire = Wire::of(net, host, segment).unwrap();
        let last = Arc::new(Mutex::new(Vec::new()));
        let seen = last.clone();
        wire.judge(move |toward, frame| {
            if toward == Toward::Segment && frame::read(frame).is_some_and(|tcp| tcp.flags & (SYN | RST | FIN) == 0) {
                *seen.lock() = frame.to_vec();
            }
            Fate::Pass
        });
        Self { wire, last }
    }

    /// Somebody else's packet: `change` has the numbers of the next one that the host itself would send.
    pub fn forge(&self, change: impl FnOnce(Tcp) -> Tcp) {
        let last = self.last.lock().clone();
        let mut tcp = frame::read(&last).unwrap();
        tcp.seq = tcp.seq.wrapping_add(tcp.payload as u32);
        self.wire.inject(Toward::Segment, frame::altered(&last, change(tcp)));
        std::thread::sleep(Duration::from_millis(20));
    }

    /// Has a router beside the host say so many times that what is sent to it was too big.
    pub fn complain(&self, times: usize) {
        let message = frame::too_big(&self.last.lock(), 1500);
        (0..times).for_each(|_| self.wire.inject(Toward::Segment, message.clone()));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// When it is due, its turn among those due at once, and the frame.
type Late = (Instant, u64, Toward, Vec<u8>);

struct Carrier {
    /// By [`Toward`]: to write to for it, and to read from for the other.
    ends: [File; 2],
    late: BinaryHeap<Reverse<Late>>,
    count: u64,
    injected: Receiver<(Toward, Vec<u8>)>,
}

impl Carrier {
    fn carry(&mut self, judge: &Mutex<Judge>) {
        let now = Instant::now();
        while self.late.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            if let Some(Reverse((_, _, toward, frame))) = self.late.pop() {
                self.put(toward, &frame);
            }
        }
        while let Ok((toward, frame)) = self.injected.try_recv() {
            self.put(toward, &frame);
        }
        let wait = if self.late.is_empty() { 2 } else { 1 };
        let ready =
            [0, 1].map(|end: usize| libc::pollfd { fd: self.ends[end].as_raw_fd(), events: libc::POLLIN, revents: 0 });
        let mut polled = ready;
        // SAFETY: two valid pollfds for the length of the call.
        unsafe { libc::poll(polled.as_mut_ptr(), 2, wait) };
        let mut frame = vec![0; MAX_FRAME];
        for (end, toward) in [(0, Toward::Segment), (1, Toward::Host)] {
            if polled[end].revents & libc::POLLIN == 0 {
                continue;
            }
            for _ in 0..64 {
                let Ok(length) = self.ends[end].read(&mut frame) else { break };
                self.judged(judge, toward, &frame[..length]);
            }
        }
    }

    fn judged(&mut self, judge: &Mutex<Judge>, toward: Toward, frame: &[u8]) {
        match judge.lock()(toward, frame) {
            Fate::Pass => self.put(toward, frame),
            Fate::Drop => {}
            Fate::As(other) => self.put(toward, &other),
            Fate::Twice => {
                self.put(toward, frame);
                self.put(toward, frame);
            }
            Fate::Late(by) => {
                self.count += 1;
                self.late.push(Reverse((Instant::now() + by, self.count, toward, frame.to_vec())));
            }
        }
    }

    /// A frame that does not fit into the queue is lost, as on any wire.
    fn put(&mut self, toward: Toward, frame: &[u8]) {
        let _ = self.ends[toward as usize].write(frame);
    }
}

/// Faults at random, in thousandths of the frames, each way: the same for the same seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub lost: u64,
    pub twice: u64,
    /// Overtaken by what is sent up to 5 ms later.
    pub late: u64,
}

impl Faults {
    pub fn judge(self, mut seed: u64) -> impl FnMut(Toward, &[u8]) -> Fate + Send + 'static {
        move |_, _| {
            let mut draw = || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) % 1000
            };
            if draw() < self.lost {
                Fate::Drop
            } else if draw() < self.twice {
                Fate::Twice
            } else if draw() < self.late {
                Fate::Late(Duration::from_micros(draw() * 5))
            } else {
                Fate::Pass
            }
        }
    }
}

/// What a host has taken from its interface and its sockets have not been given yet: IPv4 packets of [`Self::TOS`], which
/// the programs at the interface have seen.
pub struct Backlog(File);

impl Backlog {
    /// DSCP 10.
    pub const TOS: u32 = 40;

    pub fn of(host: &Host, device: &str) -> Result<Self> {
        let tap = host.on_thread(|| tap("late0"))??;
        host.run([
            "sh",
            "-ec",
            &format!(
                "ip link set late0 address $(cat /sys/class/net/{device}/address) addrgenmode none up; \
                 echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 0 > /proc/sys/net/ipv4/conf/late0/rp_filter; \
                 nft 'add table netdev late'; \
                 nft 'add chain netdev late in {{ type filter hook ingress device {device} priority 0; }}'; \
                 nft 'add rule netdev late in ip dscp 10 fwd to late0'"
            ),
        ])?;
        Ok(Self(tap))
    }

    /// The next one from this port, as it waits. What waits before it is gone.
    pub fn take(&mut self, from_port: u16) -> Result<Vec<u8>> {
        let begun = Instant::now();
        let mut frame = vec![0; MAX_FRAME];
        loop {
            match self.0.read(&mut frame) {
                Ok(length) if frame::read(&frame[..length]).is_some_and(|tcp| tcp.from_port == from_port) => {
                    return Ok(frame[..length].to_vec());
                }
                // A repetition of an earlier one, or what the device itself has to say.
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            ensure!(begun.elapsed() < SOON, "nothing came into the backlog");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// On to the sockets.
    pub fn deliver(&mut self, frame: &[u8]) -> Result<()> {
        Ok(self.0.write_all(frame)?)
    }
}

fn switch(host: &Host) -> String {
    let name = host.netns();
    format!("/run/netns/{}switch", name.strip_suffix(host.name()).unwrap_or(&name))
}

fn in_switch<T: Send>(host: &Host, work: impl FnOnce() -> T + Send) -> Result<T> {
    let namespace = File::open(switch(host))?;
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            // SAFETY: setns on a descriptor that `namespace` keeps open.
            match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
                0 => Ok(work()),
                _ => Err(io::Error::last_os_error()),
            }
        });
        Ok(inside.join().unwrap()?)
    })
}

/// All that comes out of a device, and a way into it.
fn packet_socket(device: &str) -> io::Result<File> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes no pointers, and the descriptor is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(check(libc::socket(libc::AF_PACKET, kind, 0))?) };
    let set = |level, option, value: libc::c_int| {
        // SAFETY: the value lives through the call and the length is its own.
        check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), 4) })
    };
    set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20)?;
    // linux/if_packet.h
    const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
    set(libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
    let name = CString::new(device)?;
    // SAFETY: all zeroes is a value of it.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: the name is terminated.
    address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address lives through the call and the length is its own.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket.into())
}

/// A TAP device of this name in the thread's network, which goes with the file.
fn tap(name: &str) -> io::Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeroes is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives through the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    // SAFETY: plain system call on a descriptor of ours.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })?;
    Ok(file)
}

fn check(returned: i32) -> io::Result<i32> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

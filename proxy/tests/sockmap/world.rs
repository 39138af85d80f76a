//! A network namespace for one test, an engine in it, and sessions between two plain sockets on loopback.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use pgsplice::config;
use pgsplice::pool::Backend;
use pgsplice::proxy::Listener;
use pgsplice::session::{SessionId, SessionRecord, Termination};
use pgsplice::splice::Why;
use pgsplice::splice::job::Job;
use pgsplice::splice::sockmap::{Outcome, Sockmap};
use tokio::sync::Notify;

/// No single step of a test takes longer, or it hangs.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Runs the test in a network namespace of its own.
pub fn alone(test: impl FnOnce() + Send + 'static) {
    // SAFETY: geteuid takes nothing and cannot fail.
    assert_eq!(unsafe { libc::geteuid() }, 0, "this test loads BPF programs and makes namespaces: run it as root");
    let done = std::thread::spawn(move || {
        // SAFETY: changes only the calling thread, which was started for this.
        let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(done, 0, "unshare: {}: run this test as root", std::io::Error::last_os_error());
        run("ip link set lo up");
        // BBR paces by what it measures, which on a busy machine's loopback is noise.
        std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno").unwrap();
        test();
    });
    if let Err(panic) = done.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a command in the calling thread's namespaces.
pub fn run(command: &str) {
    let mut words = command.split_whitespace();
    let status = std::process::Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{command}: {status}");
}

/// An engine, in the namespace of the thread that made it.
pub fn engine() -> Sockmap {
    Sockmap::start(64).unwrap()
}

/// A session that is not given to an engine yet: the sockets of its two peers and the proxy's legs.
pub struct Parts {
    pub client: TcpStream,
    pub client_leg: TcpStream,
    pub backend_leg: TcpStream,
    pub backend: TcpStream,
    pub idle: Duration,
    pub half_closed: Duration,
    pub held: Vec<u8>,
}

/// A session under way. A thread of its own waits for its end and closes the legs as a session's task does.
pub struct Session {
    pub client: TcpStream,
    pub backend: TcpStream,
    pub record: Arc<SessionRecord>,
    outcome: mpsc::Receiver<Outcome>,
    cut: Arc<Notify>,
}

/// The connecting and the accepted end of a connection.
pub fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    for socket in [&near, &far] {
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.set_write_timeout(Some(LIMIT)).unwrap();
    }
    (near, far)
}

impl Parts {
    pub fn new() -> Self {
        let (client, client_leg) = connection();
        let (backend_leg, backend) = connection();
        for leg in [&client_leg, &backend_leg] {
            leg.set_read_timeout(None).unwrap();
            leg.set_write_timeout(None).unwrap();
        }
        let (idle, half_closed) = (Duration::ZERO, Duration::ZERO);
        Self { client, client_leg, backend_leg, backend, idle, half_closed, held: Vec::new() }
    }

    pub fn forward(self, engine: &Sockmap) -> Session {
        let (record, at_backend, at_listener) = accounts(&self.client, &self.backend);
        let job = Job {
            client: self.client_leg.as_raw_fd(),
            backend: self.backend_leg.as_raw_fd(),
            record: record.clone(),
            at_backend,
            at_listener,
            idle: self.idle,
            half_closed: self.half_closed,
            held: self.held,
        };
        let (mut forwarding, cut, (tell, outcome)) = (engine.forward(job), Arc::new(Notify::new()), mpsc::channel());
        let (legs, ordered) = ([self.client_leg, self.backend_leg], cut.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let outcome = runtime.block_on(async {
                tokio::select! {
                    outcome = forwarding.ended() => outcome,
                    () = ordered.notified() => {
                        forwarding.cut();
                        forwarding.ended().await
                    }
                }
            });
            if !matches!(outcome, Outcome::Ended(Termination::ClientClosed | Termination::BackendClosed)) {
                for leg in &legs {
                    socket2::SockRef::from(leg).set_linger(Some(Duration::ZERO)).unwrap();
                }
            }
            drop(legs);
            // Not every test wants to know.
            let _ = tell.send(outcome);
        });
        Session { client: self.client, backend: self.backend, record, outcome, cut }
    }

    /// Until the sockets are joined and the gates have been open.
    pub fn join(self, engine: &Sockmap) -> Session {
        let before = engine.joined();
        let session = self.forward(engine);
        eventually("the sockets are joined", || engine.joined() > before);
        (&session.client).write_all(b"open").unwrap();
        assert_eq!(read(&session.backend, 4), b"open");
        (&session.backend).write_all(b"sesame").unwrap();
        assert_eq!(read(&session.client, 6), b"sesame");
        session
    }
}

/// A session whose sockets are joined and whose gates are open.
pub fn joined(engine: &Sockmap) -> Session {
    Parts::new().join(engine)
}

impl Session {
    /// The legs are closed then.
    pub fn outcome(&self) -> Outcome {
        self.outcome.recv_timeout(LIMIT).expect("the session ends")
    }

    pub fn ended(&self) -> Termination {
        match self.outcome() {
            Outcome::Ended(reason) => reason,
            Outcome::Refused { why, .. } => panic!("refused: {}", why.as_str()),
        }
    }

    pub fn refused(&self) -> (Why, Vec<u8>) {
        match self.outcome() {
            Outcome::Ended(reason) => panic!("ended: {reason:?}"),
            Outcome::Refused { why, held } => (why, held),
        }
    }

    pub fn cut(&self) {
        self.cut.notify_one();
    }
}

/// Where a new session between these two is counted.
pub fn accounts(client: &TcpStream, backend: &TcpStream) -> (Arc<SessionRecord>, Arc<Backend>, Arc<Listener>) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let id = SessionId(NEXT.fetch_add(1, Ordering::Relaxed));
    let record = SessionRecord::new(id, "rw", "rw", client.local_addr().unwrap());
    let listener = Listener {
        name: "rw".into(),
        config: ArcSwap::from_pointee(config::Listener::default()),
        bound: Vec::new(),
        sockets: Default::default(),
        inherited: config::Tcp::default(),
        counters: Arc::default(),
        live: Arc::default(),
    };
    (Arc::new(record), Arc::new(Backend::new("rw", "b", backend.local_addr().unwrap())), Arc::new(listener))
}

/// Exactly so many bytes.
pub fn read(mut socket: &TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    socket.read_exact(&mut bytes).unwrap();
    bytes
}

/// Bytes that tell their place: those of `seed`'s stream from `from` on.
pub fn stream(seed: u64, from: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 16);
    for at in from / 8..(from + length as u64).div_ceil(8) {
        bytes.extend_from_slice(&(at + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    bytes.drain(..from as usize % 8);
    bytes.truncate(length);
    bytes
}

/// Sends `length` bytes of the stream in pieces of uneven size.
pub fn send(mut socket: &TcpStream, seed: u64, length: u64) {
    let (mut at, mut piece) = (0, 1);
    while at < length {
        let now = piece.min(length - at) as usize;
        socket.write_all(&stream(seed, at, now)).unwrap();
        at += now as u64;
        piece = (piece * 7 + 13) % 200_000 + 1;
    }
}

/// Reads the stream from `from` on to its end; its length.
pub fn receive(mut socket: &TcpStream, seed: u64, from: u64) -> u64 {
    let (mut at, mut buffer) = (from, vec![0; 100_000]);
    loop {
        match socket.read(&mut buffer).unwrap() {
            0 => return at,
            length => {
                assert!(buffer[..length] == stream(seed, at, length), "wrong bytes after {at}");
                at += length as u64;
            }
        }
    }
}

/// Waits until it is so.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < LIMIT, "not so after {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

//! `cargo xtask bench-client`: keeps the server busy through a contender and prints one line of JSON.
//!
//! `echo` keeps one request in flight on each connection, `churn` makes a connection for each request, `idle` opens
//! sessions and holds them while its parent looks at the machine, `probe` waits until the way is open.

use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::{Events, Interest, Poll, Token};
use serde::{Deserialize, Serialize};

use super::cpu::{Reading, Spent};
use super::histogram::Histogram;
use super::wire;
use crate::lab::until_ok;

/// What the hidden command line takes.
#[derive(clap::Args)]
pub struct Args {
    #[arg(long, value_enum)]
    pattern: Pattern,
    /// Where to connect; several are used in turn
    #[arg(long, required = true)]
    target: Vec<SocketAddr>,
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Threads for `echo` and `idle`; `churn` has one a connection
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Seconds before measuring
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Seconds measured
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Pattern {
    Echo,
    Churn,
    Idle,
    /// Try until one startup is answered
    Probe,
}

/// What `echo` and `churn` print at the end.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Requests answered within the measured time.
    pub operations: u64,
    pub spent: Spent,
    pub latency: Histogram,
}

/// What `idle` prints when its sessions stand, and again when all of them have answered once more.
pub const IDLE_STANDS: &str = "stands";
pub const IDLE_ANSWERED: &str = "answered";

/// Longest wait for any single answer; a slower contender has lost the connection.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long `probe` tries.
const PROBE_TIMEOUT: Duration = Duration::from_secs(15);

/// Any lost, refused or garbled session is an error: a figure with losses in it is no figure.
pub fn run(args: Args) -> Result<()> {
    ensure!(args.connections > 0 && args.threads > 0, "--connections and --threads must be at least 1");
    match args.pattern {
        Pattern::Echo => print(&measure(&args, args.threads.min(args.connections), echo)?),
        Pattern::Churn => print(&measure(&args, args.connections, churn)?),
        Pattern::Idle => idle(&args),
        Pattern::Probe => probe(&args),
    }
}

fn print(outcome: &Outcome) -> Result<()> {
    println!("{}", serde_json::to_string(outcome)?);
    Ok(())
}

// === the measured time ===

/// Where the run stands, as its threads see it.
#[derive(Default)]
struct Phase {
    measuring: AtomicBool,
    over: AtomicBool,
}

/// Runs `work` on `threads` threads (given their number and the phase), reads the CPU at both ends of the measured time.
fn measure(
    args: &Args,
    threads: usize,
    work: fn(&Args, Share, &Phase, &Barrier) -> Result<Histogram>,
) -> Result<Outcome> {
    let phase = Phase::default();
    let ready = Barrier::new(threads + 1);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|number| {
                let (phase, ready) = (&phase, &ready);
                scope.spawn(move || work(args, Share { number, of: threads }, phase, ready))
            })
            .collect();
        ready.wait();
        thread::sleep(Duration::from_secs_f64(args.warmup));
        let before = Reading::now();
        phase.measuring.store(true, Relaxed);
        thread::sleep(Duration::from_secs_f64(args.seconds));
        phase.measuring.store(false, Relaxed);
        let after = Reading::now();
        phase.over.store(true, Relaxed);
        let mut latency = Histogram::default();
        for worker in workers {
            latency.merge(&worker.join().map_err(|_| anyhow::anyhow!("a load thread panicked"))??);
        }
        ensure!(latency.count() > 0, "no request was answered in {} s", args.seconds);
        Ok(Outcome { operations: latency.count(), spent: before?.until(&after?), latency })
    })
}

/// A thread's part of the connections.
#[derive(Clone, Copy)]
struct Share {
    number: usize,
    of: usize,
}

impl Share {
    /// The numbers of its connections, counted over all threads.
    fn connections(self, args: &Args) -> impl Iterator<Item = usize> {
        (self.number..args.connections).step_by(self.of)
    }
}

// === echo ===

struct Session {
    stream: mio::net::TcpStream,
    sent: Instant,
    /// Bytes of the current reply that have arrived.
    received: usize,
}

/// One request in flight on each of this thread's connections.
fn echo(args: &Args, share: Share, phase: &Phase, ready: &Barrier) -> Result<Histogram> {
    let opened = share.connections(args).map(|number| open(target(args, number))).collect::<Result<Vec<_>>>();
    ready.wait();
    let mut poll = Poll::new().context("epoll_create")?;
    let query = wire::query();
    let mut sessions = Vec::new();
    for stream in opened? {
        stream.set_nonblocking(true).context("O_NONBLOCK")?;
        let mut stream = mio::net::TcpStream::from_std(stream);
        let token = Token(sessions.len());
        poll.registry().register(&mut stream, token, Interest::READABLE).context("epoll_ctl")?;
        let mut session = Session { stream, sent: Instant::now(), received: 0 };
        session.ask(&query)?;
        sessions.push(session);
    }
    let mut latency = Histogram::default();
    let mut events = Events::with_capacity(256);
    let mut buffer = [0; 4096];
    while !phase.over.load(Relaxed) {
        match poll.poll(&mut events, Some(ANSWER_TIMEOUT)) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            other => other.context("epoll_wait")?,
        }
        ensure!(!events.is_empty(), "{} connections and no answer for {ANSWER_TIMEOUT:?}", sessions.len());
        for event in &events {
            let session = &mut sessions[event.token().0];
            if session.listen(&mut buffer)? {
                if phase.measuring.load(Relaxed) {
                    latency.record(session.sent.elapsed().as_nanos() as u64);
                }
                session.ask(&query)?;
            }
        }
    }
    for session in &mut sessions {
        // The run is over; whether the goodbye arrives changes nothing.
        let _ = session.stream.write(&wire::TERMINATE);
    }
    Ok(latency)
}

impl Session {
    fn ask(&mut self, query: &[u8]) -> Result<()> {
        self.sent = Instant::now();
        let written = self.stream.write(query).context("send a request")?;
        ensure!(written == query.len(), "a socket with nothing in flight took {written} of {} bytes", query.len());
        Ok(())
    }

    /// Whether the whole reply is here.
    fn listen(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let read = match self.stream.read(buffer) {
            Ok(0) => bail!("the connection was closed in the middle of the run"),
            Ok(read) => read,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(false),
            Err(e) => return Err(e).context("wait for a reply"),
        };
        self.received += read;
        ensure!(self.received <= wire::REPLY_LEN, "{} bytes came where a reply has {}", self.received, wire::REPLY_LEN);
        if self.received < wire::REPLY_LEN {
            return Ok(false);
        }
        self.received = 0;
        ensure!(buffer[..read].ends_with(&wire::READY_FOR_QUERY[6 - read.min(6)..]), "a reply ends in other bytes");
        Ok(true)
    }
}

// === churn ===

/// Connect, one request, close, over and over.
fn churn(args: &Args, share: Share, phase: &Phase, ready: &Barrier) -> Result<Histogram> {
    ready.wait();
    let query = wire::query();
    let mut latency = Histogram::default();
    let mut turn = share.number;
    while !phase.over.load(Relaxed) {
        let began = Instant::now();
        let mut stream = open(target(args, turn))?;
        ask(&mut stream, &query)?;
        stream.write_all(&wire::TERMINATE).context("say goodbye")?;
        drop(stream);
        turn += share.of;
        if phase.measuring.load(Relaxed) {
            latency.record(began.elapsed().as_nanos() as u64);
        }
    }
    Ok(latency)
}

// === idle ===

/// Opens all sessions, says so, waits for a line, asks each of them again, says so, and ends when its input does.
fn idle(args: &Args) -> Result<()> {
    let query = wire::query();
    let mut sessions = Vec::with_capacity(args.connections);
    for number in 0..args.connections {
        let mut stream = open(target(args, number)).with_context(|| format!("session {number}"))?;
        ask(&mut stream, &query).with_context(|| format!("session {number}"))?;
        sessions.push(stream);
    }
    println!("{IDLE_STANDS}");
    let mut lines = std::io::stdin().lock().lines();
    lines.next().transpose().context("stdin")?;
    for (number, stream) in sessions.iter_mut().enumerate() {
        ask(stream, &query).with_context(|| format!("session {number}, after it was idle"))?;
    }
    println!("{IDLE_ANSWERED}");
    for stream in &mut sessions {
        stream.write_all(&wire::TERMINATE).context("say goodbye")?;
    }
    Ok(())
}

// === probe ===

/// Waits until a session can be had.
fn probe(args: &Args) -> Result<()> {
    until_ok("an answered startup", PROBE_TIMEOUT, || {
        open(target(args, 0))?.write_all(&wire::TERMINATE).context("say goodbye")
    })
}

// === a session, step by step ===

fn target(args: &Args, number: usize) -> SocketAddr {
    args.target[number % args.target.len()]
}

/// Connects and goes through the startup.
fn open(target: SocketAddr) -> Result<TcpStream> {
    let mut stream =
        TcpStream::connect_timeout(&target, ANSWER_TIMEOUT).with_context(|| format!("connect to {target}"))?;
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).context("SO_RCVTIMEO")?;
    stream.write_all(&wire::startup()).context("send the startup")?;
    let mut buffer = [0; 1024];
    let mut received = 0;
    while !buffer[..received].ends_with(&wire::READY_FOR_QUERY) {
        ensure!(received < buffer.len(), "the server's welcome has no end");
        match stream.read(&mut buffer[received..]).context("wait for the welcome")? {
            0 => bail!("{target} closed during the startup{}", said(&buffer[..received])),
            read => received += read,
        }
    }
    Ok(stream)
}

/// What an ErrorResponse in `bytes` tells, for the message a person sees.
fn said(bytes: &[u8]) -> String {
    match wire::frame(bytes) {
        Ok(Some((b'E', length))) => format!(": {}", String::from_utf8_lossy(&bytes[5..length]).replace('\0', " ")),
        _ => String::new(),
    }
}

/// One request and its whole reply.
fn ask(stream: &mut TcpStream, query: &[u8]) -> Result<()> {
    stream.write_all(query).context("send a request")?;
    let mut reply = [0; wire::REPLY_LEN];
    stream.read_exact(&mut reply).context("wait for a reply")?;
    ensure!(reply.ends_with(&wire::READY_FOR_QUERY), "a reply ends in other bytes");
    Ok(())
}

//! `cargo xtask bench-client`: keeps the server busy through a contender and prints one line of JSON.
//!
//! A file a pattern. Any lost, refused or garbled session is an error: a figure with losses in it is no figure.

mod churn;
mod echo;
mod idle;
mod paced;
mod session;
mod stream;

use std::net::{IpAddr, SocketAddr};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::histogram::Histogram;
use super::window::Window;
use super::wire;
use crate::lab::until_ok;
use session::Session;

pub use idle::ANSWERED;

/// What the hidden command line takes.
#[derive(Clone, clap::Args)]
pub struct Args {
    #[arg(long, value_enum)]
    pattern: Pattern,
    /// Where to connect; several are used in turn
    #[arg(long, required = true)]
    target: Vec<SocketAddr>,
    /// The address to connect from, else the routing table's
    #[arg(long)]
    source: Option<IpAddr>,
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// How many connections other processes have before ours, so that all take their targets in turn
    #[arg(long, default_value_t = 0)]
    before: usize,
    /// Threads for `echo`; the others have one a connection, `idle` just one
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Requests (`paced`) or sessions (`churn`) a second, all connections together
    #[arg(long)]
    rate: Option<f64>,
    /// `churn`: this many sessions in all instead of a measured time
    #[arg(long)]
    sessions: Option<u64>,
    /// `churn`: requests of each session, by the length of the reply
    #[arg(long, num_args = 1.., default_values_t = [wire::REPLY_LEN])]
    reply: Vec<usize>,
    /// Least length of the server's answer to a startup, in bytes
    #[arg(long, default_value_t = 0)]
    welcome: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Pattern {
    /// One request in flight on each connection
    Echo,
    /// A connection for each request, or few requests
    Churn,
    /// Requests at a fixed rate
    Paced,
    /// Sessions that stand while the bench looks at the machine
    Idle,
    /// COPY TO STDOUT without end
    StreamOut,
    /// COPY FROM STDIN without end
    StreamIn,
    /// Try until one startup is answered
    Probe,
}

/// What a process prints at its end.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// What was done within the measured time: requests answered, sessions ended, bytes of a stream.
    pub done: u64,
    /// Of the requests, or of the whole sessions; empty for a stream.
    pub latency: Histogram,
}

impl Outcome {
    pub fn merge(&mut self, other: &Self) {
        self.done += other.done;
        self.latency.merge(&other.latency);
    }
}

/// Longest wait for any single answer; a slower contender has lost the connection.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long `probe` tries.
const PROBE_TIMEOUT: Duration = Duration::from_secs(15);

pub fn run(args: Args) -> Result<()> {
    ensure!(args.connections > 0 && args.threads > 0, "--connections and --threads must be at least 1");
    let outcome = match args.pattern {
        Pattern::Echo => measured(&args, args.threads.min(args.connections), echo::work)?,
        Pattern::Churn if args.sessions.is_some() => churn::count(&args)?,
        Pattern::Churn => measured(&args, args.connections, churn::work)?,
        Pattern::Paced => measured(&args, args.connections, paced::work)?,
        Pattern::StreamOut => measured(&args, args.connections, stream::take)?,
        Pattern::StreamIn => measured(&args, args.connections, stream::give)?,
        Pattern::Idle => return idle::run(&args),
        Pattern::Probe => return probe(&args),
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// A thread's place among the others of its process.
#[derive(Clone, Copy)]
struct Share<'a> {
    args: &'a Args,
    number: usize,
    of: usize,
    window: &'a Window,
    ready: &'a Barrier,
}

impl Share<'_> {
    /// The numbers of its connections, counted over all processes.
    fn connections(self) -> impl Iterator<Item = usize> {
        (self.number..self.args.connections).step_by(self.of).map(move |number| self.args.before + number)
    }

    /// Every thread calls it once, whether its connections stand or not.
    fn stands(self) {
        self.ready.wait();
    }
}

/// Runs `work` on `threads` threads until the measured time, which is agreed once all of them stand, is over.
fn measured(args: &Args, threads: usize, work: fn(Share) -> Result<Outcome>) -> Result<Outcome> {
    let window = Window::default();
    let ready = Barrier::new(threads + 1);
    let mut outcome = Outcome::default();
    thread::scope(|scope| {
        let share = |number| Share { args, number, of: threads, window: &window, ready: &ready };
        let workers: Vec<_> = (0..threads).map(|number| scope.spawn(move || work(share(number)))).collect();
        ready.wait();
        let agreed = window.agree();
        if agreed.is_err() {
            // Nobody will ever say when it is over: the threads must not wait for it.
            window.close();
        }
        for worker in workers {
            outcome.merge(&worker.join().map_err(|_| anyhow::anyhow!("a load thread panicked"))??);
        }
        agreed
    })?;
    ensure!(outcome.done > 0, "nothing was done in the measured time");
    Ok(outcome)
}

/// Waits until a session can be had.
fn probe(args: &Args) -> Result<()> {
    until_ok("an answered startup", PROBE_TIMEOUT, || Session::open(args, 0)?.close().context("say goodbye"))
}

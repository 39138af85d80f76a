//! A prober: an application that writes a row every 20 ms, and what became of each.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use parking_lot::Mutex;

use crate::lab::Lab;

/// One running prober; [`Prober::stop`] ends it.
pub struct Prober {
    pub name: &'static str,
    child: Child,
    seen: Arc<Mutex<Seen>>,
}

/// What a prober has said so far.
#[derive(Default)]
struct Seen {
    /// In the order in which they came back.
    acknowledged: Vec<Write>,
    errors: Vec<(Instant, String)>,
}

struct Write {
    at: Instant,
    number: u64,
    /// The address at which PostgreSQL took it.
    primary: String,
    timeline: u32,
}

impl Prober {
    /// Starts one on the client, through the given port of pgsplice.
    pub fn start(lab: &Lab, name: &'static str, port: u16) -> Result<Self> {
        let conninfo = lab.conninfo(lab.proxy(), port);
        let mut command = lab.client().command(["python3", "-c", include_str!("probe.py"), &conninfo, name]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run python3")?;
        let stdout = child.stdout.take().context("the prober has no output")?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let sink = seen.clone();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                sink.lock().hear(&line);
            }
        });
        Ok(Self { name, child, seen })
    }

    /// The longest time without an acknowledged write between two moments, and the number of errors in it.
    pub fn gap(&self, from: Instant, to: Instant) -> (Duration, usize) {
        let seen = self.seen.lock();
        let within = |at: Instant| (from..to).contains(&at);
        let mut last = from;
        let mut longest = Duration::ZERO;
        for write in seen.acknowledged.iter().filter(|write| within(write.at)) {
            longest = longest.max(write.at - last);
            last = write.at;
        }
        longest = longest.max(to - last);
        (longest, seen.errors.iter().filter(|(at, _)| within(*at)).count())
    }

    /// How long ago the last write was acknowledged; None before the first.
    pub fn silence(&self) -> Option<Duration> {
        self.seen.lock().acknowledged.last().map(|write| write.at.elapsed())
    }

    /// The address of the PostgreSQL that took the last write.
    pub fn primary(&self) -> Option<String> {
        self.seen.lock().acknowledged.last().map(|write| write.primary.clone())
    }

    /// The timeline of the last write; 0 before the first.
    pub fn timeline(&self) -> u32 {
        self.seen.lock().acknowledged.last().map_or(0, |write| write.timeline)
    }

    /// The numbers of the rows that were acknowledged up to then.
    pub fn acknowledged(&self, then: Instant) -> BTreeSet<u64> {
        self.seen.lock().acknowledged.iter().filter(|write| write.at <= then).map(|write| write.number).collect()
    }

    /// Each error's words and how often they came.
    pub fn errors(&self) -> BTreeMap<String, usize> {
        let mut errors = BTreeMap::new();
        for (_, said) in &self.seen.lock().errors {
            *errors.entry(said.clone()).or_default() += 1;
        }
        errors
    }

    pub fn stop(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Seen {
    fn hear(&mut self, line: &str) {
        let at = Instant::now();
        let mut words = line.splitn(3, ' ');
        let (Some(what), Some(number), Some(rest)) = (words.next(), words.next(), words.next()) else { return };
        let write = || {
            let (primary, timeline) = rest.split_once(' ')?;
            Some(Write { at, number: number.parse().ok()?, primary: primary.into(), timeline: timeline.parse().ok()? })
        };
        match write() {
            Some(write) if what == "ok" => self.acknowledged.push(write),
            _ => self.errors.push((at, rest.to_owned())),
        }
    }
}

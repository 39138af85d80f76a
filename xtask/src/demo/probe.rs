//! A client that writes one row every 20 ms through pgsplice and remembers when it could.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use parking_lot::Mutex;

use crate::lab::{Host, Lab};

const EVERY: Duration = Duration::from_millis(20);
/// Writes in a row that make it well again.
const WELL: usize = 10;

pub struct Prober {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    errors: AtomicUsize,
    in_a_row: AtomicUsize,
    /// When each write that succeeded had succeeded.
    written: Mutex<Vec<Instant>>,
    /// Of the psql that runs, to end it by.
    psql: Mutex<Option<i32>>,
}

impl Prober {
    /// Returns when the first write has succeeded.
    pub fn start(lab: &Lab, conninfo: &str) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (writer, host, conninfo) = (shared.clone(), lab.client().clone(), conninfo.to_owned());
        let thread = std::thread::spawn(move || {
            while !writer.stop.load(Relaxed) {
                // A psql whose connection is lost ends; the next one connects anew.
                let _ = session(&host, &conninfo, &writer);
                std::thread::sleep(EVERY);
            }
        });
        let prober = Self { shared, thread };
        crate::lab::until("the first write", Duration::from_secs(10), || prober.is_well())?;
        Ok(prober)
    }

    pub fn errors(&self) -> usize {
        self.shared.errors.load(Relaxed)
    }

    /// Whether writes succeed, one after the other, up to now.
    pub fn is_well(&self) -> bool {
        let last = self.shared.written.lock().last().copied();
        self.shared.in_a_row.load(Relaxed) >= WELL
            && last.is_some_and(|last| last.elapsed() < Duration::from_millis(500))
    }

    /// The longest time between two writes that followed each other, the later one after `since`.
    pub fn longest_gap_since(&self, since: Instant) -> Duration {
        let written = self.shared.written.lock();
        let pairs = written.windows(2).filter(|pair| pair[1] > since);
        pairs.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    pub fn stop(self) -> Result<()> {
        self.shared.stop.store(true, Relaxed);
        if let Some(pid) = *self.shared.psql.lock() {
            // SAFETY: plain system call; the pid stands here only until its process was waited for.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        self.thread.join().map_err(|_| anyhow::anyhow!("the prober panicked"))
    }
}

/// One psql until its connection is lost.
fn session(host: &Host, conninfo: &str, shared: &Shared) -> Result<()> {
    let mut command = host.command(["psql", "-XAtq", conninfo]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    *shared.psql.lock() = Some(child.id() as i32);
    let pipes = pipes(&mut child);
    let result = pipes.and_then(|(stdin, stdout)| write_rows(stdin, stdout, shared));
    child.kill()?;
    *shared.psql.lock() = None;
    child.wait()?;
    result
}

fn pipes(child: &mut Child) -> Result<(ChildStdin, BufReader<ChildStdout>)> {
    let stdin = child.stdin.take().context("no input")?;
    Ok((stdin, BufReader::new(child.stdout.take().context("no output")?)))
}

fn write_rows(mut stdin: ChildStdin, mut stdout: BufReader<ChildStdout>, shared: &Shared) -> Result<()> {
    let mut next = Instant::now();
    while !shared.stop.load(Relaxed) {
        let asked = writeln!(stdin, "INSERT INTO probe VALUES (clock_timestamp()) RETURNING 'written';\n\\echo done");
        let mut done = false;
        let mut written = false;
        while asked.is_ok() && !done {
            let mut line = String::new();
            if stdout.read_line(&mut line)? == 0 {
                break;
            }
            written |= line.trim_end() == "written";
            done = line.trim_end() == "done";
        }
        if written {
            shared.written.lock().push(Instant::now());
            shared.in_a_row.fetch_add(1, Relaxed);
        } else if !shared.stop.load(Relaxed) {
            shared.errors.fetch_add(1, Relaxed);
            shared.in_a_row.store(0, Relaxed);
        }
        if !done {
            anyhow::bail!("the connection is lost");
        }
        next = (next + EVERY).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

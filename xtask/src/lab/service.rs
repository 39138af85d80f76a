//! A server that runs on a host: its output in the lab's state folder, its process known by pid and start time.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::host::Host;

/// What to run: enough to start it again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Program {
    pub name: String,
    pub argv: Vec<String>,
    pub user: Option<String>,
    pub env: Vec<(String, String)>,
}

/// A started [`Program`]. Dropping it leaves the process to the lab, which ends everything it holds.
#[derive(Debug)]
pub struct Service {
    host: Host,
    program: Program,
    process: Mutex<Process>,
}

#[derive(Debug)]
struct Process {
    pid: i32,
    /// Clock ticks after boot, field 22 of /proc/PID/stat: with the pid it names one process for good.
    started: u64,
    /// None when another process started it (`lab exec` looking at a lab that `lab up` made).
    child: Option<Child>,
}

/// The record in the state folder.
#[derive(Serialize, Deserialize)]
struct Record {
    pid: i32,
    started: u64,
    program: Program,
}

impl Program {
    pub fn new<S: Into<String>>(name: impl Into<String>, argv: impl IntoIterator<Item = S>) -> Self {
        Self { name: name.into(), argv: argv.into_iter().map(Into::into).collect(), user: None, env: Vec::new() }
    }

    /// Run as this user of the host's root instead of root.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }
}

impl Service {
    pub(super) fn start(host: &Host, program: Program) -> Result<Self> {
        let process = spawn(host, &program)?;
        let service = Self { host: host.clone(), program, process: Mutex::new(process) };
        service.record()?;
        Ok(service)
    }

    /// A service that an earlier process started on this host.
    pub(super) fn find(host: &Host, name: &str) -> Result<Self> {
        let path = record_path(host, name);
        let text = fs::read(&path).with_context(|| format!("{} has no service {name:?}", host.name()))?;
        let record: Record = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
        let process = Process { pid: record.pid, started: record.started, child: None };
        Ok(Self { host: host.clone(), program: record.program, process: Mutex::new(process) })
    }

    /// The names of all services ever started on this host, in order.
    pub(super) fn names(host: &Host) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(host.folder())? {
            let name = entry?.file_name();
            if let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".service.json")) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    pub fn name(&self) -> &str {
        &self.program.name
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    pub fn pid(&self) -> i32 {
        self.process.lock().pid
    }

    pub fn log_path(&self) -> PathBuf {
        log_path(&self.host, &self.program.name)
    }

    /// The last lines it wrote.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log_path(), lines)
    }

    pub fn is_running(&self) -> bool {
        self.process.lock().exited().is_none()
    }

    /// Sends a signal; nothing happens when the process has gone.
    pub fn kill(&self, signal: i32) -> Result<()> {
        let mut process = self.process.lock();
        if process.exited().is_some() {
            return Ok(());
        }
        // SAFETY: a system call without pointers; the pid was just seen to be the process we know.
        if unsafe { libc::kill(process.pid, signal) } < 0 {
            let error = std::io::Error::last_os_error();
            bail!("cannot signal {} on {} (pid {}): {error}", self.program.name, self.host.name(), process.pid);
        }
        Ok(())
    }

    /// Waits for the end; `None` in the result when another process started it and its status is not ours to read.
    pub fn wait(&self, limit: Duration) -> Result<Option<ExitStatus>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.process.lock().exited() {
                return Ok(status);
            }
            if Instant::now() >= end {
                bail!("{} on {} still runs after {limit:?}", self.program.name, self.host.name());
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM, and SIGKILL after `limit`.
    pub fn stop(&self, limit: Duration) -> Result<()> {
        self.kill(libc::SIGTERM)?;
        if self.wait(limit).is_err() {
            self.kill(libc::SIGKILL)?;
            self.wait(Duration::from_secs(5))?;
        }
        Ok(())
    }

    /// Starts the same program again, after ending the old process if it still runs.
    pub fn restart(&self) -> Result<()> {
        self.stop(Duration::from_secs(10))?;
        *self.process.lock() = spawn(&self.host, &self.program)?;
        self.record()
    }

    fn record(&self) -> Result<()> {
        let process = self.process.lock();
        let record = Record { pid: process.pid, started: process.started, program: self.program.clone() };
        let path = record_path(&self.host, &self.program.name);
        fs::write(&path, serde_json::to_vec_pretty(&record)?).with_context(|| path.display().to_string())
    }
}

impl Process {
    /// Some when it has ended, with its status if it was our child.
    fn exited(&mut self) -> Option<Option<ExitStatus>> {
        match &mut self.child {
            Some(child) => child.try_wait().unwrap_or(None).map(Some),
            None if start_time(self.pid) == Some(self.started) => None,
            None => Some(None),
        }
    }
}

fn spawn(host: &Host, program: &Program) -> Result<Process> {
    let path = log_path(host, &program.name);
    let log: File = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = host.service_command(&program.argv, program.user.as_deref())?;
    command.envs(program.env.iter().cloned()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child =
        command.spawn().with_context(|| format!("cannot start {} on {}", program.argv.join(" "), host.name()))?;
    let pid = child.id() as i32;
    let started = start_time(pid).context("the process was gone at once")?;
    Ok(Process { pid, started, child: Some(child) })
}

fn log_path(host: &Host, name: &str) -> PathBuf {
    host.folder().join(format!("{name}.log"))
}

fn record_path(host: &Host, name: &str) -> PathBuf {
    host.folder().join(format!("{name}.service.json"))
}

/// When a process started, in clock ticks after boot; None for no process, or one that only waits to be reaped.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in field 2 may hold spaces and parentheses: count from its last one.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The last `lines` lines of a file, or a word on why there are none.
pub fn tail(path: &Path, lines: usize) -> String {
    match fs::read(path) {
        Ok(text) => {
            let text = String::from_utf8_lossy(&text);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("({}: {error})", path.display()),
    }
}

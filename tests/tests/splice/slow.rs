//! A process that is kept from the CPU at the worst of moments: before or after each system call of the kinds a test names.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use xtask::lab::until;

/// Until it is dropped.
pub struct Slow(Child);

impl Slow {
    /// After each of `calls`, as strace names them, separated by commas. Threads that start later are slowed, too.
    pub fn down(pid: i32, calls: &str, by: Duration) -> Result<Self> {
        Self::inject(pid, calls, "delay_exit", by)
    }

    /// The same, before each.
    pub fn before(pid: i32, calls: &str, by: Duration) -> Result<Self> {
        Self::inject(pid, calls, "delay_enter", by)
    }

    fn inject(pid: i32, calls: &str, when: &str, by: Duration) -> Result<Self> {
        let inject = format!("inject={calls}:{when}={}", by.as_micros());
        let mut command = Command::new("strace");
        command.args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-p",
            &pid.to_string(),
            "-e",
            &format!("trace={calls}"),
            "-e",
            &inject,
        ]);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("strace")?;
        let attached = until("strace to have every thread", Duration::from_secs(10), || is_traced(pid));
        if let Err(error) = attached {
            let _ = child.kill();
            bail!("{error:#}: {:?}", child.wait_with_output());
        }
        Ok(Self(child))
    }
}

fn is_traced(pid: i32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
    })
}

impl Drop for Slow {
    fn drop(&mut self) {
        // SAFETY: plain system call. It lets go of the process when it is told to end, and would not when killed.
        unsafe { libc::kill(self.0.id() as i32, libc::SIGINT) };
        let _ = self.0.wait();
    }
}

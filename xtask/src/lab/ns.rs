//! Namespaces as open files, and how a process or a thread enters them.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};

/// The namespaces of one host, kept open so that they can be entered while they live.
#[derive(Debug, Clone)]
pub struct Namespaces(Arc<Files>);

#[derive(Debug)]
struct Files {
    net: File,
    ipc: File,
    uts: File,
    mnt: File,
}

/// Whom a process runs as, once it is inside.
#[derive(Debug, Clone, Copy)]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
}

impl Namespaces {
    /// Those of a running process.
    pub fn of(pid: i32) -> Result<Self> {
        let open = |kind: &str| {
            let path = format!("/proc/{pid}/ns/{kind}");
            File::open(&path).with_context(|| format!("cannot open {path}"))
        };
        Ok(Self(Arc::new(Files { net: open("net")?, ipc: open("ipc")?, uts: open("uts")?, mnt: open("mnt")? })))
    }

    /// Makes `command` run inside, as `ids`, in `folder`. `detached` gives it a session of its own, out of the
    /// terminal's reach.
    pub fn prepare(&self, command: &mut Command, ids: Option<Ids>, folder: &std::ffi::CStr, detached: bool) {
        let files = self.0.clone();
        let folder = folder.to_owned();
        let enter = move || {
            for file in [&files.net, &files.ipc, &files.uts, &files.mnt] {
                set(file)?;
            }
            // SAFETY: plain system calls on values owned by the closure, allowed between fork and exec; setuid comes
            // last because it takes the right to do the others.
            unsafe {
                if detached {
                    check(libc::setsid())?;
                }
                if let Some(ids) = ids {
                    check(libc::setgroups(1, &ids.gid))?;
                    check(libc::setgid(ids.gid))?;
                    check(libc::setuid(ids.uid))?;
                }
                check(libc::chdir(folder.as_ptr()))
            }
        };
        // SAFETY: `enter` only makes async-signal-safe system calls and allocates nothing.
        unsafe { command.pre_exec(enter) };
    }

    /// Runs `work` on a thread that sees the host's network (and the machine's own files): for clients that live in
    /// the test's process. Threads made by `work` see it too.
    pub fn on_thread<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| set(&self.0.net).map(|()| work()));
            match inside.join() {
                Ok(done) => done.context("cannot enter the host's network"),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

fn set(file: &File) -> io::Result<()> {
    // SAFETY: setns on a descriptor that `file` keeps open.
    check(unsafe { libc::setns(file.as_raw_fd(), 0) })
}

fn check(returned: i32) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

//! A successor that the running process starts by itself: the program as it is on disk now, with the same arguments.
//!
//! It stands where the running one stands: in the same unit of systemd, with the same capabilities and namespaces.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, OnceLock};

use super::Handover;

const TAKEOVER: &str = "--takeover";

static OURSELVES: OnceLock<(PathBuf, Vec<OsString>)> = OnceLock::new();

/// How this process was started. Before the file can be replaced: /proc/self/exe then names one that is deleted.
pub fn remember() {
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != TAKEOVER).collect();
    match std::env::current_exe() {
        Ok(program) => drop(OURSELVES.set((program, arguments))),
        Err(error) => tracing::warn!("`pgsplice upgrade` will not work, this program's file is unknown: {error}"),
    }
}

/// Starts it; it will ask to take over. Returns its pid.
pub fn start(handover: &Arc<Handover>) -> io::Result<u32> {
    let (program, arguments) = OURSELVES.get().ok_or_else(|| io::Error::other("this is no `pgsplice run`"))?;
    let mut child = tokio::process::Command::new(program).args(arguments).arg(TAKEOVER).stdin(Stdio::null()).spawn()?;
    let pid = child.id().ok_or_else(|| io::Error::other("it ended at once"))?;
    let handover = handover.clone();
    tokio::spawn(async move {
        tokio::select! {
            status = child.wait() => match status {
                Ok(status) => tracing::warn!(pid, "the successor ended: {status}"),
                Err(error) => tracing::warn!(pid, "the successor: {error}"),
            },
            _ = handover.completed() => {}
        }
    });
    Ok(pid)
}

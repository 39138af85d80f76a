//! Ctrl-C and SIGTERM: the lab goes first, then the process.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use anyhow::{Context, Result};
use parking_lot::Mutex;

use super::Net;

/// The labs this process owns.
static OWNED: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// The end of a pipe that the signal handler writes to.
static WAKE: AtomicI32 = AtomicI32::new(-1);

pub(super) fn owned(id: &str) {
    OWNED.lock().push(id.to_owned());
}

pub(super) fn disowned(id: &str) {
    OWNED.lock().retain(|owned| owned != id);
}

/// From now on SIGINT, SIGTERM and SIGHUP remove the labs this process made and end it with 130. Without this the
/// labs go as well, by their watchers, a moment after the process.
pub fn remove_labs_and_exit() -> Result<()> {
    let mut ends = [0; 2];
    // SAFETY: pipe2 writes two descriptors into an array of two.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(std::io::Error::last_os_error()).context("cannot make a pipe");
    }
    // SAFETY: both descriptors are new and nobody else's.
    let (reader, writer) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    if WAKE.compare_exchange(-1, writer.into_raw_fd(), Ordering::SeqCst, Ordering::SeqCst).is_err() {
        return Ok(());
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler is async-signal-safe: it makes one system call.
        unsafe { libc::signal(signal, on_signal as *const () as libc::sighandler_t) };
    }
    thread::Builder::new().name("interrupt".into()).spawn(move || {
        let mut byte = [0];
        if File::from(reader).read(&mut byte).is_ok_and(|read| read == 1) {
            eprintln!("\ninterrupted: removing the lab …");
            for id in OWNED.lock().iter() {
                if let Err(error) = Net::remove(id) {
                    eprintln!("lab {id}: {error:#}");
                }
            }
            std::process::exit(130);
        }
    })?;
    Ok(())
}

extern "C" fn on_signal(_: i32) {
    // SAFETY: write(2) of one byte to a pipe that is never closed.
    unsafe { libc::write(WAKE.load(Ordering::Relaxed), [1_u8].as_ptr().cast(), 1) };
}

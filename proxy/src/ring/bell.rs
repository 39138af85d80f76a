//! How other threads wake a thread that waits in its ring.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::AcqRel, Ordering::Acquire};
use std::task::Wake;

const AWAKE: u8 = 0;
/// In the ring, or on the way there.
const WAITING: u8 = 1;
/// There is something to do, wherever the thread is.
const RUNG: u8 = 2;

/// The waker of all that a thread runs. It costs a system call only when the thread waits.
#[derive(Debug)]
pub(super) struct Bell {
    state: AtomicU8,
    /// The thread's ring reads from it.
    event: File,
}

impl Bell {
    pub fn new() -> io::Result<Arc<Self>> {
        // SAFETY: plain system call; the descriptor it returns is ours alone.
        let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, owned by nobody else.
        let event = unsafe { File::from_raw_fd(event) };
        // There is something to do at the start.
        Ok(Arc::new(Self { state: AtomicU8::new(RUNG), event }))
    }

    pub fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Whether somebody has rung since this was asked last.
    pub fn has_rung(&self) -> bool {
        self.state.swap(AWAKE, AcqRel) == RUNG
    }

    /// Whether the thread may wait: nobody has rung.
    pub fn may_wait(&self) -> bool {
        self.state.compare_exchange(AWAKE, WAITING, AcqRel, Acquire).is_ok()
    }

    /// The thread waits no more.
    pub fn awake(&self) {
        // Failing means that somebody has rung.
        let _ = self.state.compare_exchange(WAITING, AWAKE, AcqRel, Acquire);
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(RUNG, AcqRel) == WAITING
            && let Err(error) = (&self.event).write_all(&1u64.to_ne_bytes())
        {
            tracing::error!("a thread's bell does not ring: {error}");
        }
    }
}

//! A thread's ring as it is used by an engine, which keeps track of its operations by itself.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use io_uring::{IoUring, cqueue, squeue};

use super::driver::{self, Driver};

/// Set in the `user_data` of all that an engine submits.
pub const ENGINE: u64 = 1 << 63;

/// Told of the completions of what it submitted, on the ring's thread and never while it submits.
pub trait Engine {
    fn completed(&mut self, entry: &cqueue::Entry);
}

/// A handle on the ring of a thread.
#[derive(Clone, Debug)]
pub struct Ring(Rc<Driver>);

impl Ring {
    /// The ring of this thread.
    pub fn current() -> Self {
        Self(driver::current())
    }

    /// Makes it the engine of this ring, until it is dropped.
    pub fn serve<E: Engine + 'static>(&self, engine: &Rc<RefCell<E>>) {
        let engine: Weak<RefCell<E>> = Rc::downgrade(engine);
        self.0.set_engine(engine);
    }

    /// # Safety
    /// What `entry` points to lives until its completion, and its descriptor stays open until then.
    pub unsafe fn push(&self, entry: squeue::Entry) {
        debug_assert!(entry.get_user_data() & ENGINE != 0, "its completion would go to nobody");
        // SAFETY: the caller's promise.
        unsafe { self.0.push(entry) };
    }

    /// For registering with the ring.
    pub fn with_uring<T>(&self, ask: impl FnOnce(&IoUring) -> T) -> T {
        self.0.with_uring(ask)
    }
}

#[cfg(test)]
impl Ring {
    /// One that no loop drives.
    pub fn alone() -> Self {
        Self(Rc::new(Driver::new().unwrap()))
    }

    /// Submits, and takes the completions; waits no longer than until an instant.
    pub fn gather(&self, until: std::time::Instant) -> Vec<cqueue::Entry> {
        let mut batch = self.0.gather(true, Some(until)).unwrap();
        batch.retain(|entry| entry.user_data() & ENGINE != 0);
        batch
    }
}

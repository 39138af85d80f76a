//! One operation in the ring, from its start to its completion, as a future.

use std::collections::VecDeque;
use std::future::Future;
use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::squeue;
use socket2::SockAddr;

use super::driver::{self, Driver};

/// What belongs to an operation until it has completed.
#[derive(Debug)]
pub(super) enum Held {
    /// The kernel reads or writes them.
    Bytes(Vec<u8>),
    Address(#[expect(dead_code, reason = "the kernel reads it")] Box<SockAddr>),
    /// What a multishot accept has brought so far.
    Accepted(VecDeque<std::io::Result<OwnedFd>>),
}

/// An operation in the driver's keeping until the kernel is done with it, whatever becomes of its future.
#[derive(Debug)]
pub(super) struct Slot {
    pub held: Held,
    pub state: State,
    pub waker: Option<Waker>,
    /// Tells apart the operations that have this place one after the other.
    pub generation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Pending,
    /// With the result as the kernel gives it: negative for an error.
    Completed(i32),
    /// Its future was dropped; the kernel may not be done yet.
    Abandoned,
}

/// A started operation. Dropping it cancels it.
#[derive(Debug)]
pub(super) struct Operation<'fd> {
    driver: Rc<Driver>,
    /// `None` once the result was taken.
    index: Option<usize>,
    fd: PhantomData<BorrowedFd<'fd>>,
}

impl Slot {
    /// Takes note of who waits.
    pub fn wake(&mut self, waker: &Waker) {
        if !self.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
    }
}

impl<'fd> Operation<'fd> {
    /// # Safety
    /// `entry` works on `fd`, and points to nothing but what `held` keeps on the heap.
    pub unsafe fn start(_fd: BorrowedFd<'fd>, entry: squeue::Entry, held: Held) -> Self {
        let driver = driver::current();
        // SAFETY: the slot keeps `held` until the completion, and our drop submits before the borrow of `fd` ends.
        let index = unsafe { driver.start(entry, held) };
        Self { driver, index: Some(index), fd: PhantomData }
    }
}

impl Future for Operation<'_> {
    type Output = (i32, Held);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let index = self.index.expect("not polled again after it completed");
        let done = self.driver.with_slots(|slots| match slots[index].state {
            State::Completed(result) => Some((result, slots.remove(index).held)),
            _ => {
                slots[index].wake(context.waker());
                None
            }
        });
        match done {
            None => Poll::Pending,
            Some(done) => {
                self.index = None;
                Poll::Ready(done)
            }
        }
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        if let Some(index) = self.index {
            self.driver.abandon(index);
        }
    }
}

/// The kernel's way to give a result, as Rust's.
pub(super) fn result(raw: i32) -> std::io::Result<usize> {
    usize::try_from(raw).map_err(|_| std::io::Error::from_raw_os_error(-raw))
}

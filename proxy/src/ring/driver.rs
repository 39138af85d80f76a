//! The loop of a thread: run what is ready, then submit and wait in one system call.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use slab::Slab;
use tokio::task::LocalSet;

use super::accept;
use super::bell::Bell;
use super::engine::{ENGINE, Engine};
use super::operation::{Held, Slot, State};
use super::time::Timers;

/// Entries of the submission queue. More operations than this are submitted in turns.
const SUBMISSIONS: u32 = 1024;
const COMPLETIONS: u32 = 8192;

/// How often tasks are run again, because they woke each other, before the ring is looked at.
const ROUNDS: usize = 8;

/// How often what the kernel does not take at once is submitted again. It refuses for want of memory only.
const TRIES: usize = 1000;

/// `user_data` of what is neither an operation nor an engine's. An operation's is its generation above its place.
const BELL: u64 = ENGINE - 1;
const CANCEL: u64 = ENGINE - 2;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Driver>>> = const { RefCell::new(None) };
}

/// A thread's ring and what waits for it.
pub(super) struct Driver {
    uring: RefCell<IoUring>,
    slots: RefCell<Slab<Slot>>,
    generation: Cell<u32>,
    pub timers: RefCell<Timers>,
    bell: Arc<Bell>,
    /// Where the read of the bell goes.
    rung: Box<UnsafeCell<u64>>,
    /// Completions to pass on with the next turn.
    batch: RefCell<Vec<cqueue::Entry>>,
    /// Whose completions have [`ENGINE`] set.
    engine: RefCell<Option<Weak<RefCell<dyn Engine>>>>,
}

/// The driver of this thread.
pub(super) fn current() -> Rc<Driver> {
    CURRENT.with_borrow(|current| current.clone()).expect("operations and timers are used within ring::block_on")
}

/// Runs `future` to its end, with the tasks it spawns. An error is one of setting up the ring.
///
/// # Panics
/// When the ring fails later: nothing on this thread could go on.
pub fn block_on<T: 'static>(future: impl Future<Output = T> + 'static) -> io::Result<T> {
    let driver = Rc::new(Driver::new()?);
    let _current = Current::set(driver.clone());
    let tasks = LocalSet::new();
    let mut main = tasks.spawn_local(future);
    let waker = Waker::from(driver.bell.clone());
    let mut context = Context::from_waker(&waker);
    driver.run(tasks, &mut context, || main.is_finished());
    driver.finish();
    match pin!(&mut main).poll(&mut context) {
        Poll::Ready(Ok(output)) => Ok(output),
        Poll::Ready(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        Poll::Pending => unreachable!("it is finished"),
    }
}

/// An io_uring with everything the kernel has: deferred task work (6.1) spares interrupts of a thread that is busy anyway.
fn build() -> io::Result<IoUring> {
    let newest = IoUring::builder()
        .setup_cqsize(COMPLETIONS)
        .setup_clamp()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(SUBMISSIONS);
    match newest {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::builder().setup_cqsize(COMPLETIONS).setup_clamp().build(SUBMISSIONS)
        }
        built => built,
    }
}

/// Makes a driver this thread's, until dropped.
struct Current;

impl Current {
    fn set(driver: Rc<Driver>) -> Self {
        let before = CURRENT.replace(Some(driver));
        assert!(before.is_none(), "one ring a thread");
        Self
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

// === impl Driver ===

impl Driver {
    pub fn new() -> io::Result<Self> {
        let driver = Self {
            uring: RefCell::new(build()?),
            slots: RefCell::default(),
            generation: Cell::default(),
            timers: RefCell::default(),
            bell: Bell::new()?,
            rung: Box::default(),
            batch: RefCell::default(),
            engine: RefCell::default(),
        };
        driver.listen_for_bell();
        Ok(driver)
    }

    /// Runs the tasks until the first of them is over, then drops the rest, which cancels their operations.
    fn run(&self, tasks: LocalSet, context: &mut Context<'_>, over: impl Fn() -> bool) {
        let mut tasks = pin!(tasks);
        loop {
            for _ in 0..ROUNDS {
                if !self.bell.has_rung() {
                    break;
                }
                // Ready means that no task is left, and then the first is over.
                let _ = tasks.as_mut().poll(context);
            }
            if over() {
                return;
            }
            let wait = self.bell.may_wait();
            self.turn(wait).expect("the ring of a thread works as long as the thread");
        }
    }

    pub fn with_slots<T>(&self, change: impl FnOnce(&mut Slab<Slot>) -> T) -> T {
        change(&mut self.slots.borrow_mut())
    }

    /// # Safety
    /// `entry` points to nothing but what `held` keeps on the heap, and its descriptor stays open until it is submitted.
    pub unsafe fn start(&self, entry: squeue::Entry, held: Held) -> usize {
        let generation = self.generation.get();
        self.generation.set(generation.wrapping_add(1) & 0x7fff_ffff);
        let slot = Slot { held, state: State::Pending, waker: None, generation };
        let index = self.slots.borrow_mut().insert(slot);
        // SAFETY: the caller's promise.
        unsafe { self.restart(entry, index) };
        index
    }

    /// # Safety
    /// As [`Self::start`], with what the slot holds.
    pub unsafe fn restart(&self, entry: squeue::Entry, index: usize) {
        let user_data = self.user_data(index);
        // SAFETY: the caller's promise.
        unsafe { self.push(entry.user_data(user_data)) };
    }

    fn user_data(&self, index: usize) -> u64 {
        u64::from(self.slots.borrow()[index].generation) << 32 | index as u64
    }

    /// Nobody waits for this operation any more.
    pub fn abandon(&self, index: usize) {
        let pending = self.with_slots(|slots| match slots[index].state {
            State::Pending => {
                slots[index].state = State::Abandoned;
                slots[index].waker.take();
                true
            }
            _ => {
                slots.remove(index);
                false
            }
        });
        if pending {
            self.cancel(index);
        }
    }

    /// Its completion comes soon. Submitted at once: the descriptor may be closed next, and another one get its number.
    pub fn cancel(&self, index: usize) {
        let cancel = opcode::AsyncCancel::new(self.user_data(index)).build();
        // SAFETY: a cancel points nowhere.
        unsafe { self.push(cancel.user_data(CANCEL)) };
        self.submit();
    }

    pub fn set_engine(&self, engine: Weak<RefCell<dyn Engine>>) {
        self.engine.replace(Some(engine));
    }

    pub fn with_uring<T>(&self, ask: impl FnOnce(&IoUring) -> T) -> T {
        ask(&self.uring.borrow())
    }

    /// Submits, waits unless told otherwise or until the next timer, and passes on what has completed.
    fn turn(&self, wait: bool) -> io::Result<()> {
        let until = self.timers.borrow().next();
        let gathered = self.gather(wait, until);
        // Before anything is passed on: what this thread wakes itself takes no system call.
        self.bell.awake();
        let mut batch = gathered?;
        batch.drain(..).for_each(|entry| self.completed(&entry));
        let mut kept = self.batch.borrow_mut();
        if kept.is_empty() {
            // For its room.
            *kept = batch;
        }
        drop(kept);
        let due = self.timers.borrow_mut().take_due(Instant::now());
        due.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Submits, and takes the completions. Waits for one, if told to, until an instant.
    pub fn gather(&self, wait: bool, until: Option<Instant>) -> io::Result<Vec<cqueue::Entry>> {
        let mut batch = self.batch.take();
        let wait = wait && batch.is_empty();
        let mut uring = self.uring.borrow_mut();
        let submitted = match until.filter(|_| wait) {
            Some(until) => {
                let timespec = types::Timespec::from(until.saturating_duration_since(Instant::now()));
                uring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&timespec))
            }
            None => uring.submit_and_wait(usize::from(wait)),
        };
        match submitted {
            Ok(_) => {}
            // It is `until`.
            Err(error) if error.raw_os_error() == Some(libc::ETIME) => {}
            Err(error) if may_pass(&error) => {}
            Err(error) => return Err(error),
        }
        batch.extend(uring.completion());
        Ok(batch)
    }

    fn completed(&self, entry: &cqueue::Entry) {
        let index = match entry.user_data() {
            BELL => return self.listen_for_bell(),
            CANCEL => return,
            user_data if user_data & ENGINE != 0 => {
                let engine = self.engine.borrow().as_ref().and_then(Weak::upgrade);
                if let Some(engine) = engine {
                    engine.borrow_mut().completed(entry);
                }
                return;
            }
            user_data => (user_data & 0xffff_ffff) as usize,
        };
        let waker = self.with_slots(|slots| {
            let slot = &mut slots[index];
            if let Held::Accepted(accepted) = &mut slot.held {
                accept::completed(accepted, entry);
            }
            let more = cqueue::more(entry.flags());
            match slot.state {
                State::Abandoned if !more => {
                    slots.remove(index);
                    None
                }
                State::Pending => {
                    if !more {
                        slot.state = State::Completed(entry.result());
                    }
                    slot.waker.take()
                }
                _ => None,
            }
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn listen_for_bell(&self) {
        let read = opcode::Read::new(types::Fd(self.bell.fd()), self.rung.get().cast(), 8).build();
        // SAFETY: `rung` and the bell live as long as the ring.
        unsafe { self.push(read.user_data(BELL)) };
    }

    /// # Safety
    /// What `entry` points to lives until its completion, and its descriptor stays open until it is submitted.
    pub unsafe fn push(&self, entry: squeue::Entry) {
        // SAFETY: the caller's promise.
        while unsafe { self.uring.borrow_mut().submission().push(&entry) }.is_err() {
            self.submit();
        }
    }

    /// Submits everything, without waiting.
    fn submit(&self) {
        let mut uring = self.uring.borrow_mut();
        for _ in 0..TRIES {
            match uring.submit() {
                Ok(_) => {}
                Err(error) if may_pass(&error) => {}
                Err(error) => panic!("io_uring: {error}"),
            }
            if uring.submission().is_empty() {
                return;
            }
            self.batch.borrow_mut().extend(uring.completion());
        }
        panic!("io_uring takes no submissions");
    }

    /// Waits until the kernel is done with everything but the bell.
    fn finish(&self) {
        while !self.slots.borrow().is_empty() && self.turn(true).is_ok() {}
    }
}

/// EBUSY: completions must be taken first. EAGAIN: the kernel was out of memory for a request.
fn may_pass(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("slots", &self.slots).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::super::{receive, sleep, spawn, timeout};
    use super::*;

    #[test]
    fn what_was_dropped_half_way_is_cancelled_and_takes_no_bytes() {
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let read = block_on(async move {
            for _ in 0..3 {
                let late = timeout(Duration::from_millis(5), receive(theirs.as_fd(), Vec::new(), 64)).await;
                assert!(late.is_none(), "nothing was sent");
            }
            ours.write_all(b"late").unwrap();
            let (result, bytes) = receive(theirs.as_fd(), b"so ".to_vec(), 64).await;
            assert_eq!(result.unwrap(), 4);
            bytes
        });
        assert_eq!(read.unwrap(), b"so late");
    }

    #[test]
    fn a_ring_ends_with_operations_in_flight() {
        block_on(async {
            spawn(async {
                let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
                receive(theirs.as_fd(), Vec::new(), 64).await.0.unwrap();
            });
            sleep(Duration::from_millis(5)).await;
        })
        .unwrap();
    }

    #[test]
    fn another_thread_wakes_one_that_waits() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            sender.send(7).unwrap();
        });
        assert_eq!(block_on(receiver).unwrap().unwrap(), 7);
        other.join().unwrap();
    }

    #[test]
    fn what_a_thread_wakes_itself_does_not_ring() {
        let rung = block_on(async {
            for _ in 0..3 {
                sleep(Duration::from_millis(1)).await;
                let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
                let late = std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(5));
                    ours.write_all(b"late").unwrap();
                });
                receive(theirs.as_fd(), Vec::new(), 64).await.0.unwrap();
                late.join().unwrap();
            }
            sleep(Duration::from_millis(1)).await;
            // SAFETY: the kernel writes there only while the ring waits, and this thread is here.
            unsafe { *current().rung.get() }
        });
        assert_eq!(rung.unwrap(), 0);
    }

    #[test]
    fn more_operations_than_the_queue_holds_all_complete() {
        const MANY: usize = 3 * SUBMISSIONS as usize;
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let theirs = Rc::new(theirs);
        // One thread of ours sends while the ring waits with all of them.
        let sending = std::thread::spawn(move || (0..MANY).for_each(|_| assert_eq!(ours.send(b"x").unwrap(), 1)));
        let read = block_on(async move {
            let tasks: Vec<_> = (0..MANY)
                .map(|_| {
                    let theirs = theirs.clone();
                    spawn(async move { receive(theirs.as_fd(), Vec::new(), 16).await.0.unwrap() })
                })
                .collect();
            let mut read = 0;
            for task in tasks {
                read += task.await.unwrap();
            }
            read
        });
        assert_eq!(read.unwrap(), MANY);
        sending.join().unwrap();
    }
}

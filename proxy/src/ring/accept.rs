//! Accept, over and over: one operation brings a connection after the other (multishot, Linux 5.19).

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::task::Poll;

use io_uring::{cqueue, opcode, squeue, types};

use super::driver::{self, Driver};
use super::operation::{Held, State};

/// The connections of a listening socket, as they come. They are blocking, which is what operations in the ring need.
#[derive(Debug)]
pub struct Accepts<'fd> {
    driver: Rc<Driver>,
    socket: BorrowedFd<'fd>,
    index: usize,
    /// The kernel cannot do it, and each connection takes an operation.
    single: Cell<bool>,
    stopped: Cell<bool>,
}

impl<'fd> Accepts<'fd> {
    pub fn new(socket: BorrowedFd<'fd>) -> Self {
        let driver = driver::current();
        let single = Cell::new(false);
        // SAFETY: the entry points nowhere, and our drop submits before the borrow of the socket ends.
        let index = unsafe { driver.start(entry(socket, &single), Held::Accepted(VecDeque::new())) };
        Self { driver, socket, index, single, stopped: Cell::new(false) }
    }

    /// The next connection; `None` after [`Self::stop`], once all that were accepted have been given out.
    pub async fn next(&self) -> Option<io::Result<OwnedFd>> {
        std::future::poll_fn(|context| {
            let (first, state) = self.driver.with_slots(|slots| {
                let slot = &mut slots[self.index];
                let Held::Accepted(accepted) = &mut slot.held else { unreachable!("it was started with this") };
                let first = accepted.pop_front();
                if first.is_none() {
                    slot.wake(context.waker());
                }
                (first, slot.state)
            });
            match (first, state) {
                // A kernel before multishot accept (5.19) knows no such flag.
                (Some(Err(error)), State::Completed(_))
                    if error.raw_os_error() == Some(libc::EINVAL) && !self.single.replace(true) =>
                {
                    self.restart();
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
                (Some(Err(error)), State::Completed(_)) if error.raw_os_error() == Some(libc::ECANCELED) => {
                    Poll::Ready(None)
                }
                (Some(first), _) => Poll::Ready(Some(first)),
                (None, State::Completed(_)) if self.stopped.get() => Poll::Ready(None),
                (None, State::Completed(_)) => {
                    self.restart();
                    Poll::Pending
                }
                (None, _) => Poll::Pending,
            }
        })
        .await
    }

    /// Accepts no more. What waits in the socket's queue stays there.
    pub fn stop(&self) {
        if !self.stopped.replace(true) && self.is_pending() {
            self.driver.cancel(self.index);
        }
    }

    fn is_pending(&self) -> bool {
        self.driver.with_slots(|slots| slots[self.index].state == State::Pending)
    }

    fn restart(&self) {
        self.driver.with_slots(|slots| slots[self.index].state = State::Pending);
        // SAFETY: as in `new`; the slot is kept until our drop.
        unsafe { self.driver.restart(entry(self.socket, &self.single), self.index) };
    }
}

impl Drop for Accepts<'_> {
    /// Connections that nobody took are closed.
    fn drop(&mut self) {
        self.driver.abandon(self.index);
    }
}

fn entry(socket: BorrowedFd<'_>, single: &Cell<bool>) -> squeue::Entry {
    let fd = types::Fd(socket.as_raw_fd());
    let flags = libc::SOCK_CLOEXEC;
    match single.get() {
        false => opcode::AcceptMulti::new(fd).flags(flags).build(),
        true => opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut()).flags(flags).build(),
    }
}

/// Takes note of a completion.
pub(super) fn completed(accepted: &mut VecDeque<io::Result<OwnedFd>>, entry: &cqueue::Entry) {
    accepted.push_back(match entry.result() {
        // SAFETY: the kernel has just made it for us.
        fd @ 0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        error => Err(io::Error::from_raw_os_error(-error)),
    });
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::super::block_on;
    use super::*;

    #[test]
    fn a_stop_loses_nobody() {
        block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let accepts = Accepts::new(listener.as_fd());
            let _clients: Vec<_> = (0..5).map(|_| TcpStream::connect(address).unwrap()).collect();
            let _first = accepts.next().await.unwrap().unwrap();
            accepts.stop();
            let mut given = 1;
            while let Some(connection) = accepts.next().await {
                connection.unwrap();
                given += 1;
            }
            listener.set_nonblocking(true).unwrap();
            let waiting = listener.incoming().map_while(Result::ok).count();
            assert_eq!(given + waiting, 5);
        })
        .unwrap();
    }

    #[test]
    fn one_operation_a_connection_where_the_kernel_has_no_other() {
        block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let accepts = Accepts::new(listener.as_fd());
            accepts.single.set(true);
            for _ in 0..5 {
                let _client = TcpStream::connect(address).unwrap();
                accepts.next().await.unwrap().unwrap();
            }
        })
        .unwrap();
    }
}

//! Connect.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{opcode, types};
use socket2::SockAddr;

use super::operation::{Held, Operation, result};

/// Ready when the peer has answered, or the kernel has given up.
pub async fn connect(socket: BorrowedFd<'_>, address: SockAddr) -> io::Result<()> {
    let address = Box::new(address);
    let entry = opcode::Connect::new(types::Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.len()).build();
    // SAFETY: the entry points to the address, which stays where it is in its box.
    let (raw, _) = unsafe { Operation::start(socket, entry, Held::Address(address)) }.await;
    result(raw).map(drop)
}

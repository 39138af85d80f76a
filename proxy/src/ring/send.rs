//! Send.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{opcode, types};

use super::operation::{Held, Operation, result};

/// Sends what stands in `bytes` from `at` on, or a part of it; waits for room if there is none.
pub async fn send(socket: BorrowedFd<'_>, bytes: Vec<u8>, at: usize) -> (io::Result<usize>, Vec<u8>) {
    let rest = &bytes[at..];
    let length = u32::try_from(rest.len()).unwrap_or(u32::MAX);
    let entry = opcode::Send::new(types::Fd(socket.as_raw_fd()), rest.as_ptr(), length)
        .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
        .build();
    // SAFETY: the entry points into the vector's heap memory, which nobody touches while it is held.
    let (raw, held) = unsafe { Operation::start(socket, entry, Held::Bytes(bytes)) }.await;
    let Held::Bytes(bytes) = held else { unreachable!("it was started with bytes") };
    (result(raw), bytes)
}

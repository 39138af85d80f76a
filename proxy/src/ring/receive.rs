//! Receive.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{opcode, types};

use super::operation::{Held, Operation, result};

/// Waits for bytes and appends at most `room` of them to `buffer`; 0 is the end of the stream. The socket must be
/// blocking: for others io_uring answers EAGAIN instead of waiting.
pub async fn receive(socket: BorrowedFd<'_>, mut buffer: Vec<u8>, room: usize) -> (io::Result<usize>, Vec<u8>) {
    buffer.reserve(room);
    let spare = buffer.spare_capacity_mut();
    let length = spare.len().min(room) as u32;
    let entry = opcode::Recv::new(types::Fd(socket.as_raw_fd()), spare.as_mut_ptr().cast(), length).build();
    // SAFETY: the entry points into the buffer's heap memory, which nobody touches while it is held.
    let (raw, held) = unsafe { Operation::start(socket, entry, Held::Bytes(buffer)) }.await;
    let Held::Bytes(mut buffer) = held else { unreachable!("it was started with bytes") };
    let received = result(raw);
    if let Ok(received) = received {
        // SAFETY: the kernel has written that many bytes behind those that were there.
        unsafe { buffer.set_len(buffer.len() + received) };
    }
    (received, buffer)
}

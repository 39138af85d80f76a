//! The system calls on a session's sockets. All of them return at once.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use crate::splice::Why;

/// tcp(7), linux/tcp.h: TCP_ESTABLISHED.
const ESTABLISHED: u8 = 1;
/// linux/tcp.h; longer names the kernel does not take.
const ULP_NAME: usize = 16;

/// A TCP socket that somebody else keeps open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket(pub RawFd);

impl Socket {
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: whoever submitted the job keeps the descriptor open until it has ended.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }

    /// Takes the socket's lock: the program has judged all that the kernel had received by then.
    pub fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the buffer lives through the call and its length is its own.
        let n = unsafe { libc::recv(self.0, into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the buffer lives through the call and its length is its own.
        let n = unsafe { libc::send(self.0, bytes.as_ptr().cast(), bytes.len(), flags) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Sends FIN after what is queued. ENOTCONN: it was reset, which is reported by itself.
    pub fn end_of_stream(&self) {
        // SAFETY: plain system call.
        unsafe { libc::shutdown(self.0, libc::SHUT_WR) };
    }

    /// Whether the connection has failed: reset by its peer, or timed out.
    pub fn has_failed(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.0, events: 0, revents: 0 };
        // SAFETY: `poll` is one valid pollfd for the length of the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
        ready > 0 && poll.revents & libc::POLLERR != 0
    }

    /// Bytes received that nobody has read. Of no use once the socket is joined.
    pub fn unread(&self) -> io::Result<usize> {
        self.count(libc::FIONREAD)
    }

    /// Bytes that were ever written to the socket, those of the kernel's worker too: at least so many, and exactly if
    /// nothing was acknowledged between its two system calls.
    pub fn written(&self) -> io::Result<u64> {
        let acked = self.info()?.tcpi_bytes_acked;
        // SIOCOUTQ: written and not acknowledged.
        Ok(acked + self.count(libc::TIOCOUTQ)? as u64)
    }

    /// The exact number, at a moment when nobody writes.
    pub fn written_exactly(&self) -> io::Result<u64> {
        loop {
            let acked = self.info()?.tcpi_bytes_acked;
            let written = acked + self.count(libc::TIOCOUTQ)? as u64;
            if self.info()?.tcpi_bytes_acked == acked {
                return Ok(written);
            }
        }
    }

    /// Waits until nobody holds the socket's lock.
    pub fn pass_the_lock(&self) {
        let _ = self.info();
    }

    pub fn cookie(&self) -> io::Result<u64> {
        self.option(libc::SOL_SOCKET, libc::SO_COOKIE, 0u64).map(|(cookie, _)| cookie)
    }

    /// Whether the kernel would join it, as far as can be told without trying.
    pub fn check(&self) -> io::Result<Result<(), Why>> {
        // An MPTCP listener accepts sockets of another protocol, and has the subflows for an upper layer of its own.
        let (protocol, _) = self.option(libc::SOL_SOCKET, libc::SO_PROTOCOL, 0i32)?;
        let plain = protocol == libc::IPPROTO_TCP && {
            let (_, ulp_length) = self.option(libc::IPPROTO_TCP, libc::TCP_ULP, [0u8; ULP_NAME])?;
            ulp_length == 0
        };
        Ok(match self.info()?.tcpi_state {
            _ if !plain => Err(Why::NotPlain),
            ESTABLISHED => Ok(()),
            _ => Err(Why::Ended),
        })
    }

    fn info(&self) -> io::Result<TcpInfo> {
        self.option(libc::IPPROTO_TCP, libc::TCP_INFO, TcpInfo::default()).map(|(info, _)| info)
    }

    /// What the kernel wrote over `start`, and how long that was.
    fn option<T: Copy>(&self, level: i32, name: i32, start: T) -> io::Result<(T, usize)> {
        let (mut value, mut length) = (start, size_of::<T>() as libc::socklen_t);
        // SAFETY: the kernel writes at most `length` bytes to `value`, which is plain integers (all callers' are).
        if unsafe { libc::getsockopt(self.0, level, name, (&raw mut value).cast(), &raw mut length) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((value, length as usize))
    }

    fn count(&self, request: libc::Ioctl) -> io::Result<usize> {
        let mut count: libc::c_int = 0;
        // SAFETY: both requests write one int.
        if unsafe { libc::ioctl(self.0, request, &raw mut count) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(count.max(0) as usize)
    }
}

/// The start of linux/tcp.h's `struct tcp_info`, as far as it is of use here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct TcpInfo {
    tcpi_state: u8,
    bytes: [u8; 7],
    words: [u32; 24],
    tcpi_pacing_rate: u64,
    tcpi_max_pacing_rate: u64,
    tcpi_bytes_acked: u64,
}

const _: () = assert!(std::mem::offset_of!(TcpInfo, tcpi_bytes_acked) == 120);

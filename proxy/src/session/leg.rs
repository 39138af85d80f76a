//! One side of a session: a connected TCP socket, its options and its reads and writes through the ring.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

use crate::config;

/// Room a read leaves behind what is held already, in bytes.
const READ_ROOM: usize = 2048;

pub struct Leg {
    stream: TcpStream,
    pub peer: SocketAddr,
}

impl Leg {
    /// `stream` must be blocking: on a non-blocking socket io_uring answers EAGAIN instead of waiting.
    pub fn new(stream: TcpStream, peer: SocketAddr) -> Self {
        Self { stream, peer }
    }

    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    fn socket(&self) -> BorrowedFd<'_> {
        // SAFETY: `self.stream` keeps the descriptor open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.fd()) }
    }

    /// TCP_NODELAY, keepalive and TCP_USER_TIMEOUT.
    pub fn tune(&self, tcp: &config::Tcp) -> io::Result<()> {
        tune(SockRef::from(&self.socket()), tcp)
    }

    pub fn local_addr(&self) -> Option<SocketAddr> {
        SockRef::from(&self.socket()).local_addr().ok()?.as_socket()
    }

    /// Appends what one read yields to `buffer`; 0 is the end of the stream.
    pub async fn read_more(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let mut owned = std::mem::take(buffer);
        owned.reserve(READ_ROOM);
        let (result, slice) = self.stream.read(owned.slice_end()).await;
        *buffer = slice.into_inner();
        result
    }

    /// Writes all of `bytes`.
    pub async fn write_all(&self, bytes: Vec<u8>) -> io::Result<()> {
        self.stream.write_all(bytes).await.0
    }

    /// Ends both directions, which completes every operation in flight.
    pub fn shut_down(&self) {
        // ENOTCONN only: the peer was faster, and then nothing is in flight.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// The next close sends RST and drops what is queued, as a cut must.
    pub fn reset_on_close(&self) {
        if let Err(error) = SockRef::from(&self.socket()).set_linger(Some(Duration::ZERO)) {
            tracing::debug!(peer = %self.peer, "SO_LINGER: {error}");
        }
    }

    /// Whether the peer has closed or reset its side. Does not wait.
    pub fn hung_up(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.fd(), events: libc::POLLRDHUP, revents: 0 };
        // SAFETY: `poll` is one valid pollfd for the length of the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
        ready > 0 && poll.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
    }
}

/// Socket options of either leg; zero durations mean no keepalive and the kernel's own user timeout.
pub fn tune(socket: SockRef<'_>, tcp: &config::Tcp) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    if tcp.keepalive_idle.is_zero() {
        socket.set_keepalive(false)?;
    } else {
        let keepalive = TcpKeepalive::new()
            .with_time(tcp.keepalive_idle)
            .with_interval(tcp.keepalive_interval)
            .with_retries(tcp.keepalive_count);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    // Zero is the kernel's own.
    socket.set_tcp_user_timeout(Some(tcp.user_timeout))
}

/// The spare capacity behind what a buffer holds, as the target of a read.
trait SliceEnd: BoundedBuf + Sized {
    fn slice_end(self) -> tokio_uring::buf::Slice<Self::Buf>;
}

impl SliceEnd for Vec<u8> {
    fn slice_end(self) -> tokio_uring::buf::Slice<Vec<u8>> {
        let held = self.len();
        self.slice(held..)
    }
}

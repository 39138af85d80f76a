//! One side of a session: a connected TCP socket, its options and its reads and writes.

use std::cell::OnceCell;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use socket2::{SockRef, TcpKeepalive};

use crate::splice::sockets::{self, TcpInfo};
use crate::{config, ring};

/// Room a read leaves behind what is held already, in bytes.
const READ_ROOM: usize = 2048;

/// What TCP_MAXSEG takes at most (include/net/tcp.h, MAX_TCP_WINDOW), and what every host takes (RFC 9293, section 3.7.1):
/// for one that claims to take less, no backend shall send so many more.
const SEGMENTS: RangeInclusive<u32> = 536..=32_767;

pub struct Leg {
    socket: OwnedFd,
    pub peer: SocketAddr,
    /// What TCP_INFO said when it was first asked.
    info: OnceCell<Option<TcpInfo>>,
}

impl Leg {
    /// `socket` must be blocking: on a non-blocking one io_uring answers EAGAIN instead of waiting.
    pub fn new(socket: OwnedFd, peer: SocketAddr) -> Self {
        Self { socket, peer, info: OnceCell::new() }
    }

    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// TCP_NODELAY, keepalive and TCP_USER_TIMEOUT.
    pub fn tune(&self, tcp: &config::Tcp) -> io::Result<()> {
        tune(SockRef::from(&self.socket), tcp)
    }

    /// The largest segment the peer takes from us, options included; what TCP_MAXSEG wants to hear. `None`: it would not
    /// (on loopback it may be more), or it is not worth it.
    pub fn max_segment(&self) -> Option<u32> {
        self.first_info().map(|info| info.send_mss + info.options_bytes()).filter(|most| SEGMENTS.contains(most))
    }

    /// The most bytes that leave to the peer in a segment with room left. If the way has become narrower since, a hand-off
    /// finds out.
    pub fn less_than_a_segment(&self) -> usize {
        self.first_info().map_or(0, |info| info.send_mss.saturating_sub(1) as usize)
    }

    fn first_info(&self) -> Option<TcpInfo> {
        *self.info.get_or_init(|| TcpInfo::of(self.socket()).ok())
    }

    pub fn local_addr(&self) -> Option<SocketAddr> {
        SockRef::from(&self.socket).local_addr().ok()?.as_socket()
    }

    /// Appends what one read yields to `buffer`; 0 is the end of the stream.
    pub async fn read_more(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let (received, bytes) = ring::receive(self.socket(), std::mem::take(buffer), READ_ROOM).await;
        *buffer = bytes;
        received
    }

    /// The same if something is there already; `None` if not. Does not wait.
    pub fn read_now(&self, buffer: &mut Vec<u8>) -> Option<io::Result<usize>> {
        buffer.reserve(READ_ROOM);
        let spare = buffer.spare_capacity_mut();
        match SockRef::from(&self.socket).recv_with_flags(spare, libc::MSG_DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Ok(received) => {
                // SAFETY: the kernel has written that many bytes behind those that were there.
                unsafe { buffer.set_len(buffer.len() + received) };
                Some(Ok(received))
            }
            error => Some(error),
        }
    }

    /// Writes all of `bytes`. The ring is for what the socket does not take at once.
    pub async fn write_all(&self, bytes: Vec<u8>) -> io::Result<()> {
        let now = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        let mut written = match SockRef::from(&self.socket).send_with_flags(&bytes, now) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            sent => sent?,
        };
        let mut bytes = bytes;
        while written < bytes.len() {
            let sent;
            (sent, bytes) = ring::send(self.socket(), bytes, written).await;
            written += sent?;
        }
        Ok(())
    }

    /// Ends both directions, which completes every operation in flight.
    pub fn shut_down(&self) {
        // ENOTCONN only: the peer was faster, and then nothing is in flight.
        let _ = SockRef::from(&self.socket).shutdown(Shutdown::Both);
    }

    /// The next close sends RST and drops what is queued, as a cut must.
    pub fn reset_on_close(&self) {
        if let Err(error) = sockets::close_by_reset(self.socket()) {
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
    if tcp.keepalive_idle.is_zero() {
        socket.set_keepalive(false)?;
    }
    if tcp.user_timeout.is_zero() {
        // Which is the kernel's own.
        socket.set_tcp_user_timeout(Some(tcp.user_timeout))?;
    }
    tune_new(socket, tcp)
}

/// The same for a socket that nobody has set anything of yet.
pub fn tune_new(socket: SockRef<'_>, tcp: &config::Tcp) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    if !tcp.keepalive_idle.is_zero() {
        let keepalive = TcpKeepalive::new()
            .with_time(tcp.keepalive_idle)
            .with_interval(tcp.keepalive_interval)
            .with_retries(tcp.keepalive_count);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    if !tcp.user_timeout.is_zero() {
        socket.set_tcp_user_timeout(Some(tcp.user_timeout))?;
    }
    Ok(())
}

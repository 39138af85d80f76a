//! What the hand-off reads from and does to the kernel's two sockets of a session: their numbers (TCP_REPAIR), their
//! options (TCP_INFO), their clocks, and an end without a packet.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use socket2::SockRef;

/// linux/tcp.h
const TCP_REPAIR_ON: libc::c_int = 1;
/// Off with a window probe: an ACK of the number before the next, which every peer answers.
const TCP_REPAIR_OFF: libc::c_int = 0;
/// Off without the window probe that 0 would send.
const TCP_REPAIR_OFF_NO_WP: libc::c_int = -1;
const TCP_RECV_QUEUE: libc::c_int = 1;
const TCP_SEND_QUEUE: libc::c_int = 2;

/// include/net/tcp_states.h
const TCP_ESTABLISHED: u8 = 1;

/// `tcpi_options`, linux/tcp.h
const OPT_TIMESTAMPS: u8 = 1;
const OPT_SACK: u8 = 2;
const OPT_ECN: u8 = 8;
const OPT_USEC_TS: u8 = 64;

/// What TCP_INFO says of a socket, as far as a splice depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    pub established: bool,
    pub timestamps: bool,
    pub sack: bool,
    pub ecn: bool,
    /// Timestamps in microseconds (a route's feature since 6.7): another clock than every other peer's.
    pub usec_timestamps: bool,
    /// Of the windows the peer sends.
    pub peer_wscale: u8,
    /// Of the windows we send.
    pub own_wscale: u8,
    /// Largest payload we may send to the peer, timestamps already taken off, in bytes.
    pub send_mss: u32,
    /// The MSS we told the peer: its largest payload, timestamps included, in bytes.
    pub advertised_mss: u32,
    /// Segments the peer has not acknowledged.
    pub unacknowledged: u32,
    pub unsent_bytes: u32,
    /// Bytes the peer last offered.
    pub send_window: u32,
    /// Bytes we last offered; 0 before Linux 6.2.
    pub receive_window: u32,
}

/// What TCP_QUEUE_SEQ says of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// R: the next byte expected from the peer (`rcv_nxt`).
    pub receive: u32,
    /// W: the number of the next byte that will be written (`write_seq`).
    pub write: u32,
}

/// Length of the timestamps option, padded (RFC 7323, appendix A).
const TIMESTAMPS_BYTES: u32 = 12;

impl TcpInfo {
    /// Of the options that every segment carries.
    pub fn options_bytes(&self) -> u32 {
        if self.timestamps { TIMESTAMPS_BYTES } else { 0 }
    }

    pub fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let mut raw = [0u8; 240];
        let filled = get(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut raw)?;
        if filled < 148 {
            return Err(io::Error::other("TCP_INFO is shorter than Linux 4.6's"));
        }
        let word = |at: usize| u32::from_ne_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        let options = raw[5];
        Ok(Self {
            established: raw[0] == TCP_ESTABLISHED,
            timestamps: options & OPT_TIMESTAMPS != 0,
            sack: options & OPT_SACK != 0,
            ecn: options & OPT_ECN != 0,
            usec_timestamps: options & OPT_USEC_TS != 0,
            peer_wscale: raw[6] & 0x0f,
            own_wscale: raw[6] >> 4,
            send_mss: word(16),
            unacknowledged: word(24),
            advertised_mss: word(84),
            unsent_bytes: word(144),
            send_window: word(228),
            receive_window: word(232),
        })
    }
}

/// Puts the socket in repair mode, reads its numbers, and takes it out again. Leaves the receive queue selected, so that
/// [`next_expected`] works without repair mode.
pub fn numbers(socket: BorrowedFd<'_>) -> io::Result<Numbers> {
    set_int(socket, libc::TCP_REPAIR, TCP_REPAIR_ON)?;
    let read = || {
        set_int(socket, libc::TCP_REPAIR_QUEUE, TCP_SEND_QUEUE)?;
        let write = get_u32(socket, libc::TCP_QUEUE_SEQ)?;
        set_int(socket, libc::TCP_REPAIR_QUEUE, TCP_RECV_QUEUE)?;
        Ok(Numbers { receive: get_u32(socket, libc::TCP_QUEUE_SEQ)?, write })
    };
    let numbers = read();
    set_int(socket, libc::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)?;
    // Leaving repair mode clears it, and a socket without it would keep the listener's port from the next process.
    SockRef::from(&socket).set_reuse_address(true)?;
    numbers
}

/// `rcv_nxt` of a socket whose [`numbers`] were read: has anything come since?
pub fn next_expected(socket: BorrowedFd<'_>) -> io::Result<u32> {
    get_u32(socket, libc::TCP_QUEUE_SEQ)
}

/// This kernel's TSval clock on the connection, in milliseconds.
pub fn clock(socket: BorrowedFd<'_>) -> io::Result<u32> {
    get_u32(socket, libc::TCP_TIMESTAMP)
}

/// Has the peer say where it stands, which tells neither side anything new.
pub fn ask(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_int(socket, libc::TCP_REPAIR, TCP_REPAIR_ON)?;
    set_int(socket, libc::TCP_REPAIR, TCP_REPAIR_OFF)?;
    // See [`numbers`].
    SockRef::from(&socket).set_reuse_address(true)
}

/// Has [`clock`] go on from here, to a unit of two. Leaves the receive queue selected as [`numbers`] does.
pub fn set_clock(socket: BorrowedFd<'_>, milliseconds: u32) -> io::Result<()> {
    set_int(socket, libc::TCP_REPAIR, TCP_REPAIR_ON)?;
    // An odd number would stand for a clock in microseconds (net/ipv4/tcp.c, TCP_TIMESTAMP).
    let set = set_int(socket, libc::TCP_REPAIR_QUEUE, TCP_RECV_QUEUE)
        .and_then(|()| set_int(socket, libc::TCP_TIMESTAMP, (milliseconds & !1).cast_signed()));
    set_int(socket, libc::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)?;
    SockRef::from(&socket).set_reuse_address(true)?;
    set
}

/// Acknowledge now what an ACK is delayed for.
pub fn flush_acks(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_int(socket, libc::TCP_QUICKACK, 1)
}

/// Whether a listening socket gives a connection out only with its first bytes. One that stays silent comes about a
/// second later, when the kernel has repeated its SYN-ACK (`TCP_DEFER_ACCEPT` of 1 s).
pub fn defer_accept(socket: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    set_int(socket, libc::TCP_DEFER_ACCEPT, on.into())
}

/// Bytes received and not read yet.
pub fn unread(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int through a valid pointer.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) } < 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(bytes).map_err(io::Error::other)
}

/// The error that waits on the socket (ECONNRESET and the like), which this takes.
pub fn pending_error(socket: BorrowedFd<'_>) -> io::Result<Option<io::Error>> {
    SockRef::from(&socket).take_error()
}

/// From now on every packet for this socket is dropped before TCP sees it. Those that wait in a backlog (RPS, GRO) have
/// passed the program but not this. `drop_all`: [`Kernel::drop_all`].
///
/// [`Kernel::drop_all`]: crate::bpf::Kernel::drop_all
pub fn deafen(socket: BorrowedFd<'_>, drop_all: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the option takes an int, the program's descriptor.
    unsafe { set_raw(socket, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, &drop_all.as_raw_fd()) }
}

/// Takes [`deafen`] back.
pub fn undeafen(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the option ignores its value, which is a valid int.
    unsafe { set_raw(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0i32) }
}

/// What is written from now on stays in the socket, as long as it is less than a segment (and 200 ms: tcp(7), TCP_CORK).
/// Once this process is gone it leaves in any case.
pub fn cork(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_int(socket, libc::TCP_CORK, 1)
}

/// Takes [`cork`] back: what was written leaves.
pub fn uncork(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_int(socket, libc::TCP_CORK, 0)
}

/// The next close(2) sends nothing: no FIN, no RST. Nothing may be written from now on.
pub fn close_silently(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_int(socket, libc::TCP_REPAIR, TCP_REPAIR_ON)
}

/// The next close(2) sends RST and drops what is queued.
pub fn close_by_reset(socket: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))
}

/// Both ends of a socket, as (own, peer).
pub fn addresses(socket: BorrowedFd<'_>) -> io::Result<(SocketAddr, SocketAddr)> {
    let socket = SockRef::from(&socket);
    let inet = |address: socket2::SockAddr| address.as_socket().ok_or_else(|| io::Error::other("not an IP socket"));
    Ok((inet(socket.local_addr()?)?, inet(socket.peer_addr()?)?))
}

fn set_int(socket: BorrowedFd<'_>, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: every TCP option set here takes an int.
    unsafe { set_raw(socket, libc::IPPROTO_TCP, option, &value) }
}

fn get_u32(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<u32> {
    let mut raw = [0; 4];
    get(socket, libc::IPPROTO_TCP, option, &mut raw)?;
    Ok(u32::from_ne_bytes(raw))
}

/// SAFETY: `T` must be what the option takes.
unsafe fn set_raw<T>(socket: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: the value lives through the call and the length is its own.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Returns how much of `into` the kernel has filled.
fn get(socket: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int, into: &mut [u8]) -> io::Result<usize> {
    let mut length = into.len() as libc::socklen_t;
    // SAFETY: the buffer lives through the call and the length is its own.
    let done =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, into.as_mut_ptr().cast(), &raw mut length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(length as usize) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn as_root() {
        // SAFETY: geteuid takes nothing and cannot fail.
        assert_eq!(unsafe { libc::geteuid() }, 0, "TCP_REPAIR needs CAP_NET_ADMIN: run this test as root");
    }

    #[test]
    fn one_sides_write_number_is_what_the_other_expects() {
        as_root();
        let (near, far) = pair();
        (&near).write_all(b"hello").unwrap();
        (&far).read_exact(&mut [0; 5]).unwrap();
        let (a, b) = (numbers(near.as_fd()).unwrap(), numbers(far.as_fd()).unwrap());
        assert_eq!((a.write, a.receive), (b.receive, b.write));
        (&near).write_all(b"more").unwrap();
        (&far).read_exact(&mut [0; 4]).unwrap();
        assert_eq!(next_expected(far.as_fd()).unwrap(), b.receive.wrapping_add(4));
    }

    #[test]
    fn a_clock_that_is_set_goes_on_from_there_and_the_next_number_is_still_told() {
        as_root();
        let (near, far) = pair();
        let expected = numbers(near.as_fd()).unwrap().receive;
        let then = clock(near.as_fd()).unwrap().wrapping_sub(1_000_000) & !1;
        set_clock(near.as_fd(), then).unwrap();
        assert!(clock(near.as_fd()).unwrap().wrapping_sub(then) < 1000);
        assert_eq!(next_expected(near.as_fd()).unwrap(), expected);
        (&far).write_all(b"hello").unwrap();
        (&near).read_exact(&mut [0; 5]).unwrap();
    }

    #[test]
    fn a_silent_close_tells_the_peer_nothing() {
        as_root();
        let (near, far) = pair();
        close_silently(near.as_fd()).unwrap();
        drop(near);
        far.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let nothing = (&far).read(&mut [0; 1]).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_deaf_socket_acknowledges_nothing_until_it_hears_again() {
        as_root();
        let (near, far) = pair();
        let drop_all = crate::bpf::load_drop_all().unwrap();
        deafen(far.as_fd(), drop_all.as_fd()).unwrap();
        (&near).write_all(b"hello").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(unread(far.as_fd()).unwrap(), 0);
        assert_eq!(TcpInfo::of(near.as_fd()).unwrap().unacknowledged, 1);
        undeafen(far.as_fd()).unwrap();
        (&far).read_exact(&mut [0; 5]).unwrap();
    }

    #[test]
    fn a_corked_socket_keeps_what_is_written_until_it_is_uncorked_or_closed() {
        let (near, far) = pair();
        far.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        near.set_nodelay(true).unwrap();
        for uncorks in [true, false] {
            cork(near.as_fd()).unwrap();
            (&near).write_all(b"hello").unwrap();
            let nothing = (&far).read(&mut [0; 5]).unwrap_err();
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
            if uncorks {
                uncork(near.as_fd()).unwrap();
                (&far).read_exact(&mut [0; 5]).unwrap();
            }
        }
        drop(near);
        (&far).read_exact(&mut [0; 5]).unwrap();
    }

    #[test]
    fn both_ends_agree_on_what_they_negotiated() {
        let (near, far) = pair();
        let (a, b) = (TcpInfo::of(near.as_fd()).unwrap(), TcpInfo::of(far.as_fd()).unwrap());
        assert!(a.established && a.timestamps && a.sack);
        assert_eq!((a.peer_wscale, a.own_wscale), (b.own_wscale, b.peer_wscale));
    }
}

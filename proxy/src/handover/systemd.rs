//! systemd's side of it: the notify socket (sd_notify(3)), its store of descriptors (systemd.service(5),
//! `FileDescriptorStoreMax=`), and what it passes at the start (sd_listen_fds(3)).
//!
//! Listening sockets in the store go on listening while the process is restarted: clients wait in their queues.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::OnceLock;

use socket2::Socket;

use super::Inherited;
use super::fds;

/// The first descriptor that systemd passes (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// Longest name of a stored descriptor (`FDNAME_MAX` in systemd's src/basic/fd-util.h).
const LONGEST_NAME: usize = 255;

static NOTIFY: OnceLock<Option<Notify>> = OnceLock::new();

/// Where the service manager listens, if there is one.
#[derive(Debug)]
struct Notify {
    socket: UnixDatagram,
}

/// What the environment said at the start of the process.
pub struct Environment {
    notify: Option<OsString>,
    listen_fds: usize,
    names: Vec<String>,
}

impl Environment {
    /// Takes the variables out of the environment: they are not meant for our children.
    ///
    /// # Safety
    /// No other thread may exist yet: some might read the environment.
    pub unsafe fn take() -> Self {
        let text = |name| std::env::var(name).ok();
        let ours = text("LISTEN_PID").and_then(|pid| pid.parse().ok()) == Some(std::process::id());
        let listen_fds = text("LISTEN_FDS").filter(|_| ours).and_then(|count| count.parse().ok()).unwrap_or(0);
        let names = text("LISTEN_FDNAMES").filter(|_| ours).unwrap_or_default();
        let environment = Self {
            notify: std::env::var_os("NOTIFY_SOCKET"),
            listen_fds,
            names: names.split(':').map(str::to_owned).collect(),
        };
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            // SAFETY: the caller's promise.
            unsafe { std::env::remove_var(name) };
        }
        environment
    }

    /// Makes the notify socket known to [`notify`], and gives what the process begins with.
    pub fn set_up(self) -> Inherited {
        let Self { notify, listen_fds, names } = self;
        let connected = notify.and_then(|path| {
            let known = Notify::connect(&path);
            known.inspect_err(|error| tracing::warn!("NOTIFY_SOCKET {}: {error}", path.display())).ok()
        });
        let _ = NOTIFY.set(connected);
        let mut inherited = Inherited::default();
        for at in 0..listen_fds {
            // SAFETY: LISTEN_PID names us, so these descriptors are ours, and this is done once.
            let socket = unsafe { OwnedFd::from_raw_fd(FIRST + at as RawFd) };
            let name = names.get(at).map_or("", String::as_str);
            match adopt(socket) {
                Ok(socket) => {
                    if let Err(error) = inherited.add(name, socket) {
                        tracing::warn!("LISTEN_FDS: descriptor {name:?} is not used: {error}");
                    }
                }
                Err(error) => tracing::warn!("LISTEN_FDS: descriptor {name:?} is not used: {error}"),
            }
        }
        inherited
    }
}

/// A listening TCP socket.
fn adopt(socket: OwnedFd) -> io::Result<Socket> {
    let socket = Socket::from(socket);
    socket.set_cloexec(true)?;
    if !socket.is_listener()? {
        return Err(io::Error::other("it is no listening socket"));
    }
    // A ring waits only with blocking ones.
    socket.set_nonblocking(false)?;
    Ok(socket)
}

/// `READY=1` and the like, a line each (sd_notify(3)). Without a service manager nothing happens.
pub fn notify(lines: &str) {
    send(lines, &[]);
}

/// `READY=1` is to follow.
pub fn reloading() {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for the length of the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec * 1_000_000 + now.tv_nsec / 1000));
}

/// Whether a service manager keeps what it is given with [`store`].
pub fn keeps_sockets() -> bool {
    NOTIFY.get().is_some_and(Option::is_some)
}

/// Has a listener's sockets kept over a restart.
pub fn store<'a>(listener: &str, sockets: impl Iterator<Item = BorrowedFd<'a>>) {
    let sockets: Vec<_> = sockets.collect();
    for some in sockets.chunks(fds::MOST) {
        send(&format!("FDSTORE=1\nFDNAME={}", name(listener)), some);
    }
}

/// Has them closed.
pub fn forget(listener: &str) {
    send(&format!("FDSTOREREMOVE=1\nFDNAME={}", name(listener)), &[]);
}

fn send(lines: &str, descriptors: &[BorrowedFd<'_>]) {
    if let Some(Some(notify)) = NOTIFY.get()
        && let Err(error) = fds::send(notify.socket.as_fd(), lines.as_bytes(), descriptors)
    {
        tracing::warn!("the service manager was not told {:?}: {error}", lines.lines().next().unwrap_or_default());
    }
}

/// A listener's name as systemd takes it: ASCII that can be printed, without a colon.
fn name(listener: &str) -> String {
    let plain = |c: char| if c.is_ascii_graphic() && c != ':' { c } else { '_' };
    listener.chars().map(plain).take(LONGEST_NAME).collect()
}

impl Notify {
    /// `path` begins with `@` where it is in the abstract namespace.
    fn connect(path: &OsString) -> io::Result<Self> {
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(path)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        Ok(Self { socket })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_systemd_takes() {
        assert_eq!(name("rw"), "rw");
        assert_eq!(name("a:b c\né"), "a_b_c__");
        assert_eq!(name(&"x".repeat(300)).len(), LONGEST_NAME);
    }

    #[test]
    fn only_a_listening_socket_is_adopted() {
        let file = tempfile::tempfile().unwrap();
        assert!(adopt(file.into()).is_err());
        let datagram = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(adopt(datagram.into()).is_err());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        assert!(!adopt(listener.into()).unwrap().nonblocking().unwrap());
    }
}

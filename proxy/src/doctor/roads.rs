//! What each road needs of the kernel, tried on a connection of our own over loopback.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use super::{Check, bpf};
use crate::config::{Config, SpliceRoad};
use crate::splice::sockmap;

/// linux/tcp.h
const TCP_REPAIR_OFF_NO_WP: libc::c_int = -1;
const TCP_SEND_QUEUE: libc::c_int = 2;
/// How long a FIN over loopback may take to show, in milliseconds.
const FIN_MS: libc::c_int = 100;
/// The interface that every network namespace has.
const LOOPBACK: u32 = 1;

pub fn examine(config: &Config) -> Vec<Check> {
    let wants = |roads: &[SpliceRoad]| config.listeners.values().any(|listener| roads.contains(&listener.splice));
    let splice = !config.splice.interfaces.is_empty();
    vec![
        judge("hand-off", try_hand_off(), "a socket can be given up without a packet", splice, hand_off_advice),
        judge("road tc", bpf::try_tcx(LOOPBACK), "the kernel has tcx", wants(&[SpliceRoad::Tc]), tc_advice),
        sockmap(wants(&[SpliceRoad::Sockmap])),
    ]
}

/// What does not work is a failure if the configuration `needs` it.
fn judge(
    name: &str,
    tried: io::Result<()>,
    works: &str,
    needs: bool,
    advice: fn(Option<i32>) -> &'static str,
) -> Check {
    match tried {
        Ok(()) => Check::ok(name, works),
        Err(error) if needs => Check::fail(name, error.to_string(), advice(error.raw_os_error())),
        Err(error) => Check::warn(name, error.to_string(), advice(error.raw_os_error())),
    }
}

fn hand_off_advice(error: Option<i32>) -> &'static str {
    match error {
        Some(libc::EPERM) => "XDP and TC need CAP_NET_ADMIN: run as root, or AmbientCapabilities= in the unit",
        _ => "XDP and TC take no session: set splice = \"relay\" or \"sockmap\" for the listeners",
    }
}

fn tc_advice(error: Option<i32>) -> &'static str {
    match error {
        Some(libc::EPERM) => "CAP_BPF and CAP_NET_ADMIN are missing: run as root, or AmbientCapabilities= in the unit",
        Some(libc::EINVAL) => "programs at TC need the links that Linux 6.6 brought: use XDP, or the relay",
        _ => "use XDP, or the relay",
    }
}

/// What it needs is said in the error.
fn sockmap(needs: bool) -> Check {
    const NAME: &str = "road sockmap";
    let advice = "listeners with splice = \"sockmap\" are relayed";
    match sockmap::try_out() {
        Ok(()) => Check::ok(NAME, "the kernel takes its program, and a socket"),
        Err(error) if needs => Check::fail(NAME, error.to_string(), advice),
        Err(error) => Check::warn(NAME, error.to_string(), advice),
    }
}

/// A connection over loopback.
pub fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    Ok((near, listener.accept()?.0))
}

/// TCP_REPAIR (tcp(7)): reads where a connection stands, and closes it without a word to the other end.
fn try_hand_off() -> io::Result<()> {
    let (near, far) = pair()?;
    let fd = near.as_raw_fd();
    set(fd, libc::TCP_REPAIR, 1)?;
    set(fd, libc::TCP_REPAIR_QUEUE, TCP_SEND_QUEUE)?;
    get(fd, libc::TCP_QUEUE_SEQ)?;
    get(fd, libc::TCP_TIMESTAMP)?;
    set(fd, libc::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)?;
    set(fd, libc::TCP_REPAIR, 1)?;
    drop(near);
    let mut poll = libc::pollfd { fd: far.as_raw_fd(), events: libc::POLLIN | libc::POLLRDHUP, revents: 0 };
    // SAFETY: `poll` is one valid pollfd for the length of the call.
    match unsafe { libc::poll(&raw mut poll, 1, FIN_MS) } {
        0 => Ok(()),
        _ => Err(io::Error::other("a socket closed under TCP_REPAIR told its peer")),
    }
}

fn set(fd: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let (value, length) = (&raw const value, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the value lives through the call and is as long as said.
    let result = unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, option, value.cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn get(fd: libc::c_int, option: libc::c_int) -> io::Result<libc::c_int> {
    let (mut value, mut length) = (0, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: both live through the call, and the length is that of the value.
    let result = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, option, (&raw mut value).cast(), &raw mut length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn is_root() -> bool {
        // SAFETY: no arguments, cannot fail.
        unsafe { libc::geteuid() == 0 }
    }

    #[test]
    fn what_a_road_lacks_is_a_failure_only_where_it_is_wanted() {
        let lack = || Err(io::Error::from_raw_os_error(libc::EINVAL));
        assert_eq!(judge("road tc", lack(), "", true, tc_advice).level, Level::Fail);
        let check = judge("road tc", lack(), "", false, tc_advice);
        assert_eq!((check.level, check.advice.contains("6.6")), (Level::Warn, true));
        assert_eq!(judge("road tc", Ok(()), "there", true, tc_advice), Check::ok("road tc", "there"));
    }

    #[test]
    fn trying_leaves_no_descriptor_behind() {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let try_all = || {
            for check in examine(&Config::default()) {
                assert!(!is_root() || check.level == Level::Ok, "{check:?}");
            }
        };
        try_all();
        // Other tests open and close their own.
        let least = (0..20).map(|_| {
            let before = open();
            try_all();
            open().saturating_sub(before)
        });
        assert_eq!(least.min(), Some(0));
    }
}

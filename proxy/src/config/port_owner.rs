//! Who listens on an address already: for `address in use (pid 812 postgres)`.
//!
//! From /proc/net/tcp and tcp6 (proc(5)) the socket's inode, from /proc/PID/fd the process that has it open. Without
//! the right to look into other users' processes the answer is empty, never wrong.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// `TCP_LISTEN` of include/net/tcp_states.h, as /proc/net/tcp prints it.
const LISTEN: &str = "0A";

/// A process with a socket that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub pid: u32,
    /// The first 15 bytes of the program's name, as the kernel keeps it.
    pub comm: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} {}", self.pid, self.comm)
    }
}

/// Who, other than this process, listens on this address or on one that covers it, in this network namespace.
pub fn who_listens(addr: SocketAddr) -> Option<Owner> {
    let inodes: Vec<u64> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .flat_map(|table| listening_inodes(&table, addr))
        .collect();
    if inodes.is_empty() { None } else { holder_of(&inodes) }
}

/// `address in use (pid 812 postgres): 0.0.0.0:5432`: a failed bind(2) in words.
pub fn bind_problem(addr: SocketAddr, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => match who_listens(addr) {
            Some(owner) => format!("address in use ({owner}): {addr}"),
            None => format!("address in use: {addr}"),
        },
        std::io::ErrorKind::AddrNotAvailable => format!("no interface of this host has this address: {addr}"),
        std::io::ErrorKind::PermissionDenied if addr.port() < 1024 => {
            format!("permission denied (a port below 1024 needs CAP_NET_BIND_SERVICE): {addr}")
        }
        _ => format!("{}: {addr}", super::plain_io_error(error)),
    }
}

/// The inodes of the table's listening sockets that stand in the way of `addr`.
fn listening_inodes(table: &str, addr: SocketAddr) -> Vec<u64> {
    let inode = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let local = socket_addr(fields.nth(1)?)?;
        let state = fields.nth(1)?;
        let inode: u64 = fields.nth(5)?.parse().ok()?;
        (state == LISTEN && inode != 0 && in_the_way(local, addr)).then_some(inode)
    };
    table.lines().skip(1).filter_map(inode).collect()
}

/// Our own IPv6 sockets are IPv6 only, so IPv4 ones never hinder them; `[::]` of others mostly takes IPv4 as well,
/// which the table does not tell.
fn in_the_way(listening: SocketAddr, wanted: SocketAddr) -> bool {
    let (listening_ip, wanted_ip) = (listening.ip().to_canonical(), wanted.ip().to_canonical());
    let covers = match (listening_ip, wanted_ip) {
        (IpAddr::V4(_), IpAddr::V6(_)) => false,
        (IpAddr::V6(listening), IpAddr::V4(_)) => listening.is_unspecified(),
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => {
            listening_ip == wanted_ip || listening_ip.is_unspecified() || wanted_ip.is_unspecified()
        }
    };
    covers && listening.port() == wanted.port()
}

/// `0100007F:1538`: the address's 32-bit words in this machine's byte order, the port as a number, all in hex.
fn socket_addr(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| u32::from_str_radix(ip.get(index * 8..index * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words: [u8; 16] = [word(0)?, word(1)?, word(2)?, word(3)?].concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(words))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn holder_of(inodes: &[u64]) -> Option<Owner> {
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let own = std::process::id();
    let pids = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids: Vec<u32> = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // A server's first process has the lowest pid; its children inherit the socket.
    pids.sort_unstable();
    for pid in pids.into_iter().filter(|pid| *pid != own) {
        let process = Path::new("/proc").join(pid.to_string());
        let Ok(files) = std::fs::read_dir(process.join("fd")) else { continue };
        let holds = files.flatten().any(|file| {
            std::fs::read_link(file.path())
                .is_ok_and(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
        });
        if holds {
            let comm = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
            return Some(Owner { pid, comm: comm.trim_end().into() });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn the_kernels_table_is_read() {
        let v4 = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   105        0 4242 1 0 100 0 0 10 0\n   \
            1: 0100007F:1538 0100007F:C001 01 00000000:00000000 00:00000000 00000000   105        0 4243 1 0 100 0 0 10 0\n   \
            2: 00000000:1920 00000000:0000 0A 00000000:00000000 00:00000000 00000000   105        0 4244 1 0 100 0 0 10 0\n";
        let inodes = |addr: &str| listening_inodes(v4, addr.parse().unwrap());
        assert_eq!(inodes("127.0.0.1:5432"), [4242]);
        assert_eq!(inodes("127.0.0.2:5432"), [0; 0]);
        assert_eq!(inodes("0.0.0.0:5432"), [4242]);
        assert_eq!(inodes("10.0.0.1:6432"), [4244]);
        assert_eq!(socket_addr("00000000000000000000000001000000:1538"), Some("[::1]:5432".parse().unwrap()));
        assert_eq!(socket_addr("0:0:0"), None);
        assert_eq!(socket_addr("ééééé:1"), None);
    }

    #[test]
    fn an_address_hinders_those_it_covers() {
        for (listening, wanted, hinders) in [
            ("0.0.0.0:5432", "10.0.0.1:5432", true),
            ("10.0.0.1:5432", "0.0.0.0:5432", true),
            ("10.0.0.1:5432", "10.0.0.2:5432", false),
            ("10.0.0.1:5432", "10.0.0.1:5433", false),
            ("[::]:5432", "10.0.0.1:5432", true),
            ("[::ffff:10.0.0.1]:5432", "10.0.0.1:5432", true),
            ("0.0.0.0:5432", "[::]:5432", false),
            ("[::1]:5432", "[::]:5432", true),
        ] {
            let found = in_the_way(listening.parse().unwrap(), wanted.parse().unwrap());
            assert_eq!(found, hinders, "{listening} {wanted}");
        }
    }

    #[test]
    fn a_listening_child_is_found() {
        // A child that inherits the socket listens as much as we do, and we leave ourselves out.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        assert_eq!(who_listens(addr), None);
        let inherited = std::process::Stdio::from(std::os::fd::OwnedFd::from(listener.try_clone().unwrap()));
        let mut child = std::process::Command::new("sleep").arg("30").stdin(inherited).spawn().unwrap();
        let owner = who_listens(addr);
        let problem = bind_problem(addr, &std::net::TcpListener::bind(addr).unwrap_err());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(owner, Some(Owner { pid: child.id(), comm: "sleep".into() }));
        assert_eq!(problem, format!("address in use (pid {} sleep): {addr}", child.id()));
        let error = std::net::TcpListener::bind(addr).unwrap_err();
        assert_eq!(bind_problem(addr, &error), format!("address in use: {addr}"));
    }
}

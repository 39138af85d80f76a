//! Connection tracking, where this host has it. It saw both handshakes and will see nothing more of a spliced session:
//! each entry would stay for five days (nf_conntrack_tcp_timeout_established) and the table fill. So they are deleted.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pgsplice_ebpf::flow::FlowKey;

use super::neighbours::attribute;
use super::packet::ip;

/// linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h
const CT_DELETE: u16 = 1 << 8 | 2;
const NESTED: u16 = 0x8000;
const TUPLE_ORIG: u16 = 1;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4: [u16; 2] = [1, 2];
const IP_V6: [u16; 2] = [3, 4];
const PROTO_NUM: u16 = 1;
const PROTO_PORTS: [u16; 2] = [2, 3];
const TCP: u8 = 6;

/// Entries of this network namespace; the file is not there while the module is not loaded.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

#[derive(Debug)]
pub struct Conntrack {
    netlink: OwnedFd,
    active: AtomicBool,
}

impl Conntrack {
    pub fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_NETFILTER) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened and nobody else's.
        let conntrack = Self { netlink: unsafe { OwnedFd::from_raw_fd(fd) }, active: AtomicBool::new(false) };
        conntrack.look();
        Ok(conntrack)
    }

    /// Whether connections are tracked here at all; asked once in a while, for a firewall may be loaded later.
    pub fn look(&self) {
        let count = fs::read_to_string(COUNT).ok().and_then(|text| text.trim().parse::<u64>().ok());
        self.active.store(count.is_some_and(|count| count > 0), Relaxed);
    }

    /// Forgets a session's two connections. `keys` are those of what comes from client and backend.
    pub fn forget(&self, keys: &[FlowKey; 2]) {
        // As the first packet of each went: the client's to us, ours to the backend.
        [keys[0], keys[1].reversed()].iter().for_each(|first| self.forget_sent(first));
    }

    /// Forgets the connection that a packet with this tuple began, or seemed to.
    pub fn forget_sent(&self, first: &FlowKey) {
        if self.active.load(Relaxed)
            && let Err(error) = self.delete(first)
        {
            tracing::debug!("conntrack: {error}");
        }
    }

    fn delete(&self, tuple: &FlowKey) -> io::Result<()> {
        let request = delete_request(tuple);
        // SAFETY: the request lives through the call and its length is its own.
        let sent = unsafe { libc::send(self.netlink.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        // Refusals (there is no such entry) come back without being asked for; they must not fill the socket's queue.
        let mut refusal = [0u8; 256];
        // SAFETY: the buffer lives through the call and its length is its own.
        while unsafe {
            libc::recv(self.netlink.as_raw_fd(), refusal.as_mut_ptr().cast(), refusal.len(), libc::MSG_DONTWAIT)
        } > 0
        {}
        Ok(())
    }
}

fn delete_request(tuple: &FlowKey) -> Vec<u8> {
    let v4 = tuple.is_v4();
    let mut addresses = Vec::new();
    for (kind, octets) in if v4 { IP_V4 } else { IP_V6 }.into_iter().zip([tuple.src, tuple.dst]) {
        match ip(octets) {
            IpAddr::V4(a) => attribute(&mut addresses, kind, &a.octets()),
            IpAddr::V6(a) => attribute(&mut addresses, kind, &a.octets()),
        }
    }
    let mut protocol = Vec::new();
    attribute(&mut protocol, PROTO_NUM, &[TCP]);
    for (kind, port) in PROTO_PORTS.into_iter().zip([tuple.src_port, tuple.dst_port]) {
        attribute(&mut protocol, kind, &port);
    }
    let mut both = Vec::new();
    attribute(&mut both, TUPLE_IP | NESTED, &addresses);
    attribute(&mut both, TUPLE_PROTO | NESTED, &protocol);
    // nfgenmsg: family, version, resource id.
    let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    let mut body = vec![family as u8, 0, 0, 0];
    attribute(&mut body, TUPLE_ORIG | NESTED, &both);

    let mut message = Vec::with_capacity(16 + body.len());
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend(CT_DELETE.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

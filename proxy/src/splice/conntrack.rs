//! Connection tracking, where this host has it. It saw both handshakes and will see nothing more of a spliced session:
//! each entry would stay for five days (nf_conntrack_tcp_timeout_established) and the table fill. So they are deleted.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pgsplice_ebpf::flow::FlowKey;

use super::packet::ip;
use crate::netlink::{Request, Socket, octets};

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
    netlink: Socket,
    active: AtomicBool,
}

impl Conntrack {
    pub fn open() -> io::Result<Self> {
        let conntrack = Self { netlink: Socket::open(libc::NETLINK_NETFILTER)?, active: AtomicBool::new(false) };
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
            && let Err(error) = self.netlink.tell(delete(first))
        {
            tracing::debug!("conntrack: {error}");
        }
    }
}

fn delete(tuple: &FlowKey) -> Request {
    let v4 = tuple.is_v4();
    let mut addresses = Request::new(0, 0, &[]);
    for (kind, address) in if v4 { IP_V4 } else { IP_V6 }.into_iter().zip([tuple.src, tuple.dst]) {
        addresses.attribute(kind, &octets(ip(address)));
    }
    let mut protocol = Request::new(0, 0, &[]);
    protocol.attribute(PROTO_NUM, &[TCP]);
    for (kind, port) in PROTO_PORTS.into_iter().zip([tuple.src_port, tuple.dst_port]) {
        protocol.attribute(kind, &port);
    }
    let mut both = Request::new(0, 0, &[]);
    both.attribute(TUPLE_IP | NESTED, addresses.payload());
    both.attribute(TUPLE_PROTO | NESTED, protocol.payload());
    // nfgenmsg: family, version, resource id.
    let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    let mut request = Request::new(CT_DELETE, 0, &[family as u8, 0, 0, 0]);
    request.attribute(TUPLE_ORIG | NESTED, both.payload());
    request
}

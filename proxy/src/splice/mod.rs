//! The roads a session may take once its handshake is over, a room each.
//!
//! [`Splice`] owns the kernel's road: XDP or TC programs forward the packets and user space is off the path
//! ([`handoff`]). [`sockmap`] has the kernel join a session's two sockets. [`relay`] is user space over io_uring and works for
//! every session on every kernel that runs us.

pub mod adopt;
pub mod brief;
mod conntrack;
mod end;
mod forwarding;
pub mod handoff;
mod ipsec;
pub mod job;
pub mod labels;
mod limits;
pub mod model;
pub mod neighbours;
pub mod ownership;
pub mod packet;
pub mod ports;
pub mod raw;
pub mod relay;
mod routes;
pub mod side;
pub mod sockets;
pub mod sockmap;
pub mod source;
pub mod sweep;
pub mod table;
pub mod watch;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::{fmt, fs};

use pgsplice_ebpf::flow::FlowKey;

use crate::bpf::{Kernel, SpliceMaps};
use crate::config;
use conntrack::Conntrack;
use forwarding::Forwarding;
use ipsec::Policies;
use labels::Labels;
use ownership::Ownership;
use ports::Ports;
use routes::Routes;
use source::Sources;
use table::Table;

/// What forwards a session, as in access lines and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Road {
    /// The XDP program, on both legs' interfaces.
    Xdp,
    /// The TC program, likewise.
    Tc,
    /// The kernel's sockets, joined by an sk_skb program.
    Sockmap,
    /// User space, over io_uring.
    Relay,
}

impl Road {
    pub const ALL: [Self; 4] = [Self::Xdp, Self::Tc, Self::Sockmap, Self::Relay];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
            Self::Sockmap => "sockmap",
            Self::Relay => "relay",
        }
    }
}

impl fmt::Display for Road {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a session is not in the kernel. `docs/splice.md` says what to do about each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Why {
    /// `listener.splice = "relay"`, or no interface is named in `[splice]`; or another process has taken over.
    NotWanted,
    /// `splice_after` has not been reached.
    NotYet,
    /// No packet of a leg was seen on an attached interface with exactly the socket's addresses: it came by another
    /// interface (loopback among them), or DNAT, IPsec or a tunnel makes the wire differ from the socket, or a policy of
    /// IPsec would. Or an address is link-local and so says nothing without its interface.
    Unseen,
    /// A leg's packets came by several interfaces or with several VLAN tags.
    Moved,
    /// This host's packets to an end do not leave by the interface that the end's come in by.
    OtherWay,
    /// The listener wants another program than the one on the leg's interface.
    OtherRoad,
    /// The interface does not forward (`net.ipv4.conf.*.forwarding`, `net.ipv6.conf.*.forwarding`), which XDP needs, and TC
    /// for a way into a VLAN.
    ForwardingOff,
    /// One leg is IPv4 and the other IPv6.
    Family,
    /// One leg has TCP timestamps and the other has not.
    Timestamps,
    /// One leg has selective acknowledgements and the other has not.
    Sack,
    /// One leg has ECN and the other has not, or either has AccECN.
    Ecn,
    /// One side may send segments the other way cannot carry.
    Mss,
    /// One side offers windows smaller than what the other leg counts them in.
    Window,
    /// Every port of `splice.source_ports` is in use or at rest.
    NoPort,
    /// `splice.max_sessions` are in the kernel, or [`sockmap::MAX_SESSIONS`] joined.
    Full,
    /// This host has no sockmap, or pgsplice may not use it; the log has it.
    Unavailable,
    /// sockmap: a leg is MPTCP, or has an upper layer protocol (kernel TLS).
    NotPlain,
    /// sockmap: one side had ended when the sockets were to be joined.
    Ended,
    /// The reply was longer than one segment; the next is tried.
    LongReply,
    /// Bytes were under way at the would-be hand-off; the next reply is tried.
    Busy,
    /// A packet slipped past the program during the hand-off; the next reply is tried.
    Late,
    /// A system call failed; the log has it.
    Error,
}

impl Why {
    pub const ALL: &'static [Self] = &[
        Self::NotWanted,
        Self::NotYet,
        Self::Unseen,
        Self::Moved,
        Self::OtherWay,
        Self::OtherRoad,
        Self::ForwardingOff,
        Self::Family,
        Self::Timestamps,
        Self::Sack,
        Self::Ecn,
        Self::Mss,
        Self::Window,
        Self::NoPort,
        Self::Full,
        Self::Unavailable,
        Self::NotPlain,
        Self::Ended,
        Self::LongReply,
        Self::Busy,
        Self::Late,
        Self::Error,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotWanted => "not-wanted",
            Self::NotYet => "not-yet",
            Self::Unseen => "unseen",
            Self::Moved => "moved",
            Self::OtherWay => "other-way",
            Self::OtherRoad => "other-road",
            Self::ForwardingOff => "forwarding-off",
            Self::Family => "family",
            Self::Timestamps => "timestamps",
            Self::Sack => "sack",
            Self::Ecn => "ecn",
            Self::Mss => "mss",
            Self::Window => "window",
            Self::NoPort => "no-port",
            Self::Full => "full",
            Self::Unavailable => "unavailable",
            Self::NotPlain => "not-plain",
            Self::Ended => "ended",
            Self::LongReply => "long-reply",
            Self::Busy => "busy",
            Self::Late => "late",
            Self::Error => "error",
        }
    }

    /// Whether a later turn of the same session may fare better.
    pub fn may_pass(self) -> bool {
        matches!(
            self,
            Self::NotYet | Self::Unseen | Self::Window | Self::Full | Self::LongReply | Self::Busy | Self::Late
        )
    }
}

/// The kernel's roads of this process. Dropping it leaves the flows as `kill -9` does.
pub struct Splice {
    kernel: Arc<Kernel>,
    ports: Arc<Ports>,
    pub sources: Sources,
    labels: Labels,
    forwarding: Forwarding,
    routes: Routes,
    policies: Policies,
    /// `None` where the kernel was built without netfilter's netlink.
    conntrack: Option<Conntrack>,
    pub table: Table,
    pub ownership: Ownership,
    /// Adopted sessions whose backend is not known to their pool yet.
    unattached: AtomicUsize,
    /// net.ipv4.tcp_ecn of 3 and above negotiates AccECN, whose option this kernel does not tell of.
    accurate_ecn: bool,
}

/// Since start; only ever grow.
#[derive(Debug, Default)]
pub struct Counters {
    handed_off: [AtomicU64; Road::ALL.len()],
    stayed: [AtomicU64; Why::ALL.len()],
}

impl Counters {
    pub fn handed_off(&self, road: Road) -> u64 {
        self.handed_off[road as usize].load(Relaxed)
    }

    /// Hand-offs that were not made; a session that tried several times counts each.
    pub fn stayed(&self, why: Why) -> u64 {
        self.stayed[why as usize].load(Relaxed)
    }

    pub fn count_hand_off(&self, road: Road) {
        self.handed_off[road as usize].fetch_add(1, Relaxed);
    }

    pub fn count_stay(&self, why: Why) {
        self.stayed[why as usize].fetch_add(1, Relaxed);
    }
}

impl Splice {
    pub fn new(kernel: Arc<Kernel>, config: &config::Splice) -> Arc<Self> {
        let capacity = kernel.splice().capacity();
        let tcp_ecn = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_ecn").unwrap_or_default();
        Arc::new(Self {
            ports: Ports::new(config.source_ports.clone()),
            sources: Sources::default(),
            labels: Labels::read(kernel.splice()),
            kernel,
            forwarding: Forwarding::default(),
            routes: Routes::default(),
            policies: Policies::default(),
            conntrack: Conntrack::open().inspect_err(|error| tracing::debug!("no conntrack: {error}")).ok(),
            table: Table::new(capacity),
            ownership: Ownership::default(),
            unattached: AtomicUsize::new(0),
            accurate_ecn: tcp_ecn.trim().parse::<u8>().is_ok_and(|mode| mode >= 3),
        })
    }

    pub fn maps(&self) -> &SpliceMaps {
        self.kernel.splice()
    }

    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }
}

/// What clients may be told to send at most in a segment, so that it leaves by each of these interfaces: the narrowest
/// MTU without the headers. `None`: all are alike, and each client is told what its own way carries.
pub fn max_segment(interfaces: &[String], v4: bool) -> Option<u32> {
    let mtu = |name: &String| fs::read_to_string(format!("/sys/class/net/{name}/mtu")).ok()?.trim().parse::<u32>().ok();
    let mtus: Vec<u32> = interfaces.iter().filter_map(mtu).collect();
    let narrowest = mtus.iter().min()?;
    let headers = if v4 { 40 } else { 60 };
    mtus.iter().any(|mtu| mtu != narrowest).then(|| narrowest.saturating_sub(headers))
}

/// The key of what comes from `peer` to `own`.
pub fn key(peer: SocketAddr, own: SocketAddr) -> FlowKey {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    };
    FlowKey {
        src: octets(peer.ip()),
        dst: octets(own.ip()),
        src_port: peer.port().to_be_bytes(),
        dst_port: own.port().to_be_bytes(),
    }
}

/// An address of a key.
pub fn address(octets: [u8; 16], port: [u8; 2]) -> SocketAddr {
    SocketAddr::new(IpAddr::from(octets).to_canonical(), u16::from_be_bytes(port))
}

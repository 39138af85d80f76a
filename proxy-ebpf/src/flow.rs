//! The maps of the XDP and TC splice: which packets belong to a spliced session, how each is rewritten, and what the
//! program has seen of it.
//!
//! A *flow* is one direction of a spliced session. What a flow is made of never changes ([`Flow`], written once by user
//! space at the hand-off); what happens to it stands elsewhere, by the session's slot: [`SessionState`] is written by
//! the programs, [`control`] words by user space. So neither ever overwrites what the other counts.
//!
//! Numbers: addresses and ports are in network order, everything else is in the host's.

/// Names of the maps in the object and on bpffs.
pub const FLOWS: &str = "FLOWS";
pub const SESSIONS: &str = "SESSIONS";
pub const CONTROL: &str = "CONTROL";
pub const WATCHES: &str = "WATCHES";
pub const EVENTS: &str = "EVENTS";
pub const SPLICE_COUNTERS: &str = "SPLICE_COUNTERS";
/// Of the XDP program alone, and not pinned: what the routing table last said of some flows.
pub const WAYS: &str = "WAYS";
/// Not pinned either: by listener's id, not 0 where the connections of its clients are not watched from their SYN on.
/// Written by user space.
pub const UNWATCHED: &str = "UNWATCHED";
/// User space only: who a session is, so that the next process can go on telling.
pub const META: &str = "META";
/// User space only: the names that `SessionMeta` refers to by index.
pub const LABELS: &str = "LABELS";

/// The XDP program, which is the guard's too, for kernels with multi-buffer frames (5.18 and later) and for those without.
pub const PROGRAM_XDP_FRAGS: &str = "splice_frags";
pub const PROGRAM_XDP: &str = "splice";
/// The TC programs of ingress and egress (tcx, Linux 6.6). That of egress belongs on every interface of the splice, of XDP too.
pub const PROGRAM_TC: &str = "tc_splice";
pub const PROGRAM_TC_EGRESS: &str = "tc_keep_quiet";

/// Sessions that may be spliced at a time unless the loader sets another capacity (`splice.max_sessions`): entries of
/// `SESSIONS`, `CONTROL` and `META`; `FLOWS` has two for each.
pub const DEFAULT_SESSIONS: u32 = 65_536;
/// Entries of `WATCHES`, which evicts the least recently used: connections being set up, not sessions.
pub const MAX_WATCHES: u32 = 16_384;
/// Bytes of the ring buffer.
pub const EVENTS_BYTES: u32 = 256 * 1024;
/// Entries of `LABELS`; 0 stays the empty name.
pub const MAX_LABELS: u32 = 4096;

// What the programs make of a packet.
//
// *Known* is a TCP packet, or the first fragment of one, whose tuple is a key of `FLOWS`; its flow must name the program
// (`FLOW_XDP`, `FLOW_TC`) and its session's control word be HOLD, LIVE or CUT, else it passes up. Followed to the ports
// are one 802.1Q tag, IPv4 options and up to six IPv6 extension headers. In this order:
// 1. a fragment is dropped (`counter::FRAGMENT`), then what has IPv6 extension headers or an IPv4 source route, or IPv4
//    options that cannot be read (`EXTENSION`), then what is cut off
//    or lies about a length of IP or TCP (`MALFORMED`);
// 2. HOLD as its constant has it;
// 3. a SYN without ACK and RST removes both flows (`event::REUSED`) and passes up, watched, if the session is CUT; and if it
//    is closed (FIN_ACKED both ways) and the SEQ beyond `seq_end` or the TSval beyond `tsval` (RFC 6191);
// 4. CUT as its constant has it;
// 5. LIVE: the way out is looked up, then the options are rewritten (malformed ones: `MALFORMED`), the headers, the
//    checksums; it leaves, is counted, and is believed if it fits (see `SideState`). A RST that is believed removes both
//    flows (`event::RESET`).
//
// Malformed options are those whose length leads out of the header, a SACK of other than 1 to 4 blocks and, with
// `FLOW_TIMESTAMPS`, timestamps of other than 10 bytes. Every TS and SACK option is rewritten, should there be several.
// TTL or hop limit become 64. Checksums are kept up incrementally: a wrong one stays wrong.

/// The addresses and ports of a packet: key of `FLOWS` and `WATCHES` as the packet comes in (`src` is the peer, `dst` this host).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// IPv4 as `::ffff:a.b.c.d`.
    pub src: [u8; 16],
    pub dst: [u8; 16],
    pub src_port: [u8; 2],
    pub dst_port: [u8; 2],
}

impl FlowKey {
    /// The packet that answers this one.
    pub const fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port }
    }

    pub const fn is_v4(&self) -> bool {
        let a = &self.src;
        u64::from_be_bytes([a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]]) == 0
            && u32::from_be_bytes([a[8], a[9], a[10], a[11]]) == 0xffff
    }
}

/// Value of `FLOWS`: how a packet of this direction is rewritten. Constant from the hand-off to the end.
///
/// With R the `rcv_nxt` and W the `write_seq` of a leg's socket at the hand-off, held bytes counted as written, the flow
/// from leg a to leg b has `seq_delta = W_b − R_a` and `ack_delta = R_b − W_a` (mod 2³²).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// What the packet leaves with. `out.reversed()` is the key of the session's other flow.
    pub out: FlowKey,
    /// The session: index of `SESSIONS`, `CONTROL` and `META`.
    pub slot: u32,
    /// Added to SEQ.
    pub seq_delta: u32,
    /// Added to ACK, in a packet with ACK, and to both edges of each SACK block.
    pub ack_delta: u32,
    /// Added to TSval, with [`FLOW_TIMESTAMPS`].
    pub tsval_delta: u32,
    /// Added to a TSecr that is not 0 in a packet with ACK, with [`FLOW_TIMESTAMPS`].
    pub tsecr_delta: u32,
    /// The interface the other leg's packets came in by. TC sends there; XDP asks the routing table, and takes this one
    /// where that answers with the VLAN device on top of it.
    pub out_ifindex: u32,
    /// The 802.1Q VLAN id of the other leg, 0 for untagged: it leaves with exactly this tag, at priority 0.
    pub out_vlan: u16,
    /// `FLOW_*`
    pub flags: u16,
    /// The window a packet carries means `window << in_wscale` bytes; it leaves as `min(65535, that >> out_wscale)`, in a
    /// SYN unscaled.
    pub in_wscale: u8,
    pub out_wscale: u8,
    pub pad: [u8; 2],
    /// Id of the listener that counts the packet and whose deny lists apply, [`NO_LISTENER`] for packets from a backend.
    pub listener: u32,
}

/// From the client; index 0 of [`SessionState::side`]. Without it, from the backend: index 1.
pub const FLOW_FROM_CLIENT: u16 = 1;
/// Both legs have timestamps.
pub const FLOW_TIMESTAMPS: u16 = 2;
/// The XDP program forwards it; the TC program leaves it alone.
pub const FLOW_XDP: u16 = 4;
/// The TC program forwards it; the XDP program passes it up.
pub const FLOW_TC: u16 = 8;
/// The XDP program sends it back out of the interface it came in by with a redirect and not with XDP_TX, which a veth
/// carries on only if its other end has an XDP program, too.
pub const FLOW_REDIRECT: u16 = 16;
pub const NO_LISTENER: u32 = u32::MAX;

/// Values of `CONTROL`, one a session, written by user space alone.
pub mod control {
    /// No session. A flow that still refers to it passes up.
    pub const FREE: u32 = 0;
    /// Pure ACKs (ACK without SYN, FIN, RST and payload) pass up. All else is dropped and noted ([`super::SIDE_HELD`]),
    /// a RST that fits as [`super::SIDE_RST`] too.
    pub const HOLD: u32 = 1;
    /// Forwarded.
    pub const LIVE: u32 = 2;
    /// Every packet is dropped, but for a SYN that opens a new connection; all but a RST are answered with one, made of the
    /// packet and sent back where it came from: SEQ its ACK, or without ACK as RFC 9293, 3.10.7.1 has it.
    pub const CUT: u32 = 3;
}

/// Value of `SESSIONS`: what the programs have seen. User space sets it before the flows exist, then only reads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionState {
    /// What came from the client, what came from the backend.
    pub side: [SideState; 2],
}

/// What came from one side, X, on its way to Y. Sequence numbers are X's own, as in X's packets.
///
/// `packets` and `bytes` count whatever was forwarded. The rest changes only by packets that fit, in LIVE and, for pure
/// ACKs, in HOLD; a SYN changes nothing. With [`SLACK`] or the window, whichever is more, a packet of X *fits* if it has
/// ACK, its SEQ is from `acked − slack` to `max(seq_end, acked + window) + slack`, and its ACK, rewritten, from Y's
/// `acked − slack` to Y's `seq_end + slack`. Then, with Y its other side:
/// - `last_ns`, `tsval` and `seq_end` are its; where its ACK is not before Y's `acked`, that and Y's `window` are its too,
///   and Y's `seq_end` is at least its ACK;
/// - a FIN is believed if its end is beyond `acked` and no FIN of X's is acknowledged yet; the last one counts.
///
/// A RST fits if its SEQ is `acked` or `seq_end`, whatever else it says, and changes only the flags.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SideState {
    /// Forwarded; a super-packet (GRO) counts once. Added to atomically.
    pub packets: u64,
    /// TCP payload, each byte once: how far `seq_end` has moved by packets that fit, FIN left out.
    pub bytes: u64,
    /// CLOCK_MONOTONIC of the last packet, in nanoseconds, as exact as the kernel's tick; at the hand-off, user space's.
    pub last_ns: u64,
    /// Highest SEQ + length seen (SYN and FIN count one).
    pub seq_end: u32,
    /// Highest of X's numbers that Y has acknowledged (Y's ACK after its rewriting).
    pub acked: u32,
    /// Bytes Y last offered, from `acked` on: its window scaled, of a packet that moved or repeated `acked`.
    pub window: u32,
    /// The last TSval, X's own.
    pub tsval: u32,
    /// The number after X's FIN, with [`SIDE_FIN`].
    pub fin_end: u32,
    /// `SIDE_*`
    pub flags: u32,
}

/// How far beyond what is expected a number may be and still fit, in bytes, where the window is smaller.
pub const SLACK: u32 = 65_535;

/// X has sent a FIN that fits the window.
pub const SIDE_FIN: u32 = 1;
/// Y has acknowledged it.
pub const SIDE_FIN_ACKED: u32 = 2;
/// X has sent a RST that fits.
pub const SIDE_RST: u32 = 4;
/// Something came from X that was dropped in HOLD.
pub const SIDE_HELD: u32 = 8;
/// X's FIN came before any of Y's.
pub const SIDE_FIN_FIRST: u32 = 16;

/// Value of `WATCHES`: what was seen of a leg before the hand-off. The program makes one at a SYN to a listener, user
/// space before it connects to a backend; or user space makes both later, where `UNWATCHED` says so: then a SYN takes away
/// what was seen of another connection. Every packet with this key brings it up to date and passes up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Where the last packet came in; 0: none was seen.
    pub ifindex: u32,
    /// TSval of the newest packet in the order of TSvals, with [`WATCH_TIMESTAMPS`].
    pub tsval: u32,
    /// 802.1Q VLAN id of the last packet, 0 for untagged.
    pub vlan: u16,
    /// `WATCH_*`
    pub flags: u16,
}

pub const WATCH_TIMESTAMPS: u16 = 1;
/// Seen by the XDP program.
pub const WATCH_XDP: u16 = 2;
/// Seen by the TC program.
pub const WATCH_TC: u16 = 4;
/// Not all of its packets came in by one interface with one tag.
pub const WATCH_MOVED: u16 = 8;
/// Some were fragments, or had IPv6 extension headers or an IPv4 source route, which the splice drops.
pub const WATCH_ODD: u16 = 16;

/// A record of `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// `event::*`
    pub kind: u32,
    /// [`NO_SLOT`] where no session is meant.
    pub slot: u32,
    /// The interface the packet came in by, or for NO_NEIGH was to go out by.
    pub ifindex: u32,
    /// For FRAG_NEEDED: the MTU of the way out. For ICMP: bytes of `data`, a multiple of 4.
    pub value: u32,
    /// For NO_NEIGH: the next hop, IPv4 mapped.
    pub address: [u8; 16],
    /// For FRAG_NEEDED and ICMP: the packet as it came in, from the IP header on, cut off here.
    pub data: [u8; 96],
}

pub const NO_SLOT: u32 = u32::MAX;

pub mod event {
    /// A believed RST was passed on, and the program has removed both flows.
    pub const RESET: u32 = 1;
    /// FIN both ways, both acknowledged. The flows stay until user space removes them. May come twice.
    pub const CLOSED: u32 = 2;
    /// A SYN on a session that is closed or cut: the program has removed both flows and passed it up.
    pub const REUSED: u32 = 3;
    /// The next hop's link-layer address is not known; the packet was dropped. At most one a millisecond and interface.
    pub const NO_NEIGH: u32 = 4;
    /// Too large for the way out; dropped, DF or not: nothing is fragmented here.
    pub const FRAG_NEEDED: u32 = 5;
    /// "Fragmentation needed" or "packet too big" that quotes a packet sent to the source of a flow which is LIVE here;
    /// dropped, for user space to judge by the SEQ it quotes, and to translate.
    pub const ICMP: u32 = 6;
}

/// Indices of `SPLICE_COUNTERS`, an array of `u64` a CPU: packets, unless it says otherwise.
pub mod counter {
    pub const FORWARDED_XDP: u32 = 0;
    pub const FORWARDED_TC: u32 = 1;
    /// Dropped in HOLD; the sender repeats them.
    pub const HELD: u32 = 2;
    /// Answered with a RST in CUT.
    pub const CUT: u32 = 3;
    pub const NO_NEIGH: u32 = 4;
    pub const FRAG_NEEDED: u32 = 5;
    /// The routing table would not forward: forwarding is off for the interface.
    pub const FORWARDING_OFF: u32 = 6;
    /// It gave any other refusal (unreachable, blackhole, prohibited).
    pub const NO_ROUTE: u32 = 7;
    /// Fragments of a flow's addresses, dropped.
    pub const FRAGMENT: u32 = 8;
    /// IPv6 extension headers and IPv4 source routes that are not followed, dropped.
    pub const EXTENSION: u32 = 9;
    /// Cut off or lying headers of a flow's packet, dropped.
    pub const MALFORMED: u32 = 10;
    pub const ICMP: u32 = 11;
    /// RSTs and FINs of this kernel's own for a session that is handed off, dropped on egress.
    pub const OWN_END: u32 = 12;
    /// Events lost because the ring buffer was full.
    pub const EVENTS_LOST: u32 = 13;
    pub const COUNT: u32 = 14;
}

/// Value of `META`: what the next process needs to know of a session besides its flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionMeta {
    /// As in `pgsplice sessions`; 0: no session.
    pub id: u64,
    /// Unix time of the accept, in milliseconds.
    pub accepted_ms: u64,
    /// Bytes forwarded before the hand-off: client to backend, backend to client.
    pub bytes: [u64; 2],
    /// Indices of `LABELS`; 0 where not known.
    pub listener: u16,
    pub pool: u16,
    pub user: u16,
    pub database: u16,
    /// 1 under TLS.
    pub tls: u8,
    pub pad: [u8; 7],
}

/// Value of `LABELS`: UTF-8, zeroes after it.
pub type Label = [u8; 64];

#[cfg(feature = "host")]
mod pod {
    // SAFETY: repr(C) of byte arrays only: no padding, every bit pattern is a value.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: repr(C) with its padding named (sizes below): every bit pattern is a value.
    unsafe impl aya::Pod for super::Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SideState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SessionState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Watch {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SessionMeta {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_layout_version_3() {
        assert_eq!(crate::LAYOUT_VERSION, 3);
        assert_eq!(size_of::<FlowKey>(), 36);
        assert_eq!(size_of::<Flow>(), 72);
        assert_eq!(size_of::<SideState>(), 48);
        assert_eq!(size_of::<SessionState>(), 96);
        assert_eq!(size_of::<Watch>(), 12);
        assert_eq!(size_of::<Event>(), 128);
        assert_eq!(size_of::<SessionMeta>(), 48);
    }
}

//! What this host's routing table says of a packet: for us or only passing through, and which way out.

use core::ptr;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
    bpf_fib_lookup as FibLookup,
};
use aya_ebpf::helpers::bpf_fib_lookup;
use pgsplice_ebpf::flow::{Flow, counter, event as kind};

use super::event;
use super::headers::IPPROTO_TCP;
use super::key::{Key, out};
use super::maps::count;
use super::packet::Packet;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const SUCCESS: i64 = BPF_FIB_LKUP_RET_SUCCESS as i64;
const NO_NEIGH: i64 = BPF_FIB_LKUP_RET_NO_NEIGH as i64;
const FRAG_NEEDED: i64 = BPF_FIB_LKUP_RET_FRAG_NEEDED as i64;
const FWD_DISABLED: i64 = BPF_FIB_LKUP_RET_FWD_DISABLED as i64;

/// Where a packet of a flow leaves.
#[derive(Clone, Copy)]
pub struct Way {
    /// 0: the kernel is to find it.
    pub ifindex: u32,
    pub macs: Macs,
}

impl Way {
    pub const UNKNOWN: Self = Self { ifindex: 0, macs: Macs { first: 0, second: 0 } };
}

/// The addresses of an Ethernet header, destination first, in two words.
#[derive(Clone, Copy)]
pub struct Macs {
    pub first: u64,
    pub second: u32,
}

impl Macs {
    /// From source and destination, as the kernel answers.
    #[inline(always)]
    fn of([a, b, c]: [u32; 3]) -> Self {
        let dst = u64::from(b >> 16) | u64::from(c) << 16;
        Self { first: dst | u64::from(a) << 48, second: a >> 16 | b << 16 }
    }
}

/// Would the kernel forward this packet to another host? Also false where forwarding is off or the lookup fails.
#[inline(never)]
pub fn is_forwarded<P: Packet>(packet: P, key: &Key, v6: bool) -> bool {
    let mut fib = question(packet, key, v6, 0);
    matches!(ask(packet, &mut fib), SUCCESS | NO_NEIGH | FRAG_NEEDED)
}

/// The way out for a packet of this flow whose largest segment has `len` bytes of IP. `None`: it must be dropped, and
/// that has been counted and told.
#[inline(always)]
pub fn find(packet: impl Packet, l3: usize, v6: bool, flow: &Flow, len: usize) -> Option<Way> {
    let mut fib = question(packet, out(flow), v6, len);
    match ask(packet, &mut fib) {
        SUCCESS => {
            // The VLAN device on top of the interface has an index of its own; the tag is ours to write.
            let ifindex = if flow.out_vlan == 0 { fib.ifindex } else { flow.out_ifindex };
            return Some(Way { ifindex, macs: Macs::of(fib.macs) });
        }
        NO_NEIGH => {
            count(counter::NO_NEIGH);
            // The family too may be the answer's: IPv4 by way of an IPv6 router (RFC 5549).
            event::no_neighbour(flow.slot, fib.ifindex, &fib.dst, fib.family() == AF_INET);
        }
        FRAG_NEEDED => too_long(packet, l3, flow, u32::from(fib.mtu())),
        FWD_DISABLED => count(counter::FORWARDING_OFF),
        _ => count(counter::NO_ROUTE),
    }
    None
}

#[inline(always)]
pub fn too_long(packet: impl Packet, l3: usize, flow: &Flow, mtu: u32) {
    count(counter::FRAG_NEEDED);
    event::with_packet(packet, l3, kind::FRAG_NEEDED, flow.slot, mtu.into());
}

/// `struct bpf_fib_lookup` in words: the verifier wants the stack read and written as it is aligned, and LLVM would write
/// smaller fields two at a time.
#[repr(C)]
struct Fib {
    /// `family`, `l4_protocol`, `sport`, `dport` and `tot_len`; 0 bytes is no question. Answered: `mtu_result` is the last.
    head: u64,
    ifindex: u32,
    tos: u32,
    src: [u32; 4],
    /// Answered: the next hop.
    dst: [u32; 4],
    vlan: u32,
    /// `smac` and `dmac`, six bytes each.
    macs: [u32; 3],
}

const _: () = assert!(size_of::<Fib>() == size_of::<FibLookup>());

impl Fib {
    fn family(&self) -> u8 {
        self.head as u8
    }

    fn mtu(&self) -> u16 {
        (self.head >> 48) as u16
    }
}

#[inline(always)]
fn question(packet: impl Packet, key: &Key, v6: bool, len: usize) -> Fib {
    // A packet of more than 64 kB stands for segments, whose length was asked about.
    let head = u64::from(IPPROTO_TCP) << 8 | u64::from(key.ports) << 16 | u64::from(len as u16) << 48;
    let mut fib = Fib { head, ifindex: packet.ifindex(), tos: 0, src: [0; 4], dst: [0; 4], vlan: 0, macs: [0; 3] };
    if v6 {
        fib.head |= u64::from(AF_INET6);
        fib.src = key.src;
        fib.dst = key.dst;
    } else {
        fib.head |= u64::from(AF_INET);
        fib.src[0] = key.src[3];
        fib.dst[0] = key.dst[3];
    }
    fib
}

#[inline(always)]
fn ask(packet: impl Packet, fib: &mut Fib) -> i64 {
    // SAFETY: context and parameters live through the call, and the length is the parameters' own.
    unsafe { bpf_fib_lookup(packet.ctx(), ptr::from_mut(fib).cast(), size_of::<Fib>() as i32, 0) }
}

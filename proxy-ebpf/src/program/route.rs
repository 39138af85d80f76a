//! What this host's routing table says of a packet: for us or only passing through, and which way out.

use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
    bpf_fib_lookup as FibLookup,
};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_ktime_get_coarse_ns};
use pgsplice_ebpf::flow::{FLOW_FROM_CLIENT, Flow, counter, event as kind};

use super::event;
use super::headers::IPPROTO_TCP;
use super::key::{Addr, Tuple, out, v4};
use super::maps::{WAYS, WAYS_LENGTH, count};
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
    pub ifindex: u32,
    pub macs: Macs,
}

/// The addresses of an Ethernet header, destination first, in two words.
#[derive(Clone, Copy)]
pub struct Macs {
    pub first: u64,
    pub second: u32,
}

/// Would the kernel forward this packet to another host? Also false where forwarding is off or the lookup fails.
#[inline(never)]
pub fn is_forwarded<P: Packet>(packet: P, key: &Tuple, v6: bool) -> bool {
    let mut fib = Fib(MaybeUninit::uninit());
    matches!(fib.ask(packet, key, v6, 0), SUCCESS | NO_NEIGH | FRAG_NEEDED)
}

/// The way out for a packet of this flow whose largest segment has `len` bytes of IP, and the MTU of that way. `None`: it
/// must be dropped, and that has been counted and told.
#[inline(always)]
pub fn find(packet: impl Packet, l3: usize, v6: bool, flow: &Flow, len: usize) -> Option<(Way, u32)> {
    let mut fib = Fib(MaybeUninit::uninit());
    match fib.ask(packet, out(flow), v6, len) {
        SUCCESS => {
            // The VLAN device on top of the interface has an index of its own; the tag is ours to write.
            let ifindex = if flow.out_vlan == 0 { fib.ifindex() } else { flow.out_ifindex };
            // Before 5.12 the length that was asked about is still there.
            return Some((Way { ifindex, macs: fib.macs() }, fib.mtu()));
        }
        NO_NEIGH => {
            count(counter::NO_NEIGH);
            // The family too may be the answer's: IPv4 by way of an IPv6 router (RFC 5549).
            event::no_neighbour(flow.slot, fib.ifindex(), fib.next_hop(), fib.is_v4());
        }
        FRAG_NEEDED => too_long(packet, l3, flow, fib.mtu()),
        FWD_DISABLED => count(counter::FORWARDING_OFF),
        _ => count(counter::NO_ROUTE),
    }
    None
}

/// An answer of [`find`], good for a while: asking costs as much as all the rest of the work on a packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Remembered {
    /// Whose it is; the slot alone may be another session's by now.
    flow: u64,
    macs: u64,
    more_macs: u32,
    ifindex: u32,
    /// In units of 2²⁰ ns, about a millisecond.
    since: u32,
    mtu: u32,
}

/// How long, in the same units: no more than this after a route or a neighbour has changed, the packets follow.
const GOOD_FOR: u32 = 50;

/// As [`find`], which it asks when it does not remember.
#[inline(always)]
pub fn find_again(packet: impl Packet, l3: usize, v6: bool, flow: &Flow, len: usize) -> Option<Way> {
    // SAFETY: the helper takes nothing.
    let now = (unsafe { bpf_ktime_get_coarse_ns() } >> 20) as u32;
    // The deltas are as good as random.
    let whose = u64::from(flow.seq_delta) | u64::from(flow.ack_delta) << 32;
    let index = (flow.slot * 2 + u32::from(flow.flags & FLOW_FROM_CLIENT)) % WAYS_LENGTH;
    let Some(place) = WAYS.get_ptr_mut(index) else { return find(packet, l3, v6, flow, len).map(|found| found.0) };
    // SAFETY: a value of this CPU's, on which no other XDP program runs meanwhile.
    let last = unsafe { ptr::read(place) };
    if last.flow == whose && now.wrapping_sub(last.since) < GOOD_FOR && len <= last.mtu as usize {
        return Some(Way { ifindex: last.ifindex, macs: Macs { first: last.macs, second: last.more_macs } });
    }
    let (way, mtu) = find(packet, l3, v6, flow, len)?;
    let Way { ifindex, macs } = way;
    let found = Remembered { flow: whose, macs: macs.first, more_macs: macs.second, ifindex, since: now, mtu };
    // SAFETY: as above.
    unsafe { ptr::write(place, found) };
    Some(way)
}

#[inline(always)]
pub fn too_long(packet: impl Packet, l3: usize, flow: &Flow, mtu: u32) {
    count(counter::FRAG_NEEDED);
    event::with_packet(packet, l3, kind::FRAG_NEEDED, flow.slot, mtu.into());
}

/// `struct bpf_fib_lookup` in words of 8: the verifier wants the stack read and written as it is aligned.
struct Fib(MaybeUninit<[u64; FIB_WORDS]>);

const FIB_WORDS: usize = size_of::<FibLookup>() / 8;
const _: () = assert!(size_of::<FibLookup>() == 64);
/// `family`, `l4_protocol`, `sport`, `dport`, and `tot_len`, of which 0 is no question; the answer has `mtu_result` there.
const HEAD: usize = 0;
/// `ifindex`, and nothing else that is asked.
const INTERFACE: usize = 1;
/// `ipv4_src` or `ipv6_src`.
const SRC: usize = 2;
/// Likewise; in the answer the next hop.
const DST: usize = 4;
/// In the upper half the first four bytes of `smac`; two more and `dmac` are all of the next.
const MACS: usize = 6;

impl Fib {
    /// Word by word, volatile: of plain zeroes LLVM makes a call of `memset`, which writes them byte by byte.
    #[inline(always)]
    fn set(&mut self, at: usize, word: u64) {
        // SAFETY: `at` is one of the constants above or one more, below the length.
        unsafe { ptr::write_volatile(self.0.as_mut_ptr().cast::<u64>().add(at), word) };
    }

    #[inline(always)]
    fn get(&self, at: usize) -> u64 {
        // SAFETY: as above; every word is written before it is asked.
        unsafe { ptr::read_volatile(self.0.as_ptr().cast::<u64>().add(at)) }
    }

    fn is_v4(&self) -> bool {
        self.get(HEAD) as u8 == AF_INET
    }

    fn mtu(&self) -> u32 {
        (self.get(HEAD) >> 48) as u32
    }

    fn ifindex(&self) -> u32 {
        self.get(INTERFACE) as u32
    }

    /// An IPv4 address is the lower half of the first.
    fn next_hop(&self) -> Addr {
        [self.get(DST), self.get(DST + 1)]
    }

    #[inline(always)]
    fn macs(&self) -> Macs {
        let (source, rest) = (self.get(MACS) >> 32, self.get(MACS + 1));
        Macs { first: rest >> 16 | source << 48, second: (source >> 16 | rest << 16) as u32 }
    }

    /// Where a packet with this key and so many bytes of IP goes; the answer is the kernel's verdict.
    #[inline(always)]
    fn ask(&mut self, packet: impl Packet, key: &Tuple, v6: bool, len: usize) -> i64 {
        // A packet of more than 64 kB stands for segments, whose length was asked about.
        let head = u64::from(IPPROTO_TCP) << 8 | u64::from(key.ports) << 16 | u64::from(len as u16) << 48;
        self.set(HEAD, head | u64::from(if v6 { AF_INET6 } else { AF_INET }));
        self.set(INTERFACE, packet.ifindex().into());
        for (at, addr) in [(SRC, key.src), (DST, key.dst)] {
            let [first, second] = if v6 { addr } else { [v4(addr).into(), 0] };
            self.set(at, first);
            self.set(at + 1, second);
        }
        self.set(MACS, 0);
        self.set(MACS + 1, 0);
        // SAFETY: context and parameters live through the call, and the length is the parameters' own.
        unsafe { bpf_fib_lookup(packet.ctx(), self.0.as_mut_ptr().cast(), size_of::<FibLookup>() as i32, 0) }
    }
}

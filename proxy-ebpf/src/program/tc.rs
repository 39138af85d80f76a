//! The TC programs. At ingress the splice, for interfaces whose packets come without checksums or in super-packets; at
//! egress, on every interface of the splice, silence about sessions that this kernel no longer knows.

use core::ffi::c_void;
use core::mem::{MaybeUninit, offset_of};
use core::ptr;

use aya_ebpf::bindings::{__sk_buff, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{
    bpf_check_mtu, bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_change_tail,
    bpf_skb_pull_data, bpf_skb_store_bytes, bpf_skb_vlan_pop, bpf_skb_vlan_push,
};
use aya_ebpf::programs::TcContext;
use pgsplice_ebpf::flow::{FLOW_TC, Flow, WATCH_TC, control, counter};

use super::headers::{ETH_P_8021Q, TCP_CHECKSUM_AT, TCP_FIN, TCP_FLAGS_AT, TCP_RST, TcpHead};
use super::icmp;
use super::key::{Key, Tuple};
use super::maps::{self, CONTROL, count};
use super::packet::{Packet, at, bounds};
use super::parse::{Kind, Parsed, parse};
use super::route::{self, Way};
use super::splice::{self, Verdict};
use super::sum::Sum;
use super::{guard, tcp, watch};

/// `tc_index` of a forwarded RST or FIN, by which the egress program knows it from this kernel's own.
const FORWARDED: u16 = 0x5073;
/// No interface has a smaller MTU and carries what we splice: RFC 879 and RFC 8200.
const MIN_MTU_V4: usize = 576;
const MIN_MTU_V6: usize = 1280;

/// At ingress.
#[inline(always)]
pub fn splice(ctx: &TcContext) -> i32 {
    ingress(Tc::<false>(ctx.skb.skb)).unwrap_or(TC_ACT_UNSPEC)
}

/// `None`: not ours, for whatever program comes next.
#[inline(always)]
fn ingress(packet: Tc<false>) -> Option<i32> {
    let (mut parsed, mut key) = (Parsed::new(), MaybeUninit::<Key>::uninit());
    match parse(packet, &mut parsed, &mut key)? {
        Kind::Tcp => {}
        Kind::Icmp if icmp::taken(packet, parsed.l3, parsed.l4, parsed.v6()) => return Some(TC_ACT_SHOT),
        _ => return None,
    }
    // SAFETY: written for TCP.
    let key: &Tuple = unsafe { key.assume_init_ref() };
    if let Some(flow) = maps::flow(key) {
        return match splice::take(packet, &parsed, key, flow) {
            Verdict::Up => None,
            Verdict::Drop => Some(TC_ACT_SHOT),
            Verdict::Sent(action) => Some(action),
            Verdict::Gone => {
                watch::begin(packet, &parsed, key);
                None
            }
        };
    }
    let listener = if parsed.opens() { guard::listener(packet, key, parsed.v6()) } else { None };
    match listener {
        Some(id) => watch::open(packet, &parsed, key, id),
        None => watch::update(packet, &parsed, key),
    }
    None
}

/// At egress: a session that is handed off is ended by its two ends, not by the sockets it leaves behind here.
#[inline(always)]
pub fn keep_quiet(ctx: &TcContext) -> i32 {
    if is_own_end(Tc::<true>(ctx.skb.skb)).unwrap_or(false) {
        count(counter::OWN_END);
        return TC_ACT_SHOT;
    }
    TC_ACT_UNSPEC
}

/// Is it a RST or a FIN that this kernel made up? A RST because it no longer knows the tuple, a FIN because the process
/// was killed before it could close the sockets silently. What user space itself has to say comes when the control word
/// is CUT; data passes, and loses its FIN.
#[inline(always)]
fn is_own_end(packet: Tc<true>) -> Option<bool> {
    let (mut parsed, mut key) = (Parsed::new(), MaybeUninit::<Key>::uninit());
    if parse(packet, &mut parsed, &mut key)? != Kind::Tcp || parsed.flags & (TCP_RST | TCP_FIN) == 0 {
        return None;
    }
    // SAFETY: the context is a valid __sk_buff as long as the program runs.
    if unsafe { (*packet.0).tc_index } == u32::from(FORWARDED) {
        return None;
    }
    // SAFETY: written for TCP.
    let key: &Tuple = unsafe { key.assume_init_ref() };
    let slot = maps::flow(&key.reversed())?.slot;
    // SAFETY: a value of an array map, aligned; user space writes it at any time.
    let word = unsafe { ptr::read_volatile(CONTROL.get_ptr(slot)?) };
    if parsed.flags & TCP_RST != 0 {
        return Some(matches!(word, control::HOLD | control::LIVE));
    }
    let header = tcp::header(packet, &parsed)?;
    if word != control::LIVE || header.payload == 0 {
        return Some(word == control::LIVE);
    }
    let TcpHead { offset, flags, .. } = header.tcp.head;
    let [old, new] = [flags, flags & !TCP_FIN].map(|flags| u32::from(u16::from_ne_bytes([offset, flags])));
    packet.store(parsed.l4 + TCP_FLAGS_AT, &(flags & !TCP_FIN))?;
    packet.mend(parsed.l4, header.tcp.checksum, Sum::ZERO, Sum::ZERO.change(old, new), None)?;
    None
}

/// Of a VLAN leg on an interface below its VLAN device: asks for the way and writes its addresses into the packet. False:
/// there is none. `place` is `l3`, and 256 for IPv6.
///
/// A function of its own for the room it takes on the stack.
#[inline(never)]
fn address<P: Packet>(packet: P, place: usize, flow: &Flow, len: usize) -> bool {
    let Some((Way { macs, .. }, _)) = route::find(packet, place & 31, place > 31, flow, len) else { return false };
    packet.store(0, &macs.first).is_some() && packet.store(8, &macs.second).is_some()
}

#[derive(Clone, Copy)]
struct Tc<const EGRESS: bool>(*mut __sk_buff);

impl<const EGRESS: bool> Tc<EGRESS> {
    /// Is a tag beside the packet?
    #[inline(always)]
    fn is_tagged(self) -> bool {
        // SAFETY: the context is a valid __sk_buff as long as the program runs.
        unsafe { (*self.0).vlan_present != 0 }
    }
}

impl<const EGRESS: bool> Packet for Tc<EGRESS> {
    /// At ingress the kernel has taken the tag out; a VLAN device puts it in before egress.
    const TAG_IN_FRAME: bool = EGRESS;
    const FLOW: u16 = FLOW_TC;
    const WATCH: u16 = WATCH_TC;
    const FORWARDED: u32 = counter::FORWARDED_TC;

    const DATA_AT: usize = offset_of!(__sk_buff, data);
    /// The kernel finds it, or it stands in the packet already.
    type Way = ();

    #[inline(always)]
    fn ctx(self) -> *mut c_void {
        self.0.cast()
    }

    #[inline(always)]
    fn ifindex(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).ifindex }
    }

    #[inline(always)]
    fn len(self) -> usize {
        // SAFETY: as above.
        unsafe { (*self.0).len as usize }
    }

    #[inline(always)]
    fn tag(self) -> Option<u16> {
        if EGRESS || !self.is_tagged() {
            return Some(0);
        }
        // SAFETY: as above.
        let (kind, tci) = unsafe { ((*self.0).vlan_proto, (*self.0).vlan_tci) };
        (kind == u32::from(ETH_P_8021Q.to_be())).then_some(tci as u16)
    }

    #[inline(always)]
    fn segment(self) -> usize {
        // SAFETY: as above.
        unsafe { (*self.0).gso_size as usize }
    }

    #[inline(always)]
    fn hold(self, end: usize) -> bool {
        let (start, past) = bounds(self);
        if start + end <= past {
            return true;
        }
        // What this kernel sends has its headers in one piece.
        if EGRESS || end > self.len() {
            return false;
        }
        // SAFETY: the context is a valid __sk_buff; no pointer into the packet lives across the call.
        unsafe { bpf_skb_pull_data(self.0, end as u32) == 0 }
    }

    /// A program that writes directly has every packet that others share (as a sender on this host does what it may
    /// have to repeat) copied before it runs. At ingress that is what most of them need anyway, and a third cheaper
    /// than the helper; at egress nearly none does.
    #[inline(always)]
    fn store<T: Copy>(self, offset: usize, value: &T) -> Option<()> {
        if EGRESS {
            let from = ptr::from_ref(value).cast_mut().cast();
            // SAFETY: the value lives through the call and the length is its own.
            let done = unsafe { bpf_skb_store_bytes(self.0, offset as u32, from, size_of::<T>() as u32, 0) };
            return (done == 0).then_some(());
        }
        let to = at::<T>(self, offset)?;
        // SAFETY: `at` proved all of T within the readable part, which is this packet's alone.
        unsafe { ptr::write_unaligned(to, *value) };
        Some(())
    }

    /// By the helper, which knows whether the field is a checksum or the seed of one (CHECKSUM_PARTIAL).
    #[inline(always)]
    fn mend(self, l4: usize, _: u16, pseudo: Sum, segment: Sum, l3: Option<Sum>) -> Option<()> {
        let at = (l4 + TCP_CHECKSUM_AT) as u32;
        // SAFETY: the context is a valid __sk_buff as long as the program runs.
        unsafe {
            if bpf_l4_csum_replace(self.0, at, 0, pseudo.word().into(), BPF_F_PSEUDO_HDR.into()) != 0
                || bpf_l4_csum_replace(self.0, at, 0, segment.word().into(), 0) != 0
            {
                return None;
            }
            // The helper takes the sum over the packet (CHECKSUM_COMPLETE) to lose what the pseudo header gained. Over
            // IPv6 it does not, as the addresses are in the packet too and no header checksum makes up for them.
            if let Some(l3) = l3 {
                bpf_csum_update(self.0, l3.word());
            }
        }
        Some(())
    }

    /// With CHECKSUM_PARTIAL the field is to hold the sum of the pseudo header. The helper leaves it at that, and
    /// makes a checksum of it everywhere else: `!(!p + d)` is `!(p + segment)` for `d = 2p + segment`.
    #[inline(always)]
    fn seal(self, l4: usize, pseudo: Sum, segment: Sum) -> Option<()> {
        let at = l4 + TCP_CHECKSUM_AT;
        let seed = pseudo.fold();
        self.store(at, &seed)?;
        let difference = segment.add(u32::from(seed)).add(u32::from(seed)).word();
        // SAFETY: the context is a valid __sk_buff as long as the program runs.
        let done = unsafe { bpf_l4_csum_replace(self.0, at as u32, 0, difference.into(), 0) };
        (done == 0).then_some(())
    }

    #[inline(always)]
    fn way(self, parsed: &Parsed, flow: &Flow, len: usize) -> Option<()> {
        if flow.out_vlan != 0 {
            let place = parsed.l3 | usize::from(parsed.v6()) << 8;
            return address(self, place, flow, len).then_some(());
        }
        if len > if parsed.v6() { MIN_MTU_V6 } else { MIN_MTU_V4 } {
            let mut mtu = len as u32;
            // SAFETY: context and length live through the call.
            let done = unsafe { bpf_check_mtu(self.ctx(), flow.out_ifindex, &mut mtu, 0, 0) };
            if done < 0 {
                count(counter::NO_ROUTE);
                return None;
            }
            // Its verdict lets super-packets pass; the MTU it leaves behind does not.
            if len > mtu as usize {
                route::too_long(self, parsed.l3, flow, mtu);
                return None;
            }
        }
        Some(())
    }

    #[inline(always)]
    fn send(self, _: &Parsed, flow: &Flow, (): &(), ends: bool) -> Option<i32> {
        if ends {
            // SAFETY: the context is a valid __sk_buff as long as the program runs.
            unsafe { (*self.0).tc_index = u32::from(FORWARDED) };
        }
        // SAFETY: the context is a valid __sk_buff; no pointer into the packet lives across the call.
        if self.is_tagged() && unsafe { bpf_skb_vlan_pop(self.0) } != 0 {
            return None;
        }
        if flow.out_vlan == 0 {
            // SAFETY: no parameters are given.
            return Some(unsafe { bpf_redirect_neigh(flow.out_ifindex, ptr::null_mut(), 0, 0) } as i32);
        }
        // SAFETY: as for the pop.
        if unsafe { bpf_skb_vlan_push(self.0, ETH_P_8021Q.to_be(), flow.out_vlan) } != 0 {
            return None;
        }
        // SAFETY: the helper takes no pointers.
        Some(unsafe { bpf_redirect(flow.out_ifindex, 0) } as i32)
    }

    #[inline(always)]
    fn turn(self, len: usize) -> Option<i32> {
        // SAFETY: the context is a valid __sk_buff; no pointer into the packet lives across the call.
        if unsafe { bpf_skb_change_tail(self.0, len as u32, 0) } != 0 {
            return None;
        }
        // SAFETY: the helper takes no pointers.
        Some(unsafe { bpf_redirect(self.ifindex(), 0) } as i32)
    }
}

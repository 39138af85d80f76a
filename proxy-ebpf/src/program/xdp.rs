//! The XDP program: admission, then the splice.

use core::ffi::c_void;
use core::mem::{MaybeUninit, offset_of};
use core::ptr;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len};
use aya_ebpf::programs::XdpContext;
use pgsplice_ebpf::flow::{FLOW_REDIRECT, FLOW_XDP, Flow, NO_LISTENER, WATCH_XDP, counter};

use super::guard;
use super::headers::{ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, Ethernet, TCP_CHECKSUM_AT, Vlan};
use super::icmp;
use super::key::{Key, Tuple};
use super::maps;
use super::packet::{Packet, at, bounds};
use super::parse::{Kind, Parsed, parse};
use super::route::{self, Way};
use super::splice::{self, Verdict};
use super::sum::Sum;
use super::watch;

/// The verdict on a frame. With `SPLICE`, flows are forwarded; without, the program is only the guard's. With `FRAGS`,
/// a frame may be in several buffers, of which the first has the headers.
#[inline(always)]
pub fn admit<const SPLICE: bool, const FRAGS: bool>(ctx: &XdpContext) -> u32 {
    verdict::<SPLICE, FRAGS>(Xdp(ctx.ctx)).unwrap_or(XDP_PASS)
}

/// `None` (a cut-off header) passes.
#[inline(always)]
fn verdict<const SPLICE: bool, const FRAGS: bool>(packet: Xdp<FRAGS>) -> Option<u32> {
    let (mut parsed, mut key) = (Parsed::new(), MaybeUninit::<Key>::uninit());
    let kind = parse(packet, &mut parsed, &mut key)?;
    if kind == Kind::Other {
        return None;
    }
    // SAFETY: written for every other kind.
    let key: &Tuple = unsafe { key.assume_init_ref() };
    match kind {
        Kind::Tcp => {}
        Kind::Icmp if SPLICE && icmp::taken(packet, parsed.l3, parsed.l4, parsed.v6()) => return Some(XDP_DROP),
        // It may be for a listener and cannot be told: refuse it to those who are denied, and to nobody else.
        Kind::TooDeep if guard::denies(key, parsed.v6()) => return Some(XDP_DROP),
        _ => return None,
    }
    if SPLICE && let Some(flow) = maps::flow(key) {
        return Some(flow_packet(packet, &parsed, key, flow));
    }
    let listener = guard::listener(packet, key, parsed.v6());
    if let Some(id) = listener
        && guard::refuses(id, &parsed, key, packet.len())
    {
        return Some(XDP_DROP);
    }
    if SPLICE {
        match listener {
            Some(id) if parsed.opens() => watch::open(packet, &parsed, key, id),
            _ => watch::update(packet, &parsed, key),
        }
    }
    Some(XDP_PASS)
}

#[inline(always)]
fn flow_packet<const FRAGS: bool>(packet: Xdp<FRAGS>, parsed: &Parsed, key: &Tuple, flow: &Flow) -> u32 {
    if flow.listener != NO_LISTENER && guard::refuses(flow.listener, parsed, key, packet.len()) {
        return XDP_DROP;
    }
    match splice::take(packet, parsed, key, flow) {
        Verdict::Up => XDP_PASS,
        Verdict::Drop => XDP_DROP,
        Verdict::Sent(action) => action as u32,
        Verdict::Gone => {
            watch::begin(packet, parsed, key);
            XDP_PASS
        }
    }
}

#[derive(Clone, Copy)]
struct Xdp<const FRAGS: bool>(*mut xdp_md);

impl<const FRAGS: bool> Packet for Xdp<FRAGS> {
    const TAG_IN_FRAME: bool = true;
    const FLOW: u16 = FLOW_XDP;
    const WATCH: u16 = WATCH_XDP;
    const FORWARDED: u32 = counter::FORWARDED_XDP;

    const DATA_AT: usize = offset_of!(xdp_md, data);
    type Way = Way;

    #[inline(always)]
    fn ctx(self) -> *mut c_void {
        self.0.cast()
    }

    #[inline(always)]
    fn ifindex(self) -> u32 {
        // SAFETY: the context is a valid xdp_md as long as the program runs.
        unsafe { (*self.0).ingress_ifindex }
    }

    #[inline(always)]
    fn len(self) -> usize {
        if FRAGS {
            // SAFETY: the helper takes the context this program was called with.
            return unsafe { bpf_xdp_get_buff_len(self.0) } as usize;
        }
        let (start, end) = bounds(self);
        end - start
    }

    /// What the driver has taken out of the frame is not seen here: such an interface is for TC.
    #[inline(always)]
    fn tag(self) -> Option<u16> {
        Some(0)
    }

    #[inline(always)]
    fn segment(self) -> usize {
        0
    }

    #[inline(always)]
    fn hold(self, end: usize) -> bool {
        let (start, past) = bounds(self);
        start + end <= past
    }

    #[inline(always)]
    fn store<T: Copy>(self, offset: usize, value: &T) -> Option<()> {
        let to = at::<T>(self, offset)?;
        // SAFETY: `at` proved all of T within the frame.
        unsafe { ptr::write_unaligned(to, *value) };
        Some(())
    }

    #[inline(always)]
    fn mend(self, l4: usize, old: u16, pseudo: Sum, segment: Sum, _: Option<Sum>) -> Option<()> {
        self.store(l4 + TCP_CHECKSUM_AT, &pseudo.with(segment).mend(old))
    }

    #[inline(always)]
    fn seal(self, l4: usize, pseudo: Sum, segment: Sum) -> Option<()> {
        self.store(l4 + TCP_CHECKSUM_AT, &!pseudo.with(segment).fold())
    }

    #[inline(always)]
    fn way(self, parsed: &Parsed, flow: &Flow, len: usize) -> Option<Way> {
        route::find_again(self, parsed.l3, parsed.v6(), flow, len)
    }

    #[inline(always)]
    fn send(self, parsed: &Parsed, flow: &Flow, way: &Way, _ends: bool) -> Option<i32> {
        let tagged = flow.out_vlan != 0;
        let grow = match (parsed.tagged(), tagged) {
            (true, false) => size_of::<Vlan>() as i32,
            (false, true) => -(size_of::<Vlan>() as i32),
            _ => 0,
        };
        if grow != 0 {
            // SAFETY: the helper takes the context this program was called with.
            if unsafe { bpf_xdp_adjust_head(self.0, grow) } != 0 {
                return None;
            }
        }
        let ip = (if parsed.v6() { ETH_P_IPV6 } else { ETH_P_IP }).to_be();
        let kind = if tagged { ETH_P_8021Q.to_be() } else { ip };
        self.store(0, &way.macs.first)?;
        self.store(8, &way.macs.second)?;
        self.store(12, &kind)?;
        if tagged {
            self.store(size_of::<Ethernet>(), &Vlan { tci: flow.out_vlan.to_be(), kind: ip })?;
        }
        if way.ifindex == self.ifindex() && flow.flags & FLOW_REDIRECT == 0 {
            return Some(XDP_TX as i32);
        }
        // SAFETY: the helper takes no pointers.
        Some(unsafe { bpf_redirect(way.ifindex, 0) } as i32)
    }

    #[inline(always)]
    fn turn(self, len: usize) -> Option<i32> {
        let shrink = len as i32 - self.len() as i32;
        // SAFETY: the helper takes the context this program was called with.
        if unsafe { bpf_xdp_adjust_tail(self.0, shrink) } != 0 {
            return None;
        }
        Some(XDP_TX as i32)
    }
}

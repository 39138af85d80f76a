//! A packet whose tuple is a flow's: forwarded, held, refused or sent up, as the session's control word has it.

use core::ptr;

use pgsplice_ebpf::flow::{Flow, SIDE_HELD, SIDE_RST, control, counter, event as kind};

use super::headers::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, be32};
use super::key::{Tuple, out};
use super::maps::{CONTROL, FLOWS, count};
use super::packet::Packet;
use super::parse::Parsed;
use super::tcp::{self, Header};
use super::track::{Change, Numbers, Sides};
use super::{event, options, reset, rewrite};

pub enum Verdict {
    /// For this host's stack.
    Up,
    /// The flow is gone: as if it had never been one.
    Gone,
    Drop,
    /// On its way; what the program returns then.
    Sent(i32),
}

/// A packet with this flow's tuple.
#[inline(always)]
pub fn take<P: Packet>(packet: P, parsed: &Parsed, key: &Tuple, flow: &Flow) -> Verdict {
    if flow.flags & P::FLOW == 0 {
        return Verdict::Up;
    }
    let Some(word) = CONTROL.get_ptr(flow.slot) else { return Verdict::Up };
    // SAFETY: a value of an array map, aligned; user space writes it at any time.
    let word = unsafe { ptr::read_volatile(word) };
    if !matches!(word, control::HOLD | control::LIVE | control::CUT) {
        return Verdict::Up;
    }
    if parsed.fragment() {
        return dropped(counter::FRAGMENT);
    }
    if parsed.strays(packet) {
        return dropped(counter::EXTENSION);
    }
    let Some(header) = tcp::header(packet, parsed) else { return dropped(counter::MALFORMED) };
    let Some(sides) = Sides::of(flow) else { return Verdict::Up };
    if word == control::HOLD {
        return hold(packet, parsed, flow, &header, &sides);
    }
    if header.tcp.head.flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN
        && (word == control::CUT
            || sides.are_closed()
                && sides.may_reopen(be32(header.tcp.head.seq), options::tsval(packet, parsed.l4, header.len)))
    {
        let slot = flow.slot;
        remove(key, flow);
        event::tell(kind::REUSED, slot, packet.ifindex());
        return Verdict::Gone;
    }
    if word == control::CUT {
        return cut(packet, parsed, &header);
    }
    live(packet, parsed, key, flow, &header, &sides)
}

#[inline(always)]
fn live<P: Packet>(packet: P, parsed: &Parsed, key: &Tuple, flow: &Flow, header: &Header, sides: &Sides) -> Verdict {
    let segment = packet.segment();
    let len = if segment == 0 { parsed.ip_len } else { parsed.ip_len - header.payload + segment };
    let Some(way) = packet.way(parsed, flow, len) else { return Verdict::Drop };
    let ack = header.tcp.head.flags & TCP_ACK != 0;
    let Some(options) = options::rewrite(packet, parsed.l4, header.len, ack, flow) else {
        return dropped(counter::MALFORMED);
    };
    let numbers = numbers(flow, header, options.tsval);
    if rewrite::headers(packet, parsed, flow, header, options.sum).is_none() {
        return dropped(counter::MALFORMED);
    }
    let Some(sent) = packet.send(parsed, flow, &way, numbers.has(TCP_RST | TCP_FIN)) else {
        return dropped(counter::NO_ROUTE);
    };
    count(P::FORWARDED);
    sides.count();
    let slot = flow.slot;
    match sides.track(&numbers) {
        Change::None => {}
        Change::Closed => event::tell(kind::CLOSED, slot, packet.ifindex()),
        Change::Reset => {
            remove(key, flow);
            event::tell(kind::RESET, slot, packet.ifindex());
        }
    }
    Verdict::Sent(sent)
}

/// Between installing the flows and being sure that nothing was in flight.
#[inline(always)]
fn hold(packet: impl Packet, parsed: &Parsed, flow: &Flow, header: &Header, sides: &Sides) -> Verdict {
    let flags = header.tcp.head.flags;
    if flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK) == TCP_ACK && header.payload == 0 {
        sides.track(&numbers(flow, header, options::tsval(packet, parsed.l4, header.len)));
        return Verdict::Up;
    }
    let reset = flags & TCP_RST != 0 && sides.believes_rst(be32(header.tcp.head.seq));
    sides.note(SIDE_HELD | if reset { SIDE_RST } else { 0 });
    dropped(counter::HELD)
}

#[inline(always)]
fn cut(packet: impl Packet, parsed: &Parsed, header: &Header) -> Verdict {
    if header.tcp.head.flags & TCP_RST != 0 {
        return Verdict::Drop;
    }
    match reset::answer(packet, parsed, header) {
        Some(sent) => {
            count(counter::CUT);
            Verdict::Sent(sent)
        }
        None => dropped(counter::MALFORMED),
    }
}

#[inline(always)]
fn numbers(flow: &Flow, header: &Header, tsval: options::Tsval) -> Numbers {
    let head = &header.tcp.head;
    Numbers {
        flags: head.flags,
        seq: be32(head.seq),
        ack: be32(head.ack).wrapping_add(flow.ack_delta),
        window: rewrite::window_bytes(head, flow) as u32,
        payload: header.payload as u32,
        tsval,
    }
}

/// Removes both flows of the session. What `flow` refers to may be another's after this.
#[inline(always)]
fn remove(key: &Tuple, flow: &Flow) {
    let other = out(flow).reversed();
    let other: &Tuple = &other;
    let _ = FLOWS.remove(key);
    let _ = FLOWS.remove(other);
}

#[inline(always)]
fn dropped(counter: u32) -> Verdict {
    count(counter);
    Verdict::Drop
}

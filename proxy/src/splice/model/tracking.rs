//! What is believed of a packet: the rules at `SideState`.

use pgsplice_ebpf::flow::{
    FLOW_FROM_CLIENT, Flow, SIDE_FIN, SIDE_FIN_ACKED, SIDE_FIN_FIRST, SIDE_RST, SLACK, SessionState, SideState,
};

use super::bytes::Segment;
use super::{ACK, FIN, RST, SYN};

/// A session seen from the sender of a packet: X, and the other side.
pub struct Sides {
    pub x: SideState,
    pub y: SideState,
    from_client: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    None,
    Closed,
    Reset,
}

/// In the order of sequence numbers and timestamps. Of two that are half of all numbers apart, each is after the other, as
/// the kernel's `after()` has it.
pub fn is_after(a: u32, b: u32) -> bool {
    b.wrapping_sub(a) >= 1 << 31
}

fn later(a: u32, b: u32) -> u32 {
    if is_after(b, a) { b } else { a }
}

impl Sides {
    pub fn of(flow: &Flow, state: SessionState) -> Self {
        let [client, backend] = state.side;
        match flow.flags & FLOW_FROM_CLIENT != 0 {
            true => Self { x: client, y: backend, from_client: true },
            false => Self { x: backend, y: client, from_client: false },
        }
    }

    pub fn state(self) -> SessionState {
        SessionState { side: if self.from_client { [self.x, self.y] } else { [self.y, self.x] } }
    }

    pub fn count(&mut self) {
        self.x.packets += 1;
    }

    pub fn believes_rst(&self, seq: u32) -> bool {
        [self.x.acked, self.x.seq_end].contains(&seq)
            || self.x.flags & SIDE_FIN != 0 && seq == self.x.fin_end.wrapping_sub(1)
    }

    pub fn track(&mut self, segment: &Segment, flow: &Flow, tsval: Option<u32>, now_ns: u64) -> Change {
        let Self { x, y, .. } = self;
        if segment.has(SYN) {
            return Change::None;
        }
        if segment.has(RST) {
            if !self.believes_rst(segment.seq) {
                return Change::None;
            }
            self.x.flags |= SIDE_RST;
            return Change::Reset;
        }
        let ack = segment.ack.wrapping_add(flow.ack_delta);
        let reach = later(x.seq_end, x.acked.wrapping_add(x.window));
        if !segment.has(ACK) || !near(segment.seq, x.acked, reach, x.window) || !near(ack, y.acked, y.seq_end, y.window)
        {
            return Change::None;
        }

        let acked = x.acked;
        let end = segment.seq.wrapping_add(segment.payload as u32).wrapping_add(u32::from(segment.has(FIN)));
        x.last_ns = now_ns;
        x.tsval = tsval.unwrap_or(x.tsval);
        let last = end.wrapping_sub(u32::from(segment.has(FIN)));
        if is_after(last, x.seq_end) {
            x.bytes += u64::from(last.wrapping_sub(x.seq_end));
        }
        x.seq_end = later(x.seq_end, end);
        let mut change = Change::None;
        if !is_after(y.acked, ack) {
            y.seq_end = later(y.seq_end, ack);
            y.acked = ack;
            y.window = u32::from(segment.window) << flow.in_wscale;
            if y.flags & (SIDE_FIN | SIDE_FIN_ACKED) == SIDE_FIN && !is_after(y.fin_end, ack) {
                y.flags |= SIDE_FIN_ACKED;
                if x.flags & SIDE_FIN_ACKED != 0 {
                    change = Change::Closed;
                }
            }
        }
        if segment.has(FIN) && is_after(end, acked) && x.flags & SIDE_FIN_ACKED == 0 {
            x.fin_end = end;
            if (x.flags | y.flags) & SIDE_FIN == 0 {
                x.flags |= SIDE_FIN_FIRST;
            }
            x.flags |= SIDE_FIN;
        }
        change
    }
}

/// From `low` to `high`, or beyond by no more than the window or `SLACK`.
fn near(number: u32, low: u32, high: u32, window: u32) -> bool {
    let slack = window.max(SLACK);
    !is_after(low.wrapping_sub(slack), number) && !is_after(number, high.wrapping_add(slack))
}

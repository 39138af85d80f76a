//! What is believed of a packet and kept in `SESSIONS`: see `SideState` for the rules.

use core::ptr;

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use pgsplice_ebpf::flow::{
    FLOW_FROM_CLIENT, Flow, SIDE_FIN, SIDE_FIN_ACKED, SIDE_FIN_FIRST, SIDE_RST, SLACK, SessionState, SideState,
};

use super::headers::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
use super::maps::{SESSIONS, add, set_bits};
use super::options::Tsval;

/// The numbers of a packet from X.
pub struct Numbers {
    pub flags: u8,
    pub seq: u32,
    /// In Y's numbers.
    pub ack: u32,
    /// In bytes.
    pub window: u32,
    pub payload: u32,
    pub tsval: Tsval,
}

impl Numbers {
    #[inline(always)]
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
}

/// What a packet did to its session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Change {
    None,
    /// A RST to be believed.
    Reset,
    /// Both FINs are acknowledged now.
    Closed,
}

/// Both sides of a session, as seen from the sender of a packet.
#[derive(Clone, Copy)]
pub struct Sides {
    x: *mut SideState,
    y: *mut SideState,
}

#[inline(always)]
pub fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

macro_rules! get {
    ($side:expr, $field:ident) => {
        // SAFETY: `Sides` are made of values of SESSIONS only; other CPUs write them, hence volatile.
        unsafe { ptr::read_volatile(&raw const (*$side).$field) }
    };
}

/// Writes only what changes, so that the line stays shared where nothing does.
macro_rules! set {
    ($side:expr, $field:ident, $value:expr) => {{
        let value = $value;
        if get!($side, $field) != value {
            // SAFETY: as above.
            unsafe { ptr::write_volatile(&raw mut (*$side).$field, value) };
        }
    }};
}

impl Sides {
    #[inline(always)]
    pub fn of(flow: &Flow) -> Option<Self> {
        let state: *mut SessionState = SESSIONS.get_ptr_mut(flow.slot)?;
        // SAFETY: within the value that the verifier knows.
        let (client, backend) = unsafe { (&raw mut (*state).side[0], &raw mut (*state).side[1]) };
        Some(match flow.flags & FLOW_FROM_CLIENT {
            0 => Self { x: backend, y: client },
            _ => Self { x: client, y: backend },
        })
    }

    /// A packet that was forwarded.
    #[inline(always)]
    pub fn count(&self) {
        // SAFETY: a field of a value of SESSIONS, at a multiple of 8.
        unsafe { add(&raw mut (*self.x).packets, 1) };
    }

    /// Sets `SIDE_*` flags of X.
    #[inline(always)]
    pub fn note(&self, flags: u32) {
        if get!(self.x, flags) & flags != flags {
            // SAFETY: a field of a value of SESSIONS, at a multiple of 4.
            unsafe { set_bits(&raw mut (*self.x).flags, flags) };
        }
    }

    /// FIN both ways, both acknowledged.
    #[inline(always)]
    pub fn are_closed(&self) -> bool {
        get!(self.x, flags) & get!(self.y, flags) & SIDE_FIN_ACKED != 0
    }

    /// May X open a new connection with this SYN on the tuple of one that is closed? As TIME-WAIT has it (RFC 6191).
    #[inline(always)]
    pub fn may_reopen(&self, seq: u32, tsval: Tsval) -> bool {
        before(get!(self.x, seq_end), seq) || tsval.get().is_some_and(|tsval| before(get!(self.x, tsval), tsval))
    }

    /// A RST counts only at exactly the number that Y expects (RFC 5961, section 3.2), which is one of these unless some
    /// of what is under way has arrived. Y answers any other with an ACK, and X that with a RST that counts. Behind a FIN
    /// Linux takes the FIN's own number as well, because some systems reset with it and then answer nothing.
    #[inline(always)]
    pub fn believes_rst(&self, seq: u32) -> bool {
        seq == get!(self.x, acked)
            || seq == get!(self.x, seq_end)
            || get!(self.x, flags) & SIDE_FIN != 0 && seq == get!(self.x, fin_end).wrapping_sub(1)
    }

    /// Takes the numbers of a packet over if they fit.
    #[inline(always)]
    pub fn track(&self, n: &Numbers) -> Change {
        if n.has(TCP_SYN) {
            return Change::None;
        }
        if n.has(TCP_RST) {
            if !self.believes_rst(n.seq) {
                return Change::None;
            }
            self.note(SIDE_RST);
            return Change::Reset;
        }
        let Self { x, y } = *self;
        let (acked, seq_end, window) = (get!(x, acked), get!(x, seq_end), get!(x, window));
        let (y_acked, y_seq_end) = (get!(y, acked), get!(y, seq_end));
        let end = n.seq.wrapping_add(n.payload).wrapping_add(u32::from(n.has(TCP_FIN)));
        if !n.has(TCP_ACK)
            || !within(n.seq, acked, later(seq_end, acked.wrapping_add(window)), window)
            || !within(n.ack, y_acked, y_seq_end, get!(y, window))
        {
            return Change::None;
        }

        // SAFETY: the helper takes nothing.
        set!(x, last_ns, unsafe { bpf_ktime_get_coarse_ns() });
        if let Some(tsval) = n.tsval.get() {
            set!(x, tsval, tsval);
        }
        let last = end.wrapping_sub(u32::from(n.has(TCP_FIN)));
        if before(seq_end, last) {
            // SAFETY: a field of a value of SESSIONS, at a multiple of 8.
            unsafe { add(&raw mut (*x).bytes, u64::from(last.wrapping_sub(seq_end))) };
        }
        // A packet of the other side's may be moving it on another CPU at this moment: what is not later is not written.
        if before(seq_end, end) {
            set!(x, seq_end, end);
        }
        let mut change = Change::None;
        if !before(n.ack, y_acked) {
            // Y must have sent what X has.
            if before(y_seq_end, n.ack) {
                set!(y, seq_end, n.ack);
            }
            set!(y, acked, n.ack);
            set!(y, window, n.window);
            let flags = get!(y, flags);
            if flags & (SIDE_FIN | SIDE_FIN_ACKED) == SIDE_FIN && !before(n.ack, get!(y, fin_end)) {
                // SAFETY: a field of a value of SESSIONS, at a multiple of 4.
                let old = unsafe { set_bits(&raw mut (*y).flags, SIDE_FIN_ACKED) };
                if old & SIDE_FIN_ACKED == 0 && get!(x, flags) & SIDE_FIN_ACKED != 0 {
                    change = Change::Closed;
                }
            }
        }
        if n.has(TCP_FIN) && before(acked, end) && get!(x, flags) & SIDE_FIN_ACKED == 0 {
            set!(x, fin_end, end);
            let first = get!(x, flags) & SIDE_FIN == 0 && get!(y, flags) & SIDE_FIN == 0;
            self.note(SIDE_FIN | if first { SIDE_FIN_FIRST } else { 0 });
        }
        change
    }
}

#[inline(always)]
fn later(a: u32, b: u32) -> u32 {
    if before(a, b) { b } else { a }
}

/// Is `number` from `low` to `high`, or beyond by no more than the window or `SLACK`?
#[inline(always)]
fn within(number: u32, low: u32, high: u32, window: u32) -> bool {
    let slack = if window < SLACK { SLACK } else { window };
    !before(number, low.wrapping_sub(slack)) && !before(high.wrapping_add(slack), number)
}

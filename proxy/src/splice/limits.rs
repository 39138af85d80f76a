//! What the numbers of a session in the kernel say of its ends: who is silent, for how long, and what that comes to under
//! the configured limits. The sweep looks at each session this way once a tick.

use std::time::Duration;

use pgsplice_ebpf::flow::{SIDE_FIN, SessionState};

use super::sweep::{Due, TICK, monotonic_ns};
use super::table::{Session, reset_by};
use crate::config;
use crate::session::Termination;

/// Unanswered data ends a session after this long where `user_timeout` is 0: about what tcp_retries2 = 15 comes to.
const UNANSWERED: Duration = Duration::from_secs(924);

/// How long nothing has come of a session, of each kind.
pub(super) struct Silence {
    /// Of both, nothing but acknowledgements.
    pub still: Duration,
    /// Of each side, nothing at all.
    pub quiet: [Duration; 2],
    /// Of each side, nothing at all while data awaited its acknowledgement.
    pub unanswered: [Duration; 2],
}

impl Silence {
    /// `awaited`: looks in a row, one a tick, at which a side had not acknowledged everything.
    pub fn new(still: Duration, quiet: [Duration; 2], awaited: [u16; 2]) -> Self {
        // What was sent after a long rest awaits its answer since then, and not since the rest began.
        let at_least = |looks: u16| if looks == u16::MAX { Duration::MAX } else { TICK * u32::from(looks.max(1) - 1) };
        Self { still, quiet, unanswered: [0, 1].map(|side: usize| quiet[side].min(at_least(awaited[side]))) }
    }
}

/// What has to be done about a session in which nothing happens. `probes` are the keepalives sent to each side since it was
/// last heard, which this counts.
pub(super) fn overdue(state: &SessionState, silence: &Silence, session: &Session, probes: &mut [u8; 2]) -> Option<Due> {
    let pool = session.pool.as_ref().map(|pool| pool.config.load_full());
    let listener = session.listener.as_ref().map(|listener| listener.config.load_full());
    if let Some(pool) = &pool {
        let passed = |limit: Duration| !limit.is_zero() && silence.still > limit;
        // Still and half-closed is the case the limit is for; one that moves is at work.
        if is_half_closed(state) && passed(pool.timeouts.half_closed) {
            return Some(Due::Cut(Termination::HalfClosedTimeout));
        }
        if passed(pool.timeouts.idle) {
            return Some(Due::Cut(Termination::IdleTimeout));
        }
    }
    dead_peer(silence, [listener.as_ref().map(|l| &l.tcp), pool.as_ref().map(|p| &p.tcp)], probes)
}

/// What has to be done about sides that say nothing. `tcp` are the settings of each side's leg, where they are known.
fn dead_peer(silence: &Silence, tcp: [Option<&config::Tcp>; 2], probes: &mut [u8; 2]) -> Option<Due> {
    let quiet = silence.quiet;
    let mut ask = [false; 2];
    for side in [0, 1] {
        let Some(tcp) = tcp[side] else { continue };
        let limit = if tcp.user_timeout.is_zero() { UNANSWERED } else { tcp.user_timeout };
        if silence.unanswered[side] > limit {
            return Some(Due::Cut(reset_by(side)));
        }
        if has_answered(tcp, quiet[side], probes[side]) {
            probes[side] = 0;
        }
        match keepalive(tcp, quiet[side], probes[side]) {
            Keepalive::Heard => probes[side] = 0,
            Keepalive::Wait => {}
            Keepalive::Probe => {
                probes[side] += 1;
                ask[side] = true;
            }
            Keepalive::Dead => return Some(Due::Cut(reset_by(side))),
        }
    }
    ask.contains(&true).then_some(Due::Probe(ask))
}

#[derive(Debug, PartialEq, Eq)]
enum Keepalive {
    Heard,
    Wait,
    Probe,
    Dead,
}

/// Whether a side was heard since the last of so many keepalives. After that one it would be quiet for a tick more than it
/// was then, and an answer may be no younger than the limit is long.
fn has_answered(tcp: &config::Tcp, quiet: Duration, probes: u8) -> bool {
    probes > 0 && quiet < tcp.keepalive_idle + tcp.keepalive_interval * u32::from(probes - 1) + TICK / 2
}

/// As the kernel does for a socket of its own (tcp(7), TCP_KEEPIDLE and its kin).
fn keepalive(tcp: &config::Tcp, quiet: Duration, probes: u8) -> Keepalive {
    if tcp.keepalive_idle.is_zero() || quiet < tcp.keepalive_idle {
        return Keepalive::Heard;
    }
    let due = tcp.keepalive_idle + tcp.keepalive_interval * u32::from(probes);
    match quiet >= due {
        false => Keepalive::Wait,
        true if u32::from(probes) < tcp.keepalive_count => Keepalive::Probe,
        true => Keepalive::Dead,
    }
}

/// How long each side has said nothing.
pub(super) fn quiet(state: &SessionState) -> [Duration; 2] {
    let now = monotonic_ns();
    state.side.map(|side| Duration::from_nanos(now.saturating_sub(side.last_ns)))
}

/// Whether a direction has ended.
pub(super) fn is_half_closed(state: &SessionState) -> bool {
    state.side.iter().any(|side| side.flags & SIDE_FIN != 0)
}

/// Whether a side has not acknowledged all that the other sent.
pub(super) fn is_awaited(state: &SessionState, side: usize) -> bool {
    let other = &state.side[1 - side];
    other.seq_end.wrapping_sub(other.acked) as i32 > 0
}

/// Whether the client has not acknowledged all that the backend sent before the hand-off. Only the socket it was handed
/// over with has those bytes: the backend knows them acknowledged. The programs have seen all that came later.
pub(super) fn lacks_reply(state: &SessionState) -> bool {
    let backend = &state.side[1];
    let later = backend.bytes + u64::from(backend.flags & SIDE_FIN != 0);
    let due = backend.seq_end.wrapping_sub(backend.acked) as i32;
    u64::try_from(due).is_ok_and(|due| due > later)
}

#[cfg(test)]
mod tests {
    use pgsplice_ebpf::flow::SideState;

    use super::*;

    #[test]
    fn a_client_lacks_its_reply_until_it_has_acknowledged_every_byte_of_it() {
        let state = |seq_end, acked, bytes, flags| {
            let backend = SideState { seq_end, acked, bytes, flags, ..SideState::default() };
            SessionState { side: [SideState::default(), backend] }
        };
        // 30 bytes held at the hand-off, with 1000 the next of the backend's.
        assert!(lacks_reply(&state(1000, 970, 0, 0)));
        assert!(lacks_reply(&state(1000, 999, 0, 0)));
        assert!(!lacks_reply(&state(1000, 1000, 0, 0)));
        assert!(lacks_reply(&state(1500, 970, 500, 0)), "what was sent behind it does not stand for it");
        assert!(!lacks_reply(&state(1500, 1000, 500, 0)), "nor is what is under way a part of it");
        assert!(lacks_reply(&state(1501, 970, 500, SIDE_FIN)));
        assert!(!lacks_reply(&state(1501, 1000, 500, SIDE_FIN)));
        assert!(lacks_reply(&state(10, 10_u32.wrapping_sub(30), 0, 0)));
        assert!(!lacks_reply(&state(1000, 1200, 0, 0)), "an acknowledgement that came first");
    }

    #[test]
    fn each_side_is_asked_for_itself_and_one_that_answers_has_all_its_chances_again() {
        let tcp = config::Tcp {
            keepalive_idle: Duration::from_secs(60),
            keepalive_interval: Duration::from_secs(10),
            keepalive_count: 2,
            ..config::Tcp::default()
        };
        let mut probes = [0; 2];
        let mut at = |client, backend| {
            let quiet = [client, backend].map(Duration::from_secs);
            dead_peer(&Silence::new(quiet[0], quiet, [0; 2]), [Some(&tcp); 2], &mut probes)
        };
        for _ in 0..3 {
            assert_eq!(at(0, 0), None);
            assert_eq!(at(60, 20), Some(Due::Probe([true, false])));
            assert_eq!(at(61, 60), Some(Due::Probe([false, true])));
            assert_eq!(at(70, 0), Some(Due::Probe([true, false])));
        }
        assert_eq!(at(0, 60), Some(Due::Probe([false, true])));
        assert_eq!(at(0, 70), Some(Due::Probe([false, true])));
        assert_eq!(at(0, 80), Some(Due::Cut(Termination::BackendReset)));
    }

    #[test]
    fn one_that_answers_each_time_is_never_given_up_however_soon_it_is_asked_again() {
        let tcp = config::Tcp {
            keepalive_idle: Duration::from_secs(1),
            keepalive_interval: Duration::from_secs(1),
            keepalive_count: 2,
            ..config::Tcp::default()
        };
        let mut probes = [0; 2];
        let mut at = |quiet: u64| {
            let quiet = [Duration::from_millis(quiet); 2];
            dead_peer(&Silence::new(quiet[0], quiet, [0; 2]), [Some(&tcp); 2], &mut probes)
        };
        // A tick and a little, after each answer.
        for _ in 0..20 {
            assert_eq!(at(1001), Some(Due::Probe([true; 2])));
        }
        assert_eq!(at(2002), Some(Due::Probe([true; 2])));
        assert_eq!(at(3003), Some(Due::Cut(Termination::ClientReset)));
    }

    #[test]
    fn data_that_a_side_leaves_unanswered_ends_the_session_when_it_says_nothing_at_all() {
        let tcp =
            config::Tcp { user_timeout: Duration::from_secs(5), keepalive_idle: Duration::ZERO, ..<_>::default() };
        let unlimited = config::Tcp { user_timeout: Duration::ZERO, ..tcp.clone() };
        let at = |awaited, client, tcp: &config::Tcp| {
            let quiet = [Duration::from_secs(client), Duration::ZERO];
            dead_peer(&Silence::new(quiet[1], quiet, [awaited, 0]), [Some(tcp); 2], &mut [0; 2])
        };
        assert_eq!(at(1000, 6, &tcp), Some(Due::Cut(Termination::ClientReset)));
        assert_eq!(at(1000, 5, &tcp), None);
        assert_eq!(at(0, 1000, &tcp), None);
        assert_eq!(at(1, 1000, &tcp), None, "silent for long, and asked just now");
        assert_eq!(at(6, 1000, &tcp), None);
        assert_eq!(at(7, 1000, &tcp), Some(Due::Cut(Termination::ClientReset)));
        assert_eq!(at(u16::MAX, 924, &unlimited), None);
        assert_eq!(at(u16::MAX, 925, &unlimited), Some(Due::Cut(Termination::ClientReset)));
    }

    #[test]
    fn a_quiet_side_is_asked_and_then_given_up() {
        let tcp = config::Tcp {
            keepalive_idle: Duration::from_secs(60),
            keepalive_interval: Duration::from_secs(10),
            keepalive_count: 2,
            ..config::Tcp::default()
        };
        let at = |seconds, probes| keepalive(&tcp, Duration::from_secs(seconds), probes);
        assert_eq!(at(59, 0), Keepalive::Heard);
        assert_eq!(at(60, 0), Keepalive::Probe);
        assert_eq!(at(61, 1), Keepalive::Wait);
        assert_eq!(at(70, 1), Keepalive::Probe);
        assert_eq!(at(79, 2), Keepalive::Wait);
        assert_eq!(at(80, 2), Keepalive::Dead);
        assert_eq!(at(3, 2), Keepalive::Heard);
        let off = config::Tcp { keepalive_idle: Duration::ZERO, ..tcp };
        assert_eq!(keepalive(&off, Duration::from_secs(1 << 30), 0), Keepalive::Heard);
    }
}

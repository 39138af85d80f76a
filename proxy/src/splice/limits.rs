//! What the numbers of a session in the kernel say of its ends: who is silent, for how long, and what that comes to under
//! the configured limits. The sweep looks at each session this way once a tick.

use std::time::Duration;

use pgsplice_ebpf::flow::{SIDE_FIN, SessionState};

use super::sweep::{Due, monotonic_ns};
use super::table::{Session, reset_by};
use crate::config;
use crate::session::Termination;

/// Unanswered data ends a session after this long where `user_timeout` is 0: about what tcp_retries2 = 15 comes to.
const UNANSWERED: Duration = Duration::from_secs(924);

/// What has to be done about a session in which nothing happens. `probes` are the keepalives sent to each side since it was
/// last heard, which this counts.
pub(super) fn overdue(
    state: &SessionState,
    quiet: [Duration; 2],
    session: &Session,
    probes: &mut [u8; 2],
) -> Option<Due> {
    let pool = session.pool.as_ref().map(|pool| pool.config.load_full());
    let listener = session.listener.as_ref().map(|listener| listener.config.load_full());
    if let Some(pool) = &pool {
        let both = quiet[0].min(quiet[1]);
        let passed = |limit: Duration| !limit.is_zero() && both > limit;
        let half_closed = state.side.iter().any(|side| side.flags & SIDE_FIN != 0);
        // Quiet and half-closed is the case the limit is for; one that still moves is at work.
        if half_closed && passed(pool.timeouts.half_closed) {
            return Some(Due::Cut(Termination::HalfClosedTimeout));
        }
        if passed(pool.timeouts.idle) {
            return Some(Due::Cut(Termination::IdleTimeout));
        }
    }
    silence(state, quiet, [listener.as_ref().map(|l| &l.tcp), pool.as_ref().map(|p| &p.tcp)], probes)
}

/// What has to be done about sides that say nothing. `tcp` are the settings of each side's leg, where they are known.
fn silence(
    state: &SessionState,
    quiet: [Duration; 2],
    tcp: [Option<&config::Tcp>; 2],
    probes: &mut [u8; 2],
) -> Option<Due> {
    let mut ask = [false; 2];
    for side in [0, 1] {
        let Some(tcp) = tcp[side] else { continue };
        let limit = if tcp.user_timeout.is_zero() { UNANSWERED } else { tcp.user_timeout };
        if is_awaited(state, side) && quiet[side] > limit {
            return Some(Due::Cut(reset_by(side)));
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
            silence(&SessionState::default(), quiet, [Some(&tcp); 2], &mut probes)
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
    fn data_that_a_side_leaves_unanswered_ends_the_session_when_it_says_nothing_at_all() {
        let tcp =
            config::Tcp { user_timeout: Duration::from_secs(5), keepalive_idle: Duration::ZERO, ..<_>::default() };
        let unlimited = config::Tcp { user_timeout: Duration::ZERO, ..tcp.clone() };
        let at = |acked, client, tcp: &config::Tcp| {
            let mut state = SessionState::default();
            (state.side[1].seq_end, state.side[1].acked) = (100, acked);
            silence(&state, [Duration::from_secs(client), Duration::ZERO], [Some(tcp); 2], &mut [0; 2])
        };
        assert_eq!(at(99, 6, &tcp), Some(Due::Cut(Termination::ClientReset)));
        assert_eq!(at(99, 5, &tcp), None);
        assert_eq!(at(100, 1000, &tcp), None);
        assert_eq!(at(99, 924, &unlimited), None);
        assert_eq!(at(99, 925, &unlimited), Some(Due::Cut(Termination::ClientReset)));
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

//! When a relayed session is given back to its task: at a moment when, by the protocol, neither side will speak.

use std::time::Instant;

use crate::pg::frame::{Event, Framer};

/// When a relayed session is given back.
#[derive(Debug)]
pub enum Turn {
    /// At a reply that ends in ReadyForQuery while the client owes no word and has said none; or, with nothing held, when
    /// nothing moved for a tick behind such a reply.
    Reply {
        /// Follows the backend, and has seen everything up to and with [`Job::held`](crate::splice::job::Job::held).
        framer: Framer,
        /// Replies, of any size, that must have passed to the client before.
        turns: u32,
        not_before: Instant,
        /// Most bytes of the chunk that ends in ReadyForQuery.
        held_max: usize,
    },
    /// The stream cannot be read (TLS): when nothing moved for a tick.
    Quiet { not_before: Instant },
}

/// Follows a session towards its turn.
#[derive(Debug)]
pub enum Watch {
    Reply {
        from_backend: Framer,
        from_client: Framer,
        /// Replies the client waits for. A COPY may leave it too high: then there is no turn, which is safe.
        due: u64,
        /// Replies to pass yet.
        turns: u32,
        not_before: Instant,
        held_max: usize,
    },
    Quiet {
        not_before: Instant,
    },
}

/// What a chunk of the backend's is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// Hold it, if the client is silent.
    Hold,
    /// The stream cannot be followed: there will be no turn.
    Lost,
}

impl Watch {
    pub fn new(turn: Turn) -> Self {
        match turn {
            Turn::Reply { framer, turns, not_before, held_max } => Self::Reply {
                from_backend: framer,
                from_client: Framer::of_client(),
                due: 0,
                turns,
                not_before,
                held_max,
            },
            Turn::Quiet { not_before } => Self::Quiet { not_before },
        }
    }

    pub fn client_sent(&mut self, bytes: &[u8]) -> Verdict {
        let Self::Reply { from_client, due, .. } = self else { return Verdict::Pass };
        let mut verdict = Verdict::Pass;
        from_client.feed(bytes, |event| match event {
            Event::ReplyDue => *due += 1,
            Event::Lost => verdict = Verdict::Lost,
            _ => {}
        });
        verdict
    }

    pub fn backend_sent(&mut self, bytes: &[u8]) -> Verdict {
        let Self::Reply { from_backend, from_client, due, turns, not_before, held_max } = self else {
            return Verdict::Pass;
        };
        let (mut lost, mut enough) = (false, false);
        from_backend.feed(bytes, |event| match event {
            Event::ReadyForQuery => {
                // One that was not asked for here was asked for before the session came.
                *due = due.saturating_sub(1);
                enough = *turns == 0;
                *turns = turns.saturating_sub(1);
            }
            Event::Lost => lost = true,
            _ => {}
        });
        if lost {
            return Verdict::Lost;
        }
        let turn = enough && from_backend.is_ready() && bytes.len() <= *held_max;
        let client_rests = *due == 0 && from_client.is_whole_request();
        if turn && client_rests && Instant::now() >= *not_before { Verdict::Hold } else { Verdict::Pass }
    }

    /// Whether a session that stands still is to be given back.
    pub fn wants_quiet(&self) -> bool {
        match self {
            Self::Reply { from_backend, from_client, due, turns, not_before, .. } => {
                let both_rest = *due == 0 && from_client.is_whole_request() && from_backend.is_ready();
                both_rest && *turns == 0 && Instant::now() >= *not_before
            }
            Self::Quiet { not_before } => Instant::now() >= *not_before,
        }
    }

    /// For the next [`Turn::Reply`].
    pub fn into_framer(self) -> Option<Framer> {
        match self {
            Self::Reply { from_backend, .. } => Some(from_backend),
            Self::Quiet { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const QUERY: &[u8] = b"Q\0\0\0\x0dSELECT 1\0";
    const READY: &[u8] = b"Z\0\0\0\x05I";
    const NOTICE: &[u8] = b"A\0\0\0\x0e\0\0\0\x07jobs\0\0";

    fn watch(turns: u32, held_max: usize) -> Watch {
        Watch::new(Turn::Reply { framer: Framer::default(), turns, not_before: Instant::now(), held_max })
    }

    #[test]
    fn a_reply_is_held_at_its_last_byte() {
        let mut watch = watch(0, 100);
        assert_eq!(watch.client_sent(QUERY), Verdict::Pass);
        assert_eq!(watch.backend_sent(b"C\0\0\0\x0dSELECT 1\0"), Verdict::Pass);
        assert_eq!(watch.backend_sent(&READY[..5]), Verdict::Pass);
        assert_eq!(watch.backend_sent(&READY[5..]), Verdict::Hold);
        assert!(watch.into_framer().unwrap().is_ready());
    }

    #[test]
    fn a_reply_with_something_behind_it_passes() {
        let mut watch = watch(0, 100);
        assert_eq!(watch.backend_sent(&[READY, NOTICE].concat()), Verdict::Pass);
        assert_eq!(watch.backend_sent(&[NOTICE, READY].concat()), Verdict::Hold);
    }

    #[test]
    fn as_many_replies_pass_as_asked_and_several_in_a_chunk_count() {
        let mut watch = watch(3, 100);
        assert_eq!(watch.backend_sent(READY), Verdict::Pass);
        assert_eq!(watch.backend_sent(&[READY, READY].concat()), Verdict::Pass);
        assert_eq!(watch.backend_sent(READY), Verdict::Hold);
        assert_eq!(watch.backend_sent(READY), Verdict::Hold);
    }

    #[test]
    fn a_large_reply_passes_and_counts() {
        let mut watch = watch(1, READY.len());
        assert_eq!(watch.backend_sent(&[READY, READY].concat()), Verdict::Pass);
        assert_eq!(watch.backend_sent(&[NOTICE, READY].concat()), Verdict::Pass);
        assert_eq!(watch.backend_sent(READY), Verdict::Hold);
    }

    #[test]
    fn a_client_that_has_asked_more_is_no_turn() {
        let mut watch = watch(0, 100);
        watch.client_sent(&[QUERY, QUERY, b"S\0\0\0\x04"].concat());
        assert_eq!(watch.backend_sent(READY), Verdict::Pass);
        assert_eq!(watch.backend_sent(READY), Verdict::Pass);
        assert_eq!(watch.backend_sent(READY), Verdict::Hold);
    }

    #[test]
    fn a_client_half_way_through_a_message_is_no_turn() {
        let mut watch = watch(0, 100);
        watch.client_sent(&QUERY[..3]);
        assert_eq!(watch.backend_sent(READY), Verdict::Pass);
        watch.client_sent(&QUERY[3..]);
        assert_eq!(watch.backend_sent(READY), Verdict::Hold);
    }

    #[test]
    fn a_client_that_asked_for_a_flush_instead_of_a_sync_is_no_turn() {
        let mut watch = watch(0, 100);
        watch.client_sent(&[QUERY, b"D\0\0\0\x06S\0", b"H\0\0\0\x04"].concat());
        assert_eq!(watch.backend_sent(READY), Verdict::Pass);
        watch.client_sent(b"S\0\0\0\x04");
        assert_eq!(watch.backend_sent(READY), Verdict::Hold);
    }

    #[test]
    fn nothing_is_held_before_its_time() {
        let not_before = Instant::now() + Duration::from_secs(3600);
        let mut watch = Watch::new(Turn::Reply { framer: Framer::default(), turns: 0, not_before, held_max: 100 });
        assert_eq!(watch.backend_sent(READY), Verdict::Pass);
        assert!(!Watch::new(Turn::Quiet { not_before }).wants_quiet());
        assert!(Watch::new(Turn::Quiet { not_before: Instant::now() }).wants_quiet());
    }

    #[test]
    fn a_session_that_stands_still_behind_a_reply_is_given_back() {
        let mut quiet = watch(1, 100);
        assert!(!quiet.wants_quiet());
        quiet.backend_sent(READY);
        assert!(quiet.wants_quiet());
        quiet.client_sent(&QUERY[..3]);
        assert!(!quiet.wants_quiet());
        quiet.client_sent(&QUERY[3..]);
        assert!(!quiet.wants_quiet());
        quiet.backend_sent(&READY[..3]);
        assert!(!quiet.wants_quiet());
    }

    #[test]
    fn a_stream_that_is_not_postgres_is_lost() {
        assert_eq!(watch(0, 100).backend_sent(b"\x16\x03\x01\x02\x00\x01"), Verdict::Lost);
        assert_eq!(watch(0, 100).client_sent(b"\x16\x03\x01\x02\x00\x01"), Verdict::Lost);
    }
}

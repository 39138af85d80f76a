//! LIVE: the kernel forwards, and the sockets go once the client has the reply that was held.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgsplice_ebpf::flow::{FlowKey, control};

use super::Legs;
use crate::ring;
use crate::session::SessionRecord;
use crate::splice::packet::{self, Segment};
use crate::splice::raw::Raw;
use crate::splice::sockets::{self, Numbers};
use crate::splice::table::Slot;
use crate::splice::{Road, Splice};

/// A reply that waits this long for its acknowledgement may have to be sent again, which is seldom before 200 ms
/// (include/net/tcp.h, TCP_RTO_MIN). With the 20 ms between two looks less than `TSVAL_AHEAD`.
const LATE: Duration = Duration::from_millis(100);

/// How long this process still waits for the client of a session that is in its table no more.
const GONE: Duration = Duration::from_secs(5);

/// Forwarded by the kernel.
pub struct Live {
    pub(super) splice: Arc<Splice>,
    /// Until it is in the table.
    pub slot: Option<Slot>,
    pub(super) index: u32,
    pub road: Road,
    /// Client, backend: the keys of what comes from them.
    pub keys: [FlowKey; 2],
    pub(super) numbers: [Numbers; 2],
    /// The lowest TSval that what the backend sends from now on has at the client, with timestamps.
    pub(super) tsval: Option<u32>,
}

impl Live {
    pub fn splice(&self) -> &Arc<Splice> {
        &self.splice
    }

    /// Waits until the client has acknowledged the held bytes (this kernel sends them again where they are lost), then
    /// has both sockets close without a packet; that of the client with a RST, if the session ends before that. Err: bytes
    /// got past the hand-off, which must not happen; cut it.
    pub async fn release(&self, legs: Legs<'_>, record: &SessionRecord) -> Result<(), &'static str> {
        let maps = self.splice.maps();
        let index = self.index;
        let sent = self.numbers[1].receive;
        let mut pause = Duration::from_millis(1);
        let mut gone: Option<Instant> = None;
        let begun = Instant::now();
        let mut stopped: Option<u32> = None;
        let acknowledged = loop {
            let side = maps.state(index).side[1];
            let acknowledged = side.acked.wrapping_sub(sent) as i32 >= 0;
            if acknowledged || maps.control(index) != control::LIVE {
                break acknowledged;
            }
            if record.slot() != Some(index) && gone.get_or_insert_with(Instant::now).elapsed() > GONE {
                if !self.splice.ownership.is_lent() {
                    break false;
                }
                // Another process has the session, and its client still waits for what only this socket can repeat. The
                // kernel goes on with that, as where a process was killed; the egress program keeps its FIN back.
                if let Err(error) = sockets::close_silently(legs.backend) {
                    tracing::warn!("a socket cannot close silently: {error}");
                }
                return Ok(());
            }
            if let Some(tsval) = self.tsval
                && begun.elapsed() > LATE
            {
                stop_clock(legs.client, &mut stopped, (side.packets > 0).then_some(tsval));
            }
            ring::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        if !acknowledged {
            self.reset_client();
        }
        let mut clean = true;
        for (number, socket) in [legs.client, legs.backend].into_iter().enumerate() {
            match sockets::next_expected(socket) {
                Ok(next) => clean &= next == self.numbers[number].receive,
                Err(error) => tracing::warn!("TCP_QUEUE_SEQ: {error}"),
            }
            let closing = if number == 0 && !acknowledged { sockets::close_by_reset } else { sockets::close_silently };
            if let Err(error) = closing(socket) {
                // Its close will send a FIN or RST, which the egress program stops or both ends judge.
                tracing::warn!("a socket cannot close silently: {error}");
            }
        }
        self.splice.forget_watch(&self.keys[0]);
        if let Some(conntrack) = &self.splice.conntrack {
            conntrack.forget(&self.keys);
        }
        if clean { Ok(()) } else { Err("a socket received bytes after the hand-off") }
    }

    /// Where a RST overtook the held bytes the client did not believe it (RFC 5961, section 3.2), and the flows are gone by
    /// now. This one is at what the client has acknowledged; the close of its socket sends another behind the held bytes.
    fn reset_client(&self) {
        let unseen = self.numbers[1].receive.wrapping_sub(self.splice.maps().state(self.index).side[1].acked);
        let segment = Segment {
            way: self.keys[0].reversed(),
            sequence: self.numbers[0].write.wrapping_sub(unseen),
            acknowledgement: self.numbers[0].receive,
            flags: packet::RST | packet::ACK,
            window: 0,
            timestamps: None,
        };
        if let Err(error) = Raw::open().and_then(|raw| raw.send(packet::ip(segment.way.dst), &segment.bytes())) {
            tracing::warn!("a client may wait for a session that was reset: {error}");
        }
    }
}

/// What this kernel sends again to the client carries no later TSval than it had when this was first called: a client that
/// has seen one takes nothing from a backend whose clock has not come so far, and its unit is the backend's own choice up
/// to a second (RFC 7323, section 5.4). Nor an earlier one than was sent before, which the client would not take.
///
/// `passed_on` is what the client may have seen of the backend's: an ACK from before the reply that came late, say, which
/// is in order there and makes the reply look old.
fn stop_clock(client: BorrowedFd<'_>, stopped: &mut Option<u32>, passed_on: Option<u32>) {
    let set = match *stopped {
        None => sockets::clock(client).map(|now| *stopped = Some(now)),
        Some(then) => {
            let then = passed_on.filter(|tsval| tsval.wrapping_sub(then) as i32 > 0).unwrap_or(then);
            *stopped = Some(then);
            // Up to the next even number, not down.
            sockets::set_clock(client, then.wrapping_add(1))
        }
    };
    if let Err(error) = set {
        tracing::debug!("TCP_TIMESTAMP: {error}");
    }
}

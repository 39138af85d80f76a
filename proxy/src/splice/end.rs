//! How a session in the kernel ends: by its ends, whose last words are counted, or by a cut, of which both are told in the
//! numbers the flows hold.

use std::sync::atomic::Ordering::Relaxed;

use pgsplice_ebpf::flow::{FLOW_TIMESTAMPS, Flow, FlowKey, SessionState, control};

use super::Splice;
use super::packet::{self, Segment};
use super::raw::Raw;
use super::table::Session;
use crate::proxy::Proxy;
use crate::session::{SessionId, Termination, end};

/// Adds what the session has moved since the last time to the counters others read. Whether it was anything.
pub(super) fn publish(session: &Session, state: &SessionState, counted: &mut [u64; 2]) -> bool {
    let [bytes_in, bytes_out] = [0, 1].map(|side: usize| {
        let more = state.side[side].bytes.saturating_sub(counted[side]);
        counted[side] += more;
        more
    });
    if bytes_in == 0 && bytes_out == 0 {
        return false;
    }
    session.record.count(bytes_in, bytes_out);
    if let Some(listener) = &session.listener {
        listener.counters.bytes_in.fetch_add(bytes_in, Relaxed);
        listener.counters.bytes_out.fetch_add(bytes_out, Relaxed);
    }
    if let Some(place) = &session.place {
        place.backend().counters.bytes_in.fetch_add(bytes_in, Relaxed);
        place.backend().counters.bytes_out.fetch_add(bytes_out, Relaxed);
    }
    true
}

impl Proxy {
    /// The session in this slot is over: counts, log, place. Its flows linger.
    pub(super) fn end_spliced(&self, splice: &Splice, index: u32, reason: Termination) {
        let state = splice.maps().state(index);
        splice.table.with(index, |entry| {
            if let Some(session) = &entry.session {
                publish(session, &state, &mut entry.counted);
            }
        });
        if let Some(session) = splice.table.take_session(index) {
            end::account_spliced(self, session, reason);
        }
    }

    /// RST to both ends; whatever comes from them later is answered with RST by the programs. False if it is not there.
    pub(crate) fn cut_spliced(&self, splice: &Splice, index: u32, id: SessionId, reason: Termination) -> bool {
        let Some(keys) = splice.table.keys_of(index, id) else { return false };
        splice.maps().set_control(index, control::CUT);
        splice.reset(&keys);
        self.end_spliced(splice, index, reason);
        true
    }
}

impl Splice {
    /// A RST to both ends, with the numbers the flows hold.
    fn reset(&self, keys: &[FlowKey; 2]) {
        let raw = match Raw::open() {
            Ok(raw) => raw,
            Err(error) => {
                return tracing::warn!("no RST is sent, the programs answer the next packet with one: {error}");
            }
        };
        for side in [0, 1] {
            match self.segment_to(side, keys, packet::RST | packet::ACK, false) {
                Ok(Some(segment)) => {
                    // The end takes a RST only at exactly the number it expects (RFC 5961): what it has acknowledged,
                    // or, where its acknowledgement is still to come, what it was sent.
                    let ahead =
                        Segment { sequence: segment.sequence.wrapping_add(self.unacknowledged(side, keys)), ..segment };
                    for one in [Some(segment), (ahead != segment).then_some(ahead)].into_iter().flatten() {
                        if let Err(error) = raw.send(packet::ip(one.way.dst), &one.bytes()) {
                            tracing::debug!("RST: {error}");
                        }
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::debug!("RST: {error}"),
            }
        }
    }

    /// Bytes sent to a side that it has not acknowledged.
    fn unacknowledged(&self, side: usize, keys: &[FlowKey; 2]) -> u32 {
        let Ok(Some(flow)) = self.maps().flow(&keys[1 - side]) else { return 0 };
        let sender = self.maps().state(flow.slot).side[1 - side];
        let behind = sender.seq_end.wrapping_sub(sender.acked);
        if (behind as i32) < 0 { 0 } else { behind }
    }

    /// A segment without payload to a side, in the numbers the other side's packets would reach it with. `None` if the
    /// flows are gone. `before`: one number below what it expects, as a keepalive is.
    pub(super) fn segment_to(
        &self,
        side: usize,
        keys: &[FlowKey; 2],
        flags: u8,
        before: bool,
    ) -> std::io::Result<Option<Segment>> {
        // What comes from the other side and leaves to this one.
        let Some(flow) = self.maps().flow(&keys[1 - side])? else { return Ok(None) };
        let state = self.maps().state(flow.slot);
        let (this, other) = (state.side[side], state.side[1 - side]);
        let timestamps =
            (flow.flags & FLOW_TIMESTAMPS != 0).then(|| (other.tsval.wrapping_add(flow.tsval_delta), this.tsval));
        Ok(Some(Segment {
            way: flow.out,
            sequence: other.acked.wrapping_add(flow.seq_delta).wrapping_sub(u32::from(before)),
            acknowledgement: this.acked,
            flags,
            window: (this.window >> flow.out_wscale).min(0xffff) as u16,
            timestamps,
        }))
    }

    /// Whose packet left as `way`: its own addresses and its flow.
    pub(super) fn source_of(&self, way: &FlowKey) -> std::io::Result<Option<(FlowKey, Flow)>> {
        let Some(answers) = self.maps().flow(&way.reversed())? else { return Ok(None) };
        let source = answers.out.reversed();
        Ok(self.maps().flow(&source)?.map(|flow| (source, flow)))
    }

    /// Those of this session only: a client that uses its port again at once has made the next session on the same key
    /// by the time the end of this one is heard of.
    pub(crate) fn remove_flows(&self, index: u32, keys: &[FlowKey; 2]) {
        let remove = |key: &FlowKey| match self.maps().flow(key)? {
            Some(flow) if flow.slot == index => self.maps().remove_flow(key),
            _ => Ok(false),
        };
        for key in keys {
            if let Err(error) = remove(key) {
                tracing::error!("a flow stays: {error}");
            }
        }
    }
}

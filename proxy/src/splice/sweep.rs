//! Looks after the sessions in the kernel, on one thread of its own: sees their ends, their time limits, their dead
//! peers; publishes what they move; answers what the programs cannot do alone.
//!
//! All that ends a session stands in the maps and is found at the next tick. Events only make it quicker: losing one
//! loses nothing.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use pgsplice_ebpf::flow::{
    Event, FlowKey, NO_SLOT, SIDE_FIN, SIDE_FIN_ACKED, SIDE_FIN_FIRST, SIDE_RST, SessionState, control, event,
};

use super::neighbours::{Neighbours, NextHop};
use super::packet::{self, Segment};
use super::raw::Raw;
use super::table::{Session, Spliced, reset_by};
use super::{Road, Splice, address};
use crate::bpf::Events;
use crate::config;
use crate::proxy::Proxy;
use crate::session::{SessionId, Termination, end};

const TICK: Duration = Duration::from_secs(1);
/// How long the flows of a closed session stay, for a FIN that is repeated because its acknowledgement was lost.
const LINGER: Duration = Duration::from_secs(15);
/// Entries looked at before others get the table's lock.
const CHUNK: u32 = 1024;
/// How often the next hops in use are renewed: below the kernel's shortest base_reachable_time/2 (15 s).
const RENEW_TICKS: u64 = 10;
/// Unanswered data ends a session after this long where `user_timeout` is 0: about what tcp_retries2 = 15 comes to.
const UNANSWERED: Duration = Duration::from_secs(924);

/// The thread's state.
struct Sweep {
    proxy: Weak<Proxy>,
    splice: Arc<Splice>,
    raw: Raw,
    neighbours: Neighbours,
    events: Option<Events>,
    ticks: u64,
}

/// Starts the thread. It ends with the process.
pub fn start(proxy: &Arc<Proxy>, splice: Arc<Splice>) -> std::io::Result<()> {
    let sweep = Sweep {
        proxy: Arc::downgrade(proxy),
        raw: Raw::open()?,
        neighbours: Neighbours::open()?,
        events: splice.maps().take_events(),
        splice,
        ticks: 0,
    };
    std::thread::Builder::new().name("splice".into()).spawn(move || sweep.run())?;
    Ok(())
}

/// CLOCK_MONOTONIC, in nanoseconds: the clock of the maps.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec through a valid pointer; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Sweep {
    fn run(mut self) {
        let mut next = Instant::now() + TICK;
        loop {
            self.wait(next.saturating_duration_since(Instant::now()));
            let Some(proxy) = self.proxy.upgrade() else { return };
            let splice = self.splice.clone();
            let Some(_ours) = splice.ownership.sweep() else {
                // Events are for the process that takes over.
                std::thread::sleep(TICK);
                continue;
            };
            while let Some(event) = self.events.as_mut().and_then(Events::next) {
                self.happened(&proxy, &event);
            }
            if Instant::now() >= next {
                next = Instant::now() + TICK;
                self.tick(&proxy);
            }
        }
    }

    /// Until an event or for this long.
    fn wait(&self, limit: Duration) {
        let Some(events) = &self.events else { return std::thread::sleep(limit) };
        let mut poll = libc::pollfd { fd: events.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = limit.as_millis().clamp(1, 1000) as libc::c_int;
        // SAFETY: `poll` is one valid pollfd for the length of the call.
        unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
    }

    fn happened(&self, proxy: &Proxy, event: &Event) {
        match event.kind {
            event::RESET | event::CLOSED | event::REUSED if event.slot != NO_SLOT => {
                let mut due = None;
                self.splice.table.with(event.slot, |entry| due = self.look(entry, event.slot, false));
                self.carry_out(proxy, event.slot, due);
                // The event may be older than the session that has the slot now.
                if event.kind == event::REUSED && self.is_gone(event.slot) {
                    self.release(event.slot);
                }
            }
            event::NO_NEIGH => {
                self.renew(NextHop { address: packet::ip(event.address), ifindex: event.ifindex });
            }
            event::FRAG_NEEDED => self.too_big(event),
            event::ICMP => self.translate(event),
            _ => {}
        }
    }

    fn tick(&mut self, proxy: &Proxy) {
        self.ticks += 1;
        let mut due = Vec::new();
        let mut gone = Vec::new();
        let mut in_use = HashSet::new();
        let renew = self.ticks.is_multiple_of(RENEW_TICKS);
        for start in (0..self.splice.table.end()).step_by(CHUNK as usize) {
            self.splice.table.each(start..start + CHUNK, |index, entry| {
                if entry.has_lingered(LINGER) {
                    gone.push(index);
                    return;
                }
                if entry.session.is_some()
                    && let Some(what) = self.look(entry, index, true)
                {
                    due.push((index, what));
                }
                if renew
                    && entry.session.as_ref().is_some_and(|s| s.record.phase_and_road().1 == Some(Road::Xdp.as_str()))
                {
                    in_use.extend(entry.keys().iter().map(|key| packet::ip(key.src)));
                }
            });
        }
        gone.into_iter().for_each(|index| self.release(index));
        due.into_iter().for_each(|(index, what)| self.carry_out(proxy, index, Some(what)));
        self.renew_all(in_use);
        self.splice.attach_adopted();
        if let Some(conntrack) = &self.splice.conntrack {
            conntrack.look();
        }
    }

    /// What has to be done about a session now, if anything. `timed`: time limits, too.
    fn look(&self, entry: &mut Spliced, index: u32, timed: bool) -> Option<Due> {
        let session = entry.session.as_ref()?;
        let state = self.splice.maps().state(index);
        publish(session, &state, &mut entry.counted);
        // A RST behind that, as a late packet to a connection that is over is answered with, ends nothing any more.
        if state.side.iter().all(|side| side.flags & SIDE_FIN_ACKED != 0) {
            let by_backend = state.side[1].flags & SIDE_FIN_FIRST != 0;
            return Some(Due::End(if by_backend { Termination::BackendClosed } else { Termination::ClientClosed }));
        }
        if let Some(side) = state.side.iter().position(|side| side.flags & SIDE_RST != 0) {
            let flow = self.splice.maps().flow(&entry.keys()[side]).ok().flatten();
            // One that is passed on takes the flows with it. One that was dropped, in HOLD behind the hand-off's last
            // look, does not: nobody has told the other end.
            let untold = flow.is_some_and(|flow| flow.slot == index);
            return Some(if untold { Due::Cut(reset_by(side)) } else { Due::End(reset_by(side)) });
        }
        if timed { self.overdue(&state, session, &mut entry.probes) } else { None }
    }

    fn overdue(&self, state: &SessionState, session: &Session, probes: &mut [u8; 2]) -> Option<Due> {
        let now = monotonic_ns();
        let quiet = state.side.map(|side| Duration::from_nanos(now.saturating_sub(side.last_ns)));
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
        let tcp = [listener.as_ref().map(|l| &l.tcp), pool.as_ref().map(|p| &p.tcp)];
        let mut ask = [false; 2];
        for side in [0, 1] {
            let Some(tcp) = tcp[side] else { continue };
            // What the other side sent and this one has not acknowledged, while it says nothing at all.
            let waiting = state.side[1 - side].seq_end.wrapping_sub(state.side[1 - side].acked) as i32 > 0;
            let limit = if tcp.user_timeout.is_zero() { UNANSWERED } else { tcp.user_timeout };
            if waiting && quiet[side] > limit {
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

    fn carry_out(&self, proxy: &Proxy, index: u32, due: Option<Due>) {
        match due {
            None => {}
            Some(Due::End(reason)) => {
                proxy.end_spliced(&self.splice, index, reason);
                let reset = self.splice.maps().state(index).side.iter().any(|side| side.flags & SIDE_RST != 0);
                if reset {
                    self.release(index);
                }
            }
            Some(Due::Cut(reason)) => {
                // Only this thread frees a slot: the session is the one that was looked at, or has ended.
                let id = self.splice.table.with(index, |entry| entry.session.as_ref().map(|one| one.record.id));
                if let Some(id) = id.flatten() {
                    proxy.cut_spliced(&self.splice, index, id, reason);
                }
            }
            Some(Due::Probe(sides)) => {
                (0..2).filter(|side| sides[*side]).for_each(|side| self.probe(index, side));
            }
        }
    }

    /// Whether the session in this slot has ended, and its flows are not there any more.
    fn is_gone(&self, index: u32) -> bool {
        let keys = self.splice.table.with(index, |entry| entry.session.is_none().then(|| entry.keys())).flatten();
        let is_there = |key: &FlowKey| match self.splice.maps().flow(key) {
            Ok(flow) => flow.is_some_and(|flow| flow.slot == index),
            Err(_) => true,
        };
        keys.is_some_and(|keys| !keys.iter().any(is_there))
    }

    /// The entry has lingered long enough, or its flows are gone.
    fn release(&self, index: u32) {
        let Some(entry) = self.splice.table.remove(index) else { return };
        self.splice.remove_flows(index, &entry.keys());
        self.splice.maps().set_control(index, control::FREE);
    }

    /// A keepalive to one side, as the other would send it.
    fn probe(&self, index: u32, side: usize) {
        let Some(keys) = self.splice.table.with(index, |entry| entry.keys()) else { return };
        match self.splice.segment_to(side, &keys, packet::ACK, true) {
            Ok(Some(segment)) => self.send(&segment),
            Ok(None) => {}
            Err(error) => tracing::debug!("keepalive: {error}"),
        }
    }

    fn send(&self, segment: &Segment) {
        if let Err(error) = self.raw.send(packet::ip(segment.way.dst), &segment.bytes()) {
            tracing::debug!(to = %address(segment.way.dst, segment.way.dst_port), "raw packet: {error}");
        }
    }

    /// Tells the sender of a packet that the way out is narrower.
    fn too_big(&self, event: &Event) {
        let Some((way, _)) = packet::read_tcp(&event.data) else { return };
        let header = if way.is_v4() { usize::from(event.data[0] & 0x0f) * 4 } else { 40 };
        let quoted = &event.data[..(header + 8).min(event.data.len())];
        let message = packet::too_big(packet::ip(way.dst), packet::ip(way.src), event.value, quoted);
        self.tell(packet::ip(way.src), &message);
    }

    /// A router told us about a packet that was the other end's: tells that end, in its own numbers.
    fn translate(&self, event: &Event) {
        let length = (event.value as usize).min(event.data.len());
        let Some(error) = packet::read_too_big(&event.data[..length]) else { return };
        match self.splice.source_of(&error.way) {
            Ok(Some((way, flow))) => {
                let quoted = packet::quoted(&way, error.sequence.wrapping_sub(flow.seq_delta), 1460);
                let message = packet::too_big(packet::ip(way.dst), packet::ip(way.src), error.mtu, &quoted);
                self.tell(packet::ip(way.src), &message);
            }
            Ok(None) => {}
            Err(error) => tracing::debug!("an ICMP error's flow: {error}"),
        }
    }

    fn tell(&self, to: IpAddr, message: &[u8]) {
        if let Err(error) = self.raw.send(to, message) {
            tracing::debug!(%to, "ICMP: {error}");
        }
    }

    fn renew_all(&self, in_use: HashSet<IpAddr>) {
        let hops: HashSet<NextHop> =
            in_use.into_iter().filter_map(|address| self.neighbours.next_hop(address).ok()).collect();
        hops.into_iter().for_each(|hop| self.renew(hop));
    }

    fn renew(&self, hop: NextHop) {
        if let Err(error) = self.neighbours.renew(hop) {
            tracing::debug!(next_hop = %hop.address, "neighbour: {error}");
        }
    }
}

/// What a look at a session found.
enum Due {
    /// The ends have ended it themselves.
    End(Termination),
    Cut(Termination),
    /// These sides have been quiet: ask whether they are there. One's answer says nothing of the other.
    Probe([bool; 2]),
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

/// Adds what the session has moved since the last time to the counters others read.
pub fn publish(session: &Session, state: &SessionState, counted: &mut [u64; 2]) {
    let [bytes_in, bytes_out] = [0, 1].map(|side: usize| {
        let more = state.side[side].bytes.saturating_sub(counted[side]);
        counted[side] += more;
        more
    });
    if bytes_in == 0 && bytes_out == 0 {
        return;
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
}

impl Proxy {
    /// The session in this slot is over: counts, log, place. Its flows linger.
    fn end_spliced(&self, splice: &Splice, index: u32, reason: Termination) {
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
    fn segment_to(
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
        let timestamps = (flow.flags & pgsplice_ebpf::flow::FLOW_TIMESTAMPS != 0)
            .then(|| (other.tsval.wrapping_add(flow.tsval_delta), this.tsval));
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
    fn source_of(&self, way: &FlowKey) -> std::io::Result<Option<(FlowKey, pgsplice_ebpf::flow::Flow)>> {
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

#[cfg(test)]
mod tests {
    use super::*;

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

//! Looks after the sessions in the kernel, on one thread of its own: sees their ends, their time limits, their dead
//! peers; publishes what they move; answers what the programs cannot do alone.
//!
//! All that ends a session stands in the maps and is found at the next tick. Events only make it quicker: losing one
//! loses nothing.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use pgsplice_ebpf::flow::{Event, FlowKey, NO_SLOT, SIDE_FIN_ACKED, SIDE_FIN_FIRST, SIDE_RST, control, event};

use super::end::publish;
use super::limits::{Silence, is_awaited, is_half_closed, lacks_reply, overdue, quiet};
use super::neighbours::{Neighbours, NextHop};
use super::packet::{self, Segment};
use super::raw::Raw;
use super::table::{Spliced, reset_by};
use super::{Road, Splice, address};
use crate::bpf::Events;
use crate::proxy::Proxy;
use crate::session::Termination;
use crate::sock_diag;

pub(super) const TICK: Duration = Duration::from_secs(1);
/// How long the flows of a closed session stay, for a FIN that is repeated because its acknowledgement was lost.
const LINGER: Duration = Duration::from_secs(15);
/// Entries looked at before others get the table's lock.
const CHUNK: u32 = 1024;
/// How often the next hops in use are renewed: below the kernel's shortest base_reachable_time/2 (15 s).
const RENEW_TICKS: u64 = 10;
/// Data that stays unanswered this long may be on its way to a link-layer address that is nobody's any more.
const DOUBTFUL: Duration = Duration::from_secs(2);

/// The thread's state.
struct Sweep {
    proxy: Weak<Proxy>,
    splice: Arc<Splice>,
    raw: Raw,
    neighbours: Neighbours,
    events: Option<Events>,
    ticks: u64,
    /// Since when the sessions are looked after: that a side was quiet before says nothing, nobody asked.
    begun: Instant,
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
        begun: Instant::now(),
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
                self.begun = Instant::now();
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
                self.splice.table.with(event.slot, |entry| due = self.look(entry, event.slot, None));
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
        let mut silent = HashSet::new();
        let renew = self.ticks.is_multiple_of(RENEW_TICKS);
        for start in (0..self.splice.table.end()).step_by(CHUNK as usize) {
            self.splice.table.each(start..start + CHUNK, |index, entry| {
                if entry.has_lingered(LINGER) {
                    gone.push(index);
                    return;
                }
                if entry.session.is_some()
                    && let Some(what) = self.look(entry, index, Some(&mut silent))
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
        self.next_hops(in_use).into_iter().for_each(|hop| self.renew(hop));
        for hop in self.next_hops(silent) {
            if let Err(error) = self.neighbours.doubt(hop, Instant::now()) {
                tracing::debug!(next_hop = %hop.address, "a doubtful neighbour: {error}");
            }
        }
        self.splice.attach_adopted();
        if let Some(conntrack) = &self.splice.conntrack {
            conntrack.look();
        }
    }

    /// What has to be done about a session now, if anything. With `silent` time limits are looked at, too, and the sides
    /// that leave data unanswered put there.
    fn look(&self, entry: &mut Spliced, index: u32, silent: Option<&mut HashSet<IpAddr>>) -> Option<Due> {
        let session = entry.session.as_ref()?;
        let state = self.splice.maps().state(index);
        let has_moved = publish(session, &state, &mut entry.counted);
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
        entry.notice(has_moved, is_half_closed(&state));
        let silent = silent?;
        let quiet = quiet(&state).map(|quiet| quiet.min(self.begun.elapsed()));
        for (side, quiet) in quiet.iter().enumerate() {
            let is_awaited = is_awaited(&state, side);
            entry.awaited[side] = if is_awaited { entry.awaited[side].saturating_add(1) } else { 0 };
            if is_awaited && *quiet > DOUBTFUL {
                silent.insert(packet::ip(entry.keys()[side].src));
            }
        }
        let lacks_reply = entry.lacked_reply.is_some() && lacks_reply(&state);
        // The numbers are not read at one moment; those of two ticks do not agree by chance.
        let lacked_reply = entry.lacked_reply.as_mut().is_some_and(|lacked| std::mem::replace(lacked, lacks_reply));
        let silence = Silence::new(entry.still(), quiet, entry.awaited);
        let session = entry.session.as_ref()?;
        match overdue(&state, &silence, session, &mut entry.probes) {
            Some(Due::Cut(reason)) => Some(Due::Cut(reason)),
            Some(Due::Probe(sides)) if lacks_reply && lacked_reply => Some(Due::Reply(sides)),
            None if lacks_reply && lacked_reply => Some(Due::Reply([false; 2])),
            due => due,
        }
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
            Some(Due::Reply(sides)) if self.has_socket(index) => self.carry_out(proxy, index, Some(Due::Probe(sides))),
            Some(Due::Reply(_)) => self.carry_out(proxy, index, Some(Due::Cut(Termination::ReplyLost))),
            Some(Due::Probe(sides)) => {
                (0..2).filter(|side| sides[*side]).for_each(|side| self.probe(index, side));
            }
        }
    }

    /// Whether this kernel has a socket towards the client of the session in this slot: that of a process that hands over
    /// to us, or what one that was killed has left behind.
    fn has_socket(&self, index: u32) -> bool {
        let Some([client, _]) = self.splice.table.with(index, |entry| entry.keys()) else { return true };
        let (own, peer) = (address(client.dst, client.dst_port), address(client.src, client.src_port));
        sock_diag::is_there(own, peer).unwrap_or_else(|error| {
            tracing::debug!("a session's socket: {error}");
            true
        })
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
            Ok(Some(segment)) => {
                self.send(&segment);
                // To whom it is the first packet of a connection.
                if let Some(conntrack) = &self.splice.conntrack {
                    conntrack.forget_sent(&segment.way);
                }
            }
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

    /// On the ways to these.
    fn next_hops(&self, to: HashSet<IpAddr>) -> HashSet<NextHop> {
        to.into_iter().filter_map(|address| self.neighbours.next_hop(address).ok()).collect()
    }

    fn renew(&self, hop: NextHop) {
        if let Err(error) = self.neighbours.renew(hop) {
            tracing::debug!(next_hop = %hop.address, "neighbour: {error}");
        }
    }
}

/// What a look at a session found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// The ends have ended it themselves.
    End(Termination),
    Cut(Termination),
    /// The client lacks the reply that was held at the hand-off: cut it, if nobody is left to send it. Otherwise ask these
    /// sides whether they are there.
    Reply([bool; 2]),
    /// These sides have been quiet: ask whether they are there. One's answer says nothing of the other.
    Probe([bool; 2]),
}

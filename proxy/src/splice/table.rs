//! The sessions that are in the kernel: their slots in the maps, and what user space keeps of each until it ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pgsplice_ebpf::flow::{FlowKey, SessionState};

use super::ports::Port;
use super::sweep::monotonic_ns;
use crate::pg::cancel::Remembered;
use crate::pool::Pool;
use crate::proxy::Listener;
use crate::session::connect::PlaceGuard;
use crate::session::{SessionId, SessionRecord, Termination};

#[derive(Clone, Debug)]
pub struct Table(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    capacity: u32,
    /// The lowest slot that was never used.
    fresh: u32,
    /// Free again. Used in turn: a packet that is still in a program's hands may count for a slot's last session.
    freed: VecDeque<u32>,
    /// By slot.
    entries: Vec<Option<Box<Spliced>>>,
    /// Sessions that have not ended.
    live: usize,
}

/// A place in the maps, free again when dropped.
#[derive(Debug)]
pub struct Slot {
    index: u32,
    table: Table,
}

/// One session in the kernel. There may be a hundred thousand: every byte counts.
#[derive(Debug)]
pub struct Spliced {
    /// Of what comes from the client; [`Self::port`] has the backend's.
    client: FlowKey,
    /// `None` once it has ended; its flows and its port linger.
    pub session: Option<Session>,
    /// When it ended; until then, when something last moved: see [`Self::notice`]. CLOCK_MONOTONIC, in seconds.
    since: u32,
    /// Looks in a row, one a tick, at which each side had not acknowledged everything.
    pub awaited: [u16; 2],
    /// Keepalives sent to each side since it was last heard.
    pub probes: [u8; 2],
    half_closed: bool,
    /// Of a session of a process before us, whose socket may be gone before the client had the reply it was handed over
    /// with: whether the client lacked that when it was last looked at.
    pub lacked_reply: Option<bool>,
    /// Bytes of each side that are in the counters already.
    pub counted: [u64; 2],
    pub port: Port,
    slot: Slot,
}

/// What ends with the session.
#[derive(Debug)]
pub struct Session {
    pub record: Arc<SessionRecord>,
    /// `None` for a session of a process before us whose listener is configured no more.
    pub listener: Option<Arc<Listener>>,
    pub pool: Option<Arc<Pool>>,
    /// `None` while the backend of an adopted session is not known to its pool.
    pub place: Option<PlaceGuard>,
    pub cancel_key: Option<Remembered>,
}

impl Table {
    pub fn new(capacity: u32) -> Self {
        let (freed, entries) = Default::default();
        Self(Arc::new(Mutex::new(Inner { capacity, fresh: 0, freed, entries, live: 0 })))
    }

    /// `None`: it is full.
    pub fn reserve(&self) -> Option<Slot> {
        let mut inner = self.0.lock();
        let index = match inner.fresh {
            fresh if fresh < inner.capacity => {
                inner.fresh += 1;
                fresh
            }
            _ => inner.freed.pop_front()?,
        };
        Some(Slot { index, table: self.clone() })
    }

    /// These slots are in use by sessions of a process before us; called before the first [`Self::reserve`].
    pub fn adopt(&self, in_use: &[u32]) -> Vec<Slot> {
        let mut inner = self.0.lock();
        let above = in_use.iter().max().map_or(0, |highest| highest + 1);
        let mut is_free = vec![true; above as usize];
        in_use.iter().for_each(|index| is_free[*index as usize] = false);
        inner.freed.extend((0..above).filter(|index| is_free[*index as usize]));
        inner.fresh = above;
        in_use.iter().map(|index| Slot { index: *index, table: self.clone() }).collect()
    }

    /// `adopted`: what a session of a process before us has moved, as its record has counted it already.
    pub fn insert(&self, slot: Slot, client: FlowKey, port: Port, session: Session, adopted: Option<&SessionState>) {
        let index = slot.index;
        let record = session.record.clone();
        let entry = Spliced {
            client,
            session: Some(session),
            // Nobody saw which of its packets carried anything.
            since: adopted.map_or_else(monotonic_s, |state| seconds(state.side[0].last_ns.max(state.side[1].last_ns))),
            awaited: [0; 2],
            probes: [0; 2],
            half_closed: false,
            lacked_reply: adopted.map(|_| false),
            counted: adopted.map_or([0; 2], |state| state.side.map(|side| side.bytes)),
            port,
            slot,
        };
        let mut inner = self.0.lock();
        if inner.entries.len() <= index as usize {
            inner.entries.resize_with(index as usize + 1, || None);
        }
        inner.entries[index as usize] = Some(Box::new(entry));
        inner.live += 1;
        // Whoever sees it finds the entry.
        record.set_slot(Some(index));
    }

    /// Whether the session in this slot has not ended.
    pub fn is_live(&self, index: u32) -> bool {
        let inner = self.0.lock();
        inner.entries.get(index as usize).and_then(Option::as_ref).is_some_and(|entry| entry.session.is_some())
    }

    /// Sessions that have not ended.
    pub fn live(&self) -> usize {
        self.0.lock().live
    }

    /// Entries that have a slot, up to here; for going through all of them.
    pub fn end(&self) -> u32 {
        self.0.lock().entries.len() as u32
    }

    /// The keys of a session that has not ended, if it is in this slot.
    pub fn keys_of(&self, index: u32, id: SessionId) -> Option<[FlowKey; 2]> {
        let is_it = |entry: &Spliced| entry.session.as_ref().is_some_and(|session| session.record.id == id);
        self.with(index, |entry| is_it(entry).then(|| entry.keys()))?
    }

    /// Looks at the entry in a slot.
    pub fn with<T>(&self, index: u32, look: impl FnOnce(&mut Spliced) -> T) -> Option<T> {
        let mut inner = self.0.lock();
        inner.entries.get_mut(index as usize)?.as_mut().map(|entry| look(entry))
    }

    /// Looks at each entry of a range of slots.
    pub fn each(&self, range: std::ops::Range<u32>, mut look: impl FnMut(u32, &mut Spliced)) {
        let mut inner = self.0.lock();
        let range = range.start as usize..(range.end as usize).min(inner.entries.len());
        for index in range {
            if let Some(entry) = inner.entries[index].as_mut() {
                look(index as u32, entry);
            }
        }
    }

    /// Takes what ends with the session out of its entry, which lingers. `None` if it has ended before.
    pub fn take_session(&self, index: u32) -> Option<Session> {
        let mut inner = self.0.lock();
        let entry = inner.entries.get_mut(index as usize)?.as_mut()?;
        let session = entry.session.take()?;
        entry.since = monotonic_s();
        session.record.set_slot(None);
        inner.live -= 1;
        Some(session)
    }

    /// Takes the entry out; slot and port are free when it is dropped.
    pub fn remove(&self, index: u32) -> Option<Box<Spliced>> {
        self.0.lock().entries.get_mut(index as usize)?.take()
    }
}

impl Slot {
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl Spliced {
    /// Client, backend: the keys of what comes from them.
    pub fn keys(&self) -> [FlowKey; 2] {
        [self.client, self.port.key()]
    }

    /// Whether its session ended longer ago than this.
    pub fn has_lingered(&self, limit: Duration) -> bool {
        self.session.is_none() && self.still() > limit
    }

    /// Something has moved if bytes have, or a direction has ended. Acknowledgements are nothing: keepalives bring them.
    pub fn notice(&mut self, bytes: bool, half_closed: bool) {
        if bytes || half_closed != self.half_closed {
            self.since = monotonic_s();
        }
        self.half_closed = half_closed;
    }

    /// How long nothing has moved, in whole seconds.
    pub fn still(&self) -> Duration {
        Duration::from_secs(monotonic_s().saturating_sub(self.since).into())
    }

    pub fn slot(&self) -> u32 {
        self.slot.index
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.table.0.lock().freed.push_back(self.index);
    }
}

fn monotonic_s() -> u32 {
    seconds(monotonic_ns())
}

fn seconds(ns: u64) -> u32 {
    (ns / 1_000_000_000) as u32
}

/// Which side ended or reset a session, as a termination.
pub fn reset_by(side: usize) -> Termination {
    if side == 0 { Termination::ClientReset } else { Termination::BackendReset }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_says_so_and_a_freed_slot_is_used_again() {
        let table = Table::new(2);
        let (first, second) = (table.reserve().unwrap(), table.reserve().unwrap());
        assert!(table.reserve().is_none());
        assert_eq!((first.index(), second.index()), (0, 1));
        drop(first);
        assert_eq!(table.reserve().unwrap().index(), 0);
    }

    #[test]
    fn slots_of_adopted_sessions_are_not_given_out() {
        let table = Table::new(5);
        let _adopted = table.adopt(&[1, 3]);
        let taken: Vec<Slot> = std::iter::from_fn(|| table.reserve()).collect();
        assert_eq!(taken.iter().map(Slot::index).collect::<Vec<_>>(), [4, 0, 2]);
    }
}

//! Which sessions live. Each thread writes its own shard; only listings and scrapes look at the others.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use super::{SessionId, SessionRecord};

#[derive(Debug, Default)]
pub struct Registry {
    shards: Vec<Shard>,
    count: AtomicUsize,
}

type Shard = Mutex<HashSet<ById>>;

/// A record as a member of a set that is asked by id, without a second id beside it.
#[derive(Debug)]
struct ById(Arc<SessionRecord>);

impl Borrow<SessionId> for ById {
    fn borrow(&self) -> &SessionId {
        &self.0.id
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

impl Registry {
    pub fn new(threads: usize) -> Self {
        Self { shards: (0..threads).map(|_| Shard::default()).collect(), count: AtomicUsize::new(0) }
    }

    /// The first number from `number` on that no session of this thread has.
    pub fn free(&self, thread: usize, number: u64) -> u64 {
        let shard = self.shard(SessionId::new(thread, number)).lock();
        (number..).find(|number| !shard.contains(&SessionId::new(thread, *number))).unwrap_or(number)
    }

    pub fn insert(&self, record: Arc<SessionRecord>) {
        self.shard(record.id).lock().insert(ById(record));
        self.count.fetch_add(1, Relaxed);
    }

    pub fn remove(&self, id: SessionId) {
        if self.shard(id).lock().remove(&id) {
            self.count.fetch_sub(1, Relaxed);
        }
    }

    pub fn get(&self, id: SessionId) -> Option<Arc<SessionRecord>> {
        self.shard(id).lock().get(&id).map(|one| one.0.clone())
    }

    pub fn contains(&self, id: SessionId) -> bool {
        self.shard(id).lock().contains(&id)
    }

    /// A session of a process before us may be of a thread we do not have.
    fn shard(&self, id: SessionId) -> &Shard {
        &self.shards[id.thread() % self.shards.len()]
    }

    pub fn len(&self) -> usize {
        self.count.load(Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Unordered.
    pub fn all(&self) -> Vec<Arc<SessionRecord>> {
        self.shards.iter().flat_map(|shard| shard.lock().iter().map(|one| one.0.clone()).collect::<Vec<_>>()).collect()
    }
}

impl SessionId {
    pub fn new(thread: usize, number: u64) -> Self {
        Self((thread as u64) << 48 | number)
    }

    pub fn thread(self) -> usize {
        (self.0 >> 48) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_a_session_of_a_process_before_us_has_is_passed_over() {
        let registry = Registry::new(2);
        let record = |id| Arc::new(SessionRecord::new(id, "l", "p", "192.0.2.7:40001".parse().unwrap()));
        [SessionId::new(1, 7), SessionId::new(1, 8), SessionId::new(0, 9)]
            .into_iter()
            .for_each(|id| registry.insert(record(id)));
        assert_eq!((registry.free(1, 6), registry.free(1, 7), registry.free(0, 7)), (6, 9, 7));
    }
}

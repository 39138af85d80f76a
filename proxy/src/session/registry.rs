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

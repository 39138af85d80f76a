//! What both folders of a cluster hold, within bounds: a store is trusted with the truth, not with our memory.

use crate::cluster::patroni::Keys;

use super::{Places, StoreEvent};

/// Longer values are kept as empty ones. A member writes some hundred bytes, `history` a hundred for each failover.
const MAX_VALUE: usize = 256 * 1024;
/// All values of one folder; what comes after that is kept as empty, unless it is small.
const MAX_TOTAL: usize = 16 * 1024 * 1024;
/// The leader key must find its place in a folder that somebody filled up.
const SMALL: usize = 4 * 1024;
/// Keys of one folder; what comes after that is left out.
const MAX_KEYS: usize = 10_000;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    patroni: Folder,
    bouncers: Folder,
}

/// One folder, by names relative to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Folder {
    keys: Keys,
    bytes: usize,
}

// === impl Contents ===

impl Contents {
    pub(super) fn of(patroni: Folder, bouncers: Folder) -> Self {
        Self { patroni, bouncers }
    }

    pub(super) fn snapshot(&self, revision: i64) -> StoreEvent {
        StoreEvent::Snapshot { revision, keys: self.patroni.keys.clone(), bouncers: self.bouncers.keys.clone() }
    }

    pub(super) fn put(&mut self, places: &Places, key: &str, value: &[u8]) {
        if let Some((folder, name)) = self.place(places, key) {
            folder.put(name, value);
        }
    }

    pub(super) fn remove(&mut self, places: &Places, key: &str) {
        if let Some((folder, name)) = self.place(places, key) {
            folder.remove(name);
        }
    }

    fn place<'k>(&mut self, places: &Places, key: &'k str) -> Option<(&mut Folder, &'k str)> {
        if let Some(name) = key.strip_prefix(&*places.patroni) {
            return Some((&mut self.patroni, name));
        }
        Some((&mut self.bouncers, key.strip_prefix(&*places.bouncers)?))
    }
}

// === impl Folder ===

impl Folder {
    pub(super) fn put(&mut self, name: &str, value: &[u8]) {
        self.remove(name);
        if self.keys.len() >= MAX_KEYS {
            tracing::warn!(key = name, "the store has too many keys here: this one is left out");
            return;
        }
        let fits = value.len() <= SMALL || value.len() <= MAX_VALUE && self.bytes + value.len() <= MAX_TOTAL;
        if !fits {
            tracing::warn!(key = name, bytes = value.len(), "a value in the store is too large and taken as empty");
        }
        let value = if fits { value } else { &[] };
        self.bytes += value.len();
        self.keys.insert(name.into(), value.to_vec());
    }

    pub(super) fn remove(&mut self, name: &str) {
        if let Some(value) = self.keys.remove(name) {
            self.bytes -= value.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_to_their_folder_and_others_nowhere() {
        let places = Places { patroni: "/service/lab/".into(), bouncers: "/pgsplice/lab/bouncers/".into() };
        let mut contents = Contents::default();
        contents.put(&places, "/service/lab/leader", b"pg1");
        contents.put(&places, "/pgsplice/lab/bouncers/pb1", b"{}");
        contents.put(&places, "/service/lab2/leader", b"pg9");
        let keys = |name: &str, value: &[u8]| Keys::from([(name.into(), value.to_vec())]);
        let expected = StoreEvent::Snapshot { revision: 3, keys: keys("leader", b"pg1"), bouncers: keys("pb1", b"{}") };
        assert_eq!(contents.snapshot(3), expected);
        contents.remove(&places, "/service/lab/leader");
        contents.remove(&places, "/service/lab/nothing");
        assert_eq!(contents.patroni, Folder::default());
    }

    #[test]
    fn a_huge_value_is_an_empty_one_and_memory_is_bounded() {
        let mut folder = Folder::default();
        folder.put("huge", &vec![b'x'; MAX_VALUE + 1]);
        assert_eq!(folder.keys["huge"], b"");
        for number in 0..MAX_KEYS + 10 {
            folder.put(&number.to_string(), &vec![b'x'; MAX_VALUE / 2]);
        }
        let held: usize = folder.keys.values().map(Vec::len).sum();
        assert!(held == folder.bytes && held <= MAX_TOTAL && folder.keys.len() == MAX_KEYS);
        folder.put("huge", b"small");
        assert_eq!(folder.keys["huge"], b"small");
    }
}

//! Cancel keys: which backend a CancelRequest belongs to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::pool::Backend;

/// Length and request code before the key in a CancelRequest.
const PACKET_HEADER: usize = 8;
const SHARDS: usize = 16;

/// The `peer_id` PgBouncer (1.19 and newer, with peering) wrote into the key: bytes 9 and 10 of the packet,
/// little-endian. Meaningless unless every backend of the pool has one: a PostgreSQL's key has random bytes there.
pub fn peer_id(packet: &[u8]) -> Option<u16> {
    packet.get(9..11)?.try_into().ok().map(u16::from_le_bytes)
}

/// The part of a CancelRequest that is the body of the BackendKeyData it answers.
pub fn key_of(packet: &[u8]) -> &[u8] {
    packet.get(PACKET_HEADER..).unwrap_or_default()
}

/// Keys seen in plaintext handshakes, each with the backend that sent it. An entry lives as long as its session.
#[derive(Debug, Default)]
pub struct CancelKeys {
    shards: [Mutex<HashMap<Key, Arc<Backend>>>; SHARDS],
}

/// The body of a BackendKeyData. Protocol 3.0's, which nearly all are, need no memory of their own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Short([u8; 8]),
    Long(Box<[u8]>),
}

impl From<&[u8]> for Key {
    fn from(body: &[u8]) -> Self {
        body.try_into().map_or_else(|_| Self::Long(body.into()), Self::Short)
    }
}

impl CancelKeys {
    pub fn owner(&self, key: &[u8]) -> Option<SocketAddr> {
        self.shard(key).lock().get(&Key::from(key)).map(|backend| backend.address)
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Held by the session; forgets the key when dropped.
    pub fn remember(self: &Arc<Self>, body: &[u8], backend: &Arc<Backend>) -> Remembered {
        let key = Key::from(body);
        self.shard(body).lock().insert(key.clone(), backend.clone());
        Remembered { keys: self.clone(), key, backend: backend.clone() }
    }

    fn shard(&self, key: &[u8]) -> &Mutex<HashMap<Key, Arc<Backend>>> {
        // Some of a PgBouncer's key bytes are the same in every key, so all of them choose.
        &self.shards[usize::from(key.iter().fold(0, |all, byte| all ^ byte)) % SHARDS]
    }
}

/// One remembered key.
#[derive(Debug)]
pub struct Remembered {
    keys: Arc<CancelKeys>,
    key: Key,
    backend: Arc<Backend>,
}

impl Drop for Remembered {
    fn drop(&mut self) {
        let body: &[u8] = match &self.key {
            Key::Short(body) => body,
            Key::Long(body) => body,
        };
        let mut shard = self.keys.shard(body).lock();
        // Two backends may have given out the same key; the later session's entry stays.
        if shard.get(&self.key).is_some_and(|backend| Arc::ptr_eq(backend, &self.backend)) {
            shard.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_id_is_at_bytes_nine_and_ten_little_endian() {
        let packet = [0, 0, 0, 16, 4, 210, 22, 46, 0x11, 0x02, 0x01, 0, 0, 0, 0, 0];
        assert_eq!(peer_id(&packet), Some(0x0102));
        assert_eq!(peer_id(&packet[..10]), None);
    }

    fn backend(address: &str) -> Arc<Backend> {
        Arc::new(Backend::new("p", address, address.parse().expect("an address")))
    }

    #[test]
    fn a_key_is_forgotten_with_its_session() {
        let (keys, backend) = (Arc::new(CancelKeys::default()), backend("10.0.0.1:6432"));
        // Protocol 3.0 and 3.2.
        for body in [&[1, 2, 3, 4, 5, 6, 7, 8][..], &[7; 36]] {
            let remembered = keys.remember(body, &backend);
            assert_eq!(keys.owner(body), Some(backend.address));
            drop(remembered);
            assert!(keys.is_empty());
        }
    }

    #[test]
    fn of_two_backends_with_one_key_the_later_has_it() {
        let (keys, body) = (Arc::new(CancelKeys::default()), [1, 2, 3, 4, 5, 6, 7, 8]);
        let backends = [backend("10.0.0.1:6432"), backend("10.0.0.2:6432")];
        let [first, second] = backends.each_ref().map(|backend| keys.remember(&body, backend));
        assert_eq!(keys.owner(&body), Some(backends[1].address));
        drop(first);
        assert_eq!(keys.owner(&body), Some(backends[1].address));
        drop(second);
        assert_eq!(keys.owner(&body), None);
    }
}

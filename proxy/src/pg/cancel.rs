//! Cancel keys: which backend a CancelRequest belongs to.

use std::collections::HashMap;
use std::net::SocketAddr;

use parking_lot::Mutex;

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
    shards: [Mutex<HashMap<Box<[u8]>, SocketAddr>>; SHARDS],
}

impl CancelKeys {
    pub fn owner(&self, key: &[u8]) -> Option<SocketAddr> {
        self.shard(key).lock().get(key).copied()
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Held by the session; forgets the key when dropped.
    pub fn remember(self: &std::sync::Arc<Self>, key: Vec<u8>, backend: SocketAddr) -> Remembered {
        let key = key.into_boxed_slice();
        self.shard(&key).lock().insert(key.clone(), backend);
        Remembered { keys: self.clone(), key, backend }
    }

    fn shard(&self, key: &[u8]) -> &Mutex<HashMap<Box<[u8]>, SocketAddr>> {
        // Some of a PgBouncer's key bytes are the same in every key, so all of them choose.
        &self.shards[usize::from(key.iter().fold(0, |all, byte| all ^ byte)) % SHARDS]
    }
}

/// One remembered key.
#[derive(Debug)]
pub struct Remembered {
    keys: std::sync::Arc<CancelKeys>,
    key: Box<[u8]>,
    backend: SocketAddr,
}

impl Drop for Remembered {
    fn drop(&mut self) {
        let mut shard = self.keys.shard(&self.key).lock();
        // Two backends may have given out the same key; the later session's entry stays.
        if shard.get(&self.key) == Some(&self.backend) {
            shard.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn peer_id_is_at_bytes_nine_and_ten_little_endian() {
        let packet = [0, 0, 0, 16, 4, 210, 22, 46, 0x11, 0x02, 0x01, 0, 0, 0, 0, 0];
        assert_eq!(peer_id(&packet), Some(0x0102));
        assert_eq!(peer_id(&packet[..10]), None);
    }

    #[test]
    fn a_key_is_forgotten_with_its_session() {
        let keys = Arc::new(CancelKeys::default());
        let backend = "10.0.0.1:6432".parse().expect("an address");
        let remembered = keys.remember(vec![1, 2, 3, 4, 5, 6, 7, 8], backend);
        assert_eq!(keys.owner(&[1, 2, 3, 4, 5, 6, 7, 8]), Some(backend));
        drop(remembered);
        assert!(keys.is_empty());
    }
}

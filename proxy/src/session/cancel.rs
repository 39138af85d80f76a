//! A CancelRequest: find the PgBouncer that owns the session and deliver the packet there.
//!
//! The owner is, in this order: the backend that gave out the key in a plaintext handshake we relayed; the backend
//! with the `peer_id` in the key, if every backend of the pool has one of its own; otherwise every backend of the pool is
//! asked, and the one that owns the key acts. A CancelRequest inside TLS is invisible here and goes where its connection
//! goes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use super::connect::{Outbound, connect};
use super::{Session, Termination};
use crate::pg::cancel::{key_of, peer_id};
use crate::pool::Pool;
use crate::ring;

/// A server that took a cancel closes the connection; this long is waited for that, so that a client which waits for
/// the close (as libpq does) knows the cancel was taken.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Cancels of unknown owners under way in the process. Each opens a connection to every backend: without a bound, a flood of made-up
/// keys would be multiplied by the fleet.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
const MOST_UNDER_WAY: usize = 256;

pub(crate) async fn deliver(session: &Session, packet: &[u8]) -> Termination {
    let owner = owner(session, packet);
    if let Some(owner) = owner
        && send(session, vec![owner], packet).await
    {
        return Termination::CancelDelivered;
    }
    let Some(_slot) = Slot::take() else {
        tracing::warn!(client = %session.record.client(), "cancel refused: {MOST_UNDER_WAY} are asking every backend");
        return Termination::CancelFailed;
    };
    // Unknown owner, or one that does not answer; with peering any PgBouncer passes it on.
    let others =
        session.pool.members.load().iter().map(|named| named.address).filter(|at| Some(*at) != owner).collect();
    match send(session, others, packet).await {
        true => Termination::CancelDelivered,
        false => Termination::CancelFailed,
    }
}

fn owner(session: &Session, packet: &[u8]) -> Option<SocketAddr> {
    session.worker.proxy.cancel_keys.owner(key_of(packet)).or_else(|| owner_by_peer_id(&session.pool, packet))
}

fn owner_by_peer_id(pool: &Pool, packet: &[u8]) -> Option<SocketAddr> {
    let members = pool.members.load();
    if members.iter().any(|named| named.peer_id.is_none()) {
        return None;
    }
    let wanted = peer_id(packet)?;
    let mut owners = members.iter().filter(|named| named.peer_id == Some(wanted));
    // Two that were given the same one by mistake: it is either's, so both are asked.
    owners.next().filter(|_| owners.next().is_none()).map(|named| named.address)
}

/// Sends it to all at once and waits until each has closed. Whether at least one took it.
async fn send(session: &Session, targets: Vec<SocketAddr>, packet: &[u8]) -> bool {
    let tasks: Vec<_> = targets
        .into_iter()
        .map(|target| {
            let (pool, packet) = (session.pool.clone(), packet.to_vec());
            ring::spawn(async move { send_one(&pool, target, packet).await })
        })
        .collect();
    let mut taken = false;
    for task in tasks {
        taken |= task.await.unwrap_or(false);
    }
    taken
}

async fn send_one(pool: &Pool, target: SocketAddr, packet: Vec<u8>) -> bool {
    let leg = match connect(target, &pool.config.load_full(), Outbound::default()).await {
        Ok(leg) => leg,
        Err(error) => {
            tracing::info!(pool = pool.name, backend = %target, "cancel not delivered: {error}");
            return false;
        }
    };
    let sent = leg.write_all(packet).await.is_ok();
    // Nothing but the end is expected; a reset is an end, too.
    let _ = ring::timeout(CLOSE_LIMIT, leg.read_more(&mut Vec::new())).await;
    sent
}

struct Slot;

impl Slot {
    fn take() -> Option<Self> {
        let more = UNDER_WAY.fetch_update(Relaxed, Relaxed, |now| (now < MOST_UNDER_WAY).then_some(now + 1));
        more.ok().map(|_| Self)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::pool::eligibility::Named;

    #[test]
    fn a_peer_id_finds_its_owner_if_each_has_one_of_its_own() {
        let address = |last: u8| SocketAddr::from(([10, 0, 0, last], 6432));
        // With 2 in bytes 9 and 10.
        let packet = [0, 0, 0, 16, 4, 210, 22, 46, 0x11, 2, 0, 0, 0, 0, 0, 0];
        let owner = |peer_ids: [Option<u16>; 3]| {
            let named = peer_ids.iter().zip(1..).map(|(&peer_id, last)| Named {
                name: last.to_string(),
                address: address(last),
                weight: 1,
                tier: 0,
                max_sessions: 0,
                peer_id,
                held: false,
                excluded: None,
            });
            let pool = Pool::new("p", config::Pool::default());
            pool.members.store(std::sync::Arc::new(named.collect()));
            owner_by_peer_id(&pool, &packet)
        };
        assert_eq!(owner([Some(1), Some(2), Some(3)]), Some(address(2)));
        assert_eq!(owner([Some(1), Some(2), None]), None);
        assert_eq!(owner([Some(1), Some(3), Some(4)]), None);
        assert_eq!(owner([Some(1), Some(2), Some(2)]), None, "one of the two");
    }
}

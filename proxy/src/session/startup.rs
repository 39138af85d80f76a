//! Step 2: read the first packet, under a time limit and a size limit, before any backend is bothered.

use std::time::Instant;

use super::bounds::Bounds;
use super::leg::Leg;
use super::{Session, Termination};
use crate::pg::startup::{FirstPacket, Parsed, Refused, parse};

/// A client's first packet and every byte received so far, which begins with it.
pub(crate) struct Opening {
    pub packet: FirstPacket,
    pub bytes: Vec<u8>,
}

/// Reads until the packet is whole. `bytes` is what was received before.
pub(crate) async fn read(session: &Session, client: &Leg, mut bytes: Vec<u8>) -> Result<Opening, Termination> {
    let (limit, most) = {
        let config = session.listener.config.load();
        (config.startup_timeout, config.max_startup_size)
    };
    let started = Instant::now();
    let packet = loop {
        match parse(&bytes, most) {
            Ok(Parsed::Packet(packet, length)) => {
                // Bytes after a request that must be answered first are somebody's attempt to have plaintext taken
                // for ciphertext (CVE-2021-23214); PostgreSQL refuses them as well.
                let early = matches!(packet, FirstPacket::Ssl | FirstPacket::GssEnc) && bytes.len() > length;
                if early {
                    tracing::debug!(client = %client.peer, "bytes behind an unanswered SSLRequest or GSSENCRequest");
                    return Err(Termination::Garbage);
                }
                break packet;
            }
            Ok(Parsed::Need(_)) => {}
            Err(refused) => {
                tracing::debug!(client = %client.peer, "first packet refused: {refused}");
                return Err(match refused {
                    Refused::Oversized { .. } => Termination::Oversized,
                    _ => Termination::Garbage,
                });
            }
        }
        let bounds = Bounds {
            both: [client, client],
            deadline: Some(started + limit),
            late: Termination::StartupTimeout,
            watch: None,
        };
        let read = match client.read_now(&mut bytes) {
            Some(read) => read,
            None => session.within(bounds, client.read_more(&mut bytes)).await?,
        };
        match read {
            Ok(0) => return Err(Termination::ClientGone),
            Ok(_) => {}
            Err(_) => return Err(Termination::ClientReset),
        }
    };
    let took = session.record.age();
    if session.record.details().times.startup.is_none() {
        session.worker.proxy.metrics.observe_startup(&session.pool.name, took);
    }
    session.record.update(|details| {
        details.times.startup.get_or_insert(took);
        match &packet {
            FirstPacket::Startup(startup) => {
                details.user = startup.user.clone();
                details.database = startup.database.clone().or_else(|| startup.user.clone());
                details.application_name = startup.application_name.clone();
            }
            FirstPacket::DirectTls => details.tls = true,
            _ => {}
        }
    });
    Ok(Opening { packet, bytes })
}

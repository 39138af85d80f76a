//! Step 1: accept a client, tune its socket, and start its session's task.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use socket2::{SockRef, Socket};

use super::handoff::Life;
use super::leg::Leg;
use super::worker::Worker;
use super::{Session, SessionRecord, Termination, end};
use crate::proxy::Listener;
use crate::ring::{self, Accepts};

/// After accept failed for want of descriptors or memory: time for a session to end.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts until `accepts` is stopped.
pub(crate) async fn run(worker: &Rc<Worker>, listener: &Arc<Listener>, accepts: &Accepts<'_>) {
    while let Some(accepted) = accepts.next().await {
        match accepted {
            Ok(socket) => admit(worker, listener, socket),
            Err(error) => match error.raw_os_error() {
                // The client was gone before it was accepted (accept(2), "Error handling").
                Some(libc::ECONNABORTED | libc::EINTR | libc::EAGAIN | libc::EPROTO | libc::ENETDOWN) => {}
                _ => {
                    tracing::warn!(listener = listener.name, "accept: {error}");
                    listener.counters.count_end(Termination::Resource);
                    ring::sleep(PAUSE).await;
                }
            },
        }
    }
}

/// Takes what waits in a listening socket's queue without waiting for more.
pub(crate) fn drain_queue(worker: &Rc<Worker>, listener: &Arc<Listener>, socket: &Socket) {
    if let Err(error) = socket.set_nonblocking(true) {
        tracing::warn!(listener = listener.name, "O_NONBLOCK: {error}");
        return;
    }
    while let Ok((accepted, _)) = socket.accept() {
        admit(worker, listener, accepted.into());
    }
}

fn admit(worker: &Rc<Worker>, listener: &Arc<Listener>, socket: OwnedFd) {
    listener.counters.accepted.fetch_add(1, Relaxed);
    let peer = match SockRef::from(&socket).peer_addr() {
        Ok(peer) => peer.as_socket().expect("a TCP socket's peer has an IP address"),
        // It was reset before we came to it.
        Err(error) => {
            tracing::debug!(listener = listener.name, "getpeername: {error}");
            return listener.counters.count_end(Termination::ClientGone);
        }
    };
    let client = Leg::new(socket, peer);
    // What the listening socket has set is inherited; a reload may have changed it since.
    let config = listener.config.load();
    if config.tcp != listener.inherited
        && let Err(error) = client.tune(&config.tcp)
    {
        // The client is gone already, or the kernel lacks an option; neither is a reason to refuse it.
        tracing::debug!(client = %peer, "socket options: {error}");
    }
    let Some(pool) = worker.proxy.pools.load().get(&config.pool).cloned() else {
        tracing::error!(listener = listener.name, "its pool does not exist");
        listener.counters.count_end(Termination::Resource);
        return;
    };
    let (id, cut) = worker.admit();
    let record = Arc::new(SessionRecord::new(id, &listener.name, &pool.name, peer));
    worker.proxy.registry.insert(record.clone());
    listener.live.fetch_add(1, Relaxed);
    let session = Session { worker: worker.clone(), listener: listener.clone(), pool, record, cut };
    ring::spawn(async move {
        let life = super::live(&session, &client).await;
        drop(client);
        session.worker.forget(id);
        if let Life::Ended(reason) = life {
            session.worker.proxy.registry.remove(id);
            session.listener.live.fetch_sub(1, Relaxed);
            end::account(&session, reason);
        }
    });
}

//! Step 1: accept a client, tune its socket, and start its session's task.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use socket2::SockRef;
use tokio_uring::net::{TcpListener, TcpStream};

use super::leg::Leg;
use super::worker::Worker;
use super::{Session, SessionRecord, Termination, end};
use crate::proxy::Listener;

/// After accept failed for want of descriptors or memory: time for a session to end.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the listening socket is shut down.
pub(crate) async fn run(worker: Rc<Worker>, listener: Arc<Listener>, socket: Rc<TcpListener>) {
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => admit(&worker, &listener, stream, peer),
            Err(error) => match error.raw_os_error() {
                // shutdown(2) on the listening socket: the order to stop.
                Some(libc::EINVAL) => return,
                // The client was gone before it was accepted (accept(2), "Error handling").
                Some(libc::ECONNABORTED | libc::EINTR | libc::EAGAIN | libc::EPROTO | libc::ENETDOWN) => {}
                _ => {
                    tracing::warn!(listener = listener.name, "accept: {error}");
                    listener.counters.count_end(Termination::Resource);
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
}

/// Takes what waits in a listening socket's queue without waiting for more.
pub(crate) fn drain_queue(worker: &Rc<Worker>, listener: &Arc<Listener>, socket: BorrowedFd<'_>) {
    let socket = SockRef::from(&socket);
    if let Err(error) = socket.set_nonblocking(true) {
        tracing::warn!(listener = listener.name, "O_NONBLOCK: {error}");
        return;
    }
    while let Ok((stream, peer)) = socket.accept() {
        if let Some(peer) = peer.as_socket() {
            admit(worker, listener, TcpStream::from_std(stream.into()), peer);
        }
    }
}

fn admit(worker: &Rc<Worker>, listener: &Arc<Listener>, stream: TcpStream, peer: SocketAddr) {
    listener.counters.accepted.fetch_add(1, Relaxed);
    let client = Leg::new(stream, peer);
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
    tokio_uring::spawn(async move {
        let reason = super::live(&session, &client).await;
        drop(client);
        session.worker.forget(id);
        session.worker.proxy.registry.remove(id);
        session.listener.live.fetch_sub(1, Relaxed);
        end::account(&session, reason);
    });
}

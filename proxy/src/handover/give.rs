//! The old process's part of a takeover.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;

use super::talk::{Message, Offered, Talk, TalkError};
use super::{Done, UnderWay, fds, systemd};
use crate::proxy::Proxy;

/// The new process reads its configuration, resolves names, loads programs.
const SET_UP_LIMIT: Duration = Duration::from_secs(120);

/// Hands everything over, or goes on as if nothing had happened.
pub async fn give(proxy: Arc<Proxy>, stream: UnixStream, _under_way: UnderWay) {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    tracing::info!(pid, "another process is taking over");
    let mut without_kernel = false;
    match converse(&proxy, &Talk::new(stream), pid, &mut without_kernel).await {
        Ok(()) => tracing::info!(pid, "handed over"),
        Err(error) => {
            tracing::warn!(pid, "the takeover came to nothing, this process goes on: {error}");
            if without_kernel {
                proxy.take_kernel_back();
            }
        }
    }
}

async fn converse(
    proxy: &Arc<Proxy>,
    talk: &Talk,
    pid: Option<i32>,
    without_kernel: &mut bool,
) -> Result<(), TalkError> {
    talk.expect(&Message::Begin, SET_UP_LIMIT).await?;
    let sockets = offer(proxy);
    let mut floors = proxy.floors().await;
    let mut rest = &sockets[..];
    loop {
        let some;
        (some, rest) = rest.split_at(rest.len().min(fds::MOST));
        let (names, descriptors): (Vec<Offered>, Vec<BorrowedFd<'_>>) =
            some.iter().map(|(name, socket)| (name.clone(), socket.as_fd())).unzip();
        let (more, floors) = (!rest.is_empty(), std::mem::take(&mut floors));
        talk.say(&Message::Sockets { sockets: names, more, floors }, &descriptors).await?;
        if rest.is_empty() {
            break;
        }
    }
    // Or they would be kept open by us.
    drop(sockets);
    talk.expect(&Message::Kernel, SET_UP_LIMIT).await?;
    *without_kernel = true;
    proxy.give_up_kernel().await;
    talk.say(&Message::Yours, &[]).await?;
    let admin_kept = match talk.hear(SET_UP_LIMIT).await? {
        (Message::Ready { admin_kept }, _) => admin_kept,
        (other, _) => return Err(TalkError::Unexpected(format!("{other:?}"))),
    };
    proxy.hand_over().await;
    proxy.handover.complete(Done { admin_kept });
    if let Some(pid) = pid {
        systemd::notify(&format!("MAINPID={pid}"));
    }
    // It accepts by now, whether it hears this or not.
    let _ = talk.say(&Message::Gone, &[]).await;
    Ok(())
}

/// Copies of every socket a new process can go on with.
fn offer(proxy: &Proxy) -> Vec<(Offered, OwnedFd)> {
    let mut sockets = Vec::new();
    let mut add = |offered: Offered, socket: BorrowedFd<'_>| match socket.try_clone_to_owned() {
        Ok(socket) => sockets.push((offered, socket)),
        // The new process binds what it does not get.
        Err(error) => tracing::warn!("{offered:?} is not handed over: {error}"),
    };
    if let Some(admin) = &*proxy.handover.admin.lock() {
        let (path, unix) = &admin.unix;
        add(Offered::AdminUnix(path.clone()), unix.as_fd());
        if let Some((address, http)) = &admin.http {
            add(Offered::AdminHttp(*address), http.as_fd());
        }
    }
    for listener in proxy.listeners.load().values() {
        for socket in listener.listening_sockets() {
            add(Offered::Listener(listener.name.clone()), socket.as_fd());
        }
    }
    sockets
}

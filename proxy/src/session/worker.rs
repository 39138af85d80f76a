//! A data-plane thread: one ring with its own SO_REUSEPORT listeners, its sessions, and the inbox through which the
//! control plane steers it. Threads share nothing hot.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;

use socket2::Socket;
use tokio::sync::{mpsc, oneshot};

use super::bounds::Cut;
use super::{SessionId, Termination, accept};
use crate::proxy::{Listener, Proxy};
use crate::ring::{self, Accepts};
use crate::splice::relay::Relay;

/// An order from the control plane.
#[derive(Debug)]
pub enum Command {
    Listen(Arc<Listener>, Arc<Socket>),
    /// Stop accepting for this listener, or for all, and answer when it is done.
    Unlisten(Option<Arc<Listener>>, Waiting, oneshot::Sender<()>),
    Cut(Vec<SessionId>, Termination),
}

/// Clients in the queue of a listening socket that this thread stops accepting from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The socket is closed: they are served, or they would be reset.
    Serve,
    /// Another process, or another listener here, has the socket, too, or will have it: they are left to that.
    Leave,
}

/// The thread as the control plane sees it.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::UnboundedSender<Command>);

impl Handle {
    /// A thread that ended takes no orders; the process is ending then.
    pub fn send(&self, command: Command) {
        let _ = self.0.send(command);
    }
}

/// The inbox of a thread that is not started yet.
#[derive(Debug)]
pub struct Inbox(mpsc::UnboundedReceiver<Command>);

pub fn channel() -> (Handle, Inbox) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Handle(sender), Inbox(receiver))
}

/// The thread as its own tasks see it.
pub(crate) struct Worker {
    pub proxy: Arc<Proxy>,
    pub relay: Relay,
    thread: usize,
    next_session: Cell<u64>,
    cuts: RefCell<HashMap<SessionId, Rc<Cut>>>,
    listening: RefCell<Vec<Listening>>,
}

struct Listening {
    listener: Arc<Listener>,
    socket: Arc<Socket>,
    stop: oneshot::Sender<Waiting>,
    task: tokio::task::JoinHandle<()>,
}

/// Starts thread number `thread`. It runs until the process ends.
pub fn start(proxy: Arc<Proxy>, thread: usize, mut inbox: Inbox) -> io::Result<()> {
    let (ready, started) = std::sync::mpsc::channel();
    let control = tokio::runtime::Handle::current();
    std::thread::Builder::new().name(format!("session-{thread}")).spawn(move || {
        // For tokio's timers, which the control plane's thread drives; those of the ring cost less.
        let _control = control.enter();
        let _guard = AbortOnPanic;
        let told = ready.clone();
        let failed = ring::block_on(async move {
            let _ = ready.send(Ok(()));
            let worker = Rc::new(Worker {
                proxy,
                relay: Relay::start(),
                thread,
                next_session: Cell::new(first_number()),
                cuts: RefCell::default(),
                listening: RefCell::default(),
            });
            while let Some(command) = inbox.0.recv().await {
                worker.obey(command).await;
            }
        });
        if let Err(error) = failed {
            let _ = told.send(Err(error));
        }
    })?;
    started.recv().map_err(|_| io::Error::other("the thread ended at its start"))?
}

/// A thread that unwound would leave its clients waiting in its listening sockets without a word.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Worker {
    async fn obey(self: &Rc<Self>, command: Command) {
        match command {
            Command::Listen(listener, socket) => self.listen(listener, socket),
            Command::Unlisten(listener, waiting, done) => {
                self.unlisten(listener.as_ref(), waiting).await;
                // The one who asked may have stopped waiting.
                let _ = done.send(());
            }
            Command::Cut(ids, reason) => {
                let cuts = self.cuts.borrow();
                for id in &ids {
                    match cuts.get(id) {
                        Some(cut) => cut.order(reason),
                        // It has gone into the kernel since the order was given.
                        None => drop(self.proxy.cut_in_kernel(*id, reason)),
                    }
                }
            }
        }
    }

    fn listen(self: &Rc<Self>, listener: Arc<Listener>, socket: Arc<Socket>) {
        let (stop, stopped) = oneshot::channel();
        let (worker, of, from) = (self.clone(), listener.clone(), socket.clone());
        let task = ring::spawn(async move {
            let accepts = Accepts::new(from.as_fd());
            let waiting = tokio::select! {
                () = accept::run(&worker, &of, &accepts) => return,
                // A worker that is gone has no use for sessions.
                waiting = stopped => waiting.unwrap_or(Waiting::Leave),
            };
            accepts.stop();
            // What the ring has accepted by now.
            accept::run(&worker, &of, &accepts).await;
            if waiting == Waiting::Serve {
                accept::drain_queue(&worker, &of, &from);
            }
        });
        self.listening.borrow_mut().push(Listening { listener, socket, stop, task });
    }

    async fn unlisten(self: &Rc<Self>, which: Option<&Arc<Listener>>, waiting: Waiting) {
        let (ending, staying): (Vec<Listening>, Vec<Listening>) = self
            .listening
            .take()
            .into_iter()
            .partition(|one| which.is_none_or(|listener| Arc::ptr_eq(listener, &one.listener)));
        let is_shared = |socket: &Arc<Socket>| staying.iter().any(|one| Arc::ptr_eq(&one.socket, socket));
        let ending: Vec<_> = ending.into_iter().map(|one| (is_shared(&one.socket), one)).collect();
        *self.listening.borrow_mut() = staying;
        for (is_shared, one) in ending {
            // A task that has ended accepts no more, either.
            let _ = one.stop.send(if is_shared { Waiting::Leave } else { waiting });
            if let Err(error) = one.task.await {
                tracing::error!(listener = one.listener.name, "the accept task failed: {error}");
            }
        }
    }

    /// The next session's id and its way to be cut.
    pub(crate) fn admit(&self) -> (SessionId, Rc<Cut>) {
        let number = self.proxy.registry.free(self.thread, self.next_session.get());
        self.next_session.set(number + 1);
        let (id, cut) = (SessionId::new(self.thread, number), Rc::new(Cut::default()));
        self.cuts.borrow_mut().insert(id, cut.clone());
        (id, cut)
    }

    pub(crate) fn forget(&self, id: SessionId) {
        self.cuts.borrow_mut().remove(&id);
    }
}

/// Sessions outlive the process in the kernel, so each process numbers its own from the second it began in: 2³² seconds,
/// then 2¹⁶ sessions a second on average. Processes that began in the same second, or with the clock put back, may meet
/// numbers that are in use.
fn first_number() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (since.as_secs() & 0xffff_ffff) << 16
}

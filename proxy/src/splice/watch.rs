//! From when on the programs look at a session's packets: where each leg comes in and its last TSval is what a hand-off
//! takes from them.
//!
//! Where a session may be handed off at its log-in, that is from before the connect to the backend, and from the client's
//! SYN, by the program itself. Where most sessions are over before ([`super::brief`]), it begins with the first attempt,
//! which fails for it: looking costs a session that is not handed off more than a later hand-off costs the others. It
//! also begins anew where newer sessions have taken the place of a watch in the map.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use pgsplice_ebpf::flow::{FlowKey, Watch};

use super::handoff::Legs;
use super::ports::Port;
use super::{Splice, sockets};

/// Our own end of a backend leg, watched for as long as this lives, once that has begun.
pub struct BackendPort {
    port: Option<Port>,
    splice: Arc<Splice>,
    watch: Cell<Begun>,
}

/// How far the watching of a session has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begun {
    /// What is in the map is of another connection with the same port.
    No,
    Yes,
    /// Since then both ends were asked for a packet.
    Asked,
}

impl Splice {
    /// A source port for a connection that may be spliced; `watched` from its first packet on. `None`: connect from
    /// whatever port the kernel gives, and stay in user space.
    pub fn leg_to(self: &Arc<Self>, backend: SocketAddr, watched: bool) -> Option<BackendPort> {
        let source = self.sources.towards(backend.ip())?;
        let port = self.ports.take(source, backend, Instant::now())?;
        let leg = BackendPort { port: Some(port), splice: self.clone(), watch: Cell::new(Begun::No) };
        if watched && let Err(error) = leg.begin() {
            tracing::debug!(%backend, "no watch: {error}");
            return None;
        }
        Some(leg)
    }

    /// What was seen of both legs, the keys of which these are; `None` as long as that is not enough. `rests`: neither end is
    /// about to say anything.
    pub(super) fn seen(
        &self,
        keys: &[FlowKey; 2],
        legs: Legs<'_>,
        port: &BackendPort,
        rests: bool,
    ) -> io::Result<Option<[Watch; 2]>> {
        let mut seen = [None; 2];
        let first = port.watch.get() == Begun::No;
        for (seen, key) in seen.iter_mut().zip(keys) {
            *seen = if first { None } else { self.maps().watch(key)? };
            if seen.is_none() {
                self.maps().start_watch(key)?;
                port.watch.set(Begun::Yes);
            }
        }
        let seen = seen.map(|watch| watch.filter(|watch| watch.ifindex != 0));
        if let [Some(client), Some(backend)] = seen {
            return Ok(Some([client, backend]));
        }
        if rests && port.watch.get() != Begun::Asked {
            let ask =
                |leg: BorrowedFd<'_>, seen: Option<Watch>| if seen.is_none() { sockets::ask(leg) } else { Ok(()) };
            ask(legs.client, seen[0])?;
            ask(legs.backend, seen[1])?;
            port.watch.set(Begun::Asked);
        }
        Ok(None)
    }

    /// The watch of a leg is of no use any more.
    pub fn forget_watch(&self, key: &FlowKey) {
        if let Err(error) = self.maps().stop_watch(key) {
            tracing::debug!("stop_watch: {error}");
        }
    }
}

impl BackendPort {
    pub fn address(&self) -> SocketAddr {
        self.port.as_ref().expect("until it is taken out").address()
    }

    /// The port, for the table. The leg is watched no longer.
    pub fn into_port(mut self) -> Port {
        self.forget_watch();
        self.port.take().expect("taken out once")
    }

    fn begin(&self) -> io::Result<()> {
        if let Some(port) = &self.port {
            self.splice.maps().start_watch(&port.key())?;
            self.watch.set(Begun::Yes);
        }
        Ok(())
    }

    fn forget_watch(&self) {
        if let Some(port) = &self.port
            && self.watch.get() != Begun::No
        {
            self.splice.forget_watch(&port.key());
        }
    }
}

impl Drop for BackendPort {
    fn drop(&mut self) {
        self.forget_watch();
    }
}

//! Admission in XDP: sources on a deny list do not reach the listeners, and what does is counted a listener.
//!
//! The kernel side is `proxy-ebpf/`; [`crate::bpf`] loads it and keeps it on the interfaces. `docs/ebpf.md` tells what
//! a person finds on bpffs.

pub mod api;
mod deny;
mod listeners;

use std::net::SocketAddr;
use std::sync::Arc;

use aya::maps::MapError;
use parking_lot::Mutex;
use pgsplice_ebpf::guard::{MAX_DENY, MAX_LISTENER_ADDRESSES, MAX_LISTENERS};

pub use deny::{Denied, Origin};
pub use pgsplice_ebpf::guard::GuardCounters;

use crate::bpf::{AttachError, Attachment, Kernel, KernelError, LoadError, Maps, PinError, Wanted};
use crate::config::{self, IpNet};
use deny::DenyList;
use listeners::Listeners;

/// The guard of this process. Dropping it leaves program and maps where they are, as `kill -9` does, for the next
/// process to take over; [`Guard::stop`] does not.
pub struct Guard {
    kernel: Arc<Kernel>,
    splice: config::Splice,
    inner: Mutex<Inner>,
}

struct Inner {
    maps: Maps,
    listeners: Listeners,
    deny: DenyList,
}

#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    OtherLayout(KernelError),
    #[error("the guard's maps: {0}")]
    Map(#[from] MapError),
    #[error(
        "the guard counts at most {MAX_LISTENERS} listeners with {MAX_LISTENER_ADDRESSES} addresses: set fewer, or \
         leave guard.interfaces empty"
    )]
    TooManyListeners,
    #[error("listener.{0}: the name is longer than 64 bytes, which the guard's maps cannot hold")]
    NameTooLong(String),
    #[error("the deny list is full: it holds {MAX_DENY} prefixes of each address family")]
    DenyFull,
    #[error("{0} is not on the deny list; an entry is deleted as it was added (`pgsplice deny list`)")]
    NotDenied(IpNet),
    #[error("{0} is on the deny list by the configuration: take it out of guard.deny and reload")]
    DeniedByConfig(IpNet),
}

impl From<KernelError> for GuardError {
    fn from(error: KernelError) -> Self {
        match error {
            KernelError::Pin(error) => Self::Pin(error),
            KernelError::Load(error) => Self::Load(error),
            error @ KernelError::OtherLayout { .. } => Self::OtherLayout(error),
        }
    }
}

impl Guard {
    /// Loads the program onto the maps a process before us left, or new ones, and puts it on the interfaces.
    /// `listeners` are the bound addresses with the names to count them under. An error leaves the host as it was,
    /// except that a program left by a process before us stays.
    pub fn start(config: &config::Guard, listeners: &[(String, SocketAddr)]) -> Result<Self, GuardError> {
        let splice = config::Splice { max_sessions: 1, ..config::Splice::default() };
        let guard = Self::start_with_splice(config, &splice, listeners)?;
        guard.settle()?;
        Ok(guard)
    }

    /// No process before us needs its maps any more: those of other layouts go.
    pub fn settle(&self) -> Result<(), PinError> {
        for layout in self.kernel.settle()? {
            tracing::warn!(
                "removed the maps of another pgsplice version (v{layout}); its counters and its deny list from the command line are gone"
            );
        }
        Ok(())
    }

    /// The same with the programs of the splice on its interfaces. [`Self::settle`] is to follow.
    pub fn start_with_splice(
        config: &config::Guard,
        splice: &config::Splice,
        listeners: &[(String, SocketAddr)],
    ) -> Result<Self, GuardError> {
        let (kernel, maps) = Kernel::load(&config.pin_path, splice.max_sessions)?;
        let fresh = kernel.is_fresh();
        let adopted = Listeners::adopt(&maps).and_then(|listeners| Ok((listeners, DenyList::adopt(&maps)?)));
        let (names, deny) = adopted.inspect_err(|_| {
            if fresh && kernel.pins().is_empty() {
                let _ = kernel.pins().remove();
            }
        })?;
        let inner = Mutex::new(Inner { maps, listeners: names, deny });
        let guard = Self { kernel, splice: splice.clone(), inner };
        if let Err(error) = guard.reload(config, listeners) {
            guard.kernel.give_back()?;
            if fresh && let Err(also) = guard.stop() {
                tracing::warn!("cannot take back what the guard did before it failed: {also}");
            }
            return Err(error);
        }
        Ok(guard)
    }

    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    /// Makes a new configuration true: interfaces, mode, deny list and listeners. `pin_path` is not looked at: it needs
    /// a restart. Maps first, programs second: no packet meets a new program with an old list.
    pub fn reload(&self, config: &config::Guard, listeners: &[(String, SocketAddr)]) -> Result<(), GuardError> {
        {
            let Inner { maps, listeners: known, deny } = &mut *self.inner.lock();
            deny.set_config(maps, &config.deny)?;
            known.set(maps, listeners)?;
        }
        self.kernel.attach(&wanted(config, &self.splice))?;
        Ok(())
    }

    /// The listeners as they are now bound; those that stay keep their counters.
    pub fn set_listeners(&self, listeners: &[(String, SocketAddr)]) -> Result<(), GuardError> {
        let Inner { maps, listeners: known, .. } = &mut *self.inner.lock();
        known.set(maps, listeners)
    }

    /// Takes the programs off the interfaces. The maps go too, unless the deny list holds what a person added by
    /// command: then they stay pinned, and the next start goes on with them.
    pub fn stop(&self) -> Result<(), GuardError> {
        self.kernel.detach()?;
        match self.inner.lock().deny.by_command() {
            0 => self.kernel.pins().remove()?,
            n => tracing::info!(
                "{n} deny entries from the command line stay for the next start, pinned under {}",
                self.kernel.pins().path().display()
            ),
        }
        Ok(())
    }

    /// The id under which the maps know a listener.
    pub fn listener_id(&self, name: &str) -> Option<u32> {
        self.inner.lock().listeners.id_of(name)
    }

    /// Returns whether it was added; false if the command line had added it before.
    pub fn deny_add(&self, net: IpNet) -> Result<bool, GuardError> {
        let Inner { maps, deny, .. } = &mut *self.inner.lock();
        deny.add(maps, net)
    }

    /// Takes back what [`Guard::deny_add`] did.
    pub fn deny_del(&self, net: IpNet) -> Result<(), GuardError> {
        let Inner { maps, deny, .. } = &mut *self.inner.lock();
        deny.del(maps, net)
    }

    /// By address, IPv4 first.
    pub fn deny_list(&self) -> Result<Vec<Denied>, GuardError> {
        let Inner { maps, deny, .. } = &*self.inner.lock();
        deny.list(maps)
    }

    /// By name.
    pub fn counters(&self) -> Result<Vec<(String, GuardCounters)>, GuardError> {
        let Inner { maps, listeners, .. } = &*self.inner.lock();
        listeners.counters(maps)
    }

    /// By interface.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.kernel.attachments()
    }
}

/// What shall be on which interface.
fn wanted(guard: &config::Guard, splice: &config::Splice) -> Vec<Wanted> {
    let mut interfaces: Vec<&String> = guard.interfaces.iter().chain(&splice.interfaces).collect();
    interfaces.sort();
    interfaces.dedup();
    let one = |interface: &String| Wanted {
        interface: interface.clone(),
        mode: guard.mode,
        guard: guard.interfaces.contains(interface),
        splice: splice.interfaces.contains(interface).then_some(splice.mode),
    };
    interfaces.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_thread_may_hold_it() {
        fn shared<T: Send + Sync>() {}
        shared::<super::Guard>();
    }
}

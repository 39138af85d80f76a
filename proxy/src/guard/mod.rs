//! Admission in XDP: sources on a deny list do not reach the listeners, and what does is counted a listener.
//!
//! The kernel side is `proxy-ebpf/`; [`crate::bpf`] loads it and keeps it on the interfaces. `docs/ebpf.md` tells what
//! a person finds on bpffs.

pub mod api;
mod deny;
mod listeners;

use std::net::SocketAddr;

use aya::maps::MapError;
use parking_lot::Mutex;
use pgsplice_ebpf::guard::{MAX_DENY, MAX_LISTENER_ADDRESSES, MAX_LISTENERS};

pub use deny::{Denied, Origin};
pub use pgsplice_ebpf::guard::GuardCounters;

use crate::bpf::{AttachError, Attachment, Interfaces, LoadError, Maps, Object, PinError, Pins};
use crate::config::{self, IpNet};
use deny::DenyList;
use listeners::Listeners;

/// The guard of this process. Dropping it leaves program and maps where they are, as `kill -9` does, for the next
/// process to take over; [`Guard::stop`] does not.
pub struct Guard {
    inner: Mutex<Inner>,
}

struct Inner {
    pins: Pins,
    object: Object,
    maps: Maps,
    interfaces: Interfaces,
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

impl Guard {
    /// Loads the program onto the maps a process before us left, or new ones, and puts it on the interfaces.
    /// `listeners` are the bound addresses with the names to count them under. An error leaves the host as it was,
    /// except that a program left by a process before us stays.
    pub fn start(config: &config::Guard, listeners: &[(String, SocketAddr)]) -> Result<Self, GuardError> {
        let pins = Pins::open(&config.pin_path)?;
        let fresh = pins.linked()?.is_empty();
        let mut inner = Inner::load(pins, fresh)?;
        if let Err(error) = inner.apply(config, listeners) {
            if fresh && let Err(also) = inner.stop() {
                tracing::warn!("cannot take back what the guard did before it failed: {also}");
            }
            return Err(error);
        }
        for layout in inner.pins.remove_other_layouts()? {
            tracing::warn!(
                "removed the maps of another pgsplice version ({layout}); its counters and its deny list from the command line are gone"
            );
        }
        Ok(Self { inner: Mutex::new(inner) })
    }

    /// Makes a new configuration true: interfaces, mode, deny list and listeners. `pin_path` is not looked at: it needs
    /// a restart.
    pub fn reload(&self, config: &config::Guard, listeners: &[(String, SocketAddr)]) -> Result<(), GuardError> {
        self.inner.lock().apply(config, listeners)
    }

    /// The listeners as they are now bound; those that stay keep their counters.
    pub fn set_listeners(&self, listeners: &[(String, SocketAddr)]) -> Result<(), GuardError> {
        let Inner { maps, listeners: known, .. } = &mut *self.inner.lock();
        known.set(maps, listeners)
    }

    /// Takes the program off the interfaces. The maps go too, unless the deny list holds what a person added by
    /// command: then they stay pinned, and the next start goes on with them.
    pub fn stop(&self) -> Result<(), GuardError> {
        self.inner.lock().stop()
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
        self.inner.lock().interfaces.attachments()
    }
}

impl Inner {
    /// `fresh`: no process before us left a program, so what a failure leaves is removed.
    fn load(pins: Pins, fresh: bool) -> Result<Self, GuardError> {
        let loaded = Object::load(&pins).map_err(GuardError::from).and_then(|(object, maps)| {
            let listeners = Listeners::adopt(&maps)?;
            let deny = DenyList::adopt(&maps)?;
            Ok((object, maps, listeners, deny))
        });
        match loaded {
            Ok((object, maps, listeners, deny)) => {
                Ok(Self { pins, object, maps, interfaces: Interfaces::default(), listeners, deny })
            }
            Err(error) => {
                // Only where nothing is pinned yet: a deny list that cannot be read is still somebody's.
                if fresh && pins.is_empty() {
                    let _ = pins.remove();
                }
                Err(error)
            }
        }
    }

    /// Maps first, program second: no packet meets a new program with an old list.
    fn apply(&mut self, config: &config::Guard, listeners: &[(String, SocketAddr)]) -> Result<(), GuardError> {
        self.deny.set_config(&mut self.maps, &config.deny)?;
        self.listeners.set(&mut self.maps, listeners)?;
        self.interfaces.set(&mut self.object, &self.pins, &config.interfaces, config.mode)?;
        Ok(())
    }

    fn stop(&mut self) -> Result<(), GuardError> {
        self.interfaces.clear(&self.pins)?;
        match self.deny.by_command() {
            0 => self.pins.remove()?,
            n => tracing::info!(
                "{n} deny entries from the command line stay for the next start, pinned under {}",
                self.pins.path().display()
            ),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_thread_may_hold_it() {
        fn shared<T: Send + Sync>() {}
        shared::<super::Guard>();
    }
}

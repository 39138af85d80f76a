//! What the proxy has in the kernel: admission, the roads, and their begin and end.

use std::sync::Arc;

use super::reload::Prepared;
use super::{ApplyError, Proxy};
use crate::config::{self, Config, SpliceRoad};
use crate::guard::Guard;
use crate::splice::sockmap::Sockmap;
use crate::splice::{Splice, adopt};

impl Proxy {
    /// The programs in the kernel, if an interface wants any, and what a process before us left in their maps.
    pub(super) fn start_kernel(&self, config: &Config, prepared: &Prepared) -> Result<adopt::Found, ApplyError> {
        let forwards = !config.splice.interfaces.is_empty();
        if config.guard.interfaces.is_empty() && !forwards {
            return Ok(adopt::Found::default());
        }
        // Without a splice its maps are there and next to empty.
        let max_sessions = if forwards { config.splice.max_sessions } else { 1 };
        let splice = config::Splice { max_sessions, ..config.splice.clone() };
        let guard = Guard::start_with_splice(&config.guard, &splice, &self.addresses(config, prepared))?;
        let mut found = adopt::Found::default();
        if forwards {
            let splice = Splice::new(guard.kernel().clone(), &config.splice);
            found = splice.find().map_err(ApplyError::Splice)?;
            self.splice.store(Some(splice));
        }
        self.guard.store(Some(Arc::new(guard)));
        Ok(found)
    }

    /// Admission in XDP, where `guard.interfaces` wants it.
    pub fn guard(&self) -> Option<Arc<Guard>> {
        self.guard.load_full().filter(|_| !self.config.load().guard.interfaces.is_empty())
    }

    pub fn splice(&self) -> Option<Arc<Splice>> {
        self.splice.load_full()
    }

    /// The kernel's roads, if the sessions of a listener may take one.
    pub fn splice_for(&self, listener: &config::Listener) -> Option<Arc<Splice>> {
        match listener.splice {
            SpliceRoad::Auto | SpliceRoad::Xdp | SpliceRoad::Tc => self.splice(),
            SpliceRoad::Sockmap | SpliceRoad::Relay => None,
        }
    }

    /// The engine that joins sockets, if a listener wants it and the kernel has it.
    pub fn sockmap(&self) -> Option<&Sockmap> {
        self.sockmap.get()?.as_ref()
    }

    /// What the guard's maps call a listener.
    pub fn guard_id(&self, listener: &str) -> Option<u32> {
        self.guard.load().as_ref()?.listener_id(listener)
    }

    /// Takes the programs off the interfaces, at the end of the process, unless sessions go on in the kernel: then the
    /// next process finds everything as it is.
    pub fn stop_kernel(&self) {
        let Some(guard) = self.guard.swap(None) else { return };
        let sessions = self.splice().map_or(0, |splice| splice.table.live());
        if sessions > 0 {
            let pins = guard.kernel().pins().path().display();
            return tracing::info!(sessions, %pins, "sessions go on in the kernel, for the next start to adopt");
        }
        if let Err(error) = guard.stop() {
            tracing::warn!("the programs stay on their interfaces: {error}");
        }
    }
}

//! Which addresses are listeners', and the id each listener is counted under.
//!
//! Ids go by name and are kept in a map of their own, so a listener's counters go on over a restart, and over a change of its
//! addresses. A listener that goes gives its id back; the next one to take it starts from zero.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use aya::maps::MapError;
use pgsplice_ebpf::guard::{GuardCounters, ListenerKey, MAX_LISTENER_ADDRESSES, MAX_LISTENERS};

use super::GuardError;
use crate::bpf::{Maps, listener_key};

#[derive(Debug)]
pub struct Listeners {
    /// By id.
    names: Vec<Option<String>>,
}

impl Listeners {
    /// What the maps hold already.
    pub fn adopt(maps: &Maps) -> Result<Self, MapError> {
        Ok(Self { names: maps.names()? })
    }

    /// The listeners are these and no others.
    pub fn set(&mut self, maps: &mut Maps, wanted: &[(String, SocketAddr)]) -> Result<(), GuardError> {
        if let Some((name, _)) = wanted.iter().find(|(name, _)| name.len() > 64) {
            return Err(GuardError::NameTooLong(name.clone()));
        }
        let names: std::collections::BTreeSet<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
        if names.len() > MAX_LISTENERS as usize || wanted.len() > MAX_LISTENER_ADDRESSES as usize {
            return Err(GuardError::TooManyListeners);
        }
        let addresses: Vec<ListenerKey> = wanted.iter().map(|(_, addr)| listener_key(*addr)).collect();
        for (key, _) in maps.listener_keys()? {
            if !addresses.contains(&key) {
                maps.remove_listener(&key)?;
            }
        }
        for id in 0..self.names.len() {
            if self.names[id].as_deref().is_some_and(|name| !names.contains(name)) {
                maps.set_name(id as u32, None)?;
                self.names[id] = None;
            }
        }
        let mut ids = BTreeMap::new();
        for name in names {
            ids.insert(name, self.id(maps, name)?);
        }
        for ((name, _), key) in wanted.iter().zip(addresses) {
            maps.set_listener(key, ids[name.as_str()])?;
        }
        Ok(())
    }

    pub fn id_of(&self, name: &str) -> Option<u32> {
        self.names.iter().position(|known| known.as_deref() == Some(name)).map(|id| id as u32)
    }

    pub fn counters(&self, maps: &Maps) -> Result<Vec<(String, GuardCounters)>, GuardError> {
        let mut all = Vec::new();
        for (id, name) in self.names.iter().enumerate() {
            if let Some(name) = name {
                all.push((name.clone(), maps.counters(id as u32)?));
            }
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }

    /// The id of this name; a free one, its counters cleared, if it has none.
    fn id(&mut self, maps: &mut Maps, name: &str) -> Result<u32, GuardError> {
        if let Some(id) = self.names.iter().position(|n| n.as_deref() == Some(name)) {
            return Ok(id as u32);
        }
        let free = self.names.iter().position(Option::is_none).ok_or(GuardError::TooManyListeners)?;
        maps.clear_counters(free as u32)?;
        maps.set_name(free as u32, Some(name))?;
        self.names[free] = Some(name.into());
        Ok(free as u32)
    }
}

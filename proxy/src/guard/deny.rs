//! The deny list: which sources, and who put each there. The configuration's entries come and go with it; the command
//! line's stay until they are deleted, over restarts too.

use std::collections::BTreeMap;

use aya::maps::MapError;
use pgsplice_ebpf::guard::{DENY_BY_COMMAND, DENY_BY_CONFIG, DenyEntry};

use super::GuardError;
use crate::bpf::Maps;
use crate::config::IpNet;

/// One prefix whose packets to the listeners are dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    pub net: IpNet,
    pub origin: Origin,
    /// Packets, since the entry was made; a longer prefix on the list counts its own.
    pub dropped: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    Config,
    Command,
    Both,
}

/// What the kernel's maps hold, as `DENY_BY_*` bits; this process is their only writer.
#[derive(Debug, Default)]
pub struct DenyList {
    by: BTreeMap<IpNet, u32>,
}

impl DenyList {
    /// What the maps hold already.
    pub fn adopt(maps: &Maps) -> Result<Self, MapError> {
        Ok(Self { by: maps.deny_list()?.into_iter().map(|(net, entry)| (net, entry.by)).collect() })
    }

    /// The configuration's entries are these and no others. New ones go in before old ones go out.
    pub fn set_config(&mut self, maps: &mut Maps, nets: &[IpNet]) -> Result<(), GuardError> {
        for net in nets {
            self.set(maps, *net, self.bits(net) | DENY_BY_CONFIG)?;
        }
        let gone: Vec<IpNet> = self
            .by
            .iter()
            .filter(|(net, by)| **by & DENY_BY_CONFIG != 0 && !nets.contains(net))
            .map(|e| *e.0)
            .collect();
        for net in gone {
            self.set(maps, net, self.bits(&net) & !DENY_BY_CONFIG)?;
        }
        Ok(())
    }

    pub fn add(&mut self, maps: &mut Maps, net: IpNet) -> Result<bool, GuardError> {
        let before = self.bits(&net);
        self.set(maps, net, before | DENY_BY_COMMAND)?;
        Ok(before & DENY_BY_COMMAND == 0)
    }

    pub fn del(&mut self, maps: &mut Maps, net: IpNet) -> Result<(), GuardError> {
        match self.bits(&net) {
            0 => Err(GuardError::NotDenied(net)),
            DENY_BY_CONFIG => Err(GuardError::DeniedByConfig(net)),
            by => self.set(maps, net, by & !DENY_BY_COMMAND),
        }
    }

    pub fn list(&self, maps: &Maps) -> Result<Vec<Denied>, GuardError> {
        let mut all: Vec<Denied> = maps
            .deny_list()?
            .into_iter()
            .map(|(net, entry)| Denied { net, origin: origin(entry.by), dropped: entry.dropped })
            .collect();
        all.sort_by_key(|denied| denied.net);
        Ok(all)
    }

    /// Entries that the command line made.
    pub fn by_command(&self) -> usize {
        self.by.values().filter(|by| **by & DENY_BY_COMMAND != 0).count()
    }

    fn bits(&self, net: &IpNet) -> u32 {
        self.by.get(net).copied().unwrap_or(0)
    }

    /// Writes the entry if it changes; one that nobody wants is removed.
    fn set(&mut self, maps: &mut Maps, net: IpNet, by: u32) -> Result<(), GuardError> {
        let before = self.bits(&net);
        if by == before {
            return Ok(());
        }
        if by == 0 {
            maps.remove_deny(net)?;
            self.by.remove(&net);
            return Ok(());
        }
        // The kernel replaces the value whole: a packet counted between our read and our write is not counted.
        let dropped = if before == 0 { 0 } else { maps.denied(net)?.dropped };
        maps.set_deny(net, DenyEntry { by, pad: 0, dropped }).map_err(|error| match &error {
            MapError::SyscallError(e) if e.io_error.raw_os_error() == Some(libc::ENOSPC) => GuardError::DenyFull,
            _ => error.into(),
        })?;
        self.by.insert(net, by);
        Ok(())
    }
}

fn origin(by: u32) -> Origin {
    match by & (DENY_BY_CONFIG | DENY_BY_COMMAND) {
        DENY_BY_CONFIG => Origin::Config,
        DENY_BY_COMMAND => Origin::Command,
        _ => Origin::Both,
    }
}

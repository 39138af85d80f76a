//! The guard's maps as Rust types. User space is the only writer of all but the counters.

use std::net::{IpAddr, SocketAddr};

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, PerCpuValues};
use pgsplice_ebpf::guard::{self, DenyEntry, GuardCounters, ListenerKey, ListenerName, v4_mapped};

use super::object::LoadError;
use crate::config::IpNet;

pub struct Maps {
    listeners: HashMap<MapData, ListenerKey, u32>,
    names: Array<MapData, ListenerName>,
    counters: PerCpuArray<MapData, GuardCounters>,
    deny4: LpmTrie<MapData, [u8; 4], DenyEntry>,
    deny6: LpmTrie<MapData, [u8; 16], DenyEntry>,
}

impl Maps {
    /// Name, key size, value size and capacity of each, as the kernel reports them.
    pub(super) const SHAPES: [(&'static str, u32, u32, u32); 5] = [
        (guard::LISTENERS, size_of::<ListenerKey>() as u32, 4, guard::MAX_LISTENER_ADDRESSES),
        (guard::NAMES, 4, size_of::<ListenerName>() as u32, guard::MAX_LISTENERS),
        (guard::COUNTERS, 4, size_of::<GuardCounters>() as u32, guard::MAX_LISTENERS),
        (guard::DENY4, 8, size_of::<DenyEntry>() as u32, guard::MAX_DENY),
        (guard::DENY6, 20, size_of::<DenyEntry>() as u32, guard::MAX_DENY),
    ];

    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        use super::object::take as one;
        Ok(Self {
            listeners: one(ebpf, guard::LISTENERS)?,
            names: one(ebpf, guard::NAMES)?,
            counters: one(ebpf, guard::COUNTERS)?,
            deny4: one(ebpf, guard::DENY4)?,
            deny6: one(ebpf, guard::DENY6)?,
        })
    }

    pub fn listener_keys(&self) -> Result<Vec<(ListenerKey, u32)>, MapError> {
        self.listeners.iter().collect()
    }

    pub fn set_listener(&mut self, key: ListenerKey, id: u32) -> Result<(), MapError> {
        self.listeners.insert(key, id, 0)
    }

    pub fn remove_listener(&mut self, key: &ListenerKey) -> Result<(), MapError> {
        self.listeners.remove(key)
    }

    /// The name that each id stands for; `None` is a free id.
    pub fn names(&self) -> Result<Vec<Option<String>>, MapError> {
        let text = |raw: ListenerName| {
            let end = raw.iter().position(|b| *b == 0).unwrap_or(raw.len());
            (end > 0).then(|| String::from_utf8_lossy(&raw[..end]).into_owned())
        };
        (0..guard::MAX_LISTENERS).map(|id| self.names.get(&id, 0).map(text)).collect()
    }

    /// Longer names are cut at 64 bytes; `None` frees the id.
    pub fn set_name(&mut self, id: u32, name: Option<&str>) -> Result<(), MapError> {
        let mut raw = [0; size_of::<ListenerName>()];
        for (to, from) in raw.iter_mut().zip(name.unwrap_or_default().bytes()) {
            *to = from;
        }
        self.names.set(id, raw, 0)
    }

    /// The sum over all CPUs. A packet counted at this very moment may be seen in one field and not yet in another.
    pub fn counters(&self, id: u32) -> Result<GuardCounters, MapError> {
        let mut sum = GuardCounters::default();
        for cpu in self.counters.get(&id, 0)?.iter() {
            sum.packets += cpu.packets;
            sum.bytes += cpu.bytes;
            sum.syns += cpu.syns;
            sum.denied += cpu.denied;
        }
        Ok(sum)
    }

    pub fn clear_counters(&mut self, id: u32) -> Result<(), MapError> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
        self.counters.set(id, PerCpuValues::try_from(vec![GuardCounters::default(); cpus])?, 0)
    }

    pub fn deny_list(&self) -> Result<Vec<(IpNet, DenyEntry)>, MapError> {
        let mut all = Vec::new();
        for entry in self.deny4.iter() {
            let (key, value) = entry?;
            all.push((IpNet { addr: IpAddr::from(key.data()), prefix: prefix(key.prefix_len()) }, value));
        }
        for entry in self.deny6.iter() {
            let (key, value) = entry?;
            all.push((IpNet { addr: IpAddr::from(key.data()), prefix: prefix(key.prefix_len()) }, value));
        }
        Ok(all)
    }

    /// Adds the entry or replaces the one of exactly this prefix.
    pub fn set_deny(&mut self, net: IpNet, entry: DenyEntry) -> Result<(), MapError> {
        let len = u32::from(net.prefix);
        match net.addr {
            IpAddr::V4(a) => self.deny4.insert(&Key::new(len, a.octets()), entry, 0),
            IpAddr::V6(a) => self.deny6.insert(&Key::new(len, a.octets()), entry, 0),
        }
    }

    /// The entry of exactly this prefix, which must exist: the kernel answers with the longest that matches.
    pub fn denied(&self, net: IpNet) -> Result<DenyEntry, MapError> {
        let len = u32::from(net.prefix);
        match net.addr {
            IpAddr::V4(a) => self.deny4.get(&Key::new(len, a.octets()), 0),
            IpAddr::V6(a) => self.deny6.get(&Key::new(len, a.octets()), 0),
        }
    }

    pub fn remove_deny(&mut self, net: IpNet) -> Result<(), MapError> {
        let len = u32::from(net.prefix);
        match net.addr {
            IpAddr::V4(a) => self.deny4.remove(&Key::new(len, a.octets())),
            IpAddr::V6(a) => self.deny6.remove(&Key::new(len, a.octets())),
        }
    }
}

/// The kernel accepts no prefix above 128.
fn prefix(len: u32) -> u8 {
    u8::try_from(len).unwrap_or(u8::MAX)
}

/// The key under which the program looks for packets to this address.
pub fn listener_key(addr: SocketAddr) -> ListenerKey {
    let octets = match addr.ip() {
        IpAddr::V4(a) => v4_mapped(a.octets()),
        IpAddr::V6(a) => a.octets(),
    };
    ListenerKey::new(octets, addr.port().to_be_bytes())
}

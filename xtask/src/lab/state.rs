//! What a lab writes down, so that another process (`lab exec`, `lab down`) finds it: one JSON file in its state folder.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// One lab as it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetState {
    pub id: String,
    pub hosts: Vec<HostState>,
}

/// One host of a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostState {
    pub name: String,
    /// The process that keeps the host's namespaces.
    pub holder: i32,
    /// The file system its processes see: `/` is the machine's own.
    pub root: PathBuf,
    pub nics: Vec<NicState>,
}

/// One interface of a host, `eth0`, `eth1`, … in order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NicState {
    pub segment: String,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

/// Where labs keep their state: `/var/lib/pgsplice-lab/<id>`.
pub fn folder(id: &str) -> PathBuf {
    Path::new("/var/lib/pgsplice-lab").join(id)
}

/// What the names of a lab's network namespaces begin with.
pub fn prefix(id: &str) -> String {
    format!("pgs{id}-")
}

/// An id is part of namespace names and paths: one to eight lower-case letters and digits.
pub fn check_id(id: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if id.is_empty() || id.len() > 8 || !id.chars().all(fits) {
        bail!("lab id {id:?}: use one to eight lower-case letters and digits");
    }
    Ok(())
}

impl NetState {
    pub fn save(&self) -> Result<()> {
        let path = folder(&self.id).join("net.json");
        let text = serde_json::to_vec_pretty(self)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads a running lab's state.
    pub fn load(id: &str) -> Result<Self> {
        let path = folder(id).join("net.json");
        let text = fs::read(&path).with_context(|| format!("no lab {id:?} is up ({} is not there)", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not a lab's state", path.display()))
    }
}

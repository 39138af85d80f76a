//! The three servers of the store that Patroni keeps its keys in, at 10.0.0.11 to 10.0.0.13 whichever it is.

mod consul;
mod etcd;
mod zookeeper;

use anyhow::{Context, Result};

use super::Lab;
use crate::lab::HostSpec;

/// Which one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Store {
    #[default]
    Etcd,
    Consul,
    Zookeeper,
}

/// Where what [`crate::setup::stores`] holds is found on a host.
const STORES: &str = "/opt/stores";
/// Where Patroni finds kazoo.
pub const PYTHON: &str = "/opt/stores/python";

impl Store {
    pub fn is_there(self) -> bool {
        self == Self::Etcd || crate::setup::stores().exists()
    }

    /// What its hosts are named, before their number.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Consul => "consul",
            Self::Zookeeper => "zookeeper",
        }
    }

    /// A host that runs it, or is a client of it, with what it needs.
    pub fn on(self, host: HostSpec) -> HostSpec {
        match self {
            Self::Etcd => host,
            Self::Consul | Self::Zookeeper => host.bind(crate::setup::stores(), STORES),
        }
    }

    /// Until it answers.
    pub fn start(self, lab: &Lab) -> Result<()> {
        match self {
            Self::Etcd => etcd::start(lab),
            Self::Consul => consul::start(lab),
            Self::Zookeeper => zookeeper::start(lab),
        }
    }

    /// In `patroni.yml`.
    pub fn patroni(self, lab: &Lab, template: &str) -> Result<String> {
        let section = match self {
            Self::Etcd => format!("etcd3:\n  hosts: {}\n", self.hosts(lab, 2379).join(",")),
            Self::Consul => "consul:\n  host: 127.0.0.1:8500\n".into(),
            Self::Zookeeper => format!("zookeeper:\n  hosts: \"{}\"\n", self.hosts(lab, 2181).join(",")),
        };
        replace(template, "etcd3:\n", "\n\n", section.trim_end())
    }

    /// In `pgsplice.toml` and `agent.toml`.
    pub fn pgsplice(self, lab: &Lab, template: &str) -> Result<String> {
        let urls = |port| self.hosts(lab, port).iter().map(|host| format!("http://{host}")).collect::<Vec<_>>();
        let (key, list) = match self {
            Self::Etcd => ("endpoints", urls(2379)),
            Self::Consul => ("endpoints", urls(8500)),
            Self::Zookeeper => ("hosts", self.hosts(lab, 2181)),
        };
        replace(template, "[cluster.main.etcd]\n", "\n", &format!("[cluster.main.{}]\n{key} = {list:?}", self.name()))
    }

    fn hosts(self, lab: &Lab, port: u16) -> Vec<String> {
        lab.numbered(self.name()).iter().map(|host| format!("{}:{port}", host.v4())).collect()
    }
}

/// `text` with a head, and what follows it up to `end`, replaced.
fn replace(text: &str, head: &str, end: &str, with: &str) -> Result<String> {
    let (before, rest) = text.split_once(head).with_context(|| format!("a template under deploy/ has no {head:?}"))?;
    let after = rest.split_once(end).map_or("", |(_, after)| after);
    Ok(format!("{before}{with}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::replace;

    #[test]
    fn a_section_is_replaced_up_to_its_end() {
        assert_eq!(replace("a\n[x]\nb = 1\nc\n", "[x]\n", "\n", "[y]\nd = 2").unwrap(), "a\n[y]\nd = 2\nc\n");
        assert!(replace("a", "[x]\n", "\n", "").is_err());
    }
}

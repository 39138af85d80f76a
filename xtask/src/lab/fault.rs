//! What goes wrong on a network, made at the switch so that no host (and no XDP program on it) can look past it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::net::Net;

/// The faults in force.
#[derive(Debug, Default)]
pub(super) struct Faults {
    cut: BTreeSet<String>,
    /// Lost frames in each thousand, each way.
    loss: BTreeMap<String, u32>,
    partitions: BTreeSet<(String, String)>,
}

impl Net {
    /// Cuts a host off in silence, as a dead switch port does: its links stay up and its packets vanish.
    pub fn cut(&self, host: &str) -> Result<()> {
        self.change(|faults| {
            faults.cut.insert(host.to_owned());
        })
    }

    /// Undoes [`Self::cut`], [`Self::loss`] and every [`Self::partition`] of this host.
    pub fn heal(&self, host: &str) -> Result<()> {
        self.change(|faults| {
            faults.cut.remove(host);
            faults.loss.remove(host);
            faults.partitions.retain(|(a, b)| a != host && b != host);
        })
    }

    /// Loses this many (up to 999) of a thousand frames at random, to the host and from it.
    pub fn loss(&self, host: &str, per_mille: u32) -> Result<()> {
        self.change(|faults| {
            faults.loss.insert(host.to_owned(), per_mille.min(999));
        })
    }

    /// Two hosts stop hearing each other; everyone else hears both.
    pub fn partition(&self, a: &str, b: &str) -> Result<()> {
        self.change(|faults| {
            faults.partitions.insert((a.to_owned(), b.to_owned()));
        })
    }

    fn change(&self, edit: impl FnOnce(&mut Faults)) -> Result<()> {
        let mut faults = self.faults.lock();
        edit(&mut faults);
        self.apply(&faults.rules(|host| self.ports(host)))
    }

    fn ports(&self, host: &str) -> String {
        let count = self.host(host).state().nics.len();
        let ports: Vec<String> = (0..count).map(|index| format!("\"{host}.{index}\"")).collect();
        format!("{{ {} }}", ports.join(", "))
    }

    /// nft comes from a host's root and runs in the switch's network: the machine itself need not have it.
    fn apply(&self, rules: &str) -> Result<()> {
        let host = self.hosts().first().context("a lab without hosts")?;
        let switch = format!("--net=/run/netns/{}switch", super::state::prefix(self.id()));
        let mut command = std::process::Command::new("nsenter");
        command.args(["--target", &host.holder().to_string(), "--mount", &switch, "nft", "-f", "-"]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot run nft")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(rules.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("nft refused the fault rules: {}\n{rules}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

impl Faults {
    fn rules(&self, ports: impl Fn(&str) -> String) -> String {
        let mut rules = String::from("table bridge faults\ndelete table bridge faults\ntable bridge faults {\n");
        rules.push_str("chain wire {\ntype filter hook forward priority 0\n");
        for host in &self.cut {
            let ports = ports(host);
            let _ = writeln!(rules, "iifname {ports} drop\noifname {ports} drop");
        }
        for (host, per_mille) in &self.loss {
            let ports = ports(host);
            for way in ["iifname", "oifname"] {
                let _ = writeln!(rules, "{way} {ports} numgen random mod 1000 < {per_mille} drop");
            }
        }
        for (a, b) in &self.partitions {
            let (a, b) = (ports(a), ports(b));
            let _ = writeln!(rules, "iifname {a} oifname {b} drop\niifname {b} oifname {a} drop");
        }
        rules.push_str("}\n}\n");
        rules
    }
}

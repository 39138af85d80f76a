//! The configuration of `pgsplice agent`, read with the same care as the proxy's. `docs/agent.md` is the reference.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::model::{Cluster, Log};
use super::report::{ConfigErrors, Warning};
use super::{parse, read_text};

/// One whole agent.toml.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentConfig {
    /// Under which the bouncer is registered; unique within the cluster.
    pub name: String,
    /// How long the registration outlives a dead agent. etcd counts whole seconds.
    pub lease_ttl: Duration,
    pub log: Log,
    /// Registered with the PgBouncer, for a pool's `prefer`.
    pub tags: BTreeMap<String, String>,
    pub pgbouncer: PgBouncer,
    pub cluster_name: String,
    pub cluster: Cluster,
}

/// `[pgbouncer]`: the one this agent stands beside.
#[derive(Clone, PartialEq)]
pub struct PgBouncer {
    /// Where sessions connect to, as it is registered.
    pub address: SocketAddr,
    pub peer_id: Option<u16>,
    pub console: Console,
    /// One of PgBouncer's `admin_users`.
    pub user: String,
    pub password: Option<String>,
    /// The ini that pgbouncer.ini includes and the agent owns.
    pub databases_file: PathBuf,
    /// Name, or `*`, to the options of its line without host and port.
    pub databases: BTreeMap<String, String>,
    /// How often PgBouncer is asked whether all is well.
    pub check_interval: Duration,
    /// One command on the console.
    pub timeout: Duration,
    /// While this file exists the bouncer is registered as draining.
    pub maintenance_file: Option<PathBuf>,
}

impl std::fmt::Debug for PgBouncer {
    /// Never prints the password, nor the options, which may hold one.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PgBouncer")
            .field("address", &self.address)
            .field("peer_id", &self.peer_id)
            .field("console", &self.console)
            .field("databases_file", &self.databases_file)
            .finish_non_exhaustive()
    }
}

/// Where PgBouncer's admin console listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    /// The socket itself, such as `/run/pgbouncer/.s.PGSQL.6432`.
    Unix(PathBuf),
    /// `ip:port` or `host:port`.
    Tcp(String),
}

impl std::fmt::Display for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

impl AgentConfig {
    /// Reads and checks a file, and the files it names.
    pub fn load(path: &Path) -> Result<(Self, Vec<Warning>), ConfigErrors> {
        let (text, file) = read_text(path)?;
        Self::from_str_named(&text, &file)
    }

    pub fn from_str_named(text: &str, name: &str) -> Result<(Self, Vec<Warning>), ConfigErrors> {
        parse::agent(text, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"name = "pb1"
tags = { zone = "a" }

[pgbouncer]
address = "10.0.0.7:6432"
peer_id = 3
console = "/run/pgbouncer/.s.PGSQL.6432"
password = "secret"
databases_file = "/etc/pgbouncer/databases.ini"

[pgbouncer.databases]
app = "dbname=app pool_size=20"
"*" = ""

[cluster.main]
scope = "lab"

[cluster.main.etcd]
endpoints = ["http://10.0.0.1:2379"]
"#;

    fn errors(text: &str) -> Vec<String> {
        match AgentConfig::from_str_named(text, "agent.toml") {
            Ok(_) => Vec::new(),
            Err(errors) => errors.errors.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn the_example_of_the_docs_is_good() {
        let docs = include_str!("../../../docs/agent.md");
        let example = docs.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let example = example.replace("password_file = \"/etc/pgsplice/console.password\"", "password = \"x\"");
        let (config, _) = AgentConfig::from_str_named(&example, "agent.toml").unwrap();
        assert_eq!((&*config.name, config.pgbouncer.databases.len()), ("bouncer1", 2));
    }

    #[test]
    fn the_shipped_file_is_good_once_its_words_are_replaced() {
        let words = [("@NAME@", "bouncer1"), ("@ADDRESS@", "10.0.0.21"), ("@PEER_ID@", "1"), ("@ADMIN_PASSWORD@", "x")];
        let shipped = include_str!("../../../deploy/agent/agent.toml");
        let text = words.iter().fold(shipped.to_string(), |text, (word, value)| text.replace(word, value));
        assert_eq!(errors(&text), [""; 0]);
    }

    #[test]
    fn every_key_is_read() {
        let (config, warnings) = AgentConfig::from_str_named(GOOD, "agent.toml").unwrap();
        assert!(warnings.is_empty());
        assert_eq!((&*config.name, &*config.cluster_name, &*config.cluster.scope), ("pb1", "main", "lab"));
        assert_eq!(config.pgbouncer.console, Console::Unix("/run/pgbouncer/.s.PGSQL.6432".into()));
        assert_eq!((config.pgbouncer.peer_id, &*config.pgbouncer.user), (Some(3), "pgbouncer"));
        assert_eq!(config.tags["zone"], "a");
        assert_eq!(config.pgbouncer.databases["app"], "dbname=app pool_size=20");
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let wrong = |from: &str, to: &str| errors(&GOOD.replace(from, to)).join("\n");
        let cases = [
            (
                "pool_size=20",
                "host=10.0.0.1",
                "agent.toml:12: pgbouncer.databases.app: \"host=10.0.0.1\" is the agent's to write",
            ),
            ("\"*\" = \"\"", "\"a b\" = \"x\\ny\"", "agent.toml:13: pgbouncer.databases"),
            ("console = \"/run", "console = \"run", "agent.toml:7: pgbouncer.console"),
            ("peer_id = 3", "peerid = 3", "agent.toml:6: pgbouncer.peerid: unknown key (did you mean \"peer_id\"?)"),
            ("peer_id = 3", "peer_id = 70000", "agent.toml:6: pgbouncer.peer_id: 70000"),
            ("address = \"10.0.0.7:6432\"\n", "", "pgbouncer.address: missing"),
            (
                "[cluster.main]\nscope",
                "[cluster.other]\nscope = \"x\"\n[cluster.other.etcd]\nendpoints = []\n[cluster.main]\nscope",
                "cluster: there are 2",
            ),
            ("name = \"pb1\"", "name = \"p/b\"", "agent.toml:1: name: \"p/b\" is not a name"),
        ];
        for (from, to, expected) in cases {
            let said = wrong(from, to);
            assert!(said.contains(expected), "{to}:\n{said}");
        }
        assert!(errors("").iter().any(|error| error.contains("pgbouncer.address: missing")));
    }
}

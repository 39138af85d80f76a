//! The components' configuration: the files under `deploy/` with this lab's values put in. There is no second copy.

use anyhow::{Result, bail};

pub const ETCD: &str = include_str!("../../../../deploy/etcd/etcd.yml");
pub const CONSUL_SERVER: &str = include_str!("../../../../deploy/consul/server.hcl");
pub const CONSUL_AGENT: &str = include_str!("../../../../deploy/consul/agent.hcl");
pub const ZOOKEEPER: &str = include_str!("../../../../deploy/zookeeper/zoo.cfg");
pub const PATRONI: &str = include_str!("../../../../deploy/patroni/patroni.yml");
pub const ROLES: &str = include_str!("../../../../deploy/postgresql/roles.sql");
pub const PGBOUNCER: &str = include_str!("../../../../deploy/pgbouncer/pgbouncer.ini");
pub const DATABASES: &str = include_str!("../../../../deploy/pgbouncer/databases.ini");
pub const PEERS: &str = include_str!("../../../../deploy/pgbouncer/peers.ini");
pub const NODE_LOCAL: &str = include_str!("../../../../deploy/pgbouncer/node-local.ini");
pub const USERLIST: &str = include_str!("../../../../deploy/pgbouncer/userlist.txt");
pub const AGENT: &str = include_str!("../../../../deploy/agent/agent.toml");
pub const PGSPLICE: &str = include_str!("../../../../deploy/pgsplice/pgsplice.toml");

/// What stands for the passwords in every template.
pub const PASSWORDS: &[(&str, &str)] = &[
    ("SUPERUSER_PASSWORD", "lab-superuser"),
    ("REPLICATION_PASSWORD", "lab-replication"),
    ("APP_PASSWORD", super::APP_PASSWORD),
    ("PROBE_PASSWORD", "lab-probe"),
    ("ADMIN_PASSWORD", super::ADMIN_PASSWORD),
];

/// Puts the values in for `@NAME@`; a word that no value was given for is an error.
pub fn render(template: &str, values: &[(&str, &str)]) -> Result<String> {
    let mut text = template.to_owned();
    for (name, value) in values.iter().chain(PASSWORDS) {
        text = text.replace(&format!("@{name}@"), value);
    }
    let is_name = |word: &&str| !word.is_empty() && word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    if let Some(left) = text.split('@').skip(1).find(is_name) {
        bail!("a template under deploy/ has @{left}@, and the lab has no value for it");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::render;

    #[test]
    fn a_word_without_a_value_is_named() {
        assert_eq!(render("a: @X@\nb: x@y.z", &[("X", "1")]).unwrap(), "a: 1\nb: x@y.z");
        assert!(render("a: @X@ @Y_Z@", &[("X", "1")]).unwrap_err().to_string().contains("@Y_Z@"));
    }
}

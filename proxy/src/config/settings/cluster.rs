//! `[cluster.NAME]` as keys and values.

use super::{Settings, Value, duration, list, number, optional, path, section, text};
use crate::config::model::{
    Cluster, ConsulConfig, EtcdConfig, ProofConfig, RestConfig, StaticConfig, StaticMember, StoreConfig, TlsFiles,
    ZookeeperConfig,
};

pub fn cluster(
    Cluster { store, namespace, scope, citus_group, proof, leader_absent_debounce, switchover_hold }: &Cluster,
) -> Settings {
    let mut settings = section(
        "",
        [
            ("scope", optional(store.is_patronis().then(|| text(scope)))),
            ("namespace", text(namespace)),
            ("citus_group", optional(citus_group.map(number))),
            ("leader_absent_debounce", duration(*leader_absent_debounce)),
            ("switchover_hold", duration(*switchover_hold)),
        ],
    );
    settings.extend(self::store(store));
    let ProofConfig { interval, fast_interval, timeout, tls: proof_tls, user, password } = proof;
    settings.extend(section(
        "proof.",
        [
            ("interval", duration(*interval)),
            ("fast_interval", duration(*fast_interval)),
            ("timeout", duration(*timeout)),
            ("user", optional(user.as_ref().map(text))),
            ("password", optional(password.clone().map(Value::Secret))),
        ],
    ));
    settings.extend(tls("proof.tls.", proof_tls));
    settings
}

pub fn store(store: &StoreConfig) -> Settings {
    let secret = |value: &Option<String>| optional(value.clone().map(Value::Secret));
    let mut settings = match store {
        StoreConfig::Etcd(EtcdConfig { endpoints, user, password, .. }) => section(
            "etcd.",
            [
                ("endpoints", list(endpoints)),
                ("user", optional(user.as_ref().map(text))),
                ("password", secret(password)),
            ],
        ),
        StoreConfig::Consul(ConsulConfig { endpoints, token, datacenter, .. }) => section(
            "consul.",
            [
                ("endpoints", list(endpoints)),
                ("token", secret(token)),
                ("datacenter", optional(datacenter.as_ref().map(text))),
            ],
        ),
        StoreConfig::Zookeeper(ZookeeperConfig { hosts, user, password, .. }) => section(
            "zookeeper.",
            [("hosts", list(hosts)), ("user", optional(user.as_ref().map(text))), ("password", secret(password))],
        ),
        StoreConfig::Rest(RestConfig { endpoints }) => section("rest.", [("endpoints", list(endpoints))]),
        StoreConfig::Static(StaticConfig { user, password, database, primary, members }) => section(
            "static.",
            [
                ("user", text(user)),
                ("password", secret(password)),
                ("database", text(database)),
                ("primary", optional(primary.as_ref().map(text))),
                ("member", number(self::members(members))),
            ],
        ),
    };
    match store {
        StoreConfig::Etcd(EtcdConfig { tls, connect_timeout, keepalive_interval, keepalive_timeout, .. })
        | StoreConfig::Consul(ConsulConfig { tls, connect_timeout, keepalive_interval, keepalive_timeout, .. })
        | StoreConfig::Zookeeper(ZookeeperConfig {
            tls, connect_timeout, keepalive_interval, keepalive_timeout, ..
        }) => {
            let prefix = format!("{}.", store.kind());
            settings.extend(section(
                &prefix,
                [
                    ("connect_timeout", duration(*connect_timeout)),
                    ("keepalive_interval", duration(*keepalive_interval)),
                    ("keepalive_timeout", duration(*keepalive_timeout)),
                ],
            ));
            settings.extend(self::tls(&format!("{prefix}tls."), tls));
        }
        StoreConfig::Rest(_) | StoreConfig::Static(_) => {}
    }
    settings
}

fn tls(prefix: &str, TlsFiles { ca, cert, key, server_name }: &TlsFiles) -> Settings {
    section(
        prefix,
        [
            ("ca", optional(ca.as_deref().map(path))),
            ("cert", optional(cert.as_deref().map(path))),
            ("key", optional(key.as_deref().map(path))),
            ("server_name", optional(server_name.as_ref().map(text))),
        ],
    )
}

/// As a TOML array.
fn members(members: &[StaticMember]) -> String {
    let list = members.iter().map(|StaticMember { name, address, tags }| {
        let tags: Vec<String> = tags.iter().map(|(tag, value)| format!("{tag:?} = {value:?}")).collect();
        let tags = if tags.is_empty() { String::new() } else { format!(", tags = {{ {} }}", tags.join(", ")) };
        format!("{{ name = {name:?}, address = {address:?}{tags} }}")
    });
    format!("[{}]", list.collect::<Vec<_>>().join(", "))
}

//! `[cluster.NAME.etcd]`, `.consul`, `.zookeeper`, `.rest` and `.static`: one of them.

use std::path::Path;

use super::{password, secret, tls};
use crate::config::model::{
    ConsulConfig, EtcdConfig, RestConfig, StaticConfig, StaticMember, StoreConfig, ZookeeperConfig,
};
use crate::config::read::Section;
use crate::config::values::{self, Kind};

const KINDS: [&str; 5] = ["etcd", "consul", "zookeeper", "rest", "static"];

/// `None` where there is none, which is blamed. Each kind is read even so: its keys must be known.
pub(super) fn store(cluster: &mut Section<'_, '_>, folder: &Path) -> Option<StoreConfig> {
    let there: Vec<&str> = KINDS.into_iter().filter(|kind| cluster.has(kind)).collect();
    match there.as_slice() {
        [] => {
            let path = cluster.path.clone();
            let expected = format!(
                "a section [{path}.etcd] with endpoints = [\"http://10.0.0.1:2379\"], or consul, zookeeper, rest or \
                 static"
            );
            cluster.error("", "nothing says where Patroni keeps its keys", expected);
        }
        [_] => {}
        [first, others @ ..] => {
            for other in others {
                let problem = format!("there is a section {first} as well");
                cluster.error(other, problem, "one of etcd, consul, zookeeper, rest and static");
            }
        }
    }
    let stores = [
        StoreConfig::Etcd(etcd(cluster.section("etcd"), folder)),
        StoreConfig::Consul(consul(cluster.section("consul"), folder)),
        StoreConfig::Zookeeper(zookeeper(cluster.section("zookeeper"), folder)),
        StoreConfig::Rest(rest(cluster.section("rest"))),
        StoreConfig::Static(fixed(cluster.section("static"), folder)),
    ];
    stores.into_iter().find(|store| there.first() == Some(&store.kind()))
}

fn etcd(mut section: Section<'_, '_>, folder: &Path) -> EtcdConfig {
    let endpoints = addresses(&mut section, "endpoints", || values::endpoint(2379, "https://etcd1:2379"));
    let mut etcd = EtcdConfig { endpoints, ..EtcdConfig::default() };
    (etcd.user, etcd.password) = login(&mut section, folder, "the name of an etcd user");
    etcd.tls = tls(section.section("tls"), folder);
    section.set("connect_timeout", values::duration(), &mut etcd.connect_timeout);
    section.set("keepalive_interval", values::duration(), &mut etcd.keepalive_interval);
    section.set("keepalive_timeout", values::duration(), &mut etcd.keepalive_timeout);
    section.end();
    etcd
}

fn consul(mut section: Section<'_, '_>, folder: &Path) -> ConsulConfig {
    let endpoints = addresses(&mut section, "endpoints", || values::endpoint(8500, "https://consul1:8501"));
    let mut consul = ConsulConfig { endpoints, ..ConsulConfig::default() };
    consul.token = secret(&mut section, folder, ["token", "token_file"]);
    consul.datacenter = section.get("datacenter", values::text("the name of a Consul datacenter"));
    consul.tls = tls(section.section("tls"), folder);
    section.set("connect_timeout", values::duration(), &mut consul.connect_timeout);
    section.set("keepalive_interval", values::duration(), &mut consul.keepalive_interval);
    section.set("keepalive_timeout", values::duration(), &mut consul.keepalive_timeout);
    section.end();
    consul
}

fn zookeeper(mut section: Section<'_, '_>, folder: &Path) -> ZookeeperConfig {
    let hosts = addresses(&mut section, "hosts", || values::server(2181, "zk1"));
    let mut zookeeper = ZookeeperConfig { hosts, ..ZookeeperConfig::default() };
    (zookeeper.user, zookeeper.password) = login(&mut section, folder, "the user of a digest");
    zookeeper.tls = tls(section.section("tls"), folder);
    section.set("connect_timeout", values::duration(), &mut zookeeper.connect_timeout);
    section.set("keepalive_interval", values::duration(), &mut zookeeper.keepalive_interval);
    section.set("keepalive_timeout", values::duration(), &mut zookeeper.keepalive_timeout);
    section.end();
    zookeeper
}

fn rest(mut section: Section<'_, '_>) -> RestConfig {
    let endpoints = addresses(&mut section, "endpoints", || values::endpoint(8008, "https://pg1:8008"));
    section.end();
    RestConfig { endpoints }
}

/// `static`, which Rust keeps for itself.
fn fixed(mut section: Section<'_, '_>, folder: &Path) -> StaticConfig {
    let mut fixed = StaticConfig::default();
    let user = values::protocol_text("the name of a PostgreSQL user");
    if section.exists() {
        fixed.user = section.require("user", user).unwrap_or_default();
    } else {
        section.get("user", user);
    }
    fixed.password = password(&mut section, folder);
    section.set("database", values::protocol_text("the name of a database"), &mut fixed.database);
    fixed.primary = section.get("primary", values::name());
    let members = &mut fixed.members;
    let has_members = section.array_of_sections("member", |_, section| members.push(member(section)));
    if section.exists() && !has_members {
        let expected = format!("a section [[{}.member]] for each PostgreSQL", section.path);
        section.error("", "it has no members", expected);
    }
    section.end();
    fixed
}

fn member(mut section: Section<'_, '_>) -> StaticMember {
    let address = section.require("address", values::server(5432, "pg1")).unwrap_or_default();
    let name = section.require("name", values::name()).unwrap_or_default();
    let tags = section.tags("tags").into_iter().flatten().collect();
    section.end();
    StaticMember { name, address, tags }
}

/// A list that is required, and not empty, where there is such a section at all.
fn addresses<'k>(section: &mut Section<'_, '_>, key: &'static str, kind: impl Fn() -> Kind<'k, String>) -> Vec<String> {
    if !section.exists() {
        section.list(key, kind());
        return Vec::new();
    }
    let before = section.reader.report.errors.len();
    let list = section.list(key, kind()).unwrap_or_default();
    if !section.has(key) {
        section.error(key, "missing", kind().expected);
    } else if list.is_empty() && section.reader.report.errors.len() == before {
        section.error(key, "the list is empty", kind().expected);
    }
    list
}

/// A user and a password, both or neither.
pub(super) fn login(section: &mut Section<'_, '_>, folder: &Path, user_is: &str) -> (Option<String>, Option<String>) {
    const BOTH: &str = "user and password (or password_file), both or neither";
    let user = section.get("user", values::text(user_is));
    let password = password(section, folder);
    let has_password = section.has("password") || section.has("password_file");
    if section.has("user") && !has_password {
        section.error("user", "there is no password for it", BOTH);
    }
    if has_password && !section.has("user") {
        let key = if section.has("password") { "password" } else { "password_file" };
        section.error(key, "there is no user for it", BOTH);
    }
    (user, password)
}

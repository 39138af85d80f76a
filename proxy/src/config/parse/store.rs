//! `[cluster.NAME.etcd]`, `.consul`, `.zookeeper` and `.rest`: one of them.

use std::path::Path;

use super::{password, secret, tls};
use crate::config::model::{ConsulConfig, EtcdConfig, RestConfig, StoreConfig, ZookeeperConfig};
use crate::config::read::Section;
use crate::config::values::{self, Kind};

const KINDS: [&str; 4] = ["etcd", "consul", "zookeeper", "rest"];

/// `None` where there is none, which is blamed. Each kind is read even so: its keys must be known.
pub(super) fn store(cluster: &mut Section<'_, '_>, folder: &Path) -> Option<StoreConfig> {
    let there: Vec<&str> = KINDS.into_iter().filter(|kind| cluster.has(kind)).collect();
    match there.as_slice() {
        [] => {
            let path = cluster.path.clone();
            let expected = format!(
                "a section [{path}.etcd] with endpoints = [\"http://10.0.0.1:2379\"], or consul, zookeeper or rest"
            );
            cluster.error("", "nothing says where Patroni keeps its keys", expected);
        }
        [_] => {}
        [first, others @ ..] => {
            for other in others {
                let problem = format!("there is a section {first} as well");
                cluster.error(other, problem, "one of etcd, consul, zookeeper and rest");
            }
        }
    }
    let stores = [
        StoreConfig::Etcd(etcd(cluster.section("etcd"), folder)),
        StoreConfig::Consul(consul(cluster.section("consul"), folder)),
        StoreConfig::Zookeeper(zookeeper(cluster.section("zookeeper"), folder)),
        StoreConfig::Rest(rest(cluster.section("rest"))),
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
    let hosts = addresses(&mut section, "hosts", values::zookeeper_host);
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

//! `[cluster.NAME]`.

use std::path::Path;

use super::{password, tls};
use crate::config::model::{Cluster, EtcdConfig, ProofConfig, StoreConfig};
use crate::config::read::Section;
use crate::config::values;

pub(super) fn cluster(mut section: Section<'_, '_>, folder: &Path) -> Cluster {
    let mut cluster = Cluster::default();
    if let Some(scope) = section.require("scope", values::text("Patroni's scope, as in its own configuration")) {
        cluster.scope = scope;
        if cluster.scope.contains('/') {
            let problem = format!("{:?} has a slash", cluster.scope);
            section.error("scope", problem, "Patroni's scope, without its namespace");
        }
    }
    if let Some(namespace) = section.get("namespace", values::text("Patroni's namespace, such as /service")) {
        // Patroni itself reads `service`, `/service` and `/service/` alike (its AbstractDCS strips and joins).
        cluster.namespace = format!("/{}", namespace.trim_matches('/'));
    }
    cluster.citus_group = section.get("citus_group", values::count(0..=i32::MAX as u32));
    section.set("leader_absent_debounce", values::duration_or_zero("none"), &mut cluster.leader_absent_debounce);
    cluster.store = StoreConfig::Etcd(etcd(section.section("etcd"), folder));
    cluster.proof = proof(section.section("proof"), folder);
    section.end();
    cluster
}

fn etcd(mut section: Section<'_, '_>, folder: &Path) -> EtcdConfig {
    let mut etcd = EtcdConfig::default();
    if section.exists() {
        let before = section.reader.report.errors.len();
        match section.list("endpoints", values::endpoint()) {
            Some(endpoints) => etcd.endpoints = endpoints,
            None if section.has("endpoints") => {}
            None => section.error("endpoints", "missing", values::endpoint().expected),
        }
        let all_were_right = section.reader.report.errors.len() == before;
        if etcd.endpoints.is_empty() && all_were_right {
            section.error("endpoints", "the list is empty", values::endpoint().expected);
        }
    } else {
        let expected = format!("a section [{}] with endpoints = [\"http://10.0.0.1:2379\"]", section.path);
        section.error("", "missing", expected);
        section.list("endpoints", values::endpoint());
    }
    etcd.user = section.get("user", values::text("the name of an etcd user"));
    etcd.password = password(&mut section, folder);
    let has_password = section.has("password") || section.has("password_file");
    if section.has("user") && !has_password {
        section.error("user", "there is no password for it", "user and password (or password_file), both or neither");
    }
    if has_password && !section.has("user") {
        let key = if section.has("password") { "password" } else { "password_file" };
        section.error(key, "there is no user for it", "user and password (or password_file), both or neither");
    }
    etcd.tls = tls(section.section("tls"), folder);
    section.set("connect_timeout", values::duration(), &mut etcd.connect_timeout);
    section.set("keepalive_interval", values::duration(), &mut etcd.keepalive_interval);
    section.set("keepalive_timeout", values::duration(), &mut etcd.keepalive_timeout);
    section.end();
    etcd
}

fn proof(mut section: Section<'_, '_>, folder: &Path) -> ProofConfig {
    let mut proof = ProofConfig::default();
    section.set("interval", values::duration(), &mut proof.interval);
    section.set("fast_interval", values::duration(), &mut proof.fast_interval);
    section.set("timeout", values::duration(), &mut proof.timeout);
    proof.tls = tls(section.section("tls"), folder);
    section.end();
    proof
}

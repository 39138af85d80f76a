//! `[cluster.NAME]`.

use std::path::Path;

use super::{store, tls};
use crate::config::model::{Cluster, ProofConfig};
use crate::config::read::Section;
use crate::config::values;

pub(super) fn cluster(mut section: Section<'_, '_>, folder: &Path) -> Cluster {
    let mut cluster = Cluster::default();
    let scope = || values::text("Patroni's scope, as in its own configuration");
    // Without Patroni there is none.
    let has_patroni = !section.has("static");
    if let Some(scope) = if has_patroni { section.require("scope", scope()) } else { section.get("scope", scope()) } {
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
    section.set("switchover_hold", values::duration(), &mut cluster.switchover_hold);
    if let Some(store) = store::store(&mut section, folder) {
        cluster.store = store;
    }
    for key in ["scope", "namespace", "citus_group"] {
        if !has_patroni && section.has(key) {
            section.warn(key, "not used, because a static cluster has no Patroni");
        }
    }
    cluster.proof = proof(section.section("proof"), folder);
    section.end();
    cluster
}

fn proof(mut section: Section<'_, '_>, folder: &Path) -> ProofConfig {
    let mut proof = ProofConfig::default();
    section.set("interval", values::duration(), &mut proof.interval);
    section.set("fast_interval", values::duration(), &mut proof.fast_interval);
    section.set("timeout", values::duration(), &mut proof.timeout);
    (proof.user, proof.password) = store::login(&mut section, folder, "the user of Patroni's restapi.authentication");
    proof.tls = tls(section.section("tls"), folder);
    section.end();
    proof
}

//! A store that goes and comes back.

use std::time::Duration;

use serde_json::Value;
use xtask::lab::cluster::{FLEET_PORT, NODE_LOCAL_PORT, REPLICA_PORT, http};
use xtask::lab::{Lab, until, until_ok};

use super::{FAILOVER, Psql, SOON, WHERE, lab, pool, status, wait_open};

#[test]
fn a_store_out_of_reach_changes_nothing_and_one_that_is_gone_stops_writes_until_it_is_back() {
    let lab = lab("dcs").unwrap();
    let leader = wait_open(&lab, SOON, |_| true);
    let store = |lab: &Lab| status(lab)["clusters"][0]["store"].as_str().unwrap().to_owned();

    // Out of reach of the proxy alone: the view is frozen and clients notice nothing.
    for etcd in ["etcd1", "etcd2", "etcd3"] {
        lab.net.partition("proxy1", etcd).unwrap();
    }
    let mut stays = Psql::connect(&lab, FLEET_PORT);
    until("the store to be missed", SOON, || store(&lab) == "unreachable").unwrap();
    for port in [FLEET_PORT, NODE_LOCAL_PORT, REPLICA_PORT] {
        lab.sql(lab.proxy(), port, "SELECT 1").unwrap();
    }
    lab.net.heal("proxy1").unwrap();
    until("the store to be heard again", SOON, || store(&lab) == "connected").unwrap();
    assert_eq!(stays.ask("SELECT 'still here'").as_deref(), Some("still here"));

    // Gone for everybody, in failsafe mode: the primary reaches all others, and goes on.
    let failsafe = |on: &str, members: usize| {
        let rest = (lab.host(&leader).v4(), 8008).into();
        http::patch(lab.client(), rest, "/config", &format!(r#"{{"failsafe_mode":{on}}}"#)).unwrap();
        let listed = || {
            let said: Value = serde_json::from_str(&lab.pgsplice(&["cluster", "--json"]).unwrap()).unwrap();
            said["clusters"][0]["failsafe"].as_array().map_or(0, Vec::len)
        };
        until("the members of failsafe mode", SOON, || listed() == members).unwrap();
    };
    let etcds: Vec<_> =
        ["etcd1", "etcd2", "etcd3"].iter().map(|name| lab.host(name).service("etcd").unwrap()).collect();
    failsafe("true", 3);
    etcds.iter().for_each(|etcd| etcd.kill(libc::SIGKILL).unwrap());
    // Twice as long as it takes to demote without that mode: see below.
    std::thread::sleep(Duration::from_secs(15));
    for port in [FLEET_PORT, NODE_LOCAL_PORT] {
        assert!(lab.sql(lab.proxy(), port, WHERE).unwrap().ends_with("|f"), "port {port}");
    }
    assert_eq!(stays.ask("SELECT 'still here'").as_deref(), Some("still here"));
    etcds.iter().for_each(|etcd| etcd.restart().unwrap());
    until("the store to be heard again", SOON, || store(&lab) == "connected").unwrap();
    wait_open(&lab, SOON, |name| name == leader);
    failsafe("null", 0);

    // Gone for everybody, without it: Patroni demotes, for without its store it cannot know whether another leads.
    etcds.iter().for_each(|etcd| etcd.kill(libc::SIGKILL).unwrap());
    until("the primary pool to close", FAILOVER, || pool(&status(&lab), "local")["candidates"] == 0).unwrap();
    let why = pool(&status(&lab), "local")["why_empty"].as_str().unwrap().to_owned();
    assert!(why.starts_with("no primary: "), "{why}");
    // It restarts as a replica.
    until_ok("its demotion", SOON, || {
        match lab.superuser_sql(lab.host(&leader), "SELECT pg_is_in_recovery()")?.as_str() {
            "t" => Ok(()),
            other => anyhow::bail!("in recovery: {other}"),
        }
    })
    .unwrap();

    etcds.iter().for_each(|etcd| etcd.restart().unwrap());
    // A client that comes meanwhile waits in the queue instead of being refused.
    until_ok("a write", FAILOVER, || lab.sql(lab.proxy(), FLEET_PORT, "CREATE TABLE IF NOT EXISTS ledger (at int)"))
        .unwrap();
    wait_open(&lab, SOON, |_| true);
}

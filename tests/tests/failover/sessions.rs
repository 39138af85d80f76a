//! A switchover by Patroni, as those see it who write and those who read.

use xtask::lab::cluster::{FLEET_PORT, NODE_LOCAL_PORT, REPLICA_PORT};
use xtask::lab::{Lab, until, until_ok};

use super::{Psql, SOON, WHERE, calm, other_than, pool, status, wait_open};

/// A replica that lags gets no reads until it has caught up.
fn reads_shun_who_lags(lab: &Lab, leader: &str) {
    let late = other_than(lab, leader);
    let config = lab.proxy().read("/etc/pgsplice/pgsplice.toml").unwrap().replace("16MiB", "1MiB");
    lab.write_pgsplice_config(&config).unwrap();
    lab.pgsplice(&["reload"]).unwrap();
    until("all replicas", SOON, || pool(&status(lab), "ro")["candidates"] == 3).unwrap();

    // A replay that is merely paused is resumed by Patroni at its next look.
    let startup = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'";
    let startup = lab.superuser_sql(lab.host(&late), startup).unwrap();
    lab.host(&late).run(["kill", "-STOP", &startup]).unwrap();
    lab.sql(lab.proxy(), FLEET_PORT, "CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 20000)")
        .unwrap();
    until("the late one to leave the pool", SOON, || pool(&status(lab), "ro")["candidates"] == 2).unwrap();
    let text = lab.pgsplice(&["backends"]).unwrap();
    assert!(text.contains("bytes behind, the limit is 1048576"), "{text}");
    lab.host(&late).run(["kill", "-CONT", &startup]).unwrap();
    until("it to come back", SOON, || pool(&status(lab), "ro")["candidates"] == 3).unwrap();
}

#[test]
fn sessions_follow_a_switchover_and_reads_go_to_replicas_that_keep_up() {
    let (lab, old) = calm();
    assert_eq!(lab.leader().unwrap().name(), old);
    lab.sql(lab.proxy(), FLEET_PORT, "CREATE TABLE ledger (at int)").unwrap();
    for port in [FLEET_PORT, NODE_LOCAL_PORT] {
        assert!(lab.sql(lab.proxy(), port, WHERE).unwrap().ends_with("|f"), "port {port}");
    }
    until("reads to go to replicas", SOON, || pool(&status(&lab), "ro")["candidates"] == 3).unwrap();
    for _ in 0..6 {
        assert!(lab.sql(lab.proxy(), REPLICA_PORT, WHERE).unwrap().ends_with("|t"), "a read reached the primary");
    }
    reads_shun_who_lags(&lab, &old);

    let ended = |lab: &Lab, reason: &str| {
        let status = status(lab);
        let listeners = status["listeners"].as_array().unwrap().clone();
        listeners.iter().map(|one| one["ended"][reason].as_u64().unwrap_or(0)).sum::<u64>()
    };
    let before = ended(&lab, "demoted");
    let mut fleet = Psql::connect(&lab, FLEET_PORT);
    let mut local = Psql::connect(&lab, NODE_LOCAL_PORT);
    let new = other_than(&lab, &old);
    lab.switchover(&new).unwrap();
    wait_open(&lab, SOON, |name| name == new);

    // In a fleet the client's connection stays, and its next statements run on the new primary.
    until("the fleet's session to write", SOON, || {
        fleet.ask("INSERT INTO ledger VALUES (1) RETURNING at").as_deref() == Some("1")
    })
    .unwrap();
    // Node-local, a session to the old leader is cut: it must not go on at a node that is no primary.
    until("the old leader's session to be cut", SOON, || local.ask("SELECT 1").is_none()).unwrap();
    until("the cut to be counted", SOON, || ended(&lab, "demoted") == before + 1).unwrap();
    for port in [FLEET_PORT, NODE_LOCAL_PORT] {
        until_ok("a write on the new primary", SOON, || lab.sql(lab.proxy(), port, "INSERT INTO ledger VALUES (2)"))
            .unwrap();
    }
    assert_eq!(lab.superuser_sql(lab.host(&new), "SELECT pg_is_in_recovery()").unwrap(), "f");
}

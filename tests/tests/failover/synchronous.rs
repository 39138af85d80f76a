//! Pools of the standbys that commits wait for, and of the others.

use serde_json::Value;
use xtask::lab::cluster::http;
use xtask::lab::{Lab, until};

use super::{SOON, WHERE, calm, pool, status};

const ROLES: [(&str, u16); 3] = [("sync", 5441), ("async", 5442), ("quorum", 5443)];

/// How many members each of these pools has.
fn sizes(lab: &Lab) -> [u64; 3] {
    let status = status(lab);
    ROLES.map(|(role, _)| pool(&status, role)["candidates"].as_u64().unwrap())
}

fn eligible(lab: &Lab, pool: &str) -> Vec<String> {
    let said: Value = serde_json::from_str(&lab.pgsplice(&["backends", "--pool", pool, "--json"]).unwrap()).unwrap();
    let eligible = said["backends"].as_array().unwrap().iter().filter(|one| one["candidate"] == true);
    eligible.map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_standbys_that_commits_wait_for_are_known_in_either_mode() {
    let (lab, primary) = calm();
    let before = lab.proxy().read("/etc/pgsplice/pgsplice.toml").unwrap();
    let mut config = before.clone();
    for (role, port) in ROLES {
        config += &format!(
            "\n[listener.{role}]\nbind = \"*:{port}\"\npool = \"{role}\"\n[pool.{role}]\ncluster = \"main\"\n\
             route = \"node-local\"\nrole = \"{role}\"\naddress = 6432\n"
        );
    }
    lab.write_pgsplice_config(&config).unwrap();
    lab.pgsplice(&["reload"]).unwrap();
    let turn = |mode: &str| {
        let rest = (lab.host(&primary).v4(), 8008).into();
        http::patch(lab.client(), rest, "/config", &format!(r#"{{"synchronous_mode":{mode}}}"#)).unwrap();
    };
    until("no standby to be waited for", SOON, || sizes(&lab) == [0, 2, 0]).unwrap();
    turn("true");
    until("one to be waited for", SOON, || sizes(&lab) == [1, 1, 0]).unwrap();
    // The right one: PostgreSQL's own word.
    let named = "SELECT application_name FROM pg_stat_replication WHERE sync_state = 'sync'";
    assert_eq!(eligible(&lab, "sync"), [lab.superuser_sql(lab.host(&primary), named).unwrap()]);
    assert!(lab.sql(lab.proxy(), ROLES[0].1, WHERE).unwrap().ends_with("|t"));
    turn("\"quorum\"");
    until("either to be enough", SOON, || sizes(&lab) == [0, 0, 2]).unwrap();
    turn("null");
    until("no standby to be waited for", SOON, || sizes(&lab) == [0, 2, 0]).unwrap();
    lab.write_pgsplice_config(&before).unwrap();
    lab.pgsplice(&["reload"]).unwrap();
}

//! Patroni in pause mode: nothing moves but by an operator's hand, and pgsplice follows the hand.

use std::time::{Duration, Instant};

use serde_json::Value;
use xtask::lab::cluster::{FLEET_PORT, NODE_LOCAL_PORT, SCOPE};
use xtask::lab::{Lab, until};

use super::{Psql, SOON, calm, open_primary, other_than, until_whole, wait_open};

/// What `pgsplice cluster` says.
fn said(lab: &Lab) -> Value {
    let said: Value = serde_json::from_str(&lab.pgsplice(&["cluster", "--json"]).unwrap()).unwrap();
    said["clusters"][0].clone()
}

/// `pause` or `resume`.
fn turn(lab: &Lab, to: &str) {
    lab.patronictl(&[to, "--wait", SCOPE]).unwrap();
    until("pgsplice to hear of it", SOON, || said(lab)["patroni_paused"] == (to == "pause")).unwrap();
}

#[test]
fn under_pause_nothing_moves_but_by_hand_and_of_two_primaries_the_one_with_the_key_is_used() {
    let (lab, old) = calm();
    let new = other_than(&lab, &old);
    let ways = [FLEET_PORT, NODE_LOCAL_PORT];
    lab.sql(lab.proxy(), FLEET_PORT, "CREATE TABLE by_hand (at int)").unwrap();
    let mut fleet = Psql::connect(&lab, FLEET_PORT);
    let mut local = Psql::connect(&lab, NODE_LOCAL_PORT);
    // A file that is replaced has another inode.
    let inode = ["stat", "-c", "%i", "/etc/pgbouncer/databases.ini"];
    let files = || lab.bouncers().iter().map(|host| host.output(inode).unwrap()).collect::<Vec<_>>();
    let untouched = files();

    turn(&lab, "pause");
    for way in ways {
        lab.sql(lab.proxy(), way, "INSERT INTO by_hand VALUES (1)").unwrap();
    }
    for session in [&mut fleet, &mut local] {
        assert_eq!(session.ask("SELECT 'still here'").as_deref(), Some("still here"));
    }

    // Patroni lets the key of a dead primary go, and neither starts it nor promotes another.
    lab.kill_postgres(lab.host(&old), false).unwrap();
    let closed = |lab: &Lab| said(lab)["closed_because"].as_str().unwrap().to_owned();
    until("the primary to be closed", SOON, || closed(&lab) == "no member holds the leader key").unwrap();
    let mut waiting = Psql::start(&lab, FLEET_PORT);
    waiting.tell("INSERT INTO by_hand VALUES (2) RETURNING at").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(waiting.waits(), "a new session waits");
    assert_eq!((open_primary(&lab), files()), (None, untouched), "and nobody does anything");
    assert_eq!(lab.superuser_sql(lab.host(&new), "SELECT pg_promote()").unwrap(), "t");
    let promoted = Instant::now();
    assert_eq!(waiting.answer().as_deref(), Some("2"));
    println!("promoted by hand to the first write: {:.1} s", promoted.elapsed().as_secs_f64());
    wait_open(&lab, SOON, |name| name == new);
    until("the fleet's session to write", SOON, || {
        fleet.ask("INSERT INTO by_hand VALUES (3) RETURNING at").as_deref() == Some("3")
    })
    .unwrap();
    until("the old leader's session to be cut", SOON, || local.ask("SELECT 1").is_none()).unwrap();

    // The old one is started by hand as well, and Patroni lets it.
    let start = ["pg_ctl", "start", "-w", "-D", "/var/lib/postgresql/17/patroni", "-l", "/dev/null"];
    lab.host(&old).output_as("postgres", start).unwrap();
    assert_eq!(lab.superuser_sql(lab.host(&old), "SELECT pg_is_in_recovery()").unwrap(), "f", "two are writable");
    let why = format!("gets no session although it proves primary: the leader key names {new}");
    let of_old = |lab: &Lab| {
        let members = said(lab)["members"].as_array().unwrap().clone();
        members.iter().find(|member| member["name"] == old.as_str()).unwrap()["concluded"].clone()
    };
    until("the two to be told apart", SOON, || of_old(&lab) == why.as_str()).unwrap();
    let mut local = Psql::connect(&lab, NODE_LOCAL_PORT);
    for way in ways {
        lab.sql(lab.proxy(), way, "INSERT INTO by_hand VALUES (4)").unwrap();
    }
    let rows = |host: &str| {
        let count = "SELECT count(*) FROM by_hand WHERE at > 1";
        let rows = lab.host(host).output_as("postgres", ["psql", "-XAtq", "-d", "app", "-c", count]).unwrap();
        rows.trim().to_owned()
    };
    assert_eq!((rows(&old), rows(&new)), ("0".into(), "4".into()));

    let resumed = Instant::now();
    turn(&lab, "resume");
    assert_eq!(until_whole(&lab), new);
    println!("resumed to a whole cluster: {:.1} s", resumed.elapsed().as_secs_f64());
    for session in [&mut fleet, &mut local] {
        assert_eq!(session.ask("SELECT 'still here'").as_deref(), Some("still here"));
    }
}

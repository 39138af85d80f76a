//! PgBouncers, agents and primaries that die, or freeze.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde_json::Value;
use xtask::lab::cluster::{FLEET_PORT, NODE_LOCAL_PORT};
use xtask::lab::{Host, Lab, until, until_ok};

use super::{FAILOVER, Psql, SOON, WHERE, lab, open_primary, other_than, pool, status, wait_open};

/// An interval of 2 s, then three probes that are each waited for 2 s, half a second apart; and what a busy machine adds.
const PROBED: Duration = Duration::from_secs(9 + 4);

#[test]
fn dead_and_frozen_bouncers_and_agents_get_no_new_session_and_a_dead_primary_is_followed() {
    let lab = lab("bnc").unwrap();
    wait_open(&lab, SOON, |_| true);
    until("the fleet", SOON, || pool(&status(&lab), "rw")["candidates"] == 3).unwrap();
    let candidates = |lab: &Lab| -> BTreeSet<String> {
        let backends: Value =
            serde_json::from_str(&lab.pgsplice(&["backends", "--pool", "rw", "--json"]).unwrap()).unwrap();
        let list = backends["backends"].as_array().unwrap().clone();
        list.iter().filter(|one| one["candidate"] == true).map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    };
    let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();

    let bouncer = lab.host("bouncer1").service("pgbouncer").unwrap();
    bouncer.kill(libc::SIGKILL).unwrap();
    // From the first moment no client sees the refusal: it is connected elsewhere.
    for _ in 0..12 {
        lab.sql(lab.proxy(), FLEET_PORT, "SELECT 1").unwrap();
    }
    until("the dead bouncer to leave", SOON, || candidates(&lab) == all(&["bouncer2", "bouncer3"])).unwrap();
    bouncer.restart().unwrap();
    until("it to come back", SOON, || candidates(&lab).len() == 3).unwrap();

    // Without its agent nobody keeps a bouncer on the primary: its lease runs out and it is not used any more.
    let agent = lab.host("bouncer2").service("agent").unwrap();
    agent.kill(libc::SIGKILL).unwrap();
    until("the lease to run out", SOON, || candidates(&lab) == all(&["bouncer1", "bouncer3"])).unwrap();
    agent.restart().unwrap();
    until("it to register again", SOON, || candidates(&lab).len() == 3).unwrap();

    // Frozen, one neither answers nor refuses. Its agent waits for the console, the probe for its query.
    let bouncer = lab.host("bouncer3").service("pgbouncer").unwrap();
    bouncer.kill(libc::SIGSTOP).unwrap();
    let begun = Instant::now();
    until("the frozen bouncer to leave", PROBED, || candidates(&lab) == all(&["bouncer1", "bouncer2"])).unwrap();
    println!("a frozen PgBouncer was out of service after {:.1} s", begun.elapsed().as_secs_f64());
    bouncer.kill(libc::SIGCONT).unwrap();
    until("it to come back", SOON, || candidates(&lab).len() == 3).unwrap();

    // A frozen agent leaves its PgBouncer at the old primary.
    let agent = lab.host("bouncer1").service("agent").unwrap();
    agent.kill(libc::SIGSTOP).unwrap();
    let old = lab.host(&open_primary(&lab).unwrap()).clone();
    lab.switchover(&other_than(&lab, old.name())).unwrap();
    until("those that followed", SOON, || candidates(&lab) == all(&["bouncer2", "bouncer3"])).unwrap();
    let databases = lab.bouncer_admin(lab.host("bouncer1"), "SHOW DATABASES").unwrap();
    assert!(databases.contains(&old.v4().to_string()), "{databases}");
    for _ in 0..12 {
        assert!(lab.sql(lab.proxy(), FLEET_PORT, WHERE).unwrap().ends_with("|f"), "sent to the wrong leader");
    }
    agent.kill(libc::SIGCONT).unwrap();
    until("it to follow", SOON, || candidates(&lab).len() == 3).unwrap();
    until("the replicas", SOON, || {
        lab.members().is_ok_and(|all| all.iter().filter(|one| one.state == "streaming").count() == 2)
    })
    .unwrap();
    the_primary_dies(&lab);
}

/// The death of the primary ends with writes on the next.
fn the_primary_dies(lab: &Lab) {
    let old = wait_open(lab, SOON, |_| true);
    lab.sql(lab.proxy(), FLEET_PORT, "CREATE TABLE ledger (at int)").unwrap();
    // Synchronous replication is off in the lab: what is asserted below must have reached the replicas.
    let position = lab.superuser_sql(lab.host(&old), "SELECT pg_current_wal_lsn()").unwrap();
    for host in lab.postgres().into_iter().filter(|host| host.name() != old) {
        let reached = format!("SELECT pg_last_wal_replay_lsn() >= '{position}'");
        until_ok("the replica", SOON, || match lab.superuser_sql(host, &reached)?.as_str() {
            "t" => Ok(()),
            _ => anyhow::bail!("behind"),
        })
        .unwrap();
    }
    let mut idle = Psql::connect(lab, FLEET_PORT);
    let mut local = Psql::connect(lab, NODE_LOCAL_PORT);
    lab.kill_postgres(lab.host(&old), true).unwrap();
    let begun = Instant::now();
    let write = || lab.sql(lab.proxy(), FLEET_PORT, "INSERT INTO ledger VALUES (1)");
    until_ok("a write", FAILOVER, write).unwrap();
    println!("kill -9 of primary and Patroni to the first write: {:.1} s", begun.elapsed().as_secs_f64());
    let new = wait_open(lab, SOON, |name| name != old);
    let written =
        until_ok("the role", SOON, || lab.superuser_sql(lab.host(&new), "SELECT pg_is_in_recovery()")).unwrap();
    assert_eq!(written, "f");
    assert_eq!(idle.ask("SELECT 'still here'").as_deref(), Some("still here"), "an idle client's connection stays");
    // The dead one's member key ran out with its leader key: its sessions must not be forgotten with it, for its
    // PgBouncer lives and would let them wait, or, had only Patroni died, write.
    let asked = Instant::now();
    assert_eq!(local.ask("SELECT 1"), None, "a session at the old primary's own PgBouncer is cut");
    assert!(asked.elapsed() < SOON, "it took {:?}", asked.elapsed());
}

/// One that nobody hears waits for its replicas before it stops: `wal_sender_timeout`, a minute by default.
const DEMOTED: Duration = Duration::from_secs(150);

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Sessions by every way write as fast as they can, `act` takes the primary away, and the ledger of both nodes tells whether
/// the old one took a row after the next one had taken its first. The names of the two.
fn no_row_at_the_old_primary_after_the_first_at_the_new(lab: &Lab, act: impl FnOnce(&Host)) -> [String; 2] {
    let old = wait_open(lab, SOON, |_| true);
    let ledger = "CREATE TABLE ledger (way int, timeline int, at timestamptz DEFAULT clock_timestamp())";
    lab.sql(lab.proxy(), FLEET_PORT, ledger).unwrap();
    let insert = |way: u16| {
        let timeline = "('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int";
        format!("INSERT INTO ledger (way, timeline) VALUES ({way}, {timeline}) RETURNING timeline")
    };
    let over = AtomicBool::new(false);
    // A session for each way that writes as fast as it can, and comes again when it is cut.
    let write = |way: u16| {
        let mut session = None;
        while !over.load(Relaxed) {
            let psql = session.get_or_insert_with(|| Psql::start(lab, way));
            if psql.ask(&insert(way)).is_none() {
                session = None;
                std::thread::sleep(Duration::from_millis(50));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    // The first row that the next one takes, of whomever: pgsplice's own clients come some time after it.
    let first_row = |host: &Host| {
        let mut psql = Psql::at(lab, host, 5432);
        while !over.load(Relaxed) && psql.ask(&insert(0)).is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let of = |host: &str, sql: &str| -> String {
        let ask = || lab.host(host).output_as("postgres", ["psql", "-XAtq", "-d", "app", "-c", sql]);
        // It may be on its way from primary to replica.
        until_ok("the ledger", DEMOTED, ask).unwrap().trim().to_owned()
    };
    let (new, begun) = std::thread::scope(|scope| {
        // The writers end with this closure, also if that panics.
        let _over = SetOnDrop(&over);
        for way in [FLEET_PORT, FLEET_PORT, NODE_LOCAL_PORT] {
            scope.spawn(move || write(way));
        }
        for host in lab.postgres().into_iter().filter(|host| host.name() != old) {
            scope.spawn(move || first_row(host));
        }
        std::thread::sleep(Duration::from_secs(2));
        let begun = of(&old, "SELECT clock_timestamp()");
        act(lab.host(&old));
        let new = wait_open(lab, FAILOVER, |name| name != old);
        std::thread::sleep(Duration::from_secs(3));
        (new, begun)
    });
    let first = of(&new, "SELECT min(at) FROM ledger WHERE timeline = (SELECT max(timeline) FROM ledger)");
    let rows = of(&old, "SELECT count(*), max(at) FROM ledger WHERE timeline = (SELECT min(timeline) FROM ledger)");
    let late =
        format!("SELECT count(*) FROM ledger WHERE timeline = (SELECT min(timeline) FROM ledger) AND at >= '{first}'");
    let late = of(&old, &late);
    println!("old primary: {rows} (count|last); the new one's first row {first}; later rows at the old one: {late}");
    assert_eq!(late, "0");
    let by = format!("SELECT count(DISTINCT way), min(at) - '{begun}' FROM ledger WHERE way > 0 AND at >= '{first}'");
    let by = of(&new, &by);
    println!("ways to the new one, and the time until the first of them had written there: {by}");
    assert!(by.starts_with("2|"), "both ways lead to the new one: {by}");
    [old, new]
}

#[test]
fn a_primary_whose_machine_is_cut_off_takes_no_row_after_the_next_one_is_open() {
    let lab = lab("cut").unwrap();
    let [old, new] =
        no_row_at_the_old_primary_after_the_first_at_the_new(&lab, |host| lab.net.cut(host.name()).unwrap());
    // It comes back, and follows. Nobody on the right one notices.
    let mut sessions = [FLEET_PORT, NODE_LOCAL_PORT].map(|port| Psql::connect(&lab, port));
    lab.net.heal(&old).unwrap();
    until("the old one to follow", FAILOVER, || {
        lab.members().is_ok_and(|all| all.iter().any(|one| one.name == old && one.state == "streaming"))
    })
    .unwrap();
    assert_eq!(open_primary(&lab), Some(new));
    for session in &mut sessions {
        assert_eq!(session.ask("SELECT 'still here'").as_deref(), Some("still here"));
    }
}

#[test]
fn a_primary_whose_patroni_hangs_takes_no_row_after_the_next_one_is_open() {
    let lab = lab("two").unwrap();
    // As if killed, but its REST API still takes connections.
    let [old, new] = no_row_at_the_old_primary_after_the_first_at_the_new(&lab, |host| {
        host.service("patroni").unwrap().kill(libc::SIGSTOP).unwrap();
    });
    assert_eq!(lab.superuser_sql(lab.host(&old), "SELECT pg_is_in_recovery()").unwrap(), "f", "two are writable");
    // It wakes up, and for a moment two claim to be primary. Nobody on the right one notices.
    let mut sessions = [FLEET_PORT, NODE_LOCAL_PORT].map(|port| Psql::connect(&lab, port));
    lab.host(&old).service("patroni").unwrap().kill(libc::SIGCONT).unwrap();
    let steps_down = || lab.superuser_sql(lab.host(&old), "SELECT pg_is_in_recovery()").ok().as_deref() != Some("f");
    until("the old one to step down", FAILOVER, steps_down).unwrap();
    assert_eq!(open_primary(&lab), Some(new));
    for session in &mut sessions {
        assert_eq!(session.ask("SELECT 'still here'").as_deref(), Some("still here"));
    }
}

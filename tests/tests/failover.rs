//! The whole data centre under a client's eyes: switchovers, deaths, a store that goes and comes back.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use xtask::lab::cluster::{FLEET_PORT, NODE_LOCAL_PORT, REPLICA_PORT, http};
use xtask::lab::{Host, Lab, LabSpec, until, until_ok};

/// For everything that has no time limit of its own in Patroni's settings.
const SOON: Duration = Duration::from_secs(30);
/// The lab's ttl of 20 s, the loop after it, and PostgreSQL's promotion.
const FAILOVER: Duration = Duration::from_secs(60);

/// An interval of 2 s, then three probes that are each waited for 2 s, half a second apart.
const PROBED: Duration = Duration::from_secs(9);

const WHERE: &str = "SELECT host(coalesce(inet_server_addr(), '127.0.0.1')), pg_is_in_recovery()";

fn lab(name: &str) -> Lab {
    Lab::up(&LabSpec::full(format!("{name}{:x}", std::process::id())), |_, _| ()).unwrap()
}

fn status(lab: &Lab) -> Value {
    serde_json::from_str(&lab.pgsplice(&["status", "--json"]).unwrap()).unwrap()
}

fn pool<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["pools"].as_array().unwrap().iter().find(|pool| pool["name"] == name).unwrap()
}

fn open_primary(lab: &Lab) -> Option<String> {
    status(lab)["clusters"][0]["primary"].as_str().map(Into::into)
}

fn wait_open(lab: &Lab, limit: Duration, wanted: impl Fn(&str) -> bool) -> String {
    until("the primary to be open", limit, || open_primary(lab).is_some_and(|name| wanted(&name))).unwrap();
    open_primary(lab).unwrap()
}

/// A psql that stays connected.
struct Psql {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Psql {
    fn connect(lab: &Lab, port: u16) -> Self {
        let mut psql = Self::start(lab, port);
        assert_eq!(psql.ask("SELECT 'connected'").as_deref(), Some("connected"));
        psql
    }

    /// Connected or not.
    fn start(lab: &Lab, port: u16) -> Self {
        Self::at(lab, lab.proxy(), port)
    }

    /// The same past pgsplice.
    fn at(lab: &Lab, host: &Host, port: u16) -> Self {
        let conninfo = lab.conninfo(host, port);
        let mut command = lab.client().command(["psql", "-XAtq", &conninfo]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, stdin, stdout }
    }

    /// The first line of the answer; `None` when the statement failed or the session is gone.
    fn ask(&mut self, sql: &str) -> Option<String> {
        writeln!(self.stdin, "{sql};\n\\echo done").ok()?;
        let mut answer = None;
        loop {
            let mut line = String::new();
            if self.stdout.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end() {
                "done" => return answer,
                text => {
                    answer.get_or_insert_with(|| text.to_owned());
                }
            }
        }
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn other_than(lab: &Lab, leader: &str) -> String {
    let members = lab.members().unwrap();
    members.iter().find(|member| member.name != leader && member.state == "streaming").unwrap().name.clone()
}

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
    let lab = lab("sw");
    let old = wait_open(&lab, SOON, |_| true);
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
    let ended = |lab: &Lab, reason: &str| {
        let status = status(lab);
        let listeners = status["listeners"].as_array().unwrap().clone();
        listeners.iter().map(|one| one["ended"][reason].as_u64().unwrap_or(0)).sum::<u64>()
    };
    until("the cut to be counted", SOON, || ended(&lab, "demoted") == 1).unwrap();
    for port in [FLEET_PORT, NODE_LOCAL_PORT] {
        until_ok("a write on the new primary", SOON, || lab.sql(lab.proxy(), port, "INSERT INTO ledger VALUES (2)"))
            .unwrap();
    }
    assert_eq!(lab.superuser_sql(lab.host(&new), "SELECT pg_is_in_recovery()").unwrap(), "f");
}

#[test]
fn a_store_out_of_reach_changes_nothing_and_one_that_is_gone_stops_writes_until_it_is_back() {
    let lab = lab("dcs");
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

#[test]
fn dead_and_frozen_bouncers_and_agents_get_no_new_session_and_a_dead_primary_is_followed() {
    let lab = lab("bnc");
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

#[test]
fn a_primary_whose_patroni_hangs_takes_no_row_after_the_next_one_is_open() {
    let lab = lab("two");
    let old = wait_open(&lab, SOON, |_| true);
    let ledger = "CREATE TABLE ledger (way int, timeline int, at timestamptz DEFAULT clock_timestamp())";
    lab.sql(lab.proxy(), FLEET_PORT, ledger).unwrap();
    let insert = |way: u16| {
        let timeline = "('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int";
        format!("INSERT INTO ledger (way, timeline) VALUES ({way}, {timeline}) RETURNING timeline")
    };
    let over = std::sync::atomic::AtomicBool::new(false);
    // A session for each way that writes as fast as it can, and comes again when it is cut.
    let write = |way: u16| {
        let mut session = None;
        while !over.load(std::sync::atomic::Ordering::Relaxed) {
            let psql = session.get_or_insert_with(|| Psql::start(&lab, way));
            if psql.ask(&insert(way)).is_none() {
                session = None;
                std::thread::sleep(Duration::from_millis(50));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    // The first row that the next one takes, of whomever: pgsplice's own clients come some time after it.
    let first_row = |host: &Host| {
        let mut psql = Psql::at(&lab, host, 5432);
        while !over.load(std::sync::atomic::Ordering::Relaxed) && psql.ask(&insert(0)).is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let patroni = lab.host(&old).service("patroni").unwrap();
    let new = std::thread::scope(|scope| {
        let writers = [FLEET_PORT, FLEET_PORT, NODE_LOCAL_PORT].map(|way| scope.spawn(move || write(way)));
        for host in lab.postgres().into_iter().filter(|host| host.name() != old) {
            scope.spawn(move || first_row(host));
        }
        std::thread::sleep(Duration::from_secs(2));
        // As if killed, but its REST API still takes connections.
        patroni.kill(libc::SIGSTOP).unwrap();
        let new = wait_open(&lab, FAILOVER, |name| name != old);
        std::thread::sleep(Duration::from_secs(3));
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        new
    });
    assert_eq!(lab.superuser_sql(lab.host(&old), "SELECT pg_is_in_recovery()").unwrap(), "f", "two are writable");
    let of = |host: &str, sql: &str| {
        let said = lab.host(host).output_as("postgres", ["psql", "-XAtq", "-d", "app", "-c", sql]).unwrap();
        said.trim().to_owned()
    };
    let first = of(&new, "SELECT min(at) FROM ledger WHERE timeline = (SELECT max(timeline) FROM ledger)");
    let rows = of(&old, "SELECT count(*), max(at) FROM ledger");
    let late = of(&old, &format!("SELECT count(*) FROM ledger WHERE at >= '{first}'"));
    println!("old primary: {rows} (count|last); the new one's first row {first}; later rows at the old one: {late}");
    assert_eq!(late, "0");
    let ways = of(&new, &format!("SELECT count(DISTINCT way) FROM ledger WHERE way > 0 AND at >= '{first}'"));
    assert_eq!(ways, "2", "both ways lead to the new one");

    // It wakes up, and for a moment two claim to be primary. Nobody on the right one notices.
    let mut sessions = [FLEET_PORT, NODE_LOCAL_PORT].map(|port| Psql::connect(&lab, port));
    patroni.kill(libc::SIGCONT).unwrap();
    let steps_down = || lab.superuser_sql(lab.host(&old), "SELECT pg_is_in_recovery()").ok().as_deref() != Some("f");
    until("the old one to step down", FAILOVER, steps_down).unwrap();
    assert_eq!(open_primary(&lab), Some(new));
    for session in &mut sessions {
        assert_eq!(session.ask("SELECT 'still here'").as_deref(), Some("still here"));
    }
}

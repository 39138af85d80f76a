//! A static cluster: three real PostgreSQLs with plain streaming replication and no Patroni, asked by SQL; and a
//! PgBouncer with an agent that follows them.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::ensure;
use pgsplice::cluster::{self, ClusterView};
use pgsplice::config::{self, ProofConfig, StaticConfig, StaticMember, StoreConfig, TlsFiles};
use pgsplice_tests::{Certificate, Psql, postgres};
use serde_json::Value;
use xtask::lab::cluster::{ADMIN_PASSWORD, postgres_server};
use xtask::lab::{Host, Lab, LabSpec, Program, until, until_ok};

const SOON: Duration = Duration::from_secs(20);
const WRITES: u16 = 5432;
const READS: u16 = 5433;
/// To the first server, through the PgBouncer.
const POOLED: u16 = 5436;
/// Where the three servers listen, all on host `pg1`: the first is the lab's own.
const SERVERS: [(&str, u16); 3] = [("first", 5432), ("second", 5434), ("third", 5435)];

/// One host with a primary and two standbys, another with a PgBouncer.
fn lab() -> Lab {
    let spec = LabSpec {
        bouncers: 1,
        proxy: xtask::lab::Proxy::None,
        ..LabSpec::static_fleet(format!("re{:x}", std::process::id()))
    };
    let lab = Lab::up(&spec, |_, _| ()).unwrap();
    let host = lab.host("pg1");
    let path = lab.superuser_sql(host, "SHOW hba_file").unwrap();
    let rules = format!("local replication postgres peer\n{}", host.output(["cat", &path]).unwrap());
    host.write_private(&path, rules, "postgres").unwrap();
    lab.superuser_sql(host, "SELECT pg_reload_conf()").unwrap();
    for (name, port) in &SERVERS[1..] {
        let data = format!("/var/lib/postgresql/17/{name}");
        let from = "host=/run/postgresql port=5432 user=postgres";
        let copy = ["pg_basebackup", "-D", &data, "-R", "-X", "stream", "-c", "fast", "--no-sync", "-d", from];
        host.output_as("postgres", copy).unwrap();
        host.spawn(postgres_server(name, &data, *port)).unwrap();
    }
    for (name, _) in &SERVERS[1..] {
        until(&format!("{name} to follow"), SOON, || sql(host, name, "SELECT 1").is_some()).unwrap();
    }
    lab
}

/// As the superuser on a server's socket.
fn sql(host: &Host, server: &str, sql: &str) -> Option<String> {
    let port = SERVERS.iter().find(|(name, _)| *name == server).unwrap().1.to_string();
    let said = host.output_as("postgres", ["psql", "-XAtq", "-p", &port, "-v", "ON_ERROR_STOP=1", "-c", sql]).ok()?;
    Some(said.trim_end().to_owned())
}

fn cluster_section(lab: &Lab) -> String {
    let password = Lab::password("PROBE_PASSWORD").unwrap();
    let mut text = format!("[cluster.main.static]\nuser = \"pgsplice\"\npassword = \"{password}\"\n");
    for (name, port) in SERVERS {
        let address = format!("{}:{port}", lab.host("pg1").v4());
        writeln!(text, "[[cluster.main.static.member]]\nname = \"{name}\"\naddress = \"{address}\"").unwrap();
    }
    text + "[cluster.main.proof]\ninterval = \"300ms\"\ntimeout = \"1s\"\n"
}

fn start_agent(lab: &Lab) {
    let host = lab.bouncers()[0];
    let config = format!(
        "name = \"bouncer1\"\n[pgbouncer]\naddress = \"{}:6432\"\nconsole = \"/run/pgbouncer/.s.PGSQL.6432\"\n\
         password = \"{ADMIN_PASSWORD}\"\ndatabases_file = \"/etc/pgbouncer/databases.ini\"\n\
         [pgbouncer.databases]\n\"*\" = \"\"\n{}",
        host.v4(),
        cluster_section(lab)
    );
    host.write_private("/etc/pgsplice/agent.toml", config, "root").unwrap();
    let argv = ["/opt/pgsplice/pgsplice", "agent", "--config", "/etc/pgsplice/agent.toml"];
    host.spawn(Program::new("agent", argv)).unwrap();
}

/// Whether the agent's PgBouncer leads to the server at this port.
fn leads_to(lab: &Lab, port: u16) -> bool {
    let databases = lab.bouncer_admin(lab.bouncers()[0], "SHOW DATABASES").unwrap();
    databases.lines().any(|line| line.starts_with("pgsplice_agent|") && line.contains(&format!("|{port}|")))
}

fn config(lab: &Lab) -> String {
    let mut text = cluster_section(lab);
    for (pool, port, rule) in
        [("rw", WRITES, "role = \"primary\""), ("ro", READS, "role = \"replica\"\nmax_lag = \"1MiB\"")]
    {
        writeln!(text, "[listener.{pool}]\nbind = \"0.0.0.0:{port}\"\npool = \"{pool}\"").unwrap();
        let keys = "cluster = \"main\"\nroute = \"node-local\"\naddress = \"conn-url\"";
        writeln!(text, "[pool.{pool}]\n{keys}\n{rule}\n{}", probe(pool)).unwrap();
    }
    text
}

/// As a client goes.
fn probe(pool: &str) -> String {
    let password = Lab::password("PROBE_PASSWORD").unwrap();
    format!(
        "[pool.{pool}.probe]\nkind = \"query\"\nuser = \"pgsplice\"\npassword = \"{password}\"\ndatabase = \"app\"\n\
         interval = \"200ms\""
    )
}

fn ask(lab: &Lab, path: &[&str]) -> Value {
    serde_json::from_str(&lab.pgsplice(path).unwrap()).unwrap()
}

fn primary(lab: &Lab) -> Option<String> {
    ask(lab, &["status", "--json"])["clusters"][0]["primary"].as_str().map(Into::into)
}

fn readers(lab: &Lab) -> u64 {
    let status = ask(lab, &["status", "--json"]);
    let ro = status["pools"].as_array().unwrap().iter().find(|pool| pool["name"] == "ro").unwrap();
    ro["candidates"].as_u64().unwrap()
}

/// The port of the server that answers behind this listener, and whether it is in recovery.
fn behind(lab: &Lab, port: u16) -> (u16, bool) {
    let said = lab.sql(lab.proxy(), port, "SELECT inet_server_port(), pg_is_in_recovery()").unwrap();
    let (port, in_recovery) = said.split_once('|').unwrap();
    (port.parse().unwrap(), in_recovery == "t")
}

#[test]
fn writes_go_to_whoever_was_promoted_last_and_reads_to_those_who_keep_up() {
    let lab = lab();
    let host = lab.host("pg1");
    lab.start_pgsplice(&config(&lab)).unwrap();
    until("the first to be open", SOON, || lab.proxy().run(["test", "-S", "/run/pgsplice/admin.sock"]).is_ok())
        .unwrap();
    until("the first to be open", SOON, || primary(&lab).as_deref() == Some("first")).unwrap();
    until("two replicas", SOON, || readers(&lab) == 2).unwrap();
    assert_eq!(behind(&lab, WRITES), (5432, false));
    start_agent(&lab);
    until("the agent to follow", SOON, || leads_to(&lab, 5432)).unwrap();
    assert!(behind(&lab, READS).1);

    // One that stands still gets no reads.
    sql(host, "third", "SELECT pg_wal_replay_pause()").unwrap();
    sql(host, "first", "CREATE TABLE much AS SELECT g FROM generate_series(1, 200000) g").unwrap();
    until("the third to be too far behind", SOON, || readers(&lab) == 1).unwrap();
    assert_eq!(behind(&lab, READS), (5434, true));
    sql(host, "third", "SELECT pg_wal_replay_resume()").unwrap();
    until("it to have caught up", SOON, || readers(&lab) == 2).unwrap();

    servers_without_a_free_connection_lose_nothing(&lab);

    // A promotion while the old primary goes on taking writes: its sessions end, and nothing more goes to it.
    let conninfo = lab.conninfo(lab.proxy(), WRITES);
    let mut session = lab.client().command(["psql", "-XAtq", &conninfo, "-c", "SELECT pg_sleep(60)"]);
    let mut session = session.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let at_work = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'";
    until("the session to be at work", SOON, || sql(host, "first", at_work).as_deref() == Some("1")).unwrap();
    sql(host, "second", "SELECT pg_promote()").unwrap();
    let promoted = Instant::now();
    until("the second to be open", SOON, || primary(&lab).as_deref() == Some("second")).unwrap();
    println!("open {:?} after it was promoted", promoted.elapsed());
    assert_eq!(behind(&lab, WRITES), (5434, false));
    until("the agent to follow", SOON, || leads_to(&lab, 5434)).unwrap();
    assert_eq!(sql(host, "first", "SELECT pg_is_in_recovery()").as_deref(), Some("f"), "two writable primaries");
    until("its session to be cut", SOON, || session.try_wait().unwrap().is_some()).unwrap();
    let table = lab.pgsplice(&["cluster"]).unwrap();
    println!("{table}");
    for line in [
        "cluster main: static",
        "concluded: the primary is second, timeline 2",
        "gets no session although it proves primary",
    ] {
        assert!(table.contains(line), "{line}");
    }

    // The promoted one stops: nobody falls back to the old one, which lacks what was written since.
    let second = host.service("second").unwrap();
    second.kill(libc::SIGINT).unwrap();
    second.wait(SOON).unwrap();
    until("nobody to be open", SOON, || primary(&lab).is_none()).unwrap();
    let closed = ask(&lab, &["status", "--json"])["clusters"][0]["closed_because"].as_str().unwrap().to_owned();
    assert!(closed.starts_with("first proves timeline 1, but second has proved 2 before"), "{closed}");
    second.restart().unwrap();
    until("the second to be open again", SOON, || primary(&lab).as_deref() == Some("second")).unwrap();

    over_tls_and_with_the_wrong_password(&lab);
}

/// Takes every connection that a server has for ordinary users, and every one that gets free, until it is dropped.
struct Crowd(Child);

impl Crowd {
    fn at(lab: &Lab, server: &str) -> Self {
        let port = SERVERS.iter().find(|(name, _)| *name == server).unwrap().1;
        // Several at once: what a question leaves shall not go to the next question, whose place is free again soon.
        let program = "import psycopg, sys, threading, time\nheld = []\ndef take():\n\
                       \x20 while True:\n\
                       \x20   try: held.append(psycopg.connect(sys.argv[1]))\n\
                       \x20   except psycopg.OperationalError: time.sleep(0.01)\n\
                       for _ in range(4): threading.Thread(target=take).start()";
        let conninfo = lab.conninfo(lab.host("pg1"), port);
        let mut command = lab.client().command(["python3", "-c", program, &conninfo]);
        let crowd = Self(command.stdin(Stdio::null()).spawn().unwrap());
        until("the server to be full", 3 * SOON, || backends(lab).iter().any(|one| one["health"] == "full")).unwrap();
        // Questions that were under way leave places as well.
        std::thread::sleep(Duration::from_secs(1));
        crowd
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn backends(lab: &Lab) -> Vec<Value> {
    ask(lab, &["backends", "--json"])["backends"].as_array().unwrap().clone()
}

/// PostgreSQL's SQLSTATE 53300: what is alive stays in service, and whoever comes is told by the server itself.
fn servers_without_a_free_connection_lose_nothing(lab: &Lab) {
    // A standby: reads go to the other one.
    let crowd = Crowd::at(lab, "third");
    for _ in 0..6 {
        assert_eq!(behind(lab, READS), (5434, true));
    }
    drop(crowd);
    until("the third to have room", SOON, || backends(lab).iter().all(|one| one["health"] != "full")).unwrap();

    // The primary. A PgBouncer has its connections to it.
    let mut session = Psql::connect(lab, WRITES);
    assert_eq!(lab.sql(lab.bouncers()[0], 6432, "SELECT 1").unwrap(), "1");
    let crowd = Crowd::at(lab, "first");
    let filled = Instant::now();
    let bouncer = format!(
        "[listener.pooled]\nbind = \"0.0.0.0:{POOLED}\"\npool = \"pooled\"\n[pool.pooled]\n{}\n\
         [[pool.pooled.backend]]\naddress = \"{}:6432\"\n",
        probe("pooled"),
        lab.bouncers()[0].v4()
    );
    lab.write_pgsplice_config(&format!("{}\n{bouncer}", config(lab))).unwrap();
    lab.pgsplice(&["reload"]).unwrap();
    let refused = || lab.sql(lab.proxy(), WRITES, "SELECT 1").err().map(|error| error.to_string());
    until("a client to be refused", SOON, || refused().is_some_and(|why| why.contains("connection"))).unwrap();
    let says_so = |one: &Value| one["pool"] == "pooled" && one["health"] == "full";
    until_ok("the PgBouncer to say so", SOON, || {
        let all = backends(lab);
        ensure!(all.iter().any(says_so), "{all:#?}");
        Ok(())
    })
    .unwrap();
    // Longer than a proof stands that is not renewed.
    while filled.elapsed() < Duration::from_secs(4) {
        assert_eq!(primary(lab).as_deref(), Some("first"));
        assert_eq!(lab.sql(lab.proxy(), POOLED, "SELECT 1").unwrap(), "1", "it goes on with the connections it has");
        assert!(backends(lab).iter().all(|one| one["health"] != "down"));
        assert_eq!(session.ask("SELECT 2").as_deref(), Some("2"));
    }
    let begun = Instant::now();
    println!("a full server's client is told {:?} after {:?}", refused(), begun.elapsed());
    drop(crowd);
    until("the first to have room", SOON, || lab.sql(lab.proxy(), WRITES, "SELECT 1").is_ok()).unwrap();
    until("it to be known", SOON, || backends(lab).iter().all(|one| one["health"] == "up")).unwrap();
    lab.write_pgsplice_config(&config(lab)).unwrap();
    lab.pgsplice(&["reload"]).unwrap();
}

/// The first alone, from here: it needs no more servers.
fn over_tls_and_with_the_wrong_password(lab: &Lab) {
    let host = lab.host("pg1");
    let certificate = Certificate::make(lab.client(), &[host]).unwrap();
    let another = Certificate::make(lab.client(), &[host]).unwrap();
    postgres::serve_tls(lab, &certificate).unwrap();
    let path = lab.superuser_sql(host, "SHOW hba_file").unwrap();
    let rules = format!("hostnossl all pgsplice all reject\n{}", host.output(["cat", &path]).unwrap());
    host.write_private(&path, rules, "postgres").unwrap();
    lab.superuser_sql(host, "SELECT pg_reload_conf()").unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("ca.crt", &certificate.authority), ("another.crt", &another.authority)] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let password = Lab::password("PROBE_PASSWORD").unwrap();
    let follow = |ca: Option<&str>, password: &str| {
        let config = static_cluster(host, password, ca.map(|ca| folder.path().join(ca)).as_deref());
        let found = lab.client().on_thread(|| first_verdict(&config)).unwrap();
        let why = found.closed_because.clone();
        (found.primary.map(|primary| primary.timeline), why, found.members["first"].proof.clone())
    };
    assert_eq!(follow(Some("ca.crt"), password).0, Some(1));
    for (ca, password, why) in [
        (None, password, "no encryption"),
        (Some("another.crt"), password, "invalid peer certificate"),
        (Some("ca.crt"), "wrong", "password authentication failed"),
    ] {
        let (primary, closed, proof) = follow(ca, password);
        assert!(primary.is_none() && format!("{proof:?}").contains(why), "{why}: {closed} {proof:?}");
    }
}

fn static_cluster(host: &Host, password: &str, ca: Option<&Path>) -> config::Cluster {
    let member =
        StaticMember { name: "first".into(), address: format!("{}:5432", host.v4()), tags: Default::default() };
    let fixed = StaticConfig {
        user: "pgsplice".into(),
        password: Some(password.into()),
        members: vec![member],
        ..StaticConfig::default()
    };
    let tls = TlsFiles { ca: ca.map(Into::into), ..TlsFiles::default() };
    let proof = ProofConfig { tls, ..ProofConfig::default() };
    config::Cluster { store: StoreConfig::Static(fixed), proof, ..config::Cluster::default() }
}

/// The first view after the member was asked.
fn first_verdict(config: &config::Cluster) -> ClusterView {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let handle = cluster::watch("main", config);
        let mut views = handle.view.clone();
        let asked = |view: &std::sync::Arc<ClusterView>| {
            view.members.get("first").is_some_and(|member| member.proof != cluster::Proof::NotAsked)
        };
        let view = tokio::time::timeout(SOON, views.wait_for(asked)).await.unwrap().unwrap().clone();
        (*view).clone()
    })
}

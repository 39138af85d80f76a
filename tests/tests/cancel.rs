//! Cancel requests through a fleet of three PgBouncers: each must reach the one that owns the session, however pgsplice
//! comes to know which that is. Every test cancels 12 queries and wants all 12 to end.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use parking_lot::Mutex;
use pgsplice_tests::{Certificate, Pgsplice, Shared, bouncer, proxy};
use tokio_postgres::NoTls;
use xtask::lab::cluster::{APP_PASSWORD, FLEET_PORT};
use xtask::lab::{Lab, LabSpec, Proxy, unique_id, until};

const COUNT: usize = 12;
/// Far from the minute that a query sleeps.
const LIMIT: Duration = Duration::from_secs(10);
const CANCELED: &str = "canceling statement due to user request";
/// Where the second pgsplice listens, on the same host.
const OTHER_PORT: u16 = 5442;

static PEERED: Shared<Fleet> = Shared::new(|| Fleet::up(true));
static UNPEERED: Shared<Fleet> = Shared::new(|| Fleet::up(false));

/// One PostgreSQL, three PgBouncers that serve TLS, and two pgsplices in front of them.
struct Fleet {
    lab: Lab,
    proxy: Pgsplice,
}

impl Fleet {
    fn up(peering: bool) -> Result<Self> {
        let spec = LabSpec { peering, proxy: Proxy::None, ..LabSpec::static_fleet(unique_id()) };
        let lab = Lab::up(&spec, |_, _| {})?;
        bouncer::serve_tls(&lab, &Certificate::make(lab.host("pg1"), &[lab.proxy()])?)?;
        // It names each cancel request it took.
        bouncer::set(&lab, &[("log_disconnections", "1")])?;
        let config = |port| {
            let pool = "[pool.fleet]\nbalance = \"round-robin\"\n\n".to_owned();
            pool + &proxy::listener("clients", port, "fleet") + &proxy::backends("fleet", &proxy::fleet(&lab, peering))
        };
        let proxy = Pgsplice::start(lab.proxy(), "pgsplice", &config(FLEET_PORT))?;
        Pgsplice::start(lab.proxy(), "other", &config(OTHER_PORT))?;
        Ok(Self { lab, proxy })
    }

    fn conninfo(&self, sslmode: &str) -> String {
        format!("{} sslmode={sslmode}", self.lab.conninfo(self.lab.proxy(), FLEET_PORT))
    }

    /// Waits until this many queries with the tag run in PostgreSQL.
    fn wait_until_running(&self, tag: &str, count: usize) {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity
             WHERE state = 'active' AND query LIKE '%/* {tag} */%' AND pid <> pg_backend_pid()"
        );
        let running = || self.lab.superuser_sql(self.lab.host("pg1"), &sql).is_ok_and(|n| n == count.to_string());
        until(&format!("{count} queries to run"), Duration::from_secs(20), running).unwrap();
    }

    /// 12 psqls sleep, get Ctrl-C, and say that their queries were canceled.
    fn interrupt_psqls(&self, tag: &str, sslmode: &str) {
        let (conninfo, sql) = (self.conninfo(sslmode), format!("SELECT pg_sleep(60) /* {tag} */"));
        let start = |_| {
            let mut psql = self.lab.client().command(["psql", "-XAtq", &conninfo, "-c", &sql]);
            psql.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
        };
        let psqls: Vec<Child> = (0..COUNT).map(start).collect::<io::Result<_>>().unwrap();
        self.wait_until_running(tag, COUNT);
        self.expect_sessions_at_every_bouncer();
        let interrupt = |psql: Child| {
            let asked = Instant::now();
            // SAFETY: a system call without pointers; the child was not waited for yet, so the pid is its own.
            assert_eq!(unsafe { libc::kill(psql.id() as i32, libc::SIGINT) }, 0);
            let output = psql.wait_with_output().unwrap();
            (asked.elapsed(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let ended: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = psqls.into_iter().map(|psql| scope.spawn(|| interrupt(psql))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (took, said) in &ended {
            assert!(said.contains(CANCELED) && *took < LIMIT, "after {took:?}: {said}; all: {ended:?}");
        }
    }

    fn expect_sessions_at_every_bouncer(&self) {
        let sessions = self.proxy.json(&["sessions"]).unwrap();
        let at: BTreeSet<_> =
            sessions["sessions"].as_array().unwrap().iter().map(|one| one["backend"].to_string()).collect();
        assert_eq!(at.len(), 3, "{sessions}");
    }

    /// How many cancel requests the PgBouncers took from the proxy and carried out, and how many they knew nothing of.
    fn taken(&self) -> Taken {
        // A cancel request is over when the PgBouncers it was sent to have closed, and before that they log it.
        let idle = || self.proxy.session_count().is_ok_and(|count| count == 0);
        until("the end of every session", Duration::from_secs(10), idle).unwrap();
        let mut taken = Taken::default();
        for host in self.lab.bouncers() {
            let log = bouncer::log(host).unwrap();
            let from_proxy = format!("@{}:", self.lab.proxy().v4());
            for line in log.lines().filter(|line| line.contains(&from_proxy)) {
                taken.carried_out += usize::from(line.contains("closing because: successfully sent cancel request"));
                taken.unknown += usize::from(line.contains("closing because: failed cancel request"));
            }
        }
        taken
    }
}

/// What the PgBouncers' logs say of cancel requests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Taken {
    carried_out: usize,
    unknown: usize,
}

impl std::ops::Sub for Taken {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { carried_out: self.carried_out - before.carried_out, unknown: self.unknown - before.unknown }
    }
}

const ONLY_THE_OWNER: Taken = Taken { carried_out: COUNT, unknown: 0 };
const EVERY_BOUNCER: Taken = Taken { carried_out: COUNT, unknown: 2 * COUNT };

/// One test of a fleet at a time: they count lines in the PgBouncers' logs.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn a_client_cancels_its_query_by_the_key_seen_in_its_handshake() {
    for fleet in [&PEERED, &UNPEERED] {
        let _turn = TURN.lock();
        let fleet = fleet.get();
        let before = fleet.taken();
        fleet.interrupt_psqls("key seen", "disable");
        assert_eq!(fleet.taken() - before, ONLY_THE_OWNER);
    }
}

/// Under TLS the key is not seen. psql sends its cancel request in plaintext all the same.
#[test]
fn a_client_under_tls_cancels_its_query_by_the_peer_id_in_its_key() {
    let _turn = TURN.lock();
    let fleet = PEERED.get();
    let before = fleet.taken();
    fleet.interrupt_psqls("peer id", "require");
    assert_eq!(fleet.taken() - before, ONLY_THE_OWNER);
}

#[test]
fn a_client_under_tls_cancels_its_query_where_every_bouncer_must_be_asked() {
    let _turn = TURN.lock();
    let fleet = UNPEERED.get();
    let before = fleet.taken();
    fleet.interrupt_psqls("every one", "require");
    assert_eq!(fleet.taken() - before, EVERY_BOUNCER);
}

#[test]
fn a_cancel_request_comes_through_another_pgsplice_than_its_session() {
    for (fleet, expected) in [(&PEERED, ONLY_THE_OWNER), (&UNPEERED, EVERY_BOUNCER)] {
        let _turn = TURN.lock();
        let fleet = fleet.get();
        let before = fleet.taken();
        fleet.lab.client().on_thread(|| cancel_through_the_other(fleet)).unwrap();
        assert_eq!(fleet.taken() - before, expected);
    }
}

/// A cancel request inside TLS is nothing but a connection to pgsplice: it goes to the next PgBouncer in turn, and
/// peering brings it to its owner.
#[test]
fn a_client_cancels_its_query_through_another_bouncer() {
    let _turn = TURN.lock();
    let fleet = PEERED.get();
    let path = "/opt/tests/cancel.py";
    fleet.lab.client().write(path, include_str!("../drivers/cancel.py")).unwrap();
    let said = fleet
        .lab
        .client()
        .output(["timeout", "120", "python3", path, &fleet.conninfo("require"), "inside TLS"])
        .unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), COUNT, "{said}");
    for line in lines {
        let (took, why) = line.split_once(' ').unwrap();
        assert!(why == CANCELED && u128::from(took.parse::<u64>().unwrap()) < LIMIT.as_millis(), "{said}");
    }
}

/// Nobody has this key: whoever is asked does nothing, and the running query goes on.
#[test]
fn a_made_up_cancel_request_cancels_nothing() {
    let _turn = TURN.lock();
    let fleet = UNPEERED.get();
    let before = fleet.taken();
    let sql = "SELECT pg_sleep(1.5), 'slept' /* undisturbed */";
    let mut psql = fleet.lab.client().command(["psql", "-XAtq", &fleet.conninfo("disable"), "-c", sql]);
    let psql = psql.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    fleet.wait_until_running("undisturbed", 1);
    let address = (fleet.lab.proxy().v4(), FLEET_PORT);
    let ask = || {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(&[&[0, 0, 0, 16, 4, 210, 22, 46][..], b"made up!"].concat())?;
        stream.read_to_end(&mut Vec::new())
    };
    assert_eq!(fleet.lab.client().on_thread(ask).unwrap().unwrap(), 0);
    assert_eq!(psql.wait_with_output().unwrap().stdout, b"|slept\n");
    assert_eq!(fleet.taken() - before, Taken { carried_out: 0, unknown: 3 });
}

#[tokio::main(flavor = "current_thread")]
async fn cancel_through_the_other(fleet: &Fleet) {
    let config =
        format!("host={} port={OTHER_PORT} user=app password={APP_PASSWORD} dbname=app", fleet.lab.proxy().v4());
    let mut sleepers = Vec::new();
    for _ in 0..COUNT {
        let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
        tokio::spawn(connection);
        let token = client.cancel_token();
        let sleeping = async move { client.batch_execute("SELECT pg_sleep(60) /* the other */").await };
        sleepers.push((token, tokio::spawn(sleeping)));
    }
    // Blocking is fine, the queries have been sent: the wait yields to them first.
    tokio::time::sleep(Duration::from_millis(50)).await;
    fleet.wait_until_running("the other", COUNT);
    for (token, sleeping) in sleepers {
        let asked = Instant::now();
        let stream = tokio::net::TcpStream::connect((fleet.lab.proxy().v4(), FLEET_PORT)).await.unwrap();
        token.cancel_query_raw(stream, NoTls).await.unwrap();
        let said = tokio::time::timeout(LIMIT, sleeping).await.unwrap().unwrap().unwrap_err();
        let said = said.as_db_error().map(|error| error.message()).unwrap_or_default().to_owned();
        assert!(said == CANCELED && asked.elapsed() < LIMIT, "after {:?}: {said}", asked.elapsed());
    }
}

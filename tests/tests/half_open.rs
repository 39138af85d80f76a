//! Peers that vanish without a word, and links that lose packets.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use std::process::Stdio;
use std::time::Duration;

use pgsplice_tests::{Pgsplice, need_root, proxy};
use xtask::lab::cluster::FLEET_PORT;
use xtask::lab::{Lab, LabSpec, Proxy, unique_id, until};

/// Keepalive notices after 1 s + 2 × 1 s, unacknowledged data after 3 s.
const TCP: &str = "keepalive_idle = \"1s\"\nkeepalive_interval = \"1s\"\nkeepalive_count = 2\nuser_timeout = \"3s\"\n";
const SOON: Duration = Duration::from_secs(20);

fn fleet() -> (Lab, Pgsplice) {
    need_root().unwrap();
    let lab = Lab::up(&LabSpec { proxy: Proxy::None, ..LabSpec::static_fleet(unique_id()) }, |_, _| {}).unwrap();
    let config = [
        proxy::listener("clients", FLEET_PORT, "fleet"),
        format!("[listener.clients.tcp]\n{TCP}\n[pool.fleet.tcp]\n{TCP}\n"),
        proxy::backends("fleet", &proxy::fleet(&lab, true)),
    ];
    let proxy = Pgsplice::start(lab.proxy(), "pgsplice", &config.concat()).unwrap();
    (lab, proxy)
}

/// How many sessions ended for this reason.
fn ended(proxy: &Pgsplice, reason: &str) -> u64 {
    proxy.status().unwrap()["listeners"][0]["ended"][reason].as_u64().unwrap_or(0)
}

#[test]
fn a_client_that_vanished_is_noticed_and_its_backend_connection_closed() {
    let (lab, proxy) = fleet();
    let conninfo = lab.conninfo(lab.proxy(), FLEET_PORT);
    let mut psql = lab.client().command(["psql", "-XAtq", &conninfo, "-c", "SELECT pg_sleep(60)"]);
    let mut psql = psql.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the query", SOON, || proxy.command(&["sessions"]).unwrap().contains("forward")).unwrap();
    lab.net.cut("client").unwrap();
    until("its end", SOON, || ended(&proxy, "client-reset") == 1).unwrap();
    assert_eq!(proxy.session_count().unwrap(), 0);
    let at_bouncers = || {
        let clients =
            lab.bouncers().iter().map(|host| lab.bouncer_admin(host, "SHOW CLIENTS").unwrap()).collect::<String>();
        clients.lines().filter(|line| line.contains("|app|")).count()
    };
    until("PgBouncer to let go of the client", SOON, || at_bouncers() == 0).unwrap();
    psql.kill().unwrap();
    psql.wait().unwrap();
}

#[test]
fn a_backend_that_vanished_is_noticed_and_new_sessions_go_elsewhere() {
    let (lab, proxy) = fleet();
    let conninfo = lab.conninfo(lab.proxy(), FLEET_PORT);
    let mut clients: Vec<_> = (0..3)
        .map(|_| {
            let mut psql = lab.client().command(["psql", "-XAtq", &conninfo, "-c", "SELECT pg_sleep(600)"]);
            psql.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    // Whole log-ins: one that is cut off in the middle of it is no session that is reset, but one that goes elsewhere.
    let asleep = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'";
    until("a session at each", SOON, || lab.superuser_sql(lab.host("pg1"), asleep).unwrap() == "3").unwrap();
    lab.net.cut("bouncer2").unwrap();
    until("the end of its session", SOON, || ended(&proxy, "backend-reset") == 1)
        .unwrap_or_else(|error| panic!("{error:#}: {}", proxy.status().unwrap()["listeners"][0]["ended"]));
    assert_eq!(proxy.session_count().unwrap(), 2);
    for _ in 0..4 {
        assert_eq!(lab.sql(lab.proxy(), FLEET_PORT, "SELECT 1").unwrap(), "1");
    }
    for client in &mut clients {
        client.kill().unwrap();
        client.wait().unwrap();
    }
}

#[test]
fn one_packet_in_fifty_lost_loses_no_row() {
    let (lab, _proxy) = fleet();
    for host in ["client", "bouncer1", "bouncer2", "bouncer3"] {
        lab.net.loss(host, 20).unwrap();
    }
    let rows = "SELECT md5(string_agg(x, '')) FROM (SELECT md5(n::text) AS x FROM generate_series(1, 60000) n) rows";
    let expected = lab.superuser_sql(lab.host("pg1"), rows).unwrap();
    let conninfo = lab.conninfo(lab.proxy(), FLEET_PORT);
    let copy = format!(
        "psql -XAtq '{conninfo}' -c \"COPY (SELECT md5(n::text) FROM generate_series(1, 60000) n) TO STDOUT\" | tr -d '\\n' | md5sum"
    );
    for _ in 0..3 {
        let got = lab.client().output(["bash", "-o", "pipefail", "-c", &copy]).unwrap();
        assert_eq!(got.split(' ').next(), Some(expected.as_str()));
    }
}

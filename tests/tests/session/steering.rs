//! Sessions that are ended, drained or reloaded around, by limits, commands and signals.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;

use pgsplice_tests::local::*;
use pgsplice_tests::member::Member;
use pgsplice_tests::stores::Etcd;

use super::{NO_PROBE, through};

#[test]
fn an_idle_session_and_a_half_closed_one_are_ended_by_their_limits() {
    let backend = Backend::logged_in(|stream| {
        std::thread::sleep(PATIENCE);
        drop(stream);
    });
    let pool = format!("{NO_PROBE}\ntimeouts.idle = \"1s\"");
    let proxy = Proxy::between(&[backend.address], &pool, "");
    proxy.wait_candidates(1);
    let mut client = proxy.connect();
    log_in(&mut client);
    assert_eq!(read_to_end(&mut client).1, Err(ErrorKind::ConnectionReset));
    proxy.wait_ended("idle-timeout", 1);
    drop(proxy);

    let pool = format!("{NO_PROBE}\ntimeouts.half_closed = \"1s\"");
    let proxy = Proxy::between(&[backend.address], &pool, "");
    proxy.wait_candidates(1);
    let mut client = proxy.connect();
    log_in(&mut client);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client).1, Err(ErrorKind::ConnectionReset));
    proxy.wait_ended("half-closed-timeout", 1);
}

#[test]
fn a_killed_session_ends_with_a_reset_on_both_sides() {
    let (heard, hears) = mpsc::channel();
    let backend = Backend::logged_in(move |mut stream| heard.send(read_to_end(&mut stream).1).unwrap());
    let proxy = through(&[backend.address]);
    let (mut victim, mut other) = (proxy.connect(), proxy.connect());
    log_in(&mut victim);
    log_in(&mut other);
    let local = victim.local_addr().unwrap().to_string();
    let sessions = proxy.get("/v1/sessions");
    let session = sessions["sessions"].as_array().unwrap().iter().find(|one| one["client"] == local.as_str()).unwrap();
    let (done, text) = proxy.command(&["kill", session["id"].as_str().unwrap()]);
    assert!(done, "{text}");
    assert_eq!(read_to_end(&mut victim).1, Err(ErrorKind::ConnectionReset));
    assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), Err(ErrorKind::ConnectionReset));
    proxy.wait_ended("killed", 1);
    assert_eq!(proxy.sessions(), 1);
}

#[test]
fn a_drained_backend_keeps_its_sessions_and_gets_no_new_one() {
    let (one, two) = (Backend::logged_in(echo), Backend::logged_in(echo));
    let proxy = through(&[one.address, two.address]);
    let mut clients: Vec<TcpStream> = (0..4).map(|_| proxy.connect()).collect();
    clients.iter_mut().for_each(log_in);
    assert_eq!((one.served(), two.served()), (2, 2));
    let (done, text) = proxy.command(&["drain", &one.address.to_string()]);
    assert!(done, "{text}");
    proxy.wait_candidates(1);
    for _ in 0..4 {
        log_in(&mut proxy.connect());
    }
    assert_eq!((one.served(), two.served()), (2, 6));
    for client in &mut clients {
        client.write_all(b"still served").unwrap();
        let mut echoed = [0; 12];
        client.read_exact(&mut echoed).unwrap();
    }
    let (done, text) = proxy.command(&["undrain", &one.address.to_string()]);
    assert!(done, "{text}");
    proxy.wait_candidates(2);
    let (done, text) = proxy.command(&["drain", "nobody"]);
    assert!(!done && text.contains(&one.address.to_string()), "{text}");
}

/// A PgBouncer whose agent was restarted is the one that an operator took out of service.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_drained_stays_so_while_it_is_gone_and_over_a_reload_of_its_cluster() {
    let etcd = Etcd::start_many(1);
    let mut store = etcd.client().await;
    let (one, two) = (Backend::logged_in(echo), Backend::logged_in(echo));
    let key = |bouncer: &str| format!("/pgsplice/lab/bouncers/{bouncer}");
    let entry = |address| format!(r#"{{"name":"","address":"{address}","state":"ready","leader":"pg1"}}"#);
    let primary = Member::start("pg1").await;
    primary.is_primary(1);
    for (key, value) in [
        (key("b1"), entry(one.address)),
        (key("b2"), entry(two.address)),
        ("/service/lab/members/pg1".into(), primary.key("127.0.0.1:5432")),
        ("/service/lab/leader".into(), "pg1".into()),
    ] {
        store.put(key, value, None).await.unwrap();
    }
    let config = |interval: &str| {
        let endpoint = etcd.endpoint(0);
        let cluster = format!("[cluster.main]\nscope = \"lab\"\netcd.endpoints = [{endpoint:?}]\n");
        let pool = Proxy::config(&[], "cluster = \"main\"\nroute = \"fleet\"\nprobe.kind = \"none\"", "");
        format!("{cluster}proof.interval = \"{interval}\"\n{pool}")
    };
    let proxy = Proxy::start(&config("200ms"));
    proxy.wait_candidates(2);
    let steer = |words: &[&str]| {
        let (done, text) = proxy.command(words);
        assert!(done, "{text}");
    };
    let is_listed = |proxy: &Proxy, count: usize| {
        proxy.wait("its backends", |proxy| proxy.get("/v1/backends")["backends"].as_array().unwrap().len() == count);
    };
    steer(&["drain", "b1"]);
    proxy.wait_candidates(1);
    store.delete(key("b1"), None).await.unwrap();
    is_listed(&proxy, 1);
    store.put(key("b1"), entry(one.address), None).await.unwrap();
    is_listed(&proxy, 2);
    for _ in 0..4 {
        log_in(&mut proxy.connect());
    }
    proxy.rewrite_config(&config("150ms"));
    steer(&["reload"]);
    for _ in 0..4 {
        log_in(&mut proxy.connect());
    }
    assert_eq!((one.served(), two.served()), (0, 8));
    store.delete(key("b1"), None).await.unwrap();
    is_listed(&proxy, 1);
    steer(&["undrain", "b1"]);
    store.put(key("b1"), entry(one.address), None).await.unwrap();
    proxy.wait_candidates(2);
}

#[test]
fn a_signal_to_end_waits_for_sessions_and_a_second_one_does_not() {
    let backend = Backend::logged_in(echo);
    let mut proxy = through(&[backend.address]);
    let address = proxy.address();
    let mut client = proxy.connect();
    log_in(&mut client);
    proxy.signal(libc::SIGTERM);
    proxy.wait("the listener to close", |_| TcpStream::connect(address).is_err());
    client.write_all(b"still served").unwrap();
    let mut echoed = [0; 12];
    client.read_exact(&mut echoed).unwrap();
    assert!(!proxy.has_exited());
    drop(client);
    assert!(proxy.wait_exit().success());

    let mut proxy = through(&[backend.address]);
    let mut client = proxy.connect();
    log_in(&mut client);
    proxy.signal(libc::SIGTERM);
    proxy.wait("the drain", |proxy| proxy.log().contains("draining"));
    proxy.signal(libc::SIGTERM);
    assert!(proxy.wait_exit().success());
    assert!(read_to_end(&mut client).0.is_empty());
}

#[test]
fn a_drain_ends_with_its_time_limit() {
    let backend = Backend::logged_in(echo);
    let config = format!("[proxy]\ndrain_timeout = \"300ms\"\n{}", Proxy::config(&[backend.address], NO_PROBE, ""));
    let mut proxy = Proxy::start(&config);
    proxy.wait_candidates(1);
    let mut client = proxy.connect();
    log_in(&mut client);
    proxy.signal(libc::SIGTERM);
    assert_eq!(read_to_end(&mut client).1, Err(ErrorKind::ConnectionReset));
    assert!(proxy.wait_exit().success());
    assert!(proxy.log().contains("reason=\"drain-timeout\""), "{}", proxy.log());
}

#[test]
fn a_reload_moves_new_sessions_and_leaves_the_living_alone() {
    let (one, two) = (Backend::logged_in(echo), Backend::logged_in(echo));
    let proxy = through(&[one.address]);
    let address = proxy.address();
    let mut client = proxy.connect();
    log_in(&mut client);

    proxy.rewrite_config(&Proxy::config(&[two.address], "balance = \"most-beautiful\"", ""));
    let (done, text) = proxy.command(&["reload"]);
    assert!(!done && text.contains("pool.p.balance") && text.contains("pgsplice.toml:"), "{text}");
    log_in(&mut TcpStream::connect(address).unwrap());
    assert_eq!((one.served(), two.served()), (2, 0), "a bad file changes nothing");

    let more = format!(
        "{}\n[listener.m]\nbind = \"127.0.0.1:0\"\npool = \"p\"\n",
        Proxy::config(&[two.address], NO_PROBE, "")
    );
    proxy.rewrite_config(&more);
    let (done, text) = proxy.command(&["reload"]);
    assert!(done && text.contains("listener.m: added"), "{text}");
    proxy.wait("the new backend", |proxy| {
        proxy.get("/v1/backends")["backends"][0]["address"] == two.address.to_string().as_str()
    });
    log_in(&mut TcpStream::connect(address).unwrap());
    let second = proxy.get("/v1/status")["listeners"][1]["bound"][0].as_str().unwrap().parse::<SocketAddr>().unwrap();
    log_in(&mut TcpStream::connect(second).unwrap());
    assert_eq!((one.served(), two.served()), (2, 2));
    client.write_all(b"still served").unwrap();
    let mut echoed = [0; 12];
    client.read_exact(&mut echoed).unwrap();

    proxy.rewrite_config(&Proxy::config(&[two.address], NO_PROBE, ""));
    proxy.signal(libc::SIGHUP);
    proxy.wait("the second listener to close", |_| TcpStream::connect(second).is_err());
    log_in(&mut TcpStream::connect(address).unwrap());
}

/// Its connection is in the kernel's hands until it speaks.
#[test]
fn a_client_that_has_not_spoken_yet_outlives_what_a_reload_changes_of_its_listener() {
    let backend = Backend::logged_in(echo);
    let proxy = through(&[backend.address]);
    let address = proxy.address();
    let bound = |more: &str| format!("bind = [\"127.0.0.1:0\"{more}]");
    for (number, changed) in [
        (1, Proxy::config(&[backend.address], NO_PROBE, "backlog = 100")),
        (2, Proxy::config(&[backend.address], NO_PROBE, "").replace("bind = \"127.0.0.1:0\"", &bound(", \"[::1]:0\""))),
        (3, Proxy::config(&[backend.address], NO_PROBE, "")),
    ] {
        // By every thread's socket.
        let mut silent: Vec<_> = (0..16).map(|_| TcpStream::connect(address).unwrap()).collect();
        proxy.rewrite_config(&changed);
        let (done, text) = proxy.command(&["reload"]);
        assert!(done && text.contains("listener.l"), "{text}");
        for client in &mut silent {
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            log_in(client);
        }
        assert_eq!(proxy.address(), address, "reload {number}");
        log_in(&mut TcpStream::connect(address).unwrap());
    }
}

#[test]
fn a_second_start_names_who_is_in_the_way() {
    let backend = Backend::logged_in(echo);
    let proxy = through(&[backend.address]);
    let taken = proxy.address();
    let config = Proxy::config(&[backend.address], NO_PROBE, "").replace("127.0.0.1:0", &taken.to_string());
    let mut second = Proxy::spawn(&config);
    assert!(!second.wait_exit().success());
    let line = format!("pgsplice.toml:4: listener.l.bind: address in use (pid {} pgsplice): {taken}", proxy.pid());
    assert!(second.log().contains(&line), "{}\nexpected: {line}", second.log());
}

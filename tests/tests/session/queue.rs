//! Which backend gets the session, and what becomes of one that none can take now.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;

use pgsplice_tests::local::*;

use super::{NO_PROBE, through};

#[test]
fn a_dead_backend_is_never_seen_while_another_is_up() {
    let alive = Backend::logged_in(echo);
    // One refuses, one closes before its first byte, as a PgBouncer that is going down does.
    let closing = Backend::start(|mut stream| drop(read_startup(&mut stream)));
    let proxy = through(&[dead_address(), closing.address, alive.address]);
    for _ in 0..30 {
        log_in(&mut proxy.connect());
    }
    assert_eq!(alive.served(), 30);
    assert!(closing.served() > 0, "it was never tried");
}

#[test]
fn all_backends_dead_is_said_in_words_a_person_can_read() {
    let pool = "probe.kind = \"none\"\npassive.failures = 0\nqueue.timeout = \"600ms\"";
    let dead = dead_address();
    let proxy = Proxy::between(&[dead], pool, "");
    proxy.wait_candidates(1);
    let mut client = proxy.connect();
    client.write_all(&startup("alice")).unwrap();
    let error = error_fields(&read_to_end(&mut client).0);
    assert_eq!((error[&'S'].as_str(), error[&'C'].as_str()), ("FATAL", "57P03"));
    let message = format!(
        "no backend of pool p could be reached: {dead} ({dead}): Connection refused (os error 111) (waited 0.6 s)"
    );
    assert_eq!(error[&'M'], message);
    proxy.wait_ended("connect-failed", 1);

    // A client that asked for TLS first is told N, goes on in plaintext and reads the same.
    let mut client = proxy.connect();
    client.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).unwrap();
    let mut answer = [0; 1];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"N");
    client.write_all(&startup("alice")).unwrap();
    assert_eq!(error_fields(&read_to_end(&mut client).0)[&'M'], message);
}

#[test]
fn a_session_waits_for_a_backend_that_comes_up() {
    let address = dead_address();
    let proxy = Proxy::between(
        &[address],
        "probe.kind = \"tcp\"\nprobe.interval = \"100ms\"\nprobe.fast_interval = \"50ms\"",
        "",
    );
    proxy.wait("the probe's verdict", |proxy| {
        proxy.get("/v1/status")["pools"][0]["why_empty"].as_str().unwrap().contains("refused")
    });
    let mut client = proxy.connect();
    client.write_all(&startup("alice")).unwrap();
    proxy.wait("the queue", |proxy| proxy.get("/v1/status")["pools"][0]["waiting"] == 1);
    let listener = std::net::TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                if read_startup(&mut stream).is_some() {
                    stream.write_all(&login_reply()).unwrap();
                    echo(stream);
                }
            });
        }
    });
    let mut reply = vec![0; login_reply().len()];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(reply, login_reply());
}

#[test]
fn one_place_serves_the_queue_in_the_order_it_came() {
    let backend = Backend::logged_in(echo);
    let pool = format!("{NO_PROBE}\nmax_sessions_per_backend = 1\nqueue.size = 2\nqueue.timeout = \"10s\"");
    let proxy = Proxy::between(&[backend.address], &pool, "");
    proxy.wait_candidates(1);
    let mut first = proxy.connect();
    log_in(&mut first);
    let mut waiting: Vec<TcpStream> = Vec::new();
    for count in 1..=2 {
        let mut client = proxy.connect();
        client.write_all(&startup("alice")).unwrap();
        waiting.push(client);
        proxy.wait("the queue", |proxy| proxy.get("/v1/status")["pools"][0]["waiting"] == count);
    }
    let mut refused = proxy.connect();
    refused.write_all(&startup("alice")).unwrap();
    let error = error_fields(&read_to_end(&mut refused).0);
    assert_eq!(error[&'C'], "57P03");
    assert_eq!(error[&'M'], "every backend of pool p has as many sessions as it may; 2 sessions wait already");
    proxy.wait_ended("queue-full", 1);
    drop(first);
    for mut client in waiting {
        let mut reply = vec![0; login_reply().len()];
        client.read_exact(&mut reply).unwrap();
        assert_eq!(proxy.get("/v1/backends")["backends"][0]["sessions"], 1, "never more than one at a time");
    }
}

#[test]
fn a_client_that_gives_up_waiting_leaves_the_queue() {
    let backend = Backend::logged_in(echo);
    let proxy = Proxy::between(&[backend.address], &format!("{NO_PROBE}\nmax_sessions_per_backend = 1"), "");
    proxy.wait_candidates(1);
    let mut first = proxy.connect();
    log_in(&mut first);
    let mut waiting = proxy.connect();
    waiting.write_all(&startup("alice")).unwrap();
    proxy.wait("the queue", |proxy| proxy.get("/v1/status")["pools"][0]["waiting"] == 1);
    drop(waiting);
    proxy.wait_ended("client-gone", 1);
    assert_eq!(proxy.get("/v1/status")["pools"][0]["waiting"], 0);
    assert_eq!(backend.served(), 1);
}

#[test]
fn a_wait_ends_with_its_time_limit_and_a_sentence() {
    let backend = Backend::logged_in(echo);
    let pool = format!("{NO_PROBE}\nmax_sessions_per_backend = 1\nqueue.timeout = \"300ms\"");
    let proxy = Proxy::between(&[backend.address], &pool, "");
    proxy.wait_candidates(1);
    let mut first = proxy.connect();
    log_in(&mut first);
    let mut waiting = proxy.connect();
    waiting.write_all(&startup("alice")).unwrap();
    let error = error_fields(&read_to_end(&mut waiting).0);
    assert_eq!(error[&'M'], "every backend of pool p has as many sessions as it may (waited 0.3 s)");
    proxy.wait_ended("queue-timeout", 1);
}

#[test]
fn a_full_listener_says_so() {
    let backend = Backend::logged_in(echo);
    let proxy = Proxy::between(&[backend.address], NO_PROBE, "max_sessions = 1");
    proxy.wait_candidates(1);
    let mut first = proxy.connect();
    log_in(&mut first);
    let mut second = proxy.connect();
    second.write_all(&startup("alice")).unwrap();
    let error = error_fields(&read_to_end(&mut second).0);
    assert_eq!(error[&'C'], "53300");
    assert_eq!(error[&'M'], "sorry, too many clients: listener l takes 1 sessions");
    proxy.wait_ended("listener-full", 1);
    drop(first);
    proxy.wait("the first to leave", |proxy| proxy.sessions() == 0);
    log_in(&mut proxy.connect());
}

#[test]
fn a_full_listener_still_cancels() {
    let (heard, hears) = mpsc::channel();
    let backend = Backend::start(move |mut stream| {
        let packet = read_startup(&mut stream).unwrap();
        if packet[..4] == 80_877_102u32.to_be_bytes() {
            heard.send(packet).unwrap();
            return;
        }
        stream.write_all(&login_reply()).unwrap();
        echo(stream);
    });
    let proxy = Proxy::between(&[backend.address], NO_PROBE, "max_sessions = 1");
    proxy.wait_candidates(1);
    let mut first = proxy.connect();
    log_in(&mut first);
    let mut cancel = proxy.connect();
    cancel.write_all(&[0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 7, 1, 2, 3, 4]).unwrap();
    assert_eq!(hears.recv_timeout(PATIENCE).unwrap()[4..], [0, 0, 0, 7, 1, 2, 3, 4]);
    proxy.wait_ended("cancel-delivered", 1);
}

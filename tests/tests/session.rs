//! A session's life between a client and a backend that the test plays byte by byte.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use pgsplice_tests::local::*;

/// No probe: the fake backends see sessions only, and are up until a session fails to reach them.
const NO_PROBE: &str = "probe.kind = \"none\"\npassive.failures = 0";

fn through(backends: &[SocketAddr]) -> Proxy {
    let proxy = Proxy::between(backends, NO_PROBE, "");
    proxy.wait_candidates(backends.len() as u64);
    proxy
}

#[test]
fn a_client_that_ends_its_direction_still_gets_its_answer() {
    let backend = Backend::logged_in(|mut stream| {
        let (question, end) = read_to_end(&mut stream);
        assert_eq!((question.as_slice(), end), (&b"question"[..], Ok(())));
        stream.write_all(b"answer after the end").unwrap();
    });
    let proxy = through(&[backend.address]);
    let mut client = proxy.connect();
    log_in(&mut client);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client), (b"answer after the end".to_vec(), Ok(())));
    proxy.wait_ended("client-closed", 1);
}

#[test]
fn a_backend_that_ends_its_direction_still_hears_the_client() {
    let (heard, hears) = mpsc::channel();
    let backend = Backend::logged_in(move |mut stream| {
        stream.write_all(b"last words").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        heard.send(read_to_end(&mut stream)).unwrap();
    });
    let proxy = through(&[backend.address]);
    let mut client = proxy.connect();
    log_in(&mut client);
    assert_eq!(read_to_end(&mut client), (b"last words".to_vec(), Ok(())));
    client.write_all(b"still here").unwrap();
    drop(client);
    assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), (b"still here".to_vec(), Ok(())));
    proxy.wait_ended("backend-closed", 1);
}

#[test]
fn a_reset_is_carried_over_to_the_other_side() {
    let (heard, hears) = mpsc::channel();
    let backend = Backend::logged_in(move |mut stream| {
        let mut order = [0; 1];
        match stream.read(&mut order) {
            Ok(1) => reset(stream),
            other => heard.send(other.map_err(|error| error.kind())).unwrap(),
        }
    });
    let proxy = through(&[backend.address]);
    let mut client = proxy.connect();
    log_in(&mut client);
    client.write_all(b"r").unwrap();
    assert_eq!(read_to_end(&mut client), (Vec::new(), Err(ErrorKind::ConnectionReset)));
    proxy.wait_ended("backend-reset", 1);

    let mut client = proxy.connect();
    log_in(&mut client);
    reset(client);
    assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), Err(ErrorKind::ConnectionReset));
    proxy.wait_ended("client-reset", 1);
}

#[test]
fn a_reset_is_noticed_although_the_other_side_has_stopped_reading() {
    // The backend reads nothing, so the client's direction is stuck in a send and nobody reads from the client.
    let backend = Backend::logged_in(|stream| {
        std::thread::sleep(PATIENCE);
        drop(stream);
    });
    let proxy = through(&[backend.address]);
    let mut client = proxy.connect();
    log_in(&mut client);
    client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let chunk = vec![7; 1 << 20];
    while client.write_all(&chunk).is_ok() {}
    reset(client);
    proxy.wait_ended("client-reset", 1);
}

/// Bytes that tell where they stand, so that a lost, doubled or moved one shows.
fn pattern(from: u64, length: usize) -> Vec<u8> {
    let word = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (from..from + length as u64).map(|at| word(at / 8)[(at % 8) as usize]).collect()
}

#[test]
fn a_client_that_stops_reading_stops_the_backend_and_loses_nothing() {
    const TOTAL: u64 = 64 << 20;
    let (progress, written) = mpsc::channel();
    let backend = Backend::logged_in(move |mut stream| {
        let mut at = 0;
        while at < TOTAL {
            stream.write_all(&pattern(at, 65_536)).unwrap();
            at += 65_536;
            progress.send(at).unwrap();
        }
    });
    let proxy = through(&[backend.address]);
    let before = proxy.resident();
    let mut client = proxy.connect();
    log_in(&mut client);
    let mut stopped_at = 0;
    while let Ok(at) = written.recv_timeout(Duration::from_secs(2)) {
        stopped_at = at;
    }
    // Four kernel socket buffers and one chunk of ours lie between the two.
    assert!(stopped_at < TOTAL / 2, "the backend could write {stopped_at} bytes to a client that reads none");
    let grown = proxy.resident().saturating_sub(before);
    // The ring's own 2 MiB are touched for the first time here.
    assert!(grown < 6 << 20, "one stuck session took {grown} bytes of user memory");
    let mut at = 0;
    let mut buffer = vec![0; 50_000];
    while at < TOTAL {
        let length = client.read(&mut buffer).unwrap();
        assert!(length > 0, "ended at {at}");
        assert_eq!(buffer[..length], pattern(at, length), "at {at}");
        at += length as u64;
    }
    assert_eq!(read_to_end(&mut client), (Vec::new(), Ok(())));
}

#[test]
fn both_directions_at_full_speed_lose_no_byte() {
    const TOTAL: u64 = 32 << 20;
    fn exchange(stream: TcpStream, chunk: usize) {
        let mut writer = stream.try_clone().unwrap();
        let sending = std::thread::spawn(move || {
            let mut at = 0;
            while at < TOTAL {
                let length = chunk.min((TOTAL - at) as usize);
                writer.write_all(&pattern(at, length)).unwrap();
                at += length as u64;
            }
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut reader = stream;
        let (mut at, mut buffer) = (0, vec![0; 33_333]);
        loop {
            let length = reader.read(&mut buffer).unwrap();
            if length == 0 {
                break;
            }
            assert_eq!(buffer[..length], pattern(at, length), "at {at}");
            at += length as u64;
        }
        assert_eq!(at, TOTAL);
        sending.join().unwrap();
    }
    let (done, finished) = mpsc::channel();
    let backend = Backend::logged_in(move |stream| {
        exchange(stream, 100_000);
        done.send(()).unwrap();
    });
    let proxy = through(&[backend.address]);
    let mut client = proxy.connect();
    log_in(&mut client);
    exchange(client, 1_400);
    finished.recv_timeout(PATIENCE).unwrap();
    proxy.wait("the byte counters", |proxy| {
        let status = proxy.get("/v1/status");
        let listener = &status["listeners"][0];
        listener["bytes_in"].as_u64() == Some(TOTAL + startup("alice").len() as u64)
            && listener["bytes_out"].as_u64() == Some(TOTAL + login_reply().len() as u64)
    });
}

#[test]
fn what_a_client_sends_ahead_of_its_login_arrives_in_order() {
    let backend = Backend::start(|mut stream| {
        read_startup(&mut stream).unwrap();
        stream.write_all(&login_reply()).unwrap();
        echo(stream);
    });
    let proxy = through(&[backend.address]);
    let mut client = proxy.connect();
    client.write_all(&[startup("alice"), b"ahead of time".to_vec()].concat()).unwrap();
    client.write_all(b", and more").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (all, end) = read_to_end(&mut client);
    assert_eq!(end, Ok(()));
    assert_eq!(all, [login_reply(), b"ahead of time, and more".to_vec()].concat());
}

#[test]
fn a_login_with_a_password_is_relayed_message_by_message() {
    let backend = Backend::start(|mut stream| {
        read_startup(&mut stream).unwrap();
        stream.write_all(&message(b'R', &[0, 0, 0, 3])).unwrap();
        let mut password = vec![0; message(b'p', b"secret\0").len()];
        stream.read_exact(&mut password).unwrap();
        assert_eq!(password, message(b'p', b"secret\0"));
        stream.write_all(&login_reply()).unwrap();
        echo(stream);
    });
    let proxy = through(&[backend.address]);
    let mut client = proxy.connect();
    client.write_all(&startup("alice")).unwrap();
    let mut asked = vec![0; 9];
    client.read_exact(&mut asked).unwrap();
    assert_eq!(asked, message(b'R', &[0, 0, 0, 3]));
    // In pieces, as a slow network would.
    for byte in message(b'p', b"secret\0") {
        client.write_all(&[byte]).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut reply = vec![0; login_reply().len()];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(reply, login_reply());
}

#[test]
fn encryption_is_passed_through_after_the_byte_that_agrees_to_it() {
    let backend = Backend::start(|mut stream| {
        assert_eq!(read_startup(&mut stream).unwrap(), 80_877_103u32.to_be_bytes());
        stream.write_all(b"S").unwrap();
        echo(stream);
    });
    let proxy = through(&[backend.address]);
    let mut client = proxy.connect();
    client.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).unwrap();
    let mut answer = [0; 1];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"S");
    client.write_all(b"\x16\x03\x01 not a login message at all").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client).0, b"\x16\x03\x01 not a login message at all");
}

#[test]
fn refused_encryption_goes_on_in_plaintext() {
    let backend = Backend::start(|mut stream| {
        // GSS, then SSL, then the startup, as libpq asks.
        for _ in 0..2 {
            assert_eq!(read_startup(&mut stream).unwrap().len(), 4);
            stream.write_all(b"N").unwrap();
        }
        read_startup(&mut stream).unwrap();
        stream.write_all(&login_reply()).unwrap();
        echo(stream);
    });
    let proxy = through(&[backend.address]);
    let mut client = proxy.connect();
    for code in [48, 47] {
        client.write_all(&[0, 0, 0, 8, 4, 210, 22, code]).unwrap();
        let mut answer = [0; 1];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"N");
    }
    log_in(&mut client);
    assert_eq!(backend.served(), 1, "one backend connection serves the whole handshake");
    let (_, sessions) = proxy.command(&["sessions"]);
    assert!(sessions.contains("alice@shop"), "{sessions}");
}

#[test]
fn bytes_behind_an_unanswered_request_for_encryption_are_refused() {
    let backend = Backend::start(drop);
    let proxy = through(&[backend.address]);
    let mut client = proxy.connect();
    client.write_all(&[&[0, 0, 0, 8, 4, 210, 22, 47][..], &startup("mallory")].concat()).unwrap();
    let (answer, _) = read_to_end(&mut client);
    assert!(answer.is_empty());
    proxy.wait_ended("garbage", 1);
    assert_eq!(backend.served(), 0);
}

#[test]
fn garbage_is_closed_and_counted_and_costs_no_backend_connection() {
    let backend = Backend::start(drop);
    let proxy = through(&[backend.address]);
    let floods: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\x07",
        b"\0\0\0\x09\x04\xd2\x16\x2f\0",
        b"\0\0\x00\x10\0\x02\0\0",
        b"\x16\x02",
        b"SSH-2.0-x\r\n",
    ];
    for garbage in floods {
        let mut client = proxy.connect();
        client.write_all(garbage).unwrap();
        assert!(read_to_end(&mut client).0.is_empty(), "{garbage:?}");
    }
    proxy.wait_ended("garbage", floods.len() as u64);
    let mut client = proxy.connect();
    client.write_all(&[0, 1, 0, 0, 0, 3, 0, 0]).unwrap();
    assert!(read_to_end(&mut client).0.is_empty());
    proxy.wait_ended("oversized", 1);
    assert_eq!(backend.served(), 0);
}

#[test]
fn a_slow_start_is_ended_by_its_time_limit_and_costs_no_backend_connection() {
    let backend = Backend::start(drop);
    let proxy = Proxy::between(&[backend.address], NO_PROBE, "startup_timeout = \"300ms\"");
    let begun = Instant::now();
    let mut silent = proxy.connect();
    let mut drip = proxy.connect();
    let startup = startup("alice");
    for byte in &startup[..startup.len() - 1] {
        if drip.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(read_to_end(&mut silent).0.is_empty());
    assert!(read_to_end(&mut drip).0.is_empty());
    assert!(begun.elapsed() < Duration::from_secs(5));
    proxy.wait_ended("startup-timeout", 2);
    assert_eq!(backend.served(), 0);
}

#[test]
fn a_client_that_leaves_before_its_first_packet_is_no_error() {
    let backend = Backend::start(drop);
    let proxy = through(&[backend.address]);
    drop(proxy.connect());
    let mut half = proxy.connect();
    half.write_all(&[0, 0]).unwrap();
    drop(half);
    proxy.wait_ended("client-gone", 2);
    assert_eq!(backend.served(), 0);
    assert_eq!(proxy.sessions(), 0);
}

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
fn a_backend_that_hangs_in_the_handshake_is_ended_by_the_time_limit() {
    let backend = Backend::start(|mut stream| {
        read_startup(&mut stream);
        std::thread::sleep(PATIENCE);
    });
    let proxy = Proxy::between(&[backend.address], &format!("{NO_PROBE}\ntimeouts.handshake = \"300ms\""), "");
    proxy.wait_candidates(1);
    let mut client = proxy.connect();
    client.write_all(&startup("alice")).unwrap();
    let error = error_fields(&read_to_end(&mut client).0);
    assert_eq!(error[&'M'], format!("backend {0} of pool p did not answer within 300ms", backend.address));
    proxy.wait_ended("handshake-timeout", 1);
}

#[test]
fn a_backend_that_accepts_and_never_answers_a_request_for_encryption_is_passed_over() {
    let mute = Backend::start(|mut stream| {
        read_startup(&mut stream);
        std::thread::sleep(PATIENCE);
    });
    let alive = Backend::start(|mut stream| {
        read_startup(&mut stream).unwrap();
        stream.write_all(b"S").unwrap();
        echo(stream);
    });
    let proxy = Proxy::between(&[mute.address, alive.address], &format!("{NO_PROBE}\nbalance = \"first\""), "");
    proxy.wait_candidates(2);
    let mut client = proxy.connect();
    client.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).unwrap();
    let mut answer = [0; 1];
    client.read_exact(&mut answer).unwrap();
    assert_eq!((&answer, mute.served()), (b"S", 1));
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

#[test]
fn a_client_that_leaves_during_its_login_takes_its_backend_connection_along() {
    let (left, gone) = mpsc::channel();
    let backend = Backend::start(move |mut stream| {
        read_startup(&mut stream).unwrap();
        left.send(read_to_end(&mut stream).0.len()).unwrap();
    });
    let proxy = through(&[backend.address]);
    let mut client = proxy.connect();
    client.write_all(&startup("alice")).unwrap();
    proxy.wait("the backend", |_| backend.served() == 1);
    drop(client);
    assert_eq!(gone.recv_timeout(PATIENCE).unwrap(), 0);
    proxy.wait_ended("client-gone", 1);
}

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

#[test]
fn short_sessions_leave_nothing_behind() {
    const SESSIONS: usize = 100_000;
    let backend = Backend::logged_in(echo);
    let proxy = through(&[backend.address]);
    let round = |sessions: usize| {
        let address = proxy.address();
        let work = move || {
            for _ in 0..sessions / 4 {
                let mut client = TcpStream::connect(address).unwrap();
                log_in(&mut client);
                // Resets leave no TIME_WAIT behind, or the ports of this machine would run out.
                reset(client);
            }
        };
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(work)).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        proxy.wait("the last session to end", |proxy| proxy.sessions() == 0);
    };
    round(4_000);
    let (descriptors, resident) = (proxy.descriptors(), proxy.resident());
    round(SESSIONS);
    proxy.wait("the descriptors to be closed", |proxy| proxy.descriptors() <= descriptors);
    let grown = proxy.resident().saturating_sub(resident);
    assert!(grown < 2 << 20, "{SESSIONS} sessions left {grown} bytes behind");
    assert_eq!(proxy.ended("client-reset") + proxy.ended("client-gone"), (SESSIONS + 4_000) as u64);
    assert_eq!(proxy.metric("pgsplice_cancel_keys"), 0.0);
    assert_eq!(proxy.get("/v1/backends")["backends"][0]["sessions"], 0);
}

#[test]
fn ten_thousand_idle_sessions_hold_in_little_memory() {
    // Two descriptors a session, here and in pgsplice; a machine that allows fewer than 20,400 holds fewer.
    let sessions = 10_000.min((descriptor_limit() - 400) / 2);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = listener.local_addr().unwrap();
    let (kept, keep) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            read_startup(&mut stream).unwrap();
            stream.write_all(&login_reply()).unwrap();
            kept.send(stream).unwrap();
        }
    });
    let proxy = through(&[backend]);
    let (address, before) = (proxy.address(), proxy.resident());
    let mut clients: Vec<TcpStream> = Vec::with_capacity(sessions);
    for _ in 0..sessions {
        let mut client = TcpStream::connect(address).unwrap();
        log_in(&mut client);
        clients.push(client);
    }
    proxy.wait("all of them", |proxy| proxy.sessions() == sessions as u64);
    let each = proxy.resident().saturating_sub(before) / sessions as u64;
    println!("{sessions} idle sessions, {each} bytes of user memory each");
    assert!(each < 16 << 10, "{each} bytes of user memory a session");
    // They are all alive: each carries a byte.
    let mut backends: Vec<TcpStream> = keep.try_iter().collect();
    assert_eq!(backends.len(), sessions);
    clients.iter_mut().for_each(|client| client.write_all(b"?").unwrap());
    backends.iter_mut().for_each(|backend| backend.read_exact(&mut [0; 1]).unwrap());
    drop(clients);
    drop(backends);
    proxy.wait("all to end", |proxy| proxy.sessions() == 0);
}

fn descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for the length of both calls.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    limit.rlim_max as usize
}

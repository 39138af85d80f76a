//! From the first packet to the end of the log-in: encryption, passwords, garbage, and those who give up half-way.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use pgsplice_tests::local::*;

use super::{NO_PROBE, through};

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

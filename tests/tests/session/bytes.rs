//! What one side sends reaches the other, whole and in order, with its end or its reset.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use pgsplice_tests::local::*;

use super::through;

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
    let mut bytes = Vec::with_capacity(length + 16);
    for word in from / 8..(from + length as u64).div_ceil(8) {
        // Without a loop over its bytes, which is what takes the time in a debug build.
        bytes.extend_from_slice(&word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    bytes.drain(..(from % 8) as usize);
    bytes.truncate(length);
    bytes
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

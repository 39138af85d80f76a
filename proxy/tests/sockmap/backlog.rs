//! A reader that stops or is slow: memory stays bounded, and nothing is lost, doubled or overtaken.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use pgsplice::session::Termination;

use crate::world::{Parts, alone, connection, engine, eventually, joined, read, receive, send, stream};

/// Sends pieces until nothing more is taken for a while; how many bytes that was.
fn send_until_stuck(mut socket: &TcpStream, seed: u64, piece: usize) -> u64 {
    socket.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut sent = 0;
    loop {
        match socket.write(&stream(seed, sent, piece)) {
            Ok(length) => sent += length as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return sent,
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 1 << 30, "a reader that stopped let 1 GiB in");
    }
}

fn shrink(socket: &TcpStream, bytes: usize) {
    socket2::SockRef::from(socket).set_send_buffer_size(bytes).unwrap();
    socket2::SockRef::from(socket).set_recv_buffer_size(bytes).unwrap();
}

/// Kilobytes of kernel memory that all TCP sockets of this machine hold.
fn tcp_memory() -> u64 {
    let sockstat = std::fs::read_to_string("/proc/thread-self/net/sockstat").unwrap();
    let tcp = sockstat.lines().find(|line| line.starts_with("TCP:")).unwrap();
    tcp.split_whitespace().last().unwrap().parse::<u64>().unwrap() * 4
}

#[test]
fn a_reader_that_stops_stops_the_sender_and_loses_nothing() {
    alone(|| {
        let engine = engine();
        for (piece, buffer) in [(200_000, None), (100, Some(200_000)), (1, Some(50_000))] {
            let parts = Parts::new();
            if let Some(buffer) = buffer {
                for socket in [&parts.backend, &parts.backend_leg, &parts.client_leg, &parts.client] {
                    shrink(socket, buffer);
                }
            }
            let session = parts.join(&engine);
            let before = tcp_memory();
            let sent = send_until_stuck(&session.backend, 7, piece);
            let after = tcp_memory();
            println!("pieces of {piece}: {sent} bytes taken, TCP +{} kB", after.saturating_sub(before));
            // The peers' own socket buffers are among both; the second is the whole machine's.
            assert!(sent < 24 << 20, "{sent} bytes in pieces of {piece}");
            assert!(after < before + (64 << 10), "{} kB in pieces of {piece}", after - before);
            session.backend.shutdown(Shutdown::Write).unwrap();
            assert_eq!(receive(&session.client, 7, 0), sent);
        }
    });
}

#[test]
fn a_slow_reader_gets_every_byte_in_order() {
    alone(|| {
        let engine = engine();
        let parts = Parts::new();
        shrink(&parts.client_leg, 100_000);
        let session = parts.join(&engine);
        let backend = session.backend.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            send(&backend, 3, 30_000_000);
            backend.shutdown(Shutdown::Write).unwrap();
        });
        let (mut at, mut buffer, start) = (0, vec![0; 300_000], Instant::now());
        loop {
            // Stops, runs, stops: the gate closes and opens again many times.
            if at % 7 == 0 && start.elapsed() < Duration::from_secs(3) {
                std::thread::sleep(Duration::from_millis(20));
            }
            match (&session.client).read(&mut buffer).unwrap() {
                0 => break,
                length => {
                    assert!(buffer[..length] == stream(3, at, length), "wrong bytes after {at}");
                    at += length as u64;
                }
            }
        }
        assert_eq!(at, 30_000_000);
        writer.join().unwrap();
        eventually("both ways were used", || engine.moved().redirected > 0 && engine.moved().copied > 0);
        println!("{:?}", engine.moved());
    });
}

#[test]
fn small_messages_keep_their_order_through_every_change_of_the_gate() {
    alone(|| {
        let engine = engine();
        // So small that the gate closes after some ten messages.
        let parts = Parts::new();
        shrink(&parts.client_leg, 20_000);
        let session = parts.join(&engine);
        let backend = session.backend.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            let mut at = 0;
            while at < 2_000_000 {
                let piece = (at % 311 + 1) as usize;
                (&backend).write_all(&stream(9, at, piece)).unwrap();
                at += piece as u64;
            }
            backend.shutdown(Shutdown::Write).unwrap();
            at
        });
        let received = receive(&session.client, 9, 0);
        assert_eq!(received, writer.join().unwrap());
        eventually("both ways were used", || engine.moved().redirected > 0 && engine.moved().copied > 0);
        println!("{:?}", engine.moved());
    });
}

#[test]
fn a_side_that_does_not_read_can_still_send() {
    alone(|| {
        let engine = engine();
        let session = joined(&engine);
        let filled = send_until_stuck(&session.backend, 1, 50_000);
        // The client has not read a byte of that, and sends more than any buffer holds.
        let client = session.client.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            send(&client, 2, 20_000_000);
            client.shutdown(Shutdown::Write).unwrap();
        });
        assert_eq!(receive(&session.backend, 2, 0), 20_000_000);
        writer.join().unwrap();
        session.backend.shutdown(Shutdown::Write).unwrap();
        assert_eq!(receive(&session.client, 1, 0), filled);
    });
}

#[test]
fn the_end_of_a_stream_comes_after_its_backlog() {
    alone(|| {
        let engine = engine();
        let mut session = joined(&engine);
        let backend = session.backend.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            send(&backend, 5, 8_000_000);
            // A close, not a shutdown: nobody there reads any more.
            drop(backend);
        });
        std::thread::sleep(Duration::from_millis(500));
        let other = std::mem::replace(&mut session.backend, connection().0);
        drop(other);
        assert_eq!(receive(&session.client, 5, 0), 8_000_000);
        writer.join().unwrap();
        session.client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(session.ended(), Termination::BackendClosed);
    });
}

#[test]
fn last_words_and_a_close_arrive_at_once_and_whole() {
    alone(|| {
        let engine = engine();
        for _ in 0..150 {
            let mut session = joined(&engine);
            let words = stream(1, 0, 5000);
            (&session.backend).write_all(&words).unwrap();
            drop(std::mem::replace(&mut session.backend, connection().0));
            assert_eq!(read(&session.client, 5000), words);
            assert_eq!((&session.client).read(&mut [0]).unwrap(), 0);
            session.client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(session.ended(), Termination::BackendClosed);
        }
    });
}

#[test]
fn a_gate_that_closes_is_noticed_at_once() {
    alone(|| {
        let engine = engine();
        let parts = Parts::new();
        shrink(&parts.client_leg, 20_000);
        let session = parts.join(&engine);
        let start = Instant::now();
        for round in 0..20 {
            let bytes = stream(round, 0, 100_000);
            (&session.backend).write_all(&bytes).unwrap();
            assert_eq!(read(&session.client, 100_000), bytes);
        }
        // The engine looks at every session once a second anyway.
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        eventually("the gate closed", || engine.moved().copied > 0);
    });
}

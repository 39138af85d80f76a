//! Joining two sockets: what was queued before, what was read in part, and who is refused.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgsplice::session::Termination;
use pgsplice::splice::Why;
use pgsplice::splice::sockmap::Sockmap;

use crate::world::{Parts, alone, engine, eventually, joined, read, receive, send, stream};

#[test]
fn once_joined_the_kernel_forwards_and_every_byte_is_counted() {
    alone(|| {
        let engine = engine();
        let session = joined(&engine);
        eventually("what came first is published", || session.record.bytes() == (4, 6));
        let before = engine.moved();
        for round in 0..1000 {
            (&session.client).write_all(&stream(1, round * 100, 100)).unwrap();
            assert_eq!(read(&session.backend, 100), stream(1, round * 100, 100));
            (&session.backend).write_all(&stream(2, round * 200, 200)).unwrap();
            assert_eq!(read(&session.client, 200), stream(2, round * 200, 200));
        }
        session.client.shutdown(Shutdown::Both).unwrap();
        session.backend.shutdown(Shutdown::Both).unwrap();
        assert_eq!(session.ended(), Termination::ClientClosed);
        assert_eq!(session.record.bytes(), (100_004, 200_006));
        let after = engine.moved();
        assert_eq!((after.redirected - before.redirected, after.copied - before.copied), (300_000, 0));
    });
}

#[test]
fn what_was_queued_before_arrives_without_a_push() {
    alone(|| {
        let engine = engine();
        let parts = Parts { held: b"held".to_vec(), ..Parts::new() };
        (&parts.client).write_all(b"question").unwrap();
        (&parts.backend).write_all(b"answer").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let session = parts.forward(&engine);
        assert_eq!(read(&session.backend, 8), b"question");
        assert_eq!(read(&session.client, 10), b"heldanswer");
    });
}

#[test]
fn a_segment_that_was_read_in_part_is_not_sent_again() {
    alone(|| {
        let engine = engine();
        let parts = Parts::new();
        (&parts.client).write_all(b"read already, not read yet").unwrap();
        assert_eq!(read(&parts.client_leg, 12), b"read already");
        let session = parts.forward(&engine);
        assert_eq!(read(&session.backend, 14), b", not read yet");
        (&session.client).write_all(b", and more").unwrap();
        assert_eq!(read(&session.backend, 10), b", and more");
        eventually("it is joined all the same", || {
            (&session.client).write_all(b"x").unwrap();
            read(&session.backend, 1);
            std::thread::sleep(Duration::from_millis(200));
            engine.moved().redirected > 0
        });
    });
}

#[test]
fn a_stream_that_runs_while_the_sockets_are_joined_keeps_its_order() {
    alone(|| {
        let engine = engine();
        for seed in 0..30 {
            let parts = Parts::new();
            let (up, down) = (parts.client.try_clone().unwrap(), parts.backend.try_clone().unwrap());
            let writers = [(up, seed), (down, 1000 + seed)].map(|(socket, seed)| {
                std::thread::spawn(move || {
                    send(&socket, seed, 300_000);
                    socket.shutdown(Shutdown::Write).unwrap();
                })
            });
            std::thread::sleep(Duration::from_micros(seed * 10));
            let session = parts.forward(&engine);
            let client = session.client.try_clone().unwrap();
            let reader = std::thread::spawn(move || receive(&client, 1000 + seed, 0));
            assert_eq!(receive(&session.backend, seed, 0), 300_000);
            assert_eq!(reader.join().unwrap(), 300_000);
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            assert!(matches!(session.ended(), Termination::ClientClosed | Termination::BackendClosed));
            assert_eq!(session.record.bytes(), (300_000, 300_000));
        }
    });
}

#[test]
fn a_side_in_close_wait_is_refused_with_what_is_held() {
    alone(|| {
        let engine = engine();
        for client_side in [true, false] {
            let parts = Parts { held: b"held".to_vec(), ..Parts::new() };
            let ending = if client_side { &parts.client } else { &parts.backend };
            ending.shutdown(Shutdown::Write).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            let (why, held) = parts.forward(&engine).refused();
            assert_eq!(why, Why::Ended);
            assert_eq!(held, b"held");
        }
    });
}

#[test]
fn a_side_that_closes_while_it_is_joined_is_refused_or_served_to_its_end() {
    alone(|| {
        let engine = engine();
        let mut refused = 0;
        for round in 0..300 {
            let parts = Parts::new();
            let (closes, stays) = match round % 2 {
                0 => (&parts.client, &parts.backend),
                _ => (&parts.backend, &parts.client),
            };
            let (closes, stays) = (closes.try_clone().unwrap(), stays.try_clone().unwrap());
            let closer = closes.try_clone().unwrap();
            let closer = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_micros(round / 2));
                (&closer).write_all(b"last words").unwrap();
                closer.shutdown(Shutdown::Write).unwrap();
            });
            (&stays).write_all(b"answer").unwrap();
            let session = parts.forward(&engine);
            closer.join().unwrap();
            let mut words = String::new();
            if (&stays).read_to_string(&mut words).is_ok() {
                assert_eq!(words, "last words");
                stays.shutdown(Shutdown::Write).unwrap();
                let mut answer = String::new();
                (&closes).read_to_string(&mut answer).unwrap();
                assert_eq!(answer, "answer");
                assert!(matches!(session.ended(), Termination::ClientClosed | Termination::BackendClosed));
            } else {
                let (why, _) = session.refused();
                assert_eq!(why, Why::Ended);
                refused += 1;
            }
        }
        assert!((1..300).contains(&refused), "{refused} of 300 were refused: the moment was missed");
    });
}

#[test]
fn an_mptcp_socket_is_refused() {
    alone(|| {
        let engine = engine();
        let mptcp = |address: SocketAddr| {
            let protocol = Some(socket2::Protocol::from(libc::IPPROTO_MPTCP));
            let socket =
                socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, protocol).unwrap();
            socket.bind(&address.into()).unwrap();
            socket
        };
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listener = mptcp(any);
        listener.listen(1).unwrap();
        let peer = mptcp(any);
        peer.connect(&listener.local_addr().unwrap()).unwrap();
        let leg: TcpStream = listener.accept().unwrap().0.into();
        let parts = Parts { client_leg: leg, client: peer.into(), held: b"held".to_vec(), ..Parts::new() };
        let (why, held) = parts.forward(&engine).refused();
        assert_eq!(why, Why::NotPlain);
        assert_eq!(held, b"held");
    });
}

#[test]
fn one_session_too_many_is_refused_and_its_place_is_used_again() {
    alone(|| {
        let engine = Sockmap::start(2).unwrap();
        let mut sessions = [joined(&engine), joined(&engine)];
        let (why, _) = Parts::new().forward(&engine).refused();
        assert_eq!(why, Why::Full);
        for round in 0..50 {
            sessions[round % 2].cut();
            assert_eq!(sessions[round % 2].ended(), Termination::Killed);
            sessions[round % 2] = joined(&engine);
        }
    });
}

#[test]
fn sessions_that_come_and_go_do_not_touch_each_other() {
    alone(|| {
        let engine = engine();
        let stop = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            let churn = |_| {
                while !stop.load(Ordering::Relaxed) {
                    let session = joined(&engine);
                    session.cut();
                    session.ended();
                }
            };
            let churners = [0, 1].map(|n| scope.spawn(move || churn(n)));
            for seed in 0..10 {
                let session = joined(&engine);
                let client = session.client.try_clone().unwrap();
                let writer = scope.spawn(move || {
                    send(&client, seed, 1_000_000);
                    client.shutdown(Shutdown::Write).unwrap();
                });
                assert_eq!(receive(&session.backend, seed, 0), 1_000_000);
                writer.join().unwrap();
                session.backend.shutdown(Shutdown::Write).unwrap();
                assert_eq!(session.ended(), Termination::ClientClosed);
            }
            stop.store(true, Ordering::Relaxed);
            churners.into_iter().for_each(|one| one.join().unwrap());
        });
    });
}

//! How sessions end: FIN, RST, a killed peer, a killed proxy, limits, cuts.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pgsplice::session::Termination;
use pgsplice::splice::sockmap::Sockmap;

use crate::world::{Parts, Session, alone, connection, engine, joined, read, receive, send, stream};

/// Closes with RST.
fn reset(socket: TcpStream) {
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
}

fn is_reset(mut socket: &TcpStream) -> bool {
    matches!(socket.read(&mut [0; 100]), Err(error) if error.kind() == ErrorKind::ConnectionReset)
}

fn take(socket: &mut TcpStream) -> TcpStream {
    std::mem::replace(socket, connection().0)
}

#[test]
fn a_half_closed_session_goes_on_the_other_way() {
    alone(|| {
        let engine = engine();
        let session = joined(&engine);
        session.client.shutdown(Shutdown::Write).unwrap();
        assert_eq!((&session.backend).read(&mut [0]).unwrap(), 0);
        let backend = session.backend.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            for at in 0..1000 {
                (&backend).write_all(&stream(4, at * 100, 100)).unwrap();
            }
            send(&backend, 5, 10_000_000);
            backend.shutdown(Shutdown::Write).unwrap();
        });
        assert_eq!(read(&session.client, 100_000), stream(4, 0, 100_000));
        assert_eq!(receive(&session.client, 5, 0), 10_000_000);
        writer.join().unwrap();
        assert_eq!(session.ended(), Termination::ClientClosed);
    });
}

#[test]
fn a_fin_against_a_busy_stream_breaks_nothing() {
    alone(|| {
        let engine = engine();
        for seed in 0..20 {
            let session = joined(&engine);
            let backend = session.backend.try_clone().unwrap();
            let writer = std::thread::spawn(move || {
                for at in 0..1000 {
                    (&backend).write_all(&stream(seed, at * 500, 500)).unwrap();
                }
                backend.shutdown(Shutdown::Write).unwrap();
            });
            let client = session.client.try_clone().unwrap();
            let closer = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_micros(seed * 50));
                client.shutdown(Shutdown::Write).unwrap();
            });
            assert_eq!(receive(&session.client, seed, 0), 500_000);
            writer.join().unwrap();
            closer.join().unwrap();
            assert_eq!((&session.backend).read(&mut [0]).unwrap(), 0);
            session.ended();
        }
    });
}

#[test]
fn an_end_against_a_busy_stream_waits_for_what_came_before_it() {
    alone(|| {
        let engine = engine();
        for seed in 0..10 {
            let parts = Parts::new();
            // Small: what the client sends comes up through us, on the socket that the other stream goes out by.
            socket2::SockRef::from(&parts.backend_leg).set_send_buffer_size(20_000).unwrap();
            let session = parts.join(&engine);
            let over = &AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        (&session.backend).write_all(&[7; 300]).unwrap();
                    }
                    session.backend.shutdown(Shutdown::Write).unwrap();
                });
                scope.spawn(|| while (&session.client).read(&mut [0; 10_000]).unwrap() > 0 {});
                scope.spawn(|| {
                    send(&session.client, seed, 1_000_000);
                    session.client.shutdown(Shutdown::Write).unwrap();
                });
                assert_eq!(receive(&session.backend, seed, 0), 1_000_000);
                over.store(true, Ordering::Relaxed);
            });
            assert_eq!(session.ended(), Termination::ClientClosed);
        }
    });
}

#[test]
fn a_reset_of_either_side_resets_the_other() {
    alone(|| {
        let engine = engine();
        let mut session = joined(&engine);
        reset(take(&mut session.client));
        assert_eq!(session.ended(), Termination::ClientReset);
        assert!(is_reset(&session.backend));

        let mut session = joined(&engine);
        reset(take(&mut session.backend));
        assert_eq!(session.ended(), Termination::BackendReset);
        assert!(is_reset(&session.client));
    });
}

#[test]
fn a_reset_under_load_ends_the_session() {
    alone(|| {
        let engine = engine();
        for stopped in [true, false] {
            let mut session = joined(&engine);
            let (up, down) = (session.client.try_clone().unwrap(), session.backend.try_clone().unwrap());
            up.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
            let writer = std::thread::spawn(move || while (&up).write_all(&[1; 10_000]).is_ok() {});
            let reader = std::thread::spawn(move || {
                let start = Instant::now();
                // One that has stopped reading is reset with everything queued to it.
                while !stopped && start.elapsed() < Duration::from_millis(300) {
                    assert!((&down).read(&mut [0; 50_000]).unwrap() > 0);
                }
                drop(down);
            });
            std::thread::sleep(Duration::from_millis(500));
            reader.join().unwrap();
            reset(take(&mut session.backend));
            assert_eq!(session.ended(), Termination::BackendReset);
            writer.join().unwrap();
        }
    });
}

#[test]
fn limits_hold() {
    alone(|| {
        let engine = engine();
        let idle = Parts { idle: Duration::from_secs(2), ..Parts::new() }.join(&engine);
        let busy = Parts { idle: Duration::from_secs(2), ..Parts::new() }.join(&engine);
        let half = Parts { half_closed: Duration::from_secs(2), ..Parts::new() }.join(&engine);
        half.client.shutdown(Shutdown::Write).unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(6) {
            (&busy.client).write_all(b"x").unwrap();
            read(&busy.backend, 1);
            std::thread::sleep(Duration::from_millis(300));
        }
        let start = Instant::now();
        assert_eq!(idle.ended(), Termination::IdleTimeout);
        assert_eq!(half.ended(), Termination::HalfClosedTimeout);
        assert!(start.elapsed() < Duration::from_millis(100), "they had ended long before");
        assert!(is_reset(&idle.client) && is_reset(&idle.backend));
        (&busy.client).write_all(b"x").unwrap();
        read(&busy.backend, 1);
        busy.cut();
        assert_eq!(busy.ended(), Termination::Killed);
        assert!(is_reset(&busy.client) && is_reset(&busy.backend));
    });
}

#[test]
fn a_peer_that_is_killed_ends_its_session() {
    alone(|| {
        let engine = engine();
        let mut session = joined(&engine);
        // `sleep` holds the client's socket as its standard input.
        let mut peer = Command::new("sleep")
            .arg("100")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(take(&mut session.client))))
            .spawn()
            .unwrap();
        (&session.backend).write_all(b"x").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        peer.kill().unwrap();
        peer.wait().unwrap();
        // It had not read the last byte, so its kernel answers with RST.
        assert_eq!(session.ended(), Termination::ClientReset);
        assert!(is_reset(&session.backend));
    });
}

const LEGS: &str = "PGSPLICE_TEST_LEGS";

/// The child of the test below, no test itself: an engine with one session whose legs it inherits.
#[test]
fn child_with_a_session() {
    let Ok(legs) = std::env::var(LEGS) else { return };
    let legs: Vec<i32> = legs.split(',').map(|fd| fd.parse().unwrap()).collect();
    // SAFETY: the parent left exactly these two descriptors open for us.
    let [client_leg, backend_leg] = [legs[0], legs[1]].map(|fd| unsafe { TcpStream::from_raw_fd(fd) });
    let engine = Sockmap::start(1).unwrap();
    let _session: Session = Parts { client_leg, backend_leg, ..Parts::new() }.forward(&engine);
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn when_the_proxy_is_killed_both_sides_close() {
    alone(|| {
        for backlog in [false, true] {
            let Parts { client, client_leg, backend_leg, backend, .. } = Parts::new();
            let fds = [client_leg.as_raw_fd(), backend_leg.as_raw_fd()];
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "ends::child_with_a_session"]).env(LEGS, format!("{},{}", fds[0], fds[1]));
            // SAFETY: fcntl is async-signal-safe, as what runs between fork and exec must be.
            unsafe {
                child.pre_exec(move || {
                    fds.iter().for_each(|fd| {
                        libc::fcntl(*fd, libc::F_SETFD, 0);
                    });
                    Ok(())
                })
            };
            let mut child = child.stdout(Stdio::null()).spawn().unwrap();
            drop((client_leg, backend_leg));
            (&client).write_all(b"open").unwrap();
            assert_eq!(read(&backend, 4), b"open");
            (&backend).write_all(b"sesame").unwrap();
            assert_eq!(read(&client, 6), b"sesame");
            if backlog {
                client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
                while (&client).write_all(&[1; 10_000]).is_ok() {}
            }
            child.kill().unwrap();
            child.wait().unwrap();
            let over = |mut socket: &TcpStream| loop {
                match socket.read(&mut [0; 100_000]) {
                    Ok(0) => return true,
                    Ok(_) => {}
                    Err(error) => return error.kind() == ErrorKind::ConnectionReset,
                }
            };
            assert!(over(&client) && over(&backend));
        }
    });
}

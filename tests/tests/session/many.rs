//! Many sessions, one after the other and at once: what they leave behind and hold.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;

use pgsplice_tests::local::*;

use super::through;

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
    let all = (SESSIONS + 4_000) as u64;
    proxy.wait("all to be counted", |proxy| proxy.ended("client-reset") + proxy.ended("client-gone") >= all);
    assert_eq!(proxy.ended("client-reset") + proxy.ended("client-gone"), all);
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

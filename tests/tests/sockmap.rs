//! pgsplice with `splice = "sockmap"` on loopback: what an operator sees of its sessions, and how they end.
//!
//! `session.rs` and `copy.rs` run by this road too (`cargo xtask test`), for drain, limits and real servers.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use pgsplice_tests::local::*;

/// No probe: the fake backends see sessions only.
const NO_PROBE: &str = "probe.kind = \"none\"\npassive.failures = 0";

/// `after`: replies behind the log-in.
fn sockmap(backend: &Backend, after: u32) -> String {
    Proxy::config(&[backend.address], NO_PROBE, &format!("splice = \"sockmap\"\nsplice_after = {after}"))
}

fn between(backend: &Backend) -> Proxy {
    let proxy = Proxy::start(&sockmap(backend, 0));
    proxy.wait_candidates(1);
    proxy
}

/// A session that is logged in, and its sockets joined.
fn joined(proxy: &Proxy) -> TcpStream {
    let before = proxy.metric("pgsplice_handoffs_total");
    let mut client = proxy.connect();
    log_in(&mut client);
    proxy.wait("the sockets to be joined", |proxy| proxy.metric("pgsplice_handoffs_total") > before);
    speak(&mut client, 1);
    client
}

/// So many requests and their replies.
fn speak(client: &mut TcpStream, count: usize) {
    for _ in 0..count {
        client.write_all(&[7; 100]).unwrap();
        let mut reply = [0; 100];
        client.read_exact(&mut reply).unwrap();
        assert_eq!(reply, [7; 100]);
    }
}

/// `name=value` of the only access line.
fn field(proxy: &Proxy, name: &str) -> String {
    proxy.wait("the access line", |proxy| proxy.log().contains("pgsplice::access"));
    let (log, name) = (proxy.log(), format!("{name}="));
    let line = log.lines().find(|line| line.contains("pgsplice::access")).unwrap();
    line.split(' ').find_map(|word| word.strip_prefix(&name)).unwrap_or_default().trim_matches('"').to_owned()
}

#[test]
fn a_session_by_sockmap_is_seen_counted_and_killed() {
    let backend = Backend::logged_in(echo);
    let proxy = between(&backend);
    let mut client = joined(&proxy);
    let before = wakes(&proxy);
    speak(&mut client, 1000);
    let woken = wakes(&proxy) - before;
    println!("the engine woke {woken} times for 1000 requests");
    // Once a second, and never for a message.
    assert!(woken < 50, "{woken}");
    let (done, text) = proxy.command(&["sessions"]);
    assert!(done && text.contains("sockmap") && text.contains("alice"), "{text}");
    proxy.wait("the bytes of the last tick", |proxy| proxy.metric("pgsplice_sockmap_bytes_total") == 2.0 * 100_100.0);
    let (done, text) = proxy.command(&["kill", "--user", "alice"]);
    assert!(done, "{text}");
    assert_eq!(read_to_end(&mut client), (Vec::new(), Err(ErrorKind::ConnectionReset)));
    proxy.wait_ended("killed", 1);
    let own = (startup("alice").len(), login_reply().len());
    assert_eq!(field(&proxy, "bytes_in"), (own.0 + 100_100).to_string());
    assert_eq!(field(&proxy, "bytes_out"), (own.1 + 100_100).to_string());
    assert_eq!((field(&proxy, "road"), field(&proxy, "road_why")), ("sockmap".into(), String::new()));
    assert_eq!(proxy.metric("pgsplice_handoffs_refused_total"), 0.0);
}

#[test]
fn a_session_inside_tls_is_joined_after_the_byte_that_agrees_to_it() {
    let backend = Backend::start(|mut stream| {
        let mut request = [0; 8];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(b"S").unwrap();
        echo(stream);
    });
    let proxy = between(&backend);
    let mut client = proxy.connect();
    client.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).unwrap();
    let mut answer = [0];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"S");
    proxy.wait("the sockets to be joined", |proxy| proxy.metric("pgsplice_handoffs_total") == 1.0);
    speak(&mut client, 10);
    drop(client);
    proxy.wait_ended("client-closed", 1);
}

#[test]
fn the_road_is_there_after_a_reload_and_waits_for_its_turn() {
    let backend = Backend::logged_in(|mut stream| {
        let mut query = [0; 6];
        while stream.read_exact(&mut query).is_ok() {
            stream.write_all(&message(b'Z', b"I")).unwrap();
        }
    });
    let with = |road: &str| sockmap(&backend, 2).replace("\"sockmap\"", road);
    let proxy = Proxy::start(&with("\"auto\""));
    proxy.wait_candidates(1);
    proxy.rewrite_config(&with("\"sockmap\"").replace("127.0.0.1:0", &proxy.address().to_string()));
    let (done, text) = proxy.command(&["reload"]);
    assert!(done, "{text}");
    let mut client = proxy.connect();
    log_in(&mut client);
    for turn in 1..=2 {
        assert_eq!(proxy.metric("pgsplice_handoffs_total"), 0.0, "before turn {turn}");
        client.write_all(&message(b'Q', b"\0")).unwrap();
        let mut reply = [0; 6];
        client.read_exact(&mut reply).unwrap();
        assert_eq!(reply.as_slice(), message(b'Z', b"I"));
    }
    proxy.wait("the sockets to be joined", |proxy| proxy.metric("pgsplice_handoffs_total") == 1.0);
}

#[test]
fn without_a_capability_sessions_are_relayed_and_say_so() {
    /// linux/capability.h
    const CAP_PERFMON: libc::c_ulong = 38;
    const CAP_BPF: libc::c_ulong = 39;
    is_relayed_without(CAP_BPF, "CAP_BPF");
    is_relayed_without(CAP_PERFMON, "CAP_PERFMON");
}

fn is_relayed_without(capability: libc::c_ulong, name: &str) {
    /// linux/capability.h: as good as both.
    const CAP_SYS_ADMIN: libc::c_ulong = 21;
    let backend = Backend::logged_in(echo);
    let proxy = Proxy::spawn_as(&sockmap(&backend, 0), |mut command| {
        let drop_them = move || {
            for capability in [CAP_SYS_ADMIN, capability] {
                // SAFETY: plain system call, as what runs between fork and exec must be.
                if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: the closure makes system calls only.
        unsafe { command.pre_exec(drop_them) };
        command
    });
    proxy.wait("the first answer", |proxy| proxy.command(&["status"]).0);
    proxy.wait_candidates(1);
    let mut client = proxy.connect();
    log_in(&mut client);
    speak(&mut client, 10);
    drop(client);
    proxy.wait_ended("client-closed", 1);
    assert_eq!((field(&proxy, "road"), field(&proxy, "road_why")), ("relay".into(), "unavailable".into()));
    assert_eq!(proxy.metric("pgsplice_handoffs_refused_total"), 1.0);
    assert!(proxy.log().contains(name), "{}", proxy.log());
}

#[test]
fn a_thousand_sessions_leave_nothing_behind() {
    let backend = Backend::logged_in(echo);
    let proxy = between(&backend);
    let come_and_go = |count: usize| {
        for _ in 0..count {
            let mut client = proxy.connect();
            log_in(&mut client);
            speak(&mut client, 2);
        }
        proxy.wait("the last to end", |proxy| proxy.sessions() == 0);
    };
    // What is allocated once.
    come_and_go(200);
    let (memory, descriptors, kernel) = (proxy.resident(), proxy.descriptors(), bpf_objects(&proxy));
    come_and_go(1000);
    let grown = proxy.resident().saturating_sub(memory);
    println!("1000 sessions: {grown} bytes more");
    assert!(grown < 1 << 20, "{grown} bytes");
    proxy.wait("the last sockets to be closed", |proxy| proxy.descriptors() <= descriptors);
    assert_eq!(bpf_objects(&proxy), kernel);
    // Some end before the engine has looked at them.
    let (joined, ended) = (proxy.metric("pgsplice_handoffs_total"), proxy.metric("pgsplice_handoffs_refused_total"));
    assert!(joined > 600.0 && joined + ended == 1200.0, "{joined} joined, {ended} not");
}

#[test]
fn when_pgsplice_is_killed_both_sides_learn_of_it_and_the_kernel_keeps_nothing() {
    let (heard, hears) = std::sync::mpsc::channel();
    let backend = Backend::logged_in(move |mut stream| {
        let mut request = [0; 100];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(&request).unwrap();
        heard.send(read_to_end(&mut stream)).unwrap();
    });
    let mut proxy = between(&backend);
    let mut client = joined(&proxy);
    let objects = bpf_objects(&proxy);
    assert!(objects.len() >= 5, "a program and four maps: {objects:?}");
    proxy.signal(libc::SIGKILL);
    proxy.wait_exit();
    assert_eq!(read_to_end(&mut client), (Vec::new(), Ok(())));
    assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), (Vec::new(), Ok(())));
    let begun = std::time::Instant::now();
    while !objects.is_disjoint(&all_bpf_objects()) {
        assert!(begun.elapsed() < PATIENCE, "the kernel keeps some of {objects:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// How often the engine's thread was woken.
fn wakes(proxy: &Proxy) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).unwrap().flatten();
    let read = |thread: &std::fs::DirEntry, file: &str| std::fs::read_to_string(thread.path().join(file)).unwrap();
    let engine = threads.into_iter().find(|thread| read(thread, "comm") == "sockmap\n").unwrap();
    let status = read(&engine, "status");
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    count.trim().parse().unwrap()
}

/// `prog_id:` and `map_id:` lines of the process's descriptors.
fn bpf_objects(proxy: &Proxy) -> BTreeSet<(String, u32)> {
    let folder = std::fs::read_dir(format!("/proc/{}/fdinfo", proxy.pid())).unwrap();
    let texts = folder.flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    let of = |line: &str| {
        let (name, id) = line.split_once(':')?;
        let kind = name.strip_suffix("_id").filter(|kind| ["prog", "map"].contains(kind))?;
        Some((kind.to_owned(), id.trim().parse().ok()?))
    };
    texts.flat_map(|text| text.lines().filter_map(of).collect::<Vec<_>>()).collect()
}

/// Of the whole kernel.
fn all_bpf_objects() -> BTreeSet<(String, u32)> {
    /// linux/bpf.h
    const NEXT: [(&str, libc::c_long); 2] = [("prog", 11), ("map", 12)];
    let mut all = BTreeSet::new();
    for (kind, command) in NEXT {
        // start_id, next_id, open_flags.
        let mut attr = [0_u32; 3];
        // SAFETY: attr lives through the call and its length is its own.
        while unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(&attr)) } == 0 {
            all.insert((kind.to_owned(), attr[1]));
            attr[0] = attr[1];
        }
    }
    all
}

//! From one process to the next under a steady stream of clients: none is refused or reset.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use pgsplice::handover::fds;
use pgsplice_tests::local::*;

const NO_PROBE: &str = "probe.kind = \"none\"\npassive.failures = 0";

/// Clients that log in, ask and leave, over and over.
struct Clients {
    over: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn start(address: SocketAddr) -> Self {
        let (over, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = (0..4)
            .map(|_| {
                let (over, served) = (over.clone(), served.clone());
                std::thread::spawn(move || {
                    while !over.load(SeqCst) {
                        let mut client = TcpStream::connect(address).expect("nobody is refused");
                        client.set_read_timeout(Some(PATIENCE)).unwrap();
                        log_in(&mut client);
                        speak(&mut client);
                        served.fetch_add(1, SeqCst);
                        // Resets leave no TIME_WAIT behind.
                        reset(client);
                    }
                })
            })
            .collect();
        let clients = Self { over, served, threads };
        clients.go_on();
        clients
    }

    /// Returns when more of them were served.
    fn go_on(&self) {
        let before = self.served.load(SeqCst);
        let begun = std::time::Instant::now();
        while self.served.load(SeqCst) < before + 40 {
            assert!(begun.elapsed() < PATIENCE, "nobody is served");
            assert!(self.threads.iter().all(|thread| !thread.is_finished()), "a client met an error");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(self) {
        self.over.store(true, SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

/// One request and its reply through a session that is logged in.
fn speak(client: &mut TcpStream) {
    client.write_all(b"word").unwrap();
    let mut reply = [0; 4];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(reply, *b"word");
}

fn config(backend: &Backend, threads: usize) -> String {
    format!("[proxy]\nthreads = {threads}\n{}", Proxy::config(&[backend.address], NO_PROBE, ""))
}

fn start(backend: &Backend, threads: usize) -> Proxy {
    let proxy = Proxy::start(&config(backend, threads));
    proxy.wait_candidates(1);
    proxy
}

/// Starts the next process and waits until it answers on the admin socket.
fn take_over(from: &Proxy, log: &str) -> Proxy {
    let next = from.successor(log, taking_over);
    next.wait("the new process to answer", serves);
    next
}

fn taking_over(mut command: Command) -> Command {
    command.arg("--takeover");
    command
}

/// Whether it is this process that answers on the admin socket.
fn serves(proxy: &Proxy) -> bool {
    // For a moment nobody may.
    proxy.try_get("/v1/status").is_some_and(|status| status["pid"] == proxy.pid())
}

#[test]
fn a_takeover_refuses_nobody_and_old_sessions_go_on_in_the_old_process() {
    let backend = Backend::logged_in(echo);
    let mut old = start(&backend, 2);
    let mut session = old.connect();
    log_in(&mut session);
    let clients = Clients::start(old.address());
    let new = take_over(&old, "new");
    clients.go_on();
    let here = new.get(&format!("/v1/sessions?client={}", session.local_addr().unwrap()));
    assert_eq!(here["total"], 0, "the old process's session is not the new one's");
    speak(&mut session);
    assert!(!old.has_exited());
    old.wait("the old process to say so", |old| old.log().contains("handed over"));
    drop(session);
    assert!(old.wait_exit().success());
    clients.go_on();
    clients.end();
    // The socket's file is the new process's.
    assert!(serves(&new));
}

#[test]
fn three_processes_follow_each_other_with_other_numbers_of_threads() {
    let backend = Backend::logged_in(echo);
    let mut first = start(&backend, 2);
    let bind = first.address().to_string();
    let with_threads = |threads| config(&backend, threads).replace("127.0.0.1:0", &bind);
    let clients = Clients::start(first.address());
    first.rewrite_config(&with_threads(1));
    let mut second = take_over(&first, "second");
    assert!(first.wait_exit().success());
    clients.go_on();
    second.rewrite_config(&with_threads(4));
    let third = take_over(&second, "third");
    assert!(second.wait_exit().success());
    clients.go_on();
    assert_eq!(third.address().to_string(), bind);
    clients.end();
    third.wait("the last session to end", |third| third.sessions() == 0);
}

#[test]
fn a_new_process_that_cannot_start_harms_nothing() {
    let backend = Backend::logged_in(echo);
    let old = start(&backend, 2);
    let mut session = old.connect();
    log_in(&mut session);
    let clients = Clients::start(old.address());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let good = config(&backend, 2);
    let wrong = format!("[listener.second]\nbind = \"{}\"\npool = \"p\"\n", taken.local_addr().unwrap());
    old.rewrite_config(&format!("{good}{wrong}"));
    let mut new = old.successor("new", taking_over);
    assert!(!new.wait_exit().success());
    assert!(new.log().contains("address in use"), "{}", new.log());
    old.wait("the old process to notice", |old| old.log().contains("the takeover came to nothing"));

    // One that gets everything and then is killed.
    drop(receive_sockets(&old, 3));
    old.wait("the old process to notice", |old| old.log().matches("the takeover came to nothing").count() == 2);
    assert!(serves(&old));
    clients.go_on();
    speak(&mut session);

    old.rewrite_config(&good);
    let reloaded = old.command(&["reload"]);
    assert!(reloaded.0, "{}", reloaded.1);
    let new = take_over(&old, "another");
    clients.go_on();
    clients.end();
    speak(&mut session);
    assert!(serves(&new));
}

/// Begins a takeover as a new process would. `count` are the Unix socket and a socket a thread.
fn receive_sockets(old: &Proxy, count: usize) -> (UnixStream, Vec<OwnedFd>) {
    let mut stream = UnixStream::connect(old.folder.path().join("admin.sock")).unwrap();
    let upgrade = "Connection: upgrade\r\nUpgrade: pgsplice-takeover-1";
    write!(stream, "POST /v1/takeover HTTP/1.1\r\nHost: pgsplice\r\n{upgrade}\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0; 1];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"\x07\0\0\0\"Begin\"").unwrap();
    let mut length = [0; 4];
    let (4, fds) = fds::receive(stream.as_fd(), &mut length).unwrap() else { panic!("no message") };
    assert_eq!(fds.len(), count);
    (stream, fds)
}

#[test]
fn one_process_at_a_time_takes_over() {
    let backend = Backend::logged_in(echo);
    let old = start(&backend, 1);
    let first = receive_sockets(&old, 2);
    let mut second = old.successor("second", taking_over);
    assert!(!second.wait_exit().success());
    assert!(second.log().contains("another process is taking over already"), "{}", second.log());
    let (reloaded, said) = old.command(&["reload"]);
    assert!(!reloaded && said.contains("another process is taking over"), "{said}");
    drop(first);
    old.wait("the first to be given up", |old| old.log().contains("the takeover came to nothing"));
    take_over(&old, "third");
}

#[test]
fn an_address_that_the_new_process_does_not_want_is_closed() {
    let backend = Backend::logged_in(echo);
    let other = "[listener.gone]\nbind = \"127.0.0.1:0\"\npool = \"p\"\n";
    let mut old = Proxy::start(&format!("{}{other}", config(&backend, 2)));
    old.wait_candidates(1);
    let address = |name: &str| -> SocketAddr {
        let status = old.get("/v1/status");
        let listeners = status["listeners"].as_array().unwrap();
        let listener = listeners.iter().find(|one| one["name"] == name).unwrap();
        listener["bound"][0].as_str().unwrap().parse().unwrap()
    };
    let (gone, stays) = (address("gone"), address("l"));
    let clients = Clients::start(stays);
    old.rewrite_config(&config(&backend, 2));
    let new = take_over(&old, "new");
    assert!(old.wait_exit().success());
    assert!(TcpStream::connect(gone).is_err());
    assert_eq!(new.address(), stays);
    clients.go_on();
    clients.end();
}

#[test]
fn an_upgrade_starts_the_successor_and_one_that_fails_is_told() {
    let backend = Backend::logged_in(echo);
    let mut old = start(&backend, 2);
    let mut session = old.connect();
    log_in(&mut session);
    let clients = Clients::start(old.address());
    old.rewrite_config("[listener.l]\nbind = 7\n");
    let (upgraded, said) = old.command(&["upgrade"]);
    assert!(!upgraded && said.contains("has not taken over, and pid"), "{said}");
    assert!(serves(&old));
    clients.go_on();
    old.rewrite_config(&config(&backend, 2));
    let (upgraded, said) = old.command(&["upgrade", "--json"]);
    assert!(upgraded, "{said}");
    let answer: serde_json::Value = serde_json::from_str(&said).unwrap();
    let new = Successor(answer["successor"].as_i64().unwrap() as i32);
    assert_eq!(old.get("/v1/status")["pid"].as_i64(), Some(new.0.into()));
    clients.go_on();
    clients.end();
    speak(&mut session);
    drop(session);
    assert!(old.wait_exit().success());
}

/// A process that is no child of ours. Killed when dropped.
struct Successor(i32);

impl Drop for Successor {
    fn drop(&mut self) {
        // SAFETY: plain system call.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
    }
}

// === systemd ===

/// What a service manager does for a process: hears its notes and keeps its descriptors.
struct Manager {
    folder: tempfile::TempDir,
    socket: UnixDatagram,
    notes: Vec<String>,
    kept: Vec<(String, OwnedFd)>,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        Self { folder, socket, notes: Vec::new(), kept: Vec::new() }
    }

    /// A process of this service, with all that is kept.
    fn serve(&self, plain: Command) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]).arg(plain.get_program()).args(plain.get_args());
        command.env("NOTIFY_SOCKET", self.folder.path().join("notify"));
        let names: Vec<&str> = self.kept.iter().map(|(name, _)| name.as_str()).collect();
        command.env("LISTEN_FDS", self.kept.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let kept: Vec<i32> = self.kept.iter().map(|(_, socket)| socket.as_raw_fd()).collect();
        let pass_on = move || {
            // Above all of them first, so that none is overwritten before it is copied.
            for (at, &fd) in kept.iter().enumerate() {
                // SAFETY: plain system calls on descriptors that the child has a copy of.
                unsafe { libc::dup2(fd, 500 + at as i32) };
            }
            for at in 0..kept.len() as i32 {
                // SAFETY: as above.
                unsafe { libc::dup2(500 + at, 3 + at) };
                // SAFETY: as above.
                unsafe { libc::close(500 + at) };
            }
            Ok(())
        };
        // SAFETY: it only makes system calls between fork and exec.
        unsafe { command.pre_exec(pass_on) };
        command
    }

    /// Takes notes until one has this line.
    fn hear(&mut self, line: &str) {
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        while !self.notes.iter().any(|note| note.lines().any(|one| one == line)) {
            let mut note = [0; 4096];
            let (length, fds) = fds::receive(self.socket.as_fd(), &mut note).unwrap_or_else(|error| {
                panic!("waited for {line:?} ({error}) and heard {:?}", self.notes);
            });
            let note = String::from_utf8(note[..length].to_vec()).unwrap();
            let name = note.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("").to_owned();
            if note.starts_with("FDSTOREREMOVE=1") {
                self.kept.retain(|(kept, _)| *kept != name);
            }
            self.kept.extend(fds.into_iter().map(|fd| (name.clone(), fd)));
            self.notes.push(note);
        }
        self.notes.clear();
    }
}

#[test]
fn clients_wait_in_the_queue_while_a_service_is_restarted() {
    let backend = Backend::logged_in(echo);
    let mut manager = Manager::new();
    let bound = dead_address().to_string();
    let config = |threads| config(&backend, threads).replace("127.0.0.1:0", &bound);
    let mut proxy = Proxy::spawn_as(&config(2), |command| manager.serve(command));
    manager.hear("READY=1");
    assert_eq!(manager.kept.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["l", "l"]);
    let clients = Clients::start(bound.parse().unwrap());
    for (number, threads) in [(1, 2), (2, 1), (3, 3)] {
        proxy.rewrite_config(&config(threads));
        proxy.signal(libc::SIGTERM);
        manager.hear("STOPPING=1");
        assert!(proxy.wait_exit().success());
        // Clients that come now find nobody, and are not told so.
        std::thread::sleep(Duration::from_millis(300));
        let next = proxy.successor(&number.to_string(), |command| manager.serve(command));
        // Those that it got are not new to the manager, and it drops them (it compares the files).
        manager.kept.clear();
        manager.hear("READY=1");
        assert_eq!(manager.kept.len(), 2.max(threads));
        assert!(serves(&next));
        clients.go_on();
        proxy = next;
    }
    clients.end();
}

#[test]
fn clients_that_come_after_a_crash_wait_for_the_next_process() {
    let backend = Backend::logged_in(echo);
    let mut manager = Manager::new();
    let mut proxy = Proxy::spawn_as(&config(&backend, 2), |command| manager.serve(command));
    manager.hear("READY=1");
    let address = proxy.address();
    proxy.signal(libc::SIGKILL);
    proxy.wait_exit();
    let clients: Vec<_> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    let next = proxy.successor("next", |command| manager.serve(command));
    manager.hear("READY=1");
    for mut client in clients {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        log_in(&mut client);
        speak(&mut client);
    }
    assert!(serves(&next));
}

#[test]
fn a_service_tells_of_reloads_and_takes_back_what_it_does_not_listen_on_any_more() {
    let backend = Backend::logged_in(echo);
    let mut manager = Manager::new();
    let other = "[listener.other]\nbind = \"127.0.0.1:0\"\npool = \"p\"\n";
    let proxy = Proxy::spawn_as(&format!("{}{other}", config(&backend, 1)), |command| manager.serve(command));
    manager.hear("READY=1");
    let kept = |manager: &Manager| -> Vec<String> { manager.kept.iter().map(|(name, _)| name.clone()).collect() };
    assert_eq!(kept(&manager), ["l", "other"]);
    proxy.rewrite_config(&config(&backend, 1));
    proxy.signal(libc::SIGHUP);
    manager.hear("RELOADING=1");
    manager.hear("READY=1");
    assert_eq!(kept(&manager), ["l"]);

    // The next process does not want what is left, and says so.
    let moved = config(&backend, 1).replace("listener.l]", "listener.m]");
    let renamed = config(&backend, 1).replace("listener.l]", "listener.n]");
    proxy.rewrite_config(&moved);
    proxy.signal(libc::SIGTERM);
    manager.hear("STOPPING=1");
    let next = proxy.successor("next", |command| manager.serve(command));
    manager.hear("READY=1");
    assert_eq!(kept(&manager), ["m"]);
    next.rewrite_config(&renamed);
    let (reloaded, said) = next.command(&["reload"]);
    assert!(reloaded, "{said}");
    manager.hear("READY=1");
    assert_eq!(kept(&manager), ["n"]);
}

#[test]
fn a_service_follows_a_takeover() {
    let backend = Backend::logged_in(echo);
    let mut manager = Manager::new();
    let mut old = Proxy::spawn_as(&config(&backend, 2), |command| manager.serve(command));
    manager.hear("READY=1");
    let clients = Clients::start(old.address());
    let new = old.successor("new", |command| manager.serve(taking_over(command)));
    manager.hear(&format!("MAINPID={}", new.pid()));
    manager.hear("READY=1");
    assert!(old.wait_exit().success());
    clients.go_on();
    clients.end();
}

/// Closed before it was asked, closed with the question unread: it is a race, so it is run often.
#[test]
fn a_command_whose_pgsplice_goes_meanwhile_says_so() {
    const OFTEN: usize = 30;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let going = std::thread::spawn(move || listener.incoming().take(OFTEN).for_each(drop));
    for _ in 0..OFTEN {
        let mut command = Command::new(binary());
        let output = command.args(["status", "--socket"]).arg(&socket).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stderr.starts_with(b"pgsplice: /v1/status: "), "{output:?}");
    }
    going.join().unwrap();
}

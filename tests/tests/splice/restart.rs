//! From one process to the next while sessions are in the kernel: killed, stopped, upgraded, started with another
//! configuration.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Result;
use xtask::lab::until;

use crate::frame;
use crate::older;
use crate::peer::Client;
use crate::rig::{MB, Rig, Road, SOON, Setting, Successor, on_both, on_both_at_once, on_both_with};
use crate::wire::{Fate, Toward, Wire};

/// Four sessions in the kernel, whose clients move 48 MB each.
fn four_that_move(rig: &Rig) -> Vec<std::thread::JoinHandle<Client>> {
    let clients: Vec<_> = (0..4).map(|_| rig.client()).collect();
    rig.wait_spliced(4);
    let move_bytes = |mut client: Client| {
        std::thread::spawn(move || {
            for _ in 0..3 {
                client.get(8 * MB).unwrap();
                client.put(8 * MB).unwrap();
            }
            client
        })
    };
    clients.into_iter().map(move_bytes).collect()
}

#[test]
fn kill_9_in_the_middle_of_a_stream_loses_nothing_and_the_next_process_adopts_it() {
    on_both(|mut rig| {
        let moving = four_that_move(&rig);
        rig.kill_proxy();
        std::thread::sleep(Duration::from_millis(500));
        rig.start_proxy();
        rig.wait_spliced(4);
        let mut clients: Vec<_> = moving.into_iter().map(|one| one.join().unwrap()).collect();
        // The sweep gives it to them.
        let known = || rig.sessions().iter().all(|one| one["backend"] == "b");
        until("the sessions to have their backend", SOON, known).unwrap();
        let sessions = rig.sessions();
        assert!(sessions.iter().all(|one| one["user"] == "app"), "{sessions:?}");
        // Killed by id, cut by pool, ended by themselves: all as for any session.
        let id = sessions[0]["id"].as_str().unwrap().to_owned();
        rig.proxy().command(&["kill", &id]).unwrap();
        rig.wait_ended("killed", 1);
        let reset = clients.iter_mut().map(|client| client.echo(100)).filter(Result::is_err).count();
        assert_eq!(reset, 1);
        drop(clients);
        rig.wait_ended("client-closed", 3);
    });
}

#[test]
fn an_upgrade_in_the_middle_of_a_stream_loses_nothing_and_the_successor_adopts_it() {
    on_both(|rig| {
        let moving = four_that_move(&rig);
        let first = rig.upgrade();
        rig.wait_spliced(4);
        // The one that is upgraded has no session of its own left.
        until("the first process to end", SOON, || !rig.proxy().service().is_running()).unwrap();
        let second = rig.upgrade();
        rig.wait_spliced(4);
        until("the second process to end", SOON, || !first.is_running()).unwrap();
        assert_eq!(rig.proxy().status().unwrap()["pid"], second.pid);
        let mut clients: Vec<_> = moving.into_iter().map(|one| one.join().unwrap()).collect();
        let id = rig.sessions()[0]["id"].as_str().unwrap().to_owned();
        rig.proxy().command(&["kill", &id]).unwrap();
        rig.wait_ended("killed", 1);
        let reset = clients.iter_mut().map(|client| client.echo(100)).filter(Result::is_err).count();
        assert_eq!(reset, 1);
        let mut another = rig.client();
        rig.wait_spliced(4);
        another.echo(100).unwrap();
        drop((clients, another));
        rig.wait_ended("client-closed", 4);
        let lines = rig.proxy().wait_access_lines(5).unwrap();
        assert_eq!(lines.len(), 5, "each session is told of once: {lines:#?}");
    });
}

#[test]
fn upgrades_in_the_middle_of_log_ins_lose_nobody() {
    const UPGRADES: usize = 3;
    on_both(|rig| {
        let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
        let successors = std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !over.load(SeqCst) {
                        let mut client = rig.client();
                        client.echo(100).unwrap();
                        client.echo(2000).unwrap();
                        served.fetch_add(1, SeqCst);
                    }
                });
            }
            let more_are_served = || {
                let before = served.load(SeqCst);
                until("more to be served", 3 * SOON, || served.load(SeqCst) > before + 20)
            };
            let upgrade = |_| {
                more_are_served()?;
                Ok(rig.upgrade())
            };
            let successors: Result<Vec<_>> = (0..UPGRADES).map(upgrade).collect();
            let last = more_are_served();
            over.store(true, SeqCst);
            rig.must("log-ins", last.and(successors))
        });
        until("the processes before to end", SOON, || !successors[..UPGRADES - 1].iter().any(Successor::is_running))
            .unwrap();
        let mut client = rig.spliced();
        client.echo(100).unwrap();
        assert_eq!(rig.ended("handoff-failed"), 0);
    });
}

#[test]
fn sigterm_leaves_the_sessions_in_the_kernel_to_the_next_process() {
    on_both(|mut rig| {
        let mut client = rig.spliced();
        let stopped = rig.proxy.take().unwrap();
        stopped.service().kill(libc::SIGTERM).unwrap();
        until("its end", SOON, || !stopped.service().is_running()).unwrap();
        client.get(MB).unwrap();
        rig.start_proxy();
        rig.wait_spliced(1);
        client.put(MB).unwrap();
        drop(client);
        rig.wait_ended("client-closed", 1);
        let stopped = rig.proxy.take().unwrap();
        stopped.service().kill(libc::SIGTERM).unwrap();
        until("its end", SOON, || !stopped.service().is_running()).unwrap();
        let left = rig.host("proxy").output(["ls", "/sys/fs/bpf"]).unwrap();
        assert!(!left.contains("pgsplice"), "pins are left behind: {left}");
    });
}

#[test]
fn ports_that_rest_from_the_process_before_are_left_alone() {
    // With timestamps the kernel lets a new connection have a port in TIME_WAIT.
    let off = "echo 0 > /proc/sys/net/ipv4/tcp_timestamps";
    let set = |setting| Setting {
        before: vec![("proxy", off.into())],
        listener: "splice_after = \"500ms\"",
        splice: "source_ports = \"12000-12019\"\n",
        ..setting
    };
    on_both_with(set, |mut rig| {
        // Over before a hand-off, so that the proxy's sockets are left in TIME_WAIT: on all of its ports but one.
        for _ in 0..19 {
            rig.client().echo(10).unwrap();
        }
        rig.wait_ended("client-closed", 19);
        rig.kill_proxy();
        rig.start_proxy();
        let mut client = rig.client();
        std::thread::sleep(Duration::from_millis(600));
        client.echo(10).unwrap();
        rig.wait_spliced(1);
    });
}

#[test]
fn the_sessions_of_a_version_with_another_layout_are_taken_over() {
    on_both(|mut rig| {
        let mut client = rig.spliced();
        client.echo(100).unwrap();
        rig.kill_proxy();
        older::take_back(rig.host("proxy"), &["l", "p"]);
        // By the old programs.
        client.get(MB).unwrap();
        client.put(MB).unwrap();
        rig.start_proxy();
        rig.wait_spliced(1);
        let session = rig.sessions().remove(0);
        let who = ["listener", "pool", "user", "database"].map(|key| session[key].as_str().unwrap_or_default());
        assert_eq!(who, ["l", "p", "app", "shop"], "{session}");
        assert!(session["bytes_in"].as_u64().unwrap() > MB as u64, "{session}");
        assert!(!older::folder(rig.host("proxy")).exists());
        client.get(MB).unwrap();
        client.put(MB).unwrap();
        // As good as one of ours.
        rig.proxy().command(&["kill", session["id"].as_str().unwrap()]).unwrap();
        assert_eq!(client.end().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        rig.wait_ended("killed", 1);
    });
}

#[test]
fn sessions_that_the_next_process_has_no_program_for_are_reset_at_both_ends() {
    on_both_at_once(
        |setting| setting,
        |mut rig| {
            let mut client = rig.spliced();
            rig.kill_proxy();
            let other = if rig.road == Road::Tc { "xdp" } else { "tc" };
            rig.config = rig.config.replace(&format!("mode = \"{}\"", rig.road.name()), &format!("mode = \"{other}\""));
            rig.start_proxy();
            rig.wait_ended("stranded", 1);
            client.stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            assert_eq!(client.end().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
            rig.wait_over();
        },
    );
}

#[test]
fn an_interface_that_has_another_name_by_then_keeps_its_program_and_its_sessions() {
    on_both(|mut rig| {
        let mut client = rig.spliced();
        rig.kill_proxy();
        // Linux 6.2 does so while it is up.
        rig.host("proxy").run(["ip", "link", "set", "eth1", "name", "lan1"]).unwrap();
        rig.config = rig.config.replace("\"eth1\"", "\"lan1\"");
        client.get(MB).unwrap();
        rig.start_proxy();
        rig.wait_spliced(1);
        client.put(MB).unwrap();
        rig.proxy().command(&["kill", "--all"]).unwrap();
        rig.wait_ended("killed", 1);
        let mut another = rig.spliced();
        another.echo(5000).unwrap();
    });
}

/// The process before stays, for a session that it relays, and gives up waiting for the client of one that it has handed over.
#[test]
fn a_reply_that_an_upgraded_process_still_held_is_repeated_when_it_has_given_up() {
    let relayed = "[listener.m]\nbind = \"0.0.0.0:5433\"\npool = \"p\"\nsplice = \"relay\"\n";
    on_both_at_once(
        |setting| Setting { wire: true, more: relayed, ..setting },
        |rig| {
            let mut to = rig.address();
            to.set_port(5433);
            let mut stays = Client::connect(rig.host("client"), to).unwrap();
            let wire = Wire::of(&rig.net, "client", "front").unwrap();
            wire.judge(|toward, frame| match frame::read(frame) {
                Some(tcp) if toward == Toward::Host && tcp.payload > 0 => Fate::Drop,
                _ => Fate::Pass,
            });
            let mut client = Client::begin(rig.host("client"), None, rig.address(), Default::default()).unwrap();
            rig.wait_spliced(1);
            let begun = std::time::Instant::now();
            let _successor = rig.upgrade();
            // It gives up after 5 s.
            assert!(begun.elapsed() < Duration::from_millis(4500), "it waited for the client");
            // Longer than the process before waits.
            std::thread::sleep(Duration::from_secs(8));
            wire.judge(|_, _| Fate::Pass);
            let reply = client.until_ready();
            rig.must("the reply", reply);
            rig.must("an echo", client.echo(2000));
            assert_eq!(rig.on_road(rig.road.name()), 1);
            stays.echo(100).unwrap();
        },
    );
}

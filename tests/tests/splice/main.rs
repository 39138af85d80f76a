//! Sessions in the kernel, by TC and by XDP, between two real TCP ends on hosts of their own.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

mod frame;
mod handoff;
mod killed;
mod legs;
mod limits;
mod many;
mod network;
mod older;
mod peer;
mod rig;
mod slow;
mod tuple;
mod wire;

use std::net::Shutdown;

use rig::{MB, Road, SOON, Setting, on_both, on_both_with};
use xtask::lab::until;

#[test]
fn a_spliced_session_moves_every_byte_and_costs_no_socket() {
    on_both(|rig| {
        let mut client = rig.spliced();
        until("both sockets to be gone", SOON, || rig.sockets() == 0).unwrap();
        for length in [1, 100, 1447, 1448, 1449, 5000, 70_000] {
            client.echo(length).unwrap();
        }
        client.get(20 * MB).unwrap();
        client.put(20 * MB).unwrap();
        let session = &rig.sessions()[0];
        assert_eq!((session["user"].as_str(), session["database"].as_str()), (Some("app"), Some("shop")));
        drop(client);
        rig.wait_ended("client-closed", 1);
        let line = rig.proxy().access_lines().unwrap().remove(0);
        assert!(line.contains(&format!("road=\"{}\"", rig.road.name())), "{line}");
        assert_eq!(rig.sessions().len(), 0);
    });
}

#[test]
fn the_bytes_of_a_spliced_session_are_counted_to_the_last() {
    on_both(|rig| {
        let mut client = rig.spliced();
        client.get(MB).unwrap();
        client.put(2 * MB).unwrap();
        drop(client);
        rig.wait_ended("client-closed", 1);
        let line = rig.proxy().access_lines().unwrap().remove(0);
        let field = |name: &str| -> usize {
            let at = line.find(name).unwrap() + name.len();
            line[at..].split(' ').next().unwrap().parse().unwrap()
        };
        let chunks = 2 * MB / (32 * 1024);
        let up = peer::startup().len() + (5 + 17) + (5 + 1) + 2 * MB + 5 * chunks + 5;
        assert_eq!(field("bytes_in="), up, "{line}");
        let down = (9 + 13 + 6) + (MB + 5 * chunks / 2 + 6) + (13 + 6);
        assert_eq!(field("bytes_out="), down, "{line}");
    });
}

#[test]
fn each_order_of_ends_is_carried_over_and_told_by_its_name() {
    on_both(|rig| {
        // The client half-closes; the backend hears it and closes.
        let mut client = rig.spliced();
        client.stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.end().unwrap(), 0);
        drop(client);
        rig.wait_ended("client-closed", 1);
        // The backend half-closes; the client still sends, then closes.
        let mut client = rig.spliced();
        client.ask(b'f', 0).unwrap();
        assert_eq!(client.end().unwrap(), 0);
        client.ask(b'f', 0).unwrap();
        drop(client);
        rig.wait_ended("backend-closed", 1);
        let client = rig.spliced();
        client.reset().unwrap();
        rig.wait_ended("client-reset", 1);
        let mut client = rig.spliced();
        client.ask(b'r', 0).unwrap();
        assert_eq!(client.end().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        rig.wait_ended("backend-reset", 1);
        until("the backend to have let go of all", SOON, || {
            rig.server.connections.load(std::sync::atomic::Ordering::SeqCst) == 0
        })
        .unwrap();
    });
}

#[test]
fn kill_9_in_the_middle_of_a_stream_loses_nothing_and_the_next_process_adopts_it() {
    on_both(|mut rig| {
        let clients: Vec<_> = (0..4).map(|_| rig.client()).collect();
        rig.wait_spliced(4);
        let moving: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                std::thread::spawn(move || {
                    for _ in 0..3 {
                        client.get(8 * MB).unwrap();
                        client.put(8 * MB).unwrap();
                    }
                    client
                })
            })
            .collect();
        rig.kill_proxy();
        std::thread::sleep(std::time::Duration::from_millis(500));
        rig.start_proxy();
        rig.wait_spliced(4);
        let mut clients: Vec<_> = moving.into_iter().map(|one| one.join().unwrap()).collect();
        let sessions = rig.sessions();
        assert!(sessions.iter().all(|one| one["user"] == "app" && one["backend"] == "b"), "{sessions:?}");
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
        let clients: Vec<_> = (0..4).map(|_| rig.client()).collect();
        rig.wait_spliced(4);
        let moving: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                std::thread::spawn(move || {
                    for _ in 0..3 {
                        client.get(8 * MB).unwrap();
                        client.put(8 * MB).unwrap();
                    }
                    client
                })
            })
            .collect();
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
        let lines = rig.proxy().access_lines().unwrap();
        assert_eq!(lines.len(), 5, "each session is told of once: {lines:#?}");
    });
}

#[test]
fn a_killed_session_is_reset_at_both_ends() {
    on_both(|rig| {
        let mut client = rig.spliced();
        rig.proxy().command(&["kill", "--all"]).unwrap();
        assert_eq!(client.end().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        rig.wait_ended("killed", 1);
        until("the backend to hear of it", SOON, || {
            rig.server.connections.load(std::sync::atomic::Ordering::SeqCst) == 0
        })
        .unwrap();
    });
}

#[test]
fn ipv6_is_spliced_too() {
    for road in Road::BOTH {
        let rig = Setting { v6: true, ..Setting::new(road) }.up();
        let mut client = rig.spliced();
        client.echo(3000).unwrap();
        client.get(5 * MB).unwrap();
        client.put(5 * MB).unwrap();
        client.reset().unwrap();
        rig.wait_ended("client-reset", 1);
    }
}

#[test]
fn a_reply_longer_than_a_segment_is_relayed_and_the_next_one_taken() {
    on_both_with(
        |setting| Setting { reply: 20_000, ..setting },
        |rig| {
            let mut client = rig.client();
            client.echo(100).unwrap();
            rig.wait_spliced(1);
            client.get(MB).unwrap();
        },
    );
}

#[test]
fn a_client_that_speaks_before_the_reply_loses_nothing() {
    on_both(|rig| {
        // The startup and a hundred requests in one go: never a quiet moment until all are answered.
        let mut clients: Vec<_> = (0..20)
            .map(|_| {
                let mut client = rig.client();
                for _ in 0..100 {
                    client.ask(b's', 0).unwrap();
                }
                client
            })
            .collect();
        for client in &mut clients {
            for _ in 0..100 {
                client.until_ready().unwrap();
            }
            client.echo(1000).unwrap();
        }
    });
}

#[test]
fn xdp_without_forwarding_is_refused_and_said() {
    let off = "echo 0 > /proc/sys/net/ipv4/ip_forward";
    let rig = Setting { before: vec![("proxy", off.into())], ..Setting::new(Road::Xdp) }.up();
    let mut client = rig.client();
    client.echo(5000).unwrap();
    assert_eq!(rig.sessions()[0]["road_why"], "forwarding-off");
    rig.host("proxy").run(["sh", "-ec", "echo 1 > /proc/sys/net/ipv4/ip_forward"]).unwrap();
    drop(client);
    // The answer is asked for anew each second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let mut client = rig.spliced();
    client.echo(5000).unwrap();
}

#[test]
fn a_full_table_leaves_the_rest_to_the_relay() {
    on_both_with(
        |setting| Setting { splice: "max_sessions = 2\n", ..setting },
        |rig| {
            let mut clients: Vec<_> = (0..3).map(|_| rig.client()).collect();
            rig.wait_spliced(2);
            clients.iter_mut().for_each(|client| client.echo(100).unwrap());
            assert_eq!(rig.on_road("relay"), 1);
            assert_eq!(rig.metric("pgsplice_handoffs_refused_total{why=\"full\"}"), 2.0);
        },
    );
}

#[test]
fn a_hand_off_can_wait_for_replies_or_for_time() {
    on_both_with(
        |setting| Setting { listener: "splice_after = 3", ..setting },
        |rig| {
            let mut client = rig.client();
            client.echo(10).unwrap();
            client.echo(10).unwrap();
            assert_eq!(rig.on_road("relay"), 1);
            client.echo(10).unwrap();
            rig.wait_spliced(1);
            client.echo(10).unwrap();
        },
    );
    let rig = Setting { listener: "splice_after = \"1s\"", ..Setting::new(Road::Tc) }.up();
    let mut client = rig.client();
    client.echo(10).unwrap();
    assert_eq!(rig.on_road("relay"), 1);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    client.echo(10).unwrap();
    rig.wait_spliced(1);
    client.echo(10).unwrap();
    // One that asks nothing goes as well.
    let mut quiet = rig.client();
    rig.wait_spliced(2);
    quiet.echo(10).unwrap();
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
        std::thread::sleep(std::time::Duration::from_millis(600));
        client.echo(10).unwrap();
        rig.wait_spliced(1);
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
fn connection_tracking_does_not_keep_what_it_will_never_see_the_end_of() {
    let track = "nft add table inet t; nft 'add chain inet t f { type filter hook input priority 0; }'; \
                 nft add rule inet t f ct state established accept";
    let rig = Setting { before: vec![("proxy", track.into())], ..Setting::new(Road::Tc) }.up();
    let count =
        || rig.host("proxy").read("/proc/sys/net/netfilter/nf_conntrack_count").unwrap().trim().parse::<u32>().unwrap();
    // Until pgsplice has seen that there is a table.
    let _first = rig.client();
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let mut clients: Vec<_> = (0..10).map(|_| rig.client()).collect();
    rig.wait_spliced(11);
    until("the entries to go", SOON, || count() <= 4).unwrap();
    clients.iter_mut().for_each(|client| client.echo(100).unwrap());
    assert!(count() <= 4, "{} entries", count());
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

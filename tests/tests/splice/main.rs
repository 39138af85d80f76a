//! Sessions in the kernel, by TC and by XDP, between two real TCP ends on hosts of their own.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

mod events;
mod frame;
mod handoff;
mod killed;
mod legs;
mod limits;
mod many;
mod network;
mod older;
mod peer;
mod restart;
mod rig;
mod slow;
mod tuple;
mod wire;

use std::net::Shutdown;
use std::time::{Duration, Instant};

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
        let line = rig.proxy().wait_access_lines(1).unwrap().remove(0);
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
        let line = rig.proxy().wait_access_lines(1).unwrap().remove(0);
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
    std::thread::sleep(Duration::from_millis(1100));
    let mut client = rig.spliced();
    client.echo(5000).unwrap();
}

#[test]
fn tc_needs_no_forwarding() {
    for v6 in [false, true] {
        let off = "echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding";
        let rig = Setting { v6, before: vec![("proxy", off.into())], ..Setting::new(Road::Tc) }.up();
        let mut client = rig.spliced();
        client.echo(5000).unwrap();
        client.get(MB).unwrap();
    }
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
    const AFTER: Duration = Duration::from_secs(1);
    let rig = Setting { listener: "splice_after = \"1s\"", ..Setting::new(Road::Tc) }.up();
    let begun = Instant::now();
    let mut client = rig.client();
    client.echo(10).unwrap();
    let relayed = rig.on_road("relay");
    // A busy machine may take longer to ask.
    assert!(relayed == 1 || begun.elapsed() >= AFTER);
    std::thread::sleep(AFTER + Duration::from_millis(100));
    client.echo(10).unwrap();
    rig.wait_spliced(1);
    client.echo(10).unwrap();
    // One that asks nothing goes as well.
    let mut quiet = rig.client();
    rig.wait_spliced(2);
    quiet.echo(10).unwrap();
}

#[test]
fn connection_tracking_does_not_keep_what_it_will_never_see_the_end_of() {
    let track = "nft add table inet t; nft 'add chain inet t f { type filter hook input priority 0; }'; \
                 nft add rule inet t f ct state established accept";
    const TCP: &str = "[listener.l.tcp]\nkeepalive_idle = \"1s\"\n[pool.p.tcp]\nkeepalive_idle = \"1s\"\n";
    let rig = Setting { before: vec![("proxy", track.into())], more: TCP, ..Setting::new(Road::Tc) }.up();
    let count =
        || rig.host("proxy").read("/proc/sys/net/netfilter/nf_conntrack_count").unwrap().trim().parse::<u32>().unwrap();
    // Those that come before pgsplice has seen that there is a table leave two each.
    let mut clients = Vec::new();
    until("a session of which nothing is kept", SOON, || {
        let before = count();
        clients.push(rig.client());
        rig.wait_spliced(clients.len());
        count() == before
    })
    .unwrap();
    let kept = count();
    clients.extend((0..10).map(|_| rig.client()));
    rig.wait_spliced(clients.len());
    until("the entries to go", SOON, || count() <= kept).unwrap();
    clients.iter_mut().for_each(|client| client.echo(100).unwrap());
    assert!(count() <= kept, "{} entries, of which {kept} were there before", count());
    // A few keepalives to each end, whose answers pgsplice's host does not see.
    std::thread::sleep(Duration::from_secs(4));
    until("the keepalives' entries to go", SOON, || count() <= kept).unwrap();
    clients.iter_mut().for_each(|client| client.echo(100).unwrap());
}

//! Legs that disagree: spliced where what differs can be rewritten, else relayed with the reason named.

use std::net::SocketAddr;

use crate::peer::Client;
use crate::rig::{MB, Rig, Setting, on_both_with};

const SYSCTL: &str = "/proc/sys/net/ipv4/";

fn set(host: &'static str, name: &str, value: u32) -> (&'static str, String) {
    (host, format!("echo {value} > {SYSCTL}{name}"))
}

fn moves(client: &mut Client) {
    client.echo(5000).unwrap();
    client.get(3 * MB).unwrap();
    client.put(3 * MB).unwrap();
}

fn is_relayed(rig: &Rig, to: SocketAddr, why: &str) {
    let mut client = Client::connect(rig.host("client"), to).unwrap();
    moves(&mut client);
    drop(client);
    rig.wait_ended("client-closed", 1);
    let line = rig.proxy().access_lines().unwrap().remove(0);
    assert!(line.contains("road=\"relay\"") && line.contains(&format!("road_why=\"{why}\"")), "{why}: {line}");
}

#[test]
fn an_option_that_only_one_leg_has_is_no_case_for_the_kernel() {
    for host in ["client", "backend"] {
        for (why, name, value) in [("timestamps", "tcp_timestamps", 0), ("sack", "tcp_sack", 0), ("ecn", "tcp_ecn", 1)]
        {
            on_both_with(
                |setting| {
                    let mut before = vec![set(host, name, value)];
                    if (why, host) == ("ecn", "backend") {
                        // Whose kernel only answers; pgsplice's asks.
                        before.push(set("proxy", name, 1));
                        before.push(set("client", name, 0));
                    }
                    Setting { before, ..setting }
                },
                |rig| is_relayed(&rig, rig.address(), why),
            );
        }
    }
}

#[test]
fn what_neither_leg_has_is_not_missed() {
    for name in ["tcp_timestamps", "tcp_sack", "tcp_window_scaling"] {
        on_both_with(
            |setting| Setting { before: vec![set("client", name, 0), set("backend", name, 0)], ..setting },
            |rig| moves(&mut rig.spliced()),
        );
    }
}

#[test]
fn windows_of_any_scale_are_spliced() {
    let narrow = |host| (host, format!("echo '4096 16384 16384' > {SYSCTL}tcp_rmem"));
    let wide = |host| (host, format!("echo '4096 131072 67108864' > {SYSCTL}tcp_rmem"));
    for before in [
        vec![set("backend", "tcp_window_scaling", 0)],
        vec![set("client", "tcp_window_scaling", 0), wide("backend")],
        vec![narrow("client"), wide("backend")],
        vec![wide("client"), narrow("backend")],
    ] {
        on_both_with(|setting| Setting { before: before.clone(), ..setting }, |rig| moves(&mut rig.spliced()));
    }
}

#[test]
fn a_leg_whose_wire_differs_from_its_socket_is_relayed() {
    // The backend is where nobody connects to.
    on_both_with(
        |setting| {
            let nat = "nft add table ip nat; nft 'add chain ip nat out { type nat hook output priority -100; }'; \
                       nft add rule ip nat out ip daddr 10.2.0.99 dnat to 10.2.0.30";
            Setting { before: vec![("proxy", nat.into())], backend: Some("10.2.0.99:6432"), ..setting }
        },
        |rig| is_relayed(&rig, rig.address(), "unseen"),
    );
    on_both_with(
        |setting| {
            let nat = "nft add table ip nat; nft 'add chain ip nat pre { type nat hook prerouting priority -100; }'; \
                       nft add rule ip nat pre tcp dport 5431 dnat to 10.1.0.5:5432";
            Setting { before: vec![("proxy", nat.into())], ..setting }
        },
        |rig| {
            let mut to = rig.address();
            to.set_port(5431);
            is_relayed(&rig, to, "unseen");
        },
    );
}

#[test]
fn segments_that_the_other_leg_cannot_carry_are_relayed() {
    // The backend alone knows of it.
    on_both_with(
        |setting| Setting { before: vec![("backend", "ip link set eth0 mtu 1400".into())], ..setting },
        |rig| is_relayed(&rig, rig.address(), "mss"),
    );
}

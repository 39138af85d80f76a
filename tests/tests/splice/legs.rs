//! Legs that disagree: spliced where what differs can be rewritten, else relayed with the reason named.

use std::net::{SocketAddr, SocketAddrV6};

use xtask::lab::until;

use crate::peer::{Client, Server};
use crate::rig::{MB, PORT, Rig, Road, SOON, Setting, on_both, on_both_with};

const SYSCTL: &str = "/proc/sys/net/ipv4/";

fn set(host: &'static str, name: &str, value: u32) -> (&'static str, String) {
    (host, format!("echo {value} > {SYSCTL}{name}"))
}

/// What new connections are made with, for as long as the test runs.
fn with(rig: &Rig, settings: &[(&'static str, &str, u32)], test: impl FnOnce()) {
    let before: Vec<u32> = settings
        .iter()
        .map(|(host, name, _)| rig.host(host).read(format!("{SYSCTL}{name}")).unwrap().trim().parse().unwrap())
        .collect();
    let write = |host: &'static str, name: &str, value: u32| {
        rig.host(host).run(["sh", "-ec", &set(host, name, value).1]).unwrap();
    };
    settings.iter().for_each(|(host, name, value)| write(host, name, *value));
    test();
    settings.iter().zip(before).for_each(|((host, name, _), value)| write(host, name, value));
}

fn moves(client: &mut Client) {
    client.echo(5000).unwrap();
    client.get(3 * MB).unwrap();
    client.put(3 * MB).unwrap();
}

fn is_relayed(rig: &Rig, to: SocketAddr, why: &str) {
    is_relayed_from(rig, "client", to, why);
}

fn is_relayed_from(rig: &Rig, host: &str, to: SocketAddr, why: &str) {
    let number = rig.ended("client-closed") + 1;
    let mut client = rig.must("a log-in", Client::connect(rig.host(host), to));
    moves(&mut client);
    drop(client);
    rig.wait_ended("client-closed", number);
    let line = rig.proxy().wait_access_lines(number as usize).unwrap().pop().unwrap();
    assert!(line.contains("road=\"relay\"") && line.contains(&format!("road_why=\"{why}\"")), "{why}: {line}");
}

#[test]
fn an_option_that_only_one_leg_has_is_no_case_for_the_kernel() {
    on_both(|rig| {
        for host in ["client", "backend"] {
            for (why, name, value) in
                [("timestamps", "tcp_timestamps", 0), ("sack", "tcp_sack", 0), ("ecn", "tcp_ecn", 1)]
            {
                let mut settings = vec![(host, name, value)];
                if (why, host) == ("ecn", "backend") {
                    // Whose kernel only answers; pgsplice's asks.
                    settings.extend([("proxy", name, 1), ("client", name, 0)]);
                }
                with(&rig, &settings, || is_relayed(&rig, rig.address(), why));
            }
        }
    });
}

#[test]
fn what_neither_leg_has_is_not_missed() {
    on_both(|rig| {
        for (number, name) in (1..).zip(["tcp_timestamps", "tcp_sack", "tcp_window_scaling"]) {
            with(&rig, &[("client", name, 0), ("backend", name, 0)], || {
                moves(&mut rig.spliced());
                rig.wait_ended("client-closed", number);
            });
        }
    });
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
fn a_window_that_the_other_leg_has_no_word_for_is_relayed() {
    // A reader's buffer of less than the 16 KiB that pgsplice's kernel tells backends windows in.
    let little = "cd /proc/sys/net/ipv4; echo 0 > tcp_window_scaling; echo '4096 8192 8192' > tcp_rmem";
    let huge = format!("echo '4096 131072 1073741824' > {SYSCTL}tcp_rmem");
    on_both_with(
        |setting| Setting { before: vec![("client", little.into()), ("proxy", huge.clone())], ..setting },
        |rig| is_relayed(&rig, rig.address(), "window"),
    );
}

/// As if one interface were a card with native XDP: such a session cannot go by XDP, which sends to no interface without.
#[test]
fn legs_on_interfaces_of_different_kinds_are_spliced_by_the_program_that_both_have() {
    let one_card = "mkdir -p /run/class/eth0/device /run/class/eth1; \
                    for i in eth0 eth1; do cat /sys/class/net/$i/mtu > /run/class/$i/mtu; done; \
                    ln -s /a-card /run/class/eth0/device/driver; mount --bind /run/class /sys/class/net";
    let before = vec![("proxy", one_card.into())];
    let rig = Setting { mode: Some("auto"), wire: true, before, ..Setting::new(Road::Tc) }.up();
    until("the XDP program", SOON, || rig.proxy().log().unwrap().contains("XDP program attached")).unwrap();
    moves(&mut rig.spliced());
    let by = |road: &str| rig.metric(&format!("pgsplice_splice_forwarded_packets_total{{road=\"{road}\"}}"));
    assert_eq!((by("xdp"), by("tc") > 0.0), (0.0, true), "only a veth takes what XDP sends to it");
}

#[test]
fn a_link_local_address_is_no_case_for_the_kernel() {
    on_both_with(
        |setting| Setting { v6: true, ..setting },
        |rig| {
            let id = |host: &str, device: &str| {
                rig.host(host)
                    .output(["cat", &format!("/sys/class/net/{device}/ifindex")])
                    .unwrap()
                    .trim()
                    .parse()
                    .unwrap()
            };
            for (host, address) in [("proxy", "fe80::5"), ("client", "fe80::64")] {
                rig.host(host).run(["ip", "address", "add", &format!("{address}/64"), "dev", "eth0", "nodad"]).unwrap();
            }
            let to = SocketAddrV6::new("fe80::5".parse().unwrap(), PORT, 0, id("client", "eth0"));
            is_relayed(&rig, to.into(), "unseen");
        },
    );
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
fn both_ends_may_be_by_one_interface() {
    on_both_with(
        |setting| Setting { backend: Some("10.1.0.100:6432"), ..setting },
        |rig| {
            let _server = Server::start(rig.host("client"), ([10, 1, 0, 100], 6432).into(), 0).unwrap();
            moves(&mut rig.spliced());
        },
    );
}

/// Less than any TCP but theirs announces, and less than a socket may be told to: nobody else must suffer from it.
#[test]
fn a_client_that_wants_tiny_segments_is_relayed() {
    on_both(|rig| {
        rig.host("client").run(["sh", "-ec", "ip route change 10.1.0.0/24 dev eth0 src 10.1.0.100 advmss 60"]).unwrap();
        let number = rig.ended("client-closed") + 1;
        let mut client = rig.must("a log-in", Client::connect(rig.host("client"), rig.address()));
        client.echo(5000).unwrap();
        drop(client);
        rig.wait_ended("client-closed", number);
        let line = rig.proxy().wait_access_lines(number as usize).unwrap().pop().unwrap();
        assert!(line.contains("road_why=\"mss\""), "{line}");
    });
}

/// By loopback, whose segments are larger than any other's.
#[test]
fn a_client_on_this_host_is_relayed() {
    on_both(|rig| {
        is_relayed_from(&rig, "proxy", rig.address(), "unseen");
        is_relayed_from(&rig, "proxy", ([127, 0, 0, 1], PORT).into(), "unseen");
    });
}

/// The port of a bridge has no address: the answer to what is asked by it comes to the bridge, and it never learns it.
#[test]
fn a_leg_whose_answers_leave_by_another_interface_than_it_comes_by_is_relayed() {
    on_both_with(
        |setting| {
            let bridge = "ip link add br0 type bridge forward_delay 0; ip link set eth0 master br0; \
                          ip address flush dev eth0; ip address add 10.1.0.5/24 dev br0; ip link set br0 up";
            Setting { before: vec![("proxy", bridge.into())], ..setting }
        },
        |rig| is_relayed(&rig, rig.address(), "other-way"),
    );
}

/// By a policy that does not insist, so that packets pass as they are where nobody has the keys.
#[test]
fn a_leg_that_ipsec_would_encrypt_is_relayed() {
    on_both_with(
        |setting| {
            let policy = "ip xfrm policy add src 10.2.0.5 dst 10.2.0.30 dir out \
                          tmpl src 10.2.0.5 dst 10.2.0.30 proto esp mode transport level use";
            Setting { before: vec![("proxy", policy.into())], ..setting }
        },
        |rig| is_relayed(&rig, rig.address(), "unseen"),
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

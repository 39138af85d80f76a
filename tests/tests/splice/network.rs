//! Networks that lose, repeat and overtake, that narrow, and whose neighbours change: every byte arrives.

use std::net::IpAddr;
use std::time::Duration;

use xtask::lab::until;

use crate::peer::{Client, Plan};
use crate::rig::{MB, Rig, Road, SOON, Setting, on_both_at_once, on_both_with};
use crate::wire::{Faults, Wire};

/// Clients one after another and at once, in both directions, each byte compared.
fn move_bytes(rig: &Rig, sessions: usize, bulk: usize) {
    std::thread::scope(|scope| {
        for number in 0..sessions {
            scope.spawn(move || {
                let mut client = Client::begin(rig.host("client"), None, rig.address(), Plan::default()).unwrap();
                rig.must("the log-in", client.until_ready());
                for length in (1..12).map(|n| n * 997 + number) {
                    rig.must("the echo", client.echo(length));
                }
                rig.must("bytes from the backend", client.get(bulk));
                rig.must("bytes to the backend", client.put(bulk));
            });
        }
    });
}

#[test]
fn overtaken_repeated_and_lost_frames_on_either_side_change_no_byte() {
    on_both_with(
        |setting| Setting { wire: true, ..setting },
        |rig| {
            let wires = [("client", "front"), ("backend", "back")]
                .map(|(host, segment)| Wire::of(&rig.net, host, segment).unwrap());
            for (seed, faults) in [
                (1, Faults { late: 250, ..Faults::default() }),
                (2, Faults { twice: 50, late: 250, lost: 10 }),
                (3, Faults { twice: 50, lost: 50, ..Faults::default() }),
            ] {
                for (wire, seed) in wires.iter().zip([seed, seed + 100]) {
                    wire.judge(faults.judge(seed));
                }
                move_bytes(&rig, 4, MB / 2);
            }
            assert!(rig.metric("pgsplice_handoffs_total") >= 10.0, "{:?}", rig.sessions());
        },
    );
}

#[test]
fn legs_of_any_mtu_are_spliced_and_carry_the_largest_segments() {
    // Of the front and of the back.
    for (front, back) in [(1500, 1400), (1400, 1500), (9000, 1500), (1500, 9000), (9000, 1400), (1400, 9000)] {
        on_both_with(
            |setting| {
                let mtu = |device: &str, mtu: u32| format!("ip link set {device} mtu {mtu}");
                let before = vec![
                    ("client", mtu("eth0", front)),
                    ("proxy", format!("{}; {}", mtu("eth0", front), mtu("eth1", back))),
                    ("backend", mtu("eth0", back)),
                    ("switch", mtu("client.0", front)),
                    ("switch", mtu("backend.0", back)),
                    ("switch", format!("{}; {}", mtu("proxy.0", front), mtu("proxy.1", back))),
                ];
                Setting { before, ..setting }
            },
            |rig| {
                let mut client = rig.spliced();
                for length in [1300, 1361, 1449, 9000, 70_000] {
                    client.echo(length).unwrap();
                }
                client.get(3 * MB).unwrap();
                client.put(3 * MB).unwrap();
                assert_eq!(rig.other_packets("too-big"), 0.0, "{front} and {back}");
            },
        );
    }
}

#[test]
fn a_router_that_grows_narrower_is_heard_at_the_far_end() {
    for v6 in [false, true] {
        on_both_with(
            |setting| Setting { routers: true, v6, ..setting },
            |rig| {
                let mut client = rig.spliced();
                client.echo(5000).unwrap();
                // On the way out of each router towards the ends: who is too long is always told by way of pgsplice. By
                // route, for a veth of a smaller MTU does not take in what is larger either.
                let narrow = |router: &str, segment: u32, device: &str, mtu: u32| {
                    let routes = format!(
                        "ip route replace 10.{segment}.0.0/24 dev {device} mtu {mtu}; \
                         ip -6 route replace fd0{segment}::/64 dev {device} metric 256 mtu {mtu}"
                    );
                    rig.host(router).run(["sh", "-ec", &routes]).unwrap();
                };
                narrow("near", 3, "eth0", 1400);
                rig.must("1400 towards the client", client.get(2 * MB));
                narrow("far", 4, "eth1", 1300);
                rig.must("1300 towards the backend", client.put(2 * MB));
                rig.must("both", client.echo(20_000));
                assert!(
                    rig.other_packets("icmp") >= 2.0,
                    "{} was translated by {}, v6 {v6}",
                    rig.other_packets("icmp"),
                    rig.road.name()
                );
                assert_eq!(rig.on_road(rig.road.name()), 1);
                // Nobody had to guess.
                let guessed = ["client", "backend"].map(|host| rig.tcp_counter(host, "TCPMTUPSuccess"));
                assert_eq!(guessed, [0, 0]);
            },
        );
    }
}

#[test]
fn a_next_hop_that_is_forgotten_or_given_up_is_asked_for_again() {
    for v6 in [false, true] {
        on_both_with(
            |setting| Setting { v6, ..setting },
            |rig| {
                let mut client = rig.spliced();
                let (backend, own) = match v6 {
                    false => (rig.host("backend").v4().to_string(), rig.host("client").v4().to_string()),
                    true => (rig.host("backend").v6().to_string(), rig.host("client").v6().to_string()),
                };
                for (address, device) in [(backend, "eth1"), (own, "eth0")] {
                    for what in ["del", "nud failed", "nud stale"] {
                        let (verb, state) = what.split_once(' ').map_or((what, ""), |(_, nud)| ("change", nud));
                        let mut command = vec!["ip", "neigh", verb, &address, "dev", device];
                        if !state.is_empty() {
                            command.extend(["nud", state]);
                        }
                        rig.host("proxy").run(command).unwrap();
                        // The way is remembered for 50 ms.
                        std::thread::sleep(Duration::from_millis(100));
                        client.echo(3000).unwrap();
                    }
                }
                client.get(MB).unwrap();
            },
        );
    }
}

/// The backend never asks who pgsplice's host is, and the kernel by itself believes the old address for minutes: nothing
/// but pgsplice's own question, when nothing comes back, finds the new one in time.
#[test]
fn a_link_layer_address_that_changes_in_silence_is_found_by_asking() {
    std::thread::scope(|scope| {
        for v6 in [false, true] {
            scope.spawn(move || changes_in_silence(v6));
        }
    });
}

fn changes_in_silence(v6: bool) {
    let family = if v6 { "ipv6" } else { "ipv4" };
    on_both_at_once(
        |setting| {
            let certain = format!(
                "cd /proc/sys/net/{family}/neigh/eth1; echo 600000 > base_reachable_time_ms; echo 200 > retrans_time_ms"
            );
            Setting { v6, before: vec![("proxy", certain)], ..setting }
        },
        |rig| {
            let mut client = rig.spliced();
            client.echo(100).unwrap();
            let host = rig.host("proxy");
            let proxy = host.output(["cat", "/sys/class/net/eth1/address"]).unwrap();
            let address: IpAddr =
                if v6 { host.v6_on("back").unwrap().into() } else { host.v4_on("back").unwrap().into() };
            let change = format!(
                "ip link set eth0 address 02:00:00:00:00:77; \
                 ip neigh replace {address} lladdr {} nud permanent dev eth0",
                proxy.trim()
            );
            rig.host("backend").run(["sh", "-ec", &change]).unwrap();
            client.stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
            client.echo(100).unwrap();
            client.get(MB).unwrap();
        },
    );
}

#[test]
fn an_end_that_is_away_for_a_while_goes_on_when_it_is_back() {
    on_both_at_once(
        |setting| setting,
        |rig| {
            let mut client = rig.spliced();
            let mut other = rig.client();
            rig.wait_spliced(2);
            rig.net.cut("backend").unwrap();
            let asked = client.ask_echo(5000).unwrap();
            // Until the neighbour is given up, too.
            std::thread::sleep(Duration::from_secs(5));
            rig.net.heal("backend").unwrap();
            client.until_echo(5000, &asked).unwrap();
            other.echo(100).unwrap();
            until("both to be there", SOON, || rig.on_road(rig.road.name()) == 2).unwrap();
        },
    );
}

#[test]
fn what_would_join_packets_as_lists_is_turned_off() {
    let lists = "for device in eth0 eth1; do ethtool -K $device gro on; ethtool -K $device rx-gro-list on; done";
    let rig = Setting { wire: true, before: vec![("proxy", lists.into())], ..Setting::new(Road::Tc) }.up();
    let mut client = rig.spliced();
    client.echo(70_000).unwrap();
    client.get(3 * MB).unwrap();
    client.put(3 * MB).unwrap();
    assert!(rig.proxy().log().unwrap().contains("rx-gro-list is off now"));
}

#[test]
fn an_interface_that_is_made_anew_has_its_program_again_after_a_reload() {
    on_both_with(
        |setting| setting,
        |rig| {
            rig.spliced().echo(100).unwrap();
            rig.wait_ended("client-closed", 1);
            let (proxy, holder) = (rig.host("proxy"), rig.host("proxy").holder());
            proxy.run(["ip", "link", "del", "eth1"]).unwrap();
            let offloads = "tx off gro on";
            let plug = format!(
                "ip link add proxy.1 type veth peer name eth1 netns {}; ip link set proxy.1 master br-back up; \
                 nsenter --target {holder} --mount --net=/proc/self/ns/net ethtool -K proxy.1 {offloads}",
                proxy.netns()
            );
            let done = rig.net.on_switch().args(["sh", "-ec", &plug]).output().unwrap();
            assert!(done.status.success(), "{plug}: {}", String::from_utf8_lossy(&done.stderr));
            let inside =
                format!("ethtool -K eth1 {offloads}; ip address add 10.2.0.5/24 dev eth1; ip link set eth1 up");
            proxy.run(["sh", "-ec", &inside]).unwrap();
            let mut client = rig.client();
            client.echo(100).unwrap();
            assert_eq!(rig.on_road("relay"), 1, "{:?}", rig.sessions());
            rig.proxy().command(&["reload"]).unwrap();
            let mut another = rig.client();
            rig.wait_spliced(1);
            another.echo(5000).unwrap();
            another.get(MB).unwrap();
        },
    );
}

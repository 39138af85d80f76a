//! pgsplice is killed while a session changes hands: at the moment the flows go live, and before the client has the reply
//! that was held. The kernel finishes what it has; a session nobody can finish is cut.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use pgsplice_ebpf::flow::control;
use xtask::lab::until;

use crate::frame;
use crate::older::pins;
use crate::peer::{Client, Plan};
use crate::rig::{Rig, SOON, Setting, on_both_at_once};
use crate::slow::Slow;
use crate::wire::{Fate, Toward, Wire};

/// Returns within a millisecond of a session's going live.
fn wait_live(rig: &Rig) {
    let pin = pins(rig.host("proxy")).join("v3/maps/CONTROL");
    let words: Array<_, u32> = Map::Array(MapData::from_pin(pin).unwrap()).try_into().unwrap();
    let begun = Instant::now();
    while !(0..8).any(|slot| words.get(&slot, 0).unwrap() == control::LIVE) {
        assert!(begun.elapsed() < SOON, "no session goes live");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn log_in(rig: &Rig) -> (Client, SocketAddr) {
    let client = Client::begin(rig.host("client"), None, rig.address(), Plan::default()).unwrap();
    client.stream.set_read_timeout(Some(SOON)).unwrap();
    let address = client.stream.local_addr().unwrap();
    (client, address)
}

#[test]
fn killed_at_the_moment_it_goes_live_a_session_has_its_reply_and_goes_on() {
    on_both_at_once(
        |setting| setting,
        |mut rig| {
            // Whatever comes next after the flows go live, it does not come to it.
            let slowed =
                Slow::before(rig.proxy().service().pid(), "sendto,setsockopt", Duration::from_millis(60)).unwrap();
            let (mut client, _) = log_in(&rig);
            wait_live(&rig);
            rig.kill_proxy();
            drop(slowed);
            let reply = client.until_ready();
            rig.start_proxy();
            rig.must("the reply", reply);
            rig.wait_spliced(1);
            rig.must("an echo", client.echo(2000));
        },
    );
}

/// Keepalives go on beside that: a client that lacks its reply and answers them is there.
#[test]
fn killed_before_the_client_has_its_reply_the_kernel_repeats_it_and_a_session_without_is_cut() {
    const TCP: &str = "[listener.l.tcp]\nkeepalive_idle = \"1s\"\nkeepalive_interval = \"1s\"\nkeepalive_count = 3\n";
    on_both_at_once(
        |setting| Setting { wire: true, more: TCP, ..setting },
        |mut rig| {
            let wire = Wire::of(&rig.net, "client", "front").unwrap();
            wire.judge(|toward, frame| match frame::read(frame) {
                Some(tcp) if toward == Toward::Host && tcp.payload > 0 => Fate::Drop,
                _ => Fate::Pass,
            });
            let (mut patient, _) = log_in(&rig);
            let (mut lost, address) = log_in(&rig);
            rig.wait_spliced(2);
            rig.kill_proxy();
            rig.start_proxy();
            rig.wait_spliced(2);
            // What the process has left behind in the kernel of the one.
            let port = format!(":{}", address.port());
            rig.host("proxy").run(["ss", "-K", "-t", "state", "all", "dport", "=", &port]).unwrap();
            rig.wait_ended("reply-lost", 1);
            let end = lost.end();
            assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
            until("the backend to hear of it", SOON, || rig.at_backend() == 1).unwrap();
            // Long enough to be given up, were it not asked.
            std::thread::sleep(Duration::from_secs(5));
            // And of the other.
            wire.judge(|_, _| Fate::Pass);
            let reply = patient.until_ready();
            rig.must("the reply", reply);
            rig.must("an echo", patient.echo(2000));
            assert_eq!(rig.on_road(rig.road.name()), 1);
        },
    );
}

//! Packets on the addresses and ports of a session that is in the kernel, and are not its own: a new connection from where
//! an old one was, and what somebody else has made up.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use pgsplice::splice;
use pgsplice_ebpf::flow::{WATCH_TC, WATCH_TIMESTAMPS, WATCH_XDP, Watch};
use xtask::lab::until;

use crate::frame::{self, ACK, FIN, PSH, RST, SYN, Tcp};
use crate::peer::Client;
use crate::rig::{MB, Rig, SOON, Setting, on_both_at_once, on_both_with};
use crate::wire::{Fate, Tap, Toward, Wire};

fn from_port(rig: &Rig, port: u16) -> Client {
    let (host, from) = (rig.host("client"), SocketAddr::new(rig.host("client").v4().into(), port));
    let begun = Instant::now();
    loop {
        match Client::connect_from(host, Some(from), rig.address()) {
            // The client's own kernel still waits for the last acknowledgement of the connection before.
            Err(error) if is_in_use(&error) && begun.elapsed() < SOON => std::thread::sleep(Duration::from_millis(10)),
            done => return done.unwrap(),
        }
    }
}

fn is_in_use(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse))
}

#[test]
fn a_port_is_used_again_at_once_after_any_end() {
    on_both_at_once(
        |setting| {
            // The client itself must not mind.
            let no_time_wait = "echo 0 > /proc/sys/net/ipv4/tcp_max_tw_buckets";
            Setting { before: vec![("client", no_time_wait.into())], ..setting }
        },
        |rig| {
            for round in 1..=3 {
                let mut client = from_port(&rig, 7000);
                rig.wait_spliced(1);
                client.stream.shutdown(Shutdown::Write).unwrap();
                assert_eq!(client.end().unwrap(), 0);
                drop(client);
                let mut client = from_port(&rig, 7000);
                rig.wait_spliced(1);
                client.ask(b'f', 0).unwrap();
                assert_eq!(client.end().unwrap(), 0);
                drop(client);
                let client = from_port(&rig, 7000);
                rig.wait_spliced(1);
                client.reset().unwrap();
                rig.wait_ended("client-reset", round);
                let mut client = from_port(&rig, 7000);
                rig.wait_spliced(1);
                rig.proxy().command(&["kill", "--all"]).unwrap();
                assert_eq!(client.end().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
                rig.wait_ended("killed", round);
            }
            let mut client = from_port(&rig, 7000);
            rig.wait_spliced(1);
            client.echo(1000).unwrap();
            // Past the linger of all that were closed here before.
            std::thread::sleep(Duration::from_secs(18));
            client.echo(1000).unwrap();
            client.get(MB).unwrap();
            assert_eq!(rig.on_road(rig.road.name()), 1);
            // Not by a close: without TIME_WAIT nobody would be there for a FIN that comes after the ACK of this one.
            client.stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(client.end().unwrap(), 0);
            drop(client);
            rig.wait_ended("client-closed", 4);
            assert_eq!(rig.ended("backend-closed"), 3);
            rig.wait_over();
        },
    );
}

/// Has the kernel forget a connection as a crash of its host would.
fn forget(client: Client) {
    let on: libc::c_int = 1;
    let (fd, option) = (client.stream.as_raw_fd(), libc::TCP_REPAIR);
    // SAFETY: the value lives through the call and the length is its own.
    let done = unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, option, (&raw const on).cast(), 4) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_client_that_forgot_its_session_gets_a_new_one_from_the_same_port() {
    on_both_at_once(
        |setting| setting,
        |rig| {
            let mut other = rig.spliced();
            let client = from_port(&rig, 7000);
            rig.wait_spliced(2);
            forget(client);
            // The backend's TCP answers the SYN, the client's that answer with RST, and the SYN is sent again.
            let mut client = from_port(&rig, 7000);
            rig.wait_ended("client-reset", 1);
            rig.wait_spliced(2);
            client.echo(1000).unwrap();
            other.echo(1000).unwrap();
            drop((client, other));
            rig.wait_over();
        },
    );
}

#[test]
fn what_does_not_fit_the_window_ends_no_session() {
    on_both_with(
        |setting| Setting { wire: true, ..setting },
        |rig| {
            let taps =
                [("client", "front"), ("backend", "back")].map(|(host, segment)| Tap::of(&rig.net, host, segment));
            let mut client = rig.spliced();
            for tap in &taps {
                client.echo(100).unwrap();
                // Acknowledgements that are delayed.
                std::thread::sleep(Duration::from_millis(100));
                for distance in [1_u32, 1000, 1 << 24, 1 << 31, 0u32.wrapping_sub(1), 0u32.wrapping_sub(1 << 24)] {
                    for flags in [RST, RST | ACK, SYN, SYN | ACK] {
                        tap.forge(|tcp| Tcp { seq: tcp.seq.wrapping_add(distance), flags, ..tcp });
                    }
                    if distance > 1000 {
                        for flags in [FIN | ACK, FIN | PSH | ACK, FIN] {
                            tap.forge(|tcp| Tcp { seq: tcp.seq.wrapping_add(distance), flags, ..tcp });
                        }
                    }
                    client.echo(100).unwrap();
                    std::thread::sleep(Duration::from_millis(50));
                }
                // Exactly in place, and acknowledges what was never sent.
                tap.forge(|tcp| Tcp { ack: tcp.ack.wrapping_add(1 << 24), flags: FIN | ACK, ..tcp });
                tap.forge(|tcp| Tcp { flags: SYN, ..tcp });
                client.echo(100).unwrap();
            }
            client.get(MB).unwrap();
            client.put(MB).unwrap();
            assert_eq!(rig.on_road(rig.road.name()), 1, "{:?} {:?}", rig.sessions(), rig.proxy().access_lines());
            // And one that does fit is believed.
            std::thread::sleep(Duration::from_millis(100));
            taps[0].forge(|tcp| Tcp { flags: RST, ..tcp });
            rig.wait_ended("client-reset", 1);
            until("the backend to have heard", SOON, || rig.at_backend() == 0).unwrap();
        },
    );
}

#[test]
fn a_reset_in_the_middle_of_what_is_under_way_ends_no_session() {
    on_both_with(
        |setting| Setting { wire: true, ..setting },
        |rig| {
            let wire = Wire::of(&rig.net, "client", "front").unwrap();
            let backend = Tap::of(&rig.net, "backend", "back");
            let mut client = rig.spliced();
            wire.judge(|toward, frame| match frame::read(frame) {
                Some(tcp) if toward == Toward::Segment && tcp.payload == 0 => Fate::Late(Duration::from_millis(300)),
                _ => Fate::Pass,
            });
            client.echo(3000).unwrap();
            // The client has it all and its acknowledgement is on its way: neither has this number.
            backend.forge(|tcp| Tcp { seq: tcp.seq.wrapping_sub(500), flags: RST, ..tcp });
            std::thread::sleep(Duration::from_millis(400));
            client.echo(100).unwrap();
            client.get(MB / 8).unwrap();
            assert_eq!(rig.on_road(rig.road.name()), 1, "{:?} {:?}", rig.sessions(), rig.proxy().access_lines());
        },
    );
}

#[test]
fn what_was_seen_of_another_connection_from_the_same_port_is_not_taken_for_this_ones() {
    on_both_at_once(
        |setting| Setting { listener: "splice_after = \"auto\"", ..setting },
        |rig| {
            rig.be_brief();
            let own = rig.address();
            let key = splice::key(SocketAddr::new(rig.host("client").v4().into(), 7000), own);
            let ifindex = rig.host("proxy").read("/sys/class/net/eth0/ifindex").unwrap().trim().parse().unwrap();
            // TSvals of this one are older by half of what there is, and would never count.
            let mut client = from_port(&rig, 7000);
            let tsval = client_clock(&client).wrapping_add(1 << 30);
            let flags = WATCH_TIMESTAMPS | WATCH_TC | WATCH_XDP;
            drop(client);
            rig.watches().insert(key, Watch { ifindex, tsval, vlan: 0, flags }, 0).unwrap();
            client = from_port(&rig, 7000);
            rig.wait_spliced(1);
            client.echo(100).unwrap();
            client.echo(5000).unwrap();
        },
    );
}

/// TSvals that it sends now.
fn client_clock(client: &Client) -> u32 {
    let (mut clock, mut length) = (0_u32, 4);
    // SAFETY: the option fills four bytes, which live through the call.
    let done = unsafe {
        let fd = client.stream.as_raw_fd();
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_TIMESTAMP, (&raw mut clock).cast(), &raw mut length)
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    clock
}

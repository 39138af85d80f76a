//! The hand-off's rules one by one: what comes at the worst moment of it is neither lost nor doubled, and no end is missed.

use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use pgsplice::splice::brief::{BRIEF, Brief};
use socket2::SockRef;
use xtask::lab::until;

use crate::frame;
use crate::peer::{Client, Leave, Plan};
use crate::rig::{Rig, SOON, Setting, on_both_at_once};
use crate::slow::Slow;
use crate::wire::{Backlog, Fate, Toward, Wire};

/// Every step of a hand-off.
const STEPS: &str = "getsockopt,setsockopt,bpf";

const MS: Duration = Duration::from_millis(1);

fn slow(rig: &Rig, calls: &str, by: Duration) -> Slow {
    Slow::down(rig.proxy().service().pid(), calls, by).unwrap()
}

/// How long a log-in takes.
fn log_in(rig: &Rig, plan: Plan) -> Duration {
    let begun = Instant::now();
    Client::begin(rig.host("client"), None, rig.address(), plan).unwrap().until_ready().unwrap();
    begun.elapsed()
}

/// One that has asked for an echo of which the first packet waits in the backlog.
fn with_late_bytes(rig: &Rig, backlog: &mut Backlog, plan: Plan) -> (Client, Vec<u8>, Vec<u8>) {
    let mut client = Client::begin(rig.host("client"), None, rig.address(), plan).unwrap();
    SockRef::from(&client.stream).set_tos_v4(Backlog::TOS).unwrap();
    let asked = client.ask_echo(100).unwrap();
    let late = backlog.take(client.stream.local_addr().unwrap().port()).unwrap();
    // Repeated it goes the usual way.
    SockRef::from(&client.stream).set_tos_v4(0).unwrap();
    (client, asked, late)
}

#[test]
fn bytes_that_come_late_at_any_step_of_the_hand_off_arrive_once() {
    let test = |rig: Rig| {
        let mut backlog = Backlog::of(rig.host("proxy"), "eth0").unwrap();
        let _slow = slow(&rig, STEPS, 3 * MS);
        let plan = Plan { wait: 10 * MS, ..Plan::default() };
        let took = log_in(&rig, plan).max(log_in(&rig, plan));
        for step in 0..16 {
            let begun = Instant::now();
            let (mut client, asked, late) = with_late_bytes(&rig, &mut backlog, plan);
            std::thread::sleep((took * step / 13).saturating_sub(begun.elapsed()));
            backlog.deliver(&late).unwrap();
            let what = format!("{} at step {step}", client.stream.local_addr().unwrap());
            rig.must(&what, client.until_ready());
            rig.must(&what, client.until_echo(100, &asked));
            rig.must(&what, client.echo(2000));
        }
        assert_eq!(rig.ended("handoff-failed"), 0);
    };
    on_both_at_once(|setting| setting, test);
}

#[test]
fn bytes_that_come_late_to_a_session_in_the_kernel_are_not_acknowledged_for_it() {
    let test = |rig: Rig| {
        let wire = Wire::of(&rig.net, "client", "front").unwrap();
        let mut backlog = Backlog::of(rig.host("proxy"), "eth0").unwrap();
        let plan = Plan { wait: 50 * MS, ..Plan::default() };
        let (mut client, asked, late) = with_late_bytes(&rig, &mut backlog, plan);
        // The client does not see the reply, so both sockets stay; nor do its repetitions come through.
        wire.judge(|_, frame| match frame::read(frame).is_some_and(|tcp| tcp.payload > 0) {
            true => Fate::Drop,
            false => Fate::Pass,
        });
        rig.wait_spliced(1);
        assert!(rig.sockets() >= 1, "the sockets are gone before the client has its reply");
        backlog.deliver(&late).unwrap();
        std::thread::sleep(100 * MS);
        wire.judge(|_, _| Fate::Pass);
        client.until_ready().unwrap();
        client.until_echo(100, &asked).unwrap();
        until("both sockets to be gone", SOON, || rig.sockets() == 0).unwrap();
        // Once more, when this kernel knows nothing of the session: its RST stays here.
        let own = rig.other_packets("own");
        backlog.deliver(&late).unwrap();
        until("the RST to be kept back", SOON, || rig.other_packets("own") > own).unwrap();
        client.echo(2000).unwrap();
        assert_eq!(rig.on_road(rig.road.name()), 1);
        assert_eq!(rig.ended("handoff-failed"), 0);
    };
    on_both_at_once(|setting| Setting { wire: true, ..setting }, test);
}

#[test]
fn ends_at_any_step_of_the_hand_off_are_carried_over() {
    let test = |rig: Rig| {
        let slowed = slow(&rig, STEPS, 3 * MS);
        let took = log_in(&rig, Plan::default());
        let steps = 16;
        let connect = |plan| {
            let client = Client::begin(rig.host("client"), None, rig.address(), plan).unwrap();
            client.stream.set_read_timeout(Some(SOON)).unwrap();
            client
        };
        // Reads to the end, however it comes.
        let to_the_end = |what: &str, mut client: Client| {
            let error = loop {
                match client.end() {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            assert_eq!(
                error.kind(),
                std::io::ErrorKind::ConnectionReset,
                "{what}, {:?} {:?}\n{}",
                client.stream,
                rig.sessions(),
                rig.proxy().log().unwrap()
            );
        };
        std::thread::scope(|scope| {
            for leave in [Leave::Fin, Leave::Rst] {
                scope.spawn(move || {
                    for step in 0..steps {
                        let begun = Instant::now();
                        let client = connect(Plan::default());
                        std::thread::sleep((took * step / 12).saturating_sub(begun.elapsed()));
                        match leave {
                            Leave::Fin => client.stream.shutdown(Shutdown::Write).unwrap(),
                            Leave::Rst => {
                                client.reset().unwrap();
                                continue;
                            }
                        }
                        to_the_end(&format!("client {leave:?} at {step}"), client);
                    }
                });
                scope.spawn(move || {
                    for step in 0..steps {
                        to_the_end(
                            &format!("backend {leave:?} at {step}"),
                            connect(Plan { then: Some((took * step / 12, leave)), ..Plan::default() }),
                        );
                    }
                });
            }
        });
        drop(slowed);
        rig.wait_over();
        assert_eq!(rig.ended("handoff-failed"), 0);
    };
    on_both_at_once(|setting| setting, test);
}

#[test]
fn a_reset_that_overtakes_the_held_reply_ends_the_client() {
    let test = |rig: Rig| {
        let wire = Wire::of(&rig.net, "client", "front").unwrap();
        wire.judge(|toward, frame| match frame::read(frame) {
            Some(tcp) if toward == Toward::Host && tcp.payload > 0 => Fate::Drop,
            _ => Fate::Pass,
        });
        let plan = Plan { then: Some((200 * MS, Leave::Rst)), ..Plan::default() };
        let mut client = Client::begin(rig.host("client"), None, rig.address(), plan).unwrap();
        client.stream.set_read_timeout(Some(SOON)).unwrap();
        assert_eq!(client.end().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    };
    on_both_at_once(|setting| Setting { wire: true, ..setting }, test);
}

/// Has the kernel send a bare ACK, as leaving TCP_REPAIR does.
fn send_ack(client: &Client) {
    for mode in [1, 0] {
        let value: libc::c_int = mode;
        let (fd, option) = (client.stream.as_raw_fd(), libc::TCP_REPAIR);
        // SAFETY: the value lives through the call and the length is its own.
        let done = unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, option, (&raw const value).cast(), 4) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}

/// Segments that a host repeated and the other end did not have yet: what a busy machine holds up is repeated as well.
fn lost(rig: &Rig, host: &str) -> u64 {
    let of = |name| rig.tcp_counter(host, name);
    of("RetransSegs").saturating_sub(of("TCPDSACKRecv"))
}

#[test]
fn no_pause_between_the_readings_makes_a_timestamp_old() {
    let test = |rig: Rig| {
        let _slow = slow(&rig, "getsockopt", 30 * MS);
        let before = ["client", "backend"].map(|host| lost(&rig, host));
        for _ in 0..4 {
            let mut client = Client::begin(rig.host("client"), None, rig.address(), Plan::default()).unwrap();
            let done = AtomicBool::new(false);
            let stream = client.stream.try_clone().unwrap();
            let other = Client::of(stream);
            std::thread::scope(|scope| {
                // The last TSval seen is a new one all the while.
                scope.spawn(|| {
                    while !done.load(SeqCst) {
                        send_ack(&other);
                        std::thread::sleep(5 * MS);
                    }
                });
                client.until_ready().unwrap();
                done.store(true, SeqCst);
            });
            for length in [100, 100, 5000] {
                client.echo(length).unwrap();
            }
        }
        for (host, before) in ["client", "backend"].into_iter().zip(before) {
            assert_eq!(rig.tcp_counter(host, "PAWSEstab"), 0, "{host} took a packet for an old one");
            assert!(lost(&rig, host) <= before, "{host} had to repeat something");
        }
        assert_eq!(rig.on_road("relay"), 0, "{:?}", rig.sessions());
    };
    on_both_at_once(|setting| setting, test);
}

#[test]
fn where_most_sessions_are_brief_each_is_given_a_moment_first() {
    /// Sessions that are to be over before their moment is, and those among which they must be found.
    const RELAYED: usize = 12;
    const MOST: u64 = 200;
    on_both_at_once(
        |setting| Setting { listener: "splice_after = \"auto\"", ..setting },
        |rig| {
            let handed_off = || rig.metric("pgsplice_handoffs_total");
            // A busy machine makes some of them longer than they are: what comes of each follows from those before it.
            let (brief, mut relayed, mut number) = (Brief::default(), 0, 0);
            while relayed < RELAYED {
                number += 1;
                assert!(number <= MOST, "{relayed} of {MOST} sessions were over within their moment");
                drop(rig.client());
                rig.wait_ended("client-closed", number);
                let line = rig.proxy().wait_access_lines(number as usize).unwrap().pop().unwrap();
                let field = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)).unwrap();
                let (waits, age) =
                    (brief.logged_in(), Duration::from_secs_f64(field("total_ms=").parse::<f64>().unwrap() / 1e3));
                brief.ended(age);
                let road = field("road=").trim_matches('"');
                match waits {
                    false => assert_eq!(road, rig.road.name(), "session {number}: {line}"),
                    true if age < BRIEF => {
                        assert_eq!(road, "relay", "session {number}: {line}");
                        relayed += 1;
                    }
                    true => {}
                }
            }
            let (early, begun) = (handed_off(), Instant::now());
            let [mut stands, mut asks] = [(); 2].map(|()| rig.client());
            assert!(handed_off() == early || begun.elapsed() >= BRIEF, "they were not given their moment");
            std::thread::sleep(2 * BRIEF);
            // Nobody has looked at its packets before the first of these.
            asks.echo(100).unwrap();
            asks.echo(100).unwrap();
            rig.wait_spliced(2);
            stands.echo(100).unwrap();
            asks.echo(100).unwrap();
        },
    );
}

#[test]
fn a_session_whose_watch_was_pushed_out_by_newer_ones_is_watched_again() {
    on_both_at_once(
        |setting| Setting { listener: "splice_after = 3", ..setting },
        |rig| {
            let [mut asks, mut stands] = [(); 2].map(|()| rig.client());
            for _ in 0..2 {
                asks.echo(100).unwrap();
                stands.echo(100).unwrap();
            }
            let mut watches = rig.watches();
            let keys: Vec<_> = watches.keys().map(Result::unwrap).collect();
            assert_eq!(keys.len(), 4);
            keys.iter().for_each(|key| watches.remove(key).unwrap());
            // Which says nothing by itself any more.
            stands.echo(100).unwrap();
            for _ in 0..3 {
                asks.echo(100).unwrap();
            }
            rig.wait_spliced(2);
            asks.echo(2000).unwrap();
            stands.echo(2000).unwrap();
        },
    );
}

/// A clock of 50 ms a tick, from the first of its numbers on.
fn slowed(base: u32) -> (impl Fn(u32) -> u32, impl Fn(u32) -> u32) {
    const TICK: u32 = 50;
    let slow = move |tsval: u32| base.wrapping_add(tsval.wrapping_sub(base) / TICK);
    let fast = move |tsval: u32| base.wrapping_add(tsval.wrapping_sub(base).wrapping_mul(TICK));
    (slow, fast)
}

#[test]
fn a_held_reply_that_is_repeated_does_not_run_ahead_of_a_backend_with_a_slow_clock() {
    let test = |rig: Rig| {
        let wires = [("client", "front"), ("backend", "back")].map(|(host, to)| Wire::of(&rig.net, host, to).unwrap());
        let mut base = None;
        wires[1].judge(move |toward, frame| {
            if frame::read(frame).is_none() {
                return Fate::Pass;
            }
            Fate::As(frame::retimed(frame, |tsval, tsecr| match toward {
                Toward::Segment => (slowed(*base.get_or_insert(tsval)).0(tsval), tsecr),
                Toward::Host => (tsval, base.map_or(tsecr, |base| slowed(base).1(tsecr))),
            }))
        });
        wires[0].judge(|toward, frame| match frame::read(frame) {
            Some(tcp) if toward == Toward::Host && tcp.payload > 0 => Fate::Drop,
            _ => Fate::Pass,
        });
        let mut client = Client::begin(rig.host("client"), None, rig.address(), Plan::default()).unwrap();
        rig.wait_spliced(1);
        // Until it is sent once more, a second and a half have passed.
        std::thread::sleep(800 * MS);
        wires[0].judge(|_, _| Fate::Pass);
        client.until_ready().unwrap();
        client.stream.set_read_timeout(Some(10_000 * MS)).unwrap();
        client.echo(100).unwrap();
        client.echo(5000).unwrap();
    };
    on_both_at_once(|setting| Setting { wire: true, ..setting }, test);
}

#[test]
fn an_acknowledgement_of_the_backend_that_comes_late_makes_no_held_reply_old() {
    let test = |rig: Rig| {
        let wires = [("client", "front"), ("backend", "back")].map(|(host, to)| Wire::of(&rig.net, host, to).unwrap());
        // That of the startup packet.
        let (keep, kept) = std::sync::mpsc::channel();
        wires[1].judge(move |toward, frame| match frame::read(frame) {
            Some(tcp) if toward == Toward::Segment && tcp.flags == frame::ACK && tcp.payload == 0 => {
                let _ = keep.send(frame.to_vec());
                Fate::Drop
            }
            _ => Fate::Pass,
        });
        wires[0].judge(|toward, frame| match frame::read(frame) {
            Some(tcp) if toward == Toward::Host && tcp.payload > 0 => Fate::Drop,
            _ => Fate::Pass,
        });
        let plan = Plan { wait: 10 * MS, then: None };
        let mut client = Client::begin(rig.host("client"), None, rig.address(), plan).unwrap();
        rig.wait_spliced(1);
        wires[1].judge(|_, _| Fate::Pass);
        wires[1].inject(Toward::Segment, kept.recv_timeout(SOON).unwrap());
        let forwarded = format!("pgsplice_splice_forwarded_packets_total{{road=\"{}\"}}", rig.road.name());
        until("it to be passed on", SOON, || rig.metric(&forwarded) > 0.0).unwrap();
        std::thread::sleep(20 * MS);
        wires[0].judge(|_, _| Fate::Pass);
        client.stream.set_read_timeout(Some(10_000 * MS)).unwrap();
        rig.must("the reply", client.until_ready());
        rig.must("an echo", client.echo(5000));
    };
    on_both_at_once(|setting| Setting { wire: true, ..setting }, test);
}

//! What ends a session in the kernel that nobody ends: time limits, and ends that are not there any more.

use std::time::Duration;

use xtask::lab::until;

use crate::rig::{SOON, Setting, on_both_at_once};
use crate::wire::{Fate, Toward, Wire};

#[test]
fn a_vanished_end_is_noticed_and_the_other_told() {
    const TCP: &str = "[listener.l.tcp]\nkeepalive_idle = \"1s\"\nkeepalive_interval = \"1s\"\nkeepalive_count = 2\n\
                       [pool.p.tcp]\nkeepalive_idle = \"1s\"\nkeepalive_interval = \"1s\"\nkeepalive_count = 2\n";
    on_both_at_once(
        |setting| Setting { more: TCP, ..setting },
        |rig| {
            let mut idle = rig.spliced();
            // One that only stands is asked and answers.
            std::thread::sleep(Duration::from_secs(5));
            idle.echo(100).unwrap();
            rig.net.cut("client").unwrap();
            rig.wait_ended("client-reset", 1);
            until("the backend to hear of it", SOON, || {
                rig.server.connections.load(std::sync::atomic::Ordering::SeqCst) == 0
            })
            .unwrap();
        },
    );
}

#[test]
fn a_session_that_stands_still_is_cut_at_its_limit_though_its_ends_answer_keepalives() {
    const LIMITS: &str = "[listener.l.tcp]\nkeepalive_idle = \"2s\"\n[pool.p.tcp]\nkeepalive_idle = \"2s\"\n\
                          [pool.p.timeouts]\nidle = \"6s\"\nhalf_closed = \"4s\"\n";
    on_both_at_once(
        |setting| Setting { more: LIMITS, ..setting },
        |rig| {
            let mut still = rig.spliced();
            let mut half_closed = rig.client();
            let mut busy = rig.client();
            rig.wait_spliced(3);
            half_closed.ask(b'f', 0).unwrap();
            assert_eq!(half_closed.end().unwrap(), 0);
            let half_closed_ended = || {
                busy.echo(100).unwrap();
                rig.ended("half-closed-timeout") == 1
            };
            until("the half-closed one to be cut", SOON, half_closed_ended).unwrap();
            assert_eq!(still.end().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
            rig.wait_ended("idle-timeout", 1);
            busy.echo(100).unwrap();
            assert_eq!(rig.on_road(rig.road.name()), 1);
        },
    );
}

#[test]
fn a_side_that_was_silent_for_long_is_given_its_time_to_answer() {
    const TCP: &str = "[listener.l.tcp]\nkeepalive_idle = 0\nuser_timeout = \"3s\"\n\
                       [pool.p.tcp]\nkeepalive_idle = 0\nuser_timeout = \"3s\"\n";
    on_both_at_once(
        |setting| Setting { wire: true, more: TCP, ..setting },
        |rig| {
            let wire = Wire::of(&rig.net, "backend", "back").unwrap();
            let mut client = rig.spliced();
            std::thread::sleep(Duration::from_secs(4));
            // Whatever the backend says takes longer than it is from one look to the next.
            wire.judge(|toward, _| match toward {
                Toward::Segment => Fate::Late(Duration::from_millis(1500)),
                Toward::Host => Fate::Pass,
            });
            rig.must("an echo", client.echo(100));
            // And one that does not answer at all is given up.
            wire.judge(|toward, _| if toward == Toward::Segment { Fate::Drop } else { Fate::Pass });
            client.ask_echo(100).unwrap();
            rig.wait_ended("backend-reset", 1);
        },
    );
}

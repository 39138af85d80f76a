//! The ring buffer to user space, full: what is not told in it is found all the same, a little later.

use std::io::ErrorKind;

use xtask::lab::until;

use crate::rig::{SOON, Setting, on_both_at_once};
use crate::wire::Tap;

#[test]
fn ends_that_no_event_tells_of_are_found_counted_and_written_down() {
    on_both_at_once(
        |setting| Setting { wire: true, ..setting },
        |rig| {
            let tap = Tap::of(&rig.net, "client", "front");
            let [mut stays, mut closes, mut resets, mut is_reset] = [(); 4].map(|()| rig.client());
            rig.wait_spliced(4);
            for client in [&mut closes, &mut resets, &mut is_reset, &mut stays] {
                client.echo(1000).unwrap();
            }
            // Nobody reads.
            rig.proxy().service().kill(libc::SIGSTOP).unwrap();
            until("the ring to be full", SOON, || {
                tap.complain(20);
                rig.events_lost() > 0
            })
            .unwrap();
            let lost = rig.events_lost();
            drop(closes);
            resets.reset().unwrap();
            is_reset.ask(b'r', 0).unwrap();
            assert_eq!(is_reset.end().unwrap_err().kind(), ErrorKind::ConnectionReset);
            until("the backend to have heard", SOON, || rig.at_backend() == 1).unwrap();
            stays.echo(3000).unwrap();
            assert!(rig.events_lost() >= lost + 3, "{} of the ends were told", lost + 3 - rig.events_lost());
            rig.proxy().service().kill(libc::SIGCONT).unwrap();

            for reason in ["client-closed", "client-reset", "backend-reset"] {
                rig.wait_ended(reason, 1);
            }
            let lines = rig.proxy().wait_access_lines(3).unwrap();
            let line = |reason: &str| lines.iter().find(|line| line.contains(reason)).unwrap();
            // The log-in, an echo, and the good-bye of the one that says it.
            let up = crate::peer::startup().len() + 5 + 1000;
            assert!(line("client-closed").contains(&format!("bytes_in={up} ")), "{lines:?}");
            assert!(line("client-reset").contains(&format!("bytes_in={up} ")), "{lines:?}");
            assert!(line("backend-reset").contains(&format!("bytes_in={} ", up + 5 + 9)), "{lines:?}");
            assert_eq!(rig.sessions().len(), 1);
            stays.echo(3000).unwrap();
            drop(stays);
            rig.wait_ended("client-closed", 2);
            rig.wait_over();
        },
    );
}

//! Bytes in, verdict and counters out, by BPF_PROG_TEST_RUN: no interface takes part.

use std::net::IpAddr;

use aya::programs::{TestRun, TestRunOptions};
use pgsplice::bpf::{Maps, Object, Pins, Xdp, listener_key};
use pgsplice::config::IpNet;
use pgsplice_ebpf::guard::{DENY_BY_COMMAND, DenyEntry, GuardCounters};

use crate::host::on_a_host;
use crate::wire::{self, Packet};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const ID: u32 = 7;

struct Bench {
    object: Object,
    maps: Maps,
    _pins: Pins,
}

/// A program with one listener, 10.0.0.1:5432 and [2001:db8::1]:5432, and a deny list.
fn with_program(deny: &'static [&'static str], test: impl FnOnce(&mut Bench) + Send + 'static) {
    on_a_host(move |host| {
        let pins = Pins::open(&host.pins()).unwrap();
        let (object, mut maps) = Object::load(&pins, 16).unwrap();
        for addr in ["10.0.0.1:5432", "[2001:db8::1]:5432"] {
            maps.set_listener(listener_key(addr.parse().unwrap()), ID).unwrap();
        }
        for net in deny {
            maps.set_deny(net.parse().unwrap(), DenyEntry { by: DENY_BY_COMMAND, ..DenyEntry::default() }).unwrap();
        }
        test(&mut Bench { object, maps, _pins: pins });
    });
}

impl Bench {
    fn run(&mut self, frame: &[u8]) -> u32 {
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
        self.object.xdp(Xdp::Guard).unwrap().test_run(options).unwrap().return_value
    }

    fn counters(&self) -> GuardCounters {
        self.maps.counters(ID).unwrap()
    }

    fn dropped(&self, net: &str) -> u64 {
        let net: IpNet = net.parse().unwrap();
        self.maps.deny_list().unwrap().into_iter().find(|(n, _)| *n == net).unwrap().1.dropped
    }

    /// Runs the frame and tells whether it was counted for the listener.
    fn counts(&mut self, frame: &[u8]) -> bool {
        let before = self.counters().packets;
        assert_eq!(self.run(frame), XDP_PASS);
        self.counters().packets == before + 1
    }
}

#[test]
fn a_packet_to_the_listener_is_counted_and_passes() {
    with_program(&[], |bench| {
        let syn = Packet::v4("192.0.2.7", "10.0.0.1:5432").syn();
        let data = Packet::v4("192.0.2.7", "10.0.0.1:5432").ack().payload(100);
        assert_eq!(bench.run(&syn.bytes()), XDP_PASS);
        assert_eq!(bench.run(&data.bytes()), XDP_PASS);
        let bytes = (syn.bytes().len() + data.bytes().len()) as u64;
        assert_eq!(bench.counters(), GuardCounters { packets: 2, bytes, syns: 1, denied: 0 });
    });
}

#[test]
fn what_is_not_for_a_listener_is_not_counted() {
    with_program(&[], |bench| {
        assert!(!bench.counts(&Packet::v4("192.0.2.7", "10.0.0.1:22").syn().bytes()));
        assert!(!bench.counts(&Packet::v4("192.0.2.7", "10.0.0.2:5432").syn().bytes()));
        assert!(!bench.counts(&Packet::v4("192.0.2.7", "10.0.0.1:5432").protocol(17).bytes()));
        assert!(!bench.counts(&Packet::v6("2001:db8::7", "[2001:db8::2]:5432").syn().bytes()));
        assert!(!bench.counts(&Packet::v4("192.0.2.7", "10.0.0.1:5432").ethertype(0x0806).bytes()));
    });
}

#[test]
fn vlan_tags_options_and_extension_headers_are_seen_through() {
    with_program(&[], |bench| {
        assert!(bench.counts(&Packet::v4("192.0.2.7", "10.0.0.1:5432").syn().vlan().bytes()));
        assert!(bench.counts(&Packet::v6("2001:db8::7", "[2001:db8::1]:5432").syn().vlan().bytes()));
        for words in 1..=10 {
            assert!(bench.counts(&Packet::v4("192.0.2.7", "10.0.0.1:5432").syn().ip_options(words).bytes()));
        }
        for extensions in [&[(0, 0)][..], &[(60, 3)], &[(43, 1), (60, 0)], &[(0, 0), (51, 4)], &[(44, 0)]] {
            let packet = Packet::v6("2001:db8::7", "[2001:db8::1]:5432").syn().extensions(extensions);
            assert!(bench.counts(&packet.bytes()), "{extensions:?}");
        }
    });
}

#[test]
fn a_denied_source_is_dropped_on_the_listener_and_nowhere_else() {
    with_program(&["192.0.2.0/24", "2001:db8:bad::/48"], |bench| {
        assert_eq!(bench.run(&Packet::v4("192.0.2.7", "10.0.0.1:5432").syn().bytes()), XDP_DROP);
        assert_eq!(bench.run(&Packet::v4("192.0.3.7", "10.0.0.1:5432").syn().bytes()), XDP_PASS);
        assert_eq!(bench.run(&Packet::v4("192.0.2.7", "10.0.0.1:22").syn().bytes()), XDP_PASS);
        assert_eq!(bench.run(&Packet::v6("2001:db8:bad::1", "[2001:db8::1]:5432").ack().bytes()), XDP_DROP);
        assert_eq!(bench.run(&Packet::v6("2001:db8:900d::1", "[2001:db8::1]:5432").ack().bytes()), XDP_PASS);
        let counters = bench.counters();
        assert_eq!((counters.packets, counters.syns, counters.denied), (4, 2, 2));
        assert_eq!((bench.dropped("192.0.2.0/24"), bench.dropped("2001:db8:bad::/48")), (1, 1));
    });
}

#[test]
fn everybody_denied_still_leaves_ssh() {
    with_program(&["0.0.0.0/0", "::/0"], |bench| {
        assert_eq!(bench.run(&Packet::v4("192.0.2.7", "10.0.0.1:5432").syn().bytes()), XDP_DROP);
        assert_eq!(bench.run(&Packet::v4("192.0.2.7", "10.0.0.1:22").syn().bytes()), XDP_PASS);
        assert_eq!(bench.run(&Packet::v6("2001:db8::7", "[2001:db8::1]:22").syn().bytes()), XDP_PASS);
    });
}

#[test]
fn fragments_do_not_pass_a_denied_source_by() {
    with_program(&["192.0.2.0/24", "2001:db8:bad::/48"], |bench| {
        // The smallest first fragment there can be: eight bytes of TCP, no flags among them.
        let first = Packet::v4("192.0.2.7", "10.0.0.1:5432").syn().fragment(0, true).tcp_bytes(8);
        assert_eq!(bench.run(&first.bytes()), XDP_DROP);
        assert_eq!(bench.counters().syns, 0);
        let first = Packet::v6("2001:db8:bad::1", "[2001:db8::1]:5432").syn().extensions(&[(44, 0)]).tcp_bytes(8);
        assert_eq!(bench.run(&first.bytes()), XDP_DROP);
        // Without its first fragment the rest never becomes a packet.
        assert_eq!(bench.run(&Packet::v4("192.0.2.7", "10.0.0.1:5432").fragment(1, false).bytes()), XDP_PASS);
    });
}

#[test]
fn a_denied_source_cannot_hide_behind_extension_headers() {
    with_program(&["2001:db8:bad::/48"], |bench| {
        let deep = [(60, 0); 12];
        let bad = Packet::v6("2001:db8:bad::1", "[2001:db8::1]:5432").syn().extensions(&deep);
        let good = Packet::v6("2001:db8:900d::1", "[2001:db8::1]:5432").syn().extensions(&deep);
        assert_eq!(bench.run(&bad.bytes()), XDP_DROP);
        assert_eq!(bench.run(&good.bytes()), XDP_PASS);
    });
}

#[test]
fn a_wildcard_listener_takes_what_ends_here_and_not_what_passes_through() {
    with_program(&["0.0.0.0/0"], |bench| {
        bench.maps.set_listener(listener_key("0.0.0.0:6000".parse().unwrap()), ID).unwrap();
        // The host routes for others: the test run enters by lo, so lo must forward.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let local = Packet::v4("10.200.0.2", "10.200.0.1:6000").syn().bytes();
        let through = Packet::v4("10.200.0.1", "10.200.0.99:6000").syn().bytes();
        assert_eq!(bench.run(&local), XDP_DROP);
        assert_eq!(bench.run(&through), XDP_PASS);
        assert_eq!(bench.run(&Packet::v6("2001:db8::7", "[2001:db8::9]:6000").syn().bytes()), XDP_PASS);
    });
}

#[test]
fn cut_off_and_garbled_frames_pass() {
    with_program(&["0.0.0.0/0", "::/0"], |bench| {
        for frame in [
            Packet::v4("192.0.2.7", "10.0.0.1:5432").syn().vlan().ip_options(3).bytes(),
            Packet::v6("2001:db8::7", "[2001:db8::1]:5432").syn().extensions(&[(0, 0), (60, 1), (44, 0)]).bytes(),
        ] {
            let ports = frame.len() - 12;
            for len in 14..frame.len() {
                let expected = if len >= ports { XDP_DROP } else { XDP_PASS };
                assert_eq!(bench.run(&frame[..len]), expected, "{len} of {} bytes", frame.len());
            }
        }
        let mut seed = 1u64;
        for _ in 0..2000 {
            let frame: Vec<u8> = (0..14 + seed as usize % 100).map(|_| wire::random(&mut seed)).collect();
            assert_eq!(bench.run(&frame), XDP_PASS);
        }
    });
}

#[test]
fn the_longest_prefix_counts_the_drop() {
    with_program(&["192.0.0.0/16", "192.0.2.7/32"], |bench| {
        bench.run(&Packet::v4("192.0.2.7", "10.0.0.1:5432").syn().bytes());
        bench.run(&Packet::v4("192.0.2.8", "10.0.0.1:5432").syn().bytes());
        bench.run(&Packet::v4("192.0.2.9", "10.0.0.1:5432").syn().bytes());
        assert_eq!((bench.dropped("192.0.0.0/16"), bench.dropped("192.0.2.7/32")), (2, 1));
        let one = IpNet { addr: IpAddr::from([192, 0, 2, 7]), prefix: 32 };
        bench.maps.remove_deny(one).unwrap();
        bench.run(&Packet::v4("192.0.2.7", "10.0.0.1:5432").syn().bytes());
        assert_eq!(bench.dropped("192.0.0.0/16"), 3);
    });
}

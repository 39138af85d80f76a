//! What must come of packets that a person thought of. [`Scene`] sees to it that program and model agree.

use std::time::Duration;

use pgsplice::splice::model::{Program, Route, Verdict};
use pgsplice_ebpf::flow::{
    FlowKey, SIDE_FIN, SIDE_FIN_ACKED, SIDE_FIN_FIRST, SIDE_HELD, SIDE_RST, WATCH_MOVED, Watch, control, counter, event,
};

use crate::packet::{ACK, FIN, PSH, Packet, RST, SYN, add, fold, sack, timestamps};
use crate::rig::{run, set_forwarding};
use crate::scene::{ACK_DELTA, AT, BACKEND, CLIENT, SEQ_DELTA, SLOT, Scene, WINDOW, with_each_program, with_program};

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Are both checksums of this IPv4 packet right, counted from nothing?
fn is_sound(ip: &[u8]) -> bool {
    let header = usize::from(ip[0] & 15) * 4;
    let len = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let tcp = add(&ip[12..20]) + 6 + (len - header) as u64 + add(&ip[header..len]);
    fold(add(&ip[..header])) == 0xffff && fold(tcp) == 0xffff
}

fn is_sent(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Send(_))
}

#[test]
fn every_number_is_moved_to_the_other_leg() {
    with_each_program(|scene| {
        let mut packet = scene.packet(CLIENT, 0, 0, ACK | PSH);
        packet.options = [timestamps(100, 200), vec![1, 1], sack(&[(7, 9), (0xffff_fff0, 3)])].concat();
        packet.payload = b"odd".to_vec();
        packet.window = 100;
        let outcome = scene.send(&packet);
        assert_eq!(outcome.verdict, Verdict::Send(scene.rig.out0.index));
        let ip = &outcome.frame[14..];
        assert!(is_sound(ip));
        assert_eq!(ip[8], 64, "TTL");
        assert_eq!(ip[12..20], [192, 0, 2, 2, 13, 0, 0, 1]);
        assert_eq!(ip[20..24], [0x30, 0x39, 0x19, 0x20], "ports 12345 and 6432");
        assert_eq!(be32(ip, 24), AT[0] + SEQ_DELTA);
        assert_eq!(be32(ip, 28), AT[1]);
        assert_eq!(ip[34..36], [0, 200], "100 << 7 >> 6");
        assert_eq!((be32(ip, 44), be32(ip, 48)), (111, 222));
        let edges = [56, 60, 64, 68].map(|at| be32(ip, at));
        assert_eq!(edges, [7, 9, 0xffff_fff0, 3].map(|edge: u32| edge.wrapping_add(ACK_DELTA)));
        assert_eq!(&ip[72..75], b"odd");
        let [client, backend] = scene.state().side;
        assert_eq!((client.packets, client.bytes, client.tsval, client.seq_end), (1, 3, 100, AT[0] + 3));
        assert_eq!((backend.acked, backend.window), (AT[1], 100 << 7));
    });
}

#[test]
fn a_window_that_does_not_fit_is_as_large_as_can_be() {
    with_each_program(|scene| {
        scene.change_flow(CLIENT, |flow| (flow.in_wscale, flow.out_wscale) = (14, 0));
        let mut packet = scene.packet(CLIENT, 0, 0, ACK);
        packet.window = 5;
        let ip = scene.send(&packet).frame[14..].to_vec();
        assert_eq!(ip[34..36], [0xff, 0xff]);
        packet.window = 3;
        let ip = scene.send(&packet).frame[14..].to_vec();
        assert_eq!(ip[34..36], (3u16 << 14).to_be_bytes());
        assert_eq!(scene.state().side[BACKEND].window, 3 << 14);
    });
}

#[test]
fn ipv6_is_spliced_too() {
    with_each_program(|scene| {
        scene.open(true);
        let mut packet = scene.packet(BACKEND, 0, 0, ACK | PSH);
        packet.payload = vec![1; 7];
        let outcome = scene.send(&packet);
        let ip = &outcome.frame[14..];
        assert_eq!(ip[7], 64, "hop limit");
        assert_eq!(ip[8..24], scene.keys[CLIENT].dst);
        assert_eq!(ip[24..40], scene.keys[CLIENT].src);
        assert_eq!(fold(add(&ip[8..40]) + 6 + 27 + add(&ip[40..67])), 0xffff);
    });
}

/// FIN and its acknowledgement from each side, in this order; `true` is where the session is closed.
fn closes(scene: &mut Scene<'_>, steps: &[(usize, u32, u32, u8)]) {
    for (n, (side, by, acked, flags)) in steps.iter().enumerate() {
        let outcome = scene.send(&scene.packet(*side, *by, *acked, *flags));
        assert!(is_sent(outcome.verdict));
        let closed = n + 1 == steps.len();
        assert_eq!(
            outcome.told.map(|told| (told.kind, told.slot)),
            closed.then_some((event::CLOSED, SLOT)),
            "step {n}"
        );
    }
    assert!(scene.has_flows(), "user space removes them, after a while");
}

#[test]
fn a_session_closes_when_both_fins_are_acknowledged_whoever_is_first() {
    with_each_program(|scene| {
        // The client ends, as nearly always.
        closes(scene, &[(CLIENT, 0, 0, ACK | FIN), (BACKEND, 0, 1, ACK | FIN), (CLIENT, 1, 1, ACK)]);
        let both = SIDE_FIN | SIDE_FIN_ACKED;
        assert_eq!(scene.flags(), [both | SIDE_FIN_FIRST, both]);
        assert_eq!(scene.state().side.map(|side| side.fin_end), [AT[0] + 1, AT[1] + 1]);
        // The backend does.
        scene.open(false);
        closes(
            scene,
            &[(BACKEND, 0, 0, ACK | FIN), (CLIENT, 0, 1, ACK), (CLIENT, 0, 1, ACK | FIN), (BACKEND, 1, 1, ACK)],
        );
        assert_eq!(scene.flags(), [both, both | SIDE_FIN_FIRST]);
        // Both at once.
        scene.open(false);
        closes(
            scene,
            &[(BACKEND, 0, 0, ACK | FIN), (CLIENT, 0, 0, ACK | FIN), (CLIENT, 1, 1, ACK), (BACKEND, 1, 1, ACK)],
        );
        // A FIN is repeated, with data before it.
        scene.open(false);
        let mut last = scene.packet(BACKEND, 0, 0, ACK | FIN | PSH);
        last.payload = vec![0; 100];
        scene.send(&last);
        scene.send(&last);
        assert_eq!(scene.state().side[BACKEND].fin_end, AT[1] + 101);
        closes(scene, &[(CLIENT, 0, 100, ACK), (CLIENT, 0, 101, ACK | FIN), (BACKEND, 101, 1, ACK)]);
    });
}

#[test]
fn one_side_may_end_and_the_other_go_on() {
    with_each_program(|scene| {
        scene.send(&scene.packet(CLIENT, 0, 0, ACK | FIN));
        scene.send(&scene.packet(BACKEND, 0, 1, ACK));
        assert_eq!(scene.flags(), [SIDE_FIN | SIDE_FIN_ACKED | SIDE_FIN_FIRST, 0]);
        let mut more = scene.packet(BACKEND, 0, 1, ACK);
        more.payload = vec![0; 500];
        assert!(is_sent(scene.send(&more).verdict));
        assert!(is_sent(scene.send(&scene.packet(CLIENT, 1, 500, ACK)).verdict));
        assert_eq!(scene.state().side[BACKEND].acked, AT[1] + 500);
    });
}

#[test]
fn a_fin_out_of_the_window_changes_nothing() {
    with_each_program(|scene| {
        for by in [WINDOW + 65_535 + 1, 0u32.wrapping_sub(65_536), 1 << 31] {
            let before = scene.state().side.map(|side| (side.seq_end, side.flags, side.last_ns));
            let outcome = scene.send(&scene.packet(CLIENT, by, 0, ACK | FIN));
            assert!(is_sent(outcome.verdict), "the backend may judge it");
            assert_eq!(scene.state().side.map(|side| (side.seq_end, side.flags, side.last_ns)), before);
        }
        // Nor one that acknowledges what was never sent.
        scene.send(&scene.packet(CLIENT, 0, 65_536, ACK | FIN));
        assert_eq!(scene.flags(), [0, 0]);
        scene.send(&scene.packet(CLIENT, WINDOW, 0, ACK | FIN));
        assert_eq!(scene.flags(), [SIDE_FIN | SIDE_FIN_FIRST, 0]);
    });
}

#[test]
fn a_reset_that_fits_exactly_ends_the_session_and_no_other_does() {
    with_each_program(|scene| {
        let mut data = scene.packet(CLIENT, 0, 0, ACK);
        data.payload = vec![0; 50];
        scene.send(&data);
        for by in [0u32.wrapping_sub(1), 1, 20, 49, 51, 70_000] {
            let outcome = scene.send(&scene.packet(CLIENT, by, 0, RST));
            assert!(is_sent(outcome.verdict), "the backend may judge it");
            assert_eq!(outcome.told, None);
            assert!(scene.has_flows());
        }
        for by in [0, 50] {
            let outcome = scene.send(&scene.packet(CLIENT, by, 0, RST));
            assert!(is_sent(outcome.verdict));
            assert!(is_sound(&outcome.frame[14..]));
            assert_eq!(outcome.told.map(|told| (told.kind, told.slot)), Some((event::RESET, SLOT)));
            assert_eq!(scene.flags(), [SIDE_RST, 0]);
            assert!(!scene.has_flows());
            // What still comes is for this host's stack.
            assert_eq!(scene.send(&scene.packet(BACKEND, 0, 0, ACK)).verdict, Verdict::Pass);
            scene.open(false);
            scene.send(&data);
        }
    });
}

#[test]
fn a_reset_at_the_number_of_a_fin_ends_the_session() {
    with_each_program(|scene| {
        let mut last = scene.packet(CLIENT, 0, 0, ACK | FIN);
        last.payload = vec![0; 5];
        scene.send(&last);
        assert_eq!(scene.send(&scene.packet(CLIENT, 4, 0, RST)).told, None);
        assert!(scene.has_flows());
        let outcome = scene.send(&scene.packet(CLIENT, 5, 0, RST));
        assert!(is_sent(outcome.verdict));
        assert_eq!(outcome.told.map(|told| (told.kind, told.slot)), Some((event::RESET, SLOT)));
        assert!(!scene.has_flows());
    });
}

#[test]
fn a_syn_on_a_live_session_is_left_to_the_ends() {
    with_each_program(|scene| {
        let mut syn = scene.packet(CLIENT, 1 << 20, 0, SYN);
        syn.options = [vec![2, 4, 5, 0xb4, 4, 2], timestamps(9, 0)[2..].to_vec(), vec![1, 3, 3, 7]].concat();
        syn.window = 64_240;
        let before = scene.state().side.map(|side| (side.seq_end, side.acked, side.window, side.tsval));
        let outcome = scene.send(&syn);
        let ip = &outcome.frame[14..];
        assert!(is_sound(ip));
        assert_eq!(ip[34..36], 64_240u16.to_be_bytes(), "the window of a SYN is not scaled");
        assert_eq!(be32(ip, 28), syn.ack, "nor is there anything in ACK");
        assert_eq!((be32(ip, 48), be32(ip, 52)), (20, 0));
        assert_eq!(scene.state().side.map(|side| (side.seq_end, side.acked, side.window, side.tsval)), before);
    });
}

#[test]
fn a_syn_on_a_closed_session_opens_a_new_one_if_it_is_newer() {
    with_each_program(|scene| {
        let close = |scene: &mut Scene<'_>| {
            scene.open(false);
            let mut fin = scene.packet(CLIENT, 0, 0, ACK | FIN);
            fin.options = timestamps(500, 1);
            scene.send(&fin);
            scene.send(&scene.packet(BACKEND, 0, 1, ACK | FIN));
            scene.send(&scene.packet(CLIENT, 1, 1, ACK));
        };
        close(scene);
        // Older in both: the ends know what to say.
        let mut old = scene.packet(CLIENT, 0u32.wrapping_sub(70_000), 0, SYN);
        old.options = timestamps(400, 0);
        assert!(is_sent(scene.send(&old).verdict));
        assert!(scene.has_flows());
        // With ACK it is no beginning.
        assert!(is_sent(scene.send(&scene.packet(CLIENT, 70_000, 0, SYN | ACK)).verdict));
        for (by, tsval) in [(2, 400), (0u32.wrapping_sub(70_000), 501)] {
            close(scene);
            let mut new = scene.packet(CLIENT, by, 0, SYN);
            new.options = timestamps(tsval, 0);
            let outcome = scene.send(&new);
            assert_eq!(outcome.verdict, Verdict::Pass);
            assert_eq!(outcome.told.map(|told| (told.kind, told.slot)), Some((event::REUSED, SLOT)));
            assert!(!scene.has_flows());
            let watch = scene.rig.watches.get(&scene.keys[CLIENT], 0).unwrap();
            assert_eq!((watch.ifindex, watch.tsval), (scene.rig.in0.index, tsval));
        }
    });
}

#[test]
fn a_syn_is_the_end_of_what_was_seen_before_and_where_the_listener_wants_the_beginning() {
    with_each_program(|scene| {
        let key = FlowKey { src_port: 7000_u16.to_be_bytes(), ..scene.keys[CLIENT] };
        scene.model.listeners.insert((key.dst, key.dst_port));
        scene.rig.listen(key.dst, key.dst_port);
        let mut packet = Packet::new(key);
        for watched in [true, false] {
            scene.model.unwatched = !watched;
            scene.rig.watch_from_syn(watched);
            let old = Watch { ifindex: 99, tsval: 1 << 30, vlan: 3, flags: WATCH_MOVED };
            scene.rig.watches.insert(key, old, 0).unwrap();
            packet.options = timestamps(50, 0);
            packet.flags = SYN;
            assert_eq!(scene.send(&packet).verdict, Verdict::Pass);
            packet.flags = ACK;
            packet.options = timestamps(60, 1);
            scene.send(&packet);
            let seen = scene.rig.watches.get(&key, 0).ok();
            assert_eq!(seen.map(|watch| (watch.ifindex, watch.tsval)), watched.then_some((scene.rig.in0.index, 60)));
        }
        // From when user space wants it.
        scene.rig.watches.insert(key, Watch::default(), 0).unwrap();
        packet.options = timestamps(70, 1);
        scene.send(&packet);
        let seen = scene.rig.watches.get(&key, 0).unwrap();
        assert_eq!((seen.ifindex, seen.tsval, seen.flags & WATCH_MOVED), (scene.rig.in0.index, 70, 0));
    });
}

#[test]
fn in_hold_only_pure_acknowledgements_pass() {
    with_each_program(|scene| {
        scene.set_control(control::HOLD);
        let mut ack = scene.packet(CLIENT, 0, 0, ACK);
        ack.options = timestamps(77, 1);
        ack.window = 3;
        assert_eq!(scene.send(&ack).verdict, Verdict::Pass);
        assert_eq!((scene.state().side[CLIENT].tsval, scene.state().side[BACKEND].window), (77, 3 << 7));
        assert_eq!(scene.state().side[CLIENT].packets, 0, "it was not forwarded");
        assert_eq!(scene.flags(), [0, 0]);

        let mut data = scene.packet(CLIENT, 0, 0, ACK);
        data.payload = vec![1];
        for held in [data, scene.packet(CLIENT, 0, 0, ACK | FIN), scene.packet(CLIENT, 0, 0, SYN)] {
            let outcome = scene.send(&held);
            assert_eq!((outcome.verdict, outcome.counted), (Verdict::Drop, Some(counter::HELD)));
        }
        assert_eq!(scene.flags(), [SIDE_HELD, 0]);
        assert_eq!(scene.state().side[CLIENT].seq_end, AT[0], "the sender repeats it");
        scene.send(&scene.packet(BACKEND, 9, 0, RST));
        assert_eq!(scene.flags(), [SIDE_HELD, SIDE_HELD], "it does not fit");
        scene.send(&scene.packet(BACKEND, 0, 0, RST | ACK));
        assert_eq!(scene.flags(), [SIDE_HELD, SIDE_HELD | SIDE_RST]);
        assert!(scene.has_flows());
    });
}

#[test]
fn in_cut_everything_but_a_reset_and_a_new_connection_is_answered_with_one() {
    with_each_program(|scene| {
        scene.set_control(control::CUT);
        let mut data = scene.packet(CLIENT, 0, 0, ACK | PSH);
        data.options = timestamps(1, 2);
        data.payload = vec![7; 33];
        let outcome = scene.send(&data);
        assert_eq!((outcome.verdict, outcome.counted), (Verdict::Send(scene.rig.in0.index), Some(counter::CUT)));
        let sent = data.bytes();
        assert_eq!(outcome.frame[..12], [&sent[6..12], &sent[..6]].concat());
        assert_eq!(outcome.frame.len(), 54);
        let ip = &outcome.frame[14..];
        assert!(is_sound(ip));
        assert_eq!(ip[12..20], [192, 0, 2, 1, 11, 0, 0, 1]);
        assert_eq!(ip[20..24], [0x15, 0x38, 0x9c, 0x40]);
        assert_eq!((be32(ip, 24), be32(ip, 28)), (data.ack, 0));
        assert_eq!(ip[32..34], [0x50, RST]);

        let fin = scene.packet(BACKEND, 0, 0, FIN);
        let ip = scene.send(&fin).frame[14..].to_vec();
        assert!(is_sound(&ip));
        assert_eq!((be32(&ip, 24), be32(&ip, 28), ip[33]), (0, fin.seq + 1, RST | ACK));
        assert_eq!(scene.send(&scene.packet(CLIENT, 0, 0, RST | ACK)).verdict, Verdict::Drop);
        assert_eq!(scene.send(&scene.packet(CLIENT, 0, 0, SYN | RST)).verdict, Verdict::Drop);
        assert!(scene.has_flows());
        let outcome = scene.send(&scene.packet(CLIENT, 0, 0, SYN));
        assert_eq!((outcome.verdict, outcome.told.map(|told| told.kind)), (Verdict::Pass, Some(event::REUSED)));
        assert!(!scene.has_flows());
    });
}

#[test]
fn what_is_too_long_for_the_way_out_is_told_with_its_headers() {
    with_each_program(|scene| {
        let mut long = scene.packet(CLIENT, 0, 0, ACK);
        long.payload = vec![0; 1461];
        let outcome = scene.send(&long);
        assert_eq!((outcome.verdict, outcome.counted), (Verdict::Drop, Some(counter::FRAG_NEEDED)));
        let told = outcome.told.unwrap();
        assert_eq!((told.kind, told.slot, told.value), (event::FRAG_NEEDED, SLOT, 1500));
        assert_eq!(told.data, long.bytes()[14..14 + 96]);
        assert_eq!(scene.state().side[CLIENT].packets, 0);
        long.payload.pop();
        assert!(is_sent(scene.send(&long).verdict));
    });
}

/// An ICMP message of this type and code that quotes so much of a packet.
fn too_big(scene: &Scene<'_>, quoted: &Packet, kind: [u8; 2], len: usize) -> Vec<u8> {
    let v4 = scene.keys[CLIENT].is_v4();
    let mut frame = Packet::new(scene.keys[CLIENT]).bytes();
    if v4 {
        frame.truncate(34);
        frame[23] = 1;
        frame[20..22].copy_from_slice(&[0, 0]);
    } else {
        frame.truncate(54);
        frame[20] = 58;
    }
    frame.extend(kind);
    frame.extend([0, 0, 0, 0, 5, 0]);
    frame.extend(&quoted.bytes()[14..14 + len]);
    frame
}

#[test]
fn a_message_that_a_packet_was_too_big_is_user_spaces() {
    with_each_program(|scene| {
        for v6 in [false, true] {
            scene.open(v6);
            let mut sent = Packet::new(scene.keys[CLIENT].reversed());
            sent.payload = vec![0; 1400];
            let (kind, least) = if v6 { ([2, 0], 48) } else { ([3, 4], 28) };
            let message = too_big(scene, &sent, kind, least);
            let outcome = scene.send_frame(&message);
            assert_eq!((outcome.verdict, outcome.counted), (Verdict::Drop, Some(counter::ICMP)));
            let told = outcome.told.unwrap();
            assert_eq!((told.kind, told.slot, told.value as usize), (event::ICMP, SLOT, message.len() - 14));
            assert_eq!(told.data, message[14..]);
            // Another message, and one about somebody else's packet.
            let other = too_big(scene, &sent, [3, if v6 { 0 } else { 3 }], least);
            assert_eq!(scene.send_frame(&other).verdict, Verdict::Pass);
            sent.key.src_port = [0, 1];
            let strange = too_big(scene, &sent, kind, least);
            assert_eq!(scene.send_frame(&strange).verdict, Verdict::Pass);
            // In HOLD the sockets are there and understand it.
            scene.set_control(control::HOLD);
            assert_eq!(scene.send_frame(&message).verdict, Verdict::Pass);
        }
    });
}

#[test]
fn a_vlan_tag_is_put_on_taken_off_and_changed_in_xdp() {
    with_program(Program::Xdp, |scene| {
        let mut packet = scene.packet(CLIENT, 0, 0, ACK);
        packet.payload = vec![1, 2, 3];
        for (tag, vlan) in [(None, 7), (Some(0x6005), 0), (Some(0x6005), 7), (Some(0), 0), (None, 0)] {
            scene.change_flow(CLIENT, |flow| flow.out_vlan = vlan);
            packet.tag = tag;
            let frame = scene.send(&packet).frame;
            let l3 = if vlan != 0 { 18 } else { 14 };
            if vlan != 0 {
                assert_eq!(frame[12..16], [0x81, 0x00, 0, 7]);
            }
            assert_eq!(frame[l3 - 2..l3], [0x08, 0x00]);
            assert_eq!(frame[..6], [2, 0, 0, 0, 9, 2]);
            assert_eq!(frame[6..12], scene.rig.out0.mac);
            assert_eq!(frame.len(), l3 + 43);
            assert!(is_sound(&frame[l3..]));
        }
    });
}

#[test]
fn fragments_and_extension_headers_of_a_known_tuple_do_not_pass() {
    with_each_program(|scene| {
        let mut first = scene.packet(CLIENT, 0, 0, ACK);
        first.fragment = 0x2000;
        assert_eq!(scene.send(&first).counted, Some(counter::FRAGMENT));
        // Which has no ports, and without the first is of no use to anybody.
        first.fragment = 0x0003;
        assert_eq!(scene.send(&first).verdict, Verdict::Pass);
        scene.open(true);
        for (extensions, counted) in [
            (vec![(0, 0)], counter::EXTENSION),
            (vec![(60, 1), (43, 0)], counter::EXTENSION),
            (vec![(44, 0)], counter::FRAGMENT),
        ] {
            let mut packet = scene.packet(CLIENT, 0, 0, ACK);
            packet.extensions = extensions;
            let outcome = scene.send(&packet);
            assert_eq!((outcome.verdict, outcome.counted), (Verdict::Drop, Some(counted)));
        }
    });
}

#[test]
fn options_of_ipv4_pass_but_for_those_that_name_another_way() {
    with_each_program(|scene| {
        let mut packet = scene.packet(CLIENT, 0, 0, ACK);
        packet.payload = vec![1, 2, 3];
        for (options, passes) in [
            // No-ops, a router alert, a recorded route; what is behind the end says nothing.
            (vec![1, 1, 1, 0], true),
            (vec![148, 4, 0, 0], true),
            (vec![7, 7, 4, 0, 0, 0, 0, 1], true),
            (vec![0, 131, 3, 4], true),
            (vec![131, 7, 4, 10, 0, 0, 1, 0], false),
            (vec![1, 137, 3, 4], false),
            (vec![148, 4, 0, 0, 131, 3, 4, 0], false),
            // Lengths that lie.
            (vec![7, 9, 4, 0], false),
            (vec![7, 1, 4, 0], false),
            (vec![1, 1, 1, 7], false),
        ] {
            packet.ip_options = options;
            let outcome = scene.send(&packet);
            assert_eq!(is_sent(outcome.verdict), passes, "{:?}", packet.ip_options);
            match passes {
                true => assert!(is_sound(&outcome.frame[14..])),
                false => assert_eq!(outcome.counted, Some(counter::EXTENSION)),
            }
        }
    });
}

#[test]
fn headers_that_lie_are_dropped() {
    with_each_program(|scene| {
        let mut packet = scene.packet(CLIENT, 0, 0, ACK);
        packet.options = timestamps(1, 2);
        packet.payload = vec![0; 10];
        let good = packet.bytes();
        for (at, lie) in [(17, 200), (46, 0x40), (46, 0xf0), (57, 0), (57, 9), (57, 200)] {
            let mut frame = good.clone();
            frame[at] = lie;
            let outcome = scene.send_frame(&frame);
            assert_eq!((outcome.verdict, outcome.counted), (Verdict::Drop, Some(counter::MALFORMED)), "{lie} at {at}");
        }
        assert!(is_sent(scene.send_frame(&good).verdict));
    });
}

#[test]
fn a_flow_of_the_other_program_passes_up() {
    with_each_program(|scene| {
        scene.change_flow(CLIENT, |flow| flow.flags ^= flow_bits());
        assert_eq!(scene.send(&scene.packet(CLIENT, 0, 0, ACK)).verdict, Verdict::Pass);
        scene.open(false);
        scene.set_control(control::FREE);
        assert_eq!(scene.send(&scene.packet(CLIENT, 0, 0, ACK)).verdict, Verdict::Pass);
    });
}

fn flow_bits() -> u16 {
    pgsplice_ebpf::flow::FLOW_XDP | pgsplice_ebpf::flow::FLOW_TC
}

#[test]
fn what_the_routing_table_refuses_is_counted() {
    with_program(Program::Xdp, |scene| {
        let packet = scene.packet(CLIENT, 0, 0, ACK);
        set_forwarding(false);
        scene.route = Some(Route::ForwardingOff);
        assert_eq!(scene.send(&packet).counted, Some(counter::FORWARDING_OFF));
        set_forwarding(true);
        scene.route = Some(Route::Unreachable);
        run("ip route add unreachable 13.0.0.1");
        assert_eq!(scene.send(&packet).counted, Some(counter::NO_ROUTE));
        run("ip route del unreachable 13.0.0.1");
        scene.route = None;
        assert_eq!(scene.send(&packet).counted, Some(counter::FORWARDED_XDP));
    });
}

#[test]
fn a_neighbour_that_has_moved_is_followed_soon_and_by_another_session_at_once() {
    with_program(Program::Xdp, |scene| {
        let frame = scene.packet(CLIENT, 0, 0, ACK).bytes();
        let to = |scene: &mut Scene<'_>| scene.answer(&frame).frame[5];
        assert_eq!(to(scene), 2);
        run("ip neigh replace 10.9.0.2 lladdr 02:00:00:00:09:03 dev out0 nud permanent");
        std::thread::sleep(Duration::from_millis(70));
        assert_eq!(to(scene), 3);
        run("ip neigh replace 10.9.0.2 lladdr 02:00:00:00:09:04 dev out0 nud permanent");
        // The same slot, and another session in it.
        scene.change_flow(CLIENT, |flow| flow.seq_delta += 1);
        assert_eq!(to(scene), 4);
    });
}

#[test]
fn a_next_hop_without_an_address_is_told_once_a_millisecond() {
    with_program(Program::Xdp, |scene| {
        run("ip neigh del 10.9.0.2 dev out0");
        run("ip -6 neigh del fd09::2 dev out0");
        for (v6, hop) in [(false, "::ffff:10.9.0.2"), (true, "fd09::2")] {
            scene.open(v6);
            std::thread::sleep(Duration::from_millis(20));
            let frame = scene.packet(CLIENT, 0, 0, ACK).bytes();
            let mut told = Vec::new();
            for _ in 0..5 {
                let answer = scene.answer(&frame);
                assert_eq!(answer.action, 1, "dropped");
                told.extend(answer.events);
            }
            assert!(!told.is_empty() && told.len() < 5, "{} of 5", told.len());
            let hop: std::net::Ipv6Addr = hop.parse().unwrap();
            assert_eq!((told[0].kind, told[0].ifindex, told[0].slot), (event::NO_NEIGH, scene.rig.out0.index, SLOT));
            assert_eq!(told[0].address, hop.octets());
        }
        assert_eq!(scene.rig.counters()[counter::NO_NEIGH as usize], 10);
    });
}

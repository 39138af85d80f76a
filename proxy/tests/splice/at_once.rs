//! What the programs keep of a session while packets of both its directions are in their hands at once, on two CPUs.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use pgsplice::splice::model::Arrival;
use pgsplice_ebpf::flow::{SessionState, SideState};

use crate::packet::{ACK, PSH};
use crate::scene::{AT, BACKEND, CLIENT, SLOT, with_each_program};

const PACKETS: u32 = 100_000;
const LENGTH: u32 = 20;
const WINDOW: u32 = 1 << 22;

#[test]
fn acknowledgements_of_the_other_side_make_no_byte_count_twice() {
    with_each_program(|scene| {
        let side = |at| SideState { acked: at, seq_end: at, window: WINDOW, ..SideState::default() };
        scene.set_state(SessionState { side: [side(AT[0]), side(AT[1])] });
        let (run, ifindex) = (scene.rig.runner(scene.program_name()), scene.rig.in0.index);
        // Each on a CPU of its own, where there are two.
        let stay = |cpu: usize| {
            // SAFETY: an empty set is all zeroes, the index is within it, and the set lives through the call.
            unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                libc::CPU_SET(cpu, &mut set);
                libc::sched_setaffinity(0, size_of_val(&set), &set);
            }
        };
        let send = |frame: &[u8], room: &mut [u8]| {
            run.on(&Arrival { frame, ifindex, segment: 0, tci: 0, now_ns: 1 }, room);
        };
        // One that repeats where the client stood at the beginning.
        let mut acknowledgement = scene.packet(BACKEND, 0, 0, ACK);
        acknowledgement.window = u16::MAX;
        let acknowledgement = acknowledgement.bytes();
        let data = (0..PACKETS).map(|number| {
            let mut packet = scene.packet(CLIENT, number * LENGTH, 0, ACK | PSH);
            packet.payload = vec![7; LENGTH as usize];
            packet.bytes()
        });
        let data: Vec<_> = data.collect();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                stay(1);
                let mut room = vec![0; 2048];
                while !over.load(SeqCst) {
                    send(&acknowledgement, &mut room);
                }
            });
            stay(0);
            let mut room = vec![0; 2048];
            data.iter().for_each(|frame| send(frame, &mut room));
            over.store(true, SeqCst);
        });
        let [client, backend] = scene.rig.sessions.get(&SLOT, 0).unwrap().side;
        assert_eq!(client.packets, u64::from(PACKETS));
        assert_eq!((client.bytes, client.seq_end), (u64::from(PACKETS * LENGTH), AT[0] + PACKETS * LENGTH));
        assert_eq!((backend.bytes, client.acked), (0, AT[0]));
    });
}

//! What both sockets know of a session, as what the programs need: its flows, and the state they start from.

use pgsplice_ebpf::flow::{
    FLOW_FROM_CLIENT, FLOW_REDIRECT, FLOW_TC, FLOW_TIMESTAMPS, FLOW_XDP, Flow, NO_LISTENER, SessionState, SideState,
    Watch,
};

use super::qualify::Plan;
use crate::splice::Road;
use crate::splice::sockets::Numbers;
use crate::splice::sweep::monotonic_ns;

/// TSvals go on this much above this kernel's own clock, in its ticks (milliseconds): the clock may tick between its
/// reading and the last packet that carries it, and goes on until a reply that is late stops it.
const TSVAL_AHEAD: u32 = 160;

/// Both directions, client's first.
pub(super) fn flows(plan: &Plan, numbers: &[Numbers; 2], clocks: [u32; 2], slot: u32, listener: u32) -> [Flow; 2] {
    let tsval = deltas(&plan.watches, clocks);
    [0, 1].map(|from: usize| {
        let to = 1 - from;
        let mut flags = if plan.road == Road::Xdp { FLOW_XDP } else { FLOW_TC };
        flags |= if from == 0 { FLOW_FROM_CLIENT } else { 0 };
        flags |= if plan.timestamps { FLOW_TIMESTAMPS } else { 0 };
        flags |= if plan.virtual_way { FLOW_REDIRECT } else { 0 };
        Flow {
            out: plan.keys[to].reversed(),
            slot,
            seq_delta: numbers[to].write.wrapping_sub(numbers[from].receive),
            ack_delta: numbers[to].receive.wrapping_sub(numbers[from].write),
            tsval_delta: tsval[from],
            tsecr_delta: tsval[to].wrapping_neg(),
            out_ifindex: plan.watches[to].ifindex,
            out_vlan: plan.watches[to].vlan,
            flags,
            in_wscale: plan.infos[from].peer_wscale,
            out_wscale: plan.infos[to].own_wscale,
            pad: [0; 2],
            listener: if from == 0 { listener } else { NO_LISTENER },
        }
    })
}

/// What is added to the TSvals of each side so that they go on where this kernel's own clock on the other leg stops.
///
/// The last TSval was seen before the clock was read. So what the side sends at any later time t carries at least
/// clock(t) + [`TSVAL_AHEAD`], however long this thread was kept from the CPU in between: never less than what this
/// kernel itself still sends, which the other end would take for an old duplicate (PAWS, RFC 7323, section 5).
fn deltas(watches: &[Watch; 2], clocks: [u32; 2]) -> [u32; 2] {
    [0, 1].map(|from: usize| clocks[1 - from].wrapping_add(TSVAL_AHEAD).wrapping_sub(watches[from].tsval))
}

/// What both sides have sent and acknowledged at this moment.
pub(super) fn state(plan: &Plan, numbers: &[Numbers; 2], held: u32) -> SessionState {
    let now = monotonic_ns();
    let side = [0, 1].map(|from: usize| {
        let end = numbers[from].receive;
        // The held bytes are the backend's, in its numbering the last before `end`; the client has not seen them.
        let unseen = if from == 1 { held } else { 0 };
        SideState {
            last_ns: now,
            seq_end: end,
            acked: end.wrapping_sub(unseen),
            // What this kernel offered; the other end's own offer replaces it with its first packet.
            window: plan.infos[from].receive_window.max(65_535),
            tsval: plan.watches[from].tsval,
            ..SideState::default()
        }
    });
    SessionState { side }
}

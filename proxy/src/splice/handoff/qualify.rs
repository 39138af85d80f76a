//! Whether a session can be handed off at this moment, and what the hand-off then needs to know.

use std::net::{IpAddr, SocketAddr};

use pgsplice_ebpf::flow::{FlowKey, WATCH_MOVED, WATCH_ODD, WATCH_TC, WATCH_TIMESTAMPS, WATCH_XDP, Watch};

use super::{Legs, Stay};
use crate::config::SpliceRoad;
use crate::splice::sockets::{self, TcpInfo};
use crate::splice::watch::BackendPort;
use crate::splice::{Road, Splice, Why, key};

/// What a side offers must come to so many units of the scale in which the other side reads it.
const WINDOW_UNITS: u32 = 4;

/// What a hand-off needs to know, found out before anything is changed.
pub(super) struct Plan {
    pub keys: [FlowKey; 2],
    pub watches: [Watch; 2],
    pub infos: [TcpInfo; 2],
    pub road: Road,
    pub timestamps: bool,
    /// An interface without a device behind it, such as a veth, is on the way.
    pub virtual_way: bool,
}

impl Splice {
    pub(super) fn qualify(
        &self,
        legs: Legs<'_>,
        held: usize,
        wanted: SpliceRoad,
        port: &BackendPort,
    ) -> Result<Plan, Stay> {
        let (client_own, client) = sockets::addresses(legs.client)?;
        let (backend_own, backend) = sockets::addresses(legs.backend)?;
        if client.is_ipv4() != backend.is_ipv4() {
            return Err(Why::Family.into());
        }
        if [client, backend].iter().any(is_link_local) {
            return Err(Why::Unseen.into());
        }
        let keys = [key(client, client_own), key(backend, backend_own)];
        // Before the clock is read: see [`super::flows`].
        let watches = self.seen(&keys, legs, port, held == 0)?.ok_or(Why::Unseen)?;
        if watches.iter().any(|watch| watch.flags & (WATCH_MOVED | WATCH_ODD) != 0) {
            return Err(Why::Moved.into());
        }
        let forwards = |watch: &Watch| self.forwarding.is_on(watch.ifindex, client.is_ipv4());
        let road = road(&watches, wanted, forwards)?;
        let ends = [(client_own, client), (backend_own, backend)];
        if !ends.iter().zip(&watches).all(|((own, end), watch)| self.leads_back(road, own.ip(), end.ip(), watch)) {
            return Err(Why::OtherWay.into());
        }
        if ends.iter().any(|(own, end)| self.policies.concern(*own, *end)) {
            return Err(Why::Unseen.into());
        }
        let infos = [TcpInfo::of(legs.client)?, TcpInfo::of(legs.backend)?];
        let timestamps = agree(&infos, &watches, self.accurate_ecn)?;
        // Nor can a whole one be kept back in the socket until the flows forward.
        if held >= infos[0].send_mss as usize {
            return Err(Why::LongReply.into());
        }
        // Its acknowledgements will not reach this kernel, so it must be able to leave at once and whole.
        if held > infos[0].send_window as usize {
            return Err(Why::Busy.into());
        }
        let silent = infos.iter().all(|info| info.established && info.unacknowledged == 0 && info.unsent_bytes == 0);
        if !silent || sockets::unread(legs.client)? > 0 || sockets::unread(legs.backend)? > 0 {
            return Err(Why::Busy.into());
        }
        let virtual_way = road == Road::Xdp && watches.iter().any(|watch| self.forwarding.is_virtual(watch.ifindex));
        Ok(Plan { keys, watches, infos, road, timestamps, virtual_way })
    }

    /// Whether what the program sends to this end gets there.
    fn leads_back(&self, road: Road, own: IpAddr, end: IpAddr, watch: &Watch) -> bool {
        let Some(way) = self.routes.way(own, end) else { return false };
        // XDP asks the routing table, and may follow it to any interface that has the program.
        self.routes.is_that_of(way, watch)
            || road == Road::Xdp && watch.vlan == 0 && self.programs().contains(&(way, false))
    }
}

/// One program forwards both ways: what XDP redirects, an interface without native XDP does not send.
fn road(watches: &[Watch; 2], wanted: SpliceRoad, forwards: impl Fn(&Watch) -> bool) -> Result<Road, Why> {
    if matches!(wanted, SpliceRoad::Sockmap | SpliceRoad::Relay) {
        return Err(Why::NotWanted);
    }
    let seen_by = |program: u16| watches.iter().all(|watch| watch.flags & program != 0);
    let xdp = wanted != SpliceRoad::Tc && seen_by(WATCH_XDP);
    let tc = wanted != SpliceRoad::Xdp && seen_by(WATCH_TC);
    let [client, backend] = watches;
    // TC asks the routing table only for the addresses of a frame with a tag, as what came in by the other leg.
    let is_reached = |to: &Watch, from: &Watch| to.vlan == 0 || forwards(from);
    match (xdp, tc) {
        (false, false) => Err(Why::OtherRoad),
        (true, _) if watches.iter().all(&forwards) => Ok(Road::Xdp),
        (_, true) if is_reached(client, backend) && is_reached(backend, client) => Ok(Road::Tc),
        _ => Err(Why::ForwardingOff),
    }
}

/// Such an address is one of an interface, which neither a flow's key nor the packets that are made by hand name.
fn is_link_local(address: &SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// What cannot be rewritten must be the same on both legs. Returns whether they have timestamps.
fn agree(infos: &[TcpInfo; 2], watches: &[Watch; 2], accurate_ecn: bool) -> Result<bool, Why> {
    let [client, backend] = infos;
    let timestamps = client.timestamps;
    if timestamps != backend.timestamps || client.usec_timestamps || backend.usec_timestamps {
        return Err(Why::Timestamps);
    }
    if timestamps && watches.iter().any(|watch| watch.flags & WATCH_TIMESTAMPS == 0) {
        return Err(Why::Unseen);
    }
    if client.sack != backend.sack {
        return Err(Why::Sack);
    }
    if client.ecn != backend.ecn || client.ecn && accurate_ecn {
        return Err(Why::Ecn);
    }
    let carries =
        |from: &TcpInfo, to: &TcpInfo| from.advertised_mss.saturating_sub(from.options_bytes()) <= to.send_mss;
    if !carries(client, backend) || !carries(backend, client) {
        return Err(Why::Mss);
    }
    // A window that is less than a unit of the other leg's would reach it as none, and nobody would say when that is over.
    let is_told =
        |from: &TcpInfo, to: &TcpInfo| from.send_window >> to.own_wscale >= WINDOW_UNITS.min(from.send_window);
    if !is_told(client, backend) || !is_told(backend, client) {
        return Err(Why::Window);
    }
    Ok(timestamps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_is_forwarded_tc_goes_into_no_vlan() {
        let seen = |program, vlan| Watch { ifindex: 1, flags: program, vlan, ..Watch::default() };
        let road = |by, vlans: [u16; 2], forwards| road(&vlans.map(|id| seen(by, id)), SpliceRoad::Auto, |_| forwards);
        for vlans in [[0, 0], [5, 0], [0, 5], [5, 6]] {
            assert_eq!(road(WATCH_XDP, vlans, true), Ok(Road::Xdp));
            assert_eq!(road(WATCH_XDP, vlans, false), Err(Why::ForwardingOff));
            assert_eq!(road(WATCH_TC, vlans, true), Ok(Road::Tc));
            let into_none = vlans == [0, 0];
            assert_eq!(road(WATCH_TC, vlans, false), if into_none { Ok(Road::Tc) } else { Err(Why::ForwardingOff) });
        }
    }
}

//! The hand-off: a session's two TCP connections become two flows that a program in the kernel rewrites into each other.
//!
//! WATCH (before) → HOLD → LIVE, with the backend's last reply held in our hands throughout, so that by the protocol
//! neither side speaks:
//! 1. [`Splice::qualify`]: both legs were seen on attached interfaces and agree on everything that cannot be rewritten.
//! 2. [`Splice::hold`]: the numbers are read, the flows installed; payload is now dropped, and so is, by a filter on both
//!    sockets, what has already passed the program. What was received in between shows in the numbers.
//! 3. [`Holding::go_live`]: nothing was received: the held bytes are put into the socket, the flows forward, and the
//!    socket is let go. From the one moment on the kernel has both, whatever becomes of this process.
//! 4. [`Live::release`]: once the client has acknowledged them, both sockets end without a packet.
//!
//! Every error before step 3 leaves the session as it was, on sockets that go on.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgsplice_ebpf::flow::{
    FLOW_FROM_CLIENT, FLOW_REDIRECT, FLOW_TC, FLOW_TIMESTAMPS, FLOW_XDP, Flow, FlowKey, NO_LISTENER, SIDE_RST,
    SessionState, SideState, WATCH_MOVED, WATCH_ODD, WATCH_TC, WATCH_TIMESTAMPS, WATCH_XDP, Watch, control,
};

use super::packet::{self, Segment};
use super::raw::Raw;
use super::sockets::{self, Numbers, TcpInfo};
use super::table::Slot;
use super::{Road, Splice, Why, key};
use crate::config::SpliceRoad;
use crate::ring;
use crate::session::{SessionRecord, Termination};

/// How long a packet that passed the program before the flows were there may take to reach the sockets' filter. It is in
/// the hands of another CPU's interrupt then.
const GRACE: Duration = Duration::from_millis(1);

/// How long this process still waits for the client of a session that is in its table no more.
const GONE: Duration = Duration::from_secs(5);

/// TSvals go on this much above this kernel's own clock, in its ticks (milliseconds): the clock may tick between its
/// reading and the last packet that carries it.
const TSVAL_AHEAD: u32 = 2;

/// What a side offers must come to so many units of the scale in which the other side reads it.
const WINDOW_UNITS: u32 = 4;

/// The two sockets of a session, connected, and untouched by anybody else.
#[derive(Clone, Copy, Debug)]
pub struct Legs<'a> {
    pub client: BorrowedFd<'a>,
    pub backend: BorrowedFd<'a>,
}

/// How an attempt ended.
pub enum Attempt {
    Live(Live),
    /// Nothing has changed.
    Stay(Why),
    /// A side was reset meanwhile.
    Dead(Termination),
}

/// What a hand-off needs to know, found out before anything is changed.
struct Plan {
    keys: [FlowKey; 2],
    watches: [Watch; 2],
    infos: [TcpInfo; 2],
    road: Road,
    timestamps: bool,
    /// An interface without a device behind it, such as a veth, is on the way.
    virtual_way: bool,
}

/// In HOLD. Dropping it takes everything back.
struct Holding<'a> {
    splice: &'a Arc<Splice>,
    legs: Legs<'a>,
    keys: [FlowKey; 2],
    numbers: [Numbers; 2],
    road: Road,
    slot: Option<Slot>,
}

/// Forwarded by the kernel.
pub struct Live {
    splice: Arc<Splice>,
    /// Until it is in the table.
    pub slot: Option<Slot>,
    index: u32,
    pub road: Road,
    /// Client, backend: the keys of what comes from them.
    pub keys: [FlowKey; 2],
    numbers: [Numbers; 2],
}

impl Splice {
    /// `held` is less than one segment and was not sent to the client. `own_port`: the backend leg's port is one of ours.
    /// `listener` is its id in the guard's maps. `record`: who it is, for a process after us.
    pub async fn hand_off(
        self: &Arc<Self>,
        legs: Legs<'_>,
        held: &[u8],
        wanted: SpliceRoad,
        own_port: bool,
        listener: Option<u32>,
        record: &SessionRecord,
    ) -> Attempt {
        let plan = match self.qualify(legs, held.len(), wanted) {
            Ok(plan) => plan,
            Err(Stay::Why(why)) => return Attempt::Stay(why),
            // A side has reset the session; whoever reads next will see.
            Err(Stay::Error(error)) if error.raw_os_error() == Some(libc::ENOTCONN) => return Attempt::Stay(Why::Busy),
            Err(Stay::Error(error)) => return failed("qualify", &error),
        };
        if !own_port {
            return Attempt::Stay(Why::NoPort);
        }
        let holding = match self.hold(legs, plan, held.len(), listener, record) {
            Ok(holding) => holding,
            Err(Stay::Why(why)) => return Attempt::Stay(why),
            Err(Stay::Error(error)) => return failed("hold", &error),
        };
        ring::sleep(GRACE).await;
        holding.go_live(held)
    }

    fn qualify(&self, legs: Legs<'_>, held: usize, wanted: SpliceRoad) -> Result<Plan, Stay> {
        let (client_own, client) = sockets::addresses(legs.client)?;
        let (backend_own, backend) = sockets::addresses(legs.backend)?;
        if client.is_ipv4() != backend.is_ipv4() {
            return Err(Why::Family.into());
        }
        if [client, backend].iter().any(is_link_local) {
            return Err(Why::Unseen.into());
        }
        let keys = [key(client, client_own), key(backend, backend_own)];
        let mut watches = [Watch::default(); 2];
        for (watch, key) in watches.iter_mut().zip(&keys) {
            // Before the clock is read: see [`deltas`].
            *watch = self.maps().watch(key)?.filter(|watch| watch.ifindex != 0).ok_or(Why::Unseen)?;
            if watch.flags & (WATCH_MOVED | WATCH_ODD) != 0 {
                return Err(Why::Moved.into());
            }
        }
        let road = self.road(&watches, wanted, client.is_ipv4())?;
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

    /// One program forwards both ways: what XDP redirects, an interface without native XDP does not send.
    fn road(&self, watches: &[Watch; 2], wanted: SpliceRoad, v4: bool) -> Result<Road, Why> {
        if matches!(wanted, SpliceRoad::Sockmap | SpliceRoad::Relay) {
            return Err(Why::NotWanted);
        }
        let seen_by = |program: u16| watches.iter().all(|watch| watch.flags & program != 0);
        let xdp = wanted != SpliceRoad::Tc && seen_by(WATCH_XDP);
        let tc = wanted != SpliceRoad::Xdp && seen_by(WATCH_TC);
        match (xdp, tc) {
            (true, _) if watches.iter().all(|watch| self.forwarding.is_on(watch.ifindex, v4)) => Ok(Road::Xdp),
            (_, true) => Ok(Road::Tc),
            (true, false) => Err(Why::ForwardingOff),
            (false, false) => Err(Why::OtherRoad),
        }
    }

    fn hold<'a>(
        self: &'a Arc<Self>,
        legs: Legs<'a>,
        plan: Plan,
        held: usize,
        listener: Option<u32>,
        record: &SessionRecord,
    ) -> Result<Holding<'a>, Stay> {
        let slot = self.table.reserve().ok_or(Why::Full)?;
        // Before it is LIVE: from then on it must survive us.
        self.describe(slot.index(), record);
        sockets::flush_acks(legs.client)?;
        sockets::flush_acks(legs.backend)?;
        let numbers = [sockets::numbers(legs.client)?, sockets::numbers(legs.backend)?];
        let clocks = match plan.timestamps {
            true => [sockets::clock(legs.client)?, sockets::clock(legs.backend)?],
            false => [0; 2],
        };
        // Held bytes count as written.
        let mut written = numbers;
        written[0].write = written[0].write.wrapping_add(held as u32);
        let flows = flows(&plan, &written, clocks, slot.index(), listener.unwrap_or(NO_LISTENER));
        let maps = self.maps();
        maps.set_state(slot.index(), &state(&plan, &written, held as u32));
        maps.set_control(slot.index(), control::HOLD);
        let holding =
            Holding { splice: self, legs, keys: plan.keys, numbers: written, road: plan.road, slot: Some(slot) };
        // A failure from here on drops `holding`, which takes back what was done.
        for (key, flow) in plan.keys.iter().zip(&flows) {
            maps.insert_flow(key, flow).map_err(|error| match error.raw_os_error() {
                Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM) => Stay::Why(Why::Full),
                _ => Stay::Error(error),
            })?;
        }
        sockets::deafen(legs.client, self.kernel.drop_all())?;
        sockets::deafen(legs.backend, self.kernel.drop_all())?;
        Ok(holding)
    }
}

impl Holding<'_> {
    fn go_live(mut self, held: &[u8]) -> Attempt {
        let index = self.slot.as_ref().expect("until it goes live").index();
        let maps = self.splice.maps();
        match self.is_undisturbed() {
            Ok(None) => {}
            Ok(Some(Attempt::Stay(why))) => return Attempt::Stay(why),
            Ok(Some(end)) => return end,
            Err(error) => return failed("the check of HOLD", &error),
        }
        let client = self.legs.client;
        // It must leave after the flows forward, for what answers it would be dropped; it must be the kernel's before,
        // for a session that is LIVE survives this process.
        if let Err(error) = sockets::cork(client) {
            return failed("the cork", &error);
        }
        if let Err(error) = send_all(client, held) {
            tracing::debug!("the held reply could not be sent: {error}");
            return Attempt::Dead(Termination::ClientReset);
        }
        maps.set_control(index, control::LIVE);
        if let Err(error) = sockets::uncork(client) {
            tracing::warn!("the held reply leaves late: {error}");
        }
        let slot = self.slot.take().expect("until it goes live");
        Attempt::Live(Live {
            splice: self.splice.clone(),
            slot: Some(slot),
            index,
            road: self.road,
            keys: self.keys,
            numbers: self.numbers,
        })
    }

    /// Nothing was received since the numbers were read? Nor a FIN just before: it would count as a byte of theirs that
    /// has been passed on.
    fn is_undisturbed(&self) -> io::Result<Option<Attempt>> {
        let index = self.slot.as_ref().expect("until it goes live").index();
        let state = self.splice.maps().state(index);
        let sides = [(self.legs.client, Termination::ClientReset), (self.legs.backend, Termination::BackendReset)];
        for (number, (socket, reset)) in sides.into_iter().enumerate() {
            if state.side[number].flags & SIDE_RST != 0 || sockets::pending_error(socket)?.is_some() {
                return Ok(Some(Attempt::Dead(reset)));
            }
            let same = sockets::next_expected(socket)? == self.numbers[number].receive;
            if !same || sockets::unread(socket)? > 0 || !TcpInfo::of(socket)?.established {
                return Ok(Some(Attempt::Stay(Why::Late)));
            }
        }
        Ok(None)
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        self.splice.remove_flows(slot.index(), &self.keys);
        self.splice.maps().set_control(slot.index(), control::FREE);
        for socket in [self.legs.client, self.legs.backend] {
            // ENOENT: it was not deaf yet.
            if let Err(error) = sockets::undeafen(socket)
                && error.raw_os_error() != Some(libc::ENOENT)
            {
                tracing::error!("a socket stays deaf: {error}");
            }
        }
    }
}

impl Live {
    pub fn splice(&self) -> &Arc<Splice> {
        &self.splice
    }

    /// Waits until the client has acknowledged the held bytes (this kernel sends them again where they are lost), then
    /// has both sockets close without a packet; that of the client with a RST, if the session ends before that. Err: bytes got past the hand-off, which must not happen; cut it.
    pub async fn release(&self, legs: Legs<'_>, record: &SessionRecord) -> Result<(), &'static str> {
        let maps = self.splice.maps();
        let index = self.index;
        let sent = self.numbers[1].receive;
        let mut pause = Duration::from_millis(1);
        let mut gone: Option<Instant> = None;
        let acknowledged = loop {
            let acknowledged = maps.state(index).side[1].acked.wrapping_sub(sent) as i32 >= 0;
            if acknowledged || maps.control(index) != control::LIVE {
                break acknowledged;
            }
            if record.slot() != Some(index) && gone.get_or_insert_with(Instant::now).elapsed() > GONE {
                if !self.splice.ownership.is_lent() {
                    break false;
                }
                // Another process has the session, and its client still waits for what only this socket can repeat. The
                // kernel goes on with that, as where a process was killed; the egress program keeps its FIN back.
                if let Err(error) = sockets::close_silently(legs.backend) {
                    tracing::warn!("a socket cannot close silently: {error}");
                }
                return Ok(());
            }
            ring::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        if !acknowledged {
            self.reset_client();
        }
        let mut clean = true;
        for (number, socket) in [legs.client, legs.backend].into_iter().enumerate() {
            match sockets::next_expected(socket) {
                Ok(next) => clean &= next == self.numbers[number].receive,
                Err(error) => tracing::warn!("TCP_QUEUE_SEQ: {error}"),
            }
            let closing = if number == 0 && !acknowledged { sockets::close_by_reset } else { sockets::close_silently };
            if let Err(error) = closing(socket) {
                // Its close will send a FIN or RST, which the egress program stops or both ends judge.
                tracing::warn!("a socket cannot close silently: {error}");
            }
        }
        self.splice.forget_watch(&self.keys[0]);
        if let Some(conntrack) = &self.splice.conntrack {
            conntrack.forget(&self.keys);
        }
        if clean { Ok(()) } else { Err("a socket received bytes after the hand-off") }
    }

    /// Where a RST overtook the held bytes the client did not believe it (RFC 5961, section 3.2), and the flows are gone by
    /// now. This one is at what the client has acknowledged; the close of its socket sends another behind the held bytes.
    fn reset_client(&self) {
        let unseen = self.numbers[1].receive.wrapping_sub(self.splice.maps().state(self.index).side[1].acked);
        let segment = Segment {
            way: self.keys[0].reversed(),
            sequence: self.numbers[0].write.wrapping_sub(unseen),
            acknowledgement: self.numbers[0].receive,
            flags: packet::RST | packet::ACK,
            window: 0,
            timestamps: None,
        };
        if let Err(error) = Raw::open().and_then(|raw| raw.send(packet::ip(segment.way.dst), &segment.bytes())) {
            tracing::warn!("a client may wait for a session that was reset: {error}");
        }
    }
}

/// Why an attempt changed nothing.
enum Stay {
    Why(Why),
    Error(io::Error),
}

impl From<Why> for Stay {
    fn from(why: Why) -> Self {
        Self::Why(why)
    }
}

impl From<io::Error> for Stay {
    fn from(error: io::Error) -> Self {
        Self::Error(error)
    }
}

fn failed(step: &str, error: &io::Error) -> Attempt {
    tracing::warn!("hand-off, {step}: {error}");
    Attempt::Stay(Why::Error)
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

/// Both directions, client's first.
fn flows(plan: &Plan, numbers: &[Numbers; 2], clocks: [u32; 2], slot: u32, listener: u32) -> [Flow; 2] {
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
fn state(plan: &Plan, numbers: &[Numbers; 2], held: u32) -> SessionState {
    let now = crate::splice::sweep::monotonic_ns();
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

/// The queues are empty and `bytes` less than a segment, so all of it is taken at once.
fn send_all(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the bytes live through the call and the length is their own.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    match usize::try_from(sent) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) => Err(io::Error::other("an empty send queue took only a part of one segment")),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

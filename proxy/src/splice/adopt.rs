//! Taking over the sessions that a process before us left in the kernel, and telling the process after us who ours are.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, UNIX_EPOCH};

use pgsplice_ebpf::flow::{FLOW_FROM_CLIENT, FLOW_TC, Flow, FlowKey, SIDE_FIN_ACKED, SessionMeta, control};

use super::ports::Port;
use super::table::{Session, Slot};
use super::{Road, Splice, address, key};
use crate::bpf::{AttachMode, Xdp, ifindex};
use crate::pool::Place;
use crate::proxy::Proxy;
use crate::session::connect::PlaceGuard;
use crate::session::{Phase, SessionId, SessionRecord, Termination};
use crate::sock_diag;

/// The sessions of a process before us: their slots and ports are ours now.
#[derive(Debug, Default)]
pub struct Found {
    sessions: Vec<(Slot, Port, Keyed, Keyed)>,
    /// Half-made or half-ended ones, whose flows were removed.
    pub removed: usize,
}

type Keyed = (FlowKey, Flow);

/// Both flows of a session, client's first.
type Pair = [Option<Keyed>; 2];

impl Splice {
    /// Before the first session: what is in the maps keeps its slots and ports.
    pub fn find(&self) -> io::Result<Found> {
        let mut pairs: HashMap<u32, Pair> = HashMap::new();
        for (key, flow) in self.maps().flows()? {
            let side = usize::from(flow.flags & FLOW_FROM_CLIENT == 0);
            pairs.entry(flow.slot).or_default()[side] = Some((key, flow));
        }
        let mut whole = HashMap::new();
        let mut removed = 0;
        for (slot, pair) in pairs {
            match pair {
                [Some(client), Some(backend)] if self.is_whole(slot, &client, &backend) => {
                    whole.insert(slot, (client, backend));
                }
                broken => {
                    removed += 1;
                    for (key, _) in broken.iter().flatten() {
                        self.maps().remove_flow(key)?;
                    }
                    self.maps().set_control(slot, control::FREE);
                }
            }
        }
        self.rest_ports(&whole);
        let in_use: Vec<u32> = whole.keys().copied().collect();
        let mut sessions = Vec::new();
        for slot in self.table.adopt(&in_use) {
            if let Some((client, backend)) = whole.remove(&slot.index()) {
                let port = self.ports.adopt(backend.0);
                sessions.push((slot, port, client, backend));
            }
        }
        Ok(Found { sessions, removed })
    }

    /// Ports of ours on which this host still has a connection, mostly in TIME_WAIT of a process before us: each would
    /// cost a failed connect.
    fn rest_ports(&self, whole: &HashMap<u32, (Keyed, Keyed)>) {
        let connections = match sock_diag::connections() {
            Ok(connections) => connections,
            Err(error) => return tracing::debug!("ports that rest from before are not known: {error}"),
        };
        let spliced: HashSet<FlowKey> = whole.values().map(|(_, backend)| backend.0).collect();
        for (own, far) in connections {
            let key = key(far, own);
            if self.ports.has(own.port()) && !spliced.contains(&key) {
                self.ports.rest(key);
            }
        }
    }

    fn is_whole(&self, slot: u32, client: &(FlowKey, Flow), backend: &(FlowKey, Flow)) -> bool {
        slot < self.maps().capacity()
            && client.1.out.reversed() == backend.0
            && backend.1.out.reversed() == client.0
            && self.maps().control(slot) == control::LIVE
            && self.maps().meta(slot).id != 0
    }

    /// When listeners and pools are there: they are sessions like any other from now on. Returns how many.
    pub fn adopt(&self, proxy: &Proxy, found: Found) -> usize {
        let count = found.sessions.len();
        let programs = self.programs();
        for (slot, port, client, backend) in found.sessions {
            // Each leg's packets come in by the interface that the other way's leave by.
            let is_served = [(&client.1, &backend.1), (&backend.1, &client.1)]
                .iter()
                .all(|(flow, back)| programs.contains(&(back.out_ifindex, flow.flags & FLOW_TC != 0)));
            let index = slot.index();
            let id = self.adopt_one(proxy, slot, port, client, backend);
            if !is_served {
                proxy.cut_spliced(self, index, id, Termination::Stranded);
            }
        }
        count
    }

    /// Interfaces that forward flows, and whether by TC.
    pub(super) fn programs(&self) -> HashSet<(u32, bool)> {
        let attached = self.kernel().attachments().into_iter().filter(|one| one.program == Xdp::Splice);
        attached.filter_map(|one| Some((ifindex(&one.interface)?, one.mode == AttachMode::Tc))).collect()
    }

    fn adopt_one(&self, proxy: &Proxy, slot: Slot, port: Port, client: Keyed, backend: Keyed) -> SessionId {
        let meta = self.maps().meta(slot.index());
        let name = |number| self.labels.name(number);
        let (listener, pool) = (name(meta.listener), name(meta.pool));
        let known = |number| Some(name(number)).filter(|name| !name.is_empty());
        let (user, database) = (known(meta.user), known(meta.database));
        let peer = address(client.0.src, client.0.src_port);
        let mut record = SessionRecord::new(SessionId(meta.id), &listener, &pool, peer);
        record.set_accepted_at(UNIX_EPOCH + Duration::from_millis(meta.accepted_ms));
        let state = self.maps().state(slot.index());
        record.count(meta.bytes[0] + state.side[0].bytes, meta.bytes[1] + state.side[1].bytes);
        let own = address(backend.0.dst, backend.0.dst_port);
        let by_tc = (client.1.flags | backend.1.flags) & FLOW_TC != 0;
        record.update(|details| {
            details.phase = Phase::Forward;
            details.user = user;
            details.database = database;
            details.tls = meta.tls != 0;
            details.backend_local = Some(own);
            details.road = Some(if by_tc { Road::Tc } else { Road::Xdp }.as_str());
        });
        let record = Arc::new(record);
        let listener = proxy.listeners.load().get(&listener).cloned();
        // It ended before us, and was told of; only its flows linger.
        let is_over = state.side.iter().all(|side| side.flags & SIDE_FIN_ACKED != 0);
        if let Some(listener) = listener.as_ref().filter(|_| !is_over) {
            listener.live.fetch_add(1, Relaxed);
        }
        let session = Session {
            record: record.clone(),
            listener,
            pool: proxy.pools.load().get(&pool).cloned(),
            place: None,
            cancel_key: None,
        };
        let index = slot.index();
        self.table.insert(slot, client.0, port, session, Some(&state));
        let id = record.id;
        if is_over {
            drop(self.table.take_session(index));
        } else {
            self.unattached.fetch_add(1, Relaxed);
            proxy.registry.insert(record);
        }
        id
    }

    /// Gives adopted sessions their places at backends, as these become known to their pools.
    pub fn attach_adopted(&self) {
        if self.unattached.load(Relaxed) == 0 {
            return;
        }
        let mut left = 0;
        self.table.each(0..self.table.end(), |_, entry| {
            let [_, from_backend] = entry.keys();
            let Some(session) = entry.session.as_mut().filter(|session| session.place.is_none()) else { return };
            let Some(pool) = &session.pool else { return };
            let at = address(from_backend.src, from_backend.src_port);
            let Some(backend) = pool.backends.load().iter().find(|backend| backend.address == at).cloned() else {
                left += 1;
                return;
            };
            session.record.update(|details| details.backend = Some(backend.clone()));
            session.place = Place::take(&backend, 0).map(|place| PlaceGuard::new(place, pool));
        });
        self.unattached.store(left, Relaxed);
    }

    /// Writes down who a session is, for the process after us.
    pub fn describe(&self, slot: u32, record: &SessionRecord) {
        let details = record.details();
        let (bytes_in, bytes_out) = record.bytes();
        let since = record.accepted_at().duration_since(UNIX_EPOCH).unwrap_or_default();
        let number = |name: &str| self.labels.number(self.maps(), name);
        let of_client =
            |name: &Option<String>| self.labels.number_of_client(self.maps(), name.as_deref().unwrap_or_default());
        let meta = SessionMeta {
            id: record.id.0,
            accepted_ms: since.as_millis() as u64,
            bytes: [bytes_in, bytes_out],
            listener: number(&record.listener),
            pool: number(&record.pool),
            user: of_client(&details.user),
            database: of_client(&details.database),
            tls: details.tls.into(),
            pad: [0; 7],
        };
        self.maps().set_meta(slot, &meta);
    }
}

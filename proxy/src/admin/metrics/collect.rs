//! Reads the counters that live with what they count, once a scrape.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, NoLabelSet,
};
use prometheus_client::metrics::MetricType;

use crate::admin::snapshot;
use crate::cluster::{BouncerState, ClusterView, StoreHealth};
use crate::log;
use crate::pool::{Backend, Health, Pool};
use crate::proxy::{Lifecycle, Listener, ListenerCounters, Proxy};
use crate::session::Termination;

/// Everything but the histograms and the process.
pub struct ProxyCollector(pub Arc<Proxy>);

impl fmt::Debug for ProxyCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxyCollector")
    }
}

impl Collector for ProxyCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let proxy = &*self.0;
        let mut out = Families(encoder);
        process_wide(proxy, &mut out)?;
        proxy.metrics.reload.collect(&mut out)?;
        let listeners: Vec<_> = proxy.listeners.load().values().cloned().collect();
        of_listeners(&listeners, &mut out)?;
        of_sessions(proxy, &mut out)?;
        let pools: Vec<_> = proxy.pools.load().values().cloned().collect();
        of_pools(&pools, &mut out)?;
        of_backends(&pools, &mut out)?;
        let views: Vec<_> =
            proxy.clusters.load().iter().map(|(name, view)| (name.clone(), view.borrow().clone())).collect();
        of_clusters(&views, &mut out)?;
        super::guard::collect(proxy.guard().as_deref(), &mut out)?;
        super::splice::collect(proxy, &mut out)
    }
}

// === Families ===

/// Writes whole families: a name, a help text and any number of samples.
pub struct Families<'a>(pub DescriptorEncoder<'a>);

impl Families<'_> {
    pub fn gauge<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        samples.into_iter().try_for_each(|(labels, value)| metric.encode_family(&labels)?.encode_gauge(&value))
    }

    /// Without labels; left out where it is not known.
    pub fn one_gauge<V: EncodeGaugeValue>(&mut self, name: &str, help: &str, value: Option<V>) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        value.map_or(Ok(()), |value| metric.encode_gauge(&value))
    }

    /// Without labels; left out where it is not known.
    pub fn one_counter<V: EncodeCounterValue>(&mut self, name: &str, help: &str, value: Option<V>) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        value.map_or(Ok(()), |value| metric.encode_counter::<NoLabelSet, V, f64>(&value, None))
    }

    /// `name` without `_total`, which the encoding adds.
    pub fn counter<L: EncodeLabelSet, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        samples.into_iter().try_for_each(|(labels, value)| {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, V, f64>(&value, None)
        })
    }
}

// === What is collected ===

fn process_wide(proxy: &Proxy, out: &mut Families<'_>) -> fmt::Result {
    let build = [([("version", snapshot::VERSION)], 1_u64)];
    out.gauge("pgsplice_build_info", "The running version; always 1", build)?;
    let started = super::unix_seconds(proxy.started);
    out.one_gauge("pgsplice_start_time_seconds", "When the process started, Unix time", Some(started))?;
    let draining = u64::from(proxy.lifecycle() == Lifecycle::Draining);
    out.one_gauge("pgsplice_draining", "Whether the process admits nothing new because it is to end", Some(draining))?;
    let threads = proxy.threads as u64;
    out.one_gauge("pgsplice_data_plane_threads", "Threads that serve sessions", Some(threads))?;
    let keys = proxy.cancel_keys.len() as i64;
    out.one_gauge("pgsplice_cancel_keys", "Cancel keys remembered", Some(keys))?;
    let dropped = log::dropped_lines();
    out.one_counter("pgsplice_log_lines_dropped", "Log lines dropped, reader too slow", Some(dropped))
}

fn of_listeners(listeners: &[Arc<Listener>], out: &mut Families<'_>) -> fmt::Result {
    let each = |read: fn(&ListenerCounters) -> &AtomicU64| {
        listeners.iter().map(move |one| ([("listener", one.name.as_str())], read(&one.counters).load(Relaxed)))
    };
    out.counter("pgsplice_sessions_accepted", "Sessions accepted", each(|counters| &counters.accepted))?;
    out.counter(
        "pgsplice_sessions_ended",
        "Sessions ended, by reason",
        listeners.iter().flat_map(|one| {
            let labels = |reason: Termination| [("listener", one.name.as_str()), ("reason", reason.as_str())];
            Termination::ALL.iter().map(move |&reason| (labels(reason), one.counters.ended(reason)))
        }),
    )?;
    out.counter("pgsplice_listener_received_bytes", "Bytes from clients", each(|counters| &counters.bytes_in))?;
    out.counter("pgsplice_listener_sent_bytes", "Bytes to clients", each(|counters| &counters.bytes_out))?;
    out.gauge(
        "pgsplice_listener_max_sessions",
        "The listener's session limit; 0: none",
        listeners.iter().map(|one| ([("listener", one.name.as_str())], one.config.load().max_sessions)),
    )
}

fn of_sessions(proxy: &Proxy, out: &mut Families<'_>) -> fmt::Result {
    let mut count = BTreeMap::<_, u64>::new();
    for session in proxy.sessions() {
        let (phase, road) = session.phase_and_road();
        *count.entry((session.listener.as_str(), phase.as_str(), road.unwrap_or("none"))).or_default() += 1;
    }
    out.gauge(
        "pgsplice_sessions",
        "Live sessions, by phase and by the road that forwards them",
        count.iter().map(|((listener, phase, road), count)| {
            ([("listener", *listener), ("phase", *phase), ("road", *road)], *count)
        }),
    )
}

fn of_pools(pools: &[Arc<Pool>], out: &mut Families<'_>) -> fmt::Result {
    let each = |read: fn(&Pool) -> usize| pools.iter().map(move |pool| ([("pool", pool.name.as_str())], read(pool)));
    out.gauge("pgsplice_pool_backends", "Backends the pool knows", each(|pool| pool.backends.load().len()))?;
    out.gauge(
        "pgsplice_pool_candidates",
        "Backends that may be given a new session now",
        each(|pool| pool.candidates.load().list.len()),
    )?;
    out.gauge("pgsplice_pool_waiting_sessions", "Sessions in the pool's queue", each(Pool::waiting))
}

type BackendLabels = [(&'static str, String); 3];

fn of_backends(pools: &[Arc<Pool>], out: &mut Families<'_>) -> fmt::Result {
    let all: Vec<(Arc<Backend>, bool)> = pools.iter().flat_map(|pool| with_candidacy(pool)).collect();
    let labelled: Vec<(BackendLabels, &Backend, bool)> = all
        .iter()
        .map(|(one, candidate)| {
            let labels =
                [("pool", one.pool.clone()), ("backend", one.name.clone()), ("address", one.address.to_string())];
            (labels, &**one, *candidate)
        })
        .collect();
    let gauges = |read: fn(&Backend) -> u32| labelled.iter().map(move |(labels, one, _)| (labels.clone(), read(one)));
    let counters = |read: fn(&Backend) -> &AtomicU64| {
        labelled.iter().map(move |(labels, one, _)| (labels.clone(), read(one).load(Relaxed)))
    };
    out.gauge(
        "pgsplice_backend_up",
        "Whether probes and connects find it alive; 0 also before the first probe",
        gauges(|one| matches!(one.health(), Health::Up | Health::Full { .. }).into()),
    )?;
    out.gauge("pgsplice_backend_drained", "Whether an operator drained it", gauges(|one| one.is_drained().into()))?;
    out.gauge(
        "pgsplice_backend_candidate",
        "Whether it may be given a new session now",
        labelled.iter().map(|(labels, _, candidate)| (labels.clone(), u32::from(*candidate))),
    )?;
    out.gauge("pgsplice_backend_sessions", "Sessions that hold or make a connection", gauges(Backend::sessions))?;
    let started = counters(|one| &one.counters.sessions);
    out.counter("pgsplice_backend_sessions_started", "Sessions given to it", started)?;
    let failures = counters(|one| &one.counters.connect_failures);
    out.counter("pgsplice_backend_connect_failures", "Connects of sessions that failed", failures)?;
    let failures = counters(|one| &one.counters.probe_failures);
    out.counter("pgsplice_backend_probe_failures", "Probes that failed", failures)?;
    let sent = counters(|one| &one.counters.bytes_in);
    out.counter("pgsplice_backend_sent_bytes", "Bytes from clients to the backend", sent)?;
    let received = counters(|one| &one.counters.bytes_out);
    out.counter("pgsplice_backend_received_bytes", "Bytes from the backend to clients", received)
}

fn with_candidacy(pool: &Pool) -> Vec<(Arc<Backend>, bool)> {
    let candidates = pool.candidates.load();
    let is_candidate = |backend: &Arc<Backend>| candidates.list.iter().any(|one| Arc::ptr_eq(&one.backend, backend));
    pool.backends.load().iter().map(|backend| (backend.clone(), is_candidate(backend))).collect()
}

fn of_clusters(views: &[(String, Arc<ClusterView>)], out: &mut Families<'_>) -> fmt::Result {
    let each = |read: fn(&ClusterView) -> Option<u64>| {
        views.iter().filter_map(move |(name, view)| Some(([("cluster", name.as_str())], read(view)?)))
    };
    let store = each(|view| Some(matches!(view.store, StoreHealth::Connected { .. }).into()));
    out.gauge("pgsplice_cluster_store_connected", "Whether the DCS answers; if not, the view is frozen", store)?;
    let leader = each(|view| Some(view.leader_key.is_some().into()));
    out.gauge("pgsplice_cluster_leader_known", "Whether the leader key names a member", leader)?;
    let primary = each(|view| Some(view.primary.is_some().into()));
    out.gauge("pgsplice_cluster_primary_open", "Whether primary pools admit sessions", primary)?;
    let timeline = each(|view| Some(view.primary.as_ref()?.timeline.into()));
    out.gauge("pgsplice_cluster_timeline", "The open primary's timeline; absent while there is none", timeline)?;
    let generation = each(|view| Some(view.generation));
    out.gauge("pgsplice_cluster_view_generation", "Grows by one with every change of the view", generation)?;
    out.gauge(
        "pgsplice_cluster_members",
        "Members by Patroni's role and state",
        views.iter().flat_map(|(name, view)| {
            let mut count = BTreeMap::<_, u64>::new();
            for member in view.members.values() {
                *count.entry((member.role.clone(), member.state.clone())).or_default() += 1;
            }
            let labels = |role, state| [("cluster", name.clone()), ("role", role), ("state", state)];
            count.into_iter().map(move |((role, state), count)| (labels(role, state), count))
        }),
    )?;
    out.gauge(
        "pgsplice_cluster_member_primary",
        "1 for the member that primary pools are open to, 0 for the others",
        views.iter().flat_map(|(name, view)| {
            let open = view.primary.as_ref().map(|primary| primary.member.as_str());
            view.members
                .keys()
                .map(move |member| ([("cluster", name.as_str()), ("member", member)], u64::from(open == Some(member))))
        }),
    )?;
    out.gauge(
        "pgsplice_cluster_member_lag_bytes",
        "Bytes behind the leader's last position in the DCS; absent where unknown",
        views.iter().flat_map(|(name, view)| {
            let known = view.members.iter().filter_map(|(member, state)| Some((member, state.lag?)));
            known.map(move |(member, lag)| ([("cluster", name.as_str()), ("member", member)], lag))
        }),
    )?;
    out.gauge(
        "pgsplice_cluster_bouncers",
        "Registered PgBouncers by state",
        views.iter().flat_map(|(name, view)| {
            [
                ("ready", BouncerState::Ready),
                ("draining", BouncerState::Draining),
                ("pausing", BouncerState::Pausing),
                ("paused", BouncerState::Paused),
                ("failed", BouncerState::Failed),
            ]
            .map(|(label, state)| {
                let count = view.bouncers.values().filter(|bouncer| bouncer.state == state).count();
                ([("cluster", name.as_str()), ("state", label)], count)
            })
        }),
    )
}

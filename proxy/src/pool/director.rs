//! The control-plane task of one pool: whenever the cluster, a probe or an operator changes something, it makes the
//! pool's lists anew, wakes the queue, and cuts sessions that must not stay where they are.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::pace::{Paces, Ramps};
use super::{Backend, Pool, balance, eligibility};
use crate::cluster::{ClusterView, Proof};
use crate::config::{BackendConfig, BackendSource, Role};
use crate::health::Prober;
use crate::proxy::Proxy;
use crate::session::Termination;

/// How often sessions that must be cut are looked for while there may be any. A session that had picked its backend
/// just before the view changed is found by the next look.
const CUT_AGAIN: Duration = Duration::from_millis(100);
/// Between two steps of a slow start.
const RAMP_AGAIN: Duration = Duration::from_millis(250);

/// Directs its pool until it is dropped; the pool keeps its last lists then.
#[derive(Debug)]
pub struct Director {
    task: AbortHandle,
    /// The pool's static entries with their addresses.
    pub resolved: Vec<(BackendConfig, SocketAddr)>,
}

impl Drop for Director {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Director {
    /// `resolved` are the pool's static entries with their addresses; `view` follows its cluster, if it has one.
    pub fn start(
        pool: Arc<Pool>,
        resolved: Vec<(BackendConfig, SocketAddr)>,
        view: Option<watch::Receiver<Arc<ClusterView>>>,
        proxy: Weak<Proxy>,
    ) -> Self {
        let task = tokio::spawn(direct(pool, resolved.clone(), view, proxy)).abort_handle();
        Self { task, resolved }
    }
}

async fn direct(
    pool: Arc<Pool>,
    resolved: Vec<(BackendConfig, SocketAddr)>,
    mut view: Option<watch::Receiver<Arc<ClusterView>>>,
    proxy: Weak<Proxy>,
) {
    let prober = Prober::start(pool.clone());
    let mut known = None;
    let (mut paces, mut ramps) = (Paces::default(), Ramps::default());
    loop {
        let now = view.as_mut().map(|view| view.borrow_and_update().clone());
        let ramping = renew(&pool, &resolved, now.as_deref(), &prober, &mut known, &mut ramps);
        loop {
            let cutting = now.as_deref().is_some_and(|view| cut(&pool, view, &proxy, &mut paces));
            tokio::select! {
                () = pool.touched() => break,
                () = changed(&mut view) => break,
                () = tokio::time::sleep(CUT_AGAIN), if cutting => {}
                () = tokio::time::sleep(RAMP_AGAIN), if ramping => break,
            }
        }
    }
}

async fn changed(view: &mut Option<watch::Receiver<Arc<ClusterView>>>) {
    let gone = match view {
        Some(view) => view.changed().await.is_err(),
        None => true,
    };
    if gone {
        // Nobody follows the cluster any more: a reload is about to replace this director.
        std::future::pending().await
    }
}

fn renew(
    pool: &Pool,
    resolved: &[(BackendConfig, SocketAddr)],
    view: Option<&ClusterView>,
    prober: &Prober,
    known: &mut Option<String>,
    ramps: &mut Ramps,
) -> bool {
    let config = pool.config.load_full();
    let members = eligibility::members(&config, resolved, view);
    let before = pool.backends.load_full();
    let mut departed = pool.departed.lock();
    let backends: Vec<Arc<Backend>> = members
        .iter()
        .map(|named| {
            let same =
                before.iter().chain(departed.iter()).find(|one| one.address == named.address && one.name == named.name);
            let backend =
                same.cloned().unwrap_or_else(|| Arc::new(Backend::new(&pool.name, &named.name, named.address)));
            backend.set_held(named.held);
            backend
        })
        .collect();
    // A dead Patroni's member key runs out together with its leader key, and the sessions at its node are the ones that
    // must be cut when another leads: what left the pool is remembered as long as it has any.
    departed.extend(before.iter().cloned());
    // So is, in a cluster, what an operator took out of service: its key comes back when it was restarted.
    let may_return = !matches!(config.source, BackendSource::Static(_));
    let is_needed = |one: &Backend| one.sessions() > 0 || may_return && one.is_drained();
    departed.retain(|one| is_needed(one) && !backends.iter().any(|other| Arc::ptr_eq(one, other)));
    drop(departed);
    let mut candidates = eligibility::candidates(&config, &members, &backends, view);
    let ramping = ramps.apply(&mut candidates, config.slow_start, Instant::now());
    if ramping {
        candidates.table = balance::table(config.balance, &candidates.list);
    }
    pool.members.store(Arc::new(members));
    pool.backends.store(Arc::new(backends));
    prober.sync();
    let summary = match candidates.list.is_empty() {
        true => format!("nobody: {}", candidates.why_empty),
        false => {
            let names: Vec<_> = candidates.list.iter().map(|one| one.backend.name.as_str()).collect();
            names.join(", ")
        }
    };
    pool.candidates.store(Arc::new(candidates));
    if known.as_ref() != Some(&summary) {
        tracing::info!(pool = pool.name, "new sessions go to {summary}");
        *known = Some(summary);
    }
    pool.queue.wake_all();
    ramping
}

/// Cuts what the view wants cut. Whether there may be more to come.
fn cut(pool: &Pool, view: &ClusterView, proxy: &Weak<Proxy>, paces: &mut Paces) -> bool {
    let config = pool.config.load();
    match &config.source {
        BackendSource::NodeLocal { rule, .. } if rule.role == Role::Primary => {}
        // In a fleet the agents move the PgBouncers' server connections, and the clients stay.
        _ => return false,
    }
    let backends = pool.backends.load();
    let departed = pool.departed.lock().clone();
    let mut any = false;
    paces.forget(|address| {
        backends.iter().chain(&departed).any(|one| one.address == *address && view.cut.contains_key(&one.name))
    });
    for backend in backends.iter().chain(&departed).filter(|one| one.sessions() > 0) {
        // A node-local backend has the name of its member.
        let Some(why) = view.cut.get(&backend.name) else { continue };
        any = true;
        let Some(proxy) = proxy.upgrade() else { return false };
        // A node that says itself that it takes no writes does no harm: its clients need not all come at once to the
        // next one. One that was deposed and may still write is left at once.
        let denies =
            view.members.get(&backend.name).is_some_and(|member| matches!(member.proof, Proof::NotPrimary { .. }));
        let spread = if denies { config.cut_spread } else { Duration::ZERO };
        let due = paces.due(backend.address, backend.sessions() as usize, spread, Instant::now());
        let cut = if due == 0 { 0 } else { proxy.cut_at(backend, due, Termination::Demoted) };
        if cut > 0 {
            tracing::warn!(pool = pool.name, backend = backend.name, sessions = cut, "cut: {why}");
        }
    }
    any
}

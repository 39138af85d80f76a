//! What each path answers. The read-only part is served on both sockets, the steering part on the Unix socket alone.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, extract};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::{api, clusters, metrics, snapshot};
use crate::guard::api as deny;
use crate::handover;
use crate::proxy::Proxy;
use crate::session::{SessionId, SessionRecord, Termination};
use crate::switchover;

/// Longest request body in bytes: 50,000 session ids.
const LONGEST_BODY: usize = 1 << 20;

/// A request that takes longer is answered with 504. Reload resolves names, so it is not short.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// Sessions in an answer unless `limit` says otherwise.
const SESSIONS: usize = 1000;

type Shared = State<Arc<Proxy>>;
type Body<T> = Result<extract::Json<T>, JsonRejection>;
type Args<T> = Result<Query<T>, QueryRejection>;

/// For anyone who may reach `admin.http`.
pub fn read_only(proxy: Arc<Proxy>) -> Router {
    let steering = Router::new()
        .route("/v1/drain", post(unix_only))
        .route("/v1/undrain", post(unix_only))
        .route("/v1/kill", post(unix_only))
        .route("/v1/reload", post(unix_only))
        .route("/v1/takeover", post(unix_only))
        .route("/v1/upgrade", post(unix_only))
        .route("/v1/switchover", post(unix_only).get(last_switchover))
        .route("/v1/deny", post(unix_only).delete(unix_only));
    finish(looking().merge(steering), proxy)
}

/// For those who may open the Unix socket.
pub fn all(proxy: Arc<Proxy>) -> Router {
    let steering = Router::new()
        .route("/v1/drain", post(|proxy: Shared, body: Body<api::DrainRequest>| drain(proxy, body, true)))
        .route("/v1/undrain", post(|proxy: Shared, body: Body<api::DrainRequest>| drain(proxy, body, false)))
        .route("/v1/kill", post(kill))
        .route("/v1/reload", post(reload))
        .route("/v1/takeover", post(takeover))
        .route("/v1/upgrade", post(upgrade))
        .route("/v1/switchover", post(switch_over).get(last_switchover))
        .route("/v1/deny", post(deny_add).delete(deny_del));
    finish(looking().merge(steering), proxy)
}

fn looking() -> Router<Arc<Proxy>> {
    Router::new()
        .route("/metrics", get(render_metrics))
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/v1/status", get(status))
        .route("/v1/clusters", get(cluster_reports))
        .route("/v1/backends", get(backends))
        .route("/v1/sessions", get(sessions))
        .route("/v1/deny", get(deny_list))
}

fn finish(router: Router<Arc<Proxy>>, proxy: Arc<Proxy>) -> Router {
    router
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(LONGEST_BODY))
        .layer(middleware::from_fn(within_time_limit))
        .with_state(proxy)
}

async fn within_time_limit(request: Request, next: Next) -> Response {
    let late = |_| Failure::new(StatusCode::GATEWAY_TIMEOUT, "no answer within 30 s").into_response();
    tokio::time::timeout(TIME_LIMIT, next.run(request)).await.unwrap_or_else(late)
}

// === Looking ===

async fn render_metrics(State(proxy): Shared) -> Result<Response, Failure> {
    let text = metrics::render(&proxy).map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn alive() -> Json<api::Alive> {
    Json(api::Alive { alive: true, version: snapshot::VERSION.into(), pid: std::process::id() })
}

async fn ready(State(proxy): Shared) -> Response {
    let ready = snapshot::ready(&proxy);
    let status = if ready.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(ready)).into_response()
}

async fn status(State(proxy): Shared) -> Json<api::Status> {
    Json(snapshot::status(&proxy))
}

async fn cluster_reports(State(proxy): Shared) -> Json<api::Clusters> {
    Json(clusters::clusters(&proxy))
}

async fn backends(State(proxy): Shared, query: Args<api::BackendsQuery>) -> Result<Json<api::Backends>, Failure> {
    let Query(query) = query?;
    known_pool(&proxy, query.pool.as_deref())?;
    Ok(Json(snapshot::backends(&proxy, &query)))
}

async fn sessions(State(proxy): Shared, query: Args<api::SessionsQuery>) -> Result<Json<api::Sessions>, Failure> {
    let Query(query) = query?;
    let selected = select(&proxy, &query.filter())?;
    let shown = selected.iter().take(query.limit.unwrap_or(SESSIONS));
    Ok(Json(api::Sessions { total: selected.len(), sessions: shown.map(|one| snapshot::session(one)).collect() }))
}

async fn last_switchover(State(proxy): Shared) -> Result<Json<api::Switchover>, Failure> {
    let last = proxy.switchover.last();
    last.map(Json).ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, "this process has made no switchover"))
}

async fn deny_list(State(proxy): Shared) -> Result<Json<deny::DenyList>, Failure> {
    Ok(Json(deny::list(proxy.guard().as_deref())?))
}

// === Steering ===

async fn deny_add(State(proxy): Shared, body: Body<deny::DenyRequest>) -> Result<Json<deny::DenyChange>, Failure> {
    let extract::Json(request) = body?;
    Ok(Json(deny::add(proxy.guard().as_deref(), &request)?))
}

async fn deny_del(State(proxy): Shared, body: Body<deny::DenyRequest>) -> Result<Json<deny::DenyChange>, Failure> {
    let extract::Json(request) = body?;
    Ok(Json(deny::del(proxy.guard().as_deref(), &request)?))
}

async fn drain(
    State(proxy): Shared,
    body: Body<api::DrainRequest>,
    drained: bool,
) -> Result<Json<api::Drained>, Failure> {
    let extract::Json(request) = body?;
    let pool = request.pool.as_deref();
    known_pool(&proxy, pool)?;
    let backends = proxy.set_drained(&request.backend, pool, drained);
    if backends.is_empty() {
        let known = list(snapshot::backend_names(&proxy, pool));
        let message = format!("no backend named {:?}; there are: {known}", request.backend);
        return Err(Failure::new(StatusCode::NOT_FOUND, message));
    }
    tracing::info!(backends = list(backends.clone()), "{}", if drained { "drained" } else { "undrained" });
    let all = snapshot::backends(&proxy, &api::BackendsQuery::default()).backends;
    let of = all.iter().filter(|one| backends.contains(&format!("{}/{}", one.pool, one.name)));
    Ok(Json(api::Drained { sessions: of.map(|one| one.sessions).sum(), backends }))
}

async fn kill(State(proxy): Shared, body: Body<api::KillRequest>) -> Result<Json<api::Killed>, Failure> {
    let extract::Json(request) = body?;
    let filter = request.filter.filter(|filter| *filter != api::SessionFilter::default());
    let (ids, unknown) = match (request.ids.is_empty(), filter, request.all) {
        (false, None, false) => known_sessions(&proxy, &request.ids)?,
        (true, Some(filter), false) => (select(&proxy, &filter)?.iter().map(|one| one.id).collect(), Vec::new()),
        (true, None, true) => (proxy.sessions().iter().map(|one| one.id).collect(), Vec::new()),
        _ => return Err(Failure::new(StatusCode::BAD_REQUEST, "give one of: ids, a filter, all")),
    };
    let cut = proxy.cut(&ids, Termination::Killed);
    tracing::info!(cut, "sessions killed");
    Ok(Json(api::Killed { cut, unknown }))
}

/// The ids some session has, and the rest as they were given.
fn known_sessions(proxy: &Proxy, ids: &[String]) -> Result<(Vec<SessionId>, Vec<String>), Failure> {
    let live: std::collections::HashSet<_> = proxy.sessions().iter().map(|one| one.id).collect();
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for text in ids {
        let id: SessionId = text.parse().map_err(|_| {
            let message = format!("{text:?} is no session id; ids are hexadecimal, as /v1/sessions shows them");
            Failure::new(StatusCode::BAD_REQUEST, message)
        })?;
        if live.contains(&id) { known.push(id) } else { unknown.push(text.clone()) }
    }
    Ok((known, unknown))
}

async fn reload(State(proxy): Shared) -> Result<Json<api::ReloadReport>, Failure> {
    // In a task of its own: a client that goes away must not stop it half done.
    let reloading = tokio::spawn(async move { proxy.reload().await });
    let done = reloading.await.map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    done.map(Json).map_err(|error| Failure::new(StatusCode::UNPROCESSABLE_ENTITY, error))
}

async fn switch_over(
    State(proxy): Shared,
    body: Body<api::SwitchoverRequest>,
) -> Result<Json<api::Switchover>, Failure> {
    let extract::Json(request) = body?;
    let config = proxy.config.load();
    let names = || list(config.clusters.keys().cloned().collect());
    let (name, cluster) = match (&request.cluster, config.clusters.len()) {
        (None, 1) => config.clusters.iter().next(),
        (None, _) => {
            let message = format!("which cluster? there are: {}", names());
            return Err(Failure::new(StatusCode::BAD_REQUEST, message));
        }
        (Some(name), _) => config.clusters.get_key_value(name),
    }
    .ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, format!("no such cluster; there are: {}", names())))?;
    let views = proxy.clusters.load().get(name).cloned();
    let views = views.ok_or_else(|| Failure::new(StatusCode::CONFLICT, "the cluster is not followed yet"))?;
    let order = switchover::Order {
        cluster_name: name.clone(),
        cluster: cluster.clone(),
        to: request.to,
        pause_timeout: Duration::from_millis(request.pause_timeout_ms),
    };
    let begun = proxy.switchover.begin(order, views);
    begun.map(Json).map_err(|why| Failure::new(StatusCode::CONFLICT, why))
}

async fn upgrade(State(proxy): Shared) -> Result<Json<api::Upgrade>, Failure> {
    // It will ask for itself; this is to say at once what it would be told.
    drop(proxy.begin_takeover().await.map_err(|why| Failure::new(StatusCode::CONFLICT, why))?);
    let started = handover::successor::start(&proxy.handover);
    let successor = started.map_err(|error| {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the successor cannot be started: {error}"))
    })?;
    tracing::info!(pid = successor, "started a successor");
    Ok(Json(api::Upgrade { pid: std::process::id(), successor }))
}

/// From here on the connection is a conversation of two processes, see [`crate::handover`].
async fn takeover(State(proxy): Shared, mut request: Request) -> Result<Response, Failure> {
    if request.headers().get(header::UPGRADE).is_none_or(|wanted| wanted != handover::PROTOCOL) {
        let message = format!("{} is for a pgsplice that takes over and speaks {}", request.uri(), handover::PROTOCOL);
        return Err(Failure::new(StatusCode::UPGRADE_REQUIRED, message));
    }
    let under_way = proxy.begin_takeover().await.map_err(|why| Failure::new(StatusCode::CONFLICT, why))?;
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgraded.await.map(Upgraded::downcast::<TokioIo<UnixStream>>) {
            Ok(Ok(parts)) => handover::give::give(proxy, parts.io.into_inner(), under_way).await,
            Ok(Err(_)) => tracing::error!("takeover: the connection is not the Unix socket's"),
            Err(error) => tracing::warn!("takeover: {error}"),
        }
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, handover::PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

fn select(proxy: &Proxy, filter: &api::SessionFilter) -> Result<Vec<Arc<SessionRecord>>, Failure> {
    known_pool(proxy, filter.pool.as_deref())?;
    snapshot::select(proxy, filter).map_err(|error| Failure::new(StatusCode::BAD_REQUEST, error))
}

/// A misspelt pool is an error, not an empty list.
fn known_pool(proxy: &Proxy, name: Option<&str>) -> Result<(), Failure> {
    let pools = proxy.pools.load();
    match name {
        Some(name) if !pools.contains_key(name) => {
            let message = format!("no pool named {name:?}; there are: {}", list(pools.keys().cloned().collect()));
            Err(Failure::new(StatusCode::NOT_FOUND, message))
        }
        _ => Ok(()),
    }
}

fn list(names: Vec<String>) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

// === Failures ===

/// Becomes `{"error": …}`.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    message: String,
}

impl Failure {
    fn new(status: StatusCode, message: impl ToString) -> Self {
        Self { status, message: message.to_string() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(api::Error { error: self.message })).into_response()
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<deny::DenyError> for Failure {
    fn from(error: deny::DenyError) -> Self {
        Self::new(StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), error)
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

async fn not_found(uri: Uri) -> Failure {
    Failure::new(StatusCode::NOT_FOUND, format!("nothing at {}; docs/admin.md lists the paths", uri.path()))
}

async fn wrong_method(request: Request) -> Failure {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

async fn unix_only(uri: Uri) -> Failure {
    Failure::new(StatusCode::FORBIDDEN, format!("{} is served on the Unix socket (admin.socket) only", uri.path()))
}

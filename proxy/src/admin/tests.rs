//! The admin interface over its real sockets, in front of a proxy that serves a real client.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::client::{Client, ClientError};
use super::{Admin, AdminError, api, bind, metrics, serve};
use crate::config::{self, BackendConfig, BackendSource, Config, ProbeKind};
use crate::handover::Inherited;
use crate::proxy::{Before, Proxy};
use crate::session::{Phase, Termination};

/// A StartupMessage of protocol 3.0 for user `app` and database `shop`.
const STARTUP: &[u8] = b"\0\0\0\x20\0\x03\0\0user\0app\0database\0shop\0\0";

/// AuthenticationOk and ReadyForQuery.
const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";

struct House {
    proxy: Arc<Proxy>,
    admin: Admin,
    client: Client,
    /// What stands behind the proxy: logs everyone in, then says nothing.
    _backend: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

async fn serve_at(proxy: &Arc<Proxy>, config: &config::Admin) -> Result<Admin, AdminError> {
    Ok(serve(proxy.clone(), bind(config, &mut Inherited::default()).await?))
}

impl House {
    async fn with(backend: &str) -> Self {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            let mut kept = Vec::new();
            loop {
                let (mut stream, _) = server.accept().await.unwrap();
                stream.write_all(WELCOME).await.unwrap();
                kept.push(stream);
            }
        });
        let entry = BackendConfig {
            name: backend.into(),
            address: address.to_string(),
            weight: 1,
            backup: false,
            peer_id: None,
            max_sessions: None,
        };
        let mut pool = config::Pool { source: BackendSource::Static(vec![entry]), ..config::Pool::default() };
        pool.probe.kind = ProbeKind::None;
        let listener = config::Listener {
            bind: vec!["127.0.0.1:0".parse().unwrap()],
            pool: "main".into(),
            ..config::Listener::default()
        };
        let mut config = Config::default();
        config.proxy.threads = 1;
        config.pools.insert("main".into(), pool);
        config.listeners.insert("rw".into(), listener);
        let proxy = Proxy::start(config, None, None, &mut Before::default()).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("run/admin.sock");
        let admin_config = config::Admin { socket: socket.clone(), http: Some("127.0.0.1:0".parse().unwrap()) };
        let admin = serve_at(&proxy, &admin_config).await.unwrap();
        let house = Self { proxy, admin, client: Client::new(&socket), _backend: accepting, _dir: dir };
        house.until(|house| house.ready()).await;
        house
    }

    fn ready(&self) -> bool {
        super::snapshot::ready(&self.proxy).ready
    }

    async fn until(&self, is: impl Fn(&Self) -> bool) {
        for _ in 0..500 {
            if is(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it never came");
    }

    /// A client that is logged in.
    async fn session(&self) -> TcpStream {
        let address = self.proxy.listeners.load()["rw"].bound[0];
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(STARTUP).await.unwrap();
        let mut answer = [0; WELCOME.len()];
        tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, WELCOME);
        self.until(|house| house.proxy.sessions().iter().all(|one| one.details().phase == Phase::Forward)).await;
        stream
    }

    /// One request over TCP: status line and body.
    async fn http(&self, method: &str, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.admin.http.unwrap()).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }
}

#[tokio::test]
async fn a_session_is_seen_and_killed() {
    let house = House::with("b1").await;
    let mut stream = house.session().await;
    let query = api::SessionsQuery { user: Some("app".into()), ..Default::default() };
    let seen: api::Sessions = house.client.get("/v1/sessions", &query).await.unwrap();
    assert_eq!(seen.total, 1, "{seen:?}");
    let session = &seen.sessions[0];
    assert_eq!((session.database.as_deref(), session.backend.as_deref()), (Some("shop"), Some("b1")));
    assert_eq!(session.client, stream.local_addr().unwrap().to_string());

    let nobody = api::SessionsQuery { user: Some("other".into()), ..Default::default() };
    assert_eq!(house.client.get::<api::Sessions>("/v1/sessions", &nobody).await.unwrap().total, 0);

    let request = api::KillRequest { ids: vec![session.id.clone(), "ffffff".into()], ..Default::default() };
    let killed: api::Killed = house.client.post("/v1/kill", &request).await.unwrap();
    assert_eq!(killed, api::Killed { cut: 1, unknown: vec!["ffffff".into()] });
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0; 64])).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    house.until(|house| house.proxy.session_count() == 0).await;
    let status: api::Status = house.client.get("/v1/status", &()).await.unwrap();
    assert_eq!(status.listeners[0].ended.get("killed"), Some(&1), "{status:?}");
}

#[tokio::test]
async fn kill_wants_to_know_which() {
    let house = House::with("b1").await;
    let nothing = house.client.post::<api::Killed>("/v1/kill", &api::KillRequest::default()).await;
    assert_eq!(nothing.unwrap_err().to_string(), "give one of: ids, a filter, all");
    let empty = api::KillRequest { filter: Some(api::SessionFilter::default()), ..Default::default() };
    assert!(house.client.post::<api::Killed>("/v1/kill", &empty).await.is_err(), "an empty filter would mean all");
    let _stream = house.session().await;
    let filter = api::SessionFilter { backend: Some("b1".into()), ..Default::default() };
    let request = api::KillRequest { filter: Some(filter), ..Default::default() };
    assert_eq!(house.client.post::<api::Killed>("/v1/kill", &request).await.unwrap().cut, 1);
}

#[tokio::test]
async fn a_drained_backend_is_shown_and_makes_the_proxy_not_ready() {
    let house = House::with("b1").await;
    let request = |backend: &str| api::DrainRequest { backend: backend.into(), pool: None };
    let drained: api::Drained = house.client.post("/v1/drain", &request("b1")).await.unwrap();
    assert_eq!(drained, api::Drained { backends: vec!["main/b1".into()], sessions: 0 });
    house.until(|house| !house.ready()).await;
    let (status, body) = house.http("GET", "/readyz").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(body.contains("pool main: "), "{body}");
    let shown: api::Backends = house.client.get("/v1/backends", &()).await.unwrap();
    assert!(shown.backends[0].drained && !shown.backends[0].candidate, "{shown:?}");

    let error = house.client.post::<api::Drained>("/v1/drain", &request("b7")).await.unwrap_err();
    assert_eq!(error.to_string(), "no backend named \"b7\"; there are: main/b1");
    house.client.post::<api::Drained>("/v1/undrain", &request("b1")).await.unwrap();
    house.until(House::ready).await;
    assert_eq!(house.http("GET", "/readyz").await.0, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn tcp_looks_and_does_not_steer() {
    let house = House::with("b1").await;
    assert_eq!(house.http("GET", "/healthz").await.0, "HTTP/1.1 200 OK");
    assert_eq!(house.http("GET", "/v1/status").await.0, "HTTP/1.1 200 OK");
    for path in ["/v1/drain", "/v1/undrain", "/v1/kill", "/v1/reload"] {
        let (status, body) = house.http("POST", path).await;
        assert_eq!(status, "HTTP/1.1 403 Forbidden", "{path}: {body}");
        assert!(body.contains("Unix socket"), "{body}");
    }
}

#[tokio::test]
async fn what_is_answer_wrongly_is_told_in_json() {
    let house = House::with("b1").await;
    for (method, path, status) in [
        ("GET", "/nothing", "404 Not Found"),
        ("DELETE", "/v1/status", "405 Method Not Allowed"),
        ("GET", "/v1/sessions?limit=many", "400 Bad Request"),
        ("GET", "/v1/sessions?usr=app", "400 Bad Request"),
        ("GET", "/v1/sessions?client=app1", "400 Bad Request"),
        ("GET", "/v1/sessions?pool=other", "404 Not Found"),
        ("GET", "/v1/backends?pool=other", "404 Not Found"),
    ] {
        let (line, body) = house.http(method, path).await;
        assert_eq!(line, format!("HTTP/1.1 {status}"), "{path}: {body}");
        let error: api::Error = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path}: {body}"));
        assert!(!error.error.is_empty());
    }
    let misspelt = serde_json::json!({ "backnd": "b1" });
    let error = house.client.post::<api::Drained>("/v1/drain", &misspelt).await.unwrap_err();
    assert!(matches!(&error, ClientError::Refused { message, .. } if message.contains("backnd")), "{error}");
    let reload = house.client.post::<api::ReloadReport>("/v1/reload", &()).await.unwrap_err();
    assert!(matches!(reload, ClientError::Refused { .. }), "there is no file: {reload}");
}

#[tokio::test]
async fn a_head_too_long_and_a_body_too_long_are_refused() {
    let house = House::with("b1").await;
    let long = format!("/{}", "x".repeat(40_000));
    assert!(house.http("GET", &long).await.0.starts_with("HTTP/1.1 4"));
    let ids = vec!["f".repeat(16); 100_000];
    let error = house.client.post::<api::Killed>("/v1/kill", &api::KillRequest { ids, ..Default::default() }).await;
    assert!(matches!(error, Err(ClientError::Refused { status, .. }) if status == 413), "{error:?}");
}

#[tokio::test]
async fn the_socket_is_private_and_a_second_pgsplice_is_told_of_the_first() {
    let house = House::with("b1").await;
    let socket = house.admin.socket.clone();
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let config = config::Admin { socket: socket.clone(), http: None };
    let error = serve_at(&house.proxy, &config).await.unwrap_err();
    assert!(matches!(error, AdminError::AlreadyRunning { .. }), "{error}");
    let expected = format!("pgsplice is already running (pid {})", std::process::id());
    assert!(error.to_string().ends_with(&expected), "{error}");
    drop(house);
    assert!(!socket.exists(), "it cleans up");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_another_file_is_not() {
    let house = House::with("b1").await;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let config = config::Admin { socket: socket.clone(), http: None };
    let admin = serve_at(&house.proxy, &config).await.unwrap();
    assert!(Client::new(&socket).get::<api::Alive>("/healthz", &()).await.unwrap().alive);
    drop(admin);

    std::fs::write(&socket, "precious").unwrap();
    let error = serve_at(&house.proxy, &config).await.unwrap_err();
    assert!(matches!(error, AdminError::NotASocket(_)), "{error}");
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "precious");
}

// === Metrics ===

/// Names in the first column of the tables of `docs/metrics.md`.
fn documented() -> BTreeSet<String> {
    let text = include_str!("../../../docs/metrics.md");
    let first = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name));
    first.filter(|name| name.starts_with("pgsplice_") || name.starts_with("process_")).map(str::to_owned).collect()
}

/// Names as a dashboard has them, from the `# TYPE` lines: a counter's samples end in `_total`.
fn rendered(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() }).collect()
}

#[tokio::test]
async fn every_metric_is_documented_and_every_documented_one_exists() {
    let house = House::with("b1").await;
    let text = metrics::render(&house.proxy).unwrap();
    assert_eq!(rendered(&text), documented());
}

#[test]
fn every_termination_reason_is_documented() {
    let text = include_str!("../../../docs/metrics.md");
    for reason in Termination::ALL {
        let row = format!("| `{}` | ", reason.as_str());
        assert_eq!(text.matches(&row).count(), 1, "docs/metrics.md has no row for {}", reason.as_str());
    }
}

#[tokio::test]
async fn a_scrape_shows_what_happened() {
    let house = House::with("b\"1").await;
    let _stream = house.session().await;
    house.proxy.metrics.observe_queue("main", metrics::QueueOutcome::Full, Duration::ZERO);
    let (status, text) = house.http("GET", "/metrics").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    let address: SocketAddr = house.proxy.pools.load()["main"].backends.load()[0].address;
    for line in [
        "pgsplice_sessions_accepted_total{listener=\"rw\"} 1",
        "pgsplice_sessions_ended_total{listener=\"rw\",reason=\"killed\"} 0",
        "pgsplice_sessions{listener=\"rw\",phase=\"forward\",road=\"relay\"} 1",
        "pgsplice_pool_candidates{pool=\"main\"} 1",
        "pgsplice_pool_queue_sessions_total{pool=\"main\",outcome=\"full\"} 1",
        "pgsplice_draining 0",
        "pgsplice_config_last_reload_successful 1",
        &format!("pgsplice_backend_sessions{{pool=\"main\",backend=\"b\\\"1\",address=\"{address}\"}} 1"),
    ] {
        assert!(text.lines().any(|found| found == line), "no line {line} in:\n{text}");
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
}

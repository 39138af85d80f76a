//! A cluster known from its members' REST API alone. The members say here what a test wants them to say; real ones are in
//! the lab's tests.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pgsplice::cluster::{self, ClusterHandle, ClusterView, StoreHealth};
use pgsplice::config::{self, ProofConfig, RestConfig, StoreConfig, TlsFiles};
use pgsplice_tests::local::Proxy;
use pgsplice_tests::stores::{certificates, free_port};
use pgsplice_tests::tls_server::TlsServer;
use pgsplice_tests::view::until;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A member that answers `/cluster` and `/patroni`, or `/primary` alone.
struct Member {
    name: &'static str,
    port: u16,
    said: Arc<Mutex<Said>>,
    server: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct Said {
    /// `None`: its store is away, as Patroni says that.
    cluster: Option<String>,
    own: String,
    /// Nothing but health checks is served, and whether it holds the leader key.
    checks_only: Option<bool>,
    /// It takes connections and says nothing.
    hangs: bool,
}

impl Member {
    async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let said = Arc::new(Mutex::new(Said::default()));
        let server = tokio::spawn(serve(listener, said.clone()));
        let member = Self { name, port, said, server };
        member.is("replica", 1);
        member
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn is(&self, role: &str, timeline: u32) {
        let name = self.name;
        self.said.lock().own = format!(
            r#"{{"state":"running","role":"{role}","timeline":{timeline},"database_system_identifier":"77",
                "patroni":{{"scope":"lab","name":"{name}"}}}}"#
        );
    }

    /// A proxy before it lets nothing but health checks through.
    fn checks_only(&self, holds_key: bool) {
        self.said.lock().checks_only = Some(holds_key);
    }

    /// What it reads in its store.
    fn reads(&self, cluster: Option<String>) {
        self.said.lock().cluster = cluster;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, said: Arc<Mutex<Said>>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let said = said.lock().clone();
        tokio::spawn(async move {
            let mut request = [0; 4096];
            let read = stream.read(&mut request).await.unwrap_or(0);
            if said.hangs {
                std::future::pending::<()>().await;
            }
            let asks = |path: &str| request[..read].starts_with(format!("GET {path} ").as_bytes());
            let (status, body) = match (said.checks_only, said.cluster) {
                (Some(true), _) if asks("/primary") => (200, said.own),
                (Some(false), _) if asks("/primary") => (503, said.own),
                (Some(_), _) => (403, "<html>".into()),
                (None, Some(cluster)) if asks("/cluster") => (200, cluster),
                (None, None) if asks("/cluster") => (500, String::new()),
                (None, _) => (200, said.own),
            };
            let answer = format!("HTTP/1.0 {status} -\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes()).await;
        });
    }
}

/// `GET /cluster` with this leader, or none.
fn cluster(members: &[Member], leader: Option<&str>, timeline: u32) -> Option<String> {
    let member = |member: &Member| {
        let role = if leader == Some(member.name) { "leader" } else { "replica" };
        format!(
            r#"{{"name":"{}","role":"{role}","state":"running","api_url":"{}/patroni","host":"127.0.0.1","port":5432,"timeline":{timeline}}}"#,
            member.name,
            member.endpoint()
        )
    };
    let members: Vec<String> = members.iter().map(member).collect();
    Some(format!(r#"{{"members":[{}],"scope":"lab"}}"#, members.join(",")))
}

async fn three() -> [Member; 3] {
    [Member::start("pg1").await, Member::start("pg2").await, Member::start("pg3").await]
}

/// All three read the same.
fn all_read(members: &[Member], leader: Option<&str>, timeline: u32) {
    for member in members {
        member.reads(cluster(members, leader, timeline));
    }
}

fn follow(endpoints: Vec<String>, tls: TlsFiles) -> ClusterHandle {
    let (interval, timeout) = (Duration::from_millis(200), Duration::from_secs(1));
    let config = config::Cluster {
        store: StoreConfig::Rest(RestConfig { endpoints }),
        scope: "lab".into(),
        proof: ProofConfig { interval, timeout, tls, ..ProofConfig::default() },
        leader_absent_debounce: Duration::from_millis(300),
        switchover_hold: Duration::from_secs(15),
        ..config::Cluster::default()
    };
    cluster::watch("lab", &config)
}

fn follow_all(members: &[Member]) -> ClusterHandle {
    follow(members.iter().map(Member::endpoint).collect(), TlsFiles::default())
}

fn open_to(member: &str) -> impl Fn(&ClusterView) -> bool {
    move |view| view.primary.as_ref().is_some_and(|primary| primary.member == member)
}

fn away(view: &ClusterView) -> bool {
    matches!(view.store, StoreHealth::Unreachable { .. })
}

fn why(view: &ClusterView) -> String {
    match &view.store {
        StoreHealth::Unreachable { why, .. } => why.clone(),
        other => format!("{other:?}"),
    }
}

#[tokio::test]
async fn the_primary_opens_and_moves() {
    let members = three().await;
    members[0].is("primary", 1);
    all_read(&members, Some("pg1"), 1);
    let handle = follow_all(&members);
    let (view, _) = until(&handle, "pg1", open_to("pg1")).await;
    assert_eq!((view.members.len(), view.system_id.as_deref()), (3, Some("77")));
    assert!(view.members.values().all(|member| member.conn_addr.is_some() && member.is_running()));

    // A failover: the key goes, comes with another name, and that one leaves recovery last.
    members[0].is("replica", 1);
    all_read(&members, None, 1);
    until(&handle, "nobody", |view| view.primary.is_none() && view.leader_key.is_none()).await;
    all_read(&members, Some("pg2"), 2);
    let (view, took) = until(&handle, "named", |view| view.leader_key.as_deref() == Some("pg2")).await;
    assert!(view.primary.is_none() && took < Duration::from_secs(2), "{took:?}");
    members[1].is("primary", 2);
    let (view, took) = until(&handle, "pg2", open_to("pg2")).await;
    assert!(view.cut.contains_key("pg1") && took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn a_member_that_lags_behind_is_outvoted_and_one_that_hangs_is_not_waited_for() {
    let members = three().await;
    members[0].is("primary", 1);
    all_read(&members, Some("pg1"), 1);
    let handle = follow_all(&members);
    until(&handle, "pg1", open_to("pg1")).await;
    // pg3 goes on reading what was: two know better.
    members[0].is("replica", 1);
    members[1].is("primary", 2);
    for member in &members[..2] {
        member.reads(cluster(&members, Some("pg2"), 2));
    }
    until(&handle, "pg2", open_to("pg2")).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(open_to("pg2")(&handle.view.borrow()));
    // One against one: the higher timeline.
    members[0].said.lock().hangs = true;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let view = handle.view.borrow().clone();
    assert!(open_to("pg2")(&view) && !away(&view), "{}", why(&view));
}

#[tokio::test]
async fn where_nothing_but_health_checks_is_served_they_are_enough() {
    let members = three().await;
    members[0].is("primary", 1);
    for member in &members {
        member.checks_only(member.name == "pg1");
    }
    let handle = follow_all(&members);
    let all = |view: &ClusterView| open_to("pg1")(view) && view.members.len() == 3;
    let (view, _) = until(&handle, "pg1", all).await;
    assert_eq!(view.system_id.as_deref(), Some("77"));
    assert!(view.members.values().all(|member| member.is_running() && member.conn_addr.is_some()));
    assert_eq!((&*view.members["pg1"].role, &*view.members["pg2"].role), ("primary", "replica"));
    // The leader is silent for a while, which is no news; then the key is another's, before that one is primary.
    members[0].said.lock().hangs = true;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let view = handle.view.borrow().clone();
    assert!(open_to("pg1")(&view) && !away(&view) && view.members["pg1"].is_running(), "{}", why(&view));
    members[1].checks_only(true);
    let (view, _) = until(&handle, "named", |view| view.leader_key.as_deref() == Some("pg2")).await;
    assert!(view.primary.is_none() && view.cut.contains_key("pg1"));
    members[1].is("primary", 2);
    until(&handle, "pg2", open_to("pg2")).await;
    // A primary that does not hold the key is none: its Patroni may have lost it.
    members[1].checks_only(false);
    until(&handle, "closed", |view| view.primary.is_none() && view.leader_key.is_none()).await;
}

#[tokio::test]
async fn with_the_store_away_behind_them_the_view_is_frozen_and_the_primary_stays_open() {
    let members = three().await;
    members[0].is("primary", 1);
    all_read(&members, Some("pg1"), 1);
    let handle = follow_all(&members);
    until(&handle, "pg1", open_to("pg1")).await;
    for member in &members {
        member.reads(None);
    }
    let (view, took) = until(&handle, "unreachable", away).await;
    assert!(why(&view).contains("GET /cluster answered HTTP 500") && took < Duration::from_secs(6), "{}", why(&view));
    tokio::time::sleep(Duration::from_secs(3)).await;
    let view = handle.view.borrow().clone();
    assert!(open_to("pg1")(&view) && view.members.len() == 3, "it still proves itself: {}", view.closed_because);
    // It gives up the leadership by itself.
    members[0].is("replica", 1);
    until(&handle, "closed", |view| view.primary.is_none() && view.cut.contains_key("pg1")).await;
    members[0].is("primary", 1);
    all_read(&members, Some("pg1"), 1);
    until(&handle, "back", |view| !away(view) && open_to("pg1")(view)).await;
}

/// As after a restore: the same database system on a timeline that it had before.
#[tokio::test(flavor = "multi_thread")]
async fn a_lower_timeline_is_refused_over_a_reload_and_a_takeover_until_a_restart() {
    let members = three().await;
    members[0].is("primary", 5);
    all_read(&members, Some("pg1"), 5);
    let endpoints: Vec<_> = members.iter().map(Member::endpoint).collect();
    let config = |interval: &str| {
        let cluster = format!("[cluster.lab]\nscope = \"lab\"\nrest.endpoints = {endpoints:?}\n");
        let pool = "cluster = \"lab\"\nroute = \"node-local\"\naddress = \"conn-url\"\nprobe.kind = \"none\"";
        format!("{cluster}proof.interval = \"{interval}\"\n{}", Proxy::config(&[], pool, ""))
    };
    let says = |proxy: &Proxy, what: &str| proxy.get("/v1/status")["clusters"][0][what].as_str().map(str::to_owned);
    let is_open = |proxy: &Proxy| says(proxy, "primary").as_deref() == Some("pg1");
    let is_refused = |proxy: &Proxy| {
        !is_open(proxy)
            && says(proxy, "closed_because").unwrap().contains("a leader of this cluster has proved 5 before")
    };
    let proxy = Proxy::start(&config("200ms"));
    proxy.wait("pg1 to be open", is_open);
    members[0].is("primary", 3);
    all_read(&members, Some("pg1"), 3);
    proxy.rewrite_config(&config("150ms"));
    assert!(proxy.command(&["reload"]).0);
    proxy.wait("the reloaded one to refuse", is_refused);
    let next = proxy.successor("next", |mut command| {
        command.arg("--takeover");
        command
    });
    let serves = |next: &Proxy| next.try_get("/v1/status").is_some_and(|status| status["pid"] == next.pid());
    next.wait("the next process to answer", serves);
    next.wait("the next process to refuse", is_refused);
    drop((proxy, next));
    let fresh = Proxy::start(&config("150ms"));
    fresh.wait("pg1 to be open for one that knows nothing", is_open);
}

#[tokio::test]
async fn broken_and_huge_answers_and_those_of_another_cluster_count_for_nothing() {
    let members = three().await;
    members[0].is("primary", 1);
    all_read(&members, Some("pg1"), 1);
    let handle = follow_all(&members);
    until(&handle, "pg1", open_to("pg1")).await;
    let other = cluster(&members, Some("pg3"), 9).map(|said| said.replace("\"lab\"", "\"prod\""));
    let huge = cluster(&members, Some("pg3"), 9).map(|said| said.replace("running", &"x".repeat(2_000_000)));
    for bad in [Some("{".into()), Some("[]".into()), Some(r#"{"members":7}"#.into()), huge, other] {
        members[1].reads(bad.clone());
        members[2].reads(bad);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let view = handle.view.borrow().clone();
        assert!(open_to("pg1")(&view) && !away(&view) && view.members.len() == 3, "{}", why(&view));
    }
    members[0].reads(Some("{".into()));
    let (view, _) = until(&handle, "unreachable", away).await;
    assert!(why(&view).contains("not a JSON object") && why(&view).contains("scope \"prod\""), "{}", why(&view));
}

/// Of a cluster whose only member is pg1, its primary. Where it is, and our files for it.
async fn tls_server_of_pg1(folder: &TempDir) -> (TlsServer, u16, TlsFiles) {
    certificates::make(folder.path());
    let port = free_port();
    let mut members = [Member::start("pg1").await];
    members[0].port = port;
    let said = cluster(&members, Some("pg1"), 1).unwrap().replace("http:", "https:");
    TlsServer::serve(folder.path(), "cluster", &said);
    TlsServer::serve(folder.path(), "patroni", &members[0].said.lock().own.replace("replica", "primary"));
    (TlsServer::start(folder.path(), port), port, TlsServer::files(folder.path()))
}

#[tokio::test]
async fn tls_with_client_certificates() {
    let folder = TempDir::new().unwrap();
    let (_server, port, tls) = tls_server_of_pg1(&folder).await;
    let with = |tls: TlsFiles| follow(vec![format!("https://127.0.0.1:{port}")], tls);
    until(&with(tls.clone()), "pg1", open_to("pg1")).await;
    let other = TlsFiles { ca: Some(folder.path().join("other-ca.crt")), ..tls.clone() };
    let (view, _) = until(&with(other), "refused", away).await;
    assert!(why(&view).contains("UnknownIssuer"), "{}", why(&view));
    until(&with(TlsFiles { cert: None, key: None, ..tls }), "refused", away).await;
}

#[tokio::test]
async fn certificates_that_are_renewed_are_used_without_a_restart() {
    let folder = TempDir::new().unwrap();
    let (server, port, tls) = tls_server_of_pg1(&folder).await;
    let handle = follow(vec![format!("https://127.0.0.1:{port}")], tls);
    until(&handle, "pg1", open_to("pg1")).await;
    drop(server);
    // Of those before, none is good any more.
    certificates::make(folder.path());
    let _server = TlsServer::start(folder.path(), port);
    // Longer than a proof stands.
    tokio::time::sleep(Duration::from_secs(4)).await;
    until(&handle, "pg1 again", |view| open_to("pg1")(view) && !away(view)).await;
}

//! The etcd store against real etcd servers: what a view shows when they fail.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

mod certificates;
mod server;

use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{Certificate, Client, CompactionOptions, Identity, Permission, PermissionType, TlsOptions};
use pgsplice::cluster::store::{EtcdStore, Registration, Store};
use pgsplice::cluster::{self, ClusterHandle, ClusterView, StoreHealth};
use pgsplice::config;
use tempfile::TempDir;
use tokio::sync::watch;

use server::Etcd;

fn etcd_config(etcd: &Etcd) -> config::EtcdConfig {
    config::EtcdConfig { endpoints: etcd.endpoints(), ..config::EtcdConfig::default() }
}

fn cluster_config(store: config::EtcdConfig) -> config::Cluster {
    config::Cluster {
        store: config::StoreConfig::Etcd(store),
        namespace: "/service".into(),
        scope: "lab".into(),
        citus_group: None,
        proof: config::ProofConfig::default(),
        leader_absent_debounce: Duration::from_millis(500),
    }
}

fn follow(store: config::EtcdConfig) -> ClusterHandle {
    cluster::watch("lab", &cluster_config(store))
}

/// The first view that fits, and how long it took.
async fn until(
    handle: &ClusterHandle,
    what: &str,
    fits: impl Fn(&ClusterView) -> bool,
) -> (Arc<ClusterView>, Duration) {
    let start = Instant::now();
    let mut view = handle.view.clone();
    let found = tokio::time::timeout(Duration::from_secs(15), view.wait_for(|view| fits(view))).await;
    match found {
        Ok(view) => (view.unwrap().clone(), start.elapsed()),
        Err(_) => panic!("never came: {what}; last: {:#?}", handle.view.borrow()),
    }
}

fn connected(view: &ClusterView) -> bool {
    matches!(view.store, StoreHealth::Connected { .. })
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

fn led_by(member: &str) -> impl Fn(&ClusterView) -> bool {
    move |view| view.leader_key.as_deref() == Some(member)
}

async fn lead(client: &mut Client, member: &str) {
    client.put("/service/lab/leader", member, None).await.unwrap();
}

#[tokio::test]
async fn a_new_leader_key_is_seen_at_once() {
    let etcd = Etcd::start(1);
    let mut client = etcd.client().await;
    lead(&mut client, "pg1").await;
    client.put("/service/other/leader", "nobody", None).await.unwrap();
    let handle = follow(etcd_config(&etcd));
    until(&handle, "pg1", led_by("pg1")).await;
    lead(&mut client, "pg2").await;
    let (_, took) = until(&handle, "pg2", led_by("pg2")).await;
    assert!(took < Duration::from_millis(200), "{took:?}");
    client.delete("/service/lab/leader", None).await.unwrap();
    until(&handle, "no leader", |view| view.leader_key.is_none()).await;
}

#[tokio::test]
async fn a_killed_etcd_freezes_the_view_and_a_restarted_one_is_read_again() {
    let mut etcd = Etcd::start(1);
    let mut client = etcd.client().await;
    lead(&mut client, "pg1").await;
    let handle = follow(etcd_config(&etcd));
    until(&handle, "pg1", led_by("pg1")).await;
    etcd.kill(0);
    let (view, took) = until(&handle, "unreachable", away).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(why(&view).contains("127.0.0.1") && why(&view).contains("refused"), "{}", why(&view));
    assert_eq!(view.leader_key.as_deref(), Some("pg1"), "frozen");
    etcd.restart(0);
    let mut client = etcd.client().await;
    lead(&mut client, "pg2").await;
    until(&handle, "connected to pg2", |view| connected(view) && led_by("pg2")(view)).await;
}

#[tokio::test]
async fn a_frozen_etcd_is_noticed_within_five_seconds() {
    let etcd = Etcd::start(1);
    lead(&mut etcd.client().await, "pg1").await;
    let handle = follow(etcd_config(&etcd));
    until(&handle, "pg1", led_by("pg1")).await;
    etcd.freeze(0);
    let (view, took) = until(&handle, "unreachable", away).await;
    etcd.thaw(0);
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert!(why(&view).contains("no answer within 2s"), "{}", why(&view));
    until(&handle, "connected", connected).await;
}

#[tokio::test]
async fn an_idle_connection_lives_past_many_heartbeats() {
    let etcd = Etcd::start(1);
    let store = config::EtcdConfig { keepalive_interval: Duration::from_millis(100), ..etcd_config(&etcd) };
    let handle = follow(store);
    until(&handle, "connected", connected).await;
    let generation = handle.view.borrow().generation;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(handle.view.borrow().generation, generation, "nothing happened");
}

#[tokio::test]
async fn one_of_three_dies_and_another_takes_over() {
    let mut etcd = Etcd::start(3);
    lead(&mut etcd.client().await, "pg1").await;
    let handle = follow(etcd_config(&etcd));
    until(&handle, "pg1", led_by("pg1")).await;
    for (index, leader) in ["pg2", "pg3", "pg4"].into_iter().enumerate() {
        etcd.kill(index);
        let alive = etcd.endpoint((index + 1) % 3);
        // It may have been etcd's own leader: until there is another, nothing can be written.
        while put_through(&alive, leader).await.is_err() {}
        let (_, took) = until(&handle, leader, |view| connected(view) && led_by(leader)(view)).await;
        assert!(took < Duration::from_secs(4), "{took:?}");
        etcd.restart(index);
    }
}

async fn put_through(endpoint: &str, leader: &str) -> Result<(), etcd_client::Error> {
    let options = etcd_client::ConnectOptions::new().with_timeout(Duration::from_secs(1));
    let mut client = Client::connect([endpoint], Some(options)).await?;
    client.put("/service/lab/leader", leader, None).await.map(drop)
}

#[tokio::test]
async fn etcd_without_a_majority_is_unreachable() {
    let mut etcd = Etcd::start(3);
    lead(&mut etcd.client().await, "pg1").await;
    let handle = follow(etcd_config(&etcd));
    until(&handle, "pg1", led_by("pg1")).await;
    etcd.kill(0);
    etcd.kill(1);
    let (_, took) = until(&handle, "unreachable", away).await;
    assert!(took < Duration::from_secs(8), "{took:?}");
    etcd.restart(0);
    until(&handle, "connected", connected).await;
}

#[tokio::test]
async fn changes_made_and_compacted_while_away_are_all_there_after() {
    let etcd = Etcd::start(1);
    let mut client = etcd.client().await;
    lead(&mut client, "pg1").await;
    client.put("/service/lab/members/pg1", "{}", None).await.unwrap();
    let handle = follow(etcd_config(&etcd));
    until(&handle, "pg1", |view| led_by("pg1")(view) && view.members.contains_key("pg1")).await;
    // Long enough for the follower to give up and try to connect again.
    etcd.freeze(0);
    until(&handle, "unreachable", away).await;
    etcd.thaw(0);
    client.delete("/service/lab/members/pg1", None).await.unwrap();
    let put = client.put("/service/lab/leader", "pg3", None).await.unwrap();
    let revision = put.header().unwrap().revision();
    client.compact(revision, Some(CompactionOptions::new().with_physical())).await.unwrap();
    until(&handle, "pg3", |view| connected(view) && led_by("pg3")(view) && view.members.is_empty()).await;
}

#[tokio::test]
async fn an_etcd_that_forgot_is_not_believed() {
    let mut etcd = Etcd::start(1);
    let mut client = etcd.client().await;
    for _ in 0..5 {
        lead(&mut client, "pg1").await;
    }
    let handle = follow(etcd_config(&etcd));
    until(&handle, "pg1", led_by("pg1")).await;
    etcd.wipe(0);
    etcd.restart(0);
    lead(&mut etcd.client().await, "pg9").await;
    let older = |view: &ClusterView| why(view).contains("restart pgsplice");
    let (view, _) = until(&handle, "refused", older).await;
    assert_eq!(view.leader_key.as_deref(), Some("pg1"));
}

#[tokio::test]
async fn a_user_with_read_permission_follows_and_tokens_that_expire_are_renewed() {
    let etcd = Etcd::start_with(1, &["--auth-token-ttl", "1"], None);
    let mut root = etcd.client().await;
    root.role_add("follower").await.unwrap();
    for folder in ["/service/lab/", "/pgsplice/lab/"] {
        let range = Permission::new(PermissionType::Read, folder).with_prefix();
        root.role_grant_permission("follower", range).await.unwrap();
    }
    for (user, role) in [("root", "root"), ("pgsplice", "follower")] {
        root.user_add(user, "secret", None).await.unwrap();
        root.user_grant_role(user, role).await.unwrap();
    }
    root.auth_enable().await.unwrap();
    let mut root = etcd.client_as(Some(("root", "secret"))).await;
    lead(&mut root, "pg1").await;

    let anonymous = follow(etcd_config(&etcd));
    let (view, _) = until(&anonymous, "refused", away).await;
    assert!(why(&view).contains("user name is empty"), "{}", why(&view));

    let user = |password: &str| config::EtcdConfig {
        user: Some("pgsplice".into()),
        password: Some(password.into()),
        keepalive_interval: Duration::from_millis(500),
        ..etcd_config(&etcd)
    };
    let wrong = follow(user("guess"));
    let (view, _) = until(&wrong, "refused", away).await;
    assert!(why(&view).contains("authentication failed"), "{}", why(&view));

    let handle = follow(user("secret"));
    until(&handle, "pg1", led_by("pg1")).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut root = etcd.client_as(Some(("root", "secret"))).await;
    lead(&mut root, "pg2").await;
    let (view, took) = until(&handle, "pg2", led_by("pg2")).await;
    assert!(connected(&view) && took < Duration::from_millis(500), "{took:?}");
}

#[tokio::test]
async fn tls_with_client_certificates() {
    let folder = TempDir::new().unwrap();
    let certs = |name: &str| folder.path().join(name);
    certificates::make(folder.path());
    let read = |name: &str| std::fs::read(certs(name)).unwrap();
    let options = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read("ca.crt")))
        .identity(Identity::from_pem(read("client.crt"), read("client.key")));
    let flag = |flag: &str, name: &str| format!("--{flag}={}", certs(name).display());
    let flags = vec![
        flag("cert-file", "server.crt"),
        flag("key-file", "server.key"),
        flag("trusted-ca-file", "ca.crt"),
        "--client-cert-auth".into(),
    ];
    let etcd = Etcd::start_with(1, &[], Some((options, flags)));
    lead(&mut etcd.client().await, "pg1").await;

    let mut tls = config::TlsFiles {
        ca: Some(certs("ca.crt")),
        cert: Some(certs("client.crt")),
        key: Some(certs("client.key")),
        server_name: None,
    };
    let with = |tls: &config::TlsFiles| follow(config::EtcdConfig { tls: tls.clone(), ..etcd_config(&etcd) });
    let handle = with(&tls);
    until(&handle, "pg1", led_by("pg1")).await;

    tls.ca = Some(certs("missing.crt"));
    let (view, _) = until(&with(&tls), "no file", away).await;
    assert!(why(&view).starts_with("etcd.tls: cannot read"), "{}", why(&view));
    tls.ca = Some(certs("other-ca.crt"));
    let (view, _) = until(&with(&tls), "unknown issuer", away).await;
    assert!(why(&view).contains("certificate"), "{}", why(&view));
    tls.ca = None;
    let (view, _) = until(&with(&tls), "no CA", away).await;
    assert!(why(&view).contains("etcd.tls.ca is not set"), "{}", why(&view));
}

const ENTRY: &str =
    r#"{"name":"pb1","address":"10.0.0.7:6432","peer_id":1,"state":"ready","leader":"pg1","timeline":1}"#;

fn registration(value: &watch::Sender<Vec<u8>>) -> Registration {
    Registration { key: "/pgsplice/lab/bouncers/pb1".into(), value: value.subscribe(), ttl: Duration::from_secs(2) }
}

#[tokio::test]
async fn a_bouncer_is_registered_updated_and_taken_out() {
    let etcd = Etcd::start(1);
    let handle = follow(etcd_config(&etcd));
    let (value, _) = watch::channel(ENTRY.as_bytes().to_vec());
    let agent = tokio::spawn(EtcdStore::new(etcd_config(&etcd)).register(registration(&value)));
    until(&handle, "registered", |view| view.bouncers.contains_key("pb1")).await;
    value.send_replace(ENTRY.replace("ready", "failed").into_bytes());
    until(&handle, "failed", |view| view.bouncers["pb1"].state == cluster::BouncerState::Failed).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(handle.view.borrow().bouncers.contains_key("pb1"), "the lease is kept alive");
    drop(value);
    let (_, took) = until(&handle, "taken out", |view| view.bouncers.is_empty()).await;
    assert!(took < Duration::from_millis(500), "{took:?}");
    agent.await.unwrap();
}

#[tokio::test]
async fn a_dead_agent_is_taken_out_when_its_lease_expires() {
    let etcd = Etcd::start(1);
    let handle = follow(etcd_config(&etcd));
    let (value, _) = watch::channel(ENTRY.as_bytes().to_vec());
    let agent = tokio::spawn(EtcdStore::new(etcd_config(&etcd)).register(registration(&value)));
    until(&handle, "registered", |view| view.bouncers.contains_key("pb1")).await;
    agent.abort();
    let (_, took) = until(&handle, "expired", |view| view.bouncers.is_empty()).await;
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(6), "{took:?}");
}

#[tokio::test]
async fn a_registration_outlives_a_restart_of_etcd_and_a_revoked_lease() {
    let mut etcd = Etcd::start(1);
    let handle = follow(etcd_config(&etcd));
    let (value, _) = watch::channel(ENTRY.as_bytes().to_vec());
    let _agent = tokio::spawn(EtcdStore::new(etcd_config(&etcd)).register(registration(&value)));
    let registered = |view: &ClusterView| connected(view) && view.bouncers.contains_key("pb1");
    until(&handle, "registered", registered).await;
    let mut client = etcd.client().await;
    let lease = client.leases().await.unwrap().leases()[0].id();
    client.lease_revoke(lease).await.unwrap();
    until(&handle, "revoked", |view| view.bouncers.is_empty()).await;
    until(&handle, "registered again", registered).await;
    etcd.restart(0);
    tokio::time::sleep(Duration::from_secs(6)).await;
    until(&handle, "still registered", registered).await;
}

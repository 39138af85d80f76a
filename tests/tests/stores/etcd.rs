//! etcd alone: three members, compaction, users, TLS.

use std::time::Duration;

use etcd_client::{Certificate, Client, CompactionOptions, Identity, Permission, PermissionType, TlsOptions};
use pgsplice::cluster::ClusterHandle;
use pgsplice::config;
use pgsplice_tests::stores::{Etcd, Server, certificates};
use tempfile::TempDir;

use super::{away, connected, led_by, until, why};

crate::scenarios::over! { Etcd }

fn etcd_config(etcd: &Etcd) -> config::EtcdConfig {
    config::EtcdConfig { endpoints: etcd.endpoints(), ..config::EtcdConfig::default() }
}

fn follow(store: config::EtcdConfig) -> ClusterHandle {
    super::follow(config::StoreConfig::Etcd(store))
}

async fn lead(client: &mut Client, member: &str) {
    client.put("/service/lab/leader", member, None).await.unwrap();
}

#[tokio::test]
async fn one_of_three_dies_and_another_takes_over() {
    let mut etcd = Etcd::start_many(3);
    lead(&mut etcd.client().await, "pg1").await;
    let handle = follow(etcd_config(&etcd));
    until(&handle, "pg1", led_by("pg1")).await;
    for (index, leader) in ["pg2", "pg3", "pg4"].into_iter().enumerate() {
        etcd.kill(index);
        let alive = etcd.endpoint((index + 1) % 3);
        // It may have been etcd's own leader: until there is another, nothing can be written.
        while put_through(&alive, leader).await.is_err() {}
        let (_, took) = until(&handle, leader, |view| connected(view) && led_by(leader)(view)).await;
        assert!(took < Duration::from_secs(8), "{took:?}");
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
    let mut etcd = Etcd::start_many(3);
    lead(&mut etcd.client().await, "pg1").await;
    let handle = follow(etcd_config(&etcd));
    until(&handle, "pg1", led_by("pg1")).await;
    etcd.kill(0);
    etcd.kill(1);
    let (_, took) = until(&handle, "unreachable", away).await;
    assert!(took < Duration::from_secs(15), "{took:?}");
    etcd.restart(0);
    until(&handle, "connected", connected).await;
}

#[tokio::test]
async fn changes_made_and_compacted_while_away_are_all_there_after() {
    let mut etcd = Etcd::start_many(1);
    let mut client = etcd.client().await;
    lead(&mut client, "pg1").await;
    client.put("/service/lab/members/pg1", "{}", None).await.unwrap();
    let handle = follow(etcd_config(&etcd));
    until(&handle, "pg1", |view| led_by("pg1")(view) && view.members.contains_key("pg1")).await;
    // Long enough for the follower to give up and try to connect again.
    etcd.process().freeze();
    until(&handle, "unreachable", away).await;
    etcd.process().thaw();
    client.delete("/service/lab/members/pg1", None).await.unwrap();
    let put = client.put("/service/lab/leader", "pg3", None).await.unwrap();
    let revision = put.header().unwrap().revision();
    client.compact(revision, Some(CompactionOptions::new().with_physical())).await.unwrap();
    until(&handle, "pg3", |view| connected(view) && led_by("pg3")(view) && view.members.is_empty()).await;
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
    assert!(connected(&view) && took < Duration::from_secs(2), "{took:?}");
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

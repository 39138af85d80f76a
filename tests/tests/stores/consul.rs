//! Consul alone: tokens, TLS, an index that goes back, and an agent without its servers.

use std::time::Duration;

use pgsplice::config::{ConsulConfig, StoreConfig, TlsFiles};
use pgsplice_tests::stores::{Consul, Server, certificates};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::watch;

use super::{ENTRY, LEADER, away, connected, follow, led_by, register, until, why};

crate::scenarios::over! { Consul }

const POLICY: &str = r#"key_prefix "service/lab/" { policy = "read" }
key_prefix "pgsplice/lab/" { policy = "write" }
session_prefix "" { policy = "write" }"#;

#[tokio::test]
async fn a_token_that_may_read_follows_and_one_that_may_not_is_never_an_empty_cluster() {
    let acl = json!({ "enabled": true, "default_policy": "deny", "tokens": { "master": "root" } });
    let mut consul = Consul::start_with(json!({ "acl": acl })).await;
    consul.put(LEADER, b"pg1").await;
    let policy = json!({ "Name": "pgsplice", "Rules": POLICY }).to_string();
    // Consul makes its first tokens a moment after it has elected itself.
    while consul.call("PUT", "acl/policy", policy.as_bytes()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    const SECRET: &str = "7d8c0c9e-6b1a-4f0e-9a57-0c1d6a1b2c3d";
    const ACCESSOR: &str = "0a1b2c3d-6b1a-4f0e-9a57-7d8c0c9e0c1d";
    let token = json!({ "AccessorID": ACCESSOR, "SecretID": SECRET, "Policies": [{ "Name": "pgsplice" }] }).to_string();
    consul.call("PUT", "acl/token", token.as_bytes()).await.unwrap();

    let with = |token: Option<&str>| {
        let token = token.map(Into::into);
        let keepalive_interval = Duration::from_millis(500);
        StoreConfig::Consul(ConsulConfig { token, keepalive_interval, ..consul.consul_config() })
    };
    let (view, _) = until(&follow(with(None)), "refused", away).await;
    assert!(why(&view).contains("HTTP 403: Permission denied"), "{}", why(&view));
    let (view, _) = until(&follow(with(Some("guess"))), "refused", away).await;
    assert!(why(&view).contains("HTTP 403: ACL not found"), "{}", why(&view));

    let handle = follow(with(Some(SECRET)));
    until(&handle, "pg1", led_by("pg1")).await;
    let (value, _) = watch::channel(ENTRY.as_bytes().to_vec());
    let agent = register(with(Some(SECRET)), &value);
    until(&handle, "registered", |view| view.bouncers.contains_key("pb1")).await;
    drop(value);
    agent.await.unwrap();

    // With no right to read, Consul's list is empty: that must not look like a cluster without a leader.
    let nothing = json!({ "Name": "nothing", "Rules": "" }).to_string();
    consul.call("PUT", "acl/policy", nothing.as_bytes()).await.unwrap();
    let less = json!({ "AccessorID": ACCESSOR, "SecretID": SECRET, "Policies": [{ "Name": "nothing" }] }).to_string();
    consul.call("PUT", &format!("acl/token/{ACCESSOR}"), less.as_bytes()).await.unwrap();
    let (view, _) = until(&handle, "refused", |view| away(view) || view.leader_key.is_none()).await;
    assert_eq!(view.leader_key.as_deref(), Some("pg1"), "frozen: {}", why(&view));
}

#[tokio::test]
async fn tls_with_client_certificates() {
    let folder = TempDir::new().unwrap();
    let file = |name: &str| folder.path().join(name);
    certificates::make(folder.path());
    let server = json!({
        "cert_file": file("server.crt"), "key_file": file("server.key"), "ca_file": file("ca.crt"),
        "verify_incoming_https": true,
    });
    let mut consul = Consul::start_with(server).await;
    consul.put(LEADER, b"pg1").await;
    let tls = TlsFiles {
        ca: Some(file("ca.crt")),
        cert: Some(file("client.crt")),
        key: Some(file("client.key")),
        server_name: None,
    };
    let config = consul.tls_config(TlsFiles::default());
    let with = |tls: TlsFiles| follow(StoreConfig::Consul(ConsulConfig { tls, ..config.clone() }));
    let handle = with(tls.clone());
    until(&handle, "pg1", led_by("pg1")).await;
    consul.put(LEADER, b"pg2").await;
    until(&handle, "pg2", led_by("pg2")).await;

    let refused = async |tls: TlsFiles| why(&until(&with(tls), "refused", away).await.0);
    let said = refused(TlsFiles { ca: Some(file("missing.crt")), ..tls.clone() }).await;
    assert!(said.starts_with("consul.tls: ") && said.contains("missing.crt"), "{said}");
    let said = refused(TlsFiles { ca: Some(file("other-ca.crt")), ..tls.clone() }).await;
    assert!(said.contains("UnknownIssuer"), "{said}");
    let said = refused(TlsFiles { server_name: Some("elsewhere".into()), ..tls.clone() }).await;
    assert!(said.contains("not valid for name"), "{said}");
    refused(TlsFiles { cert: None, key: None, ..tls }).await;
}

#[tokio::test]
async fn a_restored_snapshot_is_no_newer_truth() {
    let mut consul = Consul::start().await;
    consul.put(LEADER, b"pg1").await;
    let snapshot = consul.call_bytes("GET", "snapshot", b"").await.unwrap();
    for leader in ["pg2", "pg3", "pg2"] {
        consul.put(LEADER, leader.as_bytes()).await;
    }
    let handle = follow(consul.at(consul.port(), Duration::from_millis(300)));
    until(&handle, "pg2", led_by("pg2")).await;
    consul.call_bytes("PUT", "snapshot", &snapshot).await.unwrap();
    let (view, _) = until(&handle, "refused", |view| away(view) || led_by("pg1")(view)).await;
    assert!(led_by("pg2")(&view) && why(&view).contains("older than"), "{}", why(&view));
    // Another key lifts the index of the table; the leader key is still the old one.
    consul.put("/elsewhere", b"").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let view = handle.view.borrow().clone();
    assert!(led_by("pg2")(&view) && away(&view), "{}", why(&view));
    consul.put(LEADER, b"pg3").await;
    let (view, _) = until(&handle, "pg3", |view| led_by("pg3")(view) || led_by("pg1")(view)).await;
    assert!(connected(&view) && led_by("pg3")(&view));
}

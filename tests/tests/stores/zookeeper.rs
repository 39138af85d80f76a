//! ZooKeeper alone: digests, TLS, and what is no ZooKeeper at all.

use std::time::Duration;

use pgsplice::config::{StoreConfig, TlsFiles, ZookeeperConfig};
use pgsplice_tests::stores::{Server, Zookeeper, certificates};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{ENTRY, LEADER, away, connected, follow, led_by, register, until, why};

crate::scenarios::over! { Zookeeper }

#[tokio::test]
async fn a_digest_that_may_read_follows_and_one_that_may_not_is_never_an_empty_cluster() {
    let mut zookeeper = Zookeeper::start_with("", &[], Some("pgsplice:secret")).await;
    zookeeper.put(LEADER, b"pg1").await;
    let with = |password: Option<&str>| {
        let (user, password) = (password.map(|_| "pgsplice".into()), password.map(Into::into));
        StoreConfig::Zookeeper(ZookeeperConfig { user, password, ..zookeeper.zookeeper_config() })
    };
    for password in [None, Some("guess")] {
        let (view, _) = until(&follow(with(password)), "refused", away).await;
        assert!(why(&view).contains("/service/lab") && why(&view).contains("no permission"), "{}", why(&view));
        assert_eq!(view.leader_key, None);
    }
    let handle = follow(with(Some("secret")));
    until(&handle, "pg1", led_by("pg1")).await;
    let (value, _) = watch::channel(ENTRY.as_bytes().to_vec());
    let agent = register(with(Some("secret")), &value);
    until(&handle, "registered", |view| view.bouncers.contains_key("pb1")).await;
    drop(value);
    until(&handle, "taken out", |view| view.bouncers.is_empty()).await;
    agent.await.unwrap();
}

#[tokio::test]
async fn tls_with_client_certificates() {
    let folder = TempDir::new().unwrap();
    certificates::make(folder.path());
    let file = |name: &str| folder.path().join(name);
    let both = ["server.crt", "server.key"].map(|name| std::fs::read(file(name)).unwrap()).concat();
    std::fs::write(file("server.pem"), both).unwrap();
    std::fs::copy(file("ca.crt"), file("ca.pem")).unwrap();
    let settings = "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\nsecureClientPort=@TLS_PORT@\n\
        ssl.keyStore.location=@FOLDER@/server.pem\nssl.trustStore.location=@FOLDER@/ca.pem\nssl.clientAuth=need\n";
    let mut zookeeper = Zookeeper::start_with(settings, &[file("server.pem"), file("ca.pem")], None).await;
    zookeeper.put(LEADER, b"pg1").await;
    let tls = TlsFiles {
        ca: Some(file("ca.crt")),
        cert: Some(file("client.crt")),
        key: Some(file("client.key")),
        server_name: None,
    };
    let config = zookeeper.tls_config(TlsFiles::default());
    let with = |tls: TlsFiles| follow(StoreConfig::Zookeeper(ZookeeperConfig { tls, ..config.clone() }));
    let handle = with(tls.clone());
    until(&handle, "pg1", led_by("pg1")).await;
    zookeeper.put(LEADER, b"pg2").await;
    until(&handle, "pg2", led_by("pg2")).await;

    let refused = async |tls: TlsFiles| why(&until(&with(tls), "refused", away).await.0);
    let said = refused(TlsFiles { ca: Some(file("missing.crt")), ..tls.clone() }).await;
    assert!(said.starts_with("zookeeper.tls: ") && said.contains("missing.crt"), "{said}");
    let said = refused(TlsFiles { ca: Some(file("other-ca.crt")), ..tls.clone() }).await;
    assert!(said.contains("UnknownIssuer"), "{said}");
    refused(TlsFiles { cert: None, key: None, ..tls }).await;
}

#[tokio::test]
async fn a_session_that_expires_is_begun_again() {
    let mut zookeeper = Zookeeper::start().await;
    zookeeper.put(LEADER, b"pg1").await;
    let handle = follow(zookeeper.config());
    until(&handle, "pg1", led_by("pg1")).await;
    let (value, _) = watch::channel(ENTRY.as_bytes().to_vec());
    let _agent = register(zookeeper.config(), &value);
    until(&handle, "registered", |view| view.bouncers.contains_key("pb1")).await;
    // Longer than any session here: the server counts on as if nobody had been there.
    zookeeper.process().freeze();
    tokio::time::sleep(Duration::from_secs(12)).await;
    zookeeper.process().thaw();
    until(&handle, "both again", |view| connected(view) && view.bouncers.contains_key("pb1")).await;
    zookeeper.put(LEADER, b"pg2").await;
    until(&handle, "pg2", led_by("pg2")).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(handle.view.borrow().bouncers.contains_key("pb1"), "and it stays");
}

#[tokio::test]
async fn what_is_no_zookeeper_is_said_and_costs_no_memory() {
    for garbage in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0x7f, 0xff, 0xff, 0xff], &[0; 64], &[]] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 100]).await;
                let _ = stream.write_all(garbage).await;
            }
        });
        let store = StoreConfig::Zookeeper(ZookeeperConfig { hosts: vec![host], ..ZookeeperConfig::default() });
        let (view, _) = until(&follow(store), "refused", away).await;
        assert!(
            ["not ZooKeeper's", "closed", "session is gone"].iter().any(|word| why(&view).contains(word)),
            "{}",
            why(&view)
        );
        server.abort();
    }
}

//! Asking a member over TLS, as Patroni's `restapi.certfile`, `cafile` and `verify_client` have it.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use pgsplice::cluster::proof::{Answer, Prober};
use pgsplice::config::{ProofConfig, TlsFiles};
use pgsplice_tests::stores::{certificates, free_port};
use pgsplice_tests::tls_server::TlsServer;
use tempfile::TempDir;

#[tokio::test]
async fn a_member_is_asked_over_tls_with_our_certificate() {
    let folder = TempDir::new().unwrap();
    certificates::make(folder.path());
    let body = r#"{"state":"running","role":"primary","timeline":3,"patroni":{"scope":"lab","name":"pg1"}}"#;
    TlsServer::serve(folder.path(), "patroni", body);
    let port = free_port();
    let _server = TlsServer::start(folder.path(), port);
    let file = |name: &str| Some(folder.path().join(name));
    let tls = TlsServer::files(folder.path());
    let ask = async |host: &str, tls: &TlsFiles| {
        let prober = Prober::new(&ProofConfig { tls: tls.clone(), ..ProofConfig::default() }, "lab").unwrap();
        prober.ask("pg1", &format!("https://{host}:{}/patroni", port)).await
    };
    let proved = |answer: &Answer| matches!(answer, Answer::Primary { timeline: 3, .. });
    let why = |answer: &Answer| match answer {
        Answer::Silent { why } => why.clone(),
        other => format!("{other:?}"),
    };
    let answer = ask("127.0.0.1", &tls).await;
    assert!(proved(&answer), "{answer:?}");

    let answer = ask("127.0.0.1", &TlsFiles { ca: file("other-ca.crt"), ..tls.clone() }).await;
    assert!(why(&answer).contains("UnknownIssuer"), "{answer:?}");

    let named = |name: &str| TlsFiles { server_name: Some(name.into()), ..tls.clone() };
    assert!(proved(&ask("127.0.0.1", &named("localhost")).await), "the certificate has this name");
    let answer = ask("127.0.0.1", &named("elsewhere")).await;
    assert!(why(&answer).contains("not valid for name"), "{answer:?}");

    let answer = ask("127.0.0.1", &TlsFiles { cert: None, key: None, ..tls.clone() }).await;
    assert!(matches!(answer, Answer::Silent { .. }), "it wants our certificate: {answer:?}");
}

#[tokio::test]
async fn tls_files_that_cannot_be_used_are_named() {
    let folder = TempDir::new().unwrap();
    certificates::make(folder.path());
    let file = |name: &str| Some(folder.path().join(name));
    let wrong =
        |tls: TlsFiles| Prober::new(&ProofConfig { tls, ..ProofConfig::default() }, "lab").unwrap_err().to_string();
    let said = wrong(TlsFiles { ca: file("missing.crt"), ..TlsFiles::default() });
    assert!(said.starts_with("proof.tls: ") && said.contains("missing.crt"), "{said}");
    let said = wrong(TlsFiles { server_name: Some("x".into()), ..TlsFiles::default() });
    assert!(said.contains("need a ca"), "{said}");
}

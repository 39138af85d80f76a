//! What the server does on its own while the client only waits: notifications after a long silence, time limits, an
//! administrator's kill. PostgreSQL behind pgsplice, in plaintext and under TLS.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::StreamExt;
use pgsplice_tests::proxy::{Backend, road};
use pgsplice_tests::{Certificate, Pgsplice, Shared, postgres, proxy};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use xtask::lab::{Lab, LabSpec, Proxy, unique_id};

const PORT: u16 = 5435;
/// Shorter than the silences below: pgsplice has asked both ends several times by then whether they are there.
const TCP: &str = "keepalive_idle = \"1s\"\nkeepalive_interval = \"1s\"\nkeepalive_count = 3\n\n";
const SILENCE: Duration = Duration::from_secs(7);

static SERVER: Shared<Server> = Shared::new(Server::up);

struct Server {
    lab: Lab,
    proxy: Pgsplice,
    certificate: Certificate,
}

impl Server {
    fn up() -> Result<Self> {
        let lab = Lab::up(&LabSpec { proxy: Proxy::None, ..LabSpec::static_fleet(unique_id()) }, |_, _| {})?;
        let certificate = Certificate::make(lab.host("pg1"), &[lab.proxy()])?;
        postgres::serve_tls(&lab, &certificate)?;
        postgres::trust(&lab, &["app"])?;
        let pg1 = Backend { name: "pg1".into(), address: (lab.host("pg1").v4(), 5432).into(), peer_id: None };
        let config = proxy::listener("postgres", PORT, "postgres")
            + &format!("[listener.postgres.tcp]\n{TCP}[pool.postgres.tcp]\n{TCP}")
            + &proxy::backends("postgres", &[pg1]);
        let proxy = Pgsplice::start(lab.proxy(), "pgsplice", &config)?;
        Ok(Self { lab, proxy, certificate })
    }

    /// A session, what it is notified of, and when it ends.
    async fn connect(&self, tls: bool, name: &str) -> (Client, mpsc::UnboundedReceiver<String>) {
        let (host, mode) = (self.lab.proxy().v4(), if tls { "require" } else { "disable" });
        let config =
            format!("host={host} port={PORT} user=app dbname=app sslmode={mode} application_name={name}_{tls}");
        if !tls {
            let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
            return (client, hear(connection));
        }
        let mut authorities = rustls::RootCertStore::empty();
        authorities.add(CertificateDer::from_pem_slice(self.certificate.authority.as_bytes()).unwrap()).unwrap();
        let config_of_tls =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(authorities)
                .with_no_client_auth();
        let (client, connection) =
            tokio_postgres::connect(&config, MakeRustlsConnect::new(config_of_tls)).await.unwrap();
        (client, hear(connection))
    }
}

/// Drives a connection; the payloads of its notifications, and `None` at its end.
fn hear<T>(mut connection: Connection<tokio_postgres::Socket, T>) -> mpsc::UnboundedReceiver<String>
where
    T: tokio_postgres::tls::TlsStream + Unpin + Send + 'static,
{
    let (sender, heard) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = futures_util::stream::poll_fn(|context| connection.poll_message(context));
        while let Some(message) = messages.next().await {
            match message {
                Ok(AsyncMessage::Notification(notification)) => {
                    let _ = sender.send(notification.payload().to_owned());
                }
                Ok(_) => {}
                Err(error) => {
                    let _ = sender.send(error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()));
                    return;
                }
            }
        }
    });
    heard
}

/// In plaintext and under TLS at the same time, on the client's host.
fn on_both<F: Future<Output = ()>>(test: impl Fn(&'static Server, bool) -> F + Sync) {
    let server = SERVER.get();
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let limited = async |tls| tokio::time::timeout(Duration::from_secs(60), test(server, tls)).await.unwrap();
        runtime.block_on(async { tokio::join!(limited(false), limited(true)) });
    };
    server.lab.client().on_thread(run).unwrap();
}

async fn next(heard: &mut mpsc::UnboundedReceiver<String>) -> Option<String> {
    tokio::time::timeout(Duration::from_secs(20), heard.recv()).await.expect("nothing was heard")
}

/// Waits for an access line of this session with the road of this run.
async fn is_logged(server: &Server, name: &str, tls: bool) {
    // Under TLS nobody but the two ends knows the name.
    let who = if tls { "tls=true".to_owned() } else { format!("application_name=\"{name}_{tls}\"") };
    let road = format!("road=\"{}\"", road());
    for _ in 0..100 {
        let lines = server.proxy.access_lines().unwrap();
        if lines.iter().any(|line| line.contains(&who) && line.contains(&road)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("no line with {who} and {road}: {:#?}", server.proxy.access_lines());
}

#[test]
fn a_session_that_was_silent_for_long_hears_and_answers_at_once() {
    on_both(|server, tls| async move {
        let (client, mut heard) = server.connect(tls, "silent").await;
        let channel = format!("silence_{tls}");
        client.batch_execute(&format!("LISTEN {channel}")).await.unwrap();
        tokio::time::sleep(SILENCE).await;
        let (other, _) = server.connect(tls, "other").await;
        for number in 0..20 {
            other.batch_execute(&format!("NOTIFY {channel}, '{number}'")).await.unwrap();
        }
        for number in 0..20 {
            assert_eq!(next(&mut heard).await.unwrap(), number.to_string());
        }
        let answer = tokio::time::timeout(Duration::from_secs(5), client.query_one("SELECT 42", &[])).await;
        assert_eq!(answer.unwrap().unwrap().get::<_, i32>(0), 42);
        drop((client, other));
        is_logged(server, "silent", tls).await;
    });
}

#[test]
fn a_statement_that_runs_too_long_is_ended_by_the_server_and_the_session_goes_on() {
    on_both(|server, tls| async move {
        let (client, _heard) = server.connect(tls, "statement").await;
        client.batch_execute("SET statement_timeout = '2s'").await.unwrap();
        for _ in 0..2 {
            let error = client.batch_execute("SELECT pg_sleep(30)").await.unwrap_err();
            assert_eq!(error.code().unwrap().code(), "57014");
        }
        assert_eq!(client.query_one("SELECT 42", &[]).await.unwrap().get::<_, i32>(0), 42);
    });
}

#[test]
fn a_session_that_the_server_ends_is_told_why() {
    on_both(|server, tls| async move {
        for (name, before, code) in [
            ("idle", "SET idle_session_timeout = '2s'", "57P05"),
            ("transaction", "SET idle_in_transaction_session_timeout = '2s'; BEGIN; SELECT 1", "25P03"),
        ] {
            let (client, mut heard) = server.connect(tls, name).await;
            client.batch_execute(before).await.unwrap();
            assert_eq!(next(&mut heard).await.as_deref(), Some(code), "{name}");
            assert!(client.batch_execute("SELECT 1").await.is_err());
            drop(client);
            is_logged(server, name, tls).await;
        }
        let (client, mut heard) = server.connect(tls, "killed").await;
        let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        let (other, _) = server.connect(tls, "killer").await;
        other.query_one("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
        assert_eq!(next(&mut heard).await.as_deref(), Some("57P01"));
        drop((client, other));
        is_logged(server, "killed", tls).await;
    });
}

//! Drivers people use, through pgsplice, a fleet of PgBouncers in session mode, and PostgreSQL. Each does what its
//! users do (`tests/drivers/`), in plaintext and under TLS that it verifies, and says step by step what worked.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, TryStreamExt};
use pgsplice_tests::proxy::Backend;
use pgsplice_tests::raw::{Message, Raw};
use pgsplice_tests::{Certificate, Pgsplice, Shared, bouncer, postgres, proxy};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{AsyncMessage, CancelToken, Client, NoTls, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;
use xtask::lab::cluster::{APP_PASSWORD, FLEET_PORT};
use xtask::lab::{Lab, LabSpec, Proxy, unique_id, until};

const AUTHORITY: &str = "/opt/tests/authority.crt";
/// A listener whose backend is PostgreSQL itself.
const POSTGRES_PORT: u16 = 5435;

/// A driver that hangs shall fail.
const LIMIT: &[&str] = &["timeout", "--kill-after=5", "120"];

/// What a driver is asked to do, in this order.
const STEPS: &[&str] = &[
    "connect",
    "simple",
    "prepared",
    "copy",
    "error",
    "transaction",
    "notify",
    "cancel",
    "large result",
    "large parameter",
];

static FLEET: Shared<Fleet> = Shared::new(Fleet::up);

struct Fleet {
    lab: Lab,
    proxy: Pgsplice,
    certificate: Certificate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Plain,
    Tls,
}

impl Fleet {
    fn up() -> Result<Self> {
        let spec = LabSpec { pool_mode: "session", proxy: Proxy::None, ..LabSpec::static_fleet(unique_id()) };
        let lab = Lab::up(&spec, |_, _| {})?;
        // It names pgsplice's host: clients that verify it prove that TLS goes through pgsplice untouched.
        let certificate = Certificate::make(lab.host("pg1"), &[lab.proxy()])?;
        bouncer::serve_tls(&lab, &certificate)?;
        postgres::serve_tls(&lab, &certificate)?;
        postgres::trust(&lab, &["app"])?;
        lab.client().write(AUTHORITY, &certificate.authority)?;
        let pg1 = Backend { name: "pg1".into(), address: (lab.host("pg1").v4(), 5432).into(), peer_id: None };
        let config = "[pool.fleet]\nbalance = \"round-robin\"\n\n".to_owned()
            + &proxy::listener("clients", FLEET_PORT, "fleet")
            + &proxy::listener("postgres", POSTGRES_PORT, "postgres")
            + &proxy::backends("fleet", &proxy::fleet(&lab, true))
            + &proxy::backends("postgres", &[pg1]);
        let proxy = Pgsplice::start(lab.proxy(), "pgsplice", &config)?;
        Ok(Self { lab, proxy, certificate })
    }

    /// Runs a driver's script on the client host and compares the steps it did.
    fn run(&self, file: &str, text: &str, interpreter: &[&str], wire: Wire, steps: &[&str]) {
        let client = self.lab.client();
        let path = format!("/opt/tests/{wire:?}/{file}");
        client.write(&path, text).unwrap();
        let mode = wire.pick("plain", "tls");
        let argv = LIMIT.iter().chain(interpreter).copied().chain([path.as_str(), mode]);
        let mut command = client.command(argv);
        command.envs([("PGHOST", self.lab.proxy().v4().to_string()), ("PGPORT", FLEET_PORT.to_string())]);
        command.envs([("PGUSER", "app"), ("PGDATABASE", "app"), ("PGPASSWORD", APP_PASSWORD)]);
        command.envs([("PGSSLMODE", wire.pick("disable", "verify-full")), ("PGSSLROOTCERT", AUTHORITY)]);
        let output = command.output().unwrap();
        let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let done: Vec<&str> = said.lines().collect();
        assert!(output.status.success() && done == steps, "it did {done:?}, then {}:\n{errors}", output.status);
    }

    fn postgres(&self) -> std::net::SocketAddr {
        (self.lab.proxy().v4(), POSTGRES_PORT).into()
    }
}

impl Wire {
    fn pick<T>(self, plain: T, tls: T) -> T {
        if self == Self::Plain { plain } else { tls }
    }
}

fn psql(wire: Wire) {
    FLEET.get().run("psql.sh", include_str!("../drivers/psql.sh"), &["sh"], wire, STEPS);
}

#[test]
fn psql_works_through_a_fleet() {
    psql(Wire::Plain);
}

#[test]
fn psql_works_through_a_fleet_under_tls() {
    psql(Wire::Tls);
}

fn psycopg(wire: Wire) {
    FLEET.get().run("with_psycopg.py", include_str!("../drivers/with_psycopg.py"), &["python3"], wire, STEPS);
}

#[test]
fn psycopg_3_works_through_a_fleet() {
    psycopg(Wire::Plain);
}

#[test]
fn psycopg_3_works_through_a_fleet_under_tls() {
    psycopg(Wire::Tls);
}

fn asyncpg(wire: Wire) {
    FLEET.get().run("with_asyncpg.py", include_str!("../drivers/with_asyncpg.py"), &["python3"], wire, STEPS);
}

#[test]
fn asyncpg_works_through_a_fleet() {
    asyncpg(Wire::Plain);
}

#[test]
fn asyncpg_works_through_a_fleet_under_tls() {
    asyncpg(Wire::Tls);
}

fn node_postgres(wire: Wire) {
    let steps: Vec<&str> = STEPS.iter().copied().filter(|step| *step != "copy").collect();
    FLEET.get().run("node-postgres.js", include_str!("../drivers/node-postgres.js"), &["node"], wire, &steps);
}

#[test]
fn node_postgres_works_through_a_fleet() {
    node_postgres(Wire::Plain);
}

#[test]
fn node_postgres_works_through_a_fleet_under_tls() {
    node_postgres(Wire::Tls);
}

fn pgjdbc(wire: Wire) {
    let java = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", "/usr/share/java/postgresql.jar"];
    FLEET.get().run("Jdbc.java", include_str!("../drivers/Jdbc.java"), &java, wire, STEPS);
}

#[test]
fn pgjdbc_works_through_a_fleet() {
    pgjdbc(Wire::Plain);
}

#[test]
fn pgjdbc_works_through_a_fleet_under_tls() {
    pgjdbc(Wire::Tls);
}

#[test]
fn tokio_postgres_works_through_a_fleet() {
    let fleet = FLEET.get();
    fleet.lab.client().on_thread(|| within_limit(tokio_postgres(fleet, Wire::Plain, NoTls))).unwrap();
}

#[test]
fn tokio_postgres_works_through_a_fleet_under_tls() {
    let fleet = FLEET.get();
    let mut authorities = rustls::RootCertStore::empty();
    authorities.add(CertificateDer::from_pem_slice(fleet.certificate.authority.as_bytes()).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(authorities)
        .with_no_client_auth();
    let tls = MakeRustlsConnect::new(config);
    fleet.lab.client().on_thread(|| within_limit(tokio_postgres(fleet, Wire::Tls, tls))).unwrap();
}

/// The client, and the payloads of the notifications it hears.
async fn connect<T>(fleet: &Fleet, wire: Wire, tls: T) -> (Client, mpsc::UnboundedReceiver<String>)
where
    T: MakeTlsConnect<tokio_postgres::Socket>,
    T::Stream: Send + 'static,
{
    let (host, sslmode) = (fleet.lab.proxy().v4(), wire.pick("disable", "require"));
    let config = format!("host={host} port={FLEET_PORT} user=app password={APP_PASSWORD} dbname=app sslmode={sslmode}");
    let (client, mut connection) = tokio_postgres::connect(&config, tls).await.unwrap();
    let (sender, heard) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = futures_util::stream::poll_fn(|context| connection.poll_message(context));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(notification) = message {
                let _ = sender.send(notification.payload().to_owned());
            }
        }
    });
    (client, heard)
}

#[tokio::main(flavor = "current_thread")]
async fn within_limit(work: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_secs(120), work).await.unwrap();
}

async fn tokio_postgres<T>(fleet: &Fleet, wire: Wire, tls: T)
where
    T: MakeTlsConnect<tokio_postgres::Socket> + MakeTlsConnect<TcpStream> + Clone,
    <T as MakeTlsConnect<tokio_postgres::Socket>>::Stream: Send + 'static,
{
    let (client, mut heard) = connect(fleet, wire, tls.clone()).await;

    let rows = client.simple_query("SELECT 1; SELECT 2").await.unwrap();
    let values = rows.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    assert_eq!(values.collect::<Vec<_>>(), ["1", "2"]);

    let statement = client.prepare("SELECT $1::int + 1").await.unwrap();
    for number in 0..100 {
        assert_eq!(client.query_one(&statement, &[&number]).await.unwrap().get::<_, i32>(0), number + 1);
    }

    let mut rows = String::new();
    for number in 0..50_000 {
        writeln!(rows, "{number}\trow {number}").unwrap();
    }
    client.batch_execute("CREATE TEMP TABLE copied (number int, text text)").await.unwrap();
    let sink = client.copy_in("COPY copied FROM STDIN").await.unwrap();
    futures_util::pin_mut!(sink);
    for chunk in rows.as_bytes().chunks(8192) {
        sink.send(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 50_000);
    let out = client.copy_out("COPY (SELECT * FROM copied ORDER BY number) TO STDOUT").await.unwrap();
    let out: Vec<Bytes> = out.try_collect().await.unwrap();
    assert!(out.concat() == rows.as_bytes());

    let error = client.batch_execute("SELECT 1/0").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22012");

    let mut client = client;
    client.batch_execute("CREATE TEMP TABLE kept (number int)").await.unwrap();
    let transaction = client.transaction().await.unwrap();
    transaction.batch_execute("INSERT INTO kept VALUES (1)").await.unwrap();
    transaction.rollback().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    transaction.batch_execute("INSERT INTO kept VALUES (2)").await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(client.query_one("SELECT sum(number) FROM kept", &[]).await.unwrap().get::<_, i64>(0), 2);

    let channel = wire.pick("tokio_plain", "tokio_tls");
    client.batch_execute(&format!("LISTEN {channel}")).await.unwrap();
    let (another, _) = connect(fleet, wire, tls.clone()).await;
    another.batch_execute(&format!("NOTIFY {channel}, 'from another session'")).await.unwrap();
    let heard = tokio::time::timeout(Duration::from_secs(10), heard.recv()).await.unwrap();
    assert_eq!(heard.unwrap(), "from another session");

    let token = client.cancel_token();
    let begun = Instant::now();
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        cancel_and_wait(fleet, token, tls.clone()).await;
    };
    let (slept, ()) = tokio::join!(client.batch_execute("SELECT pg_sleep(60)"), cancel);
    assert_eq!(slept.unwrap_err().code().unwrap().code(), "57014");
    assert!(begun.elapsed() < Duration::from_secs(20));

    let sql = "SELECT repeat(lpad(i::text, 8, '0'), 128) FROM generate_series(1, 12000) i";
    let rows = client.query(sql, &[]).await.unwrap();
    assert_eq!(rows.len(), 12_000);
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(row.get::<_, &str>(0), format!("{:08}", number + 1).repeat(128));
    }

    let big: String = ('a'..='z').cycle().take(8_000_000).collect();
    let row = client.query_one("SELECT length($1), $1", &[&big]).await.unwrap();
    assert!(row.get::<_, i32>(0) == 8_000_000 && row.get::<_, &str>(1) == big);
}

/// Cancels, and waits for the end of the request's connection, as libpq does and tokio-postgres does not. PostgreSQL
/// signals a backend and then its process group, and closes after both: before that the next query may be hit, too.
async fn cancel_and_wait<T: MakeTlsConnect<TcpStream>>(fleet: &Fleet, token: CancelToken, mut tls: T) {
    let host = fleet.lab.proxy().v4().to_string();
    let stream = std::net::TcpStream::connect((host.as_str(), FLEET_PORT)).unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut rest = TcpStream::from_std(stream.try_clone().unwrap()).unwrap();
    let tls = tls.make_tls_connect(&host).map_err(Into::into).unwrap();
    token.cancel_query_raw(TcpStream::from_std(stream).unwrap(), tls).await.unwrap();
    // A reset is an end, too: nobody reads the end of TLS.
    let _ = rest.read_to_end(&mut Vec::new()).await;
}

/// PostgreSQL 17's own way to TLS: no SSLRequest, the ClientHello comes first.
#[test]
fn libpq_reaches_postgresql_by_direct_tls() {
    let fleet = FLEET.get();
    let conninfo = format!(
        "host={} port={POSTGRES_PORT} user=app dbname=app sslmode=verify-full sslrootcert={AUTHORITY}",
        fleet.lab.proxy().v4()
    );
    for negotiation in ["direct", "postgres"] {
        let conninfo = format!("{conninfo} sslnegotiation={negotiation}");
        let sql = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid();
                   SELECT md5(string_agg(repeat(i::text, 100), ',')) FROM generate_series(1, 20000) i";
        let through = fleet.lab.client().output(["psql", "-XAtq", &conninfo, "-c", sql]).unwrap();
        let (encrypted, digest) = through.trim_end().split_once('\n').unwrap();
        assert_eq!((encrypted, digest.len()), ("t|TLSv1.3", 32), "{negotiation}");
    }
    let logged = || {
        let lines = fleet.proxy.access_lines().unwrap();
        lines.iter().filter(|line| line.contains("pool=\"postgres\"") && line.contains("tls=true")).count() == 2
    };
    until("the access lines of both", Duration::from_secs(20), logged).unwrap();
}

/// PostgreSQL 17 knows 3.0 only: a client that asks for 3.2 is told so and goes on.
#[test]
fn a_client_may_ask_for_protocol_3_0_or_3_2() {
    let fleet = FLEET.get();
    let parameters = [("user", "app"), ("database", "app"), ("_pq_.test_protocol_negotiation", "on")];
    for minor in [0, 2] {
        let session = || -> Result<(Vec<Message>, Vec<Message>)> {
            let parameters = if minor == 0 { &parameters[..2] } else { &parameters };
            let mut raw = Raw::startup(fleet.postgres(), minor, parameters)?;
            let login = raw.until('Z')?;
            raw.send('Q', b"SELECT 'through'\0")?;
            Ok((login, raw.until('Z')?))
        };
        let (login, answer) = fleet.lab.client().on_thread(session).unwrap().unwrap();
        let negotiated = login[0].kind == 'v';
        assert_eq!(negotiated, minor == 2, "{login:?}");
        if negotiated {
            // The newest version it knows, one option it does not, its name.
            assert_eq!(login[0].body, [&[0, 3, 0, 0, 0, 0, 0, 1][..], b"_pq_.test_protocol_negotiation\0"].concat());
        }
        let kinds: String = login.iter().map(|message| message.kind).filter(|kind| *kind != 'S').collect();
        assert_eq!(kinds.trim_start_matches('v'), "RKZ");
        assert_eq!(answer[1], Message { kind: 'D', body: b"\0\x01\0\0\0\x07through".to_vec() });
    }
}

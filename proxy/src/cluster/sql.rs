//! What a PostgreSQL without Patroni says of itself, by SQL: whether it is in recovery, on which timeline, of which
//! database system, and how far its WAL is. One connection a question, as a client's would be.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, NoTls, SimpleQueryMessage, SimpleQueryRow};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::names::Names;
use super::proof::{Answer, UNKNOWN};
use super::resolve::HostPort;
use super::tls::{self, TlsError};
use crate::config::{StaticConfig, TlsFiles};
use crate::pg::startup::SSL_REQUEST;

/// The name of a WAL file begins with the timeline that is written to. The control file's is that of the last checkpoint
/// or restart point: on a standby it may be behind, and decides nothing there.
const QUESTION: &str = "SELECT pg_is_in_recovery() AS in_recovery, \
    CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id::text FROM pg_control_checkpoint()) \
    ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int::text END AS timeline, \
    (SELECT system_identifier FROM pg_control_system()) AS system_id, \
    CASE WHEN pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0') \
    ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') END AS wal";

/// How to log in at every member.
pub(super) struct Login {
    config: Config,
    /// `None`: in the clear.
    tls: Option<TlsConnector>,
    server_name: Option<String>,
    names: Names,
}

/// A connection with or without TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

// === impl Login ===

impl Login {
    /// Reads the TLS files.
    pub(super) fn new(fixed: &StaticConfig, files: &TlsFiles, names: &Names) -> Result<Self, TlsError> {
        super::install_crypto();
        let mut config = Config::new();
        // TLS is made before this begins.
        config.user(&fixed.user).dbname(&fixed.database).application_name("pgsplice").ssl_mode(SslMode::Disable);
        if let Some(password) = &fixed.password {
            config.password(password);
        }
        let tls = tls::client_config(files)?.map(|config| TlsConnector::from(std::sync::Arc::new(config)));
        Ok(Self { config, tls, server_name: files.server_name.clone(), names: names.clone() })
    }

    /// Asks the server of this `postgres://` URL.
    pub(super) async fn ask(&self, url: &str) -> Answer {
        let stream = match self.connect(url).await {
            Ok(stream) => stream,
            Err(why) => return Answer::Silent { why },
        };
        let said = async {
            let (client, connection) = self.config.connect_raw(stream, NoTls).await?;
            // The client goes with the question; the connection then sends Terminate and ends.
            let question = async move { client.simple_query(QUESTION).await };
            let (rows, _ended) = tokio::join!(question, connection);
            rows
        };
        match said.await {
            Ok(messages) => read(&messages),
            Err(error) if error.code() == Some(&SqlState::CANNOT_CONNECT_NOW) => not_up(&error),
            Err(error) => untold(error.code(), super::http::cause(&error)),
        }
    }

    async fn connect(&self, url: &str) -> Result<Box<dyn Stream>, String> {
        let HostPort { host, port } = HostPort::of_url(url).ok_or_else(|| format!("{url:?} has no host"))?;
        let addresses: Vec<_> =
            self.names.look_up(&host).await?.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
        let mut stream = TcpStream::connect(&*addresses).await.map_err(|error| error.to_string())?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let fail = |error: std::io::Error| format!("TLS: {error}");
        stream.write_all(&SSL_REQUEST).await.map_err(fail)?;
        match stream.read_u8().await.map_err(fail)? {
            b'S' => {}
            _ => return Err("TLS: the server has none".into()),
        }
        let name = self.server_name.clone().unwrap_or(host);
        let name = ServerName::try_from(name).map_err(|error| format!("TLS: {error}"))?;
        Ok(Box::new(tls.connect(name, stream).await.map_err(fail)?))
    }
}

impl std::fmt::Debug for Login {
    /// Never prints the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("user", &self.config.get_user()).finish_non_exhaustive()
    }
}

fn read(messages: &[SimpleQueryMessage]) -> Answer {
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    row.and_then(answer).unwrap_or_else(|| Answer::silent("its answer is not what was asked for"))
}

fn answer(row: &SimpleQueryRow) -> Option<Answer> {
    let timeline = row.try_get("timeline").ok()?.and_then(|timeline| timeline.parse().ok());
    let system_id = row.try_get("system_id").ok()?.map(Into::into);
    let wal = row.try_get("wal").ok()?.and_then(|wal| wal.parse().ok());
    match row.try_get("in_recovery").ok()?? {
        "f" => Some(Answer::Primary { timeline: timeline.filter(|timeline| *timeline > 0)?, system_id, wal }),
        _ => Some(Answer::NotPrimary { role: "replica".into(), state: "running".into(), timeline, system_id, wal }),
    }
}

/// Class 53 is what the server itself runs out of.
fn untold(code: Option<&SqlState>, why: String) -> Answer {
    match code {
        Some(code) if code.code().starts_with("53") => Answer::Full { why },
        _ => Answer::Silent { why },
    }
}

/// It starts, stops, recovers from a crash, or is a standby that takes no sessions. Which one, its words do not tell in
/// every language.
fn not_up(error: &tokio_postgres::Error) -> Answer {
    let state = error.as_db_error().map_or_else(|| error.to_string(), |said| said.message().into());
    Answer::NotPrimary { role: UNKNOWN.into(), state, timeline: None, system_id: None, wal: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_a_free_connection_is_not_silent() {
        let answer = |code: &SqlState| untold(Some(code), "why".into());
        let why = || "why".to_owned();
        assert_eq!(answer(&SqlState::TOO_MANY_CONNECTIONS), Answer::Full { why: why() });
        assert_eq!(answer(&SqlState::OUT_OF_MEMORY), Answer::Full { why: why() });
        assert_eq!(answer(&SqlState::INVALID_PASSWORD), Answer::Silent { why: why() });
        assert_eq!(untold(None, why()), Answer::Silent { why: why() });
    }
}

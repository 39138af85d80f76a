//! One probe of one address: connect, ask what the pool's `probe.kind` says, close politely.
//!
//! A probe goes the way a client goes. Only the query kind reaches PostgreSQL itself: a PgBouncer answers a TCP connect
//! and an SSLRequest while every server behind it is dead.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;

use crate::config::{Probe, ProbeKind};
use crate::pg::startup::SSL_REQUEST;

/// How much of an error message is read and kept, in bytes.
const LONGEST_REASON: usize = 200;

/// What PgBouncer says of its servers begins so: what went wrong there comes after it, and SQLSTATE is its own.
const CACHED: &str = "server login has been failing";

/// How PostgreSQL words SQLSTATE 53300, unless its `lc_messages` are in another language.
const TOO_MANY: [&str; 3] = ["too many clients already", "too many connections for", "connection slots are reserved"];

/// What a backend that lives answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alive {
    Works,
    /// It, or the server behind it, has no connection to spare.
    Full {
        why: String,
    },
}

/// Ends within `probe.timeout`. The error is for an operator: `connect: Connection refused (os error 111)`.
pub async fn probe(address: SocketAddr, probe: &Probe) -> Result<Alive, String> {
    let mut step = "connect";
    let asked = async {
        let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {}", plain(&error)))?;
        match &probe.kind {
            ProbeKind::None | ProbeKind::Tcp => Ok(Alive::Works),
            ProbeKind::SslRequest => {
                step = "SSLRequest";
                ssl_request(stream).await
            }
            ProbeKind::Query { user, password, database, query } => {
                step = "login";
                query_through(stream, user, password.as_deref(), database, query, &mut step).await
            }
        }
    };
    let answer = tokio::time::timeout(probe.timeout, asked).await;
    answer.unwrap_or_else(|_| Err(format!("{step}: no answer within {}", seconds(probe.timeout))))
}

async fn ssl_request(mut stream: TcpStream) -> Result<Alive, String> {
    let fail = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => "SSLRequest: closed without an answer".to_owned(),
        _ => format!("SSLRequest: {}", plain(&error)),
    };
    stream.write_all(&SSL_REQUEST).await.map_err(fail)?;
    match stream.read_u8().await.map_err(fail)? {
        b'S' | b'N' => {
            // FIN rather than RST: both servers take an end here for a client that changed its mind.
            let _ = stream.shutdown().await;
            Ok(Alive::Works)
        }
        b'E' => Err(format!("SSLRequest: answered with an error: {}", error_message(stream).await)),
        other => Err(format!("SSLRequest: answered with byte 0x{other:02x} instead of S or N; is it PostgreSQL?")),
    }
}

/// The text of an ErrorResponse whose type byte was read, as far as it arrives.
async fn error_message(stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // Whatever was read before an error is still worth showing.
    let _ = stream.take(2 * LONGEST_REASON as u64).read_to_end(&mut bytes).await;
    let fields = bytes.get(4..).unwrap_or_default().split(|byte| *byte == 0);
    let message = fields.into_iter().find_map(|field| field.strip_prefix(b"M"));
    // Before protocol 3.0 an error was a bare string; a server that can't fork still sends that.
    let text = String::from_utf8_lossy(message.unwrap_or(&bytes)).trim_matches(['\0', '\n']).to_owned();
    clip(if text.is_empty() { "no message".into() } else { text })
}

async fn query_through(
    stream: TcpStream,
    user: &str,
    password: Option<&str>,
    database: &str,
    query: &str,
    step: &mut &'static str,
) -> Result<Alive, String> {
    let mut config = tokio_postgres::Config::new();
    config.user(user).dbname(database).application_name("pgsplice probe").ssl_mode(SslMode::Disable);
    if let Some(password) = password {
        config.password(password);
    }
    let (client, connection) = match config.connect_raw(stream, tokio_postgres::NoTls).await {
        Ok(connected) => connected,
        Err(error) => return full_or_failed(&format!("login as {user}"), &error),
    };
    *step = "query";
    let ask = async move {
        // The client is dropped at the end of this block; the connection then sends Terminate and ends.
        client.simple_query(query).await
    };
    let (answer, _ended) = tokio::join!(ask, connection);
    answer.map_or_else(|error| full_or_failed("query", &error), |_| Ok(Alive::Works))
}

fn full_or_failed(what: &str, error: &tokio_postgres::Error) -> Result<Alive, String> {
    let why = format!("{what}: {}", said(error));
    let is_full = error.as_db_error().is_some_and(|db| is_full(db.code(), db.message()));
    if is_full { Ok(Alive::Full { why }) } else { Err(why) }
}

fn is_full(code: &SqlState, message: &str) -> bool {
    let is_cached = || message.starts_with(CACHED) && TOO_MANY.iter().any(|text| message.contains(text));
    *code == SqlState::TOO_MANY_CONNECTIONS || is_cached()
}

/// What the server said, or what went wrong on the way.
fn said(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return clip(format!("{}: {} (SQLSTATE {})", db.severity(), db.message(), db.code().code()));
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    clip(text)
}

fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::ConnectionReset => "connection reset".into(),
        io::ErrorKind::HostUnreachable => "no route to host".into(),
        io::ErrorKind::NetworkUnreachable => "network unreachable".into(),
        _ => error.to_string(),
    }
}

/// One line, of bounded length, whatever the other side sent.
fn clip(text: String) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_REASON).collect();
    if line.len() < text.len() {
        line.push('…');
    }
    line
}

fn seconds(time: Duration) -> String {
    if time.subsec_millis() == 0 { format!("{} s", time.as_secs()) } else { format!("{} ms", time.as_millis()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn kind(kind: ProbeKind) -> Probe {
        Probe { kind, timeout: Duration::from_millis(300), ..Probe::default() }
    }

    /// A server that answers every first packet with `answer`, or never when `None`.
    async fn server(answer: Option<&'static [u8]>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut packet = [0; 8];
                    stream.read_exact(&mut packet).await.ok();
                    match answer {
                        Some(answer) => stream.write_all(answer).await.unwrap(),
                        None => std::future::pending().await,
                    }
                });
            }
        });
        address
    }

    /// Nobody else listens at this address.
    async fn refused() -> SocketAddr {
        TcpListener::bind("127.7.0.2:0").await.unwrap().local_addr().unwrap()
    }

    #[tokio::test]
    async fn a_closed_port_is_refused_by_every_kind() {
        let query =
            ProbeKind::Query { user: "u".into(), password: None, database: "d".into(), query: "SELECT 1".into() };
        for kind_ in [ProbeKind::Tcp, ProbeKind::SslRequest, query] {
            assert_eq!(probe(refused().await, &kind(kind_)).await, Err("connect: connection refused".into()));
        }
    }

    #[tokio::test]
    async fn an_answer_of_s_or_n_is_a_success() {
        for answer in [b"S", b"N"] {
            assert_eq!(probe(server(Some(answer)).await, &kind(ProbeKind::SslRequest)).await, Ok(Alive::Works));
        }
    }

    #[tokio::test]
    async fn a_server_that_hangs_is_alive_to_tcp_only() {
        let address = server(None).await;
        assert_eq!(probe(address, &kind(ProbeKind::Tcp)).await, Ok(Alive::Works));
        let error = probe(address, &kind(ProbeKind::SslRequest)).await.unwrap_err();
        assert_eq!(error, "SSLRequest: no answer within 300 ms");
        let query = ProbeKind::Query { user: "u".into(), password: None, database: "d".into(), query: "".into() };
        assert_eq!(probe(address, &kind(query)).await.unwrap_err(), "login: no answer within 300 ms");
    }

    #[tokio::test]
    async fn other_answers_are_failures_that_say_what_came() {
        let ssl = kind(ProbeKind::SslRequest);
        let error = probe(server(Some(b"HTTP/1.1 400 Bad Request\r\n")).await, &ssl).await.unwrap_err();
        assert_eq!(error, "SSLRequest: answered with byte 0x48 instead of S or N; is it PostgreSQL?");
        let error = probe(server(Some(b"")).await, &ssl).await.unwrap_err();
        assert_eq!(error, "SSLRequest: closed without an answer");
        let full = b"E\0\0\0\x2aSFATAL\0C53300\0Mno more connections allowed\0\0";
        let error = probe(server(Some(full)).await, &ssl).await.unwrap_err();
        assert_eq!(error, "SSLRequest: answered with an error: no more connections allowed");
    }

    #[tokio::test]
    async fn garbage_at_login_is_a_failure() {
        let query = ProbeKind::Query { user: "u".into(), password: None, database: "d".into(), query: "".into() };
        let error = probe(server(Some(b"\xff\xff\xff\xff\xff\xff\xff\xff")).await, &kind(query)).await.unwrap_err();
        assert!(error.starts_with("login as u: "), "{error}");
    }

    #[test]
    fn a_server_without_a_free_connection_is_alive_in_its_own_words_and_in_pgbouncers() {
        let cached = |why: &str| format!("server login has been failing, cached error: {why} (server_login_retry)");
        assert!(is_full(&SqlState::TOO_MANY_CONNECTIONS, "Verbindungen sind alle"));
        let protocol = SqlState::PROTOCOL_VIOLATION;
        assert!(is_full(&protocol, &cached("FATAL: sorry, too many clients already")));
        assert!(is_full(&protocol, &cached("too many connections for role \"app\"")));
        assert!(!is_full(&protocol, &cached("connect failed")));
        assert!(!is_full(&SqlState::INVALID_PASSWORD, "too many clients already"));
    }

    #[test]
    fn a_reason_is_one_line_of_bounded_length() {
        let text = clip(format!("a\nb{}", "é".repeat(500)));
        assert!(text.starts_with("a bé") && text.ends_with('…') && text.chars().count() == LONGEST_REASON + 1);
    }
}

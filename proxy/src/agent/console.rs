//! PgBouncer's admin console: a few commands over one connection, each under a time limit.
//!
//! The console speaks the simple query protocol only (`admin.c` of PgBouncer).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, SimpleQueryRow};

use super::servers::Server;
use crate::config::agent::{self, PgBouncer};

pub(super) struct Console {
    place: agent::Console,
    login: Config,
    timeout: Duration,
    link: Option<Link>,
}

/// A connection, which ends with this.
struct Link {
    client: Client,
    pump: JoinHandle<()>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ConsoleError {
    #[error("cannot connect to PgBouncer's console at {place}: {source}")]
    Connect { place: String, source: std::io::Error },
    #[error("PgBouncer's console at {place}: {what}: {why}")]
    Refused { place: String, what: String, why: String },
    #[error("PgBouncer's console at {place}: {what}: no answer within {limit:?}")]
    Timeout { place: String, what: String, limit: Duration },
}

/// A row of SHOW DATABASES, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Database {
    pub name: String,
    pub host: String,
    pub port: String,
    /// What the server calls it (`dbname`).
    pub database: String,
    /// `paused` or `disabled`.
    pub halted: Option<String>,
}

// === impl Console ===

impl Console {
    /// One whose commands may take this long.
    pub(super) fn patient(config: &PgBouncer, timeout: Duration) -> Self {
        Self { timeout, ..Self::new(config) }
    }

    pub(super) fn new(config: &PgBouncer) -> Self {
        let mut login = Config::new();
        login.user(&config.user).dbname("pgbouncer").application_name("pgsplice agent");
        if let Some(password) = &config.password {
            login.password(password);
        }
        Self { place: config.console.clone(), login, timeout: config.timeout, link: None }
    }

    /// What PgBouncer has loaded.
    pub(super) async fn databases(&mut self) -> Result<Vec<Database>, ConsoleError> {
        let rows = self.command("SHOW DATABASES").await?;
        Ok(rows.iter().map(database).collect())
    }

    /// `paused` or `suspended` as a whole, which SHOW DATABASES does not show.
    pub(super) async fn halted(&mut self) -> Result<Option<String>, ConsoleError> {
        let rows = match self.command("SHOW STATE").await {
            // PgBouncer before 1.17 does not know the command.
            Err(ConsoleError::Refused { .. }) => return Ok(None),
            rows => rows?,
        };
        let column = |row: &SimpleQueryRow, name: &str| row.try_get(name).ok().flatten().map(str::to_string);
        let yes = rows.iter().find(|row| {
            column(row, "value").as_deref() == Some("yes") && column(row, "key").as_deref() != Some("active")
        });
        Ok(yes.and_then(|row| column(row, "key")))
    }

    /// Its connections to servers; those over a Unix socket are left out.
    pub(super) async fn servers(&mut self) -> Result<Vec<Server>, ConsoleError> {
        let rows = self.command("SHOW SERVERS").await?;
        Ok(rows.iter().filter_map(server).collect())
    }

    /// How long the client waits that waits longest for one of these databases.
    pub(super) async fn longest_wait(&mut self, databases: &BTreeSet<String>) -> Result<Duration, ConsoleError> {
        let rows = self.command("SHOW POOLS").await?;
        let number = |row: &SimpleQueryRow, name: &str| text(row, name).parse::<u64>().unwrap_or(0);
        let of_them = rows.iter().filter(|row| databases.contains(&text(row, "database")));
        let waits = of_them
            .map(|row| Duration::from_secs(number(row, "maxwait")) + Duration::from_micros(number(row, "maxwait_us")));
        Ok(waits.max().unwrap_or_default())
    }

    /// Connects first where there is no connection. After any error the next command makes a new one.
    pub(super) async fn command(&mut self, command: &str) -> Result<Vec<SimpleQueryRow>, ConsoleError> {
        // Taken out: a command that is dropped half-way takes its connection with it.
        let link = match self.link.take().filter(|link| !link.client.is_closed()) {
            Some(link) => link,
            None => self.bounded("connect", self.connect()).await?,
        };
        let work = async { link.client.simple_query(command).await.map_err(|error| self.refused(command, &error)) };
        let messages = self.bounded(command, work).await?;
        self.link = Some(link);
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            })
            .collect())
    }

    async fn connect(&self) -> Result<Link, ConsoleError> {
        let unreachable = |source| ConsoleError::Connect { place: self.place.to_string(), source };
        match &self.place {
            agent::Console::Unix(path) => self.log_in(UnixStream::connect(path).await.map_err(unreachable)?).await,
            agent::Console::Tcp(address) => self.log_in(TcpStream::connect(address).await.map_err(unreachable)?).await,
        }
    }

    async fn log_in<S>(&self, stream: S) -> Result<Link, ConsoleError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (client, connection) =
            self.login.connect_raw(stream, NoTls).await.map_err(|error| self.refused("log in", &error))?;
        let pump = tokio::spawn(async move {
            // Its error is also that of the command under way.
            let _ = connection.await;
        });
        Ok(Link { client, pump })
    }

    async fn bounded<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, ConsoleError>>,
    ) -> Result<T, ConsoleError> {
        let late = |_| ConsoleError::Timeout { place: self.place.to_string(), what: what.into(), limit: self.timeout };
        tokio::time::timeout(self.timeout, work).await.map_err(late)?
    }

    fn refused(&self, what: &str, error: &tokio_postgres::Error) -> ConsoleError {
        let why = match (error.as_db_error(), std::error::Error::source(error)) {
            (Some(db), _) => db.message().to_string(),
            (None, Some(source)) => source.to_string(),
            (None, None) => error.to_string(),
        };
        ConsoleError::Refused { place: self.place.to_string(), what: what.into(), why }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

/// A name as the console reads it with any characters.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// By name: the columns differ between versions of PgBouncer.
fn text(row: &SimpleQueryRow, name: &str) -> String {
    row.try_get(name).ok().flatten().unwrap_or_default().to_string()
}

fn server(row: &SimpleQueryRow) -> Option<Server> {
    let address =
        |ip: &str, port: &str| Some(SocketAddr::new(text(row, ip).parse().ok()?, text(row, port).parse().ok()?));
    let (remote, local) = (address("addr", "port")?, address("local_addr", "local_port")?);
    Some(Server { database: text(row, "database"), remote, local })
}

fn database(row: &SimpleQueryRow) -> Database {
    let column = |name: &str| text(row, name);
    let halted = ["disabled", "paused"].into_iter().find(|state| column(state) == "1");
    Database {
        name: column("name"),
        host: column("host"),
        port: column("port"),
        database: column("database"),
        halted: halted.map(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn names_are_quoted_for_the_console() {
        assert_eq!(quoted("app"), "\"app\"");
        assert_eq!(quoted("a\"; SHUTDOWN"), "\"a\"\"; SHUTDOWN\"");
    }
}

//! Logs: lines to standard output, as text or JSON, written by a thread of their own; and the access line of a session.
//!
//! A slow reader of the log never slows a session: past the queue's bound lines are dropped and counted
//! (`pgsplice_log_lines_dropped_total`).

use std::sync::OnceLock;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{self, LogFormat};
use crate::session::{SessionRecord, Termination};

/// The target of access lines: filter on it to have them elsewhere.
pub const ACCESS: &str = "pgsplice::access";

/// Lines kept for the writing thread; about 10 MB at worst.
const QUEUED_LINES: usize = 32_000;

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Holds the log open. Dropping it writes what is queued.
#[derive(Debug)]
pub struct Log {
    filter: reload::Handle<EnvFilter, Registry>,
    _writer: WorkerGuard,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("log.level: `{level}`: {source}; expected a level such as `info`, or directives such as `pgsplice=debug`")]
    Directive { level: String, source: ParseError },
    #[error("log.level: `{word}` is no level; expected error, warn, info, debug, trace, off, or `pgsplice=debug`")]
    Level { word: String },
    #[error("the log is already set up: {0}")]
    Twice(#[from] TryInitError),
    #[error("log.level: {0}")]
    Gone(#[from] reload::Error),
}

/// Once a process, before the first line.
pub fn init(config: &config::Log) -> Result<Log, LogError> {
    let (filter, handle) = reload::Layer::new(filter(config)?);
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(QUEUED_LINES).lossy(true).finish(std::io::stdout());
    // Set first: a process that logs twice is refused below, and its lines would not be counted anywhere.
    DROPPED.get_or_init(|| writer.error_counter());
    tracing_subscriber::registry().with(filter).with(lines(config.format, writer)).try_init()?;
    Ok(Log { filter: handle, _writer: guard })
}

/// Lines dropped since start because the reader of the log was too slow.
pub fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |counter| counter.dropped_lines() as u64)
}

// === impl Log ===

impl Log {
    /// Takes `level` and `access` over; a change of `format` needs a restart.
    pub fn reconfigure(&self, config: &config::Log) -> Result<(), LogError> {
        Ok(self.filter.reload(filter(config)?)?)
    }
}

/// Whether `log.level` can be used, for the configuration's check.
pub fn check_level(level: &str) -> Result<(), LogError> {
    directives(level).map(drop)
}

fn directives(level: &str) -> Result<EnvFilter, LogError> {
    // The parser takes a bare word that is no level for the name of a module, which would then say everything and
    // all others nothing.
    let bare = level.split(',').map(str::trim).filter(|part| !part.contains(['=', '[']));
    if let Some(word) = bare.into_iter().find(|word| word.is_empty() || word.parse::<LevelFilter>().is_err()) {
        return Err(LogError::Level { word: word.into() });
    }
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(level)
        .map_err(|source| LogError::Directive { level: level.into(), source })
}

/// `level` rules everything but access lines, which have a switch of their own.
fn filter(config: &config::Log) -> Result<EnvFilter, LogError> {
    let access = if config.access { "info" } else { "off" };
    let access = format!("{ACCESS}={access}").parse().expect("the directive is a constant");
    Ok(directives(&config.level)?.add_directive(access))
}

fn lines<S>(format: LogFormat, writer: NonBlocking) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    match format {
        LogFormat::Text => fmt::layer().with_ansi(false).with_writer(writer).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_current_span(false).with_writer(writer).boxed(),
    }
}

// === The access line ===

/// The one line of an ended session. What the client sent (`user`, `database`, `application_name`) is written quoted
/// and escaped, so it can't forge a line.
pub fn access(record: &SessionRecord, reason: Termination, total: Duration) {
    if !tracing::enabled!(target: ACCESS, tracing::Level::INFO) {
        return;
    }
    let details = record.details();
    let (bytes_in, bytes_out) = record.bytes();
    let backend = details.backend.as_deref();
    tracing::info!(
        target: ACCESS,
        id = %record.id,
        listener = record.listener.as_str(),
        pool = record.pool.as_str(),
        client = %record.client(),
        user = details.user,
        database = details.database,
        application_name = details.application_name,
        tls = details.tls,
        backend = backend.map(|backend| backend.name.as_str()),
        backend_address = backend.map(|backend| tracing::field::display(backend.address)),
        road = details.road,
        road_why = details.why.map(|why| why.as_str()),
        bytes_in,
        bytes_out,
        startup_ms = details.times.startup.map(millis),
        queue_ms = details.times.queue.map(millis),
        connect_ms = details.times.connect.map(millis),
        handshake_ms = details.times.handshake.map(millis),
        total_ms = millis(total),
        reason = reason.as_str(),
        "session"
    );
}

/// Milliseconds with three digits after the point.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;
    use crate::pool::Backend;
    use crate::session::SessionId;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(buf);
            Ok(buf.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(config: config::Log, work: impl FnOnce()) -> String {
        let lines_written = Lines::default();
        let (writer, guard) = tracing_appender::non_blocking(lines_written.clone());
        let subscriber =
            tracing_subscriber::registry().with(filter(&config).unwrap()).with(lines(config.format, writer));
        tracing::subscriber::with_default(subscriber, work);
        drop(guard);
        let bytes = lines_written.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn record() -> SessionRecord {
        let record = SessionRecord::new(SessionId(0x1f), "rw", "main", "192.0.2.7:40001".parse().unwrap());
        record.update(|details| {
            details.user = Some("app".into());
            details.application_name = Some("two\nlines \u{1b}[31m".into());
            details.backend = Some(Arc::new(Backend::new("main", "pgb1", "10.0.0.1:6432".parse().unwrap())));
            details.road = Some("relay");
            details.times.connect = Some(Duration::from_micros(1_234));
        });
        record
    }

    #[test]
    fn the_access_line_is_one_line_whatever_the_client_sent() {
        let text = written(config::Log::default(), || {
            access(&record(), Termination::ClientClosed, Duration::from_secs(2));
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        for part in ["id=1f", "client=192.0.2.7:40001", "backend=\"pgb1\"", "connect_ms=1.234", "client-closed"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert!(!text.contains("queue_ms"), "a step that was not taken is left out: {text}");
    }

    #[test]
    fn json_has_flat_keys() {
        let config = config::Log { format: LogFormat::Json, ..config::Log::default() };
        let text = written(config, || access(&record(), Termination::Killed, Duration::from_millis(5)));
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["reason"], "killed");
        assert_eq!(line["total_ms"], 5.0);
        assert_eq!(line["application_name"], "two\nlines \u{1b}[31m");
        assert_eq!(line["backend_address"], "10.0.0.1:6432");
        assert_eq!(line["target"], ACCESS);
    }

    #[test]
    fn access_lines_have_their_own_switch() {
        let work = || {
            access(&record(), Termination::Killed, Duration::ZERO);
            tracing::info!("started");
        };
        let quiet = config::Log { level: "warn".into(), ..config::Log::default() };
        let text = written(quiet, work);
        assert!(text.contains("killed") && !text.contains("started"), "{text}");
        let without = config::Log { access: false, ..config::Log::default() };
        let text = written(without, work);
        assert!(!text.contains("killed") && text.contains("started"), "{text}");
    }

    #[test]
    fn a_bad_level_says_what_was_expected() {
        for bad in ["loud", "", "info,loud", "pgsplice=loud"] {
            let error = check_level(bad).expect_err(bad).to_string();
            assert!(error.starts_with("log.level: `") && error.contains("expected"), "{error}");
        }
        for good in ["info", "OFF", "warn,pgsplice::health=debug", "pgsplice[session]=trace"] {
            check_level(good).unwrap();
        }
    }
}

//! `pgsplice run`: the proxy itself.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use tokio::signal::unix::{SignalKind, signal};

use crate::admin;
use crate::config::{Config, Overrides, Source, Warning};
use crate::proxy::Proxy;

/// Run the proxy
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file
    #[arg(long, value_name = "FILE", required_unless_present = "listen", conflicts_with_all = ["listen", "backend"])]
    pub config: Option<PathBuf>,
    /// Without a file: accept clients here (repeat for more)
    #[arg(long, value_name = "ADDR", requires = "backend")]
    pub listen: Vec<SocketAddr>,
    /// Without a file: a PgBouncer or PostgreSQL to send sessions to (repeat for more)
    #[arg(long, value_name = "ADDR", requires = "listen")]
    pub backend: Vec<SocketAddr>,
    /// Unix socket for `pgsplice status` and the like; overrides `admin.socket`
    #[arg(long, value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// HTTP for /metrics, /healthz, /readyz; overrides `admin.http`
    #[arg(long, value_name = "ADDR")]
    pub http: Option<SocketAddr>,
    /// Overrides `log.format`
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

impl From<LogFormat> for crate::config::LogFormat {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Json,
        }
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (source, config, warnings) = configuration(&args)?;
    let log = crate::log::init(&config.log)?;
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    raise_descriptor_limit();
    // reqwest and tonic must agree on one; an error means somebody in this process was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(control(source, config, log));
    // Lookups and the like that still run must not hold up the end.
    runtime.shutdown_background();
    code
}

fn configuration(args: &Args) -> anyhow::Result<(Option<Source>, Config, Vec<Warning>)> {
    let overrides = Overrides {
        admin_socket: args.admin_socket.clone(),
        http: args.http,
        log_format: args.log_format.map(Into::into),
    };
    match &args.config {
        Some(file) => {
            let source = Source { file: file.clone(), overrides };
            let (config, warnings) = source.load()?;
            Ok((Some(source), config, warnings))
        }
        None => {
            let mut config = Config::from_addresses(&args.listen, &args.backend);
            let warnings = config.check()?;
            overrides.apply(&mut config);
            Ok((None, config, warnings))
        }
    }
}

/// The control plane's life: start, obey signals, drain.
async fn control(source: Option<Source>, config: Config, log: crate::log::Log) -> anyhow::Result<ExitCode> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let admin = config.admin.clone();
    let proxy = Proxy::start(config, source, Some(log)).await?;
    let _admin = admin::serve(proxy.clone(), &admin).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), threads = proxy.threads, admin = %admin.socket.display(), "running");
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                // In a task of its own: it resolves names, and a signal to end must not wait for that. What it did or
                // refused is in the log.
                let proxy = proxy.clone();
                tokio::spawn(async move { drop(proxy.reload().await) });
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    let limit = proxy.config.load().proxy.drain_timeout;
    tracing::info!(sessions = proxy.session_count(), ?limit, "draining; a second signal stops at once");
    tokio::select! {
        cut = proxy.drain(limit) => tracing::info!(cut, "drained"),
        _ = terminate.recv() => tracing::warn!(sessions = proxy.session_count(), "stopped at once"),
        _ = interrupt.recv() => tracing::warn!(sessions = proxy.session_count(), "stopped at once"),
    }
    proxy.stop_kernel();
    proxy.close_log();
    Ok(ExitCode::SUCCESS)
}

/// A session takes two descriptors; the soft limit of 1024 is there for programs that use select(2).
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid rlimit for their length.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    if !raised {
        tracing::warn!("the limit of open files stays as it is: {}", std::io::Error::last_os_error());
    }
}

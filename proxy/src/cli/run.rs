//! `pgsplice run`: the proxy itself.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::admin;
use crate::config::{Config, Overrides, Source, Warning};
use crate::handover::take::Takeover;
use crate::handover::{self, Inherited, systemd};
use crate::proxy::{Before, Proxy};

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
    /// Take over from the pgsplice that answers on the admin socket, or start like any other if none does
    #[arg(long)]
    pub takeover: bool,
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
    // SAFETY: nothing has started a thread yet.
    let environment = unsafe { systemd::Environment::take() };
    let (source, config, warnings) = configuration(&args)?;
    let log = crate::log::init(&config.log)?;
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    handover::successor::remember();
    raise_descriptor_limit();
    // reqwest and tonic must agree on one; an error means somebody in this process was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let begin = Begin { environment: environment.set_up(), takeover: args.takeover };
    let code = runtime.block_on(control(source, config, log, begin));
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

/// How this process comes to its sockets.
struct Begin {
    environment: Inherited,
    takeover: bool,
}

/// The control plane's life: start, obey signals, drain.
async fn control(
    source: Option<Source>,
    config: Config,
    log: crate::log::Log,
    begin: Begin,
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let Running { proxy, admin } = start(source, config, log, begin).await?;
    let handed_over = loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::End => break None,
                // In a task of its own: it resolves names, and a signal to end must not wait for that. What it did or
                // refused is in the log.
                Asked::Reload => {
                    let proxy = proxy.clone();
                    tokio::spawn(async move { drop(proxy.reload().await) });
                }
            },
            done = proxy.handover.completed() => break Some(done),
        }
    };
    match handed_over {
        Some(done) => {
            if done.admin_kept {
                admin.hand_over()
            } else {
                drop(admin)
            }
            see_out(&proxy, &mut signals).await;
        }
        None => {
            let limit = proxy.config.load().proxy.drain_timeout;
            systemd::notify("STOPPING=1");
            drain(&proxy, &mut signals, limit).await;
            drop(admin);
        }
    }
    proxy.stop_kernel();
    proxy.close_log();
    Ok(ExitCode::SUCCESS)
}

/// A proxy that serves.
struct Running {
    proxy: Arc<Proxy>,
    admin: admin::Admin,
}

async fn start(source: Option<Source>, config: Config, log: crate::log::Log, begin: Begin) -> anyhow::Result<Running> {
    let mut before = Before { inherited: begin.environment, takeover: None };
    if begin.takeover {
        match Takeover::begin(&config.admin.socket).await? {
            // Nothing but copies of the same sockets is in the environment then.
            Some((takeover, inherited)) => before = Before { inherited, takeover: Some(takeover) },
            None => tracing::info!(socket = %config.admin.socket.display(), "there is no process to take over from"),
        }
    }
    let sockets = admin::bind(&config.admin, &mut before.inherited).await?;
    let admin_kept = sockets.inherited;
    let proxy = Proxy::start(config, source, Some(log), &mut before).await?;
    let admin = admin::serve(proxy.clone(), sockets);
    if let Some(takeover) = before.takeover {
        let pid = takeover.pid;
        match takeover.finish(admin_kept).await {
            Ok(()) => tracing::info!(pid, "took over"),
            // It cannot have gone on.
            Err(error) if pid.is_some_and(Takeover::is_over) => tracing::warn!(pid, "{error}, and has ended"),
            Err(error) => {
                proxy.leave_kernel();
                admin.hand_over();
                return Err(error.into());
            }
        }
    }
    proxy.settle_kernel();
    proxy.keep_sockets(before.inherited);
    let (version, socket) = (env!("CARGO_PKG_VERSION"), admin.socket.display());
    tracing::info!(version, threads = proxy.threads, admin = %socket, "running");
    systemd::notify("READY=1");
    Ok(Running { proxy, admin })
}

async fn drain(proxy: &Proxy, signals: &mut Signals, limit: Duration) {
    tracing::info!(sessions = proxy.session_count(), ?limit, "draining; a second signal stops at once");
    tokio::select! {
        cut = proxy.drain(limit) => tracing::info!(cut, "drained"),
        () = signals.end() => tracing::warn!(sessions = proxy.session_count(), "stopped at once"),
    }
}

/// After a takeover: the sessions that are left have all the time they want, until somebody wants this process to end.
async fn see_out(proxy: &Proxy, signals: &mut Signals) {
    tracing::info!(sessions = proxy.session_count(), "another process has taken over; this one ends with its sessions");
    tokio::select! {
        () = proxy.sessions_over() => tracing::info!("the last session has ended"),
        () = signals.end() => drain(proxy, signals, proxy.config.load().proxy.drain_timeout).await,
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Reload,
    End,
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.hangup.recv() => Asked::Reload,
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
        }
    }

    async fn end(&mut self) {
        while self.next().await != Asked::End {}
    }
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

//! `pgsplice run`: the proxy itself.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;

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

pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("run: not built yet")
}

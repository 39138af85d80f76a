//! `pgsplice drain`.

use std::process::ExitCode;

use super::client::ClientArgs;

/// Give a backend no new sessions; those it has go on
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or ip:port of the backend
    #[arg(value_name = "BACKEND")]
    pub backend: String,
    /// Only in this pool
    #[arg(long, value_name = "POOL")]
    pub pool: Option<String>,
    #[command(flatten)]
    pub client: ClientArgs,
}

pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("drain: not built yet")
}

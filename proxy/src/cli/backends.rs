//! `pgsplice backends`.

use std::process::ExitCode;

use super::client::ClientArgs;

/// List the backends of the pools and their health
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this pool
    #[arg(long, value_name = "POOL")]
    pub pool: Option<String>,
    #[command(flatten)]
    pub client: ClientArgs,
}

pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("backends: not built yet")
}

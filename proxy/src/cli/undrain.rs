//! `pgsplice undrain`.

use std::process::ExitCode;

use super::client::ClientArgs;

/// Give a drained backend sessions again
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
    anyhow::bail!("undrain: not built yet")
}

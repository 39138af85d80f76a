//! `pgsplice status`.

use std::process::ExitCode;

use super::client::ClientArgs;

/// Show what the running proxy does: listeners, pools, clusters
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub client: ClientArgs,
}

pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("status: not built yet")
}

//! `pgsplice reload`.

use std::process::ExitCode;

use super::client::ClientArgs;

/// Have the running proxy read its configuration file again
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub client: ClientArgs,
}

pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("reload: not built yet")
}

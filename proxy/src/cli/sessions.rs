//! `pgsplice sessions`.

use std::process::ExitCode;

use super::client::ClientArgs;

/// List the live sessions
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub client: ClientArgs,
}

pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("sessions: not built yet")
}

//! `pgsplice kill`.

use std::process::ExitCode;

use super::client::ClientArgs;
use crate::session::SessionId;

/// Cut sessions: RST to the client and to the backend
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Session ids, as `pgsplice sessions` shows them
    #[arg(value_name = "ID", required = true)]
    pub sessions: Vec<SessionId>,
    #[command(flatten)]
    pub client: ClientArgs,
}

pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("kill: not built yet")
}

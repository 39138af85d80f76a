//! `pgsplice agent`: the companion of one PgBouncer.

use std::path::PathBuf;
use std::process::ExitCode;

/// Run beside a PgBouncer: register it and keep its databases on the leader
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's own configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("agent: not built yet")
}

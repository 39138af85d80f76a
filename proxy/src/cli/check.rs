//! `pgsplice check`: read a configuration, say all that is wrong with it, or what it would run.

use std::path::PathBuf;
use std::process::ExitCode;

/// Check a configuration file and say what it would run
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Also try whether the listeners' addresses can be bound now
    #[arg(long)]
    pub bind: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("check: not built yet")
}

//! `pgsplice doctor`: what this host's kernel, capabilities and interfaces allow.

use std::path::PathBuf;
use std::process::ExitCode;

/// Say what this host can do: kernel, capabilities, interfaces, roads, and why not
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Look at the interfaces and addresses of this configuration
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("doctor: not built yet")
}

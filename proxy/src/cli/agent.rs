//! `pgsplice agent`: the companion of one PgBouncer.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::agent::AgentConfig;
use crate::{agent, log};

/// Run beside a PgBouncer: register it and keep its databases on the leader
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's own configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Read the configuration, say what is wrong with it, and end
    #[arg(long)]
    pub check: bool,
}

/// Prints what is wrong with the file. `None`: too much for it to be used.
pub(super) fn load(file: &Path) -> Option<AgentConfig> {
    match AgentConfig::load(file) {
        Ok((config, warnings)) => {
            for warning in warnings {
                eprintln!("{warning}");
            }
            Some(config)
        }
        Err(errors) => {
            eprintln!("{errors}");
            None
        }
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Some(config) = load(&args.config) else { return Ok(ExitCode::FAILURE) };
    if args.check {
        println!("{}: good", args.config.display());
        return Ok(ExitCode::SUCCESS);
    }
    let _log = log::init(&config.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        agent::run(config, stop).await;
        Ok(ExitCode::SUCCESS)
    })
}

//! `pgsplice callback`: what an agent does at a change of roles, done once, for Patroni to call.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::config::units;
use crate::{agent, log};

/// Repoint this host's PgBouncer once: Patroni's callback where no agent runs
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As for `pgsplice agent`
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// How long to wait for a primary to be open
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = units::parse_duration)]
    pub timeout: Duration,
    /// What happened; Patroni appends this and the next two
    pub action: Action,
    /// This member's role now, in Patroni's word
    pub role: String,
    /// Patroni's scope
    pub scope: String,
}

/// Patroni's callbacks (`patroni/postgresql/callback_executor.py`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Action {
    OnStart,
    OnStop,
    OnRestart,
    OnReload,
    OnRoleChange,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Some(config) = super::agent::load(&args.config) else { return Ok(ExitCode::FAILURE) };
    if config.cluster.scope != args.scope {
        bail!("Patroni's scope is {:?}, that of {} is {:?}", args.scope, args.config.display(), config.cluster.scope);
    }
    if args.action == Action::OnStop {
        // Who leads next is not known yet; its own callback, or this host's next one, will tell.
        return Ok(ExitCode::SUCCESS);
    }
    let _log = log::init(&config.log)?;
    tracing::info!(action = ?args.action, role = args.role, "callback");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
    match runtime.block_on(agent::once(config, args.timeout)) {
        Ok(leader) => {
            tracing::info!(leader, "PgBouncer leads to the primary");
            Ok(ExitCode::SUCCESS)
        }
        Err(why) => bail!("{why}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn it_takes_what_patroni_appends() {
        let line = "pgsplice callback --config /etc/pgsplice/agent.toml on_role_change primary main";
        let Command::Callback(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else { panic!("another") };
        assert_eq!((args.action, &*args.role, &*args.scope), (Action::OnRoleChange, "primary", "main"));
    }
}

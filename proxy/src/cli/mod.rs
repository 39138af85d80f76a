//! The command line: one file a subcommand, each an `Args` and a `run`.
//!
//! Exit codes: 0 done, 1 it did not work (the reason is on stderr), 2 the command line itself is wrong.

pub mod agent;
pub mod backends;
pub mod callback;
pub mod check;
pub mod client;
pub mod cluster;
pub mod deny;
pub mod doctor;
pub mod drain;
pub mod kill;
pub mod reload;
pub mod run;
pub mod sessions;
pub mod status;
pub mod switchover;
pub mod table;
pub mod undrain;
pub mod upgrade;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A Layer 4 proxy for PostgreSQL: clients on :5432 reach the primary through a healthy PgBouncer.
#[derive(Debug, Parser)]
#[command(name = "pgsplice", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Run(run::Args),
    Check(check::Args),
    Doctor(doctor::Args),
    Status(status::Args),
    Cluster(cluster::Args),
    Backends(backends::Args),
    Sessions(sessions::Args),
    Drain(drain::Args),
    Undrain(undrain::Args),
    Kill(kill::Args),
    Reload(reload::Args),
    Upgrade(upgrade::Args),
    Switchover(switchover::Args),
    Deny(deny::Args),
    Agent(agent::Args),
    Callback(callback::Args),
}

/// Runs the subcommand; an error goes to stderr as one line with its causes.
pub fn main(cli: Cli) -> ExitCode {
    if !matches!(cli.command, Command::Run(_) | Command::Agent(_) | Command::Callback(_)) {
        closed_pipe_ends_us(true);
    }
    let result = match cli.command {
        Command::Run(args) => run::run(args),
        Command::Check(args) => check::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Status(args) => status::run(args),
        Command::Cluster(args) => cluster::run(args),
        Command::Backends(args) => backends::run(args),
        Command::Sessions(args) => sessions::run(args),
        Command::Drain(args) => drain::run(args),
        Command::Undrain(args) => undrain::run(args),
        Command::Kill(args) => kill::run(args),
        Command::Reload(args) => reload::run(args),
        Command::Upgrade(args) => upgrade::run(args),
        Command::Switchover(args) => switchover::run(args),
        Command::Deny(args) => deny::run(args),
        Command::Agent(args) => agent::run(args),
        Command::Callback(args) => callback::run(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("pgsplice: {error:#}");
        ExitCode::FAILURE
    })
}

/// Whether writing into a pipe or socket that nobody reads ends this program. It does for what is printed: `pgsplice sessions |
/// head` should end like any Unix tool; Rust ignores SIGPIPE and would panic in `println!`. A pgsplice that ends while it is
/// asked is an error like any other.
fn closed_pipe_ends_us(ends: bool) {
    let action = if ends { libc::SIG_DFL } else { libc::SIG_IGN };
    // SAFETY: neither installs a handler of ours.
    unsafe { libc::signal(libc::SIGPIPE, action) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_a_file_or_addresses_and_not_both() {
        assert!(parse("pgsplice run --config pgsplice.toml").is_ok());
        let addresses = "--listen 127.0.0.1:5432 --backend 127.0.0.1:6432 --backend 127.0.0.1:6433";
        assert!(parse(&format!("pgsplice run {addresses}")).is_ok());
        assert!(parse(&format!("pgsplice run {addresses} --config x.toml")).is_err());
        assert!(parse("pgsplice run --listen 127.0.0.1:5432").is_err());
        assert!(parse("pgsplice run --backend 127.0.0.1:5432").is_err());
        assert!(parse("pgsplice run").is_err());
    }
}

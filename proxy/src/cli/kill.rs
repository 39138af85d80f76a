//! `pgsplice kill`.

use std::process::ExitCode;

use super::client::{ClientArgs, FilterArgs};
use super::table::count;
use crate::admin::api;
use crate::session::SessionId;

/// One of these has to be said: nobody should kill everything by forgetting an argument.
const WHICH: [&str; 6] = ["sessions", "all", "pool", "backend", "user", "client_address"];

/// Cut sessions: RST to the client and to the backend
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").args(WHICH).required(true).multiple(true))]
pub struct Args {
    /// Session ids, as `pgsplice sessions` shows them
    #[arg(value_name = "ID", conflicts_with_all = &WHICH[1..])]
    pub sessions: Vec<SessionId>,
    /// Every session there is
    #[arg(long, conflicts_with_all = &WHICH[2..])]
    pub all: bool,
    #[command(flatten)]
    pub filter: FilterArgs,
    #[command(flatten)]
    pub client: ClientArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let FilterArgs { pool, backend, user, client_address } = args.filter;
    let filter = api::SessionFilter { pool, backend, user, client: client_address };
    let request = api::KillRequest {
        ids: args.sessions.iter().map(SessionId::to_string).collect(),
        filter: (filter != api::SessionFilter::default()).then_some(filter),
        all: args.all,
    };
    let answer: api::Killed = args.client.post("/v1/kill", &request)?;
    args.client.print(&answer, |answer| format!("cut {}\n", count(answer.cut, "session")))?;
    if answer.unknown.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::bail!("no such session: {}", answer.unknown.join(", "))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    fn parses(line: &str) -> bool {
        crate::cli::Cli::try_parse_from(line.split_whitespace()).is_ok()
    }

    #[test]
    fn it_takes_ids_or_a_filter_or_all_and_never_nothing() {
        assert!(parses("pgsplice kill 1f 20"));
        assert!(parses("pgsplice kill --user app --backend b1"));
        assert!(parses("pgsplice kill --client 10.0.0.0/8 --socket /tmp/x --json"));
        assert!(parses("pgsplice kill --all"));
        assert!(!parses("pgsplice kill"));
        assert!(!parses("pgsplice kill 1f --user app"));
        assert!(!parses("pgsplice kill --all --user app"));
        assert!(!parses("pgsplice kill session-1"));
    }
}

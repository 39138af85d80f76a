//! `pgsplice backends`.

use std::process::ExitCode;

use super::client::ClientArgs;
use super::table::{Table, bytes};
use crate::admin::api;

/// List the backends of the pools and their health
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this pool
    #[arg(long, value_name = "POOL")]
    pub pool: Option<String>,
    #[command(flatten)]
    pub client: ClientArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let query = api::BackendsQuery { pool: args.pool };
    let answer: api::Backends = args.client.get("/v1/backends", &query)?;
    args.client.print(&answer, human)?;
    Ok(ExitCode::SUCCESS)
}

fn human(answer: &api::Backends) -> String {
    if answer.backends.is_empty() {
        return "no backends\n".into();
    }
    let titles = ["POOL", "BACKEND", "ADDRESS", "STATE", ">SESSIONS", ">TOTAL", ">FAILED", ">IN", ">OUT", "WHY"];
    let mut table = Table::new(&titles);
    for one in &answer.backends {
        table.row([
            one.pool.clone(),
            one.name.clone(),
            one.address.clone(),
            state(one),
            one.sessions.to_string(),
            one.sessions_total.to_string(),
            one.connect_failures.to_string(),
            bytes(one.bytes_in),
            bytes(one.bytes_out),
            [one.why.as_str(), &one.excluded].into_iter().filter(|why| !why.is_empty()).collect::<Vec<_>>().join("; "),
        ]);
    }
    table.render(0)
}

/// Health, then what else decides whether it gets sessions.
fn state(backend: &api::Backend) -> String {
    let mut state = backend.health.clone();
    if backend.drained {
        state += ", drained";
    } else if backend.backup == Some(true) {
        state += ", backup";
    } else if backend.health == "up" && !backend.candidate {
        // The cluster says so: no primary, too far behind, not registered as ready, …
        state += ", not eligible";
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend() -> api::Backend {
        api::Backend {
            pool: "rw".into(),
            name: "b1".into(),
            address: "10.0.0.1:6432".into(),
            health: "up".into(),
            why: String::new(),
            excluded: String::new(),
            drained: false,
            candidate: true,
            weight: Some(1),
            backup: Some(false),
            peer_id: None,
            sessions: 3,
            sessions_total: 70,
            connect_failures: 0,
            probe_failures: 0,
            bytes_in: 1234,
            bytes_out: 56_789_000,
        }
    }

    #[test]
    fn a_line_says_who_and_how() {
        let text = human(&api::Backends { backends: vec![backend()] });
        let line: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(line, ["rw", "b1", "10.0.0.1:6432", "up", "3", "70", "0", "1.2", "kB", "56.8", "MB"]);
    }

    #[test]
    fn the_state_says_why_a_healthy_one_gets_nothing() {
        assert_eq!(state(&backend()), "up");
        assert_eq!(state(&api::Backend { drained: true, candidate: false, ..backend() }), "up, drained");
        assert_eq!(state(&api::Backend { candidate: false, ..backend() }), "up, not eligible");
        assert_eq!(state(&api::Backend { health: "down".into(), candidate: false, ..backend() }), "down");
    }
}

//! `pgsplice sessions`.

use std::process::ExitCode;
use std::time::Duration;

use super::client::{ClientArgs, FilterArgs};
use super::table::{Table, age, bytes, or_dash};
use crate::admin::api;

/// List the live sessions, longest-lived first
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub filter: FilterArgs,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub limit: usize,
    #[command(flatten)]
    pub client: ClientArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let FilterArgs { pool, backend, user, client_address } = args.filter;
    let query = api::SessionsQuery { pool, backend, user, client: client_address, limit: Some(args.limit) };
    let answer: api::Sessions = args.client.get("/v1/sessions", &query)?;
    args.client.print(&answer, human)?;
    Ok(ExitCode::SUCCESS)
}

fn human(answer: &api::Sessions) -> String {
    if answer.total == 0 {
        return "no sessions\n".into();
    }
    let mut table = Table::new(&["ID", "CLIENT", "USER@DATABASE", "BACKEND", "PHASE", "ROAD", ">AGE", ">IN", ">OUT"]);
    for one in &answer.sessions {
        table.row([
            one.id.clone(),
            one.client.clone(),
            who(one),
            or_dash(&one.backend),
            one.phase.clone(),
            or_dash(&one.road),
            age(Duration::try_from_secs_f64(one.age_seconds).unwrap_or_default()),
            bytes(one.bytes_in),
            bytes(one.bytes_out),
        ]);
    }
    let mut text = table.render(0);
    if answer.sessions.len() < answer.total {
        text += &format!("{} of {}; --limit shows more\n", answer.sessions.len(), answer.total);
    }
    text
}

fn who(session: &api::Session) -> String {
    match (&session.user, &session.database, session.tls) {
        (None, None, true) => "(TLS)".into(),
        (None, None, false) => "-".into(),
        // PostgreSQL's own rule: the database is named like the user unless said.
        (Some(user), None, _) => format!("{user}@{user}"),
        (user, database, _) => format!("{}@{}", or_dash(user), or_dash(database)),
    }
}

//! `pgsplice drain`.

use std::process::ExitCode;

use super::client::ClientArgs;
use super::table::count;
use crate::admin::api;

/// Give a backend no new sessions; those it has go on
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or ip:port of the backend
    #[arg(value_name = "BACKEND")]
    pub backend: String,
    /// Only in this pool
    #[arg(long, value_name = "POOL")]
    pub pool: Option<String>,
    #[command(flatten)]
    pub client: ClientArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let request = api::DrainRequest { backend: args.backend, pool: args.pool };
    let answer: api::Drained = args.client.post("/v1/drain", &request)?;
    args.client.print(&answer, human)?;
    Ok(ExitCode::SUCCESS)
}

fn human(answer: &api::Drained) -> String {
    let left = match answer.sessions {
        0 => "no session is left".into(),
        n => format!("{} still there", count(n as usize, "session")),
    };
    format!("drained {}; {left}\n", answer.backends.join(", "))
}

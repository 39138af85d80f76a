//! `pgsplice undrain`.

use std::process::ExitCode;

use super::client::ClientArgs;
use crate::admin::api;

/// Give a drained backend sessions again
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
    let answer: api::Drained = args.client.post("/v1/undrain", &request)?;
    args.client.print(&answer, human)?;
    Ok(ExitCode::SUCCESS)
}

fn human(answer: &api::Drained) -> String {
    format!("undrained {}\n", answer.backends.join(", "))
}

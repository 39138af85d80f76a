//! `pgsplice upgrade`.

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::Instant;

use super::client::ClientArgs;
use crate::admin::api;
use crate::admin::client::{Client, ClientError};
use crate::handover::take::Takeover;

/// Have the running proxy replaced by the program and the configuration that are on disk now
///
/// The new process takes over the listening sockets: no client is refused, and sessions go on in the old process.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub client: ClientArgs,
}

/// A successor that has not taken over by then says why in its log.
const LIMIT: Duration = Duration::from_secs(150);
const PAUSE: Duration = Duration::from_millis(50);

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let answer: api::Upgrade = args.client.post("/v1/upgrade", &())?;
    let (old, new) = (answer.pid, answer.successor);
    if args.client.ask(async |client| Ok(has_taken_over(&client, new).await))? {
        args.client.print(&answer, |_| format!("pid {new} has taken over from pid {old}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::bail!("pid {new} has not taken over, and pid {old} goes on; the log says why");
}

/// Waits until it is the successor that answers, or it is gone.
async fn has_taken_over(client: &Client, successor: u32) -> bool {
    let late = Instant::now() + LIMIT;
    loop {
        let gone = i32::try_from(successor).map_or(true, Takeover::is_over);
        // In between nobody may answer for a moment.
        let answer: Result<api::Alive, ClientError> = client.get("/healthz", &()).await;
        if answer.is_ok_and(|alive| alive.pid == successor) {
            return true;
        }
        if gone || Instant::now() >= late {
            return false;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

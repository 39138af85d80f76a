//! `pgsplice drain`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::client::ClientArgs;
use super::table::count;
use crate::admin::api;
use crate::config::units;

/// How often `--wait` looks.
const POLL: Duration = Duration::from_millis(500);

/// Give a backend no new sessions; those it has go on
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or ip:port of the backend
    #[arg(value_name = "BACKEND")]
    pub backend: String,
    /// Only in this pool
    #[arg(long, value_name = "POOL")]
    pub pool: Option<String>,
    /// Return when its last session has ended; fail when that takes longer than this
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub wait: Option<Duration>,
    #[command(flatten)]
    pub client: ClientArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let request = api::DrainRequest { backend: args.backend, pool: args.pool };
    let mut answer: api::Drained = args.client.post("/v1/drain", &request)?;
    if let Some(limit) = args.wait {
        answer.sessions = wait(&args.client, &answer.backends, limit)?;
    }
    args.client.print(&answer, human)?;
    match (args.wait, answer.sessions) {
        (Some(limit), 1..) => anyhow::bail!("not empty after {}", units::show_duration(limit)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Until no session is left at these (`pool/name`), or the time is over. Returns how many are left.
fn wait(client: &ClientArgs, backends: &[String], limit: Duration) -> anyhow::Result<u32> {
    let start = Instant::now();
    loop {
        let now: api::Backends = client.get("/v1/backends", &api::BackendsQuery::default())?;
        let drained = now.backends.iter().filter(|one| backends.contains(&format!("{}/{}", one.pool, one.name)));
        let left = drained.map(|one| one.sessions).sum();
        if left == 0 || start.elapsed() >= limit {
            return Ok(left);
        }
        std::thread::sleep(POLL.min(limit.saturating_sub(start.elapsed())));
    }
}

fn human(answer: &api::Drained) -> String {
    let left = match answer.sessions {
        0 => "no session is left".into(),
        n => format!("{} still there", count(n as usize, "session")),
    };
    format!("drained {}; {left}\n", answer.backends.join(", "))
}

//! `pgsplice switchover`.

use std::process::ExitCode;
use std::time::Duration;

use super::client::ClientArgs;
use crate::admin::api;
use crate::config::units;

/// How often the running attempt is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Move the primary to another member: new sessions wait, PgBouncers are paused, Patroni is asked
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The member that shall lead; Patroni chooses unless given
    #[arg(long, value_name = "MEMBER")]
    pub to: Option<String>,
    /// Which [cluster.NAME]; not needed where there is one
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Give up, and leave everything as it was, if transactions run on for longer than this
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = units::parse_duration)]
    pub pause_timeout: Duration,
    #[command(flatten)]
    pub client: ClientArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let pause_timeout_ms = args.pause_timeout.as_millis() as u64;
    let request = api::SwitchoverRequest { cluster: args.cluster, to: args.to, pause_timeout_ms };
    let mut report: api::Switchover = args.client.post("/v1/switchover", &request)?;
    if !args.client.json {
        println!("switchover of {} from {} to {}", report.cluster, report.from, target(&report));
    }
    let mut shown = 0;
    loop {
        if !args.client.json {
            report.steps[shown..].iter().for_each(|step| println!("{:>9.3} s  {}", step.at_ms / 1e3, step.what));
            shown = report.steps.len();
        }
        if report.over {
            break;
        }
        std::thread::sleep(POLL);
        report = args.client.get("/v1/switchover", &())?;
    }
    args.client.print(&report, human)?;
    match report.error {
        Some(why) => anyhow::bail!("{why}"),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn target(report: &api::Switchover) -> &str {
    report.to.as_deref().unwrap_or("whom Patroni chooses")
}

fn human(report: &api::Switchover) -> String {
    if report.error.is_some() {
        return String::new();
    }
    let seconds = |ms: f64| format!("{:.3} s", ms / 1e3);
    let gap = report.gap_ms.map(|ms| format!(", after a gap of {}", seconds(ms))).unwrap_or_default();
    let wait = report.longest_wait_ms.map(|ms| format!("; the longest wait at a PgBouncer was {}", seconds(ms as f64)));
    format!("{} leads{gap}{}\n", target(report), wait.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_says_who_leads_and_how_long_it_took() {
        let report = api::Switchover {
            cluster: "main".into(),
            from: "pg1".into(),
            to: Some("pg2".into()),
            over: true,
            gap_ms: Some(2150.4),
            longest_wait_ms: Some(2100),
            ..api::Switchover::default()
        };
        let expected = "pg2 leads, after a gap of 2.150 s; the longest wait at a PgBouncer was 2.100 s\n";
        assert_eq!(human(&report), expected);
    }
}

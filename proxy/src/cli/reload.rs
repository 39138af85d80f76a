//! `pgsplice reload`.

use std::process::ExitCode;

use super::client::ClientArgs;
use crate::admin::api;

/// Have the running proxy read its configuration file again
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub client: ClientArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let answer: api::ReloadReport = args.client.post("/v1/reload", &())?;
    args.client.print(&answer, human)?;
    Ok(ExitCode::SUCCESS)
}

fn human(report: &api::ReloadReport) -> String {
    let mut text = match report.changes.len() {
        0 => "reloaded; nothing changed\n".to_owned(),
        _ => "reloaded\n".to_owned(),
    };
    report.changes.iter().for_each(|change| text += &format!("  {change}\n"));
    if !report.needs_restart.is_empty() {
        text += "needs a restart, not changed:\n";
        report.needs_restart.iter().for_each(|change| text += &format!("  {change}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_changed_and_what_could_not() {
        let report = api::ReloadReport {
            changes: vec!["listener.ro: added".into()],
            needs_restart: vec!["proxy.threads: 2 to 4".into()],
        };
        let expected = "reloaded\n  listener.ro: added\nneeds a restart, not changed:\n  proxy.threads: 2 to 4\n";
        assert_eq!(human(&report), expected);
        assert_eq!(human(&api::ReloadReport::default()), "reloaded; nothing changed\n");
    }
}

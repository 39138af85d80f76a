//! `pgsplice doctor`: what this host's kernel, capabilities and interfaces allow.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::Config;
use crate::doctor::{Check, Level, examine};

/// Say what this host can do: kernel, capabilities, interfaces, roads, and why not
///
/// Run it as the user pgsplice runs as. Exit code 1 if anything fails.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Look at the interfaces and addresses of this configuration
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = match &args.config {
        Some(file) => Config::load(file)?.0,
        None => Config::default(),
    };
    let checks = examine(&config);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&checks)?);
    } else {
        print!("{}", human(&checks));
    }
    let failed = checks.iter().any(|check| check.level == Level::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn human(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let level = match check.level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        text += &format!("{level}  {:width$}  {}\n", check.name, check.found);
        if !check.advice.is_empty() {
            text += &format!("      {:width$}  → {}\n", "", check.advice);
        }
    }
    text
}

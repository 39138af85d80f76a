//! What this host allows pgsplice to do, found by trying and not by version numbers, with what to do about each lack.

mod bpf;
mod host;
mod interface;
mod kernel;
mod roads;
mod splice;
mod xdp;

use std::path::Path;

use serde::Serialize;

use crate::config::Config;

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: String,
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about it; empty with `ok`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

/// Worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// It runs, but not as well as it could.
    Warn,
    /// pgsplice does not run, or not as configured.
    Fail,
}

/// Looks at everything. Changes nothing that outlives the call.
pub fn examine(config: &Config) -> Vec<Check> {
    let mut checks = kernel::examine(config);
    checks.extend(roads::examine(config));
    checks.extend(host::examine(config));
    checks.extend(xdp::examine(config));
    checks.extend(splice::examine(config));
    checks
}

impl Check {
    fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), level: Level::Ok, found: found.into(), advice: String::new() }
    }

    fn warn(name: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name: name.into(), level: Level::Warn, found: found.into(), advice: advice.into() }
    }

    fn fail(name: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name: name.into(), level: Level::Fail, found: found.into(), advice: advice.into() }
    }
}

/// A sysctl by its file under /proc/sys, trimmed; `None` where the kernel has none.
fn sysctl(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(Path::new("/proc/sys").join(path)).ok()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn sysctl_number(path: &str) -> Option<u64> {
    sysctl(path)?.parse().ok()
}

//! Building the workspace from the commands that run what it builds.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The top of the checkout.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Builds the kernel side and `pgsplice`, and gives the folder that holds the binary. The profile is `debug` or
/// `release`.
pub fn pgsplice(profile: &str) -> Result<PathBuf> {
    let begun = Instant::now();
    crate::ebpf::ensure()?;
    let mut arguments = vec!["build", "--quiet", "--package", "pgsplice"];
    if profile == "release" {
        arguments.push("--release");
    }
    cargo(&arguments)?;
    println!("build: pgsplice ({profile}) in {:.1} s", begun.elapsed().as_secs_f64());
    Ok(target().join(profile))
}

/// Runs cargo in the workspace, with its output shown.
pub fn cargo(arguments: &[&str]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).args(arguments).current_dir(workspace()).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo {} ended with {status}", arguments.join(" "));
    }
    Ok(())
}

//! `cargo xtask lint`: rustfmt, and clippy with warnings denied, for the host and for the eBPF side.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::ebpf;

/// What the command line of `cargo xtask lint` takes.
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_: Args) -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    // The proxy embeds the object, so clippy needs it.
    ebpf::ensure()?;
    cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    ebpf::clippy()
}

fn cargo(args: &[&str]) -> Result<()> {
    let status = Command::new("cargo").args(args).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo {} found something; what it says stands above", args.join(" "));
    }
    Ok(())
}

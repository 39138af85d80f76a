//! `cargo xtask lab`.

/// What the command line of `cargo xtask lab` takes.
#[derive(clap::Args)]
pub struct Args {}

/// Not written yet, and says so.
pub fn run(_: Args) -> anyhow::Result<()> {
    anyhow::bail!("cargo xtask lab is not written yet")
}

//! `cargo xtask lint`.

/// What the command line of `cargo xtask lint` takes.
#[derive(clap::Args)]
pub struct Args {}

/// Not written yet, and says so.
pub fn run(_: Args) -> anyhow::Result<()> {
    anyhow::bail!("cargo xtask lint is not written yet")
}

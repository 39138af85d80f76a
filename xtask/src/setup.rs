//! `cargo xtask setup`.

/// What the command line of `cargo xtask setup` takes.
#[derive(clap::Args)]
pub struct Args {}

/// Not written yet, and says so.
pub fn run(_: Args) -> anyhow::Result<()> {
    anyhow::bail!("cargo xtask setup is not written yet")
}

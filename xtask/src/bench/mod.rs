//! `cargo xtask bench`.

pub mod load;

/// What the command line of `cargo xtask bench` takes.
#[derive(clap::Args)]
pub struct Args {}

/// Not written yet, and says so.
pub fn run(_: Args) -> anyhow::Result<()> {
    anyhow::bail!("cargo xtask bench is not written yet")
}

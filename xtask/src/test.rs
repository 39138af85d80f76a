//! `cargo xtask test`.

/// What the command line of `cargo xtask test` takes.
#[derive(clap::Args)]
pub struct Args {}

/// Not written yet, and says so.
pub fn run(_: Args) -> anyhow::Result<()> {
    anyhow::bail!("cargo xtask test is not written yet")
}

//! `cargo xtask demo`.

/// What the command line of `cargo xtask demo` takes.
#[derive(clap::Args)]
pub struct Args {}

/// Not written yet, and says so.
pub fn run(_: Args) -> anyhow::Result<()> {
    anyhow::bail!("cargo xtask demo is not written yet")
}

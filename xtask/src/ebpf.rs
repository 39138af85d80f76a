//! `cargo xtask build-ebpf`.

/// What the command line of `cargo xtask build-ebpf` takes.
#[derive(clap::Args)]
pub struct Args {}

/// Not written yet, and says so.
pub fn run(_: Args) -> anyhow::Result<()> {
    anyhow::bail!("cargo xtask build-ebpf is not written yet")
}

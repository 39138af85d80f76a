//! The lab: real servers on hosts that are namespaces of this machine, joined by bridges. `net` makes the network,
//! `host` runs things on it, `fault` breaks it, `cluster` puts a PostgreSQL data centre on it.

mod fault;
mod host;
mod net;
mod ns;
mod service;
mod state;
mod wait;

pub use host::Host;
pub use net::{HostSpec, Net, NetSpec};
pub use service::{Program, Service};
pub use wait::{until, until_ok};

/// What the command line of `cargo xtask lab` takes.
#[derive(clap::Args)]
pub struct Args {}

/// Not written yet, and says so.
pub fn run(_: Args) -> anyhow::Result<()> {
    anyhow::bail!("cargo xtask lab is not written yet")
}

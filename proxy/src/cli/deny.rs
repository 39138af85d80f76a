//! `pgsplice deny`: the sources whose packets are dropped in XDP.

use std::process::ExitCode;

use clap::Subcommand;

use super::client::ClientArgs;
use crate::config::IpNet;

/// Add, delete or list sources whose packets to the listeners are dropped
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub action: Action,
}

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Drop packets from these sources
    Add {
        /// 192.0.2.7, 192.0.2.0/24, 2001:db8::/32
        #[arg(value_name = "CIDR", required = true)]
        sources: Vec<IpNet>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Let packets from these sources in again
    Del {
        /// As they were added
        #[arg(value_name = "CIDR", required = true)]
        sources: Vec<IpNet>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List the sources and how many packets of each were dropped
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
}

pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("deny: not built yet")
}

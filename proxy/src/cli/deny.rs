//! `pgsplice deny`: the sources whose packets are dropped in XDP.

use std::process::ExitCode;

use clap::Subcommand;
use hyper::Method;

use super::client::ClientArgs;
use super::table::Table;
use crate::config::IpNet;
use crate::guard::Origin;
use crate::guard::api::{DenyChange, DenyList, DenyRequest};

const PATH: &str = "/v1/deny";

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

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Add { sources, client } => {
            let changes = change(&client, &Method::POST, &sources)?;
            client.print(&changes, |changes| lines(changes, "denied"))?;
        }
        Action::Del { sources, client } => {
            let changes = change(&client, &Method::DELETE, &sources)?;
            client.print(&changes, |changes| lines(changes, "no longer denied"))?;
        }
        Action::List { client } => {
            let list: DenyList = client.get(PATH, &())?;
            client.print(&list, human)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One request a source: the first that fails ends it, those before it are done.
fn change(client: &ClientArgs, method: &Method, sources: &[IpNet]) -> anyhow::Result<Vec<DenyChange>> {
    client.ask(async |client| {
        let mut changes = Vec::new();
        for net in sources {
            let request = DenyRequest { net: net.to_string() };
            changes.push(client.send(method.clone(), PATH, &request).await?);
        }
        Ok(changes)
    })
}

fn lines(changes: &[DenyChange], done: &str) -> String {
    changes
        .iter()
        .map(|change| format!("{} {done}{}\n", change.net, if change.changed { "" } else { " (it was before)" }))
        .collect()
}

fn human(list: &DenyList) -> String {
    if list.entries.is_empty() {
        return "nobody is denied\n".into();
    }
    let mut table = Table::new(&["SOURCE", "BY", ">DROPPED"]);
    for entry in &list.entries {
        let by = match entry.origin {
            Origin::Config => "config",
            Origin::Command => "command",
            Origin::Both => "config, command",
        };
        table.row([entry.net.clone(), by.into(), entry.dropped.to_string()]);
    }
    table.render(0)
}

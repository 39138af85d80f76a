//! What every subcommand that talks to a running pgsplice takes, and how it asks and prints.

use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::admin::client::{Client, ClientError};

#[derive(Clone, Debug, clap::Args)]
pub struct ClientArgs {
    /// The running pgsplice's `admin.socket`
    #[arg(long, value_name = "PATH", env = "PGSPLICE_SOCKET", default_value = "/run/pgsplice/admin.sock")]
    pub socket: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Which sessions; all that is given must match.
#[derive(Clone, Debug, clap::Args)]
pub struct FilterArgs {
    /// Only sessions of this pool
    #[arg(long, value_name = "POOL")]
    pub pool: Option<String>,
    /// Only sessions at this backend (name or ip:port)
    #[arg(long, value_name = "BACKEND")]
    pub backend: Option<String>,
    /// Only sessions of this PostgreSQL user (not known under TLS)
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Only sessions from here
    #[arg(long = "client", value_name = "IP[:PORT]|CIDR")]
    pub client_address: Option<String>,
}

// === impl ClientArgs ===

impl ClientArgs {
    /// `query` becomes the part behind `?`.
    pub fn get<T: DeserializeOwned>(&self, path: &str, query: &impl Serialize) -> anyhow::Result<T> {
        self.ask(async |client| client.get(path, query).await)
    }

    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.ask(async |client| client.post(path, body).await)
    }

    /// Prints `answer` as JSON with `--json`, else what `human` makes of it.
    pub fn print<T: Serialize>(&self, answer: &T, human: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(answer)?);
        } else {
            print!("{}", human(answer));
        }
        Ok(())
    }

    /// Any exchange with the running pgsplice. Nothing is printed meanwhile.
    pub fn ask<T>(&self, exchange: impl AsyncFnOnce(Client) -> Result<T, ClientError>) -> anyhow::Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        super::closed_pipe_ends_us(false);
        let answer = runtime.block_on(exchange(Client::new(&self.socket)));
        super::closed_pipe_ends_us(true);
        Ok(answer?)
    }
}

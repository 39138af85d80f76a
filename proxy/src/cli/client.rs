//! What every subcommand that talks to a running pgsplice takes.

use std::path::PathBuf;

#[derive(Clone, Debug, clap::Args)]
pub struct ClientArgs {
    /// The running pgsplice's `admin.socket`
    #[arg(long, value_name = "PATH", env = "PGSPLICE_SOCKET", default_value = "/run/pgsplice/admin.sock")]
    pub socket: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

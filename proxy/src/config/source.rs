//! Where the running configuration comes from: a file, and what the command line says instead of some of its keys.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{Config, ConfigErrors, LogFormat, Warning};

/// A file to read, again at each reload; the overrides hold for as long as the process lives.
#[derive(Clone, Debug, Default)]
pub struct Source {
    pub file: PathBuf,
    pub overrides: Overrides,
}

/// `None` leaves what the file says.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub admin_socket: Option<PathBuf>,
    pub http: Option<SocketAddr>,
    pub log_format: Option<LogFormat>,
}

impl Source {
    pub fn load(&self) -> Result<(Config, Vec<Warning>), ConfigErrors> {
        let (mut config, warnings) = Config::load(&self.file)?;
        self.overrides.apply(&mut config);
        Ok((config, warnings))
    }
}

impl Overrides {
    pub fn apply(&self, config: &mut Config) {
        if let Some(socket) = &self.admin_socket {
            config.admin.socket = socket.clone();
        }
        if let Some(http) = self.http {
            config.admin.http = Some(http);
        }
        if let Some(format) = self.log_format {
            config.log.format = format;
        }
    }
}

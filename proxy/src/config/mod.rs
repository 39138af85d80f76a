//! Configuration: TOML in, a typed, validated and defaulted [`Config`] out, and the difference between two of them.
//!
//! Nothing outside this room sees TOML. Every error names file, line, key, what was found and what was expected, and
//! all errors of a file come at once.

pub mod agent;
mod diff;
mod ip_net;
pub mod model;
mod parse;
pub mod port_owner;
mod read;
mod report;
pub mod settings;
mod source;
mod stores;
#[cfg(test)]
mod tests;
pub mod units;
mod validate;
mod values;

use std::net::SocketAddr;
use std::path::Path;

pub use diff::{Changes, Diff, diff};
pub use ip_net::IpNetError;
pub use model::*;
pub use report::{ConfigError, ConfigErrors, Origin, Warning};
pub use source::{Overrides, Source};
pub use units::{parse_duration, parse_size, show_duration, show_size};

impl Config {
    /// Reads and checks a file, and the files it names (passwords, certificates).
    pub fn load(path: &Path) -> Result<(Self, Vec<Warning>), ConfigErrors> {
        let (text, file) = read_text(path)?;
        Self::from_str_named(&text, &file)
    }

    /// Reads and checks a text; `name` stands for the file in messages, and relative paths start at its folder.
    pub fn from_str_named(text: &str, name: &str) -> Result<(Self, Vec<Warning>), ConfigErrors> {
        parse::parse(text, name).0
    }

    /// Checks what no single value can tell, as [`Self::load`] does for a file: for one made from addresses.
    pub fn check(&self) -> Result<Vec<Warning>, ConfigErrors> {
        let mut report = report::Report::of(self.origin.clone());
        validate::validate(self, &mut report);
        report.finish()
    }

    /// The configuration without a file: one listener named `default`, one pool of that name with these backends.
    pub fn from_addresses(listen: &[SocketAddr], backends: &[SocketAddr]) -> Self {
        const NAME: &str = "default";
        let backends = backends.iter().map(|address| BackendConfig::at(address.to_string())).collect();
        let pool = Pool { source: BackendSource::Static(backends), ..Pool::default() };
        let listener = Listener { bind: listen.to_vec(), pool: NAME.into(), ..Listener::default() };
        Self { pools: [(NAME.into(), pool)].into(), listeners: [(NAME.into(), listener)].into(), ..Self::default() }
    }
}

/// The text of a configuration file, and the file as messages name it.
fn read_text(path: &Path) -> Result<(String, String), ConfigErrors> {
    let file = path.display().to_string();
    let unreadable = |line, problem: String, expected: &str| ConfigErrors {
        errors: vec![ConfigError { file: file.clone(), line, key: String::new(), problem, expected: expected.into() }],
        warnings: Vec::new(),
    };
    let bytes = std::fs::read(path).map_err(|error| {
        unreadable(None, format!("cannot read it: {}", plain_io_error(&error)), "a readable TOML file")
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        unreadable(Some(line), "this line is not UTF-8".into(), "TOML, which is UTF-8 text")
    })?;
    Ok((text, file))
}

/// `No such file or directory`, without `(os error 2)`.
fn plain_io_error(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].into(),
        None => text,
    }
}

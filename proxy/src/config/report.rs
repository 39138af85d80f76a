//! What a configuration is blamed for, each with file, line and key; and where each key stood, for blame that comes later.

use std::collections::BTreeMap;
use std::fmt;

/// `pgsplice.toml:14: listener.rw.bind: "10.0.0.1" has no port; expected ip:port`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ConfigError {
    pub file: String,
    /// From 1; `None` where the file itself could not be read.
    pub line: Option<usize>,
    /// `listener.rw.bind`; empty where the text is not TOML.
    pub key: String,
    pub problem: String,
    /// Empty where the problem says it all.
    pub expected: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, &self.file, self.line)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)?;
        if !self.expected.is_empty() {
            write!(f, "; expected {}", self.expected)?;
        }
        Ok(())
    }
}

/// All that is wrong with one configuration, by line. Displayed one error a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(.errors))]
pub struct ConfigErrors {
    /// Never empty.
    pub errors: Vec<ConfigError>,
    pub warnings: Vec<Warning>,
}

/// Not wrong, but hardly meant.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Warning {
    pub file: String,
    pub line: Option<usize>,
    pub key: String,
    pub problem: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, &self.file, self.line)?;
        write!(f, "warning: {}: {}", self.key, self.problem)
    }
}

/// Where a configuration came from: its file and the line of each key it sets.
///
/// No part of what is configured, so any two are equal.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// As it was named; empty for a configuration made from addresses.
    pub file: String,
    /// By full key, such as `listener.rw.bind`.
    lines: BTreeMap<String, usize>,
}

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Origin {
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.into(), lines: BTreeMap::new() }
    }

    pub(super) fn set_line(&mut self, key: &str, line: usize) {
        self.lines.insert(key.into(), line);
    }

    /// The line of this key, or of the nearest section around it that the file has.
    pub fn line(&self, key: &str) -> Option<usize> {
        let mut key = key;
        loop {
            if let Some(line) = self.lines.get(key) {
                return Some(*line);
            }
            key = &key[..key.rfind(['.', '['])?];
        }
    }

    /// Whether the file sets this key itself.
    pub fn has(&self, key: &str) -> bool {
        self.lines.contains_key(key)
    }

    /// `pgsplice.toml:14: listener.rw.bind: `, to put before what is wrong with that key.
    pub fn blame(&self, key: &str) -> String {
        match (self.file.as_str(), self.line(key)) {
            ("", _) => format!("{key}: "),
            (file, None) => format!("{file}: {key}: "),
            (file, Some(line)) => format!("{file}:{line}: {key}: "),
        }
    }
}

/// Collects while a file is read and checked.
pub(super) struct Report {
    pub origin: Origin,
    pub errors: Vec<ConfigError>,
    pub warnings: Vec<Warning>,
    /// Offsets of the line breaks in the text.
    breaks: Vec<usize>,
}

impl Report {
    pub fn new(file: &str, text: &str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
        Self { origin: Origin::new(file), errors: Vec::new(), warnings: Vec::new(), breaks }
    }

    /// For a configuration that is typed already.
    pub fn of(origin: Origin) -> Self {
        Self { origin, errors: Vec::new(), warnings: Vec::new(), breaks: Vec::new() }
    }

    /// By line; those of one line in the order they were found.
    pub fn finish(mut self) -> Result<Vec<Warning>, ConfigErrors> {
        self.errors.sort_by_key(|error| error.line);
        self.warnings.sort_by_key(|warning| warning.line);
        if self.errors.is_empty() {
            Ok(self.warnings)
        } else {
            Err(ConfigErrors { errors: self.errors, warnings: self.warnings })
        }
    }

    /// The line, from 1, of a byte of the text.
    pub fn line_at(&self, offset: usize) -> usize {
        self.breaks.partition_point(|at| *at < offset) + 1
    }

    /// Blames a key; its line, or that of the section around it, is known from the file.
    pub fn error(&mut self, key: &str, problem: impl Into<String>, expected: impl Into<String>) {
        // What is missing altogether is blamed at the top of the file.
        let line = self.origin.line(key).or((!self.origin.file.is_empty()).then_some(1));
        self.push(line, key, problem.into(), expected.into());
    }

    pub fn error_at(&mut self, line: usize, key: &str, problem: impl Into<String>, expected: impl Into<String>) {
        self.push(Some(line), key, problem.into(), expected.into());
    }

    fn push(&mut self, line: Option<usize>, key: &str, problem: String, expected: String) {
        let (file, key) = (self.origin.file.clone(), without_last_index(key).into());
        self.errors.push(ConfigError { file, line, key, problem, expected });
    }

    pub fn warn(&mut self, key: &str, problem: impl Into<String>) {
        self.warnings.push(Warning {
            file: self.origin.file.clone(),
            line: self.origin.line(key),
            key: without_last_index(key).into(),
            problem: problem.into(),
        });
    }
}

/// A line of a list names its element well enough: `bind[1]` is shown as `bind`, `backend[1].address` as it is.
fn without_last_index(key: &str) -> &str {
    if key.ends_with(']') { &key[..key.rfind('[').unwrap_or(key.len())] } else { key }
}

fn write_place(f: &mut fmt::Formatter<'_>, file: &str, line: Option<usize>) -> fmt::Result {
    match (file, line) {
        ("", _) => Ok(()),
        (file, Some(line)) => write!(f, "{file}:{line}: "),
        (file, None) => write!(f, "{file}: "),
    }
}

fn lines(errors: &[ConfigError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

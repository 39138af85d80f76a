//! The test programs of the workspace: built by one cargo, found in what it says, asked for their tests.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::build;

/// An executable of tests, as `cargo test` makes them.
#[derive(Debug)]
pub struct Program {
    /// The package's folder and the target: `tests/regress`; unit tests are `proxy/lib`.
    pub name: String,
    pub path: PathBuf,
    /// The package's, where `cargo test` runs it.
    pub folder: PathBuf,
}

/// A line of cargo's `--message-format=json`, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds all of them, and the `pgsplice` that lies beside them, which they run: it is part of the same build because
/// its package has tests that are programs of their own.
pub fn build() -> Result<Vec<Program>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut child = Command::new(cargo)
        .args(["test", "--locked", "--workspace", "--no-run", "--message-format=json-render-diagnostics"])
        .current_dir(build::workspace())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut programs = Vec::new();
    for line in BufReader::new(output).lines() {
        programs.extend(Program::built(&line.context("cannot read what cargo prints")?)?);
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("the tests do not build; what cargo says stands above");
    }
    Ok(programs)
}

impl Program {
    /// The one that this line of cargo's tells of.
    fn built(line: &str) -> Result<Option<Self>> {
        let message: Message = serde_json::from_str(line).with_context(|| format!("cargo said {line}"))?;
        let Message { manifest_path: Some(manifest), target: Some(target), profile: Some(profile), .. } = message
        else {
            return Ok(None);
        };
        let (Some(path), true, "compiler-artifact") = (message.executable, profile.test, &*message.reason) else {
            return Ok(None);
        };
        let folder = manifest.parent().unwrap_or(Path::new("/")).to_owned();
        let package = folder.file_name().unwrap_or_default().to_string_lossy();
        let name = match &*target.kind.concat() {
            "test" => format!("{package}/{}", target.name),
            kind => format!("{package}/{kind}"),
        };
        Ok(Some(Self { name, path, folder }))
    }

    /// How many of its tests these arguments choose.
    pub fn count(&self, arguments: &[String]) -> Result<usize> {
        let listed = Command::new(&self.path).args(["--list", "--format", "terse"]).args(arguments).output();
        let listed = listed.with_context(|| format!("cannot run {}", self.path.display()))?;
        if !listed.status.success() {
            bail!("{} does not list its tests: {}", self.name, String::from_utf8_lossy(&listed.stderr));
        }
        Ok(String::from_utf8_lossy(&listed.stdout).lines().filter(|line| line.ends_with(": test")).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_what_cargo_says() {
        let line = |kind: &str, name: &str, test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"p","manifest_path":"/w/proxy/Cargo.toml",
                "target":{{"kind":["{kind}"],"name":"{name}","src_path":"x"}},"profile":{{"test":{test}}},
                "executable":{executable},"fresh":true}}"#
            )
        };
        let named = |line: &str| Program::built(line).unwrap().map(|program| program.name);
        assert_eq!(named(&line("test", "guard", true, "\"/t/guard-1\"")).as_deref(), Some("proxy/guard"));
        assert_eq!(named(&line("lib", "pgsplice", true, "\"/t/pgsplice-1\"")).as_deref(), Some("proxy/lib"));
        // What tests run and link is not one.
        assert_eq!(named(&line("bin", "pgsplice", false, "\"/t/pgsplice\"")), None);
        assert_eq!(named(&line("lib", "pgsplice", false, "null")), None);
        assert_eq!(named(r#"{"reason":"build-finished","success":true}"#), None);
        assert!(Program::built("warning: no JSON").is_err());
    }
}

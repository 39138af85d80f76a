//! PostgreSQL's own regression suite, unpacked from what came with the root and with its C helpers compiled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::quiet;

/// Made anew whenever the root is.
pub fn recipe() -> String {
    let root = fs::read_to_string(super::cache().join("root.recipe")).unwrap_or_default();
    format!("regress 1\n{root}")
}

pub fn make(folder: &Path) -> Result<()> {
    let fetched = super::root().join("opt/fetched");
    let source = find(&fetched, ".orig.tar.bz2")?;
    let mut tar = Command::new("tar");
    tar.arg("-xjf").arg(source).arg("-C").arg(folder);
    tar.args(["--wildcards", "*/src/test/regress/*", "--strip-components=4"]);
    quiet(&mut tar)?;

    let pg_regress = super::root().join("usr/lib/postgresql/17/lib/pgxs/src/test/regress/pg_regress");
    fs::copy(pg_regress, folder.join("pg_regress")).context("the package postgresql-17 has no pg_regress")?;

    let package = find(&fetched, ".deb")?;
    let dev = tempfile::tempdir()?;
    quiet(Command::new("dpkg-deb").arg("-x").arg(package).arg(dev.path()))?;
    let headers = dev.path().join("usr/include/postgresql/17/server");
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-w", "-fPIC", "-shared", "-I"]).arg(headers).arg("-I").arg(folder);
    cc.arg("-o").arg(folder.join("regress.so")).arg(folder.join("regress.c"));
    quiet(&mut cc).context("cannot compile the suite's regress.c")?;
    Ok(())
}

fn find(folder: &Path, end: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    files
        .find(|path| path.to_string_lossy().ends_with(end))
        .with_context(|| format!("no file *{end} in {}", folder.display()))
}

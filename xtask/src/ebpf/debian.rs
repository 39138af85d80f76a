//! Debian packages without installing them: apt with lists, cache and sources of its own, so nothing on the system
//! changes and no root is needed. Signatures are checked as apt always does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::toolchain::output;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

#[derive(Clone, Copy)]
pub enum Archive {
    Main,
    Security,
}

/// One suite of one archive.
pub struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Reads the suite's package list, from the mirror this machine uses.
    pub fn new(cache: &Path, archive: Archive, suite: &str) -> Result<Self> {
        if !Path::new(KEYRING).exists() {
            bail!("this is not Debian ({KEYRING} is missing)");
        }
        let folder = cache.join("apt").join(suite);
        for sub in ["lists/partial", "archives/partial", "download"] {
            fs::create_dir_all(folder.join(sub))?;
        }
        let source = format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror(archive));
        fs::write(folder.join("sources.list"), source)?;
        let apt = Self { folder };
        output(apt.command("apt-get").args(["-qq", "update"]))
            .with_context(|| format!("cannot read Debian's list of {suite}"))?;
        Ok(apt)
    }

    /// Every version of the package in the suite, newest first.
    pub fn versions(&mut self, package: &str) -> Result<Vec<String>> {
        let listed = output(self.command("apt-cache").args(["madison", package]))?;
        Ok(listed.lines().filter_map(|l| l.split('|').nth(1)).map(|v| v.trim().to_owned()).collect())
    }

    /// Downloads the package and unpacks it, or only what lies under `only`, into `into`.
    pub fn unpack(&mut self, package: &str, version: &str, into: &Path, only: Option<&str>) -> Result<()> {
        eprintln!("build-ebpf: fetching Debian's {package} {version} (unpacked into the cache, not installed)");
        let download = self.folder.join("download").join(package);
        let _ = fs::remove_dir_all(&download);
        fs::create_dir_all(&download)?;
        let mut get = self.command("apt-get");
        get.args(["-qq", "download", &format!("{package}={version}")]).current_dir(&download);
        output(&mut get).with_context(|| format!("cannot download {package} {version}"))?;
        let deb = fs::read_dir(&download)?.next().context("apt-get download left no file")??.path();

        fs::create_dir_all(into)?;
        let mut tar = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(&deb).stdout(Stdio::piped()).spawn()?;
        let mut untar = Command::new("tar");
        untar.arg("--extract").arg("--directory").arg(into).stdin(tar.stdout.take().context("no pipe")?);
        untar.args(only);
        let unpacked = untar.status().context("cannot run tar")?;
        if !tar.wait()?.success() || !unpacked.success() {
            bail!("cannot unpack {}", deb.display());
        }
        fs::remove_dir_all(&download)?;
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let option = |name: &str, value: &str| ["-o".to_owned(), format!("{name}={value}")];
        let path = |sub: &str| self.folder.join(sub).display().to_string();
        command
            .args(option("Dir::Etc::sourcelist", &path("sources.list")))
            .args(option("Dir::Etc::sourceparts", "/dev/null"))
            .args(option("Dir::State::lists", &path("lists")))
            .args(option("Dir::State::status", "/dev/null"))
            .args(option("Dir::Cache", &self.folder.display().to_string()))
            .args(option("Dir::Cache::archives", &path("archives")))
            .args(option("APT::Sandbox::User", ""))
            .args(option("Acquire::Languages", "none"));
        command
    }
}

/// The mirror configured for the archive, or Debian's own.
fn mirror(archive: Archive) -> String {
    let (end, default) = match archive {
        Archive::Main => ("/debian", "http://deb.debian.org/debian"),
        Archive::Security => ("/debian-security", "http://deb.debian.org/debian-security"),
    };
    let sites = output(Command::new("apt-get").args(["indextargets", "--format", "$(SITE)"])).unwrap_or_default();
    let site = sites.lines().map(|s| s.trim_end_matches('/')).find(|s| s.ends_with(end));
    site.unwrap_or(default).to_owned()
}

//! The source of Rust's `core` for `-Zbuild-std`. rustup's component has it where it can be had; on Debian the same
//! source is a package, taken from the mirror the machine uses, unpacked into the cache and never installed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::debian;
use super::toolchain::Toolchain;

/// In the order they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// The toolchain's own rust-src component
    Component,
    /// Debian's rust-src at exactly rustc's version
    DebianSource,
    /// Debian's rustc-web and rust-web-src, a compiler and the source of its version
    DebianPair,
}

/// A library source and the compiler that it belongs to.
pub enum Library {
    Component { sysroot: PathBuf },
    DebianSource { version: String, library: PathBuf },
    DebianPair { version: String, library: PathBuf, rustc: PathBuf },
}

impl Library {
    /// Tells an inner cargo to use it.
    pub fn apply(&self, cargo: &mut Command) {
        match self {
            Self::Component { .. } => {}
            Self::DebianSource { library, .. } => {
                cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", library);
            }
            Self::DebianPair { library, rustc, .. } => {
                cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", library).env("RUSTC", rustc);
            }
        }
    }
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Component { sysroot } => write!(f, "rust-src of the toolchain in {}", sysroot.display()),
            Self::DebianSource { version, .. } => write!(f, "Debian's rust-src {version}"),
            Self::DebianPair { version, .. } => write!(f, "Debian's rustc-web and rust-web-src {version}"),
        }
    }
}

/// The first way that works, or the one asked for.
pub fn find(toolchain: &Toolchain, cache: &Path, only: Option<Way>) -> Result<Library> {
    let mut refused = Vec::new();
    for way in [Way::Component, Way::DebianSource, Way::DebianPair] {
        if only.is_some_and(|only| only != way) {
            continue;
        }
        let tried = match way {
            Way::Component => component(toolchain),
            Way::DebianSource => debian_source(toolchain, cache),
            Way::DebianPair => debian_pair(cache),
        };
        match tried {
            Ok(library) => return Ok(library),
            Err(e) => refused.push(format!("  {way:?}: {e:#}")),
        }
    }
    bail!(
        "no source of Rust's core library for rustc {}:\n{}\nRun `rustup component add rust-src` and try again",
        toolchain.release,
        refused.join("\n")
    )
}

fn component(toolchain: &Toolchain) -> Result<Library> {
    let library = toolchain.sysroot.join("lib/rustlib/src/rust/library");
    if !library.join("core/src/lib.rs").exists() {
        bail!("the toolchain has no rust-src component");
    }
    Ok(Library::Component { sysroot: toolchain.sysroot.clone() })
}

/// The backports of the stable release after this one carry recent compilers; testing and unstable may.
fn debian_source(toolchain: &Toolchain, cache: &Path) -> Result<Library> {
    let folder = cache.join(format!("rust-src-{}", toolchain.release));
    let library = folder.join(format!("usr/src/rustc-{}/library", toolchain.release));
    let marker = folder.join("version");
    if let Ok(version) = std::fs::read_to_string(&marker) {
        return Ok(Library::DebianSource { version, library });
    }
    let mut version = None;
    for suite in ["trixie-backports", "testing", "unstable"] {
        let mut apt = debian::Apt::new(cache, debian::Archive::Main, suite)?;
        let wanted = apt.versions("rust-src")?.into_iter().find(|v| v.split('+').next() == Some(&toolchain.release));
        if let Some(wanted) = wanted {
            apt.unpack("rust-src", &wanted, &folder, Some(&format!("./usr/src/rustc-{}/library", toolchain.release)))?;
            version = Some(wanted);
            break;
        }
    }
    let version = version.with_context(|| {
        format!("neither trixie-backports nor testing nor unstable has rust-src at {}", toolchain.release)
    })?;
    std::fs::write(marker, &version)?;
    Ok(Library::DebianSource { version, library })
}

/// The compiler that bookworm-security keeps for browsers; its LLVM has the BPF target too.
fn debian_pair(cache: &Path) -> Result<Library> {
    let mut apt = debian::Apt::new(cache, debian::Archive::Security, "bookworm-security")?;
    let version = apt.versions("rustc-web")?.into_iter().next().context("bookworm-security has no rustc-web")?;
    let release = version.split('+').next().unwrap_or(&version).to_owned();
    let short = release.rsplit_once('.').map_or(release.as_str(), |(short, _)| short);
    let folder = cache.join(format!("rustc-web-{version}"));
    let library = folder.join(format!("usr/src/rustc-{release}/library"));
    let rustc = folder.join("usr/bin/rustc");
    let marker = folder.join("version");
    if !marker.exists() {
        for package in ["rustc-web", &format!("libstd-rust-web-{short}"), "libstd-rust-web-dev"] {
            apt.unpack(package, &version, &folder, None)?;
        }
        apt.unpack("rust-web-src", &version, &folder, Some(&format!("./usr/src/rustc-{release}/library")))?;
        std::fs::write(marker, &version)?;
    }
    Ok(Library::DebianPair { version, library, rustc })
}

//! The Rust toolchain of this workspace: version, LLVM, where it is.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Set by cargo, rustup or the user for the host build; each would spoil an inner cargo for another target.
const NOT_INHERITED: [&str; 9] = [
    "RUSTUP_TOOLCHAIN",
    "RUSTC",
    "RUSTDOC",
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_TARGET",
    "CARGO",
];

pub struct Toolchain {
    /// `1.95.0`.
    pub release: String,
    commit: String,
    /// 22.
    pub llvm_major: u32,
    pub sysroot: PathBuf,
}

impl Toolchain {
    /// The one that rust-toolchain.toml at `root` selects.
    pub fn probe(root: &Path) -> Result<Self> {
        let version = output(clean("rustc", root).arg("-vV"))?;
        let field = |name: &str| {
            let value = version.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned());
            value.with_context(|| format!("`rustc -vV` has no line `{name}`:\n{version}"))
        };
        let llvm = field("LLVM version:")?;
        let llvm_major = llvm.split('.').next().and_then(|n| n.parse().ok());
        Ok(Self {
            release: field("release:")?,
            commit: field("commit-hash:")?,
            llvm_major: llvm_major.with_context(|| format!("rustc says its LLVM is `{llvm}`, which is no version"))?,
            sysroot: output(clean("rustc", root).args(["--print", "sysroot"]))?.trim().into(),
        })
    }

    /// Tells toolchains apart, in words fit for a folder name.
    pub fn id(&self) -> String {
        format!("{}-{}", self.release, self.commit.get(..8).unwrap_or(&self.commit))
    }

    /// Its cargo, in the folder that selects it.
    pub fn cargo(&self, root: &Path) -> Command {
        clean("cargo", root)
    }
}

fn clean(program: &str, root: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root);
    for name in NOT_INHERITED {
        command.env_remove(name);
    }
    command
}

/// Runs it and returns what it printed; its errors go to ours.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let done =
        command.stderr(std::process::Stdio::inherit()).output().with_context(|| format!("cannot run {shown}"))?;
    if !done.status.success() {
        bail!("{shown} failed: {}", done.status);
    }
    String::from_utf8(done.stdout).with_context(|| format!("{shown} printed something that is not UTF-8"))
}

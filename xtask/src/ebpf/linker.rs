//! bpf-linker, built against the LLVM that rustc brings: no LLVM packages, and never a version that differs from rustc's.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::toolchain::{Toolchain, output};

pub const VERSION: &str = "0.13.0";
/// The LLVM majors that version knows.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// The path of a bpf-linker that fits the toolchain, compiled (about a minute) unless the cache has it.
pub fn ensure(toolchain: &Toolchain, cache: &Path) -> Result<PathBuf> {
    let folder = cache.join(format!("bpf-linker-{VERSION}-rustc-{}", toolchain.id()));
    let binary = folder.join("bin/bpf-linker");
    if works(&binary) {
        return Ok(binary);
    }
    if !LLVM.contains(&toolchain.llvm_major) {
        bail!(
            "rustc {} has LLVM {}, and bpf-linker {VERSION} knows LLVM {} to {}: build with the toolchain that \
             rust-toolchain.toml names",
            toolchain.release,
            toolchain.llvm_major,
            LLVM.start(),
            LLVM.end()
        );
    }

    let llvm = rustc_llvm(toolchain)?;
    let prefix = folder.join("llvm");
    let lib = prefix.join("lib");
    fs::create_dir_all(&lib)?;
    // One name for the linker at build time, one (the library's own) for the loader at run time.
    for name in ["libLLVM.so".as_ref(), llvm.file_name().context("libLLVM has no file name")?] {
        let link = lib.join(name);
        let _ = fs::remove_file(&link);
        symlink(&llvm, &link).with_context(|| format!("cannot link {}", link.display()))?;
    }

    eprintln!("build-ebpf: compiling bpf-linker {VERSION} (once; about a minute)");
    let scratch = folder.join("build");
    let mut cargo = toolchain.cargo(Path::new(env!("CARGO_MANIFEST_DIR")));
    cargo
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--locked",
            "--force",
            "--quiet",
            "--no-default-features",
        ])
        .args(["--features", &format!("llvm-{}", toolchain.llvm_major), "--root"])
        .arg(&folder)
        .env("LLVM_PREFIX", &prefix)
        .env("CARGO_TARGET_DIR", &scratch)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
    output(&mut cargo).context("bpf-linker does not build")?;
    let _ = fs::remove_dir_all(&scratch);
    if !works(&binary) {
        bail!("{} was built and does not run", binary.display());
    }
    Ok(binary)
}

fn works(binary: &Path) -> bool {
    Command::new(binary).arg("--version").output().is_ok_and(|o| o.status.success())
}

/// `lib/libLLVM.so.22.1-rust-1.95.0-stable` of the sysroot.
fn rustc_llvm(toolchain: &Toolchain) -> Result<PathBuf> {
    let lib = toolchain.sysroot.join("lib");
    for entry in fs::read_dir(&lib).with_context(|| format!("cannot read {}", lib.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("libLLVM.so.") {
            return Ok(entry.path());
        }
    }
    bail!("{} has no libLLVM.so.*: rustc is not rustup's; install the toolchain with rustup", lib.display())
}

//! `cargo xtask build-ebpf`: from `proxy-ebpf/` to the objects in `target/bpf/`, which the proxy embeds.
//!
//! `core` for bpfel-unknown-none ships with no toolchain, so it is built here from the library's source ([`library`]),
//! and linked by bpf-linker against the LLVM that rustc itself brings ([`linker`]). Both are kept in the user's cache
//! folder, not in `target/`, so that removing `target/` does not fetch 45 MB and compile the linker again.

mod debian;
mod library;
mod linker;
mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use library::Library;
use toolchain::Toolchain;

#[allow(dead_code)]
mod stamp {
    include!("../../../proxy-ebpf/stamp.rs");
}

/// The binaries of `proxy-ebpf/`, an object each.
const OBJECTS: [&str; 2] = ["pgsplice-bpf", "pgsplice-sockmap"];

/// What the command line of `cargo xtask build-ebpf` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Build even if the objects are up to date
    #[arg(long)]
    force: bool,
    /// Where the standard library's source comes from, instead of the first that works
    #[arg(long, value_enum)]
    library: Option<library::Way>,
}

pub fn run(args: Args) -> Result<()> {
    build(args.force, args.library)?.iter().for_each(|object| println!("{}", object.display()));
    Ok(())
}

/// Builds the objects unless they are up to date. For the commands that go on to build the proxy.
pub fn ensure() -> Result<()> {
    build(false, None).map(drop)
}

fn build(force: bool, way: Option<library::Way>) -> Result<[PathBuf; 2]> {
    let root = root();
    let toolchain = Toolchain::probe(&root)?;
    let folder = target(&root).join("bpf");
    let objects = OBJECTS.map(|name| folder.join(format!("{name}.o")));
    let stamp_file = folder.join("pgsplice-bpf.stamp");
    let stamp = stamp(&root, &toolchain)?;
    let current = objects.iter().all(|o| o.exists()) && fs::read_to_string(&stamp_file).is_ok_and(|s| s == stamp);
    if !force && way.is_none() && current {
        eprintln!("build-ebpf: up to date");
        return Ok(objects);
    }

    let started = Instant::now();
    let cache = cache()?;
    let _lock = lock(&cache)?;
    let library = library::find(&toolchain, &cache, way)?;
    eprintln!("build-ebpf: library source: {library}");
    let linker = linker::ensure(&toolchain, &cache)?;
    eprintln!("build-ebpf: linker: {}", linker.display());
    let status = inner_cargo(&root, &toolchain, &library, &linker, "build").status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the eBPF build failed; what rustc says stands above");
    }

    fs::create_dir_all(&folder)?;
    let release = target(&root).join("ebpf-build/bpfel-unknown-none/release");
    // The stamp goes first and comes back last: an interrupted run leaves no object that claims to be current.
    let _ = fs::remove_file(&stamp_file);
    for (name, object) in OBJECTS.iter().zip(&objects) {
        let built = release.join(name);
        fs::copy(&built, object).with_context(|| format!("cannot copy {} to {}", built.display(), object.display()))?;
    }
    fs::write(&stamp_file, stamp)?;
    eprintln!("build-ebpf: built in {:.1} s", started.elapsed().as_secs_f32());
    Ok(objects)
}

/// clippy over the programs, warnings denied.
pub fn clippy() -> Result<()> {
    let root = root();
    let toolchain = Toolchain::probe(&root)?;
    let cache = cache()?;
    let _lock = lock(&cache)?;
    let library = library::find(&toolchain, &cache, None)?;
    let linker = linker::ensure(&toolchain, &cache)?;
    let status = inner_cargo(&root, &toolchain, &library, &linker, "clippy").status().context("cannot run cargo")?;
    if !status.success() {
        bail!("clippy found something in proxy-ebpf; what it says stands above");
    }
    Ok(())
}

/// Words of a packet may stand anywhere; the verifier takes that where the processor does, as all of ours do.
const FLAGS: &str =
    "-Cdebuginfo=2 -Ctarget-cpu=v3 -Clink-arg=--btf -Clink-arg=--cpu-features=+allows-misaligned-mem-access";

/// Cargo for the BPF target, free of what the outer cargo or the user set for the host.
fn inner_cargo(root: &Path, toolchain: &Toolchain, library: &Library, linker: &Path, verb: &str) -> Command {
    let mut cargo = toolchain.cargo(root);
    cargo.arg(verb).args(["--locked", "--release", "--target", "bpfel-unknown-none", "-Zbuild-std=core"]);
    cargo.args(["-p", "pgsplice-ebpf", "--bins", "--features", "program", "--target-dir"]);
    cargo.arg(target(root).join("ebpf-build"));
    cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", format!("{FLAGS} -Clinker={}", linker.display()));
    library.apply(&mut cargo);
    if verb == "clippy" {
        cargo.args(["--", "-D", "warnings"]);
    }
    cargo
}

/// What the object depends on, one line each; the first is all the proxy's build script looks at.
fn stamp(root: &Path, toolchain: &Toolchain) -> Result<String> {
    let hash = stamp::source_hash(&root.join("proxy-ebpf")).context("cannot read the sources under proxy-ebpf/")?;
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let aya: Vec<&str> =
        lock.split("[[package]]").filter(|p| p.trim_start().starts_with("name = \"aya-ebpf")).map(checksum).collect();
    let (rustc, linker, aya) = (toolchain.id(), linker::VERSION, aya.join(" "));
    Ok(format!("{hash:016x}\nrustc {rustc}\nlinker {linker}\naya {aya}\nflags {FLAGS}\n"))
}

fn checksum(package: &str) -> &str {
    package.lines().find_map(|l| l.strip_prefix("checksum = ")).unwrap_or("none").trim_matches('"')
}

/// One build at a time fills the cache.
fn lock(cache: &Path) -> Result<fs::File> {
    let path = cache.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// `$XDG_CACHE_HOME/pgsplice/ebpf`, which may be removed at any time.
fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => {
            PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache")
        }
    };
    let cache = base.join("pgsplice/ebpf");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    Ok(cache)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace").to_owned()
}

fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir))
}

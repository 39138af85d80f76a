//! Takes the BPF object into the binary, and refuses one that was not built from the sources as they are.
//!
//! It does not build the object itself: that takes tools and a minute, and is `cargo xtask build-ebpf`'s work.

use std::path::{Path, PathBuf};
use std::{env, fs};

include!("../proxy-ebpf/stamp.rs");

const COMMAND: &str = "run `cargo xtask build-ebpf` first, then build again";

fn main() {
    let proxy = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let sources = proxy.join("../proxy-ebpf");
    for watched in ["src", "Cargo.toml", "stamp.rs"] {
        println!("cargo::rerun-if-changed={}", sources.join(watched).display());
    }
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");

    let folder = bpf_folder(&proxy.join(".."), &out);
    let (object, stamp) = (folder.join("pgsplice-bpf.o"), folder.join("pgsplice-bpf.stamp"));
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rerun-if-changed={}", stamp.display());
    if let Err(why) = embed(&sources, &object, &stamp, &out) {
        println!("cargo::error={why}: {COMMAND}");
    }
}

fn embed(sources: &Path, object: &Path, stamp: &Path, out: &Path) -> Result<(), String> {
    let Ok(stamp) = fs::read_to_string(stamp) else {
        return Err(format!("the BPF object {} is not built", object.display()));
    };
    let now = source_hash(sources).map_err(|e| format!("cannot read the sources in {}: {e}", sources.display()))?;
    if stamp.lines().next() != Some(&format!("{now:016x}")) {
        return Err(format!(
            "the BPF object {} was built from other sources than proxy-ebpf/ has now",
            object.display()
        ));
    }
    fs::copy(object, out.join("pgsplice-bpf.o")).map_err(|e| format!("cannot copy {}: {e}", object.display()))?;
    Ok(())
}

/// `bpf/` of the target folder in use: the one above OUT_DIR, which no setting of cargo's can hide.
fn bpf_folder(root: &Path, out: &Path) -> PathBuf {
    let above = out.ancestors().find(|a| a.join("bpf/pgsplice-bpf.stamp").exists()).map(Path::to_owned);
    let named = || env::var_os("CARGO_TARGET_DIR").map(|dir| root.join(dir));
    above.or_else(named).unwrap_or_else(|| root.join("target")).join("bpf")
}

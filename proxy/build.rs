//! Takes the BPF objects into the binary, and refuses those that were not built from the sources as they are.
//!
//! It does not build them itself: that takes tools and a minute, and is `cargo xtask build-ebpf`'s work.

use std::path::{Path, PathBuf};
use std::{env, fs};

include!("../proxy-ebpf/stamp.rs");

const OBJECTS: [&str; 2] = ["pgsplice-bpf.o", "pgsplice-sockmap.o"];
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
    for file in OBJECTS.iter().chain(&["pgsplice-bpf.stamp"]) {
        println!("cargo::rerun-if-changed={}", folder.join(file).display());
    }
    if let Err(why) = embed(&sources, &folder, &out) {
        println!("cargo::error={why}: {COMMAND}");
    }
}

fn embed(sources: &Path, folder: &Path, out: &Path) -> Result<(), String> {
    let Ok(stamp) = fs::read_to_string(folder.join("pgsplice-bpf.stamp")) else {
        return Err(format!("the BPF objects in {} are not built", folder.display()));
    };
    let now = source_hash(sources).map_err(|e| format!("cannot read the sources in {}: {e}", sources.display()))?;
    if stamp.lines().next() != Some(&format!("{now:016x}")) {
        return Err(format!(
            "the BPF objects in {} were built from other sources than proxy-ebpf/ has now",
            folder.display()
        ));
    }
    for file in OBJECTS {
        let object = folder.join(file);
        fs::copy(&object, out.join(file)).map_err(|e| format!("cannot copy {}: {e}", object.display()))?;
    }
    Ok(())
}

/// `bpf/` of the target folder in use: the one above OUT_DIR, which no setting of cargo's can hide.
fn bpf_folder(root: &Path, out: &Path) -> PathBuf {
    let above = out.ancestors().find(|a| a.join("bpf/pgsplice-bpf.stamp").exists()).map(Path::to_owned);
    let named = || env::var_os("CARGO_TARGET_DIR").map(|dir| root.join(dir));
    above.or_else(named).unwrap_or_else(|| root.join("target")).join("bpf")
}

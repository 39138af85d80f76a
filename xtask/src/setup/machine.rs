//! Debian packages on the machine itself, installed only where the thing they bring is not there in another way.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use super::quiet;

/// A package and how to see that what it brings is there.
pub struct Need {
    sign: Sign,
    package: &'static str,
}

enum Sign {
    Program(&'static str),
    File(&'static str),
    Command(&'static [&'static str]),
}

/// What building the workspace and running the lab need.
pub const BASE: &[Need] = &[
    Need { sign: Sign::Program("cc"), package: "gcc" },
    Need { sign: Sign::File("/usr/include/stdio.h"), package: "libc6-dev" },
    Need { sign: Sign::Program("pkg-config"), package: "pkg-config" },
    Need { sign: Sign::Program("make"), package: "make" },
    Need { sign: Sign::Program("protoc"), package: "protobuf-compiler" },
    Need { sign: Sign::File("/usr/include/google/protobuf/timestamp.proto"), package: "libprotobuf-dev" },
    Need { sign: Sign::Program("ip"), package: "iproute2" },
    Need { sign: Sign::Program("mmdebstrap"), package: "mmdebstrap" },
    Need { sign: Sign::File("/usr/share/keyrings/debian-archive-keyring.gpg"), package: "debian-archive-keyring" },
    Need { sign: Sign::File("/etc/ssl/certs/ca-certificates.crt"), package: "ca-certificates" },
    Need { sign: Sign::Program("bzip2"), package: "bzip2" },
    Need { sign: Sign::Program("xz"), package: "xz-utils" },
    // What slows pgsplice down at chosen system calls.
    Need { sign: Sign::Program("strace"), package: "strace" },
];

/// What fetching a wheel needs; asked for only when there is one to fetch.
pub const PIP: &[Need] =
    &[Need { sign: Sign::Command(&["python3", "-m", "pip", "--version"]), package: "python3-pip" }];

/// Installs what is missing of these.
pub fn install(needs: &[Need]) -> Result<()> {
    let missing: Vec<&str> = needs.iter().filter(|need| !need.sign.is_there()).map(|need| need.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let begun = Instant::now();
    println!("setup: apt-get install {} …", missing.join(" "));
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
        command
    };
    quiet(apt().arg("update")).context("cannot read the package lists of this machine's Debian mirror")?;
    quiet(apt().args(["install", "--yes", "--no-install-recommends"]).args(&missing))?;
    println!("setup: installed them in {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

impl Sign {
    fn is_there(&self) -> bool {
        match self {
            Self::Program(name) => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                std::env::split_paths(&path)
                    .chain(["/usr/sbin".into(), "/sbin".into()])
                    .any(|folder| folder.join(name).is_file())
            }
            Self::File(path) => Path::new(path).exists(),
            Self::Command(argv) => quiet(Command::new(argv[0]).args(&argv[1..])).is_ok(),
        }
    }
}

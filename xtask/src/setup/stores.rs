//! The stores beside etcd that Patroni may live in, and what Patroni itself needs for ZooKeeper: `bin/consul`, `java/` (ZooKeeper's
//! class path) and `python/`. Unpacked beside the root and bound into the hosts that run them, so that they can change without it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{quiet, root};

/// The last release with Consul; its binary is static.
const CONSUL_RELEASE: &str = "bullseye";
const CONSUL: &str = "consul";

/// What ZooKeeper's server loads with its admin server off, netty for TLS.
const ZOOKEEPER: &[&str] = &[
    "libzookeeper-java",
    "libslf4j-java",
    "libnetty-java",
    "libdropwizard-metrics-java",
    "libsnappy-java",
    "libcommons-cli-java",
    "libcommons-io-java",
];

/// Others of the same packages bring tests and a second binding for logs.
const JARS: &[&str] = &[
    "zookeeper.jar",
    "zookeeper-jute.jar",
    "slf4j-api.jar",
    "netty-buffer.jar",
    "netty-codec.jar",
    "netty-common.jar",
    "netty-handler.jar",
    "netty-resolver.jar",
    "netty-transport.jar",
    "netty-transport-native-epoll.jar",
    "netty-transport-native-unix-common.jar",
    "metrics-core.jar",
    "snappy-java.jar",
    "commons-cli.jar",
    "commons-io.jar",
];

/// Patroni's client of ZooKeeper.
const KAZOO: &[&str] = &["python3-kazoo", "python3-six"];

/// Everything these depend on; the mirror is not part of it.
pub fn recipe() -> String {
    format!(
        "{CONSUL_RELEASE} {CONSUL}\n{} {}\n{}\n{}",
        root::RELEASE,
        ZOOKEEPER.join(" "),
        JARS.join(" "),
        KAZOO.join(" ")
    )
}

pub fn make(folder: &Path) -> Result<()> {
    let fetched = tempfile::tempdir()?;
    let apt = Apt::new(fetched.path())?;
    let unpacked = fetched.path().join("unpacked");
    fs::create_dir(&unpacked)?;
    for package in apt.download(ZOOKEEPER.iter().chain([&CONSUL]).chain(KAZOO))? {
        quiet(Command::new("dpkg-deb").arg("-x").arg(package).arg(&unpacked))?;
    }

    fs::create_dir(folder.join("bin"))?;
    fs::copy(unpacked.join("usr/bin/consul"), folder.join("bin/consul")).context("the package holds no consul")?;
    fs::create_dir(folder.join("java"))?;
    for jar in JARS {
        let from = unpacked.join("usr/share/java").join(jar);
        fs::copy(&from, folder.join("java").join(jar)).with_context(|| format!("no package holds {jar}"))?;
    }
    let python = unpacked.join("usr/lib/python3/dist-packages");
    quiet(Command::new("cp").arg("-r").arg(python).arg(folder.join("python")))?;
    Ok(())
}

/// An apt of its own that knows the releases, with nothing of the machine's but the mirror, proxies and certificates.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn new(folder: &Path) -> Result<Self> {
        let mirror = root::mirror()?;
        for made in ["lists/partial", "cache/archives/partial", "debs"] {
            fs::create_dir_all(folder.join(made))?;
        }
        let key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
        let sources = [CONSUL_RELEASE, root::RELEASE].map(|release| format!("deb {key} {mirror} {release} main\n"));
        fs::write(folder.join("sources.list"), sources.concat())?;
        let at = folder.display();
        let settings = format!(
            "Dir::Etc::sourcelist \"{at}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             Dir::State::lists \"{at}/lists\";\nDir::State::status \"/dev/null\";\nDir::Cache \"{at}/cache\";\n\
             APT::Sandbox::User \"root\";\n{}",
            root::proxy_settings()?
        );
        fs::write(folder.join("apt.conf"), settings)?;
        let apt = Self { folder: folder.to_owned() };
        quiet(apt.command().arg("update"))
            .with_context(|| format!("cannot read the package lists of {CONSUL_RELEASE} and {}", root::RELEASE))?;
        Ok(apt)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", self.folder.join("apt.conf")).current_dir(self.folder.join("debs")).arg("-qq");
        command
    }

    /// The newest of each, as files.
    fn download<'p>(&self, packages: impl Iterator<Item = &'p &'p str>) -> Result<Vec<PathBuf>> {
        quiet(self.command().arg("download").args(packages))?;
        fs::read_dir(self.folder.join("debs"))?.map(|entry| Ok(entry?.path())).collect()
    }
}

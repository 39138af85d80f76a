//! The Debian root that every host of the lab shares: servers and drivers of one release, whatever the machine runs.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::quiet;

pub const RELEASE: &str = "trixie";

/// Servers, the peers of the bench, drivers people use, and the tools the lab itself calls inside a host.
const PACKAGES: &[&str] = &[
    "ca-certificates",
    "postgresql-17",
    "pgbouncer",
    "etcd-server",
    "etcd-client",
    "patroni",
    "python3-etcd",
    "haproxy",
    "nginx-light",
    "libnginx-mod-stream",
    "python3-psycopg",
    "python3-psycopg2",
    "python3-asyncpg",
    "nodejs",
    "node-pg",
    "default-jre-headless",
    "libpostgresql-jdbc-java",
    "iproute2",
    "iputils-ping",
    "procps",
    "mount",
    "ethtool",
    "nftables",
    "bpftool",
    "tcpdump",
    "curl",
    "jq",
];

/// PostgreSQL's regression suite is part of its source package, and its C helpers need the server's headers. Both are
/// only fetched here, by the apt that made the root; `regress` unpacks them. A mirror may list a point release whose
/// source it does not have yet: then the one before it serves, the suites of two point releases being all but the same.
const FETCH: &str = r#"
set -e
mkdir -p "$1/opt/fetched"
cd "$1/opt/fetched"
export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
apt-get -qq download postgresql-server-dev-17
apt-get -qq source --download-only postgresql-17 || {
    uri=$(apt-get -qq source --print-uris postgresql-17 | sed -n "s/^'\(.*\.orig\.tar\.bz2\)'.*/\1/p")
    now=$(echo "$uri" | sed -n 's/.*_17\.\([0-9]*\)\.orig.*/\1/p')
    before=17.$((now - 1))
    echo "the mirror has no source of PostgreSQL 17.$now: taking $before" >&2
    /usr/lib/apt/apt-helper download-file "$(echo "$uri" | sed "s/_17\.$now\./_$before./")" "postgresql-17_$before.orig.tar.bz2"
}
"#;

/// Everything the root depends on. The mirror is not part of it: another mirror has the same packages.
pub fn recipe() -> Result<String> {
    Ok(format!("{RELEASE}\n{}\n{FETCH}", PACKAGES.join("\n")))
}

/// Makes it with mmdebstrap from the machine's own mirror, through the machine's own proxy.
pub fn make(folder: &Path) -> Result<()> {
    let mirror = mirror()?;
    let settings = tempfile::NamedTempFile::new()?;
    fs::write(&settings, proxy_settings()?)?;
    let hook = tempfile::NamedTempFile::new()?;
    fs::write(&hook, FETCH)?;

    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=apt", "--mode=root"]).arg(format!("--include={}", PACKAGES.join(",")));
    for unread in ["doc", "man", "locale", "info"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{unread}/*"));
    }
    // The JRE's installation fails where its manual's folder is missing.
    command.arg("--essential-hook=mkdir -p \"$1/usr/share/man/man1\"");
    command.arg(format!("--aptopt={}", settings.path().display()));
    command.arg(format!("--customize-hook=sh {} \"$1\"", hook.path().display()));
    command.arg(RELEASE).arg(folder);
    command.arg(format!("deb {mirror} {RELEASE} main")).arg(format!("deb-src {mirror} {RELEASE} main"));
    quiet(&mut command).with_context(|| format!("mmdebstrap could not make a {RELEASE} root from {mirror}"))?;
    Ok(())
}

/// The mirror this machine takes Debian from. Who a list is from is known only once it has been fetched.
pub fn mirror() -> Result<String> {
    let find = || -> Result<Option<String>> {
        let lists =
            quiet(Command::new("apt-get").args(["indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"]))?;
        let lists = String::from_utf8_lossy(&lists);
        Ok(lists.lines().find_map(|line| line.strip_prefix("Debian Debian ")).map(str::to_owned))
    };
    let mut own = find()?;
    if own.is_none() {
        quiet(Command::new("apt-get").args(["-qq", "update"]))?;
        own = find()?;
    }
    Ok(own.as_deref().unwrap_or("http://deb.debian.org/debian").trim_end_matches('/').to_owned())
}

/// What the machine's apt knows of proxies and certificates: mmdebstrap's apt starts without any of it.
pub fn proxy_settings() -> Result<String> {
    let all = quiet(Command::new("apt-config").args(["dump", "Acquire"]))?;
    let keep = |line: &&str| ["Acquire::http", "Acquire::https"].iter().any(|head| line.starts_with(head));
    Ok(String::from_utf8_lossy(&all).lines().filter(keep).map(|line| format!("{line}\n")).collect())
}

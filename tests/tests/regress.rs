//! PostgreSQL's own regression suite, `pg_regress`, with pgsplice between its psqls and the server: some 220 scripts,
//! up to 20 at a time, each a session whose whole output is compared with what PostgreSQL's authors expect.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use pgsplice_tests::proxy::Backend;
use pgsplice_tests::{Pgsplice, need_root, postgres, proxy};
use xtask::lab::cluster::FLEET_PORT;
use xtask::lab::{Host, Lab, LabSpec, Proxy, unique_id, until};

/// Where the suite lies on the server's host. Its psqls run there, too: some scripts have the server read or write
/// files beside them.
const SUITE: &str = "/opt/regress";

struct Bed {
    lab: Lab,
    proxy: Pgsplice,
}

impl Bed {
    fn up() -> Result<Self> {
        need_root()?;
        let spec = LabSpec { bouncers: 0, proxy: Proxy::None, ..LabSpec::static_fleet(unique_id()) };
        let lab = Lab::up(&spec, |_, _| {})?;
        // The suite connects as roles it makes, without passwords.
        postgres::trust(&lab, &["all"])?;
        let pg1 = Backend { name: "pg1".into(), address: (lab.host("pg1").v4(), 5432).into(), peer_id: None };
        let config = proxy::listener("clients", FLEET_PORT, "postgres") + &proxy::backends("postgres", &[pg1]);
        let proxy = Pgsplice::start(lab.proxy(), "pgsplice", &config)?;
        install(lab.host("pg1"))?;
        Ok(Self { lab, proxy })
    }

    /// Scripts that fail without pgsplice, too: where the mirror had only the suite of the point release before, some
    /// expect what that one said. Found out once for a suite and a server, whatever the road, and on a lab that no script
    /// has left anything in: by whoever asks first, while the others wait.
    fn known_to_fail(&self) -> Vec<String> {
        let server = self.lab.superuser_sql(self.lab.host("pg1"), "SHOW server_version").unwrap();
        let server = server.split(' ').next().unwrap_or_default().to_owned();
        let fetched = std::fs::read_dir(xtask::setup::root().join("opt/fetched")).unwrap();
        let names = fetched.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        let mut suites: Vec<String> = names.filter(|name| name.contains(".orig.tar")).collect();
        if suites.iter().any(|name| name.contains(&format!("_{server}.orig.tar"))) {
            return Vec::new();
        }
        suites.sort();
        let found =
            std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("regress-{server}-{}", suites.join("-")));
        let lock = File::create(found.with_extension("lock")).unwrap();
        lock.lock().unwrap();
        if let Ok(text) = std::fs::read_to_string(&found) {
            return text.lines().map(str::to_owned).collect();
        }
        let clean = Self::up().unwrap();
        let failed = failed_scripts(&clean.run(clean.lab.host("pg1")).unwrap());
        std::fs::write(&found, failed.join("\n")).unwrap();
        failed
    }

    /// Runs the suite against a server; gives what pg_regress said (TAP).
    fn run(&self, server: &Host) -> Result<String> {
        let server = format!("--host={}", server.v4());
        let argv = [
            // A script that hangs shall fail.
            "timeout",
            "900",
            &format!("{SUITE}/pg_regress"),
            "--bindir=/usr/lib/postgresql/17/bin",
            &format!("--inputdir={SUITE}"),
            &format!("--outputdir={SUITE}"),
            &format!("--expecteddir={SUITE}"),
            &format!("--dlpath={SUITE}"),
            &format!("--schedule={SUITE}/parallel_schedule"),
            "--max-concurrent-tests=20",
            &server,
            "--port=5432",
            "--user=postgres",
        ];
        let output = self.lab.host("pg1").command_as("postgres", argv)?.output()?;
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }
}

/// The scripts whose output was not the expected one: `not ok 99    + join    4427 ms`.
fn failed_scripts(said: &str) -> Vec<String> {
    let name = |line: &str| {
        line.strip_prefix("not ok")?.split_whitespace().find(|word| word.chars().all(is_name)).map(str::to_owned)
    };
    said.lines().filter_map(name).collect()
}

fn is_name(c: char) -> bool {
    c.is_ascii_lowercase() || c == '_'
}

/// Copies the suite that setup has unpacked and compiled.
fn install(host: &Host) -> Result<()> {
    let archive = tempfile::NamedTempFile::new()?;
    let suite = xtask::setup::regress();
    let packed = Command::new("tar").arg("-cf").arg(archive.path()).arg("-C").arg(&suite).arg(".").status()?;
    ensure!(packed.success(), "cannot pack {}: run cargo xtask setup", suite.display());
    host.run(["install", "-d", "-o", "postgres", SUITE])?;
    let mut unpack = host.command_as("postgres", ["tar", "-xf", "-", "-C", SUITE])?;
    let status = unpack.stdin(File::open(archive.path())?).status()?;
    ensure!(status.success(), "cannot unpack the suite on {}", host.name());
    // Two libraries of contrib that the script `triggers` takes from the suite's folder.
    for library in ["autoinc.so", "refint.so"] {
        host.run(["ln", "-s", &format!("/usr/lib/postgresql/17/lib/{library}"), SUITE])?;
    }
    Ok(())
}

#[test]
fn postgresqls_own_regression_suite_passes_through_pgsplice() {
    let bed = Bed::up().unwrap();
    let said = bed.run(bed.lab.proxy()).unwrap();
    let mut failed = failed_scripts(&said);
    let known = if failed.is_empty() { Vec::new() } else { bed.known_to_fail() };
    failed.retain(|script| !known.contains(script));
    if !failed.is_empty() || known.is_empty() && !said.contains("tests passed.") {
        let differences = bed.lab.host("pg1").read(format!("{SUITE}/regression.diffs")).unwrap_or_default();
        let begin: String = differences.lines().take(200).flat_map(|line| [line, "\n"]).collect();
        panic!("failed: {failed:#?}\n{said}\nThe first differences:\n{begin}");
    }
    let passed = said.lines().filter(|line| line.starts_with("ok ")).count();
    assert!(passed > 200, "the schedule has become short:\n{said}");
    // Every script was at least one session, and none was ended by pgsplice.
    let ended = || bed.proxy.session_count().is_ok_and(|count| count == 0);
    until("the end of every session", Duration::from_secs(10), ended).unwrap();
    let lines = bed.proxy.wait_access_lines(passed + 1).unwrap();
    // In the kernel as soon as they had logged in, nearly all of them: a reply may be longer than a segment.
    let by_road = lines.iter().filter(|line| line.contains(&format!("road=\"{}\"", proxy::road()))).count();
    assert!(by_road * 100 > passed * 95, "{by_road} of {} sessions by {}", lines.len(), proxy::road());
    let by_an_end = ["client-closed", "backend-closed", "login-failed", "cancel-delivered"];
    let other = |line: &&String| !by_an_end.iter().any(|reason| line.ends_with(&format!("reason=\"{reason}\"")));
    assert_eq!(lines.iter().find(other), None);
}

//! Bulk data through pgsplice, a fleet of PgBouncers in transaction mode, and PostgreSQL: COPY, pipelines, large
//! objects. What comes out is what went in, byte by byte.
//!
//! `PGSPLICE_TEST_COPY_MIB=4096 cargo test --package pgsplice-tests --test copy what_goes_in` is the long version;
//! the table lies in memory. `PGSPLICE_TEST_ROAD` names the road: relay, tc, xdp or sockmap.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::Result;
use pgsplice_tests::{Pgsplice, Shared, postgres, proxy};
use xtask::lab::cluster::{APP_PASSWORD, FLEET_PORT};
use xtask::lab::{Lab, LabSpec, Proxy, unique_id, until};

/// One row of COPY's text format in bytes.
const ROW: usize = 1024;
/// How many MiB there are, unless the environment says otherwise.
const FEW: usize = 300;

static FLEET: Shared<Fleet> = Shared::new(Fleet::up);

struct Fleet {
    lab: Lab,
    proxy: Pgsplice,
}

impl Fleet {
    fn up() -> Result<Self> {
        let lab = Lab::up(&LabSpec { proxy: Proxy::None, ..LabSpec::static_fleet(unique_id()) }, |_, _| {})?;
        // A sequential scan would else begin where another stopped, and the rows come in another order.
        postgres::set(&lab, &[("synchronize_seqscans", "off")])?;
        let config =
            proxy::listener("clients", FLEET_PORT, "fleet") + &proxy::backends("fleet", &proxy::fleet(&lab, true));
        let proxy = Pgsplice::start(lab.proxy(), "pgsplice", &config)?;
        Ok(Self { lab, proxy })
    }

    /// Runs a script of `tests/drivers/` on the client host; gives the lines it prints.
    fn run(&self, interpreter: &str, file: &str, text: &str) -> Vec<String> {
        let path = format!("/opt/tests/{file}");
        self.lab.client().write(&path, text).unwrap();
        let mut command = self.lab.client().command(["timeout", "120", interpreter, &path]);
        command.envs([("PGHOST", self.lab.proxy().v4().to_string()), ("PGPORT", FLEET_PORT.to_string())]);
        command.envs([("PGUSER", "app"), ("PGDATABASE", "app"), ("PGPASSWORD", APP_PASSWORD)]);
        let output = command.output().unwrap();
        let said: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "it did {said:?}, then {}:\n{errors}", output.status);
        said
    }

    fn psql(&self, sql: &str) -> Child {
        let conninfo = self.lab.conninfo(self.lab.proxy(), FLEET_PORT);
        let limit = (120 + mebibytes() / 10).to_string();
        let argv = ["timeout", &limit, "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", &conninfo, "-c", sql];
        let mut psql = self.lab.client().command(argv);
        psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }
}

fn mebibytes() -> usize {
    std::env::var("PGSPLICE_TEST_COPY_MIB").map_or(FEW, |count| count.parse().unwrap())
}

/// The rows, a MiB at a time: a number, and text that no two of them share.
struct Rows {
    text: Vec<u8>,
    next: usize,
    count: usize,
}

impl Rows {
    fn new() -> Self {
        let mut state = 1_u32;
        let letter = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b'A' + (state >> 24) as u8 % 26
        };
        Self { text: std::iter::repeat_with(letter).take(100_000).collect(), next: 0, count: 1024 * mebibytes() }
    }
}

impl Iterator for Rows {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.next == self.count {
            return None;
        }
        let mut chunk = Vec::with_capacity(1024 * ROW);
        for number in self.next..self.next + 1024 {
            let at = number * 37 % (self.text.len() - ROW);
            chunk.extend(format!("{number:08}\t").as_bytes());
            chunk.extend(&self.text[at..at + ROW - 10]);
            chunk.push(b'\n');
        }
        self.next += 1024;
        Some(chunk)
    }
}

#[test]
fn what_goes_in_and_out_by_copy_is_the_same() {
    let fleet = FLEET.get();
    let rows = Rows::new().count;
    fleet.lab.sql(fleet.lab.proxy(), FLEET_PORT, "CREATE UNLOGGED TABLE bulk (number text, text text)").unwrap();

    let mut psql = fleet.psql("COPY bulk FROM STDIN");
    let mut into = psql.stdin.take().unwrap();
    Rows::new().for_each(|chunk| into.write_all(&chunk).unwrap());
    drop(into);
    assert!(psql.wait().unwrap().success());
    let count = fleet.lab.sql(fleet.lab.proxy(), FLEET_PORT, "SELECT count(*) FROM bulk").unwrap();
    assert_eq!(count, rows.to_string());

    let mut psql = fleet.psql("COPY bulk TO STDOUT");
    let mut out = psql.stdout.take().unwrap();
    let mut got = vec![0; 1024 * ROW];
    for (index, expected) in Rows::new().enumerate() {
        out.read_exact(&mut got).unwrap();
        assert!(got == expected, "chunk {index} differs");
    }
    assert_eq!(out.read_to_end(&mut got).unwrap(), 0);
    assert!(psql.wait().unwrap().success());

    // The access lines know of it: once in, once out.
    let carried = |field: &str| {
        let lines = fleet.proxy.access_lines().unwrap();
        let value = |line: &String| line.split(' ').find_map(|word| word.strip_prefix(field)?.parse::<usize>().ok());
        lines.iter().filter_map(value).filter(|bytes| *bytes > rows * ROW && *bytes < rows * ROW * 11 / 10).count()
    };
    let both = || carried("bytes_in=") == 1 && carried("bytes_out=") == 1;
    until("both sessions in the access log with their bytes", Duration::from_secs(20), both).unwrap();
    if proxy::road() == "sockmap" {
        // Which waits for no moment of silence.
        let lines = fleet.proxy.access_lines().unwrap();
        assert!(lines.iter().all(|line| line.contains("road=\"sockmap\"")), "{lines:#?}");
    }
}

#[test]
fn a_pipelining_client_gets_every_answer() {
    let said = FLEET.get().run("python3", "pipeline.py", include_str!("../drivers/pipeline.py"));
    assert_eq!(said, ["many small ones", "both directions full", "an error in the middle"]);
}

#[test]
fn a_large_object_goes_in_and_out_and_is_the_same() {
    let said = FLEET.get().run("sh", "large-objects.sh", include_str!("../drivers/large-objects.sh"));
    assert_eq!(said, ["same"]);
}

//! A `pgsplice run` on a host of the lab: its configuration, its admin socket and its log. A host may run several.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use xtask::lab::cluster::{BOUNCER_PORT, binaries};
use xtask::lab::{Host, HostSpec, Lab, Program, Service, until_ok};

/// Where the hosts of a lab find the binary.
const BINARY: &str = "/opt/pgsplice/pgsplice";

/// A running one. Dropping it leaves it to the lab.
#[derive(Debug)]
pub struct Pgsplice {
    service: Service,
    socket: String,
}

/// A backend as a test writes it down.
#[derive(Debug, Clone)]
pub struct Backend {
    pub name: String,
    pub address: SocketAddr,
    pub peer_id: Option<u16>,
}

/// Which road the sessions of a run shall take: `$PGSPLICE_TEST_ROAD`, set by `cargo xtask test`, or the relay.
pub fn road() -> String {
    std::env::var("PGSPLICE_TEST_ROAD").unwrap_or_else(|_| "relay".into())
}

/// `[listener.NAME]` on every address of the host, by [`road`].
pub fn listener(name: &str, port: u16, pool: &str) -> String {
    let road = road();
    // At once: most sessions of a test are short.
    let after = if road == "relay" { "" } else { "splice_after = 0\n" };
    format!(
        "[listener.{name}]\nbind = [\"0.0.0.0:{port}\", \"[::]:{port}\"]\npool = \"{pool}\"\nsplice = \"{road}\"\n{after}\n"
    )
}

/// What the kernel's roads need of a host of the lab: the configuration's part, and forwarding for XDP. Several
/// pgsplices on a host have their pins apart.
fn splice(host: &Host, name: &str) -> Result<String> {
    let road = road();
    if !matches!(road.as_str(), "tc" | "xdp") {
        return Ok(String::new());
    }
    let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
    host.run(["sh", "-ec", forward])?;
    let interfaces = "[splice]\ninterfaces = [\"eth0\"]";
    Ok(format!("\n{interfaces}\nmode = \"{road}\"\n\n[guard]\npin_path = \"/sys/fs/bpf/{name}\"\n"))
}

/// `[[pool.NAME.backend]]` for each. Keys of the pool itself (`[pool.NAME]`) must come before it in the text.
pub fn backends(pool: &str, backends: &[Backend]) -> String {
    let mut text = String::new();
    for Backend { name, address, peer_id } in backends {
        let _ = writeln!(text, "[[pool.{pool}.backend]]\nname = \"{name}\"\naddress = \"{address}\"");
        if let Some(peer_id) = peer_id {
            let _ = writeln!(text, "peer_id = {peer_id}");
        }
        text.push('\n');
    }
    text
}

/// The PgBouncers of a lab, with the peer ids the lab gave them if they are to be used.
pub fn fleet(lab: &Lab, peer_ids: bool) -> Vec<Backend> {
    let backend = |(index, host): (usize, &&Host)| Backend {
        name: host.name().to_owned(),
        address: (host.v4(), BOUNCER_PORT).into(),
        peer_id: peer_ids.then_some(index as u16 + 1),
    };
    lab.bouncers().iter().enumerate().map(backend).collect()
}

/// A host that [`Pgsplice::start`] can use, for a network without the lab's data centre.
pub fn host(name: &str) -> HostSpec {
    HostSpec::new(name, xtask::setup::root()).bind(binaries(), "/opt/pgsplice")
}

impl Pgsplice {
    /// Starts it and waits until every backend of every pool is a candidate. `config` has no `[admin]`: the socket is
    /// this one's own.
    pub fn start(host: &Host, name: &str, config: &str) -> Result<Self> {
        let started = Self::start_unready(host, name, config)?;
        until_ok("every backend of pgsplice to be up", Duration::from_secs(20), || started.is_ready())
            .with_context(|| format!("pgsplice on {}: its log ends with\n{}", host.name(), started.log_tail()))?;
        Ok(started)
    }

    /// The same, and waits only for the admin socket: for backends that are not there.
    pub fn start_unready(host: &Host, name: &str, config: &str) -> Result<Self> {
        let (file, socket) = (format!("/etc/pgsplice/{name}.toml"), format!("/run/pgsplice/{name}.sock"));
        if host.run(["test", "-x", BINARY]).is_err() {
            bail!(
                "there is no pgsplice in {}: run `cargo xtask test`, or first `cargo build --workspace`",
                binaries().display()
            );
        }
        host.run(["install", "-d", "/run/pgsplice"])?;
        let splice = if config.contains("[splice]") { String::new() } else { splice(host, name)? };
        host.write_private(&file, format!("{config}\n[admin]\nsocket = \"{socket}\"\n{splice}"), "root")?;
        let service = host.spawn(Program::new(name, [BINARY, "run", "--config", &file]))?;
        let started = Self { service, socket };
        let answers = || {
            if !started.service.is_running() {
                // Nothing to wait for.
                return Ok(false);
            }
            started.status().map(|_| true)
        };
        match until_ok("pgsplice to answer on its admin socket", Duration::from_secs(20), answers) {
            Ok(true) => Ok(started),
            Ok(false) => bail!("pgsplice on {} ended at once; its log ends with\n{}", host.name(), started.log_tail()),
            Err(error) => Err(error).with_context(|| format!("its log ends with\n{}", started.log_tail())),
        }
    }

    pub fn service(&self) -> &Service {
        &self.service
    }

    /// `pgsplice ARGS` against its admin socket.
    pub fn command(&self, args: &[&str]) -> Result<String> {
        let mut argv = vec![BINARY];
        argv.extend(args);
        argv.extend(["--socket", &self.socket]);
        self.service.host().output(argv)
    }

    /// The same with `--json`.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let said = self.command(&[args, &["--json"]].concat())?;
        serde_json::from_str(&said).with_context(|| format!("pgsplice {} --json said {said}", args.join(" ")))
    }

    pub fn status(&self) -> Result<Value> {
        self.json(&["status"])
    }

    /// How many sessions live.
    pub fn session_count(&self) -> Result<u64> {
        self.status()?["sessions"].as_u64().context("status has no number of sessions")
    }

    /// All it logged so far.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.service.log_path())?)
    }

    /// The access lines of the sessions that ended, once there are so many: each is written a moment after its session is
    /// counted.
    pub fn wait_access_lines(&self, count: usize) -> Result<Vec<String>> {
        until_ok("the access lines", Duration::from_secs(20), || {
            let lines = self.access_lines()?;
            ensure!(lines.len() >= count, "{} of {count}", lines.len());
            Ok(lines)
        })
    }

    /// The access lines of the sessions that ended so far.
    pub fn access_lines(&self) -> Result<Vec<String>> {
        Ok(self.log()?.lines().filter(|line| line.contains("pgsplice::access")).map(str::to_owned).collect())
    }

    fn is_ready(&self) -> Result<()> {
        let status = self.status()?;
        for pool in status["pools"].as_array().context("status has no pools")? {
            if pool["candidates"] != pool["backends"] {
                bail!("{pool}");
            }
        }
        Ok(())
    }

    fn log_tail(&self) -> String {
        self.service.log_tail(20)
    }
}

//! What stands around the contenders: a client host, the proxy host and a backend host, with PostgreSQL, two PgBouncers
//! and the echo servers on the last.
//!
//! ```text
//! client 10.88.1.1 ── front ── proxy 10.88.1.254 / 10.88.2.254 ── back ── backend 10.88.2.1, 10.88.2.2
//! ```
//!
//! [`Links`] says what lies between them, and whether the backends have a host of their own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::running::substitute;
use crate::lab::{Host, HostSpec, Net, NetSpec, Program, Service, until_ok};
use crate::setup;

/// Where configurations are put on a host.
pub const FOLDER: &str = "/bench";
/// Each host's own memory file system.
pub const MEMORY: &str = "/dev/shm";
/// The load generator as the hosts see it.
pub const XTASK: &str = "/opt/pgsplice/xtask";

const PROXY: Ipv4Addr = Ipv4Addr::new(10, 88, 1, 254);
const BACKENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 88, 2, 1), Ipv4Addr::new(10, 88, 2, 2)];
const LISTEN_PORT: u16 = 5432;
const PGBOUNCER_PORT: u16 = 6432;
const ECHO_PORT: u16 = 7432;
const CROWD_PORT: u16 = 8432;
/// Echo servers for more sessions than one process has descriptors for, and addresses of the client host for more than
/// one address has ports for.
pub const CROWD: usize = 8;

/// pgbench's scale: 1,000,000 accounts, all in memory.
const SCALE: &str = "10";
/// Rows of the table that COPY moves, about a kilobyte each.
const COPY_ROWS: u32 = 250_000;

/// What lies between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Links {
    /// veth as it comes: big frames, and checksums left to a card that is not there.
    Veth,
    /// Frames as a wire carries them: a checksum in each, none larger than the MTU. XDP forwards nothing else right: it
    /// cannot see that a checksum was left out. And NAPI at the switch's end of each link, without which veth throws away
    /// what XDP redirects to it.
    Wire,
    /// veth; the backends are on the proxy host itself.
    Beside,
}

impl Links {
    pub fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Wire => "wire",
            Self::Beside => "beside",
        }
    }
}

/// The hosts, up. Dropping it removes them and everything that runs on them.
pub struct Testbed {
    net: Net,
    links: Links,
}

impl Testbed {
    /// Makes the hosts and starts the echo servers. `binaries` is the folder with the release builds of pgsplice and xtask.
    pub fn up(binaries: &Path, links: Links) -> Result<Self> {
        let testbed = Self { net: network(binaries, links).up()?, links };
        for host in testbed.net.hosts() {
            for (key, value) in [
                // Short sessions by the ten thousand: every port is usable, and again as soon as timestamps allow.
                ("net/ipv4/ip_local_port_range", "10000 65000"),
                ("net/ipv4/tcp_tw_reuse", "1"),
                ("net/core/somaxconn", "4096"),
            ] {
                set(host, key, value)?;
            }
            // Whatever the machine has: BBR's pacing timers are a load of their own. A machine whose own choice is not
            // cubic refuses it to its namespaces; reno is never refused and does the same where nothing is lost.
            let key = "/proc/sys/net/ipv4/tcp_congestion_control";
            host.run(["sh", "-c", "{ echo cubic > \"$1\"; } 2>/dev/null || echo reno > \"$1\"", "sh", key])?;
        }
        // A bridge that passes each frame through the IP firewall hooks is no switch.
        let plain = "for hook in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $hook ] || echo 0 > $hook; done";
        let status = testbed.net.on_switch().args(["sh", "-c", plain]).status().context("cannot run ip netns exec")?;
        ensure!(status.success(), "the switch's firewall hooks cannot be turned off");
        testbed.start_servers("echo", &testbed.echo_servers())?;
        Ok(testbed)
    }

    pub fn client(&self) -> &Host {
        self.net.host("client")
    }

    pub fn proxy(&self) -> &Host {
        self.net.host("proxy")
    }

    /// Where the servers run.
    pub fn backend(&self) -> &Host {
        self.net.host(if self.links == Links::Beside { "proxy" } else { "backend" })
    }

    /// The proxy host's interfaces, both sides.
    pub fn proxy_interfaces(&self) -> &'static [&'static str] {
        if self.links == Links::Beside { &["eth0"] } else { &["eth0", "eth1"] }
    }

    /// Where a contender listens.
    pub fn listen(&self) -> SocketAddr {
        (PROXY, LISTEN_PORT).into()
    }

    pub fn echo_servers(&self) -> Vec<SocketAddr> {
        BACKENDS.map(|ip| (ip, ECHO_PORT).into()).to_vec()
    }

    /// The echo servers that [`Self::start_crowd`] starts.
    pub fn crowd_servers(&self) -> Vec<SocketAddr> {
        (0..CROWD).map(|number| (BACKENDS[number % 2], CROWD_PORT + number as u16).into()).collect()
    }

    pub fn pgbouncers(&self) -> Vec<SocketAddr> {
        BACKENDS.map(|ip| (ip, PGBOUNCER_PORT).into()).to_vec()
    }

    /// Waits until a client gets through a whole PostgreSQL startup at `target`.
    pub fn welcome(&self, target: SocketAddr) -> Result<()> {
        self.client().run([XTASK, "bench-client", "--pattern", "probe", "--target", &target.to_string()])
    }

    /// A path on a host as this process reaches it.
    pub fn on_client(&self, path: &str) -> PathBuf {
        reach(self.client(), path)
    }

    pub fn on_proxy(&self, path: &str) -> PathBuf {
        reach(self.proxy(), path)
    }

    /// Keeps the proxy host's kernel from giving out these ports; "" for none.
    pub fn reserve_ports(&self, range: &str) -> Result<()> {
        set(self.proxy(), "net/ipv4/ip_local_reserved_ports", range)
    }

    /// Whether senders on any host ask again early for an answer that is late (tail loss probes), as they do by default.
    pub fn probe_tails(&self, probe: bool) -> Result<()> {
        let value = if probe { "3" } else { "0" };
        self.net.hosts().iter().try_for_each(|host| set(host, "net/ipv4/tcp_early_retrans", value))
    }

    /// One echo server for each crowd address, each a process of its own.
    pub fn start_crowd(&self) -> Result<Crowd> {
        let mut crowd = Crowd(Vec::new());
        for (number, address) in self.crowd_servers().into_iter().enumerate() {
            crowd.0.push(self.start_servers(&format!("crowd{number}"), &[address])?);
        }
        Ok(crowd)
    }

    /// One process, a thread for each address.
    fn start_servers(&self, name: &str, addresses: &[SocketAddr]) -> Result<Service> {
        let mut argv = vec![XTASK.to_owned(), "bench-server".to_owned()];
        for address in addresses {
            argv.extend(["--listen".to_owned(), address.to_string()]);
        }
        let service = self.backend().spawn(Program::new(name, argv))?;
        let up = addresses.iter().try_for_each(|address| self.welcome(*address));
        up.with_context(|| format!("the echo server; the end of its log:\n{}", service.log_tail(10)))?;
        Ok(service)
    }

    /// Starts PostgreSQL with pgbench's tables and those for COPY, and the two PgBouncers.
    pub fn start_postgres(&self) -> Result<()> {
        let host = self.backend();
        let data = format!("{MEMORY}/pg");
        let initdb = ["initdb", "-D", &data, "-U", "postgres", "--auth=trust", "--no-sync", "--locale=C.UTF-8"];
        host.output_as("postgres", initdb)?;
        // On the memory file system nothing is to be kept, and nothing but the load shall use the CPU.
        let mut argv = vec!["postgres".to_owned(), "-D".to_owned(), data];
        for setting in [
            "listen_addresses=",
            "unix_socket_directories=/tmp",
            "shared_buffers=512MB",
            "fsync=off",
            "wal_level=minimal",
            "max_wal_senders=0",
            "max_wal_size=8GB",
            "checkpoint_timeout=1h",
            "autovacuum=off",
            "jit=off",
            // Every COPY of a table has its rows in the same order.
            "synchronize_seqscans=off",
        ] {
            argv.extend(["-c".to_owned(), setting.to_owned()]);
        }
        let postgres = host.spawn(Program::new("postgres", argv).user("postgres"))?;
        until_ok("PostgreSQL", Duration::from_secs(20), || self.sql("postgres", "SELECT 1"))
            .with_context(|| postgres.log_tail(15))?;
        self.sql("postgres", "CREATE ROLE bench LOGIN SUPERUSER")?;
        self.sql("postgres", "CREATE DATABASE bench OWNER bench")?;
        host.output_as("postgres", ["pgbench", "-i", "-q", "-s", SCALE, "-h", "/tmp", "-U", "bench", "bench"])?;
        let fill = format!(
            "CREATE UNLOGGED TABLE bench_copy AS SELECT i, repeat(md5(i::text), 31) AS filler \
             FROM generate_series(1, {COPY_ROWS}) AS i"
        );
        self.sql("bench", &fill)?;
        for table in ["bench_in0", "bench_in1"] {
            self.sql("bench", &format!("CREATE UNLOGGED TABLE {table} (LIKE bench_copy)"))?;
        }
        self.sql("bench", "VACUUM ANALYZE")?;
        self.sql("bench", "CHECKPOINT")?;

        for (number, address) in self.pgbouncers().into_iter().enumerate() {
            let config = format!("{FOLDER}/pgbouncer{number}.ini");
            let values = [("ip", address.ip().to_string()), ("port", address.port().to_string())];
            let values = BTreeMap::from(values.map(|(name, value)| (name.to_owned(), value)));
            host.write(&config, substitute(include_str!("contenders/pgbouncer.ini"), &values))?;
            host.write(format!("{FOLDER}/users.txt"), "\"bench\" \"\"\n")?;
            let program = Program::new(format!("pgbouncer{number}"), ["pgbouncer", &config]).user("postgres");
            let service = host.spawn(program)?;
            self.welcome(address)
                .with_context(|| format!("PgBouncer; the end of its log:\n{}", service.log_tail(10)))?;
        }
        Ok(())
    }

    /// Asks PostgreSQL itself, past every proxy and PgBouncer.
    pub fn sql(&self, database: &str, statement: &str) -> Result<String> {
        let argv = ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", "/tmp", "-d", database, "-c", statement];
        self.backend().output_as("postgres", argv)
    }
}

/// Servers that end when this is dropped.
pub struct Crowd(Vec<Service>);

impl Drop for Crowd {
    fn drop(&mut self) {
        for service in &self.0 {
            // What a signal does not end goes with the testbed.
            let _ = service.stop(Duration::from_secs(1));
        }
    }
}

/// The client host's addresses for a crowd.
pub fn crowd_clients() -> impl Iterator<Item = IpAddr> {
    (0..CROWD).map(|number| Ipv4Addr::new(10, 88, 1, 11 + number as u8).into())
}

fn network(binaries: &Path, links: Links) -> NetSpec {
    let v6 = |segment| Ipv6Addr::new(0xfd88, segment, 0, 0, 0, 0, 0, 0);
    let host = |name: &str| HostSpec::new(name, setup::root()).bind(binaries, "/opt/pgsplice");
    let net = NetSpec::unique().segment("front", Ipv4Addr::new(10, 88, 1, 0), v6(1));
    let mut client = host("client").nic("front", 1).route("10.88.2.0/24 via 10.88.1.254");
    for address in crowd_clients() {
        client = client.address(&format!("{address}/24"));
    }
    let mut proxy = host("proxy").nic("front", 254).forward();
    if setup::envoy().exists() {
        proxy = proxy.bind(setup::envoy(), "/opt/envoy");
    }
    if links == Links::Beside {
        for address in BACKENDS {
            proxy = proxy.address(&format!("{address}/32"));
        }
        return net.host(client).host(proxy);
    }
    let backend = host("backend").nic("back", 1).address("10.88.2.2/24").route("10.88.1.0/24 via 10.88.2.254");
    let net = net.segment("back", Ipv4Addr::new(10, 88, 2, 0), v6(2));
    let net = net.host(client).host(proxy.nic("back", 254)).host(backend);
    if links == Links::Wire { net.wire() } else { net }
}

fn set(host: &Host, key: &str, value: &str) -> Result<()> {
    host.run(["sh", "-c", "echo \"$2\" > \"/proc/sys/$1\"", "sh", key, value])
}

fn reach(host: &Host, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", host.holder()))
}

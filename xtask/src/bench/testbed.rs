//! What stands around the contenders: a client host, the proxy host and a backend host, with PostgreSQL, two PgBouncers
//! and the echo servers on the last.
//!
//! ```text
//! client 10.88.1.1 ── front ── proxy 10.88.1.254 / 10.88.2.254 ── back ── backend 10.88.2.1, 10.88.2.2
//! ```

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::contender::substitute;
use crate::lab::{Host, HostSpec, Net, NetSpec, Program, until_ok};
use crate::setup;

/// Where configurations are put on a host.
pub const FOLDER: &str = "/bench";
/// Each host's own memory file system.
pub const MEMORY: &str = "/dev/shm";

const PROXY: Ipv4Addr = Ipv4Addr::new(10, 88, 1, 254);
const BACKENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 88, 2, 1), Ipv4Addr::new(10, 88, 2, 2)];
const LISTEN_PORT: u16 = 5432;
const PGBOUNCER_PORT: u16 = 6432;
const ECHO_PORT: u16 = 7432;

/// pgbench's scale: 1,000,000 accounts, all in memory.
const SCALE: &str = "10";
/// Rows of the table that COPY moves, about a kilobyte each.
const COPY_ROWS: u32 = 250_000;

/// The three hosts, up. Dropping it removes them and everything that runs on them.
pub struct Testbed {
    net: Net,
}

impl Testbed {
    /// Makes the hosts. `binaries` is the folder with the release builds of pgsplice and xtask.
    pub fn up(binaries: &Path) -> Result<Self> {
        let v6 = |segment| Ipv6Addr::new(0xfd88, segment, 0, 0, 0, 0, 0, 0);
        let mut proxy = HostSpec::new("proxy", setup::root()).nic("front", 254).nic("back", 254).forward();
        if setup::envoy().exists() {
            proxy = proxy.bind(setup::envoy(), "/opt/envoy");
        }
        let net = NetSpec::unique()
            .segment("front", Ipv4Addr::new(10, 88, 1, 0), v6(1))
            .segment("back", Ipv4Addr::new(10, 88, 2, 0), v6(2))
            .host(
                HostSpec::new("client", setup::root())
                    .nic("front", 1)
                    .route("10.88.2.0/24 via 10.88.1.254")
                    .bind(binaries, "/opt/pgsplice"),
            )
            .host(proxy.bind(binaries, "/opt/pgsplice"))
            .host(
                HostSpec::new("backend", setup::root())
                    .nic("back", 1)
                    .address("10.88.2.2/24")
                    .route("10.88.1.0/24 via 10.88.2.254")
                    .bind(binaries, "/opt/pgsplice"),
            )
            .up()?;
        let testbed = Self { net };
        for host in testbed.net.hosts() {
            for (key, value) in [
                // Short sessions by the ten thousand: every port is usable, and again as soon as timestamps allow.
                ("net/ipv4/ip_local_port_range", "10000 65000"),
                ("net/ipv4/tcp_tw_reuse", "1"),
                ("net/core/somaxconn", "4096"),
            ] {
                host.run(["sh", "-c", "echo \"$2\" > \"/proc/sys/$1\"", "sh", key, value])?;
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
        Ok(testbed)
    }

    pub fn client(&self) -> &Host {
        self.net.host("client")
    }

    pub fn proxy(&self) -> &Host {
        self.net.host("proxy")
    }

    fn backend(&self) -> &Host {
        self.net.host("backend")
    }

    /// Where a contender listens.
    pub fn listen(&self) -> SocketAddr {
        (PROXY, LISTEN_PORT).into()
    }

    pub fn echo_servers(&self) -> [SocketAddr; 2] {
        BACKENDS.map(|ip| (ip, ECHO_PORT).into())
    }

    pub fn pgbouncers(&self) -> [SocketAddr; 2] {
        BACKENDS.map(|ip| (ip, PGBOUNCER_PORT).into())
    }

    /// Waits until a client gets through a whole PostgreSQL startup at `target`.
    pub fn welcome(&self, target: SocketAddr) -> Result<()> {
        self.client().run([
            "/opt/pgsplice/xtask",
            "bench-client",
            "--pattern",
            "probe",
            "--target",
            &target.to_string(),
        ])
    }

    /// A path on the client host as this process reaches it.
    pub fn on_client(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.client().holder()))
    }

    /// Starts the echo servers.
    pub fn start_echo(&self) -> Result<()> {
        let mut argv = vec!["/opt/pgsplice/xtask".to_owned(), "bench-server".to_owned()];
        for address in self.echo_servers() {
            argv.extend(["--listen".to_owned(), address.to_string()]);
        }
        let service = self.backend().spawn(Program::new("echo", argv))?;
        self.echo_servers()
            .into_iter()
            .try_for_each(|address| self.welcome(address))
            .with_context(|| format!("the echo server; the end of its log:\n{}", service.log_tail(10)))
    }

    /// Starts PostgreSQL with pgbench's tables and one for COPY, and the two PgBouncers.
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
        self.sql("bench", "CREATE UNLOGGED TABLE bench_in (LIKE bench_copy)")?;
        self.sql("bench", "VACUUM ANALYZE")?;
        self.sql("bench", "CHECKPOINT")?;

        for (number, address) in self.pgbouncers().into_iter().enumerate() {
            let config = format!("{FOLDER}/pgbouncer{number}.ini");
            let values = [("ip", address.ip().to_string()), ("port", address.port().to_string())];
            let values = values.map(|(name, value)| (name.to_owned(), value));
            host.write(&config, substitute(include_str!("contenders/pgbouncer.ini"), &values))?;
            host.write(format!("{FOLDER}/users.txt"), "\"bench\" \"\"\n")?;
            let program = Program::new(format!("pgbouncer{number}"), ["pgbouncer", &config]).user("postgres");
            let service = host.spawn(program)?;
            self.welcome(address)
                .with_context(|| format!("PgBouncer; the end of its log:\n{}", service.log_tail(10)))?;
        }
        Ok(())
    }

    fn sql(&self, database: &str, statement: &str) -> Result<String> {
        let argv = ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", "/tmp", "-d", database, "-c", statement];
        self.backend().output_as("postgres", argv)
    }
}

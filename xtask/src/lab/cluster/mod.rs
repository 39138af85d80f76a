//! A PostgreSQL data centre on the lab's network: a store, Patroni with PostgreSQL, a PgBouncer fleet with agents,
//! pgsplice and a client. [`LabSpec`] chooses the parts, so that a test starts no more than it asks about.

mod bouncer;
pub mod http;
mod patroni;
mod proxy;
mod single;
mod store;
mod template;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use patroni::Member;
pub use single::server as postgres_server;
pub use store::Store;

use super::{Host, HostSpec, Net, NetSpec, Program, Service};

/// The password of role `app`, whose database `app` is.
pub const APP_PASSWORD: &str = "lab-app";
/// The password of PgBouncer's admin user `pgbouncer`.
pub const ADMIN_PASSWORD: &str = "lab-admin";
/// Where every PgBouncer listens.
pub const BOUNCER_PORT: u16 = 6432;
/// pgsplice's listeners in the lab: to the fleet, to the replicas, to the primary's own PgBouncer.
pub const FLEET_PORT: u16 = 5432;
pub const REPLICA_PORT: u16 = 5433;
pub const NODE_LOCAL_PORT: u16 = 5434;

/// The scope and the addresses of etcd are those in `deploy/pgsplice/*.toml`: the lab runs these files as they are.
pub const SCOPE: &str = "main";
const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);
const NETWORK6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0);

/// What a data centre shall consist of.
#[derive(Debug, Clone)]
pub struct LabSpec {
    pub net: String,
    pub postgres: Postgres,
    /// With Patroni.
    pub store: Store,
    /// PgBouncer hosts `bouncer1` … `bouncerN`, none to nine.
    pub bouncers: u8,
    /// Whether the PgBouncers know each other and pass cancel requests on.
    pub peering: bool,
    /// PgBouncer's `pool_mode`.
    pub pool_mode: &'static str,
    /// `pgsplice agent` beside each PgBouncer; only with Patroni.
    pub agents: bool,
    pub proxy: Proxy,
    /// The folder with the `pgsplice` binary.
    pub binaries: PathBuf,
    /// Frames as on a real wire; see [`NetSpec::wire`].
    pub wire: bool,
}

/// Who serves PostgreSQL.
#[derive(Debug, Clone)]
pub enum Postgres {
    /// One server on host `pg1`, without Patroni.
    Single,
    /// Three servers of the store and three members `pg1` … `pg3`, each with a PgBouncer beside it.
    Patroni(Timings),
}

/// Patroni's clock, in seconds. A failover takes up to `ttl`, then one `loop_wait`.
#[derive(Debug, Clone)]
pub struct Timings {
    pub ttl: u32,
    pub loop_wait: u32,
    pub retry_timeout: u32,
}

/// What pgsplice on host `proxy1` shall run with.
#[derive(Debug, Clone)]
pub enum Proxy {
    /// The host is there, nothing runs on it.
    None,
    /// What the rest of the spec suggests: `deploy/pgsplice/pgsplice.toml`, or a static pool of the PgBouncers.
    Default,
    /// This configuration.
    Config(String),
}

/// A data centre that is up; dropping it ends it.
#[derive(Debug)]
pub struct Lab {
    pub net: Net,
}

impl Timings {
    /// As fast as Patroni allows: its least ttl.
    pub const FAST: Self = Self { ttl: 20, loop_wait: 2, retry_timeout: 5 };
}

impl LabSpec {
    /// The whole data centre.
    pub fn full(net: impl Into<String>) -> Self {
        Self { postgres: Postgres::Patroni(Timings::FAST), agents: true, ..Self::static_fleet(net) }
    }

    /// One PostgreSQL, three PgBouncers in front of it, and pgsplice with a static pool of them: up in seconds.
    pub fn static_fleet(net: impl Into<String>) -> Self {
        Self {
            net: net.into(),
            postgres: Postgres::Single,
            store: Store::Etcd,
            bouncers: 3,
            peering: true,
            pool_mode: "transaction",
            agents: false,
            proxy: Proxy::Default,
            binaries: binaries(),
            // XDP sees what a wire carries.
            wire: std::env::var("PGSPLICE_TEST_ROAD").is_ok_and(|road| road == "xdp"),
        }
    }

    fn store_hosts(&self) -> u8 {
        if matches!(self.postgres, Postgres::Patroni(_)) { 3 } else { 0 }
    }

    fn postgres_hosts(&self) -> u8 {
        if matches!(self.postgres, Postgres::Patroni(_)) { 3 } else { 1 }
    }

    fn net_spec(&self) -> NetSpec {
        let root = crate::setup::root();
        let host = |name: &str, number: u8| HostSpec::new(name, &root).nic("lan", number);
        let with_pgsplice = |spec: HostSpec| spec.bind(&self.binaries, "/opt/pgsplice");
        let mut net = NetSpec::new(&self.net).segment("lan", NETWORK, NETWORK6);
        for n in 1..=self.store_hosts() {
            net = net.host(self.store.on(host(&format!("{}{n}", self.store.name()), 10 + n)));
        }
        for n in 1..=self.postgres_hosts() {
            net = net.host(with_pgsplice(self.store.on(host(&format!("pg{n}"), 30 + n))));
        }
        for n in 1..=self.bouncers {
            net = net.host(with_pgsplice(host(&format!("bouncer{n}"), 20 + n)));
        }
        net = net.host(with_pgsplice(host("proxy1", 5))).host(host("client", 100));
        if self.wire { net.wire() } else { net }
    }
}

impl Lab {
    /// Starts everything and waits until it answers; `say` hears of each part that is up, and after how long.
    pub fn up(spec: &LabSpec, say: impl Fn(&str, Duration)) -> Result<Self> {
        let root = crate::setup::root();
        if !root.exists() {
            bail!("there is no Debian root in {}: run cargo xtask setup", root.display());
        }
        if !spec.store.is_there() {
            bail!("there is no {} yet: run cargo xtask setup", spec.store.name());
        }
        let begun = Instant::now();
        let said = |what: &str| say(what, begun.elapsed());
        let lab = Self { net: spec.net_spec().up()? };
        said("the network");
        match &spec.postgres {
            Postgres::Single => single::start(&lab)?,
            Postgres::Patroni(timings) => {
                spec.store.start(&lab)?;
                said(&format!("{}1-3", spec.store.name()));
                patroni::start(&lab, spec.store, timings)?;
            }
        }
        said("PostgreSQL");
        bouncer::start(&lab, spec)?;
        said("PgBouncer");
        if spec.agents {
            proxy::start_agents(&lab, spec.store)?;
            said("the agents");
        }
        proxy::start(&lab, spec)?;
        if !matches!(spec.proxy, Proxy::None) {
            said("pgsplice");
        }
        Ok(lab)
    }

    /// A lab that another process brought up.
    pub fn attach(id: &str) -> Result<Self> {
        Ok(Self { net: Net::attach(id)? })
    }

    pub fn host(&self, name: &str) -> &Host {
        self.net.host(name)
    }

    pub fn client(&self) -> &Host {
        self.host("client")
    }

    pub fn proxy(&self) -> &Host {
        self.host("proxy1")
    }

    /// `host=… port=… user=app password=… dbname=app` for any libpq client on a host of the lab.
    pub fn conninfo(&self, server: &Host, port: u16) -> String {
        format!("host={} port={port} user=app password={APP_PASSWORD} dbname=app connect_timeout=5", server.v4())
    }

    /// Runs SQL with psql on the client as role `app`; rows come back as psql's `-At` writes them.
    pub fn sql(&self, server: &Host, port: u16, sql: &str) -> Result<String> {
        let conninfo = self.conninfo(server, port);
        let said = self.client().output(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", &conninfo, "-c", sql])?;
        Ok(said.trim_end().to_owned())
    }

    /// Runs SQL as the superuser on the server's own socket.
    pub fn superuser_sql(&self, server: &Host, sql: &str) -> Result<String> {
        let said = server.output_as("postgres", ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql])?;
        Ok(said.trim_end().to_owned())
    }

    /// A command of PgBouncer's admin console (`SHOW POOLS`), as its `-A` table.
    pub fn bouncer_admin(&self, bouncer: &Host, command: &str) -> Result<String> {
        let conninfo =
            format!("host=127.0.0.1 port={BOUNCER_PORT} user=pgbouncer password={ADMIN_PASSWORD} dbname=pgbouncer");
        bouncer.output(["psql", "-XA", &conninfo, "-c", command])
    }

    /// Hosts whose names are `prefix` and a number.
    fn numbered(&self, prefix: &str) -> Vec<&Host> {
        let fits = |host: &&Host| {
            host.name().strip_prefix(prefix).is_some_and(|rest| rest.chars().all(|digit| digit.is_ascii_digit()))
        };
        self.net.hosts().iter().filter(fits).collect()
    }

    /// The PgBouncer hosts of the fleet.
    pub fn bouncers(&self) -> Vec<&Host> {
        self.numbered("bouncer")
    }

    /// The PostgreSQL hosts.
    pub fn postgres(&self) -> Vec<&Host> {
        self.numbered("pg")
    }
}

/// The folder that holds the `pgsplice` built with what runs now (`$PGSPLICE_BIN_DIR` overrides it): tests run from
/// `target/PROFILE/deps`, xtask from `target/PROFILE`.
pub fn binaries() -> PathBuf {
    if let Some(folder) = std::env::var_os("PGSPLICE_BIN_DIR") {
        return folder.into();
    }
    let mut folder = std::env::current_exe().unwrap_or_default();
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    folder
}

/// Waits until `attempt` succeeds while the service runs; the end of its log explains when it does not.
fn ready<T>(service: &Service, limit: Duration, attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let mut attempt = attempt;
    let name = format!("{} on {}", service.name(), service.host().name());
    let watched = || {
        if service.is_running() { attempt().map(Some) } else { Ok(None) }
    };
    let ended = super::until_ok(&format!("{name} to answer"), limit, watched);
    let log = || format!("{name}: its log ends with\n{}", service.log_tail(15));
    match ended {
        Ok(Some(value)) => Ok(value),
        Ok(None) => bail!("{name} ended at once; its log ends with\n{}", service.log_tail(15)),
        Err(error) => Err(error).with_context(log),
    }
}

/// Folders under /run that a service's user writes to: `/run` is empty on a new host.
fn run_folder(host: &Host, folder: &str, user: &str) -> Result<()> {
    host.run(["install", "-d", "-o", user, folder])
}

fn at(host: &Host, port: u16) -> SocketAddr {
    (host.v4(), port).into()
}

fn program(name: &str, argv: &[&str], user: &str) -> Program {
    Program::new(name, argv.iter().copied()).user(user)
}

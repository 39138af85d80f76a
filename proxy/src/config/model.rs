//! The configuration as the rest of the program sees it: every value present, checked, in its own type.
//!
//! Durations are `std::time::Duration`, sizes are bytes (`u64`), names are plain strings unique within their kind.
//! The defaults stand in the `Default` impls here and nowhere else; `docs/config.md` is the reference.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::report::Origin;
pub use super::stores::*;

/// One whole configuration file, or the one made from `--listen` and `--backend`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Config {
    pub proxy: Proxy,
    pub log: Log,
    pub admin: Admin,
    pub guard: Guard,
    pub splice: Splice,
    pub clusters: BTreeMap<String, Cluster>,
    pub pools: BTreeMap<String, Pool>,
    pub listeners: BTreeMap<String, Listener>,
    /// Where each key stands, for messages; no part of a comparison.
    pub origin: Origin,
}

/// `[proxy]`: the process. A change needs a restart.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    /// Data-plane threads; 0 means one per core this process may run on.
    pub threads: usize,
    /// How long SIGTERM lets sessions end by themselves before it cuts them.
    pub drain_timeout: Duration,
}

impl Default for Proxy {
    fn default() -> Self {
        Self { threads: 0, drain_timeout: Duration::from_secs(30) }
    }
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    pub format: LogFormat,
    /// A `tracing` filter directive, such as `info` or `pgsplice=debug`.
    pub level: String,
    /// One line per ended session.
    pub access: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into(), access: true }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// `[admin]`: how to look at the process and steer it. A change needs a restart.
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    /// Unix socket for the command line; mode 0600.
    pub socket: PathBuf,
    /// HTTP for `/metrics`, `/healthz`, `/readyz` and read-only JSON; none unless set.
    pub http: Option<SocketAddr>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { socket: "/run/pgsplice/admin.sock".into(), http: None }
    }
}

/// `[guard]`: admission in XDP. Empty `interfaces` means the program is not loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Guard {
    pub interfaces: Vec<String>,
    pub mode: XdpMode,
    /// A bpffs folder of our own, of guard and splice both; its parent must be on a mounted bpffs.
    pub pin_path: PathBuf,
    /// CIDRs (`10.0.0.0/8`, `2001:db8::/32`) whose packets to our listeners are dropped, besides `pgsplice deny add`.
    pub deny: Vec<IpNet>,
}

impl Default for Guard {
    fn default() -> Self {
        Self { interfaces: Vec::new(), mode: XdpMode::Auto, pin_path: "/sys/fs/bpf/pgsplice".into(), deny: Vec::new() }
    }
}

/// An address and a prefix length in bits, host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpNet {
    pub addr: std::net::IpAddr,
    pub prefix: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// Native where the driver has it, else generic; the log says which.
    Auto,
    Native,
    Generic,
}

/// `[splice]`: where the kernel forwards sessions by itself. A change needs a restart.
#[derive(Clone, Debug, PartialEq)]
pub struct Splice {
    /// Those of both legs. Empty: neither XDP nor TC is a road.
    pub interfaces: Vec<String>,
    pub mode: SpliceMode,
    /// Most sessions in the kernel at a time; its maps are made for that many.
    pub max_sessions: u32,
    /// Our own ports on the backend legs. The kernel forgets a spliced session's sockets, so it must not give these
    /// ports to anybody else.
    pub source_ports: RangeInclusive<u16>,
}

impl Default for Splice {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            mode: SpliceMode::Auto,
            max_sessions: 65_536,
            // What the kernel hands out by itself starts at 32768 (ip_local_port_range, ip-sysctl.rst).
            source_ports: 12_000..=32_767,
        }
    }
}

/// Which program runs on the interfaces of `[splice]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpliceMode {
    /// TC on veth and where the driver has no native XDP, else XDP.
    Auto,
    Xdp,
    Tc,
}

/// `[cluster.NAME]`: one Patroni cluster and where its truth is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    pub store: StoreConfig,
    /// Patroni's `namespace`, with a leading and no trailing slash.
    pub namespace: String,
    /// Patroni's `scope`.
    pub scope: String,
    /// Citus group; puts `/<group>/` between scope and keys.
    pub citus_group: Option<u32>,
    /// How members prove what they are.
    pub proof: ProofConfig,
    /// How long the leader key may be absent before nothing new is admitted.
    pub leader_absent_debounce: Duration,
    /// How long new sessions wait, and agents pause, for an announced switchover that does not come.
    pub switchover_hold: Duration,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            store: StoreConfig::Etcd(EtcdConfig::default()),
            namespace: "/service".into(),
            scope: String::new(),
            citus_group: None,
            proof: ProofConfig::default(),
            leader_absent_debounce: Duration::from_secs(1),
            switchover_hold: Duration::from_secs(15),
        }
    }
}

/// `[cluster.NAME.proof]`: Patroni's REST API is asked `GET /patroni` on each member's `api_url`.
#[derive(Clone, PartialEq)]
pub struct ProofConfig {
    pub interval: Duration,
    /// Interval while the leader key and the proofs disagree.
    pub fast_interval: Duration,
    pub timeout: Duration,
    pub tls: TlsFiles,
    /// Patroni's `restapi.authentication`: only `pgsplice switchover` needs it.
    pub user: Option<String>,
    pub password: Option<String>,
}

impl std::fmt::Debug for ProofConfig {
    /// Never prints the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { interval, fast_interval, timeout, tls, user, password: _ } = self;
        f.debug_struct("ProofConfig")
            .field("interval", interval)
            .field("fast_interval", fast_interval)
            .field("timeout", timeout)
            .field("tls", tls)
            .field("user", user)
            .finish_non_exhaustive()
    }
}

impl Default for ProofConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            fast_interval: Duration::from_millis(100),
            timeout: Duration::from_secs(2),
            tls: TlsFiles::default(),
            user: None,
            password: None,
        }
    }
}

/// `[pool.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    pub source: BackendSource,
    pub balance: Balance,
    /// Most sessions at one backend at a time; 0 means no limit. A backend's own `max_sessions` overrides it.
    pub max_sessions_per_backend: u32,
    pub queue: Queue,
    pub timeouts: Timeouts,
    pub tcp: Tcp,
    pub probe: Probe,
    pub passive: Passive,
    /// Connect attempts on different backends before the client gets an error.
    pub connect_attempts: u32,
    /// Those of a cluster with these tags come first; the others serve while none of them does.
    pub prefer: BTreeMap<String, String>,
    /// Over which sessions at a member that says itself that it is demoted are cut; zero: at once.
    pub cut_spread: Duration,
    /// How long a backend that is eligible again takes to come to its full weight and `max_sessions`; zero: at once.
    pub slow_start: Duration,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            source: BackendSource::Static(Vec::new()),
            balance: Balance::LeastConnections,
            max_sessions_per_backend: 0,
            queue: Queue::default(),
            timeouts: Timeouts::default(),
            tcp: Tcp::default(),
            probe: Probe::default(),
            passive: Passive::default(),
            connect_attempts: 3,
            prefer: BTreeMap::new(),
            cut_spread: Duration::from_secs(1),
            slow_start: Duration::ZERO,
        }
    }
}

/// Where a pool's backends come from.
#[derive(Clone, Debug, PartialEq)]
pub enum BackendSource {
    /// `[[pool.NAME.backend]]` entries.
    Static(Vec<BackendConfig>),
    /// Any healthy PgBouncer of the agents' registry whose `databases` point to the open primary. Role primary only.
    Fleet { cluster: String },
    /// The members with this role, each reached at its own host.
    NodeLocal { cluster: String, rule: RoleRule, address: NodeAddress },
}

#[derive(Clone, Debug, PartialEq)]
pub struct BackendConfig {
    /// Defaults to the address as written.
    pub name: String,
    /// `ip:port` or `host:port`; names are resolved at load and at reload.
    pub address: String,
    /// Share of sessions relative to the others; 0 takes none.
    pub weight: u32,
    /// Used only when no other is eligible.
    pub backup: bool,
    /// The PgBouncer's `peer_id`, where it has one.
    pub peer_id: Option<u16>,
    /// Overrides the pool's `max_sessions_per_backend`.
    pub max_sessions: Option<u32>,
}

impl BackendConfig {
    /// The defaults for a backend at this address.
    pub fn at(address: impl Into<String>) -> Self {
        let address = address.into();
        Self { name: address.clone(), address, weight: 1, backup: false, peer_id: None, max_sessions: None }
    }
}

/// Which members a node-local pool takes.
#[derive(Clone, Debug, PartialEq)]
pub struct RoleRule {
    pub role: Role,
    /// Replicas only: most bytes behind the leader; `None` means any.
    pub max_lag: Option<u64>,
    /// Replicas only: how long ago the leader's position was where the replica's is now; `None` means any.
    pub max_lag_time: Option<Duration>,
    /// Replicas only: also the primary while none of them is eligible.
    pub fallback_to_primary: bool,
    /// Members must carry these tags with these values.
    pub tags: BTreeMap<String, String>,
}

impl Default for RoleRule {
    fn default() -> Self {
        Self {
            role: Role::Primary,
            max_lag: None,
            max_lag_time: None,
            fallback_to_primary: false,
            tags: BTreeMap::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Primary,
    Replica,
    /// Replicas that commits wait for (`synchronous_mode: true`).
    Sync,
    /// Replicas that no commit waits for.
    Async,
    /// Replicas that may be among those commits wait for (`synchronous_mode: quorum`).
    Quorum,
    Any,
    /// The leader of a standby cluster.
    StandbyLeader,
}

impl Role {
    /// Whether those that have it follow the primary, and so may lag.
    pub fn follows(self) -> bool {
        matches!(self, Self::Replica | Self::Sync | Self::Async | Self::Quorum)
    }
}

/// How a member's PgBouncer (or PostgreSQL) address is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeAddress {
    /// The host of `conn_url` with this port: a PgBouncer beside each PostgreSQL.
    Port(u16),
    /// Patroni's `proxy_url` (its `postgresql.proxy_address`).
    ProxyUrl,
    /// `conn_url` as it is: PostgreSQL itself.
    ConnUrl,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    RoundRobin,
    LeastConnections,
    /// Power of two choices: of two random backends the one with fewer sessions per weight.
    TwoChoices,
    /// Maglev on the client's address.
    SourceHash,
    /// The first eligible in configured order.
    First,
}

/// `[pool.NAME.queue]`: sessions that wait for an eligible backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// Most sessions waiting at a time; 0 refuses at once.
    pub size: usize,
    pub timeout: Duration,
}

impl Default for Queue {
    fn default() -> Self {
        Self { size: 10_000, timeout: Duration::from_secs(30) }
    }
}

/// `[pool.NAME.timeouts]`; zero means no limit where the field says so.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeouts {
    /// One attempt to connect to one backend.
    pub connect: Duration,
    /// From the connected backend to the end of authentication (plaintext) or to the SSLRequest's answer.
    pub handshake: Duration,
    /// Nothing forwarded either way for this long; zero: no limit.
    pub idle: Duration,
    /// After one side ended its direction, how long the other may go on; zero: no limit.
    pub half_closed: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            handshake: Duration::from_secs(60),
            idle: Duration::ZERO,
            half_closed: Duration::from_secs(3600),
        }
    }
}

/// `[pool.NAME.tcp]` for the backend leg, `[listener.NAME.tcp]` for the client leg.
#[derive(Clone, Debug, PartialEq)]
pub struct Tcp {
    /// Zero turns keepalive off.
    pub keepalive_idle: Duration,
    pub keepalive_interval: Duration,
    pub keepalive_count: u32,
    /// TCP_USER_TIMEOUT: how long sent data may stay unacknowledged; zero leaves the kernel's own.
    pub user_timeout: Duration,
}

impl Default for Tcp {
    fn default() -> Self {
        Self {
            keepalive_idle: Duration::from_secs(60),
            keepalive_interval: Duration::from_secs(10),
            keepalive_count: 6,
            user_timeout: Duration::ZERO,
        }
    }
}

/// `[pool.NAME.probe]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    pub kind: ProbeKind,
    pub interval: Duration,
    /// Interval while a backend is on its way up or down.
    pub fast_interval: Duration,
    pub timeout: Duration,
    /// Successes in a row that bring a backend up.
    pub rise: u32,
    /// Failures in a row that take it down.
    pub fall: u32,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            kind: ProbeKind::SslRequest,
            interval: Duration::from_secs(2),
            fast_interval: Duration::from_millis(500),
            timeout: Duration::from_secs(2),
            rise: 2,
            fall: 3,
        }
    }
}

#[derive(Clone, PartialEq)]
pub enum ProbeKind {
    /// Not probed: up until passive marking says otherwise.
    None,
    /// TCP connect.
    Tcp,
    /// SSLRequest answered with `S` or `N`.
    SslRequest,
    /// A full startup as this user, then `query`; any row set without error is a success.
    Query { user: String, password: Option<String>, database: String, query: String },
}

impl std::fmt::Debug for ProbeKind {
    /// Never prints the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Tcp => f.write_str("Tcp"),
            Self::SslRequest => f.write_str("SslRequest"),
            Self::Query { user, database, query, .. } => f
                .debug_struct("Query")
                .field("user", user)
                .field("database", database)
                .field("query", query)
                .finish_non_exhaustive(),
        }
    }
}

/// `[pool.NAME.passive]`: failed connects of real sessions mark a backend down.
#[derive(Clone, Debug, PartialEq)]
pub struct Passive {
    /// Failed connects in a row; 0 turns it off.
    pub failures: u32,
    /// Without a probe: how long it stays down before a session may try it again. With one: the next success brings it up.
    pub retry_after: Duration,
}

impl Default for Passive {
    fn default() -> Self {
        Self { failures: 3, retry_after: Duration::from_secs(10) }
    }
}

/// `[listener.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    pub bind: Vec<SocketAddr>,
    pub pool: String,
    /// Most sessions at a time, waiting ones included; 0 means no limit.
    pub max_sessions: u32,
    /// From accept to a whole first packet.
    pub startup_timeout: Duration,
    /// Largest StartupMessage in bytes; PostgreSQL's own limit is 10,000.
    pub max_startup_size: usize,
    pub tcp: Tcp,
    /// listen(2)'s queue.
    pub backlog: i32,
    /// Accept a client when its first bytes are there.
    pub defer_accept: bool,
    pub splice: SpliceRoad,
    pub splice_after: SpliceAfter,
}

impl Default for Listener {
    fn default() -> Self {
        Self {
            bind: Vec::new(),
            pool: String::new(),
            max_sessions: 0,
            startup_timeout: Duration::from_secs(10),
            max_startup_size: 10_000,
            tcp: Tcp::default(),
            backlog: 4096,
            defer_accept: true,
            splice: SpliceRoad::Auto,
            splice_after: SpliceAfter::Auto,
        }
    }
}

/// Which road the sessions of a listener take; one that cannot take it is relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpliceRoad {
    /// The best one the host and the session have.
    Auto,
    Xdp,
    Tc,
    Sockmap,
    Relay,
}

/// What a session must have behind it before it is handed to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpliceAfter {
    /// At the log-in's end; 100 ms later where most sessions of the listener do not live that long.
    Auto,
    /// This many replies after the log-in; 0 hands off at the log-in's end.
    Turns(u32),
    /// This long since the log-in's end.
    Time(Duration),
}

//! A configuration as a flat list of keys and values, as the file would have them: for the diff, for showing what is
//! in force, and for writing it out.

mod cluster;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::model::*;
use super::units::{show_duration, show_size};
pub use cluster::{cluster, store};

/// A value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Quoted in TOML.
    Text(String),
    /// A number or a boolean.
    Bare(String),
    List(Vec<String>),
    /// A password: compared, never shown.
    Secret(String),
    /// The key is not set and has no default.
    Unset,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) | Self::Bare(text) => f.write_str(text),
            Self::List(list) if list.is_empty() => f.write_str("none"),
            Self::List(list) => f.write_str(&list.join(", ")),
            Self::Secret(_) => f.write_str("(secret)"),
            Self::Unset => f.write_str("none"),
        }
    }
}

/// Keys relative to their section, such as `queue.timeout`, with their values.
pub type Settings = Vec<(String, Value)>;

// Every struct is taken apart by name, so that a field added to the model cannot be forgotten here.

pub fn proxy(Proxy { threads, drain_timeout }: &Proxy) -> Settings {
    section("", [("threads", number(threads)), ("drain_timeout", duration(*drain_timeout))])
}

pub fn log(Log { format, level, access }: &Log) -> Settings {
    let format = match format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    section("", [("format", text(format)), ("level", text(level)), ("access", number(access))])
}

pub fn admin(Admin { socket, http }: &Admin) -> Settings {
    section("", [("socket", path(socket)), ("http", optional(http.map(text)))])
}

pub fn guard(Guard { interfaces, mode, pin_path, deny }: &Guard) -> Settings {
    let mode = match mode {
        XdpMode::Auto => "auto",
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
    };
    section(
        "",
        [("interfaces", list(interfaces)), ("mode", text(mode)), ("pin_path", path(pin_path)), ("deny", list(deny))],
    )
}

pub fn splice(Splice { interfaces, mode, max_sessions, source_ports }: &Splice) -> Settings {
    let ports = format!("{}-{}", source_ports.start(), source_ports.end());
    section(
        "",
        [
            ("interfaces", list(interfaces)),
            ("mode", text(splice_mode_name(*mode))),
            ("max_sessions", number(max_sessions)),
            ("source_ports", text(ports)),
        ],
    )
}

pub fn splice_mode_name(mode: SpliceMode) -> &'static str {
    match mode {
        SpliceMode::Auto => "auto",
        SpliceMode::Xdp => "xdp",
        SpliceMode::Tc => "tc",
    }
}

pub fn splice_road_name(road: SpliceRoad) -> &'static str {
    match road {
        SpliceRoad::Auto => "auto",
        SpliceRoad::Xdp => "xdp",
        SpliceRoad::Tc => "tc",
        SpliceRoad::Sockmap => "sockmap",
        SpliceRoad::Relay => "relay",
    }
}

/// Without the backends of a static pool; those are [`backend`].
pub fn pool(pool: &Pool) -> Settings {
    let Pool {
        source: pool_source,
        balance,
        max_sessions_per_backend,
        queue: Queue { size, timeout: queue_timeout },
        timeouts: Timeouts { connect, handshake, idle, half_closed },
        tcp: pool_tcp,
        probe: pool_probe,
        passive: Passive { failures, retry_after },
        connect_attempts,
        prefer,
        cut_spread,
        slow_start,
    } = pool;
    let mut settings = source(pool_source);
    settings.extend(prefer.iter().map(|(tag, value)| (format!("prefer.{tag}"), text(value))));
    settings.extend(section(
        "",
        [
            ("balance", text(balance_name(*balance))),
            ("max_sessions_per_backend", number(max_sessions_per_backend)),
            ("connect_attempts", number(connect_attempts)),
            ("cut_spread", duration(*cut_spread)),
            ("slow_start", duration(*slow_start)),
        ],
    ));
    settings.extend(section("queue.", [("size", number(size)), ("timeout", duration(*queue_timeout))]));
    settings.extend(section(
        "timeouts.",
        [
            ("connect", duration(*connect)),
            ("handshake", duration(*handshake)),
            ("idle", duration(*idle)),
            ("half_closed", duration(*half_closed)),
        ],
    ));
    settings.extend(tcp(pool_tcp));
    settings.extend(probe(pool_probe));
    settings.extend(section("passive.", [("failures", number(failures)), ("retry_after", duration(*retry_after))]));
    settings
}

pub fn balance_name(balance: Balance) -> &'static str {
    match balance {
        Balance::RoundRobin => "round-robin",
        Balance::LeastConnections => "least-connections",
        Balance::TwoChoices => "two-choices",
        Balance::SourceHash => "source-hash",
        Balance::First => "first",
    }
}

pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Replica => "replica",
        Role::Sync => "sync",
        Role::Async => "async",
        Role::Quorum => "quorum",
        Role::Any => "any",
        Role::StandbyLeader => "standby-leader",
    }
}

fn source(source: &BackendSource) -> Settings {
    match source {
        BackendSource::Static(_) => Settings::new(),
        BackendSource::Fleet { cluster } => {
            section("", [("cluster", text(cluster)), ("route", text("fleet")), ("role", text("primary"))])
        }
        BackendSource::NodeLocal { cluster, rule, address } => {
            let RoleRule { role, max_lag, max_lag_time, fallback_to_primary, tags } = rule;
            let address = match address {
                NodeAddress::Port(port) => number(port),
                NodeAddress::ProxyUrl => text("proxy-url"),
                NodeAddress::ConnUrl => text("conn-url"),
            };
            let fallback = if role.follows() { number(fallback_to_primary) } else { Value::Unset };
            let mut settings = section(
                "",
                [
                    ("cluster", text(cluster)),
                    ("route", text("node-local")),
                    ("role", text(role_name(*role))),
                    ("max_lag", optional(max_lag.map(show_size).map(text))),
                    ("max_lag_time", optional(max_lag_time.map(duration))),
                    ("fallback_to_primary", fallback),
                    ("address", address),
                ],
            );
            settings.extend(tags.iter().map(|(tag, value)| (format!("tags.{tag}"), text(value))));
            settings
        }
    }
}

pub fn backend(BackendConfig { name, address, weight, backup, peer_id, max_sessions }: &BackendConfig) -> Settings {
    section(
        "",
        [
            ("address", text(address)),
            ("name", text(name)),
            ("weight", number(weight)),
            ("backup", number(backup)),
            ("peer_id", optional(peer_id.map(number))),
            ("max_sessions", optional(max_sessions.map(number))),
        ],
    )
}

fn tcp(Tcp { keepalive_idle, keepalive_interval, keepalive_count, user_timeout }: &Tcp) -> Settings {
    section(
        "tcp.",
        [
            ("keepalive_idle", duration(*keepalive_idle)),
            ("keepalive_interval", duration(*keepalive_interval)),
            ("keepalive_count", number(keepalive_count)),
            ("user_timeout", duration(*user_timeout)),
        ],
    )
}

fn probe(Probe { kind, interval, fast_interval, timeout, rise, fall }: &Probe) -> Settings {
    let mut settings = match kind {
        ProbeKind::None => section("probe.", [("kind", text("none"))]),
        ProbeKind::Tcp => section("probe.", [("kind", text("tcp"))]),
        ProbeKind::SslRequest => section("probe.", [("kind", text("ssl-request"))]),
        ProbeKind::Query { user, password, database, query } => section(
            "probe.",
            [
                ("kind", text("query")),
                ("user", text(user)),
                ("password", optional(password.clone().map(Value::Secret))),
                ("database", text(database)),
                ("query", text(query)),
            ],
        ),
    };
    settings.extend(section(
        "probe.",
        [
            ("interval", duration(*interval)),
            ("fast_interval", duration(*fast_interval)),
            ("timeout", duration(*timeout)),
            ("rise", number(rise)),
            ("fall", number(fall)),
        ],
    ));
    settings
}

pub fn listener(listener: &Listener) -> Settings {
    let Listener {
        bind,
        pool,
        max_sessions,
        startup_timeout,
        max_startup_size,
        tcp: listener_tcp,
        backlog,
        defer_accept,
        splice,
        splice_after,
    } = listener;
    let splice_after = match splice_after {
        SpliceAfter::Auto => text("auto"),
        SpliceAfter::Turns(turns) => number(turns),
        SpliceAfter::Time(time) => duration(*time),
    };
    let mut settings = section(
        "",
        [
            ("bind", list(bind)),
            ("pool", text(pool)),
            ("max_sessions", number(max_sessions)),
            ("startup_timeout", duration(*startup_timeout)),
            ("max_startup_size", number(max_startup_size)),
            ("backlog", number(backlog)),
            ("defer_accept", Value::Bare(defer_accept.to_string())),
            ("splice", text(splice_road_name(*splice))),
            ("splice_after", splice_after),
        ],
    );
    settings.extend(tcp(listener_tcp));
    settings
}

fn section<const N: usize>(prefix: &str, keys: [(&str, Value); N]) -> Settings {
    keys.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)).collect()
}

fn text(value: impl ToString) -> Value {
    Value::Text(value.to_string())
}

fn number(value: impl ToString) -> Value {
    Value::Bare(value.to_string())
}

fn duration(value: Duration) -> Value {
    Value::Text(show_duration(value))
}

fn path(value: &Path) -> Value {
    Value::Text(value.display().to_string())
}

fn list<T: ToString>(values: &[T]) -> Value {
    Value::List(values.iter().map(ToString::to_string).collect())
}

fn optional(value: Option<Value>) -> Value {
    value.unwrap_or(Value::Unset)
}

//! `[cluster.NAME.etcd]` and its like: where Patroni keeps its keys, or who the members are where there is no Patroni. A
//! cluster has exactly one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where a cluster is known from.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreConfig {
    Etcd(EtcdConfig),
    Consul(ConsulConfig),
    Zookeeper(ZookeeperConfig),
    /// No store is asked, but the members' REST API.
    Rest(RestConfig),
    /// No Patroni: the members are listed here, and PostgreSQL is asked.
    Static(StaticConfig),
}

#[derive(Clone, PartialEq)]
pub struct EtcdConfig {
    /// `http://host:2379` or `https://host:2379`.
    pub endpoints: Vec<String>,
    pub user: Option<String>,
    /// Read from `password` or `password_file`.
    pub password: Option<String>,
    pub tls: TlsFiles,
    pub connect_timeout: Duration,
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
}

#[derive(Clone, PartialEq)]
pub struct ConsulConfig {
    /// `http://host:8500` or `https://host:8501`: agents or servers of one datacenter.
    pub endpoints: Vec<String>,
    /// Read from `token` or `token_file`.
    pub token: Option<String>,
    /// That of the endpoint itself unless given.
    pub datacenter: Option<String>,
    pub tls: TlsFiles,
    pub connect_timeout: Duration,
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
}

#[derive(Clone, PartialEq)]
pub struct ZookeeperConfig {
    /// `host:2181`.
    pub hosts: Vec<String>,
    /// Of the `digest` scheme.
    pub user: Option<String>,
    /// Read from `password` or `password_file`.
    pub password: Option<String>,
    /// With a `ca` the connection is TLS.
    pub tls: TlsFiles,
    pub connect_timeout: Duration,
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
}

/// Intervals, time limits and TLS are those of `[cluster.NAME.proof]`: the same servers are asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RestConfig {
    /// `http://host:8008` or `https://host:8008`.
    pub endpoints: Vec<String>,
}

/// Intervals, time limits and TLS are those of `[cluster.NAME.proof]`.
#[derive(Clone, PartialEq)]
pub struct StaticConfig {
    /// Who logs in at each member.
    pub user: String,
    /// Read from `password` or `password_file`.
    pub password: Option<String>,
    pub database: String,
    /// The only member that may be primary; without it, whoever proves to be.
    pub primary: Option<String>,
    pub members: Vec<StaticMember>,
}

/// `[[cluster.NAME.static.member]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct StaticMember {
    pub name: String,
    /// `host:5432`: PostgreSQL itself.
    pub address: String,
    pub tags: BTreeMap<String, String>,
}

/// PEM files; `ca` verifies the server, `cert` and `key` (both or neither) identify us.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TlsFiles {
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// Name to verify instead of the endpoint's host.
    pub server_name: Option<String>,
}

impl StoreConfig {
    /// The name of its section.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Etcd(_) => "etcd",
            Self::Consul(_) => "consul",
            Self::Zookeeper(_) => "zookeeper",
            Self::Rest(_) => "rest",
            Self::Static(_) => "static",
        }
    }

    /// Where it is, as the file has it.
    pub fn addresses(&self) -> Vec<String> {
        match self {
            Self::Etcd(etcd) => etcd.endpoints.clone(),
            Self::Consul(consul) => consul.endpoints.clone(),
            Self::Zookeeper(zookeeper) => zookeeper.hosts.clone(),
            Self::Rest(rest) => rest.endpoints.clone(),
            Self::Static(fixed) => fixed.members.iter().map(|member| member.address.clone()).collect(),
        }
    }

    /// Whether agents can register their PgBouncers in it.
    pub fn has_registry(&self) -> bool {
        !matches!(self, Self::Rest(_) | Self::Static(_))
    }

    /// Whether it is Patroni's.
    pub fn is_patronis(&self) -> bool {
        !matches!(self, Self::Static(_))
    }
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            user: None,
            password: None,
            tls: TlsFiles::default(),
            connect_timeout: Duration::from_secs(2),
            keepalive_interval: Duration::from_secs(2),
            keepalive_timeout: Duration::from_secs(2),
        }
    }
}

impl Default for ConsulConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            token: None,
            datacenter: None,
            tls: TlsFiles::default(),
            connect_timeout: Duration::from_secs(2),
            keepalive_interval: Duration::from_secs(2),
            keepalive_timeout: Duration::from_secs(2),
        }
    }
}

impl Default for ZookeeperConfig {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            user: None,
            password: None,
            tls: TlsFiles::default(),
            connect_timeout: Duration::from_secs(2),
            keepalive_interval: Duration::from_secs(2),
            keepalive_timeout: Duration::from_secs(2),
        }
    }
}

impl Default for StaticConfig {
    fn default() -> Self {
        Self { user: String::new(), password: None, database: "postgres".into(), primary: None, members: Vec::new() }
    }
}

// None of them ever prints a secret.

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoints, user, .. } = self;
        f.debug_struct("EtcdConfig").field("endpoints", endpoints).field("user", user).finish_non_exhaustive()
    }
}

impl fmt::Debug for ConsulConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsulConfig").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl fmt::Debug for ZookeeperConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hosts, user, .. } = self;
        f.debug_struct("ZookeeperConfig").field("hosts", hosts).field("user", user).finish_non_exhaustive()
    }
}

impl fmt::Debug for StaticConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, primary, members, .. } = self;
        f.debug_struct("StaticConfig")
            .field("user", user)
            .field("primary", primary)
            .field("members", members)
            .finish_non_exhaustive()
    }
}

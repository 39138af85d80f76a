//! An immutable snapshot of one cluster, published by `cluster::watch` through a `tokio::sync::watch` channel.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::Switchover;
use super::patroni::{Failover, TimelineEnd};

/// What pgsplice holds true about a cluster at one moment, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterView {
    pub cluster: String,
    /// Grows by one with every published view.
    pub generation: u64,
    pub store: StoreHealth,
    /// Patroni's `initialize` key: the system identifier.
    pub system_id: Option<String>,
    /// The member the leader key names, open or not.
    pub leader_key: Option<String>,
    /// The member the primary pool is open to.
    pub primary: Option<Primary>,
    /// Below which nobody is opened.
    pub floor: Option<Floor>,
    /// Why `primary` is `None`, in words for an operator. Empty when it is open.
    pub closed_because: String,
    /// A planned move that may begin at any moment: nothing new is sent to the primary, agents pause their PgBouncer.
    pub switchover: Option<Switchover>,
    /// Whom commits wait for.
    pub sync: SyncStandbys,
    /// By member name.
    pub members: BTreeMap<String, Member>,
    /// The agents' registry, by bouncer name.
    pub bouncers: BTreeMap<String, Bouncer>,
    /// For an operator's eyes; nothing is decided by it.
    pub said: Arc<Said>,
    /// What changed since this process began, oldest first, within bounds.
    pub changes: Arc<VecDeque<Change>>,
    /// Members whose sessions in a primary pool must be cut, with the reason. See "Cut" in docs/cluster.md.
    pub cut: BTreeMap<String, String>,
}

/// What else stands in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Maintenance mode.
    pub paused: bool,
    pub standby_cluster: bool,
    /// A switchover or manual failover, due or not.
    pub failover: Option<Failover>,
    /// The members of failsafe mode.
    pub failsafe: Vec<String>,
    /// The timelines that have ended, oldest first.
    pub history: Vec<TimelineEnd>,
}

/// Something an operator would want to know the time of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub at: SystemTime,
    pub what: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoreHealth {
    /// Nothing heard yet.
    #[default]
    Starting,
    Connected {
        revision: i64,
    },
    /// The view is frozen at what was last heard.
    Unreachable {
        since: SystemTime,
        why: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Primary {
    pub member: String,
    pub timeline: u32,
    /// When this member was opened.
    pub since: SystemTime,
}

/// The highest timeline that a leader has proved, and by whom it was proved last. A process that takes over is told of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Floor {
    /// Of the cluster that was led. An unknown one is "".
    pub system_id: String,
    pub timeline: u32,
    pub by: String,
    /// The members alone told of it, as of a promotion after a leader known before: another may have been promoted as well.
    pub seen_promoted: bool,
}

/// One Patroni member: its key and its own word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    /// Role as Patroni writes it (`primary`, `master`, `replica`, `standby_leader`, …).
    pub role: String,
    pub state: String,
    pub conn_url: Option<String>,
    pub api_url: Option<String>,
    /// Resolved host and port of `conn_url`.
    pub conn_addr: Option<SocketAddr>,
    /// Resolved host and port of `proxy_url`.
    pub proxy_addr: Option<SocketAddr>,
    pub timeline: Option<u32>,
    /// Bytes replayed, behind what the leader has written by its own word or its key; `None` when either is unknown.
    pub lag: Option<u64>,
    /// How long ago the leader had written what is replayed here now, as exactly as members are asked.
    pub lag_time: Option<Duration>,
    pub tags: BTreeMap<String, String>,
    pub proof: Proof,
}

impl Member {
    /// Patroni's own rule: only `state=running` may be routed to.
    pub fn is_running(&self) -> bool {
        self.state == "running"
    }

    pub fn tag_is_true(&self, tag: &str) -> bool {
        self.tags.get(tag).is_some_and(|value| value == "true")
    }
}

/// Patroni's `sync` key, and the mode it is meant in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncStandbys {
    pub standbys: Vec<String>,
    /// `synchronous_mode: quorum`: any of them may be the one a commit waits for.
    pub quorum_mode: bool,
}

/// What a member said of itself when asked last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proof {
    #[default]
    NotAsked,
    /// Not in recovery, running, role primary (or 3.x `master`).
    Primary { timeline: u32, at: SystemTime },
    /// In recovery, demoted, or not running: its own word. `role` and `state` as Patroni writes them.
    NotPrimary { role: String, state: String, timeline: Option<u32>, at: SystemTime },
    /// No answer, or one that cannot be read.
    Silent { why: String, since: SystemTime },
}

/// A PgBouncer as its agent registered it under `/pgsplice/<scope>/bouncers/<name>` (JSON).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Bouncer {
    pub name: String,
    /// `ip:port` that sessions connect to.
    pub address: SocketAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_id: Option<u16>,
    pub state: BouncerState,
    /// The member its `databases` point to, verified with SHOW DATABASES.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// Why `state` is not `ready`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The agent's own, such as a zone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// The longest wait of a client, in milliseconds, when the agent paused PgBouncer last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BouncerState {
    /// Answers, and its databases point to `leader`.
    Ready,
    /// The operator takes it out of service: no new sessions.
    Draining,
    /// Told to PAUSE for a switchover; transactions are under way.
    Pausing,
    /// Paused for a switchover: clients wait, and no server connection is open.
    Paused,
    /// Does not answer its admin console, or its databases could not be repointed.
    Failed,
}

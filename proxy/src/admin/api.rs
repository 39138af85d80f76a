//! The admin interface's JSON, one definition for the server and for the command line.
//!
//! Fields are only ever added. Times are Unix seconds, durations seconds or, where named so, milliseconds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::guard::api::GuardStatus;
pub use crate::proxy::ReloadReport;

/// Any answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    pub error: String,
}

/// `GET /healthz`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    pub alive: bool,
    pub version: String,
    pub pid: u32,
}

/// `GET /readyz`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    pub ready: bool,
    /// Why not, one line each.
    pub reasons: Vec<String>,
}

/// `GET /v1/status`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub started_at: u64,
    pub uptime_seconds: u64,
    /// `running` or `draining`
    pub lifecycle: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<String>,
    /// Data-plane threads.
    pub threads: usize,
    pub sessions: usize,
    pub listeners: Vec<Listener>,
    pub pools: Vec<Pool>,
    pub clusters: Vec<Cluster>,
    /// Absent without `guard.interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    pub name: String,
    pub pool: String,
    /// The addresses really bound.
    pub bound: Vec<String>,
    pub sessions: usize,
    /// 0: no limit.
    pub max_sessions: u32,
    /// Since start, as all that follow.
    pub accepted: u64,
    /// By termination reason; those that never happened are left out.
    pub ended: BTreeMap<String, u64>,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    pub name: String,
    pub backends: usize,
    /// How many may be given a new session now.
    pub candidates: usize,
    pub waiting: usize,
    /// Why there is no candidate; empty when there is one.
    pub why_empty: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    pub name: String,
    /// `starting`, `connected` or `unreachable`
    pub store: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub store_error: String,
    /// The member the leader key names, open or not.
    pub leader_key: Option<String>,
    /// The member the primary pools are open to.
    pub primary: Option<String>,
    pub timeline: Option<u32>,
    /// Since when it has been open.
    pub primary_since: Option<u64>,
    /// Why `primary` is null.
    pub closed_because: String,
    pub generation: u64,
    pub members: Vec<Member>,
    pub bouncers: Vec<Bouncer>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    pub name: String,
    pub role: String,
    pub state: String,
    pub timeline: Option<u32>,
    /// Bytes behind the leader.
    pub lag: Option<u64>,
    /// What it said of itself when asked: `primary`, `not primary (replica)`, `silent (timed out)`, `not asked`.
    pub proof: String,
    /// Why its sessions in a primary pool are cut, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bouncer {
    pub name: String,
    pub address: String,
    pub state: String,
    /// The member its `databases` point to.
    pub leader: Option<String>,
    pub timeline: Option<u32>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// `GET /v1/backends`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backends {
    pub backends: Vec<Backend>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    pub pool: String,
    pub name: String,
    pub address: String,
    /// `up`, `full`, `down` or `unknown`
    pub health: String,
    /// Why it is full or down.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Why the cluster rules it out whatever its health: not the primary, too far behind, not registered as ready.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub excluded: String,
    pub drained: bool,
    /// May be given a new session now.
    pub candidate: bool,
    pub weight: Option<u32>,
    pub backup: Option<bool>,
    pub peer_id: Option<u16>,
    pub sessions: u32,
    /// Since start, as all that follow.
    pub sessions_total: u64,
    pub connect_failures: u64,
    pub probe_failures: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// `GET /v1/backends`: what to leave out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendsQuery {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

/// `GET /v1/sessions`, longest-lived first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sessions {
    /// How many match; `sessions` may hold fewer.
    pub total: usize,
    pub sessions: Vec<Session>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    pub id: String,
    pub listener: String,
    pub pool: String,
    pub client: String,
    /// Unknown under TLS, as are `database` and `application_name`.
    pub user: Option<String>,
    pub database: Option<String>,
    pub application_name: Option<String>,
    pub tls: bool,
    pub backend: Option<String>,
    pub backend_address: Option<String>,
    /// Our own address towards the backend.
    pub backend_local: Option<String>,
    /// `startup`, `queue`, `connect`, `handshake` or `forward`
    pub phase: String,
    pub road: Option<String>,
    /// Why the kernel does not forward it.
    pub road_why: Option<String>,
    pub accepted_at: u64,
    pub age_seconds: f64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub startup_ms: Option<f64>,
    pub queue_ms: Option<f64>,
    pub connect_ms: Option<f64>,
    pub handshake_ms: Option<f64>,
}

/// Which sessions; all that is named must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionFilter {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Name or `ip:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `ip`, `ip:port` or CIDR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

/// `GET /v1/sessions`: which, and how many at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionsQuery {
    // Not flattened: serde's flatten hands numbers of a query string over as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// 1000 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// `POST /v1/drain` and `/v1/undrain`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Name or `ip:port`.
    pub backend: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// `pool/name` of each that is so now.
    pub backends: Vec<String>,
    /// Sessions that are still there.
    pub sessions: u32,
}

/// `POST /v1/kill`: the sessions with these ids, or those a filter names, or all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillRequest {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<SessionFilter>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Killed {
    /// How many were alive and are cut.
    pub cut: usize,
    /// The ids that no session has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// `POST /v1/upgrade`: a successor was started. It has taken over once `GET /healthz` names its pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrade {
    pub pid: u32,
    pub successor: u32,
}

/// `GET /v1/clusters`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Clusters {
    pub clusters: Vec<ClusterReport>,
}

/// One cluster: what the store says, what each member says, and what is concluded from both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterReport {
    pub name: String,
    /// `etcd`, `consul`, `zookeeper` or `rest`.
    pub store_kind: String,
    /// `starting`, `connected` or `unreachable`.
    pub store: String,
    pub store_error: String,
    pub leader_key: Option<String>,
    pub system_id: Option<String>,
    pub patroni_paused: bool,
    pub standby_cluster: bool,
    /// Members that commits wait for, or may wait for in quorum mode.
    pub synchronous: Vec<String>,
    pub quorum_mode: bool,
    pub failsafe: Vec<String>,
    /// A switchover or failover that is asked for.
    pub failover: Option<String>,
    pub primary: Option<String>,
    pub timeline: Option<u32>,
    pub primary_since: Option<u64>,
    /// Empty with a primary.
    pub closed_because: String,
    /// A move that is announced and due: new sessions wait.
    pub switchover: Option<String>,
    pub members: Vec<MemberReport>,
    pub bouncers: Vec<Bouncer>,
    /// What this process saw change, oldest first.
    pub changes: Vec<ChangeReport>,
    /// Patroni's own: each timeline that ended.
    pub history: Vec<TimelineReport>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemberReport {
    pub name: String,
    /// These three as its key in the store has them.
    pub role: String,
    pub state: String,
    pub timeline: Option<u32>,
    pub lag: Option<u64>,
    pub lag_seconds: Option<f64>,
    pub tags: BTreeMap<String, String>,
    pub conn_url: Option<String>,
    pub api_url: Option<String>,
    /// Its own answer to `GET /patroni`.
    pub says: String,
    pub concluded: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeReport {
    pub at: u64,
    pub what: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineReport {
    pub timeline: u32,
    pub lsn: u64,
    pub reason: Option<String>,
    /// As Patroni writes it.
    pub at: Option<String>,
    pub new_leader: Option<String>,
}

/// `POST /v1/switchover`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchoverRequest {
    /// Not needed where there is one.
    #[serde(default)]
    pub cluster: Option<String>,
    /// Patroni chooses unless given.
    #[serde(default)]
    pub to: Option<String>,
    /// How long transactions under way are waited for.
    pub pause_timeout_ms: u64,
}

/// `GET /v1/switchover`: the last attempt, as it stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Switchover {
    pub cluster: String,
    pub from: String,
    pub to: Option<String>,
    pub over: bool,
    /// Why it failed, and how things are now.
    pub error: Option<String>,
    pub steps: Vec<SwitchoverStep>,
    /// From the announcement, since when new sessions wait, to the last PgBouncer in service again.
    pub gap_ms: Option<f64>,
    /// The longest wait of a client at a paused PgBouncer.
    pub longest_wait_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SwitchoverStep {
    pub what: String,
    /// Since the attempt was begun.
    pub at_ms: f64,
}

// === impl SessionsQuery ===

impl SessionsQuery {
    pub fn filter(&self) -> SessionFilter {
        let Self { pool, backend, user, client, limit: _ } = self.clone();
        SessionFilter { pool, backend, user, client }
    }
}

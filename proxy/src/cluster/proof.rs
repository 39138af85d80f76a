//! What a member says of itself: `GET /patroni` on its REST API, or without Patroni [PostgreSQL's own word](super::sql).
//! It is asked on time, and never piling up.
//!
//! Patroni answers 200 with `state`, `role` and, when a query to PostgreSQL worked, `timeline`; there `role` is
//! `primary` exactly if `pg_is_in_recovery()` is false. Where the query failed it repeats what it remembers, without
//! a timeline and with a state other than `running` (`patroni/api.py`, `get_postgresql_status`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Url;
use serde_json::Value;

use super::http::{self, ClientError};
use super::names::Names;
use super::{patroni, sql, tls};
use crate::config::{Cluster, ProofConfig, StoreConfig};

/// Patroni's own status stays under 10 kB even with many replicas; more is not Patroni.
const MAX_BODY: usize = 256 * 1024;

/// What a load balancer asks Patroni. The status tells who holds the leader key, the body is that of `/patroni`.
pub(super) const HEALTH_CHECK: &str = "/primary";

/// The role of a PostgreSQL that is not up: neither primary nor demoted.
pub(super) const UNKNOWN: &str = "unknown";

/// One answer, or the lack of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Running, out of recovery.
    Primary {
        timeline: u32,
        system_id: Option<String>,
        /// WAL written, in bytes.
        wal: Option<u64>,
    },
    /// Anything else it said. `role` and `state` as Patroni writes them.
    NotPrimary {
        role: String,
        state: String,
        /// Without Patroni that of the last restart point.
        timeline: Option<u32>,
        system_id: Option<String>,
        /// WAL replayed, in bytes. The member's key tells what it has received in older versions, which hides a replay
        /// that stands still.
        wal: Option<u64>,
    },
    /// PostgreSQL lives, and has no connection or memory left to tell more.
    Full {
        why: String,
    },
    Silent {
        why: String,
    },
}

impl Answer {
    /// Reads the body of an answer. `member` and `scope` are who was asked: an address that was given to another
    /// cluster or member proves nothing.
    pub fn read(body: &[u8], scope: &str, member: &str) -> Self {
        let Some(map) = patroni::object(body) else {
            return Self::silent("its answer is not a JSON object");
        };
        let about = map.get("patroni").and_then(Value::as_object);
        let said = |key| about.and_then(|about| patroni::string(about, key));
        if let Some(other) = said("scope").filter(|said| said != scope) {
            return Self::silent(format!("the answer is from scope {other:?}, not {scope:?}"));
        }
        if let Some(other) = said("name").filter(|said| said != member) {
            return Self::silent(format!("the answer is from member {other:?}, not {member:?}"));
        }
        let Some(state) = patroni::string(&map, "state") else {
            return Self::silent("its answer has no state");
        };
        let role = patroni::string(&map, "role").unwrap_or_default();
        let timeline = map.get("timeline").and_then(patroni::number).and_then(|timeline| u32::try_from(timeline).ok());
        let wal = |key| map.get("xlog")?.get(key).and_then(patroni::number);
        let system_id = patroni::string(&map, "database_system_identifier");
        match timeline {
            Some(timeline) if timeline > 0 && state == "running" && is_primary_role(&role) => {
                Self::Primary { timeline, system_id, wal: wal("location") }
            }
            _ => Self::NotPrimary { role, state, timeline, system_id, wal: wal("replayed_location") },
        }
    }

    pub(super) fn silent(why: impl Into<String>) -> Self {
        Self::Silent { why: why.into() }
    }
}

/// Between two looks at the TLS files.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The prober of a cluster with its TLS files as they are now: a certificate that was renewed must be in use before the
/// one before it ends.
#[derive(Debug)]
pub(super) struct Renewed {
    /// Or why there is none: a file may yet turn up.
    prober: Result<Prober, String>,
    version: tls::Version,
    looked: Option<Instant>,
    /// It was said that the files there are now are of no use.
    has_warned: bool,
    names: Names,
}

/// Asks members; cheap to clone.
#[derive(Clone, Debug)]
pub struct Prober {
    way: Way,
    timeout: Duration,
}

#[derive(Clone, Debug)]
enum Way {
    Rest { client: reqwest::Client, scope: String },
    Sql(Arc<sql::Login>),
}

#[derive(Debug, thiserror::Error)]
#[error("proof{0}")]
pub struct ProberError(#[from] ClientError);

// === impl Renewed ===

impl Renewed {
    pub(super) fn new() -> Self {
        Self {
            prober: Err(String::new()),
            version: tls::Version::default(),
            looked: None,
            has_warned: false,
            names: Names::default(),
        }
    }

    /// Files that are of no use leave what was read before: certificate and key are renewed one after the other.
    pub(super) fn at(&mut self, cluster: &Cluster, now: Instant) -> Result<Prober, String> {
        let has_looked = self.looked.is_some_and(|at| now.saturating_duration_since(at) < LOOK_AGAIN);
        if self.prober.is_ok() && has_looked {
            return self.prober.clone();
        }
        self.looked = Some(now);
        let version = tls::Version::of(&cluster.proof.tls);
        if self.prober.is_ok() && version == self.version {
            return self.prober.clone();
        }
        match Prober::of(cluster, &self.names) {
            Ok(prober) => (self.prober, self.version, self.has_warned) = (Ok(prober), version, false),
            Err(error) if self.prober.is_ok() => {
                if !std::mem::replace(&mut self.has_warned, true) {
                    tracing::warn!(%error, "renewed TLS files cannot be used: what was read before stays in use");
                }
            }
            Err(error) => self.prober = Err(error.to_string()),
        }
        self.prober.clone()
    }
}

// === impl Prober ===

impl Prober {
    /// As the cluster's members are asked. Reads the TLS files.
    pub(super) fn of(cluster: &Cluster, names: &Names) -> Result<Self, ProberError> {
        match &cluster.store {
            StoreConfig::Static(fixed) => {
                let login = sql::Login::new(fixed, &cluster.proof.tls, names).map_err(ClientError::from)?;
                Ok(Self { way: Way::Sql(Arc::new(login)), timeout: cluster.proof.timeout })
            }
            _ => Self::through(&cluster.proof, &cluster.scope, names),
        }
    }

    /// Asks Patroni. Reads the TLS files.
    pub fn new(config: &ProofConfig, scope: &str) -> Result<Self, ProberError> {
        Self::through(config, scope, &Names::default())
    }

    fn through(config: &ProofConfig, scope: &str, names: &Names) -> Result<Self, ProberError> {
        let client = http::client(&config.tls, config.timeout, names)?;
        Ok(Self { way: Way::Rest { client, scope: scope.into() }, timeout: config.timeout })
    }

    /// Ends within the configured timeout. `url` is the member's `api_url`, or its `conn_url` where there is no Patroni.
    pub async fn ask(&self, member: &str, url: &str) -> Answer {
        let asking = async {
            match &self.way {
                Way::Rest { client, scope } => match fetch(client, url).await {
                    Ok(body) => Answer::read(&body, scope, member),
                    Err(why) => Answer::Silent { why },
                },
                Way::Sql(login) => login.ask(url).await,
            }
        };
        let answer = tokio::time::timeout(self.timeout, asking).await;
        answer.unwrap_or_else(|_| Answer::silent(format!("no answer within {:?}", self.timeout)))
    }
}

async fn fetch(client: &reqwest::Client, api_url: &str) -> Result<Vec<u8>, String> {
    let mut url = Url::parse(api_url).map_err(|error| format!("api_url {api_url:?}: {error}"))?;
    // Where nothing but health checks is served the URL has the path of one, which tells the same.
    if url.path() != HEALTH_CHECK {
        url.set_path("/patroni");
    }
    url.set_query(None);
    let response = client.get(url).send().await.map_err(|error| http::cause(&error))?;
    let status = response.status().as_u16();
    // `/patroni` is always 200; 503 is what the health checks answer with the same body.
    if status != 200 && status != 503 {
        return Err(format!("answered HTTP {status}"));
    }
    http::body(response, MAX_BODY).await
}

/// `master` until Patroni 4.
pub fn is_primary_role(role: &str) -> bool {
    matches!(role, "primary" | "master")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(body: &str) -> Answer {
        Answer::read(body.as_bytes(), "lab", "pg1")
    }

    /// What Patroni 4.0.7 answers on a primary.
    const PRIMARY: &str = r#"{"state":"running","postmaster_start_time":"2026-11-22 21:00:00.1+00:00","role":"primary","server_version":170006,"xlog":{"location":83886080},"timeline":2,"replication":[],"dcs_last_seen":1763848800,"database_system_identifier":"7711081407681433332","patroni":{"version":"4.0.7","scope":"lab","name":"pg1"}}"#;

    #[test]
    fn a_running_primary_with_a_timeline_proves_it() {
        let primary =
            Answer::Primary { timeline: 2, system_id: Some("7711081407681433332".into()), wal: Some(83886080) };
        assert_eq!(read(PRIMARY), primary);
        assert_eq!(read(&PRIMARY.replace("\"primary\"", "\"master\"")), primary, "Patroni 3");
    }

    #[test]
    fn a_primary_that_is_starting_or_has_no_timeline_proves_nothing() {
        for (from, to) in [("running", "starting"), ("running", "unknown"), ("timeline", "other")] {
            let answer = read(&PRIMARY.replace(from, to));
            assert!(matches!(answer, Answer::NotPrimary { .. }), "{to}: {answer:?}");
        }
    }

    #[test]
    fn standby_leader_replica_promoted_and_demoted_prove_nothing() {
        for role in ["standby_leader", "replica", "promoted", "demoted", "uninitialized", ""] {
            let answer = read(&PRIMARY.replace("\"primary\"", &format!("{role:?}")));
            assert!(matches!(&answer, Answer::NotPrimary { role: said, .. } if said == role), "{answer:?}");
        }
    }

    #[test]
    fn an_answer_from_another_cluster_or_member_is_no_answer() {
        for (from, to) in [(r#""scope":"lab""#, r#""scope":"prod""#), (r#""name":"pg1""#, r#""name":"pg9""#)] {
            assert!(matches!(read(&PRIMARY.replace(from, to)), Answer::Silent { .. }));
        }
        let patroni_3 = PRIMARY.replace(r#","name":"pg1""#, "");
        assert!(matches!(read(&patroni_3), Answer::Primary { .. }), "3.x gives no name");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            Answer::read(&body, "lab", "pg1");
        }
    }
}

//! No store at all: what the members' REST API tells of it. `GET /cluster` is Patroni's own fresh read of its store
//! (`do_GET_cluster` in `patroni/api.py`), `GET /patroni` adds the system identifier.
//!
//! There are no revisions to compare: where members differ, most of them are right. There is no registry either. Where
//! `GET /cluster` is not served to us, [`health`] makes do with what a load balancer's check is told.

mod cluster;
mod health;

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::{Client, Url};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::cluster::ClusterAnswer;
use self::health::{Checks, Health};
use super::contents::{Contents, Folder};
use super::life::{self, Follow, abandoned};
use super::{Places, Registration, Store, StoreEvent};
use crate::cluster::follow::HOLD_INTERVALS;
use crate::cluster::http::{self, ClientError};
use crate::cluster::names::Names;
use crate::cluster::patroni;
use crate::cluster::proof::is_primary_role;
use crate::config;

/// A large cluster's `/cluster` has a few hundred bytes a member.
const MAX_BODY: usize = 1024 * 1024;
/// How long members are asked at the fast interval while no leader proves itself.
const FAST_FOR: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct RestStore {
    endpoints: Vec<String>,
    scope: String,
    proof: config::ProofConfig,
    /// Counts the rounds; there is no other revision.
    round: i64,
    /// Kept while a member that could tell is silent.
    system_id: Option<String>,
    leader: Option<String>,
    /// For as long as nobody serves `/cluster`.
    checks: Checks,
    names: Names,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    #[error("proof{0}")]
    Client(#[from] ClientError),
    /// One reason for each endpoint.
    #[error("{0}")]
    NoAnswer(String),
}

pub struct Session {
    client: Client,
    first: Round,
}

/// What a round of questions brought.
#[derive(Debug)]
struct Round {
    folder: Folder,
    /// No leader, or one that does not say it is primary.
    unsettled: bool,
}

/// What one member said of itself, as far as it matters here.
#[derive(Clone, Debug, Default)]
struct Own {
    name: Option<String>,
    system_id: Option<String>,
    is_primary: bool,
}

/// The answers of one endpoint.
struct Answers {
    endpoint: String,
    cluster: Result<ClusterAnswer, String>,
    own: Own,
    /// Asked for where `/cluster` is not served.
    health: Option<Result<Health, String>>,
}

/// Why there is no body.
enum NoBody {
    /// The path is not for us, or not there at all.
    Refused(String),
    Failed(String),
}

// === impl RestStore ===

impl RestStore {
    /// # Panics
    /// If the cluster's store is another.
    pub fn new(config: &config::Cluster) -> Self {
        let config::StoreConfig::Rest(rest) = &config.store else { panic!("the cluster has a store") };
        Self {
            endpoints: rest.endpoints.clone(),
            scope: config.scope.clone(),
            proof: config.proof.clone(),
            round: 0,
            system_id: None,
            leader: None,
            checks: Checks::new(config.proof.interval * HOLD_INTERVALS + config.proof.timeout),
            names: Names::default(),
        }
    }

    /// Asks every endpoint once. `Err`: none could tell what the store says.
    async fn ask(&mut self, client: &Client) -> Result<Round, RestError> {
        let mut asking = JoinSet::new();
        for endpoint in &self.endpoints {
            asking.spawn(ask(client.clone(), endpoint.clone(), self.scope.clone(), self.proof.timeout));
        }
        let (mut said, mut owns, mut reasons) = (Vec::new(), Vec::new(), Vec::new());
        let mut checked = BTreeMap::new();
        while let Some(answers) = asking.join_next().await {
            let Ok(Answers { endpoint, cluster, own, health }) = answers else { continue };
            match cluster {
                Ok(cluster) => said.push(cluster),
                Err(why) => reasons.push(why),
            }
            owns.push(health.as_ref().and_then(|health| Some(health.as_ref().ok()?.own.clone())).unwrap_or(own));
            match health {
                Some(Ok(health)) => drop(checked.insert(endpoint, health)),
                Some(Err(why)) => reasons.push(format!("{endpoint}: {why}")),
                None => {}
            }
        }
        reasons.sort();
        if said.is_empty() && !checked.is_empty() {
            said.push(self.checks.take(checked, self.leader.as_deref(), Instant::now()));
        }
        let Some(chosen) = choose(&said, self.leader.as_deref()) else {
            return Err(RestError::NoAnswer(reasons.join("; ")));
        };
        self.round += 1;
        self.leader = chosen.leader.clone();
        self.system_id = most(owns.iter().filter_map(|own| own.system_id.clone())).or(self.system_id.take());
        let proves = |leader: &String| {
            owns.iter().find(|own| own.name.as_ref() == Some(leader)).is_none_or(|own| own.is_primary)
        };
        let unsettled = !chosen.leader.as_ref().is_some_and(proves);
        Ok(Round { folder: chosen.keys(self.system_id.as_deref()), unsettled })
    }

    fn snapshot(&self, round: &Round) -> StoreEvent {
        Contents::of(round.folder.clone(), Folder::default()).snapshot(self.round)
    }
}

impl Store for RestStore {
    async fn follow(self, places: Places, events: mpsc::Sender<StoreEvent>) {
        life::follow(self, places, events).await;
    }

    /// There is nowhere to register: waits until the entry is given up.
    async fn register(self, mut entry: Registration) {
        abandoned(&mut entry).await;
    }
}

impl Follow for RestStore {
    type Session = Session;
    type Error = RestError;

    async fn establish(&mut self, _places: &Places) -> Result<Session, RestError> {
        // TLS files are read each time: they may have been renewed.
        let client = http::client(&self.proof.tls, self.proof.timeout, &self.names)?;
        let first = self.ask(&client).await?;
        Ok(Session { client, first })
    }

    async fn keep(
        &mut self,
        session: Session,
        _places: &Places,
        events: &mpsc::Sender<StoreEvent>,
    ) -> Result<(), RestError> {
        let Session { client, first: mut round } = session;
        let mut news = true;
        let mut settled_at = Instant::now();
        loop {
            if news && events.send(self.snapshot(&round)).await.is_err() {
                return Ok(());
            }
            if !round.unsettled {
                settled_at = Instant::now();
            }
            let fast = round.unsettled && settled_at.elapsed() < FAST_FOR;
            tokio::select! {
                () = events.closed() => return Ok(()),
                () = tokio::time::sleep(if fast { self.proof.fast_interval } else { self.proof.interval }) => {}
            }
            let next = self.ask(&client).await?;
            news = next.folder != round.folder;
            round = next;
        }
    }

    fn turn(&mut self) {}

    /// All of them are asked together.
    fn endpoints(&self) -> usize {
        1
    }
}

/// What most answers say; among as many, what the higher timeline says, then what was said before.
fn choose<'a>(said: &'a [ClusterAnswer], leader: Option<&str>) -> Option<&'a ClusterAnswer> {
    said.iter().max_by_key(|answer| {
        let votes = said.iter().filter(|other| other.leader == answer.leader).count();
        (votes, answer.timeline(), answer.leader.as_deref() == leader)
    })
}

/// The value that is there most often.
fn most<T: Ord>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts = BTreeMap::<T, usize>::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(value, _)| value)
}

async fn ask(client: Client, endpoint: String, scope: String, limit: Duration) -> Answers {
    let all = async {
        let (cluster, own) = tokio::join!(get(&client, &endpoint, "/cluster"), get(&client, &endpoint, "/patroni"));
        let own = own.map(|(_, body)| Own::read(&body, &scope)).unwrap_or_default();
        match cluster {
            Ok((_, body)) => (ClusterAnswer::read(&body, &scope), own, None),
            Err(NoBody::Failed(why)) => (Err(why), own, None),
            Err(NoBody::Refused(why)) => {
                let health = get(&client, &endpoint, health::PATH).await;
                let health = health.map_err(NoBody::why);
                let health = health.and_then(|(status, body)| Health::read(status, &body, &scope, &endpoint));
                (Err(why), own, Some(health))
            }
        }
    };
    let silent = || (Err(format!("no answer within {limit:?}")), Own::default(), None);
    let (cluster, own, health) = tokio::time::timeout(limit, all).await.unwrap_or_else(|_| silent());
    Answers { cluster: cluster.map_err(|why| format!("{endpoint}: {why}")), own, health, endpoint }
}

/// Status and body of what Patroni answers to a question it knows.
async fn get(client: &Client, endpoint: &str, path: &str) -> Result<(u16, Vec<u8>), NoBody> {
    let mut url = Url::parse(endpoint).map_err(|error| NoBody::Failed(error.to_string()))?;
    url.set_path(path);
    let response = client.get(url).send().await.map_err(|error| NoBody::Failed(http::cause(&error)))?;
    let status = response.status().as_u16();
    let answered = || format!("GET {path} answered HTTP {status}");
    match status {
        200 | 503 => Ok((status, http::body(response, MAX_BODY).await.map_err(NoBody::Failed)?)),
        401 | 403 | 404 | 405 | 501 => Err(NoBody::Refused(answered())),
        _ => Err(NoBody::Failed(answered())),
    }
}

impl NoBody {
    fn why(self) -> String {
        match self {
            Self::Refused(why) | Self::Failed(why) => why,
        }
    }
}

// === impl Own ===

impl Own {
    /// What another cluster says counts for nothing.
    fn read(body: &[u8], scope: &str) -> Self {
        let Some(map) = patroni::object(body) else { return Self::default() };
        let about = map.get("patroni").and_then(serde_json::Value::as_object);
        let said = |key| about.and_then(|about| patroni::string(about, key));
        if said("scope").is_some_and(|said| said != scope) {
            return Self::default();
        }
        let is = |key, fits: &dyn Fn(&str) -> bool| patroni::string(&map, key).is_some_and(|said| fits(&said));
        Self {
            name: said("name"),
            system_id: patroni::string(&map, "database_system_identifier"),
            is_primary: is("role", &is_primary_role) && is("state", &|state| state == "running"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(leader: &str, timeline: u32) -> ClusterAnswer {
        let body = format!(
            r#"{{"members":[{{"name":"{leader}","role":"leader","state":"running","timeline":{timeline}}}],"scope":"lab"}}"#
        );
        ClusterAnswer::read(body.as_bytes(), "lab").unwrap()
    }

    #[test]
    fn most_answers_are_right_then_the_higher_timeline_then_what_was_said_before() {
        let leader = |said: &[ClusterAnswer], before: &str| choose(said, Some(before)).unwrap().leader.clone().unwrap();
        assert_eq!(leader(&[answer("pg1", 9), answer("pg2", 2), answer("pg2", 2)], "pg1"), "pg2");
        assert_eq!(leader(&[answer("pg1", 1), answer("pg2", 2)], "pg1"), "pg2");
        assert_eq!(leader(&[answer("pg1", 2), answer("pg2", 2)], "pg1"), "pg1");
        assert!(choose(&[], None).is_none());
    }

    #[test]
    fn what_another_cluster_says_of_itself_counts_for_nothing() {
        let body = r#"{"state":"running","role":"primary","database_system_identifier":"7","patroni":{"scope":"x"}}"#;
        assert!(Own::read(body.as_bytes(), "lab").system_id.is_none());
        assert!(Own::read(body.replace("\"x\"", "\"lab\"").as_bytes(), "lab").is_primary);
        assert!(!Own::read(b"{", "lab").is_primary);
    }
}

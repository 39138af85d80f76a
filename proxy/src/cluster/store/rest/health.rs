//! `GET /primary`, for where a load balancer's checks are all that is served: 200 from whoever holds the leader key, and
//! from everybody its own state in the body (`do_GET` and `_write_status_response` in `patroni/api.py`, 3.x and 4.x).
//!
//! Nobody speaks for another here: a member that is silent is what it was last, for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Url;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::Own;
use super::cluster::ClusterAnswer;
use crate::cluster::patroni::{number, object, string};
pub(super) use crate::cluster::proof::HEALTH_CHECK as PATH;

/// One member's answer.
#[derive(Clone, Debug)]
pub(super) struct Health {
    pub(super) own: Own,
    name: String,
    /// Patroni says that this member holds the leader key.
    holds_key: bool,
    /// It says that nobody does.
    is_unlocked: bool,
    is_paused: bool,
    is_standby_leader: bool,
    is_quorum: bool,
    is_sync: bool,
    timeline: u64,
    /// As `GET /cluster` has it.
    member: Map<String, Value>,
}

/// The last answer of each endpoint, and when it came.
#[derive(Debug)]
pub(super) struct Checks {
    last: BTreeMap<String, (Health, Instant)>,
    /// For how long a silent member is what it was.
    hold: Duration,
}

// === impl Health ===

impl Health {
    /// What `endpoint` answered; one of another cluster is none.
    pub(super) fn read(status: u16, body: &[u8], scope: &str, endpoint: &str) -> Result<Self, String> {
        let map = object(body).ok_or("its answer to GET /primary is not a JSON object")?;
        let about = map.get("patroni").and_then(Value::as_object);
        let said = |key| about.and_then(|about| string(about, key));
        if let Some(other) = said("scope").filter(|said| said != scope) {
            return Err(format!("the answer is from scope {other:?}, not {scope:?}"));
        }
        let url = Url::parse(endpoint).map_err(|error| error.to_string())?;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        // Patroni 3 gives no name.
        let name = said("name")
            .unwrap_or_else(|| endpoint.trim_start_matches("https://").trim_start_matches("http://").into());
        let is = |key| map.get(key) == Some(&Value::Bool(true));
        let (is_quorum, is_sync) = (is("quorum_standby"), is("sync_standby"));
        let role = string(&map, "role").unwrap_or_default();
        let member = json!({
            "name": name,
            "state": string(&map, "state"),
            "host": host,
            "api_url": format!("{endpoint}{PATH}"),
            "timeline": map.get("timeline"),
            "tags": map.get("tags"),
            "role": role,
        });
        let Value::Object(member) = member else { unreachable!("an object was written") };
        Ok(Self {
            own: Own::read(body, scope),
            name,
            holds_key: status == 200,
            is_unlocked: is("cluster_unlocked"),
            is_paused: is("pause"),
            is_standby_leader: role == "standby_leader",
            is_quorum,
            is_sync,
            timeline: map.get("timeline").and_then(number).unwrap_or(0),
            member,
        })
    }
}

// === impl Checks ===

impl Checks {
    pub(super) fn new(hold: Duration) -> Self {
        Self { last: BTreeMap::new(), hold }
    }

    /// What a round's answers, by endpoint, come to; `leader` is who led before.
    pub(super) fn take(
        &mut self,
        round: BTreeMap<String, Health>,
        leader: Option<&str>,
        now: Instant,
    ) -> ClusterAnswer {
        let chosen = choose(&round, leader);
        self.last.extend(round.into_iter().map(|(endpoint, health)| (endpoint, (health, now))));
        let is_fresh = |at: &Instant| now.duration_since(*at) < self.hold;
        let all = || self.last.values().filter(|(_, at)| is_fresh(at)).map(|(health, _)| health);
        let named =
            |fits: fn(&Health) -> bool| all().filter(move |health| fits(health)).map(|health| health.name.clone());
        let members = self.last.values().map(|(health, at)| {
            let mut member = health.member.clone();
            let is_leader = chosen.as_ref() == Some(&health.name);
            let role = if health.is_standby_leader {
                "standby_leader"
            } else if is_leader {
                "leader"
            } else {
                "replica"
            };
            member.insert("role".into(), role.into());
            if !is_fresh(at) {
                member.insert("state".into(), "silent".into());
            }
            (health.name.clone(), member)
        });
        ClusterAnswer {
            is_standby: all().any(|health| health.is_standby_leader),
            is_paused: all().any(|health| health.is_paused),
            is_quorum: all().any(|health| health.is_quorum),
            sync_standbys: named(|health| health.is_sync || health.is_quorum).collect(),
            members: members.collect(),
            switchover: None,
            leader: chosen,
        }
    }
}

/// Whoever says that it holds the key; of several the one on the highest timeline, then who led before. A leader that is
/// silent leads on, unless others say that nobody does: its proof lapses by itself.
fn choose(round: &BTreeMap<String, Health>, leader: Option<&str>) -> Option<String> {
    let holders = round.values().filter(|health| health.holds_key || health.is_standby_leader);
    if let Some(holder) = holders.max_by_key(|health| (health.timeline, leader == Some(&health.name))) {
        return Some(holder.name.clone());
    }
    let leader = leader?;
    let has_answered = round.values().any(|health| health.name == leader);
    let is_unlocked = round.values().any(|health| health.is_unlocked);
    (!has_answered && !is_unlocked).then(|| leader.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Patroni 4.0.7 answers on a replica.
    const REPLICA: &str = r#"{"state":"running","postmaster_start_time":"2026-11-22 21:00:00.1+00:00","role":"replica","server_version":170006,"xlog":{"received_location":83886080,"replayed_location":83886080,"replayed_timestamp":null,"paused":false},"sync_standby":true,"timeline":2,"replication_state":"streaming","dcs_last_seen":1763848800,"tags":{"zone":"a"},"database_system_identifier":"77","patroni":{"version":"4.0.7","scope":"lab","name":"pg2"}}"#;

    fn health(status: u16, name: &str, change: impl Fn(String) -> String) -> (String, Health) {
        let endpoint = format!("http://{name}:8008");
        let body = change(REPLICA.replace("pg2", name));
        let health = Health::read(status, body.as_bytes(), "lab", &endpoint).unwrap();
        (endpoint, health)
    }

    fn primary(body: String) -> String {
        body.replace("\"replica\"", "\"primary\"").replace("\"sync_standby\":true,", "")
    }

    fn same(body: String) -> String {
        body
    }

    #[test]
    fn the_one_that_answers_200_leads_and_the_others_are_what_they_say() {
        let mut checks = Checks::new(Duration::from_secs(7));
        let round = [health(200, "pg1", primary), health(503, "pg2", same)];
        let answer = checks.take(round.into(), None, Instant::now());
        assert_eq!((answer.leader.as_deref(), &answer.sync_standbys), (Some("pg1"), &vec!["pg2".to_string()]));
        let pg2 = &answer.members["pg2"];
        assert_eq!(
            (&pg2["role"], &pg2["state"], &pg2["tags"]["zone"]),
            (&"replica".into(), &"running".into(), &"a".into())
        );
        assert_eq!((&pg2["host"], &pg2["api_url"]), (&"pg2".into(), &"http://pg2:8008/primary".into()));
    }

    #[test]
    fn a_silent_leader_leads_on_until_the_others_say_that_nobody_does() {
        let mut checks = Checks::new(Duration::from_secs(7));
        let now = Instant::now();
        checks.take([health(200, "pg1", primary), health(503, "pg2", same)].into(), None, now);
        let later = now + Duration::from_secs(7);
        let answer = checks.take([health(503, "pg2", same)].into(), Some("pg1"), later);
        assert_eq!((answer.leader.as_deref(), &answer.members["pg1"]["state"]), (Some("pg1"), &"silent".into()));
        let unlocked = |body: String| body.replace("\"timeline\"", "\"cluster_unlocked\":true,\"timeline\"");
        assert_eq!(checks.take([health(503, "pg2", unlocked)].into(), Some("pg1"), later).leader, None);
        assert_eq!(checks.take([health(503, "pg1", primary)].into(), Some("pg1"), later).leader, None, "its own word");
    }

    #[test]
    fn what_a_silent_member_said_of_the_cluster_is_forgotten() {
        let mut checks = Checks::new(Duration::from_secs(7));
        let now = Instant::now();
        let paused = |body: String| {
            body.replace("\"sync_standby\"", "\"pause\":true,\"quorum_standby\"")
                .replace("\"replica\"", "\"standby_leader\"")
        };
        let leader = || health(200, "pg1", primary);
        let said =
            |answer: ClusterAnswer| (answer.is_paused, answer.is_standby, answer.is_quorum, answer.sync_standbys.len());
        assert_eq!(said(checks.take([leader(), health(503, "pg2", paused)].into(), None, now)), (true, true, true, 1));
        let later = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(said(checks.take([leader()].into(), Some("pg1"), later(6))), (true, true, true, 1));
        assert_eq!(said(checks.take([leader()].into(), Some("pg1"), later(7))), (false, false, false, 0));
    }

    #[test]
    fn of_two_that_hold_the_key_the_higher_timeline_leads() {
        let mut checks = Checks::new(Duration::from_secs(7));
        let next = |body: String| primary(body).replace("\"timeline\":2", "\"timeline\":3");
        let round = [health(200, "pg1", primary), health(200, "pg2", next)];
        assert_eq!(checks.take(round.into(), Some("pg1"), Instant::now()).leader.as_deref(), Some("pg2"));
    }

    #[test]
    fn another_cluster_and_what_is_no_answer_are_errors() {
        let read = |body: &str| Health::read(200, body.as_bytes(), "lab", "http://pg2:8008").map(|health| health.name);
        assert!(read(&REPLICA.replace("\"lab\"", "\"prod\"")).unwrap_err().contains("scope \"prod\""));
        assert!(read("[]").unwrap_err().contains("not a JSON object"));
        assert_eq!(read(r#"{"role":7}"#).unwrap(), "pg2:8008", "Patroni 3 gives no name");
    }
}

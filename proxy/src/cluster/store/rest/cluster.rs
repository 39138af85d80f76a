//! `GET /cluster`, turned into the keys it was made from: the rest of the program knows only those.
//!
//! Its shape is that of `cluster_as_json` in `patroni/utils.py` (3.x and 4.x).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::cluster::patroni::{number, object, string};
use crate::cluster::store::contents::Folder;

/// One member's answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ClusterAnswer {
    pub(super) leader: Option<String>,
    pub(super) is_standby: bool,
    pub(super) is_paused: bool,
    pub(super) sync_standbys: Vec<String>,
    pub(super) is_quorum: bool,
    pub(super) members: BTreeMap<String, Map<String, Value>>,
    pub(super) switchover: Option<Map<String, Value>>,
}

impl ClusterAnswer {
    /// What cannot be read is left out; an answer that is none at all, or from another cluster, is an error.
    pub(super) fn read(body: &[u8], scope: &str) -> Result<Self, String> {
        let map = object(body).ok_or("its answer to GET /cluster is not a JSON object")?;
        if let Some(other) = string(&map, "scope").filter(|said| said != scope) {
            return Err(format!("the answer is from scope {other:?}, not {scope:?}"));
        }
        let listed = map.get("members").and_then(Value::as_array).ok_or("its answer to GET /cluster has no members")?;
        let mut answer = Self {
            leader: None,
            is_standby: false,
            is_paused: map.get("pause") == Some(&Value::Bool(true)),
            sync_standbys: Vec::new(),
            is_quorum: false,
            members: BTreeMap::new(),
            switchover: map.get("scheduled_switchover").and_then(Value::as_object).cloned(),
        };
        for member in listed.iter().filter_map(Value::as_object) {
            let Some(name) = string(member, "name") else { continue };
            match string(member, "role").as_deref() {
                Some(role @ ("leader" | "standby_leader")) => {
                    answer.is_standby = role == "standby_leader";
                    answer.leader = Some(name.clone());
                }
                Some(role @ ("sync_standby" | "quorum_standby")) => {
                    answer.is_quorum |= role == "quorum_standby";
                    answer.sync_standbys.push(name.clone());
                }
                _ => {}
            }
            answer.members.insert(name, member.clone());
        }
        Ok(answer)
    }

    /// The leader's.
    pub(super) fn timeline(&self) -> u64 {
        let leader = self.leader.as_ref().and_then(|leader| self.members.get(leader));
        leader.and_then(|member| number(member.get("timeline")?)).unwrap_or(0)
    }

    /// As the store has them.
    pub(super) fn keys(&self, system_id: Option<&str>) -> Folder {
        let mut folder = Folder::default();
        let mut put = |name: &str, value: Value| {
            let text = match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
            folder.put(name, text.as_bytes());
        };
        if let Some(leader) = &self.leader {
            put("leader", leader.as_str().into());
        }
        if let Some(system_id) = system_id {
            put("initialize", system_id.into());
        }
        // Which host the standby cluster follows, the answer does not tell.
        let standby = if self.is_standby { json!({ "host": "another cluster" }) } else { Value::Null };
        let mode = if self.is_quorum { json!("quorum") } else { Value::Null };
        put("config", json!({ "pause": self.is_paused, "standby_cluster": standby, "synchronous_mode": mode }));
        if !self.sync_standbys.is_empty() {
            put("sync", json!({ "leader": self.leader, "sync_standby": self.sync_standbys.join(",") }));
        }
        if let Some(switchover) = &self.switchover {
            let said = |key| string(switchover, key);
            put("failover", json!({ "leader": said("from"), "member": said("to"), "scheduled_at": said("at") }));
        }
        for (name, member) in &self.members {
            put(&format!("members/{name}"), member_key(member));
        }
        folder
    }
}

/// `members/<name>`, without the positions: those come from the member itself, younger than any key.
fn member_key(member: &Map<String, Value>) -> Value {
    let role = match string(member, "role").as_deref() {
        Some("leader") => "primary",
        Some("standby_leader") => "standby_leader",
        _ => "replica",
    };
    // On a replica that runs, its replication state stands there.
    let state = match string(member, "state").as_deref() {
        Some("streaming" | "in archive recovery") => Some("running".to_owned()),
        other => other.map(Into::into),
    };
    let conn_url = string(member, "host").map(|host| {
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        match member.get("port").and_then(number) {
            Some(port) => format!("postgres://{host}:{port}/postgres"),
            None => format!("postgres://{host}/postgres"),
        }
    });
    json!({
        "role": role,
        "state": state,
        "conn_url": conn_url,
        "api_url": string(member, "api_url"),
        "timeline": member.get("timeline"),
        "tags": member.get("tags"),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::patroni::PatroniKeys;

    /// What Patroni 4.0.7 answers.
    const LAB: &str = r#"{"members":[{"name":"pg1","role":"leader","state":"running","api_url":"http://10.0.0.31:8008/patroni","host":"10.0.0.31","port":5432,"timeline":3},{"name":"pg2","role":"sync_standby","state":"streaming","api_url":"http://10.0.0.32:8008/patroni","host":"fd77::32","port":5433,"timeline":3,"tags":{"noloadbalance":true},"lag":0},{"name":"pg3","role":"replica","state":"creating replica","api_url":"http://10.0.0.33:8008/patroni","host":"10.0.0.33","port":5432,"lag":"unknown"}],"pause":true,"scheduled_switchover":{"at":"2026-11-22T10:00:00+00:00","from":"pg1","to":"pg2"},"scope":"main"}"#;

    fn keys(body: &str) -> PatroniKeys {
        let crate::cluster::store::StoreEvent::Snapshot { keys, .. } = super::super::Contents::of(
            ClusterAnswer::read(body.as_bytes(), "main").unwrap().keys(Some("77")),
            Folder::default(),
        )
        .snapshot(1) else {
            unreachable!("a snapshot is one")
        };
        PatroniKeys::parse(&keys)
    }

    #[test]
    fn the_answer_becomes_the_keys_it_was_made_from() {
        let keys = keys(LAB);
        assert_eq!((keys.leader.as_deref(), keys.initialize.as_deref()), (Some("pg1"), Some("77")));
        assert!(keys.config.pause && !keys.config.standby_cluster);
        assert_eq!(keys.sync.standbys, ["pg2"]);
        assert_eq!(keys.failover.unwrap().candidate.as_deref(), Some("pg2"));
        let [pg1, pg2, pg3] = ["pg1", "pg2", "pg3"].map(|name| &keys.members[name]);
        assert_eq!((pg1.role.as_str(), pg1.state.as_str(), pg1.timeline), ("primary", "running", Some(3)));
        assert_eq!(pg1.conn_url.as_deref(), Some("postgres://10.0.0.31:5432/postgres"));
        assert_eq!((pg2.role.as_str(), pg2.state.as_str()), ("replica", "running"));
        assert_eq!(pg2.conn_url.as_deref(), Some("postgres://[fd77::32]:5433/postgres"));
        assert_eq!(pg2.tags["noloadbalance"], "true");
        assert_eq!(pg3.state, "creating replica");
    }

    #[test]
    fn a_standby_cluster_is_one() {
        let keys = keys(&LAB.replace("\"leader\"", "\"standby_leader\""));
        assert!(keys.config.standby_cluster);
        assert_eq!(keys.members["pg1"].role, "standby_leader");
    }

    #[test]
    fn another_scope_and_what_is_no_cluster_are_errors() {
        let error = |body: &str| ClusterAnswer::read(body.as_bytes(), "main").unwrap_err();
        assert!(error(&LAB.replace("\"main\"", "\"prod\"")).contains("scope \"prod\""));
        assert!(error("[]").contains("not a JSON object"));
        assert!(error("{}").contains("no members"));
        let odd =
            ClusterAnswer::read(br#"{"members":[7,{"role":"leader"},{"name":"pg1","port":"x"}]}"#, "main").unwrap();
        assert_eq!((odd.leader.as_ref(), odd.members.len()), (None, 1));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in r#"[\[\]{}",:0-9a-z]{0,60}"#) {
            if let Ok(answer) = ClusterAnswer::read(body.as_bytes(), "main") {
                answer.keys(None);
            }
        }
    }
}

//! Patroni's keys and JSON, turned into types. Whatever cannot be read is left out: a key is outside data.
//!
//! Shapes are those of `patroni/dcs/__init__.py` and `Ha.touch_member` (4.0 and 4.1; 2.x and 3.x differ in role names
//! and in `optime/leader`).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Keys relative to `/<namespace>/<scope>/` (and the Citus group), with their values as stored.
pub type Keys = BTreeMap<String, Vec<u8>>;

/// One cluster as its keys tell it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PatroniKeys {
    /// The member the leader key names. An empty value is no leader.
    pub leader: Option<String>,
    pub members: BTreeMap<String, MemberKey>,
    /// The leader's WAL position in bytes when it last wrote `status`: as old as Patroni's `loop_wait`.
    pub optime: Option<u64>,
    /// The system identifier. Patroni writes an empty value while it bootstraps: that is `None`.
    pub initialize: Option<String>,
    pub config: DynamicConfig,
    pub sync: SyncState,
    /// A planned switchover or a manual failover.
    pub failover: Option<Failover>,
    /// The timelines that have ended, oldest first.
    pub history: Vec<TimelineEnd>,
    /// Member name to `api_url`, in failsafe mode.
    pub failsafe: BTreeMap<String, String>,
}

/// `members/<name>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberKey {
    pub conn_url: Option<String>,
    pub api_url: Option<String>,
    pub proxy_url: Option<String>,
    pub state: String,
    pub role: String,
    pub timeline: Option<u32>,
    /// Replayed WAL in bytes (`replay_lsn`), or where the older `xlog_location` stands.
    pub replayed: Option<u64>,
    /// Values as text: `true`, `100`, `"rack-a"` without its quotes.
    pub tags: BTreeMap<String, String>,
}

/// The part of `config` that matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DynamicConfig {
    /// Maintenance mode: Patroni watches and changes nothing.
    pub pause: bool,
    /// A leader goes on without the store while it reaches all others. The `failsafe` key outlives the mode.
    pub failsafe_mode: bool,
    /// The whole cluster follows another one.
    pub standby_cluster: bool,
    /// `synchronous_mode: quorum`.
    pub quorum_mode: bool,
}

/// `sync`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncState {
    pub leader: Option<String>,
    pub standbys: Vec<String>,
    pub quorum: u64,
}

/// `failover`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failover {
    pub leader: Option<String>,
    pub candidate: Option<String>,
    pub scheduled_at: Option<String>,
}

/// One entry of `history`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineEnd {
    pub timeline: u32,
    pub lsn: u64,
    /// As PostgreSQL's history file has it.
    pub reason: Option<String>,
    /// When the new timeline began, as Patroni writes it.
    pub at: Option<String>,
    /// Who was promoted then; older Patroni does not say.
    pub new_leader: Option<String>,
}

// === impl PatroniKeys ===

impl PatroniKeys {
    pub fn parse(keys: &Keys) -> Self {
        let mut out = Self::default();
        for (key, value) in keys {
            match key.as_str() {
                "leader" => out.leader = text(value),
                "initialize" => out.initialize = text(value),
                "status" => out.optime = optime(value).or(out.optime),
                "optime/leader" => out.optime = out.optime.or_else(|| text(value)?.parse().ok()),
                "config" => out.config = DynamicConfig::parse(value),
                "sync" => out.sync = SyncState::parse(value),
                "failover" => out.failover = Failover::parse(value),
                "history" => out.history = history(value),
                "failsafe" => out.failsafe = object(value).map(|map| strings(&map)).unwrap_or_default(),
                _ => {
                    if let Some(name) = key.strip_prefix("members/").filter(|name| !name.is_empty()) {
                        out.members.insert(name.into(), MemberKey::parse(value));
                    }
                }
            }
        }
        out
    }
}

impl MemberKey {
    /// Invalid JSON is an empty member, as it is to Patroni itself.
    fn parse(value: &[u8]) -> Self {
        let Some(map) = object(value) else {
            return Self::default();
        };
        let replayed = ["replay_lsn", "xlog_location"].iter().find_map(|key| number(map.get(*key)?));
        Self {
            conn_url: string(&map, "conn_url"),
            api_url: string(&map, "api_url"),
            proxy_url: string(&map, "proxy_url"),
            state: string(&map, "state").unwrap_or_default(),
            role: string(&map, "role").unwrap_or_default(),
            timeline: map.get("timeline").and_then(number).and_then(|timeline| u32::try_from(timeline).ok()),
            replayed,
            tags: map.get("tags").and_then(Value::as_object).map(strings).unwrap_or_default(),
        }
    }
}

impl DynamicConfig {
    fn parse(value: &[u8]) -> Self {
        let Some(map) = object(value) else {
            return Self::default();
        };
        let is_on = |key| map.get(key).and_then(Value::as_bool).unwrap_or(false);
        Self {
            quorum_mode: string(&map, "synchronous_mode").is_some_and(|mode| mode.eq_ignore_ascii_case("quorum")),
            pause: is_on("pause"),
            failsafe_mode: is_on("failsafe_mode"),
            // As in Patroni's GlobalConfig.is_standby_cluster: one of these must be set, an empty section is none.
            standby_cluster: map
                .get("standby_cluster")
                .and_then(Value::as_object)
                .is_some_and(|section| ["host", "port", "restore_command"].iter().any(|key| truthy(section.get(*key)))),
        }
    }
}

impl SyncState {
    fn parse(value: &[u8]) -> Self {
        let Some(map) = object(value) else {
            return Self::default();
        };
        let standbys = string(&map, "sync_standby").unwrap_or_default();
        Self {
            leader: string(&map, "leader"),
            standbys: standbys.split(',').map(str::trim).filter(|name| !name.is_empty()).map(Into::into).collect(),
            quorum: map.get("quorum").and_then(number).unwrap_or(0),
        }
    }
}

impl Failover {
    /// `{}` is what is left after a switchover, and is none.
    fn parse(value: &[u8]) -> Option<Self> {
        let map = object(value)?;
        let found = Self {
            leader: string(&map, "leader"),
            candidate: string(&map, "member"),
            scheduled_at: string(&map, "scheduled_at"),
        };
        (found != Self::default()).then_some(found)
    }
}

// === reading JSON leniently ===

fn text(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?.trim();
    (!text.is_empty()).then(|| text.into())
}

pub(super) fn object(value: &[u8]) -> Option<Map<String, Value>> {
    match serde_json::from_slice(value) {
        Ok(Value::Object(map)) => Some(map),
        _ => None,
    }
}

pub(super) fn string(map: &Map<String, Value>, key: &str) -> Option<String> {
    map.get(key)?.as_str().filter(|text| !text.is_empty()).map(Into::into)
}

/// A JSON number or a number in a string; negative ones are none.
pub(super) fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())
}

fn truthy(value: Option<&Value>) -> bool {
    match value {
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Null) | None => false,
        Some(_) => true,
    }
}

fn strings(map: &Map<String, Value>) -> BTreeMap<String, String> {
    map.iter()
        .filter_map(|(key, value)| match value {
            Value::String(text) => Some((key.clone(), text.clone())),
            Value::Bool(_) | Value::Number(_) => Some((key.clone(), value.to_string())),
            _ => None,
        })
        .collect()
}

/// `status` is an object; before Patroni 2.1 a plain number stood there.
fn optime(value: &[u8]) -> Option<u64> {
    match serde_json::from_slice(value).ok()? {
        Value::Object(map) => number(map.get("optime")?),
        other => number(&other),
    }
}

fn history(value: &[u8]) -> Vec<TimelineEnd> {
    let Ok(Value::Array(lines)) = serde_json::from_slice(value) else {
        return Vec::new();
    };
    lines
        .iter()
        .filter_map(|line| {
            let line = line.as_array()?;
            Some(TimelineEnd {
                timeline: number(line.first()?)?.try_into().ok()?,
                lsn: number(line.get(1)?)?,
                reason: line.get(2).and_then(Value::as_str).map(Into::into),
                at: line.get(3).and_then(Value::as_str).map(Into::into),
                new_leader: line.get(4).and_then(Value::as_str).map(Into::into),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(pairs: &[(&str, &str)]) -> Keys {
        pairs.iter().map(|(key, value)| (key.to_string(), value.as_bytes().to_vec())).collect()
    }

    #[test]
    fn what_patroni_4_writes_is_read() {
        let parsed = PatroniKeys::parse(&keys(&[
            ("leader", "pg1"),
            (
                "members/pg2",
                r#"{"conn_url":"postgres://10.0.0.2:5432/postgres","api_url":"http://10.0.0.2:8008/patroni","state":"running","role":"replica","version":"4.1.5","xlog_location":67108999,"replay_lsn":67108864,"receive_lsn":67108864,"timeline":1,"tags":{"noloadbalance":true,"zone":"a","weight":3}}"#,
            ),
            ("status", r#"{"optime":67108864,"slots":{"pg1":67108864},"retain_slots":["pg1"]}"#),
            ("failover", r#"{"leader":"pg1","member":"pg2"}"#),
            ("history", r#"[[1,67235168,"no recovery target specified","2026-11-22T…","pg2"]]"#),
            ("initialize", "7711081407681433332"),
            ("config", r#"{"ttl":30,"loop_wait":10,"pause":true}"#),
            ("sync", r#"{"leader":"pg1","quorum":0,"sync_standby":"pg3, pg2"}"#),
            ("failsafe", r#"{"pg1":"http://10.0.0.1:8008/patroni"}"#),
        ]));
        assert_eq!(parsed.leader.as_deref(), Some("pg1"));
        assert_eq!(parsed.optime, Some(67108864));
        assert_eq!(parsed.initialize.as_deref(), Some("7711081407681433332"));
        assert!(parsed.config.pause && !parsed.config.standby_cluster);
        assert_eq!(parsed.sync.standbys, ["pg3", "pg2"]);
        assert_eq!(parsed.failover.as_ref().unwrap().candidate.as_deref(), Some("pg2"));
        assert_eq!(parsed.history[0].new_leader.as_deref(), Some("pg2"));
        assert_eq!(parsed.failsafe["pg1"], "http://10.0.0.1:8008/patroni");
        let member = &parsed.members["pg2"];
        assert_eq!((member.state.as_str(), member.role.as_str()), ("running", "replica"));
        assert_eq!((member.timeline, member.replayed), (Some(1), Some(67108864)));
        assert_eq!(member.tags["noloadbalance"], "true");
        assert_eq!((member.tags["zone"].as_str(), member.tags["weight"].as_str()), ("a", "3"));
    }

    #[test]
    fn invalid_json_is_an_empty_member() {
        for bad in ["", "{", "[]", "null", "7", "\u{0}", r#"{"state":7,"role":null,"tags":[1],"timeline":-1}"#] {
            let parsed = PatroniKeys::parse(&keys(&[("members/pg1", bad)]));
            assert_eq!(parsed.members["pg1"], MemberKey::default(), "{bad:?}");
        }
        let mut not_utf8 = Keys::new();
        not_utf8.insert("members/pg1".into(), vec![0xff, 0xfe]);
        not_utf8.insert("leader".into(), vec![0xff]);
        let parsed = PatroniKeys::parse(&not_utf8);
        assert_eq!((parsed.leader, parsed.members["pg1"].clone()), (None, MemberKey::default()));
    }

    #[test]
    fn an_empty_leader_an_empty_initialize_and_an_empty_failover_are_none() {
        let parsed = PatroniKeys::parse(&keys(&[("leader", " "), ("initialize", ""), ("failover", "{}")]));
        assert_eq!(parsed, PatroniKeys::default());
    }

    #[test]
    fn the_older_optime_key_counts_only_without_status() {
        assert_eq!(PatroniKeys::parse(&keys(&[("optime/leader", "77")])).optime, Some(77));
        let both = keys(&[("optime/leader", "77"), ("status", r#"{"optime":99}"#)]);
        assert_eq!(PatroniKeys::parse(&both).optime, Some(99));
    }

    #[test]
    fn a_standby_cluster_is_known_by_its_config() {
        let config = |json| PatroniKeys::parse(&keys(&[("config", json)])).config.standby_cluster;
        assert!(config(r#"{"standby_cluster":{"host":"10.1.0.1","port":5432}}"#));
        assert!(!config(r#"{"standby_cluster":{}}"#));
        assert!(!config(r#"{"standby_cluster":null}"#));
    }

    #[test]
    fn a_deeply_nested_value_neither_panics_nor_overflows() {
        let deep = "[".repeat(500_000);
        let parsed = PatroniKeys::parse(&keys(&[("members/pg1", &deep), ("history", &deep), ("config", &deep)]));
        assert_eq!(parsed.members["pg1"], MemberKey::default());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(pairs in proptest::collection::btree_map(
            prop_oneof![
                Just("leader".to_string()), Just("status".into()), Just("config".into()), Just("sync".into()),
                Just("failover".into()), Just("history".into()), Just("failsafe".into()), Just("initialize".into()),
                Just("optime/leader".into()), "members/.{0,8}", ".{0,12}",
            ],
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..64),
                r#"[\[\]{}",:0-9a-z]{0,40}"#.prop_map(String::into_bytes),
            ],
            0..12,
        )) {
            PatroniKeys::parse(&pairs);
        }
    }
}

//! The rules, a sentence each; here the world in which they are tried.

mod announced;
mod away;
mod closed;
mod open;
mod timeline;
mod view;

use super::*;
use crate::cluster::Proof;

pub(super) const DEBOUNCE: Duration = Duration::from_millis(500);
pub(super) const HOLD: Duration = Duration::from_secs(7);
const ANNOUNCED: Duration = Duration::from_secs(15);

/// Three members, a store and a clock, moved by hand.
pub(super) struct World {
    pub truth: Truth,
    pub now: Now,
    pub keys: Keys,
    revision: i64,
}

pub(super) fn url(member: &str) -> String {
    format!("http://{member}:8008/patroni")
}

impl World {
    pub(super) fn new() -> Self {
        let now = Now { mono: Instant::now(), wall: SystemTime::now() };
        let rules = Rules {
            cluster: "lab".into(),
            members_alone: false,
            leader_absent_debounce: DEBOUNCE,
            proof_hold: HOLD,
            switchover_hold: ANNOUNCED,
        };
        let mut world = Self { truth: Truth::new(rules, now), now, keys: Keys::new(), revision: 1 };
        for (last, member) in ["pg1", "pg2", "pg3"].iter().enumerate() {
            world.member(member, "replica", &format!("10.0.0.{}", last + 1));
        }
        world.key("initialize", "77");
        world
    }

    /// A world in which the key names pg1, which proves timeline 1.
    pub(super) fn open() -> Self {
        let mut world = Self::new();
        world.leader("pg1");
        world.proves("pg1", 1);
        assert_eq!(world.primary(), Some("pg1"));
        world
    }

    pub(super) fn member(&mut self, name: &str, role: &str, host: &str) {
        let json = format!(
            r#"{{"conn_url":"postgres://{host}:5432/postgres","api_url":"{}","state":"running","role":"{role}"}}"#,
            url(name)
        );
        self.key(&format!("members/{name}"), &json);
    }

    pub(super) fn key(&mut self, key: &str, value: &str) {
        self.keys.insert(key.into(), value.into());
    }

    pub(super) fn take(&mut self, input: Input) -> Option<Arc<ClusterView>> {
        self.truth.take(input, self.now)
    }

    pub(super) fn listed(&mut self) {
        self.revision += 1;
        let (revision, keys) = (self.revision, self.keys.clone());
        self.take(Input::Snapshot { revision, keys, bouncers: Keys::new() });
    }

    pub(super) fn leader(&mut self, name: &str) {
        self.key("leader", name);
        self.listed();
    }

    pub(super) fn no_leader(&mut self) {
        self.keys.remove("leader");
        self.listed();
    }

    pub(super) fn away(&mut self) {
        self.take(Input::Unreachable { why: "connection refused".into() });
    }

    pub(super) fn answers(&mut self, member: &str, answer: Answer) {
        self.answers_late(member, self.now.mono, answer);
    }

    /// It is heard now.
    pub(super) fn answers_late(&mut self, member: &str, asked: Instant, answer: Answer) {
        self.take(Input::Answered { member: member.into(), api_url: url(member), asked, answer });
    }

    pub(super) fn proves(&mut self, member: &str, timeline: u32) {
        self.answers(member, Answer::Primary { timeline, system_id: Some("77".into()), wal: None });
    }

    pub(super) fn says(&mut self, member: &str, role: &str, state: &str) {
        self.answers(
            member,
            Answer::NotPrimary { role: role.into(), state: state.into(), timeline: None, system_id: None, wal: None },
        );
    }

    pub(super) fn silent(&mut self, member: &str) {
        self.answers(member, Answer::Silent { why: "connection refused".into() });
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now.mono += time;
        self.now.wall += time;
        self.take(Input::Tick);
    }

    pub(super) fn view(&self) -> Arc<ClusterView> {
        self.truth.view()
    }

    pub(super) fn primary(&self) -> Option<&str> {
        self.truth.open.as_ref().map(|open| &*open.member)
    }

    fn cut(&self) -> Vec<String> {
        self.view().cut.keys().cloned().collect()
    }

    pub(super) fn why(&self) -> String {
        self.view().closed_because.clone()
    }

    pub(super) fn pace(&self, member: &str) -> Pace {
        self.truth.pace(member, self.now)
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

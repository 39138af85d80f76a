//! The rules, a sentence each.

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
        let asked = self.now.mono;
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

    fn pace(&self, member: &str) -> Pace {
        self.truth.pace(member, self.now)
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn nothing_is_open_before_the_store_has_spoken() {
    let mut world = World::new();
    world.proves("pg1", 1);
    assert_eq!((world.primary(), &*world.why()), (None, "nothing heard from the store yet"));
    world.away();
    assert_eq!(world.why(), "the store was never reached: connection refused");
}

#[test]
fn the_leader_key_and_a_proof_open() {
    let world = World::open();
    let view = world.view();
    let primary = view.primary.as_ref().unwrap();
    assert_eq!((&*primary.member, primary.timeline, &*view.closed_because), ("pg1", 1, ""));
    assert_eq!(view.cut.keys().collect::<Vec<_>>(), ["pg2", "pg3"]);
    assert_eq!(view.members["pg1"].conn_addr, Some("10.0.0.1:5432".parse().unwrap()));
}

#[test]
fn leader_key_without_proof_does_not_open() {
    let mut world = World::new();
    world.leader("pg1");
    assert_eq!((world.primary(), &*world.why()), (None, "the leader key names pg1, which has not been asked yet"));
    world.says("pg1", "replica", "running");
    assert_eq!(
        (world.primary(), &*world.why()),
        (None, "the leader key names pg1, which says it is replica (running)")
    );
    world.silent("pg1");
    assert_eq!(world.why(), "the leader key names pg1, which does not answer: connection refused");
}

#[test]
fn a_proof_without_the_leader_key_does_not_open() {
    let mut world = World::new();
    world.listed();
    world.proves("pg2", 9);
    assert_eq!(world.primary(), None);
    world.leader("pg1");
    assert_eq!(world.primary(), None);
}

#[test]
fn a_proof_asked_for_before_the_key_named_the_member_does_not_open() {
    let mut world = World::open();
    world.leader("pg2");
    world.pass(ms(10));
    world.leader("pg1");
    assert_eq!(world.primary(), None, "{}", world.why());
    world.proves("pg1", 1);
    assert_eq!(world.primary(), Some("pg1"));
}

#[test]
fn an_answer_that_was_overtaken_by_a_newer_one_is_dropped() {
    let mut world = World::open();
    let before = world.now.mono;
    world.pass(ms(100));
    world.says("pg1", "replica", "running");
    let late = Answer::Primary { timeline: 1, system_id: None, wal: None };
    world.take(Input::Answered { member: "pg1".into(), api_url: url("pg1"), asked: before, answer: late });
    assert_eq!(world.primary(), None);
}

#[test]
fn the_key_moves_and_the_old_leader_is_cut_before_the_new_one_has_proved() {
    let mut world = World::open();
    world.leader("pg2");
    assert_eq!((world.primary(), world.cut()), (None, vec!["pg1".into(), "pg3".into()]));
    assert_eq!(world.view().cut["pg1"], "the leader key names pg2");
    world.says("pg2", "replica", "running");
    world.pass(ms(100));
    world.proves("pg2", 2);
    assert_eq!((world.primary(), world.cut()), (Some("pg2"), vec!["pg1".into(), "pg3".into()]));
}

#[test]
fn only_the_one_everybody_waits_for_is_asked_tightly() {
    let mut world = World::open();
    let paces = |world: &World| ["pg1", "pg2", "pg3"].map(|member| world.pace(member));
    assert_eq!(paces(&world), [Pace::Slow; 3]);
    world.no_leader();
    assert_eq!(paces(&world), [Pace::Fast, Pace::Slow, Pace::Slow], "does the old one still prove primary?");
    world.says("pg1", "demoted", "stopped");
    assert_eq!(paces(&world), [Pace::Slow; 3]);
    world.leader("pg2");
    assert_eq!(paces(&world), [Pace::Slow, Pace::Tight, Pace::Slow]);
    world.proves("pg2", 2);
    assert_eq!(paces(&world), [Pace::Slow; 3]);
}

#[test]
fn an_old_leader_whose_member_key_is_gone_is_still_cut() {
    let mut world = World::open();
    // Its Patroni was killed: leader key and member key share a lease.
    world.keys.remove("members/pg1");
    world.no_leader();
    assert!(!world.view().members.contains_key("pg1") && world.cut().is_empty());
    assert!(world.truth.to_ask().any(|(member, _)| member == "pg1"), "it is asked as long as it may prove primary");
    world.leader("pg2");
    assert_eq!(world.view().cut["pg1"], "the leader key names pg2");
}

#[test]
fn demoted_by_its_own_word_is_cut() {
    for role in ["replica", "demoted", "standby_leader"] {
        let mut world = World::open();
        world.says("pg1", role, "running");
        assert_eq!(world.primary(), None);
        assert_eq!(world.view().cut["pg1"], format!("pg1 says it is {role} (running)"));
        world.silent("pg1");
        assert!(world.view().cut.contains_key("pg1"), "silence does not take it back");
    }
}

#[test]
fn a_primary_that_restarts_in_its_place_is_closed_and_not_cut() {
    let mut world = World::open();
    world.says("pg1", "primary", "starting");
    assert_eq!((world.primary(), world.cut()), (None, vec!["pg2".into(), "pg3".into()]));
    world.pass(ms(1000));
    world.proves("pg1", 1);
    assert_eq!(world.primary(), Some("pg1"));
}

#[test]
fn key_absent_keeps_sessions_and_stops_admission_after_the_debounce() {
    let mut world = World::open();
    world.no_leader();
    assert_eq!(world.primary(), Some("pg1"));
    assert_eq!(world.truth.deadline(world.now), Some(world.now.mono + DEBOUNCE));
    world.pass(DEBOUNCE - ms(1));
    assert_eq!(world.primary(), Some("pg1"));
    world.pass(ms(1));
    assert_eq!((world.primary(), &*world.why()), (None, "no member holds the leader key"));
    assert!(world.cut().is_empty(), "its sessions stay");
    world.proves("pg1", 1);
    assert_eq!(world.primary(), None, "a proof alone does not open");
    world.leader("pg1");
    world.proves("pg1", 1);
    assert_eq!(world.primary(), Some("pg1"));
}

#[test]
fn key_absent_and_the_old_leader_demoted_by_its_own_word_is_cut_at_once() {
    let mut world = World::open();
    world.no_leader();
    world.says("pg1", "replica", "running");
    assert_eq!((world.primary(), world.cut()), (None, vec!["pg1".into()]));
}

#[test]
fn a_key_that_comes_back_within_the_debounce_is_no_news() {
    let mut world = World::open();
    world.no_leader();
    world.pass(ms(100));
    world.leader("pg1");
    assert_eq!(world.primary(), Some("pg1"));
    world.pass(DEBOUNCE);
    assert_eq!(world.primary(), Some("pg1"));
}

#[test]
fn store_away_freezes_the_view() {
    let mut world = World::open();
    world.away();
    let view = world.view();
    assert!(matches!(&view.store, StoreHealth::Unreachable { why, .. } if why == "connection refused"));
    for _ in 0..100 {
        world.pass(ms(1000));
        world.proves("pg1", 1);
    }
    assert_eq!((world.primary(), world.cut()), (Some("pg1"), vec!["pg2".into(), "pg3".into()]));
    assert_eq!(world.view().members.len(), 3);
    world.listed();
    assert!(matches!(world.view().store, StoreHealth::Connected { .. }) && world.primary() == Some("pg1"));
}

#[test]
fn store_away_and_the_leader_silent_closes_after_the_hold_and_cuts_nobody_for_it() {
    let mut world = World::open();
    world.away();
    world.pass(HOLD / 2);
    world.silent("pg1");
    assert_eq!(world.primary(), Some("pg1"));
    world.pass(HOLD / 2);
    assert_eq!(world.primary(), None);
    assert!(!world.view().cut.contains_key("pg1"));
}

#[test]
fn store_away_and_the_leader_says_it_is_demoted_is_cut_by_its_own_word() {
    let mut world = World::open();
    world.away();
    world.says("pg1", "demoted", "running");
    assert_eq!(world.primary(), None);
    assert!(world.view().cut.contains_key("pg1"));
}

#[test]
fn store_away_and_two_prove_primary_admits_nothing_to_the_lower_timeline() {
    let mut world = World::open();
    world.away();
    world.proves("pg2", 2);
    assert_eq!(world.primary(), None);
    assert_eq!(world.why(), "the store is away and pg2 proves primary on a higher timeline than pg1's 1");
    assert!(!world.view().cut.contains_key("pg1"), "never cut because the store is away");
    world.listed();
    assert_eq!(world.primary(), Some("pg1"), "the key decides once it can be read again");
}

#[test]
fn store_away_and_the_other_proves_a_lower_timeline_changes_nothing() {
    let mut world = World::new();
    world.leader("pg1");
    world.proves("pg1", 3);
    world.away();
    world.proves("pg2", 2);
    assert_eq!(world.primary(), Some("pg1"));
}

#[test]
fn two_writable_primaries_and_only_the_one_the_key_names_is_open() {
    let mut world = World::open();
    world.leader("pg2");
    world.proves("pg2", 2);
    world.proves("pg1", 1);
    assert_eq!(world.primary(), Some("pg2"));
    assert!(world.view().cut.contains_key("pg1"));
    assert_eq!(world.pace("pg1"), Pace::Fast, "while two prove primary");
    assert_eq!(world.pace("pg2"), Pace::Slow);
}

#[test]
fn a_lower_timeline_is_refused() {
    let mut world = World::new();
    world.leader("pg1");
    world.proves("pg1", 5);
    world.leader("pg2");
    world.proves("pg2", 4);
    assert_eq!(world.primary(), None);
    assert!(world.why().starts_with("pg2 proves timeline 4, but a leader of this cluster has proved 5"));
    world.proves("pg2", 6);
    assert_eq!(world.primary(), Some("pg2"));
}

#[test]
fn a_timeline_nobody_the_key_named_has_proved_raises_no_floor() {
    let mut world = World::open();
    world.proves("pg2", 9);
    world.pass(HOLD);
    world.proves("pg1", 1);
    assert_eq!(world.primary(), Some("pg1"));
}

#[test]
fn a_new_initialize_id_starts_anew() {
    let mut world = World::new();
    world.leader("pg1");
    world.proves("pg1", 5);
    world.key("initialize", "88");
    world.listed();
    assert_eq!(world.primary(), None, "its proof is from the old system");
    assert_eq!(world.why(), "pg1 runs database system 77, but the cluster's is 88");
    world.answers("pg1", Answer::Primary { timeline: 1, system_id: Some("88".into()), wal: None });
    assert_eq!(world.primary(), Some("pg1"));
}

#[test]
fn the_old_initialize_id_keeps_its_floor() {
    let mut world = World::new();
    world.leader("pg1");
    world.proves("pg1", 5);
    world.key("initialize", "");
    world.listed();
    world.proves("pg1", 4);
    assert_eq!(world.primary(), None, "an empty initialize key forgets nothing");
    world.key("initialize", "88");
    world.listed();
    world.key("initialize", "77");
    world.listed();
    world.proves("pg1", 4);
    assert_eq!(world.primary(), None);
    world.proves("pg1", 5);
    assert_eq!(world.primary(), Some("pg1"));
}

#[test]
fn standby_leader_is_not_a_primary() {
    let mut world = World::new();
    world.key("config", r#"{"standby_cluster":{"host":"10.1.0.1"}}"#);
    world.leader("pg1");
    world.says("pg1", "standby_leader", "running");
    assert_eq!(world.primary(), None);
    assert!(world.why().ends_with("this is a standby cluster, which has no primary"), "{}", world.why());
    assert_eq!(world.pace("pg1"), Pace::Tight);
    world.pass(ms(5000));
    assert_eq!(world.pace("pg1"), Pace::Fast);
    world.pass(ms(55_001));
    assert_eq!(world.pace("pg1"), Pace::Slow, "not asked fast for ever");
}

#[test]
fn pause_mode_does_not_demote() {
    let mut world = World::open();
    world.key("config", r#"{"pause":true}"#);
    world.listed();
    assert_eq!(world.primary(), Some("pg1"));
    world.pass(ms(1000));
    world.proves("pg1", 1);
    assert_eq!((world.primary(), world.cut()), (Some("pg1"), vec!["pg2".into(), "pg3".into()]));
}

#[test]
fn invalid_json_is_an_empty_member() {
    let mut world = World::open();
    world.key("members/pg2", "{");
    world.listed();
    let view = world.view();
    assert!(!view.members["pg2"].is_running() && view.members["pg2"].conn_addr.is_none());
    assert_eq!(world.primary(), Some("pg1"));
    world.key("members/pg1", "garbage");
    world.listed();
    assert_eq!(
        (world.primary(), &*world.why()),
        (None, "the leader key names pg1, which has no api_url in its member key")
    );
}

#[test]
fn a_leader_key_that_names_nobody_we_know_opens_nothing() {
    let mut world = World::open();
    world.leader("pg9");
    assert_eq!((world.primary(), &*world.why()), (None, "the leader key names pg9, which has no member key"));
    assert_eq!(world.cut(), ["pg1", "pg2", "pg3"]);
}

#[test]
fn an_answer_from_the_place_a_member_left_is_dropped() {
    let mut world = World::new();
    world.leader("pg1");
    let asked = world.now.mono;
    let answer = Answer::Primary { timeline: 1, system_id: None, wal: None };
    world.take(Input::Answered { member: "pg1".into(), api_url: "http://old:8008/".into(), asked, answer });
    assert_eq!(world.primary(), None);
}

#[test]
fn one_lost_poll_closes_nothing_and_lasting_silence_does() {
    let mut world = World::open();
    world.pass(ms(1000));
    world.silent("pg1");
    assert_eq!(world.primary(), Some("pg1"));
    assert_eq!(world.truth.deadline(world.now), Some(world.now.mono + HOLD - ms(1000)));
    world.pass(HOLD - ms(1000));
    assert_eq!(world.primary(), None);
}

#[test]
fn a_view_is_published_only_when_something_changed() {
    let mut world = World::open();
    let before = world.view().generation;
    world.pass(ms(1000));
    world.listed();
    world.proves("pg1", 1);
    assert_eq!(world.view().generation, before, "times and the revision are no change");
    world.no_leader();
    assert_eq!(world.view().generation, before + 1);
}

#[test]
fn lag_is_optime_less_what_was_replayed() {
    let mut world = World::new();
    world.key("status", r#"{"optime":1000}"#);
    world.key("members/pg1", r#"{"xlog_location":1000,"state":"running"}"#);
    world.key(
        "members/pg2",
        r#"{"xlog_location":990,"replay_lsn":900,"state":"running","tags":{"noloadbalance":true}}"#,
    );
    world.listed();
    let view = world.view();
    let lag = |member: &str| view.members[member].lag;
    assert_eq!((lag("pg1"), lag("pg2"), lag("pg3")), (Some(0), Some(100), None));
    assert!(view.members["pg2"].tag_is_true("noloadbalance"));
}

#[test]
fn what_members_say_of_their_wal_counts_before_their_keys() {
    let mut world = World::new();
    world.key("leader", "pg1");
    world.key("status", r#"{"optime":1000}"#);
    for name in ["pg1", "pg2"] {
        let json = format!(r#"{{"api_url":"{}","xlog_location":1000,"state":"running"}}"#, url(name));
        world.key(&format!("members/{name}"), &json);
    }
    world.listed();
    assert_eq!(world.view().members["pg2"].lag, Some(0));
    world.answers("pg1", Answer::Primary { timeline: 1, system_id: None, wal: Some(1500) });
    let state = "running".to_owned();
    let replica = Answer::NotPrimary { role: "replica".into(), state, timeline: None, system_id: None, wal: Some(700) };
    world.answers("pg2", replica);
    assert_eq!(world.view().members["pg2"].lag, Some(800));
    world.silent("pg2");
    assert_eq!(world.view().members["pg2"].lag, Some(500), "silent: what its key says");
}

#[test]
fn names_are_asked_for_and_their_addresses_shown() {
    let mut world = World::new();
    world.key("members/pg1", r#"{"conn_url":"postgres://db1:5432/x","proxy_url":"postgres://10.0.0.1:6432/x"}"#);
    world.listed();
    let host = HostPort { host: "db1".into(), port: 5432 };
    assert!(world.truth.to_resolve().contains(&host));
    let address = "10.9.9.9:5432".parse().unwrap();
    world.take(Input::Resolved { host, address });
    let member = world.view().members["pg1"].clone();
    assert_eq!((member.conn_addr, member.proxy_addr), (Some(address), Some("10.0.0.1:6432".parse().unwrap())));
}

#[test]
fn a_bouncer_that_cannot_be_read_is_left_out() {
    let mut world = World::new();
    let good = r#"{"name":"x","address":"10.0.0.7:6432","peer_id":3,"state":"ready","leader":"pg1","timeline":1}"#;
    let bouncers = [("pb1", good), ("pb2", "{"), ("pb3", r#"{"name":"pb3","address":"nowhere","state":"ready"}"#)];
    let bouncers = bouncers.iter().map(|(name, json)| (name.to_string(), json.as_bytes().to_vec())).collect();
    world.take(Input::Snapshot { revision: 5, keys: world.keys.clone(), bouncers });
    let view = world.view();
    assert_eq!(view.bouncers.keys().collect::<Vec<_>>(), ["pb1"]);
    assert_eq!((&*view.bouncers["pb1"].name, view.bouncers["pb1"].peer_id), ("pb1", Some(3)));
}

#[test]
fn a_proof_is_shown_with_when_it_came_and_silence_with_since_when() {
    let mut world = World::open();
    assert!(matches!(world.view().members["pg1"].proof, Proof::Primary { timeline: 1, .. }));
    world.silent("pg2");
    let since = world.now.wall;
    world.pass(ms(1000));
    world.silent("pg2");
    let proof = world.view().members["pg2"].proof.clone();
    assert_eq!(proof, Proof::Silent { why: "connection refused".into(), since });
}

#[test]
fn an_announced_switchover_is_believed_until_it_has_come_or_for_its_time() {
    let mut world = World::open();
    let announced = |world: &World| world.view().switchover.as_ref().map(|said| said.to_string());
    assert_eq!(announced(&world), None);
    world.key("failover", r#"{"leader":"pg1","member":"pg2"}"#);
    world.listed();
    assert_eq!(announced(&world).as_deref(), Some("a switchover from pg1 to pg2"));
    world.leader("pg2");
    assert_eq!(announced(&world), None, "the key has moved");
    world.leader("pg1");
    assert!(announced(&world).is_some());
    world.pass(ANNOUNCED);
    assert_eq!(announced(&world), None, "it does not come");
    world.key("failover", "{}");
    world.listed();
    world.key("failover", r#"{"leader":"pg1","member":"pg2"}"#);
    world.listed();
    assert!(announced(&world).is_some(), "announced anew");
}

#[test]
fn a_scheduled_switchover_is_announced_when_it_is_due() {
    let mut world = World::open();
    world.now.wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_654_790);
    world.key("failover", r#"{"leader":"pg1","member":"pg2","scheduled_at":"2026-11-26T02:00:00+01:00"}"#);
    world.listed();
    assert_eq!(world.view().switchover, None);
    world.proves("pg1", 1);
    let deadline = world.truth.deadline(world.now).unwrap();
    assert!(deadline <= world.now.mono + ms(10_000), "it is looked at again in time");
    world.pass(ms(10_000));
    assert!(world.view().switchover.is_some());
}

#[test]
fn a_notice_of_pgsplice_is_no_bouncer_and_an_announcement() {
    let mut world = World::open();
    let notice = |world: &mut World, json: &str| {
        world.revision += 1;
        let (revision, keys) = (world.revision, world.keys.clone());
        let bouncers = [("@switchover".to_owned(), json.as_bytes().to_vec())].into();
        world.take(Input::Snapshot { revision, keys, bouncers });
    };
    notice(&mut world, r#"{"id":"a","leader":"pg1","candidate":"pg3"}"#);
    assert_eq!(world.view().switchover.as_ref().unwrap().to.as_deref(), Some("pg3"));
    assert!(world.view().bouncers.is_empty());
    assert_eq!(world.primary(), Some("pg1"), "the primary stays known while it is announced");
    notice(&mut world, "{");
    assert_eq!(world.view().switchover, None);
}

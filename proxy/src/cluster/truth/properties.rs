//! What holds after any sequence of events, checked against a second, plainer account of what happened.

use proptest::prelude::*;

use super::tests::{DEBOUNCE, HOLD, World};
use super::*;

const NAMES: [&str; 3] = ["pg1", "pg2", "pg3"];

#[derive(Clone, Debug)]
enum Step {
    Leader(usize),
    NoLeader,
    Away,
    Back,
    Proves(usize, u32),
    Denies(usize, &'static str),
    Silent(usize),
    Pass(u64),
    MemberGone(usize),
    Garbage(usize, Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..NAMES.len();
    prop_oneof![
        3 => who.clone().prop_map(Step::Leader),
        1 => Just(Step::NoLeader),
        1 => Just(Step::Away),
        1 => Just(Step::Back),
        5 => (who.clone(), 1u32..4).prop_map(|(who, timeline)| Step::Proves(who, timeline)),
        2 => (who.clone(), prop_oneof![Just("replica"), Just("demoted"), Just("primary")])
            .prop_map(|(who, role)| Step::Denies(who, role)),
        1 => who.clone().prop_map(Step::Silent),
        3 => prop_oneof![0u64..600, 5_000u64..9_000].prop_map(Step::Pass),
        1 => who.clone().prop_map(Step::MemberGone),
        1 => (who, proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(who, bytes)| Step::Garbage(who, bytes)),
    ]
}

/// What the plainer account remembers.
#[derive(Default)]
struct Ledger {
    /// As the store was last heard.
    leader: Option<&'static str>,
    absent_since: Option<Instant>,
    /// The last word of each, silence left out: timeline and when, if it was a proof.
    words: BTreeMap<&'static str, Option<(u32, Instant)>>,
    floor: u32,
    away: bool,
    /// Who said last that they are in recovery or demoted.
    demoted: BTreeSet<&'static str>,
    /// Who was opened without the key, while the store was away.
    acting: Option<&'static str>,
    once_open: BTreeSet<String>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn only_a_proved_member_the_key_names_or_its_successor_is_ever_open(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        world.listed();
        let mut ledger = Ledger { absent_since: Some(world.now.mono), ..Ledger::default() };
        let mut last_generation = world.truth.view().generation;
        for step in steps {
            let was_open = world.primary().map(str::to_string);
            let floor_before = ledger.floor;
            take(&mut world, &mut ledger, step.clone());
            let view = world.truth.view();
            // A step is two inputs: a tick and itself.
            prop_assert!((last_generation..=last_generation + 2).contains(&view.generation));
            last_generation = view.generation;
            prop_assert_eq!(view.primary.is_none(), !view.closed_because.is_empty());
            if let Some(primary) = &view.primary {
                ledger.once_open.insert(primary.member.clone());
                let (timeline, asked) = ledger.words[&*primary.member].expect("open without a proof");
                prop_assert_eq!(timeline, primary.timeline);
                prop_assert!(world.now.mono - asked < HOLD, "open on an old proof after {:?}", step);
                prop_assert!(timeline >= ledger.floor, "open below the floor");
                prop_assert!(!view.cut.contains_key(&primary.member), "open and cut");
                match ledger.acting.or(ledger.leader) {
                    Some(leader) if leader != primary.member => {
                        prop_assert!(ledger.away && ledger.demoted.contains(leader), "another than the key's");
                        prop_assert!(timeline > floor_before && floor_before > 0, "a successor was not promoted after");
                        ledger.acting = NAMES.into_iter().find(|name| *name == primary.member);
                        ledger.floor = timeline;
                    }
                    Some(_) => {}
                    None => {
                        prop_assert_eq!(was_open.as_ref(), Some(&primary.member), "opened without a key");
                        prop_assert!(world.now.mono - ledger.absent_since.unwrap() < DEBOUNCE);
                    }
                }
                let above = ledger.words.iter().any(|(name, word)| {
                    *name != primary.member
                        && word.is_some_and(|(theirs, asked)| theirs > timeline && world.now.mono - asked < HOLD)
                });
                prop_assert!(!(ledger.away && above), "store away and a higher timeline elsewhere");
            }
            for name in view.cut.keys() {
                let denied = ledger.words.get(&**name) == Some(&None);
                let another = ledger.acting.or(ledger.leader).is_some_and(|leader| leader != name);
                prop_assert!(denied || another, "{name} cut for nothing after {step:?}");
            }
        }
    }
}

fn take(world: &mut World, ledger: &mut Ledger, step: Step) {
    // Instants must differ for "before" and "after" to mean something.
    world.pass(Duration::from_nanos(1));
    match step {
        Step::Leader(who) => {
            world.key("leader", NAMES[who]);
            hear(world, ledger);
        }
        Step::NoLeader => {
            world.keys.remove("leader");
            hear(world, ledger);
        }
        Step::MemberGone(who) => {
            world.keys.remove(&format!("members/{}", NAMES[who]));
            hear(world, ledger);
        }
        Step::Garbage(who, bytes) => {
            world.keys.insert(format!("members/{}", NAMES[who]), bytes);
            hear(world, ledger);
        }
        Step::Away => {
            world.away();
            ledger.away = true;
        }
        Step::Back => hear(world, ledger),
        Step::Proves(who, timeline) => {
            let asked = world.now.mono;
            if world.truth.to_ask().any(|(name, _)| name == NAMES[who]) {
                ledger.words.insert(NAMES[who], Some((timeline, asked)));
                ledger.demoted.remove(NAMES[who]);
                if ledger.acting.or(ledger.leader) == Some(NAMES[who]) {
                    ledger.floor = ledger.floor.max(timeline);
                }
            }
            world.answers(NAMES[who], Answer::Primary { timeline, system_id: Some("77".into()), wal: None });
        }
        Step::Denies(who, role) => {
            if world.truth.to_ask().any(|(name, _)| name == NAMES[who]) {
                ledger.words.insert(NAMES[who], None);
                if role == "primary" {
                    ledger.demoted.remove(NAMES[who]);
                } else {
                    ledger.demoted.insert(NAMES[who]);
                }
            }
            let answer = Answer::NotPrimary {
                role: role.into(),
                state: "stopping".into(),
                timeline: None,
                system_id: None,
                wal: None,
            };
            world.answers(NAMES[who], answer);
        }
        Step::Silent(who) => world.answers(NAMES[who], Answer::Silent { why: "gone".into() }),
        Step::Pass(ms) => world.pass(Duration::from_millis(ms)),
    }
}

fn hear(world: &mut World, ledger: &mut Ledger) {
    world.listed();
    ledger.away = false;
    // Who has no readable member key is forgotten, unless it was open once and is merely gone.
    ledger.words.retain(|name, _| match world.keys.get(&format!("members/{name}")) {
        Some(value) => value.starts_with(b"{\"conn_url"),
        None => ledger.once_open.contains(*name),
    });
    let leader = world.keys.get("leader").and_then(|name| NAMES.into_iter().find(|known| known.as_bytes() == name));
    if leader.is_some() {
        ledger.absent_since = None;
    } else if ledger.absent_since.is_none() {
        ledger.absent_since = Some(world.now.mono);
    }
    ledger.leader = leader;
    ledger.acting = None;
    ledger.demoted.retain(|name| ledger.words.contains_key(name));
}

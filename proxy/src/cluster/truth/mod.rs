//! Who is primary: a state machine fed with what the store says, what the members prove, and the time.
//!
//! It does no I/O and reads no clock. [`Truth::take`] takes one input and returns a new view if something changed;
//! `docs/cluster.md` states the rules in prose.

mod changes;
mod election;
mod floor;
mod pace;
mod view;
mod wal_clock;
mod word;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::announce::{self, Notice};
use super::patroni::{Keys, PatroniKeys};
use super::proof::Answer;
use super::resolve::HostPort;
use super::{Bouncer, ClusterView, Floor, Primary, StoreHealth, Switchover};
pub use pace::Pace;
use wal_clock::WalClock;
use word::{Proved, Word};

/// By system identifier. An unknown one is "".
type Floors = BTreeMap<String, Floor>;

/// What is held true about one cluster.
#[derive(Debug)]
pub struct Truth {
    rules: Rules,
    store: StoreHealth,
    keys: PatroniKeys,
    bouncers: BTreeMap<String, Bouncer>,
    /// That of `pgsplice switchover`.
    notice: Option<Notice>,
    /// What is announced, and since when.
    announced: Option<(Switchover, Instant)>,
    named: Named,
    words: BTreeMap<String, Word>,
    /// What the leader had written, and when that was heard.
    wal_clock: WalClock,
    addresses: BTreeMap<HostPort, SocketAddr>,
    floors: Floors,
    begun: Instant,
    /// The last `initialize` that was not empty, or without Patroni what most members say.
    system_id: String,
    open: Option<Primary>,
    /// Everyone ever opened in this system identifier, and where it was asked last. A member's key goes with the
    /// leader key when its Patroni dies, but its sessions must still be cut, and it may still prove primary.
    once_open: BTreeMap<String, Option<String>>,
    /// When the key, the store's health or the open primary changed last.
    changed: Instant,
    published: Arc<ClusterView>,
}

/// The constants the rules need.
#[derive(Clone, Debug)]
pub struct Rules {
    pub cluster: String,
    /// There is no Patroni: keys list the members, and what those say is all there is.
    pub members_alone: bool,
    pub leader_absent_debounce: Duration,
    /// How long a proof stands while nothing newer was heard from the member.
    pub proof_hold: Duration,
    /// How long an announced switchover is believed that does not come.
    pub switchover_hold: Duration,
}

/// One moment on both clocks: intervals are measured on the first, views show the second.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub mono: Instant,
    pub wall: SystemTime,
}

/// Something happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The store is connected and this is everything in it.
    Snapshot {
        revision: i64,
        keys: Keys,
        /// By bouncer name.
        bouncers: Keys,
    },
    /// The store is away.
    Unreachable {
        why: String,
    },
    /// A member answered, or did not. `asked` is when the question was put, `api_url` to whom.
    Answered {
        member: String,
        api_url: String,
        asked: Instant,
        answer: Answer,
    },
    Resolved {
        host: HostPort,
        address: SocketAddr,
    },
    /// Time went by.
    Tick,
}

/// Whom the leader key names, or without one the members.
#[derive(Clone, Debug, PartialEq)]
enum Named {
    /// No snapshot yet.
    Unknown,
    Absent {
        since: Instant,
    },
    Member {
        name: String,
        since: Instant,
        by: By,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Key,
    /// [`election`].
    Members,
}

// === impl Truth ===

impl Truth {
    pub fn new(rules: Rules, now: Now) -> Self {
        let mut truth = Self {
            store: StoreHealth::Starting,
            keys: PatroniKeys::default(),
            bouncers: BTreeMap::new(),
            notice: None,
            announced: None,
            named: Named::Unknown,
            words: BTreeMap::new(),
            wal_clock: WalClock::default(),
            addresses: BTreeMap::new(),
            floors: Floors::default(),
            begun: now.mono,
            system_id: String::new(),
            open: None,
            once_open: BTreeMap::new(),
            changed: now.mono,
            published: Arc::default(),
            rules,
        };
        truth.decide(now);
        truth
    }

    /// The last view.
    pub fn view(&self) -> Arc<ClusterView> {
        self.published.clone()
    }

    /// Takes one input. Returns the view if it changed in more than its times and the store's revision.
    pub fn take(&mut self, input: Input, now: Now) -> Option<Arc<ClusterView>> {
        match input {
            Input::Snapshot { revision, keys, bouncers } => self.snapshot(revision, &keys, &bouncers, now),
            Input::Unreachable { why } => self.unreachable(why, now),
            Input::Answered { member, api_url, asked, answer } => self.answered(&member, &api_url, asked, answer, now),
            Input::Resolved { host, address } => {
                self.addresses.insert(host, address);
            }
            Input::Tick => {}
        }
        self.decide(now)
    }

    /// Whom to ask for proof: name and `api_url`.
    pub fn to_ask(&self) -> impl Iterator<Item = (&str, &str)> {
        self.words.iter().filter(|(_, word)| !word.api_url.is_empty()).map(|(name, word)| (&**name, &*word.api_url))
    }

    /// Hosts whose addresses the view needs.
    pub fn to_resolve(&self) -> BTreeSet<HostPort> {
        let urls = self.keys.members.values().flat_map(|member| [&member.conn_url, &member.proxy_url]);
        urls.flatten().filter_map(|url| HostPort::of_url(url)).collect()
    }

    /// When time alone may change the view next: send a [`Input::Tick`] then.
    pub fn deadline(&self, now: Now) -> Option<Instant> {
        let debounce = match self.named {
            Named::Absent { since } if self.open.is_some() => Some(since + self.rules.leader_absent_debounce),
            _ => None,
        };
        let lapses = self.words.values().filter_map(|word| Some(word.proved.as_ref()?.alive + self.rules.proof_hold));
        // Without Patroni those that are silent from the beginning are waited for, and a member's role lapses like a proof.
        let heard = self.words.values().filter(|_| self.rules.members_alone).filter_map(|word| word.heard);
        let heard = heard.chain(self.rules.members_alone.then_some(self.begun));
        let lapses = lapses.chain(heard.map(|at| at + self.rules.proof_hold));
        let announced = self.announced.as_ref().map(|(_, since)| *since + self.rules.switchover_hold);
        let scheduled = self.keys.failover.as_ref().and_then(announce::due);
        let scheduled = scheduled.and_then(|at| now.mono.checked_add(at.duration_since(now.wall).ok()?));
        lapses.chain(debounce).chain(announced).chain(scheduled).filter(|at| *at > now.mono).min()
    }

    fn snapshot(&mut self, revision: i64, keys: &Keys, bouncers: &Keys, now: Now) {
        self.store = StoreHealth::Connected { revision };
        self.keys = PatroniKeys::parse(keys);
        self.notice = bouncers.get(announce::ENTRY).and_then(|value| notice(value));
        let bouncers = bouncers.iter().filter(|(name, _)| *name != announce::ENTRY);
        self.bouncers = bouncers.filter_map(|(name, value)| Some((name.clone(), bouncer(name, value)?))).collect();
        self.name_leader(now);
        self.note_system();
        let mut asked = self.once_open.clone();
        asked.extend(self.keys.members.iter().map(|(name, member)| (name.clone(), member.api_url.clone())));
        self.words.retain(|name, _| asked.contains_key(name));
        for (name, api_url) in asked {
            let api_url = api_url.unwrap_or_default();
            let word = self.words.entry(name).or_default();
            if word.api_url != api_url {
                // Another place answers from now on: what the old one said is not its word.
                *word = Word { api_url, ..Word::default() };
            }
        }
        let needed = self.to_resolve();
        self.addresses.retain(|host, _| needed.contains(host));
    }

    /// Another system identifier is another cluster.
    fn note_system(&mut self) {
        if let Some(id) = self.keys.initialize.as_ref().filter(|id| **id != self.system_id) {
            if !self.system_id.is_empty() {
                self.once_open.clear();
                self.wal_clock = WalClock::default();
            }
            self.system_id = id.clone();
        }
    }

    fn name_leader(&mut self, now: Now) {
        let since = now.mono;
        match (&self.keys.leader, &mut self.named) {
            (None, Named::Absent { .. }) => {}
            (None, Named::Member { .. }) if self.rules.members_alone => {}
            (Some(leader), Named::Member { name, by, .. }) if leader == name => *by = By::Key,
            (None, _) => self.named = Named::Absent { since },
            (Some(leader), _) => self.named = Named::Member { name: leader.clone(), since, by: By::Key },
        }
    }

    fn unreachable(&mut self, why: String, now: Now) {
        let since = match self.store {
            StoreHealth::Unreachable { since, .. } => since,
            _ => now.wall,
        };
        self.store = StoreHealth::Unreachable { since, why };
    }

    fn answered(&mut self, member: &str, api_url: &str, asked: Instant, answer: Answer, now: Now) {
        let Some(word) = self.words.get_mut(member) else { return };
        if word.api_url != api_url || word.asked.is_some_and(|newest| asked < newest) {
            return;
        }
        word.asked = Some(asked);
        word.hear(answer, asked, now, self.rules.proof_hold);
        if let Named::Member { name, .. } = &self.named
            && name == member
            && let Some(written) = word.wal
        {
            self.wal_clock.heard(written, asked);
        }
        self.raise_floor(member, now);
    }

    /// A proof that is neither too old nor from another database system.
    fn standing_proof(&self, member: &str, now: Now) -> Option<&Proved> {
        let proved = self.words.get(member)?.proved.as_ref()?;
        let fresh = now.mono.saturating_duration_since(proved.alive) < self.rules.proof_hold;
        (fresh && self.foreign_system(proved).is_none()).then_some(proved)
    }

    /// The system identifier a proof came with, if it is not the cluster's.
    fn foreign_system<'a>(&self, proved: &'a Proved) -> Option<&'a str> {
        let (ours, theirs) = (self.keys.initialize.as_deref()?, proved.system_id.as_deref()?);
        (ours != theirs).then_some(theirs)
    }

    /// A move away from whoever leads that is announced, and not for too long.
    fn announced(&mut self, now: Now) -> Option<Switchover> {
        let of_patroni = |failover| Switchover::of_patroni(failover, self.keys.leader.as_deref(), now.wall);
        let said = self.notice.as_ref().map(Switchover::from);
        let said = said.or_else(|| self.keys.failover.as_ref().and_then(of_patroni));
        let since = match &self.announced {
            Some((before, since)) if Some(before) == said.as_ref() => *since,
            _ => now.mono,
        };
        self.announced = said.map(|said| (said, since));
        let (said, since) = self.announced.as_ref()?;
        let is_to_come = self.keys.leader.as_ref().is_none_or(|leader| *leader == said.from);
        let is_believed = now.mono.saturating_duration_since(*since) < self.rules.switchover_hold;
        (is_to_come && is_believed).then(|| said.clone())
    }

    fn decide(&mut self, now: Now) -> Option<Arc<ClusterView>> {
        self.elect(now);
        let (open, closed_because) = match self.opening(now) {
            Ok((member, timeline)) => {
                let since = match &self.open {
                    Some(open) if open.member == member && open.timeline == timeline => open.since,
                    _ => now.wall,
                };
                (Some(Primary { member, timeline, since }), String::new())
            }
            Err(why) => (None, why),
        };
        self.open = open;
        if let Some(open) = &self.open {
            let api_url = self.words.get(&open.member).map(|word| word.api_url.clone());
            self.once_open.insert(open.member.clone(), api_url);
        }
        let switchover = self.announced(now);
        self.publish(closed_because, switchover, now)
    }

    /// The rule of rules: the member the primary pool is open to, with its timeline, or why there is none.
    fn opening(&self, now: Now) -> Result<(String, u32), String> {
        let (name, named_since) = match &self.named {
            Named::Unknown => return Err(self.nothing_known()),
            Named::Absent { since } => return self.leaderless(*since, now),
            Named::Member { name, since, .. } => (name, *since),
        };
        let proved = self.standing_proof(name, now).ok_or_else(|| self.unproved(name))?;
        let already = self.open.as_ref().is_some_and(|open| open.member == *name);
        if !already && proved.asked < named_since {
            return Err(format!("{}, which has not proved to be primary since", self.names(name)));
        }
        self.not_below_another(name, proved, now)?;
        Ok((name.clone(), proved.timeline))
    }

    /// The leader key is absent: whoever was open stays open for the debounce, as long as it proves primary.
    fn leaderless(&self, since: Instant, now: Now) -> Result<(String, u32), String> {
        let absent = || self.nobody(now);
        let is_over = now.mono.saturating_duration_since(since) >= self.rules.leader_absent_debounce;
        let is_superseded = || self.words.keys().any(|member| self.is_awaited(member, now));
        if is_over || is_superseded() {
            return Err(absent());
        }
        let name = &self.open.as_ref().ok_or_else(absent)?.member;
        let proved = self.standing_proof(name, now).ok_or_else(absent)?;
        self.not_below_another(name, proved, now)?;
        Ok((name.clone(), proved.timeline))
    }
}

fn notice(value: &[u8]) -> Option<Notice> {
    let read = serde_json::from_slice(value);
    read.inspect_err(|error| tracing::warn!(%error, "an announced switchover cannot be read and is left out")).ok()
}

/// What cannot be read is not a bouncer.
fn bouncer(name: &str, value: &[u8]) -> Option<Bouncer> {
    match serde_json::from_slice::<Bouncer>(value) {
        Ok(bouncer) => Some(Bouncer { name: name.into(), ..bouncer }),
        Err(error) => {
            tracing::warn!(bouncer = name, %error, "a registered bouncer cannot be read and is left out");
            None
        }
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

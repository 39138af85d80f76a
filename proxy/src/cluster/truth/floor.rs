//! No way back: the highest timeline that a leader has proved, below which nobody is opened.

use super::{By, Floors, Named, Now, Proved, Truth};
use crate::cluster::{Floor, StoreHealth};

impl Truth {
    /// A truth that follows another one about the same cluster, whose rules or members were changed.
    #[must_use]
    pub fn after(mut self, floor: Option<Floor>) -> Self {
        // Without an identifier it may be another cluster's.
        self.floors = floor.into_iter().map(|floor| (floor.system_id.clone(), floor)).collect::<Floors>();
        self.floors.remove("");
        self
    }

    pub(super) fn floor(&self) -> Floor {
        self.floors.get(&self.system_id).cloned().unwrap_or_default()
    }

    /// A leader has proved a timeline: no lower one is opened from now on.
    pub(super) fn raise_floor(&mut self, member: &str, now: Now) {
        let Named::Member { name, since, by } = &self.named else { return };
        if name != member {
            return;
        }
        if let Some(proved) = self.standing_proof(member, now).filter(|proved| proved.asked >= *since) {
            let (timeline, before) = (proved.timeline, self.floor());
            let seen_promoted = match timeline > before.timeline {
                true => before.timeline > 0 && *by == By::Members,
                false => before.seen_promoted,
            };
            if timeline >= before.timeline {
                let system_id = self.system_id.clone();
                let floor = Floor { system_id: system_id.clone(), timeline, by: member.into(), seen_promoted };
                self.floors.insert(system_id, floor);
            }
        }
    }

    pub(super) fn not_below_another(&self, name: &str, proved: &Proved, now: Now) -> Result<(), String> {
        let timeline = proved.timeline;
        let floor = self.floor().timeline;
        if timeline < floor {
            return Err(format!(
                "{name} proves timeline {timeline}, but a leader of this cluster has proved {floor} before: \
                 if it was restored on purpose, restart pgsplice"
            ));
        }
        if !matches!(self.store, StoreHealth::Unreachable { .. }) {
            return Ok(());
        }
        let above = |other: &&String| {
            *other != name && self.standing_proof(other, now).is_some_and(|theirs| theirs.timeline > timeline)
        };
        match self.words.keys().find(above) {
            Some(other) => Err(format!(
                "the store is away and {other} proves primary on a higher timeline than {name}'s {timeline}"
            )),
            None => Ok(()),
        }
    }
}

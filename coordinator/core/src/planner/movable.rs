//! What could be moved away from a member, whatever its load: asked before and while it is drained.

use std::collections::BTreeMap;

use common::WorkerId;

use super::roster::narrow;
use super::{CandidateRefusal, Needs, Planner, Slot};

/// Appliances that one member alone can take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastAble {
    /// What they need.
    pub needs: Needs,
    /// How many there are.
    pub appliances: u64,
}

impl Planner {
    /// Appliances that no member but this one can take, whether they are with it or not. Members that drain, or are cordoned, do not
    /// count; those without a stream do, since they may be back.
    #[must_use]
    pub fn only_for(&self, worker: &WorkerId) -> Vec<LastAble> {
        let Some(own) = self.roster.find(worker).and_then(|handle| self.roster.rank(handle)) else { return Vec::new() };
        let mut found: BTreeMap<&Needs, u64> = BTreeMap::new();
        for (_, group) in self.book.groups().filter(|(_, group)| group.index.len() > 0) {
            if self.roster.is_able(own, &group.needs) && !self.others_stay(own, &group.needs) {
                *found.entry(&group.needs).or_default() += group.index.len() as u64;
            }
        }
        found.into_iter().map(|(needs, appliances)| LastAble { needs: needs.clone(), appliances }).collect()
    }

    /// Appliances counted at a worker that no other member can take, or none to which they are pinned alone. Members without a stream
    /// count as those that can: right after a leader began they are all on their way.
    #[must_use]
    pub fn immovable(&self, worker: &WorkerId) -> u64 {
        let Some(handle) = self.roster.find(worker) else { return 0 };
        let Some(own) = self.roster.rank(handle) else { return 0 };
        let mut found = 0;
        let mut movable = Vec::new();
        for (at, group) in self.book.groups() {
            let Some(held) = group.held.get(&handle) else { continue };
            if self.others_stay(own, &group.needs) {
                movable.push(at);
            } else {
                found += held.count();
            }
        }
        let stays = |slot: &&Slot| {
            let held = self.book.entry(**slot).filter(|entry| entry.owner == handle && movable.contains(&entry.group));
            held.is_some_and(|entry| self.pin_holds(**slot, own, &self.book.group(entry.group).needs))
        };
        found + self.pins.keys().filter(stays).count() as u64
    }

    /// Whether some other member than its owner can take an appliance now.
    #[must_use]
    pub fn can_move(&self, slot: Slot) -> bool {
        let Some(entry) = self.book.entry(slot) else { return false };
        let own = self.roster.rank(entry.owner).unwrap_or(u32::MAX);
        let needs = &self.book.group(entry.group).needs;
        !self.pin_holds(slot, own, needs) && self.has_other_taker(own, needs)
    }

    /// Whether a pin keeps an appliance with its owner: it is pinned to that alone, or to another one that cannot take it.
    fn pin_holds(&self, slot: Slot, own: u32, needs: &Needs) -> bool {
        let pin = self.pins.get(&slot).filter(|pin| pin.strict && !self.is_deleting(slot));
        pin.is_some_and(|pin| {
            let rank = self.roster.find(&pin.worker).and_then(|handle| self.roster.rank(handle));
            rank.is_none_or(|rank| {
                let member = self.roster.member(rank);
                rank == own || member.cordoned || member.gives_up() || !self.roster.is_able(rank, needs)
            })
        })
    }

    /// What a member lacks that an appliance needs, whatever its state; `None` when it lacks nothing, or is no member.
    #[must_use]
    pub fn lack(&self, slot: Slot, worker: &WorkerId) -> Option<CandidateRefusal> {
        let entry = self.book.entry(slot)?;
        let rank = self.roster.rank(self.roster.find(worker)?)?;
        self.roster.lack(rank, &self.book.group(entry.group).needs)
    }

    fn others_stay(&self, own: u32, needs: &Needs) -> bool {
        let stays = |rank: u32| !self.roster.member(rank).gives_up() && !self.roster.member(rank).cordoned;
        self.ranks().any(|rank| rank != own && stays(rank) && self.roster.is_able(rank, needs))
    }

    fn has_other_taker(&self, own: u32, needs: &Needs) -> bool {
        self.ranks().any(|rank| rank != own && !self.roster.member(rank).cordoned && self.roster.can_take(rank, needs))
    }

    fn ranks(&self) -> std::ops::Range<u32> {
        0..narrow(self.roster.members.len())
    }
}

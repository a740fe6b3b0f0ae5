//! Strategy `ring`: the owner python-tooz names, always.
//!
//! A change of the ring says which arcs changed hands. They stay *unsettled* until every key in them is with the owner
//! the ring names; outside of them keys are where they belong, but for the *strays* noted when they were set. So a plan
//! reads the unsettled arcs, never all the keys.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use common::ring::{self, RingArc};

use super::book::{Book, Group, holder, pickable};
use super::plan::PlanDraft;
use super::roster::{MemberRoster, NOBODY};
use super::{Reason, Slot, Unplaced};

/// Which keys may be elsewhere than the ring says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unsettled {
    /// Ascending, without overlap.
    arcs: Vec<RangeInclusive<u64>>,
    strays: BTreeSet<u32>,
}

impl Unsettled {
    /// Any key may be elsewhere.
    pub(super) fn everything() -> Self {
        Self { arcs: vec![0..=u64::MAX], strays: BTreeSet::new() }
    }

    /// Adds the arcs of a change of the ring.
    pub(super) fn add(&mut self, changed: &[RingArc]) {
        let lower_half = |arc: &RingArc| {
            let start = ring::top(*arc.range.start());
            let end = arc.range.end().checked_add(1).map_or(Some(u64::MAX), |end| ring::top(end).checked_sub(1))?;
            (start <= end).then_some(start..=end)
        };
        self.arcs.extend(changed.iter().filter_map(lower_half));
        self.arcs.sort_unstable_by_key(|arc| *arc.start());
        let mut merged: Vec<RangeInclusive<u64>> = Vec::with_capacity(self.arcs.len());
        for arc in self.arcs.drain(..) {
            push_merged(&mut merged, arc);
        }
        self.arcs = merged;
    }

    /// Notes that an appliance was inserted or its owner set.
    pub(super) fn note(&mut self, roster: &MemberRoster, slot: Slot, position: u64, owner: u32) {
        // Without a ring nothing is misplaced; its first members unsettle the whole circle.
        let belongs = roster.ring_owner(position);
        if owner == NOBODY || belongs.is_none() || belongs == roster.rank(owner) || covers(&self.arcs, position) {
            self.strays.remove(&slot.0);
        } else {
            self.strays.insert(slot.0);
        }
    }

    pub(super) fn forget(&mut self, slot: Slot) {
        self.strays.remove(&slot.0);
    }
}

fn covers(arcs: &[RangeInclusive<u64>], position: u64) -> bool {
    let after = arcs.partition_point(|arc| *arc.start() <= position);
    after > 0 && *arcs[after - 1].end() >= position
}

fn push_merged(arcs: &mut Vec<RangeInclusive<u64>>, arc: RangeInclusive<u64>) {
    match arcs.last_mut() {
        Some(last) if last.end().checked_add(1).is_none_or(|next| next >= *arc.start()) => {
            *last = *last.start()..=*last.end().max(arc.end());
        }
        _ => arcs.push(arc),
    }
}

/// Plans every key that is not with the owner the ring names, and takes out of `unsettled` what is settled.
pub(super) fn plan(roster: &MemberRoster, book: &Book, unsettled: &mut Unsettled) -> PlanDraft {
    let mut pass = RingPass { roster, book, out: PlanDraft::default() };
    let groups: Vec<&Group> = book.groups().map(|(_, group)| group).collect();
    for group in &groups {
        // Without a ring, appliances of members that are gone are in no arc either.
        for (&from, held) in &group.held {
            if from == NOBODY || (roster.ring.is_empty() && roster.rank(from).is_none()) {
                for &(position, slot) in &held.movable {
                    pass.place(slot, from, roster.ring_owner(position), group);
                }
            }
        }
    }
    unsettled.strays.retain(|&slot| {
        let Some(entry) = book.entry(Slot(slot)).filter(|e| e.owner != NOBODY) else { return false };
        let Some(belongs) = roster.ring_owner(entry.position) else { return true };
        if roster.rank(entry.owner) == Some(belongs) {
            return false;
        }
        if covers(&unsettled.arcs, entry.position) {
            return false;
        }
        if entry.movable {
            pass.place(slot, entry.owner, Some(belongs), book.group(entry.group));
        }
        true
    });
    if !roster.ring.is_empty() {
        let keys: usize = groups.iter().map(|group| group.index.len()).sum();
        let part: f64 = unsettled.arcs.iter().map(|arc| (arc.end() - arc.start()) as f64 / 2f64.powi(64)).sum();
        pass.out.expect(part * keys as f64);
        let mut open = Vec::new();
        for arc in std::mem::take(&mut unsettled.arcs) {
            pass.settle_arc(arc, &groups, &mut open);
        }
        unsettled.arcs = open;
    }
    pass.out
}

struct RingPass<'a> {
    roster: &'a MemberRoster,
    book: &'a Book,
    out: PlanDraft,
}

impl RingPass<'_> {
    /// Plans the keys of one arc, piece by piece as the ring owns it, and keeps the pieces that are not settled yet.
    fn settle_arc(&mut self, arc: RangeInclusive<u64>, groups: &[&Group], open: &mut Vec<RangeInclusive<u64>>) {
        let points = self.roster.ring.points();
        let (mut start, end) = arc.into_inner();
        let mut at = self.roster.successor(start);
        loop {
            let point = points.get(at).or(points.first()).expect("the ring is not empty");
            // The successor lies after `start`, so there is a position before it.
            let stop = points.get(at).map_or(end, |p| end.min(ring::top(p.position).saturating_sub(1)));
            let belongs = self.roster.ring_rank(point.member);
            let mut settled = true;
            for group in groups {
                settled &= self.settle_piece(start..=stop, belongs, group);
            }
            if !settled {
                push_merged(open, start..=stop);
            }
            if stop >= end {
                return;
            }
            start = stop + 1;
            at = self.roster.successor(start);
        }
    }

    /// Whether every key of the piece is where it belongs.
    fn settle_piece(&mut self, range: RangeInclusive<u64>, belongs: u32, group: &Group) -> bool {
        let wanted = self.roster.handle(belongs);
        let able = self.roster.can_take(belongs, &group.needs);
        let mut settled = true;
        group.index.scan(range, |key| {
            if holder(key) != wanted && holder(key) != NOBODY {
                settled = false;
                if let Some(from) = pickable(key) {
                    self.place_able(key.slot, from, belongs, able, group);
                }
            }
            true
        });
        settled
    }

    fn place(&mut self, slot: u32, from: u32, belongs: Option<u32>, group: &Group) {
        match belongs {
            None => self.out.unplaced.push((Slot(slot), Unplaced::NoMembers)),
            Some(belongs) => {
                self.place_able(slot, from, belongs, self.roster.can_take(belongs, &group.needs), group);
            }
        }
    }

    fn place_able(&mut self, slot: u32, from: u32, belongs: u32, able: bool, group: &Group) {
        let owner = self.roster.rank(from);
        let target = &self.roster.member(belongs).id;
        if !able || self.book.is_excluded(slot, target) {
            // What somebody else still holds is better kept than dropped.
            if owner.is_none() {
                self.out.unplaced.push((Slot(slot), Unplaced::RingOwnerCannot(target.clone())));
            }
            return;
        }
        let reason = match owner {
            None if from == NOBODY && self.is_former(slot, belongs) => Reason::Returned,
            None => Reason::Unowned,
            // It keeps what it has until its stream is back.
            Some(rank) if !self.roster.member(rank).connected => return,
            Some(rank) if self.roster.member(rank).gives_up() => Reason::Draining,
            Some(rank) if !self.roster.is_able(rank, &group.needs) => Reason::Ineligible,
            // It is about to be gone.
            Some(_) if group.deleting => return,
            Some(_) => Reason::RingOwner,
        };
        self.out.push(self.roster, slot, from, belongs, reason);
    }

    fn is_former(&self, slot: u32, rank: u32) -> bool {
        self.book.entry(Slot(slot)).is_some_and(|entry| self.roster.rank(entry.former) == Some(rank))
    }
}

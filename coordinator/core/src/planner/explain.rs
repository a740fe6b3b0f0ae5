//! Why an appliance is where it is: every member in the order of ring preference, and what it is to the appliance in the
//! plan that would be made now.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use common::WorkerId;
use common::ring;

use super::book::{Book, BookEntry, Group};
use super::classes::{Band, Class};
use super::pins::{SlotPins, by_class, held_back};
use super::roster::{MemberRoster, narrow};
use super::{CandidateRefusal, CandidateStanding, Config, PlacementCandidate, Reason, Slot, Strategy};

/// What an explanation of one appliance is made from.
pub(super) struct Explainer<'a> {
    pub(super) roster: &'a MemberRoster,
    pub(super) book: &'a Book,
    pub(super) config: &'a Config,
    /// Where appliances are to be.
    pub(super) pins: &'a SlotPins<'a>,
    pub(super) slot: Slot,
    /// Rank of the member that the plan moves it to, and why.
    pub(super) next: Option<(u32, Reason)>,
    /// Other appliances of the same tenant in the zone of each member, by rank; `None` where they do not count.
    pub(super) beside: Option<&'a [u32]>,
}

impl Explainer<'_> {
    /// Every member, in the order in which the ring prefers them for this appliance.
    pub(super) fn explain(&self, classes: &[Class]) -> Vec<PlacementCandidate> {
        let Some(entry) = self.book.entry(self.slot) else { return Vec::new() };
        let class_at = classes.iter().position(|class| class.groups.contains(&entry.group));
        let class_at = class_at.expect("every group has a class");
        let class = &classes[class_at];
        let held_back = by_class(self.book, classes, self.pins)
            .get(class_at)
            .map(|pins| held_back(self.roster, self.book, class, pins))
            .unwrap_or_default();
        let groups: Vec<&Group> = class.groups.iter().map(|&g| self.book.group(g)).collect();
        let band =
            Band::new(self.roster, &groups, class, self.homeless(class, &groups, entry, &held_back), self.config);
        let order = preference(self.roster, entry.position);
        let candidate = |(place, &rank): (usize, &u32)| {
            let local = class.local(rank).map(|local| local as usize);
            let held = |group: &&Group| group.held.get(&self.roster.handle(rank)).map_or(0, super::book::Held::count);
            PlacementCandidate {
                member: self.roster.member(rank).id.clone(),
                standing: self.standing(entry, class, &band, (order.as_slice(), place)),
                is_owner: self.is_owner(entry, rank),
                load: groups.iter().map(held).sum(),
                floor: local.map_or(0, |local| band.floor[local]),
                ceiling: local.filter(|_| !class.deleting).map_or(0, |local| band.ceiling[local]),
            }
        };
        order.iter().enumerate().map(candidate).collect()
    }

    fn is_owner(&self, entry: &BookEntry, rank: u32) -> bool {
        self.roster.rank(entry.owner) == Some(rank)
    }

    /// What the member at this place of the order is to the appliance.
    fn standing(
        &self,
        entry: &BookEntry,
        class: &Class,
        band: &Band,
        (order, place): (&[u32], usize),
    ) -> CandidateStanding {
        let rank = order[place];
        let is_owner = self.is_owner(entry, rank);
        if let Some((to, reason)) = self.next.filter(|(to, _)| *to == rank || is_owner) {
            return if to == rank { CandidateStanding::Next(reason) } else { CandidateStanding::GivesUp(reason) };
        }
        if let Some(refusal) = self.refusal(entry, rank, class.deleting) {
            return CandidateStanding::Refused(refusal);
        }
        if is_owner {
            return CandidateStanding::Keeps;
        }
        let bounded = self.config.strategy == Strategy::Bounded;
        if bounded && class.local(rank).is_some_and(|local| !band.has_room(local)) {
            return CandidateStanding::Refused(CandidateRefusal::AtCeiling);
        }
        match self.next {
            Some((_, Reason::Pinned)) => CandidateStanding::PinFirst,
            Some((to, _)) => self.passed_over(entry, class, band, (order, place), to),
            None if self.roster.rank(entry.owner).is_some() => CandidateStanding::NotNeeded,
            None => CandidateStanding::Barred,
        }
    }

    /// Why the plan gives the appliance to `to` and not to the member at this place, which could have it as well.
    fn passed_over(
        &self,
        entry: &BookEntry,
        class: &Class,
        band: &Band,
        (order, place): (&[u32], usize),
        to: u32,
    ) -> CandidateStanding {
        let short = |rank: u32, of: &[u64]| {
            class.local(rank).is_some_and(|local| band.load[local as usize] < of[local as usize])
        };
        let before = |bound: &[u64]| short(to, bound) && !short(order[place], bound);
        let beside = |rank: u32| self.beside.map_or(0, |beside| beside[rank as usize]);
        let zones = beside(to).cmp(&beside(order[place]));
        if self.roster.rank(entry.former) == Some(to) {
            CandidateStanding::FormerFirst
        } else if before(&band.floor) {
            CandidateStanding::ShareFirst
        } else if zones == Ordering::Less {
            CandidateStanding::SpreadFirst
        } else if zones == Ordering::Greater {
            CandidateStanding::OthersFill
        } else if before(&band.soft) {
            CandidateStanding::ShareFirst
        } else if order.iter().take(place).any(|&rank| rank == to) {
            CandidateStanding::RingFirst
        } else {
            CandidateStanding::OthersFill
        }
    }

    /// Appliances of the class that a plan would place. The one that is explained is among them also where no plan may pick
    /// it: once it is placed, it counts.
    fn homeless(&self, class: &Class, groups: &[&Group], entry: &BookEntry, held_back: &BTreeSet<u32>) -> u64 {
        let is_homeless = |handle: u32, group: &Group| match self.roster.rank(handle) {
            None => true,
            Some(rank) => {
                let stays = self.roster.keeps(rank, &group.needs) || !self.roster.member(rank).connected;
                class.local(rank).is_none() && !stays
            }
        };
        let of_group = |group: &&Group| -> u64 {
            group
                .held
                .iter()
                .filter(|(handle, _)| is_homeless(**handle, group))
                .map(|(_, held)| held.movable.len() as u64)
                .sum()
        };
        let held = self
            .roster
            .rank(entry.owner)
            .is_some_and(|rank| class.local(rank).is_some() || class.waiting.binary_search(&rank).is_ok());
        let counted = held || (is_homeless(entry.owner, self.book.group(entry.group)) && entry.movable);
        let stays_out = |slot: &&u32| {
            let held = self.book.entry(Slot(**slot)).filter(|held| held.movable);
            held.is_some_and(|held| is_homeless(held.owner, self.book.group(held.group)))
        };
        let held_back = held_back.iter().filter(stays_out).count() as u64;
        groups.iter().map(of_group).sum::<u64>().saturating_sub(held_back) + u64::from(!counted)
    }

    /// What speaks against a member, the band aside.
    fn refusal(&self, entry: &BookEntry, rank: u32, deleting: bool) -> Option<CandidateRefusal> {
        let Self { roster, book, config, slot, .. } = self;
        let member = roster.member(rank);
        let needs = &book.group(entry.group).needs;
        let bounded = config.strategy == Strategy::Bounded;
        let pin = self.pins.get(&slot.0).filter(|pin| bounded && pin.strict && !deleting);
        let is_owner = self.is_owner(entry, rank);
        if let Some(lack) = roster.lack(rank, needs) {
            Some(lack)
        } else if !member.connected {
            Some(CandidateRefusal::NotConnected)
        } else if member.gives_up() {
            Some(CandidateRefusal::Draining)
        } else if bounded && member.cordoned && !is_owner {
            Some(CandidateRefusal::Cordoned)
        } else if book.is_excluded(slot.0, &member.id) {
            Some(CandidateRefusal::Declined)
        } else if pin.is_some_and(|pin| pin.rank != Some(rank)) && !is_owner {
            Some(CandidateRefusal::PinnedElsewhere)
        } else if config.strategy == Strategy::Ring && roster.ring_owner(entry.position) != Some(rank) {
            Some(CandidateRefusal::NotRingOwner)
        } else {
            None
        }
    }
}

/// Members by ring preference, those without points at the end.
fn preference(roster: &MemberRoster, position: u64) -> Vec<u32> {
    // Lookups in the planner go by the upper half, so the whole lower half belongs to the same point.
    let at = (u128::from(position) << 64) | u128::from(u64::MAX);
    debug_assert_eq!(ring::top(at), position);
    let rank_of = |id: &WorkerId| roster.find(id).and_then(|handle| roster.rank(handle));
    let mut order: Vec<u32> = roster.ring.preference_at(at).filter_map(rank_of).collect();
    let mut listed = vec![false; roster.members.len()];
    order.iter().for_each(|&rank| listed[rank as usize] = true);
    order.extend((0..narrow(listed.len())).filter(|&rank| !listed[rank as usize]));
    order
}

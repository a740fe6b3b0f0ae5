//! Spread: the appliances of each tenant over the failure zones of the members that hold them.
//!
//! The planner keeps, while spread is in force, how many appliances of a tenant each worker holds: no change of the members alters that.
//! Counts per zone are summed up from it while a plan is made, for the tenants that the plan looks at. All members that publish no
//! zone count as one zone: they may share a failure domain, and where no member publishes a zone nothing is spread. What is being
//! deleted, and what is with a member that gives it up, counts in no zone.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

use common::appliance::Name;
use common::mutant::{self, Mutant};

use super::Slot;
use super::book::Book;
use super::classes::Class;
use super::roster::{MemberRoster, NOBODY, narrow};

const NO_TENANT: u32 = u32::MAX;

/// Which appliance is whose.
#[derive(Clone, Debug, Default)]
pub(super) struct Tenants {
    numbers: HashMap<Name, u32>,
    /// By number; one without appliances is free for another name.
    names: Vec<TenantName>,
    free: Vec<u32>,
    /// Number by slot, or [`NO_TENANT`].
    of_slot: Vec<u32>,
    /// What each tenant has, by number; `None` when spread is not in force, so that it costs nothing.
    held: Option<Vec<Holdings>>,
}

#[derive(Clone, Debug)]
struct TenantName {
    name: Name,
    appliances: u32,
}

/// How many appliances of one tenant each worker holds, in the order of handles; without those that hold none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Holdings(Vec<(u32, u32)>);

impl Holdings {
    fn add(&mut self, handle: u32) {
        match self.0.binary_search_by_key(&handle, |(handle, _)| *handle) {
            Ok(at) => self.0[at].1 += 1,
            Err(at) => {
                // There may be as many of these as appliances: doubling would waste half of them.
                if self.0.len() == self.0.capacity() {
                    self.0.reserve_exact(1 + self.0.len() / 4);
                }
                self.0.insert(at, (handle, 1));
            }
        }
    }

    fn take(&mut self, handle: u32) {
        if let Ok(at) = self.0.binary_search_by_key(&handle, |(handle, _)| *handle) {
            self.0[at].1 -= 1;
            if self.0[at].1 == 0 {
                self.0.remove(at);
            }
        }
    }
}

impl Tenants {
    /// Of no appliance. `counted` when spread is in force.
    pub(super) fn new(counted: bool) -> Self {
        Self { held: counted.then(Vec::new), ..Self::default() }
    }

    /// Number of the tenant of an appliance, if that is known.
    pub(super) fn of(&self, slot: Slot) -> Option<u32> {
        self.of_slot.get(slot.0 as usize).copied().filter(|tenant| *tenant != NO_TENANT)
    }

    /// Name of the tenant of an appliance.
    #[cfg(any(test, feature = "canon"))]
    pub(super) fn name(&self, slot: Slot) -> Option<&Name> {
        self.of(slot).map(|tenant| &self.names[tenant as usize].name)
    }

    /// Says whose an appliance is that is counted at no worker. Returns whether that is new.
    pub(super) fn set(&mut self, slot: Slot, name: Option<&Name>) -> bool {
        let before = self.of(slot);
        if before.map(|tenant| &self.names[tenant as usize].name) == name {
            return false;
        }
        if let Some(tenant) = before {
            self.release(tenant);
        }
        let tenant = name.map_or(NO_TENANT, |name| self.acquire(name));
        let at = slot.0 as usize;
        if at >= self.of_slot.len() {
            self.of_slot.resize(at + 1, NO_TENANT);
        }
        self.of_slot[at] = tenant;
        true
    }

    fn acquire(&mut self, name: &Name) -> u32 {
        let tenant = match self.numbers.get(name) {
            Some(&tenant) => tenant,
            None => {
                let named = TenantName { name: name.clone(), appliances: 0 };
                let tenant = if let Some(tenant) = self.free.pop() {
                    self.names[tenant as usize] = named;
                    tenant
                } else {
                    self.names.push(named);
                    if let Some(held) = &mut self.held {
                        held.push(Holdings::default());
                    }
                    narrow(self.names.len() - 1)
                };
                self.numbers.insert(name.clone(), tenant);
                tenant
            }
        };
        self.names[tenant as usize].appliances += 1;
        tenant
    }

    fn release(&mut self, tenant: u32) {
        let named = &mut self.names[tenant as usize];
        named.appliances -= 1;
        if named.appliances == 0 {
            self.numbers.remove(&named.name);
            self.free.push(tenant);
        }
    }

    /// Counts an appliance at the worker with handle `to`, and no longer at the one with handle `from`; [`NOBODY`] for none.
    pub(super) fn moved(&mut self, slot: Slot, from: u32, to: u32) {
        let Some(tenant) = self.of(slot) else { return };
        let Some(held) = &mut self.held else { return };
        let holdings = &mut held[tenant as usize];
        if from != NOBODY && !mutant::is(Mutant::SpreadCountsMovedTwice) {
            holdings.take(from);
        }
        if to != NOBODY {
            holdings.add(to);
        }
    }

    /// What each tenant has, found by a look at every appliance.
    fn count(&self, book: &Book) -> Vec<Holdings> {
        let mut held = vec![Holdings::default(); self.names.len()];
        for (slot, _) in book.ids() {
            let (Some(tenant), Some(entry)) = (self.of(Slot(slot)), book.entry(Slot(slot))) else { continue };
            if entry.owner != NOBODY && !book.group(entry.group).deleting {
                held[tenant as usize].add(entry.owner);
            }
        }
        held
    }

    /// Whether what is kept is what a look at every appliance finds.
    #[cfg(test)]
    pub(super) fn is_true_of(&self, book: &Book) -> bool {
        self.held.as_ref().is_none_or(|held| *held == self.count(book))
    }
}

/// What a move from zone to zone does to the spread of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SpreadEffect {
    /// It is more even afterwards.
    Improves,
    /// It is as even as before.
    Keeps,
    /// It is less even.
    Worsens,
}

impl SpreadEffect {
    /// All, the best first.
    pub(super) const ALL: [Self; 3] = [Self::Improves, Self::Keeps, Self::Worsens];
}

/// What each zone is to have of a tenant once those being placed are placed, as evenly as what is there already allows: up to `level`, and
/// in `extra` of the zones one more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Quota {
    level: u32,
    extra: u32,
    /// How many are still to be placed.
    left: u32,
}

impl Quota {
    fn new(mut counts: Vec<u32>, left: u32) -> Self {
        counts.sort_unstable();
        let to_place = left;
        let mut left = left;
        let Some(mut level) = counts.first().copied() else { return Self::default() };
        let mut filled = 0;
        for &next in &counts {
            let missing = u64::from(next - level) * u64::from(filled);
            if missing > u64::from(left) {
                break;
            }
            left -= u32::try_from(missing).expect("not more than are left");
            level = next;
            filled += 1;
        }
        Self { level: level + left / filled, extra: left % filled, left: to_place }
    }

    const fn allows(&self, count: u32) -> bool {
        count < self.level || (count == self.level && self.extra > 0)
    }

    /// A zone that has `count`, which is less than it is to have, gets one more.
    fn take(&mut self, count: u32) {
        self.left -= 1;
        self.extra -= u32::from(count == self.level);
    }
}

/// How many appliances of each tenant there are in each zone, with the moves of a plan so far.
#[derive(Debug)]
pub(super) struct ZoneCounts<'z> {
    roster: &'z MemberRoster,
    tenants: &'z Tenants,
    held: Cow<'z, [Holdings]>,
    /// By rank.
    zone_of: Vec<u32>,
    zones: usize,
    /// By tenant: its row, counted from 1; 0 while the plan has not looked at it.
    row_of: Vec<u32>,
    /// Rows of counts by zone.
    counts: Vec<u32>,
    /// By row.
    quotas: Vec<Quota>,
}

impl<'z> ZoneCounts<'z> {
    pub(super) fn new(roster: &'z MemberRoster, book: &Book, tenants: &'z Tenants) -> Self {
        let names: BTreeSet<&str> = roster.members.iter().map(|member| member.zone.as_str()).collect();
        let numbers: HashMap<&str, u32> = names.into_iter().zip(0..).collect();
        let held =
            tenants.held.as_ref().map_or_else(|| Cow::Owned(tenants.count(book)), |held| Cow::Borrowed(&held[..]));
        Self {
            roster,
            tenants,
            held,
            zone_of: roster.members.iter().map(|member| numbers[member.zone.as_str()]).collect(),
            zones: numbers.len(),
            row_of: vec![0; tenants.names.len()],
            counts: Vec::new(),
            quotas: Vec::new(),
        }
    }

    /// Where the counts of the tenant of an appliance are; `None` when it has none.
    pub(super) fn row(&mut self, slot: u32) -> Option<usize> {
        let tenant = self.tenants.of(Slot(slot))?;
        Some(self.row_of_tenant(tenant as usize))
    }

    fn row_of_tenant(&mut self, tenant: usize) -> usize {
        if let Some(row) = self.row_of[tenant].checked_sub(1) {
            return row as usize;
        }
        let row = self.quotas.len();
        self.quotas.push(Quota::default());
        self.counts.resize(self.counts.len() + self.zones, 0);
        for &(handle, appliances) in &self.held[tenant].0 {
            if let Some(rank) = self.roster.rank(handle).filter(|rank| self.counts_at(*rank)) {
                self.counts[row * self.zones + self.zone_of[rank as usize] as usize] += appliances;
            }
        }
        self.row_of[tenant] = narrow(row + 1);
        row
    }

    /// Whether what a member holds counts in its zone.
    fn counts_at(&self, rank: u32) -> bool {
        !self.roster.member(rank).gives_up()
    }

    pub(super) fn count(&self, row: usize, zone: u32) -> u32 {
        self.counts[row * self.zones + zone as usize]
    }

    /// An appliance is counted at a member from now on.
    pub(super) fn arrive(&mut self, slot: u32, rank: u32) {
        let Some(row) = self.row(slot).filter(|_| self.counts_at(rank)) else { return };
        self.counts[row * self.zones + self.zone_of[rank as usize] as usize] += 1;
    }

    /// An appliance is no longer counted at a member.
    pub(super) fn leave(&mut self, slot: u32, rank: u32) {
        let Some(row) = self.row(slot).filter(|_| self.counts_at(rank)) else { return };
        self.counts[row * self.zones + self.zone_of[rank as usize] as usize] -= 1;
    }

    /// Shares those that are placed now, which are counted nowhere, out to the zones of a class.
    pub(super) fn share_out(&mut self, slots: impl Iterator<Item = u32>, zones: &ClassZones) {
        let mut rows: Vec<usize> = slots.filter_map(|slot| self.row(slot)).collect();
        rows.sort_unstable();
        for same in rows.chunk_by(|a, b| a == b) {
            self.quotas[same[0]] = self.quota(same[0], zones, narrow(same.len()));
        }
    }

    fn quota(&self, row: usize, zones: &ClassZones, left: u32) -> Quota {
        Quota::new(zones.zones.iter().map(|zone| self.count(row, *zone)).collect(), left)
    }

    /// One of those that were shared out is placed with this taker.
    pub(super) fn place(&mut self, slot: u32, local: u32, zones: &ClassZones) {
        let Some(row) = self.row(slot) else { return };
        let zone = zones.of(local);
        let count = self.count(row, zone);
        self.counts[row * self.zones + zone as usize] += 1;
        if self.quotas[row].allows(count) {
            self.quotas[row].take(count);
        } else {
            // The others have to make up for it.
            let left = self.quotas[row].left.saturating_sub(1);
            self.quotas[row] = self.quota(row, zones, left);
        }
    }

    /// Whether a zone has less of a tenant than it is to have of those that are placed now.
    pub(super) fn is_below_quota(&self, row: usize, zone: u32) -> bool {
        self.quotas[row].allows(self.count(row, zone))
    }

    /// What it does to the spread of a tenant when one of its appliances goes from zone to zone.
    pub(super) fn effect(&self, row: usize, from: u32, to: u32) -> SpreadEffect {
        if from == to {
            return SpreadEffect::Keeps;
        }
        match self.count(row, to).cmp(&self.count(row, from).saturating_sub(1)) {
            Ordering::Less => SpreadEffect::Improves,
            Ordering::Equal => SpreadEffect::Keeps,
            Ordering::Greater => SpreadEffect::Worsens,
        }
    }

    /// How many tenants there are of which a zone has at least two appliances more than another, of the zones in which members can have any.
    pub(super) fn uneven(mut self) -> u64 {
        let can_have = |rank: &u32| self.counts_at(*rank) && !self.roster.member(*rank).drivers.is_empty();
        let ranks = (0..narrow(self.roster.members.len())).filter(can_have);
        let zones: BTreeSet<u32> = ranks.map(|rank| self.zone_of[rank as usize]).collect();
        let mut uneven = 0;
        for tenant in 0..self.row_of.len() {
            let row = self.row_of_tenant(tenant);
            let counts = || zones.iter().map(|zone| self.count(row, *zone));
            let (least, most) = (counts().min().unwrap_or(0), counts().max().unwrap_or(0));
            uneven += u64::from(most - least > 1);
        }
        uneven
    }

    /// How many other appliances of its tenant there are in the zone of each member, by rank; `None` when it has no tenant.
    pub(super) fn beside(mut self, slot: Slot, owner: Option<u32>) -> Option<Vec<u32>> {
        let row = self.row(slot.0)?;
        if let Some(owner) = owner {
            self.leave(slot.0, owner);
        }
        Some(self.zone_of.iter().map(|zone| self.count(row, *zone)).collect())
    }
}

/// The zones of those that can take the appliances of a class.
#[derive(Debug)]
pub(super) struct ClassZones {
    /// By local number.
    of: Vec<u32>,
    /// All of them, ascending.
    zones: Vec<u32>,
}

impl ClassZones {
    /// `None` when there are not two: then there is nothing to choose.
    pub(super) fn new(counts: &ZoneCounts<'_>, class: &Class) -> Option<Self> {
        let of: Vec<u32> = class.takers.iter().map(|rank| counts.zone_of[*rank as usize]).collect();
        let zones: BTreeSet<u32> = of.iter().copied().collect();
        (zones.len() > 1).then(|| Self { of, zones: zones.into_iter().collect() })
    }

    pub(super) fn of(&self, local: u32) -> u32 {
        self.of[local as usize]
    }
}

/// How many members of each zone are open to something.
#[derive(Debug)]
pub(super) struct OpenZones(Vec<u32>);

impl OpenZones {
    pub(super) fn new(counts: &ZoneCounts<'_>, zones: &ClassZones, is_open: impl Fn(u32) -> bool) -> Self {
        let mut open = vec![0; counts.zones];
        for (local, zone) in (0..).zip(&zones.of) {
            open[*zone as usize] += u32::from(is_open(local));
        }
        Self(open)
    }

    /// One of a zone is open no longer.
    pub(super) fn close(&mut self, zone: u32) {
        self.0[zone as usize] -= 1;
    }

    /// The zones that have one.
    pub(super) fn iter(&self, zones: &ClassZones) -> impl Iterator<Item = u32> {
        zones.zones.iter().copied().filter(|zone| self.0[*zone as usize] > 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn quotas_add_up_and_end_as_even_as_giving_each_to_the_zone_with_the_fewest(
            counts in proptest::collection::vec(0u32..12, 1..6),
            placed in 0u32..40,
            choices in proptest::collection::vec(any::<prop::sample::Index>(), 40),
        ) {
            let mut quota = Quota::new(counts.clone(), placed);
            let (mut chosen, mut fewest) = (counts.clone(), counts);
            for choice in choices.iter().take(placed as usize) {
                let open: Vec<usize> = (0..chosen.len()).filter(|zone| quota.allows(chosen[*zone])).collect();
                prop_assert!(!open.is_empty(), "whatever was chosen before, a zone is below its quota");
                let zone = open[choice.index(open.len())];
                quota.take(chosen[zone]);
                chosen[zone] += 1;
                *fewest.iter_mut().min().expect("there are zones") += 1;
            }
            prop_assert!(chosen.iter().all(|count| !quota.allows(*count)), "{quota:?} {chosen:?}");
            chosen.sort_unstable();
            fewest.sort_unstable();
            prop_assert_eq!(chosen, fewest);
        }
    }
}

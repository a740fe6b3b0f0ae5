//! Strategy `bounded`: the least movement that puts every appliance with a member that can take it and every member
//! inside its band; the ring chooses among the ways to do that.
//!
//! Per class, in this order: appliances that need another owner go to where they were before, then to members below
//! their floor, then in order of ring preference to members below their ceiling. What the band forces beyond that moves
//! from members over their ceiling to members under their floor, then from whichever side is left. What is pinned goes before all
//! that, or stays ([`pins`](super::pins)); what cordoned members have stays as well. Where tenants are spread, zones choose before the
//! ring does, and never at the price of a move ([`zones`]). So the moves come to
//! `homeless + max(excess, deficit - homeless)`, the least possible where nothing declined, pinned or fixed is in the way.
//!
//! Cost: what is homeless, what moves, and members times classes; arcs of the ring are read only where a member is to
//! be filled, and only as far as a multiple of what it is to get.

mod transfer;
mod zones;

use std::collections::BTreeMap;

use super::book::{Book, Group};
use super::classes::{Band, Class, why_unplaced};
use super::pins::{SlotPins, by_class, held_back};
use super::plan::{BandRelaxed, PlanDraft};
use super::roster::{MemberRoster, NOBODY, narrow};
use super::spread::{ClassZones, ZoneCounts};
use super::walk::Walk;
use super::{Config, Reason, Slot, Unplaced};
use transfer::Transfer;
use zones::ZoneChoice;

/// An appliance that needs another owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Homeless {
    position: u64,
    slot: u32,
    group: u32,
    from: u32,
    reason: Reason,
}

/// Plans every class; with counts of the zones where these are to be looked at.
pub(super) fn plan(
    roster: &MemberRoster,
    book: &Book,
    classes: &[Class],
    pins: &SlotPins<'_>,
    (config, mut counts): (&Config, Option<ZoneCounts<'_>>),
) -> PlanDraft {
    let mut out = PlanDraft::default();
    let mut picked = Picked::default();
    let (pins, unpinned) = (by_class(book, classes, pins), SlotPins::new());
    for (at, class) in classes.iter().enumerate() {
        let pins = pins.get(at).unwrap_or(&unpinned);
        let groups: Vec<&Group> = class.groups.iter().map(|&g| book.group(g)).collect();
        let (mut unowned, mut displaced) = gather(roster, class, &groups);
        let held = held_back(roster, book, class, pins);
        if !held.is_empty() {
            held.iter().for_each(|slot| picked.insert(*slot, book.slot_limit()));
            displaced.retain(|h| !held.contains(&h.slot));
            unowned.retain(|h| {
                let is_held = held.contains(&h.slot);
                if is_held {
                    out.unplaced.push((Slot(h.slot), Unplaced::Pinned(pins[&h.slot].worker.clone())));
                }
                !is_held
            });
        }
        if class.takers.is_empty() {
            let mut reasons: BTreeMap<u32, Unplaced> = BTreeMap::new();
            for h in &unowned {
                if let Some((to, reason)) = back_to(roster, book, h) {
                    if let Some(counts) = counts.as_mut().filter(|_| !class.deleting) {
                        counts.arrive(h.slot, to);
                    }
                    out.push(roster, h.slot, h.from, to, reason);
                    continue;
                }
                let why = reasons.entry(h.group).or_insert_with(|| why_unplaced(roster, &book.group(h.group).needs));
                out.unplaced.push((Slot(h.slot), why.clone()));
            }
            continue;
        }
        let homeless = (unowned.len() + displaced.len()) as u64;
        let band = Band::new(roster, &groups, class, homeless, config);
        let balanced = band.locals().all(|local| band.excess(local) == 0 && band.deficit(local) == 0);
        if balanced && homeless == 0 && pins.is_empty() {
            continue;
        }
        let counts = counts.as_mut().filter(|_| !class.deleting);
        let zones = counts.as_deref().and_then(|counts| ClassZones::new(counts, class));
        let (out, picked) = (&mut out, &mut picked);
        let mut pass = BandPass { roster, book, class, groups, band, counts, zones, out, picked };
        pass.pin(pins);
        if !pins.is_empty() {
            for list in [&mut unowned, &mut displaced] {
                list.retain(|h| !pass.picked.contains(h.slot));
            }
        }
        pass.place(unowned);
        pass.place(displaced);
        pass.balance();
        pass.report();
    }
    out
}

/// Where an appliance without an owner goes although an operator's order speaks against it, because it can go nowhere else: back to
/// the member that held it last, or, where it is kept on a site, to one of that site.
fn back_to(roster: &MemberRoster, book: &Book, h: &Homeless) -> Option<(u32, Reason)> {
    let needs = &book.group(h.group).needs;
    let entry = book.entry(Slot(h.slot)).filter(|entry| entry.owner == NOBODY)?;
    let is_held_off =
        |rank: &u32| roster.is_held_off(*rank, needs) && !book.is_excluded(h.slot, &roster.member(*rank).id);
    if let Some(former) = roster.rank(entry.former).filter(is_held_off) {
        return Some((former, Reason::Returned));
    }
    let at_site = (0..narrow(roster.members.len())).find(|rank| needs.site.is_some() && is_held_off(rank));
    at_site.map(|rank| (rank, Reason::Unowned))
}

/// The appliances of a class that need another owner: those without one, then those whose owner should not have them.
fn gather(roster: &MemberRoster, class: &Class, groups: &[&Group]) -> (Vec<Homeless>, Vec<Homeless>) {
    let (mut unowned, mut displaced) = (Vec::new(), Vec::new());
    for (&at, group) in class.groups.iter().zip(groups) {
        for (&from, held) in &group.held {
            let (list, reason) = match roster.rank(from) {
                None => (&mut unowned, Reason::Unowned),
                Some(rank) if class.local(rank).is_some() || !roster.member(rank).connected => continue,
                Some(rank) if roster.member(rank).gives_up() => (&mut displaced, Reason::Draining),
                Some(rank) if roster.keeps(rank, &group.needs) => continue,
                Some(_) => (&mut displaced, Reason::Ineligible),
            };
            let homeless = |&(position, slot): &(u64, u32)| Homeless { position, slot, group: at, from, reason };
            list.extend(held.movable.iter().map(homeless));
        }
    }
    unowned.sort_unstable();
    displaced.sort_unstable();
    (unowned, displaced)
}

/// Slots that already move in this plan, one bit each.
#[derive(Default)]
struct Picked(Vec<u64>);

impl Picked {
    fn contains(&self, slot: u32) -> bool {
        self.0.get(slot as usize / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    fn insert(&mut self, slot: u32, limit: usize) {
        if self.0.is_empty() {
            self.0 = vec![0; limit / 64 + 1];
        }
        self.0[slot as usize / 64] |= 1 << (slot % 64);
    }
}

/// One class being planned; `band.load` is what each member would hold once the moves so far are made.
struct BandPass<'a, 'z> {
    roster: &'a MemberRoster,
    book: &'a Book,
    class: &'a Class,
    groups: Vec<&'a Group>,
    band: Band,
    /// Where tenants are spread, and this class counts for that.
    counts: Option<&'a mut ZoneCounts<'z>>,
    /// Where there are zones to choose from.
    zones: Option<ClassZones>,
    out: &'a mut PlanDraft,
    picked: &'a mut Picked,
}

impl BandPass<'_, '_> {
    /// Moves appliances to the members they are pinned to, if nothing but the band speaks against it, and keeps those that
    /// are there already from being moved.
    fn pin(&mut self, pins: &SlotPins<'_>) {
        for (&slot, pin) in pins {
            let Some(entry) = self.book.entry(Slot(slot)) else { continue };
            let Some(to) = pin.target(self.roster, self.book, self.class, slot) else { continue };
            let rank = self.class.takers[to as usize];
            let owner = self.roster.rank(entry.owner);
            // An owner without a stream keeps what it has, and cannot be asked to give it up.
            let stays = owner.is_some_and(|owner| !self.roster.member(owner).connected);
            if !entry.movable || stays {
                continue;
            }
            self.picked.insert(slot, self.book.slot_limit());
            if owner == Some(rank) {
                continue;
            }
            if let Some(from) = owner.and_then(|owner| self.class.local(owner)) {
                self.band.load[from as usize] -= 1;
            }
            self.band.load[to as usize] += 1;
            self.recount(slot, owner, rank);
            self.out.push(self.roster, slot, entry.owner, rank, Reason::Pinned);
        }
    }

    /// Gives each of `homeless`, which are in the order of the ring, to a member.
    fn place(&mut self, mut homeless: Vec<Homeless>) {
        if homeless.is_empty() {
            return;
        }
        let class = self.class;
        let points = class.points(self.roster);
        for h in &homeless {
            if let (Some(counts), Some(from)) = (self.counts.as_deref_mut(), self.roster.rank(h.from)) {
                counts.leave(h.slot, from);
            }
        }
        homeless.retain(|h| match self.returns_to(class, h) {
            Some(local) => !self.settle(class, h, local, Reason::Returned),
            None => true,
        });
        let steps = self.steps(&homeless);
        // First those the ring itself gives to a member below its floor, then the nearest others.
        let mut walk = Walk::new(points);
        homeless.retain(|h| match walk.first(h.position) {
            Some(local) if self.band.deficit(local) > 0 && !self.declined(class, h.slot, local) => {
                let zones = self.zones_for(steps[0].1, h.slot, None);
                !(zones.is_some_and(|zones| self.is_in(zones, local)) && self.settle(class, h, local, h.reason))
            }
            _ => true,
        });
        for &(stage, choice) in steps {
            if homeless.is_empty() || !self.band.locals().any(|local| stage.is_open(&self.band, local)) {
                continue;
            }
            let mut open = self.open_zones(|band, local| stage.is_open(band, local));
            let mut walk = Walk::new(points);
            homeless.retain(|h| {
                let Some(zones) = self.zones_for(choice, h.slot, open.as_ref()) else { return true };
                let mut find = |zones| {
                    walk.find(
                        h.position,
                        |local| stage.is_open(&self.band, local),
                        |local| self.is_in(zones, local) && !self.declined(class, h.slot, local),
                    )
                };
                let found = find(zones).or_else(|| match zones {
                    // All of these zones declined it.
                    ZoneChoice::With { .. } => find(ZoneChoice::Any),
                    _ => None,
                });
                let Some(local) = found else { return true };
                self.settle(class, h, local, h.reason);
                if !stage.is_open(&self.band, local) {
                    self.close(open.as_mut(), local);
                }
                false
            });
        }
        // Only what was declined by members with room is left: owned beats balanced.
        for h in homeless {
            let open = self.band.locals().filter(|&local| !self.declined(class, h.slot, local));
            let over =
                |&local: &u32| (self.band.load[local as usize] + 1).saturating_sub(self.band.ceiling[local as usize]);
            if let Some(local) = open.min_by_key(over) {
                self.settle(class, &h, local, h.reason);
            } else if let Some((to, reason)) = back_to(self.roster, self.book, &h) {
                self.recount(h.slot, None, to);
                self.out.push(self.roster, h.slot, h.from, to, reason);
            } else if self.roster.rank(h.from).is_none() {
                self.out.unplaced.push((Slot(h.slot), Unplaced::Declined));
            }
        }
    }

    /// The taker that held the appliance last, if nothing speaks against its return.
    fn returns_to(&self, class: &Class, h: &Homeless) -> Option<u32> {
        if h.from != NOBODY {
            return None;
        }
        let former = self.book.entry(Slot(h.slot))?.former;
        let local = class.local(self.roster.rank(former)?)?;
        (self.band.has_room(local) && !self.declined(class, h.slot, local)).then_some(local)
    }

    /// Counts and notes the new owner; always `true`.
    fn settle(&mut self, class: &Class, h: &Homeless, to: u32, reason: Reason) -> bool {
        self.band.load[to as usize] += 1;
        // It left its zone before, with all that are placed.
        match (self.counts.as_deref_mut(), &self.zones) {
            (Some(counts), Some(zones)) if reason != Reason::Returned => counts.place(h.slot, to, zones),
            _ => self.recount(h.slot, None, class.takers[to as usize]),
        }
        self.out.push(self.roster, h.slot, h.from, class.takers[to as usize], reason);
        true
    }

    /// Counts an appliance in another zone.
    fn recount(&mut self, slot: u32, from: Option<u32>, to: u32) {
        if let Some(counts) = self.counts.as_deref_mut() {
            from.into_iter().for_each(|from| counts.leave(slot, from));
            counts.arrive(slot, to);
        }
    }

    fn declined(&self, class: &Class, slot: u32, local: u32) -> bool {
        !self.book.excluded.is_empty()
            && self.book.is_excluded(slot, &self.roster.member(class.takers[local as usize]).id)
    }

    /// Moves what the band forces.
    fn balance(&mut self) {
        let sum = |of: &dyn Fn(u32) -> u64| self.band.locals().map(of).sum::<u64>();
        let excess = sum(&|local| self.band.excess(local));
        let deficit = sum(&|local| self.band.deficit(local));
        if excess == 0 && deficit == 0 {
            return;
        }
        Transfer::new(self, excess, deficit).run();
    }

    /// Notes the members that stay outside the band.
    fn report(&mut self) {
        let used = self.groups.iter().filter(|group| group.index.len() > 0);
        let Some(needs) = used.map(|group| &group.needs).min() else { return };
        for local in self.band.locals() {
            if self.band.excess(local) > 0 || self.band.deficit(local) > 0 {
                let at = local as usize;
                self.out.relaxed.push(BandRelaxed {
                    member: self.roster.member(self.class.takers[at]).id.clone(),
                    needs: needs.clone(),
                    load: self.band.load[at],
                    floor: self.band.floor[at],
                    ceiling: self.band.ceiling[at],
                });
            }
        }
    }
}

/// Which members an appliance is looked for.
#[derive(Clone, Copy)]
enum BandStage {
    Floor,
    Soft,
    Ceiling,
}

impl BandStage {
    fn is_open(self, band: &Band, local: u32) -> bool {
        let bound = match self {
            Self::Floor => &band.floor,
            Self::Soft => &band.soft,
            Self::Ceiling => &band.ceiling,
        };
        band.load[local as usize] < bound[local as usize]
    }
}

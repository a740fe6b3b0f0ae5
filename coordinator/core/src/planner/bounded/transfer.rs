//! What the band moves from one member to another: to members under their floor from those over their ceiling, then from
//! whichever side is left.

use std::ops::RangeInclusive;

use super::super::Reason;
use super::super::book::pickable;
use super::super::classes::{Band, Class};
use super::super::spread::{OpenZones, SpreadEffect};
use super::super::walk::Walk;
use super::BandPass;

/// How many keys are looked at for one that a member is to have, before keys are taken wherever they are: the own arcs of a
/// joiner and some ten neighbours of each. Further ones are hardly a preference any more, and cost the same to read.
const LOOKED_AT_PER_KEY: u64 = 12;
/// Keys looked at in any case.
const LOOKED_AT_LEAST: u64 = 1024;
/// Keys looked at for one that a member must give up, in search of those that are not where the ring puts them.
const LOOKED_AT_PER_STRAY: usize = 16;

/// Moves between members of one class. An appliance may leave a member over its ceiling (which must give), or, while
/// `optional` lasts, one above its floor (which can).
pub(super) struct Transfer<'p, 'a, 'z> {
    pass: &'p mut BandPass<'a, 'z>,
    class: &'a Class,
    /// Local number by handle, `u32::MAX` for others.
    locals: Vec<u32>,
    /// Appliances still to leave members over their ceiling.
    excess: u64,
    /// Appliances still missing at members under their floor.
    deficit: u64,
    /// Appliances members within their band have to give, because those over it do not hold enough. Fixed at the
    /// start: were more of them taken, the excess would have to move on top.
    optional: u64,
}

impl<'p, 'a, 'z> Transfer<'p, 'a, 'z> {
    /// Of `excess` appliances too many and `deficit` too few, summed over the members.
    pub(super) fn new(pass: &'p mut BandPass<'a, 'z>, excess: u64, deficit: u64) -> Self {
        let class = pass.class;
        let mut locals = vec![u32::MAX; pass.roster.handle_count()];
        for (local, &rank) in (0u32..).zip(&class.takers) {
            locals[pass.roster.handle(rank) as usize] = local;
        }
        Self { pass, class, locals, excess, deficit, optional: deficit.saturating_sub(excess) }
    }

    pub(super) fn run(&mut self) {
        // What makes tenants more even first, then what leaves them as they are.
        let effects = self.pass.effects();
        for &worst in effects {
            if self.deficit > 0 {
                self.fill_by_arcs(worst);
            }
        }
        if self.deficit > 0 {
            let must: Vec<u32> = self.pass.band.locals().filter(|&l| self.pass.band.excess(l) > 0).collect();
            effects.iter().for_each(|worst| self.fill_from(&must, *worst));
        }
        if self.deficit > 0 && self.optional > 0 {
            // The fullest first, so that what has to be taken somewhere is taken where it helps.
            let band = &self.pass.band;
            let mut can: Vec<u32> = band.locals().filter(|&l| band.spare(l) > 0).collect();
            can.sort_by_key(|&l| (std::cmp::Reverse(band.spare(l)), l));
            effects.iter().for_each(|worst| self.fill_from(&can, *worst));
        }
        if self.excess > 0 {
            self.shed();
        }
    }

    /// Fills members under their floor with keys of their own arcs, then of the arcs before those, where they are the
    /// second choice, and so on.
    fn fill_by_arcs(&mut self, worst: SpreadEffect) {
        let class = self.class;
        let points = class.points(self.pass.roster);
        let mut receivers: Vec<Receiver> = Vec::new();
        for local in self.pass.band.locals() {
            let missing = self.pass.band.deficit(local);
            if missing > 0 {
                let ends = (0..points.len()).filter(|&at| points[at].1 == local).collect();
                // The same for every plan of a rebalance, however much of it is done: each goes as far as the one before, and so
                // finds what that has shown and not made yet.
                let share = self.pass.band.floor[local as usize];
                let looks = share * LOOKED_AT_PER_KEY + LOOKED_AT_LEAST;
                receivers.push(Receiver { local, ends, looks, worst });
            }
        }
        for back in 0..points.len() {
            for receiver in &mut receivers {
                self.fill_one(receiver, back, points);
            }
            receivers.retain(|r| r.looks > 0 && !r.ends.is_empty() && self.pass.band.deficit(r.local) > 0);
            if receivers.is_empty() || (self.excess == 0 && self.optional == 0) {
                return;
            }
        }
    }

    /// Reads, for each point of one receiver, the arc `back` points before it.
    fn fill_one(&mut self, receiver: &mut Receiver, back: usize, points: &[(u64, u32)]) {
        let count = points.len();
        // An arc that ends at a point of the receiver's own was its own arc and has been read.
        receiver.ends.retain(|&end| back == 0 || points[(end + count - back) % count].1 != receiver.local);
        for at in 0..receiver.ends.len() {
            let end = (receiver.ends[at] + count - back) % count;
            for range in arc_before(points, end).into_iter().flatten() {
                if self.pass.band.deficit(receiver.local) == 0 || receiver.looks == 0 {
                    return;
                }
                for group in 0..self.pass.groups.len() {
                    self.pull(receiver, group, range.clone());
                }
            }
        }
    }

    fn pull(&mut self, receiver: &mut Receiver, group: usize, range: RangeInclusive<u64>) {
        let group = self.pass.groups[group];
        group.index.scan(range, |key| {
            receiver.looks = receiver.looks.saturating_sub(1);
            if let Some(from) = pickable(key).and_then(|h| self.locals.get(h as usize)).filter(|&&l| l != u32::MAX) {
                self.take(key.slot, *from, receiver.local, receiver.worst);
            }
            receiver.looks > 0 && self.pass.band.deficit(receiver.local) > 0 && (self.excess > 0 || self.optional > 0)
        });
    }

    /// Moves the appliance if its holder must or can give one, the receiver is still short, and the spread of its tenant allows it.
    fn take(&mut self, slot: u32, from: u32, to: u32, worst: SpreadEffect) -> bool {
        let band = &self.pass.band;
        let must = band.excess(from) > 0;
        let allowed = must || (self.optional > 0 && band.spare(from) > 0);
        if from == to
            || !allowed
            || band.deficit(to) == 0
            || self.pass.picked.contains(slot)
            || self.pass.declined(self.class, slot, to)
        {
            return false;
        }
        if worst < SpreadEffect::Worsens {
            let row = self.pass.row(slot);
            if self.pass.effect(row, from, to) > worst {
                return false;
            }
        }
        if must {
            self.excess -= 1;
        } else {
            self.optional -= 1;
        }
        self.deficit -= 1;
        self.carry(slot, from, to, if must { Reason::OverCeiling } else { Reason::UnderFloor });
        true
    }

    fn carry(&mut self, slot: u32, from: u32, to: u32, reason: Reason) {
        let pass = &mut *self.pass;
        pass.band.load[from as usize] -= 1;
        pass.band.load[to as usize] += 1;
        pass.picked.insert(slot, pass.book.slot_limit());
        let [from, to] = [from, to].map(|local| self.class.takers[local as usize]);
        pass.recount(slot, Some(from), to);
        pass.out.push(pass.roster, slot, pass.roster.handle(from), to, reason);
    }

    /// Fills members under their floor from these, wherever the keys lie.
    fn fill_from(&mut self, givers: &[u32], worst: SpreadEffect) {
        let class = self.class;
        let mut walk = Walk::new(class.points(self.pass.roster));
        let mut open = self.pass.open_zones(|band, local| band.deficit(local) > 0);
        let mut looks = looks(self.deficit, worst);
        for &from in givers {
            let handle = self.pass.roster.handle(class.takers[from as usize]);
            for group in self.pass.groups.clone() {
                let Some(held) = group.held.get(&handle) else { continue };
                for &(position, slot) in &held.movable {
                    let must = self.pass.band.excess(from) > 0;
                    let can = self.optional > 0 && self.pass.band.spare(from) > 0;
                    if self.deficit == 0 || looks == 0 || !(must || can) {
                        break;
                    }
                    looks -= 1;
                    if self.pass.picked.contains(slot) {
                        continue;
                    }
                    let row = self.pass.row(slot);
                    if !self.pass.can_have(worst, row, from, open.as_ref()) {
                        continue;
                    }
                    let to = walk.find(
                        position,
                        |local| self.pass.band.deficit(local) > 0,
                        |local| self.pass.effect(row, from, local) <= worst && !self.pass.declined(class, slot, local),
                    );
                    if let Some(to) = to
                        && self.take(slot, from, to, worst)
                        && self.pass.band.deficit(to) == 0
                    {
                        self.pass.close(open.as_mut(), to);
                    }
                }
            }
        }
    }

    /// Takes from members over their ceiling what is still too much: first what the ring puts elsewhere, then anything.
    fn shed(&mut self) {
        let mut walk = Walk::new(self.class.points(self.pass.roster));
        let mut open = self.pass.open_zones(Band::has_room);
        for from in self.pass.band.locals() {
            for &worst in self.pass.effects() {
                for strays in [true, false] {
                    self.shed_from(from, strays, worst, (&mut walk, &mut open));
                }
            }
        }
    }

    /// Takes from one member over its ceiling what is still too much.
    fn shed_from(
        &mut self,
        from: u32,
        strays: bool,
        worst: SpreadEffect,
        (walk, open): (&mut Walk<'_>, &mut Option<OpenZones>),
    ) {
        let class = self.class;
        let handle = self.pass.roster.handle(class.takers[from as usize]);
        for group in self.pass.groups.clone() {
            let excess = self.pass.band.excess(from);
            let Some(held) = group.held.get(&handle).filter(|_| excess > 0) else { continue };
            let looks = if strays {
                usize::try_from(excess).map_or(usize::MAX, |n| n.saturating_mul(LOOKED_AT_PER_STRAY)).max(256)
            } else {
                looks(excess, worst)
            };
            for &(position, slot) in held.movable.iter().take(looks) {
                if self.pass.band.excess(from) == 0 {
                    break;
                }
                if self.pass.picked.contains(slot) {
                    continue;
                }
                let row = self.pass.row(slot);
                let pass = &*self.pass;
                if !pass.can_have(worst, row, from, open.as_ref()) {
                    continue;
                }
                let suits = |local| pass.effect(row, from, local) <= worst && !pass.declined(class, slot, local);
                let has_room = |local| pass.band.has_room(local);
                let to = if strays {
                    walk.first(position).filter(|&local| local != from && has_room(local) && suits(local))
                } else {
                    walk.find(position, has_room, suits)
                };
                if let Some(to) = to {
                    self.carry(slot, from, to, Reason::OverCeiling);
                    if !self.pass.band.has_room(to) {
                        self.pass.close(open.as_mut(), to);
                    }
                }
            }
        }
    }
}

/// How many keys are looked at in search of so many that have no worse effect than this.
fn looks(wanted: u64, worst: SpreadEffect) -> usize {
    match worst {
        SpreadEffect::Worsens => usize::MAX,
        _ => usize::try_from(wanted.saturating_mul(LOOKED_AT_PER_KEY) + LOOKED_AT_LEAST).unwrap_or(usize::MAX),
    }
}

/// A member being filled.
struct Receiver {
    local: u32,
    /// Its points, as indices into the class's points.
    ends: Vec<usize>,
    /// Keys it may still look at.
    looks: u64,
    /// The worst that taking one may do to the spread of its tenant.
    worst: SpreadEffect,
}

/// Positions of the keys that belong to point `end`: one range, or two where the arc goes round the end.
fn arc_before(points: &[(u64, u32)], end: usize) -> [Option<RangeInclusive<u64>>; 2] {
    let position = points[end].0;
    let below = position.checked_sub(1);
    match end.checked_sub(1) {
        Some(before) => [below.map(|below| points[before].0..=below), None],
        None => [Some(points[points.len() - 1].0..=u64::MAX), below.map(|below| 0..=below)],
    }
}

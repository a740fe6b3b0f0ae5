//! What plans depend on: the members, and where each appliance is counted. Left out: the order in which names and groups
//! came, and everything made of the rest ("equal tables and members give equal plans, whatever happened before"); under
//! `Strategy::Ring` also which arcs are unsettled, so that such planners are not to be compared.

use common::appliance::Name;
use common::canon::{Canon, Canonical};

use super::{Needs, Planner, PlannerMember, Slot, Strategy};

impl Canonical for Planner {
    fn canon(&self, to: &mut Canon) {
        debug_assert_eq!(self.config.strategy, Strategy::Bounded, "the unsettled arcs of a ring are not written");
        to.list(&self.roster.members);
        for slot in 0..self.book.slot_limit() {
            let slot = Slot(u32::try_from(slot).expect("fewer than 2^32 slots"));
            let Some(entry) = self.book.entry(slot) else { continue };
            to.put(&slot.0);
            let group = self.book.group(entry.group);
            to.put(&(&group.needs, group.deleting));
            to.put(&(self.roster.name(entry.owner), self.roster.name(entry.former), entry.movable));
            to.put(&self.book.excluded.get(&slot));
            to.put(&self.pins.get(&slot).map(|pin| (&pin.worker, pin.strict)));
            if self.config.spreads() {
                to.put(&self.tenants.name(slot).map(Name::as_str));
            }
        }
    }
}

impl Canonical for PlannerMember {
    fn canon(&self, to: &mut Canon) {
        let Self { id, weight, published_weight: _, zone, host, drivers, connected, draining, drained, cordoned } =
            self;
        to.put(&(id, weight, zone));
        to.put(&(host, connected, draining));
        to.put(&(drained, cordoned));
        to.put(drivers);
    }
}

impl Canonical for Needs {
    fn canon(&self, to: &mut Canon) {
        let Self { driver, kind, site } = self;
        to.put(&(driver.as_str(), kind.as_str(), site));
    }
}

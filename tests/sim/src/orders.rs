//! Operators that order workers cordoned, drained or weighted, appliances pinned, and budgets kept to, at any time. Orders decide who is given
//! what and when, and nothing about ownership: whatever they say, everything else that is checked has to hold, and the world comes to rest.

use std::collections::BTreeSet;

use common::appliance::Name;
use common::{ApplianceId, WorkerId};
use coordinator_core::budget::{Budget, BudgetGroup, BudgetScope, MaxUnavailable};
use coordinator_core::handoff::HandoffState;
use coordinator_core::machine::{Event, Machine};
use coordinator_core::orders::{OrderOp, Pin};
use coordinator_core::planner::Strategy;
use coordinator_core::slot::Slot;
use coordinator_core::table::TableRow;

use super::database::DatabaseWrite;
use super::modes::any_subject;
use super::world::SimWorld;

/// Whether orders that are in force when the faults are over stay so.
const fn are_left_at_end(seed: u64) -> bool {
    seed % 4 == 1
}

/// Where an appliance may be in a world at rest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ordered {
    /// With one of these, and with nobody else.
    With(BTreeSet<WorkerId>),
    /// With one of those that can run it, or with nobody: operators keep everybody else from it.
    Anywhere,
}

impl SimWorld {
    /// An operator gives an order at a leader, which stores it before it is told of it.
    pub(super) fn give_order(&mut self, coordinator: usize, who: u32) {
        let Some(leader) = self.coordinators[coordinator].leader() else { return };
        let known: Vec<ApplianceId> = leader.catalog.keys().copied().collect();
        let pick = (who >> 4) as usize;
        let worker = self.places[pick % self.places.len()].name.clone();
        let set = self.rng.chance(55);
        let op = match who % 8 {
            0 => OrderOp::Cordon { worker, set },
            1 | 2 => OrderOp::Drain { worker, set },
            3 => OrderOp::Weight { worker, weight: set.then(|| 1 + self.rng.below(4) as u32) },
            4 | 5 => {
                let name = Name::new(["b1", "b2"][pick % 2]).expect("letters and digits");
                OrderOp::Budget { name, budget: set.then(|| self.any_budget()) }
            }
            _ if known.is_empty() => return,
            _ => {
                let strict = self.rng.chance(50);
                let appliance = known[self.rng.index(known.len())];
                OrderOp::Pin { appliance, pin: set.then_some(Pin { worker, strict }) }
            }
        };
        self.store_order(coordinator, op);
    }

    fn any_budget(&mut self) -> Budget {
        let per = [BudgetGroup::All, BudgetGroup::Tenant, BudgetGroup::Kind][self.rng.index(3)];
        let tenant = self.rng.chance(30).then(|| any_subject(&mut self.rng).tenant);
        let max_unavailable = match self.rng.index(4) {
            0 => MaxUnavailable::Percent(1 + self.rng.below(50) as u8),
            count => MaxUnavailable::Count(count as u32 - 1),
        };
        Budget { scope: BudgetScope { tenant, ..BudgetScope::default() }, per, max_unavailable }
    }

    fn store_order(&mut self, coordinator: usize, op: OrderOp) {
        let Some(leader) = self.coordinators[coordinator].leader_mut().filter(|leader| !leader.ordering) else {
            return;
        };
        leader.ordering = true;
        let (reign, term) = (leader.reign, leader.machine.term());
        self.note(|| format!("c{coordinator}: {op:?}"));
        self.submit(coordinator, reign, term, DatabaseWrite::Order(op));
    }

    /// The store has an order: the leader is told.
    pub(super) fn ordered(&mut self, coordinator: usize, op: OrderOp) {
        self.leader_step(coordinator, Event::Orders(vec![op]));
    }

    /// When all is over operators take back what is left, in most worlds.
    pub(super) fn clear_orders_at_end(&mut self, coordinator: usize) {
        let orders = &self.database.rows.orders;
        // One that allows nothing keeps the world from coming to rest.
        let budgets = orders.budgets().keys();
        let mut back: Vec<_> = budgets.map(|name| OrderOp::Budget { name: name.clone(), budget: None }).collect();
        if are_left_at_end(self.seed) {
            return back.into_iter().for_each(|op| self.store_order(coordinator, op));
        }
        for worker in self.places.iter().map(|place| place.name.clone()) {
            if orders.is_cordoned(&worker) {
                back.push(OrderOp::Cordon { worker: worker.clone(), set: false });
            }
            if orders.is_drained(&worker) {
                back.push(OrderOp::Drain { worker: worker.clone(), set: false });
            }
            if orders.weight(&worker).is_some() {
                back.push(OrderOp::Weight { worker, weight: None });
            }
        }
        back.extend(orders.pins().map(|(appliance, _)| OrderOp::Pin { appliance, pin: None }));
        for op in back {
            self.store_order(coordinator, op);
        }
    }

    /// What may still be made unavailable on purpose, before a step of a leader; nothing where there are no budgets.
    pub(super) fn available(&self, coordinator: usize) -> BTreeSet<Slot> {
        let Some(leader) = self.coordinators[coordinator].leader() else { return BTreeSet::new() };
        let machine = &leader.machine;
        if machine.budget_ledger().is_idle() {
            return BTreeSet::new();
        }
        let slots = machine.table().iter().map(|(slot, _)| slot);
        slots.filter(|slot| !machine.is_unavailable(*slot)).collect()
    }

    /// What a step has made unavailable on purpose was allowed by every budget.
    pub(super) fn check_budgets(&mut self, coordinator: usize, before: &BTreeSet<Slot>) {
        let Some(leader) = self.coordinators[coordinator].leader() else { return };
        let machine = &leader.machine;
        let ledger = machine.budget_ledger();
        let taken = |slot: &&Slot| {
            let row = machine.table().get(**slot);
            row.is_some_and(|row| matches!(row.state, HandoffState::Releasing(_)) && row.placement.moved_from.is_some())
        };
        let counts = ledger.counts();
        let beyond = before.iter().filter(taken).find_map(|slot| {
            let over = |key: &&(Name, String)| counts.get(*key).is_some_and(|n| n.down > ledger.most(&key.0, n.size));
            ledger.groups_at(*slot).find(over).map(|key| format!("budget {key:?}: {:?} after a move", counts[key]))
        });
        if let Some(wrong) = beyond {
            self.fail(wrong);
        }
    }

    /// Whether the store has any order.
    pub(super) fn has_orders(&self) -> bool {
        self.database.rows.orders != coordinator_core::orders::Orders::default()
    }

    /// Whether operators have yet to take orders back.
    pub(super) fn has_orders_to_clear(&self) -> bool {
        let budgets = !self.database.rows.orders.budgets().is_empty();
        budgets || !are_left_at_end(self.seed) && self.has_orders()
    }

    /// Where orders want an appliance that these workers can run.
    pub(super) fn ordered_to(&self, machine: &Machine, row: &TableRow, able: &BTreeSet<WorkerId>) -> Ordered {
        let orders = &self.database.rows.orders;
        if machine.config().planner.strategy == Strategy::Ring {
            return Ordered::With(able.clone());
        }
        let is_open = |worker: &WorkerId| !orders.is_drained(worker) && !orders.is_cordoned(worker);
        let open: BTreeSet<WorkerId> = able.iter().filter(|worker| is_open(worker)).cloned().collect();
        match orders.pin(row.id).filter(|_| !row.deleting) {
            Some(pin) if open.contains(&pin.worker) => Ordered::With([pin.worker.clone()].into()),
            Some(pin) if pin.strict => Ordered::Anywhere,
            _ if open.is_empty() => Ordered::Anywhere,
            // What a cordoned one has, it keeps.
            _ => Ordered::With(able.iter().filter(|worker| !orders.is_drained(worker)).cloned().collect()),
        }
    }
}

//! Operators that order workers cordoned, drained or weighted, and appliances pinned, at any time. Orders decide who is given what,
//! and nothing about ownership: whatever they say, everything else that is checked has to hold, and the world comes to rest.

use std::collections::BTreeSet;

use common::{ApplianceId, WorkerId};
use coordinator_core::machine::{Event, Machine};
use coordinator_core::orders::{OrderOp, Pin};
use coordinator_core::planner::Strategy;
use coordinator_core::table::TableRow;

use super::database::DatabaseWrite;
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
        let op = match who % 6 {
            0 => OrderOp::Cordon { worker, set },
            1 | 2 => OrderOp::Drain { worker, set },
            3 => OrderOp::Weight { worker, weight: set.then(|| 1 + self.rng.below(4) as u32) },
            _ if known.is_empty() => return,
            _ => {
                let strict = self.rng.chance(50);
                let appliance = known[self.rng.index(known.len())];
                OrderOp::Pin { appliance, pin: set.then_some(Pin { worker, strict }) }
            }
        };
        self.store_order(coordinator, op);
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
        if are_left_at_end(self.seed) {
            return;
        }
        let orders = &self.database.rows.orders;
        let mut back = Vec::new();
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

    /// Whether the store has any order.
    pub(super) fn has_orders(&self) -> bool {
        self.database.rows.orders != coordinator_core::orders::Orders::default()
    }

    /// Whether operators have yet to take orders back.
    pub(super) fn has_orders_to_clear(&self) -> bool {
        !are_left_at_end(self.seed) && self.has_orders()
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

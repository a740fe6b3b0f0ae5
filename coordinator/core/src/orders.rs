//! What operators order about placement: workers that are given nothing new or give up what they have, other weights, appliances
//! that belong to one worker, and budgets of disruption.
//!
//! Orders are inputs of the planner and of when its moves are begun: who owns what, and how that changes hands, does not depend on them. They
//! are about names, so that they hold for every life of a worker, and for one that is away. The store has an order before the
//! machine is told of it, and a new leader begins with those of the store. Who gave one, when and why is for people, and kept
//! by the leader beside this.

use std::collections::{BTreeMap, BTreeSet};

use common::appliance::Name;
use common::{ApplianceId, WorkerId};

use crate::budget::{Budget, MAX_BUDGETS};

/// Most orders about workers. Each is a row of the store and looked at when members change.
pub const MAX_WORKER_ORDERS: usize = 1_000;

/// Most appliances that are pinned. Every plan looks at each of them.
pub const MAX_PINS: usize = 10_000;

/// Where an appliance is to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pin {
    /// The worker.
    pub worker: WorkerId,
    /// No other worker is given the appliance. Otherwise others have it while this one cannot.
    pub strict: bool,
}

/// An order, or that one is taken back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OrderOp {
    /// A worker keeps what it has and is given nothing new.
    Cordon {
        /// The worker.
        worker: WorkerId,
        /// `false` takes the order back.
        set: bool,
    },
    /// A worker gives up what it has, as far as others can take it, and is given nothing.
    Drain {
        /// The worker.
        worker: WorkerId,
        /// `false` takes the order back.
        set: bool,
    },
    /// A worker has another weight than it publishes.
    Weight {
        /// The worker.
        worker: WorkerId,
        /// Its weight; as published when absent.
        weight: Option<u32>,
    },
    /// An appliance belongs to a worker.
    Pin {
        /// The appliance.
        appliance: ApplianceId,
        /// Where it is to be; anywhere when absent.
        pin: Option<Pin>,
    },
    /// So many appliances may be unavailable for another one to be made unavailable on purpose.
    Budget {
        /// Names the rule.
        name: Name,
        /// The rule; none from now on when absent.
        budget: Option<Budget>,
    },
}

impl OrderOp {
    /// Whether it gives an order, and does not take one back.
    #[must_use]
    pub const fn is_set(&self) -> bool {
        match self {
            Self::Cordon { set, .. } | Self::Drain { set, .. } => *set,
            Self::Weight { weight, .. } => weight.is_some(),
            Self::Pin { pin, .. } => pin.is_some(),
            Self::Budget { budget, .. } => budget.is_some(),
        }
    }

    /// The worker that it is about; none for one that is about appliances.
    #[must_use]
    pub const fn worker(&self) -> Option<&WorkerId> {
        match self {
            Self::Cordon { worker, .. } | Self::Drain { worker, .. } | Self::Weight { worker, .. } => Some(worker),
            Self::Pin { .. } | Self::Budget { .. } => None,
        }
    }
}

/// The orders in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    cordoned: BTreeSet<WorkerId>,
    drained: BTreeSet<WorkerId>,
    weights: BTreeMap<WorkerId, u32>,
    pins: BTreeMap<ApplianceId, Pin>,
    budgets: BTreeMap<Name, Budget>,
}

impl Orders {
    /// The orders that these come to, each after the ones before.
    #[must_use]
    pub fn of<'a>(ops: impl IntoIterator<Item = &'a OrderOp>) -> Self {
        let mut orders = Self::default();
        ops.into_iter().for_each(|op| orders.apply(op));
        orders
    }

    /// Takes in an order. The same one again changes nothing.
    pub fn apply(&mut self, op: &OrderOp) {
        fn put(names: &mut BTreeSet<WorkerId>, worker: &WorkerId, set: bool) {
            if set {
                names.insert(worker.clone());
            } else {
                names.remove(worker);
            }
        }
        match op {
            OrderOp::Cordon { worker, set } => put(&mut self.cordoned, worker, *set),
            OrderOp::Drain { worker, set } => put(&mut self.drained, worker, *set),
            OrderOp::Weight { worker, weight: Some(weight) } => _ = self.weights.insert(worker.clone(), *weight),
            OrderOp::Weight { worker, weight: None } => _ = self.weights.remove(worker),
            OrderOp::Pin { appliance, pin: Some(pin) } => _ = self.pins.insert(*appliance, pin.clone()),
            OrderOp::Pin { appliance, pin: None } => _ = self.pins.remove(appliance),
            OrderOp::Budget { name, budget: Some(budget) } => _ = self.budgets.insert(name.clone(), budget.clone()),
            OrderOp::Budget { name, budget: None } => _ = self.budgets.remove(name),
        }
    }

    /// Whether a worker is given nothing new.
    #[must_use]
    pub fn is_cordoned(&self, worker: &WorkerId) -> bool {
        self.cordoned.contains(worker)
    }

    /// Whether a worker gives up what it has.
    #[must_use]
    pub fn is_drained(&self, worker: &WorkerId) -> bool {
        self.drained.contains(worker)
    }

    /// The weight that a worker has instead of the one it publishes.
    #[must_use]
    pub fn weight(&self, worker: &WorkerId) -> Option<u32> {
        self.weights.get(worker).copied()
    }

    /// Where an appliance is to be.
    #[must_use]
    pub fn pin(&self, appliance: ApplianceId) -> Option<&Pin> {
        self.pins.get(&appliance)
    }

    /// Every appliance that is pinned.
    pub fn pins(&self) -> impl ExactSizeIterator<Item = (ApplianceId, &Pin)> {
        self.pins.iter().map(|(appliance, pin)| (*appliance, pin))
    }

    /// Budgets of disruption, by name.
    #[must_use]
    pub const fn budgets(&self) -> &BTreeMap<Name, Budget> {
        &self.budgets
    }

    /// Whether there are as many orders of this sort as there may be, and this one would be another.
    #[must_use]
    pub fn has_no_room_for(&self, op: &OrderOp) -> bool {
        let of_workers = || self.cordoned.len() + self.drained.len() + self.weights.len();
        match op {
            _ if !op.is_set() => false,
            OrderOp::Pin { appliance, .. } => self.pins.len() >= MAX_PINS && !self.pins.contains_key(appliance),
            OrderOp::Budget { name, .. } => self.budgets.len() >= MAX_BUDGETS && !self.budgets.contains_key(name),
            OrderOp::Cordon { worker, .. } => of_workers() >= MAX_WORKER_ORDERS && !self.is_cordoned(worker),
            OrderOp::Drain { worker, .. } => of_workers() >= MAX_WORKER_ORDERS && !self.is_drained(worker),
            OrderOp::Weight { worker, .. } => of_workers() >= MAX_WORKER_ORDERS && self.weight(worker).is_none(),
        }
    }

    #[cfg(feature = "canon")]
    pub(crate) fn canon(&self, to: &mut common::canon::Canon) {
        // No world of the model has budgets.
        let Self { cordoned, drained, weights, pins, budgets: _ } = self;
        to.list(cordoned);
        to.list(drained);
        to.list(weights.iter().map(|(worker, weight)| (worker, *weight)));
        to.list(pins.iter().map(|(appliance, pin)| (appliance, &pin.worker, pin.strict)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(n: usize) -> WorkerId {
        WorkerId::new(&format!("w{n}")).expect("valid")
    }

    #[test]
    fn the_last_order_of_a_sort_counts_and_the_same_one_again_changes_nothing() {
        let appliance = ApplianceId::from_u128(1);
        let pin = |n, strict| OrderOp::Pin { appliance, pin: Some(Pin { worker: worker(n), strict }) };
        let mut orders = Orders::of(&[
            OrderOp::Drain { worker: worker(1), set: true },
            OrderOp::Weight { worker: worker(1), weight: Some(3) },
            pin(1, true),
            pin(2, false),
        ]);
        let before = orders.clone();
        orders.apply(&OrderOp::Drain { worker: worker(1), set: true });
        assert_eq!(orders, before);
        assert!(orders.is_drained(&worker(1)) && !orders.is_cordoned(&worker(1)));
        assert_eq!((orders.weight(&worker(1)), orders.weight(&worker(2))), (Some(3), None));
        assert_eq!(orders.pin(appliance), Some(&Pin { worker: worker(2), strict: false }));
        for back in [
            OrderOp::Drain { worker: worker(1), set: false },
            OrderOp::Weight { worker: worker(1), weight: None },
            OrderOp::Pin { appliance, pin: None },
        ] {
            assert!(!back.is_set());
            orders.apply(&back);
        }
        assert_eq!(orders, Orders::default());
    }

    #[test]
    fn their_number_is_bounded_and_the_last_one_may_change() {
        let mut orders = Orders::default();
        for n in 0..MAX_WORKER_ORDERS {
            let op = OrderOp::Cordon { worker: worker(n), set: true };
            assert!(!orders.has_no_room_for(&op));
            orders.apply(&op);
        }
        assert!(orders.has_no_room_for(&OrderOp::Drain { worker: worker(0), set: true }));
        assert!(!orders.has_no_room_for(&OrderOp::Cordon { worker: worker(0), set: true }));
        assert!(!orders.has_no_room_for(&OrderOp::Drain { worker: worker(0), set: false }));
        let pin = |n| OrderOp::Pin {
            appliance: ApplianceId::from_u128(n),
            pin: Some(Pin { worker: worker(1), strict: true }),
        };
        (0..MAX_PINS as u128).for_each(|n| orders.apply(&pin(n)));
        assert!(orders.has_no_room_for(&pin(MAX_PINS as u128)) && !orders.has_no_room_for(&pin(7)));
    }
}

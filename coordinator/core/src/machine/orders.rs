//! Orders of operators about placement: what they come to for the planner, and who may have back what it held.

use common::WorkerId;

use super::{Action, Machine};
use crate::orders::OrderOp;
use crate::planner::Strategy;
use crate::table::TableRow;

impl Machine {
    /// Operators have given orders, and the store has them.
    pub(super) fn take_orders(&mut self, ops: &[OrderOp]) {
        for op in ops {
            match op {
                OrderOp::Pin { appliance, pin } => {
                    // It may be gone by now.
                    let Some(slot) = self.table.slot(*appliance) else { continue };
                    self.planner.set_pin(slot, pin.clone());
                    self.out.push(Action::Assigned(*appliance));
                }
                OrderOp::Cordon { worker, .. } | OrderOp::Drain { worker, .. } | OrderOp::Weight { worker, .. } => {
                    self.out.worker_changed(worker.clone());
                }
                OrderOp::Budget { .. } => {}
            }
            self.orders.apply(op);
        }
        if ops.iter().any(|op| matches!(op, OrderOp::Budget { .. })) {
            self.refresh_budgets();
        }
        self.refresh_members();
        self.pacing.due.drifted();
    }

    /// Under strategy `ring` only drains have an effect: the ring is one that others make of what workers publish.
    fn shares_by_order(&self) -> bool {
        self.config.planner.strategy == Strategy::Bounded
    }

    pub(super) fn is_cordoned(&self, worker: &WorkerId) -> bool {
        self.shares_by_order() && self.orders.is_cordoned(worker)
    }

    /// The weight of a worker that publishes this one.
    pub(super) fn weight(&self, worker: &WorkerId, published: u32) -> u32 {
        self.ordered_weight(worker).unwrap_or(published)
    }

    /// The weight that an operator ordered, where that has an effect.
    pub(super) fn ordered_weight(&self, worker: &WorkerId) -> Option<u32> {
        self.orders.weight(worker).filter(|_| self.shares_by_order())
    }

    /// Whether orders let a worker have back what it held, as soon as it is there again. A cordoned one keeps what it has over a
    /// restart; with one that is drained, or where another one is meant, the planner decides.
    pub(super) fn may_return(&self, entry: &TableRow, to: &WorkerId) -> bool {
        let pin = self.orders.pin(entry.id).filter(|_| self.shares_by_order() && !entry.deleting);
        !self.orders.is_drained(to) && pin.is_none_or(|pin| pin.worker == *to)
    }
}

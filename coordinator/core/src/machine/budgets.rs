//! Budgets of disruption: what is taken for unavailable, and which moves they hold back.

use common::{ApplianceId, WorkerId};

use super::Machine;
use crate::budget::{self, BudgetSpent, BudgetView, Facts, Ledger};
use crate::handoff::HandoffState;
use crate::membership::Membership;
use crate::planner::PlannedMove;
use crate::slot::Slot;
use crate::table::TableRow;

impl Machine {
    /// The rules have changed: everything is counted anew.
    pub(super) fn refresh_budgets(&mut self) {
        self.budgets.set_rules(self.orders.budgets().clone());
        self.count_budgets();
        self.pacing.due.drifted();
    }

    /// Counts every appliance, after rules or zones changed.
    pub(super) fn count_budgets(&mut self) {
        if self.budgets.is_idle() {
            return;
        }
        let slots: Vec<Slot> = self.table.iter().map(|(slot, _)| slot).collect();
        slots.into_iter().for_each(|slot| self.note_budget(slot));
    }

    /// Counts an appliance as it is now.
    pub(super) fn note_budget(&mut self, slot: Slot) {
        let row = self.table.get(slot).filter(|row| !row.deleting);
        let facts = row.map(|row| facts(&self.membership, row, None));
        if self.budgets.note(slot, facts.as_ref()) {
            self.pacing.due.drifted();
        }
    }

    /// Somebody is about to make an appliance unavailable, or has not done so after all.
    pub(super) fn disrupt(&mut self, id: ApplianceId, begins: bool) {
        let Some(slot) = self.table.slot(id) else { return };
        if self.budgets.is_reserved(slot) != begins {
            self.budgets.reserve(slot, begins);
            self.note_budget(slot);
        }
    }

    /// The rule that keeps an appliance from being made unavailable on purpose, if one does.
    #[must_use]
    pub fn refuses_disruption(&self, id: ApplianceId) -> Option<BudgetSpent> {
        let slot = self.table.slot(id)?;
        let row = self.table.get(slot).filter(|row| !row.deleting)?;
        self.budgets.refuses(slot, &facts(&self.membership, row, None))
    }

    /// The rule that keeps a move from being begun, if one does.
    pub(super) fn refuses_move(&self, m: &PlannedMove<'_>) -> Option<BudgetSpent> {
        if self.budgets.is_idle() {
            return None;
        }
        let row = self.table.get(m.slot).filter(|row| !row.deleting)?;
        self.budgets.refuses(m.slot, &facts(&self.membership, row, Some(m.to)))
    }

    /// How each rule stands.
    #[must_use]
    pub fn budgets(&self) -> Vec<BudgetView> {
        self.budgets.views()
    }

    /// What is counted, for checks.
    #[must_use]
    pub const fn budget_ledger(&self) -> &Ledger {
        &self.budgets
    }

    /// What is to be counted, made of the table anew.
    pub(crate) fn counted_anew(&self) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.set_rules(self.orders.budgets().clone());
        for (slot, row) in self.table.iter().filter(|(_, row)| !row.deleting) {
            ledger.reserve(slot, self.budgets.is_reserved(slot));
            ledger.note(slot, Some(&facts(&self.membership, row, None)));
        }
        ledger
    }

    /// Whether an appliance is unavailable, as budgets see it.
    #[must_use]
    pub fn is_unavailable(&self, slot: Slot) -> bool {
        self.table.get(slot).is_some_and(is_down)
    }
}

/// It has no owner that has said, of its newest generation, that it is configured.
const fn is_down(row: &TableRow) -> bool {
    !(row.available && matches!(row.state, HandoffState::Owned(_)))
}

fn facts<'a>(membership: &'a Membership, row: &'a TableRow, next: Option<&WorkerId>) -> Facts<'a> {
    let owner = row.state.grant().map(|grant| &grant.worker);
    let on_the_way = if row.placement.moved_from.is_some() { row.placement.preferred.as_ref() } else { None };
    let workers = [owner, row.placement.moved_from.as_ref(), next.or(on_the_way)];
    let zone_of = |worker: &WorkerId| {
        let life = common::Life::new(worker.clone(), membership.current(worker)?);
        Some(membership.profile(&life)?.zone.as_str())
    };
    Facts { subject: &row.subject, kind: row.needs.kind, zones: budget::zones(workers, zone_of), down: is_down(row) }
}

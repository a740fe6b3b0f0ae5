//! What the machine's behaviour depends on, in canonical form (see [`common::canon`]).
//!
//! Left out, with the reason beside each: what is only for people, what is counted from the rest, settings, and the
//! number of the next batch, incarnation and rebalance, which only have to be new. Lists every field, so that a new one
//! has to be thought of.

use common::canon::{Canon, Canonical};

use super::pacing::Pacing;
use super::writes::{Pending, Writes};
use super::{Commit, Machine, STALL, TICK};
use crate::grants::{GrantOp, Granted, StoredGrant, StoredMember};
use crate::handoff::HandoffState;
use crate::modes::ModeOp;
use crate::table::{RowPlacement, TableRow};

impl Canonical for Machine {
    fn canon(&self, to: &mut Canon) {
        let Self {
            // Does not change within a run.
            config: _,
            epoch,
            table,
            // Made of the table; `checks` compares them.
            tallies: _,
            planner,
            membership,
            members: _,
            sessions,
            writes,
            // Its audit is made of the table, but for what digests of workers set off; those of a model say none.
            conflicts,
            quarantine,
            modes,
            orders,
            // Counted from the table, and empty: no world of the model has budgets.
            budgets: _,
            pacing,
            out,
            // For people.
            counters: _,
        } = self;
        debug_assert!(out.is_empty(), "between two steps nothing waits");
        to.put(&epoch.term);
        // For what it gave its tokens is asked only of claims that no worker makes which keeps to the protocol.
        to.put(&common::Token::new(epoch.term, epoch.next_sequence));
        if membership.is_embedded() {
            to.after(epoch.last_step, TICK + STALL + std::time::Duration::from_nanos(1));
        }
        to.put(&table.len());
        for (slot, entry) in table.iter() {
            to.put(&slot.0);
            to.put(entry);
        }
        to.put(planner);
        to.put(membership);
        to.put(sessions);
        to.list(conflicts.owners().iter().map(|(slot, by)| (slot.0, by)));
        let Pacing { due: _, in_flight: _, window: _, declined, brake, rebalances, paused } = pacing;
        to.put(&declined.len());
        for (slot, by) in declined {
            to.put(&slot.0);
            to.list(by.keys());
            by.values().for_each(|until| to.until(*until));
        }
        to.put(writes);
        to.put(quarantine);
        modes.canon(to);
        orders.canon(to);
        to.put(brake);
        to.put(&paused.as_ref().map(|pause| pause.moves_only));
        self.canon_members(to);
        to.put(rebalances);
        self.canon_placement(to);
    }
}

impl Canonical for Writes {
    fn canon(&self, to: &mut Canon) {
        // The number of the next batch only has to be new.
        let Self { next_batch: _, under_way, commit, pending, freed, unbinding, retries, ending, remembered, end_at } =
            self;
        to.put(&under_way.len());
        for (batch, pending) in under_way {
            to.batch(*batch);
            to.put(pending);
        }
        to.put(commit);
        to.put(pending);
        to.list(freed.iter().map(|slot| slot.0));
        to.list(unbinding.iter().map(|slot| slot.0));
        to.put(&retries.len());
        for (at, slot) in retries {
            to.until(*at);
            to.put(&slot.0);
        }
        to.put(ending);
        to.put(remembered);
        to.put(&end_at.is_some());
        if let Some(at) = end_at {
            to.until(*at);
        }
    }
}

impl Canonical for Pending {
    fn canon(&self, to: &mut Canon) {
        match self {
            Self::Slot(slot, token) => to.put(&(0_u32, slot.0, token)),
            Self::Member(conn) => {
                to.plain(1);
                to.conn(*conn);
            }
            Self::Departed(life, missed) => to.put(&(2_u32, life, missed)),
            // The number only finds the caller.
            Self::Unbound(slot, _) => to.put(&(3_u32, slot.0)),
            Self::Mode(id, _) => to.put(&(4_u32, id.get() as u64)),
        }
    }
}

impl Canonical for TableRow {
    fn canon(&self, to: &mut Canon) {
        let Self {
            id,
            needs,
            edition,
            size,
            deleting,
            state,
            handed,
            fence_delay_if_lost,
            placement,
            binding,
            granted_before,
            // No model changes it.
            subject: _,
            mode,
            quiet,
            // Asked by budgets alone.
            available: _,
        } = self;
        // Reasons are for people.
        let RowPlacement { preferred, moved_from, reason: _, unplaced: _, rebalance } = placement;
        to.put(&(id, needs, edition));
        to.put(&(size, deleting));
        to.put(state);
        to.put(handed);
        to.put(fence_delay_if_lost);
        to.put(&(preferred, moved_from, rebalance));
        to.put(&(binding, granted_before));
        to.put(&(mode, quiet));
    }
}

impl Canonical for HandoffState {
    fn canon(&self, to: &mut Canon) {
        to.text(self.name());
        to.put(&self.grant());
        let from = if let Self::Passing { from, .. } = self { Some(from) } else { None };
        to.put(&from);
    }
}

impl Canonical for Granted {
    fn canon(&self, to: &mut Canon) {
        let Self { worker, incarnation, token } = self;
        to.put(&(worker, incarnation, token));
    }
}

impl Canonical for Commit {
    fn canon(&self, to: &mut Canon) {
        let Self { grants, put_members, remove_members, modes } = self;
        to.put(grants);
        to.put(put_members);
        to.put(remove_members);
        to.list(modes.iter().map(|op| (matches!(op, ModeOp::Set(_)), op.id().get() as u64)));
    }
}

impl Canonical for GrantOp {
    fn canon(&self, to: &mut Canon) {
        match self {
            Self::Grant { appliance, to: granted, site, fence_delay } => {
                to.put(&((0_u32, appliance), granted, site));
                to.put(fence_delay);
            }
            Self::Free { appliance, progress, fence_delay } => to.put(&((1_u32, appliance), progress, fence_delay)),
            Self::Remove { appliance } => to.put(&(2_u32, appliance)),
            Self::Unbind { appliance, progress, fence_delay } => to.put(&((3_u32, appliance), progress, fence_delay)),
        }
    }
}

impl Canonical for StoredMember {
    fn canon(&self, to: &mut Canon) {
        let Self { worker, incarnation, profile, departed, seal } = self;
        to.put(&((worker, incarnation), profile, departed));
        to.put(seal);
    }
}

impl Canonical for StoredGrant {
    fn canon(&self, to: &mut Canon) {
        let Self { granted, site, progress, fence_delay, ever } = self;
        to.put(&(granted, site, progress));
        to.put(&(fence_delay, ever));
    }
}

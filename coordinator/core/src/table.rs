//! The assignment table: every appliance the leader knows, by slot and by id.
//!
//! Slots are small numbers that the planner shares; one is used again after its appliance is gone, so whatever outlives
//! a step (outbox entries, pending writes) names the token as well, and tokens are never used twice.
//!
//! Each entry also keeps the account of its *fence delay*: how long the next owner has to wait because calls of former
//! ones, which no token fences, may still take effect. The leader never counts a fence delay down, not even while
//! the appliance has no owner: the owner does, by one clock, and its release carries what is left. Waiting longer is
//! always safe, a leader's clock would be one more to trust, and what a new leader reads in the store is right without
//! knowing since when it stands there.

use std::collections::HashMap;
use std::time::Duration;

use common::mode::Quiet;
use common::session::Carryover;
use common::{ApplianceId, Edition, Mode, ModeSubject, RebalanceId, Token, WorkerId};

use crate::handoff::HandoffState;
use crate::planner::{Needs, Reason, Unplaced};
use crate::slot::Slot;

/// An appliance as the table takes it in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Identity.
    pub id: ApplianceId,
    /// What the ring hashes.
    pub placement_key: String,
    /// What it needs of a worker.
    pub needs: Needs,
    /// Edition in force.
    pub edition: Edition,
    /// About how many bytes its specification has on the wire.
    pub size: usize,
    /// It is to be removed.
    pub deleting: bool,
    /// What rules of operators go by.
    pub subject: ModeSubject,
}

/// One appliance of the table.
#[derive(Clone, Debug)]
pub struct TableRow {
    /// Identity.
    pub id: ApplianceId,
    /// What it needs of a worker.
    pub needs: Needs,
    /// Edition in force.
    pub edition: Edition,
    /// About how many bytes its specification has on the wire.
    pub size: usize,
    /// It is to be removed.
    pub deleting: bool,
    /// Where its ownership stands.
    pub state: HandoffState,
    /// The carryover of its last owner; given to the next one.
    pub handed: Option<Box<Carryover>>,
    /// The fence delay that is left to the next owner if the present one is lost: how long its calls may take effect
    /// after its lease, and at least what it has to wait itself.
    pub fence_delay_if_lost: Duration,
    /// Where it goes and why, as the last plan and the move under way have it.
    pub placement: RowPlacement,
    /// The grant that bound it to its site, until it has arrived: one that no worker took binds nothing.
    pub binding: Option<Token>,
    /// It was granted at some time, so instances may exist.
    pub granted_before: bool,
    /// What rules of operators go by.
    pub subject: Box<ModeSubject>,
    /// Whether hands are off, and since which edition.
    pub mode: Mode,
    /// That its holder, or a former one, keeps to an edition of that.
    pub quiet: Option<Box<Quiet>>,
    /// Its owner has said that it is configured, of its newest generation.
    pub available: bool,
}

/// Where an appliance goes, and why: what its last plan and the move under way say.
#[derive(Clone, Debug, Default)]
pub struct RowPlacement {
    /// Worker it is on its way to, while `Releasing` or `Freeing`; afterwards the name that is preferred.
    pub preferred: Option<WorkerId>,
    /// Owner before the move under way.
    pub moved_from: Option<WorkerId>,
    /// Why it was granted to its owner, or is being moved.
    pub reason: Option<Reason>,
    /// Why no worker can take it, as of the last plan.
    pub unplaced: Option<Unplaced>,
    /// Rebalance its move belongs to.
    pub rebalance: Option<RebalanceId>,
}

impl TableRow {
    /// How long the next owner has to wait before calls that no token fences.
    #[must_use]
    pub fn fence_delay(&self) -> Duration {
        self.handed.as_ref().map_or(Duration::ZERO, |handed| handed.fence_delay)
    }

    /// It is being granted to a worker whose calls may take effect for `fence_delay` after its lease.
    pub(crate) fn granted_with(&mut self, fence_delay: Duration) {
        self.fence_delay_if_lost = fence_delay.max(self.fence_delay());
    }

    /// Its owner may have acted, and what came of it is not known: the fence delay starts in full.
    pub(crate) fn start_fence_delay(&mut self) {
        self.raise_fence_delay(self.fence_delay_if_lost);
    }

    /// Whether its holder has shut its gate for good as far as the mode in force goes, and for how long calls that it had started
    /// may take effect; `None` when it has not said so, or there is none.
    #[must_use]
    pub fn kept_quiet(&self) -> Option<Duration> {
        let holder = self.state.holder()?;
        let keeps = |quiet: &Quiet| quiet.token == holder.token && quiet.edition >= self.mode.edition;
        let quiet = self.quiet.as_deref().filter(|quiet| self.mode.hands_off && keeps(quiet))?;
        Some(quiet.fence_delay)
    }

    /// About how many bytes it takes to tell its owner of it, with what the last one passed on.
    pub(crate) fn told_size(&self) -> usize {
        self.size + 128 + self.handed.as_ref().map_or(0, |handed| handed.progress.size())
    }

    /// Makes the next owner wait for at least `fence_delay`. Returns whether that is longer than before.
    pub(crate) fn raise_fence_delay(&mut self, fence_delay: Duration) -> bool {
        let raised = fence_delay > self.fence_delay();
        if raised {
            self.handed.get_or_insert_default().fence_delay = fence_delay;
        }
        raised
    }

    /// Forgets the fence delay, which only a mutant does.
    pub(crate) fn lose_fence_delay(&mut self) {
        if let Some(handed) = &mut self.handed {
            handed.fence_delay = Duration::ZERO;
        }
    }
}

/// All appliances.
#[derive(Clone, Debug, Default)]
pub struct Table {
    entries: Vec<Option<TableRow>>,
    free: Vec<u32>,
    index: HashMap<ApplianceId, Slot>,
}

impl Table {
    /// Takes in an appliance; `None` when its id is known.
    pub fn insert(&mut self, entry: TableRow) -> Option<Slot> {
        if self.index.contains_key(&entry.id) {
            return None;
        }
        let slot = match self.free.pop() {
            Some(n) => Slot(n),
            None => {
                self.entries.push(None);
                Slot(u32::try_from(self.entries.len() - 1).expect("the API admits far fewer than 2^32 appliances"))
            }
        };
        self.index.insert(entry.id, slot);
        self.entries[slot.0 as usize] = Some(entry);
        Some(slot)
    }

    /// Removes an appliance.
    pub fn remove(&mut self, slot: Slot) -> Option<TableRow> {
        let entry = self.entries.get_mut(slot.0 as usize)?.take()?;
        self.index.remove(&entry.id);
        self.free.push(slot.0);
        Some(entry)
    }

    /// The slot of an appliance.
    #[must_use]
    pub fn slot(&self, id: ApplianceId) -> Option<Slot> {
        self.index.get(&id).copied()
    }

    /// The appliance in a slot.
    #[must_use]
    pub fn get(&self, slot: Slot) -> Option<&TableRow> {
        self.entries.get(slot.0 as usize)?.as_ref()
    }

    /// The appliance in a slot, to be changed.
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut TableRow> {
        self.entries.get_mut(slot.0 as usize)?.as_mut()
    }

    /// The appliance in a slot, if the grant it is about has this token.
    #[must_use]
    pub fn under(&self, slot: Slot, token: Token) -> Option<&TableRow> {
        self.get(slot).filter(|e| e.state.grant().is_some_and(|g| g.token == token))
    }

    /// Every appliance, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &TableRow)> {
        self.entries.iter().enumerate().filter_map(|(n, e)| Some((Slot(n as u32), e.as_ref()?)))
    }

    /// Number of appliances.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }
}

//! Fence delays: how long the next owner of an appliance waits because calls that no token fences may still take effect.
//!
//! What is kept, for each appliance, is in [`crate::table`]. A grant is stored with the fence delay that its loss would
//! leave, so that it is known whoever leads then and whether or not anything of its owner is left. An offer that no worker
//! took leaves the fence delay as it was; an owner that may have acted and says nothing of it (its lease ended, or its
//! `Hello` lists nothing) leaves it in full; a release says what is left. Who acted against the table leaves one as
//! well.

use std::time::Duration;

use common::Life;
use common::session::Carryover;

use super::Machine;
use crate::grants::{GrantOp, Profile};
use crate::planner::Slot;

impl Machine {
    /// An appliance is about to be granted to this life.
    pub(super) fn note_grant(&mut self, slot: Slot, life: &Life) {
        let Some(entry) = self.table.get_mut(slot) else { return };
        let fence_delay = self.membership.profile(life).map_or(Duration::ZERO, |p| p.fence_delay(&entry.needs.driver));
        entry.granted_with(fence_delay);
    }

    /// A life says that it holds an appliance as its grant. The store may be of before that grant, or of before its
    /// owner was set up otherwise.
    pub(super) fn note_held(&mut self, slot: Slot, life: &Life) {
        let Some(entry) = self.table.get_mut(slot) else { return };
        let fence_delay = self.membership.profile(life).map_or(Duration::ZERO, |p| p.fence_delay(&entry.needs.driver));
        entry.fence_delay_if_lost = entry.fence_delay_if_lost.max(fence_delay);
    }

    /// Cuts what a release says to what its worker can have left: the fence delay of its driver, or what it was granted
    /// with. Whoever can say a release could otherwise keep every later owner waiting for as long as it likes.
    pub(super) fn limit_fence_delay(&self, slot: Slot, life: &Life, carryover: &mut Carryover) {
        let Some(entry) = self.table.get(slot) else { return };
        let own = self.membership.profile(life).map_or(Duration::ZERO, |p| p.fence_delay(&entry.needs.driver));
        carryover.fence_delay = carryover.fence_delay.min(own.max(entry.fence_delay_if_lost));
    }

    /// What an owner leaves that hands nothing in.
    pub(super) fn nothing_handed_in(&self, slot: Slot) -> Carryover {
        let fence_delay = self.table.get(slot).map_or(Duration::ZERO, |entry| entry.fence_delay_if_lost);
        Carryover { fence_delay, ..Carryover::default() }
    }

    /// A life that held an appliance against the table has ended.
    pub(super) fn conflicting_owner_lost(&mut self, slot: Slot, profile: &Profile) {
        if let Some(entry) = self.table.get(slot) {
            let fence_delay = profile.fence_delay(&entry.needs.driver);
            self.delay_at_least(slot, fence_delay);
        }
    }

    /// Makes the next owner of what no worker has wait for at least `fence_delay`, whoever leads then. For what is said by
    /// others than its holder: of a worker that acted against the table, or said again; a fence delay that is known
    /// already changes nothing.
    pub(super) fn delay_at_least(&mut self, slot: Slot, fence_delay: Duration) {
        let Some(entry) = self.table.get_mut(slot) else { return };
        if !entry.state.wants_owner() || !entry.raise_fence_delay(fence_delay) {
            return;
        }
        let Carryover { progress, fence_delay } = entry.handed.as_deref().cloned().unwrap_or_default();
        // Not waited for: it happens only after the store was put back to an older state, and is remembered here.
        self.writes.note(GrantOp::Free { appliance: entry.id, progress, fence_delay });
    }
}

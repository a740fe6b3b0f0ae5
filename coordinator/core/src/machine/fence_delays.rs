//! Fence delays: how long the next owner of an appliance waits because calls that no token fences may still take effect.
//!
//! What is kept, for each appliance, is in [`crate::table`]. A grant is stored with the fence delay that its loss would
//! leave, so that it is known whoever leads then and whether or not anything of its owner is left. An offer that no worker
//! took leaves the fence delay as it was; an owner that may have acted and says nothing of it (its lease ended, or its
//! `Hello` lists nothing) leaves it in full; a release says what is left. Who acted against the table leaves one as
//! well.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use common::session::Carryover;
use common::{Life, Timestamp};

use super::{Action, Machine};
use crate::grants::{GrantOp, Profile};
use crate::slot::Slot;
use crate::unowned;

/// Owners that took an appliance with a fence delay: since when, and how long they wait. Only for people: it is the owner
/// that counts, and this is what the leader's clock makes of it.
pub(super) type FenceWaits = BTreeMap<Slot, (Timestamp, Duration)>;

/// That an appliance is left alone for a while, because calls of a former owner may still take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceWait {
    /// Its owner waits, for about so much longer.
    Owner(Duration),
    /// Its next owner will have to wait for so long.
    Next(Duration),
}

impl fmt::Display for FenceWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = "because calls of a former one may still take effect";
        match self {
            Self::Owner(left) => write!(f, "its owner waits about {:.0} s before it acts, {why}", left.as_secs_f64()),
            Self::Next(delay) => write!(f, "its next owner waits {:.0} s before it acts, {why}", delay.as_secs_f64()),
        }
    }
}

/// How long an owner that is told this fence delay waits, as `worker_core::gate` does; `None` when it does not.
pub(super) fn fence_wait(told: Duration) -> Option<Duration> {
    (!told.is_zero()).then(|| told * 115 / 100)
}

impl Machine {
    /// What is waited for before an owner acts on an appliance, if anything is.
    #[must_use]
    pub fn fence_wait(&self, now: Timestamp, slot: Slot) -> Option<FenceWait> {
        if let Some((since, wait)) = self.tallies.fence_waits.get(&slot) {
            let left = wait.saturating_sub(now.since(*since));
            return (!left.is_zero()).then_some(FenceWait::Owner(left));
        }
        let row = self.table.get(slot).filter(|row| !unowned::has_owner(&row.state))?;
        fence_wait(row.fence_delay()).map(FenceWait::Next)
    }

    /// Appliances that are left alone for such a time, or will be once they have an owner: of those without one, only the
    /// thousand that have had none for longest are looked at.
    #[must_use]
    pub fn fence_waits(&self, now: Timestamp) -> u64 {
        let owners = self.tallies.fence_waits.keys();
        let unowned = self.tallies.unowned.oldest().map(|(_, slot)| slot).take(1_000);
        owners.copied().chain(unowned).filter(|slot| self.fence_wait(now, *slot).is_some()).count() as u64
    }

    /// Shows of whom nobody waits any more.
    pub(super) fn end_fence_waits(&mut self, now: Timestamp) {
        let over = |(_, (since, wait)): &(&Slot, &(Timestamp, Duration))| now.since(*since) >= *wait;
        let over: Vec<Slot> = self.tallies.fence_waits.iter().filter(over).map(|(slot, _)| *slot).collect();
        for slot in over {
            self.tallies.fence_waits.remove(&slot);
            if let Some(row) = self.table.get(slot) {
                self.out.push(Action::Assigned(row.id));
            }
        }
    }

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
        carryover.fence_delay = carryover.fence_delay.min(self.most_fence_delay(slot, life));
    }

    /// The most that a life can leave of an appliance.
    pub(super) fn most_fence_delay(&self, slot: Slot, life: &Life) -> Duration {
        let Some(entry) = self.table.get(slot) else { return Duration::ZERO };
        let own = self.membership.profile(life).map_or(Duration::ZERO, |p| p.fence_delay(&entry.needs.driver));
        own.max(entry.fence_delay_if_lost)
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

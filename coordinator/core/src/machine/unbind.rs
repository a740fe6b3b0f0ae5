//! Freeing an unowned appliance from the site that its instances are kept on, for a host that is lost for good.
//!
//! Only the operator can know that a host does not come back, so nothing here happens by itself. What the leader can know
//! it checks: that no worker may act on the appliance. Until the store has the change the appliance is granted to no
//! worker, so that nothing that was decided with the old site is written after it. What a former owner left to be waited
//! for (progress, fence delay) is kept (docs/protocol.md, Tokens and grants).

use std::fmt;
use std::time::Duration;

use common::session::Carryover;
use common::{ApplianceId, Life, Site, Timestamp, WorkerId};

use super::Machine;
use super::events::Action;
use crate::grants::GrantOp;
use crate::handoff::{HandoffEvent, HandoffState};
use crate::slot::Slot;

/// Names one request to unbind, so that its answer finds the caller.
pub type UnbindNumber = u64;

/// Why an appliance is not freed from its site. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnbindRefused {
    /// There is no such appliance.
    Unknown,
    /// A worker may act on it, or is about to.
    MayBeOwned {
        /// The worker.
        worker: WorkerId,
        /// What it has to do with the appliance, as a predicate: "owns it".
        how: &'static str,
        /// When its lease is over, if no heartbeat of it is seen.
        lease_ends: Option<Duration>,
    },
    /// A change of its ownership is being stored.
    BeingStored,
    /// A new leader does not know yet what these workers own.
    Awaited(Vec<WorkerId>),
    /// It is bound to another site than the one it was to be freed from.
    OtherSite(Site),
    /// The store cannot be written now.
    NotStored,
}

impl fmt::Display for UnbindRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("there is no such appliance"),
            Self::MayBeOwned { worker, how, lease_ends } => {
                write!(f, "{worker} {how}")?;
                match lease_ends {
                    Some(left) => write!(f, "; its lease ends in {:.1} s if no heartbeat comes", left.as_secs_f64()),
                    None => Ok(()),
                }
            }
            Self::BeingStored => f.write_str("a change of its ownership is being stored"),
            Self::Awaited(workers) if workers.is_empty() => f.write_str("a new leader is reading which workers live"),
            Self::Awaited(workers) => {
                let names: Vec<&str> = workers.iter().take(5).map(WorkerId::as_str).collect();
                write!(f, "a new leader waits for {} to say what they own", names.join(", "))
            }
            Self::OtherSite(site) => write!(f, "it is bound to {site}"),
            Self::NotStored => f.write_str("the store cannot be written now"),
        }
    }
}

impl Machine {
    /// Frees an appliance from its site, or from `expected` only. [`Action::Unbind`] has the answer: at once when it is
    /// refused or not bound, otherwise once the store has it.
    pub(super) fn unbind(&mut self, now: Timestamp, id: ApplianceId, expected: Option<&Site>, number: UnbindNumber) {
        let slot = match self.may_unbind(now, id, expected) {
            Ok(Some(slot)) => slot,
            Ok(None) => return self.out.push(Action::Unbind(number, Ok(None))),
            Err(refused) => return self.out.push(Action::Unbind(number, Err(refused))),
        };
        let Some(row) = self.table.get(slot) else { return };
        let Carryover { progress, fence_delay } = row.handed.as_deref().cloned().unwrap_or_default();
        self.writes.unbind(slot, number, GrantOp::Unbind { appliance: id, progress, fence_delay });
        self.tell_planner(slot);
    }

    /// The slot to be freed; `None` when the appliance is not bound.
    fn may_unbind(
        &self,
        now: Timestamp,
        id: ApplianceId,
        expected: Option<&Site>,
    ) -> Result<Option<Slot>, UnbindRefused> {
        let slot = self.table.slot(id).ok_or(UnbindRefused::Unknown)?;
        let row = self.table.get(slot).ok_or(UnbindRefused::Unknown)?;
        if let Some(life) = self.conflicts.owner(slot) {
            return Err(self.may_be_owned(now, life, "owns it against the table"));
        }
        let how = match &row.state {
            HandoffState::Unowned | HandoffState::Orphaned(_) => None,
            HandoffState::Freeing(_) | HandoffState::Removing(_) => return Err(UnbindRefused::BeingStored),
            HandoffState::Granting(_) | HandoffState::Passing { .. } => Some("is about to be granted it"),
            HandoffState::Offered(_) => Some("is being granted it"),
            HandoffState::Owned(_) => Some("owns it"),
            HandoffState::Releasing(_) => Some("is releasing it"),
        };
        if let (Some(how), Some(life)) = (how, row.state.granted_to()) {
            return Err(self.may_be_owned(now, &life, how));
        }
        let awaited = self.pacing.due.awaited(now);
        if !self.members.has_read() || !awaited.is_empty() {
            return Err(UnbindRefused::Awaited(awaited));
        }
        if self.writes.is_unbinding(slot) {
            return Err(UnbindRefused::BeingStored);
        }
        match (&row.needs.site, expected) {
            (None, _) => Ok(None),
            (Some(site), Some(expected)) if !site.is(expected) => Err(UnbindRefused::OtherSite(site.clone())),
            (Some(_), _) => Ok(Some(slot)),
        }
    }

    /// Names the worker that may act, and how long that lasts if its heartbeats are late.
    fn may_be_owned(&self, now: Timestamp, life: &Life, how: &'static str) -> UnbindRefused {
        let late = self.membership.last_beat(now, life).is_none_or(|(age, lease)| age > lease / 2);
        let lease_ends = self.membership.remaining(now, life).filter(|_| late);
        UnbindRefused::MayBeOwned { worker: life.worker.clone(), how, lease_ends }
    }

    /// The store has the change of [`Machine::unbind`], or surely does not.
    pub(super) fn unbound(&mut self, now: Timestamp, slot: Slot, number: UnbindNumber, durable: bool) {
        self.writes.unbound(slot);
        if !durable {
            self.tell_planner(slot);
            return self.out.push(Action::Unbind(number, Err(UnbindRefused::NotStored)));
        }
        let Some(row) = self.table.get_mut(slot) else { return };
        let site = row.needs.site.take();
        row.binding = None;
        // The worker of that site is not waited for, nor preferred.
        row.placement.preferred = None;
        row.placement.unplaced = None;
        let (id, needs) = (row.id, row.needs.clone());
        self.planner.set_needs(slot, needs);
        self.transition(now, slot, HandoffEvent::Unbound);
        self.tell_planner(slot);
        self.out.push(Action::Assigned(id));
        self.out.push(Action::Unbind(number, Ok(site)));
    }
}

#[cfg(test)]
mod tests;

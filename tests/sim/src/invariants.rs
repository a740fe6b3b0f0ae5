//! What must hold after every step (I1, I3 to I5). Each is looked at where a step can have broken it; that this misses
//! nothing is looked at now and then ([`SimWorld::check_everything`]).
//!
//! Once the store was put back to an older copy it does not keep what it committed, so that leases of owners it knows
//! nothing of keep nobody away: what is promised then is that tokens still rise, and that they fence.

use std::collections::BTreeSet;

use common::session::DeltaEntry;
use common::{ApplianceId, Token};
use coordinator_core::checks;
use coordinator_core::machine::Refusal;

use super::net::SimDesired;
use super::world::SimWorld;

/// A machine is compared with its table once in so many of its steps, and at the end.
const MACHINE_LOOKS: u64 = 32;

impl SimWorld {
    /// What the machine keeps agrees with its table.
    pub(super) fn check_leader(&mut self, coordinator: usize, steps: u64) {
        // After a restore an owner that the copy does not know may turn up while its appliance is being granted; the grant
        // is then not offered, but for a moment it looks wrong.
        if !steps.is_multiple_of(MACHINE_LOOKS) || self.database.restored {
            return;
        }
        let Some(leader) = self.coordinators[coordinator].leader() else { return };
        if let Some(wrong) = checks::machine(&leader.machine).into_iter().next() {
            self.fail(format!("machine: {wrong}"));
        }
    }

    /// I1: nobody else is able to act on this appliance while this worker is.
    pub(super) fn check_held(&mut self, place: usize, id: ApplianceId) {
        if self.database.restored {
            return;
        }
        let Some(token) = self.places[place].able(self.now, id) else { return };
        self.check_alone(place, id, token);
    }

    /// I1: a call has passed the gate, so nobody else is able to act.
    pub(super) fn check_passed(&mut self, place: usize, id: ApplianceId, token: Token) {
        if !self.database.restored {
            self.check_alone(place, id, token);
        }
    }

    fn check_alone(&mut self, place: usize, id: ApplianceId, token: Token) {
        let mut others = (0..self.places.len()).filter(|&other| other != place);
        let both = others.find_map(|other| Some((other, self.places[other].able(self.now, id)?)));
        if let Some((other, theirs)) = both {
            let (one, two) = (place + 1, other + 1);
            self.fail(format!("I1: w{one} under {token} and w{two} under {theirs} can both act on {id}"));
        }
    }

    /// I3 and I4: a grant is in the store before a worker hears of it, and its token is newer than any met there.
    pub(super) fn check_taken(&mut self, place: usize, id: ApplianceId, token: Token) {
        let p = &mut self.places[place];
        let newest = p.newest.get(&id).copied().unwrap_or_default();
        p.newest.insert(id, newest.max(token));
        let stored = self.database.ever.get(&token).is_some_and(|(of, to)| *of == id && to.worker == p.name);
        if !stored {
            self.fail(format!("I4: w{} takes {id} under {token}, which the store never had", place + 1));
        } else if token <= newest {
            self.fail(format!("I3: w{} takes {id} under {token} after {newest}", place + 1));
        }
    }

    /// A worker that follows the rules is refused only for what can happen to one.
    pub(super) fn check_refusal(&mut self, refusal: &Refusal) {
        let never = match refusal {
            Refusal::ImplausibleTerm(_) | Refusal::NoLife => true,
            Refusal::UnknownLife | Refusal::NotMember => !self.external(),
            _ => false,
        };
        if never {
            self.fail(format!("refusal: a worker is refused with {refusal:?}"));
        }
    }

    /// A token is offered once.
    pub(super) fn check_offers(&mut self, entries: &[DeltaEntry<SimDesired>]) {
        for entry in entries {
            if let DeltaEntry::Grant { appliance, token, .. } = entry
                && !self.offered.insert(*token)
            {
                self.fail(format!("I3: {token} is offered a second time, of {appliance}"));
            }
        }
    }

    /// All that is looked at step by step, looked at at once.
    pub(super) fn check_everything(&mut self) {
        let held: BTreeSet<(usize, ApplianceId)> = (self.places.iter().enumerate())
            .flat_map(|(n, place)| place.process.iter().flat_map(move |p| p.gate.held().map(move |(id, ..)| (n, id))))
            .collect();
        for (place, id) in held {
            self.check_held(place, id);
        }
        for coordinator in 0..self.coordinators.len() {
            self.check_leader(coordinator, 0);
        }
    }
}

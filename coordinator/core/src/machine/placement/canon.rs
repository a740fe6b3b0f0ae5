//! What the behaviour of plans and of moves under way depends on.

use common::canon::{Canon, Canonical};

use super::{Due, InFlight, Machine, Moving, SLOW, Waiting};

impl Machine {
    /// Writes down when the next plan is due, and what is on its way.
    pub(in crate::machine) fn canon_placement(&self, to: &mut Canon) {
        to.put(&self.pacing.due);
        // How many there are per worker, and how many stalled, is counted from the moves.
        let InFlight { moves, per_worker: _, stalled: _, newest: _ } = &self.pacing.in_flight;
        to.put(&moves.len());
        for (slot, Moving { from, to: target, since, pace }) in moves {
            to.put(&slot.0);
            to.put(&(from, target, *pace as u32));
            to.after(*since, SLOW);
            to.after(*since, self.config.release_deadline);
        }
    }
}

impl Canonical for Due {
    fn canon(&self, to: &mut Canon) {
        let Self {
            awaited,
            grace: _,
            grace_ends,
            joined,
            back,
            joins_due,
            lost,
            start,
            dirty,
            room,
            passing,
            backlog,
            not_before,
            deletions,
            gather: _,
            // When things were noticed is for people.
            now: _,
            noticed: _,
            joins_noticed: _,
        } = self;
        debug_assert!(deletions.is_none(), "nothing is deleted where machines are compared");
        to.put(awaited);
        if !awaited.is_empty() {
            to.until(*grace_ends);
        }
        to.put(joined);
        to.put(&joins_due.is_some());
        if let Some(due) = joins_due {
            to.until(*due);
        }
        // The names are for people; that there are any asks for a plan.
        to.put(&(!back.is_empty(), !lost.is_empty()));
        to.put(&(start, dirty));
        to.put(room);
        to.list(passing.iter().map(|slot| slot.0));
        to.put(&backlog.len());
        for Waiting { slot, id: _, from, to: target, reason } in backlog {
            to.put(&slot.0);
            to.put(&(from, target, *reason as u32));
        }
        to.until(*not_before);
    }
}

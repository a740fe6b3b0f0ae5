//! What drivers call: calls that start, take effect long after, and are answered late or never.
//!
//! One sort of backend keeps the highest token it met of each appliance and refuses what is older; the other takes
//! everything, but no call takes effect later than its hold after it started. Of both the journal says what must not be:
//! that calls of two owners interleave.

use std::time::Duration;

use common::mutant::{self, Mutant};
use common::{ApplianceId, Token};

use super::SimTime;
use super::tasks::CallReply;
use super::worker::WorkerTimer;
use super::world::{SimEvent, SimWorld};

/// What happened to one appliance, as the appliance itself saw it.
#[derive(Clone, Debug, Default)]
pub(super) struct Journal {
    /// Highest token it was touched with, and the newest call under it.
    token: Token,
    call: u64,
    /// Highest token under which a call without token started.
    started: Token,
    /// Instances may exist.
    pub(super) exists: bool,
    /// A grant that bound it to a host was durable, so that somebody may have taken it there.
    pub(super) may_be_bound: bool,
    /// Somebody took it on a host that it is bound to.
    pub(super) is_bound: bool,
    /// Its rows are gone.
    pub(super) removed: bool,
}

/// One call that changes the world.
#[derive(Clone, Debug)]
pub(super) struct BackendCall {
    /// Rises with every call of the world.
    pub(super) number: u64,
    pub(super) place: usize,
    pub(super) process: u64,
    pub(super) id: ApplianceId,
    pub(super) token: Token,
    pub(super) destroys: bool,
    /// Nobody there checks tokens, and it takes effect within this time or never.
    pub(super) fence_delay: Option<Duration>,
}

impl SimWorld {
    /// A call has left its worker.
    pub(super) fn call_starts(&mut self, call: BackendCall) {
        if let Some(fence_delay) = call.fence_delay {
            let journal = self.journals.entry(call.id).or_default();
            let newest = journal.started;
            journal.started = newest.max(call.token);
            if call.token < newest && !self.database.restored {
                let BackendCall { place, id, token, .. } = call;
                self.fail(format!("I1: w{} starts a call on {id} under {token} after one under {newest}", place + 1));
            }
            let longest = fence_delay.as_nanos() as SimTime;
            let slow = self.is_slow();
            let takes = if slow { self.rng.below(longest) } else { self.rng.micros(100, 20_000).min(longest) };
            self.after(takes, SimEvent::Lands(Box::new(call)));
        } else {
            let slow = self.is_slow();
            let takes = if slow { self.rng.millis(20, 6_000) } else { self.rng.micros(100, 20_000) };
            self.after(takes, SimEvent::Lands(Box::new(call)));
        }
    }

    fn is_slow(&mut self) -> bool {
        self.faulty() && (self.now < self.slow_backend_until || self.rng.chance(self.settings.slow_calls))
    }

    /// A call takes effect, or is refused.
    pub(super) fn call_lands(&mut self, call: BackendCall) {
        let restored = self.database.restored;
        let BackendCall { number, place, process, id, token, destroys, fence_delay } = call;
        let journal = self.journals.entry(id).or_default();
        let newest = (journal.token, journal.call);
        let fenced = fence_delay.is_none();
        if fenced && (token, number) < newest && !mutant::is(Mutant::BackendIgnoresTokens) {
            self.note(|| format!("{id} refuses call {number} of w{} under {token}: {} is newer", place + 1, newest.0));
            let said = if token < newest.0 { CallReply::Newer(newest.0) } else { CallReply::Done };
            return self.answer_call(place, process, (id, token, number), said);
        }
        if fenced && token < newest.0 {
            return self.fail(format!("I1: w{} changes {id} under {token} after {}", place + 1, newest.0));
        }
        if token < journal.started && !restored {
            let started = journal.started;
            return self.fail(format!(
                "I1: a call of w{} on {id} under {token} takes effect after one under {started} started",
                place + 1
            ));
        }
        if journal.removed && !restored {
            return self.fail(format!("removed: w{} acts on {id}, whose rows are gone", place + 1));
        }
        (journal.token, journal.call) = newest.max((token, number));
        journal.exists = !destroys;
        self.effects += 1;
        if self.faulty() {
            self.note(|| format!("call {number} of w{} on {id} under {token} takes effect", place + 1));
        }
        if !(self.faulty() && self.rng.chance(4)) {
            self.answer_call(place, process, (id, token, number), CallReply::Done);
        }
    }

    fn answer_call(&mut self, place: usize, process: u64, of: (ApplianceId, Token, u64), said: CallReply) {
        let delay = self.rng.micros(50, 2_000);
        self.after(delay, SimEvent::Timer { place, process, timer: WorkerTimer::Called(of, said) });
    }
}

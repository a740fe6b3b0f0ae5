//! What the leader says, as a worker takes it, after `worker::session::incoming`: dropped when it is stale, refused when it
//! does not follow what came before, applied otherwise.

use common::Term;
use common::mutant::{self, Mutant};
use common::session::{Delta, DeltaEntry, Envelope, ToCoordinator, ToWorker, Welcome};
use coordinator_core::machine::Refusal;
use worker_core::assignments::{AssignmentEffect, DeltaRefused};

use super::SimTime;
use super::net::{LeaderMessage, SimDesired, WorkerMessage};
use super::worker::{KEEP_ALIVE, WorkerTimer};
use super::world::SimWorld;

impl SimWorld {
    pub(super) fn worker_receives(&mut self, stream: usize, message: LeaderMessage) {
        let (place, number) = (self.streams[stream].place, self.streams[stream].process);
        let Some(process) = self.process(place).filter(|p| p.number == number) else { return };
        // Without a stream nobody reads.
        let Some(link) = &process.link else { return };
        let late = link.stream != stream;
        let welcomed = link.welcomed;
        if late && matches!(message, LeaderMessage::Refused(_) | LeaderMessage::NotLeading) {
            return;
        }
        if !late && !matches!(message, LeaderMessage::Message(_, ToWorker::BeatAck(_))) {
            self.note(|| format!("w{} <- s{stream} {message:?}", place + 1));
        }
        match message {
            LeaderMessage::Refused(refusal) => self.refused(place, stream, &refusal),
            LeaderMessage::NotLeading => self.not_leading(place, stream),
            LeaderMessage::Message(from, ToWorker::Welcome(welcome)) => self.welcomed(place, stream, from, welcome),
            // Nothing applies between `Hello` and `Welcome`; what is late still has to be refused by the assignments.
            LeaderMessage::Message(..) if !welcomed && !late => {}
            LeaderMessage::Message(from, message) => self.worker_takes(place, stream, late, from, message),
        }
    }

    fn worker_takes(&mut self, place: usize, stream: usize, late: bool, from: Envelope, message: ToWorker<SimDesired>) {
        let Some(process) = self.process(place) else { return };
        match message {
            ToWorker::BeatAck(answered) => self.beat_answered(place, from, answered),
            ToWorker::Delta(delta) => {
                let again = mutant::is(Mutant::OldTokens).then(|| delta.entries.clone());
                match process.assignments.delta(from, delta) {
                    Ok(effects) => {
                        if let Some(entries) = again {
                            self.deliver_again(place, stream, entries);
                        }
                        let Some(process) = self.process(place) else { return };
                        process.ack.applied = process.assignments.version();
                        process.waiting = true;
                        self.applied(place, from.term);
                        self.apply(place, effects);
                        self.flush_soon(place);
                    }
                    Err(DeltaRefused::Stale) => {}
                    Err(DeltaRefused::Base { .. }) => {
                        if !late {
                            self.fail(format!("base: a delta on s{stream} does not apply to what came before it"));
                        }
                        self.abandon(place, stream, 0);
                    }
                }
            }
            ToWorker::Confirm(confirm) => {
                if process.assignments.confirm(from, &confirm.released).is_ok() {
                    self.applied(place, from.term);
                }
                if self.process(place).is_some_and(|p| p.draining && p.assignments.is_settled() && !p.waiting) {
                    self.end_worker(place, true);
                }
            }
            ToWorker::Drained => {
                if process.draining && process.assignments.counts(from) {
                    self.end_worker(place, true);
                }
            }
            ToWorker::Welcome(_) | ToWorker::Refused(_) => {}
        }
    }

    /// Only for a mutant: what was applied comes once more, a good while later, as if the leader had sent it again. Streams
    /// and versions keep such a thing out everywhere else, so that without it the rule for tokens is never put to the test.
    fn deliver_again(&mut self, place: usize, stream: usize, entries: Vec<DeltaEntry<SimDesired>>) {
        let delay = self.rng.millis(10, 5_000);
        self.timer(place, delay, WorkerTimer::Again(stream, entries));
    }

    pub(super) fn delivered_again(&mut self, place: usize, stream: usize, entries: Vec<DeltaEntry<SimDesired>>) {
        let Some(process) = self.process(place) else { return };
        let Some(from) = process.assignments.envelope() else { return };
        if process.link.as_ref().is_some_and(|link| link.stream == stream) {
            // The version is the leader's to count, and is left out of this.
            let mut assignments = process.assignments.clone();
            let version = assignments.version();
            let delta = Delta { base: version, target: version + 1, rebalance: None, entries };
            if let Ok(effects) = assignments.delta(from, delta) {
                let taken = effects.into_iter().filter(|effect| matches!(effect, AssignmentEffect::Take { .. }));
                self.apply(place, taken.collect());
            }
        }
    }

    fn applied(&mut self, place: usize, term: Term) {
        let Some(process) = self.process(place) else { return };
        let highest = process.term.max(term);
        process.term = highest;
        if term < highest {
            self.fail(format!("I5: w{} applies a message of {term} after one of {highest}", place + 1));
        }
    }

    /// The other side does not lead: at once to the next one, with a pause once all were tried.
    fn not_leading(&mut self, place: usize, stream: usize) {
        self.abandon(place, stream, 0);
    }

    fn refused(&mut self, place: usize, stream: usize, refusal: &Refusal) {
        match refusal {
            Refusal::IncarnationOver | Refusal::NotMember if self.external() => self.end_life(place),
            Refusal::IncarnationOver => {
                self.forget_life(place);
                self.break_stream(stream, false);
                if let Some(process) = self.process(place) {
                    process.link = None;
                }
                self.timer(place, 0, WorkerTimer::Connect);
            }
            Refusal::NameTaken(wait) => {
                let wait = u64::try_from(wait.as_nanos()).unwrap_or(SimTime::MAX).min(30_000_000_000);
                self.abandon(place, stream, wait);
            }
            Refusal::Superseded => self.abandon(place, stream, 0),
            // Said together with a violation, which is one here.
            Refusal::Differs => self.abandon(place, stream, 0),
            Refusal::ImplausibleTerm(term) => self.fail(format!("refusal: a worker is said to have met {term}")),
            Refusal::TermAhead(_, wait) => {
                let wait = u64::try_from(wait.as_nanos()).unwrap_or(SimTime::MAX);
                self.abandon(place, stream, wait);
            }
            Refusal::StoreUnavailable => self.abandon(place, stream, 500_000_000),
            Refusal::UnknownLife if self.external() => self.abandon(place, stream, 500_000_000),
            Refusal::NoLife | Refusal::UnknownLife | Refusal::NotMember => {
                self.fail(format!("refusal: a worker is refused with {refusal:?}"));
            }
        }
    }

    fn welcomed(&mut self, place: usize, stream: usize, from: Envelope, welcome: Welcome) {
        let Welcome { keep, lease } = welcome;
        let own = self.places[place].profile.lease;
        let Some(process) = self.process(place) else { return };
        let Ok(effects) = process.assignments.welcome(from, &keep) else {
            if self.link(place, stream).is_some() {
                self.abandon(place, stream, 500_000_000);
            }
            return;
        };
        let Some(link) = &mut process.link else { return };
        let lease = lease.min(own);
        link.welcomed = true;
        link.lease = lease;
        let current = link.stream;
        process.failures = 0;
        process.aim = 0;
        let deadline = link.hello_sent + lease;
        self.applied(place, from.term);
        // The gate is shut for what is not kept before the lease is extended.
        self.apply(place, effects);
        self.timer(place, 0, WorkerTimer::Claim(current));
        if self.external() {
            // Only the service extends the lease.
            let draining = self.process(place).is_some_and(|p| p.draining);
            self.timer(place, KEEP_ALIVE, WorkerTimer::KeepAlive(current));
            if draining {
                self.send_up(stream, WorkerMessage::Message(from, ToCoordinator::Drain { hand_back: false }));
            }
        } else {
            self.extend(place, deadline);
            self.timer(place, 0, WorkerTimer::Beat(current));
        }
        if self.process(place).is_some_and(|p| p.waiting) {
            self.flush_soon(place);
        }
    }

    fn beat_answered(&mut self, place: usize, from: Envelope, number: u64) {
        let Some(process) = self.process(place) else { return };
        if !process.assignments.counts(from) {
            return;
        }
        let Some(link) = process.link.as_mut().filter(|link| link.beat == number) else { return };
        let lease = link.lease;
        if let Some(sent) = link.beat_sent.take() {
            self.extend(place, sent + lease);
            self.applied(place, from.term);
        }
    }
}

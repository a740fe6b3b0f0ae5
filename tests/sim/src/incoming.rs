//! What messages of the leader do to a worker: carries out what [`Conversation`](worker_core::session::Conversation) asks
//! for.

use common::Term;
use common::mutant::{self, Mutant};
use common::session::{Delta, DeltaEntry, ToWorker};
use worker_core::session::{ControlEvent, ConversationAction, ConversationNotice, Incoming};

use super::net::{LeaderMessage, SimDesired};
use super::worker::{KEEP_ALIVE, WorkerTimer};
use super::world::SimWorld;

impl SimWorld {
    pub(super) fn worker_receives(&mut self, stream: usize, message: LeaderMessage) {
        let (place, number) = (self.streams[stream].place, self.streams[stream].process);
        let Some(process) = self.process(place).filter(|p| p.number == number) else { return };
        // Without a stream, and while it ends, a worker reads nothing.
        let Some(link) = process.link.as_ref().filter(|_| !process.control.is_ending()) else { return };
        let late = link.stream != stream;
        let LeaderMessage { from, message } = message;
        if late && matches!(message, ToWorker::Refused(_)) {
            return;
        }
        if !late && !matches!(message, ToWorker::BeatAck(_)) {
            self.note(|| format!("w{} <- s{stream} {message:?}", place + 1));
        }
        let again = match &message {
            ToWorker::Delta(delta) if mutant::is(Mutant::OldTokens) => Some(delta.entries.clone()),
            _ => None,
        };
        let actions = self.converse(place, Incoming::whole(from, message));
        if let Some(entries) = again
            && actions.iter().any(|action| matches!(action, ConversationAction::Applied(_)))
        {
            self.deliver_again(place, stream, entries);
        }
        if actions.iter().any(shows_that_it_counts) {
            self.applied(place, from.term);
        }
        for action in actions {
            // What is late has to be refused by the conversation of now, and ends no stream.
            if !late || !matches!(action, ConversationAction::Control(_) | ConversationAction::Note(_)) {
                self.carry_out_message(place, action);
            }
        }
        self.settle(place);
    }

    fn converse(&mut self, place: usize, incoming: Incoming<SimDesired>) -> Vec<ConversationAction<SimDesired>> {
        let unwilling = if self.faulty() { self.settings.unwilling } else { 0 };
        let (host, rng) = (&mut self.places[place], &mut self.rng);
        let Some(process) = &mut host.process else { return Vec::new() };
        let drivers = &host.profile.drivers;
        process.conversation.receive(incoming, process.control.is_draining(), |desired| {
            let refused = rng.chance(unwilling) || drivers.get(&desired.driver).is_none();
            refused.then(String::new)
        })
    }

    pub(super) fn carry_out_message(&mut self, place: usize, action: ConversationAction<SimDesired>) {
        match action {
            ConversationAction::Welcomed(..) => {
                // Where heartbeats are on the stream, they show whether it stands.
                if self.external()
                    && let Some(stream) = self.process(place).and_then(|p| p.link.as_ref().map(|link| link.stream))
                {
                    self.timer(place, KEEP_ALIVE, WorkerTimer::KeepAlive(stream));
                }
            }
            ConversationAction::Take { grant, desired, carryover, mode, .. } => {
                self.take_grant(place, grant, &desired, carryover);
                self.obey(place, grant, mode);
            }
            ConversationAction::Mode(grant, mode) => self.obey(place, grant, mode),
            ConversationAction::Fence(grant) => {
                if let Some(process) = self.process(place) {
                    process.gate.dismiss(grant.appliance, grant.token);
                }
                self.begin_release(place, grant);
            }
            ConversationAction::Release(grant) => self.begin_release(place, grant),
            ConversationAction::Update(grant, desired) => self.update_task(place, grant, &desired),
            ConversationAction::Applied(version) => {
                if let Some(process) = self.process(place) {
                    process.conversation.applied(version);
                }
            }
            ConversationAction::Control(event) => self.step(place, event),
            ConversationAction::Note(ConversationNotice::WrongBase(refused)) => {
                self.fail(format!("base: w{}: {refused}", place + 1));
            }
            ConversationAction::Restate => self.tell_statuses(place),
            // Announced steps are not modelled.
            ConversationAction::Check(..) | ConversationAction::Confirmed(_) | ConversationAction::Note(_) => {}
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
        let Some(from) = process.conversation.envelope() else { return };
        if process.link.as_ref().is_some_and(|link| link.stream == stream) {
            // The version is the leader's to count, and is left out of this.
            let mut conversation = process.conversation.clone();
            let base = conversation.assignments().version();
            let delta = Delta { base, target: base + 1, rebalance: None, entries };
            let actions = conversation.receive(Incoming::whole(from, ToWorker::Delta(delta)), false, |_| None);
            for action in actions {
                if let ConversationAction::Take { grant, desired, carryover, .. } = action {
                    self.take_grant(place, grant, &desired, carryover);
                }
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
}

/// Whether the message that led to this was applied.
fn shows_that_it_counts(action: &ConversationAction<SimDesired>) -> bool {
    matches!(
        action,
        ConversationAction::Welcomed(..)
            | ConversationAction::Applied(_)
            | ConversationAction::Confirmed(_)
            | ConversationAction::Control(ControlEvent::BeatAnswered(_))
    )
}

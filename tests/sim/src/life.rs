//! The lives of a worker and its lease, as in `coordination`: taken from the service and kept by heartbeats there, or
//! (embedded) given by the leader and kept by heartbeats on the stream.

use std::time::Duration;

use common::Timestamp;
use worker_core::gate::Gate;
use worker_core::session::{ControlEvent, Membership};

use super::service::{GroupReply, GroupRequest, Who};
use super::worker::{WorkerTimer, address};
use super::world::SimWorld;

/// What a process has in the service; nothing of it is used embedded.
#[derive(Debug, Default)]
pub(super) struct WorkerLife {
    /// A life is asked for.
    joining: bool,
    /// Counts the lives of the process, for its timers; 0 before the first.
    number: u64,
    has_begun: bool,
    /// The coordinator that it believes to lead.
    shown: Option<usize>,
}

impl SimWorld {
    /// The lease stands until `deadline`.
    pub(super) fn extend(&mut self, place: usize, deadline: Timestamp) {
        let now = self.places[place].clock.local(self.now);
        let Some(process) = self.process(place) else { return };
        let stood = process.gate.lease_stands(now);
        process.gate.extend(deadline);
        if !stood {
            // Whatever stood all along was looked at when others began.
            let held: Vec<_> = process.gate.held().map(|(id, ..)| id).collect();
            held.into_iter().for_each(|id| self.check_held(place, id));
        }
    }

    /// A life is wanted. Embedded, the leader gives it in answer to `Hello`.
    pub(super) fn begin_joining(&mut self, place: usize) {
        let (external, lease) = (self.external(), self.places[place].profile.lease);
        let Some(process) = self.process(place) else { return };
        if !external {
            return self.step(place, ControlEvent::Joined(Membership { lease, beats_on_stream: true }));
        }
        process.life.joining = true;
        self.join(place);
    }

    /// Asks the service for a life, until one begins.
    pub(super) fn join(&mut self, place: usize) {
        let Some(process) = self.process(place).filter(|p| p.life.joining) else { return };
        let number = process.number;
        self.ask(place, number, GroupRequest::Join);
        let again = self.rng.millis(300, 900);
        self.timer(place, again, WorkerTimer::Join);
    }

    pub(super) fn service_beat(&mut self, place: usize, number: u64) {
        let lease = self.places[place].profile.lease;
        let Some(process) = self.process(place).filter(|p| p.life.has_begun && p.life.number == number) else {
            return;
        };
        let of = process.number;
        self.ask(place, of, GroupRequest::Beat);
        self.local_timer(place, lease / 4, WorkerTimer::ServiceBeat(number));
        self.look_who_leads(place);
    }

    /// Tells the worker which coordinators there are, the one first that seems to lead.
    fn look_who_leads(&mut self, place: usize) {
        let Some(shown) = self.shown_leader(Who::Worker(place)) else { return };
        let coordinators = self.coordinators.len();
        let Some(process) = self.process(place) else { return };
        if process.life.shown.replace(shown) != Some(shown) {
            let others = (0..coordinators).filter(|&coordinator| coordinator != shown);
            let addresses = std::iter::once(shown).chain(others).map(address).collect();
            self.step(place, ControlEvent::Coordinators(addresses));
        }
    }

    /// The service has answered.
    pub(super) fn worker_answered(&mut self, place: usize, answer: &GroupReply) {
        let lease = self.places[place].profile.lease;
        let margin = self.places[place].margin;
        let clock = self.places[place].clock.clone();
        let Some(process) = self.process(place).filter(|process| !process.control.is_ending()) else { return };
        match answer {
            GroupReply::Joined(incarnation, sent) if process.life.joining => {
                process.life.joining = false;
                process.life.has_begun = true;
                process.life.number += 1;
                process.gate = Gate::with_margin(margin);
                process.gate.extend(clock.local(*sent) + lease);
                process.conversation.begin_life(Some(*incarnation));
                let number = process.life.number;
                self.note(|| format!("w{} begins life {incarnation}", place + 1));
                self.step(place, ControlEvent::Joined(Membership { lease, beats_on_stream: false }));
                self.look_who_leads(place);
                self.local_timer(place, lease / 4, WorkerTimer::ServiceBeat(number));
            }
            GroupReply::Committed(sent) => self.extend(place, clock.local(*sent) + lease),
            GroupReply::Over if process.life.has_begun => {
                self.step(place, ControlEvent::LifeOver("the service says so".to_owned()));
            }
            GroupReply::Joined(..) | GroupReply::Over => {}
        }
        self.settle(place);
    }

    /// The life is over: nothing of it acts any more, and whatever was owned in it belongs to others.
    pub(super) fn end_life(&mut self, place: usize, why: &str) {
        let margin = self.places[place].margin;
        let external = self.external();
        let Some(process) = self.process(place) else { return };
        let number = process.number;
        process.gate = Gate::with_margin(margin);
        process.conversation.end_life();
        process.tasks.clear();
        process.life.has_begun = false;
        self.note(|| format!("the life of w{} is over: {why}", place + 1));
        if external {
            self.ask(place, number, GroupRequest::Close);
        }
    }

    /// The gate is shut for good. What was called before may take effect yet.
    pub(super) fn end_work(&mut self, place: usize, within: Duration) {
        let Some(process) = self.process(place) else { return };
        process.gate.shut();
        process.tasks.clear();
        self.ends_soon(place, within, ControlEvent::WorkEnded { in_time: true });
    }

    /// The nodes of the life are removed.
    pub(super) fn leave_group(&mut self, place: usize, within: Duration) {
        let external = self.external();
        let Some(process) = self.process(place) else { return };
        let number = process.number;
        process.life.has_begun = false;
        if external {
            self.ask(place, number, GroupRequest::Close);
        }
        self.ends_soon(place, within, ControlEvent::LeftGroup { in_time: true });
    }
}

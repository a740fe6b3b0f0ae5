//! The lives of a worker and its lease, after `worker::session` and `coordination`: taken from the service and kept
//! by heartbeats there, or (embedded) given by the leader and kept by heartbeats on the stream.

use common::session::{Ack, ToCoordinator};
use common::{Incarnation, Timestamp};
use worker_core::gate::Gate;

use super::net::WorkerMessage;
use super::service::{GroupReply, GroupRequest};
use super::worker::{WorkerProcess, WorkerTimer};
use super::world::SimWorld;

/// A worker's life in the service; nothing of it is used embedded.
#[derive(Debug, Default)]
pub(super) struct WorkerLife {
    incarnation: Option<Incarnation>,
    /// Counts the lives of the process, for its timers.
    number: u64,
}

impl WorkerLife {
    pub(super) const fn has_begun(&self) -> bool {
        self.incarnation.is_some()
    }
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

    pub(super) fn join(&mut self, place: usize) {
        let Some(process) = self.process(place).filter(|p| !p.life.has_begun()) else { return };
        let number = process.number;
        self.ask(place, number, GroupRequest::Join);
        // Again, should nothing come of it.
        let again = self.rng.millis(300, 900);
        self.timer(place, again, WorkerTimer::Join);
    }

    pub(super) fn service_beat(&mut self, place: usize, number: u64) {
        let lease = self.places[place].profile.lease;
        let Some(process) = self.process(place).filter(|p| p.life.has_begun() && p.life.number == number) else {
            return;
        };
        let of = process.number;
        self.ask(place, of, GroupRequest::Beat);
        self.local_timer(place, lease / 4, WorkerTimer::ServiceBeat(number));
        self.look_who_leads(place);
    }

    /// The service has answered.
    pub(super) fn worker_answered(&mut self, place: usize, answer: &GroupReply) {
        let lease = self.places[place].profile.lease;
        let margin = self.places[place].margin;
        let clock = self.places[place].clock.clone();
        let Some(process) = self.process(place) else { return };
        match answer {
            GroupReply::Joined(incarnation, sent) if !process.life.has_begun() => {
                process.life.incarnation = Some(*incarnation);
                process.life.number += 1;
                process.gate = Gate::with_margin(margin);
                process.gate.extend(clock.local(*sent) + lease);
                process.assignments.begin_life(Some(*incarnation));
                let number = process.life.number;
                self.note(|| format!("w{} begins life {incarnation}", place + 1));
                self.timer(place, 0, WorkerTimer::Connect);
                self.local_timer(place, lease / 4, WorkerTimer::ServiceBeat(number));
            }
            GroupReply::Committed(sent) => self.extend(place, clock.local(*sent) + lease),
            GroupReply::Over if process.life.has_begun() => self.end_life(place),
            GroupReply::Joined(..) | GroupReply::Over => {}
        }
    }

    /// Whatever was held in the life that ends belongs to others.
    pub(super) fn forget_life(&mut self, place: usize) {
        let margin = self.places[place].margin;
        let Some(process) = self.process(place) else { return };
        process.gate = Gate::with_margin(margin);
        process.assignments.end_life();
        process.tasks.clear();
        process.ack = Ack::default();
        process.waiting = false;
        process.failures = 0;
    }

    /// The life is over: nothing of it acts any more, and the service is asked for another one.
    pub(super) fn end_life(&mut self, place: usize) {
        self.forget_life(place);
        let Some(process) = self.process(place) else { return };
        let number = process.number;
        process.life.incarnation = None;
        if let Some(link) = process.link.take() {
            self.break_stream(link.stream, false);
        }
        self.note(|| format!("w{} begins another life", place + 1));
        self.ask(place, number, GroupRequest::Close);
        let delay = self.rng.millis(0, 200);
        self.timer(place, delay, WorkerTimer::Join);
    }

    /// A process ends: its session is closed, or is heard of no more.
    pub(super) fn leave_service(&mut self, place: usize, process: &WorkerProcess, farewell: bool) {
        if farewell {
            self.ask(place, process.number, GroupRequest::Close);
        }
        self.seat_dies(place);
    }

    /// Stops a worker in good order: what it holds is handed over first.
    pub(super) fn drain_worker(&mut self, place: usize) {
        let Some(process) = self.process(place) else { return };
        if std::mem::replace(&mut process.draining, true) {
            return;
        }
        let said = process.link.as_ref().filter(|link| link.welcomed).map(|link| link.stream);
        let from = process.assignments.envelope();
        self.note(|| format!("w{} drains", place + 1));
        if let (Some(stream), Some(from)) = (said, from) {
            self.send_up(stream, WorkerMessage::Message(from, ToCoordinator::Drain { hand_back: false }));
        }
        let patience = self.rng.millis(200, 5_000);
        self.timer(place, patience, WorkerTimer::DrainDue);
    }
}

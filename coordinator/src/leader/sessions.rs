//! What workers say on their streams, and what is sent to them.

use std::sync::Arc;

use common::change::ApplianceTarget;
use common::inquiry::Answer;
use common::session::{Envelope, StatusReport, ToCoordinator, ToWorker};
use common::{Life, Timestamp};
use coordinator_core::machine::{self, Event, StreamId};
use runtime::{clock, log_limited};
use tracing::debug;

use super::{Leader, convert};
use crate::metrics;
use crate::sessions::Input;

impl Leader<'_> {
    pub(super) fn on_session(&mut self, (read_at, input): (Timestamp, Input)) {
        if clock::now().since(read_at) > machine::BEHIND {
            metrics::late();
            self.step(Event::FellBehind);
        }
        match input {
            Input::Hello { conn, envelope, hello, out, held } => {
                metrics::hello();
                let (worker, owned) = (hello.worker.clone(), hello.owned.len());
                self.connections.add(conn, worker.clone(), envelope, out, held);
                self.step(Event::Received(conn, envelope, ToCoordinator::Hello(hello)));
                if self.connections.worker(conn).is_some() {
                    log_limited!(info, %worker, conn, owned, "hello");
                }
            }
            Input::Message { conn, envelope, message, runs, held: _held } => {
                self.on_message(conn, envelope, message);
                if let Some(batch) = runs {
                    self.on_runs(conn, envelope, batch);
                }
            }
            Input::Answer { conn, envelope, answer, held: _held } => self.on_answer(conn, envelope, answer),
            Input::Closed(conn) => {
                if self.connections.remove(conn, "ended") {
                    self.step(Event::Closed(conn));
                }
            }
        }
    }

    fn on_message(&mut self, conn: StreamId, envelope: Envelope, message: ToCoordinator) {
        metrics::received(&message);
        match &message {
            ToCoordinator::Hello(_) => return debug!(conn, "a second hello on one stream was dropped"),
            ToCoordinator::Beat(_) | ToCoordinator::Report(_) => {}
            ToCoordinator::Ack(ack) => {
                self.rebalances.acknowledged(conn, ack.applied);
                self.connections.acknowledged(conn, ack.applied);
                for declined in &ack.declined {
                    log_limited!(info, appliance = %declined.appliance, conn, "an offer was declined: {}", declined.reason);
                }
            }
            ToCoordinator::Drain { hand_back } => {
                log_limited!(info, conn, worker = ?self.connections.worker(conn), hand_back, "is about to stop");
            }
            ToCoordinator::Leave => {
                log_limited!(info, conn, worker = ?self.connections.worker(conn), "leaves");
            }
        }
        let leaves = matches!(message, ToCoordinator::Leave);
        self.step(Event::Received(conn, envelope, message));
        if leaves {
            self.connections.remove(conn, "left");
            // Unless it was of another conversation, the life and its stream are gone already.
            self.step(Event::Closed(conn));
        } else if self.connections.is_unanswered(conn) && self.machine.has_settled(conn) {
            self.connections.answered(conn);
        }
    }

    /// A worker answers what it was asked. Of another conversation than that of its stream, it is dropped.
    fn on_answer(&mut self, conn: StreamId, envelope: Envelope, answer: Answer) {
        metrics::answer_received();
        if self.connections.envelope(conn) != Some(envelope) {
            return debug!(conn, "an answer of another conversation was dropped");
        }
        if self.direct.has(answer.number) {
            return self.direct.answered(conn, answer);
        }
        match self.inquiries.answered(conn, answer) {
            Some(ended) => self.judged(ended),
            None => debug!(conn, "an answer that nobody waits for was dropped"),
        }
    }

    /// Ends streams whose worker does not answer the welcome.
    pub(super) fn end_unanswered(&mut self) {
        for conn in self.connections.end_unanswered() {
            self.step(Event::Closed(conn));
        }
    }

    /// Stores and shows statuses that come from the owners of their appliances, and answers who waited for them.
    pub(super) fn on_reports(&mut self, reports: Vec<StatusReport>) {
        reports.iter().filter(|r| r.adopted).for_each(|r| self.rebalances.adopted(r.appliance));
        let checked: Vec<_> = reports.iter().filter(|r| r.checked > 0).map(|r| (r.appliance, r.checked)).collect();
        self.publisher.reported(reports);
        for (appliance, checked) in checked {
            let answered = self.waiting.take_checks(appliance, checked);
            if !answered.is_empty() {
                // Callers look into the catalog as soon as they are answered.
                self.publisher.flush();
            }
            for reply in answered {
                let _ = reply.send(Ok(()));
            }
        }
    }

    /// Sends a message to a worker, with the wanted state of each appliance that is granted or updated by it.
    pub(super) fn send(&mut self, stream: StreamId, envelope: Envelope, message: ToWorker<()>) {
        let (mut traceparent, mut causes) = (String::new(), Vec::new());
        if let ToWorker::Delta(delta) = &message {
            causes = self.causes.take(&delta.entries);
        }
        if let ToWorker::Delta(delta) = &message
            && let Some(id) = delta.rebalance
        {
            let worker = self.connections.worker(stream);
            traceparent = self.rebalances.sent(id, (stream, delta.target), &delta.entries, worker);
        }
        let message = message.fill(|id| {
            let entry = self.catalog.get(&ApplianceTarget::Id(id))?;
            Some(Arc::new(convert::desired(&entry.record)))
        });
        let is_welcome = matches!(message, ToWorker::Welcome(_));
        if !self.connections.send(stream, envelope, message, &traceparent, causes) {
            self.step(Event::Closed(stream));
        } else if is_welcome {
            self.note_judges(stream, envelope);
        }
    }

    /// Notes for which drivers the worker that was welcomed can be asked to judge, and for output. What is beyond the limits of its name does not count.
    fn note_judges(&mut self, stream: StreamId, envelope: Envelope) {
        let life = self.connections.worker(stream).cloned().zip(envelope.incarnation);
        let life = life.map(|(worker, incarnation)| Life::new(worker, incarnation));
        let Some(profile) = life.and_then(|life| self.machine.profile(&life)) else { return };
        let judges = profile.drivers.iter().filter(|(_, offered)| offered.judges).map(|(name, _)| name.clone());
        let logs = profile.drivers.iter().filter(|(_, offered)| offered.logs).map(|(name, _)| name.clone());
        let (judges, logs) = (judges.collect(), logs.collect());
        self.connections.set_judges(stream, judges);
        self.connections.set_logs(stream, logs);
    }
}

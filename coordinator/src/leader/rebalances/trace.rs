//! The trace of a rebalance: one root, below it plans, deltas and hand-offs, below those what workers do.
//!
//! ```text
//! rebalance                      from what set it off to the last adoption; by whichever leader ends it
//! ├── plan                       each plan that moves something for it
//! ├── delta                      each message to a worker, until that has acknowledged it
//! └── hand-off                   one appliance, from the word to its old owner to the adoption by the new one
//!     ├── release                (old owner) until nothing of it acts any more
//!     ├── commit                 the new owner is stored
//!     └── adopt                  (new owner) until it has seen how the appliance is
//! ```
//!
//! Nothing is open anywhere but here: spans are made when they are over, so that what a leader did not end is ended by the next one.
//! Workers know the ids of their parents from the trace id and the appliance.

use std::time::SystemTime;

use common::{ApplianceId, Term, WorkerId};
use coordinator_core::machine::StreamId;
use opentelemetry::KeyValue;
use runtime::telemetry::{RebalanceTrace, RecordedSpan, SpanName};

use crate::record::{MoveTimes, RebalanceRecord};

/// Most events of a root; the rest is in the counts.
const MAX_NOTES: usize = 48;

/// Most rebalances that one is linked to.
const MAX_LINKS: usize = 32;

/// One appliance on its way.
#[derive(Debug)]
pub(super) struct HandOff {
    pub(super) times: MoveTimes,
    /// The grant is durable.
    pub(super) committed: Option<SystemTime>,
    pub(super) from: Option<WorkerId>,
    pub(super) to: Option<WorkerId>,
    /// Its new owner has it.
    pub(super) ended: Option<SystemTime>,
}

impl HandOff {
    pub(super) fn new(began: SystemTime) -> Self {
        let times = MoveTimes { began: Some(began), ..MoveTimes::default() };
        Self { times, committed: None, from: None, to: None, ended: None }
    }
}

/// A delta that its worker has not acknowledged.
#[derive(Debug)]
struct OpenDelta {
    term: Term,
    stream: StreamId,
    target: u64,
    worker: Option<WorkerId>,
    entries: usize,
    sent: SystemTime,
}

/// What is known of the trace of one rebalance that has not ended.
#[derive(Debug)]
pub(super) struct OpenTrace {
    trace: RebalanceTrace,
    deltas: Vec<OpenDelta>,
    /// When the step began that planned for it last.
    planned: Option<SystemTime>,
    notes: Vec<(SystemTime, &'static str, Vec<KeyValue>)>,
    /// Rebalances that this one took over from, or that took over from it.
    links: Vec<RebalanceTrace>,
}

impl OpenTrace {
    pub(super) const fn new(trace: RebalanceTrace) -> Self {
        Self { trace, deltas: Vec::new(), planned: None, notes: Vec::new(), links: Vec::new() }
    }

    pub(super) const fn id(&self) -> RebalanceTrace {
        self.trace
    }

    /// Something happened to the rebalance as a whole.
    pub(super) fn note(&mut self, time: SystemTime, name: &'static str, attributes: Vec<KeyValue>) {
        if self.notes.len() < MAX_NOTES {
            self.notes.push((time, name, attributes));
        }
    }

    pub(super) fn link(&mut self, other: RebalanceTrace) {
        if self.links.len() < MAX_LINKS {
            self.links.push(other);
        }
    }

    /// A plan was made for it. Of one step there is one span, whatever it plans.
    pub(super) fn planned(&mut self, (began, ended): (SystemTime, SystemTime), moves: u64) {
        if self.planned.replace(began) == Some(began) {
            return;
        }
        let nanos = began.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let of = SpanName::Plan(u64::try_from(nanos).unwrap_or(u64::MAX));
        RecordedSpan::new(self.trace, of, began, ended).with("moves", count(moves)).export();
    }

    /// A delta of it is sent. Returns the `traceparent` that goes with it.
    pub(super) fn sent(
        &mut self,
        (term, stream, target): (Term, StreamId, u64),
        worker: Option<&WorkerId>,
        entries: usize,
        now: SystemTime,
    ) -> String {
        self.deltas.push(OpenDelta { term, stream, target, worker: worker.cloned(), entries, sent: now });
        self.trace.traceparent(SpanName::Delta { term, stream, version: target })
    }

    /// A worker has applied everything up to this version.
    pub(super) fn acknowledged(&mut self, stream: StreamId, applied: u64, now: SystemTime) {
        let trace = self.trace;
        self.deltas.retain(|delta| {
            let done = delta.stream == stream && delta.target <= applied;
            if done {
                delta.span(trace, now).export();
            }
            !done
        });
    }

    /// A stream is closed: what was sent on it is not acknowledged any more.
    pub(super) fn stream_closed(&mut self, stream: StreamId, now: SystemTime) {
        let trace = self.trace;
        self.deltas.retain(|delta| {
            if delta.stream == stream {
                delta.span(trace, now).with("acknowledged", false).export();
            }
            delta.stream != stream
        });
    }

    /// The hand-off of `appliance` is over: it was adopted at `end`, or there is a problem. Returns its id if workers are to be asked for
    /// what they have of it. Its new owner was stored in a `store` of this kind.
    pub(super) fn handed_off(
        &self,
        appliance: ApplianceId,
        hand_off: &HandOff,
        end: SystemTime,
        problem: Option<&'static str>,
        store: &'static str,
    ) -> Option<u64> {
        let mut parts = Vec::new();
        if let (Some(began), Some(ended)) = (hand_off.times.released.or(hand_off.times.began), hand_off.committed) {
            let commit = RecordedSpan::new(self.trace, SpanName::Commit(appliance), began, ended);
            parts.push(commit.of_database(store, "transaction").with("appliance", appliance.to_string()));
        }
        let began = hand_off.times.began.unwrap_or(end);
        let mut span = RecordedSpan::new(self.trace, SpanName::HandOff(appliance), began, end);
        span = span.with("appliance", appliance.to_string());
        for (name, worker) in [("from", &hand_off.from), ("to", &hand_off.to)] {
            if let Some(worker) = worker {
                span = span.with(name, worker.to_string());
            }
        }
        if let Some(owned) = hand_off.ended {
            span = span.event("owned", owned, Vec::new());
        }
        if let Some(problem) = problem {
            span = span.failed(problem);
        }
        span.export_hand_off(parts)
    }

    /// The root, now that the rebalance has ended as `record` says. Exports what else is open.
    pub(super) fn root(mut self, record: &RebalanceRecord, leader: &str) -> RecordedSpan {
        let end = record.ended.unwrap_or(record.started);
        for delta in std::mem::take(&mut self.deltas) {
            delta.span(self.trace, end).with("acknowledged", false).export();
        }
        let mut span = RecordedSpan::new(self.trace, SpanName::Rebalance, record.started, end)
            .with("rebalance", record.id.to_string())
            .with("cause", record.cause.clone())
            .with("outcome", record.outcome.name())
            .with("moves", count(record.moves))
            .with("moves_done", count(record.done))
            .with("term", count(record.id.term.get()))
            .with("ended_by", leader.to_owned());
        for (time, name, attributes) in self.notes {
            span = span.event(name, time, attributes);
        }
        for other in self.links {
            span = span.link(other, SpanName::Rebalance);
        }
        span
    }
}

impl OpenDelta {
    fn span(&self, trace: RebalanceTrace, end: SystemTime) -> RecordedSpan {
        let span = RecordedSpan::new(
            trace,
            SpanName::Delta { term: self.term, stream: self.stream, version: self.target },
            self.sent,
            end,
        );
        let span = span.with("entries", i64::try_from(self.entries).unwrap_or(i64::MAX));
        match &self.worker {
            Some(worker) => span.with("worker", worker.to_string()),
            None => span,
        }
    }
}

pub(super) fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

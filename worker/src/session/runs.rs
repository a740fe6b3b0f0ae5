//! Runs that are over, on their way to the leader, which stores them.
//!
//! They go in batches, one at a time, each with a report of its own, which changes nothing for a leader of a version before. A batch is told until
//! the leader has said that it is stored: again on the next stream, and again on the same one after [`AGAIN`]. A run has an id, so that one that is
//! told twice is stored once. What this process did not get rid of ends with it.

use std::time::Duration;

use common::Timestamp;
use common::run::{MAX_RUNS, RunBatch};

use crate::runner::{EndedRun, WaitingRuns};

/// How long the leader may take to store a batch before it is told again: a store that was away for a while is back, or the batch was lost with
/// a write that failed.
const AGAIN: Duration = Duration::from_secs(30);

/// Runs that the leader does not have yet.
#[derive(Debug, Default)]
pub(super) struct RunsOut {
    waiting: WaitingRuns,
    /// The batch that was told, or is to be told again.
    batch: Vec<EndedRun>,
    number: u64,
    /// When the batch was told on this stream.
    told: Option<Timestamp>,
}

impl RunsOut {
    pub(super) fn push(&mut self, run: EndedRun) {
        self.waiting.push(run);
    }

    /// Whether there is a batch to be told now.
    pub(super) fn is_waiting(&self, now: Timestamp) -> bool {
        match self.told {
            Some(told) => now >= told + AGAIN,
            None => !self.batch.is_empty() || !self.waiting.is_empty(),
        }
    }

    /// When the batch that was told is to be told again.
    pub(super) fn wake_at(&self) -> Option<Timestamp> {
        self.told.map(|told| told + AGAIN)
    }

    /// The batch to be told, if there is one.
    pub(super) fn next(&mut self, now: Timestamp) -> Option<RunBatch> {
        if !self.is_waiting(now) {
            return None;
        }
        if self.batch.is_empty() {
            self.batch = self.waiting.take(MAX_RUNS);
        }
        self.told = Some(now);
        self.number += 1;
        Some(RunBatch { number: self.number, runs: self.batch.iter().cloned().map(|run| run.told(now)).collect() })
    }

    /// The leader has stored a batch.
    pub(super) fn stored(&mut self, number: u64) {
        if self.told.is_some() && number == self.number {
            self.told = None;
            self.batch.clear();
        }
    }

    /// The stream has ended: what was told on it and is not known to be stored is told again on the next one.
    pub(super) fn stream_ended(&mut self) {
        self.told = None;
    }
}

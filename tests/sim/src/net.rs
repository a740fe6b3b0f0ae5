//! Streams: in order, delayed, broken at any time. What was under way when one broke is lost from some point on, or
//! arrives later, perhaps after the next stream was opened.

use std::collections::VecDeque;
use std::time::Duration;

use common::appliance::Driver;
use common::{ApplianceId, Token};
use coordinator_core::audit::Claim;
use coordinator_core::machine;
use worker_core::holdings::{Envelope, Tell};

use super::Time;
use super::rng::Rng;

/// What a worker is told of an appliance it is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Desired {
    pub(super) driver: Driver,
    pub(super) deleting: bool,
}

/// From a worker to the leader.
#[derive(Clone, Debug)]
pub(super) enum Up {
    Hello(Box<machine::Hello>),
    Beat(machine::Envelope, u64),
    Answers(machine::Envelope, machine::Answers),
    /// A digest of what the worker holds.
    Holds(machine::Envelope, Claim),
    Drain(machine::Envelope, bool),
    Leave(machine::Envelope),
    /// The end of the stream, as the leader sees it.
    End,
}

/// From the leader to a worker.
#[derive(Clone, Debug)]
pub(super) enum Down {
    Welcome { keep: Vec<(ApplianceId, Token)>, lease: Duration },
    BeatAck(u64),
    Delta { base: u64, target: u64, tells: Vec<Tell<Desired>> },
    Confirm(Vec<(ApplianceId, Token)>),
    Refused(machine::Refusal),
    Drained,
}

/// One direction of a stream.
#[derive(Debug)]
pub(super) struct Lane<M> {
    queue: VecDeque<(Time, M)>,
    /// Nothing arrives before: the lane is stalled.
    not_before: Time,
    last: Time,
}

impl<M> Default for Lane<M> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), not_before: 0, last: 0 }
    }
}

impl<M> Lane<M> {
    /// Puts a message under way; returns when it should be looked for.
    pub(super) fn push(&mut self, at: Time, message: M) -> Time {
        self.last = at.max(self.last).max(self.not_before);
        self.queue.push_back((self.last, message));
        self.last
    }

    /// The oldest message if it has arrived, or when to look again.
    pub(super) fn pop(&mut self, now: Time) -> Result<M, Option<Time>> {
        let Some((at, _)) = self.queue.front() else { return Err(None) };
        let ready = (*at).max(self.not_before);
        if ready > now {
            return Err(Some(ready));
        }
        self.queue.pop_front().map(|(_, message)| message).ok_or(None)
    }

    /// Nothing arrives before `until`.
    pub(super) fn stall(&mut self, until: Time) {
        self.not_before = self.not_before.max(until);
    }

    /// Loses everything from some message on.
    pub(super) fn lose_tail(&mut self, rng: &mut Rng) {
        let kept = rng.index(self.queue.len() + 1);
        self.queue.truncate(kept);
    }

    pub(super) fn lose_all(&mut self) {
        self.queue.clear();
    }
}

/// One stream, from its `Hello` to its end.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) place: usize,
    /// Process of the worker that opened it.
    pub(super) process: u64,
    /// Process of the coordinator it leads to.
    pub(super) instance: u64,
    pub(super) up: Lane<Up>,
    pub(super) down: Lane<(Option<Envelope>, Down)>,
    /// What is sent from now on vanishes.
    pub(super) broken: bool,
}

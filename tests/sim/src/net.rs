//! Streams: in order, delayed, broken at any time. What was under way when one broke is lost from some point on, or
//! arrives later, perhaps after the next stream was opened.

use std::collections::VecDeque;
use std::time::Duration;

use common::driver::DriverName;
use common::session::{Envelope, Refused, RefusedReason, ToCoordinator, ToWorker};
use common::{Edition, StreamNumber, Term};
use worker_core::assignments::Editioned;

use super::SimTime;
use super::rng::Rng;
use super::stranger::Stranger;
use super::world::{SimEvent, SimHost, SimWorld};

/// What an appliance shall be, as far as workers here tell it apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SimDesired {
    pub(super) edition: Edition,
    pub(super) driver: DriverName,
    pub(super) deleting: bool,
}

impl Editioned for SimDesired {
    fn edition(&self) -> Edition {
        self.edition
    }
}

/// From a worker to the leader.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every value is the large one, and a run makes millions of them")]
pub(super) enum WorkerMessage {
    Message(Envelope, ToCoordinator),
    /// The end of the stream, as the leader sees it.
    End,
}

/// From the leader to a worker.
#[derive(Clone, Debug)]
pub(super) struct LeaderMessage {
    pub(super) from: Envelope,
    pub(super) message: ToWorker<SimDesired>,
}

impl LeaderMessage {
    /// The stream ends, whatever conversation it belongs to.
    pub(super) fn refused(reason: RefusedReason, retry_after: Option<Duration>) -> Self {
        let from = Envelope { term: Term::default(), incarnation: None, stream: StreamNumber::default() };
        let detail = String::new();
        Self { from, message: ToWorker::Refused(Refused { reason, detail, retry_after }) }
    }
}

/// One direction of a stream.
#[derive(Debug)]
pub(super) struct Lane<M> {
    queue: VecDeque<(SimTime, M)>,
    /// Nothing arrives before: the lane is stalled.
    not_before: SimTime,
    last: SimTime,
}

impl<M> Default for Lane<M> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), not_before: 0, last: 0 }
    }
}

impl<M> Lane<M> {
    /// Puts a message under way; returns when it should be looked for.
    pub(super) fn push(&mut self, at: SimTime, message: M) -> SimTime {
        self.last = at.max(self.last).max(self.not_before);
        self.queue.push_back((self.last, message));
        self.last
    }

    /// The oldest message if it has arrived, or when to look again.
    pub(super) fn pop(&mut self, now: SimTime) -> Result<M, Option<SimTime>> {
        let Some((at, _)) = self.queue.front() else { return Err(None) };
        let ready = (*at).max(self.not_before);
        if ready > now {
            return Err(Some(ready));
        }
        self.queue.pop_front().map(|(_, message)| message).ok_or(None)
    }

    /// Nothing arrives before `until`.
    pub(super) fn stall(&mut self, until: SimTime) {
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

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// One stream, from its `Hello` to its end.
#[derive(Debug)]
pub(super) struct SimStream {
    pub(super) place: usize,
    /// Process of the worker that opened it.
    pub(super) process: u64,
    pub(super) coordinator: usize,
    /// Process of the coordinator it leads to.
    pub(super) instance: u64,
    pub(super) up: Lane<WorkerMessage>,
    pub(super) down: Lane<LeaderMessage>,
    /// What is sent from now on vanishes.
    pub(super) broken: bool,
    /// Who opened it, where that was no worker.
    pub(super) stranger: Option<Stranger>,
}

impl SimWorld {
    pub(super) fn open_stream(&mut self, place: usize, process: u64, coordinator: usize, instance: u64) -> usize {
        let (up, down) = (Lane::default(), Lane::default());
        self.streams.push(SimStream { place, process, coordinator, instance, up, down, broken: false, stranger: None });
        let number = self.streams.len() - 1;
        self.open.insert(number);
        number
    }

    pub(super) fn send_up(&mut self, stream: usize, message: WorkerMessage) {
        if self.streams[stream].broken {
            return;
        }
        let at = self.now + self.delay();
        let at = self.streams[stream].up.push(at, message);
        self.at(at, SimEvent::Up(stream));
    }

    pub(super) fn send_down(&mut self, stream: usize, message: LeaderMessage) {
        if self.streams[stream].broken {
            return;
        }
        let at = self.now + self.delay();
        let at = self.streams[stream].down.push(at, message);
        self.at(at, SimEvent::Down(stream));
    }

    pub(super) fn arrive_up(&mut self, stream: usize) {
        let s = &mut self.streams[stream];
        let (from, to) = (SimHost::Worker(s.place), SimHost::Coordinator(s.coordinator));
        let until = self.cut_until(from, to);
        self.streams[stream].up.stall(until);
        match self.streams[stream].up.pop(self.now) {
            Ok(message) => self.leader_receives(stream, message),
            Err(Some(later)) => self.at(later, SimEvent::Up(stream)),
            Err(None) => self.forget_stream(stream),
        }
    }

    pub(super) fn arrive_down(&mut self, stream: usize) {
        let s = &mut self.streams[stream];
        let (from, to) = (SimHost::Coordinator(s.coordinator), SimHost::Worker(s.place));
        let until = self.cut_until(from, to);
        self.streams[stream].down.stall(until);
        match self.streams[stream].down.pop(self.now) {
            Ok(message) if self.streams[stream].stranger.is_some() => self.stranger_receives(stream, message),
            Ok(message) => self.worker_receives(stream, message),
            Err(Some(later)) => self.at(later, SimEvent::Down(stream)),
            Err(None) => self.forget_stream(stream),
        }
    }

    fn forget_stream(&mut self, stream: usize) {
        let s = &self.streams[stream];
        if s.broken && s.up.is_empty() && s.down.is_empty() {
            self.open.remove(&stream);
        }
    }

    /// Ends a stream: what is under way in each direction is lost from some point on, or arrives late, or as if nothing
    /// had happened. The leader learns of the end after everything else.
    pub(super) fn break_stream(&mut self, stream: usize, tell_worker: bool) {
        if self.streams[stream].broken {
            return;
        }
        self.streams[stream].broken = true;
        let late = [self.lateness(), self.lateness()];
        let lost = [self.rng.chance(40), self.rng.chance(40)];
        let (now, rng, s) = (self.now, &mut self.rng, &mut self.streams[stream]);
        s.up.stall(now + late[0]);
        s.down.stall(now + late[1]);
        if lost[0] {
            s.up.lose_tail(rng);
        }
        if lost[1] {
            s.down.lose_tail(rng);
        }
        let at = s.up.push(now + late[0], WorkerMessage::End);
        self.at(at, SimEvent::Up(stream));
        if tell_worker {
            let delay = self.rng.millis(0, 400);
            self.after(delay, SimEvent::Broken(stream));
        }
    }

    fn lateness(&mut self) -> SimTime {
        if self.faulty() && self.rng.chance(30) { self.rng.millis(10, 5_000) } else { self.rng.micros(10, 500) }
    }

    pub(super) fn any_stream(&self, who: u32) -> Option<usize> {
        let open: Vec<usize> = self.open.iter().copied().filter(|&n| !self.streams[n].broken).collect();
        (!open.is_empty()).then(|| open[who as usize % open.len()])
    }
}

//! The coordinator's half of the store, after `coordinator::store::writer`: one batch under way, each at its place in the
//! chain; when the outcome of one is not known, everything is refused until the chain, read back, tells it.
//!
//! | the database says | then |
//! |---|---|
//! | written | the batch is acknowledged |
//! | no place in the chain | deposed: nothing is written until the next term |
//! | refused | the batch, and what waited behind it, is undone |
//! | nothing in time | the batch waits until the chain tells; everything behind it is undone |

use std::collections::VecDeque;

use common::Term;
use common::mutant::{self, Mutant};
use coordinator_core::machine::BatchId;
use coordinator_core::orders::OrderOp;

use super::coordinator::CoordinatorTimer;
use super::database::{
    ApplianceRow, CallResult, DatabaseCall, DatabaseReply, DatabaseRequest, DatabaseWrite, Position, SubmittedWrite,
};
use super::world::{SimEvent, SimWorld};

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Durable,
    /// Surely not stored, as far as the store tells.
    Undone,
    /// The store is lost to another term, or nobody will find out.
    Lost,
}

/// A write and what became of it.
#[derive(Clone, Debug)]
pub(super) enum WriteResult {
    Batch(BatchId, Fate),
    Put(ApplianceRow, Fate),
    Order(OrderOp, Fate),
    Seen(Fate),
}

#[derive(Debug)]
struct RunningBatch {
    request: u64,
    number: u64,
    group: Vec<SubmittedWrite>,
}

/// A time without the database.
#[derive(Debug)]
struct Outage {
    /// The batch whose commit was not answered, and who waits for it.
    unknown: u64,
    waiting: Vec<SubmittedWrite>,
    failures: u32,
    /// The look at the chain that is under way.
    look: Option<u64>,
}

/// The writing connection of one process.
#[derive(Debug, Default)]
pub(super) struct SimWriter {
    /// Term and number of the last batch, while this process may write.
    chain: Option<Position>,
    queue: VecDeque<SubmittedWrite>,
    running: Option<RunningBatch>,
    outage: Option<Outage>,
    requests: u64,
    /// The request of a begin of a term whose answer, or silence, is waited for.
    pub(super) awaited: Option<u64>,
}

impl SimWriter {
    /// Nothing is under way whose outcome is open.
    pub(super) const fn is_idle(&self) -> bool {
        self.running.is_none() && self.outage.is_none()
    }

    /// The database has not said what became of a batch.
    pub(super) const fn is_away(&self) -> bool {
        self.outage.is_some()
    }

    /// A term was begun.
    pub(super) fn led(&mut self, term: Term) -> Vec<SubmittedWrite> {
        self.chain = Some((term, 0));
        self.queue.drain(..).collect()
    }
}

impl SimWorld {
    fn writer(&mut self, coordinator: usize) -> Option<&mut SimWriter> {
        self.coordinators[coordinator].process.as_mut().map(|process| &mut process.writer)
    }

    /// Sends a request; it is given up after a while.
    pub(super) fn request(&mut self, coordinator: usize, request: DatabaseCall) -> u64 {
        let epoch = self.database.epoch;
        let timeout = self.settings.store_timeout;
        let Some(process) = self.coordinators[coordinator].process.as_mut() else { return 0 };
        process.writer.requests += 1;
        let (number, instance) = (process.writer.requests, process.instance);
        self.ask_database(coordinator, instance, DatabaseRequest { number, epoch, request });
        self.coordinator_local_timer(coordinator, timeout, CoordinatorTimer::StoreDue(number));
        number
    }

    pub(super) fn submit(&mut self, coordinator: usize, reign: u64, term: Term, write: DatabaseWrite) {
        // Anything that rises will do.
        self.calls += 1;
        let submission = SubmittedWrite { term, reign, order: self.calls, write };
        let Some(writer) = self.writer(coordinator) else { return };
        let refused = match (writer.chain, &writer.outage) {
            (Some((current, _)), None) if current == term => None,
            (Some((current, _)), Some(_)) if current == term => Some(Fate::Undone),
            _ => Some(Fate::Lost),
        };
        match refused {
            Some(fate) => self.tell_fate(coordinator, submission, fate),
            None => {
                writer.queue.push_back(submission);
                self.write_next(coordinator);
            }
        }
    }

    fn write_next(&mut self, coordinator: usize) {
        let some = self.rng.chance(20).then(|| self.rng.below(4) as usize + 1);
        let Some(writer) = self.writer(coordinator).filter(|w| w.is_idle() && !w.queue.is_empty()) else { return };
        let Some((term, last)) = writer.chain else { return };
        let count = some.unwrap_or(writer.queue.len()).min(writer.queue.len());
        let group: Vec<SubmittedWrite> = writer.queue.drain(..count).collect();
        let number = last + 1;
        let request = self.request(coordinator, DatabaseCall::Write((term, number), group.clone()));
        if let Some(writer) = self.writer(coordinator) {
            writer.running = Some(RunningBatch { request, number, group });
        }
    }

    fn tell_fate(&mut self, coordinator: usize, submission: SubmittedWrite, fate: Fate) {
        let reign = submission.reign;
        let news = Box::new(match submission.write {
            DatabaseWrite::Batch(batch, _) => WriteResult::Batch(batch, fate),
            DatabaseWrite::Put(record) => WriteResult::Put(record, fate),
            DatabaseWrite::Order(op) => WriteResult::Order(op, fate),
            DatabaseWrite::Seen => WriteResult::Seen(fate),
        });
        let delay = self.rng.micros(10, 1_000);
        let Some(process) = self.coordinators[coordinator].process.as_mut() else { return };
        process.last_news = (self.now + delay).max(process.last_news);
        let at = process.last_news;
        self.at(at, SimEvent::News { coordinator, reign, news });
    }

    fn tell_all(&mut self, coordinator: usize, submissions: impl IntoIterator<Item = SubmittedWrite>, fate: Fate) {
        for submission in submissions {
            self.tell_fate(coordinator, submission, fate);
        }
    }

    fn turn_away(&mut self, coordinator: usize, fate: Fate) {
        let waiting: Vec<_> = self.writer(coordinator).map(|w| w.queue.drain(..).collect()).unwrap_or_default();
        self.tell_all(coordinator, waiting, fate);
    }

    /// The database has answered a request.
    pub(super) fn database_answered(&mut self, coordinator: usize, answer: DatabaseReply) {
        let DatabaseReply { number, reply } = answer;
        let Some(writer) = self.writer(coordinator) else { return };
        if let Some(running) = writer.running.take_if(|running| running.request == number) {
            return self.batch_answered(coordinator, running, &reply);
        }
        if let Some(outage) = &mut writer.outage
            && outage.look.take_if(|look| *look == number).is_some()
        {
            return match reply {
                CallResult::Settled(found) => self.outage_over(coordinator, found),
                _ => self.look_again(coordinator),
            };
        }
        if writer.awaited.take_if(|awaited| *awaited == number).is_some() {
            self.coordinator_store_answered(coordinator, reply);
        }
    }

    fn batch_answered(&mut self, coordinator: usize, running: RunningBatch, reply: &CallResult) {
        let fate = match reply {
            CallResult::Written => Fate::Durable,
            CallResult::Deposed => Fate::Lost,
            _ => Fate::Undone,
        };
        if let Some(writer) = self.writer(coordinator) {
            match (fate, &mut writer.chain) {
                (Fate::Durable, Some((_, last))) => *last = running.number,
                (Fate::Lost, chain) => *chain = None,
                _ => {}
            }
        }
        self.tell_all(coordinator, running.group, fate);
        if fate != Fate::Durable {
            self.turn_away(coordinator, fate);
        }
        self.write_next(coordinator);
    }

    /// Nothing came of a request for too long: its connection is given up.
    pub(super) fn store_due(&mut self, coordinator: usize, number: u64) {
        let Some(writer) = self.writer(coordinator) else { return };
        if let Some(running) = writer.running.take_if(|running| running.request == number) {
            writer.outage = Some(Outage { unknown: running.number, waiting: running.group, failures: 0, look: None });
            self.note(|| format!("c{coordinator} does not know what became of batch {}", running.number));
            self.turn_away(coordinator, Fate::Undone);
            return self.look_again(coordinator);
        }
        if let Some(outage) = &mut writer.outage
            && outage.look.take_if(|look| *look == number).is_some()
        {
            return self.look_again(coordinator);
        }
        if writer.awaited.take_if(|awaited| *awaited == number).is_some() {
            self.coordinator_store_answered(coordinator, CallResult::Refused);
        }
    }

    fn look_again(&mut self, coordinator: usize) {
        let Some(outage) = self.writer(coordinator).and_then(|writer| writer.outage.as_mut()) else { return };
        outage.failures = (outage.failures + 1).min(5);
        let pause = 50 << outage.failures;
        let delay = self.rng.millis(pause / 2, pause);
        self.coordinator_timer_after(coordinator, delay, CoordinatorTimer::Look);
    }

    /// Looks for the database, and for what became of the batch nobody knows of.
    pub(super) fn look_for_database(&mut self, coordinator: usize) {
        if self
            .writer(coordinator)
            .and_then(|writer| writer.outage.as_ref())
            .is_some_and(|outage| outage.look.is_none())
        {
            let number = self.request(coordinator, DatabaseCall::Settle);
            if let Some(outage) = self.writer(coordinator).and_then(|writer| writer.outage.as_mut()) {
                outage.look = Some(number);
            }
        }
    }

    fn outage_over(&mut self, coordinator: usize, found: Position) {
        let Some(writer) = self.writer(coordinator) else { return };
        let Some(outage) = writer.outage.take() else { return };
        let fate = match &mut writer.chain {
            // Where nothing tells one batch from the other, one that was not answered is taken for one that failed.
            Some(_) if mutant::is(Mutant::UnchainedBatches) => Fate::Undone,
            Some((term, last)) if found == (*term, outage.unknown) => {
                *last = outage.unknown;
                Fate::Durable
            }
            Some((term, last)) if found == (*term, *last) => Fate::Undone,
            chain => {
                *chain = None;
                Fate::Lost
            }
        };
        self.note(|| format!("c{coordinator} learns of batch {}: {fate:?}", outage.unknown));
        self.tell_all(coordinator, outage.waiting, fate);
        self.write_next(coordinator);
    }

    /// Whether a process still waits for what becomes of a batch.
    pub(super) fn is_waited_for(&self, coordinator: usize, instance: u64, number: u64) -> bool {
        let process = self.coordinators[coordinator].process.as_ref().filter(|process| process.instance == instance);
        process.and_then(|p| p.writer.running.as_ref()).is_some_and(|running| running.request == number)
    }

    /// Whether a coordinator has something to be stored.
    pub(super) fn is_writing(&self, coordinator: usize) -> bool {
        self.coordinators[coordinator]
            .process
            .as_ref()
            .is_some_and(|p| !p.writer.is_idle() || !p.writer.queue.is_empty())
    }

    /// A term was begun: what was submitted in earlier ones has no place any more.
    pub(super) fn writer_leads(&mut self, coordinator: usize, term: Term) {
        let old = self.writer(coordinator).map(|writer| writer.led(term)).unwrap_or_default();
        self.tell_all(coordinator, old, Fate::Lost);
    }
}

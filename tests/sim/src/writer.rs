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

use super::database::{
    ApplianceRow, CallResult, DatabaseCall, DatabaseReply, DatabaseRequest, DatabaseWrite, Position, SubmittedWrite,
};
use super::seat::CoordinatorTimer;
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
    fn writer(&mut self, seat: usize) -> Option<&mut SimWriter> {
        self.seats[seat].process.as_mut().map(|process| &mut process.writer)
    }

    /// Sends a request; it is given up after a while.
    pub(super) fn request(&mut self, seat: usize, request: DatabaseCall) -> u64 {
        let epoch = self.database.epoch;
        let timeout = self.settings.store_timeout;
        let Some(process) = self.seats[seat].process.as_mut() else { return 0 };
        process.writer.requests += 1;
        let (number, instance) = (process.writer.requests, process.instance);
        self.ask_database(seat, instance, DatabaseRequest { number, epoch, request });
        self.seat_local_timer(seat, timeout, CoordinatorTimer::StoreDue(number));
        number
    }

    pub(super) fn submit(&mut self, seat: usize, reign: u64, term: Term, write: DatabaseWrite) {
        // Anything that rises will do.
        self.calls += 1;
        let submission = SubmittedWrite { term, reign, order: self.calls, write };
        let Some(writer) = self.writer(seat) else { return };
        let refused = match (writer.chain, &writer.outage) {
            (Some((current, _)), None) if current == term => None,
            (Some((current, _)), Some(_)) if current == term => Some(Fate::Undone),
            _ => Some(Fate::Lost),
        };
        match refused {
            Some(fate) => self.tell_fate(seat, submission, fate),
            None => {
                writer.queue.push_back(submission);
                self.write_next(seat);
            }
        }
    }

    fn write_next(&mut self, seat: usize) {
        let some = self.rng.chance(20).then(|| self.rng.below(4) as usize + 1);
        let Some(writer) = self.writer(seat).filter(|w| w.is_idle() && !w.queue.is_empty()) else { return };
        let Some((term, last)) = writer.chain else { return };
        let count = some.unwrap_or(writer.queue.len()).min(writer.queue.len());
        let group: Vec<SubmittedWrite> = writer.queue.drain(..count).collect();
        let number = last + 1;
        let request = self.request(seat, DatabaseCall::Write((term, number), group.clone()));
        if let Some(writer) = self.writer(seat) {
            writer.running = Some(RunningBatch { request, number, group });
        }
    }

    fn tell_fate(&mut self, seat: usize, submission: SubmittedWrite, fate: Fate) {
        let reign = submission.reign;
        let news = Box::new(match submission.write {
            DatabaseWrite::Batch(batch, _) => WriteResult::Batch(batch, fate),
            DatabaseWrite::Put(record) => WriteResult::Put(record, fate),
            DatabaseWrite::Seen => WriteResult::Seen(fate),
        });
        let delay = self.rng.micros(10, 1_000);
        let Some(process) = self.seats[seat].process.as_mut() else { return };
        process.last_news = (self.now + delay).max(process.last_news);
        let at = process.last_news;
        self.at(at, SimEvent::News { seat, reign, news });
    }

    fn tell_all(&mut self, seat: usize, submissions: impl IntoIterator<Item = SubmittedWrite>, fate: Fate) {
        for submission in submissions {
            self.tell_fate(seat, submission, fate);
        }
    }

    fn turn_away(&mut self, seat: usize, fate: Fate) {
        let waiting: Vec<_> = self.writer(seat).map(|w| w.queue.drain(..).collect()).unwrap_or_default();
        self.tell_all(seat, waiting, fate);
    }

    /// The database has answered a request.
    pub(super) fn database_answered(&mut self, seat: usize, answer: DatabaseReply) {
        let DatabaseReply { number, reply } = answer;
        let Some(writer) = self.writer(seat) else { return };
        if let Some(running) = writer.running.take_if(|running| running.request == number) {
            return self.batch_answered(seat, running, &reply);
        }
        if let Some(outage) = &mut writer.outage
            && outage.look.take_if(|look| *look == number).is_some()
        {
            return match reply {
                CallResult::Settled(found) => self.outage_over(seat, found),
                _ => self.look_again(seat),
            };
        }
        if writer.awaited.take_if(|awaited| *awaited == number).is_some() {
            self.seat_store_answered(seat, reply);
        }
    }

    fn batch_answered(&mut self, seat: usize, running: RunningBatch, reply: &CallResult) {
        let fate = match reply {
            CallResult::Written => Fate::Durable,
            CallResult::Deposed => Fate::Lost,
            _ => Fate::Undone,
        };
        if let Some(writer) = self.writer(seat) {
            match (fate, &mut writer.chain) {
                (Fate::Durable, Some((_, last))) => *last = running.number,
                (Fate::Lost, chain) => *chain = None,
                _ => {}
            }
        }
        self.tell_all(seat, running.group, fate);
        if fate != Fate::Durable {
            self.turn_away(seat, fate);
        }
        self.write_next(seat);
    }

    /// Nothing came of a request for too long: its connection is given up.
    pub(super) fn store_due(&mut self, seat: usize, number: u64) {
        let Some(writer) = self.writer(seat) else { return };
        if let Some(running) = writer.running.take_if(|running| running.request == number) {
            writer.outage = Some(Outage { unknown: running.number, waiting: running.group, failures: 0, look: None });
            self.note(|| format!("c{seat} does not know what became of batch {}", running.number));
            self.turn_away(seat, Fate::Undone);
            return self.look_again(seat);
        }
        if let Some(outage) = &mut writer.outage
            && outage.look.take_if(|look| *look == number).is_some()
        {
            return self.look_again(seat);
        }
        if writer.awaited.take_if(|awaited| *awaited == number).is_some() {
            self.seat_store_answered(seat, CallResult::Refused);
        }
    }

    fn look_again(&mut self, seat: usize) {
        let Some(outage) = self.writer(seat).and_then(|writer| writer.outage.as_mut()) else { return };
        outage.failures = (outage.failures + 1).min(5);
        let pause = 50 << outage.failures;
        let delay = self.rng.millis(pause / 2, pause);
        self.seat_timer_after(seat, delay, CoordinatorTimer::Look);
    }

    /// Looks for the database, and for what became of the batch nobody knows of.
    pub(super) fn look_for_database(&mut self, seat: usize) {
        if self.writer(seat).and_then(|writer| writer.outage.as_ref()).is_some_and(|outage| outage.look.is_none()) {
            let number = self.request(seat, DatabaseCall::Settle);
            if let Some(outage) = self.writer(seat).and_then(|writer| writer.outage.as_mut()) {
                outage.look = Some(number);
            }
        }
    }

    fn outage_over(&mut self, seat: usize, found: Position) {
        let Some(writer) = self.writer(seat) else { return };
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
        self.note(|| format!("c{seat} learns of batch {}: {fate:?}", outage.unknown));
        self.tell_all(seat, outage.waiting, fate);
        self.write_next(seat);
    }

    /// Whether a process still waits for what becomes of a batch.
    pub(super) fn is_waited_for(&self, seat: usize, instance: u64, number: u64) -> bool {
        let process = self.seats[seat].process.as_ref().filter(|process| process.instance == instance);
        process.and_then(|p| p.writer.running.as_ref()).is_some_and(|running| running.request == number)
    }

    /// Whether a coordinator has something to be stored.
    pub(super) fn is_writing(&self, seat: usize) -> bool {
        self.seats[seat].process.as_ref().is_some_and(|p| !p.writer.is_idle() || !p.writer.queue.is_empty())
    }

    /// A term was begun: what was submitted in earlier ones has no place any more.
    pub(super) fn writer_leads(&mut self, seat: usize, term: Term) {
        let old = self.writer(seat).map(|writer| writer.led(term)).unwrap_or_default();
        self.tell_all(seat, old, Fate::Lost);
    }
}

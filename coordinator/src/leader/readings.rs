//! Parts of logs that owners are asked for ([`common::inquiry`]), and who waits for them.
//!
//! A part is asked for when its reader has taken the one before, so that a reader that is slow holds nothing here, and nothing on a stream. What is
//! not answered in time, or whose stream ends, is told to be so; whoever reads asks again, perhaps another owner.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use common::change::ApplianceTarget;
use common::inquiry::{Answer, Finding, Inquiry, LogQuery, MAX_OPEN_READINGS, Question};
use common::{ApplianceId, TraceContext, WorkerId};
use coordinator_core::machine::StreamId;
use proto::convert::inquiry::inquiry_to_wire;
use tokio::time::Instant;

use super::Leader;
use crate::commands::{CommandError, LogRead, Reply};

/// How long an owner may take for one part.
const READ_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct OpenReading {
    appliance: ApplianceId,
    stream: StreamId,
    worker: WorkerId,
    deadline: Instant,
    reply: Reply<LogRead>,
}

/// The readings of one term that are not answered.
#[derive(Debug, Default)]
pub(super) struct Readings {
    open: HashMap<u64, OpenReading>,
    deadlines: BTreeSet<(Instant, u64)>,
    of_stream: HashMap<StreamId, usize>,
}

impl Readings {
    /// Whether an answer of this number is one of these.
    pub(super) fn has(&self, number: u64) -> bool {
        self.open.contains_key(&number)
    }

    /// An owner has answered on this stream. Of another stream than the one that was asked, it counts for nothing.
    pub(super) fn answered(&mut self, stream: StreamId, answer: Answer) {
        if self.open.get(&answer.number).is_some_and(|open| open.stream == stream)
            && let Some(open) = self.remove(answer.number)
        {
            open.end(answer.finding);
        }
    }

    pub(super) fn stream_ended(&mut self, stream: StreamId) {
        if self.of_stream.remove(&stream).is_some() {
            let ended: Vec<_> = self.open.iter().filter(|(_, open)| open.stream == stream).map(|(n, _)| *n).collect();
            for number in ended {
                self.end(number, "its worker has gone away");
            }
        }
    }

    /// When the next one is over that is not answered.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Ends those whose time is over.
    pub(super) fn end_late(&mut self) {
        let now = Instant::now();
        while let Some((_, number)) = self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now) {
            self.end(number, "its worker does not answer in time");
        }
    }

    /// The term is over.
    pub(super) fn end_all(&mut self, why: &CommandError) {
        self.deadlines.clear();
        self.of_stream.clear();
        for (_, open) in self.open.drain() {
            let _ = open.reply.send(Err(why.clone()));
        }
    }

    fn add(&mut self, number: u64, open: OpenReading) {
        self.deadlines.insert((open.deadline, number));
        *self.of_stream.entry(open.stream).or_default() += 1;
        self.open.insert(number, open);
    }

    fn end(&mut self, number: u64, why: &str) {
        if let Some(open) = self.remove(number) {
            open.end(Finding::Unanswered(why.to_owned()));
        }
    }

    fn remove(&mut self, number: u64) -> Option<OpenReading> {
        let open = self.open.remove(&number)?;
        self.deadlines.remove(&(open.deadline, number));
        if let Some(count) = self.of_stream.get_mut(&open.stream) {
            *count -= 1;
        }
        Some(open)
    }
}

impl OpenReading {
    fn end(self, finding: Finding) {
        let Self { appliance, worker, reply, .. } = self;
        let _ = reply.send(match finding {
            Finding::Log(part) => Ok(LogRead { worker, part }),
            Finding::Unanswered(why) => Err(CommandError::NoLog { appliance, why: format!("worker {worker}: {why}") }),
            Finding::Judgement(_) => Err(CommandError::NoLog { appliance, why: format!("worker {worker} judges it") }),
        });
    }
}

impl Leader<'_> {
    /// Asks the owner of an appliance for a part of what an instance has printed.
    pub(super) fn read_log(&mut self, query: LogQuery, deadline: Instant, reply: Reply<LogRead>) {
        match self.reader_of(&query) {
            Err(error) => drop(reply.send(Err(error))),
            Ok((stream, worker, query)) => {
                let deadline = deadline.min(Instant::now() + READ_WITHIN);
                let number = self.inquiries.next_number();
                let appliance = query.appliance;
                self.readings.add(number, OpenReading { appliance, stream, worker, deadline, reply });
                let Some(envelope) = self.connections.envelope(stream) else { return };
                let within = deadline.saturating_duration_since(Instant::now());
                let question = Question::ReadLog(Box::new(query));
                let inquiry = Inquiry { number, within, call: TraceContext::default(), question };
                // A worker that does not read is found by the next message of the protocol.
                let _ = self.connections.send_beside(stream, inquiry_to_wire(&envelope, inquiry));
            }
        }
    }

    /// Whom to ask, and what.
    fn reader_of(&self, query: &LogQuery) -> Result<(StreamId, WorkerId, LogQuery), CommandError> {
        let appliance = query.appliance;
        let target = ApplianceTarget::Id(appliance);
        let entry = self.catalog.get(&target).ok_or(CommandError::NotFound(target))?;
        let driver = entry.record.driver.clone();
        let Some(worker) = entry.assignment.worker.clone() else {
            let reason = entry.assignment.reason.to_string();
            return Err(CommandError::NoOwner { appliance, reason });
        };
        let no_log = |why: String| CommandError::NoLog { appliance, why };
        let stream = self.connections.stream_of(&worker);
        let stream = stream.ok_or_else(|| no_log(format!("worker {worker} is not connected")))?;
        if !self.connections.keeps_logs(stream, &driver) {
            return Err(CommandError::KeepsNoLogs { appliance, driver });
        }
        if self.readings.of_stream.get(&stream).is_some_and(|open| *open >= MAX_OPEN_READINGS) {
            return Err(no_log(format!("worker {worker} is asked for other parts: try again")));
        }
        Ok((stream, worker, LogQuery { driver: Some(driver), ..query.clone() }))
    }
}

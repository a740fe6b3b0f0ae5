//! Inquiries to one worker, for one caller that waits ([`common::inquiry`]): parts of logs, commands in instances, and that it reads its configuration
//! again.
//!
//! A part of a log is asked for when its reader has taken the one before, so that a reader that is slow holds nothing here, and nothing on a stream.
//! What is not answered in time, or whose stream ends, is told to be so; whoever asked asks again, perhaps another owner.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use common::change::ApplianceTarget;
use common::execution::{ExecCommand, ExecStep, MAX_OPEN_STEPS};
use common::inquiry::{Answer, Finding, Inquiry, LogQuery, MAX_OPEN_READINGS, Question};
use common::{ApplianceId, TraceContext, WorkerId};
use coordinator_core::machine::StreamId;
use proto::convert::inquiry::inquiry_to_wire;
use runtime::reload;
use tokio::time::Instant;

use super::{Leader, convert};
use crate::commands::{CommandError, ConfigReload, ExecAnswered, ExecRequest, ExecutionRef, LogRead, Operator, Reply};

/// How long a worker may take for an answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct OpenInquiry {
    stream: StreamId,
    worker: WorkerId,
    deadline: Instant,
    caller: Waiting,
}

/// Who waits for an answer.
#[derive(Debug)]
enum Waiting {
    /// The reader of a log.
    Log { appliance: ApplianceId, reply: Reply<LogRead> },
    /// Who has a configuration read again.
    Reload(Reply<ConfigReload>),
    /// Who runs a command in an instance, which the number names once it is begun.
    Exec { appliance: ApplianceId, execution: u64, reply: Reply<ExecAnswered> },
}

/// Inquiries that share a bound for each worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Class {
    Reading,
    Execution,
}

impl Class {
    const ALL: [Self; 2] = [Self::Reading, Self::Execution];

    /// How many of them may be open on a stream.
    const fn most(self) -> usize {
        match self {
            Self::Reading => MAX_OPEN_READINGS,
            Self::Execution => MAX_OPEN_STEPS,
        }
    }
}

impl Waiting {
    fn fail(self, error: CommandError) {
        match self {
            Self::Log { reply, .. } => drop(reply.send(Err(error))),
            Self::Reload(reply) => drop(reply.send(Err(error))),
            Self::Exec { reply, .. } => drop(reply.send(Err(error))),
        }
    }

    const fn class(&self) -> Class {
        match self {
            Self::Log { .. } | Self::Reload(_) => Class::Reading,
            Self::Exec { .. } => Class::Execution,
        }
    }
}

/// The inquiries of this sort in one term that are not answered.
#[derive(Debug, Default)]
pub(super) struct DirectInquiries {
    open: HashMap<u64, OpenInquiry>,
    deadlines: BTreeSet<(Instant, u64)>,
    of_stream: HashMap<(StreamId, Class), usize>,
}

impl DirectInquiries {
    /// Whether an answer of this number is one of these.
    pub(super) fn has(&self, number: u64) -> bool {
        self.open.contains_key(&number)
    }

    /// A worker has answered on this stream. Of another stream than the one that was asked, it counts for nothing.
    pub(super) fn answered(&mut self, stream: StreamId, answer: Answer) {
        if self.open.get(&answer.number).is_some_and(|open| open.stream == stream)
            && let Some(open) = self.remove(answer.number)
        {
            open.end(answer.finding);
        }
    }

    pub(super) fn stream_ended(&mut self, stream: StreamId) {
        let known = Class::ALL.map(|class| self.of_stream.remove(&(stream, class)).is_some());
        if known.contains(&true) {
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
            open.caller.fail(why.clone());
        }
    }

    /// Whether a worker is asked as much as it may be at a time.
    fn is_full(&self, stream: StreamId, class: Class) -> bool {
        self.of_stream.get(&(stream, class)).is_some_and(|open| *open >= class.most())
    }

    fn add(&mut self, number: u64, open: OpenInquiry) {
        self.deadlines.insert((open.deadline, number));
        *self.of_stream.entry((open.stream, open.caller.class())).or_default() += 1;
        self.open.insert(number, open);
    }

    fn end(&mut self, number: u64, why: &str) {
        if let Some(open) = self.remove(number) {
            open.end(Finding::Unanswered(why.to_owned()));
        }
    }

    fn remove(&mut self, number: u64) -> Option<OpenInquiry> {
        let open = self.open.remove(&number)?;
        self.deadlines.remove(&(open.deadline, number));
        if let Some(count) = self.of_stream.get_mut(&(open.stream, open.caller.class())) {
            *count -= 1;
        }
        Some(open)
    }
}

impl OpenInquiry {
    fn end(self, finding: Finding) {
        let Self { stream, worker, caller, .. } = self;
        let why = |finding| match finding {
            Finding::Unanswered(why) => why,
            _ => "the answer is to something else".to_owned(),
        };
        match (caller, finding) {
            (Waiting::Log { reply, .. }, Finding::Log(part)) => drop(reply.send(Ok(LogRead { worker, part }))),
            (Waiting::Log { appliance, reply }, other) => {
                let why = format!("worker {worker}: {}", why(other));
                let _ = reply.send(Err(CommandError::NoLog { appliance, why }));
            }
            (Waiting::Reload(reply), Finding::Reloaded(reloaded)) => drop(reply.send(Ok(reloaded))),
            (Waiting::Reload(reply), other) => {
                let _ = reply.send(Err(CommandError::NoAnswer { worker, why: why(other) }));
            }
            (Waiting::Exec { execution, reply, .. }, Finding::Exec(answer)) => {
                let execution = ExecutionRef { worker, stream, number: execution };
                let _ = reply.send(Ok(ExecAnswered { execution, answer }));
            }
            (Waiting::Exec { appliance, reply, .. }, other) => {
                let why = format!("worker {worker}: {}", why(other));
                let _ = reply.send(Err(CommandError::NotExecuted { appliance, why }));
            }
        }
    }
}

impl Leader<'_> {
    /// Asks the owner of an appliance for a part of what an instance has printed.
    pub(super) fn read_log(&mut self, query: LogQuery, deadline: Instant, reply: Reply<LogRead>) {
        match self.reader_of(&query) {
            Err(error) => drop(reply.send(Err(error))),
            Ok((stream, worker, query)) => {
                let caller = Waiting::Log { appliance: query.appliance, reply };
                self.ask(stream, worker, deadline, caller, Question::ReadLog(Box::new(query)));
            }
        }
    }

    /// Has the owner of an appliance run a command in an instance.
    pub(super) fn execute(
        &mut self,
        asked: ExecRequest,
        request: &Operator,
        deadline: Instant,
        reply: Reply<ExecAnswered>,
    ) {
        let appliance = asked.appliance;
        match self.executor_of(asked) {
            Err(error) => drop(reply.send(Err(error))),
            Ok((stream, worker, command)) => {
                self.audit("exec", &appliance.to_string(), request);
                let execution = self.inquiries.next_number();
                let question = Question::Exec(Box::new(ExecStep::Begin(command)));
                self.ask_as(
                    execution,
                    stream,
                    worker,
                    deadline,
                    Waiting::Exec { appliance, execution, reply },
                    question,
                );
            }
        }
    }

    /// Goes on with a command, where it was begun.
    pub(super) fn go_on_executing(
        &mut self,
        appliance: ApplianceId,
        execution: ExecutionRef,
        step: ExecStep,
        deadline: Instant,
        reply: Reply<ExecAnswered>,
    ) {
        let ExecutionRef { worker, stream, number } = execution;
        let refused = |why: &str| CommandError::NotExecuted { appliance, why: format!("worker {worker}: {why}") };
        let error = if self.connections.worker(stream) != Some(&worker) {
            refused("its session has ended, and with it the command")
        } else if self.direct.is_full(stream, Class::Execution) {
            refused("it is asked about other commands: try again")
        } else {
            let caller = Waiting::Exec { appliance, execution: number, reply };
            return self.ask(stream, worker, deadline, caller, Question::Exec(Box::new(step)));
        };
        let _ = reply.send(Err(error));
    }

    /// Whom to have run a command, and how.
    fn executor_of(&self, asked: ExecRequest) -> Result<(StreamId, WorkerId, ExecCommand), CommandError> {
        let ExecRequest { appliance, ordinal, command, limit } = asked;
        let target = ApplianceTarget::Id(appliance);
        let entry = self.catalog.get(&target).ok_or(CommandError::NotFound(target))?;
        let refused = |why: String| CommandError::NotExecuted { appliance, why };
        let table = self.machine.table();
        let slot = table.slot(appliance);
        let held = slot.and_then(|slot| table.get(slot)).and_then(|held| held.state.holder());
        let Some(granted) = held else {
            let reason = entry.assignment.reason.to_string();
            return Err(CommandError::NoOwner { appliance, reason });
        };
        let (worker, token) = (granted.worker.clone(), granted.token);
        let stream = self.connections.stream_of(&worker);
        let stream = stream.ok_or_else(|| refused(format!("worker {worker} is not connected")))?;
        if self.direct.is_full(stream, Class::Execution) {
            return Err(refused(format!("worker {worker} is asked about other commands: try again")));
        }
        let desired = Box::new(convert::desired(&entry.record));
        Ok((stream, worker, ExecCommand { appliance, token, desired, ordinal, command, limit }))
    }

    /// Has a worker read its configuration again, or this process.
    pub(super) fn reload_config(
        &mut self,
        worker: Option<WorkerId>,
        request: &Operator,
        deadline: Instant,
        reply: Reply<ConfigReload>,
    ) {
        let Some(worker) = worker else {
            let own = self.publisher.coordinator().to_string();
            self.audit("config-reload", &own, request);
            // The leader waits for no file.
            tokio::spawn(async move { reply.send(Ok(reload::reload_for("an operator asks").await)) });
            return;
        };
        let not_asked = |why: &str| CommandError::NoAnswer { worker: worker.clone(), why: why.to_owned() };
        let error = match self.connections.stream_of(&worker) {
            None if !self.machine.knows(&worker) => CommandError::NoWorker(worker),
            None => not_asked("it is not connected"),
            Some(stream) if self.direct.is_full(stream, Class::Reading) => {
                not_asked("it is asked for other things: try again")
            }
            Some(stream) => {
                self.audit("config-reload", worker.as_str(), request);
                return self.ask(stream, worker, deadline, Waiting::Reload(reply), Question::ReloadConfig);
            }
        };
        let _ = reply.send(Err(error));
    }

    /// Puts a question to the worker of a stream, for a caller that waits.
    fn ask(&mut self, stream: StreamId, worker: WorkerId, deadline: Instant, caller: Waiting, question: Question) {
        let number = self.inquiries.next_number();
        self.ask_as(number, stream, worker, deadline, caller, question);
    }

    /// The same, as the inquiry of this number.
    fn ask_as(
        &mut self,
        number: u64,
        stream: StreamId,
        worker: WorkerId,
        deadline: Instant,
        caller: Waiting,
        question: Question,
    ) {
        let deadline = deadline.min(Instant::now() + ANSWERED_WITHIN);
        self.direct.add(number, OpenInquiry { stream, worker, deadline, caller });
        let Some(envelope) = self.connections.envelope(stream) else { return };
        let within = deadline.saturating_duration_since(Instant::now());
        let inquiry = Inquiry { number, within, call: TraceContext::default(), question };
        // A worker that does not read is found by the next message of the protocol.
        let _ = self.connections.send_beside(stream, inquiry_to_wire(&envelope, inquiry));
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
        if self.direct.is_full(stream, Class::Reading) {
            return Err(no_log(format!("worker {worker} is asked for other parts: try again")));
        }
        Ok((stream, worker, LogQuery { driver: Some(driver), ..query.clone() }))
    }
}

//! What the leader asks beside the protocol of ownership: each inquiry is answered by a task of its own, so that no message and no
//! heartbeat waits for it.
//!
//! Inquiries belong to a stream. With it end the tasks and what they would have said.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;

use common::driver::DriverName;
use common::execution::MAX_OPEN_STEPS;
use common::inquiry::{Answer, Finding, Inquiry, MAX_OPEN_INQUIRIES, MAX_OPEN_READINGS, Question, Verdict};
use common::session::Envelope;
use common::{ApplianceId, WorkerId};
use runtime::{reload, telemetry};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{Instrument as _, Span, debug, field, info_span};
use worker_core::desired::Desired;

use super::executions::Executions;
use crate::drivers::Driver;
use crate::gate::SharedGate;
use crate::offer::Drivers;

/// Judgements at a time. The calls that they make are those that boots make as well, and must not take all of their places.
const JUDGED_AT_ONCE: usize = 16;

/// The inquiries of one stream.
#[derive(Debug)]
pub(super) struct Inquiries {
    /// Whom to ask. None: nothing can be answered.
    drivers: Option<Drivers>,
    judging: Arc<Semaphore>,
    /// Those under way; a task that found nothing out in time has no answer.
    tasks: JoinSet<(Envelope, Option<Answer>)>,
    /// Readings of logs and configurations among them: they have a bound of their own, so that judgements keep their places.
    readings: Arc<Semaphore>,
    /// Commands in instances, and the steps about them that are open: these have a bound of their own, too.
    executions: Executions,
    steps: Arc<Semaphore>,
    /// Those that are answered and wait to be sent.
    answers: VecDeque<(Envelope, Answer)>,
}

impl Inquiries {
    pub(super) fn new(drivers: Option<Drivers>) -> Self {
        let judging = Arc::new(Semaphore::new(JUDGED_AT_ONCE));
        let readings = Arc::new(Semaphore::new(MAX_OPEN_READINGS));
        let (executions, steps) = (Executions::new(), Arc::new(Semaphore::new(MAX_OPEN_STEPS)));
        Self { drivers, judging, tasks: JoinSet::new(), readings, executions, steps, answers: VecDeque::new() }
    }

    /// Begins to answer an inquiry that came on the stream with this envelope.
    pub(super) fn begin(&mut self, worker: &WorkerId, gate: &Arc<SharedGate>, envelope: Envelope, inquiry: Inquiry) {
        let Inquiry { number, within, call, question } = inquiry;
        let bound = match question {
            Question::ReadLog(_) | Question::ReloadConfig => Some((&self.readings, MAX_OPEN_READINGS)),
            Question::Exec(_) => Some((&self.steps, MAX_OPEN_STEPS)),
            Question::Judge { .. } | Question::Unreadable(_) => None,
        };
        let bounded = bound.map(|(places, most)| (Arc::clone(places).try_acquire_owned(), most));
        let (most, is_full) = match &bounded {
            Some((place, most)) => (*most, place.is_err()),
            None => (MAX_OPEN_INQUIRIES, self.judgements() + self.answers.len() >= MAX_OPEN_INQUIRIES),
        };
        if is_full {
            // A leader that keeps to the bound never gets here. Whoever reads no answers gets no more of them.
            if self.answers.len() < MAX_OPEN_INQUIRIES {
                let finding = Finding::Unanswered(format!("{most} inquiries are open already"));
                self.answers.push_back((envelope, Answer { number, finding }));
            }
            return;
        }
        let method = question.name();
        let span = info_span!(
            parent: None,
            "inquiry",
            otel.name = format_args!("rug.worker.v1.Session/{method}"),
            otel.kind = "server",
            rpc.system = "rug.session",
            rpc.service = "rug.worker.v1.Session",
            rpc.method = method,
            %worker,
            outcome = field::Empty,
        );
        telemetry::continue_trace(&span, &call);
        let answering = Answering {
            number,
            drivers: self.drivers.clone(),
            judging: Arc::clone(&self.judging),
            executions: self.executions.clone(),
            gate: Arc::clone(gate),
        };
        let answered = async move {
            let _place = bounded;
            let finding = tokio::time::timeout(within, answering.answer(question)).await;
            let finding = match finding {
                Ok(finding) => finding,
                Err(_) => {
                    telemetry::fail(&Span::current(), "not found out in time");
                    return (envelope, None);
                }
            };
            Span::current().record("outcome", outcome(&finding));
            if let Finding::Unanswered(problem) = &finding {
                telemetry::fail(&Span::current(), problem);
            }
            (envelope, Some(Answer { number, finding }))
        };
        self.tasks.spawn(answered.instrument(span));
    }

    /// Waits until an inquiry is answered, and keeps the answer to be sent. Cancel-safe.
    pub(super) async fn answered(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok((envelope, Some(answer)))) => self.answers.push_back((envelope, answer)),
            Some(Ok((_, None))) => {}
            // Its leader hears nothing, and waits no longer than it said.
            Some(Err(error)) => debug!("an inquiry was not answered: {error}"),
            None => pending().await,
        }
    }

    /// Open inquiries that have no bound of their own.
    fn judgements(&self) -> usize {
        let readings = MAX_OPEN_READINGS - self.readings.available_permits();
        let steps = MAX_OPEN_STEPS - self.steps.available_permits();
        self.tasks.len().saturating_sub(readings + steps)
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.answers.is_empty()
    }

    pub(super) fn next(&mut self) -> Option<(Envelope, Answer)> {
        self.answers.pop_front()
    }

    /// The stream is over.
    pub(super) fn end(&mut self) {
        self.tasks = JoinSet::new();
        self.executions.end();
        self.executions = Executions::new();
        self.answers.clear();
    }
}

/// The name in traces.
const fn outcome(finding: &Finding) -> &'static str {
    match finding {
        Finding::Judgement(Verdict::Accepted) => "accepted",
        Finding::Judgement(Verdict::Refused(_)) => "refused",
        Finding::Judgement(Verdict::Unclear(_)) => "unclear",
        Finding::Log(_) => "read",
        Finding::Reloaded(_) => "reloaded",
        Finding::Exec(_) => "executed",
        Finding::Unanswered(_) => "unanswered",
    }
}

/// What one inquiry is answered with.
struct Answering {
    number: u64,
    drivers: Option<Drivers>,
    judging: Arc<Semaphore>,
    executions: Executions,
    gate: Arc<SharedGate>,
}

impl Answering {
    async fn answer(self, question: Question) -> Finding {
        match question {
            Question::Judge { appliance, desired } => {
                let driver = self.driver(&desired.driver).filter(|driver| driver.judges());
                let Some(driver) = driver else {
                    return Finding::Unanswered(format!("driver {} is not asked here", desired.driver));
                };
                // Fails only when it is closed, which it never is.
                let _place = self.judging.acquire_owned().await;
                judge(driver.as_ref(), appliance, &desired).await
            }
            Question::ReadLog(query) => {
                let driver = query.driver.as_ref().and_then(|name| self.driver(name));
                let Some(driver) = driver.filter(|driver| driver.keeps_logs()) else {
                    return Finding::Unanswered("no output of instances is kept here".to_owned());
                };
                match driver.read_log(&query).await {
                    Ok(part) => Finding::Log(part),
                    Err(error) => Finding::Unanswered(error.to_string()),
                }
            }
            Question::ReloadConfig => Finding::Reloaded(reload::reload_for("the leader asks").await),
            Question::Exec(step) => {
                let Self { number, drivers, executions, gate, .. } = self;
                Finding::Exec(executions.answer(number, *step, &gate, drivers.as_ref()).await)
            }
            Question::Unreadable(problem) => Finding::Unanswered(problem),
        }
    }

    fn driver(&self, name: &DriverName) -> Option<Arc<dyn Driver>> {
        self.drivers.as_ref()?.offer(name).map(|offer| Arc::clone(&offer.driver))
    }
}

async fn judge(driver: &dyn Driver, appliance: ApplianceId, desired: &Desired) -> Finding {
    match driver.judge(appliance, desired).await {
        Ok(verdict) => Finding::Judgement(verdict),
        Err(error) => Finding::Unanswered(error.to_string()),
    }
}

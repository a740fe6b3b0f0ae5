//! What the leader asks beside the protocol of ownership: each inquiry is answered by a task of its own, so that no message and no
//! heartbeat waits for it.
//!
//! Inquiries belong to a stream. With it end the tasks and what they would have said.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;

use common::inquiry::{Answer, Finding, Inquiry, MAX_OPEN_INQUIRIES, MAX_OPEN_READINGS, Question, Verdict};
use common::session::Envelope;
use common::{ApplianceId, WorkerId};
use runtime::{reload, telemetry};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{Instrument as _, Span, debug, field, info_span};
use worker_core::desired::Desired;

use crate::drivers::Driver;
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
    /// Those that are answered and wait to be sent.
    answers: VecDeque<(Envelope, Answer)>,
}

impl Inquiries {
    pub(super) fn new(drivers: Option<Drivers>) -> Self {
        let judging = Arc::new(Semaphore::new(JUDGED_AT_ONCE));
        let readings = Arc::new(Semaphore::new(MAX_OPEN_READINGS));
        Self { drivers, judging, tasks: JoinSet::new(), readings, answers: VecDeque::new() }
    }

    /// Begins to answer an inquiry that came on the stream with this envelope.
    pub(super) fn begin(&mut self, worker: &WorkerId, envelope: Envelope, inquiry: Inquiry) {
        let Inquiry { number, within, call, question } = inquiry;
        let reading = match question {
            Question::ReadLog(_) | Question::ReloadConfig => Some(Arc::clone(&self.readings).try_acquire_owned()),
            Question::Judge { .. } | Question::Unreadable(_) => None,
        };
        let (most, is_full) = match &reading {
            Some(place) => (MAX_OPEN_READINGS, place.is_err()),
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
        let (drivers, judging) = (self.drivers.clone(), Arc::clone(&self.judging));
        let answered = async move {
            let _reading = reading;
            let finding = tokio::time::timeout(within, answer(drivers, judging, question)).await;
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
        self.tasks.len().saturating_sub(readings)
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
        Finding::Unanswered(_) => "unanswered",
    }
}

async fn answer(drivers: Option<Drivers>, judging: Arc<Semaphore>, question: Question) -> Finding {
    match question {
        Question::Judge { appliance, desired } => {
            let offer = drivers.as_ref().and_then(|drivers| drivers.offer(&desired.driver));
            let Some(driver) = offer.map(|offer| Arc::clone(&offer.driver)).filter(|driver| driver.judges()) else {
                return Finding::Unanswered(format!("driver {} is not asked here", desired.driver));
            };
            // Fails only when it is closed, which it never is.
            let _place = judging.acquire_owned().await;
            judge(driver.as_ref(), appliance, &desired).await
        }
        Question::ReadLog(query) => {
            let offer = query.driver.as_ref().zip(drivers.as_ref()).and_then(|(name, drivers)| drivers.offer(name));
            let Some(driver) = offer.map(|offer| Arc::clone(&offer.driver)).filter(|driver| driver.keeps_logs()) else {
                return Finding::Unanswered("no output of instances is kept here".to_owned());
            };
            match driver.read_log(&query).await {
                Ok(part) => Finding::Log(part),
                Err(error) => Finding::Unanswered(error.to_string()),
            }
        }
        Question::ReloadConfig => Finding::Reloaded(reload::reload_for("the leader asks").await),
        Question::Unreadable(problem) => Finding::Unanswered(problem),
    }
}

async fn judge(driver: &dyn Driver, appliance: ApplianceId, desired: &Desired) -> Finding {
    match driver.judge(appliance, desired).await {
        Ok(verdict) => Finding::Judgement(verdict),
        Err(error) => Finding::Unanswered(error.to_string()),
    }
}

//! Carries one step out: the only place where a machine's wish becomes a call of a driver or kind.

use std::borrow::Cow;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::ApplianceId;
use common::appliance::{MAX_TEXT, Name};
use common::kind::{ProbeSpec, StopRecipe};
use common::status::{Details, InstanceEnd};
use common::text::escaped;
use futures::FutureExt as _;
use proto::convert::scalar::clip;
use runtime::telemetry;
use tokio::sync::watch;
use tracing::{Instrument as _, Span, field};
use worker_core::desired::Desired;
use worker_core::instance::{Addresses, BootState, Instance};
use worker_core::lifecycle::{Config, LifecycleStep, StepOutcome};
use worker_core::peers::Peer;
use worker_core::ports::PortChanges;

use super::run;
use crate::drivers::{Driver, Error, Standing, Wanted};
use crate::gate::{Permit, Shut};
use crate::kinds::{ProbeAnswer, Protocol};
use crate::metrics;

/// How long a probe may ask the driver, each time, whether the instance is still there.
const ASK_DRIVER: Duration = Duration::from_secs(2);

/// How much longer than its limit a command beside an instance may take: to start, and to be ended.
const RUN_BESIDE: Duration = Duration::from_secs(15);

/// The end of a step.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) appliance: ApplianceId,
    pub(super) serial: u64,
    pub(super) outcome: StepOutcome,
    /// The far side has seen our token.
    pub(super) claimed: bool,
    /// Where the instance that it was about can be reached now, if its driver says so.
    pub(super) found_at: Option<FoundAt>,
}

/// Where an instance can be reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct FoundAt {
    pub(super) ordinal: u16,
    pub(super) attempt: u32,
    pub(super) addresses: Addresses,
}

/// Everything one step needs.
pub(super) struct StepTask {
    pub(super) appliance: ApplianceId,
    pub(super) serial: u64,
    pub(super) step: LifecycleStep,
    pub(super) desired: Arc<Desired>,
    /// What an instance that is started now is started with.
    pub(super) boot_digest: Box<str>,
    /// The instance it is about, if there is one yet.
    pub(super) instance: Option<Instance>,
    /// The other instances that its configuration tells of.
    pub(super) peers: Vec<Peer>,
    /// Others that are to be ended as well, by steps that follow.
    pub(super) others_ending: Vec<Instance>,
    /// How they are ended, and changes of that while they are: a deletion can be hurried.
    pub(super) stop: watch::Receiver<StopRecipe>,
    pub(super) driver: Arc<dyn Driver>,
    pub(super) protocol: Arc<dyn Protocol>,
    /// Always there for steps that change the world; for a first look, it lets the token be raised.
    pub(super) permit: Option<Permit>,
    pub(super) adopting: Option<Span>,
    /// The trace that it is a part of, if it is one of several.
    pub(super) run: Option<Span>,
    /// Hands are off: probes note nothing with the driver either.
    pub(super) hands_off: bool,
    /// The driver has said that the far side knows our token.
    pub(super) claimed: AtomicBool,
}

/// What a driver says of an instance beside whether it runs.
#[derive(Clone, Debug, Default)]
struct Remarks {
    /// What is wrong with it.
    problem: Option<String>,
    /// Why what is known of it is out of date.
    doubt: Option<String>,
}

impl StepTask {
    /// Runs the step within its time-out. A panic of a driver counts as a failure of the step.
    pub(super) async fn run(mut self, config: Config) -> Done {
        let span = self.span();
        let (appliance, serial, step) = (self.appliance, self.serial, self.step);
        let (kind, driver) = (self.desired.spec.kind.kind_name(), self.desired.driver.clone());
        let began = Instant::now();
        async move {
            let standing = self.look_at_instance().await;
            let found_at = self.found_at(standing.as_ref());
            let remarks = standing.map(|standing| Remarks { problem: standing.problem, doubt: standing.doubt });
            let work = AssertUnwindSafe(self.carry_out(&config, remarks.unwrap_or_default())).catch_unwind();
            let ended = tokio::time::timeout(self.total_limit(&config), work).await;
            let outcome = match ended {
                Ok(Ok(Ok(outcome))) => outcome,
                Ok(Ok(Err(error))) => outcome_of(error),
                Ok(Err(_panic)) => StepOutcome::Failed("the driver panicked; see the log".to_owned()),
                Err(_elapsed) => StepOutcome::TimedOut,
            };
            let outcome = clipped(outcome);
            Span::current().record("outcome", outcome.name());
            if let Some(problem) = run::problem(&outcome) {
                telemetry::fail(&Span::current(), problem);
            }
            metrics::step_ended(step, kind, &driver, &outcome, began.elapsed());
            if let StepOutcome::Failed(text) | StepOutcome::Refused(text) | StepOutcome::Busy(text) = &outcome {
                tracing::info!(%appliance, %step, outcome = outcome.name(), error = %text, "step did not succeed");
            } else if let StepOutcome::Vanished(end, _) = &outcome {
                tracing::info!(%appliance, %step, %end, "instance ended");
            } else if let StepOutcome::Superseded(newer) = &outcome {
                tracing::info!(%appliance, %step, %newer, "step refused: a newer token is in force");
            } else if matches!(outcome, StepOutcome::TimedOut) && step.changes_the_world() {
                tracing::info!(%appliance, %step, "step took too long, its outcome is unknown");
            }
            // Also of a step that failed after it: the token stands.
            let claimed = self.claimed.load(Ordering::Relaxed);
            Done { appliance, serial, outcome, claimed, found_at }
        }
        .instrument(span)
        .await
    }

    /// Probes are spans of level debug: 10,000 a second are too many to record by default.
    fn span(&self) -> Span {
        let (appliance, step) = (self.appliance, self.step);
        match (step, &self.adopting) {
            (_, Some(adopting)) => {
                tracing::info_span!(parent: adopting, "step", otel.name = step.name(), %appliance, %step, outcome = field::Empty)
            }
            (LifecycleStep::Probe { .. }, None) => {
                let run = self.run.as_ref().and_then(Span::id);
                tracing::debug_span!(parent: run, "step", otel.name = step.name(), %appliance, %step, outcome = field::Empty)
            }
            _ => {
                let run = self.run.as_ref().and_then(Span::id);
                tracing::info_span!(parent: run, "step", otel.name = step.name(), %appliance, %step, outcome = field::Empty)
            }
        }
    }

    /// Makes a call of the driver that changes the world, within a span of a client.
    async fn call<T>(&self, method: &'static str, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let span = tracing::info_span!(
            "driver",
            otel.name = format_args!("{}/{method}", self.desired.driver),
            otel.kind = "client",
            rpc.system = "rug.driver",
            rpc.service = %self.desired.driver,
            rpc.method = method,
        );
        let result = call.instrument(span.clone()).await;
        if let Err(error) = &result {
            telemetry::fail(&span, &error.to_string());
        }
        result
    }

    /// Asks the driver what has changed about the instance that is to be spoken to, and takes that in.
    async fn look_at_instance(&mut self) -> Option<Standing> {
        if !matches!(self.step, LifecycleStep::Probe { .. } | LifecycleStep::Configure { .. }) {
            return None;
        }
        let instance = self.instance.as_mut()?;
        let asked = AssertUnwindSafe(self.driver.standing(self.appliance, instance)).catch_unwind();
        let standing = within(ASK_DRIVER, asked).await?.ok().flatten()?;
        instance.addresses = standing.addresses;
        Some(standing)
    }

    fn found_at(&self, standing: Option<&Standing>) -> Option<FoundAt> {
        let (instance, standing) = (self.instance.as_ref()?, standing?);
        Some(FoundAt { ordinal: instance.ordinal, attempt: instance.attempt, addresses: standing.addresses })
    }

    /// `remarks`: what its driver says of the instance.
    async fn carry_out(&self, config: &Config, remarks: Remarks) -> Result<StepOutcome, Error> {
        match (self.step, self.permit.as_ref(), self.instance.as_ref()) {
            (LifecycleStep::Observe, permit, _) => {
                if let Some(permit) = permit {
                    self.claim(permit).await?;
                }
                Ok(StepOutcome::Observed(self.call("observe", self.driver.observe(self.appliance)).await?))
            }
            (LifecycleStep::Probe { .. }, _, Some(instance)) => {
                let outcome = self.probe(instance, config, remarks).await;
                if matches!(outcome, StepOutcome::Answered(_)) && !self.hands_off {
                    self.note_answer(instance).await;
                }
                Ok(outcome)
            }
            (LifecycleStep::Boot { ordinal, attempt, beside }, Some(permit), _) => {
                let (desired, boot_digest) = (&*self.desired, &*self.boot_digest);
                let wanted = Wanted { ordinal, attempt, desired, boot_digest, beside };
                Ok(StepOutcome::Booted(self.call("ensure", self.driver.ensure(permit, wanted)).await?))
            }
            (LifecycleStep::Configure { .. }, Some(permit), Some(instance)) => {
                // As with a probe: another instance may have taken the address of a dead one.
                if self.is_alive(instance).await == Some(false) {
                    return Ok(self.vanished(instance, remarks.problem).await);
                }
                if instance.is_spare {
                    // It would keep our token, and refuse the older one of whoever takes it.
                    return Ok(StepOutcome::Configured);
                }
                self.call("expose", self.driver.expose(permit, instance, &self.desired)).await?;
                self.protocol.configure(permit, instance, &self.desired, &self.peers).await?;
                self.call("note_configured", self.driver.note_configured(self.appliance, instance)).await?;
                Ok(StepOutcome::Configured)
            }
            (LifecycleStep::Replug { .. }, Some(permit), Some(instance)) => self.replug(permit, instance).await,
            (LifecycleStep::Destroy { .. }, Some(permit), Some(instance)) => {
                self.call("destroy", self.destroy(permit, instance)).await?;
                Ok(StepOutcome::Destroyed)
            }
            (LifecycleStep::Forget, Some(permit), _) => {
                self.call("forget", self.driver.forget(permit)).await?;
                Ok(StepOutcome::Forgotten)
            }
            (LifecycleStep::Destroy { .. }, _, None) => Ok(StepOutcome::Destroyed),
            (_, None, _) => Ok(StepOutcome::Fenced { retry_after: None }),
            (LifecycleStep::Probe { .. } | LifecycleStep::Configure { .. } | LifecycleStep::Replug { .. }, _, None) => {
                Ok(StepOutcome::Failed("the instance is not known any more".to_owned()))
            }
        }
    }

    /// Ends an instance. One that has to end in another way meanwhile is ended anew.
    async fn destroy(&self, permit: &Permit, instance: &Instance) -> Result<(), Error> {
        let mut stop = self.stop.clone();
        loop {
            let recipe = *stop.borrow_and_update();
            let ends = self.driver.destroy_first(permit, instance, &self.others_ending, recipe);
            tokio::select! {
                ended = ends => return ended,
                Ok(()) = stop.changed() => {}
            }
        }
    }

    /// Detaches the ports that the instance shall not have, then attaches those that it lacks.
    async fn replug(&self, permit: &Permit, instance: &Instance) -> Result<StepOutcome, Error> {
        if self.is_alive(instance).await == Some(false) {
            return Ok(self.vanished(instance, None).await);
        }
        let changes = PortChanges::between(&self.desired.spec.ports, &instance.ports);
        let about = |verb: &str, port: &Name, error| match error {
            Error::Refused(text) => Error::Refused(format!("{verb} port {port}: {text}")),
            Error::Failed(text) => Error::Failed(format!("{verb} port {port}: {text}")),
            other => other,
        };
        let mut now = instance.clone();
        for port in &changes.detach {
            let detached = self.call("detach", self.driver.detach(permit, &now, port)).await;
            now = detached.map_err(|error| about("detach", port, error))?;
        }
        for port in &changes.attach {
            let attached = self.call("attach", self.driver.attach(permit, &now, port)).await;
            now = attached.map_err(|error| about("attach", &port.name, error))?;
        }
        Ok(StepOutcome::Replugged(now))
    }

    /// Raises the token at the far side. A shut gate is no reason not to look; whatever did not answer that it is raised is asked
    /// again with the next look.
    async fn claim(&self, permit: &Permit) -> Result<(), Error> {
        match self.call("claim", self.driver.claim(permit)).await {
            Ok(()) => {
                self.claimed.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(Error::Shut(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn probe(&self, instance: &Instance, config: &Config, remarks: Remarks) -> StepOutcome {
        let Remarks { problem, doubt } = remarks;
        // Asked first, because whoever took the port of a dead instance may answer in its place.
        if self.is_alive(instance).await == Some(false) {
            return self.vanished(instance, problem).await;
        }
        let limit = self.probe_timeout(config);
        let error = match self.ask(instance, limit).await {
            Some(Ok(ProbeAnswer::Answered(conditions))) => return StepOutcome::Answered(conditions),
            Some(Ok(ProbeAnswer::LeftToDriver | ProbeAnswer::ByCommand(_))) => {
                return match (self.runs(instance).await, problem) {
                    (Some(true), None) => StepOutcome::Answered(Details::default()),
                    (Some(true), Some(problem)) => StepOutcome::Silent(problem),
                    (Some(false), problem) => self.vanished(instance, problem).await,
                    (None, problem) => StepOutcome::Unclear(
                        problem.or(doubt).unwrap_or_else(|| "its driver cannot tell whether it runs".to_owned()),
                    ),
                };
            }
            Some(Err(error)) => error.to_string(),
            None => format!("no answer within {limit:?}"),
        };
        // What its driver says explains what was seen.
        let is_in_doubt = doubt.is_some();
        let error = problem.or(doubt).map_or(error.clone(), |problem| format!("{problem} ({error})"));
        let by_command = matches!(self.desired.spec.kind.probe(), ProbeSpec::Exec { .. });
        // Doubt is not death: an instance that hangs is replaced after several probes.
        match self.runs(instance).await {
            Some(false) if instance.is_spare => self.vanished(instance, Some(error)).await,
            Some(false) => match self.end_of(instance).await {
                Some(end) => vanished(end),
                None => StepOutcome::Vanished(error, None),
            },
            // The command was not run, or is run by what does not answer, or what it came to is out of date.
            None if by_command => StepOutcome::Unclear(error),
            Some(true) if by_command && is_in_doubt => StepOutcome::Unclear(error),
            Some(true) | None => StepOutcome::Silent(error),
        }
    }

    /// Tells the driver of the first answer of an instance that counts. Where that fails its next owner is more patient than need be.
    async fn note_answer(&self, instance: &Instance) {
        let BootState::UnderWay { since } = instance.boot else { return };
        if runtime::clock::now() < since + self.desired.spec.settle_time() {
            return;
        }
        let (appliance, ordinal) = (self.appliance, instance.ordinal);
        match within(ASK_DRIVER, self.driver.note_answer(appliance, instance)).await {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::warn!(%appliance, ordinal, %error, "first answer of an instance is not noted"),
            None => tracing::warn!(%appliance, ordinal, "first answer of an instance is not noted in time"),
        }
    }

    /// What a probe comes to; `None` when there is no answer in time. A command that succeeds leaves it to the driver whether the instance runs.
    async fn ask(&self, instance: &Instance, limit: Duration) -> Option<Result<ProbeAnswer, Error>> {
        let answer = within(limit, self.protocol.probe(instance, &self.desired)).await?;
        let Ok(ProbeAnswer::ByCommand(command)) = answer else { return Some(answer) };
        // Bounded by the driver, which says what was wrong.
        let ran = self.driver.run_beside(self.appliance, instance, &self.desired, &command, limit).await;
        Some(ran.map(|()| ProbeAnswer::LeftToDriver))
    }

    /// Whether the instance runs, with all the effort the driver may need to tell. `None` when it could not.
    async fn runs(&self, instance: &Instance) -> Option<bool> {
        if let Some(alive) = self.is_alive(instance).await {
            return Some(alive);
        }
        let same = |found: &Instance| (found.ordinal, found.attempt) == (instance.ordinal, instance.attempt);
        let found = within(ASK_DRIVER, self.driver.observe(self.appliance)).await?.ok()?;
        Some(found.running.iter().any(same))
    }

    /// What to say of an instance that does not run any more. `problem`: what its driver says of it beside how it ended.
    async fn vanished(&self, instance: &Instance, problem: Option<String>) -> StepOutcome {
        if instance.is_spare
            && within(ASK_DRIVER, self.driver.is_taken(self.appliance, instance)).await.flatten() == Some(true)
        {
            return StepOutcome::Taken;
        }
        match (self.end_of(instance).await, problem) {
            (Some(end), None) => vanished(end),
            (Some(end), Some(problem)) => StepOutcome::Vanished(format!("{problem}: {end}"), Some(Box::new(end))),
            (None, problem) => {
                StepOutcome::Vanished(problem.unwrap_or_else(|| "it does not run any more".to_owned()), None)
            }
        }
    }

    /// How an instance ended, as far as its driver knows.
    async fn end_of(&self, instance: &Instance) -> Option<InstanceEnd> {
        within(ASK_DRIVER, self.driver.ended(self.appliance, instance)).await.flatten()
    }

    async fn is_alive(&self, instance: &Instance) -> Option<bool> {
        within(ASK_DRIVER, self.driver.is_alive(self.appliance, instance)).await.flatten()
    }

    fn probe_timeout(&self, config: &Config) -> Duration {
        self.desired.spec.timing.probe_timeout.unwrap_or(config.probe_timeout)
    }

    /// A probe bounds its parts itself, so that it can tell what was wrong.
    fn total_limit(&self, config: &Config) -> Duration {
        match self.step {
            LifecycleStep::Probe { .. } => 2 * self.probe_timeout(config) + RUN_BESIDE + 4 * ASK_DRIVER,
            // What is asked to end is killed after its stop time-out at the earliest.
            LifecycleStep::Destroy { .. } => {
                config.limit(self.step) + self.desired.spec.kind.stop().timeout.unwrap_or_default()
            }
            other => config.limit(other),
        }
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, work).await.ok()
}

/// The outcome for an instance that ended in a way that is known.
fn vanished(end: InstanceEnd) -> StepOutcome {
    StepOutcome::Vanished(end.to_string(), Some(Box::new(end)))
}

/// What an error means to the machine.
fn outcome_of(error: Error) -> StepOutcome {
    match error {
        Error::Shut(shut) => fenced(shut),
        Error::Superseded(newer) => StepOutcome::Superseded(newer),
        Error::FenceBusy(text) => StepOutcome::Busy(text),
        Error::Refused(text) => StepOutcome::Refused(text),
        Error::Failed(text) => StepOutcome::Failed(text),
        Error::Ended(end) => vanished(*end),
    }
}

/// The outcome with a text of bounded length that no terminal acts on: what an appliance or a command has to say may be any, and is
/// kept as the last error, compared, logged, sent and shown.
fn clipped(outcome: StepOutcome) -> StepOutcome {
    let short = |text: String| {
        let text = if text.len() > MAX_TEXT { clip(&text, MAX_TEXT) } else { text };
        match escaped(&text) {
            Cow::Borrowed(_) => text,
            Cow::Owned(escaped) => clip(&escaped, MAX_TEXT),
        }
    };
    match outcome {
        StepOutcome::Silent(text) => StepOutcome::Silent(short(text)),
        StepOutcome::Unclear(text) => StepOutcome::Unclear(short(text)),
        StepOutcome::Vanished(text, end) => StepOutcome::Vanished(short(text), end),
        StepOutcome::Refused(text) => StepOutcome::Refused(short(text)),
        StepOutcome::Failed(text) => StepOutcome::Failed(short(text)),
        StepOutcome::Busy(text) => StepOutcome::Busy(short(text)),
        other => other,
    }
}

/// The gate was shut; a fence delay is waited for.
pub(super) fn fenced(shut: Shut) -> StepOutcome {
    match shut {
        Shut::FenceDelay(left) => StepOutcome::Fenced { retry_after: Some(left.max(Duration::from_millis(10))) },
        Shut::Fenced | Shut::NotOwned | Shut::HandsOff => StepOutcome::Fenced { retry_after: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_is_clipped_between_characters() {
        let text = format!("a{}", "é".repeat(100_000));
        let kept = format!("a{}", "é".repeat(2_047));
        assert_eq!(kept.len(), MAX_TEXT - 1);
        let outcomes: [fn(String) -> StepOutcome; 5] = [
            StepOutcome::Silent,
            |text| StepOutcome::Vanished(text, None),
            StepOutcome::Refused,
            StepOutcome::Failed,
            StepOutcome::Busy,
        ];
        for outcome in outcomes {
            assert_eq!(clipped(outcome(text.clone())), outcome(kept.clone()));
            assert_eq!(clipped(outcome("no".to_owned())), outcome("no".to_owned()));
            assert_eq!(clipped(outcome("a\u{1b}[2J\nb".to_owned())), outcome(r"a\u{1b}[2J\nb".to_owned()));
            let long = clipped(outcome("\0".repeat(MAX_TEXT)));
            assert_eq!(long, outcome(r"\u{0}".repeat(MAX_TEXT)[..MAX_TEXT].to_owned()));
        }
        assert_eq!(clipped(StepOutcome::TimedOut), StepOutcome::TimedOut);
    }
}

//! The life of one appliance, as a machine: facts go in, at most one step to carry out comes out.
//!
//! What is to be done is decided anew after each event from everything that is known (`plan.rs`), so nothing depends on
//! the order in which news came. The machine runs one step at a time, looks before it creates, and does nothing after it
//! was released. Commands that come while a step runs fold into one wanted state: delete overtakes everything, create
//! swallows following updates, rebuild swallows both, checks vanish behind any other action.
//!
//! | state | event -> next |
//! |---|---|
//! | Idle | Tick, Change, Replug, Check, stray outcome -> plan. Release -> Released |
//! | Running | Tick -> stays. Change, Replug, Check -> noted. Change to deleting while probing -> the probe is dropped, plan |
//! | Running, looking or probing | Release -> the step is dropped, Released |
//! | Running, other steps | Release -> Running, leaving |
//! | Running Observe | Observed -> adopt and doom, plan |
//! | Running Boot | Booted -> rising, plan. Refused, Failed, TimedOut -> failed boot, look again, plan |
//! | Running Probe | Answered -> alive. Silent -> in doubt, replaced after too many. Vanished -> gone. Then plan |
//! | Running Configure | Configured -> noted with its generation, plan |
//! | Running Replug | Replugged -> to be configured again, plan |
//! | Running Destroy | Destroyed -> forgotten, plan. Failed, TimedOut -> look again, plan |
//! | Running Forget | Forgotten -> Gone |
//! | Running, any | Fenced, Busy, Superseded -> waits, looks again; never a failure. Other failures -> back-off, plan |
//! | Running, leaving | any outcome as above, then Released instead of plan |
//! | Released, Gone | everything -> stays |
//!
//! Taken on with a hold ([`Lifecycle::hold`]) it only looks and probes until that is over, and then looks again. After a
//! call that may still take effect ([`Lifecycle::unanswered`]) it goes on, looks again then, and forgets nothing before.
//!
//! Patience differs: an instance whose boot is not over has `boot_timeout` to answer; one that has answered, or was found
//! running at a takeover, has `restart_probe_failures` probes. What ends soon after every boot waits as failed boots do.

mod config;
mod fleet;
mod outcomes;
mod plan;
mod vocabulary;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use common::status::{InstanceStatus, JournalEntry, Phase, Progress, Status};
use common::{ApplianceId, Timestamp};

pub use self::config::Config;
use self::fleet::{InstanceSlot, Instances};
pub use self::vocabulary::{
    LifecycleEnd, LifecycleEvent, LifecycleOutput, LifecycleStep, StepOutcome, Transition, TransitionCause, Trigger,
};
use crate::desired::{self, Desired};
use crate::instance::Instance;
use common::backoff::Retry;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LifecycleState {
    /// Nothing runs; the wake-up that was asked for, or a command, goes on.
    Idle,
    /// One step runs. `leaving`: a release was asked for and waits for its end.
    Running { step: LifecycleStep, leaving: bool },
    /// Given up to another owner.
    Released,
    /// Deleted to the last trace.
    Gone,
}

/// What bars the next boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bar {
    None,
    Backoff(Timestamp),
    /// Phase `Error`.
    Cooldown(Timestamp),
}

#[derive(Clone, Copy, Debug)]
struct Boots {
    /// Failed in a row.
    failed: u32,
    /// Ends of instances that had answered, none of which was followed by `stable_after` of all being well. The first is
    /// repaired at once, those after it count as failed boots.
    ends: u32,
    bar: Bar,
}

impl Boots {
    const NONE: Self = Self { failed: 0, ends: 0, bar: Bar::None };

    /// What is shown and bounded: boots that did not last.
    const fn in_vain(&self) -> u32 {
        self.failed.saturating_add(self.ends.saturating_sub(1))
    }
}

/// What the outside was told, and what it asked.
#[derive(Clone, Debug)]
struct ReportState {
    /// A takeover is silent until it has found all well or something to do, so that a move alone shows nowhere.
    quiet: bool,
    /// Fingerprint of the status last reported.
    reported: u64,
    phase: Phase,
    check: Option<u64>,
    /// Commands since the running step began.
    backlog: u32,
    /// Strongest command that was not acted on to its end.
    trigger: Trigger,
}

/// How the journal names a boot, before the ordinal.
const BOOT: &str = "boot ";

/// Ordinals and attempts of the boots in a journal. What another worker wrote may be anything: only what names an
/// instance of ours counts.
fn boots_of(appliance: ApplianceId, journal: &[JournalEntry]) -> impl Iterator<Item = (u16, u32)> {
    journal.iter().filter_map(move |entry| {
        let ordinal = entry.step.strip_prefix(BOOT)?.parse().ok()?;
        let attempt = entry.request_id.rsplit_once('-')?.1.parse().ok()?;
        (Instance::name(appliance, ordinal, attempt) == entry.request_id).then_some((ordinal, attempt))
    })
}

enum AfterEvent {
    Stay,
    Plan,
    Release,
    Gone,
}

/// The machine of one appliance under one grant.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    appliance: ApplianceId,
    desired: Arc<Desired>,
    /// Digest of `desired`.
    digest: Box<str>,
    state: LifecycleState,
    fleet: Instances,
    boots: Boots,
    /// Looks that failed.
    looks: Retry,
    /// Removals that failed.
    removals: Retry,
    /// The gate was shut: nothing that changes the world before this moment.
    fenced_until: Timestamp,
    /// Calls of a former owner may take effect until then; what was seen before has to be looked at again.
    held_until: Option<Timestamp>,
    /// Calls of its own that nobody answered may take effect until then, and leave something to be looked at.
    unanswered_until: Option<Timestamp>,
    /// An instance that had answered was lost and not all is well again.
    lost: bool,
    /// Instances are being replaced by ones with another digest.
    replacing: bool,
    last_error: Option<Box<str>>,
    news: ReportState,
}

impl Lifecycle {
    /// Takes an appliance on at `now`, going on from what its last owner handed in. The first [`LifecycleEvent::Tick`] starts it.
    #[must_use]
    pub fn new(
        appliance: ApplianceId,
        desired: Arc<Desired>,
        progress: Progress,
        now: Timestamp,
        config: &Config,
    ) -> Self {
        // What another worker wrote is trusted no further than our own settings go.
        let bar = match (progress.wait.is_zero(), progress.cooling) {
            (true, _) => Bar::None,
            (false, true) => Bar::Cooldown(now + progress.wait.min(config.error_cooldown)),
            (false, false) => Bar::Backoff(now + progress.wait.min(config.boot_backoff.cap)),
        };
        Self {
            appliance,
            digest: desired::boot_digest(&desired).into_boxed_str(),
            desired,
            state: LifecycleState::Idle,
            fleet: Instances::new(progress.attempts, boots_of(appliance, &progress.journal)),
            boots: Boots { failed: progress.failed_boots, ends: progress.ends, bar },
            looks: Retry::default(),
            removals: Retry::default(),
            fenced_until: Timestamp::ZERO,
            held_until: None,
            unanswered_until: None,
            lost: false,
            replacing: false,
            last_error: None,
            news: ReportState {
                quiet: true,
                reported: 0,
                phase: Phase::Down,
                check: None,
                backlog: 0,
                trigger: Trigger::Create,
            },
        }
    }

    /// Calls of a former owner, which no token fences, may take effect until then. What is found before is shown and
    /// probed, but nothing is done about it: it is looked at again afterwards.
    pub fn hold(&mut self, until: Timestamp) {
        self.held_until = Some(until);
        self.fenced_until = self.fenced_until.max(until);
    }

    /// A call of its own, which no token fences, was not answered and may take effect until then. It goes on, looks again
    /// afterwards, and ends no deletion before: what such a call makes late would outlive the appliance.
    pub fn unanswered(&mut self, until: Timestamp) {
        self.unanswered_until = self.unanswered_until.max(Some(until));
    }

    /// The appliance.
    #[must_use]
    pub const fn appliance(&self) -> ApplianceId {
        self.appliance
    }

    /// What it shall be.
    #[must_use]
    pub const fn desired(&self) -> &Arc<Desired> {
        &self.desired
    }

    /// The step that runs, if any.
    #[must_use]
    pub const fn running(&self) -> Option<LifecycleStep> {
        match self.state {
            LifecycleState::Running { step, .. } => Some(step),
            LifecycleState::Idle | LifecycleState::Released | LifecycleState::Gone => None,
        }
    }

    /// Whether a release waits for the end of the running step.
    #[must_use]
    pub const fn is_leaving(&self) -> bool {
        matches!(self.state, LifecycleState::Running { leaving: true, .. })
    }

    /// The kept or doomed instance at `ordinal`; with `attempt`, that one.
    #[must_use]
    pub fn instance(&self, ordinal: u16, attempt: Option<u32>) -> Option<&Instance> {
        let kept = self.fleet.slots.iter().map(|slot| &slot.instance);
        kept.chain(&self.fleet.doomed).find(|i| i.ordinal == ordinal && attempt.is_none_or(|n| n == i.attempt))
    }

    /// Takes in one fact. `jitter`, from 0 to 1, spreads whatever wait follows.
    pub fn step(&mut self, now: Timestamp, event: LifecycleEvent, jitter: f64, config: &Config) -> LifecycleOutput {
        use {LifecycleEvent as E, LifecycleState as S, StepOutcome as O};
        let mut output = LifecycleOutput::default();
        let cause = event.cause(&self.desired);
        let next = match (self.state, event) {
            (S::Released | S::Gone, _) => AfterEvent::Stay,

            (S::Idle, E::Tick | E::Ended(_)) => AfterEvent::Plan,
            (S::Idle, E::Change(desired)) => {
                self.accept(desired, now);
                AfterEvent::Plan
            }
            (S::Idle, E::Replug) => {
                self.fleet.slots.iter_mut().for_each(|slot| slot.replug = true);
                AfterEvent::Plan
            }
            (S::Idle, E::Check(number)) => {
                self.ask(number, now);
                AfterEvent::Plan
            }
            (S::Idle, E::Release) => AfterEvent::Release,

            (S::Running { .. }, E::Tick) => AfterEvent::Stay,
            (S::Running { step: LifecycleStep::Probe { .. }, .. }, E::Change(desired)) if desired.deleting => {
                self.accept(desired, now);
                output.cancel = true;
                AfterEvent::Plan
            }
            (S::Running { .. }, E::Change(desired)) => {
                self.news.backlog += 1;
                self.accept(desired, now);
                AfterEvent::Stay
            }
            (S::Running { .. }, E::Replug) => {
                self.news.backlog += 1;
                self.fleet.slots.iter_mut().for_each(|slot| slot.replug = true);
                AfterEvent::Stay
            }
            (S::Running { .. }, E::Check(number)) => {
                self.news.backlog += 1;
                self.ask(number, now);
                AfterEvent::Stay
            }
            (S::Running { step, .. }, E::Release) if !step.changes_the_world() => {
                output.cancel = true;
                AfterEvent::Release
            }
            (S::Running { step, .. }, E::Release) => {
                self.state = S::Running { step, leaving: true };
                AfterEvent::Stay
            }

            (S::Running { step: LifecycleStep::Observe, .. }, E::Ended(O::Observed(found))) => {
                self.observed(found, now, jitter, config);
                AfterEvent::Plan
            }
            (S::Running { step: LifecycleStep::Boot { ordinal, attempt }, .. }, E::Ended(O::Booted(instance)))
                if (instance.ordinal, instance.attempt) == (ordinal, attempt) =>
            {
                let next_probe = now + plan::poll_delay(0);
                self.fleet.keep(InstanceSlot::rising(instance, now, next_probe));
                AfterEvent::Plan
            }
            (
                S::Running { step: LifecycleStep::Boot { ordinal, .. }, .. },
                E::Ended(O::Refused(text) | O::Failed(text)),
            ) => {
                self.fleet.known = false;
                self.failed_boot(ordinal, &text, now, jitter, config);
                AfterEvent::Plan
            }
            (S::Running { step: LifecycleStep::Boot { ordinal, .. }, .. }, E::Ended(O::TimedOut)) => {
                self.fleet.known = false;
                self.failed_boot(ordinal, "starting it took too long", now, jitter, config);
                AfterEvent::Plan
            }
            (S::Running { step: LifecycleStep::Probe { ordinal }, .. }, E::Ended(O::Answered)) => {
                self.answered(ordinal, now, config);
                AfterEvent::Plan
            }
            (
                S::Running { step: LifecycleStep::Probe { ordinal }, .. },
                E::Ended(O::Silent(text) | O::Failed(text) | O::Refused(text)),
            ) => {
                self.silent(ordinal, &text, now, jitter, config);
                AfterEvent::Plan
            }
            (S::Running { step: LifecycleStep::Probe { ordinal }, .. }, E::Ended(O::TimedOut)) => {
                self.silent(ordinal, "no answer in time", now, jitter, config);
                AfterEvent::Plan
            }
            (S::Running { step: LifecycleStep::Probe { ordinal }, .. }, E::Ended(O::Vanished(text))) => {
                self.vanished(ordinal, &text, now, jitter, config);
                AfterEvent::Plan
            }
            (S::Running { step: LifecycleStep::Configure { ordinal, generation }, .. }, E::Ended(O::Configured)) => {
                self.configured(ordinal, generation, now);
                AfterEvent::Plan
            }
            (S::Running { step: LifecycleStep::Replug { ordinal }, .. }, E::Ended(O::Replugged)) => {
                if let Some(slot) = self.fleet.slot_mut(ordinal) {
                    slot.replug = false;
                    slot.configured = None;
                    slot.retry = Retry::default();
                }
                AfterEvent::Plan
            }
            (S::Running { step: LifecycleStep::Destroy { ordinal, attempt }, .. }, E::Ended(O::Destroyed)) => {
                self.fleet.doomed.retain(|doomed| (doomed.ordinal, doomed.attempt) != (ordinal, attempt));
                self.removals = Retry::default();
                AfterEvent::Plan
            }
            (S::Running { step: LifecycleStep::Forget, leaving: false }, E::Ended(O::Forgotten)) => AfterEvent::Gone,
            // The next owner forgets again, which changes nothing, and says so under its own token.
            (S::Running { step: LifecycleStep::Forget, leaving: true }, E::Ended(O::Forgotten)) => AfterEvent::Release,

            // The gate was shut or the place was taken: nothing failed, but others may have acted since.
            (S::Running { step, .. }, E::Ended(O::Fenced { retry_after })) => {
                if let LifecycleStep::Boot { ordinal, attempt } = step {
                    self.fleet.untake_attempt(ordinal, attempt);
                }
                let wait = retry_after.unwrap_or_else(|| config.fence_retry.mul_f64(0.5 + jitter.clamp(0.0, 1.0)));
                self.wait_outside(now + wait);
                AfterEvent::Plan
            }
            (S::Running { step, .. }, E::Ended(outcome @ (O::Busy(_) | O::Superseded(_)))) => {
                if let LifecycleStep::Boot { ordinal, attempt } = step {
                    self.fleet.untake_attempt(ordinal, attempt);
                }
                self.last_error = Some(match outcome {
                    O::Superseded(newer) => format!("fenced by a newer token {newer}").into(),
                    other => other.text().into(),
                });
                self.wait_outside(now + config.fence_retry.mul_f64(0.5 + jitter.clamp(0.0, 1.0)));
                AfterEvent::Plan
            }

            // Failures of the other steps, and outcomes that do not belong to the step that ran.
            (S::Running { step, .. }, E::Ended(outcome)) => {
                self.failed(step, &outcome, now, jitter, config);
                AfterEvent::Plan
            }
        };
        self.go_on(next, now, &mut output);
        self.conclude(cause, now, config, &mut output);
        output
    }

    fn go_on(&mut self, next: AfterEvent, now: Timestamp, output: &mut LifecycleOutput) {
        let leaving = matches!(self.state, LifecycleState::Running { leaving: true, .. });
        match next {
            AfterEvent::Stay => {}
            AfterEvent::Plan if !leaving => self.plan(now, output),
            AfterEvent::Plan | AfterEvent::Release => {
                self.state = LifecycleState::Released;
                output.end = Some(LifecycleEnd::Released(self.progress(now)));
            }
            AfterEvent::Gone => {
                self.state = LifecycleState::Gone;
                output.end = Some(LifecycleEnd::Gone);
            }
        }
        if output.action.is_some() {
            self.news.backlog = 0;
        }
    }

    /// Takes in what the appliance shall be. Older news, and any after the deletion, change nothing.
    fn accept(&mut self, desired: Arc<Desired>, now: Timestamp) {
        let old = &self.desired;
        if desired.edition.generation <= old.edition.generation || (old.deleting && !desired.deleting) {
            return;
        }
        self.news.trigger = self.news.trigger.max(Trigger::of(old, &desired));
        self.digest = desired::boot_digest(&desired).into_boxed_str();
        self.desired = desired;
        self.fleet.condemn_from(self.desired.spec.replicas);
        // An explicit command leads out of every wait that stands for "it will not work before something changes".
        self.boots = Boots::NONE;
        self.removals = Retry::default();
        self.looks.at = self.looks.at.min(now);
        self.fleet.slots.iter_mut().for_each(|slot| slot.retry = Retry::default());
    }

    /// Notes a question; everything is looked at anew.
    fn ask(&mut self, number: u64, now: Timestamp) {
        self.news.trigger = self.news.trigger.max(Trigger::Check);
        self.news.check = Some(self.news.check.unwrap_or(0).max(number));
        self.fleet.known = false;
        self.fleet.slots.iter_mut().for_each(|slot| slot.next_probe = now);
    }

    /// Settles what follows from the new state, and says what changed.
    fn conclude(&mut self, cause: TransitionCause, now: Timestamp, config: &Config, output: &mut LifecycleOutput) {
        let phase = self.derive_phase();
        if phase == Phase::Configured {
            self.last_error = None;
            self.boots = Boots { ends: self.boots.ends, ..Boots::NONE };
            self.forgive(now, config, output);
            self.lost = false;
            self.replacing = false;
            self.news.trigger = Trigger::Check;
        }
        if self.news.backlog == config.queue_warning {
            output.backlog = Some(self.news.backlog);
        }
        let settling = self.last_error.is_none()
            && phase != Phase::Configured
            && matches!(
                self.state,
                LifecycleState::Running {
                    step: LifecycleStep::Observe | LifecycleStep::Probe { .. } | LifecycleStep::Configure { .. },
                    ..
                } | LifecycleState::Released
            );
        self.news.quiet &= settling && !self.desired.deleting;
        if self.news.quiet {
            return;
        }
        if phase != self.news.phase {
            output.transition = Some(Transition { from: self.news.phase, to: phase, cause });
            self.news.phase = phase;
        }
        let looking = matches!(self.state, LifecycleState::Running { step, .. } if !step.changes_the_world());
        if !looking {
            output.checked = self.news.check.take();
        }
        let fingerprint = self.fingerprint();
        output.status_changed = fingerprint != self.news.reported;
        self.news.reported = fingerprint;
    }

    /// All is well: once it has been for long enough, former ends count no more.
    fn forgive(&mut self, now: Timestamp, config: &Config, output: &mut LifecycleOutput) {
        let youngest = self.fleet.slots.iter().filter_map(|slot| slot.serves_since).max();
        let Some(stable_at) = youngest.map(|since| since + config.stable_after).filter(|_| self.boots.ends > 0) else {
            return;
        };
        if stable_at <= now {
            self.boots.ends = 0;
        } else if let Some(at) = &mut output.wake_at {
            *at = stable_at.min(*at);
        }
    }

    /// What is reported about it now.
    #[must_use]
    pub fn status(&self) -> Status {
        let instances = self.fleet.slots.iter().map(|slot| {
            let Instance { ordinal, attempt, pid, started_at_unix_ms, address, .. } = &slot.instance;
            InstanceStatus {
                ordinal: *ordinal,
                name: Instance::name(self.appliance, *ordinal, *attempt),
                alive: slot.answered(),
                pid: *pid,
                started_at_unix_ms: *started_at_unix_ms,
                address: *address,
                configured: slot.configured,
            }
        });
        Status {
            phase: self.news.phase,
            observed_generation: self.desired.edition.generation,
            instances: instances.collect(),
            last_error: self.last_error.as_deref().map(str::to_owned),
            failed_boots: self.boots.in_vain(),
        }
    }

    /// What the next owner needs, as of `now`.
    #[must_use]
    pub fn progress(&self, now: Timestamp) -> Progress {
        let (wait, cooling) = match self.boots.bar {
            Bar::None => (Timestamp::ZERO, false),
            Bar::Backoff(until) => (until, false),
            Bar::Cooldown(until) => (until, true),
        };
        let wait = wait.since(now);
        let rising = self.fleet.slots.iter().filter(|slot| slot.is_rising()).map(|slot| &slot.instance);
        let booting = rising.map(|instance| JournalEntry {
            step: format!("{BOOT}{}", instance.ordinal),
            request_id: Instance::name(self.appliance, instance.ordinal, instance.attempt),
        });
        let ending = self.fleet.doomed.iter().map(|instance| JournalEntry {
            step: format!("destroy {}", instance.ordinal),
            request_id: Instance::name(self.appliance, instance.ordinal, instance.attempt),
        });
        Progress {
            failed_boots: self.boots.failed,
            ends: self.boots.ends,
            attempts: self.fleet.attempts().to_vec(),
            cooling: cooling && !wait.is_zero(),
            wait,
            journal: booting.chain(ending).collect(),
        }
    }
}

//! The life of one appliance, as a machine: facts go in, at most one step to carry out comes out.
//!
//! What is to be done is decided anew after each event from everything that is known (`plan.rs`), so nothing depends on
//! the order of events. What the end of a step means is in `outcomes.rs`. The machine runs one step at a time, looks before it
//! creates, and does nothing after it was released. Commands that come while a step runs fold into one wanted state: delete overtakes everything, create
//! swallows following updates, rebuild swallows both, checks vanish behind any other action.
//!
//! | state | event -> next |
//! |---|---|
//! | Idle | Tick, Change, Check, stray outcome -> plan. Release -> Released |
//! | Idle | Exited -> that instance is due to be probed, plan |
//! | Running | Tick -> stays. Change, Check, Exited -> noted. Change to deleting while probing -> the probe is dropped, plan |
//! | Running, looking or probing | Release -> the step is dropped, Released |
//! | Running, other steps | Release -> Running, leaving |
//! | Running Observe | Observed -> adopt and doom, plan |
//! | Running Boot | Booted -> rising, plan. Refused, Failed, TimedOut, Vanished -> failed boot, its predecessor stays, look again, plan |
//! | Running Probe | Answered -> alive. Silent -> in doubt, replaced after too many. Vanished -> gone. Then plan |
//! | Running Configure | Configured -> noted with its generation, its predecessor is ended, plan |
//! | Running Configure beside a predecessor | Refused, Vanished -> failed boot, the predecessor stays. Failed, TimedOut twice -> the predecessor is ended first. Then plan |
//! | Running Replug | Replugged -> its ports as they are now, plan. Refused, Failed, TimedOut, Vanished -> back-off, look again, plan |
//! | Running Destroy | Destroyed -> forgotten, plan. Failed, TimedOut -> look again, plan |
//! | Running Forget | Forgotten -> Gone |
//! | any | HandsOff -> looks and probes only, what else would be done is noted. Hands on -> look anew, plan |
//! | Running, any | Fenced, Busy, Superseded -> waits, looks again; never a failure. Other failures -> back-off, plan |
//! | Running, leaving | any outcome as above, then Released instead of plan |
//! | Released, Gone | everything -> stays |
//!
//! Taken on with a fence delay ([`Lifecycle::await_fence_delay`]) it only looks and probes until that is over, and then looks again. After a
//! call that may still take effect ([`Lifecycle::unanswered`]) it goes on, looks again then, and forgets nothing before.
//!
//! An instance whose plugged ports differ from the wanted ones is plugged while it runs ([`LifecycleStep::Replug`]) and then
//! configured again, where the driver can plug; the difference comes from what the driver reports, so that a port whose call
//! took effect without an answer is not plugged again. Elsewhere ports are part of the boot digest, and a change of them replaces
//! the instance. So do `replug_attempts` failures in a row, one instance at a time. A refusal does not count: a new instance
//! would be refused the same.
//!
//! An instance that is replaced is ended first, unless it can hand its service over ([`Instance::hands_over`]). Then its successor is
//! started beside it and takes the service over with its first configuration; only then the predecessor is ended. While no successor
//! comes that far, it keeps its place: a successor that fails costs nothing. A new owner that finds both goes on where the former was.
//!
//! Patience differs: an instance whose boot is not over has `boot_timeout` to answer, counted from its start over any number of
//! owners, and `restart_probe_failures` probes of each; one that has answered, this owner or a former one, has only those
//! probes ([`BootState`](crate::instance::BootState)). What ends soon after every boot waits as failed boots do.

mod config;
mod fleet;
mod hands_off;
mod outcomes;
mod plan;
mod vocabulary;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use common::status::{InstanceEnd, InstanceStatus, JournalEntry, Phase, Progress, Status};
use common::{ApplianceId, Generation, Timestamp};

pub use self::config::Config;
use self::fleet::{Instances, Plugging};
use self::hands_off::Hands;
pub use self::vocabulary::{
    LifecycleEnd, LifecycleEvent, LifecycleOutput, LifecycleStep, StepOutcome, Transition, TransitionCause, Trigger,
};
use crate::desired::{self, Desired};
use crate::instance::{Addresses, Instance};
use crate::ports::PluggedPorts;
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

impl Bar {
    const fn until(self) -> Timestamp {
        match self {
            Self::None => Timestamp::ZERO,
            Self::Backoff(until) | Self::Cooldown(until) => until,
        }
    }
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

/// What the appliance shall be, and what follows from that for its instances.
#[derive(Clone, Debug)]
struct Goal {
    desired: Arc<Desired>,
    /// Digest that an instance has to be started with.
    digest: Box<str>,
    /// The ports that a running instance has to have; `None` where the driver cannot plug any.
    ports: Option<PluggedPorts>,
}

impl Goal {
    fn new(desired: Arc<Desired>, plugs_ports: bool) -> Self {
        let digest = desired::boot_digest(&desired, plugs_ports).into_boxed_str();
        Self { digest, ports: plugs_ports.then(|| desired.spec.ports.iter().collect()), desired }
    }

    /// Whether the instance was started from something else.
    fn is_stale(&self, instance: &Instance) -> bool {
        instance.boot_digest != *self.digest
    }

    /// Whether ports have to be plugged in or out.
    fn needs_plugging(&self, instance: &Instance) -> bool {
        self.ports.as_ref().is_some_and(|ports| *ports != instance.ports)
    }

    fn replicas(&self) -> u16 {
        self.desired.spec.replicas
    }

    fn generation(&self) -> Generation {
        self.desired.edition.generation
    }
}

/// What has to be waited for before something is done.
#[derive(Clone, Debug, Default)]
struct Waits {
    /// Observations that failed.
    looks: Retry,
    /// Removals that failed.
    removals: Retry,
    /// The gate was shut: nothing that changes the world before this moment.
    fenced_until: Timestamp,
    /// Calls of a former owner may take effect until then; what was observed before has to be observed again.
    held_until: Option<Timestamp>,
    /// Calls of this owner that were not answered may take effect until then, and leave something to be observed.
    unanswered_until: Option<Timestamp>,
}

/// What is wrong with the appliance, beside boots that fail.
#[derive(Clone, Debug, Default)]
struct Troubles {
    /// An instance that had answered was lost, and not all instances are well again.
    lost: bool,
    /// Instances are being replaced by ones with another digest.
    replacing: bool,
    last_error: Option<Box<str>>,
    /// The last probe could not tell how an instance is, of which `last_error` says why.
    in_doubt: bool,
    /// How the last instance that ended by itself did.
    last_end: Option<Box<InstanceEnd>>,
}

impl Troubles {
    /// Notes how an instance ended, if that is known.
    fn saw_end(&mut self, end: Option<Box<InstanceEnd>>) {
        self.last_end = end.or_else(|| self.last_end.take());
    }
}

/// When an event comes, and what its consequences depend on besides.
#[derive(Clone, Copy)]
struct Occasion<'a> {
    now: Timestamp,
    /// From 0 to 1; spreads whatever wait follows.
    jitter: f64,
    config: &'a Config,
}

/// The machine of one appliance under one grant.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    appliance: ApplianceId,
    goal: Goal,
    state: LifecycleState,
    fleet: Instances,
    boots: Boots,
    waits: Waits,
    troubles: Troubles,
    hands: Hands,
    reporting: ReportState,
}

impl Lifecycle {
    /// Takes an appliance on at `now`, going on from what its last owner handed in. `plugs_ports`: its driver plugs ports into
    /// running instances. The first [`LifecycleEvent::Tick`] starts it.
    #[must_use]
    pub fn new(
        appliance: ApplianceId,
        desired: Arc<Desired>,
        plugs_ports: bool,
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
            goal: Goal::new(desired, plugs_ports),
            state: LifecycleState::Idle,
            fleet: Instances::new(progress.attempts, boots_of(appliance, &progress.journal)),
            boots: Boots { failed: progress.failed_boots, ends: progress.ends, bar },
            waits: Waits::default(),
            troubles: Troubles { last_end: progress.last_end, ..Troubles::default() },
            hands: Hands::default(),
            reporting: ReportState {
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
    pub fn await_fence_delay(&mut self, until: Timestamp) {
        self.waits.held_until = Some(until);
        self.waits.fenced_until = self.waits.fenced_until.max(until);
    }

    /// A call of its own, which no token fences, was not answered and may take effect until then. It goes on, looks again
    /// afterwards, and ends no deletion before: what such a call makes late would outlive the appliance.
    pub fn unanswered(&mut self, until: Timestamp) {
        self.waits.unanswered_until = self.waits.unanswered_until.max(Some(until));
    }

    /// The appliance.
    #[must_use]
    pub const fn appliance(&self) -> ApplianceId {
        self.appliance
    }

    /// What it shall be.
    #[must_use]
    pub const fn desired(&self) -> &Arc<Desired> {
        &self.goal.desired
    }

    /// Digest that an instance is started with now.
    #[must_use]
    pub fn boot_digest(&self) -> &str {
        &self.goal.digest
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

    /// Where its instances are managed, or else serve, as far as that is an address of their own: those that are kept, and those that are to be
    /// ended and may still serve.
    pub fn management_addresses(&self) -> impl Iterator<Item = IpAddr> + Clone {
        let slots = self.fleet.slots.iter().chain(&self.fleet.predecessors).map(|slot| &slot.instance);
        let all = slots.chain(&self.fleet.doomed).filter(|instance| instance.has_own_address);
        all.filter_map(|i| i.addresses.management.or(i.addresses.service)).map(|address| address.ip())
    }

    /// Its driver says where an instance can be reached now: one that is started somewhere may have its address later.
    pub fn found_at(&mut self, ordinal: u16, attempt: u32, addresses: Addresses) {
        if let Some(slot) = self.fleet.slot_mut(ordinal).filter(|slot| slot.instance.attempt == attempt) {
            slot.instance.addresses = addresses;
        }
    }

    /// The instances that are to be ended after the one that the running step ends.
    #[must_use]
    pub fn others_ending(&self) -> Vec<Instance> {
        let Some(LifecycleStep::Destroy { ordinal, attempt }) = self.running() else { return Vec::new() };
        let is_other = |instance: &&Instance| (instance.ordinal, instance.attempt) != (ordinal, attempt);
        self.fleet.doomed.iter().filter(is_other).cloned().collect()
    }

    /// Takes in one fact. `jitter`, from 0 to 1, spreads whatever wait follows.
    pub fn step(&mut self, now: Timestamp, event: LifecycleEvent, jitter: f64, config: &Config) -> LifecycleOutput {
        use {LifecycleEvent as E, LifecycleState as S};
        let mut output = LifecycleOutput::default();
        let cause = event.cause(&self.goal.desired);
        let at = Occasion { now, jitter, config };
        let next = match (self.state, event) {
            (S::Released | S::Gone, _) => AfterEvent::Stay,

            (S::Idle, E::Tick | E::Ended(_)) => AfterEvent::Plan,
            (S::Idle, E::Change(desired)) => {
                self.accept(desired, now);
                AfterEvent::Plan
            }
            (S::Idle, E::Check(number)) => {
                self.ask(number, now);
                AfterEvent::Plan
            }
            (S::Idle, E::Release) => AfterEvent::Release,
            (S::Idle, E::HandsOff(off)) => {
                self.set_hands_off(off);
                AfterEvent::Plan
            }
            // Its end finds how things are by then.
            (S::Running { .. }, E::HandsOff(off)) => {
                self.set_hands_off(off);
                AfterEvent::Stay
            }
            (S::Idle, E::Exited { ordinal, attempt }) => {
                self.fleet.exited(ordinal, attempt);
                AfterEvent::Plan
            }
            (S::Running { .. }, E::Exited { ordinal, attempt }) => {
                self.fleet.exited(ordinal, attempt);
                AfterEvent::Stay
            }

            (S::Running { .. }, E::Tick) => AfterEvent::Stay,
            (S::Running { step: LifecycleStep::Probe { .. }, .. }, E::Change(desired)) if desired.deleting => {
                self.accept(desired, now);
                output.cancel = true;
                AfterEvent::Plan
            }
            (S::Running { .. }, E::Change(desired)) => {
                self.reporting.backlog += 1;
                self.accept(desired, now);
                AfterEvent::Stay
            }
            (S::Running { .. }, E::Check(number)) => {
                self.reporting.backlog += 1;
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
            (S::Running { step, leaving }, E::Ended(outcome)) => self.step_ended(step, leaving, *outcome, at),
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
            self.reporting.backlog = 0;
        }
    }

    /// Takes in what the appliance shall be. Older news, and any after the deletion, change nothing.
    fn accept(&mut self, desired: Arc<Desired>, now: Timestamp) {
        let old = &self.goal.desired;
        if desired.edition.generation <= old.edition.generation || (old.deleting && !desired.deleting) {
            return;
        }
        self.reporting.trigger = self.reporting.trigger.max(Trigger::of(old, &desired));
        self.goal = Goal::new(desired, self.goal.ports.is_some());
        if !self.hands.are_off() {
            self.fleet.condemn_from(self.goal.replicas());
        }
        // An explicit command leads out of every wait that stands for "it will not work before something changes".
        self.boots = Boots::NONE;
        self.waits.removals = Retry::default();
        self.waits.looks.at = self.waits.looks.at.min(now);
        for slot in &mut self.fleet.slots {
            slot.retry = Retry::default();
            slot.plugging = Plugging::default();
        }
    }

    /// Notes a question; everything is looked at anew.
    fn ask(&mut self, number: u64, now: Timestamp) {
        self.reporting.trigger = self.reporting.trigger.max(Trigger::Check);
        self.reporting.check = Some(self.reporting.check.unwrap_or(0).max(number));
        self.fleet.known = false;
        self.fleet.slots.iter_mut().for_each(|slot| slot.next_probe = now);
    }

    /// Settles what follows from the new state, and says what changed.
    fn conclude(&mut self, cause: TransitionCause, now: Timestamp, config: &Config, output: &mut LifecycleOutput) {
        let phase = self.derive_phase();
        if phase == Phase::Configured {
            if !self.troubles.in_doubt {
                self.troubles.last_error = None;
            }
            self.boots = Boots { ends: self.boots.ends, ..Boots::NONE };
            self.forgive(now, config, output);
            self.troubles.lost = false;
            self.troubles.replacing = false;
            self.reporting.trigger = Trigger::Check;
        }
        if self.reporting.backlog == config.queue_warning {
            output.backlog = Some(self.reporting.backlog);
        }
        let settling = self.troubles.last_error.is_none()
            && phase != Phase::Configured
            && matches!(
                self.state,
                LifecycleState::Running {
                    step: LifecycleStep::Observe | LifecycleStep::Probe { .. } | LifecycleStep::Configure { .. },
                    ..
                } | LifecycleState::Released
            );
        self.reporting.quiet &= settling && !self.goal.desired.deleting;
        if self.reporting.quiet {
            return;
        }
        if phase != self.reporting.phase {
            output.transition = Some(Transition { from: self.reporting.phase, to: phase, cause });
            self.reporting.phase = phase;
        }
        let looking = matches!(self.state, LifecycleState::Running { step, .. } if !step.changes_the_world());
        if !looking {
            output.checked = self.reporting.check.take();
        }
        let fingerprint = self.fingerprint();
        output.status_changed = fingerprint != self.reporting.reported;
        self.reporting.reported = fingerprint;
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
            let Instance { ordinal, attempt, started_at_unix_ms, addresses, ports, .. } = &slot.instance;
            InstanceStatus {
                ordinal: *ordinal,
                name: Instance::name(self.appliance, *ordinal, *attempt),
                alive: slot.answered(),
                details: slot.details(),
                started_at_unix_ms: *started_at_unix_ms,
                address: addresses.service,
                configured: slot.configured.and(slot.runs),
                ports: ports.iter().map(|port| port.name.clone()).collect(),
            }
        });
        Status {
            phase: self.reporting.phase,
            observed_generation: self.goal.generation(),
            instances: instances.collect(),
            last_error: self.troubles.last_error.as_deref().map(str::to_owned),
            failed_boots: self.boots.in_vain(),
            last_end: self.troubles.last_end.clone(),
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
            last_end: self.troubles.last_end.clone(),
        }
    }
}

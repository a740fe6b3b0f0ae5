//! The words of the lifecycle: what comes in, what goes out.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use common::status::{Details, InstanceEnd, Phase, Progress};
use common::{Generation, Timestamp, Token};

use crate::desired::Desired;
use crate::instance::{Instance, Observation};
use crate::peers::PeerDigest;

/// One thing to be done for an appliance. One runs at a time, and its end comes back as [`LifecycleEvent::Ended`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifecycleStep {
    /// Find every instance that runs. Changes nothing.
    Observe,
    /// Start an instance.
    Boot {
        /// Position among the replicas.
        ordinal: u16,
        /// Attempt to make; names the instance.
        attempt: u32,
        /// Attempt at the same ordinal that goes on until this one has taken its service over.
        beside: Option<u32>,
    },
    /// Detach the ports of an instance that it shall not have, and attach those that it lacks.
    Replug {
        /// Position among the replicas.
        ordinal: u16,
        /// Generation whose ports it shall have.
        generation: Generation,
    },
    /// Put the configuration in place.
    Configure {
        /// Position among the replicas.
        ordinal: u16,
        /// Generation whose configuration it is.
        generation: Generation,
        /// The other instances that it tells of.
        peers: PeerDigest,
    },
    /// Ask whether it answers. Changes nothing.
    Probe {
        /// Position among the replicas.
        ordinal: u16,
    },
    /// End an instance and remove what it left.
    Destroy {
        /// Position among the replicas.
        ordinal: u16,
        /// Which attempt.
        attempt: u32,
    },
    /// Remove the last traces of the appliance.
    Forget,
}

impl LifecycleStep {
    /// Whether it has to pass the gate, and must not be dropped half-way.
    #[must_use]
    pub const fn changes_the_world(self) -> bool {
        !matches!(self, Self::Observe | Self::Probe { .. })
    }

    /// Position among the replicas of the instance it is about, if it is about one.
    #[must_use]
    pub const fn ordinal(self) -> Option<u16> {
        match self {
            Self::Observe | Self::Forget => None,
            Self::Boot { ordinal, .. }
            | Self::Replug { ordinal, .. }
            | Self::Configure { ordinal, .. }
            | Self::Probe { ordinal }
            | Self::Destroy { ordinal, .. } => Some(ordinal),
        }
    }

    /// The name in logs, spans and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Boot { .. } => "boot",
            Self::Replug { .. } => "replug",
            Self::Configure { .. } => "configure",
            Self::Probe { .. } => "probe",
            Self::Destroy { .. } => "destroy",
            Self::Forget => "forget",
        }
    }
}

impl fmt::Display for LifecycleStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ordinal() {
            None => f.write_str(self.name()),
            Some(ordinal) => write!(f, "{} {ordinal}", self.name()),
        }
    }
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// Of `Observe`: everything that runs, and what is known of what does not.
    Observed(Observation),
    /// Of `Boot`: it was started, or found running.
    Booted(Instance),
    /// Of `Replug`: the instance with the ports that it has now.
    Replugged(Instance),
    /// Of `Configure`: it accepted its configuration.
    Configured,
    /// Of `Probe`: it answered, and said this about itself, for people.
    Answered(Details),
    /// Of `Probe`: it gave no good answer, and its driver still finds it (or cannot tell).
    Silent(String),
    /// Of `Probe`: neither it nor its driver says how it is, because what its driver asks does not answer. That is no failure of the
    /// instance.
    Unclear(String),
    /// Its driver does not find it any more, of which this is said, and how it ended if that is known. Of `Boot`: it was started and
    /// ended at once.
    Vanished(String, Option<Box<InstanceEnd>>),
    /// Its driver says that another appliance has taken it, which is what a spare is for.
    Taken,
    /// Of `Destroy`.
    Destroyed,
    /// Of `Forget`.
    Forgotten,
    /// It cannot work until the spec or the host changes.
    Refused(String),
    /// It may work the next time.
    Failed(String),
    /// Another call on this appliance was under way. Nothing was done.
    Busy(String),
    /// The far side has seen this newer token, and refused ours. Nothing was done.
    Superseded(Token),
    /// The gate was shut before anything was done.
    Fenced {
        /// When another try makes sense, where that is known.
        retry_after: Option<Duration>,
    },
    /// Not known: it took too long.
    TimedOut,
}

impl StepOutcome {
    /// The name in logs, spans and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Observed(_) => "observed",
            Self::Booted(_) => "booted",
            Self::Replugged(_) => "replugged",
            Self::Configured => "configured",
            Self::Answered(_) => "answered",
            Self::Silent(_) => "silent",
            Self::Unclear(_) => "unclear",
            Self::Vanished(..) => "vanished",
            Self::Taken => "taken",
            Self::Destroyed => "destroyed",
            Self::Forgotten => "forgotten",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
            Self::Busy(_) => "busy",
            Self::Superseded(_) => "superseded",
            Self::Fenced { .. } => "fenced",
            Self::TimedOut => "timed out",
        }
    }

    /// What to tell people.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Silent(text)
            | Self::Unclear(text)
            | Self::Vanished(text, _)
            | Self::Refused(text)
            | Self::Failed(text)
            | Self::Busy(text) => text,
            Self::TimedOut => "took too long",
            other => other.name(),
        }
    }
}

/// A fact about one appliance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LifecycleEvent {
    /// Time has come (the wake-up that was asked for, or any other moment).
    Tick,
    /// It shall be something else.
    Change(Arc<Desired>),
    /// Somebody wants to know how it is; the number comes back in [`LifecycleOutput::checked`].
    Check(u64),
    /// It goes to another owner.
    Release,
    /// Hands are off from now on, or (`false`) on again.
    HandsOff(bool),
    /// The running step has ended.
    Ended(Box<StepOutcome>),
    /// The driver says that an instance does not run any more. A hint: it is probed at once, and the probe decides.
    Exited {
        /// Position among the replicas.
        ordinal: u16,
        /// Attempt that started it.
        attempt: u32,
    },
}

impl LifecycleEvent {
    /// What a change of phase that follows from it is put down to, of an appliance that should be `old` before.
    #[must_use]
    pub fn cause(&self, old: &Desired) -> TransitionCause {
        match self {
            Self::Tick => TransitionCause::Time,
            Self::Change(desired) => TransitionCause::Command(Trigger::of(old, desired)),
            Self::Check(_) => TransitionCause::Command(Trigger::Check),
            Self::Release => TransitionCause::Release,
            Self::HandsOff(_) => TransitionCause::Mode,
            Self::Ended(outcome) => TransitionCause::Ended(outcome.name()),
            Self::Exited { .. } => TransitionCause::Exited,
        }
    }
}

/// A command, weakest first: of several, the strongest is what is acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trigger {
    /// See how it is.
    Check,
    /// Another spec.
    Update,
    /// Newly taken on.
    Create,
    /// New instances.
    Rebuild,
    /// Remove it.
    Delete,
}

impl Trigger {
    pub(super) fn of(old: &Desired, new: &Desired) -> Self {
        if new.deleting {
            Self::Delete
        } else if new.revision != old.revision {
            Self::Rebuild
        } else {
            Self::Update
        }
    }

    /// The name in logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Update => "update",
            Self::Create => "create",
            Self::Rebuild => "rebuild",
            Self::Delete => "delete",
        }
    }
}

/// Why a phase changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransitionCause {
    /// Somebody commanded it.
    Command(Trigger),
    /// It was asked for by the coordinator.
    Release,
    /// An operator asked for hands off, or let go on.
    Mode,
    /// A wait was over.
    Time,
    /// A step ended like that.
    Ended(&'static str),
    /// An instance has ended.
    Exited,
}

impl TransitionCause {
    /// The name in logs and in the history of runs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Command(trigger) => trigger.name(),
            Self::Release => "release",
            Self::Mode => "mode",
            Self::Time => "time",
            Self::Ended(outcome) => outcome,
            Self::Exited => "exited",
        }
    }
}

impl fmt::Display for TransitionCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A change of phase, to be logged once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Phase before.
    pub from: Phase,
    /// Phase now.
    pub to: Phase,
    /// Why.
    pub cause: TransitionCause,
}

/// How an appliance left this worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LifecycleEnd {
    /// Nothing acts on it any more; the next owner needs this.
    Released(Progress),
    /// Nothing is left of it.
    Gone,
}

/// What follows from an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LifecycleOutput {
    /// Drop the step that runs: it changes nothing, and its outcome is not wanted any more. Comes before `action`.
    pub cancel: bool,
    /// Start this step.
    pub action: Option<LifecycleStep>,
    /// While nothing runs: send [`LifecycleEvent::Tick`] then. Replaces what was asked for before.
    pub wake_at: Option<Timestamp>,
    /// The status is another one than before.
    pub status_changed: bool,
    /// Newest check that is answered by the status as it is now.
    pub checked: Option<u64>,
    /// The phase changed.
    pub transition: Option<Transition>,
    /// So many commands gathered behind one step: somebody should look.
    pub backlog: Option<u32>,
    /// It left this worker. Nothing follows.
    pub end: Option<LifecycleEnd>,
}

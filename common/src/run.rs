//! What a worker did about an appliance, told once it is over.
//!
//! A *run* begins with the first step that changes the world and ends when nothing is left to do, when a step fails, or when the
//! appliance leaves its worker. Changes of phase within it are a part of it; each other one is told by itself, as a run without steps.
//! Nothing decides by runs: they are for people. Texts and lists are bounded, so that a message of them is.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::appliance::Name;
use crate::status::Phase;
use crate::{ApplianceId, Generation};

/// Most runs in one message.
pub const MAX_RUNS: usize = 128;
/// Most steps of a run that are told, and most changes of phase; later ones are left out.
pub const MAX_RUN_PARTS: usize = 32;
/// Longest error of a run, in bytes.
pub const MAX_RUN_ERROR: usize = 512;
/// Longest name of a step, an outcome or a cause, in bytes.
pub const MAX_RUN_WORD: usize = 48;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunOutcome {
    /// The appliance is as it shall be.
    Completed,
    /// A step failed; the next try is a run of its own.
    Failed,
    /// The appliance went to another worker before.
    Released,
    /// Nothing is left of the appliance.
    Removed,
    /// The life of the worker ended before, or its grant did.
    Interrupted,
    /// There was no step: the phase changed by what was seen.
    Observed,
}

impl RunOutcome {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Completed, Self::Failed, Self::Released, Self::Removed, Self::Interrupted, Self::Observed];

    /// The name in tables, on the wire and in the store.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Released => "released",
            Self::Removed => "removed",
            Self::Interrupted => "interrupted",
            Self::Observed => "observed",
        }
    }

    /// The outcome of this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.name() == name)
    }
}

/// A step of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStep {
    /// What was done, such as `boot 0`.
    pub step: String,
    /// How it ended.
    pub outcome: String,
    /// How long it took.
    pub took: Duration,
}

/// A change of phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseChange {
    /// Phase before.
    pub from: Phase,
    /// Phase after.
    pub to: Phase,
    /// Why: a command, or how a step ended.
    pub cause: String,
    /// How long after the begin of its run.
    pub after: Duration,
}

/// A run that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which one: what is told twice is kept once.
    pub id: u128,
    /// The appliance.
    pub appliance: ApplianceId,
    /// Its tenant.
    pub tenant: Name,
    /// Its name.
    pub name: Name,
    /// Generation it was brought to.
    pub generation: Generation,
    /// What set it off: a command, how an appliance was found, `retry`.
    pub cause: String,
    /// How it ended.
    pub outcome: RunOutcome,
    /// What was wrong last; empty when nothing was.
    pub error: String,
    /// How long ago it ended, when this is said.
    pub ago: Duration,
    /// How long it took.
    pub took: Duration,
    /// What was done, in order.
    pub steps: Vec<RunStep>,
    /// How the phase changed meanwhile, in order.
    pub changes: Vec<PhaseChange>,
}

/// Runs that are told together, until the leader has said that it has stored them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunBatch {
    /// Which batch of this stream.
    pub number: u64,
    /// At most [`MAX_RUNS`].
    pub runs: Vec<Run>,
}

//! Runs the lifecycle of every appliance held here.
//!
//! One task owns all machines and one queue of wake-ups, so that an idle appliance costs memory and a probe now and then,
//! not a task. Steps run in tasks of their own, bounded in number, probes apart from what changes the world; everything
//! that changes the world passes the [`SharedGate`] first. The session talks to it by [`RunnerCommand`] and hears of it by [`RunnerEvent`].
//!
//! Commands of another token than the one held are ignored, and so are those that come before the first
//! [`RunnerCommand::Begin`]. The runner ends once every [`Handle`] is dropped: looking is given up at once, running steps get
//! [`Config::stop_grace`]; the receiver of events closes after that.

mod announced;
mod boots;
mod entry;
mod history;
mod run;
mod scheduler;
mod steps;
mod timers;

#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use common::appliance::FieldViolation;
use common::session::StatusReport;
use common::status::Progress;
use common::{ApplianceId, Mode, ModeEdition, Timestamp, Token, TraceContext};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::Span;
use worker_core::desired::Desired;
use worker_core::lifecycle;

use crate::gate::SharedGate;
use crate::held::HeldInstances;
use crate::metrics;
use crate::offer::Drivers;

pub use self::history::EndedRun;
pub(crate) use self::history::WaitingRuns;

/// Commands that may wait. A delta has up to 1,000 entries; when it is full, the session reads on once the runner has
/// caught up, which takes microseconds for each.
const COMMANDS: usize = 1_024;
/// Events that may wait in the channel. When it is full they wait in the runner: releases and removals one by one
/// (there are never more than appliances held), refused tokens and statuses folded to the newest of each appliance, runs as
/// many as fit.
const EVENTS: usize = 1_024;

/// What the session tells the runner.
#[derive(Debug)]
pub enum RunnerCommand {
    /// A new incarnation begins: everything held under the former one is dropped without another side effect.
    Begin {
        /// Gate of the new incarnation.
        gate: Arc<SharedGate>,
    },
    /// Start to keep an appliance alive. The gate already admits the grant.
    Take {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
        /// What it shall be.
        desired: Arc<Desired>,
        /// What its last owner handed in.
        progress: Progress,
        /// Remaining time before calls that no token fences may start.
        fence_delay: Duration,
        /// A former owner died while it held this: each step that changes the world is announced by [`RunnerEvent::Begins`] and
        /// waits for [`RunnerCommand::Clear`].
        suspect: bool,
        /// With hands off the gate is shut for it, and [`RunnerEvent::Quiet`] follows as after [`RunnerCommand::Mode`].
        mode: Mode,
        /// W3C trace context of the hand-off that brought it; empty when there is none.
        traceparent: String,
        /// Open until it was seen how the appliance is; none when no rebalance brought it.
        adopting: Option<Span>,
        /// The call that it follows from.
        cause: Option<Box<TraceContext>>,
    },
    /// The appliance shall be something else.
    Update {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
        /// What it shall be now.
        desired: Arc<Desired>,
        /// The call that it follows from.
        cause: Option<Box<TraceContext>>,
    },
    /// Let the running step end (or cancel it at a safe point), then answer [`RunnerEvent::Released`].
    Release {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
    },
    /// Hands are off, or on again; the gate is shut or open accordingly. With hands off [`RunnerEvent::Quiet`] follows once no step
    /// that changes the world runs.
    Mode {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
        /// Which, of which edition.
        mode: Mode,
    },
    /// An announced step may begin.
    Clear {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
        /// Number of the step.
        number: u64,
    },
    /// Probe now; the answer is a [`RunnerEvent::Status`] with this number.
    Check {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
        /// Number of the check.
        number: u64,
    },
    /// Tell the status of every appliance again: what was told before may be lost.
    Restate,
}

/// What the runner tells the session.
#[derive(Debug)]
pub enum RunnerEvent {
    /// Nothing of this worker acts on the appliance any more.
    Released {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
        /// What the next owner needs.
        progress: Progress,
        /// Remaining fence delay.
        fence_delay: Duration,
    },
    /// The appliance was to be deleted and nothing is left of it.
    Gone {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
    },
    /// A step of a suspect wants to begin. Said again after [`RunnerCommand::Restate`] for as long as it has not ended.
    Begins {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
        /// Number of the step; grows from step to step.
        number: u64,
    },
    /// An announced step has ended, or will not be begun. A release or removal says the same.
    Done {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
        /// Number of the step.
        number: u64,
    },
    /// With hands off by this edition nothing runs that changes the world, and the gate lets nothing begin.
    Quiet {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
        /// The edition.
        edition: ModeEdition,
        /// For how long calls that had begun may still take effect though no token fences them.
        fence_delay: Duration,
    },
    /// The far side refused the token of the grant, because it has seen a newer one. Said again each time it is tried.
    Refused {
        /// The appliance.
        appliance: ApplianceId,
        /// Token of the grant.
        token: Token,
        /// The one in force.
        newer: Token,
    },
    /// The status changed, a check was answered, or it was seen for the first time how the appliance is.
    Status(StatusReport),
    /// A run is over, or a phase has changed outside of one.
    Run(EndedRun),
}

/// Settings of the runner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Probes and looks that may run at once. Each may wait for `probe_timeout` on an appliance that hangs, so few of
    /// them delay all others; many cost sockets.
    pub looks_in_flight: NonZeroUsize,
    /// Steps that change the world and may run at once. More boot a fleet faster, and load the host more.
    pub steps_in_flight: NonZeroUsize,
    /// How long running steps may go on when the worker stops.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub stop_grace: Duration,
    /// How one appliance is treated.
    pub lifecycle: lifecycle::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            looks_in_flight: NonZeroUsize::new(512).expect("512 is not 0"),
            steps_in_flight: NonZeroUsize::new(64).expect("64 is not 0"),
            stop_grace: Duration::from_secs(10),
            lifecycle: lifecycle::Config::default(),
        }
    }
}

impl Config {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found: Vec<_> = self.lifecycle.validate().into_iter().map(|v| v.within("lifecycle")).collect();
        if self.stop_grace > Duration::from_secs(3600) {
            found.push(FieldViolation::new("stop_grace", "must be 1h or less"));
        }
        found
    }
}

/// Speaks to a runner. It goes on as long as one of them lives.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<RunnerCommand>,
}

impl Handle {
    /// A handle without a runner: what is sent comes out of the receiver.
    #[cfg(test)]
    pub(crate) fn detached() -> (Self, mpsc::Receiver<RunnerCommand>) {
        let (commands, inbox) = mpsc::channel(COMMANDS);
        (Self { commands }, inbox)
    }

    /// Sends a command; `None` when the runner has ended.
    #[cfg(test)]
    pub(crate) async fn send(&self, command: RunnerCommand) -> Option<()> {
        self.reserve().await.map(|room| drop(room.send(command)))
    }

    /// Waits for room for one command, for callers that do other things meanwhile. Commands take effect in the order in
    /// which they are sent. `None` when the runner has ended.
    pub async fn reserve(&self) -> Option<mpsc::OwnedPermit<RunnerCommand>> {
        self.commands.clone().reserve_owned().await.ok()
    }
}

/// How the runner tells the time; tests bring their own.
type RunnerClock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The part of a worker that keeps appliances alive.
#[derive(Debug)]
pub struct Runner;

impl Runner {
    /// Starts the runner within the current Tokio runtime. Its end shows in the receiver, which closes. It tells `held` where the instances
    /// are.
    #[must_use]
    pub fn start(
        config: Config,
        drivers: Drivers,
        held: Option<HeldInstances>,
    ) -> (Handle, mpsc::Receiver<RunnerEvent>) {
        Self::start_at(config, drivers, held, Arc::new(runtime::clock::now))
    }

    fn start_at(
        config: Config,
        drivers: Drivers,
        held: Option<HeldInstances>,
        clock: RunnerClock,
    ) -> (Handle, mpsc::Receiver<RunnerEvent>) {
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (outlet, events) = mpsc::channel(EVENTS);
        metrics::watch_queue("commands", &commands);
        metrics::watch_queue("events", &outlet);
        tokio::spawn(scheduler::Scheduler::new(config, drivers, clock, held).run(inbox, outlet));
        (Handle { commands }, events)
    }
}

//! The session: one life of this worker after the other, and in each one stream at a time to the leading coordinator.
//!
//! [`worker_core::session`] decides: [`Control`] which life, which stream and when to leave, [`Conversation`] what each
//! message does and what is answered. [`driver`] waits for what happens and carries out the actions of the one,
//! [`incoming`] those of the other. [`inquiries`] answers what neither of them has to know.

mod config;
mod driver;
mod executions;
mod fence;
mod incoming;
mod inquiries;
mod link;
mod runs;
mod stop;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use common::driver::DriverOffers;
use common::secret::LifeSecret;
use common::session::GrantRef;
use common::{ApplianceId, Profile, Term, Token, TraceContext, WorkerId};
use coordination::{Group, MemberSession};
use runtime::clock;
use runtime::tls::ClientTls;
use tokio::sync::{mpsc, watch};
use tracing::{Span, info, warn};
use worker_core::session::{Control, ControlAction, ControlEvent, Conversation, Outcome, Settings};

use crate::gate::SharedGate;
use crate::metrics;
use crate::offer::Drivers;
use crate::runner::{Handle, RunnerCommand, RunnerEvent};
pub use config::{Config, OnStop};
use driver::{Boundary, PendingIo, SessionSignals};
use inquiries::Inquiries;
use runs::RunsOut;
pub use stop::StopHandle;
use stop::StopRequests;

/// The session task.
#[derive(Debug)]
pub struct Session {
    setup: Setup,
    /// Its lease is that of the present life.
    profile: Profile,
    /// What proves to the leader that this process speaks for its life.
    secret: LifeSecret,
    /// Which life, which stream, when to leave.
    control: Control,
    /// What [`Control`] asked for and is not carried out yet.
    actions: VecDeque<ControlAction>,
    pending: PendingIo,
    /// What the leader asks beside all that.
    inquiries: Inquiries,
    /// What the leader is to keep of runs that are over.
    runs: RunsOut,
    /// Why the last try to join failed.
    failure: Option<coordination::Error>,
    /// What this worker owns, and what is exchanged on its stream.
    conversation: Conversation,
    gate: Arc<SharedGate>,
    /// Tells of fences of the present life.
    fence: Option<fence::GateWatch>,
    runner: RunnerLink,
    /// Calls that entries of the delta follow from that is being carried out.
    causes: HashMap<ApplianceId, TraceContext>,
}

/// What a session is for, and what it takes part through. The same for every life.
#[derive(Debug)]
struct Setup {
    config: Config,
    name: WorkerId,
    group: Arc<dyn Group>,
    /// How connections to coordinators are protected; plain when `None`.
    tls: Option<ClientTls>,
    /// Term of the newest leader that welcomed this worker.
    terms: watch::Sender<Term>,
}

/// What is exchanged with the runner.
#[derive(Debug)]
struct RunnerLink {
    /// `None` once this worker stops.
    handle: Option<Handle>,
    events: mpsc::Receiver<RunnerEvent>,
    /// Commands for the runner. Bounded by the leader's window: a delta is acknowledged once its commands were taken.
    commands: VecDeque<Queued>,
    /// Spans of releases under way, for the trace of their rebalance.
    releasing: HashMap<(ApplianceId, Token), Span>,
}

/// A command on its way to the runner, or the version that is applied once those before it were taken.
#[derive(Debug)]
enum Queued {
    Command(Box<RunnerCommand>),
    Applied(u64),
}

impl Session {
    /// A session for the worker `name` that takes part through `group` and publishes `profile`; the lease in it is asked
    /// for, and what the life then has counts. Tells through `terms` who leads.
    #[must_use]
    pub fn new(
        config: Config,
        group: Arc<dyn Group>,
        name: WorkerId,
        profile: Profile,
        runner: Handle,
        events: mpsc::Receiver<RunnerEvent>,
        terms: watch::Sender<Term>,
    ) -> Self {
        let gate = SharedGate::with_margin(config.act_margin);
        let settings = Settings {
            connect_timeout: config.connect_timeout,
            retry_cap: config.retry_cap,
            drain_timeout: config.drain_timeout,
            name_timeout: group.name_timeout(),
        };
        let (control, actions) = Control::new(settings, clock::now());
        Self {
            setup: Setup { config, name, group, tls: None, terms },
            profile,
            secret: LifeSecret::new(rand::random()),
            control,
            actions: actions.into(),
            pending: PendingIo::default(),
            inquiries: Inquiries::new(None),
            runs: RunsOut::default(),
            failure: None,
            conversation: Conversation::default(),
            gate,
            fence: None,
            runner: RunnerLink { handle: Some(runner), events, commands: VecDeque::new(), releasing: HashMap::new() },
            causes: HashMap::new(),
        }
    }

    /// The same with its connections protected by `tls`.
    #[must_use]
    pub fn with_tls(mut self, tls: Option<ClientTls>) -> Self {
        self.setup.tls = tls;
        self
    }

    /// The same that answers what the leader asks about these drivers.
    #[must_use]
    pub fn with_drivers(mut self, drivers: Drivers) -> Self {
        self.inquiries = Inquiries::new(Some(drivers));
        self
    }

    /// Runs until `stop`, and until what follows from that is done: the gate is shut for good by then, and leader and
    /// coordination service were told.
    ///
    /// # Errors
    /// [`NameTaken`](coordination::Error::NameTaken) whenever a life cannot begin because of it, and other errors that
    /// waiting cannot mend when the first one cannot.
    pub async fn run(mut self, stop: StopHandle) -> Result<(), coordination::Error> {
        let mut signals =
            SessionSignals { requests: StopRequests::new(stop), coordinators: self.setup.group.coordinators() };
        let addresses = signals.coordinators.borrow_and_update().clone();
        self.step(ControlEvent::Coordinators(addresses));
        let mut life: Option<Box<dyn MemberSession>> = None;
        loop {
            match self.drive(life.as_deref(), &mut signals).await {
                Boundary::Joined(begun) => life = Some(begun),
                // Its gate is shut: dropping it closes its session, and other workers may act from then on.
                Boundary::LifeOver => life = None,
                Boundary::LeaveGroup(within) => {
                    let in_time = match life.take() {
                        Some(life) => tokio::time::timeout(within, life.leave()).await.is_ok(),
                        None => true,
                    };
                    self.step(ControlEvent::LeftGroup { in_time });
                }
                Boundary::Ended(Outcome::Left) => return Ok(()),
                Boundary::Ended(Outcome::CannotJoin) => return self.failure.map_or(Ok(()), Err),
            }
        }
    }

    fn begin_life(&mut self, life: &dyn MemberSession) {
        self.profile.lease = life.lease();
        metrics::life_begins(self.profile.lease);
        if let Some(incarnation) = life.incarnation() {
            info!(worker = %self.setup.name, %incarnation, lease = ?self.profile.lease, "joined");
            if self.profile.drivers.iter().any(|(_, offered)| offered.fence_delay.is_some())
                && let Some(violation) = self.setup.config.margin_violation(self.profile.lease)
            {
                warn!(worker = %self.setup.name, "session.{violation}");
            }
            self.conversation.begin_life(Some(incarnation));
        }
        self.fence = Some(fence::GateWatch::start(self.setup.name.clone(), Arc::clone(&self.gate)));
        self.command(RunnerCommand::Begin { gate: Arc::clone(&self.gate) });
    }

    /// The life is over: nothing of it may act any more, and it owns no grant.
    fn end_life(&mut self, why: &str) {
        self.gate.shut();
        self.fence = None;
        // No later than this; the gate may have been shut for a while.
        let may_act_until_ns = self.gate.deadline().min(clock::now()).as_nanos();
        warn!(worker = %self.setup.name, owned = self.owned(), may_act_until_ns, "this life is over: {why}");
        self.conversation.end_life();
        metrics::life_ended();
        metrics::hold(0);
        self.runner.releasing.clear();
        self.runner.commands.clear();
        // The runner forgets at once; the next life brings a gate that opens.
        self.command(RunnerCommand::Begin { gate: SharedGate::new() });
    }

    /// Tells the leader that this worker is about to stop; handing back, it gives up its grants by itself.
    fn say_drain(&mut self) {
        let hand_back = self.setup.config.on_stop == OnStop::HandBack;
        info!(worker = %self.setup.name, owned = self.owned(), hand_back, "draining");
        for GrantRef { appliance, token } in self.conversation.drain(hand_back) {
            self.command(RunnerCommand::Release { appliance, token });
        }
    }

    /// Shuts the gate for good and waits until running steps have noticed: what they began must not take effect after the
    /// leader was told that nothing will. `false` when they did not end within the time.
    async fn end_work(&mut self, within: Duration) -> bool {
        self.gate.shut();
        self.fence = None;
        self.runner.handle = None;
        let ended = async { while self.runner.events.recv().await.is_some() {} };
        tokio::time::timeout(within, ended).await.is_ok()
    }

    /// How many grants this worker owns.
    fn owned(&self) -> usize {
        self.conversation.assignments().len()
    }

    fn command(&mut self, command: RunnerCommand) {
        self.runner.commands.push_back(Queued::Command(Box::new(command)));
    }

    /// Hands the oldest command over to the runner.
    fn hand_over(&mut self, permit: mpsc::OwnedPermit<RunnerCommand>) {
        match self.runner.commands.pop_front() {
            Some(Queued::Command(command)) => {
                permit.send(*command);
            }
            Some(Queued::Applied(version)) => self.conversation.applied(version),
            None => {}
        }
    }
}

/// Waits until the runner has room for the oldest command; for ever when there is none.
async fn take_command(
    runner: Option<&Handle>,
    commands: &VecDeque<Queued>,
) -> Option<mpsc::OwnedPermit<RunnerCommand>> {
    match runner {
        Some(runner) if !commands.is_empty() => runner.reserve().await,
        _ => std::future::pending().await,
    }
}

/// What a worker publishes about itself.
#[must_use]
pub fn profile(weight: u32, zone: String, host: String, drivers: DriverOffers, lease: Duration) -> Profile {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let process = runtime::process::own_identity();
    Profile { weight, zone, host, drivers, version, pid: std::process::id(), process, lease }
}

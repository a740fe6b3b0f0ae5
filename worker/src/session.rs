//! The session: one life of this worker after the other, and in each one stream at a time to the leading coordinator.
//!
//! Owns the life, the holdings and the gate of each incarnation. Everything the leader says passes the holdings, which drop
//! what is stale; everything the runner says waits here, coalesced, until there is a stream to say it on. A broken stream
//! changes nothing about what this worker may do: only the lease does. Whether that is kept by heartbeats on the stream or
//! by the life itself ([`coordination`]) makes a difference in [`stream`] and nowhere else.
//!
//! Asked to stop, it drains: the leader asks back what is held while all else goes on as usual ([`departure`]).

mod beat;
mod config;
mod departure;
mod fence;
mod incoming;
mod interrupts;
mod link;
mod outgoing;
mod stream;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use common::appliance::Driver;
use common::retry::Retryable as _;
use common::{ApplianceId, Profile, Term, Timestamp, Token, WorkerId};
use coordination::{Life, Seat};
use runtime::clock;
use runtime::retry::Backoff;
use runtime::tls::ClientTls;
use tokio::sync::{mpsc, watch};
use tracing::{Span, info, warn};
use worker_core::assignments::Assignments;
use worker_core::report::Reports;

use crate::gate::Gate;
use crate::runner::{Command, Event, Handle};
pub use config::{Config, OnStop};
use departure::Departure;
pub use departure::Stop;
use interrupts::{Interrupt, Interrupts};
use outgoing::Outgoing;

/// How long running steps may take to end when this worker stops.
const END_WORK: Duration = Duration::from_secs(2);

/// How long the coordination service may take to hear that this worker leaves. What was not removed by then goes when the
/// session expires.
const LEAVE: Duration = Duration::from_secs(2);

/// How long a draining worker that holds something goes without a stream before it leaves: without a leader nobody takes
/// anything over in good order, and its lease keeps others from it.
const ALONE: Duration = Duration::from_secs(2);

/// Why a stream ended, and what to do about it.
#[derive(Debug)]
enum Ended {
    /// This worker stops.
    Stopping,
    /// Open another one, after this time at least.
    Again(Duration),
    /// Open another one to the leader, which has changed.
    Moved,
    /// The life is over, for this reason: begin a new one.
    LifeOver(String),
}

/// How a life ended.
#[derive(Debug)]
enum Over {
    Stopping,
    /// Another one follows.
    Ended {
        /// Why it ended.
        why: String,
        /// A leader had welcomed this worker in it.
        welcomed: bool,
    },
}

/// The session task.
#[derive(Debug)]
pub struct Session {
    config: Config,
    seat: Arc<dyn Seat>,
    /// How connections to coordinators are protected; plain when `None`.
    tls: Option<ClientTls>,
    name: WorkerId,
    /// Its lease is that of the present life.
    profile: Profile,
    /// The present life is kept by heartbeats on the stream.
    beats_on_stream: bool,
    assignments: Assignments,
    gate: Arc<Gate>,
    /// Tells of fences of the present life.
    fence: Option<fence::Watch>,
    /// `None` once this worker stops.
    runner: Option<Handle>,
    events: mpsc::Receiver<Event>,
    /// Term of the newest leader that welcomed this worker.
    terms: watch::Sender<Term>,
    /// Commands for the runner. Bounded by the leader's window: a delta is acknowledged once its commands were taken.
    commands: VecDeque<Queued>,
    outgoing: Outgoing,
    /// The leader was told, or is about to be, that this worker will stop.
    draining: bool,
    /// The leader said that it takes nothing more.
    drained: bool,
    /// When a stream was last ended because of a higher term.
    raised: Option<Timestamp>,
    /// Spans of releases under way, for the trace of their rebalance.
    releasing: HashMap<(ApplianceId, Token), Span>,
}

/// A command on its way to the runner, or the version that is applied once those before it were taken.
#[derive(Debug)]
enum Queued {
    Command(Box<Command>),
    Applied(u64),
}

impl Session {
    /// A session for the worker `name` that takes part through `seat` and publishes `profile`; the lease in it is asked
    /// for, and what the life then has counts. Tells through `terms` who leads.
    #[must_use]
    pub fn new(
        config: Config,
        seat: Arc<dyn Seat>,
        name: WorkerId,
        profile: Profile,
        runner: Handle,
        events: mpsc::Receiver<Event>,
        terms: watch::Sender<Term>,
    ) -> Self {
        let gate = Gate::with_margin(config.act_margin);
        Self {
            config,
            seat,
            tls: None,
            name,
            profile,
            beats_on_stream: true,
            assignments: Assignments::default(),
            gate,
            fence: None,
            runner: Some(runner),
            events,
            terms,
            commands: VecDeque::new(),
            outgoing: Outgoing::default(),
            draining: false,
            drained: false,
            raised: None,
            releasing: HashMap::new(),
        }
    }

    /// The same with its connections protected by `tls`.
    #[must_use]
    pub fn with_tls(self, tls: Option<ClientTls>) -> Self {
        Self { tls, ..self }
    }

    /// Runs until `stop`, and until what follows from that is done: the gate is shut for good by then, and leader and
    /// coordination service were told.
    ///
    /// # Errors
    /// [`NameTaken`](coordination::Error::NameTaken) whenever a life cannot begin because of it, and other errors that
    /// waiting cannot mend when the first one cannot.
    pub async fn run(mut self, stop: Stop) -> Result<(), coordination::Error> {
        let mut departure = Departure::new(stop, self.config.drain_timeout);
        let mut backoff = self.backoff();
        let mut lives = 0_u32;
        let ended = loop {
            let life = match self.join(&mut departure, lives == 0).await {
                Ok(Some(life)) => life,
                Ok(None) => break Ok(None),
                Err(fatal) => break Err(fatal),
            };
            lives += 1;
            self.begin_life(&*life);
            match self.live(&*life, &mut departure).await {
                Over::Stopping => break Ok(Some(life)),
                Over::Ended { why, welcomed } => {
                    // The gate first: dropping the life closes its session, and others may act from then on.
                    self.end_life(&why);
                    drop(life);
                    if departure.is_asked() {
                        break Ok(None);
                    }
                    if welcomed {
                        backoff.reset();
                    }
                    if !self.rest(backoff.next_delay(), &mut departure).await {
                        break Ok(None);
                    }
                }
            }
        };
        self.end_work().await;
        info!(held = self.assignments.len(), "the gate is shut; what was held goes to others");
        if let Some(life) = ended?
            && tokio::time::timeout(LEAVE, life.leave()).await.is_err()
        {
            warn!("the coordination service did not answer in time; this worker is gone when its session expires");
        }
        Ok(())
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(Duration::from_millis(100), self.config.retry_cap)
    }

    /// Begins a life, in as many tries as it takes. `None` when this worker is to stop.
    async fn join(
        &mut self,
        departure: &mut Departure,
        first: bool,
    ) -> Result<Option<Box<dyn Life>>, coordination::Error> {
        let mut backoff = self.backoff();
        let mut failures = 0_u32;
        let (seat, profile) = (Arc::clone(&self.seat), self.profile.clone());
        loop {
            // One that was handed over before may have been shut.
            let gate = Gate::with_margin(self.config.act_margin);
            departure.alone(Duration::ZERO);
            let joined = tokio::select! {
                _ = departure.due() => return Ok(None),
                joined = seat.join(&profile, Arc::clone(&gate) as Arc<dyn coordination::Guard>) => joined,
                () = self.pump() => return Ok(None),
            };
            match joined {
                Ok(life) => {
                    self.gate = gate;
                    return Ok(Some(life));
                }
                Err(fatal @ coordination::Error::NameTaken { .. }) => return Err(fatal),
                Err(fatal) if first && !fatal.is_retryable() => return Err(fatal),
                Err(problem) => {
                    gate.shut();
                    failures += 1;
                    // As with streams: the first failure, and then ever rarer ones.
                    if failures.is_power_of_two() {
                        warn!(worker = %self.name, failures, "cannot join: {problem}");
                    }
                }
            }
            if !self.rest(backoff.next_delay(), departure).await {
                return Ok(None);
            }
        }
    }

    /// Lets time pass while nothing is held and no life has begun. `false` when this worker is to stop.
    async fn rest(&mut self, delay: Duration, departure: &mut Departure) -> bool {
        departure.alone(Duration::ZERO);
        tokio::select! {
            _ = departure.due() => false,
            () = tokio::time::sleep(delay) => true,
            () = self.pump() => false,
        }
    }

    fn begin_life(&mut self, life: &dyn Life) {
        self.beats_on_stream = life.beats_on_stream();
        self.profile.lease = life.lease();
        if let Some(incarnation) = life.incarnation() {
            info!(worker = %self.name, %incarnation, lease = ?self.profile.lease, "joined");
            if !self.profile.holds.is_empty()
                && let Some(problem) = self.config.margin_problem(self.profile.lease)
            {
                warn!(worker = %self.name, "{problem}");
            }
            self.assignments.begin_life(Some(incarnation));
        }
        self.fence = Some(fence::Watch::start(self.name.clone(), Arc::clone(&self.gate)));
        self.command(Command::Begin { gate: Arc::clone(&self.gate) });
    }

    /// The life is over: nothing of it may act any more, and nothing of it is held.
    fn end_life(&mut self, why: &str) {
        self.gate.shut();
        self.fence = None;
        // No later than this; the gate may have been shut for a while.
        let may_act_until_ns = self.gate.deadline().min(clock::now()).as_nanos();
        warn!(worker = %self.name, held = self.assignments.len(), may_act_until_ns, "this life is over: {why}");
        self.assignments.end_life();
        self.outgoing = Outgoing::default();
        self.releasing.clear();
        self.commands.clear();
        // The runner forgets at once; the next life brings a gate that opens.
        self.command(Command::Begin { gate: Gate::new() });
    }

    /// Opens one stream after the other until the life is over or this worker stops.
    async fn live(&mut self, life: &dyn Life, departure: &mut Departure) -> Over {
        let mut interrupts = Interrupts::new(life, departure, self.seat.coordinators());
        let mut backoff = self.backoff();
        let (mut next, mut failures, mut welcomed) = (0, 0_u32, false);
        // Its own, because this worker's state goes on to change while a stream is being opened.
        let tls = self.tls.clone();
        loop {
            interrupts.departure().alone(self.endurance());
            let ended = match interrupts.aim(next) {
                None => {
                    if failures == 0 {
                        warn!(worker = %self.name, "no coordinator is known; waiting for one");
                    }
                    failures += 1;
                    Ended::Again(self.config.retry_cap)
                }
                Some(address) => {
                    let opened = tokio::select! {
                        interrupt = interrupts.next() => Err(self.on_interrupt(interrupt)),
                        opened = link::open(&address, self.config.connect_timeout, tls.as_ref()) => Ok(opened),
                        () = self.pump() => Err(Ended::Stopping),
                    };
                    match opened {
                        Ok(Ok(link)) => {
                            let ended = self.converse(link, &mut interrupts).await;
                            if self.assignments.envelope().is_some() {
                                backoff.reset();
                                failures = 0;
                                welcomed = true;
                            } else {
                                next += 1;
                            }
                            ended
                        }
                        Ok(Err(problem)) => {
                            failures += 1;
                            // The first failure and then ever rarer ones: a coordinator that is away for an hour is one
                            // fact.
                            if failures.is_power_of_two() {
                                let held = self.assignments.len();
                                warn!(coordinator = address, failures, held, "no session: {problem}");
                            }
                            next += 1;
                            Ended::Again(Duration::ZERO)
                        }
                        Err(ended) => ended,
                    }
                }
            };
            let ended = match ended {
                Ended::Again(at_least) => {
                    interrupts.departure().alone(self.endurance());
                    interrupts.aim_nowhere();
                    tokio::select! {
                        interrupt = interrupts.next() => self.on_interrupt(interrupt),
                        () = tokio::time::sleep(backoff.next_delay().max(at_least)) => continue,
                        () = self.pump() => Ended::Stopping,
                    }
                }
                ended => ended,
            };
            match ended {
                Ended::Stopping => return Over::Stopping,
                Ended::LifeOver(why) => return Over::Ended { why, welcomed },
                // At once: whoever follows waits for this worker to say what it holds.
                Ended::Moved | Ended::Again(_) => next = 0,
            }
        }
    }

    /// How long draining may go without a stream.
    fn endurance(&self) -> Duration {
        if self.assignments.is_settled() { Duration::ZERO } else { ALONE }
    }

    /// What follows from an interrupt, but for the goodbye to be said where there is a stream.
    fn on_interrupt(&self, interrupt: Interrupt) -> Ended {
        match interrupt {
            Interrupt::Leave(why) => {
                info!(worker = %self.name, held = self.assignments.len(), "leaving: {why}");
                Ended::Stopping
            }
            Interrupt::Over(ended) => Ended::LifeOver(ended.to_string()),
            Interrupt::Moved => {
                info!(worker = %self.name, "another coordinator leads");
                Ended::Moved
            }
            // Where there is no stream yet, the next one begins with it.
            Interrupt::Drain => Ended::Again(Duration::ZERO),
        }
    }

    /// Shuts the gate for good and waits, for a bounded time, until running steps have noticed: what they began must not
    /// take effect after the leader was told that nothing will.
    async fn end_work(&mut self) {
        self.gate.shut();
        self.fence = None;
        if self.runner.take().is_some() {
            let ended = async { while self.events.recv().await.is_some() {} };
            if tokio::time::timeout(END_WORK, ended).await.is_err() {
                warn!("running steps did not end in time; tokens fence what they still do");
            }
        }
    }

    /// Keeps runner and holdings in step while there is no stream. Ends only when the runner is gone.
    async fn pump(&mut self) {
        loop {
            tokio::select! {
                taken = take_command(self.runner.as_ref(), &self.commands) => if !self.hand_over(taken) { return },
                event = self.events.recv() => match event {
                    // Whatever has to be said, the next `Hello` says.
                    Some(event) => _ = self.on_event(event),
                    None => return,
                },
            }
        }
    }

    fn command(&mut self, command: Command) {
        self.commands.push_back(Queued::Command(Box::new(command)));
    }

    /// Hands the oldest command over. `false` when the runner is gone.
    fn hand_over(&mut self, taken: Option<mpsc::OwnedPermit<Command>>) -> bool {
        let Some(permit) = taken else { return false };
        match self.commands.pop_front() {
            Some(Queued::Command(command)) => {
                permit.send(*command);
            }
            Some(Queued::Applied(version)) => self.outgoing.applied(version),
            None => {}
        }
        true
    }
}

/// Waits until the runner has room for the oldest command; for ever when there is none.
async fn take_command(runner: Option<&Handle>, commands: &VecDeque<Queued>) -> Option<mpsc::OwnedPermit<Command>> {
    match runner {
        Some(runner) if !commands.is_empty() => runner.reserve().await,
        _ => std::future::pending().await,
    }
}

/// What a worker publishes about itself.
#[must_use]
pub fn profile(weight: u32, zone: String, host: String, drivers: BTreeSet<Driver>, lease: Duration) -> Profile {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Profile { weight, zone, host, drivers, version, pid: std::process::id(), lease, ..Profile::default() }
}

/// Statuses that wait to be told; see [`Reports`].
type Waiting = Reports;

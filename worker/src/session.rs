//! The session with the leading coordinator: one stream at a time, opened again whenever it ends.
//!
//! Owns the holdings, the heartbeat that keeps the lease, and the gate of each incarnation. Everything the leader says
//! passes the holdings, which drop what is stale; everything the runner says waits here, coalesced, until there is a
//! stream to say it on. A broken stream changes nothing about what this worker may do: only the lease does.

mod beat;
mod config;
mod link;
mod outgoing;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use common::appliance::Driver;
use common::runtime::retry::Backoff;
use common::runtime::{clock, telemetry};
use common::tls::ClientTls;
use common::{ApplianceId, Profile, Term, Timestamp, Token, WorkerId};
use proto::convert::{DesiredParts, Step, down, up};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Span, debug, error, info, info_span, warn};
use worker_core::desired::Desired;
use worker_core::holdings::{Effect, Handed, Holdings, Refused, Tell};
use worker_core::report::Reports;

use crate::gate::Gate;
use crate::runner::{Command, Event, Handle};
use beat::Beat;
pub use config::Config;
use outgoing::Outgoing;

/// How long running steps may take to end when this worker stops.
const END_WORK: Duration = Duration::from_secs(2);

/// How long the coordinator may take to hear a goodbye out.
const GOODBYE: Duration = Duration::from_secs(1);

/// How often a stream is ended because something knows of a higher term than the leader's. Each costs the leader an
/// election, so an appliance that makes tokens up must not cause one after the other; the coordinator forgives those that
/// are more than a minute apart.
const RAISE_PAUSE: Duration = Duration::from_secs(120);

/// Why a stream ended, and what to do about it.
#[derive(Debug)]
enum Ended {
    /// This worker stops.
    Stopping,
    /// Open another one, after this time at least.
    Again(Duration),
    /// The life is over: begin a new one.
    LifeOver,
}

/// The session task.
#[derive(Debug)]
pub struct Session {
    config: Config,
    /// How connections to coordinators are protected; plain when `None`.
    tls: Option<ClientTls>,
    name: WorkerId,
    profile: Profile,
    holdings: Holdings,
    gate: Arc<Gate>,
    /// `None` once this worker stops.
    runner: Option<Handle>,
    events: mpsc::Receiver<Event>,
    /// Term of the newest leader that welcomed this worker.
    terms: watch::Sender<Term>,
    /// Commands for the runner. Bounded by the leader's window: a delta is acknowledged once its commands were taken.
    commands: VecDeque<Queued>,
    outgoing: Outgoing,
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
    /// A session for the worker `name` that publishes `profile`. Tells through `terms` who leads.
    #[must_use]
    pub fn new(
        config: Config,
        name: WorkerId,
        profile: Profile,
        runner: Handle,
        events: mpsc::Receiver<Event>,
        terms: watch::Sender<Term>,
    ) -> Self {
        let gate = Gate::new();
        Self {
            config,
            tls: None,
            name,
            profile,
            holdings: Holdings::default(),
            commands: VecDeque::from([Queued::Command(Box::new(Command::Begin { gate: Arc::clone(&gate) }))]),
            gate,
            runner: Some(runner),
            events,
            terms,
            outgoing: Outgoing::default(),
            raised: None,
            releasing: HashMap::new(),
        }
    }

    /// The same with its connections protected by `tls`.
    #[must_use]
    pub fn with_tls(self, tls: Option<ClientTls>) -> Self {
        Self { tls, ..self }
    }

    /// Runs until `stop`, then shuts the gate for good and tells the leader so.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), self.config.retry_cap);
        let mut next = 0;
        let mut failures = 0_u32;
        // Its own, because this worker's state goes on to change while a stream is being opened.
        let tls = self.tls.clone();
        loop {
            let address = self.config.coordinators[next % self.config.coordinators.len()].clone();
            let opened = tokio::select! {
                () = stop.cancelled() => break,
                opened = link::open(&address, self.config.connect_timeout, tls.as_ref()) => opened,
                () = self.pump() => break,
            };
            let ended = match opened {
                Ok(link) => {
                    let ended = self.converse(link, &stop).await;
                    if self.holdings.envelope().is_some() {
                        backoff.reset();
                        failures = 0;
                    }
                    ended
                }
                Err(problem) => {
                    failures += 1;
                    // The first failure and then ever rarer ones: a coordinator that is away for an hour is one fact.
                    if failures.is_power_of_two() {
                        warn!(coordinator = address, failures, held = self.holdings.len(), "no session: {problem}");
                    }
                    next += 1;
                    Ended::Again(Duration::ZERO)
                }
            };
            match ended {
                Ended::Stopping => break,
                Ended::LifeOver => self.begin_life(),
                Ended::Again(at_least) => {
                    let delay = backoff.next_delay().max(at_least);
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = tokio::time::sleep(delay) => {}
                        () = self.pump() => break,
                    }
                }
            }
        }
        self.end_work().await;
        info!(held = self.holdings.len(), "the gate is shut; what was held goes to others");
    }

    /// Shuts the gate for good and waits, for a bounded time, until running steps have noticed: what they began must not
    /// take effect after the leader was told that nothing will.
    async fn end_work(&mut self) {
        self.gate.shut();
        if self.runner.take().is_some() {
            let ended = async { while self.events.recv().await.is_some() {} };
            if tokio::time::timeout(END_WORK, ended).await.is_err() {
                warn!("running steps did not end in time; tokens fence what they still do");
            }
        }
    }

    /// The former life is over: nothing of it may act any more, and the next `Hello` asks for a new one.
    fn begin_life(&mut self) {
        warn!(held = self.holdings.len(), "the lease of this life is over; beginning a new one");
        self.gate.shut();
        self.gate = Gate::new();
        self.holdings.end_life();
        self.outgoing = Outgoing::default();
        self.releasing.clear();
        self.commands.clear();
        self.commands.push_back(Queued::Command(Box::new(Command::Begin { gate: Arc::clone(&self.gate) })));
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

    /// Talks on one stream until it ends.
    async fn converse(&mut self, mut link: link::Link, stop: &CancellationToken) -> Ended {
        let hello = self.holdings.hello();
        self.outgoing.begin_stream();
        self.commands.retain(|queued| matches!(queued, Queued::Command(_)));
        let sent = clock::now();
        info!(worker = %self.name, stream = %hello.stream, held = hello.held.len(), "saying hello");
        let parts = outgoing::hello_parts(&self.name, &self.profile, hello);
        let said = tokio::select! {
            () = stop.cancelled() => return Ended::Stopping,
            said = link.out.send(parts, self.config.connect_timeout) => said,
            () = self.pump() => return Ended::Stopping,
        };
        if let Err(problem) = said {
            warn!("hello could not be said: {problem}");
            return Ended::Again(Duration::ZERO);
        }
        let welcome = tokio::time::timeout(self.config.connect_timeout, self.await_welcome(&mut link, stop));
        match welcome.await {
            Ok(Ok(lease)) => {
                self.gate.extend(sent + lease);
                self.exchange(link, stop, lease).await
            }
            Ok(Err(ended)) => ended,
            Err(_) => {
                warn!("the coordinator did not answer hello in time");
                Ended::Again(Duration::ZERO)
            }
        }
    }

    async fn await_welcome(&mut self, link: &mut link::Link, stop: &CancellationToken) -> Result<Duration, Ended> {
        let mut keep = Vec::new();
        loop {
            let message = tokio::select! {
                () = stop.cancelled() => return Err(Ended::Stopping),
                message = link.inlet.receive() => message,
                () = self.pump() => return Err(Ended::Stopping),
            };
            let (envelope, said) = message.map_err(|problem| {
                debug!("stream ended before the welcome: {problem}");
                Ended::Again(Duration::ZERO)
            })?;
            match said {
                down::Down::Welcome(part) => {
                    keep.extend(part.keep);
                    if part.more {
                        continue;
                    }
                    let Some(from) = link::core_envelope(&envelope) else { continue };
                    match self.holdings.welcome::<Arc<Desired>>(from, &keep) {
                        Ok(effects) => {
                            info!(term = %from.term, incarnation = %from.incarnation, kept = keep.len(), "welcomed");
                            self.terms.send_replace(from.term);
                            self.apply(effects, "");
                            // Nobody confirms statuses: those on a stream that broke, and those a leader had not stored
                            // when it died, are lost, and an appliance that is well has no news for a long time.
                            self.command(Command::Restate);
                            return Ok(part.lease.min(self.config.lease));
                        }
                        Err(refused) => {
                            warn!(term = %from.term, "welcome dropped: {refused}");
                            return Err(Ended::Again(Duration::from_millis(500)));
                        }
                    }
                }
                down::Down::Refused(refused) => return Err(self.on_refused(&refused)),
                // Nothing applies between `Hello` and `Welcome`.
                _ => {}
            }
        }
    }

    async fn exchange(&mut self, mut link: link::Link, stop: &CancellationToken, lease: Duration) -> Ended {
        let mut beat = Beat::new(lease);
        loop {
            let waiting = self.outgoing.is_waiting();
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.say_goodbye(link).await;
                    return Ended::Stopping;
                }
                taken = take_command(self.runner.as_ref(), &self.commands) => {
                    if !self.hand_over(taken) {
                        return Ended::Stopping;
                    }
                }
                () = beat.due() => {
                    let Some(envelope) = self.holdings.envelope() else { return Ended::Again(Duration::ZERO) };
                    match beat.next() {
                        Some(number) => {
                            let message = up::up_to_wire(&link::wire_envelope(envelope), up::Up::Beat(number));
                            let said = tokio::select! {
                                // Seen again above, where the goodbye is said.
                                () = stop.cancelled() => continue,
                                said = link.out.send([message], lease) => said,
                            };
                            if let Err(problem) = said {
                                warn!("a heartbeat could not be sent; opening another stream: {problem}");
                                return Ended::Again(Duration::ZERO);
                            }
                        }
                        None => {
                            warn!("heartbeats are not answered; opening another stream");
                            return Ended::Again(Duration::ZERO);
                        }
                    }
                }
                message = link.inlet.receive() => match message {
                    Ok((envelope, said)) => {
                        if let Some(ended) = self.on_message(&envelope, said, &mut beat) {
                            return ended;
                        }
                    }
                    Err(problem) => {
                        info!("session ended: {problem}");
                        return Ended::Again(Duration::ZERO);
                    }
                },
                event = self.events.recv() => match event {
                    Some(event) => {
                        if let Some(ended) = self.on_event(event) {
                            return ended;
                        }
                    }
                    None => return Ended::Stopping,
                },
                room = link.out.room(), if waiting => match room {
                    Ok(room) => {
                        if let (Some(envelope), Some(up)) = (self.holdings.envelope(), self.outgoing.next()) {
                            room.send(up::up_to_wire(&link::wire_envelope(envelope), up));
                        }
                    }
                    Err(_) => return Ended::Again(Duration::ZERO),
                },
            }
        }
    }

    async fn say_goodbye(&mut self, link: link::Link) {
        self.end_work().await;
        let Some(envelope) = self.holdings.envelope() else { return };
        let leave = up::up_to_wire(&link::wire_envelope(envelope), up::Up::Leave);
        if tokio::time::timeout(GOODBYE, link.finish(leave, GOODBYE)).await.is_err() {
            debug!("the coordinator did not end the stream in time; it will wait for the lease to end");
        }
    }

    fn on_message(&mut self, envelope: &proto::convert::Envelope, said: down::Down, beat: &mut Beat) -> Option<Ended> {
        let from = link::core_envelope(envelope)?;
        match said {
            down::Down::Welcome(_) => None,
            down::Down::BeatAck(number) => {
                if self.holdings.counts(from)
                    && let Some(deadline) = beat.answered(number)
                {
                    self.gate.extend(deadline);
                }
                None
            }
            down::Down::Delta(delta) => {
                let mut delta = delta;
                let target = delta.target;
                let traceparent = std::mem::take(&mut delta.traceparent);
                let unreadable = std::mem::take(&mut delta.unreadable);
                match self.holdings.delta(from, delta.base, target, tells(delta)) {
                    Ok(effects) => {
                        self.apply(effects, &traceparent);
                        unreadable.into_iter().for_each(|(id, token, problem)| self.set_aside(id, token, problem));
                        self.commands.push_back(Queued::Applied(target));
                        None
                    }
                    Err(Refused::Stale) => {
                        debug!("a delta of another conversation was dropped");
                        None
                    }
                    Err(refused @ Refused::Base { .. }) => {
                        warn!("{refused}; saying hello again");
                        Some(Ended::Again(Duration::ZERO))
                    }
                }
            }
            down::Down::Confirm(confirm) => {
                if self.holdings.confirm(from, &confirm.released).is_ok() {
                    for Step { appliance, token, number } in confirm.begun {
                        self.command(Command::Clear { appliance, token, number });
                    }
                }
                None
            }
            down::Down::Refused(refused) => Some(self.on_refused(&refused)),
        }
    }

    fn on_refused(&self, refused: &down::Refused) -> Ended {
        use down::RefusedReason as Reason;
        let later = refused.retry_after.unwrap_or_default().min(Duration::from_secs(30));
        match refused.reason {
            Reason::IncarnationOver => return Ended::LifeOver,
            Reason::NameTaken => {
                warn!(worker = %self.name, "another worker of this name may still act: {}", refused.detail);
            }
            Reason::Malformed => error!("the coordinator cannot read what this worker says: {}", refused.detail),
            Reason::NotLeading | Reason::Superseded | Reason::Stopping | Reason::Unknown => {
                info!(reason = ?refused.reason, "the coordinator ended the session: {}", refused.detail);
            }
        }
        Ended::Again(later)
    }

    fn apply(&mut self, effects: Vec<Effect<Arc<Desired>>>, traceparent: &str) {
        for effect in effects {
            match effect {
                Effect::Take { appliance, token, desired, handed, suspect } => {
                    if !self.profile.drivers.contains(&desired.driver) {
                        self.holdings.declined(appliance, token);
                        self.outgoing.decline(
                            appliance,
                            token,
                            format!("driver {} is not offered here", desired.driver),
                        );
                        continue;
                    }
                    let span = info_span!("adopt", %appliance, worker = %self.name, %token);
                    telemetry::set_parent(&span, traceparent);
                    let _entered = span.enter();
                    self.gate.admit(appliance, token, clock::now() + handed.hold);
                    self.outgoing.granted(appliance, token);
                    self.command(Command::Take {
                        appliance,
                        token,
                        desired,
                        progress: handed.progress,
                        hold: handed.hold,
                        suspect,
                        traceparent: traceparent.to_owned(),
                    });
                    debug!("taken");
                }
                Effect::Decline(appliance, token) => {
                    self.outgoing.decline(appliance, token, "it is not free here".to_owned());
                }
                Effect::Fence(appliance, token) => {
                    // Before the lease is extended by the welcome that said so.
                    warn!(%appliance, %token, "held, but not kept by the leader: the gate is shut for it");
                    self.gate.dismiss(appliance, token);
                    self.command(Command::Release { appliance, token });
                }
                Effect::Release(appliance, token) => {
                    let span = info_span!("release", %appliance, worker = %self.name, %token);
                    telemetry::set_parent(&span, traceparent);
                    self.releasing.insert((appliance, token), span);
                    self.command(Command::Release { appliance, token });
                }
                Effect::Again(appliance, token, handed) => self.outgoing.released(appliance, token, handed),
                Effect::Update { appliance, token, desired } => {
                    self.command(Command::Update { appliance, token, desired });
                }
                Effect::Check(appliance, token, number) => {
                    self.command(Command::Check { appliance, token, number });
                }
            }
        }
    }

    /// An entry of a delta could not be read. An offer is declined with the reason; what is held stays as it was, and so
    /// does the generation that is reported, by which people see that the newer one was not taken up.
    fn set_aside(&mut self, appliance: ApplianceId, token: Token, problem: String) {
        warn!(%appliance, %token, "an entry of a delta cannot be read: {problem}");
        if self.holdings.is_news(appliance, token) {
            self.outgoing.decline(appliance, token, problem);
        }
    }

    fn command(&mut self, command: Command) {
        self.commands.push_back(Queued::Command(Box::new(command)));
    }

    /// Takes in what the runner says. `Some` when the leader has to hear of it in a `Hello`.
    fn on_event(&mut self, event: Event) -> Option<Ended> {
        match event {
            Event::Refused { appliance, token, newer } => return self.on_refused_token(appliance, token, newer),
            Event::Released { appliance, token, progress, hold } => {
                // The gate first: once the leader may hear of it, nothing here must be able to act.
                self.gate.dismiss(appliance, token);
                self.releasing.remove(&(appliance, token));
                let handed = Handed { progress, hold };
                if self.holdings.released(appliance, token, handed.clone()) {
                    self.outgoing.forget(appliance);
                    self.outgoing.released(appliance, token, handed);
                }
            }
            Event::Gone { appliance, token } => {
                self.gate.dismiss(appliance, token);
                self.releasing.remove(&(appliance, token));
                if self.holdings.gone(appliance, token) {
                    self.outgoing.forget(appliance);
                    self.outgoing.gone(appliance, token);
                }
            }
            Event::Begins { appliance, token, number } => {
                if self.holdings.is_held(appliance, token) {
                    self.outgoing.begins(Step { appliance, token, number });
                }
            }
            Event::Done { appliance, token, number } => {
                if self.holdings.is_held(appliance, token) {
                    self.outgoing.done(Step { appliance, token, number });
                }
            }
            Event::Status { appliance, token, status, checked } => {
                if self.holdings.is_held(appliance, token) {
                    self.outgoing.report(appliance, token, status, checked);
                }
            }
        }
        None
    }

    /// The far side of an appliance has seen a newer token. When it is of a later term than the leader's, the store was
    /// put back to an older state: the leader has to begin a term above it, which it does after a `Hello` that says so.
    /// Once it has, grants of before are given up, so that new ones take their place.
    fn on_refused_token(&mut self, appliance: ApplianceId, token: Token, newer: Token) -> Option<Ended> {
        if self.holdings.met(newer.term) {
            let now = clock::now();
            if self.raised.is_some_and(|at| now.since(at) < RAISE_PAUSE) {
                debug!(%appliance, %token, %newer, "refused for a token of a later term; the next hello says so");
                return None;
            }
            self.raised = Some(now);
            warn!(%appliance, %token, %newer, "refused for a token of a later term than the leader's; saying hello again");
            return Some(Ended::Again(Duration::ZERO));
        }
        if self.holdings.give_up(appliance, token, newer) {
            info!(%appliance, %token, %newer, "given up: only a newer grant can be acted on");
            self.command(Command::Release { appliance, token });
        }
        None
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

fn tells(delta: down::Delta) -> Vec<Tell<Arc<Desired>>> {
    let mut tells = Vec::new();
    tells.extend(delta.prepare.into_iter().map(|(appliance, _)| Tell::Prepare(appliance)));
    tells.extend(delta.grant.into_iter().map(|g| Tell::Grant {
        appliance: g.appliance,
        token: g.token,
        generation: g.desired.generation,
        desired: desired(g.desired),
        handed: Handed { progress: g.progress, hold: g.hold },
        suspect: g.suspect,
    }));
    tells.extend(delta.release.into_iter().map(|(appliance, token)| Tell::Release(appliance, token)));
    tells.extend(delta.update.into_iter().map(|u| Tell::Update {
        appliance: u.appliance,
        token: u.token,
        generation: u.desired.generation,
        desired: desired(u.desired),
    }));
    tells.extend(delta.check.into_iter().map(|c| Tell::Check(c.appliance, c.token, c.number)));
    tells
}

fn desired(parts: DesiredParts) -> Arc<Desired> {
    let DesiredParts { name, tenant, driver, generation, revision, deleting, spec } = parts;
    Arc::new(Desired { name, tenant, driver, generation, revision, deleting, spec })
}

/// What a worker publishes about itself.
#[must_use]
pub fn profile(weight: u32, zone: String, host: String, drivers: BTreeSet<Driver>, lease: Duration) -> Profile {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Profile { weight, zone, host, drivers, version, pid: std::process::id(), lease }
}

/// Statuses that wait to be told; see [`Reports`].
type Waiting = Reports;

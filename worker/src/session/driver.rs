//! Drives [`Control`]: waits for whatever happens next, steps, and carries out what follows.
//!
//! Everything a session waits for is one arm of [`Session::input`]. Nothing here decides anything but the order in which
//! inputs that are ready at the same time are taken: requests to stop first, then the end of the life, a change of the
//! leader, commands for the runner, time, messages, events of the runner, what is to be sent, and last answers to inquiries.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use common::Timestamp;
use common::secret::LifeSecret;
use common::session::{Report, ToCoordinator};
use coordination::{MemberSession, MembershipEnd};
use futures::future::BoxFuture;
use proto::convert::down::FromCoordinator;
use proto::convert::inquiry::answer_to_wire;
use proto::convert::run::add_runs;
use proto::convert::up;
use proto::worker::v1::WorkerMessage;
use runtime::clock;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};
use worker_core::session::StreamEnd;
use worker_core::session::{ControlAction, ControlEvent, JoinFailure, Membership, Notice, Outcome, StopRequest};

use super::link::{Broken, CoordinatorLink, Inlet, Outlet};
use super::stop::StopRequests;
use super::{Queued, Session, link, take_command};
use crate::gate::SharedGate;
use crate::metrics;
use crate::runner::{RunnerCommand, RunnerEvent};

/// Longest sleep between two looks at the clock: timers of the runtime stand still while the machine is suspended.
const LOOK: Duration = Duration::from_secs(1);

/// A try to begin a life.
type Joining = BoxFuture<'static, Result<Box<dyn MemberSession>, coordination::Error>>;

/// IO under way: at most one of each.
#[derive(Default)]
pub(super) struct PendingIo {
    /// A try to begin a life, with the gate it was given.
    joining: Option<(Arc<SharedGate>, Joining)>,
    /// A try to open a stream.
    opening: Option<BoxFuture<'static, Result<CoordinatorLink, String>>>,
    link: Option<CoordinatorLink>,
    /// Parts of `Hello` that wait for room.
    hello: VecDeque<WorkerMessage>,
    /// The heartbeat to be sent next.
    beat: Option<u64>,
}

impl fmt::Debug for PendingIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending")
            .field("joining", &self.joining.is_some())
            .field("opening", &self.opening.is_some())
            .field("link", &self.link)
            .field("beat", &self.beat)
            .finish_non_exhaustive()
    }
}

/// Where one stretch of driving ends: something is to be done with the life itself.
pub(super) enum Boundary {
    /// A life has begun.
    Joined(Box<dyn MemberSession>),
    /// The life is to be let go.
    LifeOver,
    /// The life is to be ended in order, within this time.
    LeaveGroup(Duration),
    /// The session has ended.
    Ended(Outcome),
}

/// Something that happened.
enum SessionInput {
    Stop(StopRequest),
    LifeOver(MembershipEnd),
    Coordinators(Vec<String>),
    Joined(Result<Box<dyn MemberSession>, coordination::Error>),
    Opened(Result<CoordinatorLink, String>),
    /// The runner has room for a command; `None` when it is gone.
    Taken(Option<mpsc::OwnedPermit<RunnerCommand>>),
    Tick,
    Message(Result<Box<FromCoordinator>, String>),
    /// `None` when the runner is gone.
    Event(Option<RunnerEvent>),
    Room(Result<mpsc::OwnedPermit<WorkerMessage>, Broken>),
    /// An inquiry is answered, or will not be.
    Answered,
}

/// What a session listens to beside its streams and its runner.
#[derive(Debug)]
pub(super) struct SessionSignals {
    pub(super) requests: StopRequests,
    pub(super) coordinators: watch::Receiver<Vec<String>>,
}

impl Session {
    /// Goes on, in `life` if there is one, until something is to be done with that.
    pub(super) async fn drive(&mut self, life: Option<&dyn MemberSession>, signals: &mut SessionSignals) -> Boundary {
        let mut over = life.map(MemberSession::ended);
        loop {
            while let Some(action) = self.actions.pop_front() {
                if let Some(boundary) = self.carry_out(action).await {
                    return boundary;
                }
            }
            if self.control.is_draining() && self.control.is_streaming() && self.conversation.is_handed_over() {
                info!(owned = self.owned(), "every grant that other workers take is handed over");
                self.step(ControlEvent::HandedOver);
                continue;
            }
            let input = self.input(over.as_mut(), signals).await;
            if matches!(input, SessionInput::LifeOver(_)) {
                over = None;
            }
            if let Some(life) = self.take_in(input) {
                return Boundary::Joined(life);
            }
        }
    }

    pub(super) fn step(&mut self, event: ControlEvent) {
        let settled = self.conversation.assignments().is_settled();
        self.actions.extend(self.control.step(clock::now(), event, rand::random(), settled));
    }

    async fn input(
        &mut self,
        over: Option<&mut BoxFuture<'_, MembershipEnd>>,
        signals: &mut SessionSignals,
    ) -> SessionInput {
        let streaming = self.control.is_streaming();
        let wake_at =
            self.control.wake_at().into_iter().chain(self.conversation.wake_at()).chain(self.runs.wake_at()).min();
        let PendingIo { joining, opening, link, hello, beat, .. } = &mut self.pending;
        let beside = || self.inquiries.is_waiting() || self.runs.is_waiting(clock::now());
        let waits = || beat.is_some() || self.conversation.is_waiting() || beside();
        let waiting = !hello.is_empty() || streaming && waits();
        let (inlet, outlet) = link.as_mut().map(|link| (&mut link.inlet, &link.out)).unzip();
        tokio::select! {
            biased;
            request = signals.requests.next() => SessionInput::Stop(request),
            ended = wait_for(over) => SessionInput::LifeOver(ended),
            addresses = change(&mut signals.coordinators) => SessionInput::Coordinators(addresses),
            joined = wait_for(joining.as_mut().map(|(_, joining)| joining)) => SessionInput::Joined(joined),
            opened = wait_for(opening.as_mut()) => SessionInput::Opened(opened),
            taken = take_command(self.runner.handle.as_ref(), &self.runner.commands) => SessionInput::Taken(taken),
            () = until(wake_at) => SessionInput::Tick,
            message = receive(inlet) => SessionInput::Message(message.map(Box::new)),
            event = self.runner.events.recv() => SessionInput::Event(event),
            room = room(outlet), if waiting => SessionInput::Room(room),
            () = self.inquiries.answered() => SessionInput::Answered,
        }
    }

    /// Takes in one input. `Some` when a life has begun.
    fn take_in(&mut self, input: SessionInput) -> Option<Box<dyn MemberSession>> {
        match input {
            SessionInput::Stop(request) => self.step(ControlEvent::Stop(request)),
            SessionInput::LifeOver(ended) => self.step(ControlEvent::LifeOver(ended.to_string())),
            SessionInput::Coordinators(addresses) => self.step(ControlEvent::Coordinators(addresses)),
            SessionInput::Joined(joined) => return self.on_joined(joined),
            SessionInput::Opened(opened) => {
                self.pending.opening = None;
                match opened {
                    Ok(link) => {
                        self.pending.link = Some(link);
                        self.step(ControlEvent::Connected);
                    }
                    Err(problem) => self.step(ControlEvent::ConnectFailed(problem)),
                }
            }
            SessionInput::Taken(Some(permit)) => self.hand_over(permit),
            SessionInput::Taken(None) | SessionInput::Event(None) => self.step(ControlEvent::RunnerEnded),
            SessionInput::Tick => {
                self.conversation.let_time_pass(clock::now());
                self.step(ControlEvent::Tick);
            }
            SessionInput::Message(Ok(received)) => self.on_message(*received),
            SessionInput::Message(Err(problem)) => {
                info!("session ended: {problem}");
                self.stream_broke();
            }
            SessionInput::Event(Some(event)) => self.on_event(event),
            SessionInput::Room(Ok(room)) => self.send_next(room),
            SessionInput::Room(Err(_)) => self.stream_broke(),
            SessionInput::Answered => {}
        }
        None
    }

    fn stream_broke(&mut self) {
        self.step(ControlEvent::StreamEnded(StreamEnd::Again(Duration::ZERO)));
    }

    fn on_joined(
        &mut self,
        joined: Result<Box<dyn MemberSession>, coordination::Error>,
    ) -> Option<Box<dyn MemberSession>> {
        let (gate, _) = self.pending.joining.take()?;
        match joined {
            Ok(life) => {
                self.gate = gate;
                self.begin_life(&*life);
                let beats_on_stream = life.beats_on_stream();
                self.step(ControlEvent::Joined(Membership { lease: self.profile.lease, beats_on_stream }));
                Some(life)
            }
            Err(error) => {
                gate.shut();
                let kind = match &error {
                    coordination::Error::NameTaken { .. } => JoinFailure::NameTaken,
                    coordination::Error::Refused(_) => JoinFailure::Permanent,
                    coordination::Error::Unavailable(_) | coordination::Error::Lost(_) => JoinFailure::Transient,
                };
                let problem = error.to_string();
                self.failure = Some(error);
                self.step(ControlEvent::JoinFailed(kind, problem));
                None
            }
        }
    }

    /// Sends what is next in order: the rest of `Hello`, a heartbeat, what inquiries came to (of which there are few), answers, statuses,
    /// runs.
    fn send_next(&mut self, room: mpsc::OwnedPermit<WorkerMessage>) {
        if let Some(part) = self.pending.hello.pop_front() {
            room.send(part);
            if self.pending.hello.is_empty() {
                self.step(ControlEvent::HelloSent);
            }
            return;
        }
        let beat = self.pending.beat.take().map(ToCoordinator::Beat);
        let next = beat.and_then(|beat| Some((self.conversation.envelope()?, beat)));
        if next.is_none()
            && let Some((envelope, answer)) = self.inquiries.next()
        {
            room.send(answer_to_wire(&envelope, answer));
            return;
        }
        if let Some((envelope, message)) = next.or_else(|| self.conversation.next_message()) {
            room.send(up::up_to_wire(&envelope, message));
        } else if let Some(envelope) = self.conversation.envelope()
            && let Some(batch) = self.runs.next(clock::now())
        {
            let mut message = up::up_to_wire(&envelope, ToCoordinator::Report(Report::default()));
            add_runs(&mut message, batch);
            room.send(message);
        }
    }

    /// Carries out one action. `Some` when the rest needs the life itself.
    async fn carry_out(&mut self, action: ControlAction) -> Option<Boundary> {
        match action {
            ControlAction::Join => self.join(),
            ControlAction::EndLife(why) => {
                self.end_life(&why);
                return Some(Boundary::LifeOver);
            }
            ControlAction::Connect(address) => {
                let (timeout, tls) = (self.setup.config.connect_timeout, self.setup.tls.clone());
                let opening = async move {
                    let opened = link::open(&address, timeout, tls.as_ref()).await;
                    metrics::connected(opened.is_ok());
                    opened
                };
                self.pending.opening = Some(Box::pin(opening));
            }
            ControlAction::Disconnect => self.disconnect(),
            ControlAction::SayHello => self.say_hello(),
            ControlAction::Extend(until) => self.gate.extend(until),
            ControlAction::Beat(number) => self.pending.beat = Some(number),
            ControlAction::SayDrain => self.say_drain(),
            ControlAction::EndWork(within) => {
                self.pending.joining = None;
                let in_time = self.end_work(within).await;
                info!(owned = self.owned(), "the gate is shut; the remaining grants go to other workers");
                self.step(ControlEvent::WorkEnded { in_time });
            }
            ControlAction::SayLeave(within) => {
                self.say_leave(within).await;
                self.step(ControlEvent::LeaveSaid);
            }
            ControlAction::LeaveGroup(within) => return Some(Boundary::LeaveGroup(within)),
            ControlAction::End(outcome) => return Some(Boundary::Ended(outcome)),
            ControlAction::Note(notice) => self.log(&notice),
        }
        None
    }

    fn join(&mut self) {
        // A gate that was given to an earlier try may have been shut.
        let gate = SharedGate::with_margin(self.setup.config.act_margin);
        let (group, profile) = (Arc::clone(&self.setup.group), self.profile.clone());
        let guard = Arc::clone(&gate) as Arc<dyn coordination::Guard>;
        self.secret = LifeSecret::new(rand::random());
        let seal = self.secret.seal();
        self.pending.joining = Some((gate, Box::pin(async move { group.join(&profile, seal, guard).await })));
    }

    fn disconnect(&mut self) {
        metrics::welcomed(false);
        self.conversation.close();
        self.inquiries.end();
        self.runs.stream_ended();
        let joining = self.pending.joining.take();
        self.pending = PendingIo { joining, ..PendingIo::default() };
    }

    fn say_hello(&mut self) {
        let (envelope, hello) = self.conversation.hello(clock::now(), &self.setup.name, &self.profile, &self.secret);
        self.runner.commands.retain(|queued| matches!(queued, Queued::Command(_)));
        info!(worker = %self.setup.name, stream = %envelope.stream, owned = hello.owned.len(), "sending hello");
        self.pending.hello = up::hello_to_wire(&envelope, hello).into();
    }

    async fn say_leave(&mut self, within: Duration) {
        let link = self.pending.link.take();
        let Some((link, envelope)) = link.zip(self.conversation.envelope()) else { return };
        let leave = up::up_to_wire(&envelope, ToCoordinator::Leave);
        if tokio::time::timeout(within, link.finish(leave, within)).await.is_err() {
            debug!("the coordinator did not end the stream in time; it waits for the lease to end");
        }
    }

    fn log(&self, notice: &Notice) {
        let (worker, owned) = (&self.setup.name, self.owned());
        match notice {
            // Of tries in a row the first failure, and then ever rarer ones: an outage of an hour is one fact.
            Notice::JoinFailed(failures, problem) if failures.is_power_of_two() => {
                warn!(%worker, failures, "cannot join: {problem}");
            }
            Notice::ConnectFailed(coordinator, failures, problem) if failures.is_power_of_two() => {
                warn!(coordinator, failures, owned, "no session: {problem}");
            }
            Notice::JoinFailed(..) | Notice::ConnectFailed(..) => {}
            Notice::NoCoordinator => warn!(%worker, "no coordinator is known; waiting for one"),
            Notice::LeaderChanged => info!(%worker, "another coordinator leads"),
            Notice::HelloUnanswered => warn!("the coordinator did not answer hello in time"),
            Notice::BeatsUnanswered => warn!("heartbeats are not answered; opening another stream"),
            Notice::Leaving(why) => info!(%worker, owned, "leaving: {why}"),
            Notice::WorkGoesOn => warn!("running steps did not end in time; tokens fence what they still do"),
            Notice::GroupNotLeft => {
                warn!("the coordination service did not answer in time; this worker is gone when its session expires");
            }
        }
    }
}

/// The output of a future; never, without one.
async fn wait_for<F: Future + Unpin>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// The addresses after their next change; never, once no one tells any more.
async fn change(coordinators: &mut watch::Receiver<Vec<String>>) -> Vec<String> {
    match coordinators.changed().await {
        Ok(()) => coordinators.borrow_and_update().clone(),
        Err(_) => std::future::pending().await,
    }
}

async fn receive(inlet: Option<&mut Inlet>) -> Result<FromCoordinator, String> {
    match inlet {
        Some(inlet) => inlet.receive().await,
        None => std::future::pending().await,
    }
}

async fn room(outlet: Option<&Outlet>) -> Result<mpsc::OwnedPermit<WorkerMessage>, Broken> {
    match outlet {
        Some(outlet) => outlet.room().await,
        None => std::future::pending().await,
    }
}

/// Waits until the boot-time clock shows `at`, or for a while: whoever calls looks again.
async fn until(at: Option<Timestamp>) {
    match at {
        Some(at) => tokio::time::sleep(at.since(clock::now()).min(LOOK)).await,
        None => std::future::pending().await,
    }
}

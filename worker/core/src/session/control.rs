//! The course of a worker: which life, which stream, when to leave.
//!
//! A worker begins one life after the other in the group of workers, and in each one stream at a time to the leading
//! coordinator. Asked to stop it drains, which means that it goes on until its grants are handed over, and then leaves. A
//! broken stream changes nothing about what it may do: only the lease does.
//!
//! | state        | event -> next |
//! |--------------|---------------|
//! | Joining      | Joined -> Connecting. JoinFailed -> Resting, or EndingWork when waiting does not help |
//! | Resting      | its end -> Joining |
//! | Pausing      | its end -> Connecting. Coordinators with another leader -> Connecting |
//! | Connecting   | no coordinator known, ConnectFailed -> Pausing. Connected -> Greeting. Another leader -> Connecting |
//! | Greeting     | HelloSent -> stays, timed anew. Welcomed -> Streaming. StreamEnded, its timeout -> Pausing. Another leader -> Connecting |
//! | Streaming    | Tick -> heartbeats. BeatAnswered -> the lease is extended. StreamEnded, heartbeats unanswered -> Pausing. Another leader -> Connecting. HandedOver in a drain -> EndingWork |
//! | Pausing to Streaming | LifeOver, StreamEnded by the end of the life -> Resting |
//! | Joining to Streaming | Stop to leave, the end of a drain, RunnerEnded -> EndingWork |
//! | EndingWork   | WorkEnded -> SayingLeave after Streaming, else LeavingGroup in a life, else Ended |
//! | SayingLeave  | LeaveSaid -> LeavingGroup |
//! | LeavingGroup | LeftGroup -> Ended |
//! | Ended        | stays |
//!
//! Every other pair is an event of something that was given up, and changes nothing. A drain goes on for as long as
//! [`Settings::drain_timeout`], but without a stream only for [`ALONE`], and not at all without grants.

use std::time::Duration;

use common::Timestamp;

use super::departure::{DrainDeadline, LeaveReason, StopRequest};
use super::heartbeat::{BeatDue, BeatSchedule};
use super::targets::Targets;
use common::backoff::Backoff;

#[cfg(test)]
mod tests;

/// How long running steps may take to end when a worker stops.
const END_WORK: Duration = Duration::from_secs(2);

/// How long the coordinator may take to read a `Leave` and end the stream.
const SAY_LEAVE: Duration = Duration::from_secs(1);

/// How long the coordination service may take to remove a member. Nodes that are left then go when the session expires.
const LEAVE_GROUP: Duration = Duration::from_secs(2);

/// How long a draining worker with grants goes without a stream before it leaves: without a leader no grant can be handed
/// over, and its lease keeps other workers from them.
const ALONE: Duration = Duration::from_secs(2);

/// Upper bound of the first pause between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Settings of the course of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long sending `Hello`, and the answer to it, may take.
    pub connect_timeout: Duration,
    /// Longest pause between two tries.
    pub retry_cap: Duration,
    /// How long draining may take.
    pub drain_timeout: Duration,
}

/// What a life comes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// How long the worker may act after a heartbeat.
    pub lease: Duration,
    /// Heartbeats are sent on the stream (embedded), so that what is said there extends the lease.
    pub beats_on_stream: bool,
}

/// Whether a failed join is worth another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinFailure {
    /// Another worker has the name.
    NameTaken,
    /// The next try fails the same way: credentials, paths, names.
    Permanent,
    /// The coordination service was not reached, or did not answer.
    Transient,
}

/// Why a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// Open another one, after this time at least.
    Again(Duration),
    /// The coordinator stops; another try is worth it after this time.
    CoordinatorStops(Duration),
    /// The leader says that the life is over, with its reason.
    LifeOver(String),
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlEvent {
    /// Time has passed.
    Tick,
    /// The worker is asked to stop.
    Stop(StopRequest),
    /// The runner has ended by itself.
    RunnerEnded,
    /// Addresses of coordinators, the leader's first.
    Coordinators(Vec<String>),
    /// A life has begun.
    Joined(Membership),
    /// A life could not begin.
    JoinFailed(JoinFailure, String),
    /// The life is over, for this reason; its gate is shut.
    LifeOver(String),
    /// A stream is open, and `Hello` is on its way.
    Connected,
    /// No stream could be opened.
    ConnectFailed(String),
    /// All of `Hello` was sent.
    HelloSent,
    /// The leader welcomed this worker and grants this lease.
    Welcomed(Duration),
    /// The stream ended.
    StreamEnded(StreamEnd),
    /// The heartbeat with this number was answered.
    BeatAnswered(u64),
    /// All grants that other workers take are handed over, and the leader knows.
    HandedOver,
    /// Running steps have ended, or not `in_time`.
    WorkEnded {
        /// Before the time that was given.
        in_time: bool,
    },
    /// The stream has ended after a `Leave`, or not in time.
    LeaveSaid,
    /// The group was left, or not `in_time`.
    LeftGroup {
        /// Before the time that was given.
        in_time: bool,
    },
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlAction {
    /// Begin a life.
    Join,
    /// The life is over: shut its gate, forget its grants, then let go of the membership.
    EndLife(String),
    /// Open a stream to this address.
    Connect(String),
    /// Let go of the stream, or of the try to open one.
    Disconnect,
    /// Say `Hello` on the stream.
    SayHello,
    /// Let the lease stand until then.
    Extend(Timestamp),
    /// Send this heartbeat, before everything else.
    Beat(u64),
    /// Tell the leader that this worker drains.
    SayDrain,
    /// Shut the gate for good and let running steps end, within this time.
    EndWork(Duration),
    /// Tell the leader that this worker leaves, and wait for the end of the stream, within this time.
    SayLeave(Duration),
    /// End the life and leave the group, within this time.
    LeaveGroup(Duration),
    /// The worker has stopped.
    End(Outcome),
    /// Worth a line in the log.
    Note(Notice),
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// In order.
    Left,
    /// The last try to join failed for a reason that waiting does not mend.
    CannotJoin,
}

/// A fact for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A try to join failed, this many in a row by now.
    JoinFailed(u32, String),
    /// No address of a coordinator is known.
    NoCoordinator,
    /// A coordinator could not be reached, this many tries in a row by now.
    ConnectFailed(String, u32, String),
    /// Another coordinator leads.
    LeaderChanged,
    /// `Hello` was not answered in time.
    HelloUnanswered,
    /// Heartbeats were not answered for a lease.
    BeatsUnanswered,
    /// The worker leaves.
    Leaving(LeaveReason),
    /// Running steps did not end in time.
    WorkGoesOn,
    /// The coordination service did not answer in time.
    GroupNotLeft,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ControlPhase {
    Joining,
    Resting { until: Timestamp },
    Pausing { until: Timestamp },
    Connecting,
    Greeting { hello_at: Timestamp, until: Timestamp },
    Streaming { heartbeat: Option<BeatSchedule> },
    EndingWork { say_leave: bool, outcome: Outcome },
    SayingLeave,
    LeavingGroup,
    Ended,
}

/// The life of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CurrentLife {
    membership: Membership,
    /// A leader has welcomed this worker in it.
    welcomed: bool,
}

/// Tries in a row that did not succeed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tries {
    failures: u32,
    pauses: u32,
}

impl Tries {
    fn fail(&mut self) -> u32 {
        self.failures = self.failures.saturating_add(1);
        self.failures
    }

    /// The pause before the next try. At least a tenth of its bound, so that a try that fails at once costs little.
    fn pause(&mut self, cap: Duration, jitter: f64) -> Duration {
        self.pauses = self.pauses.saturating_add(1);
        Backoff { base: FIRST_PAUSE, cap }.delay(self.pauses, 0.1 + 0.9 * jitter)
    }
}

/// The course of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    settings: Settings,
    phase: ControlPhase,
    departure: DrainDeadline,
    targets: Targets,
    life: Option<CurrentLife>,
    /// A first life has begun.
    joined_before: bool,
    joining: Tries,
    /// Lives in a row in which no leader welcomed this worker.
    lives: Tries,
    connecting: Tries,
    actions: Vec<ControlAction>,
}

impl Control {
    /// A worker that starts at `now`, and its first action.
    #[must_use]
    pub fn new(settings: Settings, now: Timestamp) -> (Self, Vec<ControlAction>) {
        let control = Self {
            departure: DrainDeadline::new(now, settings.drain_timeout),
            settings,
            phase: ControlPhase::Joining,
            targets: Targets::default(),
            life: None,
            joined_before: false,
            joining: Tries::default(),
            lives: Tries::default(),
            connecting: Tries::default(),
            actions: Vec::new(),
        };
        (control, vec![ControlAction::Join])
    }

    /// Takes in one fact. `jitter`, from 0 to 1, spreads whatever pause follows; `settled` says that no grant, and no
    /// answer about one, is left to be handed over.
    pub fn step(&mut self, now: Timestamp, event: ControlEvent, jitter: f64, settled: bool) -> Vec<ControlAction> {
        let pass = ControlPass { now, jitter, settled };
        if !self.is_ending() {
            self.take_in(pass, event);
            self.let_time_pass(pass);
        } else {
            self.go_on_ending(&event);
        }
        std::mem::take(&mut self.actions)
    }

    /// When to step at the latest, if nothing happens.
    #[must_use]
    pub fn wake_at(&self) -> Option<Timestamp> {
        let phase = match &self.phase {
            ControlPhase::Joining | ControlPhase::Connecting | ControlPhase::Streaming { heartbeat: None } => None,
            ControlPhase::Resting { until }
            | ControlPhase::Pausing { until }
            | ControlPhase::Greeting { until, .. } => Some(*until),
            ControlPhase::Streaming { heartbeat: Some(heartbeat) } => Some(heartbeat.wake_at()),
            ControlPhase::EndingWork { .. }
            | ControlPhase::SayingLeave
            | ControlPhase::LeavingGroup
            | ControlPhase::Ended => return None,
        };
        phase.into_iter().chain(self.departure.wake_at()).min()
    }

    /// Whether the leader has welcomed this worker on the stream of now.
    #[must_use]
    pub const fn is_streaming(&self) -> bool {
        matches!(self.phase, ControlPhase::Streaming { .. })
    }

    /// Whether this worker drains or has drained.
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.departure.is_draining()
    }

    /// Whether the worker is stopping for good, or has stopped.
    #[must_use]
    pub const fn is_ending(&self) -> bool {
        matches!(
            self.phase,
            ControlPhase::EndingWork { .. }
                | ControlPhase::SayingLeave
                | ControlPhase::LeavingGroup
                | ControlPhase::Ended
        )
    }

    /// Whether no further event is awaited.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        matches!(self.phase, ControlPhase::Ended)
    }

    fn take_in(&mut self, pass: ControlPass, event: ControlEvent) {
        match (&mut self.phase, event) {
            (_, ControlEvent::Tick) => {}
            (_, ControlEvent::Stop(StopRequest::Leave)) => self.leave(LeaveReason::Asked),
            (_, ControlEvent::Stop(StopRequest::Drain)) => {
                if self.departure.drain(pass.now) {
                    self.act(ControlAction::SayDrain);
                }
            }
            (_, ControlEvent::RunnerEnded) => self.leave(LeaveReason::RunnerEnded),
            (_, ControlEvent::Coordinators(addresses)) => {
                if self.targets.update(addresses) && self.life.is_some() {
                    self.note(Notice::LeaderChanged);
                    self.disconnect();
                    self.targets.restart();
                    self.connect(pass);
                }
            }
            (ControlPhase::Joining, ControlEvent::Joined(membership)) => {
                self.life = Some(CurrentLife { membership, welcomed: false });
                self.joined_before = true;
                self.connecting = Tries::default();
                self.targets.restart();
                self.connect(pass);
            }
            (ControlPhase::Joining, ControlEvent::JoinFailed(failure, problem)) => {
                self.join_failed(pass, failure, problem)
            }
            (
                ControlPhase::Pausing { .. }
                | ControlPhase::Connecting
                | ControlPhase::Greeting { .. }
                | ControlPhase::Streaming { .. },
                ControlEvent::LifeOver(why),
            )
            | (
                ControlPhase::Greeting { .. } | ControlPhase::Streaming { .. },
                ControlEvent::StreamEnded(StreamEnd::LifeOver(why)),
            ) => self.end_life(pass, why),
            (ControlPhase::Connecting, ControlEvent::ConnectFailed(problem)) => {
                let failures = self.connecting.fail();
                let target = self.targets.current().unwrap_or_default().to_owned();
                self.note(Notice::ConnectFailed(target, failures, problem));
                self.targets.skip();
                self.pause(pass, Duration::ZERO);
            }
            (ControlPhase::Connecting, ControlEvent::Connected) => {
                self.phase =
                    ControlPhase::Greeting { hello_at: pass.now, until: pass.now + self.settings.connect_timeout };
                self.act(ControlAction::SayHello);
            }
            (ControlPhase::Greeting { until, .. }, ControlEvent::HelloSent) => {
                *until = pass.now + self.settings.connect_timeout;
            }
            (ControlPhase::Greeting { hello_at, .. }, ControlEvent::Welcomed(lease)) => {
                let hello_at = *hello_at;
                self.welcomed(pass, hello_at, lease);
            }
            (ControlPhase::Greeting { .. } | ControlPhase::Streaming { .. }, ControlEvent::StreamEnded(end)) => {
                self.stream_ended(pass, end);
            }
            (ControlPhase::Streaming { heartbeat: Some(heartbeat) }, ControlEvent::BeatAnswered(number)) => {
                if let Some(until) = heartbeat.answered(number) {
                    self.act(ControlAction::Extend(until));
                }
            }
            (ControlPhase::Streaming { .. }, ControlEvent::HandedOver) => {
                if self.departure.is_draining() {
                    self.leave(LeaveReason::Drained);
                }
            }
            // Of something that was given up meanwhile.
            (
                _,
                ControlEvent::Joined(_)
                | ControlEvent::JoinFailed(..)
                | ControlEvent::LifeOver(_)
                | ControlEvent::Connected
                | ControlEvent::ConnectFailed(_)
                | ControlEvent::HelloSent
                | ControlEvent::Welcomed(_)
                | ControlEvent::StreamEnded(_)
                | ControlEvent::BeatAnswered(_)
                | ControlEvent::HandedOver
                | ControlEvent::WorkEnded { .. }
                | ControlEvent::LeaveSaid
                | ControlEvent::LeftGroup { .. },
            ) => {}
        }
    }

    /// What follows from the time alone.
    fn let_time_pass(&mut self, pass: ControlPass) {
        if self.is_ending() {
            return;
        }
        if let Some(why) = self.departure.due(pass.now) {
            return self.leave(why);
        }
        match &mut self.phase {
            ControlPhase::Resting { until } if *until <= pass.now => {
                self.phase = ControlPhase::Joining;
                self.act(ControlAction::Join);
            }
            ControlPhase::Pausing { until } if *until <= pass.now => self.connect(pass),
            ControlPhase::Greeting { until, .. } if *until <= pass.now => {
                self.note(Notice::HelloUnanswered);
                self.stream_ended(pass, StreamEnd::Again(Duration::ZERO));
            }
            ControlPhase::Streaming { heartbeat: Some(heartbeat) } => match heartbeat.due(pass.now) {
                Some(BeatDue::Send(number)) => self.act(ControlAction::Beat(number)),
                Some(BeatDue::Unanswered) => {
                    self.note(Notice::BeatsUnanswered);
                    self.stream_ended(pass, StreamEnd::Again(Duration::ZERO));
                }
                None => {}
            },
            _ => {}
        }
    }

    fn join_failed(&mut self, pass: ControlPass, failure: JoinFailure, problem: String) {
        let fatal = match failure {
            JoinFailure::NameTaken => true,
            // A worker that was a member before has a configuration that worked: it waits.
            JoinFailure::Permanent => !self.joined_before,
            JoinFailure::Transient => false,
        };
        if fatal {
            return self.end_work(false, Outcome::CannotJoin);
        }
        let failures = self.joining.fail();
        self.note(Notice::JoinFailed(failures, problem));
        let delay = self.joining.pause(self.settings.retry_cap, pass.jitter);
        self.phase = ControlPhase::Resting { until: pass.now + delay };
    }

    fn end_life(&mut self, pass: ControlPass, why: String) {
        self.disconnect();
        self.act(ControlAction::EndLife(why));
        if self.life.take().is_some_and(|life| life.welcomed) {
            self.lives = Tries::default();
        }
        self.joining = Tries::default();
        self.departure.alone(pass.now, Duration::ZERO);
        let delay = self.lives.pause(self.settings.retry_cap, pass.jitter);
        self.phase = ControlPhase::Resting { until: pass.now + delay };
    }

    fn connect(&mut self, pass: ControlPass) {
        self.departure.alone(pass.now, endurance(pass.settled));
        match self.targets.choose() {
            Some(address) => {
                self.phase = ControlPhase::Connecting;
                self.act(ControlAction::Connect(address));
            }
            None => {
                if self.connecting.fail() == 1 {
                    self.note(Notice::NoCoordinator);
                }
                self.pause(pass, self.settings.retry_cap);
            }
        }
    }

    fn pause(&mut self, pass: ControlPass, at_least: Duration) {
        self.departure.alone(pass.now, endurance(pass.settled));
        self.targets.release();
        let delay = self.connecting.pause(self.settings.retry_cap, pass.jitter).max(at_least);
        self.phase = ControlPhase::Pausing { until: pass.now + delay };
    }

    fn welcomed(&mut self, pass: ControlPass, hello_at: Timestamp, lease: Duration) {
        let Some(life) = &mut self.life else { return };
        life.welcomed = true;
        let lease = lease.min(life.membership.lease);
        let heartbeat = life.membership.beats_on_stream.then(|| BeatSchedule::new(pass.now, lease));
        if heartbeat.is_some() {
            self.act(ControlAction::Extend(hello_at + lease));
        }
        self.phase = ControlPhase::Streaming { heartbeat };
        self.departure.accompanied();
        if self.departure.is_draining() {
            self.act(ControlAction::SayDrain);
        }
    }

    fn stream_ended(&mut self, pass: ControlPass, end: StreamEnd) {
        let beats_on_stream = self.life.is_some_and(|life| life.membership.beats_on_stream);
        let at_least = match end {
            StreamEnd::Again(at_least) => at_least,
            // The only coordinator there is.
            StreamEnd::CoordinatorStops(_) if self.departure.is_draining() && beats_on_stream => {
                self.disconnect();
                self.note(Notice::Leaving(LeaveReason::CoordinatorStops));
                return self.end_work(false, Outcome::Left);
            }
            StreamEnd::CoordinatorStops(at_least) => at_least,
            StreamEnd::LifeOver(why) => return self.end_life(pass, why),
        };
        self.disconnect();
        self.pause(pass, at_least);
    }

    /// Lets go of the stream or of the try to open one. A stream on which this worker was welcomed starts the pauses
    /// over; one on which it was not makes another coordinator the next.
    fn disconnect(&mut self) {
        match self.phase {
            ControlPhase::Connecting => self.act(ControlAction::Disconnect),
            ControlPhase::Greeting { .. } => {
                self.targets.skip();
                self.act(ControlAction::Disconnect);
            }
            ControlPhase::Streaming { .. } => {
                self.connecting = Tries::default();
                self.act(ControlAction::Disconnect);
            }
            _ => {}
        }
    }

    fn leave(&mut self, why: LeaveReason) {
        self.note(Notice::Leaving(why));
        let say_leave = self.is_streaming() && why != LeaveReason::RunnerEnded;
        if !say_leave {
            self.disconnect();
        }
        self.end_work(say_leave, Outcome::Left);
    }

    fn end_work(&mut self, say_leave: bool, outcome: Outcome) {
        self.phase = ControlPhase::EndingWork { say_leave, outcome };
        self.act(ControlAction::EndWork(END_WORK));
    }

    fn go_on_ending(&mut self, event: &ControlEvent) {
        match (&self.phase, event) {
            (ControlPhase::EndingWork { say_leave, outcome }, ControlEvent::WorkEnded { in_time }) => {
                let (say_leave, outcome) = (*say_leave, *outcome);
                if !in_time {
                    self.note(Notice::WorkGoesOn);
                }
                if say_leave {
                    self.phase = ControlPhase::SayingLeave;
                    self.act(ControlAction::SayLeave(SAY_LEAVE));
                } else {
                    self.leave_group(outcome);
                }
            }
            (ControlPhase::SayingLeave, ControlEvent::LeaveSaid) => self.leave_group(Outcome::Left),
            (ControlPhase::LeavingGroup, ControlEvent::LeftGroup { in_time }) => {
                if !in_time {
                    self.note(Notice::GroupNotLeft);
                }
                self.end(Outcome::Left);
            }
            _ => {}
        }
    }

    fn leave_group(&mut self, outcome: Outcome) {
        match self.life.take() {
            Some(_) => {
                self.phase = ControlPhase::LeavingGroup;
                self.act(ControlAction::LeaveGroup(LEAVE_GROUP));
            }
            None => self.end(outcome),
        }
    }

    fn end(&mut self, outcome: Outcome) {
        self.phase = ControlPhase::Ended;
        self.act(ControlAction::End(outcome));
    }

    fn act(&mut self, action: ControlAction) {
        self.actions.push(action);
    }

    fn note(&mut self, notice: Notice) {
        self.actions.push(ControlAction::Note(notice));
    }
}

/// What one step goes by.
#[derive(Clone, Copy)]
struct ControlPass {
    now: Timestamp,
    jitter: f64,
    settled: bool,
}

/// How long draining may go without a stream.
const fn endurance(settled: bool) -> Duration {
    if settled { Duration::ZERO } else { ALONE }
}

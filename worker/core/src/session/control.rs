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
//! | Greeting     | HelloSent -> stays, timed anew. Welcomed -> Streaming. StreamEnded, its timeout -> Pausing. Another leader -> Connecting. A name that stays taken -> EndingWork |
//! | Streaming    | Tick -> heartbeats. BeatAnswered -> the lease is extended. StreamEnded, heartbeats unanswered -> Pausing. Another leader -> Connecting. HandedOver in a drain -> EndingWork |
//! | Pausing to Streaming | LifeOver, StreamEnded by the end of the life -> Resting |
//! | Joining to Streaming | Stop to leave, the end of a drain, RunnerEnded -> EndingWork |
//! | EndingWork   | WorkEnded -> SayingLeave after Streaming, else LeavingGroup in a life, else Ended |
//! | SayingLeave  | LeaveSaid -> LeavingGroup |
//! | LeavingGroup | LeftGroup -> Ended |
//! | Ended        | stays |
//!
//! Every other pair is an event of something that was given up, and changes nothing. How a worker ends is in [`ending`],
//! events and actions are in [`vocabulary`]. A drain goes on for as long as
//! [`Settings::drain_timeout`], but without a stream only for [`ALONE`], and not at all without grants.

mod ending;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::time::Duration;

use common::Timestamp;

pub use vocabulary::{ControlAction, ControlEvent, JoinFailure, Membership, Notice, Outcome, Settings, StreamEnd};

use super::departure::{DrainDeadline, LeaveReason, StopRequest};
use super::heartbeat::{BeatDue, BeatSchedule};
use super::targets::Targets;
use common::backoff::Backoff;

/// How long a draining worker with grants goes without a stream before it leaves: without a leader no grant can be handed
/// over, and its lease keeps other workers from them.
const ALONE: Duration = Duration::from_secs(2);

/// Upper bound of the first pause between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

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
    LeavingGroup { outcome: Outcome },
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
    /// Until when the name may be another worker's, once a leader has said that it is.
    name_free_by: Option<Timestamp>,
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
            name_free_by: None,
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
            self.continue_ending(&event);
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
            | ControlPhase::LeavingGroup { .. }
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
                | ControlPhase::LeavingGroup { .. }
                | ControlPhase::Ended
        )
    }

    /// Whether no further event is awaited.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        matches!(self.phase, ControlPhase::Ended)
    }

    fn take_in(&mut self, pass: ControlPass, event: ControlEvent) {
        match event {
            ControlEvent::Tick => {}
            ControlEvent::Stop(StopRequest::Leave) => self.leave(LeaveReason::Asked),
            ControlEvent::Stop(StopRequest::Drain) => {
                if self.departure.drain(pass.now) {
                    self.act(ControlAction::SayDrain);
                }
            }
            ControlEvent::RunnerEnded => self.leave(LeaveReason::RunnerEnded),
            ControlEvent::Coordinators(addresses) => {
                if self.targets.update(addresses) && self.life.is_some() {
                    self.note(Notice::LeaderChanged);
                    self.disconnect();
                    self.targets.restart();
                    self.connect(pass);
                }
            }
            ControlEvent::Joined(_) | ControlEvent::JoinFailed(..) | ControlEvent::LifeOver(_) => {
                self.take_in_membership(pass, event);
            }
            ControlEvent::Connected
            | ControlEvent::ConnectFailed(_)
            | ControlEvent::HelloSent
            | ControlEvent::Welcomed(_)
            | ControlEvent::StreamEnded(_)
            | ControlEvent::BeatAnswered(_)
            | ControlEvent::HandedOver => self.take_in_stream(pass, event),
            // Only while the worker ends.
            ControlEvent::WorkEnded { .. } | ControlEvent::LeaveSaid | ControlEvent::LeftGroup { .. } => {}
        }
    }

    /// What became of a life, or of the try to begin one.
    fn take_in_membership(&mut self, pass: ControlPass, event: ControlEvent) {
        match (&self.phase, event) {
            (ControlPhase::Joining, ControlEvent::Joined(membership)) => {
                self.life = Some(CurrentLife { membership, welcomed: false });
                self.joined_before = true;
                self.connecting = Tries::default();
                self.targets.restart();
                self.connect(pass);
            }
            (ControlPhase::Joining, ControlEvent::JoinFailed(failure, problem)) => {
                self.join_failed(pass, failure, problem);
            }
            (
                ControlPhase::Pausing { .. }
                | ControlPhase::Connecting
                | ControlPhase::Greeting { .. }
                | ControlPhase::Streaming { .. },
                ControlEvent::LifeOver(why),
            ) => self.end_life(pass, why),
            // Of a life, or a try, that was given up meanwhile.
            _ => {}
        }
    }

    /// What became of a stream, or of the try to open one.
    fn take_in_stream(&mut self, pass: ControlPass, event: ControlEvent) {
        match (&mut self.phase, event) {
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
            (ControlPhase::Streaming { .. }, ControlEvent::HandedOver) if self.departure.is_draining() => {
                self.leave(LeaveReason::Drained);
            }
            // Of a stream, or a try, that was given up meanwhile.
            _ => {}
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
        self.name_free_by = None;
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
            StreamEnd::NameTaken(at_most) => {
                let free_by = *self.name_free_by.get_or_insert(pass.now + at_most + self.settings.name_timeout);
                if pass.now >= free_by {
                    // It has renewed its lease since: it is alive, and two of one name would go on like this for ever.
                    self.disconnect();
                    return self.end_work(false, Outcome::CannotJoin);
                }
                at_most
            }
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

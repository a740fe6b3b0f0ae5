//! What is exchanged on one stream: what each message of the leader does, and what is sent in which order.
//!
//! | state    | event -> next, with what follows |
//! |----------|----------------------------------|
//! | Closed   | [`Conversation::hello`] -> Greeting. Messages are dropped; outcomes are only noted, the next `Hello` has them |
//! | Greeting | `Welcome`, all its parts -> Open, or the end of the stream when it answers another `Hello`. `Refused` -> the end of the stream. Every other message is dropped; outcomes wait to be sent |
//! | Open     | `Delta` -> applied and acknowledged; of another stream: dropped; on another base: the end of the stream. `Confirm` -> releases are forgotten, steps begin. `BeatAck` -> the heartbeat is answered. `Drained` -> noted in a drain. `Refused` -> the end of the stream. `Welcome` is dropped; outcomes wait to be sent |
//! | any      | [`Conversation::close`], the begin or end of a life -> Closed |
//!
//! The end of a stream is an event for [`Control`](super::Control), which decides what comes next. What is sent goes in
//! this order: the drain, answers, statuses with the digest of what is owned. A delta counts as applied once its driver
//! says so ([`Conversation::applied`]), after it has carried out or handed on what the delta asked for.

#[cfg(feature = "canon")]
mod canon;
#[cfg(test)]
mod tests;

use std::time::Duration;

use common::mode::{Mode, Quiet};
use common::secret::LifeSecret;
use common::session::{
    AnnouncedStep, Carryover, Delta, Envelope, GrantRef, Hello, Refused, RefusedReason, Release, StatusReport,
    ToCoordinator, ToWorker, Welcome,
};
use common::{Incarnation, ModeEdition, Profile, Timestamp, Token, WorkerId};

use super::control::{ControlEvent, StreamEnd};
use super::pending::PendingMessages;
use crate::assignments::{AssignmentEffect, Assignments, DeltaRefused, Editioned};

/// How long to wait after a `Welcome` that answers another `Hello`, or comes from an older leader.
const STALE_WELCOME_PAUSE: Duration = Duration::from_millis(500);

/// Longest pause that the leader can ask for.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Times of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConversationSettings {
    /// Pause between two digests of what is owned when there is nothing else to report. It bounds for how long a grant
    /// that one side lost stays unnoticed, and costs a message of 50 bytes.
    pub audit: Duration,
    /// How often a stream is ended because a higher term than the leader's was met. Each costs the leader an election, so
    /// an appliance that makes tokens up must not cause one after the other; the coordinator forgives those that are more
    /// than a minute apart.
    pub raise_pause: Duration,
}

impl Default for ConversationSettings {
    fn default() -> Self {
        Self { audit: Duration::from_secs(5), raise_pause: Duration::from_secs(120) }
    }
}

/// A message of the leader.
#[derive(Clone, Debug)]
pub struct Incoming<D> {
    /// Which conversation it names.
    pub from: Envelope,
    /// What it says.
    pub message: ToWorker<D>,
    /// It is a part of a `Welcome`, and another part follows.
    pub more: bool,
    /// Entries of a delta of which only the grant can be read, with what is wrong.
    pub unreadable: Vec<(GrantRef, String)>,
}

impl<D> Incoming<D> {
    /// A message that came whole.
    pub const fn whole(from: Envelope, message: ToWorker<D>) -> Self {
        Self { from, message, more: false, unreadable: Vec::new() }
    }
}

/// Something to be done, in the given order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConversationAction<D> {
    /// The leader of this term has welcomed the worker, and so many grants stand.
    Welcomed(Envelope, usize),
    /// Admit the grant to the gate and begin to act. The answer waits to be sent.
    Take {
        /// The grant.
        grant: GrantRef,
        /// What the appliance shall be.
        desired: D,
        /// What the last owner handed over.
        carryover: Carryover,
        /// Steps are to be announced.
        suspect: bool,
        /// Whether hands are off: then the gate is admitted shut, and [`Conversation::quiet`] follows as after
        /// [`ConversationAction::Mode`].
        mode: Mode,
    },
    /// Hands off: shut the gate for this grant at once, let the running step end or stop it, then call
    /// [`Conversation::quiet`]; also when it was shut before. Hands on: open it.
    Mode(GrantRef, Mode),
    /// Shut the gate for this grant at once, before the lease is extended, then stop to act. The answer is a release.
    Fence(GrantRef),
    /// Let the running step end, then stop to act. The answer is a release.
    Release(GrantRef),
    /// Change what an appliance shall be.
    Update(GrantRef, D),
    /// Probe now, for the check of this number.
    Check(GrantRef, u64),
    /// Report every status anew: those on a stream that broke, and those a leader had not stored when it died, are lost,
    /// and an appliance that is well reports nothing for a long time.
    Restate,
    /// Everything that the delta of this version asked for stands before this: call [`Conversation::applied`] once it is
    /// carried out or handed on.
    Applied(u64),
    /// The leader has what was released and removed, and these announced steps may begin.
    Confirmed(Vec<AnnouncedStep>),
    /// What this means for the course of the worker.
    Control(ControlEvent),
    /// Worth a line in the log.
    Note(ConversationNotice),
}

/// A fact for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConversationNotice {
    /// A `Welcome` answers another `Hello`, or comes from an older leader.
    StaleWelcome(Envelope),
    /// A delta belongs to another stream.
    StaleDelta,
    /// A delta does not apply to the version this worker has.
    WrongBase(DeltaRefused),
    /// The coordinator ended the stream.
    Refused(Refused),
    /// An entry of a delta cannot be read.
    EntrySkipped(GrantRef, String),
    /// A grant was refused for a token of a later term than the leader's, and a `Hello` that says so follows; `at_once`, or
    /// with the next stream.
    TermMet {
        /// The grant.
        grant: GrantRef,
        /// The token that is known there.
        newer: Token,
        /// The stream is ended for it.
        at_once: bool,
    },
    /// A grant was refused for a token of a term so far above the leader's that no leader can have given it.
    ImplausibleToken {
        /// The grant.
        grant: GrantRef,
        /// The token that is claimed to be known there.
        newer: Token,
    },
    /// A grant is given up because only a newer one can be acted on.
    GivenUp(GrantRef, Token),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum StreamPhase {
    Closed,
    /// `Hello` is under way; what the parts of `Welcome` keep, as far as they have come.
    Greeting {
        keep: Vec<GrantRef>,
    },
    /// The leader has welcomed this worker, and said, or not, that it takes nothing more from it.
    Open {
        drained: bool,
    },
}

/// What a worker owns, and its conversation with the leader.
#[derive(Clone, Debug)]
pub struct Conversation {
    settings: ConversationSettings,
    assignments: Assignments,
    phase: StreamPhase,
    pending: PendingMessages,
    /// When a stream was last ended because of a higher term.
    raised: Option<Timestamp>,
}

impl Default for Conversation {
    fn default() -> Self {
        Self::new(ConversationSettings::default())
    }
}

impl Conversation {
    /// A worker without a life, grants or a stream.
    #[must_use]
    pub fn new(settings: ConversationSettings) -> Self {
        Self {
            settings,
            assignments: Assignments::default(),
            phase: StreamPhase::Closed,
            pending: PendingMessages::default(),
            raised: None,
        }
    }

    /// What this worker owns.
    #[must_use]
    pub const fn assignments(&self) -> &Assignments {
        &self.assignments
    }

    /// A life begins; `incarnation` is `None` when the leader gives it, in answer to `Hello`.
    pub fn begin_life(&mut self, incarnation: Option<Incarnation>) {
        self.assignments.begin_life(incarnation);
        self.phase = StreamPhase::Closed;
        self.pending = PendingMessages::default();
    }

    /// The life is over: nothing is owned, and nothing waits to be sent.
    pub fn end_life(&mut self) {
        self.begin_life(None);
    }

    /// A stream was opened at `now`: its envelope and first message, with the `secret` of the life. Nothing applies until
    /// the answer.
    pub fn hello(
        &mut self,
        now: Timestamp,
        worker: &WorkerId,
        profile: &Profile,
        secret: &LifeSecret,
    ) -> (Envelope, Hello) {
        self.pending.begin_stream(now, self.settings.audit);
        self.phase = StreamPhase::Greeting { keep: Vec::new() };
        self.assignments.hello(worker, profile, secret)
    }

    /// The stream has ended, or nothing more is read from it.
    pub fn close(&mut self) {
        self.pending.end_stream();
        self.phase = StreamPhase::Closed;
    }

    /// Takes in a message. A worker that is `draining` takes no grant, and neither one for which `refuse` has a reason.
    pub fn receive<D: Editioned>(
        &mut self,
        incoming: Incoming<D>,
        draining: bool,
        refuse: impl FnMut(&D) -> Option<String>,
    ) -> Vec<ConversationAction<D>> {
        let Incoming { from, message, more, unreadable } = incoming;
        match (&mut self.phase, message) {
            (StreamPhase::Closed, _) => Vec::new(),
            (StreamPhase::Greeting { .. } | StreamPhase::Open { .. }, ToWorker::Refused(refused)) => {
                let end = refused_end(&refused);
                vec![
                    ConversationAction::Note(ConversationNotice::Refused(refused)),
                    ConversationAction::Control(ControlEvent::StreamEnded(end)),
                ]
            }
            (StreamPhase::Greeting { keep }, ToWorker::Welcome(part)) => {
                keep.extend(part.keep);
                if more {
                    return Vec::new();
                }
                let keep = std::mem::take(keep);
                self.welcomed(from, Welcome { keep, lease: part.lease })
            }
            // Nothing else applies between `Hello` and `Welcome`.
            (StreamPhase::Greeting { .. }, _) | (StreamPhase::Open { .. }, ToWorker::Welcome(_)) => Vec::new(),
            (StreamPhase::Open { .. }, ToWorker::BeatAck(number)) => match self.assignments.counts(from) {
                true => vec![ConversationAction::Control(ControlEvent::BeatAnswered(number))],
                false => Vec::new(),
            },
            (StreamPhase::Open { .. }, ToWorker::Delta(delta)) => {
                self.delta(from, delta, unreadable, OfferRule { draining, refuse })
            }
            (StreamPhase::Open { .. }, ToWorker::Confirm(confirm)) => {
                match self.assignments.confirm(from, &confirm.released) {
                    Ok(()) => vec![ConversationAction::Confirmed(confirm.begin)],
                    Err(_) => Vec::new(),
                }
            }
            (StreamPhase::Open { drained }, ToWorker::Drained) => {
                *drained = draining && self.assignments.counts(from);
                Vec::new()
            }
        }
    }

    fn welcomed<D: Editioned>(&mut self, from: Envelope, welcome: Welcome) -> Vec<ConversationAction<D>> {
        let Ok(effects) = self.assignments.welcome(from, &welcome.keep) else {
            let end = StreamEnd::Again(STALE_WELCOME_PAUSE);
            return vec![
                ConversationAction::Note(ConversationNotice::StaleWelcome(from)),
                ConversationAction::Control(ControlEvent::StreamEnded(end)),
            ];
        };
        self.phase = StreamPhase::Open { drained: false };
        let mut actions = vec![ConversationAction::Welcomed(from, welcome.keep.len())];
        self.apply(effects, OfferRule { draining: false, refuse: |_: &D| None }, &mut actions);
        actions.push(ConversationAction::Restate);
        // What is not kept was fenced before this extends the lease.
        actions.push(ConversationAction::Control(ControlEvent::Welcomed(welcome.lease)));
        actions
    }

    fn delta<D: Editioned, F: FnMut(&D) -> Option<String>>(
        &mut self,
        from: Envelope,
        delta: Delta<D>,
        unreadable: Vec<(GrantRef, String)>,
        rule: OfferRule<F>,
    ) -> Vec<ConversationAction<D>> {
        let mut actions = Vec::new();
        match self.assignments.delta(from, delta) {
            Ok(effects) => {
                self.apply(effects, rule, &mut actions);
                for (grant, problem) in unreadable {
                    // What is owned stays as it was, and so does the generation that is reported.
                    if self.assignments.is_news(grant.appliance, grant.token) {
                        self.pending.decline(grant, problem.clone());
                    }
                    actions.push(ConversationAction::Note(ConversationNotice::EntrySkipped(grant, problem)));
                }
                actions.push(ConversationAction::Applied(self.assignments.version()));
            }
            Err(DeltaRefused::Stale) => actions.push(ConversationAction::Note(ConversationNotice::StaleDelta)),
            Err(refused @ DeltaRefused::Base { .. }) => {
                actions.push(ConversationAction::Note(ConversationNotice::WrongBase(refused)));
                let end = StreamEnd::Again(Duration::ZERO);
                actions.push(ConversationAction::Control(ControlEvent::StreamEnded(end)));
            }
        }
        actions
    }

    fn apply<D, F: FnMut(&D) -> Option<String>>(
        &mut self,
        effects: Vec<AssignmentEffect<D>>,
        mut rule: OfferRule<F>,
        actions: &mut Vec<ConversationAction<D>>,
    ) {
        for effect in effects {
            actions.push(match effect {
                AssignmentEffect::Take { appliance, token, desired, carryover, suspect, mode } => {
                    let grant = GrantRef::new(appliance, token);
                    if let Some(reason) = rule.reason(&desired) {
                        self.assignments.declined(appliance, token);
                        self.pending.decline(grant, reason);
                        continue;
                    }
                    self.pending.granted(grant);
                    ConversationAction::Take { grant, desired, carryover, suspect, mode }
                }
                AssignmentEffect::Mode(appliance, token, mode) => {
                    ConversationAction::Mode(GrantRef::new(appliance, token), mode)
                }
                AssignmentEffect::Decline(appliance, token) => {
                    self.pending.decline(
                        GrantRef::new(appliance, token),
                        "this worker owns it under another token, or not at all".to_owned(),
                    );
                    continue;
                }
                AssignmentEffect::Again(release) => {
                    self.pending.released(release);
                    continue;
                }
                AssignmentEffect::Fence(appliance, token) => ConversationAction::Fence(GrantRef::new(appliance, token)),
                AssignmentEffect::Release(appliance, token) => {
                    ConversationAction::Release(GrantRef::new(appliance, token))
                }
                AssignmentEffect::Update { appliance, token, desired } => {
                    ConversationAction::Update(GrantRef::new(appliance, token), desired)
                }
                AssignmentEffect::Check(appliance, token, number) => {
                    ConversationAction::Check(GrantRef::new(appliance, token), number)
                }
            });
        }
    }

    /// Everything that the delta of this version asked for is carried out or handed on.
    pub fn applied(&mut self, version: u64) {
        if self.is_on_stream() {
            self.pending.applied(version);
        }
    }

    /// Tells the leader that this worker is about to stop. With `hand_back` it gives up its grants by itself: those that
    /// are returned are to be released.
    pub fn drain(&mut self, hand_back: bool) -> Vec<GrantRef> {
        if let StreamPhase::Open { drained } = &mut self.phase {
            *drained = false;
            self.pending.drain(hand_back);
        }
        if hand_back { self.assignments.give_back() } else { Vec::new() }
    }

    /// Nothing of this worker acts on an appliance any more, and its gate is shut for it. `false` when it was not owned
    /// under this token.
    pub fn released(&mut self, grant: GrantRef, carryover: Carryover) -> bool {
        let GrantRef { appliance, token } = grant;
        let released = self.assignments.released(appliance, token, carryover.clone());
        if released {
            self.pending.forget(appliance);
            if self.is_on_stream() {
                self.pending.released(Release { appliance, token, carryover });
            }
        }
        released
    }

    /// An appliance was removed to the last trace. `false` when it was not owned under this token.
    pub fn removed(&mut self, grant: GrantRef) -> bool {
        let removed = self.assignments.removed(grant.appliance, grant.token);
        if removed {
            self.pending.forget(grant.appliance);
            if self.is_on_stream() {
                self.pending.removed(grant);
            }
        }
        removed
    }

    /// A step of a suspect wants to begin.
    pub fn step_begins(&mut self, step: AnnouncedStep) {
        if self.is_on_stream() && self.assignments.is_held(step.appliance, step.token) {
            self.pending.begins(step);
        }
    }

    /// An announced step has ended, or will not be begun.
    pub fn step_ended(&mut self, step: AnnouncedStep) {
        if self.is_on_stream() && self.assignments.is_held(step.appliance, step.token) {
            self.pending.done(step);
        }
    }

    /// The gate is shut for a grant as of this edition, and nothing that was begun for it is under way; calls that had started
    /// may take effect for `fence_delay`. What was said since by the leader takes the word back.
    pub fn quiet(&mut self, grant: GrantRef, edition: ModeEdition, fence_delay: Duration) {
        let GrantRef { appliance, token } = grant;
        let mode = self.assignments.mode(appliance, token);
        if self.is_on_stream() && mode == Some(Mode::new(edition, true)) {
            self.pending.quiet(Quiet { appliance, token, edition, fence_delay });
        }
    }

    /// The status of an appliance has changed, answers a check, or is the first one that its owner has seen.
    pub fn report(&mut self, report: StatusReport) {
        if self.assignments.is_held(report.appliance, report.token) {
            self.pending.report(report);
        }
    }

    /// The far side of an appliance has refused a call for a `newer` token. When that is of a later term than the
    /// leader's, the store was put back to an older state: the leader has to begin a term above it, which it does after a
    /// `Hello` that says so. Once it has, grants of before are given up, so that new ones take their place.
    pub fn refused_token<D>(&mut self, now: Timestamp, grant: GrantRef, newer: Token) -> Vec<ConversationAction<D>> {
        if self.assignments.met(newer.term) {
            let is_open = matches!(self.phase, StreamPhase::Open { .. });
            let at_once = is_open && self.raised.is_none_or(|at| now.since(at) >= self.settings.raise_pause);
            let mut actions = vec![ConversationAction::Note(ConversationNotice::TermMet { grant, newer, at_once })];
            if at_once {
                self.raised = Some(now);
                let end = StreamEnd::Again(Duration::ZERO);
                actions.push(ConversationAction::Control(ControlEvent::StreamEnded(end)));
            }
            return actions;
        }
        if self.assignments.is_above_the_leader(newer.term) {
            return vec![ConversationAction::Note(ConversationNotice::ImplausibleToken { grant, newer })];
        }
        if self.assignments.give_up(grant.appliance, grant.token, newer) {
            return vec![
                ConversationAction::Note(ConversationNotice::GivenUp(grant, newer)),
                ConversationAction::Release(grant),
            ];
        }
        Vec::new()
    }

    /// The envelope of what is sent; `None` while no leader has welcomed this worker on its stream.
    #[must_use]
    pub fn envelope(&self) -> Option<Envelope> {
        self.assignments.envelope().filter(|_| matches!(self.phase, StreamPhase::Open { .. }))
    }

    /// The next message to send, if the stream is open and one waits.
    pub fn next_message(&mut self) -> Option<(Envelope, ToCoordinator)> {
        let envelope = self.envelope()?;
        let message = self.pending.next(self.assignments.digest())?;
        Some((envelope, message))
    }

    /// Whether a message waits.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.pending.is_waiting()
    }

    /// Whether an answer waits: to a delta, about a grant or about a step.
    #[must_use]
    pub fn owes_an_answer(&self) -> bool {
        self.pending.owes_an_answer()
    }

    /// Whether a drain is complete, and the leader knows.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        match self.phase {
            StreamPhase::Open { drained } => !self.is_waiting() && (drained || self.assignments.is_settled()),
            StreamPhase::Closed | StreamPhase::Greeting { .. } => false,
        }
    }

    /// When to call [`Conversation::let_time_pass`] next; `None` while the stream is not open.
    #[must_use]
    pub fn wake_at(&self) -> Option<Timestamp> {
        matches!(self.phase, StreamPhase::Open { .. }).then(|| self.pending.audit_at())
    }

    /// Has the digest of what is owned sent when it is due.
    pub fn let_time_pass(&mut self, now: Timestamp) {
        self.pending.let_time_pass(now, self.settings.audit);
    }

    /// Whether what is to be sent can go on this stream. Without one, the next `Hello` says it.
    const fn is_on_stream(&self) -> bool {
        !matches!(self.phase, StreamPhase::Closed)
    }
}

/// Which offers are taken.
struct OfferRule<F> {
    draining: bool,
    refuse: F,
}

impl<F> OfferRule<F> {
    /// Why this offer is not taken.
    fn reason<D>(&mut self, desired: &D) -> Option<String>
    where
        F: FnMut(&D) -> Option<String>,
    {
        // In a drain, it was offered before the leader heard of that.
        (self.refuse)(desired).or_else(|| self.draining.then(|| "this worker is about to stop".to_owned()))
    }
}

fn refused_end(refused: &Refused) -> StreamEnd {
    let later = refused.retry_after.unwrap_or_default().min(LONGEST_RETRY);
    match refused.reason {
        RefusedReason::IncarnationOver | RefusedReason::NotProven => {
            StreamEnd::LifeOver(format!("the leader says so: {}", refused.detail))
        }
        RefusedReason::Stopping => StreamEnd::CoordinatorStops(later),
        RefusedReason::NameTaken => StreamEnd::NameTaken(later),
        RefusedReason::AssignmentsDiffer
        | RefusedReason::Malformed
        | RefusedReason::NotLeading
        | RefusedReason::Superseded
        | RefusedReason::Unknown => StreamEnd::Again(later),
    }
}

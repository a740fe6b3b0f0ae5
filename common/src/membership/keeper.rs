//! Keeping a lease: heartbeats into the lease node, and what each answer means.
//!
//! A heartbeat is a write of the lease node with the version that the last committed one left, one at a time. It proves
//! the lease from the moment before it was *sent*, and only once it is known to have committed: by its answer, or, when
//! the answer got lost, by reading the very data it wrote. Nothing else extends the lease.
//!
//! | state      | event -> next |
//! |------------|---------------|
//! | Idle       | Tick when the next heartbeat is due, BeatNow -> Beating |
//! | Beating    | Wrote this life's node -> committed, Idle. Wrote another life's, Denied -> Over. Raced, Unknown -> Checking. Refused -> Idle: nothing changed, and the next may be let through |
//! | Checking   | Read no node, another life's, an eviction or data of another writer -> Over. Read the old version -> Idle. Read one of the heartbeats without an answer -> committed, Idle. Failed -> CheckingLater |
//! | CheckingLater | Tick when its pause is over -> Checking |
//! | any        | SessionOver, Leave, a session timeout after the end of the lease -> Over |
//! | Over       | stays |

use std::collections::VecDeque;
use std::time::Duration;

use super::{CallFailure, MembershipEnd};
use crate::{Incarnation, Timestamp};

/// Heartbeats in the time of one lease: three may get lost or late before a member stops.
const BEATS_PER_LEASE: u32 = 4;

/// Number of the heartbeat that the nodes are made with.
pub const FIRST_BEAT: u64 = 1;

/// Heartbeats without an answer that are remembered. Each is looked up before the next is sent, so that there is hardly
/// ever more than one.
const PENDING: usize = 16;

/// A lease node as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseNodeState {
    /// Session and transaction that made it.
    pub incarnation: Incarnation,
    /// Version of its data.
    pub version: i32,
    /// A coordinator's mark is written over the heartbeat.
    pub evicted: bool,
    /// Number of the heartbeat in it, if this session sent it.
    pub beat: Option<u64>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseEvent {
    /// Time has passed.
    Tick,
    /// A heartbeat is wanted as soon as none is under way.
    BeatNow,
    /// A heartbeat was answered: the life whose node was written, and its version since.
    Wrote(Result<(Incarnation, i32), CallFailure>),
    /// The lease node was read.
    Read(Result<Option<LeaseNodeState>, CallFailure>),
    /// The session is over.
    SessionOver(String),
    /// The process leaves.
    Leave,
}

/// A call to make. One at a time; its answer is the next event but for the last four of [`LeaseEvent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseCall {
    /// Write heartbeat `number` if the lease node has this version.
    Write {
        /// Number of the heartbeat; never used twice.
        number: u64,
        /// Version that the node has to have.
        version: i32,
    },
    /// Read the lease node.
    Read,
}

/// What follows from an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseAction {
    /// Make a call.
    Call(LeaseCall),
    /// A heartbeat sent at this moment has committed: the lease stands from then.
    Committed(Timestamp),
    /// The life is over.
    End(MembershipEnd),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum KeeperState {
    Idle,
    Beating { sent: Timestamp },
    Checking,
    CheckingLater { until: Timestamp },
    Over,
}

/// The heartbeats of one life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseKeeper {
    incarnation: Incarnation,
    lease: Duration,
    session_timeout: Duration,
    state: KeeperState,
    /// Of the lease node, as of the last heartbeat known to have committed.
    version: i32,
    /// Number of the last heartbeat sent.
    beat: u64,
    /// Heartbeats whose outcome is not known, with the moments before they were sent.
    pending: VecDeque<(u64, Timestamp)>,
    stands_until: Timestamp,
    last_sent: Timestamp,
    beat_now: bool,
}

impl LeaseKeeper {
    /// Keeps the lease of a life whose nodes were made by a transaction sent at `sent`.
    #[must_use]
    pub fn new(incarnation: Incarnation, lease: Duration, session_timeout: Duration, sent: Timestamp) -> Self {
        Self {
            incarnation,
            lease,
            session_timeout,
            state: KeeperState::Idle,
            // As it was made: what was written over since has to be noticed.
            version: 0,
            beat: FIRST_BEAT,
            pending: VecDeque::new(),
            stands_until: sent + lease,
            last_sent: sent,
            beat_now: false,
        }
    }

    /// The life.
    #[must_use]
    pub const fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Until when the lease stands by what is known to have committed.
    #[must_use]
    pub const fn stands_until(&self) -> Timestamp {
        self.stands_until
    }

    /// Whether the life is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == KeeperState::Over
    }

    /// When to tick at the latest. While a call is under way this is the end of the life, whatever the answer.
    #[must_use]
    pub fn wake_at(&self) -> Timestamp {
        let given_up = self.given_up_at();
        match self.state {
            KeeperState::Idle => given_up.min(self.last_sent + self.pause()),
            KeeperState::CheckingLater { until } => given_up.min(until),
            KeeperState::Beating { .. } | KeeperState::Checking | KeeperState::Over => given_up,
        }
    }

    /// Takes in one fact.
    pub fn step(&mut self, now: Timestamp, event: LeaseEvent) -> Vec<LeaseAction> {
        let mut actions = Vec::new();
        match (&self.state, event) {
            (KeeperState::Over, _) => return actions,
            (_, LeaseEvent::SessionOver(why)) => self.end(MembershipEnd::SessionOver(why), &mut actions),
            (_, LeaseEvent::Leave) => self.end(MembershipEnd::Left, &mut actions),
            (_, LeaseEvent::Tick) => {}
            (_, LeaseEvent::BeatNow) => self.beat_now = true,
            (KeeperState::Beating { sent }, LeaseEvent::Wrote(wrote)) => {
                let sent = *sent;
                self.wrote(sent, wrote, &mut actions);
            }
            (KeeperState::Checking, LeaseEvent::Read(read)) => self.read(now, read, &mut actions),
            // Of a call that nobody waits for.
            (
                KeeperState::Idle
                | KeeperState::Beating { .. }
                | KeeperState::Checking
                | KeeperState::CheckingLater { .. },
                LeaseEvent::Wrote(_) | LeaseEvent::Read(_),
            ) => {}
        }
        self.go_on(now, &mut actions);
        actions
    }

    /// What is due now.
    fn go_on(&mut self, now: Timestamp, actions: &mut Vec<LeaseAction>) {
        if self.is_over() {
            return;
        }
        if now >= self.given_up_at() {
            let why = "no heartbeat committed for a session timeout after the lease".to_owned();
            return self.end(MembershipEnd::SessionOver(why), actions);
        }
        match self.state {
            KeeperState::Idle if self.beat_now || now >= self.last_sent + self.pause() => self.send(now, actions),
            KeeperState::CheckingLater { until } if now >= until => self.check(actions),
            _ => {}
        }
    }

    fn send(&mut self, now: Timestamp, actions: &mut Vec<LeaseAction>) {
        self.beat += 1;
        self.beat_now = false;
        self.last_sent = now;
        if self.pending.len() == PENDING {
            self.pending.pop_front();
        }
        self.pending.push_back((self.beat, now));
        self.state = KeeperState::Beating { sent: now };
        actions.push(LeaseAction::Call(LeaseCall::Write { number: self.beat, version: self.version }));
    }

    fn wrote(
        &mut self,
        sent: Timestamp,
        wrote: Result<(Incarnation, i32), CallFailure>,
        actions: &mut Vec<LeaseAction>,
    ) {
        match wrote {
            // Another client deleted the node, and the one made since happened to have the same version.
            Ok((incarnation, _)) if incarnation != self.incarnation => {
                self.end(MembershipEnd::LeaseTaken("made anew".to_owned()), actions);
            }
            Ok((_, version)) => self.committed(sent, version, actions),
            Err(CallFailure::Raced | CallFailure::Unknown(_)) => self.check(actions),
            Err(CallFailure::Denied(why)) => self.end(MembershipEnd::LeaseTaken(why), actions),
            Err(CallFailure::SessionOver(why)) => self.end(MembershipEnd::SessionOver(why), actions),
            Err(CallFailure::Refused(_)) => self.state = KeeperState::Idle,
        }
    }

    fn check(&mut self, actions: &mut Vec<LeaseAction>) {
        self.state = KeeperState::Checking;
        actions.push(LeaseAction::Call(LeaseCall::Read));
    }

    fn read(
        &mut self,
        now: Timestamp,
        read: Result<Option<LeaseNodeState>, CallFailure>,
        actions: &mut Vec<LeaseAction>,
    ) {
        let taken = |what: &str| MembershipEnd::LeaseTaken(what.to_owned());
        let node = match read {
            Ok(Some(node)) => node,
            // The session never reads from before its last answer, and the node was there then.
            Ok(None) => return self.end(taken("it was deleted"), actions),
            Err(CallFailure::SessionOver(why)) => return self.end(MembershipEnd::SessionOver(why), actions),
            Err(_) => {
                self.state = KeeperState::CheckingLater { until: now + self.pause() };
                return;
            }
        };
        if node.incarnation != self.incarnation {
            return self.end(taken("another session made it anew"), actions);
        }
        if node.evicted {
            return self.end(MembershipEnd::Evicted, actions);
        }
        if node.version == self.version {
            self.state = KeeperState::Idle;
            return;
        }
        match self.pending.iter().find(|(number, _)| node.beat == Some(*number)) {
            Some(&(_, sent)) => self.committed(sent, node.version, actions),
            None => self.end(taken("it was written over"), actions),
        }
    }

    fn committed(&mut self, sent: Timestamp, version: i32, actions: &mut Vec<LeaseAction>) {
        self.version = version;
        self.pending.clear();
        self.stands_until = self.stands_until.max(sent + self.lease);
        self.state = KeeperState::Idle;
        actions.push(LeaseAction::Committed(sent));
    }

    fn end(&mut self, why: MembershipEnd, actions: &mut Vec<LeaseAction>) {
        self.state = KeeperState::Over;
        actions.push(LeaseAction::End(why));
    }

    fn pause(&self) -> Duration {
        self.lease / BEATS_PER_LEASE
    }

    fn given_up_at(&self) -> Timestamp {
        self.stands_until + self.session_timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_millis(600);
    const TIMEOUT: Duration = Duration::from_millis(1_000);
    const LIFE: Incarnation = Incarnation::new(7);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn keeper() -> LeaseKeeper {
        LeaseKeeper::new(LIFE, LEASE, TIMEOUT, at(0))
    }

    /// One whose second heartbeat was sent at 150 ms and is not answered yet.
    fn beating() -> LeaseKeeper {
        let mut keeper = keeper();
        assert_eq!((keeper.wake_at(), keeper.step(at(149), LeaseEvent::Tick)), (at(150), vec![]));
        assert_eq!(keeper.step(at(150), LeaseEvent::Tick), [write(2, 0)]);
        keeper
    }

    /// The same after its answer got lost.
    fn checking() -> LeaseKeeper {
        let mut keeper = beating();
        assert_eq!(keeper.step(at(160), LeaseEvent::Wrote(Err(unknown()))), [look()]);
        keeper
    }

    fn write(number: u64, version: i32) -> LeaseAction {
        LeaseAction::Call(LeaseCall::Write { number, version })
    }

    fn look() -> LeaseAction {
        LeaseAction::Call(LeaseCall::Read)
    }

    fn unknown() -> CallFailure {
        CallFailure::Unknown("no answer".to_owned())
    }

    fn node(version: i32, beat: Option<u64>) -> LeaseNodeState {
        LeaseNodeState { incarnation: LIFE, version, evicted: false, beat }
    }

    fn taken(what: &str) -> LeaseAction {
        LeaseAction::End(MembershipEnd::LeaseTaken(what.to_owned()))
    }

    fn session_over(why: &str) -> LeaseAction {
        LeaseAction::End(MembershipEnd::SessionOver(why.to_owned()))
    }

    #[test]
    fn an_answered_heartbeat_counts_from_when_it_was_sent_and_the_next_expects_its_version() {
        let mut keeper = beating();
        assert_eq!(keeper.step(at(200), LeaseEvent::Tick), [], "one at a time");
        assert_eq!(keeper.step(at(250), LeaseEvent::Wrote(Ok((LIFE, 1)))), [LeaseAction::Committed(at(150))]);
        assert_eq!(keeper.stands_until(), at(750));
        assert_eq!(keeper.step(at(300), LeaseEvent::Tick), [write(3, 1)]);
    }

    #[test]
    fn each_outcome_of_a_heartbeat_has_its_meaning() {
        let over = "it expired";
        for (wrote, expected) in [
            (Ok((Incarnation::new(8), 1)), vec![taken("made anew")]),
            (Err(CallFailure::Raced), vec![look()]),
            (Err(unknown()), vec![look()]),
            (Err(CallFailure::Denied("no access".to_owned())), vec![taken("no access")]),
            (Err(CallFailure::Refused("throttled".to_owned())), vec![]),
            (Err(CallFailure::SessionOver(over.to_owned())), vec![session_over(over)]),
        ] {
            assert_eq!(beating().step(at(160), LeaseEvent::Wrote(wrote.clone())), expected, "{wrote:?}");
        }
        let mut refused = beating();
        refused.step(at(160), LeaseEvent::Wrote(Err(CallFailure::Refused("throttled".to_owned()))));
        assert_eq!(refused.step(at(300), LeaseEvent::Tick), [write(3, 0)]);
    }

    #[test]
    fn what_became_of_a_heartbeat_without_an_answer_is_read() {
        for (read, expected) in [
            (Some(node(1, Some(2))), vec![LeaseAction::Committed(at(150))]),
            (Some(node(0, Some(1))), vec![]),
            (Some(node(1, Some(9))), vec![taken("it was written over")]),
            (Some(node(1, None)), vec![taken("it was written over")]),
            (Some(LeaseNodeState { evicted: true, ..node(1, None) }), vec![LeaseAction::End(MembershipEnd::Evicted)]),
            (
                Some(LeaseNodeState { incarnation: Incarnation::new(8), ..node(1, Some(2)) }),
                vec![taken("another session made it anew")],
            ),
            (None, vec![taken("it was deleted")]),
        ] {
            assert_eq!(checking().step(at(170), LeaseEvent::Read(Ok(read))), expected, "{read:?}");
        }
    }

    #[test]
    fn a_heartbeat_that_commits_late_is_found_by_a_later_look() {
        let mut keeper = checking();
        assert_eq!(keeper.step(at(170), LeaseEvent::Read(Ok(Some(node(0, Some(1)))))), [], "not there yet");
        assert_eq!(keeper.step(at(300), LeaseEvent::Tick), [write(3, 0)]);
        assert_eq!(keeper.step(at(310), LeaseEvent::Wrote(Err(CallFailure::Raced))), [look()]);
        let read = LeaseEvent::Read(Ok(Some(node(1, Some(2)))));
        assert_eq!(keeper.step(at(320), read), [LeaseAction::Committed(at(150))]);
    }

    #[test]
    fn a_look_that_fails_is_repeated_after_a_pause() {
        let mut keeper = checking();
        assert_eq!(keeper.step(at(170), LeaseEvent::Read(Err(unknown()))), []);
        assert_eq!((keeper.wake_at(), keeper.step(at(319), LeaseEvent::Tick)), (at(320), vec![]));
        assert_eq!(keeper.step(at(320), LeaseEvent::Tick), [look()]);
        let over = LeaseEvent::Read(Err(CallFailure::SessionOver("it expired".to_owned())));
        assert_eq!(keeper.step(at(330), over), [session_over("it expired")]);
    }

    #[test]
    fn a_heartbeat_on_demand_waits_for_the_one_under_way() {
        let mut keeper = keeper();
        assert_eq!(keeper.step(at(10), LeaseEvent::BeatNow), [write(2, 0)]);
        assert_eq!(keeper.step(at(20), LeaseEvent::BeatNow), []);
        let answered = keeper.step(at(30), LeaseEvent::Wrote(Ok((LIFE, 1))));
        assert_eq!(answered, [LeaseAction::Committed(at(10)), write(3, 1)]);
    }

    #[test]
    fn a_life_ends_when_nothing_committed_for_a_session_timeout_after_its_lease() {
        let why = "no heartbeat committed for a session timeout after the lease";
        let mut keeper = checking();
        assert_eq!((keeper.wake_at(), keeper.step(at(1_599), LeaseEvent::Tick)), (at(1_600), vec![]));
        assert_eq!(keeper.step(at(1_600), LeaseEvent::Tick), [session_over(why)]);
        assert!(keeper.is_over());
        assert_eq!(keeper.step(at(1_601), LeaseEvent::Read(Ok(Some(node(1, Some(2)))))), [], "too late");
    }

    #[test]
    fn a_life_ends_with_its_session_or_when_the_process_leaves() {
        assert_eq!(beating().step(at(160), LeaseEvent::Leave), [LeaseAction::End(MembershipEnd::Left)]);
        let over = LeaseEvent::SessionOver("it was closed".to_owned());
        assert_eq!(keeper().step(at(1), over), [session_over("it was closed")]);
    }
}

//! Electing the leader among coordinators in ZooKeeper: decisions alone.
//!
//! Every contender makes an ephemeral node with a sequence number in one folder, as kazoo's lock does; the one that stands
//! first leads. Whoever does not waits for the one before it to move. A leadership counts only once a heartbeat that was
//! sent after the look at the folder has committed: one sent before says nothing about the time since.
//!
//! | state      | event -> next, what is asked for |
//! |------------|----------------------------------|
//! | Idle       | Continue -> Entering, [`Enter`](ElectionAction::Enter) |
//! | Entering   | Entered -> Looking, [`List`](ElectionAction::List). Outcome unknown -> Finding, [`Find`](ElectionAction::Find): two nodes of one contender would wait for each other. Failed -> Idle, [`Fail`](ElectionAction::Fail) |
//! | Finding    | Found -> Looking. Not found -> Entering. Unknown -> stays, after a pause. Continue -> stays, Find again. Failed -> Idle, Fail |
//! | Looking    | Listed: the own node is missing -> Idle, [`Deleted`](ElectionAction::Deleted); first -> Confirming, [`Confirm`](ElectionAction::Confirm); else -> Waiting, [`Watch`](ElectionAction::Watch) the one before. Unknown -> stays, after a pause. Continue -> stays, List again. Failed -> stays, Fail |
//! | Waiting    | Changed, Absent, Continue -> Looking |
//! | Confirming | Committed, sent since -> Leading, [`Elected`](ElectionAction::Elected). Continue -> Looking |
//! | Leading    | Continue, Changed -> stays, [`Watch`](ElectionAction::Watch) the own node. Absent -> Idle, [`Lost`](ElectionAction::Lost). Doubt -> InDoubt, Lost |
//! | InDoubt    | Committed, sent since -> Looking. Continue -> stays, asks for a heartbeat again |
//!
//! Every other pair is the answer to something that was given up, and changes nothing. An election does not
//! outlive its session: the driver drops it then. One that ended in doubt (heartbeats did not commit for a lease, but the session
//! lives) keeps its place, so that a hiccup of ZooKeeper is not a change of the leader.

use crate::Timestamp;
use crate::membership::CallFailure;

/// Compare-and-set attempts of the leader before it gives up a write: a member's heartbeats come a few times a
/// second, so that two in a row are rare.
pub const WRITE_TRIES: u32 = 20;

/// Something that happened. `N` names a contender's node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ElectionEvent<N> {
    /// Begin, or go on after a pause or a new connection.
    Continue,
    /// A node was made, or not.
    Entered(Result<N, CallFailure>),
    /// The own node was looked for, on a server that knows of everything committed before.
    Found(Result<Option<N>, CallFailure>),
    /// All nodes, in the order of their numbers. Never older than the own node.
    Listed(Result<Vec<N>, CallFailure>),
    /// The watched node is there, and something happened to it, or the watch failed.
    Changed,
    /// The watched node is gone.
    Absent,
    /// A heartbeat that was sent then has committed.
    Committed(Timestamp),
    /// Heartbeats have not committed for as long as the lease.
    Doubt,
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ElectionAction<N> {
    /// Make a node.
    Enter,
    /// Find the own node, if there is one.
    Find,
    /// List all nodes.
    List,
    /// Wait until this node changes or is gone.
    Watch(N),
    /// Have a heartbeat sent that is not older than this, and wait until one is committed.
    Confirm(Timestamp),
    /// Continue after a while, or with a new connection.
    Pause,
    /// It leads.
    Elected,
    /// It leads no more.
    Lost(LostReason),
    /// The own node is missing although the session lives: another client deleted it.
    Deleted,
    /// A call failed for good.
    Fail(CallFailure),
}

/// Why a leadership ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostReason {
    /// The own node is gone.
    LockGone,
    /// Heartbeats have not committed for a lease.
    Doubt,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ElectionPhase<N> {
    Idle,
    Entering,
    Finding,
    Looking(N),
    Waiting(N),
    Confirming(N, Timestamp),
    Leading(N),
    InDoubt(N, Timestamp),
}

/// One contender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Election<N> {
    phase: ElectionPhase<N>,
}

impl<N> Default for Election<N> {
    fn default() -> Self {
        Self { phase: ElectionPhase::Idle }
    }
}

impl<N: Clone + PartialEq> Election<N> {
    /// Takes in one fact at `now`, and says what to do.
    pub fn step(&mut self, now: Timestamp, event: ElectionEvent<N>) -> Option<ElectionAction<N>> {
        use ElectionEvent as Event;
        use ElectionPhase as Phase;
        let (phase, action) = match (self.take(), event) {
            (Phase::Idle, Event::Continue) | (Phase::Finding, Event::Found(Ok(None))) => {
                (Phase::Entering, Some(ElectionAction::Enter))
            }
            (Phase::Entering, Event::Entered(Ok(own))) | (Phase::Finding, Event::Found(Ok(Some(own)))) => look(own),
            (Phase::Entering, Event::Entered(Err(CallFailure::Unknown(_)))) | (Phase::Finding, Event::Continue) => {
                (Phase::Finding, Some(ElectionAction::Find))
            }
            (Phase::Finding, Event::Found(Err(CallFailure::Unknown(_)))) => {
                (Phase::Finding, Some(ElectionAction::Pause))
            }
            (Phase::Entering, Event::Entered(Err(failure))) | (Phase::Finding, Event::Found(Err(failure))) => {
                (Phase::Idle, Some(ElectionAction::Fail(failure)))
            }
            (Phase::Looking(own), Event::Listed(Ok(order))) => placed(own, &order, now),
            (Phase::Looking(own), Event::Listed(Err(CallFailure::Unknown(_)))) => {
                (Phase::Looking(own), Some(ElectionAction::Pause))
            }
            (Phase::Looking(own), Event::Listed(Err(failure))) => {
                (Phase::Looking(own), Some(ElectionAction::Fail(failure)))
            }
            (Phase::Waiting(own), Event::Continue | Event::Changed | Event::Absent)
            | (Phase::Looking(own) | Phase::Confirming(own, _), Event::Continue) => look(own),
            (Phase::Confirming(own, since), Event::Committed(sent)) if sent >= since => {
                (Phase::Leading(own), Some(ElectionAction::Elected))
            }
            (Phase::Leading(own), Event::Continue | Event::Changed) => {
                (Phase::Leading(own.clone()), Some(ElectionAction::Watch(own)))
            }
            (Phase::Leading(_), Event::Absent) => (Phase::Idle, Some(ElectionAction::Lost(LostReason::LockGone))),
            (Phase::Leading(own), Event::Doubt) => {
                (Phase::InDoubt(own, now), Some(ElectionAction::Lost(LostReason::Doubt)))
            }
            (Phase::InDoubt(own, since), Event::Committed(sent)) if sent >= since => look(own),
            (Phase::InDoubt(own, _), Event::Continue) => (Phase::InDoubt(own, now), Some(ElectionAction::Confirm(now))),
            // The answer to something that was given up.
            (phase, _) => (phase, None),
        };
        self.phase = phase;
        action
    }

    /// The own node, if it is known.
    #[must_use]
    pub const fn node(&self) -> Option<&N> {
        match &self.phase {
            ElectionPhase::Idle | ElectionPhase::Entering | ElectionPhase::Finding => None,
            ElectionPhase::Looking(own)
            | ElectionPhase::Waiting(own)
            | ElectionPhase::Confirming(own, _)
            | ElectionPhase::Leading(own)
            | ElectionPhase::InDoubt(own, _) => Some(own),
        }
    }

    /// The lock, while it counts: what is written under its protection is the leader's.
    #[must_use]
    pub const fn lock(&self) -> Option<&N> {
        match &self.phase {
            ElectionPhase::Leading(own) => Some(own),
            _ => None,
        }
    }

    /// Whether it does not contend.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.phase, ElectionPhase::Idle)
    }

    fn take(&mut self) -> ElectionPhase<N> {
        std::mem::replace(&mut self.phase, ElectionPhase::Idle)
    }
}

type Placed<N> = (ElectionPhase<N>, Option<ElectionAction<N>>);

fn look<N>(own: N) -> Placed<N> {
    (ElectionPhase::Looking(own), Some(ElectionAction::List))
}

/// What follows from the place of the own node among all.
fn placed<N: Clone + PartialEq>(own: N, order: &[N], now: Timestamp) -> Placed<N> {
    match order.iter().position(|node| *node == own) {
        None => (ElectionPhase::Idle, Some(ElectionAction::Deleted)),
        Some(0) => (ElectionPhase::Confirming(own, now), Some(ElectionAction::Confirm(now))),
        Some(at) => (ElectionPhase::Waiting(own), Some(ElectionAction::Watch(order[at - 1].clone()))),
    }
}

#[cfg(test)]
mod tests {
    use ElectionAction as Action;
    use ElectionEvent as Event;

    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn unknown() -> CallFailure {
        CallFailure::Unknown("no answer".to_owned())
    }

    /// Takes these steps, each with what it has to ask for.
    fn follow(election: &mut Election<u32>, steps: Vec<(Event<u32>, Option<Action<u32>>)>) {
        for (event, action) in steps {
            assert_eq!(election.step(at(10), event.clone()), action, "{event:?} in {election:?}");
        }
    }

    fn leading() -> Election<u32> {
        let mut election = Election::default();
        follow(
            &mut election,
            vec![
                (Event::Continue, Some(Action::Enter)),
                (Event::Entered(Ok(3)), Some(Action::List)),
                (Event::Listed(Ok(vec![3, 4])), Some(Action::Confirm(at(10)))),
                (Event::Committed(at(10)), Some(Action::Elected)),
            ],
        );
        assert_eq!(election.lock(), Some(&3));
        election
    }

    #[test]
    fn whoever_is_not_first_waits_for_the_one_before_it() {
        let mut election = Election::default();
        follow(
            &mut election,
            vec![
                (Event::Continue, Some(Action::Enter)),
                (Event::Entered(Ok(3)), Some(Action::List)),
                (Event::Listed(Ok(vec![1, 2, 3])), Some(Action::Watch(2))),
                (Event::Absent, Some(Action::List)),
                (Event::Listed(Ok(vec![1, 3])), Some(Action::Watch(1))),
                (Event::Changed, Some(Action::List)),
                (Event::Listed(Err(unknown())), Some(Action::Pause)),
                (Event::Continue, Some(Action::List)),
                (Event::Listed(Ok(vec![3])), Some(Action::Confirm(at(10)))),
                (Event::Committed(at(9)), None),
                (Event::Committed(at(10)), Some(Action::Elected)),
            ],
        );
    }

    #[test]
    fn no_second_node_is_made_before_it_is_known_that_there_is_none() {
        let mut election = Election::default();
        follow(
            &mut election,
            vec![
                (Event::Continue, Some(Action::Enter)),
                (Event::Continue, None),
                (Event::Entered(Err(unknown())), Some(Action::Find)),
                (Event::Found(Err(unknown())), Some(Action::Pause)),
                (Event::Continue, Some(Action::Find)),
                (Event::Found(Ok(None)), Some(Action::Enter)),
                (Event::Entered(Err(unknown())), Some(Action::Find)),
                (Event::Found(Ok(Some(5))), Some(Action::List)),
            ],
        );
        assert_eq!(election.node(), Some(&5));
        let denied = CallFailure::Denied("no".to_owned());
        let mut election = Election::default();
        follow(
            &mut election,
            vec![
                (Event::Continue, Some(Action::Enter)),
                (Event::Entered(Err(denied.clone())), Some(Action::Fail(denied))),
            ],
        );
        assert!(election.is_idle());
    }

    #[test]
    fn a_leadership_ends_with_its_node() {
        let mut election = leading();
        follow(
            &mut election,
            vec![
                (Event::Continue, Some(Action::Watch(3))),
                (Event::Changed, Some(Action::Watch(3))),
                (Event::Absent, Some(Action::Lost(LostReason::LockGone))),
            ],
        );
        assert!(election.is_idle() && election.lock().is_none());
        let mut deleted = Election::default();
        follow(
            &mut deleted,
            vec![
                (Event::Continue, Some(Action::Enter)),
                (Event::Entered(Ok(3)), Some(Action::List)),
                (Event::Listed(Ok(vec![4])), Some(Action::Deleted)),
                (Event::Continue, Some(Action::Enter)),
            ],
        );
    }

    #[test]
    fn a_leadership_in_doubt_keeps_its_place_and_is_confirmed_anew() {
        let mut election = leading();
        assert_eq!(election.step(at(20), Event::Doubt), Some(Action::Lost(LostReason::Doubt)));
        assert_eq!((election.lock(), election.node()), (None, Some(&3)));
        assert_eq!(election.step(at(25), Event::Committed(at(19))), None);
        assert_eq!(election.step(at(30), Event::Continue), Some(Action::Confirm(at(30))));
        assert_eq!(election.step(at(31), Event::Committed(at(30))), Some(Action::List));
        assert_eq!(election.step(at(32), Event::Listed(Ok(vec![3]))), Some(Action::Confirm(at(32))));
        assert_eq!(election.step(at(33), Event::Committed(at(32))), Some(Action::Elected));
    }
}

//! Entering a group: how a member takes its name.
//!
//! | state   | event -> next |
//! |---------|---------------|
//! | Looking | Found nothing, or nodes of former lives of this process -> Making. Found both of this session -> Joined. Found another session's -> Waiting, or NameTaken after the deadline |
//! | Making  | Made -> Looking: the answer of a transaction does not tell the life before ZooKeeper 3.8.2 |
//! | Waiting | Changed -> Looking |
//! | Pausing | Tick -> Looking |
//! | Looking, Making, Waiting | failed: Raced, Unknown -> Pausing until the deadline; others -> Failed |
//! | Joined, Failed | stay |
//!
//! Nodes of another session are waited for, because a session that died keeps its nodes for up to a session timeout, and
//! longer after an election of servers. Nodes of former lives of this very process are deleted in the transaction that
//! makes the new ones: their gates are shut.
//!
//! The transaction counts as the first heartbeat. Its moment is the one before the *first* transaction that can have made
//! the nodes: one whose outcome is not known may commit after a look that does not show it yet.

use super::CallFailure;
use crate::{Incarnation, Timestamp};

/// One of the two nodes of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnNode {
    /// Says who takes part.
    Member,
    /// Says who may act.
    Lease,
}

/// Whose session a node belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeOwner {
    /// This one.
    ThisSession,
    /// One of this process that is done with.
    FormerSession,
    /// Another process's, or none.
    Other,
}

/// A node under the name, as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnNodeState {
    /// Whose it is.
    pub owner: NodeOwner,
    /// Session and transaction that made it.
    pub incarnation: Incarnation,
    /// Version of its data.
    pub version: i32,
}

/// The nodes under the name; the lease node is read after the member node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FoundNodes {
    /// The member node.
    pub member: Option<OwnNodeState>,
    /// The lease node.
    pub lease: Option<OwnNodeState>,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryEvent {
    /// Both nodes were read.
    Found(Result<FoundNodes, CallFailure>),
    /// The transaction was answered.
    Made(Result<(), CallFailure>),
    /// The node in the way has changed, or the deadline has passed.
    Changed(Result<(), CallFailure>),
    /// The pause is over.
    Tick,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryAction {
    /// Read both nodes.
    Look,
    /// In one transaction: delete these nodes if they have these versions, then create both.
    Make {
        /// Nodes of this process that are in the way.
        delete: Vec<(OwnNode, i32)>,
    },
    /// Wait until this node changes, at most until the deadline.
    WaitFor(OwnNode),
    /// Look again after a while.
    Pause,
    /// The life has begun.
    Joined {
        /// Which life.
        incarnation: Incarnation,
        /// A moment before its nodes were made.
        sent: Timestamp,
    },
    /// It cannot begin.
    Fail(EntryFailure),
}

/// Why a life cannot begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryFailure {
    /// Another session kept this node beyond the deadline.
    NameTaken(OwnNode),
    /// This session already has the name.
    AlreadyMember,
    /// A call failed in a way that another try does not mend, or failed until the deadline.
    Call(CallFailure),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EntryState {
    Looking,
    Making { sent: Timestamp },
    Waiting,
    Pausing,
    Over,
}

/// One attempt to enter a group, in one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupEntry {
    deadline: Timestamp,
    state: EntryState,
    /// A moment before nodes of this session that are found from now on were made; `None` while it cannot have made any.
    made: Option<Timestamp>,
}

impl GroupEntry {
    /// An attempt that waits until `deadline`, and its first action.
    #[must_use]
    pub const fn new(deadline: Timestamp) -> (Self, EntryAction) {
        (Self { deadline, state: EntryState::Looking, made: None }, EntryAction::Look)
    }

    /// Until when other sessions' nodes are waited for.
    #[must_use]
    pub const fn deadline(&self) -> Timestamp {
        self.deadline
    }

    /// Whether the attempt is over, well or badly.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == EntryState::Over
    }

    /// Takes in one fact. `None` when it is of a call that was given up.
    pub fn step(&mut self, now: Timestamp, event: EntryEvent) -> Option<EntryAction> {
        let action = match (self.state, event) {
            (EntryState::Looking, EntryEvent::Found(Ok(found))) => self.found(now, found),
            (EntryState::Making { sent }, EntryEvent::Made(made)) => {
                self.made = not_later(self.made, sent, made.as_ref().err());
                match made {
                    Ok(()) => self.look(),
                    Err(failure) => self.failed(now, failure),
                }
            }
            (EntryState::Waiting, EntryEvent::Changed(Ok(()))) | (EntryState::Pausing, EntryEvent::Tick) => self.look(),
            (EntryState::Looking, EntryEvent::Found(Err(failure)))
            | (EntryState::Waiting, EntryEvent::Changed(Err(failure))) => self.failed(now, failure),
            (
                EntryState::Looking
                | EntryState::Making { .. }
                | EntryState::Waiting
                | EntryState::Pausing
                | EntryState::Over,
                EntryEvent::Found(_) | EntryEvent::Made(_) | EntryEvent::Changed(_) | EntryEvent::Tick,
            ) => return None,
        };
        Some(action)
    }

    fn found(&mut self, now: Timestamp, found: FoundNodes) -> EntryAction {
        if let FoundNodes { member: Some(member), lease: Some(lease) } = found
            && member.owner == NodeOwner::ThisSession
            && member.incarnation == lease.incarnation
        {
            self.state = EntryState::Over;
            return match self.made {
                Some(sent) => EntryAction::Joined { incarnation: lease.incarnation, sent },
                None => EntryAction::Fail(EntryFailure::AlreadyMember),
            };
        }
        let mut delete = Vec::new();
        for (node, state) in [(OwnNode::Member, found.member), (OwnNode::Lease, found.lease)] {
            match state {
                None => {}
                Some(OwnNodeState { owner: NodeOwner::Other, .. }) if now >= self.deadline => {
                    return self.fail(EntryFailure::NameTaken(node));
                }
                Some(OwnNodeState { owner: NodeOwner::Other, .. }) => {
                    self.state = EntryState::Waiting;
                    return EntryAction::WaitFor(node);
                }
                Some(OwnNodeState { version, .. }) => delete.push((node, version)),
            }
        }
        self.state = EntryState::Making { sent: now };
        EntryAction::Make { delete }
    }

    fn failed(&mut self, now: Timestamp, failure: CallFailure) -> EntryAction {
        match failure {
            CallFailure::Raced | CallFailure::Unknown(_) if now < self.deadline => {
                self.state = EntryState::Pausing;
                EntryAction::Pause
            }
            failure => self.fail(EntryFailure::Call(failure)),
        }
    }

    const fn look(&mut self) -> EntryAction {
        self.state = EntryState::Looking;
        EntryAction::Look
    }

    const fn fail(&mut self, failure: EntryFailure) -> EntryAction {
        self.state = EntryState::Over;
        EntryAction::Fail(failure)
    }
}

/// A moment before nodes of this session that are found from now on were made: `sent` is that of the last transaction,
/// and `known` the same for those before it. `None` when none of them can have made any.
fn not_later(known: Option<Timestamp>, sent: Timestamp, failure: Option<&CallFailure>) -> Option<Timestamp> {
    match failure {
        // Its nodes are there, or some that were made after them.
        None => Some(sent),
        // It made nothing itself; but the reason may be an earlier one whose outcome was not known, and which a look in
        // between did not show yet.
        Some(CallFailure::Raced | CallFailure::Denied(_) | CallFailure::Refused(_)) => known,
        Some(CallFailure::Unknown(_) | CallFailure::SessionOver(_)) => known.or(Some(sent)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: u64 = 10_000;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn entry() -> GroupEntry {
        let (entry, first) = GroupEntry::new(at(DEADLINE));
        assert_eq!(first, EntryAction::Look);
        entry
    }

    fn node(owner: NodeOwner, incarnation: u128, version: i32) -> Option<OwnNodeState> {
        Some(OwnNodeState { owner, incarnation: Incarnation::new(incarnation), version })
    }

    fn found(member: Option<OwnNodeState>, lease: Option<OwnNodeState>) -> EntryEvent {
        EntryEvent::Found(Ok(FoundNodes { member, lease }))
    }

    fn ours() -> EntryEvent {
        found(node(NodeOwner::ThisSession, 7, 0), node(NodeOwner::ThisSession, 7, 0))
    }

    fn unknown() -> CallFailure {
        CallFailure::Unknown("the connection broke".to_owned())
    }

    #[test]
    fn a_free_name_is_taken_and_the_life_is_read() {
        let mut entry = entry();
        let make = EntryAction::Make { delete: vec![] };
        assert_eq!(entry.step(at(1), found(None, None)), Some(make));
        assert_eq!(entry.step(at(5), EntryEvent::Made(Ok(()))), Some(EntryAction::Look));
        let joined = EntryAction::Joined { incarnation: Incarnation::new(7), sent: at(1) };
        assert_eq!(entry.step(at(6), ours()), Some(joined));
        assert!(entry.is_over());
        assert_eq!(entry.step(at(7), ours()), None);
    }

    #[test]
    fn nodes_of_this_process_are_deleted_in_the_same_transaction() {
        let (former, half) = (node(NodeOwner::FormerSession, 3, 9), node(NodeOwner::ThisSession, 4, 2));
        let make = EntryAction::Make { delete: vec![(OwnNode::Member, 9), (OwnNode::Lease, 2)] };
        assert_eq!(entry().step(at(1), found(former, half)), Some(make));
        let make = EntryAction::Make { delete: vec![(OwnNode::Lease, 9)] };
        assert_eq!(entry().step(at(1), found(None, former)), Some(make));
    }

    #[test]
    fn nodes_of_another_session_are_waited_for_until_the_deadline() {
        let other = node(NodeOwner::Other, 3, 9);
        let mut entry = entry();
        assert_eq!(entry.step(at(1), found(other, None)), Some(EntryAction::WaitFor(OwnNode::Member)));
        assert_eq!(entry.step(at(9), EntryEvent::Changed(Ok(()))), Some(EntryAction::Look));
        assert_eq!(entry.step(at(10), found(None, other)), Some(EntryAction::WaitFor(OwnNode::Lease)));
        assert_eq!(entry.step(at(DEADLINE), EntryEvent::Changed(Ok(()))), Some(EntryAction::Look));
        let taken = EntryAction::Fail(EntryFailure::NameTaken(OwnNode::Lease));
        assert_eq!(entry.step(at(DEADLINE), found(None, other)), Some(taken));
        assert!(entry.is_over());
    }

    #[test]
    fn a_name_that_this_session_has_already_is_refused() {
        let refused = EntryAction::Fail(EntryFailure::AlreadyMember);
        assert_eq!(entry().step(at(1), ours()), Some(refused));
    }

    #[test]
    fn what_another_try_mends_is_tried_until_the_deadline() {
        for failure in [CallFailure::Raced, unknown()] {
            let mut entry = entry();
            let failed = EntryEvent::Found(Err(failure.clone()));
            assert_eq!(entry.step(at(1), failed.clone()), Some(EntryAction::Pause));
            assert_eq!(entry.step(at(1), failed.clone()), None, "nothing was asked");
            assert_eq!(entry.step(at(2), EntryEvent::Tick), Some(EntryAction::Look));
            let given_up = EntryAction::Fail(EntryFailure::Call(failure));
            assert_eq!(entry.step(at(DEADLINE), failed), Some(given_up));
        }
        for failure in [
            CallFailure::Denied("no access".to_owned()),
            CallFailure::Refused("quota".to_owned()),
            CallFailure::SessionOver("it expired".to_owned()),
        ] {
            let failed = EntryEvent::Found(Err(failure.clone()));
            assert_eq!(entry().step(at(1), failed), Some(EntryAction::Fail(EntryFailure::Call(failure))));
        }
    }

    #[test]
    fn the_lease_counts_from_the_first_transaction_that_can_have_made_the_nodes() {
        let mut entry = entry();
        entry.step(at(1), found(None, None));
        assert_eq!(entry.step(at(2), EntryEvent::Made(Err(unknown()))), Some(EntryAction::Pause));
        entry.step(at(3), EntryEvent::Tick);
        // The first commits late, after a look that did not see it, and makes the second fail.
        entry.step(at(4), found(None, None));
        assert_eq!(entry.step(at(5), EntryEvent::Made(Err(CallFailure::Raced))), Some(EntryAction::Pause));
        entry.step(at(6), EntryEvent::Tick);
        let joined = EntryAction::Joined { incarnation: Incarnation::new(7), sent: at(1) };
        assert_eq!(entry.step(at(7), ours()), Some(joined));
    }

    #[test]
    fn nodes_of_a_transaction_whose_answer_got_lost_count_from_when_it_was_sent() {
        assert_eq!(not_later(None, at(1), Some(&CallFailure::Raced)), None, "another call's nodes are not ours");
        let first = not_later(None, at(1), Some(&unknown()));
        assert_eq!(first, Some(at(1)));
        assert_eq!(not_later(first, at(2), Some(&CallFailure::Raced)), first);
        assert_eq!(not_later(first, at(2), Some(&unknown())), first);
        assert_eq!(not_later(first, at(3), None), Some(at(3)));
    }
}

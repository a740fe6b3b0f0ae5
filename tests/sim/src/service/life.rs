//! One life of a member: carries out in the simulated service what [`common::membership`] decides, as
//! `coordination::zookeeper` does in a real one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use common::membership::{
    CallFailure, EntryAction, EntryEvent, FIRST_BEAT, FoundNodes, GroupEntry, LeaseAction, LeaseCall, LeaseEvent,
    LeaseKeeper, LeaseNodeState, NodeOwner, OwnNode, OwnNodeState,
};
use common::{Incarnation, Profile, Timestamp};

use super::connection::{ZkCall, ZkReply};
use super::tree::{Data, Path, SessionId, TxnOp, ZkFailure, ZkNode};
use crate::SimTime;

/// What came of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LifeEvent {
    /// It begins; the nodes were made by a transaction sent then or later.
    Joined(Incarnation, SimTime),
    /// A heartbeat sent then has committed.
    Committed(SimTime),
    /// It is over.
    Over,
}

/// What is under way.
#[derive(Debug)]
enum Asked {
    Nothing,
    Member,
    Lease(Option<ZkNode>),
    Make,
    Beat,
    LookAtLease,
}

/// A life, or the attempt to begin one.
#[derive(Debug)]
pub(super) struct ServiceLife {
    member: Path,
    node: Path,
    profile: Arc<Profile>,
    lease: Duration,
    timeout: SimTime,
    asked: Asked,
    entry: Option<GroupEntry>,
    keeper: Option<LeaseKeeper>,
}

type LifeStep = (Option<ZkCall>, Option<LifeEvent>);

fn at(now: SimTime) -> Timestamp {
    Timestamp::from_nanos(now)
}

impl ServiceLife {
    /// One that has not begun, with nodes at these places, in a session with this timeout.
    pub(super) fn new(member: Path, node: Path, profile: Arc<Profile>, lease: Duration, timeout: SimTime) -> Self {
        Self { member, node, profile, lease, timeout, asked: Asked::Nothing, entry: None, keeper: None }
    }

    /// Whether a call is under way.
    pub(super) const fn is_busy(&self) -> bool {
        !matches!(self.asked, Asked::Nothing)
    }

    pub(super) const fn has_begun(&self) -> bool {
        self.keeper.is_some()
    }

    /// Until when its lease stands.
    pub(super) fn stands_until(&self) -> Option<SimTime> {
        self.keeper.as_ref().map(|keeper| keeper.stands_until().as_nanos())
    }

    /// Begins the life, or goes on with that after a wait.
    pub(super) fn enter(&mut self, now: SimTime) -> Option<ZkCall> {
        if self.is_busy() || self.has_begun() {
            return None;
        }
        let action = match &mut self.entry {
            None => {
                // Here a name is waited for as long as it takes.
                let (entry, action) = GroupEntry::new(Timestamp::from_nanos(u64::MAX));
                self.entry = Some(entry);
                Some(action)
            }
            Some(entry) => {
                let changed = entry.step(at(now), EntryEvent::Changed(Ok(())));
                changed.or_else(|| entry.step(at(now), EntryEvent::Tick))
            }
        };
        self.go_on_entering(0, action).0
    }

    /// Time has passed; with `wanted`, a heartbeat is sent as soon as none is under way.
    pub(super) fn beat(&mut self, now: SimTime, session: SessionId, wanted: bool) -> LifeStep {
        let event = if wanted { LeaseEvent::BeatNow } else { LeaseEvent::Tick };
        self.keep(now, session, event)
    }

    /// The call was answered. `former` are sessions of this process that are done with.
    pub(super) fn answered(
        &mut self,
        now: SimTime,
        session: SessionId,
        former: &BTreeSet<SessionId>,
        answer: Result<ZkReply, ZkFailure>,
    ) -> LifeStep {
        let event = match std::mem::replace(&mut self.asked, Asked::Nothing) {
            Asked::Nothing => return (None, None),
            Asked::Member => match answer {
                Ok(reply) => {
                    self.asked = Asked::Lease(reply.node());
                    return (Some(ZkCall::Read(self.node)), None);
                }
                Err(failure) => EntryEvent::Found(Err(of(failure))),
            },
            Asked::Lease(member) => EntryEvent::Found(answer.map_err(of).map(|reply| {
                let state = |node: ZkNode| own_node(&node, session, former);
                FoundNodes { member: member.map(state), lease: reply.node().map(state) }
            })),
            Asked::Make => EntryEvent::Made(answer.and_then(ZkReply::wrote).map(drop).map_err(of)),
            Asked::Beat => {
                let wrote = answer.and_then(ZkReply::wrote).map_err(of).and_then(|wrote| match wrote.as_slice() {
                    [(_, node)] => Ok((node.incarnation(), version(node))),
                    _ => Err(CallFailure::Raced),
                });
                return self.keep(now, session, LeaseEvent::Wrote(wrote));
            }
            Asked::LookAtLease => {
                let read = answer.map_err(of).map(|reply| reply.node().map(|node| lease_node(&node, session)));
                return self.keep(now, session, LeaseEvent::Read(read));
            }
        };
        let Some(entry) = &mut self.entry else { return (None, None) };
        let action = entry.step(at(now), event);
        self.go_on_entering(session, action)
    }

    fn go_on_entering(&mut self, session: SessionId, action: Option<EntryAction>) -> LifeStep {
        match action {
            Some(EntryAction::Look) => {
                self.asked = Asked::Member;
                (Some(ZkCall::Read(self.member)), None)
            }
            Some(EntryAction::Make { delete }) => {
                self.asked = Asked::Make;
                (Some(ZkCall::Write(self.nodes(session, &delete))), None)
            }
            Some(EntryAction::Joined { incarnation, sent }) => {
                let timeout = Duration::from_nanos(self.timeout);
                self.keeper = Some(LeaseKeeper::new(incarnation, self.lease, timeout, sent));
                (None, Some(LifeEvent::Joined(incarnation, sent.as_nanos())))
            }
            // Looked at again with the next try to join.
            Some(EntryAction::WaitFor(_) | EntryAction::Pause) | None => (None, None),
            Some(EntryAction::Fail(_)) => {
                self.entry = None;
                (None, None)
            }
        }
    }

    /// What makes both nodes.
    fn nodes(&self, session: SessionId, delete: &[(OwnNode, i32)]) -> Vec<TxnOp> {
        let path = |node| match node {
            OwnNode::Member => self.member,
            OwnNode::Lease => self.node,
        };
        let delete =
            delete.iter().map(|&(node, version)| TxnOp::Delete { path: path(node), version: Some(version as u32) });
        let first = Data::Beat { number: FIRST_BEAT, lease: self.lease, by: session };
        let profile = Data::Profile(Arc::clone(&self.profile));
        let make = [(self.member, profile), (self.node, first)];
        delete.chain(make.map(|(path, data)| TxnOp::Create { path, data, ephemeral: true })).collect()
    }

    fn keep(&mut self, now: SimTime, session: SessionId, event: LeaseEvent) -> LifeStep {
        let Some(keeper) = &mut self.keeper else { return (None, None) };
        let (mut call, mut news) = (None, None);
        for action in keeper.step(at(now), event) {
            match action {
                LeaseAction::Committed(sent) => news = Some(LifeEvent::Committed(sent.as_nanos())),
                LeaseAction::End(_) => news = Some(LifeEvent::Over),
                LeaseAction::Call(LeaseCall::Read) => {
                    self.asked = Asked::LookAtLease;
                    call = Some(ZkCall::Read(self.node));
                }
                LeaseAction::Call(LeaseCall::Write { number, version }) => {
                    self.asked = Asked::Beat;
                    let data = Data::Beat { number, lease: self.lease, by: session };
                    call =
                        Some(ZkCall::Write(vec![TxnOp::Set { path: self.node, data, version: Some(version as u32) }]));
                }
            }
        }
        (call, news)
    }
}

fn own_node(node: &ZkNode, session: SessionId, former: &BTreeSet<SessionId>) -> OwnNodeState {
    let owner = match node.owner {
        owner if owner == session => NodeOwner::ThisSession,
        owner if former.contains(&owner) => NodeOwner::FormerSession,
        _ => NodeOwner::Other,
    };
    OwnNodeState { owner, incarnation: node.incarnation(), version: version(node) }
}

fn lease_node(node: &ZkNode, session: SessionId) -> LeaseNodeState {
    let evicted = matches!(node.data, Data::Evicted { .. });
    LeaseNodeState {
        incarnation: node.incarnation(),
        version: version(node),
        evicted,
        beat: node.data.beat_of(session),
    }
}

fn version(node: &ZkNode) -> i32 {
    node.version as i32
}

/// What a failure means for what is decided.
pub(super) fn of(failure: ZkFailure) -> CallFailure {
    match failure {
        ZkFailure::NoNode | ZkFailure::NodeExists | ZkFailure::BadVersion | ZkFailure::CheckFailed => {
            CallFailure::Raced
        }
        ZkFailure::Unknown => CallFailure::Unknown(String::new()),
        ZkFailure::Over => CallFailure::SessionOver(String::new()),
    }
}

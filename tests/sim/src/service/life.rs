//! One life of a member, after `coordination::zookeeper`'s `entry` and `life`: it takes its name with both nodes in
//! one transaction, then beats, and finds out by reading what became of whatever was not answered.
//!
//! Decides only: its user sends the calls and hands the answers back, one at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use common::{Incarnation, Profile};

use super::connection::{Call, Reply};
use super::tree::{Data, Failure, Node, Op, Path, SessionId};
use crate::Time;

/// Heartbeats without an answer that are remembered.
const PENDING: usize = 16;

/// What a call is for.
#[derive(Debug)]
enum Purpose {
    Member,
    Lease(Option<Node>),
    Make(Time),
    Beat(Time),
    Look,
}

/// What came of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LifeNews {
    /// It begins; the nodes were made by a transaction sent then or later.
    Joined(Incarnation, Time),
    /// Somebody else's nodes stand in the way.
    Taken,
    /// A heartbeat sent then has committed.
    Committed(Time),
    /// It is over.
    Over,
}

/// A life, or the attempt to begin one.
#[derive(Debug)]
pub(super) struct Life {
    member: Path,
    node: Path,
    profile: Arc<Profile>,
    lease: Duration,
    purpose: Option<Purpose>,
    /// A moment before the nodes were made, if this life made them.
    made: Option<Time>,
    /// Set once it has begun.
    pub(super) incarnation: Option<Incarnation>,
    version: u32,
    beat: u64,
    pending: Vec<(u64, Time)>,
}

type Step = (Option<Call>, Option<LifeNews>);

impl Life {
    /// One that has not begun, with nodes at these places.
    pub(super) fn new(member: Path, node: Path, profile: Arc<Profile>, lease: Duration) -> Self {
        Self {
            member,
            node,
            profile,
            lease,
            purpose: None,
            made: None,
            incarnation: None,
            version: 0,
            beat: 1,
            pending: Vec::new(),
        }
    }

    /// Whether a call is under way.
    pub(super) const fn is_busy(&self) -> bool {
        self.purpose.is_some()
    }

    /// Looks whether the name is free.
    pub(super) fn look_for_name(&mut self) -> Call {
        self.purpose = Some(Purpose::Member);
        Call::Read(self.member)
    }

    /// A heartbeat, unless something is under way.
    pub(super) fn beat(&mut self, now: Time, session: SessionId) -> Option<Call> {
        if self.is_busy() || self.incarnation.is_none() {
            return None;
        }
        self.beat += 1;
        if self.pending.len() == PENDING {
            self.pending.remove(0);
        }
        self.pending.push((self.beat, now));
        self.purpose = Some(Purpose::Beat(now));
        let data = Data::Beat { number: self.beat, lease: self.lease, by: session };
        Some(Call::Write(vec![Op::Set { path: self.node, data, version: Some(self.version) }]))
    }

    /// The call was answered. `former` are sessions of this process that are done with.
    pub(super) fn answered(
        &mut self,
        now: Time,
        session: SessionId,
        former: &BTreeSet<SessionId>,
        answer: Result<Reply, Failure>,
    ) -> Step {
        let Some(purpose) = self.purpose.take() else { return (None, None) };
        match (purpose, answer) {
            (Purpose::Member, Ok(reply)) => {
                self.purpose = Some(Purpose::Lease(reply.node()));
                (Some(Call::Read(self.node)), None)
            }
            (Purpose::Lease(member), Ok(reply)) => self.found(now, session, former, member, reply.node()),
            (Purpose::Make(sent), Ok(reply)) => {
                if reply.wrote().is_ok() {
                    self.made = Some(sent);
                }
                (Some(self.look_for_name()), None)
            }
            (Purpose::Make(sent), Err(_)) => {
                self.made = self.made.or(Some(sent));
                (Some(self.look_for_name()), None)
            }
            (Purpose::Member | Purpose::Lease(_), Err(_)) => (Some(self.look_for_name()), None),
            (Purpose::Beat(sent), Ok(reply)) => match reply.wrote().as_deref() {
                Ok([(_, node)]) if Some(node.incarnation()) == self.incarnation => self.committed(sent, node.version),
                Ok(_) | Err(Failure::Over) => (None, Some(LifeNews::Over)),
                Err(_) => self.look(),
            },
            (Purpose::Look, Ok(reply)) => self.looked(session, reply.node()),
            (Purpose::Beat(_) | Purpose::Look, Err(_)) => self.look(),
        }
    }

    fn found(
        &mut self,
        now: Time,
        session: SessionId,
        former: &BTreeSet<SessionId>,
        member: Option<Node>,
        lease: Option<Node>,
    ) -> Step {
        if let (Some(m), Some(l), Some(sent)) = (&member, &lease, self.made)
            && m.owner == session
            && m.incarnation() == l.incarnation()
        {
            // As it was made: what was written over since has to be noticed.
            self.incarnation = Some(l.incarnation());
            self.version = 0;
            return (None, Some(LifeNews::Joined(l.incarnation(), sent)));
        }
        let mut ops = Vec::new();
        for (path, node) in [(self.member, member), (self.node, lease)] {
            let Some(node) = node else { continue };
            if node.owner != session && !former.contains(&node.owner) {
                return (None, Some(LifeNews::Taken));
            }
            ops.push(Op::Delete { path, version: Some(node.version) });
        }
        let first = Data::Beat { number: self.beat, lease: self.lease, by: session };
        let profile = Data::Profile(Arc::clone(&self.profile));
        ops.push(Op::Create { path: self.member, data: profile, ephemeral: true });
        ops.push(Op::Create { path: self.node, data: first, ephemeral: true });
        self.purpose = Some(Purpose::Make(now));
        (Some(Call::Write(ops)), None)
    }

    fn look(&mut self) -> Step {
        self.purpose = Some(Purpose::Look);
        (Some(Call::Read(self.node)), None)
    }

    fn looked(&mut self, session: SessionId, node: Option<Node>) -> Step {
        let Some(node) = node.filter(|node| Some(node.incarnation()) == self.incarnation) else {
            return (None, Some(LifeNews::Over));
        };
        if node.version == self.version {
            return (None, None);
        }
        let beat = node.data.beat_of(session);
        match self.pending.iter().find(|(pending, _)| beat == Some(*pending)) {
            Some(&(_, sent)) => self.committed(sent, node.version),
            None => (None, Some(LifeNews::Over)),
        }
    }

    fn committed(&mut self, sent: Time, version: u32) -> Step {
        self.version = version;
        self.pending.clear();
        (None, Some(LifeNews::Committed(sent)))
    }
}

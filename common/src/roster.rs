//! What becomes of the workers' nodes in the coordination service, as the leader has to know it: decisions alone.
//!
//! Two directories, of member nodes and of lease nodes, are watched recursively. A watch says *that* something happened to
//! a name; what it is now is read. A life is known only from the answer of a read, never from an event, and a deletion is
//! believed only when a read after it does not find that life. Heartbeats alone are told from events, with the moment the
//! event arrived. The event of an eviction looks like theirs, but is the last one: a lease node that has fallen silent is
//! read. The rules, and why, are in docs/protocol.md, Membership and lock in ZooKeeper.
//!
//! When the connection breaks nothing more is said. On the next one a write of the reader's own has to commit, so that its
//! server is as new as everything it was told before, then everything is read, and that is told as [`RosterEvent::Read`]. Names
//! that events told of during the read are read once more.
//!
//! The shell around a [`Roster`] sets the watches, then calls [`Roster::connected`]; sends what [`Roster::next_ask`] says
//! and hands the answers back; and passes on what [`Roster::next_news`] has. It owes one thing: on one connection, events
//! are handed over before answers that arrived after them.
//!
//! Invariants: one read per name at a time; every event after the sending of a read makes the name be read again, so that
//! the last state is always seen; a life that was told and is gone is told as ended, once.

mod known;
mod outbox;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use self::known::{KnownLease, KnownNodes};
use self::outbox::RosterOutbox;
use crate::mutant::{self, Mutant};
use crate::secret::LifeSeal;
use crate::{Incarnation, Profile, Timestamp, WorkerId};

/// Reads under way at once: enough to keep a connection busy, few enough not to hold up the reader's own heartbeat.
pub const READS: usize = 64;

/// A member of the workers group: what `get_members` and `get_member_capabilities` of python-tooz see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberNode {
    /// Its name.
    pub worker: WorkerId,
    /// The life the node belongs to: session and creation of the node. Equal to that of the lease node made with it.
    pub incarnation: Incarnation,
    /// What it published, read leniently: a member of another kind (a Python service) has a weight and nothing else.
    /// `lease` is zero; it stands in the lease node.
    pub profile: Profile,
}

/// A lease node as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseNode {
    /// Whose it is.
    pub worker: WorkerId,
    /// Which life.
    pub incarnation: Incarnation,
    /// How long that life may act after a heartbeat.
    pub lease: Duration,
    /// It was written over: no further heartbeat can commit.
    pub evicted: bool,
    /// What its life is sealed with; `None` where a version before seals wrote it, or it was written over.
    pub seal: Option<LifeSeal>,
}

/// What became of the workers' nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RosterEvent {
    /// Everything, read after the connection was made (anew) and a write of this reader's own had committed.
    Read {
        /// Every member node.
        members: Vec<MemberNode>,
        /// Every lease node.
        leases: Vec<LeaseNode>,
    },
    /// Every member node, read after one came or went.
    Members(Vec<MemberNode>),
    /// A lease node that is new here was read, or a heartbeat was seen.
    Beat(LeaseNode),
    /// A lease node was deleted or written over: no further heartbeat of this life can commit, and every one that did was
    /// told before.
    Ended(WorkerId, Incarnation),
}

/// Which of the two directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeKind {
    /// Of member nodes.
    Member,
    /// Of lease nodes.
    Lease,
}

/// One node.
pub type NodeName = (NodeKind, WorkerId);

/// What a watch says happened to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeChange {
    /// It was created.
    Created,
    /// Its data were written.
    Changed,
    /// It was deleted.
    Deleted,
}

/// What is to be sent to the service, in this order and on the connection that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterAsk {
    /// Which connection, so that an answer that outlived it is not taken.
    connection: u64,
    /// What to send.
    pub what: What,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Any write of the reader's own, sent from now on and waited for until it has committed.
    Write,
    /// The names in a directory.
    List(NodeKind),
    /// One node.
    Read(NodeName),
}

/// A node that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RosterNode {
    /// A member node.
    Member(MemberNode),
    /// A lease node.
    Lease(LeaseNode),
}

/// The answer to an [`RosterAsk`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RosterAnswer {
    /// The write has committed.
    Written,
    /// These names are in the directory.
    Listed(Vec<WorkerId>),
    /// This is the node; `None` when there is none, or it is nobody's.
    Found(Option<RosterNode>),
}

/// How far the reading has come.
#[derive(Clone, Debug)]
enum RosterStage {
    /// No connection, or its watches are not set.
    Broken,
    /// Nothing counts before a write of the reader's own has committed.
    Proving,
    /// Everything is being read.
    Reading(Everything),
    /// Everything was read, and events say what to read again.
    Following(KnownNodes),
}

/// A read of everything.
#[derive(Clone, Debug, Default)]
struct Everything {
    /// Directories that have to be listed still.
    lists: usize,
    /// Nodes that have to be read still: those whose read was not sent, and how many were.
    waiting: VecDeque<NodeName>,
    known: KnownNodes,
}

/// Reader of the workers' nodes.
#[derive(Clone, Debug)]
pub struct Roster {
    /// Counts connections.
    connection: u64,
    stage: RosterStage,
    /// What is to be sent first.
    asks: VecDeque<What>,
    /// Reads of nodes that were sent and not answered.
    reads: usize,
    /// Names that events told of before everything was read.
    touched: BTreeSet<NodeName>,
    /// Workers whose next change is likely to be an eviction.
    suspects: BTreeSet<WorkerId>,
    outbox: RosterOutbox,
}

impl Default for Roster {
    fn default() -> Self {
        Self::new()
    }
}

impl Roster {
    /// One without a connection.
    #[must_use]
    pub fn new() -> Self {
        Self {
            connection: 0,
            stage: RosterStage::Broken,
            asks: VecDeque::new(),
            reads: 0,
            touched: BTreeSet::new(),
            suspects: BTreeSet::new(),
            outbox: RosterOutbox::default(),
        }
    }

    /// Both watches are set, on a connection that has stood since. Everything begins anew.
    pub fn connected(&mut self) {
        self.broken();
        if matches!(self.stage, RosterStage::Broken) {
            self.stage = RosterStage::Proving;
            self.asks.push_back(What::Write);
        }
    }

    /// The connection broke: events may be missing from now on, and what was asked on it is not answered.
    pub fn broken(&mut self) {
        if mutant::is(Mutant::CachedMembers) && matches!(self.stage, RosterStage::Following(_)) {
            return;
        }
        self.connection += 1;
        self.stage = RosterStage::Broken;
        self.asks.clear();
        self.reads = 0;
        self.touched.clear();
        self.outbox.silence();
    }

    /// What is to be sent next; `None` while nothing is, or enough is under way.
    pub fn next_ask(&mut self) -> Option<RosterAsk> {
        let what = match self.asks.pop_front() {
            Some(what) => what,
            None if self.reads >= READS => return None,
            None => {
                let name = match &mut self.stage {
                    RosterStage::Broken | RosterStage::Proving => return None,
                    RosterStage::Reading(everything) => everything.waiting.pop_front(),
                    RosterStage::Following(known) => known.next_read(),
                }?;
                self.reads += 1;
                What::Read(name)
            }
        };
        Some(RosterAsk { connection: self.connection, what })
    }

    /// An answer arrived. One of a connection that broke is not taken, nor is one that does not answer the question.
    pub fn answered(&mut self, now: Timestamp, ask: RosterAsk, answer: RosterAnswer) {
        if ask.connection != self.connection {
            return;
        }
        match (ask.what, answer) {
            (What::Write, RosterAnswer::Written) if matches!(self.stage, RosterStage::Proving) => {
                self.read_everything()
            }
            (What::List(kind), RosterAnswer::Listed(names)) => {
                if let RosterStage::Reading(everything) = &mut self.stage {
                    everything.lists = everything.lists.saturating_sub(1);
                    everything.waiting.extend(names.into_iter().map(|name| (kind, name)));
                    self.finish_reading(now);
                }
            }
            (What::Read(name), RosterAnswer::Found(node)) => {
                self.reads = self.reads.saturating_sub(1);
                match &mut self.stage {
                    RosterStage::Broken | RosterStage::Proving => {}
                    RosterStage::Reading(everything) => {
                        everything.found(now, node);
                        self.finish_reading(now);
                    }
                    RosterStage::Following(_) => self.found(now, name, node),
                }
            }
            _ => {}
        }
    }

    /// A watch told of a node.
    pub fn event(&mut self, now: Timestamp, name: NodeName, change: NodeChange) {
        let known = match &mut self.stage {
            RosterStage::Broken => return,
            RosterStage::Proving | RosterStage::Reading(_) => {
                self.touched.insert(name);
                return;
            }
            RosterStage::Following(known) => known,
        };
        if mutant::is(Mutant::MembersFromEvents) && change != NodeChange::Changed {
            if change == NodeChange::Deleted {
                self.found(now, name, None);
            }
            return;
        }
        let (kind, worker) = &name;
        let beat = *kind == NodeKind::Lease && change == NodeChange::Changed;
        match known.leases.get_mut(worker).filter(|_| beat) {
            Some(lease) if lease.ended => {}
            Some(lease) => {
                lease.changed(now);
                self.outbox.beat(now, lease.node.clone());
                // An eviction is a change like a heartbeat. Ours are looked at right away, others' when nothing follows.
                if self.suspects.contains(worker) || now.since(lease.read) >= lease.node.lease {
                    known.read(name);
                }
            }
            None => known.read(name),
        }
    }

    /// The next change of this worker's lease node is likely to be an eviction. To be said before it is written.
    pub fn suspect(&mut self, worker: WorkerId) {
        self.suspects.insert(worker);
    }

    /// To be called a few times in the time of a lease: finds lease nodes that have fallen silent.
    pub fn tick(&mut self, now: Timestamp) {
        if let RosterStage::Following(known) = &mut self.stage {
            known.sweep(now);
        }
    }

    /// Takes the oldest news, with the moment that what it tells arrived.
    pub fn next_news(&mut self, now: Timestamp) -> Option<(Timestamp, RosterEvent)> {
        self.tell_members(now);
        self.outbox.pop()
    }

    /// Whether there is news.
    pub fn has_news(&mut self, now: Timestamp) -> bool {
        self.tell_members(now);
        !self.outbox.is_empty()
    }

    /// Whether everything was read on the connection that stands.
    #[must_use]
    pub const fn is_following(&self) -> bool {
        matches!(self.stage, RosterStage::Following(_))
    }

    /// Whether so much waits to be taken that beginning anew is cheaper: nobody listens.
    #[must_use]
    pub fn is_swollen(&self) -> bool {
        self.outbox.is_swollen()
    }

    fn read_everything(&mut self) {
        self.stage = RosterStage::Reading(Everything { lists: 2, ..Everything::default() });
        self.asks.extend([NodeKind::Lease, NodeKind::Member].map(What::List));
    }

    /// Tells everything once it was read, and has read again what changed meanwhile.
    fn finish_reading(&mut self, now: Timestamp) {
        let RosterStage::Reading(everything) = &mut self.stage else { return };
        if everything.lists > 0 || !everything.waiting.is_empty() || self.reads > 0 {
            return;
        }
        let mut known = std::mem::take(&mut everything.known);
        // What lies between the first answer and the last was not seen as it happened.
        for lease in known.leases.values_mut() {
            *lease = KnownLease::new(lease.node.clone(), lease.node.evicted, now);
        }
        let members = known.members.values().cloned().collect();
        let leases = known.leases.values().map(|lease| lease.node.clone()).collect();
        self.outbox.read(now, members, leases);
        for name in std::mem::take(&mut self.touched) {
            known.read(name);
        }
        self.stage = RosterStage::Following(known);
    }

    /// Members are told when none of them is being read: who came and who went with it is told at once.
    fn tell_members(&mut self, now: Timestamp) {
        if let RosterStage::Following(known) = &mut self.stage
            && known.changed
            && !known.reads_members()
        {
            known.changed = false;
            self.outbox.members(now, known.members.values().cloned().collect());
        }
    }

    /// A node was read while following.
    fn found(&mut self, now: Timestamp, name: NodeName, node: Option<RosterNode>) {
        let RosterStage::Following(known) = &mut self.stage else { return };
        known.answered(&name);
        let (kind, worker) = name;
        match (kind, node) {
            (NodeKind::Member, Some(RosterNode::Member(node))) => {
                if known.members.get(&worker) != Some(&node) {
                    known.changed = true;
                    known.members.insert(worker, node);
                }
            }
            (NodeKind::Lease, Some(RosterNode::Lease(node))) => self.found_lease(now, worker, Some(node)),
            (NodeKind::Member, _) => known.changed |= known.members.remove(&worker).is_some(),
            (NodeKind::Lease, _) => self.found_lease(now, worker, None),
        }
    }

    fn found_lease(&mut self, now: Timestamp, worker: WorkerId, node: Option<LeaseNode>) {
        let RosterStage::Following(known) = &mut self.stage else { return };
        let life = node.as_ref().map(|node| node.incarnation);
        let former = known.leases.remove(&worker);
        let same = former.as_ref().is_some_and(|lease| Some(lease.node.incarnation) == life);
        if let Some(former) = former.as_ref().filter(|lease| !same && !lease.ended) {
            self.suspects.remove(&worker);
            self.outbox.ended(now, worker.clone(), former.node.incarnation);
        }
        let Some(node) = node else { return };
        let mut ended = same && former.as_ref().is_some_and(|lease| lease.ended);
        if !same {
            self.outbox.beat(now, node.clone());
        }
        if node.evicted && !ended {
            self.suspects.remove(&worker);
            self.outbox.ended(now, worker.clone(), node.incarnation);
            ended = true;
        }
        let mut lease = KnownLease::new(node, ended, now);
        if let Some(former) = former {
            // That may have been of this life already.
            lease.keep_unread(&former);
        }
        known.leases.insert(worker, lease);
    }
}

impl Everything {
    fn found(&mut self, now: Timestamp, node: Option<RosterNode>) {
        match node {
            Some(RosterNode::Member(node)) => _ = self.known.members.insert(node.worker.clone(), node),
            Some(RosterNode::Lease(node)) => {
                let ended = node.evicted;
                self.known.leases.insert(node.worker.clone(), KnownLease::new(node, ended, now));
            }
            None => {}
        }
    }
}

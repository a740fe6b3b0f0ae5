//! What the leader hears of the workers' nodes: the roster as it ships, with this client's watches and reads around it.

use std::collections::BTreeMap;

use common::Life;
use common::roster::{
    LeaseNode, MemberNode, NodeChange, NodeKind, Roster, RosterAnswer, RosterAsk, RosterEvent as Told, RosterNode, What,
};
use common::{Profile, Timestamp, WorkerId};
use coordinator_core::machine::Event;
use coordinator_core::membership::{ObservedLease, ObservedMember};

use super::super::worker::secret;
use super::candidate::{CandidateEvent, Purpose};
use super::connection::{ZkCall, ZkReply};
use super::tree::{self, Data, Dir, Path, ZkFailure};
use super::{ServiceEvent, ZooKeeper};
use crate::SimTime;

/// A roster with what it waits for.
#[derive(Debug, Default)]
pub(super) struct RosterFeed {
    roster: Roster,
    asks: BTreeMap<u64, RosterAsk>,
    /// Watches that have to be confirmed still, by call. Nothing is known while there are any.
    watches: Vec<u64>,
    /// A heartbeat sent from then on is waited for.
    write: Option<(RosterAsk, SimTime)>,
}

impl RosterFeed {
    pub(super) fn suspect(&mut self, worker: &WorkerId) {
        self.roster.suspect(worker.clone());
    }
}

/// The worker that lives at a place.
pub(super) fn worker(place: u64) -> WorkerId {
    WorkerId::new(&format!("w{}", place + 1)).expect("letters and digits")
}

const fn dir(kind: NodeKind) -> Dir {
    match kind {
        NodeKind::Member => Dir::Members,
        NodeKind::Lease => Dir::Leases,
    }
}

/// The place where a worker lives.
pub(super) fn place(worker: &WorkerId) -> u64 {
    let number: Option<u64> = worker.as_str().strip_prefix('w').and_then(|number| number.parse().ok());
    number.map_or(u64::MAX, |number| number.saturating_sub(1))
}

fn node(kind: NodeKind, worker: &WorkerId, node: &tree::ZkNode) -> Option<RosterNode> {
    let (worker, incarnation) = (worker.clone(), node.incarnation());
    Some(match (kind, &node.data) {
        (NodeKind::Member, Data::Profile(profile)) => {
            let profile = Profile { lease: std::time::Duration::ZERO, ..Profile::clone(profile) };
            RosterNode::Member(MemberNode { worker, incarnation, profile })
        }
        (NodeKind::Lease, Data::Beat { lease, .. }) => {
            let evicted = node.data.beat_of(node.owner).is_none();
            let seal = Some(secret(place(&worker)).seal());
            RosterNode::Lease(LeaseNode { worker, incarnation, lease: *lease, evicted, seal })
        }
        (NodeKind::Lease, Data::Evicted { lease }) => {
            RosterNode::Lease(LeaseNode { worker, incarnation, lease: *lease, evicted: true, seal: None })
        }
        _ => return None,
    })
}

/// As `coordinator::leader` hands it to the machine.
fn event(news: Told) -> Event {
    let lease = |node: LeaseNode| {
        let LeaseNode { worker, incarnation, lease, evicted, seal } = node;
        (Life::new(worker, incarnation), ObservedLease { lease, evicted, seal })
    };
    let member = |m: MemberNode| (m.worker, ObservedMember { incarnation: m.incarnation, profile: m.profile });
    match news {
        Told::Read { members, leases } => Event::Read {
            members: members.into_iter().map(member).collect(),
            leases: leases.into_iter().map(lease).collect(),
        },
        Told::Members(members) => Event::Members(members.into_iter().map(member).collect()),
        Told::Beat(node) => {
            let (life, node) = lease(node);
            Event::Observed(life, node)
        }
        Told::Ended(worker, incarnation) => Event::Over(Life::new(worker, incarnation)),
    }
}

impl ZooKeeper {
    fn roster_now(&self) -> Timestamp {
        Timestamp::from_nanos(self.now)
    }

    fn feed(&mut self, n: usize) -> Option<&mut RosterFeed> {
        self.candidates.get_mut(&n)?.feed.as_mut()
    }

    /// Sets the watches, if there is a connection; everything else follows from that.
    pub(super) fn feed_begins(&mut self, n: usize) {
        let Some(client) = self.candidates.get(&n).map(|candidate| candidate.client) else { return };
        if !self.clients[client].connected || self.feed(n).is_none() {
            return;
        }
        self.feed_breaks(n);
        let watches = [Dir::Leases, Dir::Members].map(|dir| self.ask_for(n, ZkCall::Watch(dir), Purpose::Feed));
        if let Some(feed) = self.feed(n) {
            feed.watches = watches.into();
        }
    }

    /// The connection broke.
    pub(super) fn feed_breaks(&mut self, n: usize) {
        if let Some(feed) = self.feed(n) {
            feed.roster.broken();
            feed.asks.clear();
            feed.watches.clear();
            feed.write = None;
        }
    }

    pub(super) fn feed_event(&mut self, n: usize, path: Path, change: NodeChange) {
        let now = self.roster_now();
        let kind = match path.0 {
            Dir::Members => NodeKind::Member,
            Dir::Leases => NodeKind::Lease,
            _ => return,
        };
        if let Some(feed) = self.feed(n) {
            feed.roster.event(now, (kind, worker(path.1)), change);
            self.feed_goes_on(n);
        }
    }

    pub(super) fn feed_answered(&mut self, n: usize, id: u64, answer: Result<ZkReply, ZkFailure>) {
        let now = self.roster_now();
        let Some(feed) = self.feed(n) else { return };
        // What failed, failed with the connection, and is asked again on the next.
        let Ok(reply) = answer else { return };
        if let Some(at) = feed.watches.iter().position(|watch| *watch == id) {
            feed.watches.swap_remove(at);
            if feed.watches.is_empty() {
                feed.roster.connected();
            }
        } else if let Some(ask) = feed.asks.remove(&id) {
            let answer = match (&ask.what, reply) {
                (What::List(_), ZkReply::Listed(names)) => {
                    RosterAnswer::Listed(names.into_iter().map(worker).collect())
                }
                (What::Read((kind, worker)), ZkReply::Read(found)) => {
                    RosterAnswer::Found(found.and_then(|found| node(*kind, worker, &found)))
                }
                _ => return,
            };
            feed.roster.answered(now, ask, answer);
        }
        self.feed_goes_on(n);
    }

    /// A heartbeat of the coordinator, sent at `sent`, has committed.
    pub(super) fn feed_written(&mut self, n: usize, sent: SimTime) {
        let now = self.roster_now();
        let Some(feed) = self.feed(n) else { return };
        if let Some((ask, _)) = feed.write.take_if(|(_, since)| sent >= *since) {
            feed.roster.answered(now, ask, RosterAnswer::Written);
            self.feed_goes_on(n);
        }
    }

    /// What time brings about.
    pub(super) fn feed_looks(&mut self, n: usize) {
        let now = self.roster_now();
        if let Some(feed) = self.feed(n) {
            feed.roster.tick(now);
            self.feed_goes_on(n);
        }
    }

    /// Sends what is to be asked, and tells what there is to tell.
    fn feed_goes_on(&mut self, n: usize) {
        let (now, sent) = (self.roster_now(), self.now);
        let mut write = false;
        while let Some(ask) = self.feed(n).and_then(|feed| feed.roster.next_ask()) {
            let call = match &ask.what {
                What::Write => {
                    if let Some(feed) = self.feed(n) {
                        feed.write = Some((ask, sent));
                    }
                    write = true;
                    continue;
                }
                What::List(kind) => ZkCall::List(dir(*kind)),
                What::Read((kind, worker)) => ZkCall::Read((dir(*kind), place(worker))),
            };
            let id = self.ask_for(n, call, Purpose::Feed);
            if let Some(feed) = self.feed(n) {
                feed.asks.insert(id, ask);
            }
        }
        while let Some((_, news)) = self.feed(n).and_then(|feed| feed.roster.next_news(now)) {
            self.news.push_back(ServiceEvent::Coordinator(n, CandidateEvent::Roster(event(news))));
        }
        if write {
            self.kick(n);
        }
    }
}

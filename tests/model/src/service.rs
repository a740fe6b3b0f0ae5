//! The coordination service in its simplest sound form, and time: nodes that change one after the other, one ordered feed
//! of changes for each leader, heartbeats that commit as long as the node stands.
//!
//! A heartbeat reaches a leader that has heard everything else at once: news of it that came later would only make that
//! leader wait for longer, as late news of the end of the life does too. For the same reason one heartbeat stands for all
//! of a life that wait in a feed.

use std::collections::{BTreeMap, VecDeque};

use common::Life;
use common::canon::{Canon, Canonical};
use coordinator_core::machine::Event;
use coordinator_core::membership::{ObservedLease, ObservedMember};

use crate::setup::{LEASE, LEASE_SEEN, Setup};
use crate::state::{ModelState, Part};

/// A change on its way to a leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NodeEvent {
    /// Member nodes came or went: the leader reads them.
    Members,
    /// A lease node was made, or a heartbeat committed.
    Beat(Life),
    /// A lease node is gone.
    Over(Life),
}

/// What a leader is event, in order.
#[derive(Clone, Debug)]
pub(crate) struct NodeFeed {
    /// It has yet to read everything; nothing is event before.
    pub(crate) unread: bool,
    pub(crate) news: VecDeque<NodeEvent>,
}

impl NodeFeed {
    pub(crate) const fn unread() -> Self {
        Self { unread: true, news: VecDeque::new() }
    }

    fn push(&mut self, news: NodeEvent) {
        if !self.unread && (matches!(news, NodeEvent::Over(_)) || !self.news.contains(&news)) {
            self.news.push_back(news);
        }
    }
}

/// The nodes of one life.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LifeNodes {
    /// Number of the worker.
    pub(crate) worker: usize,
    pub(crate) member: bool,
    /// Heartbeats commit: the lease node was not written over.
    pub(crate) lease: bool,
}

/// The lease node of a life of this worker.
fn lease_node(worker: usize) -> ObservedLease {
    ObservedLease { lease: LEASE, evicted: false, seal: Some(Setup::secret(worker).seal()) }
}

/// The same by the name of the worker.
fn lease_node_of(life: &Life) -> ObservedLease {
    let number = life.worker.as_str().trim_start_matches('w').parse::<usize>().unwrap_or_default();
    lease_node(number.saturating_sub(1))
}

impl ModelState {
    fn feed(&mut self, news: &NodeEvent) {
        self.leaders.iter_mut().for_each(|leader| leader.feed.push(news.clone()));
    }

    fn members(&self, setup: &Setup) -> BTreeMap<common::WorkerId, ObservedMember> {
        let members = self.nodes.iter().filter(|(_, nodes)| nodes.member);
        let node = |(Life { worker: name, incarnation }, nodes): (&Life, &LifeNodes)| {
            (name.clone(), ObservedMember { incarnation: *incarnation, profile: setup.profile(nodes.worker) })
        };
        members.map(node).collect()
    }

    /// The oldest change reaches a leader, or the leader reads everything.
    pub(crate) fn tell(&mut self, setup: &Setup, l: usize) {
        let leader = &mut self.leaders[l];
        let event = if std::mem::replace(&mut leader.feed.unread, false) {
            let lease = |of: &LifeNodes| ObservedLease { evicted: !of.lease, ..lease_node(of.worker) };
            let leases = self.nodes.iter().map(|(life, of)| (life.clone(), lease(of))).collect();
            Event::Read { members: self.members(setup), leases }
        } else {
            match leader.feed.news.pop_front() {
                Some(NodeEvent::Members) => Event::Members(self.members(setup)),
                Some(NodeEvent::Beat(life)) => {
                    let node = lease_node_of(&life);
                    Event::Observed(life, node)
                }
                Some(NodeEvent::Over(life)) => Event::Over(life),
                None => return,
            }
        };
        self.lead(l, event, &[]);
    }

    /// Both nodes of a life are made at once.
    pub(crate) fn make_nodes(&mut self, worker: usize, life: &Life) {
        self.nodes.insert(life.clone(), LifeNodes { worker, member: true, lease: true });
        self.feed(&NodeEvent::Members);
        self.feed(&NodeEvent::Beat(life.clone()));
    }

    /// Both nodes of a life go at once.
    pub(crate) fn delete_nodes(&mut self, life: &Life) {
        let Some(nodes) = self.nodes.remove(life) else { return };
        // Heartbeats that a leader has not heard of stay in front of the news of the end.
        if nodes.lease {
            self.feed(&NodeEvent::Over(life.clone()));
        }
        if nodes.member {
            self.feed(&NodeEvent::Members);
        }
    }

    /// A leader writes over the lease node of a life.
    pub(crate) fn evict(&mut self, life: &Life) {
        if let Some(nodes) = self.nodes.get_mut(life).filter(|nodes| nodes.lease) {
            nodes.lease = false;
            self.feed(&NodeEvent::Over(life.clone()));
        }
    }

    /// Somebody deletes a member node.
    pub(crate) fn delete_member(&mut self, life: &Life) {
        if let Some(nodes) = self.nodes.get_mut(life) {
            nodes.member = false;
            self.feed(&NodeEvent::Members);
        }
    }

    /// A leader is cut off from the service, and connects anew.
    pub(crate) fn cut_leader(&mut self, l: usize) {
        self.leaders[l].feed = NodeFeed::unread();
    }

    /// A step of time passes. Heartbeats are committed of whoever is not cut off, and every leader looks at its clock.
    pub(crate) fn pass(&mut self, setup: &Setup) {
        self.now = self.now + setup.step();
        let now = self.now;
        self.calls.retain(|call| now < call.over);
        let mut beats = Vec::new();
        for worker in &mut self.workers {
            let over = worker.value.tasks.values().any(|task| task.running.is_some_and(|over| over <= now));
            if over {
                // The longest request has ended.
                for task in Part::edit(worker).tasks.values_mut() {
                    task.running = task.running.filter(|over| now < *over);
                }
            }
            let Some(life) = worker.value.life() else { continue };
            if !worker.value.cut && self.nodes.get(&life).is_some_and(|nodes| nodes.lease) {
                Part::edit(worker).gate.extend(now + LEASE_SEEN);
                beats.push(life);
            }
        }
        let mut l = 0;
        while l < self.leaders.len() {
            let term = self.leaders[l].term;
            let feed = &mut self.leaders[l].feed;
            let at_once = !feed.unread && feed.news.is_empty();
            if at_once {
                for life in &beats {
                    self.lead(l, Event::Observed(life.clone(), lease_node_of(life)), &[]);
                }
            } else {
                beats.iter().for_each(|life| feed.push(NodeEvent::Beat(life.clone())));
            }
            self.lead(l, Event::Tick, &[]);
            l += usize::from(self.leaders.get(l).is_some_and(|leader| leader.term == term));
        }
        self.end_releases();
    }
}

impl Canonical for NodeFeed {
    fn canon(&self, to: &mut Canon) {
        let Self { unread, news } = self;
        to.put(unread);
        to.put(news);
    }
}

impl Canonical for NodeEvent {
    fn canon(&self, to: &mut Canon) {
        match self {
            Self::Members => to.plain(0),
            Self::Beat(life) => to.put(&(1_u32, life)),
            Self::Over(life) => to.put(&(2_u32, life)),
        }
    }
}

impl Canonical for LifeNodes {
    fn canon(&self, to: &mut Canon) {
        to.put(&(self.worker, self.member, self.lease));
    }
}

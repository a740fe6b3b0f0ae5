//! A coordination service, after ZooKeeper as the coordinators and workers use it: nodes that change one after the other,
//! conditional heartbeats, sessions that end whenever the service likes, and one ordered feed of changes to the leader that
//! breaks and begins anew with a read of everything.
//!
//! Nothing is promised about when a session ends: an idle one may last, a busy one may be over. What is promised is that
//! an ended one takes no more heartbeats, and that on a feed that stays up the leader sees every change in order.

use std::collections::{BTreeMap, VecDeque};

use common::{Incarnation, WorkerId};
use coordinator_core::grants::Profile;
use coordinator_core::machine::Event;
use coordinator_core::membership::{LeaseNode, Life, Node};

use super::world::{Ev, World};
use super::{Mutant, Time};

/// How long a session lasts without a word, at least; from then on it may end any time.
const SESSION: Time = 4_000_000_000;

/// The nodes of one life.
#[derive(Clone, Debug)]
struct Nodes {
    profile: Profile,
    /// The member node is there.
    member: bool,
    evicted: bool,
    heard: Time,
}

/// What a worker asks of the service.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    /// Make the nodes of a new life; those of an earlier life of this very process go.
    Join(Option<Incarnation>),
    /// A heartbeat.
    Beat(Incarnation, u64),
    /// The session is closed.
    Close(Incarnation),
}

/// What it answers.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Joined(Incarnation),
    /// Somebody else's nodes stand in the way.
    Taken,
    Committed(u64),
    /// The node is gone or was written over.
    Over,
}

/// A change on its way to the leader.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Read,
    Members,
    Beat(Life),
    Over(Life),
}

/// The service.
#[derive(Debug, Default)]
pub(super) struct Service {
    nodes: BTreeMap<Life, Nodes>,
    next: u128,
    /// Events made from the state at the time of each change.
    feed: VecDeque<(Time, Event)>,
    last: Time,
    /// Nothing is fed before the read that begins anew.
    broken: bool,
}

impl World {
    fn members(&self) -> BTreeMap<WorkerId, Node> {
        let standing = self.service.nodes.iter().filter(|(_, nodes)| nodes.member);
        standing
            .map(|((name, incarnation), nodes)| {
                (name.clone(), Node { incarnation: *incarnation, profile: nodes.profile.clone() })
            })
            .collect()
    }

    /// A worker's call reaches the service.
    pub(super) fn service_asked(&mut self, place: usize, process: u64, ask: &Ask) {
        let name = self.places[place].name.clone();
        let answer = match ask {
            Ask::Join(former) => {
                if let Some(former) = former {
                    self.delete(&(name.clone(), *former));
                }
                if self.service.nodes.keys().any(|life| life.0 == name) {
                    Answer::Taken
                } else {
                    self.service.next += 1;
                    let incarnation = Incarnation::new(self.service.next);
                    let life = (name, incarnation);
                    let profile = self.places[place].profile.clone();
                    let nodes = Nodes { profile, member: true, evicted: false, heard: self.now };
                    self.service.nodes.insert(life.clone(), nodes);
                    // One reads the members, the other the lease node: whichever comes first.
                    let mut both = [Change::Members, Change::Beat(life.clone())];
                    if self.rng.chance(50) {
                        both.reverse();
                    }
                    both.into_iter().for_each(|change| self.feed(&change));
                    self.expire_later(&life);
                    Answer::Joined(incarnation)
                }
            }
            Ask::Beat(incarnation, number) => {
                let life = (name, *incarnation);
                match self.service.nodes.get_mut(&life).filter(|nodes| !nodes.evicted) {
                    Some(nodes) => {
                        nodes.heard = self.now;
                        self.feed(&Change::Beat(life));
                        Answer::Committed(*number)
                    }
                    None => Answer::Over,
                }
            }
            Ask::Close(incarnation) => return self.delete(&(name, *incarnation)),
        };
        if self.now >= self.places[place].adrift_until && !(self.faulty() && self.rng.chance(3)) {
            let delay = self.delay();
            self.after(delay, Ev::Answered { place, process, answer });
        }
    }

    fn expire_later(&mut self, life: &Life) {
        let delay = SESSION + self.rng.millis(0, 2_000);
        self.after(delay, Ev::Expiry(life.clone()));
    }

    /// A session is looked at: over when nothing was heard for too long.
    pub(super) fn expiry(&mut self, life: &Life) {
        let Some(nodes) = self.service.nodes.get(life) else { return };
        if self.now - nodes.heard >= SESSION {
            self.note(|| format!("the session of {} {} is over", life.0, life.1));
            self.delete(life);
        } else {
            self.expire_later(life);
        }
    }

    fn delete(&mut self, life: &Life) {
        let Some(nodes) = self.service.nodes.remove(life) else { return };
        let mut both = vec![Change::Over(life.clone())];
        if nodes.member {
            both.push(Change::Members);
            if self.rng.chance(50) {
                both.reverse();
            }
        }
        both.iter().for_each(|change| self.feed(change));
    }

    /// The leader's wish reaches the service.
    pub(super) fn service_evicts(&mut self, life: &Life) {
        if let Some(nodes) = self.service.nodes.get_mut(life)
            && !std::mem::replace(&mut nodes.evicted, true)
        {
            self.note(|| format!("{} {} is evicted", life.0, life.1));
            self.feed(&Change::Over(life.clone()));
        }
    }

    /// Something happens to the service, or to somebody's nodes.
    pub(super) fn service_fault(&mut self) {
        let lives: Vec<Life> = self.service.nodes.keys().cloned().collect();
        match self.rng.below(4) {
            0 if !lives.is_empty() => {
                // A session that ends too early, or a node that somebody deletes: it is all the same.
                let life = &lives[self.rng.index(lives.len())];
                self.note(|| format!("somebody deletes the nodes of {} {}", life.0, life.1));
                self.delete(life);
            }
            1 if !lives.is_empty() => {
                let life = lives[self.rng.index(lives.len())].clone();
                if let Some(nodes) = self.service.nodes.get_mut(&life) {
                    nodes.member = false;
                    self.note(|| format!("somebody deletes the member node of {} {}", life.0, life.1));
                    self.feed(&Change::Members);
                }
            }
            2 => {
                let place = self.rng.index(self.places.len());
                self.places[place].adrift_until = self.now + self.rng.millis(100, 8_000);
                self.note(|| format!("worker {} is cut off from the service", place + 1));
            }
            _ => self.break_feed(),
        }
    }

    /// What is on its way to the leader is lost; after a while it reads everything anew.
    pub(super) fn break_feed(&mut self) {
        if self.service.broken {
            return;
        }
        self.note(|| "the leader's connection to the service breaks".to_owned());
        self.begin_feed();
    }

    /// A leader begins, or its connection is made anew: a read, then every change.
    pub(super) fn begin_feed(&mut self) {
        let keep = self.mutant == Some(Mutant::CachedMembers) && self.service.broken;
        self.service.feed.clear();
        self.service.broken = true;
        let delay = if self.faulty() { self.rng.millis(1, 3_000) } else { self.rng.millis(1, 50) };
        let instance = self.instances;
        if !keep {
            self.after(delay, Ev::FeedBegins(instance));
        }
    }

    pub(super) fn feed_begins(&mut self, instance: u64) {
        if instance != self.instances || !self.service.broken {
            return;
        }
        self.service.broken = false;
        if self.mutant != Some(Mutant::CachedMembers) || self.leader.as_ref().is_some_and(|l| !l.has_read) {
            self.feed(&Change::Read);
        }
    }

    fn feed(&mut self, change: &Change) {
        if self.service.broken || self.leader.is_none() {
            return;
        }
        let lease = |nodes: &Nodes| LeaseNode { lease: nodes.profile.lease, evicted: nodes.evicted };
        let event = match change {
            Change::Read => Event::Read {
                members: self.members(),
                leases: self.service.nodes.iter().map(|(life, nodes)| (life.clone(), lease(nodes))).collect(),
            },
            Change::Members => Event::Members(self.members()),
            Change::Beat(life) => match self.service.nodes.get(life) {
                Some(nodes) => Event::Observed(life.clone(), lease(nodes)),
                None => return,
            },
            Change::Over(life) => Event::Over(life.clone()),
        };
        let at = (self.now + self.delay()).max(self.service.last);
        self.service.last = at;
        self.service.feed.push_back((at, event));
        let instance = self.instances;
        self.at(at, Ev::Fed(instance));
    }

    /// The oldest change has reached the leader.
    pub(super) fn fed(&mut self, instance: u64) {
        if instance != self.instances || self.service.feed.front().is_none_or(|(at, _)| *at > self.now) {
            return;
        }
        let Some((_, event)) = self.service.feed.pop_front() else { return };
        if let Some(leader) = &mut self.leader {
            leader.has_read |= matches!(event, Event::Read { .. });
        }
        if !matches!(event, Event::Observed(..)) {
            self.note(|| format!("leader: {event:?}"));
        }
        let gone = match (&event, self.mutant) {
            (Event::Over(life), Some(Mutant::GoneWithNode)) => Some(life.clone()),
            _ => None,
        };
        self.leader_told(event, gone);
    }
}

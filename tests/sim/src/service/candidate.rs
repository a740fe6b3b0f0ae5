//! A coordinator's part, after `coordination::zookeeper`'s `candidate`, `lock` and `leadership`: a member of its
//! group at all times, a contender in kazoo's lock, and, once it stands first and a heartbeat sent after that has
//! committed, elected. What an elected one writes is written with a check of its own lock node.
//!
//! A leadership is lost with its session, with its lock node, or as soon as heartbeats have not committed for a lease.
//! After the last its contender stays where it is, and may be elected again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use common::driver::DriverOffers;
use common::{Incarnation, Profile, Term, WorkerId};
use coordinator_core::machine::Event;

use super::client::ClientEvent;
use super::connection::{ZkCall, ZkReply};
use super::feed::{self, RosterFeed};
use super::life::{LifeNews, ServiceLife};
use super::seat::timeout;
use super::tree::{Data, Dir, Path, SessionId, TERM, TxnOp, ZkFailure, mark};
use super::{ServiceEvent, ServiceTask, Who, ZooKeeper};
use crate::SimTime;

/// Tries to write against others that write at the same time, as in the product.
const TRIES: u32 = 20;

/// What a coordinator is told.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every value is the large one, and a run makes millions of them")]
pub(crate) enum CandidateNews {
    /// It leads, as far as anybody can tell; the term is to be raised.
    Elected,
    /// The term was raised.
    Raised {
        /// The new term.
        term: Term,
    },
    /// It leads no more, or that is in doubt. It contends again by itself.
    Lost(&'static str),
    /// What became of the workers' nodes.
    News(Event),
}

/// What a call is for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    Life,
    Contend(u64),
    Find(u64),
    Step,
    Before(Path),
    Own,
    RaiseRead {
        above: Term,
        tries: u32,
    },
    Raise {
        above: Term,
        term: Term,
        tries: u32,
    },
    EvictRead {
        place: usize,
        incarnation: Incarnation,
        tries: u32,
    },
    Evict {
        place: usize,
        incarnation: Incarnation,
        tries: u32,
    },
    /// A contender that is given up.
    Remove(Path),
    Feed,
    /// Whatever comes of it.
    Nothing,
}

/// Where its contender is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lock {
    None,
    /// It is being made, or looked for.
    Unknown,
    /// In doubt: a heartbeat has to commit before anybody looks where it stands.
    Parked(u64, SimTime),
    Queued(u64),
    /// First, since then; a heartbeat sent after that has to commit.
    First(u64, SimTime),
    Leading(u64),
}

/// A coordinator's candidacy, with its process.
#[derive(Debug)]
pub(super) struct Candidacy {
    pub(super) client: usize,
    life: ServiceLife,
    former: BTreeSet<SessionId>,
    lease: Duration,
    lock: Lock,
    /// The contender whose change is waited for.
    before: Option<Path>,
    pub(super) calls: BTreeMap<u64, Purpose>,
    pub(super) feed: Option<RosterFeed>,
    /// Timers of former sessions do not count.
    round: u64,
}

impl Candidacy {
    const fn name(&self) -> Option<u64> {
        match self.lock {
            Lock::None | Lock::Unknown => None,
            Lock::Parked(name, _) | Lock::Queued(name) | Lock::First(name, _) | Lock::Leading(name) => Some(name),
        }
    }

    fn leads(&self) -> Option<Path> {
        match self.lock {
            Lock::Leading(name) => Some((Dir::Locks, name)),
            _ => None,
        }
    }

    /// How often it looks at the time.
    fn pace(&self) -> SimTime {
        u64::try_from(self.lease.as_nanos()).unwrap_or(SimTime::MAX) / 8
    }
}

impl ZooKeeper {
    /// The process of a coordinator begins.
    pub(super) fn candidate_starts(&mut self, n: usize) {
        self.candidate_ends(n, false);
        let lease = self.rng.duration(400, 2_000);
        self.candidate_enters(n, lease, BTreeSet::new());
    }

    fn candidate_enters(&mut self, n: usize, lease: Duration, former: BTreeSet<SessionId>) {
        self.rounds += 1;
        let round = self.rounds;
        let timeout = timeout(lease).max(self.tick * 2);
        let client = self.open_client(Who::Coordinator(n), timeout);
        let number = n as u64;
        let profile = Profile {
            weight: 1,
            zone: String::new(),
            host: String::new(),
            drivers: DriverOffers::default(),
            version: String::new(),
            pid: 0,
            lease: Duration::ZERO,
        };
        let places = ((Dir::Coordinators, number), (Dir::CoordinatorLeases, number));
        let life = ServiceLife::new(places.0, places.1, Arc::new(profile), lease, timeout);
        let candidate = Candidacy {
            client,
            life,
            former,
            lease,
            lock: Lock::None,
            before: None,
            calls: BTreeMap::new(),
            feed: None,
            round,
        };
        self.candidates.insert(n, candidate);
        self.candidate_again(n);
    }

    /// The process ends; with `farewell` in good order.
    pub(super) fn candidate_ends(&mut self, n: usize, farewell: bool) {
        let Some(candidate) = self.candidates.remove(&n) else { return };
        if farewell {
            self.close_client(candidate.client);
        } else {
            self.kill_client(candidate.client);
        }
    }

    /// Writes a new term, above `above` and the service's own.
    pub(super) fn candidate_raises(&mut self, n: usize, above: Term) {
        if self.candidates.get(&n).is_some_and(|candidate| candidate.leads().is_some()) {
            self.ask_for(n, ZkCall::Read(TERM), Purpose::RaiseRead { above, tries: TRIES });
        } else {
            self.news.push_back(ServiceEvent::Coordinator(n, CandidateNews::Lost("it did not lead any more")));
        }
    }

    /// Begins to tell what becomes of the workers' nodes.
    pub(super) fn candidate_follows(&mut self, n: usize) {
        if let Some(candidate) = self.candidates.get_mut(&n).filter(|candidate| candidate.leads().is_some()) {
            candidate.feed = Some(RosterFeed::default());
            self.feed_begins(n);
        }
    }

    /// Evicts a life of a worker.
    pub(super) fn candidate_evicts(&mut self, n: usize, worker: &WorkerId, incarnation: Incarnation) {
        let place = feed::place(worker) as usize;
        let Some(candidate) = self.candidates.get_mut(&n) else { return };
        if let Some(feed) = &mut candidate.feed {
            feed.suspect(worker);
        }
        let purpose = Purpose::EvictRead { place, incarnation, tries: TRIES };
        self.ask_for(n, ZkCall::Read((Dir::Leases, place as u64)), purpose);
    }

    /// Gives the leadership up; it contends again, behind all others.
    pub(super) fn candidate_resigns(&mut self, n: usize) {
        let Some(candidate) = self.candidates.get_mut(&n) else { return };
        candidate.feed = None;
        candidate.before = None;
        if let Some(name) = candidate.name() {
            candidate.lock = Lock::None;
            self.remove_contender(n, (Dir::Locks, name));
        }
        self.contend(n);
    }

    /// Tried until it is known to be gone: what is forgotten there would keep everybody else from leading.
    fn remove_contender(&mut self, n: usize, path: Path) {
        self.ask_for(n, ZkCall::Write(vec![TxnOp::Delete { path, version: None }]), Purpose::Remove(path));
    }

    /// Asks something for a coordinator.
    pub(super) fn ask_for(&mut self, n: usize, call: ZkCall, purpose: Purpose) -> u64 {
        let Some(client) = self.candidates.get(&n).map(|candidate| candidate.client) else { return 0 };
        let id = self.call(client, call);
        if let Some(candidate) = self.candidates.get_mut(&n) {
            candidate.calls.insert(id, purpose);
        }
        id
    }

    fn contend(&mut self, n: usize) {
        self.marks += 1;
        let mark = self.marks;
        let Some(candidate) = self.candidates.get_mut(&n) else { return };
        if candidate.lock != Lock::None || !candidate.life.has_begun() {
            return;
        }
        candidate.lock = Lock::Unknown;
        let ops = vec![TxnOp::Contend { mark, data: Data::Contender(n) }];
        self.ask_for(n, ZkCall::Write(ops), Purpose::Contend(mark));
    }

    fn step(&mut self, n: usize) {
        self.ask_for(n, ZkCall::List(Dir::Locks), Purpose::Step);
    }

    /// Has a heartbeat sent as soon as none is under way.
    pub(super) fn kick(&mut self, n: usize) {
        self.candidate_beats(n, true);
    }

    fn candidate_beats(&mut self, n: usize, wanted: bool) {
        let now = self.now;
        let Some(candidate) = self.candidates.get_mut(&n) else { return };
        let session = self.clients[candidate.client].session.unwrap_or_default();
        let step = candidate.life.beat(now, session, wanted);
        self.life_goes_on(n, step);
    }

    fn candidate_again(&mut self, n: usize) {
        let Some(candidate) = self.candidates.get(&n) else { return };
        let (pace, round) = (candidate.pace(), candidate.round);
        self.out.push((self.now + pace, ServiceTask::Candidate(n, round)));
    }

    /// What time brings about for a coordinator.
    pub(super) fn candidate_looks(&mut self, n: usize, round: u64) {
        let now = self.now;
        let Some(candidate) = self.candidates.get_mut(&n).filter(|candidate| candidate.round == round) else { return };
        if candidate.life.stands_until().is_some_and(|until| now >= until)
            && let Lock::Leading(name) | Lock::First(name, _) = candidate.lock
        {
            candidate.lock = Lock::Parked(name, now);
            self.lost(n, "heartbeats have not committed for a lease");
            self.kick(n);
        }
        self.candidate_beats(n, false);
        if self.candidates.get(&n).is_none_or(|candidate| candidate.round != round) {
            // Its life was over, and another one begins.
            return;
        }
        self.contend(n);
        if self.candidates.get(&n).is_some_and(|candidate| self.clients[candidate.client].connected) {
            self.take_name(n);
        }
        self.feed_looks(n);
        self.candidate_again(n);
    }

    fn take_name(&mut self, n: usize) {
        let now = self.now;
        if let Some(call) = self.candidates.get_mut(&n).and_then(|candidate| candidate.life.enter(now)) {
            self.ask_for(n, call, Purpose::Life);
        }
    }

    fn lost(&mut self, n: usize, why: &'static str) {
        if let Some(candidate) = self.candidates.get_mut(&n) {
            candidate.feed = None;
        }
        self.news.push_back(ServiceEvent::Coordinator(n, CandidateNews::Lost(why)));
    }

    /// The life is over: another session begins another one.
    fn candidate_over(&mut self, n: usize) {
        let Some(mut candidate) = self.candidates.remove(&n) else { return };
        candidate.former.extend(self.clients[candidate.client].session);
        if candidate.leads().is_some() {
            self.lost(n, "the session is over");
        }
        self.close_client(candidate.client);
        self.candidate_enters(n, candidate.lease, candidate.former);
    }

    pub(super) fn candidate_told(&mut self, n: usize, client: usize, told: ClientEvent) {
        let Some(candidate) = self.candidates.get_mut(&n).filter(|candidate| candidate.client == client) else {
            return;
        };
        match told {
            ClientEvent::Connected => {
                self.take_name(n);
                self.look_at_lock(n);
                self.feed_begins(n);
            }
            ClientEvent::Disconnected => self.feed_breaks(n),
            ClientEvent::Over => self.candidate_over(n),
            ClientEvent::Event(path, change) => {
                if candidate.before == Some(path) {
                    candidate.before = None;
                    self.look_at_lock(n);
                } else if path.0 != Dir::Locks {
                    self.feed_event(n, path, change);
                }
            }
            ClientEvent::Answer(id, answer) => {
                if let Some(purpose) = candidate.calls.remove(&id) {
                    self.candidate_answered(n, id, purpose, answer);
                }
            }
        }
    }

    /// Looks where the contender stands, or, for a leader, whether it is still there.
    fn look_at_lock(&mut self, n: usize) {
        match self.candidates.get(&n).map(|candidate| candidate.lock) {
            Some(Lock::Queued(_) | Lock::First(..)) => self.step(n),
            Some(Lock::Leading(name)) => {
                self.ask_for(n, ZkCall::ReadAndWatch((Dir::Locks, name)), Purpose::Own);
            }
            _ => {}
        }
    }

    fn candidate_answered(&mut self, n: usize, id: u64, purpose: Purpose, answer: Result<ZkReply, ZkFailure>) {
        match purpose {
            Purpose::Life => self.life_answered(n, answer),
            Purpose::Contend(mark) => match answer.map(ZkReply::wrote) {
                Ok(Ok(wrote)) => {
                    if let Some((path, _)) = wrote.first() {
                        self.queued(n, path.1);
                    }
                }
                // The next look tries again.
                Ok(Err(_)) => self.set_lock(n, Lock::None),
                // Not before it is known that there is none: two would wait for each other.
                Err(_) => self.find(n, mark),
            },
            Purpose::Find(own) => match answer {
                Ok(ZkReply::Listed(names)) => match names.into_iter().find(|name| mark(*name) == own) {
                    Some(name) => self.queued(n, name),
                    None => self.set_lock(n, Lock::None),
                },
                _ => self.find(n, own),
            },
            Purpose::Step => {
                // What failed is looked at again when the connection stands.
                if let Ok(ZkReply::Listed(names)) = answer {
                    self.stepped(n, &names);
                }
            }
            Purpose::Before(path) => {
                if let Ok(reply) = answer {
                    let there = reply.node().is_some();
                    if let Some(candidate) = self.candidates.get_mut(&n) {
                        candidate.before = there.then_some(path);
                    }
                    if !there {
                        self.step(n);
                    }
                }
            }
            Purpose::Own => {
                if let Ok(reply) = answer {
                    let there = reply.node().is_some();
                    if let Some(candidate) = self.candidates.get_mut(&n)
                        && let Some(path) = candidate.leads()
                    {
                        candidate.before = there.then_some(path);
                        if !there {
                            candidate.lock = Lock::None;
                            self.lost(n, "the lock is gone");
                        }
                    }
                }
            }
            Purpose::RaiseRead { above, tries } => self.raise_read(n, above, tries, answer),
            Purpose::Raise { above, term, tries } => self.raised(n, above, term, tries, answer),
            Purpose::EvictRead { place, incarnation, tries } => self.evict_read(n, place, incarnation, tries, answer),
            Purpose::Evict { place, incarnation, tries } => {
                if let (Ok(Err(ZkFailure::BadVersion)), Some(left)) = (answer.map(ZkReply::wrote), tries.checked_sub(1))
                {
                    let purpose = Purpose::EvictRead { place, incarnation, tries: left };
                    self.ask_for(n, ZkCall::Read((Dir::Leases, place as u64)), purpose);
                }
            }
            Purpose::Remove(path) => {
                if answer.is_err() {
                    self.remove_contender(n, path);
                }
            }
            Purpose::Feed => self.feed_answered(n, id, answer),
            Purpose::Nothing => {}
        }
    }

    fn life_answered(&mut self, n: usize, answer: Result<ZkReply, ZkFailure>) {
        let now = self.now;
        let Some(candidate) = self.candidates.get_mut(&n) else { return };
        let session = self.clients[candidate.client].session.unwrap_or_default();
        let step = candidate.life.answered(now, session, &candidate.former, answer);
        self.life_goes_on(n, step);
    }

    fn life_goes_on(&mut self, n: usize, (call, news): (Option<ZkCall>, Option<LifeNews>)) {
        if let Some(call) = call {
            self.ask_for(n, call, Purpose::Life);
        }
        match news {
            Some(LifeNews::Joined(_, sent)) => {
                self.beat_committed(n, sent);
                self.contend(n);
            }
            Some(LifeNews::Committed(sent)) => self.beat_committed(n, sent),
            Some(LifeNews::Over) => self.candidate_over(n),
            None => {}
        }
    }

    fn beat_committed(&mut self, n: usize, sent: SimTime) {
        let Some(candidate) = self.candidates.get_mut(&n) else { return };
        match candidate.lock {
            Lock::First(name, since) if sent >= since => {
                candidate.lock = Lock::Leading(name);
                self.note(|| format!("coordinator {n} is elected"));
                self.news.push_back(ServiceEvent::Coordinator(n, CandidateNews::Elected));
                self.look_at_lock(n);
            }
            Lock::Parked(name, since) if sent >= since => {
                candidate.lock = Lock::Queued(name);
                self.step(n);
            }
            _ => {}
        }
        self.feed_written(n, sent);
    }

    fn set_lock(&mut self, n: usize, lock: Lock) {
        if let Some(candidate) = self.candidates.get_mut(&n) {
            candidate.lock = lock;
        }
    }

    fn queued(&mut self, n: usize, name: u64) {
        self.set_lock(n, Lock::Queued(name));
        self.step(n);
    }

    /// Looks for a contender whose making had no answer, on a server that knows of everything committed before.
    fn find(&mut self, n: usize, mark: u64) {
        self.ask_for(n, ZkCall::Write(Vec::new()), Purpose::Nothing);
        self.ask_for(n, ZkCall::List(Dir::Locks), Purpose::Find(mark));
    }

    fn stepped(&mut self, n: usize, names: &[u64]) {
        let now = self.now;
        let Some(candidate) = self.candidates.get_mut(&n) else { return };
        let (Lock::Queued(own) | Lock::First(own, _)) = candidate.lock else { return };
        match names.iter().position(|name| *name == own) {
            None => {
                candidate.lock = Lock::None;
                self.contend(n);
            }
            Some(0) => {
                if let Lock::Queued(_) = candidate.lock {
                    candidate.lock = Lock::First(own, now);
                    self.kick(n);
                }
            }
            Some(at) => {
                candidate.lock = Lock::Queued(own);
                let before = (Dir::Locks, names[at - 1]);
                self.ask_for(n, ZkCall::ReadAndWatch(before), Purpose::Before(before));
            }
        }
    }

    fn raise_read(&mut self, n: usize, above: Term, tries: u32, answer: Result<ZkReply, ZkFailure>) {
        let Some(lock) = self.candidates.get(&n).and_then(Candidacy::leads) else { return };
        let Ok(reply) = answer else { return self.give_up(n) };
        let node = reply.node();
        let found = node.as_ref().and_then(|node| match node.data {
            Data::Term(term) => Some(term),
            _ => None,
        });
        let Some(term) = Term::following(found, above) else { return self.give_up(n) };
        let write = match node {
            Some(node) => TxnOp::Set { path: TERM, data: Data::Term(term), version: Some(node.version) },
            None => TxnOp::Create { path: TERM, data: Data::Term(term), ephemeral: false },
        };
        let purpose = Purpose::Raise { above, term, tries };
        self.ask_for(n, ZkCall::Write(vec![TxnOp::Check(lock), write]), purpose);
    }

    fn raised(&mut self, n: usize, above: Term, term: Term, tries: u32, answer: Result<ZkReply, ZkFailure>) {
        if self.candidates.get(&n).and_then(Candidacy::leads).is_none() {
            return;
        }
        match (answer.map(ZkReply::wrote), tries.checked_sub(1)) {
            (Ok(Ok(_)), _) => self.news.push_back(ServiceEvent::Coordinator(n, CandidateNews::Raised { term })),
            (Ok(Err(ZkFailure::BadVersion | ZkFailure::NodeExists | ZkFailure::NoNode)), Some(tries)) => {
                // What was read may have been an older state of a server that lags.
                self.ask_for(n, ZkCall::Write(Vec::new()), Purpose::Nothing);
                self.ask_for(n, ZkCall::Read(TERM), Purpose::RaiseRead { above, tries });
            }
            _ => self.give_up(n),
        }
    }

    /// The term could not be raised, or nobody knows: the leadership is given up.
    fn give_up(&mut self, n: usize) {
        self.lost(n, "the term was not raised");
        self.candidate_resigns(n);
    }

    fn evict_read(
        &mut self,
        n: usize,
        place: usize,
        incarnation: Incarnation,
        tries: u32,
        answer: Result<ZkReply, ZkFailure>,
    ) {
        let Some(lock) = self.candidates.get(&n).and_then(Candidacy::leads) else { return };
        let Some(node) = answer.ok().and_then(ZkReply::node).filter(|node| node.incarnation() == incarnation) else {
            return;
        };
        let Data::Beat { lease, .. } = node.data else { return };
        let path = (Dir::Leases, place as u64);
        let mark = TxnOp::Set { path, data: Data::Evicted { lease }, version: Some(node.version) };
        let purpose = Purpose::Evict { place, incarnation, tries };
        self.ask_for(n, ZkCall::Write(vec![TxnOp::Check(lock), mark]), purpose);
    }
}

//! A coordinator's part: a member of its group at all times, and a contender. [`common::election`] decides when it leads;
//! here that is carried out in the simulated service, as `coordination::zookeeper`'s `candidate`, `lock` and `leadership` do
//! in a real one. What an elected one writes is written with a check of its own lock node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use common::driver::DriverOffers;
use common::election::{Election, ElectionAction, ElectionEvent, LostReason, WRITE_TRIES};
use common::membership::CallFailure;
use common::{Incarnation, Profile, Term, Timestamp, WorkerId};
use coordinator_core::machine::Event;

use super::client::ClientEvent;
use super::connection::{ZkCall, ZkReply};
use super::feed::{self, RosterFeed};
use super::life::{LifeEvent, ServiceLife, of};
use super::member::timeout;
use super::tree::{Data, Dir, Path, SessionId, TERM, TxnOp, ZkFailure, mark};
use super::{ServiceEvent, ServiceTask, Who, ZooKeeper};
use crate::SimTime;

/// What a coordinator hears of the service.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every value is the large one, and a run makes millions of them")]
pub(crate) enum CandidateEvent {
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
    Roster(Event),
}

/// What a call is for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    Life,
    Enter,
    Find,
    List,
    Watch(Path),
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

/// A coordinator's candidacy, with its process.
#[derive(Debug)]
pub(super) struct Candidacy {
    pub(super) client: usize,
    life: ServiceLife,
    former: BTreeSet<SessionId>,
    lease: Duration,
    election: Election<u64>,
    /// Marks the contender that was made last, so that it is found again.
    mark: u64,
    /// The election goes on when the connection stands, or with the next look at the time.
    paused: bool,
    /// The contender whose change is waited for.
    watched: Option<Path>,
    pub(super) calls: BTreeMap<u64, Purpose>,
    pub(super) feed: Option<RosterFeed>,
    /// Timers of former sessions do not count.
    round: u64,
}

impl Candidacy {
    fn leads(&self) -> Option<Path> {
        self.election.lock().map(|name| (Dir::Locks, *name))
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
            process: None,
            lease: Duration::ZERO,
        };
        let places = ((Dir::Coordinators, number), (Dir::CoordinatorLeases, number));
        let life = ServiceLife::new(places.0, places.1, Arc::new(profile), lease, timeout);
        let candidate = Candidacy {
            client,
            life,
            former,
            lease,
            election: Election::default(),
            mark: 0,
            paused: false,
            watched: None,
            calls: BTreeMap::new(),
            feed: None,
            round,
        };
        self.candidates.insert(n, candidate);
        self.candidate_again(n);
    }

    /// The process ends; in good order or not.
    pub(super) fn candidate_ends(&mut self, n: usize, in_order: bool) {
        let Some(candidate) = self.candidates.remove(&n) else { return };
        if in_order {
            self.close_client(candidate.client);
        } else {
            self.kill_client(candidate.client);
        }
    }

    /// Writes a new term, above `above` and the service's own.
    pub(super) fn candidate_raises(&mut self, n: usize, above: Term) {
        if self.candidates.get(&n).is_some_and(|candidate| candidate.leads().is_some()) {
            self.ask_for(n, ZkCall::Read(TERM), Purpose::RaiseRead { above, tries: WRITE_TRIES });
        } else {
            self.news.push_back(ServiceEvent::Coordinator(n, CandidateEvent::Lost("it did not lead any more")));
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
        let purpose = Purpose::EvictRead { place, incarnation, tries: WRITE_TRIES };
        self.ask_for(n, ZkCall::Read((Dir::Leases, place as u64)), purpose);
    }

    /// Gives the leadership up; it contends again, behind all others.
    pub(super) fn candidate_resigns(&mut self, n: usize) {
        let Some(candidate) = self.candidates.get_mut(&n) else { return };
        candidate.feed = None;
        candidate.watched = None;
        if let Some(name) = candidate.election.node().copied() {
            candidate.election = Election::default();
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

    /// Begins to contend, or goes on with it after a pause.
    fn contend(&mut self, n: usize) {
        if let Some(candidate) = self.candidates.get_mut(&n)
            && (candidate.election.is_idle() || std::mem::take(&mut candidate.paused))
        {
            self.contest(n, ElectionEvent::Continue);
        }
    }

    /// Has the election take in one fact, and carries out what follows.
    fn contest(&mut self, n: usize, event: ElectionEvent<u64>) {
        let Some(candidate) = self.candidates.get_mut(&n) else { return };
        if candidate.election.is_idle() && !candidate.life.has_begun() {
            return;
        }
        match candidate.election.step(Timestamp::from_nanos(self.now), event) {
            Some(ElectionAction::Enter) => {
                self.marks += 1;
                candidate.mark = self.marks;
                let ops = vec![TxnOp::Contend { mark: self.marks, data: Data::Contender(n) }];
                self.ask_for(n, ZkCall::Write(ops), Purpose::Enter);
            }
            // On a server that knows of everything committed before.
            Some(ElectionAction::Find) => {
                self.ask_for(n, ZkCall::Write(Vec::new()), Purpose::Nothing);
                self.ask_for(n, ZkCall::List(Dir::Locks), Purpose::Find);
            }
            Some(ElectionAction::List) => _ = self.ask_for(n, ZkCall::List(Dir::Locks), Purpose::List),
            Some(ElectionAction::Watch(name)) => {
                let path = (Dir::Locks, name);
                candidate.watched = Some(path);
                self.ask_for(n, ZkCall::ReadAndWatch(path), Purpose::Watch(path));
            }
            Some(ElectionAction::Confirm(_)) => self.kick(n),
            Some(ElectionAction::Pause) => candidate.paused = true,
            Some(ElectionAction::Elected) => {
                self.note(|| format!("coordinator {n} is elected"));
                self.news.push_back(ServiceEvent::Coordinator(n, CandidateEvent::Elected));
                self.contest(n, ElectionEvent::Continue);
            }
            Some(ElectionAction::Lost(LostReason::LockGone)) => self.lost(n, "the lock is gone"),
            Some(ElectionAction::Lost(LostReason::Doubt)) => {
                self.lost(n, "heartbeats have not committed for a lease");
                self.contest(n, ElectionEvent::Continue);
            }
            Some(ElectionAction::Deleted) => self.contest(n, ElectionEvent::Continue),
            // The next look tries again, if the session lives.
            Some(ElectionAction::Fail(_)) | None => {}
        }
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
        if candidate.life.stands_until().is_some_and(|until| now >= until) {
            self.contest(n, ElectionEvent::Doubt);
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
        self.news.push_back(ServiceEvent::Coordinator(n, CandidateEvent::Lost(why)));
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

    pub(super) fn candidate_client_event(&mut self, n: usize, client: usize, event: ClientEvent) {
        let Some(candidate) = self.candidates.get_mut(&n).filter(|candidate| candidate.client == client) else {
            return;
        };
        match event {
            ClientEvent::Connected => {
                self.take_name(n);
                self.contest(n, ElectionEvent::Continue);
                self.feed_begins(n);
            }
            ClientEvent::Disconnected => self.feed_breaks(n),
            ClientEvent::Over => self.candidate_over(n),
            ClientEvent::Event(path, change) => {
                if candidate.watched == Some(path) {
                    self.contest(n, ElectionEvent::Changed);
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

    fn candidate_answered(&mut self, n: usize, id: u64, purpose: Purpose, answer: Result<ZkReply, ZkFailure>) {
        match purpose {
            Purpose::Life => self.life_answered(n, answer),
            Purpose::Enter => {
                let made = answer.and_then(ZkReply::wrote).map_err(of).and_then(|wrote| match wrote.first() {
                    Some((path, _)) => Ok(path.1),
                    None => Err(CallFailure::Raced),
                });
                self.contest(n, ElectionEvent::Entered(made));
            }
            Purpose::Find => {
                let own = self.candidates.get(&n).map_or(0, |candidate| candidate.mark);
                let found = listed(answer).map(|names| names.into_iter().find(|name| mark(*name) == own));
                self.contest(n, ElectionEvent::Found(found));
            }
            Purpose::List => self.contest(n, ElectionEvent::Listed(listed(answer))),
            Purpose::Watch(path) => {
                let watched = self.candidates.get(&n).is_some_and(|candidate| candidate.watched == Some(path));
                // A watch that failed is set again with the next connection.
                if watched && answer.is_ok_and(|reply| reply.node().is_none()) {
                    self.contest(n, ElectionEvent::Absent);
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

    fn life_goes_on(&mut self, n: usize, (call, news): (Option<ZkCall>, Option<LifeEvent>)) {
        if let Some(call) = call {
            self.ask_for(n, call, Purpose::Life);
        }
        match news {
            Some(LifeEvent::Joined(_, sent)) => {
                self.beat_committed(n, sent);
                self.contend(n);
            }
            Some(LifeEvent::Committed(sent)) => self.beat_committed(n, sent),
            Some(LifeEvent::Over) => self.candidate_over(n),
            None => {}
        }
    }

    fn beat_committed(&mut self, n: usize, sent: SimTime) {
        self.contest(n, ElectionEvent::Committed(Timestamp::from_nanos(sent)));
        self.feed_written(n, sent);
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
            (Ok(Ok(_)), _) => self.news.push_back(ServiceEvent::Coordinator(n, CandidateEvent::Raised { term })),
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

fn listed(answer: Result<ZkReply, ZkFailure>) -> Result<Vec<u64>, CallFailure> {
    match answer.map_err(of)? {
        ZkReply::Listed(names) => Ok(names),
        _ => Err(CallFailure::Raced),
    }
}

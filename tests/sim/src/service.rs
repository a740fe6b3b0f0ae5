//! The coordination service, after ZooKeeper: an ensemble of servers with one log, and what the products do with it.
//!
//! | file         | what it models                                                                         |
//! |--------------|----------------------------------------------------------------------------------------|
//! | `tree`       | nodes, sessions, transactions                                                          |
//! | `ensemble`   | servers: quorum writes, followers that lag, elections, expiry of sessions              |
//! | `connection` | a server's side of a connection: order of calls, watches                               |
//! | `client`     | the client library: reconnections, sessions that are over                              |
//! | `life`       | nodes and heartbeats of a member                                                       |
//! | `member`     | a worker: joins, beats, leaves                                                         |
//! | `candidate`  | a coordinator: contends, raises terms, evicts                                          |
//! | `feed`       | the roster that ships, around it a client                                              |
//! | `faults`     | what happens to servers, to the ways between, and to nodes                             |
//!
//! Nothing of this knows the world's appliances or streams. It has a chance of its own, so that a fault less elsewhere
//! changes nothing in here. What was measured of ZooKeeper, and is kept here: a write through a follower does not keep its
//! session alive; a leader that was paused may end sessions before it takes what waits; a server that was cut off answers
//! from what it has; events carry no number of a transaction.

mod candidate;
mod client;
mod connection;
mod ensemble;
mod faults;
mod feed;
mod life;
mod member;
mod tree;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use common::Life;
use common::Term;

use self::candidate::Candidacy;
pub(super) use self::candidate::CandidateEvent;
use self::client::{ClientEvent, ZkClient};
use self::connection::Connection;
use self::ensemble::{PeerMessage, ZkServer};
use self::member::GroupMember;
pub(super) use self::member::{GroupReply, GroupRequest};
use super::SimTime;
use super::net::Lane;
use super::rng::Rng;
use super::world::{self, SimWorld};

/// Whose client it is: it pauses and is cut off with its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    Worker(usize),
    Coordinator(usize),
}

/// A way that messages take; each can be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum NetworkPath {
    Up(Who, usize),
    Down(usize, Who),
    Servers(usize, usize),
}

/// Something that happens in the service, or to its clients.
#[derive(Clone, Copy, Debug)]
pub(super) enum ServiceTask {
    /// A message from one server reaches another.
    Peer(usize, usize),
    /// A message of a connection reaches its server.
    Up(usize),
    /// A message of a connection reaches its client.
    Down(Who, usize),
    /// A server looks at the time.
    Tick(usize),
    Elect,
    /// Something happens to the nodes of a worker.
    Strike(u64),
    StartServer(usize),
    /// A client looks at the time.
    Client(Who, usize),
    /// A client tries another server.
    Connect(Who, usize),
    /// A coordinator looks at the time, in this round.
    Candidate(usize, u64),
}

impl ServiceTask {
    /// Whose process takes it; `None` when it is not a process of the world.
    pub(super) const fn owner(self) -> Option<Who> {
        match self {
            Self::Down(who, _) | Self::Client(who, _) | Self::Connect(who, _) => Some(who),
            Self::Candidate(n, _) => Some(Who::Coordinator(n)),
            Self::Peer(..) | Self::Up(_) | Self::Tick(_) | Self::Elect | Self::Strike(_) | Self::StartServer(_) => None,
        }
    }
}

/// What processes hear.
#[derive(Debug)]
enum ServiceEvent {
    Worker { place: usize, process: u64, answer: GroupReply },
    Coordinator(usize, CandidateEvent),
}

/// The service.
#[derive(Debug)]
pub(super) struct ZooKeeper {
    now: SimTime,
    rng: Rng,
    faulty: bool,
    /// Percent of messages that are much slower than others.
    slow: u64,
    tick: SimTime,
    servers: Vec<ZkServer>,
    /// From each server to each other one.
    peers: Vec<Lane<(u64, PeerMessage)>>,
    connections: Vec<Connection>,
    clients: Vec<ZkClient>,
    members: BTreeMap<usize, GroupMember>,
    candidates: BTreeMap<usize, Candidacy>,
    /// Until when nothing gets through.
    cuts: BTreeMap<NetworkPath, SimTime>,
    electing: bool,
    joinings: u64,
    sessions: u64,
    marks: u64,
    rounds: u64,
    /// Who each host believes to lead.
    shown: BTreeMap<Who, usize>,
    client_events: VecDeque<(usize, ClientEvent)>,
    news: VecDeque<ServiceEvent>,
    out: Vec<(SimTime, ServiceTask)>,
    notes: Option<Vec<String>>,
}

impl Default for ZooKeeper {
    fn default() -> Self {
        Self {
            now: 0,
            rng: Rng::new(0),
            faulty: false,
            slow: 0,
            tick: 200_000_000,
            servers: Vec::new(),
            peers: Vec::new(),
            connections: Vec::new(),
            clients: Vec::new(),
            members: BTreeMap::new(),
            candidates: BTreeMap::new(),
            cuts: BTreeMap::new(),
            electing: false,
            joinings: 0,
            sessions: 0,
            marks: 0,
            rounds: 0,
            shown: BTreeMap::new(),
            client_events: VecDeque::new(),
            news: VecDeque::new(),
            out: Vec::new(),
            notes: None,
        }
    }
}

impl ZooKeeper {
    /// The service of a seed, with its servers.
    fn new(seed: u64, slow: u64, record: bool) -> Self {
        let mut rng = Rng::new(seed ^ 0x7a6f_6f6b);
        let servers = [1, 3, 3, 3, 3, 3, 5][rng.index(7)];
        let tick = [100, 200, 400][rng.index(3)] * 1_000_000;
        Self {
            rng,
            slow,
            tick,
            servers: (0..servers).map(|_| ZkServer::new()).collect(),
            peers: (0..servers * servers).map(|_| Lane::default()).collect(),
            notes: record.then(Vec::new),
            ..Self::default()
        }
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(notes) = &mut self.notes {
            notes.push(text());
        }
    }

    fn delay(&mut self) -> SimTime {
        if self.faulty && self.rng.chance(self.slow) { self.rng.millis(5, 900) } else { self.rng.micros(50, 1_500) }
    }

    fn tell(&mut self, client: usize, event: ClientEvent) {
        self.client_events.push_back((client, event));
    }

    fn take(&mut self, event: ServiceTask) {
        let server = match event {
            ServiceTask::Peer(_, to) => Some(to),
            ServiceTask::Up(connection) => Some(self.connections[connection].server),
            ServiceTask::Tick(server) => Some(server),
            _ => None,
        };
        if let Some(resumes) = server.map(|n| self.servers[n].paused_until).filter(|until| *until > self.now) {
            return self.out.push((resumes, event));
        }
        match event {
            ServiceTask::Peer(from, to) => self.peer_arrives(from, to),
            ServiceTask::Up(connection) => self.up_arrives(connection),
            ServiceTask::Down(_, connection) => self.down_arrives(connection),
            ServiceTask::Tick(server) => self.tick(server),
            ServiceTask::Elect => self.elect(),
            ServiceTask::Strike(place) => {
                if self.faulty {
                    self.strike(place);
                }
            }
            ServiceTask::StartServer(server) => self.start_server(server),
            ServiceTask::Client(_, client) => self.client_tick(client),
            ServiceTask::Connect(_, client) => self.connect_again(client),
            ServiceTask::Candidate(n, round) => self.candidate_looks(n, round),
        }
    }

    /// Hands the events of clients to their users, until no further ones follow.
    fn settle(&mut self) {
        while let Some((client, event)) = self.client_events.pop_front() {
            match self.clients[client].who {
                Who::Worker(place) => self.member_client_event(place, client, event),
                Who::Coordinator(n) => self.candidate_client_event(n, client, event),
            }
        }
    }

    /// The coordinator that stands first, as the server has it that this host's client is connected to.
    fn look_who_leads(&mut self, who: Who) -> Option<usize> {
        let client = match who {
            Who::Worker(place) => self.member_client(place),
            Who::Coordinator(n) => self.candidates.get(&n).map(|candidate| candidate.client),
        };
        let client = client.map(|client| &self.clients[client]).filter(|client| client.connected);
        let server = client.and_then(|client| client.connection).map(|number| self.connections[number].server);
        if let Some(first) = server.and_then(|server| self.servers[server].tree.first_contender()) {
            self.shown.insert(who, first);
        }
        self.shown.get(&who).copied()
    }
}

impl SimWorld {
    /// Does something with the service, and sees to what follows.
    fn with_service<T>(&mut self, act: impl FnOnce(&mut ZooKeeper) -> T) -> T {
        self.service.now = self.now;
        self.service.faulty = self.faulty();
        let result = act(&mut self.service);
        self.service.settle();
        for (at, event) in std::mem::take(&mut self.service.out) {
            self.at(at, world::SimEvent::Service(event));
        }
        if let Some(notes) = self.service.notes.as_mut().map(std::mem::take) {
            notes.into_iter().for_each(|text| self.note(|| text));
        }
        while let Some(news) = self.service.news.pop_front() {
            match news {
                ServiceEvent::Worker { place, process, answer } => {
                    if self.places[place].is_running(process) {
                        self.worker_answered(place, &answer);
                    }
                }
                ServiceEvent::Coordinator(n, news) => self.candidate_event(n, news),
            }
        }
        result
    }

    /// The service starts.
    pub(super) fn begin_service(&mut self) {
        self.service = ZooKeeper::new(self.seed, self.settings.slow_messages, self.is_recorded());
        self.with_service(ZooKeeper::start_ensemble);
    }

    pub(super) fn service_event(&mut self, event: ServiceTask) {
        if let ServiceTask::Strike(place) = event
            && self.faulty()
        {
            // Nobody tells it either.
            for coordinator in 0..self.coordinators.len() {
                let (there, back) = (world::SimHost::Worker(place as usize), world::SimHost::Coordinator(coordinator));
                self.cut(there, back, self.now + faults::STRUCK);
                self.cut(back, there, self.now + faults::STRUCK);
            }
        }
        self.with_service(|service| service.take(event));
    }

    /// Somebody's nodes, the servers, or the ways between: `what` says what happens to which, for so many milliseconds.
    pub(super) fn service_fault(&mut self, what: u32, amount: u32) {
        self.with_service(|service| service.fault(what, amount));
    }

    /// A host reaches no server, and is reached by none, before `until`.
    pub(super) fn service_cut_off(&mut self, who: Who, until: SimTime) {
        self.with_service(|service| service.cut_off(who, until));
    }

    /// Everything works from now on.
    pub(super) fn heal_service(&mut self) {
        self.with_service(ZooKeeper::heal);
    }

    /// A worker asks something of the service.
    pub(super) fn ask(&mut self, place: usize, process: u64, ask: GroupRequest) {
        let profile = self.places[place].profile.clone();
        self.with_service(|service| service.member_asks(place, process, ask, &profile));
    }

    /// The process of a worker is gone.
    pub(super) fn member_dies(&mut self, place: usize) {
        self.with_service(|service| service.member_dies(place));
    }

    /// The coordinator that a host believes to lead, which may not be so any more.
    pub(super) fn shown_leader(&mut self, who: Who) -> Option<usize> {
        self.with_service(|service| service.look_who_leads(who))
    }

    /// The process of a coordinator begins to contend.
    pub(super) fn candidate_starts(&mut self, n: usize) {
        self.with_service(|service| service.candidate_starts(n));
    }

    /// It ends, in good order or not.
    pub(super) fn candidate_ends(&mut self, n: usize, in_order: bool) {
        self.with_service(|service| service.candidate_ends(n, in_order));
    }

    /// An elected coordinator raises the term above `above` and the service's own.
    pub(super) fn candidate_raises(&mut self, n: usize, above: Term) {
        self.with_service(|service| service.candidate_raises(n, above));
    }

    /// It wants to hear what becomes of the workers' nodes.
    pub(super) fn candidate_follows(&mut self, n: usize) {
        self.with_service(|service| service.candidate_follows(n));
    }

    /// It evicts a life.
    pub(super) fn candidate_evicts(&mut self, n: usize, life: Life) {
        self.with_service(|service| service.candidate_evicts(n, &life.worker, life.incarnation));
    }

    /// It gives the leadership up, and contends anew.
    pub(super) fn candidate_resigns(&mut self, n: usize) {
        self.with_service(|service| service.candidate_resigns(n));
    }
}

//! The servers: one log, agreed on by a quorum, that each applies in its own time.
//!
//! The server that leads numbers writes, hands them to the others and commits what a quorum has logged. A follower learns
//! of commits late, and while it is cut off it goes on answering reads from what it has until it notices; so does a leader
//! that was deposed. Whoever notices drops its clients and looks for a leader: one that others still follow, or, among a
//! quorum of those that look, the one with the longest log. What had not committed by then may live on or be lost.
//!
//! Sessions are kept alive at the leader alone, by what its own clients send, by what followers pass on with their answers
//! to its pings, and by reconnections: never by a write that came through a follower. A new leader gives all a full timeout.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::tree::{SessionId, Tree, Txn, TxnOp, Zxid};
use super::{NetworkPath, ServiceTask, ZooKeeper};
use crate::SimTime;

/// Ticks without a word after which servers give each other up.
const SYNC_LIMIT: u64 = 5;

/// Bits of a transaction number that count within an epoch.
const COUNTER_BITS: u32 = 32;

/// Between servers. All but the first two belong to one time of following, and are dropped after it.
#[derive(Debug)]
pub(super) enum PeerMessage {
    Ping,
    /// The sessions heard of since the last answer.
    Pong(Vec<SessionId>),
    /// A write of a session that is connected to a follower.
    Forward {
        connection: usize,
        session: SessionId,
        ops: Vec<TxnOp>,
    },
    Propose(Arc<Txn>),
    /// So many transactions are in the log.
    Logged(usize),
    /// So many have committed.
    Commit(usize),
    /// Does the session of this connection stand?
    Revalidate {
        connection: usize,
        session: SessionId,
    },
    Revalidated {
        connection: usize,
        stands: bool,
    },
}

/// What a server is to the others.
#[derive(Debug)]
pub(super) enum ServerRole {
    Looking,
    Following {
        leader: usize,
        /// Which time of following.
        joining: u64,
        heard: SimTime,
    },
    Leading(Box<Leading>),
}

/// What only the leader keeps.
#[derive(Debug)]
pub(super) struct Leading {
    /// The state after everything that was proposed.
    head: Tree,
    counter: u64,
    followers: BTreeMap<usize, Follower>,
    pub(super) sessions: BTreeMap<SessionId, Tracked>,
}

#[derive(Debug)]
struct Follower {
    joining: u64,
    logged: usize,
    heard: SimTime,
}

/// A session as the leader tracks it.
#[derive(Debug)]
pub(super) struct Tracked {
    timeout: SimTime,
    pub(super) touched: SimTime,
    /// The connection it uses, as far as the leader has heard.
    connection: Option<usize>,
}

/// A server.
#[derive(Debug)]
pub(super) struct ZkServer {
    pub(super) role: ServerRole,
    epoch: u64,
    log: Vec<Arc<Txn>>,
    committed: usize,
    pub(super) tree: Tree,
    pub(super) connections: BTreeSet<usize>,
    touched: BTreeSet<SessionId>,
    pub(super) paused_until: SimTime,
    pub(super) down: bool,
}

impl ZkServer {
    pub(super) fn new() -> Self {
        Self {
            role: ServerRole::Looking,
            epoch: 0,
            log: Vec::new(),
            committed: 0,
            tree: Tree::default(),
            connections: BTreeSet::new(),
            touched: BTreeSet::new(),
            paused_until: 0,
            down: false,
        }
    }

    /// Whether it answers clients.
    pub(super) const fn serves(&self) -> bool {
        !self.down && !matches!(self.role, ServerRole::Looking)
    }

    fn last_logged(&self) -> Zxid {
        self.log.last().map_or(0, |txn| txn.zxid)
    }

    pub(super) fn leading(&mut self) -> Option<&mut Leading> {
        match &mut self.role {
            ServerRole::Leading(leading) => Some(leading),
            _ => None,
        }
    }
}

impl ZooKeeper {
    fn quorum(&self) -> usize {
        self.servers.len() / 2 + 1
    }

    pub(super) fn send_peer(&mut self, from: usize, to: usize, joining: u64, message: PeerMessage) {
        // Slow ones wait for no more than servers do for each other, most often.
        let at = (self.now + self.delay().min(self.tick)).max(self.open_at(NetworkPath::Servers(from, to)));
        let index = from * self.servers.len() + to;
        let at = self.peers[index].push(at, (joining, message));
        self.out.push((at, ServiceTask::Peer(from, to)));
    }

    /// The oldest message between two servers.
    pub(super) fn peer_arrives(&mut self, from: usize, to: usize) {
        let index = from * self.servers.len() + to;
        let (joining, message) = match self.peers[index].pop(self.now) {
            Ok(message) => message,
            Err(Some(later)) => return self.out.push((later, ServiceTask::Peer(from, to))),
            Err(None) => return,
        };
        let now = self.now;
        let server = &mut self.servers[to];
        if server.down {
            return;
        }
        match &mut server.role {
            ServerRole::Looking => {}
            ServerRole::Following { leader, joining: own, heard } if *leader == from && *own == joining => {
                *heard = now;
                self.follower_takes(to, from, joining, message);
            }
            ServerRole::Following { .. } => {}
            ServerRole::Leading(leading) => {
                let Some(follower) = leading.followers.get_mut(&from).filter(|f| f.joining == joining) else { return };
                follower.heard = now;
                self.leader_takes(to, from, joining, message);
            }
        }
    }

    fn follower_takes(&mut self, server: usize, leader: usize, joining: u64, message: PeerMessage) {
        match message {
            PeerMessage::Ping => {
                let touched = std::mem::take(&mut self.servers[server].touched);
                self.send_peer(server, leader, joining, PeerMessage::Pong(touched.into_iter().collect()));
            }
            PeerMessage::Propose(txn) => {
                self.servers[server].log.push(txn);
                let logged = self.servers[server].log.len();
                self.send_peer(server, leader, joining, PeerMessage::Logged(logged));
            }
            PeerMessage::Commit(length) => self.commit_to(server, length),
            PeerMessage::Revalidated { connection, stands } => self.revalidated(connection, stands),
            PeerMessage::Pong(_)
            | PeerMessage::Forward { .. }
            | PeerMessage::Logged(_)
            | PeerMessage::Revalidate { .. } => {}
        }
    }

    fn leader_takes(&mut self, server: usize, from: usize, joining: u64, message: PeerMessage) {
        let now = self.now;
        let Some(leading) = self.servers[server].leading() else { return };
        match message {
            PeerMessage::Pong(touched) => {
                for session in touched {
                    if let Some(tracked) = leading.sessions.get_mut(&session) {
                        tracked.touched = now;
                    }
                }
            }
            PeerMessage::Forward { connection, session, ops } => self.propose(server, Some(connection), session, ops),
            PeerMessage::Logged(length) => {
                if let Some(follower) = leading.followers.get_mut(&from) {
                    follower.logged = length;
                }
                self.commit_logged(server);
            }
            PeerMessage::Revalidate { connection, session } => {
                let stands = self.revalidate_here(server, connection, session);
                self.send_peer(server, from, joining, PeerMessage::Revalidated { connection, stands });
            }
            PeerMessage::Ping | PeerMessage::Propose(_) | PeerMessage::Commit(_) | PeerMessage::Revalidated { .. } => {}
        }
    }

    /// A session goes on with this connection, if the leader still knows it; it counts as heard of.
    pub(super) fn revalidate_here(&mut self, server: usize, connection: usize, session: SessionId) -> bool {
        let now = self.now;
        let tracked = self.servers[server].leading().and_then(|leading| leading.sessions.get_mut(&session));
        tracked.map(|tracked| (tracked.touched, tracked.connection) = (now, Some(connection))).is_some()
    }

    /// A server heard of a session.
    pub(super) fn touch(&mut self, server: usize, session: SessionId) {
        let now = self.now;
        match &mut self.servers[server].role {
            ServerRole::Leading(leading) => {
                if let Some(tracked) = leading.sessions.get_mut(&session) {
                    tracked.touched = now;
                }
            }
            ServerRole::Following { .. } => _ = self.servers[server].touched.insert(session),
            ServerRole::Looking => {}
        }
    }

    /// A write reaches the server its session is connected to.
    pub(super) fn write(&mut self, server: usize, connection: usize, session: SessionId, ops: Vec<TxnOp>) {
        match self.servers[server].role {
            ServerRole::Leading(_) => self.propose(server, Some(connection), session, ops),
            ServerRole::Following { leader, joining, .. } => {
                self.send_peer(server, leader, joining, PeerMessage::Forward { connection, session, ops });
            }
            ServerRole::Looking => {}
        }
    }

    /// The leader takes a write in.
    pub(super) fn propose(&mut self, server: usize, connection: Option<usize>, session: SessionId, ops: Vec<TxnOp>) {
        let (now, epoch) = (self.now, self.servers[server].epoch);
        let Some(leading) = self.servers[server].leading() else { return };
        if let Some(tracked) = leading.sessions.get(&session)
            && tracked.connection != connection
        {
            // It has moved to another server: what is still under way from the former one does not count.
            return;
        }
        leading.counter += 1;
        let zxid = (epoch << COUNTER_BITS) | leading.counter;
        for op in &ops {
            match op {
                TxnOp::Open(session, timeout) => {
                    let tracked = Tracked { timeout: *timeout, touched: now, connection };
                    leading.sessions.insert(*session, tracked);
                }
                TxnOp::Close(session) => _ = leading.sessions.remove(session),
                _ => {}
            }
        }
        let txn = Arc::new(leading.head.prepare(zxid, session, ops, connection));
        let followers: Vec<_> = leading.followers.iter().map(|(to, follower)| (*to, follower.joining)).collect();
        self.servers[server].log.push(Arc::clone(&txn));
        for (to, joining) in followers {
            self.send_peer(server, to, joining, PeerMessage::Propose(Arc::clone(&txn)));
        }
        self.commit_logged(server);
    }

    /// The leader commits what a quorum has logged.
    fn commit_logged(&mut self, server: usize) {
        let quorum = self.quorum();
        let own = self.servers[server].log.len();
        let Some(leading) = self.servers[server].leading() else { return };
        let mut logged: Vec<usize> = leading.followers.values().map(|follower| follower.logged).collect();
        logged.push(own);
        logged.sort_unstable_by(|a, b| b.cmp(a));
        let Some(&length) = logged.get(quorum - 1) else { return };
        let followers: Vec<_> = leading.followers.iter().map(|(to, follower)| (*to, follower.joining)).collect();
        if length <= self.servers[server].committed {
            return;
        }
        self.commit_to(server, length);
        for (to, joining) in followers {
            self.send_peer(server, to, joining, PeerMessage::Commit(length));
        }
    }

    /// A server applies what has committed, and tells its clients.
    fn commit_to(&mut self, server: usize, length: usize) {
        while self.servers[server].committed < length {
            let this = &mut self.servers[server];
            let Some(txn) = this.log.get(this.committed).cloned() else { return };
            this.committed += 1;
            let changes = this.tree.apply(&txn);
            self.tell_watchers(server, &changes);
            self.tell_writer(server, &txn);
        }
    }

    /// Every half tick: the leader asks who is there and ends sessions it has not heard of; everybody looks whether
    /// enough others are there.
    pub(super) fn tick(&mut self, server: usize) {
        let half = self.tick / 2;
        self.out.push((self.now + half, ServiceTask::Tick(server)));
        let (now, limit, quorum) = (self.now, self.tick * SYNC_LIMIT, self.quorum());
        let this = &mut self.servers[server];
        if this.down {
            return;
        }
        match &mut this.role {
            ServerRole::Looking => {}
            ServerRole::Following { heard, .. } => {
                if now - *heard > limit {
                    self.look(server);
                }
            }
            ServerRole::Leading(leading) => {
                leading.followers.retain(|_, follower| now - follower.heard <= limit);
                if leading.followers.len() + 1 < quorum {
                    return self.look(server);
                }
                let followers: Vec<_> = leading.followers.iter().map(|(to, f)| (*to, f.joining)).collect();
                let over = leading.sessions.iter().filter(|(_, session)| now >= session.touched + session.timeout);
                let over: Vec<SessionId> = over.map(|(session, _)| *session).collect();
                for (to, joining) in followers {
                    self.send_peer(server, to, joining, PeerMessage::Ping);
                }
                for session in over {
                    self.note(|| format!("server {server} ends session {session:x}"));
                    self.propose(server, None, 0, vec![TxnOp::Close(session)]);
                }
            }
        }
    }

    /// A server has nobody to follow any more, or no quorum: it drops its clients and looks for a leader.
    pub(super) fn look(&mut self, server: usize) {
        self.servers[server].role = ServerRole::Looking;
        self.servers[server].touched.clear();
        self.note(|| format!("server {server} looks for a leader"));
        for connection in std::mem::take(&mut self.servers[server].connections) {
            self.close_from_server(connection);
        }
        self.elect_soon();
    }

    fn elect_soon(&mut self) {
        if !self.electing {
            self.electing = true;
            let delay = if self.faulty { self.rng.millis(20, 600) } else { self.rng.millis(20, 100) };
            self.out.push((self.now + delay, ServiceTask::Elect));
        }
    }

    /// Servers that look find a leader that is there, or make one among them.
    pub(super) fn elect(&mut self) {
        self.electing = false;
        let count = self.servers.len();
        let leaders: Vec<usize> =
            (0..count).filter(|&n| matches!(self.servers[n].role, ServerRole::Leading(_))).collect();
        for server in self.looking() {
            // Never one of an earlier epoch: what was promised to a later one has to be kept.
            let fits = |&n: &usize| self.servers[n].epoch >= self.servers[server].epoch && self.both_open(server, n);
            if let Some(leader) = leaders.iter().copied().filter(|n| !self.is_stopped(*n)).find(fits) {
                self.join(server, leader);
            }
        }
        for candidate in self.looking() {
            let with: Vec<usize> = self.looking().into_iter().filter(|&n| self.both_open(candidate, n)).collect();
            let best = with.iter().copied().max_by_key(|&n| (self.servers[n].last_logged(), n));
            if with.len() >= self.quorum() && best == Some(candidate) {
                self.lead(candidate, with);
                break;
            }
        }
        if self.servers.iter().any(|server| !server.down && matches!(server.role, ServerRole::Looking)) {
            self.elect_soon();
        }
    }

    fn looking(&self) -> Vec<usize> {
        let looks = |&n: &usize| matches!(self.servers[n].role, ServerRole::Looking) && !self.is_stopped(n);
        (0..self.servers.len()).filter(looks).collect()
    }

    fn is_stopped(&self, server: usize) -> bool {
        self.servers[server].down || self.servers[server].paused_until > self.now
    }

    fn both_open(&self, a: usize, b: usize) -> bool {
        a == b || [(a, b), (b, a)].into_iter().all(|(a, b)| self.open_at(NetworkPath::Servers(a, b)) <= self.now)
    }

    /// A server leads those that look with it. All of its log is taken over by them, and so commits.
    fn lead(&mut self, server: usize, with: Vec<usize>) {
        let epoch = 1 + with.iter().map(|n| self.servers[*n].epoch).max().unwrap_or_default();
        let now = self.now;
        let this = &mut self.servers[server];
        this.epoch = epoch;
        let mut head = this.tree.clone();
        for txn in &this.log[this.committed..] {
            head.apply(txn);
        }
        let tracked = |(session, timeout): (&SessionId, &SimTime)| {
            (*session, Tracked { timeout: *timeout, touched: now, connection: None })
        };
        let sessions = head.sessions.iter().map(tracked).collect();
        this.role = ServerRole::Leading(Box::new(Leading { head, counter: 0, followers: BTreeMap::new(), sessions }));
        self.note(|| format!("server {server} leads epoch {epoch}"));
        for other in with.into_iter().filter(|other| *other != server) {
            self.join(other, server);
        }
        self.commit_logged(server);
    }

    /// A server follows a leader, with the leader's log.
    fn join(&mut self, server: usize, leader: usize) {
        self.joinings += 1;
        let (now, joining) = (self.now, self.joinings);
        let (log, committed, epoch) = {
            let leader = &self.servers[leader];
            (leader.log.clone(), leader.committed, leader.epoch)
        };
        let logged = log.len();
        let this = &mut self.servers[server];
        debug_assert!(this.committed <= logged, "a quorum has logged what has committed");
        this.log = log;
        this.epoch = epoch;
        this.role = ServerRole::Following { leader, joining, heard: now };
        self.commit_to(server, committed);
        if let Some(leading) = self.servers[leader].leading() {
            leading.followers.insert(server, Follower { joining, logged, heard: now });
        }
        self.note(|| format!("server {server} follows server {leader}"));
        self.commit_logged(leader);
    }

    /// A server process ends; its log stays.
    pub(super) fn kill_server(&mut self, server: usize) {
        self.look(server);
        self.servers[server].down = true;
        self.note(|| format!("server {server} is killed"));
    }

    pub(super) fn start_server(&mut self, server: usize) {
        if std::mem::replace(&mut self.servers[server].down, false) {
            self.note(|| format!("server {server} starts"));
            self.elect_soon();
        }
    }

    /// Starts all servers; nobody is connected yet.
    pub(super) fn start_ensemble(&mut self) {
        for server in 0..self.servers.len() {
            self.out.push((self.now, ServiceTask::Tick(server)));
        }
        self.elect();
    }
}

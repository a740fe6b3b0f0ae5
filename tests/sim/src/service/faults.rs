//! What happens to the service: to its servers, to the ways between them and to its clients, and to somebody's nodes.

use super::ensemble::ServerRole;
use super::tree::{Data, Dir, TxnOp};
use super::{NetworkPath, ServiceTask, Who, ZooKeeper};
use crate::SimTime;

/// How long a worker whose nodes are deleted unseen hears nothing.
pub(super) const STRUCK: SimTime = 2_000_000_000;

impl ZooKeeper {
    /// A fault; `what` says which and to whom, reduced to what there is, and `amount` for how many milliseconds.
    pub(super) fn fault(&mut self, what: u32, amount: u32) {
        let until = self.now + SimTime::from(amount) * 1_000_000;
        let pick = what as usize >> 8;
        let count = self.servers.len();
        let (server, other) = (pick % count, (pick / count + 1) % count);
        match what % 15 {
            0 => self.another_client_deletes(pick, &[Dir::Leases, Dir::Members]),
            1 => self.another_client_deletes(pick, &[Dir::Members]),
            2 => self.another_client_deletes(pick, &[Dir::Locks]),
            3 => self.another_coordinator_evicts(pick),
            4 | 5 => {
                if let Some(who) = self.any_client(pick).map(|client| self.clients[client].who) {
                    let all = what & 64 != 0;
                    for server in (0..count).filter(|&n| all || n == server) {
                        self.cut_ways(what >> 4, NetworkPath::Up(who, server), NetworkPath::Down(server, who), until);
                    }
                }
            }
            6 => self.pause_server(server, until),
            7 => {
                if let Some(leader) = (0..count).find(|&n| matches!(self.servers[n].role, ServerRole::Leading(_))) {
                    self.pause_server(leader, until);
                }
            }
            8 => {
                if server != other {
                    self.cut_ways(
                        what >> 4,
                        NetworkPath::Servers(server, other),
                        NetworkPath::Servers(other, server),
                        until,
                    );
                }
            }
            9 | 10 => {
                for other in (0..count).filter(|&other| other != server) {
                    self.cut_ways(
                        what >> 4,
                        NetworkPath::Servers(server, other),
                        NetworkPath::Servers(other, server),
                        until,
                    );
                }
            }
            11 => {
                self.kill_server(server);
                self.out.push((until, ServiceTask::StartServer(server)));
            }
            12 => self.strike_unseen(pick, amount),
            _ => {
                if let Some(client) = self.any_client(pick) {
                    self.note(|| format!("a connection of client {client} breaks"));
                    self.break_connection(client);
                }
            }
        }
    }

    /// A host reaches no server, and none reaches it.
    pub(super) fn cut_off(&mut self, who: Who, until: SimTime) {
        for server in 0..self.servers.len() {
            self.cut(NetworkPath::Up(who, server), until);
            self.cut(NetworkPath::Down(server, who), until);
        }
    }

    /// Whoever leads loses its connection, and has no other for a while. Near the end of that a worker is cut off as well, and its nodes are deleted: it
    /// has sent heartbeats that the leader did not see, and does not know that it is over.
    fn strike_unseen(&mut self, pick: usize, amount: u32) {
        let Some(leader) = self.newest().first_contender() else { return };
        let workers = self.newest().names(Dir::Leases);
        let Some(place) = workers.get(pick % workers.len().max(1)).copied() else { return };
        let away = self.rng.millis(100, 1_500).min(SimTime::from(amount) * 1_000_000 + 100_000_000);
        let before = self.rng.millis(0, 200).min(away);
        let Some(client) = self.candidates.get(&leader).map(|candidate| candidate.client) else { return };
        for server in 0..self.servers.len() {
            self.cut(NetworkPath::Up(Who::Coordinator(leader), server), self.now + away);
        }
        // It learns of this at once, so that its lease may stand until it is back.
        self.break_connection(client);
        self.out.push((self.now + away - before, ServiceTask::Strike(place)));
    }

    /// A worker is cut off, and its nodes are deleted.
    pub(super) fn strike(&mut self, place: u64) {
        self.cut_off(Who::Worker(place as usize), self.now + STRUCK);
        self.note(|| format!("somebody deletes the nodes of w{}", place + 1));
        for dir in [Dir::Leases, Dir::Members] {
            self.another_client_writes(vec![TxnOp::Delete { path: (dir, place), version: None }]);
        }
    }

    /// Everything works again; what is under way takes as long as it takes.
    pub(super) fn heal(&mut self) {
        self.cuts.clear();
        for server in 0..self.servers.len() {
            self.servers[server].paused_until = 0;
            self.start_server(server);
        }
    }

    fn any_client(&self, pick: usize) -> Option<usize> {
        let open: Vec<usize> = (0..self.clients.len()).filter(|&n| !self.clients[n].over).collect();
        open.get(pick % open.len().max(1)).copied()
    }

    fn pause_server(&mut self, server: usize, until: SimTime) {
        self.note(|| format!("server {server} is paused until {:.3}", until as f64 / 1e9));
        let paused = &mut self.servers[server].paused_until;
        *paused = until.max(*paused);
    }

    fn cut_ways(&mut self, ways: u32, there: NetworkPath, back: NetworkPath, until: SimTime) {
        if ways % 3 != 1 {
            self.cut(there, until);
        }
        if ways % 3 != 2 {
            self.cut(back, until);
        }
    }

    fn cut(&mut self, link: NetworkPath, until: SimTime) {
        self.note(|| format!("cut: {link:?} until {:.3}", until as f64 / 1e9));
        let cut = self.cuts.entry(link).or_default();
        *cut = until.max(*cut);
        match link {
            NetworkPath::Servers(from, to) => self.peers[from * self.servers.len() + to].stall(until),
            NetworkPath::Up(who, server) | NetworkPath::Down(server, who) => {
                let on_it = self.clients.iter().filter(|client| client.who == who).filter_map(|c| c.connection);
                for number in on_it {
                    let connection = &mut self.connections[number];
                    if connection.server == server {
                        match link {
                            NetworkPath::Up(..) => connection.up.stall(until),
                            _ => connection.down.stall(until),
                        }
                    }
                }
            }
        }
    }

    /// A server that leads a quorum takes a write of nobody's session.
    fn another_client_writes(&mut self, ops: Vec<TxnOp>) {
        if let Some(leader) = (0..self.servers.len()).find(|&n| matches!(self.servers[n].role, ServerRole::Leading(_)))
        {
            self.propose(leader, None, 0, ops);
        }
    }

    fn another_client_deletes(&mut self, pick: usize, dirs: &[Dir]) {
        let Some(first) = dirs.first() else { return };
        let names = self.newest().names(*first);
        let Some(name) = names.get(pick % names.len().max(1)).copied() else { return };
        self.note(|| format!("somebody deletes {name:x} in {dirs:?}"));
        for dir in dirs {
            self.another_client_writes(vec![TxnOp::Delete { path: (*dir, name), version: None }]);
        }
    }

    fn another_coordinator_evicts(&mut self, pick: usize) {
        let names = self.newest().names(Dir::Leases);
        let Some(name) = names.get(pick % names.len().max(1)).copied() else { return };
        let path = (Dir::Leases, name);
        let Some(Data::Beat { lease, .. }) = self.newest().nodes.get(&path).map(|node| &node.data) else { return };
        let data = Data::Evicted { lease: *lease };
        self.note(|| format!("somebody writes over the lease node {name}"));
        self.another_client_writes(vec![TxnOp::Set { path, data, version: None }]);
    }

    /// The state of the server that has applied the most.
    fn newest(&self) -> &super::tree::Tree {
        let newest = self.servers.iter().map(|server| &server.tree).max_by_key(|tree| tree.zxid);
        newest.expect("there is a server")
    }
}

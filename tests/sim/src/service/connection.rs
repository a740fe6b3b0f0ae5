//! One connection of a client to a server, seen from the server: calls are taken one after the other, so that a read waits
//! for the writes before it; what watches say goes out before any answer that shows a later state.

use std::collections::{BTreeSet, VecDeque};

use common::roster::NodeChange;

use super::ensemble::{PeerMessage, ServerRole};
use super::tree::{Data, Dir, Path, SessionId, Txn, TxnOp, TxnResult, ZkFailure, ZkNode, Zxid};
use super::{NetworkPath, ServiceTask, Who, ZooKeeper};
use crate::SimTime;
use crate::net::Lane;

/// What a client asks of a server.
#[derive(Clone, Debug)]
pub(super) enum ZkCall {
    Read(Path),
    /// Reads, and tells the next change of the node, once.
    ReadAndWatch(Path),
    List(Dir),
    /// Tells every change in a directory from now on, for as long as the connection lasts.
    Watch(Dir),
    Write(Vec<TxnOp>),
    /// Ends the session.
    Close,
    Ping,
}

/// What it answers.
#[derive(Clone, Debug)]
pub(super) enum ZkReply {
    Read(Option<ZkNode>),
    Listed(Vec<u64>),
    Watching,
    Wrote(TxnResult),
}

/// From a client.
#[derive(Debug)]
pub(super) enum ClientMessage {
    /// A session to go on with, or a new one that lasts so long; and the last transaction the client knows of.
    Connect {
        session: Result<SessionId, SimTime>,
        seen: Zxid,
    },
    Call(u64, ZkCall),
    /// It has closed the connection.
    Closed,
}

/// To a client.
#[derive(Debug)]
pub(super) enum ServerMessage {
    Connected(SessionId),
    /// The session is over.
    Expired,
    Answer(u64, Zxid, ZkReply),
    Event(Path, NodeChange),
    Pong(Zxid),
    /// The server has closed the connection.
    Closed,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: usize,
    pub(super) server: usize,
    pub(super) up: Lane<ClientMessage>,
    pub(super) down: Lane<ServerMessage>,
    session: Option<SessionId>,
    /// Session that waits to be found standing, or to be made.
    waiting: Option<SessionId>,
    calls: VecDeque<(u64, ZkCall)>,
    /// The write that has to commit before anything else is taken.
    writing: Option<u64>,
    dirs: BTreeSet<Dir>,
    nodes: BTreeSet<Path>,
    /// The server takes nothing of it any more.
    closed: bool,
}

impl ZooKeeper {
    /// A client connects.
    pub(super) fn open_connection(&mut self, client: usize, server: usize) -> usize {
        self.connections.push(Connection {
            client,
            server,
            up: Lane::default(),
            down: Lane::default(),
            session: None,
            waiting: None,
            calls: VecDeque::new(),
            writing: None,
            dirs: BTreeSet::new(),
            nodes: BTreeSet::new(),
            closed: false,
        });
        self.connections.len() - 1
    }

    fn link(&self, connection: usize) -> (Who, usize) {
        let connection = &self.connections[connection];
        (self.clients[connection.client].who, connection.server)
    }

    pub(super) fn send_up(&mut self, connection: usize, message: ClientMessage) {
        let (who, server) = self.link(connection);
        let at = (self.now + self.delay()).max(self.open_at(NetworkPath::Up(who, server)));
        let at = self.connections[connection].up.push(at, message);
        self.out.push((at, ServiceTask::Up(connection)));
    }

    fn send_down(&mut self, connection: usize, message: ServerMessage) {
        let (who, server) = self.link(connection);
        let at = (self.now + self.delay()).max(self.open_at(NetworkPath::Down(server, who)));
        let at = self.connections[connection].down.push(at, message);
        self.out.push((at, ServiceTask::Down(who, connection)));
    }

    /// The oldest message of a client reaches its server.
    pub(super) fn up_arrives(&mut self, number: usize) {
        let message = match self.connections[number].up.pop(self.now) {
            Ok(message) => message,
            Err(Some(later)) => return self.out.push((later, ServiceTask::Up(number))),
            Err(None) => return,
        };
        let connection = &mut self.connections[number];
        let server = connection.server;
        if connection.closed {
            return;
        }
        match message {
            ClientMessage::Closed => self.drop_connection(number),
            ClientMessage::Connect { session, seen } => {
                if !self.servers[server].serves() || self.servers[server].tree.zxid < seen {
                    // One that is behind what the client knows is no use to it.
                    return self.close_from_server(number);
                }
                self.servers[server].connections.insert(number);
                self.greet(number, server, session);
            }
            ClientMessage::Call(id, call) => {
                connection.calls.push_back((id, call));
                if let Some(session) = connection.session {
                    self.touch(server, session);
                }
                self.serve(number);
            }
        }
    }

    fn greet(&mut self, number: usize, server: usize, session: Result<SessionId, SimTime>) {
        match session {
            Err(timeout) => {
                self.sessions += 1;
                let session = self.sessions;
                self.connections[number].waiting = Some(session);
                self.write(server, number, 0, vec![TxnOp::Open(session, timeout)]);
            }
            Ok(session) => {
                self.connections[number].waiting = Some(session);
                match self.servers[server].role {
                    ServerRole::Leading(_) => {
                        let stands = self.revalidate_here(server, number, session);
                        self.revalidated(number, stands);
                    }
                    ServerRole::Following { leader, joining, .. } => {
                        self.send_peer(
                            server,
                            leader,
                            joining,
                            PeerMessage::Revalidate { connection: number, session },
                        );
                    }
                    ServerRole::Looking => {}
                }
            }
        }
    }

    /// The leader said whether the session of a connection stands.
    pub(super) fn revalidated(&mut self, number: usize, stands: bool) {
        let connection = &mut self.connections[number];
        if connection.closed {
            return;
        }
        let Some(session) = connection.waiting.take() else { return };
        if stands {
            connection.session = Some(session);
            self.send_down(number, ServerMessage::Connected(session));
            self.serve(number);
        } else {
            self.send_down(number, ServerMessage::Expired);
            self.close_from_server(number);
        }
    }

    /// The server closes a connection; the client learns of it if it can be reached.
    pub(super) fn close_from_server(&mut self, number: usize) {
        if !self.connections[number].closed {
            self.send_down(number, ServerMessage::Closed);
            self.drop_connection(number);
        }
    }

    fn drop_connection(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        connection.closed = true;
        connection.calls.clear();
        let server = connection.server;
        self.servers[server].connections.remove(&number);
    }

    /// Takes the calls of a connection, up to a write.
    fn serve(&mut self, number: usize) {
        loop {
            let connection = &mut self.connections[number];
            let Some(session) = connection.session.filter(|_| connection.writing.is_none()) else { return };
            let Some((id, call)) = connection.calls.pop_front() else { return };
            let server = connection.server;
            let tree = &self.servers[server].tree;
            let zxid = tree.zxid;
            let reply = match call {
                ZkCall::Read(path) => ZkReply::Read(tree.nodes.get(&path).cloned()),
                ZkCall::ReadAndWatch(path) => {
                    connection.nodes.insert(path);
                    ZkReply::Read(tree.nodes.get(&path).cloned())
                }
                ZkCall::List(dir) => ZkReply::Listed(tree.names(dir)),
                ZkCall::Watch(dir) => {
                    connection.dirs.insert(dir);
                    ZkReply::Watching
                }
                ZkCall::Write(ops) => {
                    connection.writing = Some(id);
                    return self.write(server, number, session, ops);
                }
                ZkCall::Close => {
                    connection.writing = Some(id);
                    return self.write(server, number, session, vec![TxnOp::Close(session)]);
                }
                ZkCall::Ping => {
                    self.send_down(number, ServerMessage::Pong(zxid));
                    continue;
                }
            };
            self.send_down(number, ServerMessage::Answer(id, zxid, reply));
        }
    }

    /// A server has applied changes: those who watch there hear of it.
    pub(super) fn tell_watchers(&mut self, server: usize, changes: &[(Path, NodeChange)]) {
        if changes.is_empty() {
            return;
        }
        let watching: Vec<usize> = self.servers[server].connections.iter().copied().collect();
        for number in watching {
            for (path, change) in changes {
                let connection = &mut self.connections[number];
                if connection.nodes.remove(path) | connection.dirs.contains(&path.0) {
                    self.send_down(number, ServerMessage::Event(*path, *change));
                }
            }
        }
    }

    /// A server has applied a write: those who wait for it there are answered.
    pub(super) fn tell_writer(&mut self, server: usize, txn: &Txn) {
        for op in &txn.ops {
            if let TxnOp::Close(session) = op {
                let over: Vec<usize> = self.servers[server].connections.iter().copied().collect();
                for number in over {
                    if self.connections[number].session == Some(*session) {
                        self.close_from_server(number);
                    }
                }
            }
        }
        let Some(number) = txn.connection else { return };
        let connection = &mut self.connections[number];
        if connection.server != server || connection.closed {
            return;
        }
        if let (Some(session), [TxnOp::Open(..)]) = (connection.waiting, &txn.ops[..]) {
            connection.waiting = None;
            connection.session = Some(session);
            self.send_down(number, ServerMessage::Connected(session));
            return self.serve(number);
        }
        if let Some(id) = connection.writing.take() {
            let reply = ZkReply::Wrote(txn.outcome.clone());
            self.send_down(number, ServerMessage::Answer(id, txn.zxid, reply));
            self.serve(number);
        }
    }
}

impl ZkReply {
    /// What a write did.
    pub(super) fn wrote(self) -> TxnResult {
        match self {
            Self::Wrote(wrote) => wrote,
            _ => Err(ZkFailure::Unknown),
        }
    }

    /// The node that was read.
    pub(super) fn node(self) -> Option<ZkNode> {
        match self {
            Self::Read(node) => node,
            _ => None,
        }
    }
}

impl Data {
    /// The number of the heartbeat, if `session` sent it.
    pub(super) fn beat_of(&self, session: SessionId) -> Option<u64> {
        match self {
            Self::Beat { number, by, .. } if *by == session => Some(*number),
            _ => None,
        }
    }
}

//! A client: one session, kept over one connection after the other, as the library keeps it that the products use.
//!
//! It pings, gives a connection up after two thirds of the session timeout without a word, tries the next server, and
//! calls its session over after seven fifths. What was sent on a connection that broke failed with an unknown outcome;
//! what is asked while there is none waits for the next one. What a client has seen of the log it never goes back behind:
//! answers say that, and events do not, which carry no number.

use std::collections::{BTreeSet, VecDeque};

use common::roster::NodeChange;

use super::connection::{ClientMessage, ServerMessage, ZkCall, ZkReply};
use super::tree::{Path, SessionId, ZkFailure, Zxid};
use super::{NetworkPath, ServiceTask, Who, ZooKeeper};
use crate::SimTime;

/// Calls that may wait for a connection. Users ask for one thing after the other, so that there are a few at most.
const CALLS: usize = 256;

/// What its user hears.
#[derive(Debug)]
pub(super) enum ClientEvent {
    /// A connection stands.
    Connected,
    /// It broke: watches are gone.
    Disconnected,
    Answer(u64, Result<ZkReply, ZkFailure>),
    Event(Path, NodeChange),
    /// The session is over.
    Over,
}

/// A client.
#[derive(Debug)]
pub(super) struct ZkClient {
    pub(super) who: Who,
    pub(super) session: Option<SessionId>,
    timeout: SimTime,
    pub(super) connection: Option<usize>,
    pub(super) connected: bool,
    seen: Zxid,
    heard: SimTime,
    opened: SimTime,
    calls: u64,
    sent: BTreeSet<u64>,
    waiting: VecDeque<(u64, ZkCall)>,
    pub(super) over: bool,
    pub(super) last_server: usize,
}

impl ZooKeeper {
    /// A new client, which connects at once.
    pub(super) fn open_client(&mut self, who: Who, timeout: SimTime) -> usize {
        let last_server = self.rng.index(self.servers.len());
        self.clients.push(ZkClient {
            who,
            session: None,
            timeout,
            connection: None,
            connected: false,
            seen: 0,
            heard: self.now,
            opened: self.now,
            calls: 0,
            sent: BTreeSet::new(),
            waiting: VecDeque::new(),
            over: false,
            last_server,
        });
        let number = self.clients.len() - 1;
        self.connect(number);
        self.out.push((self.now + timeout / 3, ServiceTask::Client(who, number)));
        number
    }

    fn connect(&mut self, number: usize) {
        let client = &mut self.clients[number];
        let server = (client.last_server + 1) % self.servers.len();
        client.last_server = server;
        client.opened = self.now;
        let session = client.session.ok_or(client.timeout);
        let seen = client.seen;
        let connection = self.open_connection(number, server);
        self.clients[number].connection = Some(connection);
        self.send_up(connection, ClientMessage::Connect { session, seen });
    }

    /// Asks something. Answered under the number that is returned, unless the session ends before.
    pub(super) fn call(&mut self, number: usize, call: ZkCall) -> u64 {
        let client = &mut self.clients[number];
        client.calls += 1;
        let id = client.calls;
        match client.connection.filter(|_| client.connected) {
            Some(connection) => {
                client.sent.insert(id);
                self.send_up(connection, ClientMessage::Call(id, call));
            }
            None if client.waiting.len() < CALLS => client.waiting.push_back((id, call)),
            None => self.tell(number, ClientEvent::Answer(id, Err(ZkFailure::Unknown))),
        }
        id
    }

    /// Closes the session in good order, if the server can be reached.
    pub(super) fn close_client(&mut self, number: usize) {
        if self.clients[number].connected {
            self.call(number, ZkCall::Close);
        }
        self.kill_client(number);
    }

    /// The process ends: its connection closes, and its session is heard of no more.
    pub(super) fn kill_client(&mut self, number: usize) {
        let client = &mut self.clients[number];
        client.over = true;
        client.connected = false;
        client.waiting.clear();
        if let Some(connection) = client.connection.take() {
            self.send_up(connection, ClientMessage::Closed);
        }
    }

    /// The oldest message of a server reaches its client.
    pub(super) fn down_arrives(&mut self, connection: usize) {
        let message = match self.connections[connection].down.pop(self.now) {
            Ok(message) => message,
            Err(Some(later)) => {
                let who = self.clients[self.connections[connection].client].who;
                return self.out.push((later, ServiceTask::Down(who, connection)));
            }
            Err(None) => return,
        };
        let number = self.connections[connection].client;
        let now = self.now;
        let client = &mut self.clients[number];
        if client.over || client.connection != Some(connection) {
            return;
        }
        client.heard = now;
        match message {
            ServerMessage::Connected(session) => {
                client.session = Some(session);
                client.connected = true;
                let waiting = std::mem::take(&mut client.waiting);
                client.sent.extend(waiting.iter().map(|(id, _)| *id));
                for (id, call) in waiting {
                    self.send_up(connection, ClientMessage::Call(id, call));
                }
                self.tell(number, ClientEvent::Connected);
            }
            ServerMessage::Expired => self.end_client(number),
            ServerMessage::Answer(id, zxid, reply) => {
                client.seen = client.seen.max(zxid);
                if client.sent.remove(&id) {
                    self.tell(number, ClientEvent::Answer(id, Ok(reply)));
                }
            }
            ServerMessage::Event(path, change) => self.tell(number, ClientEvent::Event(path, change)),
            ServerMessage::Pong(zxid) => client.seen = client.seen.max(zxid),
            ServerMessage::Closed => self.disconnect(number),
        }
    }

    /// The connection is of no use any more; another one is tried soon.
    pub(super) fn disconnect(&mut self, number: usize) {
        let client = &mut self.clients[number];
        let Some(connection) = client.connection.take() else { return };
        let stood = std::mem::replace(&mut client.connected, false);
        let sent = std::mem::take(&mut client.sent);
        self.send_up(connection, ClientMessage::Closed);
        let delay = self.rng.millis(1, 100);
        let who = self.clients[number].who;
        self.out.push((self.now + delay, ServiceTask::Connect(who, number)));
        if stood {
            self.tell(number, ClientEvent::Disconnected);
        }
        for id in sent {
            self.tell(number, ClientEvent::Answer(id, Err(ZkFailure::Unknown)));
        }
    }

    pub(super) fn connect_again(&mut self, number: usize) {
        let client = &self.clients[number];
        if !client.over && client.connection.is_none() {
            self.connect(number);
        }
    }

    /// Every third of the timeout or more often: pings, and looks whether the connection and the session still are.
    pub(super) fn client_tick(&mut self, number: usize) {
        let client = &self.clients[number];
        if client.over {
            return;
        }
        let (timeout, silent) = (client.timeout, self.now - client.heard);
        let patience = timeout / (self.servers.len() as SimTime + 1);
        if client.session.is_some() && silent >= timeout * 7 / 5 {
            return self.end_client(number);
        }
        if client.connected && silent >= timeout * 2 / 3
            || !client.connected && client.connection.is_some() && self.now - client.opened >= patience
        {
            self.disconnect(number);
        } else if let Some(connection) = client.connection.filter(|_| client.connected) {
            self.send_up(connection, ClientMessage::Call(0, ZkCall::Ping));
        }
        let who = self.clients[number].who;
        self.out.push((self.now + timeout / 6, ServiceTask::Client(who, number)));
    }

    fn end_client(&mut self, number: usize) {
        let session = self.clients[number].session.unwrap_or_default();
        self.note(|| format!("session {session:x} is over for its client"));
        self.kill_client(number);
        self.tell(number, ClientEvent::Over);
    }

    /// Breaks a connection in both directions at once; what is under way is lost from some point on.
    pub(super) fn break_connection(&mut self, number: usize) {
        let Some(connection) = self.clients[number].connection else { return };
        let rng = &mut self.rng;
        let lanes = &mut self.connections[connection];
        lanes.up.lose_tail(rng);
        lanes.down.lose_tail(rng);
        self.close_from_server(connection);
    }

    /// When a one-way link lets the next message through.
    pub(super) fn open_at(&self, link: NetworkPath) -> SimTime {
        self.cuts.get(&link).copied().unwrap_or_default()
    }
}

//! Hands the service of one instance over to another one that is started beside it: first the sockets that are listened at, then
//! every connection that has its member, with whatever was read and not written yet.
//!
//! | from | to | what |
//! |---|---|---|
//! | successor | predecessor | `Take`: the token of its owner, which must not be older than the newest known |
//! | predecessor | successor | `Listener` with its socket, for each; `Listeners` when that was all |
//! | successor | predecessor | `Serving`: its configuration is in force, and it accepts |
//! | predecessor | successor | `Connection` with both sockets, for each; `Done` when none is left |
//!
//! Until `Serving` the predecessor goes on as if nothing was, and whatever goes wrong changes nothing. Both accept from the same
//! sockets for a moment, so that no connection is refused, and none that waits in their queues is lost, as it would be if
//! each had a socket of its own. After it the predecessor accepts no more, and ends once its last connection has gone or its grace is over.
//!
//! The predecessor listens at a socket in its own folder, which is for this user alone, and asks the kernel who the other one is.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use common::Token;
use runtime::folder::Folder;
use runtime::socket::{LocalListener, LocalUser, TrustedServer, connect};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::balancer::{Balancer, Inherited};
use super::channel::{Channel, EncodedFrame, encode};
use super::listener::Moving;
use super::relay::{Flow, FlowState, Link};
use super::rest::RestState;
use super::server::REQUEST_TIME;

/// Socket in the folder of an instance at which its successor asks.
pub const SOCKET: &str = "handover";

/// How long the other side may take for one message that it has at hand.
const MESSAGE_TIME: Duration = Duration::from_secs(5);
/// Connections that wait to be sent.
const WAITING: usize = 64;
/// Pause after a failed accept, which mostly means that the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the two say to each other. They may be of two versions: what one does not know ends the conversation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Message {
    Take { token: Token },
    Superseded { token: Token },
    Listener { address: SocketAddr },
    Listeners,
    Serving,
    Connection(MovedConnection),
    Done,
}

/// A connection without its sockets and bytes. The bytes that were kept for the member come first.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MovedConnection {
    listener: SocketAddr,
    member: SocketAddr,
    up: FlowState,
    down: FlowState,
    kept_up: usize,
}

/// Why nothing is handed over.
#[derive(Debug, thiserror::Error)]
pub(super) enum TakeError {
    /// Its owner is not the newest one.
    #[error("the instance before has a newer owner ({0})")]
    Superseded(Token),
    /// It does not answer as it should.
    #[error("the instance before hands nothing over: {0}")]
    Failed(#[from] io::Error),
}

/// The successor's end of a conversation, between `Listeners` and `Serving`.
#[derive(Debug)]
pub(super) struct Taking(Channel);

/// Asks the instance in `folder` for its sockets.
pub(super) async fn take(folder: &Path, token: Token) -> Result<(Taking, Inherited), TakeError> {
    let stream = timeout(MESSAGE_TIME, connect(&folder.join(SOCKET), TrustedServer::OwnOrRoot)).await;
    let mut channel = Channel::new(stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?);
    channel.send(&Message::Take { token }, &[], &[], MESSAGE_TIME).await?;
    let mut inherited = Inherited::new();
    loop {
        let frame =
            channel.receive(MESSAGE_TIME).await?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        match (frame.header, <[OwnedFd; 1]>::try_from(frame.descriptors)) {
            (Message::Listener { address }, Ok([socket])) => {
                inherited.insert(address, socket.into());
            }
            (Message::Listeners, _) => return Ok((Taking(channel), inherited)),
            (Message::Superseded { token }, _) => return Err(TakeError::Superseded(token)),
            _ => return Err(io::Error::from(io::ErrorKind::InvalidData).into()),
        }
    }
}

impl Taking {
    /// Says that the service has been taken over, and takes the connections. Those that come are served when this returns.
    pub(super) async fn serving(self, balancer: Arc<Balancer>) {
        let Self(mut channel) = self;
        if let Err(error) = channel.send(&Message::Serving, &[], &[], MESSAGE_TIME).await {
            tracing::warn!(%error, "the instance before was not told that its service has been taken over");
            return;
        }
        // Ends with the conversation: the other side ends it within its grace.
        tokio::spawn(async move {
            match receive_connections(&mut channel, &balancer).await {
                Ok(count) => tracing::info!(connections = count, "took over from the instance before"),
                Err(error) => tracing::warn!(%error, "not every connection of the instance before was taken over"),
            }
        });
    }
}

async fn receive_connections(channel: &mut Channel, balancer: &Balancer) -> io::Result<usize> {
    /// Longer than any grace: the other side ends before.
    const SILENCE: Duration = Duration::from_secs(3600);
    let mut count = 0;
    loop {
        let frame = channel.receive(SILENCE).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        match (frame.header, <[OwnedFd; 2]>::try_from(frame.descriptors)) {
            (Message::Done, _) => return Ok(count),
            (Message::Connection(moved), Ok(sockets)) => {
                balancer.adopt(moved.rebuild(sockets, &frame.bytes)?).await;
                count += 1;
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl MovedConnection {
    /// What was kept for the member, and for the client.
    fn kept<'a>(&self, bytes: &'a [u8]) -> io::Result<(&'a [u8], &'a [u8])> {
        bytes.split_at_checked(self.kept_up).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn rebuild(self, [client, server]: [OwnedFd; 2], bytes: &[u8]) -> io::Result<Moving> {
        let stream = |socket: OwnedFd| {
            let socket = std::net::TcpStream::from(socket);
            socket.set_nonblocking(true)?;
            TcpStream::from_std(socket)
        };
        let (up, down) = self.kept(bytes)?;
        let flow = |kept: &[u8], state| Flow { kept: kept.to_vec(), written: 0, state };
        let (up, down) = (flow(up, self.up), flow(down, self.down));
        // What hands it over has seen to that.
        let prompt = true;
        let link = Link { client: stream(client)?, server: stream(server)?, up, down, prompt };
        Ok(Moving { listener: self.listener, member: self.member, link })
    }
}

/// The predecessor's end.
#[derive(Debug)]
pub(super) struct HandoverSocket(LocalListener);

/// A successor that serves.
#[derive(Debug)]
pub(super) struct Successor(Channel);

impl HandoverSocket {
    /// Listens in the folder of the instance.
    pub(super) fn open(folder: &Folder) -> anyhow::Result<Self> {
        let path: PathBuf = folder.path().join(SOCKET);
        LocalListener::bind(&path).map(Self).with_context(|| format!("cannot listen at {}", path.display()))
    }

    /// Waits until another instance has taken the service over.
    pub(super) async fn successor(&self, state: &RestState, balancer: &Balancer) -> Successor {
        loop {
            let Ok(stream) = self.0.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            if !LocalUser::of(&stream).is_ok_and(|user| user.is_own_or_root()) {
                continue;
            }
            match offer(Channel::new(stream), state, balancer).await {
                Ok(Some(successor)) => return successor,
                Ok(None) => tracing::info!("an instance asked for the service, and was not given it"),
                Err(error) => tracing::warn!(%error, "an instance asked for the service, and did not take it"),
            }
        }
    }
}

/// One conversation up to `Serving`; `None` when the other one's owner is not the newest.
async fn offer(mut channel: Channel, state: &RestState, balancer: &Balancer) -> io::Result<Option<Successor>> {
    let unexpected = || io::Error::from(io::ErrorKind::InvalidData);
    let Some(Message::Take { token }) = channel.receive(MESSAGE_TIME).await?.map(|frame| frame.header) else {
        return Err(unexpected());
    };
    if let Err(newer) = state.admit_successor(token).await? {
        channel.send(&Message::Superseded { token: newer }, &[], &[], MESSAGE_TIME).await?;
        return Ok(None);
    }
    for (address, socket) in balancer.sockets().await {
        channel.send(&Message::Listener { address }, &[], &[socket.as_fd()], MESSAGE_TIME).await?;
    }
    channel.send(&Message::Listeners, &[], &[], MESSAGE_TIME).await?;
    // It puts its configuration in force now, which a caller waits for as long.
    match channel.receive(REQUEST_TIME).await?.map(|frame| frame.header) {
        // Another owner may have come meanwhile, who knows what to do with two instances.
        Some(Message::Serving) if state.admit_successor(token).await?.is_ok() => Ok(Some(Successor(channel))),
        Some(Message::Serving) => Ok(None),
        _ => Err(unexpected()),
    }
}

impl Successor {
    /// Accepts no more, and hands every connection over. Returns how many were left after `grace`, and were reset.
    pub(super) async fn hand_over(self, balancer: &Balancer, grace: Duration) -> usize {
        let Self(channel) = self;
        let (sender, mut waiting) = mpsc::channel(WAITING);
        let mut leaving = pin!(balancer.hand_over(grace, sender));
        let left = loop {
            let moving = tokio::select! {
                biased;
                Some(moving) = waiting.recv() => moving,
                left = &mut leaving => break left,
            };
            if !pass_on(&channel, moving).await {
                // The others go on here, for as long as they may.
                waiting.close();
            }
        };
        // Of what was counted as gone some may still be on its way.
        waiting.close();
        while let Some(moving) = waiting.recv().await {
            pass_on(&channel, moving).await;
        }
        if let Err(error) = channel.send(&Message::Done, &[], &[], MESSAGE_TIME).await {
            tracing::warn!(%error, "the successor was not told that it has everything");
        }
        left
    }
}

/// Sends a connection; one that cannot be sent is reset. Answers whether it was sent.
async fn pass_on(channel: &Channel, moving: Moving) -> bool {
    match send_connection(channel, &moving).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "a connection could not be handed over");
            moving.link.reset();
            false
        }
    }
}

async fn send_connection(channel: &Channel, moving: &Moving) -> io::Result<()> {
    let Link { client, server, up, down, .. } = &moving.link;
    let (kept_up, kept_down) = (&up.kept[up.written..], &down.kept[down.written..]);
    let moved = MovedConnection {
        listener: moving.listener,
        member: moving.member,
        up: up.state,
        down: down.state,
        kept_up: kept_up.len(),
    };
    let sockets = [client.as_fd(), server.as_fd()];
    channel.send(&Message::Connection(moved), &[kept_up, kept_down], &sockets, MESSAGE_TIME).await
}

/// Reads what either side may get, up to the first frame that is incomplete, and writes it again. Answers the kinds of its messages
/// as well. For the fuzz tests.
pub(crate) fn rewrite(mut received: &[u8]) -> Result<(Vec<&'static str>, Vec<u8>), String> {
    let text = |error: io::Error| error.to_string();
    let (mut kinds, mut written) = (Vec::new(), Vec::new());
    while let Some(frame) = EncodedFrame::first(received).map_err(text)? {
        let message: Message = frame.header().map_err(text)?;
        let (kind, kept) = match &message {
            Message::Take { .. } => ("take", None),
            Message::Superseded { .. } => ("superseded", None),
            Message::Listener { .. } => ("listener", None),
            Message::Listeners => ("listeners", None),
            Message::Serving => ("serving", None),
            Message::Connection(moved) => ("connection", Some(moved.kept(frame.bytes).map_err(text)?)),
            Message::Done => ("done", None),
        };
        kinds.push(kind);
        let (up, down) = kept.unwrap_or((frame.bytes, &[]));
        written.extend(encode(&message, &[up, down], frame.descriptors).map_err(text)?);
        received = &received[frame.length()..];
    }
    Ok((kinds, written))
}

#[cfg(test)]
mod tests;

//! Incoming connections, with the identity of the peer: over TCP plain or after the handshake of mutual TLS, or over a Unix
//! socket from a process of this user or root.
//!
//! Until its handshake is done and the preface of HTTP/2 has come, each connection is a task with a deadline, so that a
//! stalled client delays no other. The number of these is bounded; above it the oldest of the network that has most is given
//! up, because successful ones take milliseconds. Then it takes one of the [`Places`]. No error of a connection ends the listener, and when there is
//! no descriptor left whoever connects is closed at once instead of being left waiting ([`Spare`]).

mod spare;
mod standing;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::TryFutureExt;
use runtime::log_limited;
use runtime::socket::{LocalListener, LocalUser};
use runtime::tls::{Identity, ServerStream, ServerTls};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::Stream;
use tracing::debug;

use self::spare::Spare;
use self::standing::{Standing, Trusted};
use super::connections::{Place, Places};

/// Deadline of handshake and preface, including the time in which a refused client receives the reason.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Most bytes that are read of a client that does not speak HTTP/2.
const MAX_UNREAD: usize = 64 * 1024;

/// What every client of HTTP/2 sends first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Connections that wait to be accepted by the server, which happens at once.
const QUEUE: usize = 64;

/// The peer of a connection. An extension of every request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Where it is.
    pub address: PeerAddress,
    /// Who it is.
    pub identity: PeerIdentity,
}

/// Where a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAddress {
    /// At the other end of a TCP connection.
    Tcp(SocketAddr),
    /// On this host.
    Unix,
}

/// Who a peer is, as far as the connection proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerIdentity {
    /// It has shown a certificate of a trusted CA.
    Certificate(Arc<Identity>),
    /// It is a process of this coordinator's own user, or of root, on this host.
    Local(LocalUser),
    /// Nothing is known: plain TCP, which there is only with `insecure = true`, or TLS without a certificate, which there
    /// is only where tokens are accepted.
    Unverified,
}

impl PeerAddress {
    /// Whose address it is, without the port: a host may have as many addresses of its IPv6 network as it likes.
    pub(crate) fn network(&self) -> String {
        let Self::Tcp(address) = self else { return self.to_string() };
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
            }
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("this host"),
        }
    }
}

impl PeerInfo {
    /// Whose share of what is bounded for each peer it takes: that of a certificate, or of an address without one.
    pub(super) fn key(&self) -> String {
        match &self.identity {
            PeerIdentity::Certificate(identity) => identity.name(),
            PeerIdentity::Local(_) | PeerIdentity::Unverified => self.address.network(),
        }
    }
}

impl fmt::Display for PeerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.identity {
            PeerIdentity::Certificate(identity) => write!(f, "{} at {}", identity.name(), self.address),
            PeerIdentity::Local(user) => user.fmt(f),
            PeerIdentity::Unverified => self.address.fmt(f),
        }
    }
}

/// One of the places that are listened at.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(LocalListener),
}

/// Connections of these listeners that got one of the places. Those over TCP are without Nagle's algorithm, which would
/// delay the second half of every response larger than a packet by 40 ms, and with `tls` only from clients with a valid
/// certificate; those over a Unix socket are only from this user and root. Needs a Tokio runtime; dropping the result closes
/// the listeners.
#[must_use]
pub fn incoming_within(listeners: Vec<Listener>, tls: Option<ServerTls>, places: &Places) -> Incoming {
    let (out, connections) = mpsc::channel(QUEUE);
    let mut tasks = JoinSet::new();
    let tls = tls.map(|tls| (tls, Standing::default()));
    if let Some((tls, standing)) = tls.clone() {
        tasks.spawn(refresh(tls, standing));
    }
    let pending = (places.pending() / listeners.len().max(1)).max(1);
    for listener in listeners {
        let admission = Admission { places: places.clone(), pending, out: out.clone() };
        match listener {
            Listener::Tcp(listener) => tasks.spawn(accept(listener, tls.clone(), admission)),
            Listener::Unix(listener) => tasks.spawn(accept_local(listener, admission)),
        };
    }
    Incoming { connections, _tasks: tasks }
}

/// See [`incoming_within`].
#[derive(Debug)]
pub struct Incoming {
    connections: mpsc::Receiver<IncomingConnection>,
    /// End when they are dropped.
    _tasks: JoinSet<()>,
}

impl Stream for Incoming {
    type Item = IncomingConnection;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(cx)
    }
}

async fn accept(listener: TcpListener, tls: Option<(ServerTls, Standing)>, admission: Admission) {
    let mut pending = PendingConnections::new(admission.pending);
    let mut spare = Spare::new();
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    spare.accepting_failed(&error, listener.accept().map_ok(drop)).await;
                    continue;
                }
            },
            () = pending.ended() => continue,
            () = admission.out.closed() => return,
        };
        if let Err(error) = stream.set_nodelay(true) {
            debug!(peer = %address, "connection is gone already: {error}");
            continue;
        }
        let admission = admission.clone();
        let from = PeerAddress::Tcp(address);
        let given_up = match &tls {
            None => {
                let peer = PeerInfo { address: from, identity: PeerIdentity::Unverified };
                let connection = in_time(from, admission.admit(Io::Plain(stream), peer, None));
                pending.spawn(from, connection).await
            }
            Some(tls) => {
                let connection = in_time(from, shake(tls.clone(), stream, address, admission));
                pending.spawn(from, connection).await
            }
        };
        if given_up {
            let most = pending.most;
            log_limited!(warn, "more than {most} connections at once that say nothing; one was closed");
        }
    }
}

/// Connections of a Unix socket. Other users are kept out by the modes of socket and folder, which an administrator may
/// have changed; who connects is what counts.
async fn accept_local(listener: LocalListener, admission: Admission) {
    let mut pending = PendingConnections::new(admission.pending);
    let mut spare = Spare::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = pending.ended() => continue,
            () = admission.out.closed() => return,
        };
        let (stream, user) = match stream.and_then(|stream| Ok((LocalUser::of(&stream)?, stream))) {
            Ok((user, stream)) => (stream, user),
            Err(error) => {
                spare.accepting_failed(&error, listener.accept().map_ok(drop)).await;
                continue;
            }
        };
        if !user.is_own_or_root() {
            log_limited!(warn, %user, "refused: only the user of this coordinator and root may use its socket");
            continue;
        }
        let peer = PeerInfo { address: PeerAddress::Unix, identity: PeerIdentity::Local(user) };
        let connection = in_time(PeerAddress::Unix, admission.clone().admit(Io::Unix(stream), peer, None));
        pending.spawn(PeerAddress::Unix, connection).await;
    }
}

/// What a connection has to pass once its peer is known.
#[derive(Clone)]
struct Admission {
    places: Places,
    /// Connections of one listener that may be pending.
    pending: usize,
    out: mpsc::Sender<IncomingConnection>,
}

impl Admission {
    /// Waits for the preface and hands the connection to the server, if there is a place for it.
    async fn admit(self, mut io: Io, peer: PeerInfo, trusted: Option<Trusted>) {
        let mut preface = [0; PREFACE.len()];
        match io.read_exact(&mut preface).await {
            Ok(_) if preface == *PREFACE => {}
            Ok(_) => {
                log_limited!(info, %peer, "refused: it does not speak HTTP/2");
                // Clients of HTTP/1 and of TLS say by it what is wrong.
                let _ =
                    io.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
                let _ = io.shutdown().await;
                // What was not read would make the kernel reset the connection, and take back the answer.
                let mut rest = [0; 1024];
                for _ in 0..MAX_UNREAD / rest.len() {
                    if !matches!(io.read(&mut rest).await, Ok(1..)) {
                        break;
                    }
                }
                return;
            }
            Err(error) => {
                debug!(%peer, "closed the connection before it said anything: {error}");
                return;
            }
        }
        match self.places.take(&peer) {
            Ok(place) => {
                let stream = AfterPreface { io, replayed: 0 };
                let connection = IncomingConnection { stream, peer, trusted, place };
                // Fails only when the server stops.
                let _ = self.out.send(connection).await;
            }
            Err(why) => log_limited!(warn, %peer, "refused: {why}"),
        }
    }
}

/// One connection until it is served, and no longer than it may take.
async fn in_time(peer: PeerAddress, connection: impl Future<Output = ()>) {
    if tokio::time::timeout(HANDSHAKE, connection).await.is_err() {
        log_limited!(info, %peer, "closed: neither handshake nor preface within {HANDSHAKE:?}");
    }
}

/// Reloads certificates that changed, and ends the connections that would not be let in any more.
async fn refresh(tls: ServerTls, standing: Standing) {
    loop {
        tokio::time::sleep(tls.reload_interval()).await;
        if tls.refresh().await {
            let (tls, standing) = (tls.clone(), standing.clone());
            // Fails only when the runtime ends.
            let _ = tokio::task::spawn_blocking(move || standing.check_again(&tls)).await;
        }
    }
}

/// One handshake, with its log lines, and what follows it.
async fn shake((tls, standing): (ServerTls, Standing), stream: TcpStream, address: SocketAddr, admission: Admission) {
    match tls.accept(stream).await {
        Ok(accepted) => {
            let (chain, peer) = (accepted.chain(), accepted.peer);
            let identity = peer.map_or(PeerIdentity::Unverified, PeerIdentity::Certificate);
            let peer = PeerInfo { address: PeerAddress::Tcp(address), identity };
            let Some(trusted) = standing.add(&tls, chain, peer.clone()) else { return };
            debug!(%peer, "connected");
            admission.admit(Io::Tls(Box::new(accepted.stream)), peer, Some(trusted)).await;
        }
        Err(refused) if refused.said_nothing() => {
            debug!(peer = %address, "closed the connection before the handshake");
        }
        Err(refused) => {
            log_limited!(info, peer = %address, "refused: {}", refused.error);
            refused.take_leave().await;
        }
    }
}

/// Connections that are not served yet.
struct PendingConnections {
    /// How many there may be.
    most: usize,
    tasks: JoinSet<()>,
    /// Those of each network, oldest first.
    by_network: HashMap<String, VecDeque<AbortHandle>>,
}

impl PendingConnections {
    fn new(most: usize) -> Self {
        Self { most, tasks: JoinSet::new(), by_network: HashMap::new() }
    }

    /// Adds one; returns whether another one was given up for it: the oldest of the network that has most, so that who opens
    /// many keeps out nobody else, however slow; of several such networks any. That one is closed then: were it only about to be, a burst of connections
    /// could use up all descriptors meanwhile.
    async fn spawn(&mut self, from: PeerAddress, connection: impl Future<Output = ()> + Send + 'static) -> bool {
        if self.remembered() >= self.most {
            self.by_network.retain(|_, of_network| {
                of_network.retain(|task| !task.is_finished());
                !of_network.is_empty()
            });
        }
        let full = self.remembered() >= self.most;
        if full
            && let Some(most) =
                self.by_network.values_mut().max_by_key(|of_network| (of_network.len(), rand::random::<u32>()))
        {
            most.pop_front().inspect(AbortHandle::abort);
        }
        // Ends with the next that ends, which those that were given up do when they are scheduled next.
        while self.tasks.len() >= self.most && self.tasks.join_next().await.is_some() {}
        self.by_network.entry(from.network()).or_default().push_back(self.tasks.spawn(connection));
        full
    }

    /// Those that were added and neither given up nor seen to have ended.
    fn remembered(&self) -> usize {
        self.by_network.values().map(VecDeque::len).sum()
    }

    /// Waits until one has ended. Cancel safe.
    async fn ended(&mut self) {
        if self.tasks.join_next().await.is_none() {
            std::future::pending().await
        }
    }
}

/// One connection.
#[derive(Debug)]
pub struct IncomingConnection {
    pub(super) stream: AfterPreface,
    pub(super) peer: PeerInfo,
    /// With TLS: when its certificate is no longer accepted.
    pub(super) trusted: Option<Trusted>,
    pub(super) place: Place,
}

/// The bytes of a connection, of which the preface was read already and is given out once more.
#[derive(Debug)]
pub(super) struct AfterPreface {
    io: Io,
    /// Bytes of the preface that the server has read again.
    replayed: usize,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<ServerStream>),
    Unix(UnixStream),
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncRead for AfterPreface {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let rest = &PREFACE[self.replayed..];
        if !rest.is_empty() {
            let length = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..length]);
            self.replayed += length;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }
}

impl AsyncWrite for AfterPreface {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests;

//! Incoming connections, with the identity of the peer: over TCP plain or after the handshake of mutual TLS, or over a Unix
//! socket from a process of this user or root.
//!
//! Each handshake is a task with a deadline, so that a stalled client delays no other. Their number is bounded; above
//! it the oldest is given up, because successful ones take milliseconds. No error of a connection ends the listener.

mod standing;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use runtime::socket::{LocalListener, LocalUser};
use runtime::tls::{Identity, ServerStream, ServerTls};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tracing::{debug, info, warn};

use standing::{Standing, Trusted};

/// Deadline of a handshake, including the time in which a refused client receives the reason.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Concurrent handshakes. Some thousand connections at once, when the leader changes, take a second of one core; each
/// stalled one costs a file descriptor and some ten KiB until its deadline.
const MAX_HANDSHAKES: usize = 256;

/// Connections that wait to be accepted by the server, which happens at once.
const QUEUE: usize = 64;

/// Pause after accepting failed, mostly for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("this host"),
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

/// Connections of these listeners. Those over TCP are without Nagle's algorithm, which would delay the second half of every
/// response larger than a packet by 40 ms, and with `tls` only from clients with a valid certificate; those over a Unix
/// socket are only from this user and root. Needs a Tokio runtime; dropping the result closes the listeners.
#[must_use]
pub fn incoming(listeners: Vec<Listener>, tls: Option<ServerTls>) -> Incoming {
    let (out, connections) = mpsc::channel(QUEUE);
    let mut tasks = JoinSet::new();
    let tls = tls.map(|tls| (tls, Standing::default()));
    if let Some((tls, standing)) = tls.clone() {
        tasks.spawn(refresh(tls, standing));
    }
    let hush = Arc::new(Mutex::new(Hush::new(Instant::now())));
    for listener in listeners {
        let (out, hush) = (out.clone(), Arc::clone(&hush));
        match listener {
            Listener::Tcp(listener) => tasks.spawn(accept(listener, tls.clone(), out, hush)),
            Listener::Unix(listener) => tasks.spawn(accept_local(listener, out, hush)),
        };
    }
    Incoming { connections, _tasks: tasks }
}

/// See [`incoming`].
#[derive(Debug)]
pub struct Incoming {
    connections: mpsc::Receiver<IncomingConnection>,
    /// End when they are dropped.
    _tasks: JoinSet<()>,
}

impl Stream for Incoming {
    type Item = io::Result<IncomingConnection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<(ServerTls, Standing)>,
    out: mpsc::Sender<IncomingConnection>,
    hush: Arc<Mutex<Hush>>,
) {
    let mut handshakes = Handshakes::default();
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    accepting_failed(&error, &hush).await;
                    continue;
                }
            },
            () = handshakes.ended() => continue,
            () = out.closed() => return,
        };
        if let Err(error) = stream.set_nodelay(true) {
            debug!(peer = %address, "connection is gone already: {error}");
            continue;
        }
        match &tls {
            None => {
                let peer = PeerInfo { address: PeerAddress::Tcp(address), identity: PeerIdentity::Unverified };
                if out.send(IncomingConnection { io: Io::Plain(stream), peer, trusted: None }).await.is_err() {
                    return;
                }
            }
            Some((tls, standing)) => {
                let shaken = shake((tls.clone(), standing.clone()), stream, address, out.clone(), Arc::clone(&hush));
                if handshakes.spawn(shaken)
                    && let Some(skipped) = Hush::take(&hush)
                {
                    warn!(skipped, "more than {MAX_HANDSHAKES} handshakes at once; the oldest was given up");
                }
            }
        }
    }
}

/// Logs why there is no next connection, and waits before the next try.
async fn accepting_failed(error: &io::Error, hush: &Mutex<Hush>) {
    if let Some(skipped) = Hush::take(hush) {
        warn!(skipped, "accept a connection: {error}");
    }
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Connections of a Unix socket. Other users are kept out by the modes of socket and folder, which an administrator may
/// have changed; who connects is what counts.
async fn accept_local(listener: LocalListener, out: mpsc::Sender<IncomingConnection>, hush: Arc<Mutex<Hush>>) {
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = out.closed() => return,
        };
        let (stream, user) = match stream.and_then(|stream| Ok((LocalUser::of(&stream)?, stream))) {
            Ok((user, stream)) => (stream, user),
            Err(error) => {
                accepting_failed(&error, &hush).await;
                continue;
            }
        };
        if !user.is_own_or_root() {
            if let Some(skipped) = Hush::take(&hush) {
                warn!(%user, skipped, "refused: only the user of this coordinator and root may use its socket");
            }
            continue;
        }
        let peer = PeerInfo { address: PeerAddress::Unix, identity: PeerIdentity::Local(user) };
        if out.send(IncomingConnection { io: Io::Unix(stream), peer, trusted: None }).await.is_err() {
            return;
        }
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

/// One handshake, with its log lines.
async fn shake(
    (tls, standing): (ServerTls, Standing),
    stream: TcpStream,
    address: SocketAddr,
    out: mpsc::Sender<IncomingConnection>,
    hush: Arc<Mutex<Hush>>,
) {
    let shaken = async {
        match tls.accept(stream).await {
            Ok(accepted) => {
                let (chain, peer) = (accepted.chain(), accepted.peer);
                let address = PeerAddress::Tcp(address);
                let identity = peer.map_or(PeerIdentity::Unverified, PeerIdentity::Certificate);
                let peer = PeerInfo { address, identity };
                let Some(trusted) = standing.add(&tls, chain, peer.clone()) else { return };
                debug!(%peer, "connected");
                let io = Io::Tls(Box::new(accepted.stream));
                // Fails only when the server stops.
                let _ = out.send(IncomingConnection { io, peer, trusted: Some(trusted) }).await;
            }
            Err(refused) if refused.said_nothing() => {
                debug!(peer = %address, "closed the connection before the handshake")
            }
            Err(refused) => {
                if let Some(skipped) = Hush::take(&hush) {
                    info!(peer = %address, skipped, "refused: {}", refused.error);
                }
                refused.take_leave().await;
            }
        }
    };
    if tokio::time::timeout(HANDSHAKE, shaken).await.is_err()
        && let Some(skipped) = Hush::take(&hush)
    {
        info!(peer = %address, skipped, "the handshake did not end within {HANDSHAKE:?}");
    }
}

/// Handshakes under way, oldest first.
#[derive(Default)]
struct Handshakes {
    tasks: JoinSet<()>,
    order: VecDeque<AbortHandle>,
}

impl Handshakes {
    /// Begins a handshake; returns whether another one was given up for it.
    fn spawn(&mut self, handshake: impl Future<Output = ()> + Send + 'static) -> bool {
        if self.order.len() >= MAX_HANDSHAKES {
            self.order.retain(|task| !task.is_finished());
        }
        let full = self.order.len() >= MAX_HANDSHAKES;
        if full && let Some(oldest) = self.order.pop_front() {
            oldest.abort();
        }
        self.order.push_back(self.tasks.spawn(handshake));
        full
    }

    /// Waits until one has ended. Cancel safe.
    async fn ended(&mut self) {
        if self.tasks.join_next().await.is_none() {
            std::future::pending().await
        }
    }
}

/// Limits log lines about failed connections: ten at once, then one every three seconds.
struct Hush {
    allowed: u32,
    refilled: Instant,
    skipped: u64,
}

impl Hush {
    const BURST: u32 = 10;
    const REFILL: Duration = Duration::from_secs(3);

    const fn new(now: Instant) -> Self {
        Self { allowed: Self::BURST, refilled: now, skipped: 0 }
    }

    /// Whether a line may be written now, and how many were suppressed since the last.
    fn take(hush: &Mutex<Self>) -> Option<u64> {
        hush.lock().unwrap_or_else(PoisonError::into_inner).at(Instant::now())
    }

    fn at(&mut self, now: Instant) -> Option<u64> {
        while self.allowed < Self::BURST && now >= self.refilled + Self::REFILL {
            self.allowed += 1;
            self.refilled += Self::REFILL;
        }
        if self.allowed == Self::BURST {
            self.refilled = now;
        }
        if self.allowed == 0 {
            self.skipped += 1;
            return None;
        }
        self.allowed -= 1;
        Some(std::mem::take(&mut self.skipped))
    }
}

/// One connection.
#[derive(Debug)]
pub struct IncomingConnection {
    io: Io,
    peer: PeerInfo,
    /// Says when a connection with TLS has to end because of its certificate.
    trusted: Option<Trusted>,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<ServerStream>),
    Unix(UnixStream),
}

impl Connected for IncomingConnection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for IncomingConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.trusted.as_mut().is_some_and(|trusted| trusted.poll_over(cx).is_ready()) {
            let over = io::Error::new(io::ErrorKind::ConnectionAborted, "the certificate is no longer accepted");
            return Poll::Ready(Err(over));
        }
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for IncomingConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Io::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Io::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
            Io::Unix(stream) => stream.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests;

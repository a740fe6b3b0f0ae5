//! Incoming connections: plain, or after the handshake of mutual TLS, with the identity of the peer.
//!
//! Each handshake is a task with a deadline, so that a stalled client delays no other. Their number is bounded; above
//! it the oldest is given up, because successful ones take milliseconds. No error of a connection ends the listener.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use runtime::tls::{Accepted, Identity, ServerStream, ServerTls};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tracing::{debug, info, warn};

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
    pub address: SocketAddr,
    /// Identity of its certificate; `None` without TLS.
    pub identity: Option<Arc<Identity>>,
}

impl fmt::Display for PeerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.identity {
            Some(identity) => {
                // Names come from a trusted CA, but they are printed on terminals.
                let name: String = identity.name().chars().filter(|c| !c.is_control()).take(128).collect();
                write!(f, "{name} at {}", self.address)
            }
            None => self.address.fmt(f),
        }
    }
}

/// Connections of a listener: without Nagle's algorithm, which would delay the second half of every response larger
/// than a packet by 40 ms, and with `tls` only from clients with a valid certificate. Needs a Tokio runtime; dropping
/// the result closes the listener.
#[must_use]
pub fn incoming(listener: TcpListener, tls: Option<ServerTls>) -> Incoming {
    let (out, connections) = mpsc::channel(QUEUE);
    let task = tokio::spawn(accept(listener, tls, out)).abort_handle();
    Incoming { connections, task }
}

/// See [`incoming`].
#[derive(Debug)]
pub struct Incoming {
    connections: mpsc::Receiver<IncomingConnection>,
    task: AbortHandle,
}

impl Stream for Incoming {
    type Item = io::Result<IncomingConnection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, tls: Option<ServerTls>, out: mpsc::Sender<IncomingConnection>) {
    let mut handshakes = Handshakes::default();
    let mut chores = JoinSet::new();
    if let Some(tls) = tls.clone() {
        chores.spawn(refresh(tls));
    }
    let hush = Arc::new(Mutex::new(Hush::new(Instant::now())));
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if let Some(skipped) = Hush::take(&hush) {
                        warn!(skipped, "accept a connection: {error}");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
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
                let connection =
                    IncomingConnection { io: Io::Plain(stream), peer: PeerInfo { address, identity: None } };
                if out.send(connection).await.is_err() {
                    return;
                }
            }
            Some(tls) => {
                let shaken = shake(tls.clone(), stream, address, out.clone(), Arc::clone(&hush));
                if handshakes.spawn(shaken)
                    && let Some(skipped) = Hush::take(&hush)
                {
                    warn!(skipped, "more than {MAX_HANDSHAKES} handshakes at once; the oldest was given up");
                }
            }
        }
    }
}

/// Reloads certificates that changed.
async fn refresh(tls: ServerTls) {
    loop {
        tokio::time::sleep(tls.reload_interval()).await;
        tls.refresh().await;
    }
}

/// One handshake, with its log lines.
async fn shake(
    tls: ServerTls,
    stream: TcpStream,
    address: SocketAddr,
    out: mpsc::Sender<IncomingConnection>,
    hush: Arc<Mutex<Hush>>,
) {
    let shaken = async {
        match tls.accept(stream).await {
            Ok(Accepted { stream, peer }) => {
                let peer = PeerInfo { address, identity: Some(peer) };
                debug!(%peer, "connected");
                // Fails only when the server stops.
                let _ = out.send(IncomingConnection { io: Io::Tls(Box::new(stream)), peer }).await;
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
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<ServerStream>),
}

impl Connected for IncomingConnection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for IncomingConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for IncomingConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
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
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests;

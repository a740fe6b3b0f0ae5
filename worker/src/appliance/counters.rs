//! Traffic counters, and the stream that counts what goes through it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::api::Label;

/// Counters of a listener or of a member. They only grow, except `open`.
#[derive(Debug, Default)]
pub(super) struct TrafficCounters {
    connections: AtomicU64,
    open: AtomicU64,
    failed: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl TrafficCounters {
    /// Counts a connection; it is open for as long as the guard lives.
    pub(super) fn open(self: &Arc<Self>) -> OpenConnection {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenConnection(Arc::clone(self))
    }

    /// Counts a failure.
    pub(super) fn fail(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// The counters under a name.
    pub(super) fn label(&self, name: String) -> Label {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Label {
            name,
            connections: get(&self.connections),
            open: get(&self.open),
            failed: get(&self.failed),
            bytes_in: get(&self.bytes_in),
            bytes_out: get(&self.bytes_out),
            healthy: None,
            members: Vec::new(),
        }
    }
}

/// An open connection, as far as counters are concerned.
#[derive(Debug)]
pub(super) struct OpenConnection(Arc<TrafficCounters>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where one forwarded connection is counted.
#[derive(Debug)]
pub(super) struct Traffic {
    pub(super) listener: Arc<TrafficCounters>,
    pub(super) member: Arc<TrafficCounters>,
    /// Bytes of this connection, both ways: tells an idle connection from a busy one.
    pub(super) total: AtomicU64,
}

/// A stream whose incoming bytes are counted.
#[derive(Debug)]
pub(super) struct CountedStream {
    stream: TcpStream,
    traffic: Arc<Traffic>,
    from_client: bool,
}

impl CountedStream {
    pub(super) const fn new(stream: TcpStream, traffic: Arc<Traffic>, from_client: bool) -> Self {
        Self { stream, traffic, from_client }
    }
}

impl AsyncRead for CountedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let bytes = (buf.filled().len() - before) as u64;
        if bytes > 0 {
            self.traffic.total.fetch_add(bytes, Ordering::Relaxed);
            for counters in [&self.traffic.listener, &self.traffic.member] {
                let counter = if self.from_client { &counters.bytes_in } else { &counters.bytes_out };
                counter.fetch_add(bytes, Ordering::Relaxed);
            }
        }
        polled
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

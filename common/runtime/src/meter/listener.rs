//! Connections that read `/metrics`: few at once, and none for long without a request.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::log_limited;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// Connections at once, among the descriptors that are kept for everything but calls. More wait in the backlog of the system,
/// at most [`SILENT`].
const CONNECTIONS: usize = 16;

/// Longest time without a byte from the other side or to it. A scraper that keeps its connection opens another one.
const SILENT: Duration = Duration::from_secs(5);

/// Longest life of a connection, also of one that sends a byte now and then.
const LONGEST: Duration = Duration::from_secs(60);

/// Pause after accepting failed, mostly for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(super) struct ScrapeListener {
    listener: TcpListener,
    free: Arc<Semaphore>,
}

impl ScrapeListener {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, free: Arc::new(Semaphore::new(CONNECTIONS)) }
    }
}

impl axum::serve::Listener for ScrapeListener {
    type Io = ScrapeConnection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (ScrapeConnection, SocketAddr) {
        // Nothing closes the semaphore.
        let permit = Arc::clone(&self.free).acquire_owned().await.ok();
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    let until = Instant::now() + LONGEST;
                    let silent = Box::pin(tokio::time::sleep(SILENT));
                    return (ScrapeConnection { stream, silent, until, _permit: permit }, address);
                }
                Err(error) => {
                    log_limited!(warn, "accept a connection for metrics: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when nothing passes for a while, or after a minute.
#[derive(Debug)]
pub(super) struct ScrapeConnection {
    stream: TcpStream,
    silent: Pin<Box<Sleep>>,
    /// When it ends in any case.
    until: Instant,
    _permit: Option<OwnedSemaphorePermit>,
}

impl ScrapeConnection {
    /// Notes that something passed, or ends the connection that has been silent for too long.
    fn judge<T>(&mut self, cx: &mut Context<'_>, passed: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if passed.is_ready() {
            let next = (Instant::now() + SILENT).min(self.until);
            self.silent.as_mut().reset(next);
            if next > Instant::now() {
                return passed;
            }
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        match self.silent.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for ScrapeConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let passed = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.judge(cx, passed)
    }
}

impl AsyncWrite for ScrapeConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let passed = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.judge(cx, passed)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

//! One forwarded connection: bytes both ways until both sides have ended, one is reset, or nothing has come for too long.
//!
//! What ends otherwise than by two clean ends is passed on as a reset, to both sides: a client must not take half an answer
//! for a whole one.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::api::Limits;

/// Bytes that are read at a time, each way.
const CHUNK: usize = 8 * 1024;

/// How a connection ended.
#[derive(Debug)]
pub(super) enum RelayEnd {
    /// Both sides had no more to send.
    Finished,
    /// One side broke off.
    Reset,
    /// Nothing came for longer than its limits allow.
    Quiet,
    /// It was ended from here.
    Cut,
}

/// Forwards until the connection has ended. `count` is told how many bytes came from the client (`true`) or the server.
pub(super) async fn relay(
    client: &mut TcpStream,
    server: &mut TcpStream,
    limits: &Limits,
    cut: &CancellationToken,
    count: impl Fn(bool, u64),
) -> RelayEnd {
    let progress = Progress::new();
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    tokio::select! {
        biased;
        () = progress.finished.notified() => RelayEnd::Finished,
        () = cut.cancelled() => RelayEnd::Cut,
        _ = pump(&mut from_client, &mut to_server, &progress, |bytes| count(true, bytes)) => RelayEnd::Reset,
        _ = pump(&mut from_server, &mut to_client, &progress, |bytes| count(false, bytes)) => RelayEnd::Reset,
        () = progress.quiet(limits) => RelayEnd::Quiet,
    }
}

/// Makes that the other side sees a reset once this one is dropped, and not a clean end. A socket that cannot be set so was
/// closed by its other side.
pub(super) fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

/// Waits until the connection is broken off by its other side, also when there is nothing more to be read from it.
pub(super) async fn broken(stream: &TcpStream) -> io::Error {
    let error =
        stream.async_io(Interest::ERROR, || stream.take_error()?.ok_or_else(|| io::ErrorKind::WouldBlock.into()));
    error.await.unwrap_or_else(|error| error)
}

/// Forwards one way. After a clean end of what comes in it passes that on and waits: it ends only when the connection is broken.
async fn pump(
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    progress: &Progress,
    count: impl Fn(u64),
) -> io::Result<io::Error> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let bytes = from.read(&mut chunk).await?;
        if bytes == 0 {
            break;
        }
        progress.moved();
        count(bytes as u64);
        to.write_all(&chunk[..bytes]).await?;
    }
    drop(chunk);
    to.shutdown().await?;
    progress.ended();
    Ok(broken(from.as_ref()).await)
}

/// When something came last, and how many sides have ended.
#[derive(Debug)]
struct Progress {
    start: Instant,
    /// Milliseconds from `start` to the last byte, or to the end of the first side.
    last_ms: AtomicU64,
    ended: AtomicUsize,
    half_closed: Notify,
    finished: Notify,
}

impl Progress {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            last_ms: AtomicU64::new(0),
            ended: AtomicUsize::new(0),
            half_closed: Notify::new(),
            finished: Notify::new(),
        }
    }

    fn moved(&self) {
        let ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Ordering::Relaxed);
    }

    fn ended(&self) {
        self.moved();
        match self.ended.fetch_add(1, Ordering::Relaxed) {
            0 => self.half_closed.notify_one(),
            _ => self.finished.notify_one(),
        }
    }

    /// Waits until nothing has come for as long as the limits allow.
    async fn quiet(&self, limits: &Limits) {
        loop {
            let half_closed = self.ended.load(Ordering::Relaxed) > 0;
            let allowed = if half_closed { limits.half_close_timeout() } else { limits.idle_timeout() };
            let due = self.start + Duration::from_millis(self.last_ms.load(Ordering::Relaxed)) + allowed;
            if Instant::now() >= due {
                return;
            }
            tokio::select! {
                () = sleep_until(due) => {}
                // Another limit holds from now on.
                () = self.half_closed.notified() => {}
            }
        }
    }
}

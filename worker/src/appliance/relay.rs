//! One forwarded connection: bytes both ways until both sides have ended, one is reset, or nothing has come for too long.
//!
//! What ends otherwise than by two clean ends is passed on as a reset, to both sides: a client must not take half an answer
//! for a whole one.
//!
//! Bytes are read into a buffer that all connections of a thread share, and written at once; only what the other side does not
//! take is kept for one connection. Between two looks a [`Link`] therefore says all there is to know of a connection, and can be
//! handed to another process, which goes on with it.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::{SendFlags, Shutdown, shutdown};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::api::Limits;
use super::dial::Dialled;
use super::socket::{broken_off, has_ended, read, reset, with_scratch, write, write_with};

/// How a connection ended.
#[derive(Debug)]
pub(super) enum RelayEnd {
    /// Both sides had no more to send.
    Finished,
    /// One side broke off.
    Reset,
    /// Nothing came for longer than its limits allow.
    Quiet,
    /// It was interrupted from here. The link can be gone on with.
    Interrupted,
}

/// A client and the member it is connected to.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
    /// From the client to the member.
    pub(super) up: Flow,
    /// From the member to the client.
    pub(super) down: Flow,
    /// Whether what is written to the member is sent at once, however little it is.
    pub(super) prompt: bool,
}

/// One way of a connection.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// Bytes that are to be written, before anything else is read.
    pub(super) kept: Vec<u8>,
    /// How many of them are written already.
    pub(super) written: usize,
    pub(super) state: FlowState,
}

/// How far one way of a connection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FlowState {
    /// More may come.
    #[default]
    Open,
    /// Its end has come, and has not been passed on yet.
    Ending,
    /// Its end was passed on.
    Ended,
}

impl Link {
    /// A new connection, with what is to be sent to the member first.
    pub(super) fn new(client: TcpStream, Dialled { stream: server, written, prompt }: Dialled, first: Vec<u8>) -> Self {
        let mut up = Flow::default();
        if written < first.len() {
            (up.kept, up.written) = (first, written);
        }
        Self { client, server, up, down: Flow::default(), prompt }
    }

    /// Has what is written to the member sent at once from now on, and what waits already. Small packets matter more than few of
    /// them; a socket that cannot be set so works as well. That of the client has it from the one that listens.
    pub(super) fn hurry(&mut self) {
        hurry(&self.server, &mut self.prompt);
    }

    /// Forwards until the connection has ended. `count` is told how many bytes came from the client (`true`) or the server.
    pub(super) async fn relay(
        &mut self,
        limits: &Limits,
        interrupt: &CancellationToken,
        mut due: Pin<&mut Sleep>,
        count: impl Fn(bool, u64),
    ) -> RelayEnd {
        let Self { client, server, up, down, prompt } = self;
        let (client, server) = (&*client, &*server);
        let mut interrupted = pin!(interrupt.cancelled());
        let (mut waits, mut is_half_closed) = (false, false);
        let mut last = coarse_now();
        due.as_mut().reset(Instant::now() + limits.idle_timeout());
        // Breaks off after it has ended, which no read tells any more.
        let mut broken: Option<Pin<Box<dyn Future<Output = io::Error> + Send + '_>>> = None;
        poll_fn(|context| {
            // Both wait from the first time on. Then a look at whether they have come is all that is needed, and takes less.
            let begins = !std::mem::replace(&mut waits, true);
            let is_interrupted =
                if begins { interrupted.as_mut().poll(context).is_ready() } else { interrupt.is_cancelled() };
            if is_interrupted {
                return Poll::Ready(RelayEnd::Interrupted);
            }
            let sent = up.pump(client, server, down.state, context, |bytes| count(true, bytes));
            let answered = down.pump(server, client, up.state, context, |bytes| count(false, bytes));
            let (Ok(sent), Ok(answered)) = (sent, answered) else { return Poll::Ready(RelayEnd::Reset) };
            let ended = match (up.state, down.state) {
                (FlowState::Ended, FlowState::Ended) => return Poll::Ready(RelayEnd::Finished),
                (FlowState::Ended, _) => Some(client),
                (_, FlowState::Ended) => Some(server),
                _ => None,
            };
            if let Some(ended) = ended {
                let broken = broken.get_or_insert_with(|| Box::pin(broken_off(ended)));
                if broken.as_mut().poll(context).is_ready() {
                    return Poll::Ready(RelayEnd::Reset);
                }
            }
            // Not before it is needed, which saves a call for connections of one request: what was sent first did not wait.
            if sent && up.state == FlowState::Open {
                hurry(server, prompt);
            }
            if sent || answered {
                last = coarse_now();
            }
            let allowed = if ended.is_some() { limits.half_close_timeout() } else { limits.idle_timeout() };
            let closes_half = ended.is_some() && !std::mem::replace(&mut is_half_closed, true);
            if closes_half {
                // Its limit may come earlier.
                let at = Instant::now() + allowed;
                if at < due.deadline() {
                    due.as_mut().reset(at);
                }
            }
            if begins || closes_half || due.is_elapsed() {
                while due.as_mut().poll(context).is_ready() {
                    let left = allowed.saturating_sub(coarse_now().saturating_sub(last));
                    if left.is_zero() {
                        return Poll::Ready(RelayEnd::Quiet);
                    }
                    due.as_mut().reset(Instant::now() + left);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Makes that both sides see a reset once this is dropped, and not a clean end.
    pub(super) fn reset(&self) {
        reset(&self.client);
        reset(&self.server);
    }
}

impl Flow {
    /// Forwards as much as can be forwarded now. Answers whether anything happened.
    fn pump(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        other: FlowState,
        context: &mut Context<'_>,
        count: impl Fn(u64),
    ) -> io::Result<bool> {
        let mut moved = false;
        loop {
            if !self.kept.is_empty() {
                let Poll::Ready(written) = write(to, context, &self.kept[self.written..])? else { return Ok(moved) };
                moved = true;
                self.written += written;
                if self.written == self.kept.len() {
                    (self.kept, self.written) = (Vec::new(), 0);
                }
                continue;
            }
            match self.state {
                FlowState::Ended => return Ok(moved),
                FlowState::Ending => {
                    // Where the other way has ended as well, both sockets are about to be closed, which says the same.
                    if other != FlowState::Ended {
                        shutdown(to, Shutdown::Write)?;
                    }
                    self.state = FlowState::Ended;
                    return Ok(true);
                }
                FlowState::Open => {}
            }
            let came = with_scratch(|scratch| {
                let Poll::Ready(bytes) = read(from, context, scratch)? else { return io::Result::Ok(Poll::Pending) };
                let is_last = 0 < bytes && bytes < scratch.len() && has_ended(from);
                // Together with what follows at once: the end, in one packet.
                let flags = if is_last { SendFlags::MORE } else { SendFlags::empty() };
                // Most of the time all of it is taken at once.
                if let Poll::Ready(written) = write_with(to, context, &scratch[..bytes], flags)? {
                    self.kept = scratch[written..bytes].to_vec();
                } else {
                    self.kept = scratch[..bytes].to_vec();
                }
                Ok(Poll::Ready((bytes, is_last)))
            })?;
            let Poll::Ready((bytes, is_last)) = came else { return Ok(moved) };
            if bytes > 0 {
                count(bytes as u64);
            }
            if bytes == 0 || is_last {
                self.state = FlowState::Ending;
            }
            moved = true;
        }
    }
}

/// The time since the machine was started, some milliseconds late, which is close enough for time-outs and takes a fraction of what the
/// exact one takes.
fn coarse_now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::MonotonicCoarse)).unwrap_or_default()
}

fn hurry(server: &TcpStream, prompt: &mut bool) {
    if !std::mem::replace(prompt, true) {
        let _ = server.set_nodelay(true);
    }
}

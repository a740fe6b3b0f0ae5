//! The session service: turns each worker's stream into inputs of the leader, and back.
//!
//! A stream's task reads, parses and forwards; it decides nothing. What cannot be parsed ends the stream with a reason.
//! The other direction is a bounded channel per stream: the leader never waits for a worker, a stream whose worker does
//! not read is closed and the worker's next `Hello` brings things in order.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::Timestamp;
use common::session::{Envelope, Hello, MAX_ENTRIES_PER_MESSAGE, Refused, RefusedReason, ToCoordinator};
use coordinator_core::machine::StreamId;
use proto::convert::{down, up};
use proto::worker::v1::session_server::Session;
use proto::worker::v1::{CoordinatorMessage, WorkerMessage};
use runtime::{clock, log_limited};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use crate::grpc::{Access, access_of};

/// Messages of one stream that wait for the transport: a window of deltas, the answers that come between, and what answers
/// the longest `Hello`, a welcome and the confirmation of what was released, all at once.
const OUT_QUEUE: usize = 256 + 2 * MAX_HELLO.div_ceil(MAX_ENTRIES_PER_MESSAGE);

/// How long a worker may take to say `Hello` in full.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Most entries of a whole `Hello`; ten times what one worker is made for.
const MAX_HELLO: usize = 1_000_000;

/// What a stream's task tells the leader, with the moment it was read: the leader has to know how far behind it is.
#[derive(Debug)]
pub enum Input {
    /// A worker said `Hello`. What is sent to it goes through `out`.
    Hello {
        /// The stream.
        conn: StreamId,
        /// Life and number of the stream, as the worker names them.
        envelope: Envelope,
        /// All parts of it as one.
        hello: Box<Hello>,
        /// The way back.
        out: Out,
    },
    /// A worker said something else.
    Message {
        /// The stream.
        conn: StreamId,
        /// What it claims to belong to.
        envelope: Envelope,
        /// What it says.
        message: ToCoordinator,
    },
    /// The stream ended.
    Closed(StreamId),
}

/// The way back to a worker. Dropping it ends the stream.
#[derive(Debug)]
pub struct Out {
    messages: mpsc::Sender<Result<CoordinatorMessage, Status>>,
    /// Ends the stream's task: nothing the worker says counts any more.
    _closed: DropGuard,
}

impl Out {
    /// Sends a message. `false` when the worker does not read: the stream has to be dropped then.
    #[must_use]
    pub fn send(&self, message: CoordinatorMessage) -> bool {
        self.messages.try_send(Ok(message)).is_ok()
    }

    /// Tells the worker why its stream ends. Nothing follows if it does not read.
    pub fn refuse(&self, envelope: &Envelope, refused: Refused) {
        let _ = self.send(down::refused_to_wire(envelope, refused));
    }
}

/// The service.
#[derive(Debug)]
pub struct Sessions {
    leader: mpsc::Sender<(Timestamp, Input)>,
    next: AtomicU64,
    stopping: watch::Receiver<bool>,
}

impl Sessions {
    /// A service whose streams feed `leader` until `stopping` turns true.
    #[must_use]
    pub const fn new(leader: mpsc::Sender<(Timestamp, Input)>, stopping: watch::Receiver<bool>) -> Self {
        Self { leader, next: AtomicU64::new(1), stopping }
    }
}

#[tonic::async_trait]
impl Session for Sessions {
    type OpenStream = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn open(&self, request: Request<Streaming<WorkerMessage>>) -> Result<Response<Self::OpenStream>, Status> {
        if *self.stopping.borrow() {
            return Err(Status::unavailable("the coordinator is stopping"));
        }
        let access = access_of(request.extensions())?.clone();
        let conn = self.next.fetch_add(1, Ordering::Relaxed);
        let (out, messages) = mpsc::channel(OUT_QUEUE);
        let reader = Reader { conn, leader: self.leader.clone(), inbound: request.into_inner(), access };
        tokio::spawn(reader.run(out));
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

struct Reader {
    conn: StreamId,
    leader: mpsc::Sender<(Timestamp, Input)>,
    inbound: Streaming<WorkerMessage>,
    /// Which workers the peer may be.
    access: Access,
}

/// Why a stream's `Hello` is not taken.
enum HelloRefused {
    /// It cannot be read.
    Malformed(String),
    /// The peer is not the worker that it says it is.
    NotAllowed(Status),
}

impl From<String> for HelloRefused {
    fn from(problem: String) -> Self {
        Self::Malformed(problem)
    }
}

impl Reader {
    async fn run(mut self, out: mpsc::Sender<Result<CoordinatorMessage, Status>>) {
        let conn = self.conn;
        // After the hello only the leader holds the way back: dropping it there ends the stream.
        let weak = out.downgrade();
        let closed = CancellationToken::new();
        let hello = tokio::time::timeout(HELLO_TIMEOUT, self.hello()).await;
        match hello {
            Ok(Ok((envelope, hello))) => {
                let out = Out { messages: out, _closed: closed.clone().drop_guard() };
                let input = Input::Hello { conn, envelope, hello: Box::new(hello), out };
                if self.leader.send((clock::now(), input)).await.is_err() {
                    return;
                }
            }
            Ok(Err(HelloRefused::Malformed(problem))) => {
                log_limited!(warn, conn, "hello refused: {problem}");
                let _ = out.send(Ok(malformed(problem))).await;
                return;
            }
            Ok(Err(HelloRefused::NotAllowed(status))) => {
                let _ = out.send(Err(status)).await;
                return;
            }
            Err(_) => {
                let _ = out.send(Err(Status::deadline_exceeded("hello did not come in time"))).await;
                return;
            }
        }
        loop {
            let message = tokio::select! {
                message = self.inbound.message() => message,
                () = closed.cancelled() => break,
            };
            match message {
                Ok(Some(message)) => match up::up_from_wire(message) {
                    Ok(up::FromWorker { envelope, message, more: _ }) => {
                        let input = Input::Message { conn, envelope, message };
                        if self.leader.send((clock::now(), input)).await.is_err() {
                            return;
                        }
                    }
                    Err(problem) => {
                        log_limited!(warn, conn, "message refused: {problem}");
                        if let Some(out) = weak.upgrade() {
                            let _ = out.try_send(Ok(malformed(problem.to_string())));
                        }
                        break;
                    }
                },
                Ok(None) => break,
                Err(status) => {
                    debug!(conn, "stream broke: {}", status.message());
                    break;
                }
            }
        }
        let _ = self.leader.send((clock::now(), Input::Closed(conn))).await;
    }

    /// Reads all parts of `Hello` as one.
    async fn hello(&mut self) -> Result<(Envelope, Hello), HelloRefused> {
        let mut whole: Option<(Envelope, Hello)> = None;
        loop {
            let message = match self.inbound.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return Err("the stream ended before hello was complete".to_owned().into()),
                Err(status) => return Err(status.message().to_owned().into()),
            };
            let part = up::up_from_wire(message).map_err(|e| e.to_string())?;
            let ToCoordinator::Hello(hello) = part.message else {
                return Err("the first message must be Hello".to_owned().into());
            };
            if !self.access.grants().is_worker(&hello.worker) {
                let why = format!("`{}` is none of the workers", hello.worker);
                return Err(HelloRefused::NotAllowed(self.access.refuse(&why)));
            }
            match &mut whole {
                None => whole = Some((part.envelope, *hello)),
                Some((envelope, first)) => {
                    if *envelope != part.envelope || !up::extend_hello(first, *hello) {
                        return Err("a part of Hello names another worker or stream".to_owned().into());
                    }
                }
            }
            match whole {
                Some((_, hello)) if hello.owned.len() + hello.released.len() + hello.removed.len() > MAX_HELLO => {
                    return Err(format!("Hello has more than {MAX_HELLO} entries").into());
                }
                Some(whole) if !part.more => return Ok(whole),
                partial => whole = partial,
            }
        }
    }
}

/// Ends a stream whose messages cannot be used, before it is known whose it is.
fn malformed(problem: String) -> CoordinatorMessage {
    let none = Envelope { term: common::Term::new(0), incarnation: None, stream: common::StreamNumber::new(0) };
    let refused = Refused { reason: RefusedReason::Malformed, detail: problem, retry_after: None };
    down::refused_to_wire(&none, refused)
}

//! The session service: turns each worker's stream into inputs of the leader, and back.
//!
//! A stream's task reads, parses and forwards; it decides nothing. What cannot be parsed ends the stream with a reason.
//! The other direction is a bounded channel per stream: the leader never waits for a worker, a stream whose worker does
//! not read is closed and the worker's next `Hello` brings things in order.
//!
//! What is read is charged to its peer ([`budget`](crate::budget)): a `Hello` until its worker has answered the welcome, everything else
//! until the leader has taken it in. A peer above its bound in `Hello`s is refused and tries again later; other messages
//! wait for room, so that a worker that sends faster than the leader reads is slowed down.

mod opening;
mod weight;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::Timestamp;
use common::inquiry::Answer;
use common::run::RunBatch;
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
use tonic::{Extensions, Request, Response, Status, Streaming};
use tracing::debug;

use self::opening::{OF_PEER, OF_THIS_HOST, Opening, Openings};
use crate::budget::{Budget, Exhausted, HeldShare, PeerKey};
use crate::grpc::{Access, PeerAddress, PeerIdentity, PeerInfo, access_of};

/// Messages of one stream that wait for the transport: a window of deltas, the answers that come between, and what answers
/// the longest `Hello`, a welcome and the confirmation of what was released, all at once.
const OUT_QUEUE: usize = 256 + 2 * MAX_HELLO.div_ceil(MAX_ENTRIES_PER_MESSAGE);

/// How long a worker may take to say `Hello` in full.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Most entries of a whole `Hello`; ten times what one worker is made for.
const MAX_HELLO: usize = 1_000_000;

/// Bytes of one message on the wire; the longest that workers send has a quarter of it.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Bytes of all streams on which `Hello` is not answered yet, and of those of one peer. 100,000 grants are 13 MB; a peer is
/// often a host with several workers.
const HELLO_BYTES: (usize, usize) = (512 << 20, 128 << 20);

/// What a stream is charged before it has said anything, so that the bound of all is on the number of such streams, too;
/// those of one peer are counted by [`Openings`].
const STREAM_BYTES: usize = 64 << 10;

/// Bytes of all other messages that the leader has not taken in, and of those of one peer.
const QUEUE_BYTES: (usize, usize) = (128 << 20, 32 << 20);

/// How long a message waits for room among those.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(30);

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
        /// What it is charged with, until the stream is settled or over.
        held: HeldShare,
    },
    /// A worker said something else.
    Message {
        /// The stream.
        conn: StreamId,
        /// What it claims to belong to.
        envelope: Envelope,
        /// What it says.
        message: ToCoordinator,
        /// Runs that are over, which go with it.
        runs: Option<RunBatch>,
        /// What it is charged with, until it was taken in.
        held: HeldShare,
    },
    /// A worker answered an inquiry.
    Answer {
        /// The stream.
        conn: StreamId,
        /// What it claims to belong to.
        envelope: Envelope,
        /// What it says.
        answer: Answer,
        /// What it is charged with, until it was taken in.
        held: HeldShare,
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
    /// One whose messages are received here.
    #[cfg(test)]
    pub fn with_queue(size: usize) -> (Self, mpsc::Receiver<Result<CoordinatorMessage, Status>>) {
        let (messages, received) = mpsc::channel(size);
        (Self { messages, _closed: CancellationToken::new().drop_guard() }, received)
    }

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
    openings: Arc<Openings>,
    hellos: Arc<Budget>,
    queue: Arc<Budget>,
}

impl Sessions {
    /// A service whose streams feed `leader` until `stopping` turns true.
    #[must_use]
    pub fn new(leader: mpsc::Sender<(Timestamp, Input)>, stopping: watch::Receiver<bool>) -> Self {
        let budget = |(total, per_peer)| Budget::new(total, per_peer);
        let (next, openings) = (AtomicU64::new(1), Arc::default());
        Self { leader, next, stopping, openings, hellos: budget(HELLO_BYTES), queue: budget(QUEUE_BYTES) }
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
        let peer = peer_key(request.extensions());
        let most = if is_of_this_host(request.extensions()) { OF_THIS_HOST } else { OF_PEER };
        let opening = self.openings.begin(Arc::clone(&peer), most).map_err(|problem| {
            log_limited!(warn, peer = &*peer, "session refused: {problem}");
            Status::resource_exhausted(format!("{problem}: try again later"))
        })?;
        let mut hello = self.hellos.hold(Arc::clone(&peer));
        hello.grow(STREAM_BYTES).map_err(exhausted)?;
        let conn = self.next.fetch_add(1, Ordering::Relaxed);
        let (out, messages) = mpsc::channel(OUT_QUEUE);
        let (leader, inbound, queue) = (self.leader.clone(), request.into_inner(), Arc::clone(&self.queue));
        let reader = Reader { conn, peer, leader, inbound, access, hello, queue };
        tokio::spawn(reader.run(out, opening));
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

/// Whom the bytes of a stream are charged to.
fn peer_key(extensions: &Extensions) -> PeerKey {
    let Some(PeerInfo { address, identity }) = extensions.get::<PeerInfo>() else { return "unknown".into() };
    match (identity, address) {
        (PeerIdentity::Certificate(identity), _) => format!("certificate {}", identity.name()).into(),
        (PeerIdentity::Local(_), _) | (_, PeerAddress::Unix) => "this host".into(),
        (PeerIdentity::Unverified, PeerAddress::Tcp(_)) => address.network().into(),
    }
}

fn is_of_this_host(extensions: &Extensions) -> bool {
    extensions.get::<PeerInfo>().is_some_and(|peer| match peer.address {
        PeerAddress::Unix => true,
        PeerAddress::Tcp(address) => address.ip().to_canonical().is_loopback(),
    })
}

fn exhausted(exhausted: Exhausted) -> Status {
    Status::resource_exhausted(format!("{exhausted}: try again later"))
}

struct Reader {
    conn: StreamId,
    peer: PeerKey,
    leader: mpsc::Sender<(Timestamp, Input)>,
    inbound: Streaming<WorkerMessage>,
    /// Which workers the peer may be.
    access: Access,
    /// What `Hello` is charged with.
    hello: HeldShare,
    /// What else is charged with.
    queue: Arc<Budget>,
}

/// Why a stream's `Hello` is not taken.
enum HelloRefused {
    /// It cannot be read.
    Malformed(String),
    /// The peer is not the worker that it says it is.
    NotAllowed(Status),
    /// Too much of what the peer, or all peers, say is held already.
    Exhausted(Exhausted),
}

impl From<Exhausted> for HelloRefused {
    fn from(exhausted: Exhausted) -> Self {
        Self::Exhausted(exhausted)
    }
}

impl Reader {
    async fn run(mut self, out: mpsc::Sender<Result<CoordinatorMessage, Status>>, opening: Opening) {
        let conn = self.conn;
        // After the hello only the leader holds the way back: dropping it there ends the stream.
        let weak = out.downgrade();
        let closed = CancellationToken::new();
        let hello = tokio::time::timeout(HELLO_TIMEOUT, self.hello()).await;
        drop(opening);
        match hello {
            Ok(Ok((envelope, hello))) => {
                let out = Out { messages: out, _closed: closed.clone().drop_guard() };
                let held = std::mem::replace(&mut self.hello, self.queue.hold(Arc::clone(&self.peer)));
                let input = Input::Hello { conn, envelope, hello: Box::new(hello), out, held };
                if self.leader.send((clock::now(), input)).await.is_err() {
                    return;
                }
            }
            Ok(Err(HelloRefused::Malformed(problem))) => {
                log_limited!(warn, conn, peer = &*self.peer, "hello refused: {problem}");
                let _ = out.send(Ok(malformed(problem))).await;
                return;
            }
            Ok(Err(HelloRefused::NotAllowed(status))) => {
                let _ = out.send(Err(status)).await;
                return;
            }
            Ok(Err(HelloRefused::Exhausted(problem))) => {
                log_limited!(warn, conn, peer = &*self.peer, "hello refused: {problem}");
                let _ = out.send(Err(exhausted(problem))).await;
                return;
            }
            Err(_) => {
                let _ = out.send(Err(Status::deadline_exceeded("hello did not come in time"))).await;
                return;
            }
        }
        self.forward(&weak, &closed).await;
        let _ = self.leader.send((clock::now(), Input::Closed(conn))).await;
    }

    /// Hands on what follows `Hello`, until the stream ends or is closed.
    async fn forward(
        &mut self,
        out: &mpsc::WeakSender<Result<CoordinatorMessage, Status>>,
        closed: &CancellationToken,
    ) {
        let conn = self.conn;
        let refuse = |answer| out.upgrade().is_some_and(|out| out.try_send(answer).is_ok());
        loop {
            let message = tokio::select! {
                message = self.inbound.message() => message,
                () = closed.cancelled() => return,
            };
            let message = match message {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(status) => return debug!(conn, "stream broke: {}", status.message()),
            };
            let bytes = weight::of(&message);
            let (envelope, message, answer, runs) = match up::up_from_wire(message) {
                Ok(up::FromWorker { envelope, message, more: _, answer, runs, unusable }) => {
                    if let Some(up::UnusableStatuses { count, appliance, error }) = unusable {
                        let peer = &*self.peer;
                        log_limited!(warn, conn, peer, count, %appliance, "statuses were left out, the first one: {error}");
                    }
                    (envelope, message, answer, runs)
                }
                Err(problem) => {
                    log_limited!(warn, conn, peer = &*self.peer, "message refused: {problem}");
                    refuse(Ok(malformed(problem.to_string())));
                    return;
                }
            };
            let mut held = self.queue.hold(Arc::clone(&self.peer));
            if let Err(problem) = held.grow_within(bytes, QUEUE_TIMEOUT).await {
                log_limited!(
                    warn,
                    conn,
                    peer = &*self.peer,
                    "closing the session, the leader reads too slowly: {problem}"
                );
                refuse(Err(exhausted(problem)));
                return;
            }
            let input = match answer {
                Some(answer) => Input::Answer { conn, envelope, answer, held },
                None => Input::Message { conn, envelope, message, runs, held },
            };
            if self.leader.send((clock::now(), input)).await.is_err() {
                return;
            }
        }
    }

    /// Reads all parts of `Hello` as one.
    async fn hello(&mut self) -> Result<(Envelope, Hello), HelloRefused> {
        let malformed = |problem: &str| Err(HelloRefused::Malformed(problem.to_owned()));
        let mut whole: Option<(Envelope, Hello)> = None;
        loop {
            let message = match self.inbound.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return malformed("the stream ended before hello was complete"),
                Err(status) => return malformed(status.message()),
            };
            self.hello.grow(weight::of(&message))?;
            let part = up::up_from_wire(message).map_err(|e| HelloRefused::Malformed(e.to_string()))?;
            let ToCoordinator::Hello(hello) = part.message else {
                return malformed("the first message must be Hello");
            };
            if !self.access.grants().is_worker(&hello.worker) {
                let why = format!("`{}` is none of the workers", hello.worker);
                return Err(HelloRefused::NotAllowed(self.access.refuse(&why)));
            }
            if part.more && entries(&hello) == 0 {
                return malformed("a part of Hello is empty, and another one is to follow");
            }
            match &mut whole {
                None => whole = Some((part.envelope, *hello)),
                Some((envelope, first)) => {
                    if *envelope != part.envelope || !up::extend_hello(first, *hello) {
                        return malformed("a part of Hello names another worker or stream");
                    }
                }
            }
            match whole {
                Some((_, hello)) if entries(&hello) > MAX_HELLO => {
                    return Err(HelloRefused::Malformed(format!("Hello has more than {MAX_HELLO} entries")));
                }
                Some(whole) if !part.more => return Ok(whole),
                partial => whole = partial,
            }
        }
    }
}

fn entries(hello: &Hello) -> usize {
    hello.owned.len() + hello.released.len() + hello.removed.len()
}

/// Ends a stream whose messages cannot be used, before it is known whose it is.
fn malformed(problem: String) -> CoordinatorMessage {
    let none = Envelope { term: common::Term::new(0), incarnation: None, stream: common::StreamNumber::new(0) };
    let refused = Refused { reason: RefusedReason::Malformed, detail: problem, retry_after: None };
    down::refused_to_wire(&none, refused)
}

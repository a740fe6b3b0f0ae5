//! Every coordinator answers every admin call: a standby forwards calls to the leader.
//!
//! A layer around all services, for the paths of `rug.admin.v1` only. Calls are forwarded unchanged, message by
//! message: metadata, trailers, streams, cancellation and deadline, the latter less the time spent here. The leader's
//! response is the caller's response, and this file does not know any method.
//!
//! | this coordinator | call of a client | call forwarded by another |
//! |---|---|---|
//! | leads | answered | answered |
//! | stands by, another leads | forwarded | `UNAVAILABLE`, names the leader: a call is forwarded once at most |
//! | stands by, no leader known | waits for a leader, at most [`WAIT`], then `UNAVAILABLE` | the same |
//! | stops | `UNAVAILABLE` | `UNAVAILABLE` |
//!
//! A response that is still being streamed (a watch) ends with `UNAVAILABLE` when the coordinator it comes from stops
//! leading, so that the client calls again and reaches the new leader.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use common::CoordinatorId;
use coordination::Leader;
use futures::{FutureExt, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, header};
use http_body::Frame;
use runtime::channel::Target;
use runtime::tls::{self, ClientTls};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::WatchStream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tonic::transport::{Channel, Endpoint};
use tower::{Service, ServiceExt};
use tracing::instrument::Instrument;
use tracing::{debug, field, info_span};

use super::authorize::name_caller;
use super::deadline::{DEFAULT, LONGEST, parse_timeout};
use super::layer::{Answer, Around, Calls, Next};
use super::{status, trace};

/// Header: the coordinator that forwarded a call. A call with this header is not forwarded again.
pub(super) const FORWARDED_BY: HeaderName = HeaderName::from_static("rug-forwarded-by");
/// Header: the caller of a forwarded call, as the forwarding coordinator identified it. Its roles are in another.
pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("rug-forwarded-for");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// How long a call waits for a leader. A successful election takes less; otherwise it is better to report to the
/// client, which may ask another coordinator.
pub const WAIT: Duration = Duration::from_secs(2);
/// Timeout of connecting to the leader: as [`WAIT`], for the same reason.
const CONNECT: Duration = Duration::from_secs(2);
/// Keep-alive of the connection to the leader: without a response for this long it is closed, so that calls are
/// answered within the 10 s that most clients allow.
const ALIVE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(3));
/// Flow-control windows of one stream and of the connection that all calls share: 512 clients that do not read at all
/// leave room for the others, and cost 64 MiB.
const WINDOWS: (u32, u32) = (128 << 10, 64 << 20);
/// A call is given up here before its deadline by a twentieth, at most by this: later than on the leader, whose error
/// is more precise, and earlier than in the transport, whose error is less so.
const MARGIN: Duration = Duration::from_millis(100);
/// Role of this coordinator in serving calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServingRole {
    /// It leads, its term has begun, and its catalog is loaded: it answers calls.
    Leading,
    /// It stands by, with the leader if known; that can be this coordinator itself, elected and not ready yet.
    Standby(Option<Leader>),
    /// It is elected, or was, and could not begin a term; why, and since when.
    Electing(String),
    /// It is stopping and accepts no more calls.
    Stopping,
}

impl ServingRole {
    /// Whether a call to `own` would be answered, here or by another.
    #[must_use]
    pub fn answers(&self, own: &CoordinatorId) -> bool {
        match self {
            Self::Leading => true,
            Self::Standby(leader) => leader.as_ref().is_some_and(|l| l.id != *own && !l.address.is_empty()),
            Self::Electing(_) | Self::Stopping => false,
        }
    }
}

/// Which coordinator answers a call.
enum Where {
    Here,
    There(Leader),
}

/// Forwards admin calls while this coordinator does not lead. Goes inside of [`Authorize`](super::Authorize).
pub struct Forwarder {
    own: CoordinatorId,
    role: watch::Receiver<ServingRole>,
    tls: Option<ClientTls>,
    /// Connection to the leader's address. Kept while the address is the same; it reconnects by itself.
    connection: Mutex<Option<(String, Channel)>>,
}

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarder").field("own", &self.own).field("role", &*self.role.borrow()).finish_non_exhaustive()
    }
}

impl Around for Forwarder {
    fn around<S: Calls>(self: &Arc<Self>, request: Request<Body>, next: Next<S>) -> Answer {
        if !request.uri().path().starts_with("/rug.admin.v1.") {
            return next.call(request);
        }
        let forwarder = Arc::clone(self);
        if *self.role.borrow() == ServingRole::Leading {
            return next.call(request).map(move |answer| forwarder.ours(answer)).boxed();
        }
        let limit = Limit::of(request.headers());
        async move {
            match forwarder.find(request.headers(), &limit).await {
                Ok(Where::Here) => forwarder.ours(next.call(request).await),
                Ok(Where::There(leader)) => {
                    forwarder.pass_on(leader, request, &limit).await.unwrap_or_else(Status::into_http)
                }
                Err(status) => status.into_http(),
            }
        }
        .boxed()
    }
}

impl Forwarder {
    /// Forwards for the coordinator `own`, which follows `role`. Connections to the leader are made with `tls`.
    #[must_use]
    pub fn new(own: CoordinatorId, role: watch::Receiver<ServingRole>, tls: Option<ClientTls>) -> Self {
        Self { own, role, tls, connection: Mutex::default() }
    }

    /// Chooses the coordinator that answers a call with these headers; waits for an election to end.
    async fn find(&self, headers: &HeaderMap, limit: &Limit) -> Result<Where, Status> {
        let until = limit.answer_by.min(Instant::now() + WAIT);
        let mut role = self.role.clone();
        loop {
            let seen = role.borrow_and_update().clone();
            match seen {
                ServingRole::Leading => return Ok(Where::Here),
                ServingRole::Stopping => return Err(status::stopping()),
                ServingRole::Standby(Some(leader)) if leader.id != self.own => {
                    let nowhere = headers.contains_key(FORWARDED_BY) || leader.address.is_empty();
                    return if nowhere { Err(status::not_leading(Some(&leader))) } else { Ok(Where::There(leader)) };
                }
                // There is no leader yet, or it is this coordinator, which is not ready.
                ServingRole::Standby(_) | ServingRole::Electing(_) => {}
            }
            match timeout_at(until, role.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(status::stopping()),
                Err(_) => {
                    return Err(match &*role.borrow() {
                        ServingRole::Electing(why) => status::no_term(why),
                        _ => status::not_leading(None),
                    });
                }
            }
        }
    }

    /// A response of this coordinator, valid only while it leads.
    fn ours(&self, answer: Response<Body>) -> Response<Body> {
        answer.map(|body| Body::new(RoleBoundBody::new(body, None, self.role.clone())))
    }

    /// Forwards a call to the leader.
    async fn pass_on(&self, leader: Leader, request: Request<Body>, limit: &Limit) -> Result<Response<Body>, Status> {
        let mut channel = self.channel(&leader)?;
        let mut request = self.onward(request, limit);
        let span = info_span!(
            "forward",
            otel.name = request.uri().path().trim_start_matches('/'),
            otel.kind = "client",
            rpc.system = "grpc",
            server.address = leader.address,
            rpc.grpc.status_code = field::Empty,
        );
        trace::put_context(request.headers_mut(), &span);
        let unreachable = |error: &tonic::transport::Error| {
            let why = tls::chain(error);
            debug!(leader = %leader.id, address = leader.address, "forwarding a call failed: {why}");
            status::leader_unreachable(&leader, &why)
        };
        let asked = async { channel.ready().await?.call(request).await.map(trace::note_code) };
        let asked = asked.instrument(span);
        let mut role = self.role.clone();
        let replaced = role.wait_for(|role| !from(role, Some(&leader)));
        let answer = tokio::select! {
            answer = timeout_at(limit.answer_by, asked) => answer.map_err(|_| status::deadline())?,
            _ = replaced => return Err(status::leader_unreachable(&leader, "another one leads now")),
        };
        let answer = answer.map_err(|e| unreachable(&e))?;
        let body = |body| Body::new(RoleBoundBody::new(body, Some(leader.clone()), self.role.clone()));
        Ok(answer.map(body))
    }

    fn channel(&self, leader: &Leader) -> Result<Channel, Status> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, channel)) = connection.as_ref().filter(|(address, _)| *address == leader.address) {
            return Ok(channel.clone());
        }
        let set = |endpoint: Endpoint| {
            endpoint
                .connect_timeout(CONNECT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(ALIVE.0)
                .keep_alive_timeout(ALIVE.1)
                .initial_stream_window_size(WINDOWS.0)
                .initial_connection_window_size(WINDOWS.1)
        };
        let target = Target::new(&leader.address, self.tls.as_ref());
        let target = target.map_err(|e| status::leader_unreachable(leader, &e.to_string()))?;
        let channel = target.with(set).connect_lazy();
        // Calls in flight on the former connection keep it until they end.
        *connection = Some((leader.address.clone(), channel.clone()));
        Ok(channel)
    }

    /// The request as it is sent to the leader.
    fn onward(&self, request: Request<Body>, limit: &Limit) -> Request<Body> {
        let (parts, body) = request.into_parts();
        let mut onward = Request::new(body);
        *onward.method_mut() = parts.method;
        *onward.version_mut() = http::Version::HTTP_2;
        // Only the path: scheme and authority are the connection's.
        *onward.uri_mut() = parts.uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
        let mut headers = parts.headers;
        headers.remove(header::HOST);
        if let Ok(own) = HeaderValue::from_str(self.own.as_str()) {
            headers.insert(FORWARDED_BY, own);
        }
        if let Some(left) = limit.left() {
            headers.insert(TIMEOUT, left);
        }
        // Values set by the client itself were removed when the call was let through.
        name_caller(&mut headers, parts.extensions.get());
        *onward.headers_mut() = headers;
        onward
    }
}

/// How long a call may take.
struct Limit {
    /// The caller's deadline; `None` if there is none.
    deadline: Option<Instant>,
    /// When this coordinator gives up waiting for the response to begin.
    answer_by: Instant,
}

impl Limit {
    fn of(headers: &HeaderMap) -> Self {
        let now = Instant::now();
        match headers.get(TIMEOUT).and_then(|v| v.to_str().ok()).and_then(parse_timeout) {
            Some(given) => {
                let given = given.min(LONGEST);
                Self { deadline: Some(now + given), answer_by: now + (given - (given / 20).min(MARGIN)) }
            }
            // The leader applies its own default.
            None => Self { deadline: None, answer_by: now + DEFAULT + CONNECT },
        }
    }

    /// Time left for the leader, as a `grpc-timeout`.
    fn left(&self) -> Option<HeaderValue> {
        let left = self.deadline?.saturating_duration_since(Instant::now());
        HeaderValue::from_str(&format!("{}m", left.as_millis().max(1))).ok()
    }
}

/// Whether responses of `leader` (`None`: of this coordinator) are still valid in a role. While no leader is known they
/// are: this coordinator may merely not know it, and a leader that stops leading ends its responses itself.
fn from(role: &ServingRole, leader: Option<&Leader>) -> bool {
    match (role, leader) {
        (ServingRole::Leading, None) | (ServingRole::Standby(None) | ServingRole::Electing(_), Some(_)) => true,
        (ServingRole::Standby(Some(leads)), Some(leader)) => leads == leader,
        _ => false,
    }
}

/// A response body that ends when its coordinator stops leading.
struct RoleBoundBody {
    body: Body,
    /// The coordinator it comes from; `None` for this one.
    leader: Option<Leader>,
    role: watch::Receiver<ServingRole>,
    /// Created when there is nothing to send for the first time, which is never for most calls.
    changes: Option<WatchStream<ServingRole>>,
    over: bool,
}

impl RoleBoundBody {
    fn new(body: Body, leader: Option<Leader>, role: watch::Receiver<ServingRole>) -> Self {
        Self { body, leader, role, changes: None, over: false }
    }

    /// Ends the response with a status, and cancels the call at its source.
    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.over = true;
        self.body = Body::empty();
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            // Only a message that cannot be a header value fails; a status without it cannot.
            trailers.insert(Status::GRPC_STATUS, HeaderValue::from(status.code() as i32));
        }
        Frame::trailers(trailers)
    }
}

impl http_body::Body for RoleBoundBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        match (Pin::new(&mut self.body).poll_frame(cx), &self.leader) {
            (Poll::Ready(Some(Err(error))), Some(leader)) => {
                let status = status::leader_unreachable(leader, &tls::chain(&error));
                return Poll::Ready(Some(Ok(self.end(&status))));
            }
            (Poll::Ready(frame), _) => return Poll::Ready(frame),
            (Poll::Pending, _) => {}
        }
        let this = &mut *self;
        let changes = this.changes.get_or_insert_with(|| WatchStream::new(this.role.clone()));
        loop {
            match changes.poll_next_unpin(cx) {
                Poll::Ready(Some(role)) if from(&role, this.leader.as_ref()) => {}
                Poll::Ready(Some(ServingRole::Stopping)) => {
                    return Poll::Ready(Some(Ok(this.end(&status::stopping()))));
                }
                Poll::Ready(Some(_)) => return Poll::Ready(Some(Ok(this.end(&status::leader_changed())))),
                // The sender of the role is gone: this process ends, and its connections with it.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

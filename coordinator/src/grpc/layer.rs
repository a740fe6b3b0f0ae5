//! What is done around calls: one [`Around`] for each matter, and one layer that carries all of them.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::{BoxFuture, Map};
use http::{Request, Response};
use http_body::Frame;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tower::{Layer, Service};

/// The answer to a call. A refusal is one, too.
pub type Answer = BoxFuture<'static, Response<Body>>;

/// Services, with or without something around them.
pub trait Calls:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Calls for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Something that is done around every call.
pub trait Around: Send + Sync + 'static {
    /// Answers a call, by `next` or without it.
    fn around<S: Calls>(self: &Arc<Self>, request: Request<Body>, next: Next<S>) -> Answer;
}

/// What is inside: further layers, and then the service.
#[derive(Debug)]
pub struct Next<S>(S);

impl<S: Calls> Next<S> {
    /// Answers the call.
    pub fn call(mut self, request: Request<Body>) -> Answer {
        let answer = |answered| match answered {
            Ok(answer) => answer,
            Err(never) => match never {},
        };
        self.0.call(request).map(answer).boxed()
    }
}

/// Puts an [`Around`] around services.
pub struct CallLayer<A>(Arc<A>);

impl<A> CallLayer<A> {
    /// The layer of this matter.
    pub fn new(around: A) -> Self {
        Self(Arc::new(around))
    }
}

impl<A> Clone for CallLayer<A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<A> fmt::Debug for CallLayer<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CallLayer").field(&std::any::type_name::<A>()).finish()
    }
}

impl<A, S> Layer<S> for CallLayer<A> {
    type Service = Layered<A, S>;

    fn layer(&self, inner: S) -> Layered<A, S> {
        Layered { layer: self.clone(), inner }
    }
}

/// See [`CallLayer`].
#[derive(Debug)]
pub struct Layered<A, S> {
    layer: CallLayer<A>,
    inner: S,
}

impl<A, S: Clone> Clone for Layered<A, S> {
    fn clone(&self) -> Self {
        Self { layer: self.layer.clone(), inner: self.inner.clone() }
    }
}

impl<A: Around, S: Calls> Service<Request<Body>> for Layered<A, S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Map<Answer, fn(Response<Body>) -> Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The instance of the service that reported readiness has to be the one that is called.
        let fresh = self.inner.clone();
        let ready = std::mem::replace(&mut self.inner, fresh);
        self.layer.0.around(request, Next(ready)).map(Ok as fn(_) -> _)
    }
}

/// An answer that is there already.
pub(super) fn at_once(status: &Status) -> Answer {
    std::future::ready(status.clone().into_http()).boxed()
}

/// The body of an answer, which keeps something until it has ended or its caller has gone.
pub(super) struct KeepingBody<T> {
    body: Body,
    _kept: T,
}

impl<T: Send + Unpin + 'static> KeepingBody<T> {
    /// This answer, which keeps `kept`.
    pub(super) fn of(answer: Response<Body>, kept: T) -> Response<Body> {
        answer.map(|body| Body::new(Self { body, _kept: kept }))
    }
}

impl<T: Send + Unpin + 'static> http_body::Body for KeepingBody<T> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

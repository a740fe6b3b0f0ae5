//! What is done around calls: one [`Around`] for each matter, and one layer that carries all of them.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

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

/// The body of an answer that its caller has to read in time, which keeps something until then. While nothing is read,
/// nobody asks a body for anything, so a task of its own lets go.
pub(super) struct ExpiringBody<T>(Arc<Mutex<Option<(Body, T)>>>);

impl<T: Send + 'static> ExpiringBody<T> {
    /// This answer, which keeps `kept`, for at most `limit`.
    pub(super) fn of(answer: Response<Body>, kept: T, limit: Duration) -> Response<Body> {
        answer.map(|body| {
            let open = Arc::new(Mutex::new(Some((body, kept))));
            let expiring = Arc::downgrade(&open);
            tokio::spawn(async move {
                tokio::time::sleep(limit).await;
                if let Some(open) = expiring.upgrade() {
                    drop(lock(&open).take());
                }
            });
            Body::new(Self(open))
        })
    }
}

fn lock<T>(open: &Mutex<T>) -> MutexGuard<'_, T> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Send + 'static> http_body::Body for ExpiringBody<T> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut *lock(&self.0) {
            Some((body, _)) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(Some(Err(Status::deadline_exceeded("the answer was not read in time")))),
        }
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.0).as_ref().is_some_and(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> http_body::SizeHint {
        lock(&self.0).as_ref().map_or_else(http_body::SizeHint::default, |(body, _)| body.size_hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_reads_is_let_go_of() {
        let kept = Arc::new(());
        let limit = Duration::from_secs(60);
        let mut answer =
            ExpiringBody::of(Response::new(Body::new(axum::body::Body::from("an answer"))), Arc::clone(&kept), limit);
        assert_eq!(Arc::strong_count(&kept), 2);
        tokio::time::sleep(limit * 2).await;
        assert_eq!(Arc::strong_count(&kept), 1);
        let frame = std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(answer.body_mut()), cx)).await;
        assert!(frame.is_some_and(|frame| frame.is_err()), "it is no whole answer");
    }
}

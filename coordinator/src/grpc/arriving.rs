//! How long a request may take to arrive.
//!
//! A caller that opens calls and never ends their requests costs some KiB for each. So the body of a request has to end
//! soon after its headers. Exempt are the calls whose requests are streams: sessions, which have their own deadline for
//! `Hello`, and reflection; those are bounded by the number of calls of a connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use http::Request;
use http_body::{Body as _, Frame};
use tokio::sync::oneshot;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;

use super::connections::SESSION;
use super::layer::{Answer, Around, Calls, Next};
use super::status;

/// How long after its headers the body of a request has to end.
pub(super) const ARRIVAL: Duration = Duration::from_secs(10);
const REFLECTION: &str = "/grpc.reflection.";

/// Ends calls whose requests do not arrive.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arriving;

impl Around for Arriving {
    fn around<S: Calls>(self: &Arc<Self>, request: Request<Body>, next: Next<S>) -> Answer {
        let path = request.uri().path();
        if request.body().is_end_stream() || path == SESSION || path.starts_with(REFLECTION) {
            return next.call(request);
        }
        let (coming, ended) = oneshot::channel();
        let answer = next.call(request.map(|body| Body::new(ArrivingBody { body, coming: Some(coming) })));
        async move {
            // Dropped with this future, and with it the rest of the request.
            let mut answer = std::pin::pin!(answer);
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                in_time = tokio::time::timeout(ARRIVAL, ended) => if in_time.is_err() {
                    return status::not_arrived(ARRIVAL).into_http();
                },
            }
            answer.await
        }
        .boxed()
    }
}

/// A body that tells its end, by dropping the sender. It is dropped itself by whoever needs no more of it.
struct ArrivingBody {
    body: Body,
    coming: Option<oneshot::Sender<()>>,
}

impl http_body::Body for ArrivingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) || self.body.is_end_stream() {
            self.coming = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::Response;
    use tokio::time::Instant;
    use tonic::Code;
    use tower::{Layer, ServiceExt, service_fn};

    use super::*;
    use crate::grpc::CallLayer;

    /// Sends nothing, and never ends.
    struct Silent;

    impl http_body::Body for Silent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    /// Reads the whole request, then takes a minute to answer.
    async fn slow(request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let mut body = request.into_body();
        while std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.is_some() {}
        tokio::time::sleep(Duration::from_secs(60)).await;
        Ok(Response::new(Body::empty()))
    }

    async fn status_of(path: &str, body: Body) -> Option<Code> {
        let request = Request::post(path).body(body).expect("a request");
        let answer = CallLayer::new(Arriving).layer(service_fn(slow)).oneshot(request).await.expect("infallible");
        Status::from_header_map(answer.headers()).map(|status| status.code())
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_does_not_arrive_is_given_up_and_one_that_did_may_take_its_time() {
        let began = Instant::now();
        let watch = "/rug.admin.v1.Appliances/Watch";
        assert_eq!(status_of(watch, Body::new(Silent)).await, Some(Code::DeadlineExceeded));
        assert_eq!(began.elapsed(), ARRIVAL);
        let whole = Body::new(axum::body::Body::from(vec![0; 5]));
        assert_eq!(status_of(watch, whole).await, None);
        for stream in [SESSION, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] {
            let open = tokio::time::timeout(ARRIVAL * 10, status_of(stream, Body::new(Silent))).await;
            assert!(open.is_err(), "{stream} is a stream");
        }
    }
}

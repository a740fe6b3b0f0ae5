//! How long a request may take to arrive, and how many bytes of requests may be here at once.
//!
//! A caller that opens calls and never ends their requests costs what it has sent of them, their headers, and a bit for each. So the body of a request has to
//! end soon after its headers, and what has arrived of all requests is bounded, of each peer and in all, until they are
//! read. Health checks and reflection, which anybody may ask for, say little and get little. Exempt from the deadline are
//! the calls whose requests are streams: sessions, which have their own deadline for `Hello` and their own bound, commands in instances, of which one
//! message at a time is read ([`exec`](super::exec)), and reflection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use http::Request;
use http_body::{Body as _, Frame};
use runtime::log_limited;
use tokio::sync::oneshot;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;

use super::connections::SESSION;
use super::incoming::PeerInfo;
use super::layer::{Answer, Around, Calls, Next, at_once};
use super::status;
use crate::budget::{Budget, HeldShare};

/// How long after its headers the body of a request has to end.
pub(super) const ARRIVAL: Duration = Duration::from_secs(10);
/// Bytes of requests that may be here of all peers, and of each: thousands of ordinary requests.
const BYTES: (usize, usize) = (128 << 20, 32 << 20);
/// What a call costs while its request arrives, in bytes, beside its headers and what has arrived: measured 4 to 14 KiB.
const CALL: usize = 8 << 10;
/// Bytes of one request of a health check or of reflection.
const PLUMBING_BYTES: usize = 64 << 10;
/// Path of the call that runs a command in an instance.
pub(super) const EXEC: &str = "/rug.admin.v1.Appliances/Exec";
const PLUMBING: &str = "/grpc.";
const REFLECTION: &str = "/grpc.reflection.";

/// Ends calls whose requests do not arrive, or are too much.
#[derive(Debug)]
pub struct Arriving {
    bytes: Arc<Budget>,
}

impl Default for Arriving {
    fn default() -> Self {
        Self { bytes: Budget::new(BYTES.0, BYTES.1) }
    }
}

impl Around for Arriving {
    fn around<S: Calls>(self: &Arc<Self>, request: Request<Body>, next: Next<S>) -> Answer {
        let path = request.uri().path();
        if request.body().is_end_stream() || path == SESSION || path == EXEC {
            return next.call(request);
        }
        let is_stream = path.starts_with(REFLECTION);
        let left = if path.starts_with(PLUMBING) { PLUMBING_BYTES } else { usize::MAX };
        let peer = request.extensions().get::<PeerInfo>().map(PeerInfo::key).unwrap_or_default();
        let mut held = self.bytes.hold(peer.into());
        if let Err(exhausted) = held.grow(CALL + headers(&request)) {
            log_limited!(warn, "call refused: {exhausted}");
            return at_once(&status::too_many_bytes(&exhausted));
        }
        let (coming, ended) = oneshot::channel();
        let arriving = |body| Body::new(ArrivingBody { body, coming: Some(coming), held, left });
        let answer = next.call(request.map(arriving));
        if is_stream {
            return answer;
        }
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

/// Bytes of the headers of a request, as HTTP/2 counts them.
fn headers(request: &Request<Body>) -> usize {
    request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

/// A body that tells its end, by dropping the sender. It is dropped itself by whoever needs no more of it.
struct ArrivingBody {
    body: Body,
    coming: Option<oneshot::Sender<()>>,
    /// What has arrived of it.
    held: HeldShare,
    /// Bytes that may still arrive.
    left: usize,
}

impl ArrivingBody {
    fn take_in(&mut self, bytes: usize) -> Result<(), Status> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| status::request_too_large(PLUMBING_BYTES))?;
        self.held.grow(bytes).map_err(|exhausted| {
            log_limited!(warn, "request refused: {exhausted}");
            status::too_many_bytes(&exhausted)
        })
    }
}

impl http_body::Body for ArrivingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
            && let Err(refused) = self.take_in(data.len())
        {
            polled = Poll::Ready(Some(Err(refused)));
        }
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
        let answer =
            CallLayer::new(Arriving::default()).layer(service_fn(slow)).oneshot(request).await.expect("infallible");
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

    /// Sends so many bytes, and then nothing.
    struct Flood(usize);

    impl http_body::Body for Flood {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            if self.0 == 0 {
                return Poll::Pending;
            }
            let part = self.0.min(16 << 10);
            self.0 -= part;
            Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![0; part])))))
        }
    }

    /// Reads until the end, or an error, which is its answer.
    async fn read(request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let mut body = request.into_body();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            if let Err(status) = frame {
                return Ok(status.into_http());
            }
        }
        Ok(Response::new(Body::empty()))
    }

    async fn flooded(layer: &CallLayer<Arriving>, path: &str, bytes: usize) -> Option<Code> {
        let request = Request::post(path).body(Body::new(Flood(bytes))).expect("a request");
        let answer = layer.layer(service_fn(read)).oneshot(request).await.expect("infallible");
        Status::from_header_map(answer.headers()).map(|status| status.code())
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_of_requests_are_bounded_in_one_and_in_all_of_a_peer_and_given_back() {
        let layer = CallLayer::new(Arriving::default());
        let health = "/grpc.health.v1.Health/Check";
        assert_eq!(flooded(&layer, health, PLUMBING_BYTES + 1).await, Some(Code::ResourceExhausted));
        assert_eq!(flooded(&layer, health, PLUMBING_BYTES).await, Some(Code::DeadlineExceeded));
        let list = "/rug.admin.v1.Appliances/List";
        let parts = 16;
        let open: Vec<_> = (0..parts)
            .map(|_| {
                let layer = layer.clone();
                tokio::spawn(async move { flooded(&layer, list, BYTES.1 / parts - CALL).await })
            })
            .collect();
        tokio::time::sleep(ARRIVAL / 2).await;
        assert_eq!(flooded(&layer, list, 1).await, Some(Code::ResourceExhausted), "all of this peer's share is taken");
        for call in open {
            assert_eq!(call.await.expect("no panic"), Some(Code::DeadlineExceeded));
        }
        assert_eq!(flooded(&layer, list, 1).await, Some(Code::DeadlineExceeded), "it was given back");
    }
}

//! What every call goes through: a deadline, a throttle, waits that the API server asks for, repetition of calls that only read, a span
//! of a client and a measurement.
//!
//! A call that changes something is made again only after 429, by which the API server says that it did nothing. Whatever else was not
//! answered may have taken effect, and its caller has to find out.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use kube::client::Body;
use runtime::telemetry;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tower::{BoxError, Layer, Service, ServiceExt as _};
use tracing::{Instrument as _, Span, field, info_span};

use crate::config::ClientConfig;
use crate::metrics;
use crate::request::ApiCall;
use crate::throttle::{NoTurn, Throttle};

type Bytes = <Body as http_body::Body>::Data;
/// The body of an answer: whole, or that of a watch.
type Answered = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// Largest answer, in bytes. A page of 500 pods has some 5 MB.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Lists a second, and at once, at most.
const LISTS: NonZeroU32 = NonZeroU32::new(10).expect("not 0");
/// How often a call that only reads is repeated after an answer that says nothing, or none.
const REPEATS: u32 = 4;
/// Mean wait before the first repetition; doubles with each.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// A call was not answered in time. What it was to change may have been changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no answer within {0:?}")]
pub(crate) struct DeadlineExceeded(pub(crate) Duration);

#[derive(Debug)]
struct Shared {
    deadline: Duration,
    max_retry_after: Duration,
    calls: Lane,
    /// Watches, and lists in pages: few, long ones, by which everything else is known. Other calls keep them waiting no more than they do those.
    lists: Lane,
    host: String,
    port: u16,
}

/// Calls that wait for one another.
#[derive(Debug)]
struct Lane {
    throttle: Throttle,
    in_flight: Semaphore,
}

impl Lane {
    fn new(qps: NonZeroU32, burst: NonZeroU32, in_flight: NonZeroU32) -> Self {
        Self { throttle: Throttle::new(qps, burst), in_flight: Semaphore::new(in_flight.get() as usize) }
    }
}

/// Makes a service [`Policed`].
#[derive(Clone, Debug)]
pub(crate) struct Policy(Arc<Shared>);

impl Policy {
    /// For calls of the API server at `server`.
    pub(crate) fn new(config: &ClientConfig, server: &Uri) -> Self {
        let tls = server.scheme_str() == Some("https");
        Self(Arc::new(Shared {
            deadline: config.request_timeout,
            max_retry_after: config.max_retry_after,
            calls: Lane::new(config.qps, config.burst, config.in_flight),
            lists: Lane::new(config.qps.min(LISTS), config.burst.min(LISTS), config.in_flight.min(LISTS)),
            host: server.host().unwrap_or_default().to_owned(),
            port: server.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        }))
    }
}

impl<S> Layer<S> for Policy {
    type Service = Policed<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Policed { inner, shared: Arc::clone(&self.0) }
    }
}

/// A service whose calls go through the policy.
#[derive(Clone, Debug)]
pub(crate) struct Policed<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, B> Service<Request<Body>> for Policed<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Answered;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Answered, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // What is inside is waited for by each call.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let (inner, shared) = (self.inner.clone(), Arc::clone(&self.shared));
        let call = ApiCall::of(request.method(), request.uri());
        // The caller's span is the current one here, and not within the future.
        let span = info_span!(
            "http",
            otel.name = format_args!("{} {}", request.method(), call.template),
            otel.kind = "client",
            http.request.method = %request.method(),
            url.template = %call.template,
            server.address = %shared.host,
            server.port = shared.port,
            http.response.status_code = field::Empty,
            http.request.resend_count = field::Empty,
            error.r#type = field::Empty,
        );
        carry(&span, request.headers_mut());
        let work = async move {
            let began = Instant::now();
            let limit = shared.deadline;
            let exchange = shared.exchange(inner, request, &call, began + limit);
            let result = timeout(limit, exchange).await.unwrap_or_else(|_| Err(DeadlineExceeded(limit).into()));
            note(&call, &result, began.elapsed());
            result
        };
        work.instrument(span).boxed()
    }
}

/// Passes the trace on. Baggage is what callers tell one another, and not for the API server.
fn carry(span: &Span, headers: &mut HeaderMap) {
    let context = telemetry::trace_context(span);
    for (name, part) in [("traceparent", context.traceparent), ("tracestate", context.tracestate)] {
        if let (false, Ok(part)) = (part.is_empty(), HeaderValue::from_str(&part)) {
            headers.insert(HeaderName::from_static(name), part);
        }
    }
}

/// Measures a call, and notes in its span how it went.
fn note(call: &ApiCall, result: &Result<Answered, BoxError>, took: Duration) {
    let span = Span::current();
    let outcome = match result {
        Ok(answer) => {
            let status = answer.status();
            span.record("http.response.status_code", status.as_u16());
            // That something is not there, or has changed meanwhile, is an answer.
            if status.is_server_error() || status.is_client_error() && !matches!(status.as_u16(), 404 | 409 | 410) {
                span.record("error.type", status.as_str());
                telemetry::fail(&span, status.as_str());
            }
            metrics::outcome(status.as_u16())
        }
        Err(error) => {
            let outcome = if error.is::<DeadlineExceeded>() {
                "timeout"
            } else if error.is::<NoTurn>() {
                "throttled"
            } else {
                "no_connection"
            };
            span.record("error.type", outcome);
            telemetry::fail(&span, &error.to_string());
            outcome
        }
    };
    metrics::called(call, outcome, took);
}

impl Shared {
    /// Makes a call, and again while that may help and there is time.
    async fn exchange<S, B>(
        &self,
        inner: S,
        request: Request<Body>,
        call: &ApiCall,
        deadline: Instant,
    ) -> Result<Answered, BoxError>
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let mut body = Some(body);
        for repeats in 0.. {
            let next = body.as_ref().and_then(Body::try_clone);
            let Some(this) = body.take() else { break };
            body = next;
            self.lane(call).throttle.admit(deadline).await?;
            let answer = self.once(inner.clone(), Request::from_parts(parts.clone(), this), call).await;
            let again = self.again(call, &answer, repeats).filter(|(_, wait)| Instant::now() + *wait < deadline);
            let (Some((reason, wait)), true) = (again, body.is_some()) else { return answer };
            metrics::repeated(reason);
            Span::current().record("http.request.resend_count", repeats + 1);
            sleep(wait).await;
        }
        Err("a body that cannot be sent twice was lost".into())
    }

    fn lane(&self, call: &ApiCall) -> &Lane {
        if call.is_long { &self.lists } else { &self.calls }
    }

    async fn once<S, B>(&self, mut inner: S, request: Request<Body>, call: &ApiCall) -> Result<Answered, BoxError>
    where
        S: Service<Request<Body>, Response = Response<B>>,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let watches = call.verb == "watch";
        // A watch goes on for minutes, and must not keep others from being made.
        let _under_way = if watches { None } else { Some(self.lane(call).in_flight.acquire().await?) };
        let answer = inner.ready().await.map_err(Into::into)?.call(request).await.map_err(Into::into)?;
        let (parts, body) = answer.into_parts();
        if watches && parts.status.is_success() {
            return Ok(Response::from_parts(parts, body.map_err(Into::into).boxed_unsync()));
        }
        let whole = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
        Ok(Response::from_parts(parts, Full::new(whole).map_err(|never| match never {}).boxed_unsync()))
    }

    fn retry_after(&self, answer: &Answered) -> Option<Duration> {
        retry_after(answer.headers(), self.max_retry_after)
    }

    /// Why a call is to be made again, and after which wait.
    fn again(
        &self,
        call: &ApiCall,
        answer: &Result<Answered, BoxError>,
        repeats: u32,
    ) -> Option<(&'static str, Duration)> {
        let (reason, asked) = match answer {
            Ok(answer) => match answer.status() {
                StatusCode::TOO_MANY_REQUESTS => ("throttled", self.retry_after(answer)),
                _ if !call.only_reads() => return None,
                status if status.is_server_error() => ("unavailable", self.retry_after(answer)),
                _ => return None,
            },
            Err(_) if call.only_reads() => ("no_connection", None),
            Err(_) => return None,
        };
        if repeats >= REPEATS {
            return None;
        }
        // All that were refused at one moment would come back at another.
        let spread = rand::random::<f64>();
        match asked {
            Some(asked) if asked > self.max_retry_after => None,
            Some(asked) => Some((reason, asked.mul_f64(1.0 + 0.2 * spread))),
            None => Some((reason, (FIRST_WAIT * 2_u32.pow(repeats)).mul_f64(0.5 + spread))),
        }
    }
}

/// How long the API server asks to wait. It names seconds; a proxy before it may name a date, for which the longest wait stands.
fn retry_after(headers: &HeaderMap, longest: Duration) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    Some(text.trim().parse().map_or(longest, Duration::from_secs))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http::Method;

    use super::*;

    type Plain = Full<Bytes>;
    /// A status, and what it asks to wait.
    type Reply = (u16, Option<&'static str>);

    /// An API server that gives these answers, one after the other, and notes when it was asked. 0 is no answer.
    #[derive(Clone)]
    struct Server {
        answers: Arc<Mutex<Vec<Reply>>>,
        asked: Arc<Mutex<Vec<Instant>>>,
    }

    impl Server {
        fn new(answers: &[Reply]) -> Self {
            let answers = answers.iter().rev().copied().collect();
            Self { answers: Arc::new(Mutex::new(answers)), asked: Arc::default() }
        }

        async fn answer(self) -> Result<Response<Plain>, BoxError> {
            self.asked.lock().expect("whole").push(Instant::now());
            let (status, after) = self.answers.lock().expect("whole").pop().unwrap_or((200, None));
            if status == 0 {
                std::future::pending::<()>().await;
            }
            let mut answer = Response::builder().status(status);
            if let Some(after) = after {
                answer = answer.header(RETRY_AFTER, after);
            }
            Ok(answer.body(Full::new(Bytes::from_static(b"{}")))?)
        }

        async fn call(&self, method: Method) -> Result<u16, BoxError> {
            let config = ClientConfig {
                request_timeout: Duration::from_secs(10),
                qps: NonZeroU32::new(1_000).expect("not 0"),
                max_retry_after: Duration::from_secs(5),
                ..ClientConfig::default()
            };
            let server = self.clone();
            let service = tower::service_fn(move |_: Request<Body>| server.clone().answer());
            let mut policed = Policy::new(&config, &Uri::from_static("https://api:6443")).layer(service);
            let request = Request::builder().method(method).uri("/api/v1/namespaces/a/pods/b");
            let request = request.body(Body::from(b"{}".to_vec()))?;
            Ok(policed.ready().await?.call(request).await?.status().as_u16())
        }

        fn asked(&self) -> usize {
            self.asked.lock().expect("whole").len()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_as_long_as_it_is_asked_to_and_not_longer_than_is_set() {
        let server = Server::new(&[(429, Some("3")), (200, None)]);
        assert_eq!(server.call(Method::POST).await.expect("answered"), 200);
        let waited = {
            let asked = server.asked.lock().expect("whole");
            asked[1] - asked[0]
        };
        assert!((Duration::from_secs(3)..Duration::from_secs(4)).contains(&waited), "{waited:?}");
        let server = Server::new(&[(429, Some("Fri, 31 Dec 1999 23:59:59 GMT")), (200, None)]);
        let began = Instant::now();
        assert_eq!(server.call(Method::POST).await.expect("answered"), 200);
        assert!((Duration::from_secs(5)..Duration::from_secs(7)).contains(&began.elapsed()), "the longest, for a date");
        let server = Server::new(&[(429, Some("6")), (200, None)]);
        assert_eq!((server.call(Method::GET).await.expect("answered"), server.asked()), (429, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_reads_is_repeated_after_an_answer_that_says_nothing() {
        let failing = [(500, None), (503, Some("1")), (504, None), (200, None)];
        let server = Server::new(&failing);
        assert_eq!((server.call(Method::GET).await.expect("answered"), server.asked()), (200, 4));
        for method in [Method::POST, Method::PATCH, Method::DELETE] {
            let server = Server::new(&failing);
            assert_eq!((server.call(method.clone()).await.expect("answered"), server.asked()), (500, 1), "{method}");
        }
        let server = Server::new(&[(500, None); 9]);
        assert_eq!((server.call(Method::GET).await.expect("answered"), server.asked()), (500, 5), "bounded");
    }

    #[tokio::test(start_paused = true)]
    async fn every_call_ends_at_its_deadline() {
        let server = Server::new(&[(0, None)]);
        let began = Instant::now();
        let error = server.call(Method::PATCH).await.expect_err("no answer");
        assert_eq!(error.downcast_ref(), Some(&DeadlineExceeded(Duration::from_secs(10))));
        assert_eq!(began.elapsed(), Duration::from_secs(10));
    }
}

//! One span per call, part of the caller's trace when the call carries a W3C `traceparent`.

use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::Map;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};
use tracing::instrument::{Instrument, Instrumented};
use tracing::{Span, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Puts a span around every call.
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceLayer;

/// See [`TraceLayer`].
#[derive(Clone, Debug)]
pub struct Trace<S> {
    inner: S,
}

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner }
    }
}

impl<S, B, R> Service<Request<B>> for Trace<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Instrumented<Map<S::Future, fn(Result<Response<R>, S::Error>) -> Result<Response<R>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let span = span_of(&request);
        let future = span.in_scope(|| self.inner.call(request));
        future.map(note_code as fn(_) -> _).instrument(span)
    }
}

/// Health checks and reflection are too frequent and uninteresting to be traced.
fn is_plumbing(path: &str) -> bool {
    path.starts_with("/grpc.")
}

fn span_of<B>(request: &Request<B>) -> Span {
    let path = request.uri().path().trim_start_matches('/');
    let Some((service, method)) = path.split_once('/').filter(|_| !is_plumbing(request.uri().path())) else {
        return Span::none();
    };
    let span = info_span!(
        "rpc",
        otel.name = path,
        otel.kind = "server",
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
        rpc.grpc.status_code = field::Empty,
    );
    if !span.is_disabled() && request.headers().contains_key("traceparent") {
        let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
        // Fails only where no OpenTelemetry layer is installed; then the parent is not needed either.
        let _ = span.set_parent(parent);
    }
    span
}

/// Records the code of a call that failed at once. For others the code follows in the trailers, and is 0 for unary
/// calls.
fn note_code<R, E>(result: Result<Response<R>, E>) -> Result<Response<R>, E> {
    if let Ok(response) = &result {
        let code = response.headers().get("grpc-status").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        Span::current().record("rpc.grpc.status_code", code.unwrap_or(0_i64));
    }
    result
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|v| v.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|k| k.as_str()).collect()
    }
}

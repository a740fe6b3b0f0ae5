//! One span per call, part of the caller's trace when the call carries a W3C `traceparent`.

use std::sync::Arc;

use futures::FutureExt;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tracing::instrument::Instrument;
use tracing::{Span, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::layer::{Answer, Around, Calls, Next};

/// Puts a span around every call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trace;

impl Around for Trace {
    fn around<S: Calls>(self: &Arc<Self>, request: Request<Body>, next: Next<S>) -> Answer {
        let span = span_of(&request);
        let answer = span.in_scope(|| next.call(request));
        answer.map(note_code).instrument(span).boxed()
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
fn note_code<R>(response: Response<R>) -> Response<R> {
    let code = response.headers().get("grpc-status").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    Span::current().record("rpc.grpc.status_code", code.unwrap_or(0_i64));
    response
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

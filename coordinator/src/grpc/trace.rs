//! One span per call, part of the caller's trace when the call carries a W3C `traceparent`; baggage goes on with it.

use std::sync::Arc;

use common::TraceContext;
use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue};
use runtime::telemetry;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tracing::instrument::Instrument;
use tracing::{Span, field, info_span};

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

/// Health checks, reflection, and what coordinators ask one another are too frequent and uninteresting to be traced.
fn is_plumbing(path: &str) -> bool {
    path.starts_with("/grpc.") || path == "/rug.admin.v1.Telemetry/Get"
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
    if !span.is_disabled() {
        telemetry::continue_trace(&span, &context_of(request.headers()));
    }
    span
}

/// The trace context that a call carries.
fn context_of(headers: &HeaderMap) -> TraceContext {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let [traceparent, tracestate, baggage] = CONTEXT.each_ref().map(|name| text(name).to_owned());
    TraceContext { traceparent, tracestate, baggage }.bounded()
}

/// Headers of a trace context: `traceparent`, `tracestate`, `baggage`.
const CONTEXT: [HeaderName; 3] =
    [HeaderName::from_static("traceparent"), HeaderName::from_static("tracestate"), HeaderName::from_static("baggage")];

/// Puts the context of a span into the headers of a call that is made within it.
pub(super) fn put_context(headers: &mut HeaderMap, span: &Span) {
    let TraceContext { traceparent, tracestate, baggage } = telemetry::trace_context(span);
    // The caller's own is passed on where nothing is traced here.
    if traceparent.is_empty() {
        return;
    }
    for (name, value) in CONTEXT.into_iter().zip([traceparent, tracestate, baggage]) {
        match HeaderValue::try_from(value) {
            Ok(value) if !value.is_empty() => drop(headers.insert(name, value)),
            _ => drop(headers.remove(name)),
        }
    }
}

/// Records the code of a call that failed at once. For others the code follows in the trailers, and is 0 for unary
/// calls.
pub(super) fn note_code<R>(response: Response<R>) -> Response<R> {
    let code = response.headers().get("grpc-status").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let code = code.unwrap_or(0_i32);
    let span = Span::current();
    span.record("rpc.grpc.status_code", code);
    // For a server only what is its own fault is an error, by the conventions.
    let code = Code::from(code);
    if matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    ) {
        telemetry::fail(&span, &format!("{code:?}"));
    }
    response
}

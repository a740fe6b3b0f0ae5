//! Trace context of spans: taken from a call, passed on with one, and kept with what follows from one.

use std::collections::HashMap;

use common::TraceContext;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanContext, Status, TraceContextExt};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::sampling;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
const BAGGAGE: &str = "baggage";

/// The W3C `traceparent` of a span; empty when it is not recorded.
#[must_use]
pub fn traceparent(span: &Span) -> String {
    trace_context(span).traceparent
}

/// The context of a span, with the baggage of the call that it belongs to; empty when it has none.
#[must_use]
pub fn trace_context(span: &Span) -> TraceContext {
    written(&span.context())
}

/// A context as calls carry it.
pub(super) fn written(context: &Context) -> TraceContext {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(context, &mut carrier);
    BaggagePropagator::new().inject_context(context, &mut carrier);
    let mut part = |name: &str| carrier.remove(name).unwrap_or_default();
    let (traceparent, tracestate, baggage) = (part(TRACEPARENT), part(TRACESTATE), part(BAGGAGE));
    TraceContext { traceparent, tracestate, baggage }.bounded()
}

/// The trace id of a span as 32 hex digits; empty when it is not recorded.
#[must_use]
pub fn trace_id(span: &Span) -> String {
    let context = span.context();
    let id = context.span().span_context().trace_id();
    if id == opentelemetry::TraceId::INVALID { String::new() } else { id.to_string() }
}

/// Makes `span` a child of the span of another process of the cluster that `traceparent` names; anything unreadable leaves it as it is.
pub fn set_parent(span: &Span, traceparent: &str) {
    let context = remote(traceparent);
    if context.is_valid() {
        let _ = span.set_parent(Context::new().with_remote_span_context(context));
    }
}

/// Links `span` to the span of another process of the cluster that `traceparent` names, if it is readable.
pub fn add_link(span: &Span, traceparent: &str) {
    span.add_link(remote(traceparent));
}

/// Makes `span` a part of the trace of the call that carried this context. What is unreadable leaves it as it is.
pub fn continue_trace(span: &Span, call: &TraceContext) {
    // Fails only where no OpenTelemetry layer is installed; then the parent is not needed either.
    let _ = span.set_parent(read(call));
}

/// Makes `span` a part of the trace of the call that it follows from, or of its own with a link to that call if its trace is not recorded.
pub fn continue_or_link(span: &Span, call: &TraceContext) {
    let context = read(call);
    let caller = context.span().span_context().clone();
    if caller.is_sampled() || sampling::is_undecided(caller.trace_state()) {
        let _ = span.set_parent(context);
    } else {
        span.add_link(caller);
    }
}

/// Records that what a span stands for has failed.
pub fn fail(span: &Span, problem: &str) {
    span.set_status(Status::error(problem.to_owned()));
    span.add_event("exception", vec![KeyValue::new("exception.message", problem.to_owned())]);
}

fn read(call: &TraceContext) -> Context {
    let TraceContext { traceparent, tracestate, baggage } = call;
    let parts = [(TRACEPARENT, traceparent), (TRACESTATE, tracestate), (BAGGAGE, baggage)];
    let carrier: HashMap<_, _> = parts.into_iter().map(|(name, part)| (name.to_owned(), part.clone())).collect();
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    BaggagePropagator::new().extract_with_context(&context, &carrier)
}

/// The span of another process of the cluster. One without the flag `sampled` is not decided about there.
fn remote(traceparent: &str) -> SpanContext {
    let context = read(&TraceContext { traceparent: traceparent.to_owned(), ..TraceContext::default() });
    let context = context.span().span_context().clone();
    if context.is_sampled() {
        return context;
    }
    let state = sampling::undecided(context.trace_state());
    SpanContext::new(context.trace_id(), context.span_id(), context.trace_flags(), true, state)
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn a_span_continues_the_trace_it_is_given() {
        let provider = SdkTracerProvider::builder().build();
        let subscriber =
            tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(provider.tracer("test")));
        tracing::subscriber::with_default(subscriber, || {
            let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            let span = tracing::info_span!("child");
            set_parent(&span, parent);
            assert_eq!(trace_id(&span), "0af7651916cd43dd8448eb211c80319c");
            assert!(traceparent(&span).contains("0af7651916cd43dd8448eb211c80319c"));
            let odd = tracing::info_span!("odd");
            set_parent(&odd, "not a traceparent");
            assert_eq!(trace_id(&odd).len(), 32, "an odd parent must not stop a trace of its own");
            let call = TraceContext {
                traceparent: parent.to_owned(),
                tracestate: "other=1".to_owned(),
                baggage: "user=alice".to_owned(),
            };
            let server = tracing::info_span!("server");
            continue_trace(&server, &call);
            let below = server.in_scope(|| tracing::info_span!("below"));
            let passed = trace_context(&below);
            assert!(passed.traceparent.starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "{passed:?}");
            assert_eq!((passed.tracestate, passed.baggage), (call.tracestate.clone(), call.baggage.clone()));
            let unasked = TraceContext { traceparent: parent.replace("-01", "-00"), ..TraceContext::default() };
            for (call, continued) in [(&call, true), (&unasked, false)] {
                let effect = tracing::info_span!("effect");
                continue_or_link(&effect, call);
                assert_eq!(trace_id(&effect) == "0af7651916cd43dd8448eb211c80319c", continued);
            }
        });
    }
}

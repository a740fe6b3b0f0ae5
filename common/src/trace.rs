//! Trace context: what a call carries along, so that whatever follows from it belongs to one trace.

/// Longest `traceparent` that is taken, in bytes: that of the version in use has 55.
pub const MAX_TRACEPARENT: usize = 64;
/// Longest `tracestate` that is taken, in bytes.
pub const MAX_TRACESTATE: usize = 512;
/// Longest `baggage` that is taken, in bytes.
pub const MAX_BAGGAGE: usize = 2_048;

/// W3C trace context and baggage. A part that there is none of is empty, and so is one that is too long to be taken along.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// Trace and span, and whether the trace was asked for.
    pub traceparent: String,
    /// What tracing systems add to it.
    pub tracestate: String,
    /// What callers add to it.
    pub baggage: String,
}

impl TraceContext {
    /// A context without what is too long.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        for (part, most) in [
            (&mut self.traceparent, MAX_TRACEPARENT),
            (&mut self.tracestate, MAX_TRACESTATE),
            (&mut self.baggage, MAX_BAGGAGE),
        ] {
            if part.len() > most {
                part.clear();
            }
        }
        self
    }

    /// Whether it names a span.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.traceparent.is_empty()
    }
}

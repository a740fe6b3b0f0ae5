//! Spans that are made once they are over, from what is known of them.
//!
//! A span of the SDK lives and dies with its process. The root of a rebalance does not: a leader may end what another one began. Its
//! trace id and its start are stored, and the ids of spans follow from what they are about ([`SpanName`]), so that every process
//! knows them without being told, and whichever leader ends a rebalance exports its root.

use std::borrow::Cow;
use std::time::SystemTime;

use common::{ApplianceId, Term};
use opentelemetry::trace::{Event, Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, TraceId};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::TAIL;

/// Most events of one span; later ones are counted as dropped.
const MAX_EVENTS: usize = 64;
/// Most links of one span; later ones are counted as dropped.
const MAX_LINKS: usize = 32;

/// The trace of one rebalance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebalanceTrace(TraceId);

/// Which span of a rebalance is meant. The id of a span follows from the trace and this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanName {
    /// The root.
    Rebalance,
    /// The hand-off of this appliance.
    HandOff(ApplianceId),
    /// Its new owner was stored.
    Commit(ApplianceId),
    /// Its old owner gave it up. Workers name this span by chance; this is for spans made from the history.
    Release(ApplianceId),
    /// Its new owner has seen how it is; named by chance by workers, too.
    Adopt(ApplianceId),
    /// What was planned at this time, in nanoseconds since the Unix epoch.
    Plan(u64),
    /// A delta to a worker.
    Delta {
        /// Term of the leader that sent it.
        term: Term,
        /// Number of the stream at that leader.
        stream: u64,
        /// Version it leads to.
        version: u64,
    },
}

impl RebalanceTrace {
    /// A new one, at random.
    #[must_use]
    pub fn random() -> Self {
        // 0 is no trace id.
        Self(TraceId::from(rand::random::<u128>().max(1)))
    }

    /// The one with this id of 32 hex digits, as [`fmt::Display`](std::fmt::Display) writes it.
    #[must_use]
    pub fn parse(id: &str) -> Option<Self> {
        let wellformed = id.len() == 32 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
        let id = if wellformed { TraceId::from_hex(id).ok()? } else { TraceId::INVALID };
        (id != TraceId::INVALID).then_some(Self(id))
    }

    /// The one a W3C `traceparent` belongs to.
    #[must_use]
    pub fn of_traceparent(traceparent: &str) -> Option<Self> {
        Self::parse(traceparent.split('-').nth(1)?)
    }

    /// The W3C `traceparent` of a span.
    #[must_use]
    pub fn traceparent(self, of: SpanName) -> String {
        format!("00-{}-{}-01", self.0, self.id(of))
    }

    /// The id of a span: FNV-1a (64 bit) over the trace id and what it is about, finished with the mixer of
    /// `MurmurHash3` so that all bits count for whoever samples by it.
    fn id(self, of: SpanName) -> SpanId {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut add = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        };
        add(&self.0.to_bytes());
        add(of.name().as_bytes());
        match of {
            SpanName::Rebalance => {}
            SpanName::HandOff(appliance)
            | SpanName::Commit(appliance)
            | SpanName::Release(appliance)
            | SpanName::Adopt(appliance) => add(appliance.as_bytes()),
            SpanName::Plan(time) => add(&time.to_le_bytes()),
            SpanName::Delta { term, stream, version } => {
                add(&term.get().to_le_bytes());
                add(&stream.to_le_bytes());
                add(&version.to_le_bytes());
            }
        }
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        SpanId::from((hash ^ (hash >> 33)).max(1))
    }

    /// The id of a span, as 16 hexadecimal digits.
    #[must_use]
    pub fn span_id(self, of: SpanName) -> String {
        self.id(of).to_string()
    }

    fn context(self, of: SpanName) -> SpanContext {
        SpanContext::new(self.0, self.id(of), TraceFlags::SAMPLED, false, TraceState::NONE)
    }
}

impl std::fmt::Display for RebalanceTrace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.0, f)
    }
}

impl SpanName {
    /// The name that is exported.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rebalance => "rebalance",
            Self::HandOff(_) => "hand-off",
            Self::Commit(_) => "commit",
            Self::Release(_) => "release",
            Self::Adopt(_) => "adopt",
            Self::Plan(_) => "plan",
            Self::Delta { .. } => "delta",
        }
    }

    /// The span it is a part of.
    #[must_use]
    pub const fn parent(self) -> Option<Self> {
        match self {
            Self::Rebalance => None,
            Self::HandOff(_) | Self::Plan(_) | Self::Delta { .. } => Some(Self::Rebalance),
            Self::Commit(appliance) | Self::Release(appliance) | Self::Adopt(appliance) => {
                Some(Self::HandOff(appliance))
            }
        }
    }
}

/// A span that is over.
#[derive(Clone, Debug)]
pub struct RecordedSpan(SpanData);

impl RecordedSpan {
    /// The span `of` a rebalance, from `start` to `end`; it ends no earlier than it begins.
    #[must_use]
    pub fn new(trace: RebalanceTrace, of: SpanName, start: SystemTime, end: SystemTime) -> Self {
        Self(SpanData {
            span_context: trace.context(of),
            parent_span_id: of.parent().map_or(SpanId::INVALID, |parent| trace.id(parent)),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: Cow::Borrowed(of.name()),
            start_time: start,
            end_time: end.max(start),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder("rug").build(),
        })
    }

    /// With this attribute.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<opentelemetry::Value>) -> Self {
        self.0.attributes.push(KeyValue::new(name, value));
        self
    }

    /// As a call of this process to a database of this kind, as the semantic conventions name them.
    #[must_use]
    pub fn of_database(mut self, system: &'static str, operation: &'static str) -> Self {
        self.0.span_kind = SpanKind::Client;
        self.with("db.system.name", system).with("db.operation.name", operation)
    }

    /// With an event, at most 64.
    #[must_use]
    pub fn event(mut self, name: &'static str, time: SystemTime, attributes: Vec<KeyValue>) -> Self {
        if self.0.events.events.len() < MAX_EVENTS {
            self.0.events.events.push(Event::new(name, time, attributes, 0));
        } else {
            self.0.events.dropped_count += 1;
        }
        self
    }

    /// With a link to a span of a rebalance, at most 32.
    #[must_use]
    pub fn link(mut self, trace: RebalanceTrace, of: SpanName) -> Self {
        if self.0.links.links.len() < MAX_LINKS {
            self.0.links.links.push(Link::with_context(trace.context(of)));
        } else {
            self.0.links.dropped_count += 1;
        }
        self
    }

    /// Ended without success, for this reason.
    #[must_use]
    pub fn failed(mut self, why: impl Into<Cow<'static, str>>) -> Self {
        self.0.status = Status::error(why);
        self
    }

    /// Exports it where spans are exported, whatever the sampling.
    pub fn export(self) {
        if let Some(tail) = TAIL.get() {
            tail.pass(self.0);
        }
    }

    /// Exports a hand-off, and before it what belongs to it, if they are kept. Returns its id if that is for what happened, slow as
    /// it was or failed: other processes may not have kept what they have of it, and are to be [asked](super::keep_hand_offs).
    pub fn export_hand_off(self, parts: Vec<Self>) -> Option<u64> {
        let tail = TAIL.get()?;
        let id = u64::from_be_bytes(self.0.span_context.span_id().to_bytes());
        let group = parts.into_iter().chain([self]).map(|span| span.0).collect();
        tail.handed_off(group).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_from_what_a_span_is_about() {
        let trace = RebalanceTrace::parse("0af7651916cd43dd8448eb211c80319c").expect("an id");
        assert_eq!(trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        let of = SpanName::HandOff(ApplianceId::from_u128(7));
        let parent = trace.traceparent(of);
        assert_eq!(RebalanceTrace::of_traceparent(&parent), Some(trace));
        // What is stored and what other versions say must go on to match.
        assert_eq!(parent, "00-0af7651916cd43dd8448eb211c80319c-509feb533a901cee-01");
        for odd in ["", "0af7", "00000000000000000000000000000000", "0af7651916cd43dd8448eb211c80319x"] {
            assert_eq!(RebalanceTrace::parse(odd), None, "{odd}");
        }
        assert_ne!(RebalanceTrace::random(), RebalanceTrace::random());
    }

    #[test]
    fn events_of_a_span_are_bounded_and_it_ends_no_earlier_than_it_begins() {
        let (trace, now) = (RebalanceTrace::random(), SystemTime::now());
        let mut span = RecordedSpan::new(trace, SpanName::Rebalance, now, SystemTime::UNIX_EPOCH);
        for _ in 0..MAX_EVENTS + 3 {
            span = span.event("planned", now, Vec::new());
        }
        assert_eq!((span.0.events.events.len(), span.0.events.dropped_count), (MAX_EVENTS, 3));
        assert_eq!((span.0.start_time, span.0.end_time), (now, now));
        assert_eq!(span.0.parent_span_id, SpanId::INVALID);
    }
}

//! The instruments that are told what happens; the others look for themselves.

use coordinator_core::audit::AuditCounts;
use coordinator_core::machine::Counters;
use coordinator_core::unowned::{Regained, UnownedCause};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};
use runtime::meter::{TraceRef, TracedHistogram};

use super::catalogue as metric;

/// What a leader has counted in its term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub(crate) counters: Counters,
    pub(crate) audits: AuditCounts,
}

#[derive(Debug)]
pub struct Instruments {
    pub(super) moves: Counter<u64>,
    pub(super) rebalances: Histogram<f64>,
    plans: Counter<u64>,
    pub(super) plan_duration: Histogram<f64>,
    pub(super) gap: TracedHistogram,
    pub(super) unowned: Histogram<f64>,
    pub(super) delta_size: Histogram<f64>,
    pub(super) delta_entries: Histogram<f64>,
    pub(super) entries_sent: Counter<u64>,
    pub(super) ack_lag: Histogram<f64>,
    pub(super) messages: Counter<u64>,
    pub(super) inquiries: Histogram<f64>,
    stale: Counter<u64>,
    violations: Counter<u64>,
    audits: Counter<u64>,
    pub(super) streams_closed: Counter<u64>,
    pub(super) evictions: Counter<u64>,
    pub(super) witnessed: Counter<u64>,
    pub(super) elections: Counter<u64>,
    pub(super) term_begin: Histogram<f64>,
    pub(super) term_ends: Counter<u64>,
    pub(super) late: Counter<u64>,
    pub(super) queue_refusals: Counter<u64>,
    pub(super) store_commit: Histogram<f64>,
    pub(super) store_batch: Histogram<f64>,
    pub(super) store_write: Histogram<f64>,
    pub(super) store_read: Histogram<f64>,
    pub(super) calls: Histogram<f64>,
    pub(super) watches_lagged: Counter<u64>,
    pub(super) connections_refused: Counter<u64>,
    pub(super) reconciled: Histogram<f64>,
    pub(super) notifications: Counter<u64>,
    pub(super) router_listings: Counter<u64>,
    pub(super) routers_looked: Histogram<f64>,
    pub(super) watch_restarts: Counter<u64>,
    pub(super) resource_events: Counter<u64>,
}

impl Instruments {
    pub(crate) fn new(meter: &Meter) -> Self {
        Self {
            moves: metric::MOVES.count(meter),
            rebalances: metric::REBALANCES.distribution(meter),
            plans: metric::PLANS.count(meter),
            plan_duration: metric::PLAN_DURATION.distribution(meter),
            gap: TracedHistogram::new(&metric::GAP, meter),
            unowned: metric::UNOWNED_TIME.distribution(meter),
            delta_size: metric::DELTA_SIZE.distribution(meter),
            delta_entries: metric::DELTA_ENTRIES.distribution(meter),
            entries_sent: metric::ENTRIES_SENT.count(meter),
            ack_lag: metric::ACK_LAG.distribution(meter),
            messages: metric::MESSAGES.count(meter),
            inquiries: metric::INQUIRIES.distribution(meter),
            stale: metric::STALE.count(meter),
            violations: metric::VIOLATIONS.count(meter),
            audits: metric::AUDITS.count(meter),
            streams_closed: metric::STREAMS_CLOSED.count(meter),
            evictions: metric::EVICTIONS.count(meter),
            witnessed: metric::WITNESSED.count(meter),
            elections: metric::ELECTIONS.count(meter),
            term_begin: metric::TERM_BEGIN.distribution(meter),
            term_ends: metric::TERM_ENDS.count(meter),
            late: metric::LEADER_LATE.count(meter),
            queue_refusals: metric::QUEUE_REFUSALS.count(meter),
            store_commit: metric::STORE_COMMIT.distribution(meter),
            store_batch: metric::STORE_BATCH.distribution(meter),
            store_write: metric::STORE_WRITE.distribution(meter),
            store_read: metric::STORE_READ.distribution(meter),
            calls: metric::CALLS.distribution(meter),
            watches_lagged: metric::WATCHES_LAGGED.count(meter),
            connections_refused: metric::CONNECTIONS_REFUSED.count(meter),
            reconciled: metric::RECONCILED.distribution(meter),
            notifications: metric::NOTIFICATIONS.count(meter),
            router_listings: metric::ROUTER_LISTINGS.count(meter),
            routers_looked: metric::ROUTERS_LOOKED.distribution(meter),
            watch_restarts: metric::WATCH_RESTARTS.count(meter),
            resource_events: metric::RESOURCE_EVENTS.count(meter),
        }
    }

    /// Adds what was counted from one moment of a term to a later one.
    pub(crate) fn count(&self, from: &Counted, to: &Counted) {
        let more = |from: u64, to: u64| to.saturating_sub(from);
        for ((kind, before), (_, now)) in from.counters.kinds.iter().zip(to.counters.kinds.iter()) {
            if now != before {
                self.violations.add(more(before, now), &[KeyValue::new("kind", kind.name())]);
            }
        }
        for ((outcome, before), (_, now)) in outcomes(&from.audits).into_iter().zip(outcomes(&to.audits)) {
            if now != before {
                self.audits.add(more(before, now), &[KeyValue::new("outcome", outcome)]);
            }
        }
        self.stale.add(more(from.counters.stale_messages, to.counters.stale_messages), &[]);
        self.plans.add(more(from.counters.plans, to.counters.plans), &[]);
    }

    /// An appliance has an owner.
    pub(crate) fn regained(&self, regained: &Regained, trace: Option<TraceRef>) {
        let seconds = regained.lasted.as_secs_f64();
        self.unowned.record(seconds, &[KeyValue::new("after", regained.cause.name())]);
        if regained.cause == UnownedCause::HandOff {
            self.gap.record(seconds, &[], trace);
        }
    }
}

const fn outcomes(counts: &AuditCounts) -> [(&'static str, u64); 3] {
    [("agreed", counts.agreed), ("in_flight", counts.in_flight), ("differed", counts.differed)]
}

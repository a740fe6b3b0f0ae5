//! Every metric name this binary emits, beside those of [every process](runtime::meter).
//!
//! | instrument | at `/metrics` | of whom |
//! |---|---|---|
//! | `rug.leader` | `rug_leader` | all: 1 while this coordinator leads |
//! | `rug.term` | `rug_term` | the leader |
//! | `rug.appliances` by `state` | `rug_appliances` | the leader: by state of the hand-off |
//! | `rug.appliances.phases` by `phase` | `rug_appliances_phases` | the leader: as their owners report |
//! | `rug.appliances.saturated` | `rug_appliances_saturated` | the leader: with an instance that has all its connections |
//! | `rug.appliances.suspect`, `.quarantined` | `rug_appliances_suspect`, `rug_appliances_quarantined` | the leader |
//! | `rug.workers` by `health` | `rug_workers` | the leader |
//! | `rug.unowned.appliances` | `rug_unowned_appliances` | the leader |
//! | `rug.unowned.oldest` | `rug_unowned_oldest_seconds` | the leader: 0 when there is none |
//! | `rug.unowned` | `rug_unowned_seconds` | whoever led: for how long appliances had none, once they have one |
//! | `rug.moves.in_flight`, `.stalled` | `rug_moves_in_flight`, `rug_moves_stalled` | the leader |
//! | `rug.frozen`, `rug.paused` | `rug_frozen`, `rug_paused` | the leader: 1 while it is |
//! | `rug.store.available` | `rug_store_available` | the leader: 0 while the database takes no changes |
//! | `rug.store.problem` by `cause` | `rug_store_problem` | the leader: 1 for why it does not, until a write succeeds |
//! | `rug.ownership.violations` by `kind` | `rug_ownership_violations_total` | whoever led |
//! | `rug.ownership.audits` by `outcome` | `rug_ownership_audits_total` | whoever led |
//! | `rug.messages.stale` | `rug_messages_stale_total` | whoever led |
//! | `rug.plans` | `rug_plans_total` | whoever led |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coordinator_core::audit::AuditCounts;
use coordinator_core::machine::Counters;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};

use super::View;
use crate::catalog::Counts;
use crate::store::OutageCause;
use crate::views::{ClusterView, WorkerView};

/// Bounds of the times without an owner, in seconds: a hand-off takes milliseconds, a dead worker's lease some seconds,
/// and beyond that somebody has to look.
const UNOWNED_BOUNDS: [f64; 17] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0];

/// What the leader knows.
#[derive(Debug)]
pub(super) struct ClusterSeen {
    pub(super) cluster: Arc<ClusterView>,
    pub(super) counts: Counts,
    pub(super) workers: Vec<Arc<WorkerView>>,
}

/// What a leader has counted in its term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) counters: Counters,
    pub(super) audits: AuditCounts,
}

/// The instruments that are told; the others look for themselves.
#[derive(Debug)]
pub(super) struct Instruments {
    unowned: Histogram<f64>,
    violations: Counter<u64>,
    audits: Counter<u64>,
    stale: Counter<u64>,
    plans: Counter<u64>,
}

impl Instruments {
    pub(super) fn new(meter: &Meter, view: View) -> Self {
        let leads = view.clone();
        meter
            .u64_observable_gauge("rug.leader")
            .with_description("1 while this coordinator leads.")
            .with_callback(move |to| to.observe(u64::from(leads.look().leading), &[]))
            .build();
        looks(meter, &view);
        let this = Self {
            unowned: meter
                .f64_histogram("rug.unowned")
                .with_unit("s")
                .with_description("For how long appliances had no owner, told when they get one.")
                .with_boundaries(UNOWNED_BOUNDS.to_vec())
                .build(),
            violations: meter
                .u64_counter("rug.ownership.violations")
                .with_unit("{violation}")
                .with_description("What workers held or said that the leader's table does not allow.")
                .build(),
            audits: meter
                .u64_counter("rug.ownership.audits")
                .with_unit("{audit}")
                .with_description("Digests of what workers hold, by what comparing them with the table came to.")
                .build(),
            stale: meter
                .u64_counter("rug.messages.stale")
                .with_unit("{message}")
                .with_description("Messages dropped because they named another term, life or stream.")
                .build(),
            plans: meter.u64_counter("rug.plans").with_unit("{plan}").with_description("Plans made.").build(),
        };
        // At 0 from the start, so that the first one is an increase.
        this.count_from_zero();
        this
    }

    fn count_from_zero(&self) {
        for (kind, _) in Counted::default().counters.kinds.iter() {
            self.violations.add(0, &[KeyValue::new("kind", kind.name())]);
        }
        for (outcome, _) in outcomes(&AuditCounts::default()) {
            self.audits.add(0, &[KeyValue::new("outcome", outcome)]);
        }
        self.stale.add(0, &[]);
        self.plans.add(0, &[]);
    }

    /// Adds what was counted from one moment of a term to a later one.
    pub(super) fn count(&self, from: &Counted, to: &Counted) {
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

    pub(super) fn regained(&self, lasted: Duration) {
        self.unowned.record(lasted.as_secs_f64(), &[]);
    }
}

const fn outcomes(counts: &AuditCounts) -> [(&'static str, u64); 3] {
    [("agreed", counts.agreed), ("in_flight", counts.in_flight), ("differed", counts.differed)]
}

/// Gauges of what the leader knows at any time.
fn looks(meter: &Meter, view: &View) {
    let one = |name: &'static str, unit: &'static str, text: &'static str, value: fn(&ClusterSeen) -> u64| {
        let view = view.clone();
        let callback = move |to: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
            if let Some(cluster) = &view.look().cluster {
                to.observe(value(cluster), &[]);
            }
        };
        meter.u64_observable_gauge(name).with_unit(unit).with_description(text).with_callback(callback).build();
    };
    one("rug.term", "", "The term this coordinator leads.", |c| c.cluster.term.get());
    one("rug.unowned.appliances", "{appliance}", "Appliances without an owner.", |c| c.cluster.unowned.appliances);
    one("rug.appliances.suspect", "{appliance}", "Appliances whose former owner died while it held them.", |c| {
        c.cluster.suspects
    });
    one("rug.appliances.saturated", "{appliance}", "Appliances with all the connections they may have.", |c| {
        c.counts.saturated()
    });
    one("rug.appliances.quarantined", "{appliance}", "Appliances that nobody is granted any more.", |c| {
        c.cluster.quarantined
    });
    one("rug.moves.in_flight", "{move}", "Moves under way.", |c| c.cluster.placement.moves_in_flight);
    one("rug.moves.stalled", "{move}", "Moves past their deadline.", |c| c.cluster.placement.stalled_moves);
    one("rug.frozen", "", "1 while nothing is moved because most workers vanished.", |c| {
        u64::from(c.cluster.placement.frozen.is_some())
    });
    one("rug.paused", "", "1 while an operator has stopped all planning.", |c| {
        u64::from(c.cluster.placement.paused.is_some())
    });
    one("rug.store.available", "", "0 while the database takes no changes.", |c| {
        u64::from(c.cluster.store_problem.is_none())
    });

    let many = |name: &'static str,
                unit: &'static str,
                text: &'static str,
                label: &'static str,
                values: fn(&ClusterSeen) -> Vec<(&'static str, u64)>| {
        let view = view.clone();
        let callback = move |to: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
            if let Some(cluster) = &view.look().cluster {
                for (name, n) in values(cluster) {
                    to.observe(n, &[KeyValue::new(label, name)]);
                }
            }
        };
        meter.u64_observable_gauge(name).with_unit(unit).with_description(text).with_callback(callback).build();
    };
    many("rug.appliances", "{appliance}", "Appliances by the state of their hand-off.", "state", |c| {
        c.counts.states().iter().map(|(state, n)| (*state, *n)).collect()
    });
    many("rug.appliances.phases", "{appliance}", "Appliances by the phase their owners report.", "phase", |c| {
        c.counts.phases().iter().map(|(phase, n)| (phase.name(), n)).collect()
    });
    many("rug.store.problem", "", "1 for the reason why the database takes no changes.", "cause", |c| {
        let problem = c.cluster.store_problem.as_ref().map(|problem| problem.cause.name());
        OutageCause::NAMES.into_iter().map(|name| (name, u64::from(problem == Some(name)))).collect()
    });
    many(
        "rug.workers",
        "{worker}",
        "Workers by health, those lost for up to an hour and those that left for up to 5 min among them.",
        "health",
        workers,
    );

    oldest_unowned(meter, view);
}

fn oldest_unowned(meter: &Meter, view: &View) {
    let view = view.clone();
    meter
        .f64_observable_gauge("rug.unowned.oldest")
        .with_unit("s")
        .with_description("For how long the appliance that has been without an owner for longest has had none.")
        .with_callback(move |to| {
            if let Some(cluster) = &view.look().cluster {
                let since = cluster.cluster.unowned.oldest.first().map(|oldest| oldest.since);
                let age = since.and_then(|since| SystemTime::now().duration_since(since).ok());
                to.observe(age.unwrap_or_default().as_secs_f64(), &[]);
            }
        })
        .build();
}

/// Every health there is, so that one that nobody has any more is told as 0.
fn workers(cluster: &ClusterSeen) -> Vec<(&'static str, u64)> {
    let mut by_health = BTreeMap::from([("healthy", 0), ("suspect", 0), ("dead", 0), ("left", 0)]);
    for worker in &cluster.workers {
        *by_health.entry(worker.health.name()).or_default() += 1;
    }
    by_health.into_iter().collect()
}

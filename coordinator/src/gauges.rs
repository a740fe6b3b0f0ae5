//! Gauges of what the leader knows at any time, read from the [`Catalog`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use common::status::Phase;
use coordinator_core::handoff::HandoffState;
use coordinator_core::health::Health;
use opentelemetry::metrics::{AsyncInstrument, Meter};
use opentelemetry::{KeyValue, global};
use runtime::meter::catalogue::Metric;
use tokio::sync::watch;

use crate::catalog::{Catalog, Counts};
use crate::metrics::{self, OTHER, catalogue as metric};
use crate::store::OutageCause;
use crate::views::{ClusterView, WorkerView};

/// For how long one look at the catalog serves all instruments: a scrape asks each of them in turn.
const FRESH: Duration = Duration::from_millis(200);

/// Most drivers that have a series of their own.
const MOST_DRIVERS: usize = 32;

/// Most workers that have.
const MOST_WORKERS: usize = 1_000;

/// What the leader knows.
#[derive(Debug)]
struct ClusterSeen {
    cluster: Arc<ClusterView>,
    counts: Counts,
    workers: Vec<Arc<WorkerView>>,
}

/// What the instruments look at, at most every [`FRESH`].
#[derive(Clone, Debug)]
struct View(Arc<ViewSource>);

#[derive(Debug)]
struct ViewSource {
    catalog: Arc<Catalog>,
    leading: watch::Receiver<bool>,
    seen: Mutex<Option<(Instant, Arc<Seen>)>>,
}

/// One look.
#[derive(Debug)]
struct Seen {
    leading: bool,
    /// What the leader knows, while this coordinator is the leader.
    cluster: Option<ClusterSeen>,
}

impl View {
    fn new(catalog: Arc<Catalog>, leading: watch::Receiver<bool>) -> Self {
        Self(Arc::new(ViewSource { catalog, leading, seen: Mutex::default() }))
    }

    fn look(&self) -> Arc<Seen> {
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match &*seen {
            Some((at, fresh)) if at.elapsed() < FRESH => Arc::clone(fresh),
            _ => {
                let leading = *self.0.leading.borrow();
                let cluster = if leading { self.0.catalog.cluster() } else { None };
                let cluster = cluster.map(|(cluster, counts, workers)| ClusterSeen { cluster, counts, workers });
                let fresh = Arc::new(Seen { leading, cluster });
                *seen = Some((Instant::now(), Arc::clone(&fresh)));
                fresh
            }
        }
    }
}

/// Shows what is in `catalog` while `leading` says that it counts, and of single workers if `per_worker` says so.
pub(crate) fn show(catalog: Arc<Catalog>, leading: watch::Receiver<bool>, per_worker: bool) {
    start(&global::meter("rug"), &View::new(catalog, leading), per_worker);
}

/// Makes the instruments; those of single workers as well if `per_worker` says so.
fn start(meter: &Meter, view: &View, per_worker: bool) {
    let leads = view.clone();
    metric::LEADER.look(meter, move |to| to.observe(u64::from(leads.look().leading), &[]));
    numbers(meter, view);
    let many = |metric: &Metric, look: fn(&ClusterSeen, &dyn AsyncInstrument<u64>)| {
        let view = view.clone();
        metric.look(meter, move |to| {
            if let Some(cluster) = &view.look().cluster {
                look(cluster, to);
            }
        });
    };
    many(&metric::APPLIANCES, |c, to| {
        for state in HandoffState::NAMES {
            let appliances = c.counts.states().get(state).copied().unwrap_or_default();
            to.observe(appliances, &[KeyValue::new("state", state)]);
        }
    });
    many(&metric::PHASES, phases);
    many(&metric::STORE_PROBLEM, |c, to| {
        let problem = c.cluster.store_problem.as_ref().map(|problem| problem.cause.name());
        for name in OutageCause::NAMES {
            to.observe(u64::from(problem == Some(name)), &[KeyValue::new("cause", name)]);
        }
    });
    many(&metric::WORKERS, |c, to| {
        // Every health there is, so that one that no worker has any more is told as 0.
        let mut by_health = BTreeMap::from([("healthy", 0), ("suspect", 0), ("dead", 0), ("left", 0)]);
        for worker in &c.workers {
            *by_health.entry(worker.health.name()).or_default() += 1;
        }
        for (health, workers) in by_health {
            to.observe(workers, &[KeyValue::new("health", health)]);
        }
    });
    many(&metric::BACKLOG, |_, to| {
        for (of, items) in ["writes", "retries", "unsent", "conflicts"].into_iter().zip(metrics::present_backlog()) {
            to.observe(items, &[KeyValue::new("of", of)]);
        }
    });
    many(&metric::RESOURCES, |_, to| {
        for (state, resources) in metric::RESOURCE_STATES.into_iter().zip(metrics::present_resources().0) {
            to.observe(resources, &[KeyValue::new("state", state)]);
        }
    });
    if per_worker {
        of_workers(meter, view);
    }
}

/// Gauges of one series.
fn numbers(meter: &Meter, view: &View) {
    let one = |metric: &Metric, value: fn(&ClusterSeen) -> u64| {
        let view = view.clone();
        metric.look(meter, move |to| {
            if let Some(cluster) = &view.look().cluster {
                to.observe(value(cluster), &[]);
            }
        });
    };
    one(&metric::STREAMS, |_| metrics::open_streams());
    one(&metric::ORPHANS, |_| metrics::present_resources().1);
    one(&metric::RESOURCES_WAITING, |_| metrics::present_resources().2);
    one(&metric::ROUTERS, |_| metrics::present_routers()[0]);
    one(&metric::ROUTERS_WAITING, |_| metrics::present_routers()[1]);
    one(&metric::TERM, |c| c.cluster.term.get());
    one(&metric::COORDINATORS, |c| c.cluster.leader.coordinators.len() as u64);
    one(&metric::UNOWNED_APPLIANCES, |c| c.cluster.unowned.appliances);
    one(&metric::SUSPECT, |c| c.cluster.suspects);
    one(&metric::SATURATED, |c| c.counts.saturated());
    one(&metric::QUARANTINED, |c| c.cluster.quarantined);
    one(&metric::MEMBERS, |c| c.workers.iter().filter(|worker| worker.member).count() as u64);
    one(&metric::DRAINING, |c| c.workers.iter().filter(|worker| worker.draining).count() as u64);
    one(&metric::MOVES_IN_FLIGHT, |c| c.cluster.placement.moves_in_flight);
    one(&metric::MOVES_STALLED, |c| c.cluster.placement.stalled_moves);
    one(&metric::FROZEN, |c| u64::from(c.cluster.placement.frozen.is_some()));
    one(&metric::PAUSED, |c| u64::from(c.cluster.placement.paused.is_some()));
    one(&metric::STORE_AVAILABLE, |c| u64::from(c.cluster.store_problem.is_none()));
    let view = view.clone();
    metric::UNOWNED_OLDEST.look_f64(meter, move |to| {
        if let Some(cluster) = &view.look().cluster {
            let since = cluster.cluster.unowned.oldest.first().map(|oldest| oldest.since);
            let age = since.and_then(|since| SystemTime::now().duration_since(since).ok());
            to.observe(age.unwrap_or_default().as_secs_f64(), &[]);
        }
    });
}

/// Every phase of each kind and driver that there is an appliance of. A driver that no worker offers is any name that a user has
/// made up: all of those are one.
fn phases(c: &ClusterSeen, to: &dyn AsyncInstrument<u64>) {
    let offered = c.workers.iter().flat_map(|worker| worker.drivers.iter().map(|(name, _)| name.as_str()));
    let known: BTreeSet<&str> = offered.collect::<BTreeSet<_>>().into_iter().take(MOST_DRIVERS).collect();
    let mut counts = BTreeMap::new();
    for (driver, kind, phases) in c.counts.sorts() {
        let driver = if known.contains(driver.as_str()) { driver.as_str() } else { OTHER };
        for phase in Phase::ALL {
            *counts.entry((driver, kind.as_str(), phase.name())).or_insert(0) += phases.get(phase);
        }
    }
    for ((driver, kind, phase), appliances) in counts {
        let labels =
            [KeyValue::new("driver", driver.to_owned()), KeyValue::new("kind", kind), KeyValue::new("phase", phase)];
        to.observe(appliances, &labels);
    }
}

/// What is known of single workers, which an operator has to ask for: a series each.
fn of_workers(meter: &Meter, view: &View) {
    let of_each = |metric: &Metric, value: fn(&ClusterSeen, &WorkerView) -> f64| {
        let view = view.clone();
        metric.look_f64(meter, move |to| {
            let Some(cluster) = &view.look().cluster else { return };
            for worker in cluster.workers.iter().take(MOST_WORKERS) {
                to.observe(value(cluster, worker), &[KeyValue::new("worker", worker.id.to_string())]);
            }
        });
    };
    of_each(&metric::WORKER_APPLIANCES, |c, worker| c.counts.of(&worker.id).total() as f64);
    of_each(&metric::WORKER_HEALTHY, |_, worker| f64::from(u8::from(worker.health == Health::Healthy)));
    of_each(&metric::WORKER_SILENT, |_, worker| {
        let silent = worker.last_seen.and_then(|seen| SystemTime::now().duration_since(seen).ok());
        silent.unwrap_or_default().as_secs_f64()
    });
}

#[cfg(test)]
mod tests;

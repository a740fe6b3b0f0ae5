//! What this coordinator measures.
//!
//! What the leader knows at any time is read from the [`Catalog`]; what happens is counted as it does, over all terms of
//! this process. A coordinator that stands by shows [`rug.leader`](instruments) as 0 and nothing it does not know.

mod instruments;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use coordinator_core::audit::AuditCounts;
use coordinator_core::machine::Counters;
use runtime::meter::{BuildError, Meters};
use runtime::telemetry::{ExportConfig, Program};
use tokio::sync::watch;

use crate::catalog::Catalog;
use instruments::{Counted, Instruments};

/// For how long one look at the catalog serves all instruments: a scrape asks each of them in turn.
const FRESH: Duration = Duration::from_millis(200);

/// What is measured. One for the process.
#[derive(Debug)]
pub struct Metrics {
    meters: Arc<Meters>,
    instruments: Instruments,
    /// Counts of the present term that were taken in.
    counted: Mutex<Counted>,
}

impl Metrics {
    /// Instruments of the coordinator `name` that read `catalog`, while `leading` says that what is in it counts. Where `export`
    /// says so, they are pushed as well.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn new(
        name: &str,
        export: &ExportConfig,
        catalog: Arc<Catalog>,
        leading: watch::Receiver<bool>,
    ) -> Result<Arc<Self>, BuildError> {
        let meters = Meters::new(Program { name: "rug-coordinator", instance: name }, export)?;
        let instruments = Instruments::new(&meters.meter(), View::new(catalog, leading));
        Ok(Arc::new(Self { meters: Arc::new(meters), instruments, counted: Mutex::default() }))
    }

    /// Who reads what is measured.
    pub fn meters(&self) -> Arc<Meters> {
        Arc::clone(&self.meters)
    }

    /// A leader begins a term: its counts begin at 0.
    pub fn begin_term(&self) {
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner) = Counted::default();
    }

    /// Takes in what the leader has counted in its term so far.
    pub fn count(&self, counters: &Counters, audits: &AuditCounts) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Counted { counters: *counters, audits: *audits };
        if *counted != now {
            self.instruments.count(&counted, &now);
            *counted = now;
        }
    }

    /// Takes in for how long appliances had no owner that have one now.
    pub fn regained(&self, durations: &[Duration]) {
        durations.iter().for_each(|duration| self.instruments.regained(*duration));
    }
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
    cluster: Option<instruments::ClusterSeen>,
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
                let cluster =
                    cluster.map(|(cluster, counts, workers)| instruments::ClusterSeen { cluster, counts, workers });
                let fresh = Arc::new(Seen { leading, cluster });
                *seen = Some((Instant::now(), Arc::clone(&fresh)));
                fresh
            }
        }
    }
}

#[cfg(test)]
mod tests;

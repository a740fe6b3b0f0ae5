//! What this coordinator measures, and where Prometheus reads it.
//!
//! Instruments belong to the OpenTelemetry SDK, under names of its conventions (`rug.unowned.appliances`), so that another
//! reader beside the one here can push the same over OTLP. The reader here turns them into the text Prometheus takes
//! (`rug_unowned_appliances`), whenever it is asked for `/metrics`. Labels are enums, never names of appliances or workers.
//!
//! What the leader knows at any time is read from the [`Catalog`]; what happens is counted as it does, over all terms of
//! this process. A coordinator that stands by shows [`rug.leader`](instruments) as 0 and nothing it does not know.

mod instruments;
mod listener;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use common::appliance::FieldViolation;
use coordinator_core::audit::AuditCounts;
use coordinator_core::machine::Counters;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};
use runtime::log_limited;
use runtime::telemetry::{self, ExportConfig, Program};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::catalog::Catalog;
use instruments::{Counted, Instruments};
use listener::ScrapeListener;

/// For how long one look at the catalog serves all instruments: a scrape asks each of them in turn.
const FRESH: Duration = Duration::from_millis(200);

/// How long a scraper that does not read may hold the server up when it stops.
const CLOSE: Duration = Duration::from_secs(1);

/// Settings of metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address `/metrics` is served at, over plain HTTP; nowhere when absent. 127.0.0.1:9464 is the usual one.
    pub listen: Option<SocketAddr>,
    /// Serve it beyond loopback. Whoever reaches it learns how many workers and appliances there are and how they do, and
    /// can change nothing.
    pub insecure: bool,
}

impl Config {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let Some(address) = self.listen.filter(|at| !at.ip().is_loopback() && !self.insecure) else {
            return Vec::new();
        };
        let description = format!(
            "{address} is not a loopback address, and anybody who reaches it could read how the fleet does; set \
             metrics.insecure = true if that is wanted"
        );
        vec![FieldViolation::new("listen", description)]
    }
}

/// The instruments could not be built, which is a mistake in the program.
#[derive(Debug, thiserror::Error)]
#[error("build the metrics: {0}")]
pub struct BuildError(String);

/// What is measured. One for the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Readers end with it.
    _provider: SdkMeterProvider,
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
        let registry = Registry::new();
        let reader = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
            .map_err(|e| BuildError(e.to_string()))?;
        let program = Program { name: "rug-coordinator", instance: name };
        let (resource, push) = telemetry::metrics_push(program, export).map_err(BuildError)?;
        let mut provider = SdkMeterProvider::builder().with_reader(reader).with_resource(resource);
        if let Some(push) = push {
            provider = provider.with_reader(push);
        }
        let provider = provider.build();
        let instruments = Instruments::new(&provider, View::new(catalog, leading));
        Ok(Arc::new(Self { registry, _provider: provider, instruments, counted: Mutex::default() }))
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

    /// Everything, as Prometheus reads it.
    ///
    /// # Errors
    /// [`prometheus::Error`], when two instruments would have one name.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
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

/// Serves `/metrics` until `closing`.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, closing: CancellationToken) {
    let listener = ScrapeListener::new(listener);
    let routes = Router::new().route("/metrics", get(scrape)).with_state(metrics);
    let stopped = closing.clone();
    let server = axum::serve(listener, routes).with_graceful_shutdown(stopped.cancelled_owned());
    let late = async {
        closing.cancelled().await;
        tokio::time::sleep(CLOSE).await;
    };
    tokio::select! {
        ended = server => if let Err(error) = ended {
            warn!("metrics are not served any more: {error}");
        },
        () = late => {}
    }
}

async fn scrape(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            log_limited!(warn, "metrics cannot be shown: {error}");
            (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
        }
    }
}

#[cfg(test)]
mod tests;

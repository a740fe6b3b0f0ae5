//! What a process measures: read by Prometheus at `/metrics`, and pushed to a collector where one is
//! [named](crate::telemetry::ExportConfig).
//!
//! Instruments belong to the OpenTelemetry SDK, under names of its conventions (`rug.unowned.appliances`); Prometheus reads them under
//! its own (`rug_unowned_appliances`). Each binary has a [catalogue] of its metrics, from which instruments and the page about them are
//! made. Labels are enums, never names of appliances.
//!
//! A program sets its [`Meters`] for the process ([`Meters::start`]) before anything else, and holds its instruments in statics that
//! belong to them: what measures needs no handle for it. Before that, and in tests, they count nothing.

pub mod catalogue;
mod exemplars;
mod listener;
mod openmetrics;
pub mod probe;
mod process;
mod queues;
pub mod reference;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use common::appliance::FieldViolation;
use opentelemetry::global;
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::proto::MetricFamily;
use prometheus::{Registry, TextEncoder};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::listener::ScrapeListener;
use self::probe::Probe;
use crate::log_limited;
use crate::telemetry::{self, ExportConfig, Program};

pub use exemplars::{TraceRef, TracedHistogram};
pub use queues::{QueueLevels, QueueWatch};

/// How long a scraper that does not read may hold the end up.
const CLOSE: Duration = Duration::from_secs(1);

/// How long the last push may hold the end up. What the collector does not take by then is lost.
const LAST_PUSH: Duration = Duration::from_secs(2);

/// Settings of metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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

/// The meters could not be built, which is a mistake in the program or in the settings of what is pushed.
#[derive(Debug, thiserror::Error)]
#[error("build the metrics: {0}")]
pub struct BuildError(String);

/// The meters of a process, and those who read them.
#[derive(Debug)]
pub struct Meters {
    registry: Registry,
    /// Readers end with it.
    provider: SdkMeterProvider,
}

impl Meters {
    /// Meters with what every process measures of itself. Where `export` says so, they are pushed as well. Needs a Tokio runtime
    /// then.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn new(program: Program<'_>, export: &ExportConfig) -> Result<Self, BuildError> {
        let registry = Registry::new();
        let reader = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
            .map_err(|e| BuildError(e.to_string()))?;
        let (resource, push) = telemetry::metrics_push(program, export).map_err(BuildError)?;
        let mut provider = SdkMeterProvider::builder().with_reader(reader).with_resource(resource);
        if let Some(push) = push {
            provider = provider.with_reader(push);
        }
        let this = Self { registry, provider: provider.build() };
        process::start(&this.meter());
        Ok(this)
    }

    /// [`Self::new`], and the instruments of [`opentelemetry::global`] belong to them from now on. Those that were made before
    /// count nothing for ever, so that this is the first thing that a program does.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn start(program: Program<'_>, export: &ExportConfig) -> Result<Arc<Self>, BuildError> {
        let this = Self::new(program, export)?;
        global::set_meter_provider(this.provider.clone());
        Ok(Arc::new(this))
    }

    /// Pushes what was measured last, if anything is pushed, within a short time.
    pub async fn end(&self) {
        let provider = self.provider.clone();
        // It waits for an answer of the thread that pushes.
        let pushed = tokio::task::spawn_blocking(move || drop(provider.force_flush()));
        let _ = tokio::time::timeout(LAST_PUSH, pushed).await;
    }

    /// Makes instruments.
    #[must_use]
    pub fn meter(&self) -> Meter {
        self.provider.meter("rug")
    }

    /// Everything there is to show.
    fn families(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    /// Everything, as Prometheus reads it.
    ///
    /// # Errors
    /// [`prometheus::Error`], when two instruments would have one name.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.families())
    }
}

/// Serves `/metrics`, and what supervisors ask ([`probe`]), until `closing`.
pub async fn serve(listener: TcpListener, meters: Arc<Meters>, probe: Probe, closing: CancellationToken) {
    let listener = ScrapeListener::new(listener);
    let routes = Router::new().route("/metrics", get(scrape)).with_state(meters).merge(probe.routes());
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

async fn scrape(State(meters): State<Arc<Meters>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if openmetrics::is_accepted(accept) {
        let text = openmetrics::encode(&meters.families());
        return ([(header::CONTENT_TYPE, openmetrics::CONTENT_TYPE)], text).into_response();
    }
    match meters.text() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            log_limited!(warn, "metrics cannot be shown: {error}");
            (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
        }
    }
}

#[cfg(test)]
mod tests;

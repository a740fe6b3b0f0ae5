//! What a process measures: read by Prometheus at `/metrics`, and pushed to a collector where one is
//! [named](crate::telemetry::ExportConfig).
//!
//! Instruments belong to the OpenTelemetry SDK, under names of its conventions (`rug.unowned.appliances`); Prometheus reads them under
//! its own (`rug_unowned_appliances`). Labels are enums, never names of appliances.

mod listener;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use common::appliance::FieldViolation;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::listener::ScrapeListener;
use crate::telemetry::{self, ExportConfig, KeptReason, Program, QueueTally, SpanTally};
use crate::{log_limit, log_limited};

/// How long a scraper that does not read may hold the end up.
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
        of_every_process(&this.meter());
        Ok(this)
    }

    /// Makes instruments.
    #[must_use]
    pub fn meter(&self) -> Meter {
        self.provider.meter("rug")
    }

    /// What instruments of [`opentelemetry::global`] belong to, once it is set there.
    #[must_use]
    pub fn provider(&self) -> SdkMeterProvider {
        self.provider.clone()
    }

    /// Everything, as Prometheus reads it.
    ///
    /// # Errors
    /// [`prometheus::Error`], when two instruments would have one name.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// What every process measures of itself.
fn of_every_process(meter: &Meter) {
    meter
        .u64_observable_gauge("rug.build.info")
        .with_description("1, with the version of the program.")
        .with_callback(|to| to.observe(1, &[KeyValue::new("version", env!("CARGO_PKG_VERSION"))]))
        .build();
    meter
        .u64_observable_counter("rug.log.lines_skipped")
        .with_unit("{line}")
        .with_description("Log lines left out because peers or broken dependencies caused too many of their kind.")
        .with_callback(|to| to.observe(log_limit::skipped(), &[]))
        .build();
    meter
        .u64_observable_counter("rug.telemetry.spans")
        .with_unit("{span}")
        .with_description("What became of the spans of this process; none while nothing is exported.")
        .with_callback(|to| {
            let SpanTally { exported, dropped, failed, unsampled, undecided, kept: _ } = telemetry::span_tally();
            for (outcome, spans) in [
                ("exported", exported),
                ("dropped", dropped),
                ("failed", failed),
                ("unsampled", unsampled),
                ("undecided", undecided),
            ] {
                to.observe(spans, &[KeyValue::new("outcome", outcome)]);
            }
        })
        .build();
    meter
        .u64_observable_counter("rug.telemetry.log_records")
        .with_unit("{record}")
        .with_description("What became of the log records of this process; none while nothing is exported.")
        .with_callback(|to| {
            let QueueTally { exported, dropped, failed } = telemetry::log_tally();
            for (outcome, records) in [("exported", exported), ("dropped", dropped), ("failed", failed)] {
                to.observe(records, &[KeyValue::new("outcome", outcome)]);
            }
        })
        .build();
    meter
        .u64_observable_counter("rug.telemetry.spans_kept")
        .with_unit("{span}")
        .with_description(
            "Spans of this process that were kept, by why; what became of them is in rug.telemetry.spans.",
        )
        .with_callback(|to| {
            for (reason, spans) in KeptReason::ALL.into_iter().zip(telemetry::span_tally().kept) {
                to.observe(spans, &[KeyValue::new("reason", reason.name())]);
            }
        })
        .build();
}

/// Serves `/metrics` until `closing`.
pub async fn serve(listener: TcpListener, meters: Arc<Meters>, closing: CancellationToken) {
    let listener = ScrapeListener::new(listener);
    let routes = Router::new().route("/metrics", get(scrape)).with_state(meters);
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

async fn scrape(State(meters): State<Arc<Meters>>) -> Response {
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

//! Histograms whose buckets name traces.
//!
//! Neither the SDK nor the Prometheus exporter of version 0.33 keeps exemplars (the SDK has the type, and leaves it empty), so
//! they are kept here: of each bucket of each series the newest value with its trace. They are shown in the OpenMetrics
//! format, and not pushed by OTLP. The number of series is bounded by the labels of the metric.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram, Meter};
use opentelemetry::trace::TraceContextExt;
use prometheus::proto::LabelPair;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::catalogue::{Metric, MetricKind};

/// Every store of this process, for those who read.
static STORES: Mutex<Vec<Arc<ExemplarStore>>> = Mutex::new(Vec::new());

/// Where a value was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceRef {
    /// The trace, as 32 hex digits.
    pub trace: String,
    /// The span in it, as 16 hex digits; empty where only the trace is known.
    pub span: String,
}

impl TraceRef {
    /// The trace that `span` belongs to, if it is recorded.
    #[must_use]
    pub fn of(span: &Span) -> Option<Self> {
        let context = span.context();
        let context = context.span().span_context().clone();
        let name = || Self { trace: context.trace_id().to_string(), span: context.span_id().to_string() };
        // One that is not kept for sure would name what nobody finds.
        (context.is_valid() && context.is_sampled()).then(name)
    }

    /// A trace of which no span is known; `None` when there is no id.
    #[must_use]
    pub fn of_trace(trace: &str) -> Option<Self> {
        (!trace.is_empty()).then(|| Self { trace: trace.to_owned(), span: String::new() })
    }
}

/// A value with its trace.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Exemplar {
    pub(super) value: f64,
    pub(super) trace: TraceRef,
    pub(super) time: SystemTime,
}

/// The newest exemplar of each bucket, the one above all bounds last.
type Buckets = Vec<Option<Exemplar>>;

#[derive(Debug)]
struct ExemplarStore {
    metric: &'static Metric,
    series: Mutex<HashMap<Vec<KeyValue>, Buckets>>,
}

impl ExemplarStore {
    fn series(&self) -> MutexGuard<'_, HashMap<Vec<KeyValue>, Buckets>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, attributes: &[KeyValue], exemplar: Exemplar) {
        let MetricKind::Histogram(bounds) = self.metric.kind else { return };
        let bucket = bounds.partition_point(|bound| *bound < exemplar.value);
        let mut series = self.series();
        let buckets = match series.get_mut(attributes) {
            Some(buckets) => buckets,
            None => series.entry(attributes.to_vec()).or_insert_with(|| vec![None; bounds.len() + 1]),
        };
        if let Some(kept) = buckets.get_mut(bucket) {
            *kept = Some(exemplar);
        }
    }
}

/// A histogram whose buckets name traces.
#[derive(Clone, Debug)]
pub struct TracedHistogram {
    histogram: Histogram<f64>,
    store: Arc<ExemplarStore>,
}

impl TracedHistogram {
    /// The histogram of this metric.
    #[must_use]
    pub fn new(metric: &'static Metric, meter: &Meter) -> Self {
        let store = Arc::new(ExemplarStore { metric, series: Mutex::default() });
        let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
        stores.retain(|other| other.metric.name != metric.name);
        stores.push(Arc::clone(&store));
        Self { histogram: metric.distribution(meter), store }
    }

    /// Records a value, and where it was measured, if that is known.
    pub fn record(&self, value: f64, attributes: &[KeyValue], trace: Option<TraceRef>) {
        self.histogram.record(value, attributes);
        if let Some(trace) = trace {
            self.store.note(attributes, Exemplar { value, trace, time: SystemTime::now() });
        }
    }
}

/// The exemplars of one series of a metric, by its name at `/metrics`.
pub(super) fn of_series(name: &str, labels: &[LabelPair]) -> Option<Buckets> {
    let stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    let store = stores.iter().find(|store| store.metric.prometheus_name() == name)?;
    let series = store.series();
    let same = |attributes: &[KeyValue]| {
        attributes.len() == labels.len()
            && attributes.iter().all(|attribute| {
                let same = |label: &LabelPair| {
                    label.name() == attribute.key.as_str() && label.value() == attribute.value.as_str()
                };
                labels.iter().any(same)
            })
    };
    series.iter().find(|(attributes, _)| same(attributes)).map(|(_, buckets)| buckets.clone())
}

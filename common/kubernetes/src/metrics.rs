//! What is measured of calls of the API.

use std::sync::LazyLock;
use std::time::Duration;

use opentelemetry::metrics::Histogram;
use opentelemetry::{KeyValue, global};
use runtime::meter::catalogue::{Label, Metric, MetricGroup, Unit};
use runtime::metric_group;

use crate::request::{ApiCall, RESOURCES, VERBS};

/// Bounds in seconds: an answer takes milliseconds, one of a busy API server seconds.
const CALL: &[f64] = &[0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// What calls come to.
const OUTCOMES: [&str; 11] = [
    "ok",
    "conflict",
    "not_found",
    "forbidden",
    "invalid",
    "gone",
    "throttled",
    "unavailable",
    "timeout",
    "no_connection",
    "other",
];

metric_group! {
    GROUP = "Client of Kubernetes", "Shown by workers with the driver `kubernetes` and by coordinators that read resources, once they \
        have made a call.";
    CALLS = Metric::histogram(
        "rug.kubernetes.call_duration", Unit::Seconds, CALL,
        "How long calls of the API took, with waits of the client's own and every repetition; of a watch, until it began.")
        .by(&[Label::fixed("verb", &VERBS), Label::fixed("resource", &RESOURCES), Label::fixed("outcome", &OUTCOMES)]);
    REPEATS = Metric::counter(
        "rug.kubernetes.repeats", Unit::Things("{call}"),
        "Calls that were made again: the API server asked to wait, or a call that reads was not answered well.")
        .by(&[Label::fixed("reason", &["throttled", "unavailable", "no_connection"])]);
}

struct Instruments {
    calls: Histogram<f64>,
    repeats: opentelemetry::metrics::Counter<u64>,
}

static INSTRUMENTS: LazyLock<Instruments> = LazyLock::new(|| {
    let meter = global::meter("rug");
    Instruments { calls: CALLS.distribution(&meter), repeats: REPEATS.count(&meter) }
});

/// The metrics of this client, for the pages about those of each binary.
#[must_use]
pub fn reference() -> &'static MetricGroup {
    &GROUP
}

/// The outcome of a call with this status.
pub(crate) fn outcome(status: u16) -> &'static str {
    match status {
        200..400 => "ok",
        400 | 422 => "invalid",
        401 | 403 => "forbidden",
        404 => "not_found",
        409 => "conflict",
        410 => "gone",
        429 => "throttled",
        500.. => "unavailable",
        _ => "other",
    }
}

pub(crate) fn called(call: &ApiCall, outcome: &'static str, took: Duration) {
    let labels =
        [KeyValue::new("verb", call.verb), KeyValue::new("resource", call.resource), KeyValue::new("outcome", outcome)];
    INSTRUMENTS.calls.record(took.as_secs_f64(), &labels);
}

pub(crate) fn repeated(reason: &'static str) {
    INSTRUMENTS.repeats.add(1, &[KeyValue::new("reason", reason)]);
}

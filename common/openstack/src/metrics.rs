//! What is measured of calls.

use std::sync::LazyLock;
use std::time::Duration;

use opentelemetry::metrics::{Counter, Histogram};
use opentelemetry::{KeyValue, global};
use runtime::meter::catalogue::{Label, Metric, MetricGroup, Unit};
use runtime::metric_group;

/// Bounds in seconds: Keystone takes tens of milliseconds, Nova seconds.
const CALL: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

const SERVICES: [&str; 4] = ["identity", "compute", "network", "image"];
const METHODS: [&str; 4] = ["get", "post", "put", "delete"];
const OUTCOMES: [&str; 15] = [
    "ok",
    "unauthenticated",
    "forbidden",
    "not_found",
    "conflict",
    "quota",
    "invalid",
    "throttled",
    "unavailable",
    "timeout",
    "no_connection",
    "no_answer",
    "unreadable",
    "no_service",
    "withheld",
];

metric_group! {
    GROUP = "Client of OpenStack", "Shown by workers with the driver `openstack` and by coordinators that read routers, once they have \
        made a call.";
    CALLS = Metric::histogram(
        "rug.openstack.call_duration", Unit::Seconds, CALL,
        "How long calls took, with waits of the client's own and every repetition; of a listing, each page.")
        .by(&[Label::fixed("service", &SERVICES), Label::fixed("method", &METHODS), Label::fixed("outcome", &OUTCOMES)]);
    REPEATS = Metric::counter(
        "rug.openstack.repeats", Unit::Things("{call}"),
        "Calls that were made again: the service asked to wait, a call that reads was not answered well, or the token had ended.")
        .by(&[Label::fixed("reason", &["throttled", "unavailable", "no_connection", "token"])]);
}

struct Instruments {
    calls: Histogram<f64>,
    repeats: Counter<u64>,
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

pub(crate) fn called(service: &'static str, method: &str, outcome: &'static str, took: Duration) {
    let method = METHODS.into_iter().find(|known| known.eq_ignore_ascii_case(method)).unwrap_or("get");
    let labels =
        [KeyValue::new("service", service), KeyValue::new("method", method), KeyValue::new("outcome", outcome)];
    INSTRUMENTS.calls.record(took.as_secs_f64(), &labels);
}

pub(crate) fn repeated(reason: &'static str) {
    INSTRUMENTS.repeats.add(1, &[KeyValue::new("reason", reason)]);
}

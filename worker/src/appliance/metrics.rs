//! What an appliance measures: for all its listeners together, because their names are whatever its configuration says. What happens is
//! counted in atomics; instruments look at them when somebody reads.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use runtime::folder::Folder;
use runtime::meter::catalogue::{Label, Metric, MetricGroup, Unit};
use runtime::meter::probe::Probe;
use runtime::meter::{self, Meters};
use runtime::metric_group;
use runtime::telemetry::{ExportConfig, Program};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::balancer::{Balancer, BalancerLevels};

/// File in the state directory that holds the address of `/metrics`, once it is served.
pub const METRICS_FILE: &str = "metrics";

/// How a connection ended, by the position of its count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionEnd {
    /// Both sides had no more to send.
    Finished,
    /// One side broke off.
    Reset,
    /// Nothing came for too long.
    Idle,
    /// It was ended from here: its member or listener is configured no more, or the appliance stops.
    Interrupted,
    /// No member took it, or it did not say what it has to.
    Failed,
    /// Its client broke it off before it had a member.
    BrokenOff,
    /// Another process goes on with it.
    HandedOver,
}

/// Their names, in the order of the declaration.
const ENDS: [&str; 7] = ["finished", "reset", "idle", "interrupted", "failed", "broken_off", "handed_over"];

metric_group! {
    GROUP = "rug-appliance", "Shown by each load balancer that is started with `--metrics`, for all its listeners together.";
    CONNECTIONS = Metric::counter(
        "rug.balancer.connections", Unit::Things("{connection}"), "Connections of clients that have ended, by how.")
        .by(&[Label::fixed("outcome", &ENDS)]);
    OPEN = Metric::gauge("rug.balancer.connections.open", Unit::Things("{connection}"), "Connections that are open.");
    LIMIT = Metric::gauge(
        "rug.balancer.connections.limit", Unit::Things("{connection}"), "Connections that may be open, over all listeners.");
    TRAFFIC = Metric::counter("rug.balancer.traffic", Unit::Bytes, "Bytes that were forwarded.")
        .by(&[Label::fixed("direction", &["from_client", "to_client"])]);
    MEMBERS = Metric::gauge(
        "rug.balancer.members", Unit::Things("{member}"), "Members of all listeners, by whether they pass their health check.")
        .by(&[Label::fixed("state", &["up", "down"])]);
    LISTENERS = Metric::gauge("rug.balancer.listeners", Unit::Things("{listener}"), "Listeners.");
    SATURATED = Metric::gauge(
        "rug.balancer.listeners.saturated", Unit::Things("{listener}"),
        "Listeners that have, or had within a minute, all the connections that they may have.");
    DIAL_FAILURES = Metric::counter(
        "rug.balancer.dial_failures", Unit::Things("{try}"), "Tries to connect to a member that failed; the next one is tried then.");
    CHECKS = Metric::counter("rug.balancer.checks", Unit::Things("{check}"), "Health checks of members.")
        .by(&[Label::fixed("outcome", &["passed", "failed"])]);
    ACCEPT_ERRORS = Metric::counter(
        "rug.balancer.accept_errors", Unit::Things("{error}"), "Connections that could not be accepted.");
}

static ENDED: [AtomicU64; 7] = [const { AtomicU64::new(0) }; 7];
static BYTES: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static CHECKED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static FAILED_DIALS: AtomicU64 = AtomicU64::new(0);
static FAILED_ACCEPTS: AtomicU64 = AtomicU64::new(0);

/// Every metric of appliances beside those of every process, for the page about them.
#[must_use]
pub const fn reference() -> [&'static MetricGroup; 1] {
    [&GROUP]
}

/// A connection of a client has ended.
pub(super) fn ended(end: ConnectionEnd) {
    ENDED[end as usize].fetch_add(1, Ordering::Relaxed);
}

/// Bytes came from the client, or went to it.
pub(super) fn forwarded(from_client: bool, bytes: u64) {
    BYTES[usize::from(!from_client)].fetch_add(bytes, Ordering::Relaxed);
}

/// A member was checked.
pub(super) fn checked(passed: bool) {
    CHECKED[usize::from(!passed)].fetch_add(1, Ordering::Relaxed);
}

/// A member did not take a connection.
pub(super) fn dial_failed() {
    FAILED_DIALS.fetch_add(1, Ordering::Relaxed);
}

/// A connection could not be accepted.
pub(super) fn accept_failed() {
    FAILED_ACCEPTS.fetch_add(1, Ordering::Relaxed);
}

/// Serves `/metrics` of this process at `address` until `closing`, and says where in [`METRICS_FILE`].
///
/// # Errors
/// When the address cannot be served, is not a loopback address without `insecure`, or the file cannot be written.
pub(super) async fn serve(
    address: SocketAddr,
    insecure: bool,
    name: &str,
    balancer: &Arc<Balancer>,
    folder: &Folder,
    closing: CancellationToken,
) -> anyhow::Result<()> {
    if !address.ip().is_loopback() && !insecure {
        bail!(
            "{address} is not a loopback address, and anybody who reaches it could read the metrics; --insecure allows it"
        );
    }
    // Pushed as well where the environment says so.
    let meters = Meters::start(Program { name: "rug-appliance", instance: name }, &ExportConfig::default())?;
    start(&meters.meter(), balancer);
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr().context("the address of the metrics is gone")?;
    folder.write_atomic(METRICS_FILE, format!("{address}\n").as_bytes()).context("cannot say where metrics are")?;
    tracing::info!(%address, "metrics at /metrics");
    tokio::spawn(meter::serve(listener, meters, Probe::new("rug-appliance", || true), closing));
    Ok(())
}

fn start(meter: &Meter, balancer: &Arc<Balancer>) {
    fn count(
        metric: &Metric,
        meter: &Meter,
        label: &'static str,
        of: &'static [&'static str],
        all: &'static [AtomicU64],
    ) {
        metric.look(meter, move |to| {
            for (value, count) in of.iter().zip(all) {
                to.observe(count.load(Ordering::Relaxed), &[KeyValue::new(label, *value)]);
            }
        });
    }
    count(&CONNECTIONS, meter, "outcome", &ENDS, &ENDED);
    count(&TRAFFIC, meter, "direction", &["from_client", "to_client"], &BYTES);
    count(&CHECKS, meter, "outcome", &["passed", "failed"], &CHECKED);
    DIAL_FAILURES.look(meter, |to| to.observe(FAILED_DIALS.load(Ordering::Relaxed), &[]));
    ACCEPT_ERRORS.look(meter, |to| to.observe(FAILED_ACCEPTS.load(Ordering::Relaxed), &[]));
    let levels = Levels { balancer: Arc::clone(balancer), last: Arc::default() };
    let look = |metric: &Metric, value: fn(&BalancerLevels) -> u64| {
        let levels = levels.clone();
        metric.look(meter, move |to| to.observe(value(&levels.look()), &[]));
    };
    look(&LISTENERS, |levels| levels.listeners);
    look(&SATURATED, |levels| levels.saturated);
    let open = Arc::clone(balancer);
    OPEN.look(meter, move |to| to.observe(open.open() as u64, &[]));
    let most = balancer.most();
    LIMIT.look(meter, move |to| to.observe(most, &[]));
    MEMBERS.look(meter, move |to| {
        let BalancerLevels { up, down, .. } = levels.look();
        for (state, members) in [("up", up), ("down", down)] {
            to.observe(members, &[KeyValue::new("state", state)]);
        }
    });
}

/// How listeners and members are; while a configuration is being put in force, as they were before.
#[derive(Clone)]
struct Levels {
    balancer: Arc<Balancer>,
    last: Arc<Mutex<BalancerLevels>>,
}

impl Levels {
    fn look(&self) -> BalancerLevels {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(now) = self.balancer.levels() {
            *last = now;
        }
        *last
    }
}

#[cfg(test)]
mod tests {
    use runtime::meter::reference as page;

    use super::*;

    #[tokio::test]
    async fn what_is_shown_is_what_is_documented() {
        let groups = [reference()[0], page::of_every_process()];
        assert_eq!(page::lint(&groups), Vec::<String>::new());
        let program = Program { name: "rug-appliance", instance: "a1" };
        let meters = Meters::new(program, &ExportConfig::default()).expect("builds");
        start(&meters.meter(), &Arc::new(Balancer::new(7)));
        ended(ConnectionEnd::HandedOver);
        forwarded(false, 100);
        let text = meters.text().expect("shows");
        assert_eq!(page::differences(&text, &groups, &[]), Vec::<String>::new(), "{text}");
        let has = |line: &str| assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        has("rug_balancer_connections_limit 7");
        has("rug_balancer_members{state=\"down\"} 0");
        assert!(!text.contains("rug_balancer_connections_total{outcome=\"handed_over\"} 0"), "it is counted");
        assert!(!text.contains("rug_balancer_traffic_bytes_total{direction=\"to_client\"} 0"), "they are counted");
        let repository = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        page::check(repository, "rug-appliance", &reference()).unwrap_or_else(|problem| panic!("{problem}"));
    }
}

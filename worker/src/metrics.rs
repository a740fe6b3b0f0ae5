//! What a worker measures. The instruments belong to the meters that [`Meters::start`](runtime::meter::Meters::start) sets for the
//! process; before that, and in tests, they count nothing. Names, units and buckets are in the [`catalogue`].

mod catalogue;

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::driver::DriverName;
use common::kind::KindName;
use opentelemetry::metrics::{Counter, Histogram, Meter};
use opentelemetry::{KeyValue, global};
use runtime::meter::catalogue::MetricGroup;
use runtime::meter::{QueueWatch, TraceRef, TracedHistogram};
use tokio::sync::mpsc;
use tracing::Span;
use worker_core::lifecycle::{LifecycleStep, StepOutcome};

use catalogue as metric;

/// The value of a label for what is none of the others.
const OTHER: &str = "other";

/// Names of drivers. Listed here because drivers measure their calls: a test of theirs compares the two.
pub(crate) const DRIVERS: [&str; 4] = ["process", "simulated", "kubernetes", "openstack"];

/// Outcomes of steps.
const OUTCOMES: [&str; 16] = [
    "observed",
    "booted",
    "replugged",
    "configured",
    "answered",
    "silent",
    "unclear",
    "vanished",
    "destroyed",
    "forgotten",
    "refused",
    "failed",
    "busy",
    "superseded",
    "fenced",
    "timed_out",
];

struct Instruments {
    grants: Counter<u64>,
    steps: TracedHistogram,
    probes: Histogram<f64>,
    boot_attempts: Counter<u64>,
    boots: Histogram<f64>,
    driver_calls: Histogram<f64>,
    remaining: Histogram<f64>,
    lives: Counter<u64>,
    connects: Counter<u64>,
    stale: Counter<u64>,
    refusals: Counter<u64>,
    metadata: Histogram<f64>,
    metadata_lookups: Counter<u64>,
}

/// What became of a request for metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetadataOutcome {
    /// Nova has answered.
    Answered,
    /// Nova does not accept it, mostly for its signature.
    RefusedByNova,
    /// Nova has answered with an error of its own.
    FailedAtNova,
    /// Its sender may not ask for that.
    Refused,
    /// It cannot be understood.
    Malformed,
    /// It, or its answer, was too long.
    TooLong,
    /// No server has the address.
    NoServer,
    /// This worker had no lease.
    NoLease,
    /// Too many were under way.
    Busy,
    /// Neutron did not say whose the address is.
    NoNeutron,
    /// Nova could not be reached.
    NoNova,
    /// It took too long.
    Late,
}

impl MetadataOutcome {
    const ALL: [Self; 12] = [
        Self::Answered,
        Self::RefusedByNova,
        Self::FailedAtNova,
        Self::Refused,
        Self::Malformed,
        Self::TooLong,
        Self::NoServer,
        Self::NoLease,
        Self::Busy,
        Self::NoNeutron,
        Self::NoNova,
        Self::Late,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::RefusedByNova => "refused_by_nova",
            Self::FailedAtNova => "failed_at_nova",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
            Self::TooLong => "too_long",
            Self::NoServer => "no_server",
            Self::NoLease => "no_lease",
            Self::Busy => "busy",
            Self::NoNeutron => "no_neutron",
            Self::NoNova => "no_nova",
            Self::Late => "late",
        }
    }
}

/// Appliances that are held.
static HELD: AtomicU64 = AtomicU64::new(0);

/// Steps that run, wait and may run: looks, then changes.
static STEPS: [[AtomicU64; 2]; 3] = [const { [const { AtomicU64::new(0) }; 2] }; 3];

/// Length of the lease in milliseconds.
static LEASE: AtomicU64 = AtomicU64::new(0);

/// Whether a leader has welcomed this worker.
static CONNECTED: AtomicU64 = AtomicU64::new(0);

static QUEUES: LazyLock<QueueWatch> = LazyLock::new(QueueWatch::default);

static INSTRUMENTS: LazyLock<Instruments> = LazyLock::new(|| Instruments::new(&global::meter("rug")));

impl Instruments {
    fn new(meter: &Meter) -> Self {
        Self {
            grants: metric::GRANTS.count(meter),
            steps: TracedHistogram::new(&metric::STEPS, meter),
            probes: metric::PROBES.distribution(meter),
            boot_attempts: metric::BOOT_ATTEMPTS.count(meter),
            boots: metric::BOOTS.distribution(meter),
            driver_calls: metric::DRIVER_CALLS.distribution(meter),
            remaining: metric::LEASE_REMAINING.distribution(meter),
            lives: metric::LIVES.count(meter),
            connects: metric::CONNECTS.count(meter),
            stale: metric::STALE.count(meter),
            refusals: metric::REFUSALS.count(meter),
            metadata: metric::METADATA_REQUESTS.distribution(meter),
            metadata_lookups: metric::METADATA_LOOKUPS.count(meter),
        }
    }
}

/// Every metric of workers beside those of every process, for the page about them.
#[must_use]
pub fn reference() -> [&'static MetricGroup; 3] {
    [catalogue::GROUPS[0], kubernetes::reference(), openstack::reference()]
}

/// Makes the instruments, so that those that have counted nothing are shown as well.
pub(crate) fn start() {
    LazyLock::force(&INSTRUMENTS);
    start_looks(&global::meter("rug"), &QUEUES);
}

fn start_looks(meter: &Meter, queues: &QueueWatch) {
    metric::HELD.look(meter, |to| to.observe(HELD.load(Ordering::Relaxed), &[]));
    metric::CONNECTED.look(meter, |to| to.observe(CONNECTED.load(Ordering::Relaxed), &[]));
    metric::LEASE_LENGTH.look_f64(meter, |to| {
        to.observe(Duration::from_millis(LEASE.load(Ordering::Relaxed)).as_secs_f64(), &[]);
    });
    let shown = [&metric::STEPS_RUNNING, &metric::STEPS_WAITING, &metric::STEPS_LIMIT];
    for (metric, steps) in shown.into_iter().zip(&STEPS) {
        metric.look(meter, move |to| {
            for (pool, steps) in ["looks", "changes"].into_iter().zip(steps) {
                to.observe(steps.load(Ordering::Relaxed), &[KeyValue::new("pool", pool)]);
            }
        });
    }
    queues.start(meter, &metric::QUEUE_DEPTH, &metric::QUEUE_CAPACITY);
}

/// The name of a driver that this program has.
fn driver_label(driver: &DriverName) -> KeyValue {
    let known = DRIVERS.into_iter().find(|name| *name == driver.as_str());
    KeyValue::new("driver", known.unwrap_or(OTHER))
}

fn outcome_label(outcome: &StepOutcome) -> KeyValue {
    KeyValue::new("outcome", if matches!(outcome, StepOutcome::TimedOut) { "timed_out" } else { outcome.name() })
}

/// A step has ended, in the span that is entered.
pub(crate) fn step_ended(
    step: LifecycleStep,
    kind: KindName,
    driver: &DriverName,
    outcome: &StepOutcome,
    took: Duration,
) {
    let took = took.as_secs_f64();
    let (driver, outcome) = (driver_label(driver), outcome_label(outcome));
    if matches!(step, LifecycleStep::Probe { .. }) {
        return INSTRUMENTS.probes.record(took, &[KeyValue::new("kind", kind.as_str()), driver, outcome]);
    }
    let labels = [KeyValue::new("step", step.name()), driver, outcome];
    INSTRUMENTS.steps.record(took, &labels, TraceRef::of(&Span::current()));
}

/// A boot is begun.
pub(crate) fn boot_begins(kind: KindName, driver: &DriverName) {
    INSTRUMENTS.boot_attempts.add(1, &[KeyValue::new("kind", kind.as_str()), driver_label(driver)]);
}

/// A boot is over.
pub(crate) fn boot_ended(kind: KindName, driver: &DriverName, outcome: &'static str, took: Duration) {
    let labels = [KeyValue::new("kind", kind.as_str()), driver_label(driver), KeyValue::new("outcome", outcome)];
    INSTRUMENTS.boots.record(took.as_secs_f64(), &labels);
}

/// A driver, by its name in [`DRIVERS`], has answered a call.
pub(crate) fn driver_called(driver: &'static str, call: &'static str, outcome: &'static str, took: Duration) {
    let labels = [KeyValue::new("driver", driver), KeyValue::new("call", call), KeyValue::new("outcome", outcome)];
    INSTRUMENTS.driver_calls.record(took.as_secs_f64(), &labels);
}

/// So many steps run, wait and may run: looks, and changes.
pub(crate) fn steps(running: [usize; 2], waiting: [usize; 2], limit: [usize; 2]) {
    for (shown, steps) in STEPS.iter().zip([running, waiting, limit]) {
        for (shown, steps) in shown.iter().zip(steps) {
            shown.store(steps as u64, Ordering::Relaxed);
        }
    }
}

/// Shows how full a queue is.
pub(crate) fn watch_queue<T: Send + 'static>(name: &'static str, sender: &mpsc::Sender<T>) {
    QUEUES.add(name, sender);
}

/// So many appliances are held now.
pub(crate) fn hold(appliances: usize) {
    HELD.store(appliances as u64, Ordering::Relaxed);
}

/// A grant was `taken`, `released`, `removed` with its appliance, or `fenced`.
pub(crate) fn grant(event: &'static str) {
    INSTRUMENTS.grants.add(1, &[KeyValue::new("event", event)]);
}

/// A life has begun whose lease lasts for so long.
pub(crate) fn life_begins(lease: Duration) {
    LEASE.store(u64::try_from(lease.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// The lease was renewed when it still stood for so long.
pub(crate) fn lease_renewed(remaining: Duration) {
    INSTRUMENTS.remaining.record(remaining.as_secs_f64(), &[]);
}

/// A life of this worker has ended.
pub(crate) fn life_ended() {
    INSTRUMENTS.lives.add(1, &[]);
    LEASE.store(0, Ordering::Relaxed);
    CONNECTED.store(0, Ordering::Relaxed);
}

/// A stream to a coordinator was opened, or could not be.
pub(crate) fn connected(opened: bool) {
    let outcome = if opened { "opened" } else { "failed" };
    INSTRUMENTS.connects.add(1, &[KeyValue::new("outcome", outcome)]);
}

/// A leader has welcomed this worker, or its stream has ended.
pub(crate) fn welcomed(welcomed: bool) {
    CONNECTED.store(u64::from(welcomed), Ordering::Relaxed);
}

/// Whether a leader has welcomed this worker, and the stream stands.
pub(crate) fn is_welcomed() -> bool {
    CONNECTED.load(Ordering::Relaxed) == 1
}

/// A message was refused: a `welcome`, a `delta`, or one on another `base`.
pub(crate) fn stale(message: &'static str) {
    INSTRUMENTS.stale.add(1, &[KeyValue::new("message", message)]);
}

/// A step was not begun because of this.
pub(crate) fn refused(reason: &'static str) {
    INSTRUMENTS.refusals.add(1, &[KeyValue::new("reason", reason)]);
}

/// A request for metadata is over.
pub(crate) fn metadata_request(outcome: MetadataOutcome, took: Duration) {
    INSTRUMENTS.metadata.record(took.as_secs_f64(), &[KeyValue::new("outcome", outcome.name())]);
}

/// Whose an address is was `asked` of Neutron, or `remembered`.
pub(crate) fn metadata_lookup(source: &'static str) {
    INSTRUMENTS.metadata_lookups.add(1, &[KeyValue::new("source", source)]);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use runtime::meter::{Meters, reference as page};
    use runtime::telemetry::{ExportConfig, Program};

    use super::*;

    #[tokio::test]
    async fn what_is_shown_is_what_is_documented() {
        let groups = [catalogue::GROUPS[0], page::of_every_process()];
        assert_eq!(page::lint(&groups), Vec::<String>::new());
        let program = Program { name: "rug-worker", instance: "w1" };
        let meters = Arc::new(Meters::new(program, &ExportConfig::default()).expect("builds"));
        let _instruments = Instruments::new(&meters.meter());
        let queues = QueueWatch::default();
        start_looks(&meters.meter(), &queues);
        let (sender, _receiver) = mpsc::channel::<()>(4);
        ["commands", "events"].into_iter().for_each(|name| queues.add(name, &sender));
        let text = meters.text().expect("shows");
        assert_eq!(page::differences(&text, &groups, &[]), Vec::<String>::new(), "{text}");
        let repository = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        page::check(repository, "rug-worker", &reference()).unwrap_or_else(|problem| panic!("{problem}"));
    }

    #[test]
    fn outcomes_of_steps_are_those_of_the_catalogue() {
        let named = [StepOutcome::TimedOut, StepOutcome::Configured, StepOutcome::Failed(String::new())];
        for outcome in named {
            let label = outcome_label(&outcome);
            assert!(OUTCOMES.contains(&&*label.value.as_str()), "{label:?}");
        }
    }
}

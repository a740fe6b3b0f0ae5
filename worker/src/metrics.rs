//! What a worker measures. The instruments belong to the meters that `main` sets for the process; before that, and in tests, they
//! count nothing.
//!
//! | instrument | at `/metrics` | |
//! |---|---|---|
//! | `rug.step.duration` by `step`, `outcome` | `rug_step_duration_seconds` | steps of lifecycles, probes among them |
//! | `rug.appliances.held` | `rug_appliances_held` | appliances whose grant this worker has |
//! | `rug.lease.remaining` | `rug_lease_remaining_seconds` | how long the lease still stood when it was renewed |
//! | `rug.lease.ends` | `rug_lease_ends_total` | lives of this worker that ended |
//! | `rug.session.connects` by `outcome` | `rug_session_connects_total` | streams to a coordinator that were opened, or were not |
//! | `rug.gate.refusals` by `reason` | `rug_gate_refusals_total` | steps that were not begun because the gate was shut for them |

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::metrics::{Counter, Histogram, Meter};
use opentelemetry::{KeyValue, global};

/// Bounds in seconds: a look takes microseconds, a probe milliseconds, the boot of a machine minutes.
const STEP_BOUNDS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0];

/// Bounds in seconds: leases last 1 s to some minutes, and are renewed when a third of them is over.
const LEASE_BOUNDS: [f64; 11] = [0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 60.0];

struct Instruments {
    steps: Histogram<f64>,
    remaining: Histogram<f64>,
    lives: Counter<u64>,
    connects: Counter<u64>,
    refusals: Counter<u64>,
}

/// Appliances that are held.
static HELD: AtomicU64 = AtomicU64::new(0);

static INSTRUMENTS: LazyLock<Instruments> = LazyLock::new(|| Instruments::new(&global::meter("rug")));

impl Instruments {
    fn new(meter: &Meter) -> Self {
        meter
            .u64_observable_gauge("rug.appliances.held")
            .with_unit("{appliance}")
            .with_description("Appliances whose grant this worker has.")
            .with_callback(|to| to.observe(HELD.load(Ordering::Relaxed), &[]))
            .build();
        Self {
            steps: meter
                .f64_histogram("rug.step.duration")
                .with_unit("s")
                .with_description("How long steps of lifecycles took, by step and outcome; probes are steps.")
                .with_boundaries(STEP_BOUNDS.to_vec())
                .build(),
            remaining: meter
                .f64_histogram("rug.lease.remaining")
                .with_unit("s")
                .with_description("How long the lease still stood when it was renewed.")
                .with_boundaries(LEASE_BOUNDS.to_vec())
                .build(),
            lives: meter
                .u64_counter("rug.lease.ends")
                .with_unit("{life}")
                .with_description("Lives of this worker that ended.")
                .build(),
            connects: meter
                .u64_counter("rug.session.connects")
                .with_unit("{stream}")
                .with_description("Streams to a coordinator that were opened, or could not be.")
                .build(),
            refusals: meter
                .u64_counter("rug.gate.refusals")
                .with_unit("{step}")
                .with_description("Steps that were not begun because the gate was shut for them.")
                .build(),
        }
    }
}

/// Makes the instruments, so that those that have counted nothing are shown as well.
pub(crate) fn start() {
    LazyLock::force(&INSTRUMENTS);
}

/// A step has ended.
pub(crate) fn step_ended(step: &'static str, outcome: &'static str, took: Duration) {
    let labels = [KeyValue::new("step", step), KeyValue::new("outcome", outcome)];
    INSTRUMENTS.steps.record(took.as_secs_f64(), &labels);
}

/// So many appliances are held now.
pub(crate) fn hold(appliances: usize) {
    HELD.store(appliances as u64, Ordering::Relaxed);
}

/// The lease was renewed when it still stood for so long.
pub(crate) fn lease_renewed(remaining: Duration) {
    INSTRUMENTS.remaining.record(remaining.as_secs_f64(), &[]);
}

/// A life of this worker has ended.
pub(crate) fn life_ended() {
    INSTRUMENTS.lives.add(1, &[]);
}

/// A stream to a coordinator was opened, or could not be.
pub(crate) fn connected(opened: bool) {
    let outcome = if opened { "opened" } else { "failed" };
    INSTRUMENTS.connects.add(1, &[KeyValue::new("outcome", outcome)]);
}

/// A step was not begun because of this.
pub(crate) fn refused(reason: &'static str) {
    INSTRUMENTS.refusals.add(1, &[KeyValue::new("reason", reason)]);
}

//! Every metric that workers show, beside those of [every process](runtime::meter::reference::of_every_process).

use common::kind::KindName;
use runtime::meter::catalogue::{Label, Metric, MetricGroup, Unit};
use runtime::metric_group;

/// Bounds in seconds: a look takes microseconds, a probe milliseconds, the boot of a machine minutes.
const STEP: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0];
/// Bounds in seconds of probes, of which there are thousands a second: few.
const PROBE: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Bounds in seconds of boots.
const BOOT: &[f64] = &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];
/// Bounds in seconds: leases last 1 s to some minutes, and are renewed when a third of them is over.
const LEASE: &[f64] = &[0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 60.0];

/// Bounds in seconds: Nova takes tens of milliseconds, and some requests wait for a question to Neutron.
const METADATA: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 20.0];

const KIND: Label = Label::listed("kind", || KindName::ALL.iter().map(|kind| kind.as_str()).collect());
const DRIVER: Label = Label::listed("driver", || super::DRIVERS.into_iter().chain([super::OTHER]).collect());
const POOL: Label = Label::fixed("pool", &["looks", "changes"]);
const QUEUE: Label = Label::fixed("queue", &["commands", "events"]);

metric_group! {
    GROUP = "rug-worker", "Shown by each worker.";
    HELD = Metric::gauge("rug.appliances.held", Unit::Things("{appliance}"), "Appliances whose grant this worker has.");
    GRANTS = Metric::counter(
        "rug.grants", Unit::Things("{grant}"),
        "Grants that were taken, released to the leader, ended by the removal of their appliance, or shut out because the leader did not \
         keep them.")
        .by(&[Label::fixed("event", &["taken", "released", "removed", "fenced"])]);
    STEPS = Metric::histogram(
        "rug.step.duration", Unit::Seconds, STEP,
        "How long steps of lifecycles took, without probes.")
        .by(&[
            Label::fixed("step", &["observe", "boot", "replug", "configure", "destroy", "forget"]),
            DRIVER,
            Label::fixed("outcome", &super::OUTCOMES),
        ])
        .with_exemplars();
    PROBES = Metric::histogram(
        "rug.probe.duration", Unit::Seconds, PROBE,
        "How long probes took; `answered` is a good answer, `silent` none, `vanished` an instance that does not run any more.")
        .by(&[KIND, DRIVER, Label::fixed("outcome", &super::OUTCOMES)]);
    BOOT_ATTEMPTS = Metric::counter("rug.boot.attempts", Unit::Things("{boot}"), "Boots of instances that were begun.")
        .by(&[KIND, DRIVER]);
    BOOTS = Metric::histogram(
        "rug.boot.duration", Unit::Seconds, BOOT,
        "Time from the begin of a boot to the first probe that is `answered`, or to its end without one: it `failed`, the instance \
         `ended`, or it was `replaced` by another try.")
        .by(&[KIND, DRIVER, Label::fixed("outcome", &["answered", "failed", "ended", "replaced"])]);
    DRIVER_CALLS = Metric::histogram(
        "rug.driver.call_duration", Unit::Seconds, STEP,
        "How long calls of drivers took. Whether an instance is alive, which is asked before each probe, is not among them.")
        .by(&[
            DRIVER,
            Label::fixed("call", &[
                "judge", "read_log", "claim", "observe", "note_answer", "note_configured", "ended", "run_beside", "execute", "ensure", "expose", "attach", "detach", "destroy", "list", "forget",
            ]),
            Label::fixed("outcome", &["ok", "failed", "refused", "busy", "superseded", "shut", "ended"]),
        ]);
    STEPS_RUNNING = Metric::gauge(
        "rug.steps.running", Unit::Things("{step}"), "Steps that run: `looks` change nothing, `changes` do.").by(&[POOL]);
    STEPS_WAITING = Metric::gauge("rug.steps.waiting", Unit::Things("{step}"), "Steps that wait for others to end.").by(&[POOL]);
    STEPS_LIMIT = Metric::gauge("rug.steps.limit", Unit::Things("{step}"), "Steps that may run at once.").by(&[POOL]);
    QUEUE_DEPTH = Metric::gauge("rug.queue.depth", Unit::Things("{item}"), "What waits between session and runner.").by(&[QUEUE]);
    QUEUE_CAPACITY = Metric::gauge(
        "rug.queue.capacity", Unit::Things("{item}"), "What may wait there; when it is full the other side waits.").by(&[QUEUE]);
    LEASE_REMAINING = Metric::histogram(
        "rug.lease.remaining", Unit::Seconds, LEASE, "How long the lease still stood when it was renewed.");
    LEASE_LENGTH = Metric::gauge("rug.lease.length", Unit::Seconds, "How long the lease of the present life lasts; 0 without one.");
    LIVES = Metric::counter("rug.lease.ends", Unit::Things("{life}"), "Lives of this worker that ended.");
    CONNECTED = Metric::gauge("rug.session.connected", Unit::None, "1 while a leader has welcomed this worker.");
    CONNECTS = Metric::counter(
        "rug.session.connects", Unit::Things("{stream}"), "Streams to a coordinator that were opened, or could not be.")
        .by(&[Label::fixed("outcome", &["opened", "failed"])]);
    STALE = Metric::counter(
        "rug.messages.stale", Unit::Things("{message}"),
        "Messages of coordinators refused: a `welcome` to another hello or of an older leader, a `delta` of another stream, or on another \
         `base` than this worker has.")
        .by(&[Label::fixed("message", &["welcome", "delta", "base"])]);
    REFUSALS = Metric::counter(
        "rug.gate.refusals", Unit::Things("{step}"), "Steps that were not begun because the gate was shut for them.")
        .by(&[Label::fixed("reason", &["lease", "not_owned", "fence_delay", "hands_off"])]);
    METADATA_REQUESTS = Metric::histogram(
        "rug.metadata.request_duration", Unit::Seconds, METADATA,
        "How long requests for metadata took that appliances passed on. `refused` is this worker's word (the sender may not ask for that), \
         `refused_by_nova` that of Nova, mostly because the secret is another one.")
        .by(&[Label::listed("outcome", || super::MetadataOutcome::ALL.iter().map(|outcome| outcome.name()).collect())]);
    METADATA_LOOKUPS = Metric::counter(
        "rug.metadata.lookups", Unit::Things("{lookup}"), "Questions which server has an address: asked of Neutron, or remembered.")
        .by(&[Label::fixed("source", &["asked", "remembered"])]);
}

/// Every group of this binary.
pub(super) const GROUPS: [&MetricGroup; 1] = [&GROUP];

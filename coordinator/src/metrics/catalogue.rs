//! Every metric that this binary shows, beside those of [every process](runtime::meter::reference::of_every_process).

use std::sync::LazyLock;

use common::kind::KindName;
use common::status::Phase;
use coordinator_core::handoff::HandoffState;
use coordinator_core::rebalance::{RebalanceCause, RebalanceEnd};
use coordinator_core::unowned::UnownedCause;
use coordinator_core::violation::ViolationKind;
use prost::Message as _;
use runtime::meter::catalogue::{Label, Metric, MetricGroup, Unit};
use runtime::metric_group;

/// Bounds in seconds of the times without an owner: a hand-off takes milliseconds, a dead worker's lease some seconds,
/// and beyond that somebody has to look.
const UNOWNED: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0];
/// Bounds in seconds of what one process does by itself, or asks another one for.
const CALL: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Bounds in seconds of a computation.
const COMPUTATION: &[f64] = &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];
/// Bounds in seconds of what may take minutes.
const LONG: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];
/// Bounds of numbers of things.
const NUMBER: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0];
/// Bounds in bytes of messages: the longest delta has 1 MiB.
const SIZE: &[f64] = &[64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0];

/// Causes of rebalances; `other` is one that another leader began.
const CAUSE: Label = Label::listed("cause", || RebalanceCause::NAMES.into_iter().chain([super::OTHER]).collect());
const KIND: Label = Label::listed("kind", || KindName::ALL.iter().map(|kind| kind.as_str()).collect());
const DRIVER: Label = Label::open("driver", "names of drivers that workers offer, at most 32, and `other`");
const WORKER: Label = Label::open("worker", "names of workers, at most 1,000, the first by name");
/// What became of custom resources.
pub(crate) const RESOURCE_STATES: [&str; 5] = ["pending", "refused", "not_ready", "ready", "deleting"];
const WRITTEN: Label = Label::fixed("outcome", &["committed", "conflict", "busy", "unavailable", "deposed", "failed"]);

metric_group! {
    STATE = "rug-coordinator: how the fleet is",
        "Shown by the coordinator that leads; the others show `rug_leader` alone. Those of single workers are there with \
         `metrics.per_worker = true`.";
    LEADER = Metric::gauge("rug.leader", Unit::None, "1 while this coordinator leads.");
    TERM = Metric::gauge("rug.term", Unit::None, "The term this coordinator leads.");
    COORDINATORS = Metric::gauge(
        "rug.coordinators", Unit::Things("{coordinator}"), "Coordinators that the leader knows of, itself among them.");
    APPLIANCES = Metric::gauge(
        "rug.appliances", Unit::Things("{appliance}"),
        "Appliances by the state of their hand-off. Their sum is the number of appliances in the list.")
        .by(&[Label::fixed("state", &HandoffState::NAMES)]);
    PHASES = Metric::gauge(
        "rug.appliances.phases", Unit::Things("{appliance}"),
        "Appliances by the phase their owners report, kind and driver. Their sum is the number of appliances in the list.")
        .by(&[Label::listed("phase", || Phase::ALL.iter().map(|phase| phase.name()).collect()), KIND, DRIVER]);
    SATURATED = Metric::gauge(
        "rug.appliances.saturated", Unit::Things("{appliance}"), "Appliances with all the connections they may have.");
    SUSPECT = Metric::gauge(
        "rug.appliances.suspect", Unit::Things("{appliance}"), "Appliances whose former owner died while it held them.");
    QUARANTINED = Metric::gauge(
        "rug.appliances.quarantined", Unit::Things("{appliance}"), "Appliances that no worker is granted any more.");
    WORKERS = Metric::gauge(
        "rug.workers", Unit::Things("{worker}"),
        "Workers by health, those lost for up to an hour and those that left for up to 5 min among them.")
        .by(&[Label::fixed("health", &["healthy", "suspect", "dead", "left"])]);
    MEMBERS = Metric::gauge("rug.members", Unit::Things("{worker}"), "Workers in the ring.");
    DRAINING = Metric::gauge(
        "rug.workers.draining", Unit::Things("{worker}"), "Workers that give up what they have, and get nothing new.");
    UNOWNED_APPLIANCES = Metric::gauge(
        "rug.unowned.appliances", Unit::Things("{appliance}"), "Appliances without an owner.");
    UNOWNED_OLDEST = Metric::gauge(
        "rug.unowned.oldest", Unit::Seconds,
        "For how long the appliance that has been without an owner for longest has had none; 0 when there is none.");
    MOVES_IN_FLIGHT = Metric::gauge("rug.moves.in_flight", Unit::Things("{move}"), "Moves under way.");
    MOVES_STALLED = Metric::gauge("rug.moves.stalled", Unit::Things("{move}"), "Moves past their deadline.");
    FROZEN = Metric::gauge("rug.frozen", Unit::None, "1 while nothing is moved because most workers vanished.");
    PAUSED = Metric::gauge("rug.paused", Unit::None, "1 while an operator has stopped all planning.");
    STORE_AVAILABLE = Metric::gauge("rug.store.available", Unit::None, "0 while the database takes no changes.");
    STORE_PROBLEM = Metric::gauge(
        "rug.store.problem", Unit::None, "1 for the reason why the database takes no changes.")
        .by(&[Label::fixed("cause", &[
            "read_only", "full", "locked", "cannot_open", "deleted", "io", "lost", "timed_out", "refused",
        ])]);
    BACKLOG = Metric::gauge(
        "rug.backlog", Unit::Things("{item}"),
        "What the leader has begun and not ended: writes of ownership, those to be tried again, entries that wait to be sent to a \
         worker, appliances that a worker owns against the table. All are 0 at rest.")
        .by(&[Label::fixed("of", &["writes", "retries", "unsent", "conflicts"])]);
    STREAMS = Metric::gauge("rug.streams", Unit::Things("{stream}"), "Streams of workers that are open.");
    RESOURCES = Metric::gauge(
        "rug.kubernetes.resources", Unit::Things("{resource}"),
        "Custom resources `Appliance` by what became of them: not looked at yet, refused, accepted but not ready, ready, to be deleted.")
        .by(&[Label::fixed("state", &RESOURCE_STATES)]);
    ORPHANS = Metric::gauge(
        "rug.kubernetes.orphans", Unit::Things("{appliance}"),
        "Appliances that are managed by a custom resource which does not exist.");
    RESOURCES_WAITING = Metric::gauge(
        "rug.kubernetes.waiting", Unit::Things("{resource}"), "Custom resources that wait to be looked at, or are.");
    ROUTERS = Metric::gauge(
        "rug.neutron.routers", Unit::Things("{router}"), "Routers of Neutron that were read and have appliances.");
    ROUTERS_WAITING = Metric::gauge(
        "rug.neutron.waiting", Unit::Things("{router}"), "Routers of Neutron that wait to be looked at, or are.");
    WORKER_APPLIANCES = Metric::gauge(
        "rug.worker.appliances", Unit::Things("{appliance}"), "Appliances that a worker is granted.").by(&[WORKER]);
    WORKER_HEALTHY = Metric::gauge("rug.worker.healthy", Unit::None, "1 while a worker is healthy.").by(&[WORKER]);
    WORKER_SILENT = Metric::gauge(
        "rug.worker.silent", Unit::Seconds, "Time since the last heartbeat of a worker was seen.").by(&[WORKER]);
}

metric_group! {
    EVENTS = "rug-coordinator: what happens",
        "Shown by each coordinator: what it did while it led, over all its terms, and what it answers. Ownership is counted by leaders \
         alone, so that sums over all coordinators count each event once.";
    MOVES = Metric::counter(
        "rug.moves", Unit::Things("{move}"),
        "Moves of rebalances by their cause. Those done are the moves of the history; those given up ended without a new owner.")
        .by(&[CAUSE, Label::fixed("outcome", &["done", "given_up"])]);
    REBALANCES = Metric::histogram(
        "rug.rebalance.duration", Unit::Seconds, LONG, "How long rebalances took that have ended, by their cause.")
        .by(&[CAUSE, Label::fixed("outcome", &RebalanceEnd::NAMES)]);
    PLANS = Metric::counter("rug.plans", Unit::Things("{plan}"), "Plans made.");
    PLAN_DURATION = Metric::histogram(
        "rug.plan.duration", Unit::Seconds, COMPUTATION, "How long the leader took to make a plan and to begin with it.");
    GAP = Metric::histogram(
        "rug.handoff.gap", Unit::Seconds, UNOWNED,
        "For how long moved appliances had no owner, from the release of the old one to the answer of the new one, by the leader's \
         clock.")
        .with_exemplars();
    UNOWNED_TIME = Metric::histogram(
        "rug.unowned", Unit::Seconds, UNOWNED,
        "For how long appliances had no owner, told when they get one, by how they had come to that.")
        .by(&[Label::listed("after", || UnownedCause::ALL.iter().map(|cause| cause.name()).collect())]);
    DELTA_SIZE = Metric::histogram("rug.delta.size", Unit::Bytes, SIZE, "Size of deltas sent to workers.");
    DELTA_ENTRIES = Metric::histogram(
        "rug.delta.entries", Unit::Things("{entry}"), NUMBER, "Entries of deltas sent to workers.");
    ENTRIES_SENT = Metric::counter("rug.entries.sent", Unit::Things("{entry}"), "Entries of deltas sent to workers, by sort.")
        .by(&[Label::fixed("entry", &["grant", "release", "update", "check", "mode"])]);
    ACK_LAG = Metric::histogram(
        "rug.ack.lag", Unit::Seconds, CALL, "Time from sending a delta to the acknowledgement of its worker.");
    MESSAGES = Metric::counter("rug.messages.received", Unit::Things("{message}"), "Messages of workers taken in by the leader.")
        .by(&[Label::fixed("message", &["hello", "beat", "ack", "report", "drain", "leave", "answer"])]);
    INQUIRIES = Metric::histogram(
        "rug.inquiry.duration", Unit::Seconds, CALL,
        "Time until workers answered what they were asked before a change was admitted, by what that came to; `unanswered` are those that \
         were not, too.")
        .by(&[Label::fixed("outcome", &["accepted", "refused", "unclear", "unanswered"])]);
    STALE = Metric::counter(
        "rug.messages.stale", Unit::Things("{message}"),
        "Messages of workers refused because they named another term, life or stream.");
    VIOLATIONS = Metric::counter(
        "rug.ownership.violations", Unit::Things("{violation}"),
        "What workers held or said that the leader's table does not allow.")
        .by(&[Label::listed("kind", || ViolationKind::ALL.iter().map(|kind| kind.name()).collect())]);
    AUDITS = Metric::counter(
        "rug.ownership.audits", Unit::Things("{audit}"),
        "Digests of what workers hold, by what comparing them with the table came to.")
        .by(&[Label::fixed("outcome", &["agreed", "in_flight", "differed"])]);
    STREAMS_CLOSED = Metric::counter(
        "rug.streams.closed", Unit::Things("{stream}"),
        "Streams of workers that ended: by the worker or the network, with its leave, because it did not read or answer, with the \
         term, or because it was refused.")
        .by(&[Label::fixed("reason", &["ended", "left", "not_read", "unanswered", "resigned", "refused"])]);
    EVICTIONS = Metric::counter(
        "rug.evictions", Unit::Things("{eviction}"), "Tries to make further heartbeats of a life impossible.");
    WITNESSED = Metric::counter(
        "rug.deaths.witnessed", Unit::Things("{death}"),
        "Lives of workers whose process was seen to have ended, so that nobody waited for their leases.");
    ELECTIONS = Metric::counter(
        "rug.elections", Unit::Things("{election}"), "Times this coordinator was to begin a term: those that led to one, and those that failed.")
        .by(&[Label::fixed("outcome", &["led", "failed"])]);
    TERM_BEGIN = Metric::histogram(
        "rug.term.begin_duration", Unit::Seconds, LONG, "Time from being elected to leading; the store is read in it.");
    TERM_ENDS = Metric::counter("rug.term.ends", Unit::Things("{term}"), "Terms of this coordinator that ended, by why.")
        .by(&[Label::fixed("reason", &["stopped", "higher_term", "store_lost", "leadership_lost", "task_ended"])]);
    LEADER_BUSY = Metric::counter(
        "rug.leader.busy", Unit::Seconds,
        "Time in which the one task of the leader worked. A rate near 1 is the most it can do.");
    LEADER_LATE = Metric::counter(
        "rug.leader.late", Unit::Things("{message}"),
        "Messages of workers that had waited for the leader for more than a second: it waits anew for every lease then.");
    QUEUE_DEPTH = Metric::gauge("rug.queue.depth", Unit::Things("{item}"), "What waits in a queue.")
        .by(&[Label::fixed("queue", &["commands", "sessions", "store"])]);
    QUEUE_CAPACITY = Metric::gauge("rug.queue.capacity", Unit::Things("{item}"), "What may wait in a queue.")
        .by(&[Label::fixed("queue", &["commands", "sessions", "store"])]);
    QUEUE_REFUSALS = Metric::counter("rug.queue.refusals", Unit::Things("{item}"), "What was refused because its queue was full.")
        .by(&[Label::fixed("queue", &["store"])]);
    STORE_COMMIT = Metric::histogram(
        "rug.store.commit_duration", Unit::Seconds, CALL,
        "Duration of transactions that write; `changes` are what callers wait for, `background` observations and housekeeping.")
        .by(&[Label::fixed("work", &["changes", "background"]), WRITTEN]);
    STORE_BATCH = Metric::histogram(
        "rug.store.batch_changes", Unit::Things("{change}"), NUMBER, "Changes that were committed by one transaction.");
    STORE_WRITE = Metric::histogram(
        "rug.store.write_duration", Unit::Seconds, CALL,
        "Time from submitting a change to its outcome, the wait for those before it among that.")
        .by(&[WRITTEN]);
    STORE_READ = Metric::histogram(
        "rug.store.read_duration", Unit::Seconds, CALL, "Duration of reads that are not answered from memory: history and audit trail.")
        .by(&[Label::fixed("outcome", &["ok", "failed"])]);
    CALLS = Metric::histogram(
        "rug.call.duration", Unit::Seconds, CALL,
        "Duration of calls, by method and code; of streams until the answer begins. A call that is passed on is counted at both.")
        .by(&[
            Label::listed("method", || METHODS.iter().map(|(_, name)| *name).chain([super::OTHER]).collect()),
            Label::fixed("code", &super::CODES),
        ]);
    WATCHES_LAGGED = Metric::counter(
        "rug.watches.lagged", Unit::Things("{watch}"),
        "Watches that ended because changes came faster than they were read; their clients watch again.");
    RECONCILED = Metric::histogram(
        "rug.kubernetes.reconcile_duration", Unit::Seconds, LONG,
        "How long looking at a custom resource took, by what it came to: nothing to do, something changed, refused, failed, gone.")
        .by(&[Label::fixed("outcome", &["unchanged", "changed", "refused", "failed", "gone"])]);
    WATCH_RESTARTS = Metric::counter(
        "rug.kubernetes.watch_restarts", Unit::Things("{restart}"),
        "Times a watch of custom resources was begun anew: the definition is missing, the version expired, it is not allowed, or it failed.")
        .by(&[Label::fixed("reason", &["no_definition", "expired", "forbidden", "failed"])]);
    RESOURCE_EVENTS = Metric::counter(
        "rug.kubernetes.events", Unit::Things("{event}"), "Events told about refused custom resources.")
        .by(&[Label::fixed("outcome", &["sent", "failed"])]);
    NOTIFICATIONS = Metric::counter(
        "rug.neutron.notifications", Unit::Things("{notification}"),
        "Notifications of Neutron: about what routers have, about other things, or not readable.")
        .by(&[Label::fixed("outcome", &["taken", "ignored", "unreadable"])]);
    ROUTER_LISTINGS = Metric::counter(
        "rug.neutron.listings", Unit::Things("{listing}"), "Listings of everything that Neutron has.")
        .by(&[Label::fixed("outcome", &["ok", "failed"])]);
    ROUTERS_LOOKED = Metric::histogram(
        "rug.neutron.reconcile_duration", Unit::Seconds, LONG,
        "How long looking at a router of Neutron took, by what it came to: its appliance is as it shall be, it was not found, its \
         appliance cannot be as it shall be, it is tried again.")
        .by(&[Label::fixed("outcome", &["settled", "absent", "refused", "failed"])]);
    CONNECTIONS = Metric::gauge("rug.connections", Unit::Things("{connection}"), "Connections that have a place.");
    CONNECTIONS_LIMIT = Metric::gauge("rug.connections.limit", Unit::Things("{connection}"), "Connections that may have one.");
    CONNECTIONS_REFUSED = Metric::counter(
        "rug.connections.refused", Unit::Things("{connection}"),
        "Connections closed for want of a place: their peer has too many, strangers have all that is for them, or all are taken.")
        .by(&[Label::fixed("reason", &["peer", "strangers", "full"])]);
}

/// Paths of all calls, with the name of each in metrics: `/rug.admin.v1.Appliances/Get` is `Appliances.Get`. Sorted.
pub(super) static METHODS: LazyLock<Vec<(&'static str, &'static str)>> = LazyLock::new(|| {
    let set = prost_types::FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap_or_default();
    let mut methods = Vec::new();
    for file in &set.file {
        for service in file.service.iter().filter(|_| file.package() != "rug.driver.v1") {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let name = format!("{}.{}", service.name(), method.name());
                // Once for the life of the process, some dozen.
                methods.push((&*path.leak(), &*name.leak()));
            }
        }
    }
    methods.sort_unstable();
    methods
});

/// Every group of this binary.
pub(super) const GROUPS: [&MetricGroup; 2] = [&STATE, &EVENTS];

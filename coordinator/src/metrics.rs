//! What this coordinator measures.
//!
//! What happens is counted as it does, over all terms of this process; what the leader knows at any time is looked at by
//! [`gauges`](crate::gauges). Names, units and buckets of both are in the [`catalogue`].
//!
//! Instruments belong to the meters that [`Meters::start`](runtime::meter::Meters::start) sets for the process; before that, and in
//! tests, they count nothing.

pub(crate) mod catalogue;
mod instruments;

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::RebalanceId;
use common::appliance::FieldViolation;
use common::session::{DeltaEntry, ToCoordinator};
use coordinator_core::audit::AuditCounts;
use coordinator_core::machine::Counters;
use coordinator_core::rebalance::RebalanceEvent;
use coordinator_core::unowned::Regained;
use opentelemetry::metrics::Meter;
use opentelemetry::{KeyValue, global};
use runtime::meter::catalogue::MetricGroup;
use runtime::meter::{self, QueueWatch, TraceRef};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tonic::Code;

use catalogue as metric;
pub use instruments::Counted;
pub(crate) use instruments::Instruments;

/// The value of a label for what is none of the others.
pub(crate) const OTHER: &str = "other";

/// Codes of calls by their number.
pub(crate) const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Settings of metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address `/metrics` is served at, over plain HTTP; nowhere when absent. 127.0.0.1:9464 is the usual one.
    pub listen: Option<std::net::SocketAddr>,
    /// Serve it beyond loopback. Whoever reaches it learns how many workers and appliances there are and how they do, and
    /// can change nothing.
    pub insecure: bool,
    /// Show what is known of single workers, under their names: three series for each of at most 1,000.
    pub per_worker: bool,
}

impl Config {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        meter::Config { listen: self.listen, insecure: self.insecure }.validate()
    }
}

static INSTRUMENTS: LazyLock<Instruments> = LazyLock::new(|| Instruments::new(&global::meter("rug")));

static QUEUES: LazyLock<QueueWatch> = LazyLock::new(QueueWatch::default);

/// For how long the task of the leader has worked, in nanoseconds.
static LEADER_BUSY: AtomicU64 = AtomicU64::new(0);

/// Streams that are open.
static STREAMS: AtomicU64 = AtomicU64::new(0);

/// What the leader has begun and not ended, in the order of [`Machine::backlog`](coordinator_core::machine::Machine::backlog).
static BACKLOG: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// Connections that have a place, and how many may have one.
static CONNECTIONS: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// Routers of Neutron that have appliances, and those that wait.
static ROUTERS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Custom resources by state, and appliances without one; then those that wait.
static RESOURCES: [AtomicU64; 7] = [const { AtomicU64::new(0) }; 7];

/// Every metric of this binary beside those of every process, for the page about them.
#[must_use]
pub fn reference() -> [&'static MetricGroup; 2] {
    catalogue::GROUPS
}

/// Makes the instruments, so that those that have counted nothing are shown as well.
pub(crate) fn start() {
    LazyLock::force(&INSTRUMENTS);
    start_looks(&global::meter("rug"), &QUEUES);
}

pub(crate) fn start_looks(meter: &Meter, queues: &QueueWatch) {
    metric::LEADER_BUSY.look_f64(meter, |to| {
        to.observe(Duration::from_nanos(LEADER_BUSY.load(Ordering::Relaxed)).as_secs_f64(), &[]);
    });
    metric::CONNECTIONS.look(meter, |to| to.observe(CONNECTIONS[0].load(Ordering::Relaxed), &[]));
    metric::CONNECTIONS_LIMIT.look(meter, |to| to.observe(CONNECTIONS[1].load(Ordering::Relaxed), &[]));
    queues.start(meter, &metric::QUEUE_DEPTH, &metric::QUEUE_CAPACITY);
}

/// How many custom resources there are, by what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResourceCounts {
    pub(crate) pending: u64,
    pub(crate) refused: u64,
    pub(crate) not_ready: u64,
    pub(crate) ready: u64,
    pub(crate) deleting: u64,
    /// Appliances that are managed by one that does not exist.
    pub(crate) orphans: u64,
}

/// So many custom resources there are.
pub(crate) fn resources(counts: &ResourceCounts) {
    let ResourceCounts { pending, refused, not_ready, ready, deleting, orphans } = *counts;
    for (shown, count) in RESOURCES.iter().zip([pending, refused, not_ready, ready, deleting, orphans]) {
        shown.store(count, Ordering::Relaxed);
    }
}

/// So many custom resources wait to be looked at.
pub(crate) fn resources_waiting(waiting: usize) {
    RESOURCES[6].store(waiting as u64, Ordering::Relaxed);
}

/// Numbers of custom resources by state, of orphans, and of those that wait.
pub(crate) fn present_resources() -> ([u64; 5], u64, u64) {
    let all = RESOURCES.each_ref().map(|count| count.load(Ordering::Relaxed));
    let [pending, refused, not_ready, ready, deleting, orphans, waiting] = all;
    ([pending, refused, not_ready, ready, deleting], orphans, waiting)
}

/// A custom resource was looked at.
pub(crate) fn reconciled(outcome: &'static str, took: Duration) {
    INSTRUMENTS.reconciled.record(took.as_secs_f64(), &[KeyValue::new("outcome", outcome)]);
}

/// So many routers of Neutron have appliances, and so many wait to be looked at.
pub(crate) fn routers(known: usize, waiting: usize) {
    ROUTERS[0].store(known as u64, Ordering::Relaxed);
    ROUTERS[1].store(waiting as u64, Ordering::Relaxed);
}

/// Numbers of routers of Neutron that have appliances, and of those that wait.
pub(crate) fn present_routers() -> [u64; 2] {
    ROUTERS.each_ref().map(|count| count.load(Ordering::Relaxed))
}

/// A notification of Neutron came.
pub(crate) fn notified(outcome: &'static str) {
    INSTRUMENTS.notifications.add(1, &[KeyValue::new("outcome", outcome)]);
}

/// Everything that Neutron has was listed, or was not.
pub(crate) fn routers_listed(outcome: &'static str) {
    INSTRUMENTS.router_listings.add(1, &[KeyValue::new("outcome", outcome)]);
}

/// A router of Neutron was looked at.
pub(crate) fn router_looked(outcome: &'static str, took: Duration) {
    INSTRUMENTS.routers_looked.record(took.as_secs_f64(), &[KeyValue::new("outcome", outcome)]);
}

/// A watch of custom resources begins anew.
pub(crate) fn watch_restarted(reason: &'static str) {
    INSTRUMENTS.watch_restarts.add(1, &[KeyValue::new("reason", reason)]);
}

/// An event about a custom resource was told, or could not be.
pub(crate) fn event_sent(sent: bool) {
    INSTRUMENTS.resource_events.add(1, &[KeyValue::new("outcome", if sent { "sent" } else { "failed" })]);
}

/// Shows how full a queue is.
pub(crate) fn watch_queue<T: Send + 'static>(name: &'static str, sender: &mpsc::Sender<T>) {
    QUEUES.add(name, sender);
}

/// Something was refused because this queue was full.
pub(crate) fn queue_full(name: &'static str) {
    INSTRUMENTS.queue_refusals.add(1, &[KeyValue::new("queue", name)]);
}

/// Takes in what the leader has counted in its term so far, beyond what was taken in before.
pub(crate) fn count(counted: &mut Counted, counters: &Counters, audits: &AuditCounts) {
    let now = Counted { counters: *counters, audits: *audits };
    if *counted != now {
        INSTRUMENTS.count(counted, &now);
        *counted = now;
    }
}

/// An appliance has an owner again, or its first one; `trace` is that of the rebalance it was moved in.
pub(crate) fn regained(regained: &Regained, trace: Option<TraceRef>) {
    INSTRUMENTS.regained(regained, trace);
}

/// The rebalances of a term that have not ended, as far as they are counted.
#[derive(Debug, Default)]
pub struct RebalanceTally(HashMap<RebalanceId, (&'static str, Instant)>);

impl RebalanceTally {
    /// Goes on with a rebalance that a former leader began and did not end.
    pub(crate) fn inherit(&mut self, id: RebalanceId, cause: Option<&'static str>) {
        self.0.insert(id, (cause.unwrap_or(OTHER), Instant::now()));
    }

    /// Counts how a rebalance goes on.
    pub(crate) fn count(&mut self, event: &RebalanceEvent) {
        let moved = |cause, outcome, moves| {
            let labels = [KeyValue::new("cause", cause), KeyValue::new("outcome", outcome)];
            INSTRUMENTS.moves.add(moves, &labels);
        };
        match event {
            RebalanceEvent::Opened { id, cause, .. } => {
                self.0.insert(*id, (cause.name(), Instant::now()));
            }
            RebalanceEvent::Resumed { .. } | RebalanceEvent::Planned { .. } => {}
            RebalanceEvent::Moved { id, .. } => {
                moved(self.0.get(id).map_or(OTHER, |(cause, _)| cause), "done", 1);
            }
            RebalanceEvent::Closed { id, moves, done, end } => {
                let Some((cause, began)) = self.0.remove(id) else { return };
                if moves > done {
                    moved(cause, "given_up", moves - done);
                }
                let labels = [KeyValue::new("cause", cause), KeyValue::new("outcome", end.name())];
                INSTRUMENTS.rebalances.record(began.elapsed().as_secs_f64(), &labels);
            }
        }
    }
}

/// What the leader has begun and not ended.
pub(crate) fn backlog(backlog: [(&'static str, usize); 4]) {
    for (shown, (_, items)) in BACKLOG.iter().zip(backlog) {
        shown.store(items as u64, Ordering::Relaxed);
    }
}

/// The same, as it was told last.
pub(crate) fn present_backlog() -> [u64; 4] {
    BACKLOG.each_ref().map(|items| items.load(Ordering::Relaxed))
}

/// A step of the machine made a plan, and took this long.
pub(crate) fn planned(took: Duration) {
    INSTRUMENTS.plan_duration.record(took.as_secs_f64(), &[]);
}

/// Entries of a delta, by sort.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EntryCounts {
    sorts: [u64; 5],
}

impl EntryCounts {
    /// Counts those of a delta.
    pub(crate) fn of<D>(entries: &[DeltaEntry<D>]) -> Self {
        let mut sorts = [0; 5];
        for entry in entries {
            let sort = match entry {
                DeltaEntry::Grant { .. } => 0,
                DeltaEntry::Release(_) => 1,
                DeltaEntry::Update { .. } => 2,
                DeltaEntry::Check { .. } => 3,
                DeltaEntry::Mode { .. } => 4,
            };
            sorts[sort] += 1;
        }
        Self { sorts }
    }

    /// They are sent, in messages of so many bytes.
    pub(crate) fn sent(self, bytes: usize) {
        INSTRUMENTS.delta_size.record(bytes as f64, &[]);
        INSTRUMENTS.delta_entries.record(self.sorts.iter().sum::<u64>() as f64, &[]);
        for (entry, entries) in ["grant", "release", "update", "check", "mode"].into_iter().zip(self.sorts) {
            if entries > 0 {
                INSTRUMENTS.entries_sent.add(entries, &[KeyValue::new("entry", entry)]);
            }
        }
    }
}

/// A worker has acknowledged a delta that was sent so long ago.
pub(crate) fn acknowledged(lag: Duration) {
    INSTRUMENTS.ack_lag.record(lag.as_secs_f64(), &[]);
}

/// The leader takes in a message of a worker.
pub(crate) fn received(message: &ToCoordinator) {
    let name = match message {
        // Counted as it is taken in.
        ToCoordinator::Hello(_) => return,
        ToCoordinator::Beat(_) => "beat",
        ToCoordinator::Ack(_) => "ack",
        ToCoordinator::Report(_) => "report",
        ToCoordinator::Drain { .. } => "drain",
        ToCoordinator::Leave => "leave",
    };
    INSTRUMENTS.messages.add(1, &[KeyValue::new("message", name)]);
}

/// The leader takes in the first message of a stream.
pub(crate) fn hello() {
    INSTRUMENTS.messages.add(1, &[KeyValue::new("message", "hello")]);
}

/// An inquiry was answered after this time, or was not.
pub(crate) fn inquired(outcome: &'static str, took: Duration) {
    INSTRUMENTS.inquiries.record(took.as_secs_f64(), &[KeyValue::new("outcome", outcome)]);
}

/// The leader takes in an answer to an inquiry.
pub(crate) fn answer_received() {
    INSTRUMENTS.messages.add(1, &[KeyValue::new("message", "answer")]);
}

/// The leader takes in a message that has waited for too long.
pub(crate) fn late() {
    INSTRUMENTS.late.add(1, &[]);
}

/// So many streams are open.
pub(crate) fn streams_open(streams: usize) {
    STREAMS.store(streams as u64, Ordering::Relaxed);
}

/// Streams that are open.
pub(crate) fn open_streams() -> u64 {
    STREAMS.load(Ordering::Relaxed)
}

/// Streams have ended for this reason.
pub(crate) fn streams_closed(reason: &'static str, streams: usize) {
    INSTRUMENTS.streams_closed.add(streams as u64, &[KeyValue::new("reason", reason)]);
}

/// A lease node is to be written over.
pub(crate) fn evicting() {
    INSTRUMENTS.evictions.add(1, &[]);
}

/// The process of a life was seen to have ended.
pub(crate) fn witnessed() {
    INSTRUMENTS.witnessed.add(1, &[]);
}

/// A term has begun so long after this coordinator was elected, or could not be begun.
pub(crate) fn elected(led: bool, took: Duration) {
    INSTRUMENTS.elections.add(1, &[KeyValue::new("outcome", if led { "led" } else { "failed" })]);
    if led {
        INSTRUMENTS.term_begin.record(took.as_secs_f64(), &[]);
    }
}

/// A term has ended for this reason.
pub(crate) fn term_ended(reason: &'static str) {
    INSTRUMENTS.term_ends.add(1, &[KeyValue::new("reason", reason)]);
}

/// Drives the task of the leader, and counts for how long it works.
pub(crate) async fn busy<F: Future>(work: F) -> F::Output {
    let mut work = pin!(work);
    poll_fn(|context| {
        let began = Instant::now();
        let polled = work.as_mut().poll(context);
        let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        LEADER_BUSY.fetch_add(nanos, Ordering::Relaxed);
        polled
    })
    .await
}

/// A transaction has ended like this.
pub(crate) fn committed(background: bool, outcome: &'static str, took: Duration) {
    let work = if background { "background" } else { "changes" };
    let labels = [KeyValue::new("work", work), KeyValue::new("outcome", outcome)];
    INSTRUMENTS.store_commit.record(took.as_secs_f64(), &labels);
}

/// So many changes were committed by one transaction.
pub(crate) fn batch_committed(changes: usize) {
    INSTRUMENTS.store_batch.record(changes as f64, &[]);
}

/// A change that was submitted so long ago has ended like this.
pub(crate) fn stored(outcome: &'static str, took: Duration) {
    INSTRUMENTS.store_write.record(took.as_secs_f64(), &[KeyValue::new("outcome", outcome)]);
}

/// The store was read, or could not be.
pub(crate) fn read(succeeded: bool, took: Duration) {
    let outcome = if succeeded { "ok" } else { "failed" };
    INSTRUMENTS.store_read.record(took.as_secs_f64(), &[KeyValue::new("outcome", outcome)]);
}

/// The name of the method behind a path.
pub(crate) fn method(path: &str) -> &'static str {
    let found = metric::METHODS.binary_search_by(|(known, _)| (*known).cmp(path));
    found.map_or(OTHER, |at| metric::METHODS[at].1)
}

/// A call was answered.
pub(crate) fn answered(method: &'static str, code: Code, took: Duration) {
    let code = CODES.get(code as usize).copied().unwrap_or("UNKNOWN");
    INSTRUMENTS.calls.record(took.as_secs_f64(), &[KeyValue::new("method", method), KeyValue::new("code", code)]);
}

/// A watch ends because its client does not read fast enough.
pub(crate) fn watch_lagged() {
    INSTRUMENTS.watches_lagged.add(1, &[]);
}

/// So many connections have a place, of so many.
pub(crate) fn connections(taken: usize, most: usize) {
    CONNECTIONS[0].store(taken as u64, Ordering::Relaxed);
    CONNECTIONS[1].store(most as u64, Ordering::Relaxed);
}

/// A connection gets no place.
pub(crate) fn connection_refused(reason: &'static str) {
    INSTRUMENTS.connections_refused.add(1, &[KeyValue::new("reason", reason)]);
}

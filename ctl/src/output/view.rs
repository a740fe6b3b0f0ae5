//! JSON and YAML form of workers, rebalances, rings and the cluster: field names of the API, enums as lower-case words,
//! times as RFC 3339 texts.

use std::collections::BTreeMap;

use proto::admin::v1;
use proto::convert::scalar::duration_from_wire;
use serde::Serialize;

use crate::document::view::{self, Assignment, phase_name};
use crate::output::debug;

type Time = Option<prost_types::Timestamp>;

fn time(time: Time) -> Option<String> {
    time.map(|t| t.to_string())
}

/// Names in lower case, sorted.
fn lower(map: &std::collections::HashMap<String, u64>) -> BTreeMap<String, u64> {
    map.iter().map(|(name, n)| (name.to_lowercase(), *n)).collect()
}

/// One event of a watch.
#[derive(Debug, Serialize)]
pub(crate) struct WatchEvent<T: Serialize> {
    /// `current`, `created`, `changed`, `joined` or `gone`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    #[serde(flatten)]
    pub(crate) subject: T,
}

/// Subject of an appliance event.
#[derive(Debug, Serialize)]
pub(crate) struct ApplianceEvent {
    pub(crate) appliance: view::Appliance,
}

/// Subject of a worker event.
#[derive(Debug, Serialize)]
pub(crate) struct WorkerEvent {
    pub(crate) worker: Worker,
}

#[derive(Debug, Serialize)]
pub(crate) struct Worker {
    id: String,
    incarnation: String,
    health: &'static str,
    reason: String,
    host: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    state_dir: String,
    zone: String,
    weight: u32,
    drivers: Vec<String>,
    offers: Vec<DriverOffer>,
    appliances: u64,
    phases: BTreeMap<String, u64>,
    last_seen: Option<String>,
    version: String,
    pid: u32,
    draining: bool,
    member: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    limited: Vec<String>,
    cordoned: bool,
    drained: bool,
    published_weight: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    orders: Vec<WorkerOrder>,
    /// Of one that is drained: appliances that no other worker can take.
    #[serde(skip_serializing_if = "Option::is_none")]
    immovable: Option<u64>,
}

/// An operator's order about a worker.
#[derive(Debug, Serialize)]
struct WorkerOrder {
    order: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    reason: String,
    since: Option<String>,
    by: String,
}

impl From<v1::WorkerOrder> for WorkerOrder {
    fn from(order: v1::WorkerOrder) -> Self {
        use v1::worker_order::What;
        let (what, weight) = match order.what() {
            What::Cordon => ("cordon", None),
            What::Drain => ("drain", None),
            What::Weight => ("weight", Some(order.weight)),
            What::Unspecified => ("", None),
        };
        Self { order: what, weight, reason: order.reason, since: time(order.since), by: order.by }
    }
}

/// Operators' orders, in short.
#[derive(Debug, Default, Serialize)]
struct Orders {
    workers: BTreeMap<String, Vec<WorkerOrder>>,
    worker_count: u64,
    pins: u64,
}

impl From<v1::Orders> for Orders {
    fn from(orders: v1::Orders) -> Self {
        let v1::Orders { workers, worker_count, pins } = orders;
        let workers = workers.into_iter().map(|w| (w.id, w.orders.into_iter().map(WorkerOrder::from).collect()));
        Self { workers: workers.collect(), worker_count, pins }
    }
}

/// What a worker says about one of its drivers.
#[derive(Debug, Serialize)]
struct DriverOffer {
    name: String,
    /// Absent when the driver is not host-bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    state_dir: Option<String>,
    /// Id of that directory; absent when it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    site: String,
    /// Absent when tokens fence its calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    fence_delay: Option<String>,
    plugs_ports: bool,
    /// Absent when it is not asked before appliances are created or changed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    judges: bool,
    /// Absent when it keeps no output of instances.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    logs: bool,
    kinds: Vec<String>,
}

impl From<v1::DriverOffer> for DriverOffer {
    fn from(offer: v1::DriverOffer) -> Self {
        let v1::DriverOffer { name, state_dir, fence_delay, plugs_ports, kinds, site, judges, logs } = offer;
        let fence_delay = fence_delay.as_ref().map(view::duration);
        Self { name, state_dir, site, fence_delay, plugs_ports, judges, logs, kinds }
    }
}

impl From<&v1::Worker> for Worker {
    fn from(worker: &v1::Worker) -> Self {
        let health = view::health(worker.health());
        let phases = lower(&worker.phases);
        let w = worker.clone();
        Self {
            id: w.id,
            incarnation: w.incarnation,
            health,
            reason: w.reason,
            host: w.host,
            state_dir: w.state_dir,
            zone: w.zone,
            weight: w.weight,
            drivers: w.drivers,
            offers: w.offers.into_iter().map(DriverOffer::from).collect(),
            appliances: w.appliances,
            phases,
            last_seen: time(w.last_seen),
            version: w.version,
            pid: w.pid,
            draining: w.draining,
            member: w.member,
            limited: w.limited,
            cordoned: w.cordoned,
            drained: w.drained,
            published_weight: w.published_weight,
            orders: w.orders.into_iter().map(WorkerOrder::from).collect(),
            immovable: w.drained.then_some(w.immovable),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Rebalance {
    id: String,
    cause: String,
    trace_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    trace_url: String,
    start_time: Option<String>,
    end_time: Option<String>,
    outcome: String,
    moves: u64,
    moves_done: u64,
    #[serde(rename = "move", skip_serializing_if = "Vec::is_empty")]
    each: Vec<Move>,
}

impl From<&v1::Rebalance> for Rebalance {
    fn from(rebalance: &v1::Rebalance) -> Self {
        let r = rebalance.clone();
        Self {
            id: r.id,
            cause: r.cause,
            trace_id: r.trace_id,
            trace_url: r.trace_url,
            start_time: time(r.start_time),
            end_time: time(r.end_time),
            outcome: r.outcome,
            moves: r.moves,
            moves_done: r.moves_done,
            each: r.r#move.into_iter().map(Move::from).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct AuditEvent {
    number: u64,
    time: Option<String>,
    actor: String,
    action: String,
    subject: String,
    detail: String,
}

impl From<&v1::AuditEvent> for AuditEvent {
    fn from(event: &v1::AuditEvent) -> Self {
        let v1::AuditEvent { number, time: at, actor, action, subject, detail } = event.clone();
        Self { number, time: time(at), actor, action, subject, detail }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Run {
    number: u64,
    appliance: String,
    tenant: String,
    name: String,
    generation: u64,
    worker: String,
    cause: String,
    outcome: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    start_time: Option<String>,
    end_time: Option<String>,
    steps: Vec<RunStep>,
    changes: Vec<PhaseChange>,
}

#[derive(Debug, Serialize)]
struct RunStep {
    step: String,
    outcome: String,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct PhaseChange {
    from: &'static str,
    to: &'static str,
    cause: String,
    time: Option<String>,
}

impl From<&v1::Run> for Run {
    fn from(run: &v1::Run) -> Self {
        let step = |step: &v1::RunStep| RunStep {
            step: step.step.clone(),
            outcome: step.outcome.clone(),
            seconds: step
                .took
                .as_ref()
                .and_then(|took| duration_from_wire(took).ok())
                .unwrap_or_default()
                .as_secs_f64(),
        };
        let change = |change: &v1::PhaseChange| PhaseChange {
            from: phase_name(change.from),
            to: phase_name(change.to),
            cause: change.cause.clone(),
            time: time(change.time),
        };
        Self {
            number: run.number,
            appliance: run.appliance.clone(),
            tenant: run.tenant.clone(),
            name: run.name.clone(),
            generation: run.generation,
            worker: run.worker.clone(),
            cause: run.cause.clone(),
            outcome: run.outcome.clone(),
            error: run.error.clone(),
            start_time: time(run.start_time),
            end_time: time(run.end_time),
            steps: run.steps.iter().map(step).collect(),
            changes: run.changes.iter().map(change).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Move {
    appliance: String,
    from: String,
    to: String,
    reason: String,
    state: String,
    time: Option<String>,
    rebalance: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stages: Option<MoveStages>,
}

#[derive(Debug, Serialize)]
struct MoveStages {
    began: Option<String>,
    released: Option<String>,
    granted: Option<String>,
    adopted: Option<String>,
}

impl From<v1::MoveStages> for MoveStages {
    fn from(stages: v1::MoveStages) -> Self {
        let v1::MoveStages { began, released, granted, adopted } = stages;
        Self { began: time(began), released: time(released), granted: time(granted), adopted: time(adopted) }
    }
}

impl From<v1::Move> for Move {
    fn from(m: v1::Move) -> Self {
        Self {
            stages: m.stages.map(MoveStages::from),
            appliance: m.appliance,
            from: m.from,
            to: m.to,
            reason: m.reason,
            state: m.state,
            time: time(m.time),
            rebalance: m.rebalance,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    summary: String,
    ring_position: String,
    appliance: Option<view::Appliance>,
    candidates: Vec<PlacementCandidate>,
    moves: Vec<Move>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    debug_modes: Vec<debug::Mode>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    would_have: Vec<debug::Step>,
    /// What was done last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    runs: Vec<Run>,
}

impl Explanation {
    /// With what was done last, newest first.
    pub(crate) fn with_runs(self, runs: &[v1::Run]) -> Self {
        Self { runs: runs.iter().map(Run::from).collect(), ..self }
    }
}

#[derive(Debug, Serialize)]
struct PlacementCandidate {
    worker: String,
    eligible: bool,
    reason: String,
    load: u64,
    floor: u64,
    ceiling: u64,
}

impl From<&v1::ExplainApplianceResponse> for Explanation {
    fn from(explained: &v1::ExplainApplianceResponse) -> Self {
        let e = explained.clone();
        let candidate = |c: v1::Candidate| PlacementCandidate {
            worker: c.worker,
            eligible: c.eligible,
            reason: c.reason,
            load: c.load,
            floor: c.floor,
            ceiling: c.ceiling,
        };
        Self {
            summary: e.summary,
            ring_position: e.ring_position,
            appliance: e.appliance.as_ref().map(|a| view::Appliance::full(a, view::Secrets::Hidden)),
            candidates: e.candidates.into_iter().map(candidate).collect(),
            moves: e.moves.into_iter().map(Move::from).collect(),
            debug_modes: e.debug_modes.iter().map(debug::Mode::from).collect(),
            would_have: e.would_have.iter().map(debug::Step::from).collect(),
            runs: Vec::new(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Location {
    key: String,
    position: String,
    preference: Vec<String>,
    assignment: Option<Assignment>,
}

impl From<&v1::LocateResponse> for Location {
    fn from(located: &v1::LocateResponse) -> Self {
        Self {
            key: located.key.clone(),
            position: located.position.clone(),
            preference: located.preference.clone(),
            assignment: located.assignment.as_ref().map(Assignment::from),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct RingView {
    version: u64,
    strategy: String,
    band: f64,
    spread: String,
    members: Vec<RingMember>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    points: Vec<RingPoint>,
}

#[derive(Debug, Serialize)]
struct RingMember {
    id: String,
    weight: u32,
    share: f64,
    appliances: u64,
}

#[derive(Debug, Serialize)]
struct RingPoint {
    position: String,
    member: String,
}

impl From<&v1::Ring> for RingView {
    fn from(ring: &v1::Ring) -> Self {
        let r = ring.clone();
        let member =
            |m: v1::RingMember| RingMember { id: m.id, weight: m.weight, share: m.share, appliances: m.appliances };
        Self {
            version: r.version,
            strategy: r.strategy,
            band: r.band,
            spread: r.spread,
            members: r.members.into_iter().map(member).collect(),
            points: r.points.into_iter().map(|p| RingPoint { position: p.position, member: p.member }).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct ClusterStatus {
    cluster: String,
    cluster_id: String,
    coordinator: String,
    term: u64,
    leading: bool,
    start_time: Option<String>,
    version: String,
    workers: BTreeMap<String, u64>,
    appliances: u64,
    phases: BTreeMap<String, u64>,
    assignments: BTreeMap<String, u64>,
    moves_in_flight: u64,
    violations: u64,
    waiting: String,
    store: String,
    coordination: String,
    coordination_state: &'static str,
    coordinators: Vec<Coordinator>,
    frozen: Option<Frozen>,
    paused: Option<Paused>,
    stalled_moves: u64,
    notes: Vec<String>,
    violation_kinds: BTreeMap<String, u64>,
    last_violation_time: Option<String>,
    unowned: Unowned,
    suspects: u64,
    quarantined: u64,
    store_problem: String,
    orders: Orders,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Unowned {
    appliances: u64,
    oldest: Vec<UnownedAppliance>,
}

#[derive(Debug, Serialize)]
struct UnownedAppliance {
    id: String,
    tenant: String,
    name: String,
    since: Option<String>,
    state: String,
    reason: String,
}

impl From<v1::Unowned> for Unowned {
    fn from(unowned: v1::Unowned) -> Self {
        let one = |a: v1::UnownedAppliance| UnownedAppliance {
            id: a.id,
            tenant: a.tenant,
            name: a.name,
            since: time(a.since),
            state: a.state,
            reason: a.reason,
        };
        Self { appliances: unowned.appliances, oldest: unowned.oldest.into_iter().map(one).collect() }
    }
}

#[derive(Debug, Serialize)]
struct Coordinator {
    id: String,
    address: String,
    leading: bool,
}

#[derive(Debug, Serialize)]
struct Frozen {
    reason: String,
    since: Option<String>,
    missing: Vec<String>,
    missing_count: u64,
}

impl From<v1::Frozen> for Frozen {
    fn from(f: v1::Frozen) -> Self {
        Self { reason: f.reason, since: time(f.since), missing: f.missing, missing_count: f.missing_count }
    }
}

#[derive(Debug, Serialize)]
struct Paused {
    reason: String,
    since: Option<String>,
    by: String,
    moves_only: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    aborted: String,
}

impl From<v1::Paused> for Paused {
    fn from(p: v1::Paused) -> Self {
        Self { reason: p.reason, since: time(p.since), by: p.by, moves_only: p.moves_only, aborted: p.aborted }
    }
}

/// Why the leader does not plan.
#[derive(Debug, Serialize)]
pub(crate) struct Placement {
    frozen: Option<Frozen>,
    paused: Option<Paused>,
}

impl From<v1::PlacementState> for Placement {
    fn from(state: v1::PlacementState) -> Self {
        Self { frozen: state.frozen.map(Frozen::from), paused: state.paused.map(Paused::from) }
    }
}

impl From<&v1::ClusterStatus> for ClusterStatus {
    fn from(status: &v1::ClusterStatus) -> Self {
        let s = status.clone();
        let coordinator = |c: v1::Coordinator| Coordinator { id: c.id, address: c.address, leading: c.leading };
        Self {
            coordination_state: match s.coordination_state() {
                v1::CoordinationState::Unspecified => "",
                v1::CoordinationState::Connected => "connected",
                v1::CoordinationState::InDoubt => "in_doubt",
            },
            cluster: s.identity.clone().unwrap_or_default().name,
            cluster_id: s.identity.clone().unwrap_or_default().id,
            workers: lower(&s.workers),
            phases: lower(&s.phases),
            assignments: lower(&s.assignments),
            coordinator: s.coordinator,
            term: s.term,
            leading: s.leading,
            start_time: time(s.start_time),
            version: s.version,
            appliances: s.appliances,
            moves_in_flight: s.moves_in_flight,
            violations: s.violations,
            waiting: s.waiting,
            store: s.store,
            coordination: s.coordination,
            coordinators: s.coordinators.into_iter().map(coordinator).collect(),
            frozen: s.frozen.map(Frozen::from),
            paused: s.paused.map(Paused::from),
            stalled_moves: s.stalled_moves,
            notes: s.notes,
            violation_kinds: s.violation_kinds.into_iter().collect(),
            last_violation_time: time(s.last_violation_time),
            unowned: s.unowned.map(Unowned::from).unwrap_or_default(),
            suspects: s.suspects,
            quarantined: s.quarantined,
            orders: s.orders.map(Orders::from).unwrap_or_default(),
            store_problem: s.store_problem,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Applied {
    pub(crate) kind: &'static str,
    pub(crate) tenant: String,
    pub(crate) name: String,
    pub(crate) id: String,
    /// `created`, `changed` or `unchanged`; with `--dry-run` the result it would have.
    pub(crate) outcome: &'static str,
    pub(crate) generation: u64,
    pub(crate) dry_run: bool,
}

//! Domain values as messages of the admin API; and filters, the only conversion in the other direction.

use std::collections::HashMap;
use std::sync::Arc;

use common::appliance::{FieldViolation, Name, Spec};
use common::cluster::ClusterIdentity;
use common::driver::{DriverName, PreviousOffers};
use common::kind::{self, KindSpec};
use common::selector::InvalidSelector;
use common::status::InstanceStatus;
use common::{ApplianceId, Site};
use coordinator_core::health::Health;
use coordinator_core::planner::Strategy;
use proto::admin::v1 as wire;
use proto::convert::admin::{phase_from_wire, status_to_wire};
use proto::convert::scalar::{clip, time_to_wire, unix_ms_to_wire};
use proto::convert::{offers_to_wire, spec_to_wire};
use tonic::Status;

use super::{Access, status};
use crate::catalog::{Counts, Filter, PhaseCounts, Troubles};
use crate::commands::ChangeOutcome;
use crate::record::{MemberThen, MoveRecord, MoveTimes, OrderNote, RebalanceRecord};
use crate::views::{
    AssignmentView, Candidate, CatalogEntry, ClusterView, CoordinationState, CoordinatorView, FrozenView, MAX_MISSING,
    MAX_NOTES, MoveView, OrdersView, PausedView, PinView, RebalanceView, UnownedAppliance, UnownedView,
    WorkerOrdersView, WorkerView,
};

/// Longest note about the cluster, in bytes.
const MAX_NOTE: usize = 500;

/// What stands in place of a value that the caller may not see.
const HIDDEN: &str = "<hidden>";

/// An appliance as the caller may see it: values of environment variables, which is where secrets are, only for whoever
/// could change them.
pub(super) fn appliance(entry: &CatalogEntry, access: &Access) -> wire::Appliance {
    let record = &entry.record;
    let mut spec = spec_to_wire(&record.spec);
    if !access.sees_secrets(&record.tenant)
        && let Some(wire::spec::Kind::Custom(custom)) = &mut spec.kind
    {
        custom.env.values_mut().for_each(|value| HIDDEN.clone_into(value));
    }
    let status = entry
        .status
        .as_ref()
        .map(|(status, time)| wire::Status { report_time: Some(time_to_wire(*time)), ..status_to_wire(status) });
    wire::Appliance {
        id: record.id.to_string(),
        name: record.name.to_string(),
        tenant: record.tenant.to_string(),
        driver: record.driver.as_str().to_owned(),
        placement_key: record.placement_key.clone(),
        labels: record.labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        spec: Some(spec),
        generation: record.generation.get(),
        deleting: record.deleting,
        managed_by: record.managed_by.as_ref().map(ToString::to_string).unwrap_or_default(),
        create_time: Some(time_to_wire(record.created)),
        update_time: Some(time_to_wire(record.updated)),
        status,
        assignment: Some(assignment(&entry.assignment)),
    }
}

/// Refuses a specification that was read by somebody who does not see its secrets: to store it would overwrite them.
pub(super) fn check_hidden(spec: &Spec) -> Result<(), Status> {
    let KindSpec::Custom(custom) = &spec.kind else { return Ok(()) };
    match custom.env.iter().find(|(_, value)| *value == HIDDEN) {
        None => Ok(()),
        Some((name, _)) => {
            let problem = "stands for a value that was hidden from its reader; give the value itself";
            Err(status::invalid(&[FieldViolation::new(format!("appliance.spec.custom.env[{name}]"), problem)]))
        }
    }
}

/// The id of a site as text; empty when there is none.
pub(super) fn site_id(site: Option<&Site>) -> String {
    site.and_then(Site::id).map(|id| id.to_string()).unwrap_or_default()
}

pub(super) fn assignment(view: &AssignmentView) -> wire::Assignment {
    wire::Assignment {
        state: view.state.to_owned(),
        worker: view.worker.as_ref().map(ToString::to_string).unwrap_or_default(),
        token: view.token.map(|t| t.to_string()).unwrap_or_default(),
        reason: view.reason.to_string(),
        host: view.site.as_ref().map_or("", Site::host).to_owned(),
        state_dir: view.site.as_ref().map_or("", Site::state_dir).to_owned(),
        site: site_id(view.site.as_ref()),
        hands_off: view.hands_off,
        pin: view.pin.as_deref().map(pin),
    }
}

fn pin(view: &PinView) -> wire::Pin {
    wire::Pin {
        worker: view.worker.to_string(),
        strict: view.strict,
        reason: view.note.reason.clone(),
        since: Some(time_to_wire(view.note.since)),
        by: view.note.by.clone(),
    }
}

fn worker_orders(view: &WorkerOrdersView) -> Vec<wire::WorkerOrder> {
    use wire::worker_order::What;
    let order = |what: What, weight, note: &OrderNote| wire::WorkerOrder {
        what: what.into(),
        weight,
        reason: note.reason.clone(),
        since: Some(time_to_wire(note.since)),
        by: note.by.clone(),
    };
    let WorkerOrdersView { cordon, drain, weight } = view;
    let cordon = cordon.iter().map(|note| order(What::Cordon, 0, note));
    let drain = drain.iter().map(|note| order(What::Drain, 0, note));
    cordon.chain(drain).chain(weight.iter().map(|(weight, note)| order(What::Weight, *weight, note))).collect()
}

fn orders(view: &OrdersView) -> Option<wire::Orders> {
    (view.worker_count > 0 || view.pins > 0).then(|| wire::Orders {
        workers: view
            .workers
            .iter()
            .map(|(id, orders)| wire::OrderedWorker { id: id.to_string(), orders: worker_orders(orders) })
            .collect(),
        worker_count: view.worker_count as u64,
        pins: view.pins as u64,
    })
}

pub(super) const fn outcome(outcome: ChangeOutcome) -> wire::Outcome {
    match outcome {
        ChangeOutcome::Created => wire::Outcome::Created,
        ChangeOutcome::Changed => wire::Outcome::Changed,
        ChangeOutcome::Unchanged => wire::Outcome::Unchanged,
    }
}

pub(super) fn worker(view: &WorkerView, counts: &PhaseCounts) -> wire::Worker {
    let health = match view.health {
        Health::Healthy => wire::Health::Healthy,
        Health::Suspect(_) => wire::Health::Suspect,
        Health::Dead => wire::Health::Dead,
        Health::Left => wire::Health::Left,
    };
    wire::Worker {
        id: view.id.to_string(),
        incarnation: view.incarnation.map(|i| i.to_string()).unwrap_or_default(),
        health: health.into(),
        reason: view.health.reason().to_owned(),
        host: view.host.clone(),
        zone: view.zone.clone(),
        weight: view.weight,
        drivers: view.drivers.names().map(DriverName::to_string).collect(),
        appliances: counts.total(),
        phases: counts.iter().map(|(phase, n)| (phase.name().to_owned(), n)).collect(),
        last_seen: view.last_seen.map(time_to_wire),
        version: view.version.clone(),
        pid: view.pid,
        draining: view.draining,
        member: view.member,
        limited: view.limited.clone(),
        state_dir: PreviousOffers::of(&view.drivers).state_dir,
        offers: offers_to_wire(&view.drivers),
        cordoned: view.orders.as_ref().is_some_and(|orders| orders.cordon.is_some()),
        drained: view.orders.as_ref().is_some_and(|orders| orders.drain.is_some()),
        orders: view.orders.as_deref().map(worker_orders).unwrap_or_default(),
        published_weight: view.published_weight,
        immovable: view.immovable,
    }
}

pub(super) fn frozen(view: &FrozenView) -> wire::Frozen {
    wire::Frozen {
        reason: view.reason.clone(),
        since: Some(time_to_wire(view.since)),
        missing: view.missing.iter().take(MAX_MISSING).map(ToString::to_string).collect(),
        missing_count: view.missing.len() as u64,
    }
}

pub(super) fn paused(view: &PausedView) -> wire::Paused {
    wire::Paused {
        reason: view.reason.clone(),
        since: Some(time_to_wire(view.since)),
        by: view.by.clone(),
        moves_only: view.moves_only,
        aborted: view.aborts.map(|id| id.to_string()).unwrap_or_default(),
    }
}

pub(super) fn identity(identity: &ClusterIdentity) -> wire::ClusterIdentity {
    let name = identity.name.as_ref().map(ToString::to_string).unwrap_or_default();
    wire::ClusterIdentity { id: identity.id.to_string(), name }
}

pub(super) fn cluster(view: &ClusterView, counts: &Counts, members: &[Arc<WorkerView>]) -> wire::ClusterStatus {
    let ClusterView { leader, placement, .. } = view;
    let mut workers = HashMap::new();
    for member in members {
        *workers.entry(member.health.name().to_owned()).or_default() += 1;
    }
    let coordinator = |c: &CoordinatorView| wire::Coordinator {
        id: c.id.to_string(),
        address: c.address.clone(),
        leading: c.leading,
    };
    let coordination_state = match leader.coordination_state {
        CoordinationState::Connected => wire::CoordinationState::Connected,
        CoordinationState::InDoubt => wire::CoordinationState::InDoubt,
    };
    wire::ClusterStatus {
        coordinator: leader.coordinator.to_string(),
        term: view.term.get(),
        // Standbys pass the call on.
        leading: true,
        start_time: Some(time_to_wire(leader.started)),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        workers,
        appliances: counts.phases().total(),
        phases: counts.phases().iter().map(|(phase, n)| (phase.name().to_owned(), n)).collect(),
        assignments: counts.states().iter().map(|(state, n)| ((*state).to_owned(), *n)).collect(),
        moves_in_flight: placement.moves_in_flight,
        violations: view.violations.count,
        waiting: placement.waiting.clone(),
        store: leader.store.clone(),
        coordination: leader.coordination.clone(),
        coordinators: leader.coordinators.iter().map(coordinator).collect(),
        frozen: placement.frozen.as_ref().map(frozen),
        paused: placement.paused.as_ref().map(paused),
        stalled_moves: placement.stalled_moves,
        notes: view.notes.iter().take(MAX_NOTES).map(|note| clip(note, MAX_NOTE)).collect(),
        coordination_state: coordination_state.into(),
        violation_kinds: view.violations.kinds.iter().map(|(kind, n)| ((*kind).to_owned(), *n)).collect(),
        last_violation_time: view.violations.last.map(time_to_wire),
        unowned: Some(unowned(&view.unowned)),
        suspects: view.suspects,
        quarantined: view.quarantined,
        time: None,
        store_problem: view.store_problem.as_ref().map(ToString::to_string).unwrap_or_default(),
        identity: Some(identity(&view.identity)),
        troubles: None,
        orders: orders(&placement.orders),
    }
}

pub(super) fn troubles(found: &Troubles) -> wire::Troubles {
    let status = |entry: &CatalogEntry| entry.status.as_ref().map(|(status, _)| status_to_wire(status));
    let looping = |entry: &Arc<CatalogEntry>| {
        let status = status(entry).unwrap_or_default();
        wire::CrashLoop {
            id: entry.record.id.to_string(),
            tenant: entry.record.tenant.to_string(),
            name: entry.record.name.to_string(),
            failed_boots: status.failed_boots,
            last_error: status.last_error,
            last_end: status.last_end,
        }
    };
    let hanging = |(instance, entry): &(InstanceStatus, Arc<CatalogEntry>)| wire::HangingBoot {
        id: entry.record.id.to_string(),
        tenant: entry.record.tenant.to_string(),
        name: entry.record.name.to_string(),
        instance: instance.name.clone(),
        start_time: Some(unix_ms_to_wire(instance.started_at_unix_ms)),
        last_error: status(entry).unwrap_or_default().last_error,
    };
    wire::Troubles {
        crash_loops: found.crash_loops,
        worst: found.worst.iter().map(looping).collect(),
        hanging: found.hanging,
        oldest: found.oldest.iter().map(hanging).collect(),
    }
}

fn unowned(view: &UnownedView) -> wire::Unowned {
    let one = |one: &UnownedAppliance| wire::UnownedAppliance {
        id: one.id.to_string(),
        tenant: one.tenant.to_string(),
        name: one.name.to_string(),
        since: Some(time_to_wire(one.since)),
        state: one.state.to_owned(),
        reason: one.reason.to_string(),
    };
    wire::Unowned { appliances: view.appliances, oldest: view.oldest.iter().map(one).collect() }
}

pub(super) fn candidate(candidate: Candidate) -> wire::Candidate {
    wire::Candidate {
        worker: candidate.worker.to_string(),
        eligible: candidate.eligible,
        reason: candidate.reason,
        load: candidate.load,
        floor: candidate.floor,
        ceiling: candidate.ceiling,
    }
}

pub(super) fn rebalance_record(record: &RebalanceRecord) -> wire::Rebalance {
    wire::Rebalance {
        id: record.id.to_string(),
        cause: record.cause.clone(),
        trace_id: record.trace_id.clone(),
        start_time: Some(time_to_wire(record.started)),
        end_time: record.ended.map(time_to_wire),
        outcome: record.outcome.name().to_owned(),
        moves: record.moves,
        moves_done: record.done,
        ..wire::Rebalance::default()
    }
}

/// Most moves of one rebalance that are shown.
pub(super) const MAX_MOVES: usize = 1000;

pub(super) fn rebalance(view: &RebalanceView) -> wire::Rebalance {
    let moves = view.moves.iter().take(MAX_MOVES).map(|m| move_view(m, &view.record));
    wire::Rebalance { r#move: moves.collect(), ..rebalance_record(&view.record) }
}

/// With `size` moves from number `first` on.
pub(super) fn stored_rebalance(
    record: &RebalanceRecord,
    moves: &[MoveRecord],
    first: usize,
    size: usize,
) -> wire::Rebalance {
    let moves = moves.iter().skip(first).take(size).map(move_record);
    wire::Rebalance { r#move: moves.collect(), ..rebalance_record(record) }
}

/// A member as it was when a rebalance began.
pub(super) fn member_then(member: &MemberThen) -> wire::MemberThen {
    let MemberThen { worker, weight, zone, takes, gives_up } = member;
    wire::MemberThen { id: worker.to_string(), weight: *weight, zone: zone.clone(), takes: *takes, gives_up: *gives_up }
}

/// Moves of one appliance that have not ended.
pub(super) fn moves_under_way(view: &RebalanceView, of: ApplianceId) -> impl Iterator<Item = wire::Move> {
    let moves = view.moves.iter().filter(move |m| m.appliance == of && !matches!(m.state, "done" | "dropped"));
    moves.map(|m| move_view(m, &view.record))
}

fn move_view(view: &MoveView, of: &RebalanceRecord) -> wire::Move {
    wire::Move {
        appliance: view.appliance.to_string(),
        from: view.from.as_ref().map(ToString::to_string).unwrap_or_default(),
        to: view.to.to_string(),
        reason: view.reason.clone(),
        state: view.state.to_owned(),
        time: Some(time_to_wire(view.time)),
        rebalance: of.id.to_string(),
        stages: Some(stages(&view.times)),
    }
}

pub(super) fn move_record(record: &MoveRecord) -> wire::Move {
    wire::Move {
        appliance: record.appliance.to_string(),
        from: record.from.as_ref().map(ToString::to_string).unwrap_or_default(),
        to: record.to.to_string(),
        reason: record.reason.clone(),
        state: if record.done { "done" } else { "dropped" }.to_owned(),
        time: Some(time_to_wire(record.time)),
        rebalance: record.rebalance.to_string(),
        stages: Some(stages(&record.times)),
    }
}

fn stages(times: &MoveTimes) -> wire::MoveStages {
    let MoveTimes { began, released, granted, adopted } = *times;
    wire::MoveStages {
        began: began.map(time_to_wire),
        released: released.map(time_to_wire),
        granted: granted.map(time_to_wire),
        adopted: adopted.map(time_to_wire),
    }
}

pub(super) const fn strategy(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Bounded => "bounded",
        Strategy::Ring => "ring",
    }
}

pub(super) fn position(position: u128) -> String {
    format!("{position:032x}")
}

/// Parses a filter; every invalid condition is an error, because ignoring one would return too much.
/// The conditions of a list or watch, within what the caller may see.
pub(super) fn filter(wire: Option<wire::ApplianceFilter>, access: &Access) -> Result<Filter, Status> {
    let scope = access.scope().clone();
    let Some(wire) = wire else { return Ok(Filter { scope, ..Filter::default() }) };
    let mut wrong = Vec::new();
    let mut note = |field: &str, problem: String| wrong.push(FieldViolation::new(format!("filter.{field}"), problem));
    let mut filter = Filter { labels: wire.labels.into_iter().collect(), scope, ..Filter::default() };
    if !wire.tenant.is_empty() {
        filter.tenant = Name::new(&wire.tenant).map_err(|e| note("tenant", e.to_string())).ok();
    }
    if !wire.kind.is_empty() {
        if !kind::REGISTRY.iter().any(|kind| kind.name == wire.kind) {
            note("kind", format!("`{}` is none of {}", clip(&wire.kind, 64), kind::names()));
        }
        filter.kind = Some(wire.kind);
    }
    if !wire.driver.is_empty() {
        filter.driver = wire.driver.parse::<DriverName>().map_err(|e| note("driver", e.to_string())).ok();
    }
    if !wire.worker.is_empty() {
        filter.worker = Some(wire.worker);
    }
    for phase in wire.phases {
        match phase_from_wire(phase) {
            Some(phase) if !filter.phases.contains(&phase) => filter.phases.push(phase),
            Some(_) => {}
            None => note("phases", format!("{phase} is not a phase")),
        }
    }
    if wire.name_prefix.len() > common::appliance::MAX_NAME {
        note("name_prefix", format!("is longer than any name ({} bytes)", wire.name_prefix.len()));
    }
    filter.name_prefix = wire.name_prefix;
    if !wire.selector.trim().is_empty() {
        filter.selector = wire.selector.parse().map_err(|e: InvalidSelector| note("selector", e.to_string())).ok();
    }
    if !wrong.is_empty() {
        return Err(status::invalid(&wrong));
    }
    filter.tenant.iter().try_for_each(|tenant| access.check_tenant(tenant))?;
    Ok(filter)
}

//! Between the machine's terms and those of readers, of workers and of the store.

use std::sync::Arc;
use std::time::SystemTime;

use common::mode::WouldHave;
use common::ring;
use common::session::Desired;
use common::{ApplianceId, ModeSubject, Profile, Timestamp, WorkerId};
use coordinator_core::machine::{Machine, WorkerSnapshot};
use coordinator_core::planner::{Needs, PlacementCandidate, PlannerMember, RingLimited};
use coordinator_core::table::Seed;

use crate::record::{MemberThen, Record};
use crate::views::{AssignmentView, Candidate, FrozenView, RingView, WithheldStep, WorkerOrdersView, WorkerView};

/// Names of members that a note tells, at most.
const RING_NAMES: usize = 5;

/// What the machine has to know of an appliance.
pub(super) fn seed(record: &Record) -> Seed {
    Seed {
        id: record.id,
        placement_key: record.placement_key.clone(),
        needs: Needs { driver: record.driver.clone(), kind: record.spec.kind.kind_name(), site: None },
        edition: record.edition(),
        size: size(record),
        deleting: record.deleting,
        subject: subject(record),
    }
}

/// A member as it is when a rebalance begins.
pub(super) fn member_then(member: &PlannerMember) -> MemberThen {
    let gives_up = member.draining || member.drained;
    MemberThen {
        worker: member.id.clone(),
        weight: member.weight,
        zone: member.zone.clone(),
        takes: member.connected && !member.drivers.is_empty() && !gives_up && !member.cordoned,
        gives_up,
    }
}

/// What rules of modes go by.
pub(super) fn subject(record: &Record) -> ModeSubject {
    ModeSubject { tenant: record.tenant.clone(), labels: record.labels.clone() }
}

/// About the bytes of a specification on the wire; an upper bound is not needed, only the order of magnitude.
pub(super) fn size(record: &Record) -> usize {
    serde_json::to_vec(&record.spec).map_or(0, |text| text.len())
}

/// What an appliance shall be, by its record.
pub(super) fn desired(record: &Record) -> Desired {
    Desired {
        name: record.name.clone(),
        tenant: record.tenant.clone(),
        driver: record.driver.clone(),
        edition: record.edition(),
        revision: record.revision,
        deleting: record.deleting,
        spec: record.spec.clone(),
    }
}

pub(super) fn worker_view(view: WorkerSnapshot, orders: Option<Arc<WorkerOrdersView>>, now: SystemTime) -> WorkerView {
    let WorkerSnapshot {
        id,
        incarnation,
        health,
        profile,
        appliances: _,
        silent,
        draining,
        weight: ordered_weight,
        immovable,
        member,
        limited,
    } = view;
    let Profile { weight, zone, host, drivers, version, pid, .. } = profile.unwrap_or_default();
    WorkerView {
        id,
        incarnation: Some(incarnation),
        health,
        host,
        zone,
        weight: ordered_weight.unwrap_or(weight),
        published_weight: weight,
        drivers,
        version,
        pid,
        last_seen: now.checked_sub(silent),
        draining,
        orders,
        immovable,
        member,
        limited,
    }
}

pub(super) fn candidate(candidate: PlacementCandidate) -> Candidate {
    let eligible = candidate.refusal().is_none();
    let PlacementCandidate { member, standing, is_owner: _, load, floor, ceiling } = candidate;
    Candidate { worker: member, eligible, reason: standing.to_string(), load, floor, ceiling }
}

/// Who holds an appliance; `None` when the machine does not know it.
pub(super) fn assignment(machine: &Machine, id: ApplianceId) -> Option<AssignmentView> {
    let table = machine.table();
    let slot = table.slot(id)?;
    let row = table.get(slot)?;
    let reason = machine.reason(slot);
    // What is left of it changes with time; `explain` shows that.
    let reason = match machine.fence_wait(Timestamp::default(), slot) {
        Some(wait) => format!("{reason}; {wait}").into(),
        None => reason,
    };
    let acting = row.state.grant().filter(|_| !row.state.wants_owner());
    Some(AssignmentView {
        state: row.state.name(),
        worker: acting.map(|g| g.worker.clone()),
        token: acting.map(|g| g.token),
        reason,
        // One that the grant under way would bind it to counts only once its worker has taken it.
        site: row.needs.site.clone().filter(|_| row.binding.is_none()),
        quarantined: machine.is_quarantined(id),
        hands_off: row.mode.hands_off,
        pin: None,
    })
}

/// What an owner would have done, by the clock of the wall.
pub(super) fn withheld(WouldHave { step, reason, ago, times }: WouldHave, now: SystemTime) -> WithheldStep {
    WithheldStep { step, reason, last: now.checked_sub(ago).unwrap_or(now), times }
}

/// The ring and the policy in force.
pub(super) fn ring_view(machine: &Machine) -> RingView {
    let (planner, config) = (machine.planner(), &machine.config().planner);
    RingView {
        version: planner.ring_version(),
        ring: Arc::new(planner.ring().clone()),
        strategy: config.strategy,
        band: config.band,
        spread: config.spread,
    }
}

/// What was done to keep the ring within its bounds, one sentence each.
pub(super) fn ring_notes(machine: &Machine) -> Vec<String> {
    let RingLimited { ignored, divisor, left_out } = machine.planner().ring_limited();
    let names = |all: &[WorkerId]| {
        let first: Vec<_> = all.iter().take(RING_NAMES).map(ToString::to_string).collect();
        let more = all.len().saturating_sub(first.len());
        first.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
    };
    let mut notes = Vec::new();
    if !ignored.is_empty() {
        let most = ring::MAX_RING_MEMBERS;
        notes.push(format!("the group has more than {most} members; these are ignored: {}", names(ignored)));
    }
    if *divisor > 1 {
        let most = ring::MAX_RING_WEIGHT;
        notes.push(format!(
            "the members' weights add up to more than {most}; the ring is made with each divided by {divisor}, fair shares \
             follow the weights as they are"
        ));
    }
    if !left_out.is_empty() {
        let most = ring::MAX_RING_WEIGHT;
        notes.push(format!(
            "the members' weights add up to more than {most}; the heaviest are not on the ring, though python-tooz has \
             them on its own: {}",
            names(left_out)
        ));
    }
    notes
}

/// That appliances are left alone because calls of former owners may still take effect.
pub(super) fn fence_note(machine: &Machine, now: Timestamp) -> Option<String> {
    let waiting = machine.fence_waits(now);
    (waiting > 0).then(|| {
        let which = if waiting == 1 { "1 appliance is".to_owned() } else { format!("{waiting} appliances are") };
        format!("{which} not acted on yet, because calls of former owners may still take effect; `rugctl explain` says how long")
    })
}

/// What the brake holds, if it does.
pub(super) fn frozen(machine: &Machine, now: Timestamp) -> Option<FrozenView> {
    machine.frozen(now).map(|frozen| FrozenView {
        reason: match frozen.missing.len() {
            0 => "most workers vanished within a short time and are back; moves go on in a moment".to_owned(),
            missing => format!(
                "{missing} of {} workers vanished within a short time; nothing moves before they are back or placement is \
                 resumed",
                missing + frozen.live
            ),
        },
        since: SystemTime::now().checked_sub(frozen.since).unwrap_or_else(SystemTime::now),
        missing: frozen.missing,
    })
}

//! Between the machine's terms and those of the API and of workers.

use std::time::SystemTime;

use common::Profile;
use common::session::Desired;
use coordinator_core::machine::WorkerSnapshot;
use coordinator_core::planner::PlacementCandidate;

use crate::record::Record;
use crate::views::{Candidate, WorkerView};

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

pub(super) fn worker_view(view: WorkerSnapshot, now: SystemTime) -> WorkerView {
    let WorkerSnapshot { id, incarnation, health, profile, appliances: _, silent, draining, member } = view;
    let Profile { weight, zone, host, drivers, version, pid, .. } = profile.unwrap_or_default();
    WorkerView {
        id,
        incarnation: Some(incarnation),
        health,
        host,
        zone,
        weight,
        drivers,
        version,
        pid,
        last_seen: now.checked_sub(silent),
        draining,
        member,
    }
}

pub(super) fn candidate(candidate: PlacementCandidate) -> Candidate {
    let PlacementCandidate { member, refusal, is_owner, load, floor, ceiling } = candidate;
    let reason = match refusal {
        Some(refusal) => refusal.to_string(),
        None if is_owner => String::new(),
        None => "another member was preferred".to_owned(),
    };
    Candidate { worker: member, eligible: refusal.is_none(), reason, load, floor, ceiling }
}

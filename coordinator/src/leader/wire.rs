//! Between the machine's terms and those of the wire and the API.

use std::sync::Arc;
use std::time::SystemTime;

use common::appliance::Driver;
use common::{ApplianceId, Profile};
use coordinator_core::audit::Claim;
use coordinator_core::handoff::Handed;
use coordinator_core::machine::{self, Answers, Down, Hello, Said, Step, Tell};
use coordinator_core::outbox::MAX_ENTRIES;
use coordinator_core::planner;
use proto::convert::{DesiredParts, Envelope, down, up};
use proto::worker::v1::CoordinatorMessage;
use runtime::telemetry;
use tracing::Span;

use crate::api::{Candidate, WorkerView};
use crate::record::Record;

/// The envelope as the machine knows it; `None` without an incarnation, which only a `Hello` can be.
pub(super) fn envelope(envelope: &Envelope) -> Option<machine::Envelope> {
    let incarnation = envelope.incarnation?;
    Some(machine::Envelope { term: envelope.term, incarnation, stream: envelope.stream })
}

pub(super) fn hello(envelope: &Envelope, hello: up::Hello) -> Hello {
    let up::Hello { worker, profile, held, released, gone, highest_term, more: _ } = hello;
    Hello {
        worker,
        incarnation: envelope.incarnation,
        stream: envelope.stream,
        profile: Profile { weight: profile.weight.clamp(1, common::ring::MAX_WEIGHT), ..profile },
        held: held
            .into_iter()
            .map(|h| machine::Held { appliance: h.appliance, token: h.token, edition: h.edition })
            .collect(),
        released: released.into_iter().map(said).collect(),
        gone,
        highest_term,
    }
}

fn said(release: up::Release) -> Said {
    let up::Release { appliance, token, progress, hold } = release;
    Said { appliance, token, handed: Handed { progress, hold } }
}

pub(super) fn answers(ack: up::Ack) -> Answers {
    Answers {
        applied: ack.applied,
        granted: ack.granted,
        declined: ack.declined.into_iter().map(|d| (d.appliance, d.token)).collect(),
        released: ack.released.into_iter().map(said).collect(),
        gone: ack.gone,
        begun: ack.begun.into_iter().map(step).collect(),
        ended: ack.ended.into_iter().map(step).collect(),
    }
}

pub(super) const fn claim(holdings: up::Holdings) -> Claim {
    Claim { applied: holdings.applied, held: holdings.digest }
}

const fn step(step: proto::convert::Step) -> Step {
    Step { appliance: step.appliance, token: step.token, number: step.number }
}

/// A message of the machine as those of the wire: a long welcome takes several.
pub(super) fn down(
    envelope: &Envelope,
    down: Down,
    span: Option<&Span>,
    record: impl Fn(ApplianceId) -> Option<Arc<Record>>,
) -> Vec<CoordinatorMessage> {
    let one = |said| vec![down::down_to_wire(envelope, said)];
    match down {
        Down::Welcome { keep, lease, .. } => {
            let parts = keep.chunks(MAX_ENTRIES).count().max(1);
            (0..parts)
                .map(|n| {
                    let from = n * MAX_ENTRIES;
                    let keep = keep[from..keep.len().min(from + MAX_ENTRIES)].to_vec();
                    let welcome = down::Welcome { keep, more: n + 1 < parts, lease };
                    down::down_to_wire(envelope, down::Down::Welcome(welcome))
                })
                .collect()
        }
        Down::BeatAck(number) => one(down::Down::BeatAck(number)),
        Down::Drained => one(down::Down::Drained),
        Down::Confirm(released) => one(down::Down::Confirm(down::Confirm { released, ..down::Confirm::default() })),
        Down::Clear(steps) => {
            let wire = |s: Step| proto::convert::Step { appliance: s.appliance, token: s.token, number: s.number };
            let begun = steps.into_iter().map(wire).collect();
            one(down::Down::Confirm(down::Confirm { begun, ..down::Confirm::default() }))
        }
        Down::Delta { base, target, rebalance: _, tell } => {
            let traceparent = span.map(telemetry::traceparent).unwrap_or_default();
            let mut delta = down::Delta { base, target, traceparent, ..down::Delta::default() };
            for tell in tell {
                add(&mut delta, tell, &record);
            }
            one(down::Down::Delta(delta))
        }
    }
}

fn add(delta: &mut down::Delta, tell: Tell, record: &impl Fn(ApplianceId) -> Option<Arc<Record>>) {
    match tell {
        Tell::Prepare(appliance) => {
            if let Some(record) = record(appliance) {
                delta.prepare.push((appliance, record.generation));
            }
        }
        // What has no record is gone; the machine hears of it in its own time.
        Tell::Grant { appliance, token, handed, suspect } => {
            if let Some(record) = record(appliance) {
                let Handed { progress, hold } = handed;
                delta.grant.push(down::Grant { appliance, token, desired: desired(&record), progress, hold, suspect });
            }
        }
        Tell::Release(appliance, token) => delta.release.push((appliance, token)),
        Tell::Update(appliance, token) => {
            if let Some(record) = record(appliance) {
                delta.update.push(down::Update { appliance, token, desired: desired(&record) });
            }
        }
        Tell::Check(appliance, token, number) => delta.check.push(down::Check { appliance, token, number }),
    }
}

fn desired(record: &Record) -> DesiredParts {
    DesiredParts {
        name: record.name.clone(),
        tenant: record.tenant.clone(),
        driver: record.driver.clone(),
        edition: record.edition(),
        revision: record.revision,
        deleting: record.deleting,
        spec: record.spec.clone(),
    }
}

pub(super) fn worker_view(view: machine::WorkerView, now: SystemTime) -> WorkerView {
    let machine::WorkerView { id, incarnation, health, profile, appliances: _, silent, draining, member } = view;
    let Profile { weight, zone, host, state_dir, drivers, version, pid, .. } = profile.unwrap_or_default();
    WorkerView {
        id,
        incarnation: Some(incarnation),
        health,
        host,
        state_dir,
        zone,
        weight,
        drivers: drivers.iter().map(Driver::to_string).collect(),
        version,
        pid,
        last_seen: now.checked_sub(silent),
        draining,
        member,
    }
}

pub(super) fn candidate(candidate: planner::Candidate) -> Candidate {
    let planner::Candidate { member, refusal, is_owner, load, floor, ceiling } = candidate;
    let reason = match refusal {
        Some(refusal) => refusal.to_string(),
        None if is_owner => String::new(),
        None => "another member was preferred".to_owned(),
    };
    Candidate { worker: member, eligible: refusal.is_none(), reason, load, floor, ceiling }
}

//! Messages from the leader to a worker.

use std::sync::Arc;

use common::appliance::MAX_TEXT;
use common::session::{
    Carryover, Confirm, Delta, DeltaEntry, Desired, Envelope, GrantRef, MAX_ENTRIES_PER_MESSAGE, Refused,
    RefusedReason, ToWorker, Welcome,
};

use super::scalar::clip;
use super::worker::{
    At, Reader, WireError, desired_to_wire, envelope_to_wire, grants_to_wire, id_to_wire, progress_to_wire,
    steps_to_wire, token_to_wire, wait_to_wire,
};
use crate::worker::v1 as wire;

/// Longest W3C `traceparent` of the version in use.
const MAX_TRACEPARENT: usize = 64;
/// Longest explanation of why an entry cannot be read: a message of declined grants carries up to 1,000 of them.
const MAX_PROBLEM: usize = 256;

/// A message of the leader as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromCoordinator {
    /// Which conversation it names.
    pub envelope: Envelope,
    /// What it says.
    pub message: ToWorker,
    /// It is a part of a `Welcome`, and another part follows.
    pub more: bool,
    /// Entries of a delta of which only appliance and token can be read.
    pub unreadable: Vec<Unreadable>,
    /// W3C trace context of a delta; empty when there is none.
    pub traceparent: String,
}

/// A grant or an update that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The grant it is about.
    pub grant: GrantRef,
    /// What is wrong with it.
    pub problem: String,
}

/// Reads a message of the leader. A grant or update that cannot be used goes to [`FromCoordinator::unreadable`], because one odd
/// appliance must not keep a worker from hearing of all others.
///
/// # Errors
/// The first field that cannot be used, where that leaves open what the message is about: envelopes, appliances, tokens.
pub fn down_from_wire(wire: wire::CoordinatorMessage) -> Result<FromCoordinator, WireError> {
    use wire::coordinator_message::Body;
    let body =
        wire.body.ok_or_else(|| Reader { message: "CoordinatorMessage" }.error("body", "is missing or unknown"))?;
    let reader = Reader {
        message: match &body {
            Body::Welcome(_) => "Welcome",
            Body::BeatAck(_) => "BeatAck",
            Body::Delta(_) => "Delta",
            Body::Confirm(_) => "Confirm",
            Body::Refused(_) => "Refused",
            Body::Drained(_) => "Drained",
        },
    };
    let envelope = reader.envelope(wire.envelope)?;
    let more = matches!(&body, Body::Welcome(welcome) if welcome.more);
    let (mut unreadable, mut traceparent) = (Vec::new(), String::new());
    let message = match body {
        Body::Welcome(welcome) => {
            reader.bounded(welcome.keep.len())?;
            ToWorker::Welcome(Welcome {
                keep: reader.grants("keep", welcome.keep)?,
                lease: reader.wait("lease".to_owned(), welcome.lease)?,
            })
        }
        Body::BeatAck(ack) => ToWorker::BeatAck(ack.number),
        Body::Delta(mut delta) => {
            traceparent = reader.text("traceparent", std::mem::take(&mut delta.traceparent), MAX_TRACEPARENT)?;
            ToWorker::Delta(read_delta(reader, delta, &mut unreadable)?)
        }
        Body::Confirm(confirm) => {
            reader.bounded(confirm.released.len() + confirm.begun.len())?;
            ToWorker::Confirm(Confirm {
                released: reader.grants("released", confirm.released)?,
                begin: reader.steps("begun", confirm.begun)?,
            })
        }
        Body::Refused(refused) => ToWorker::Refused(Refused {
            reason: reason_from_wire(refused.reason()),
            detail: clip(&refused.detail, MAX_TEXT),
            retry_after: refused
                .retry_after
                .map(|wait| reader.wait("retry_after".to_owned(), Some(wait)))
                .transpose()?,
        }),
        Body::Drained(wire::Drained {}) => ToWorker::Drained,
    };
    Ok(FromCoordinator { envelope, message, more, unreadable, traceparent })
}

fn read_delta(reader: Reader, wire: wire::Delta, unreadable: &mut Vec<Unreadable>) -> Result<Delta, WireError> {
    let count = wire.grant.len() + wire.release.len() + wire.update.len() + wire.check.len();
    reader.bounded(count)?;
    let mut skip = |grant: GrantRef, error: WireError| {
        unreadable.push(Unreadable { grant, problem: clip(&error.to_string(), MAX_PROBLEM) });
    };
    let mut entries = Vec::with_capacity(count);
    for (i, g) in wire.grant.into_iter().enumerate() {
        let at = At("grant", i);
        let grant = GrantRef::new(reader.appliance(&at, &g.appliance)?, reader.token(&at, g.token)?);
        match read_grant(reader, &at, grant, g) {
            Ok(read) => entries.push(read),
            Err(error) => skip(grant, error),
        }
    }
    entries.extend(reader.grants("release", wire.release)?.into_iter().map(DeltaEntry::Release));
    for (i, u) in wire.update.into_iter().enumerate() {
        let at = At("update", i);
        let (appliance, token) = (reader.appliance(&at, &u.appliance)?, reader.token(&at, u.token)?);
        match reader.desired(&at, u.desired) {
            Ok(desired) => entries.push(DeltaEntry::Update { appliance, token, desired: Arc::new(desired) }),
            Err(error) => skip(GrantRef::new(appliance, token), error),
        }
    }
    for (i, c) in wire.check.into_iter().enumerate() {
        let at = At("check", i);
        entries.push(DeltaEntry::Check {
            appliance: reader.appliance(&at, &c.appliance)?,
            token: reader.token(&at, c.token)?,
            number: c.number,
        });
    }
    Ok(Delta { base: wire.base, target: wire.target, rebalance: None, entries })
}

fn read_grant(reader: Reader, at: &At<'_>, grant: GrantRef, wire: wire::Grant) -> Result<DeltaEntry, WireError> {
    Ok(DeltaEntry::Grant {
        appliance: grant.appliance,
        token: grant.token,
        desired: Arc::new(reader.desired(at, wire.desired)?),
        carryover: Carryover {
            progress: reader.progress(at, wire.progress)?,
            fence_delay: reader.wait(at.field("hold"), wire.hold)?,
        },
        suspect: wire.suspect,
    })
}

/// Writes a message of the leader, a long `Welcome` in several. `traceparent` goes with a delta. The caller keeps deltas
/// and confirmations within [`MAX_ENTRIES_PER_MESSAGE`].
#[must_use]
pub fn down_to_wire(envelope: &Envelope, message: ToWorker, traceparent: &str) -> Vec<wire::CoordinatorMessage> {
    use wire::coordinator_message::Body;
    let body = match message {
        ToWorker::Welcome(welcome) => return welcome_to_wire(envelope, welcome),
        ToWorker::BeatAck(number) => Body::BeatAck(wire::BeatAck { number }),
        ToWorker::Delta(delta) => Body::Delta(delta_to_wire(delta, traceparent)),
        ToWorker::Confirm(confirm) => Body::Confirm(wire::Confirm {
            released: grants_to_wire(confirm.released),
            begun: steps_to_wire(confirm.begin),
        }),
        ToWorker::Refused(refused) => return vec![refused_to_wire(envelope, refused)],
        ToWorker::Drained => Body::Drained(wire::Drained {}),
    };
    vec![wire::CoordinatorMessage { envelope: Some(envelope_to_wire(envelope)), body: Some(body) }]
}

fn welcome_to_wire(envelope: &Envelope, welcome: Welcome) -> Vec<wire::CoordinatorMessage> {
    let Welcome { keep, lease } = welcome;
    let count = keep.len().div_ceil(MAX_ENTRIES_PER_MESSAGE).max(1);
    let mut keep = keep.into_iter();
    let part = |n| {
        let welcome = wire::Welcome {
            keep: grants_to_wire(keep.by_ref().take(MAX_ENTRIES_PER_MESSAGE).collect()),
            more: n < count,
            lease: wait_to_wire(lease),
        };
        let body = wire::coordinator_message::Body::Welcome(welcome);
        wire::CoordinatorMessage { envelope: Some(envelope_to_wire(envelope)), body: Some(body) }
    };
    (1..=count).map(part).collect()
}

/// Writes the message that ends a stream.
#[must_use]
pub fn refused_to_wire(envelope: &Envelope, refused: Refused) -> wire::CoordinatorMessage {
    let body = wire::coordinator_message::Body::Refused(wire::Refused {
        reason: reason_to_wire(refused.reason).into(),
        detail: refused.detail,
        retry_after: refused.retry_after.map(super::scalar::duration_to_wire),
    });
    wire::CoordinatorMessage { envelope: Some(envelope_to_wire(envelope)), body: Some(body) }
}

fn delta_to_wire(delta: Delta, traceparent: &str) -> wire::Delta {
    let Delta { base, target, rebalance: _, entries } = delta;
    let mut wire = wire::Delta { base, target, traceparent: traceparent.to_owned(), ..wire::Delta::default() };
    let desired = |desired: Arc<Desired>| Some(desired_to_wire(&desired));
    for entry in entries {
        match entry {
            DeltaEntry::Grant { appliance, token, desired: wanted, carryover, suspect } => {
                wire.grant.push(wire::Grant {
                    appliance: id_to_wire(appliance),
                    token: Some(token_to_wire(token)),
                    desired: desired(wanted),
                    progress: progress_to_wire(carryover.progress),
                    hold: wait_to_wire(carryover.fence_delay),
                    suspect,
                })
            }
            DeltaEntry::Release(grant) => wire.release.extend(grants_to_wire(vec![grant])),
            DeltaEntry::Update { appliance, token, desired: wanted } => wire.update.push(wire::Update {
                appliance: id_to_wire(appliance),
                token: Some(token_to_wire(token)),
                desired: desired(wanted),
            }),
            DeltaEntry::Check { appliance, token, number } => wire.check.push(wire::Check {
                appliance: id_to_wire(appliance),
                token: Some(token_to_wire(token)),
                number,
            }),
        }
    }
    wire
}

fn reason_from_wire(reason: wire::refused::Reason) -> RefusedReason {
    match reason {
        wire::refused::Reason::Unspecified => RefusedReason::Unknown,
        wire::refused::Reason::IncarnationOver => RefusedReason::IncarnationOver,
        wire::refused::Reason::NameTaken => RefusedReason::NameTaken,
        wire::refused::Reason::NotLeading => RefusedReason::NotLeading,
        wire::refused::Reason::Malformed => RefusedReason::Malformed,
        wire::refused::Reason::Superseded => RefusedReason::Superseded,
        wire::refused::Reason::Stopping => RefusedReason::Stopping,
        wire::refused::Reason::HoldingsDiffer => RefusedReason::AssignmentsDiffer,
        wire::refused::Reason::NotProven => RefusedReason::NotProven,
    }
}

fn reason_to_wire(reason: RefusedReason) -> wire::refused::Reason {
    match reason {
        RefusedReason::Unknown => wire::refused::Reason::Unspecified,
        RefusedReason::IncarnationOver => wire::refused::Reason::IncarnationOver,
        RefusedReason::NameTaken => wire::refused::Reason::NameTaken,
        RefusedReason::NotLeading => wire::refused::Reason::NotLeading,
        RefusedReason::Malformed => wire::refused::Reason::Malformed,
        RefusedReason::Superseded => wire::refused::Reason::Superseded,
        RefusedReason::Stopping => wire::refused::Reason::Stopping,
        RefusedReason::AssignmentsDiffer => wire::refused::Reason::HoldingsDiffer,
        RefusedReason::NotProven => wire::refused::Reason::NotProven,
    }
}

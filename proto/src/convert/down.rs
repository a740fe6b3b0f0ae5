//! Messages from the leader to a worker.

use std::sync::Arc;

use common::appliance::MAX_TEXT;
use common::session::{
    Carryover, Confirm, Delta, DeltaEntry, Desired, Envelope, GrantRef, MAX_ENTRIES_PER_MESSAGE, Refused,
    RefusedReason, ToWorker, Welcome,
};
use common::{ApplianceId, TraceContext};

use common::inquiry::Inquiry;
use common::telemetry::{LogOrder, SamplingOrder, TelemetryOrder};
use common::trace::MAX_TRACEPARENT;

use super::inquiry::inquiry_from_wire;
use super::scalar::{clip, duration_to_wire};
use super::worker::{
    At, Reader, WireError, desired_to_wire, envelope_to_wire, grants_to_wire, id_to_wire, mode_from_wire, mode_to_wire,
    progress_to_wire, steps_to_wire, token_to_wire, wait_to_wire,
};
use crate::worker::v1 as wire;

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
    /// Calls that entries of a delta follow from.
    pub causes: Vec<(ApplianceId, TraceContext)>,
    /// What the worker shall log and sample from now on; as before when absent.
    pub telemetry: Option<TelemetryOrder>,
    /// Something that the worker is asked. The message is an empty confirmation then.
    pub inquiry: Option<Inquiry>,
    /// Ids of hand-offs whose spans the worker is to export although it did not keep them.
    pub keep_hand_offs: Vec<u64>,
    /// Batch of runs that the leader has stored.
    pub runs_stored: Option<u64>,
}

/// Most ids of hand-offs in one message.
pub const MAX_HAND_OFFS: usize = 1_000;

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
            Body::Inquiry(_) => "Inquiry",
        },
    };
    let envelope = reader.envelope(wire.envelope)?;
    let more = matches!(&body, Body::Welcome(welcome) if welcome.more);
    let telemetry = wire.telemetry.and_then(|order| read_order(reader, order));
    reader.bounded(wire.keep_hand_offs.len())?;
    let (keep_hand_offs, runs_stored) = (wire.keep_hand_offs, Some(wire.runs_stored).filter(|batch| *batch > 0));
    let (mut unreadable, mut traceparent, mut causes) = (Vec::new(), String::new(), Vec::new());
    let mut inquiry = None;
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
            causes = read_causes(reader, std::mem::take(&mut delta.cause))?;
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
        Body::Inquiry(asked) => {
            inquiry = Some(inquiry_from_wire(reader, asked));
            ToWorker::Confirm(Confirm::default())
        }
    };
    Ok(FromCoordinator {
        envelope,
        message,
        more,
        unreadable,
        traceparent,
        causes,
        telemetry,
        inquiry,
        keep_hand_offs,
        runs_stored,
    })
}

fn read_causes(reader: Reader, causes: Vec<wire::Cause>) -> Result<Vec<(ApplianceId, TraceContext)>, WireError> {
    reader.bounded(causes.len())?;
    let read = |(i, cause): (usize, wire::Cause)| {
        let wire::Cause { appliance, traceparent, tracestate, baggage } = cause;
        let context = TraceContext { traceparent, tracestate, baggage };
        Ok((reader.appliance(&At("cause", i), &appliance)?, context.bounded()))
    };
    causes.into_iter().enumerate().map(read).collect()
}

/// An order that cannot be read is none: it is about logs, and no reason to end a session.
fn read_order(reader: Reader, order: wire::TelemetryOrder) -> Option<TelemetryOrder> {
    let wire::TelemetryOrder { log_filter, log_for, sample_ratio, sample_slow, sample_for } = order;
    let time = |name: &str, wait: Option<prost_types::Duration>| match wait {
        None => Some(None),
        Some(wait) => reader.wait(name.to_owned(), Some(wait)).ok().map(Some),
    };
    let ratio = match sample_ratio {
        None => None,
        Some(ratio) => Some(ratio.try_into().ok()?),
    };
    let (slow, sample_for) = (time("sample_slow", sample_slow)?, time("sample_for", sample_for)?);
    let log_for = time("log_for", log_for)?;
    Some(TelemetryOrder {
        log: (!log_filter.is_empty()).then(|| LogOrder { filter: clip(&log_filter, MAX_TEXT), lasts: log_for }),
        sampling: (ratio.is_some() || slow.is_some()).then_some(SamplingOrder { ratio, slow, lasts: sample_for }),
    })
}

/// Adds the calls that entries of a delta follow from to the message that carries it.
pub fn add_causes(
    message: &mut wire::CoordinatorMessage,
    causes: impl IntoIterator<Item = (ApplianceId, TraceContext)>,
) {
    let Some(wire::coordinator_message::Body::Delta(delta)) = &mut message.body else { return };
    delta.cause.extend(causes.into_iter().map(|(appliance, context)| {
        let TraceContext { traceparent, tracestate, baggage } = context;
        wire::Cause { appliance: id_to_wire(appliance), traceparent, tracestate, baggage }
    }));
}

/// A message that only says what the worker shall log and sample.
#[must_use]
pub fn order_to_wire(envelope: &Envelope, order: TelemetryOrder) -> wire::CoordinatorMessage {
    let (log, sampling) = (order.log.unwrap_or_default(), order.sampling.unwrap_or_default());
    let telemetry = wire::TelemetryOrder {
        log_filter: log.filter,
        log_for: log.lasts.map(duration_to_wire),
        sample_ratio: sampling.ratio.map(f64::from),
        sample_slow: sampling.slow.map(duration_to_wire),
        sample_for: sampling.lasts.map(duration_to_wire),
    };
    wire::CoordinatorMessage { telemetry: Some(telemetry), ..beside_nothing(envelope) }
}

/// A message that only says whose spans are to be exported; at most [`MAX_HAND_OFFS`].
#[must_use]
pub fn kept_to_wire(envelope: &Envelope, hand_offs: Vec<u64>) -> wire::CoordinatorMessage {
    wire::CoordinatorMessage { keep_hand_offs: hand_offs, ..beside_nothing(envelope) }
}

/// A message that only says that a batch of runs is stored.
#[must_use]
pub fn runs_stored_to_wire(envelope: &Envelope, batch: u64) -> wire::CoordinatorMessage {
    wire::CoordinatorMessage { runs_stored: batch, ..beside_nothing(envelope) }
}

/// For workers of earlier versions it is a confirmation of nothing.
fn beside_nothing(envelope: &Envelope) -> wire::CoordinatorMessage {
    with_body(envelope, wire::coordinator_message::Body::Confirm(wire::Confirm::default()))
}

fn with_body(envelope: &Envelope, body: wire::coordinator_message::Body) -> wire::CoordinatorMessage {
    wire::CoordinatorMessage {
        envelope: Some(envelope_to_wire(envelope)),
        body: Some(body),
        ..wire::CoordinatorMessage::default()
    }
}

fn read_delta(reader: Reader, wire: wire::Delta, unreadable: &mut Vec<Unreadable>) -> Result<Delta, WireError> {
    let count = wire.grant.len() + wire.release.len() + wire.update.len() + wire.check.len() + wire.mode.len();
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
    for (i, m) in wire.mode.into_iter().enumerate() {
        let at = At("mode", i);
        entries.push(DeltaEntry::Mode {
            appliance: reader.appliance(&at, &m.appliance)?,
            token: reader.token(&at, m.token)?,
            mode: mode_from_wire(m.mode),
        });
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
        mode: mode_from_wire(wire.mode),
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
    vec![with_body(envelope, body)]
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
        with_body(envelope, body)
    };
    (1..=count).map(part).collect()
}

/// Writes the message that ends a stream.
#[must_use]
pub fn refused_to_wire(envelope: &Envelope, refused: Refused) -> wire::CoordinatorMessage {
    let body = wire::coordinator_message::Body::Refused(wire::Refused {
        reason: reason_to_wire(refused.reason).into(),
        detail: refused.detail,
        retry_after: refused.retry_after.map(duration_to_wire),
    });
    with_body(envelope, body)
}

fn delta_to_wire(delta: Delta, traceparent: &str) -> wire::Delta {
    let Delta { base, target, rebalance: _, entries } = delta;
    let mut wire = wire::Delta { base, target, traceparent: traceparent.to_owned(), ..wire::Delta::default() };
    let desired = |desired: Arc<Desired>| Some(desired_to_wire(&desired));
    for entry in entries {
        match entry {
            DeltaEntry::Grant { appliance, token, desired: wanted, carryover, suspect, mode } => {
                wire.grant.push(wire::Grant {
                    appliance: id_to_wire(appliance),
                    token: Some(token_to_wire(token)),
                    desired: desired(wanted),
                    progress: progress_to_wire(carryover.progress),
                    hold: wait_to_wire(carryover.fence_delay),
                    suspect,
                    mode: mode_to_wire(mode),
                })
            }
            DeltaEntry::Mode { appliance, token, mode } => wire.mode.push(wire::ModeChange {
                appliance: id_to_wire(appliance),
                token: Some(token_to_wire(token)),
                mode: mode_to_wire(mode),
            }),
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

//! Messages from the leader to a worker.

use std::time::Duration;

use common::appliance::MAX_TEXT;
use common::status::Progress;
use common::{ApplianceId, Generation, Token};

use super::scalar::clip;
use super::worker::{
    At, DesiredParts, Envelope, Reader, Step, WireError, desired_to_wire, envelope_to_wire, granted_to_wire,
    id_to_wire, progress_to_wire, steps_to_wire, token_to_wire, wait_to_wire,
};
use crate::worker::v1 as wire;

/// Longest W3C `traceparent` of the version in use.
const MAX_TRACEPARENT: usize = 64;
/// Longest explanation of why an entry cannot be read: a message of declined grants carries up to 1,000 of them.
const MAX_PROBLEM: usize = 256;

/// What the leader says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Down {
    /// Answer to `Hello`.
    Welcome(Welcome),
    /// Answer to a heartbeat, with its number.
    BeatAck(u64),
    /// A change of what the worker holds.
    Delta(Delta),
    /// What the worker need not say again, and what it may begin.
    Confirm(Confirm),
    /// The stream ends.
    Refused(Refused),
    /// To a worker that is about to stop: nothing more will be taken from it now.
    Drained,
}

/// What a worker holds from now on. It stops acting on everything else at once and gives it back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Welcome {
    /// Held grants that stand.
    pub keep: Vec<(ApplianceId, Token)>,
    /// Another `Welcome` with further entries follows.
    pub more: bool,
    /// How long the lease lasts after a heartbeat that was answered.
    pub lease: Duration,
}

/// Answers to what a worker said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confirm {
    /// Releases and removals that the store has.
    pub released: Vec<(ApplianceId, Token)>,
    /// Announced steps that may begin.
    pub begun: Vec<Step>,
}

/// A change of what a worker holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Version it applies to.
    pub base: u64,
    /// Version it leads to.
    pub target: u64,
    /// Appliances that may come soon, with their generation.
    pub prepare: Vec<(ApplianceId, Generation)>,
    /// New grants.
    pub grant: Vec<Grant>,
    /// Grants to give back.
    pub release: Vec<(ApplianceId, Token)>,
    /// Appliances that shall be something else now.
    pub update: Vec<Update>,
    /// Appliances to look at now.
    pub check: Vec<Check>,
    /// Grants and updates of which only appliance and token can be read, and why. Never written.
    pub unreadable: Vec<(ApplianceId, Token, String)>,
    /// W3C trace context; empty when there is none.
    pub traceparent: String,
}

/// A new grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The appliance.
    pub appliance: ApplianceId,
    /// Under which token.
    pub token: Token,
    /// What it shall be.
    pub desired: DesiredParts,
    /// What the last owner handed in.
    pub progress: Progress,
    /// Remaining time before calls that no token fences may start.
    pub hold: Duration,
    /// Its steps are to be announced: a former owner died while it held this.
    pub suspect: bool,
}

/// A held appliance shall be something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The appliance.
    pub appliance: ApplianceId,
    /// The token it is held under.
    pub token: Token,
    /// What it shall be.
    pub desired: DesiredParts,
}

/// A held appliance is to be probed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// The appliance.
    pub appliance: ApplianceId,
    /// The token it is held under.
    pub token: Token,
    /// Number the answering report names.
    pub number: u64,
}

/// Why a stream ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What kind of reason.
    pub reason: RefusedReason,
    /// In words.
    pub detail: String,
    /// When another try makes sense.
    pub retry_after: Option<Duration>,
}

/// What kind of reason a stream ends for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedReason {
    /// One this version does not know.
    Unknown,
    /// The incarnation's lease is over: come back without one.
    IncarnationOver,
    /// Another process with this name holds a live lease.
    NameTaken,
    /// This coordinator does not lead (any more).
    NotLeading,
    /// Something in a message cannot be understood.
    Malformed,
    /// A newer stream of the same worker took over.
    Superseded,
    /// The coordinator is stopping.
    Stopping,
    /// What the worker holds differs from the leader's table: it shall say `Hello` again.
    HoldingsDiffer,
}

/// Reads a message of the leader. A grant or update that cannot be used goes to [`Delta::unreadable`], because one odd
/// appliance must not keep a worker from hearing of all others.
///
/// # Errors
/// The first field that cannot be used, where that leaves open what the message is about: envelopes, appliances, tokens.
pub fn down_from_wire(wire: wire::CoordinatorMessage) -> Result<(Envelope, Down), WireError> {
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
    let down = match body {
        Body::Welcome(welcome) => {
            reader.bounded(welcome.keep.len())?;
            Down::Welcome(Welcome {
                keep: reader.granted("keep", welcome.keep)?,
                more: welcome.more,
                lease: reader.wait("lease".to_owned(), welcome.lease)?,
            })
        }
        Body::BeatAck(ack) => Down::BeatAck(ack.number),
        Body::Delta(delta) => Down::Delta(read_delta(reader, delta)?),
        Body::Confirm(confirm) => {
            reader.bounded(confirm.released.len() + confirm.begun.len())?;
            Down::Confirm(Confirm {
                released: reader.granted("released", confirm.released)?,
                begun: reader.steps("begun", confirm.begun)?,
            })
        }
        Body::Refused(refused) => Down::Refused(Refused {
            reason: reason_from_wire(refused.reason()),
            detail: clip(&refused.detail, MAX_TEXT),
            retry_after: refused
                .retry_after
                .map(|wait| reader.wait("retry_after".to_owned(), Some(wait)))
                .transpose()?,
        }),
        Body::Drained(wire::Drained {}) => Down::Drained,
    };
    Ok((envelope, down))
}

fn read_delta(reader: Reader, wire: wire::Delta) -> Result<Delta, WireError> {
    let entries = wire.prepare.len() + wire.grant.len() + wire.release.len() + wire.update.len() + wire.check.len();
    reader.bounded(entries)?;
    let prepare = wire
        .prepare
        .into_iter()
        .enumerate()
        .map(|(i, p)| Ok((reader.appliance(&At("prepare", i), &p.appliance)?, Generation::new(p.generation))));
    let mut unreadable = Vec::new();
    let mut grant = Vec::with_capacity(wire.grant.len());
    for (i, g) in wire.grant.into_iter().enumerate() {
        let at = At("grant", i);
        let (appliance, token) = (reader.appliance(&at, &g.appliance)?, reader.token(&at, g.token)?);
        match read_grant(reader, &at, appliance, token, g) {
            Ok(read) => grant.push(read),
            Err(error) => unreadable.push((appliance, token, clip(&error.to_string(), MAX_PROBLEM))),
        }
    }
    let mut update = Vec::with_capacity(wire.update.len());
    for (i, u) in wire.update.into_iter().enumerate() {
        let at = At("update", i);
        let (appliance, token) = (reader.appliance(&at, &u.appliance)?, reader.token(&at, u.token)?);
        match reader.desired(&at, u.desired) {
            Ok(desired) => update.push(Update { appliance, token, desired }),
            Err(error) => unreadable.push((appliance, token, clip(&error.to_string(), MAX_PROBLEM))),
        }
    }
    let check = wire.check.into_iter().enumerate().map(|(i, c)| {
        let at = At("check", i);
        Ok(Check {
            appliance: reader.appliance(&at, &c.appliance)?,
            token: reader.token(&at, c.token)?,
            number: c.number,
        })
    });
    Ok(Delta {
        base: wire.base,
        target: wire.target,
        prepare: prepare.collect::<Result<_, _>>()?,
        grant,
        release: reader.granted("release", wire.release)?,
        update,
        check: check.collect::<Result<_, _>>()?,
        unreadable,
        traceparent: reader.text("traceparent", wire.traceparent, MAX_TRACEPARENT)?,
    })
}

fn read_grant(
    reader: Reader,
    at: &At<'_>,
    appliance: ApplianceId,
    token: Token,
    wire: wire::Grant,
) -> Result<Grant, WireError> {
    Ok(Grant {
        appliance,
        token,
        desired: reader.desired(at, wire.desired)?,
        progress: reader.progress(at, wire.progress)?,
        hold: reader.wait(at.field("hold"), wire.hold)?,
        suspect: wire.suspect,
    })
}

/// Writes a message of the leader. The caller keeps each message within
/// [`MAX_ENTRIES_PER_MESSAGE`](super::MAX_ENTRIES_PER_MESSAGE).
#[must_use]
pub fn down_to_wire(envelope: &Envelope, down: Down) -> wire::CoordinatorMessage {
    use wire::coordinator_message::Body;
    let body = match down {
        Down::Welcome(welcome) => Body::Welcome(wire::Welcome {
            keep: granted_to_wire(welcome.keep),
            more: welcome.more,
            lease: wait_to_wire(welcome.lease),
        }),
        Down::BeatAck(number) => Body::BeatAck(wire::BeatAck { number }),
        Down::Delta(delta) => Body::Delta(delta_to_wire(delta)),
        Down::Confirm(confirm) => Body::Confirm(wire::Confirm {
            released: granted_to_wire(confirm.released),
            begun: steps_to_wire(confirm.begun),
        }),
        Down::Refused(refused) => Body::Refused(wire::Refused {
            reason: reason_to_wire(refused.reason).into(),
            detail: refused.detail,
            retry_after: refused.retry_after.map(super::scalar::duration_to_wire),
        }),
        Down::Drained => Body::Drained(wire::Drained {}),
    };
    wire::CoordinatorMessage { envelope: Some(envelope_to_wire(envelope)), body: Some(body) }
}

fn delta_to_wire(delta: Delta) -> wire::Delta {
    let prepare = |(appliance, generation): (ApplianceId, Generation)| wire::Prepare {
        appliance: id_to_wire(appliance),
        generation: generation.get(),
    };
    let grant = |g: Grant| wire::Grant {
        appliance: id_to_wire(g.appliance),
        token: Some(token_to_wire(g.token)),
        desired: Some(desired_to_wire(&g.desired)),
        progress: progress_to_wire(g.progress),
        hold: wait_to_wire(g.hold),
        suspect: g.suspect,
    };
    let update = |u: Update| wire::Update {
        appliance: id_to_wire(u.appliance),
        token: Some(token_to_wire(u.token)),
        desired: Some(desired_to_wire(&u.desired)),
    };
    let check = |c: Check| wire::Check {
        appliance: id_to_wire(c.appliance),
        token: Some(token_to_wire(c.token)),
        number: c.number,
    };
    wire::Delta {
        base: delta.base,
        target: delta.target,
        prepare: delta.prepare.into_iter().map(prepare).collect(),
        grant: delta.grant.into_iter().map(grant).collect(),
        release: granted_to_wire(delta.release),
        update: delta.update.into_iter().map(update).collect(),
        check: delta.check.into_iter().map(check).collect(),
        traceparent: delta.traceparent,
    }
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
        wire::refused::Reason::HoldingsDiffer => RefusedReason::HoldingsDiffer,
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
        RefusedReason::HoldingsDiffer => wire::refused::Reason::HoldingsDiffer,
    }
}

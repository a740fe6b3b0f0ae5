//! Messages from a worker to the leader.

use std::time::Duration;

use common::appliance::MAX_TEXT;
use common::status::{Progress, Status};
use common::{ApplianceId, Digest, Edition, Generation, Profile, Term, Token, WorkerId};

use super::admin::{status_from_wire, status_to_wire};
use super::scalar::clip;
use super::worker::{
    At, Envelope, Reader, Step, WireError, envelope_to_wire, granted_to_wire, id_to_wire, profile_to_wire,
    progress_to_wire, steps_to_wire, token_to_wire, wait_to_wire,
};
use crate::admin::v1 as wire_admin;
use crate::worker::v1 as wire;

/// What a worker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Up {
    /// Who it is and what it holds.
    Hello(Box<Hello>),
    /// Heartbeat of an embedded lease, with its number.
    Beat(u64),
    /// What became of what it was told.
    Ack(Ack),
    /// States that changed, and what it holds.
    Report(Vec<Report>, Option<Holdings>),
    /// It is about to stop, and is to be given nothing new; what it holds is asked back.
    Drain {
        /// It gives everything back by itself, to have it kept for its name.
        hand_back: bool,
    },
    /// Its gate is shut for good and it goes.
    Leave,
}

/// First message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its name.
    pub worker: WorkerId,
    /// What it publishes.
    pub profile: Profile,
    /// Everything it holds, or a part when `more`.
    pub held: Vec<Held>,
    /// Releases that were not confirmed yet.
    pub released: Vec<Release>,
    /// Highest term it ever saw.
    pub highest_term: Term,
    /// Another `Hello` with further entries follows.
    pub more: bool,
    /// Removals that were not confirmed yet.
    pub gone: Vec<(ApplianceId, Token)>,
}

/// A grant a worker holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The appliance.
    pub appliance: ApplianceId,
    /// Under which token.
    pub token: Token,
    /// Edition it was last told.
    pub edition: Edition,
    /// A release was asked for and has not ended.
    pub releasing: bool,
}

/// A grant given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The appliance.
    pub appliance: ApplianceId,
    /// The token it was held under.
    pub token: Token,
    /// What the next owner needs.
    pub progress: Progress,
    /// Hold that is left.
    pub hold: Duration,
}

/// A grant that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declined {
    /// The appliance.
    pub appliance: ApplianceId,
    /// The token it was offered under.
    pub token: Token,
    /// Why.
    pub reason: String,
}

/// What became of what the leader asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// Version of the holdings after the newest delta applied.
    pub applied: u64,
    /// Grants taken.
    pub granted: Vec<(ApplianceId, Token)>,
    /// Grants not taken.
    pub declined: Vec<Declined>,
    /// Grants given back.
    pub released: Vec<Release>,
    /// Grants whose appliance was removed to the last trace.
    pub gone: Vec<(ApplianceId, Token)>,
    /// Steps of suspects that are to begin.
    pub begun: Vec<Step>,
    /// Announced steps that have ended, or will not be begun.
    pub ended: Vec<Step>,
}

/// What a worker holds, to be compared with the leader's table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Version of the holdings after the newest delta applied.
    pub applied: u64,
    /// Of everything the leader granted or kept.
    pub digest: Digest,
}

/// State of one appliance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The appliance.
    pub appliance: ApplianceId,
    /// The token it is held under.
    pub token: Token,
    /// What its owner sees.
    pub status: Status,
    /// Newest check this answers; 0 when none.
    pub checked: u64,
}

/// Reads a message of a worker. Statuses that cannot be used are left out and logged: the next one of the same appliance
/// may be better, and the others of the message are as good as ever.
///
/// # Errors
/// The first field of anything else that cannot be used.
pub fn up_from_wire(wire: wire::WorkerMessage) -> Result<(Envelope, Up), WireError> {
    use wire::worker_message::Body;
    let body = wire.body.ok_or_else(|| Reader { message: "WorkerMessage" }.error("body", "is missing or unknown"))?;
    let reader = Reader {
        message: match &body {
            Body::Hello(_) => "Hello",
            Body::Beat(_) => "Beat",
            Body::Ack(_) => "Ack",
            Body::Report(_) => "Report",
            Body::Drain(_) => "Drain",
            Body::Leave(_) => "Leave",
        },
    };
    let envelope = reader.envelope(wire.envelope)?;
    let up = match body {
        Body::Hello(hello) => Up::Hello(Box::new(read_hello(reader, hello)?)),
        Body::Beat(beat) => Up::Beat(beat.number),
        Body::Ack(ack) => Up::Ack(read_ack(reader, ack)?),
        Body::Report(report) => {
            reader.bounded(report.appliances.len())?;
            let holdings = report.holdings.map(|h| read_holdings(reader, &h)).transpose()?;
            Up::Report(read_reports(reader, report.appliances)?, holdings)
        }
        Body::Drain(drain) => Up::Drain { hand_back: drain.hand_back },
        Body::Leave(_) => Up::Leave,
    };
    Ok((envelope, up))
}

fn read_hello(reader: Reader, wire: wire::Hello) -> Result<Hello, WireError> {
    reader.bounded(wire.held.len() + wire.released.len() + wire.gone.len())?;
    let held = wire.held.into_iter().enumerate().map(|(i, h)| {
        let at = At("held", i);
        Ok(Held {
            appliance: reader.appliance(&at, &h.appliance)?,
            token: reader.token(&at, h.token)?,
            edition: Edition::new(Generation::new(h.generation), Term::new(h.written_term)),
            releasing: h.releasing,
        })
    });
    Ok(Hello {
        worker: WorkerId::new(&wire.worker).map_err(|e| reader.error("worker", e))?,
        profile: reader.profile(wire.profile)?,
        held: held.collect::<Result<_, _>>()?,
        released: read_releases(reader, wire.released)?,
        highest_term: Term::new(wire.highest_term),
        more: wire.more,
        gone: reader.granted("gone", wire.gone)?,
    })
}

fn read_releases(reader: Reader, wire: Vec<wire::Release>) -> Result<Vec<Release>, WireError> {
    let one = |(i, r): (usize, wire::Release)| {
        let at = At("released", i);
        Ok(Release {
            appliance: reader.appliance(&at, &r.appliance)?,
            token: reader.token(&at, r.token)?,
            progress: reader.progress(&at, r.progress)?,
            hold: reader.wait(at.field("hold"), r.hold)?,
        })
    };
    wire.into_iter().enumerate().map(one).collect()
}

fn read_ack(reader: Reader, wire: wire::Ack) -> Result<Ack, WireError> {
    let answers = wire.granted.len() + wire.declined.len() + wire.released.len() + wire.gone.len();
    reader.bounded(answers + wire.begun.len() + wire.ended.len())?;
    let declined = wire.declined.into_iter().enumerate().map(|(i, d)| {
        let at = At("declined", i);
        Ok(Declined {
            appliance: reader.appliance(&at, &d.appliance)?,
            token: reader.token(&at, d.token)?,
            reason: clip(&d.reason, MAX_TEXT),
        })
    });
    Ok(Ack {
        applied: wire.applied,
        granted: reader.granted("granted", wire.granted)?,
        declined: declined.collect::<Result<_, _>>()?,
        released: read_releases(reader, wire.released)?,
        gone: reader.granted("gone", wire.gone)?,
        begun: reader.steps("begun", wire.begun)?,
        ended: reader.steps("ended", wire.ended)?,
    })
}

fn read_reports(reader: Reader, wire: Vec<wire::ApplianceReport>) -> Result<Vec<Report>, WireError> {
    let mut reports = Vec::with_capacity(wire.len());
    let (mut dropped, mut first) = (0_u32, None);
    for (i, r) in wire.into_iter().enumerate() {
        let at = At("appliances", i);
        let (appliance, token) = (reader.appliance(&at, &r.appliance)?, reader.token(&at, r.token)?);
        match read_status(reader, &at, r.status) {
            Ok(status) => reports.push(Report { appliance, token, status, checked: r.checked }),
            Err(error) => {
                dropped += 1;
                first.get_or_insert((appliance, error));
            }
        }
    }
    if let Some((appliance, error)) = first {
        tracing::warn!(dropped, %appliance, "statuses that cannot be read were dropped, the first because of: {error}");
    }
    Ok(reports)
}

fn read_holdings(reader: Reader, wire: &wire::Holdings) -> Result<Holdings, WireError> {
    let bytes = <[u8; 16]>::try_from(&wire.digest[..])
        .map_err(|_| reader.error("holdings.digest", format!("has {} bytes, not 16", wire.digest.len())))?;
    let digest = Digest { count: wire.count, sum: u128::from_be_bytes(bytes) };
    Ok(Holdings { applied: wire.applied, digest })
}

fn read_status(reader: Reader, at: &At<'_>, wire: Option<wire_admin::Status>) -> Result<Status, WireError> {
    let status = wire.ok_or_else(|| reader.error(at.field("status"), "is missing"))?;
    status_from_wire(status).map_err(|v| reader.error(at.field(&format!("status.{}", v.field)), v.description))
}

/// Writes a message of a worker. The caller keeps each message within
/// [`MAX_ENTRIES_PER_MESSAGE`](super::MAX_ENTRIES_PER_MESSAGE).
#[must_use]
pub fn up_to_wire(envelope: &Envelope, up: Up) -> wire::WorkerMessage {
    use wire::worker_message::Body;
    let body = match up {
        Up::Hello(hello) => Body::Hello(wire::Hello {
            worker: hello.worker.to_string(),
            profile: Some(profile_to_wire(hello.profile)),
            held: hello.held.into_iter().map(held_to_wire).collect(),
            released: hello.released.into_iter().map(release_to_wire).collect(),
            highest_term: hello.highest_term.get(),
            more: hello.more,
            gone: granted_to_wire(hello.gone),
        }),
        Up::Beat(number) => Body::Beat(wire::Beat { number }),
        Up::Ack(ack) => Body::Ack(wire::Ack {
            applied: ack.applied,
            granted: granted_to_wire(ack.granted),
            declined: ack.declined.into_iter().map(declined_to_wire).collect(),
            released: ack.released.into_iter().map(release_to_wire).collect(),
            gone: granted_to_wire(ack.gone),
            begun: steps_to_wire(ack.begun),
            ended: steps_to_wire(ack.ended),
        }),
        Up::Report(reports, holdings) => Body::Report(wire::Report {
            appliances: reports.into_iter().map(report_to_wire).collect(),
            holdings: holdings.map(holdings_to_wire),
        }),
        Up::Drain { hand_back } => Body::Drain(wire::Drain { hand_back }),
        Up::Leave => Body::Leave(wire::Leave {}),
    };
    wire::WorkerMessage { envelope: Some(envelope_to_wire(envelope)), body: Some(body) }
}

fn held_to_wire(held: Held) -> wire::Held {
    wire::Held {
        appliance: id_to_wire(held.appliance),
        token: Some(token_to_wire(held.token)),
        generation: held.edition.generation.get(),
        releasing: held.releasing,
        written_term: held.edition.term.get(),
    }
}

fn release_to_wire(release: Release) -> wire::Release {
    wire::Release {
        appliance: id_to_wire(release.appliance),
        token: Some(token_to_wire(release.token)),
        progress: progress_to_wire(release.progress),
        hold: wait_to_wire(release.hold),
    }
}

fn declined_to_wire(declined: Declined) -> wire::Declined {
    wire::Declined {
        appliance: id_to_wire(declined.appliance),
        token: Some(token_to_wire(declined.token)),
        reason: declined.reason,
    }
}

fn holdings_to_wire(holdings: Holdings) -> wire::Holdings {
    let Holdings { applied, digest } = holdings;
    wire::Holdings { applied, count: digest.count, digest: digest.sum.to_be_bytes().to_vec() }
}

fn report_to_wire(report: Report) -> wire::ApplianceReport {
    wire::ApplianceReport {
        appliance: id_to_wire(report.appliance),
        token: Some(token_to_wire(report.token)),
        status: Some(status_to_wire(&report.status)),
        checked: report.checked,
    }
}

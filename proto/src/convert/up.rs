//! Messages from a worker to the leader.

use common::appliance::MAX_TEXT;
use common::inquiry::Answer;
use common::mode::{MAX_WOULD_HAVE, Quiet, WouldHave};
use common::run::RunBatch;
use common::secret::{LifeSecret, SECRET_BYTES};
use common::session::{
    Ack, Carryover, Declined, Envelope, Hello, MAX_ENTRIES_PER_MESSAGE, OwnedDigest, OwnedGrant, Release, Report,
    StatusReport, ToCoordinator,
};
use common::status::Status;
use common::text::escaped;
use common::{ApplianceId, Digest, Edition, Generation, ModeEdition, Term, WorkerId};

use super::admin::{status_from_wire, status_to_wire};
use super::inquiry::answer_from_wire;
use super::run::runs_from_wire;
use super::scalar::{clip, duration_from_wire};
use super::worker::{
    At, Reader, WireError, envelope_to_wire, grants_to_wire, id_to_wire, mode_from_wire, mode_to_wire, profile_to_wire,
    progress_to_wire, steps_to_wire, token_to_wire, wait_to_wire,
};
use crate::admin::v1 as wire_admin;
use crate::worker::v1 as wire;

/// Longest text of what a worker would have done, in bytes.
const MAX_WOULD_HAVE_TEXT: usize = 512;

/// A message of a worker as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromWorker {
    /// Which conversation it names.
    pub envelope: Envelope,
    /// What it says.
    pub message: ToCoordinator,
    /// It is a part of a `Hello`, and another part follows.
    pub more: bool,
    /// The answer to an inquiry. The message is an empty report then.
    pub answer: Option<Answer>,
    /// Runs that are over, which go with a `Report`.
    pub runs: Option<RunBatch>,
    /// Statuses of a `Report` that cannot be used and were left out; `None` when there are none.
    pub unusable: Option<UnusableStatuses>,
}

/// Statuses that do not parse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnusableStatuses {
    /// How many there are in the message.
    pub count: usize,
    /// The appliance of the first one.
    pub appliance: ApplianceId,
    /// What is wrong with it.
    pub error: WireError,
}

/// Reads a message of a worker. Statuses that cannot be used are left out: the next one of the same appliance
/// may be better, and the others of the message are as good as ever.
///
/// # Errors
/// The first field of anything else that cannot be used.
pub fn up_from_wire(wire: wire::WorkerMessage) -> Result<FromWorker, WireError> {
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
            Body::Answer(_) => "Answer",
        },
    };
    let envelope = reader.envelope(wire.envelope)?;
    let more = matches!(&body, Body::Hello(hello) if hello.more);
    let (mut unusable, mut answer, mut runs) = (None, None, None);
    let message = match body {
        Body::Hello(hello) => ToCoordinator::Hello(Box::new(read_hello(reader, hello)?)),
        Body::Beat(beat) => ToCoordinator::Beat(beat.number),
        Body::Ack(ack) => ToCoordinator::Ack(read_ack(reader, ack)?),
        Body::Report(report) => {
            reader.bounded(report.appliances.len())?;
            let owned = report.holdings.map(|h| read_digest(reader, &h)).transpose()?;
            let statuses;
            (statuses, unusable) = read_statuses(reader, report.appliances)?;
            runs = runs_from_wire(report.run_batch, report.runs);
            ToCoordinator::Report(Report { statuses, owned })
        }
        Body::Drain(drain) => ToCoordinator::Drain { hand_back: drain.hand_back },
        Body::Leave(_) => ToCoordinator::Leave,
        Body::Answer(said) => {
            answer = Some(answer_from_wire(said));
            ToCoordinator::Report(Report::default())
        }
    };
    Ok(FromWorker { envelope, message, more, answer, runs, unusable })
}

fn read_hello(reader: Reader, wire: wire::Hello) -> Result<Hello, WireError> {
    reader.bounded(wire.held.len() + wire.released.len() + wire.gone.len())?;
    let owned = wire.held.into_iter().enumerate().map(|(i, h)| {
        let at = At("held", i);
        Ok(OwnedGrant {
            appliance: reader.appliance(&at, &h.appliance)?,
            token: reader.token(&at, h.token)?,
            edition: Edition::new(Generation::new(h.generation), Term::new(h.written_term)),
            mode: mode_from_wire(h.mode),
        })
    });
    Ok(Hello {
        worker: WorkerId::new(&wire.worker).map_err(|e| reader.error("worker", e))?,
        profile: reader.profile(wire.profile)?,
        owned: owned.collect::<Result<_, _>>()?,
        released: read_releases(reader, wire.released)?,
        highest_term: Term::new(wire.highest_term),
        removed: reader.grants("gone", wire.gone)?,
        secret: read_secret(reader, &wire.secret)?,
        knows_modes: wire.knows_modes,
    })
}

fn read_secret(reader: Reader, bytes: &[u8]) -> Result<Option<LifeSecret>, WireError> {
    match bytes {
        [] => Ok(None),
        bytes => <[u8; SECRET_BYTES]>::try_from(bytes)
            .map(|bytes| Some(LifeSecret::new(bytes)))
            .map_err(|_| reader.error("secret", format!("has {} bytes, not {SECRET_BYTES}", bytes.len()))),
    }
}

fn read_releases(reader: Reader, wire: Vec<wire::Release>) -> Result<Vec<Release>, WireError> {
    let one = |(i, r): (usize, wire::Release)| {
        let at = At("released", i);
        Ok(Release {
            appliance: reader.appliance(&at, &r.appliance)?,
            token: reader.token(&at, r.token)?,
            carryover: Carryover {
                progress: reader.progress(&at, r.progress)?,
                fence_delay: reader.wait(at.field("hold"), r.hold)?,
            },
        })
    };
    wire.into_iter().enumerate().map(one).collect()
}

fn read_ack(reader: Reader, wire: wire::Ack) -> Result<Ack, WireError> {
    let answers = wire.granted.len() + wire.declined.len() + wire.released.len() + wire.gone.len();
    reader.bounded(answers + wire.begun.len() + wire.ended.len() + wire.quiet.len())?;
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
        granted: reader.grants("granted", wire.granted)?,
        declined: declined.collect::<Result<_, _>>()?,
        released: read_releases(reader, wire.released)?,
        removed: reader.grants("gone", wire.gone)?,
        begun: reader.steps("begun", wire.begun)?,
        ended: reader.steps("ended", wire.ended)?,
        quiet: read_quiet(reader, wire.quiet)?,
    })
}

fn read_quiet(reader: Reader, wire: Vec<wire::Quiet>) -> Result<Vec<Quiet>, WireError> {
    let one = |(i, quiet): (usize, wire::Quiet)| {
        let at = At("quiet", i);
        Ok(Quiet {
            appliance: reader.appliance(&at, &quiet.appliance)?,
            token: reader.token(&at, quiet.token)?,
            edition: ModeEdition::new(Term::new(quiet.mode_term), quiet.mode_sequence),
            fence_delay: reader.wait(at.field("hold"), quiet.hold)?,
        })
    };
    wire.into_iter().enumerate().map(one).collect()
}

/// For people: what cannot be read of a time is none, and what is too much is left out.
fn read_would_have(wire: Vec<wire::WouldHave>) -> Vec<WouldHave> {
    let one = |entry: wire::WouldHave| WouldHave {
        step: clip(&escaped(&entry.step), MAX_WOULD_HAVE_TEXT),
        reason: clip(&escaped(&entry.reason), MAX_WOULD_HAVE_TEXT),
        ago: entry.ago.and_then(|ago| duration_from_wire(&ago).ok()).unwrap_or_default(),
        times: entry.times,
    };
    wire.into_iter().take(MAX_WOULD_HAVE).map(one).collect()
}

fn read_statuses(
    reader: Reader,
    wire: Vec<wire::ApplianceReport>,
) -> Result<(Vec<StatusReport>, Option<UnusableStatuses>), WireError> {
    let mut reports = Vec::with_capacity(wire.len());
    let mut unusable: Option<UnusableStatuses> = None;
    for (i, r) in wire.into_iter().enumerate() {
        let at = At("appliances", i);
        let (appliance, token) = (reader.appliance(&at, &r.appliance)?, reader.token(&at, r.token)?);
        match read_status(reader, &at, r.status) {
            Ok(status) => {
                let would_have = read_would_have(r.would_have);
                let (checked, adopted) = (r.checked, r.adopted);
                reports.push(StatusReport { appliance, token, status, checked, adopted, would_have })
            }
            Err(error) => unusable.get_or_insert(UnusableStatuses { count: 0, appliance, error }).count += 1,
        }
    }
    Ok((reports, unusable))
}

fn read_digest(reader: Reader, wire: &wire::Holdings) -> Result<OwnedDigest, WireError> {
    let bytes = <[u8; 16]>::try_from(&wire.digest[..])
        .map_err(|_| reader.error("holdings.digest", format!("has {} bytes, not 16", wire.digest.len())))?;
    let digest = Digest { count: wire.count, sum: u128::from_be_bytes(bytes) };
    Ok(OwnedDigest { applied: wire.applied, digest })
}

fn read_status(reader: Reader, at: &At<'_>, wire: Option<wire_admin::Status>) -> Result<Status, WireError> {
    let status = wire.ok_or_else(|| reader.error(at.field("status"), "is missing"))?;
    status_from_wire(status).map_err(|v| reader.error(at.field(&format!("status.{}", v.field)), v.description))
}

/// Writes a message of a worker that fits into one of the wire: [`hello_to_wire`] splits those that may not.
/// The caller keeps acks and reports within [`MAX_ENTRIES_PER_MESSAGE`].
#[must_use]
pub fn up_to_wire(envelope: &Envelope, message: ToCoordinator) -> wire::WorkerMessage {
    use wire::worker_message::Body;
    let body = match message {
        ToCoordinator::Hello(hello) => Body::Hello(hello_part(*hello, false)),
        ToCoordinator::Beat(number) => Body::Beat(wire::Beat { number }),
        ToCoordinator::Ack(ack) => Body::Ack(wire::Ack {
            applied: ack.applied,
            granted: grants_to_wire(ack.granted),
            declined: ack.declined.into_iter().map(declined_to_wire).collect(),
            released: ack.released.into_iter().map(release_to_wire).collect(),
            gone: grants_to_wire(ack.removed),
            begun: steps_to_wire(ack.begun),
            ended: steps_to_wire(ack.ended),
            quiet: ack.quiet.into_iter().map(quiet_to_wire).collect(),
        }),
        ToCoordinator::Report(report) => Body::Report(wire::Report {
            appliances: report.statuses.into_iter().map(status_report_to_wire).collect(),
            holdings: report.owned.map(digest_to_wire),
            ..wire::Report::default()
        }),
        ToCoordinator::Drain { hand_back } => Body::Drain(wire::Drain { hand_back }),
        ToCoordinator::Leave => Body::Leave(wire::Leave {}),
    };
    wire::WorkerMessage { envelope: Some(envelope_to_wire(envelope)), body: Some(body) }
}

/// Writes a `Hello` in as many messages as its entries need.
#[must_use]
pub fn hello_to_wire(envelope: &Envelope, hello: Hello) -> Vec<wire::WorkerMessage> {
    let Hello { worker, profile, owned, released, removed, highest_term, secret, knows_modes } = hello;
    let (mut owned, mut released, mut removed) = (owned.into_iter(), released.into_iter(), removed.into_iter());
    let mut messages = Vec::new();
    loop {
        let mut room = MAX_ENTRIES_PER_MESSAGE;
        let part = Hello {
            worker: worker.clone(),
            profile: profile.clone(),
            owned: take_some(&mut owned, &mut room),
            released: take_some(&mut released, &mut room),
            removed: take_some(&mut removed, &mut room),
            highest_term,
            secret: secret.clone(),
            knows_modes,
        };
        let more = owned.len() + released.len() + removed.len() > 0;
        let body = wire::worker_message::Body::Hello(hello_part(part, more));
        messages.push(wire::WorkerMessage { envelope: Some(envelope_to_wire(envelope)), body: Some(body) });
        if !more {
            return messages;
        }
    }
}

fn take_some<T>(items: &mut impl Iterator<Item = T>, room: &mut usize) -> Vec<T> {
    let taken: Vec<T> = items.take(*room).collect();
    *room -= taken.len();
    taken
}

/// Adds a further part to a `Hello`. `false` when the part is of another one.
#[must_use]
pub fn extend_hello(whole: &mut Hello, part: Hello) -> bool {
    if whole.worker != part.worker || whole.secret != part.secret {
        return false;
    }
    whole.owned.extend(part.owned);
    whole.released.extend(part.released);
    whole.removed.extend(part.removed);
    true
}

fn hello_part(part: Hello, more: bool) -> wire::Hello {
    wire::Hello {
        worker: part.worker.to_string(),
        profile: Some(profile_to_wire(part.profile)),
        held: part.owned.into_iter().map(owned_to_wire).collect(),
        released: part.released.into_iter().map(release_to_wire).collect(),
        highest_term: part.highest_term.get(),
        more,
        gone: grants_to_wire(part.removed),
        secret: part.secret.map(|secret| secret.as_bytes().to_vec()).unwrap_or_default(),
        knows_modes: part.knows_modes,
    }
}

fn owned_to_wire(owned: OwnedGrant) -> wire::Held {
    wire::Held {
        appliance: id_to_wire(owned.appliance),
        token: Some(token_to_wire(owned.token)),
        generation: owned.edition.generation.get(),
        written_term: owned.edition.term.get(),
        mode: mode_to_wire(owned.mode),
    }
}

fn release_to_wire(release: Release) -> wire::Release {
    let Carryover { progress, fence_delay } = release.carryover;
    wire::Release {
        appliance: id_to_wire(release.appliance),
        token: Some(token_to_wire(release.token)),
        progress: progress_to_wire(progress),
        hold: wait_to_wire(fence_delay),
    }
}

fn quiet_to_wire(quiet: Quiet) -> wire::Quiet {
    wire::Quiet {
        appliance: id_to_wire(quiet.appliance),
        token: Some(token_to_wire(quiet.token)),
        mode_term: quiet.edition.term.get(),
        mode_sequence: quiet.edition.sequence,
        hold: wait_to_wire(quiet.fence_delay),
    }
}

fn would_have_to_wire(entry: WouldHave) -> wire::WouldHave {
    let WouldHave { step, reason, ago, times } = entry;
    wire::WouldHave { step, reason, ago: wait_to_wire(ago), times }
}

fn declined_to_wire(declined: Declined) -> wire::Declined {
    wire::Declined {
        appliance: id_to_wire(declined.appliance),
        token: Some(token_to_wire(declined.token)),
        reason: declined.reason,
    }
}

fn digest_to_wire(owned: OwnedDigest) -> wire::Holdings {
    let OwnedDigest { applied, digest } = owned;
    wire::Holdings { applied, count: digest.count, digest: digest.sum.to_be_bytes().to_vec() }
}

fn status_report_to_wire(report: StatusReport) -> wire::ApplianceReport {
    wire::ApplianceReport {
        appliance: id_to_wire(report.appliance),
        token: Some(token_to_wire(report.token)),
        status: Some(status_to_wire(&report.status)),
        checked: report.checked,
        adopted: report.adopted,
        would_have: report.would_have.into_iter().map(would_have_to_wire).collect(),
    }
}

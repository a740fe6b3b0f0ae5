//! What both directions of a worker's session share: envelope, tokens, progress, and how errors are told.

use std::fmt;
use std::time::Duration;

use common::appliance::Name;
use common::driver::{DriverName, MAX_FENCE_DELAY, PreviousOffers};
use common::process::NoProcess;
use common::ring::MAX_WEIGHT;
use common::session::{AnnouncedStep, Desired, Envelope, GrantRef, MAX_ENTRIES_PER_MESSAGE};
use common::site::{HOST_RULE, is_host};
use common::status::{JournalEntry, Progress};
use common::{
    ApplianceId, Edition, Generation, Incarnation, Mode, ModeEdition, Profile, StreamNumber, Term, Token, text,
};

use super::admin::{end_from_wire, end_to_wire};
use super::driver::offers_to_wire;
use super::scalar::{clip, duration_from_wire, duration_to_wire};
use super::spec::{spec_from_wire, spec_to_wire};
use crate::worker::v1 as wire;

/// Most attempts counters and journal entries of one progress.
const MAX_PROGRESS: usize = 64;
/// Longest text in a journal, in bytes. What workers write is shorter; what is longer is cut, because it is kept with the
/// appliance, stored, and told to its next owner in a message of bounded size.
const MAX_JOURNAL_TEXT: usize = 128;
/// Longest lease or delay that makes sense; anything longer is a unit mix-up.
const MAX_WAIT: Duration = MAX_FENCE_DELAY;

/// A message of a session that cannot be used. The stream it came from ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {field}: {problem}")]
pub struct WireError {
    /// The message, such as `Hello`.
    pub message: &'static str,
    /// The field within it, such as `held[3].token`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Reads the fields of one message and makes errors that name them.
#[derive(Clone, Copy)]
pub(super) struct Reader {
    pub(super) message: &'static str,
}

impl Reader {
    pub(super) fn error(self, field: impl Into<String>, problem: impl fmt::Display) -> WireError {
        WireError { message: self.message, field: field.into(), problem: problem.to_string() }
    }

    /// Refuses a message with more entries than a sender may put into one.
    pub(super) fn bounded(self, entries: usize) -> Result<(), WireError> {
        if entries > MAX_ENTRIES_PER_MESSAGE {
            let problem = format!("{entries} entries, at most {MAX_ENTRIES_PER_MESSAGE} are allowed");
            return Err(self.error("entries", problem));
        }
        Ok(())
    }

    pub(super) fn envelope(self, wire: Option<wire::Envelope>) -> Result<Envelope, WireError> {
        let wire = wire.ok_or_else(|| self.error("envelope", "is missing"))?;
        let incarnation = match wire.incarnation.as_slice() {
            [] => None,
            bytes => {
                let bytes = <[u8; 16]>::try_from(bytes)
                    .map_err(|_| self.error("envelope.incarnation", format!("has {} bytes, not 16", bytes.len())))?;
                Some(Incarnation::new(u128::from_be_bytes(bytes)))
            }
        };
        Ok(Envelope { term: Term::new(wire.term), incarnation, stream: StreamNumber::new(wire.stream) })
    }

    pub(super) fn appliance(self, at: &At<'_>, bytes: &[u8]) -> Result<ApplianceId, WireError> {
        <[u8; 16]>::try_from(bytes)
            .map(ApplianceId::from_bytes)
            .map_err(|_| self.error(at.field("appliance"), format!("has {} bytes, not 16", bytes.len())))
    }

    pub(super) fn token(self, at: &At<'_>, wire: Option<wire::Token>) -> Result<Token, WireError> {
        let token = wire.ok_or_else(|| self.error(at.field("token"), "is missing"))?;
        Ok(Token::new(Term::new(token.term), token.sequence))
    }

    pub(super) fn grants(self, list: &'static str, wire: Vec<wire::Granted>) -> Result<Vec<GrantRef>, WireError> {
        let one = |(i, g): (usize, wire::Granted)| {
            let at = At(list, i);
            Ok(GrantRef::new(self.appliance(&at, &g.appliance)?, self.token(&at, g.token)?))
        };
        wire.into_iter().enumerate().map(one).collect()
    }

    /// A remaining time; absent is none.
    pub(super) fn wait(self, field: String, wire: Option<prost_types::Duration>) -> Result<Duration, WireError> {
        let Some(wire) = wire else { return Ok(Duration::ZERO) };
        let wait = duration_from_wire(&wire).map_err(|e| self.error(field.as_str(), e))?;
        if wait > MAX_WAIT {
            return Err(self.error(field, format!("{} s is more than a day", wait.as_secs())));
        }
        Ok(wait)
    }

    pub(super) fn text(self, field: &str, text: String, most: usize) -> Result<String, WireError> {
        text::check(&text, most).map_err(|problem| self.error(field, problem))?;
        Ok(text)
    }

    pub(super) fn steps(self, field: &str, wire: Vec<wire::Step>) -> Result<Vec<AnnouncedStep>, WireError> {
        let one = |(i, s): (usize, wire::Step)| {
            let at = At(field, i);
            let (appliance, token) = (self.appliance(&at, &s.appliance)?, self.token(&at, s.token)?);
            Ok(AnnouncedStep { appliance, token, number: s.number })
        };
        wire.into_iter().enumerate().map(one).collect()
    }

    pub(super) fn progress(self, at: &At<'_>, wire: Option<wire::Progress>) -> Result<Progress, WireError> {
        let Some(wire) = wire else { return Ok(Progress::default()) };
        let entries = wire.attempts.len().max(wire.journal.len());
        if entries > MAX_PROGRESS {
            let problem = format!("has {entries} entries, at most {MAX_PROGRESS} are allowed");
            return Err(self.error(at.field("progress"), problem));
        }
        let entry = |e: wire::JournalEntry| JournalEntry {
            step: clip(&e.step, MAX_JOURNAL_TEXT),
            request_id: clip(&e.request_id, MAX_JOURNAL_TEXT),
        };
        Ok(Progress {
            failed_boots: wire.failed_boots,
            ends: wire.ends,
            attempts: wire.attempts,
            wait: self.wait(at.field("progress.wait"), wire.wait)?,
            cooling: wire.cooling,
            journal: wire.journal.into_iter().map(entry).collect(),
            last_end: wire.last_end.map_or(Ok(None), end_from_wire).map_err(|v| {
                let field = format!("progress.last_end.{}", v.field);
                self.error(at.field(&field), v.description)
            })?,
        })
    }

    pub(super) fn profile(self, wire: Option<wire::Profile>) -> Result<Profile, WireError> {
        let mut wire = wire.ok_or_else(|| self.error("profile", "is missing"))?;
        if !(1..=MAX_WEIGHT).contains(&wire.weight) {
            return Err(self.error("profile.weight", format!("must be 1 to {MAX_WEIGHT}, is {}", wire.weight)));
        }
        if !is_host(&wire.host) {
            return Err(self.error("profile.host", HOST_RULE));
        }
        let drivers = self.offers(&mut wire)?;
        let lease = self.wait("profile.lease".to_owned(), wire.lease)?;
        if lease.is_zero() {
            return Err(self.error("profile.lease", "must be more than nothing"));
        }
        Ok(Profile {
            weight: wire.weight,
            zone: self.text("profile.zone", wire.zone, 255)?,
            host: wire.host,
            drivers,
            version: self.text("profile.version", wire.version, 64)?,
            pid: wire.pid,
            process: match wire.process.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|e: NoProcess| self.error("profile.process", e))?),
            },
            lease,
        })
    }

    pub(super) fn desired(self, at: &At<'_>, wire: Option<wire::Desired>) -> Result<Desired, WireError> {
        let wire = wire.ok_or_else(|| self.error(at.field("desired"), "is missing"))?;
        let spec = wire.spec.ok_or_else(|| self.error(at.field("desired.spec"), "is missing"))?;
        Ok(Desired {
            name: Name::new(&wire.name).map_err(|e| self.error(at.field("desired.name"), e))?,
            tenant: Name::new(&wire.tenant).map_err(|e| self.error(at.field("desired.tenant"), e))?,
            driver: wire.driver.parse().map_err(|e| self.error(at.field("desired.driver"), e))?,
            edition: Edition::new(Generation::new(wire.generation), Term::new(wire.written_term)),
            revision: wire.revision,
            deleting: wire.deleting,
            spec: spec_from_wire(spec, &at.field("desired.spec")).map_err(|violations| {
                let first = violations.into_iter().next();
                first.map_or_else(
                    || self.error(at.field("desired.spec"), "cannot be used"),
                    |v| self.error(v.field, v.description),
                )
            })?,
        })
    }
}

/// A place in a list of a message.
pub(super) struct At<'a>(pub(super) &'a str, pub(super) usize);

impl At<'_> {
    pub(super) fn field(&self, name: &str) -> String {
        format!("{}[{}].{name}", self.0, self.1)
    }
}

pub(super) fn envelope_to_wire(envelope: &Envelope) -> wire::Envelope {
    wire::Envelope {
        term: envelope.term.get(),
        incarnation: envelope.incarnation.map(|i| i.get().to_be_bytes().to_vec()).unwrap_or_default(),
        stream: envelope.stream.get(),
    }
}

pub(super) fn mode_from_wire(wire: Option<wire::Mode>) -> Mode {
    let one = |wire: wire::Mode| Mode::new(ModeEdition::new(Term::new(wire.term), wire.sequence), wire.hands_off);
    wire.map(one).unwrap_or_default()
}

/// What no leader ever said is left out.
pub(super) fn mode_to_wire(mode: Mode) -> Option<wire::Mode> {
    let Mode { edition: ModeEdition { term, sequence }, hands_off } = mode;
    (mode != Mode::default()).then(|| wire::Mode { term: term.get(), sequence, hands_off })
}

pub(super) fn token_to_wire(token: Token) -> wire::Token {
    wire::Token { term: token.term.get(), sequence: token.sequence }
}

pub(super) fn id_to_wire(appliance: ApplianceId) -> Vec<u8> {
    appliance.as_bytes().to_vec()
}

pub(super) fn grants_to_wire(grants: Vec<GrantRef>) -> Vec<wire::Granted> {
    let one = |g: GrantRef| wire::Granted { appliance: id_to_wire(g.appliance), token: Some(token_to_wire(g.token)) };
    grants.into_iter().map(one).collect()
}

pub(super) fn steps_to_wire(steps: Vec<AnnouncedStep>) -> Vec<wire::Step> {
    let one = |s: AnnouncedStep| wire::Step {
        appliance: id_to_wire(s.appliance),
        token: Some(token_to_wire(s.token)),
        number: s.number,
    };
    steps.into_iter().map(one).collect()
}

/// A remaining time; zero is left out.
pub(super) fn wait_to_wire(wait: Duration) -> Option<prost_types::Duration> {
    (!wait.is_zero()).then(|| duration_to_wire(wait))
}

/// What fits into one progress; more instances than that are never asked for, and of a longer journal the end counts.
pub(super) fn progress_to_wire(progress: Progress) -> Option<wire::Progress> {
    if progress == Progress::default() {
        return None;
    }
    let skipped = progress.journal.len().saturating_sub(MAX_PROGRESS);
    // The store may have longer ones, of a version that kept them whole.
    let entry = |e: JournalEntry| wire::JournalEntry {
        step: clip(&e.step, MAX_JOURNAL_TEXT),
        request_id: clip(&e.request_id, MAX_JOURNAL_TEXT),
    };
    Some(wire::Progress {
        failed_boots: progress.failed_boots,
        ends: progress.ends,
        attempts: progress.attempts.into_iter().take(MAX_PROGRESS).collect(),
        wait: wait_to_wire(progress.wait.min(MAX_WAIT)),
        cooling: progress.cooling,
        journal: progress.journal.into_iter().skip(skipped).map(entry).collect(),
        last_end: progress.last_end.as_deref().map(end_to_wire),
    })
}

/// Readers of the version before find what they know in the fields that they know.
pub(super) fn profile_to_wire(profile: Profile) -> wire::Profile {
    let PreviousOffers { fence_delays, state_dir, .. } = PreviousOffers::of(&profile.drivers);
    wire::Profile {
        weight: profile.weight,
        zone: profile.zone,
        host: profile.host,
        state_dir,
        drivers: profile.drivers.names().map(DriverName::to_string).collect(),
        version: profile.version,
        pid: profile.pid,
        process: profile.process.map(|process| process.to_string()).unwrap_or_default(),
        lease: Some(duration_to_wire(profile.lease)),
        holds: fence_delays.into_iter().map(|(d, delay)| (d.to_string(), duration_to_wire(delay))).collect(),
        offers: offers_to_wire(&profile.drivers),
    }
}

pub(super) fn desired_to_wire(desired: &Desired) -> wire::Desired {
    wire::Desired {
        name: desired.name.to_string(),
        tenant: desired.tenant.to_string(),
        driver: desired.driver.to_string(),
        generation: desired.edition.generation.get(),
        revision: desired.revision,
        deleting: desired.deleting,
        spec: Some(spec_to_wire(&desired.spec)),
        written_term: desired.edition.term.get(),
    }
}

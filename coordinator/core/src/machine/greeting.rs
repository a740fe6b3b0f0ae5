//! The first message of a stream: who speaks in it, and whether it counts.
//!
//! Whoever can open a stream can say anything in a `Hello`, and name, incarnation and stream number of every life are
//! public. So nothing changes before three things are known: which life is meant, that the speaker has its secret, and
//! that the stream is newer than every other one of that life. A `Hello` that is refused is no heartbeat, closes no
//! stream, ends no term and counts as no contradiction (docs/protocol.md, Streams and Hello).
//!
//! External, a `Hello` can be faster than the event of its lease node, and then waits for that, for a bounded time.

#[cfg(feature = "canon")]
mod canon;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::mutant::{self, Mutant};
use common::session::{Envelope, Hello};
use common::{Life, PLAUSIBLE_STREAMS, PLAUSIBLE_TERMS, StreamNumber, Term, Timestamp, WorkerId};

use super::{Action, Machine, Refusal, StreamId, TermClaim};
use crate::membership::MAX_LIVES;
use crate::violation::ViolationKind;

/// How long a `Hello` waits for the event of its own lease node. Both come from the same commit; longer means that the
/// leader's server lags far behind the worker's.
const PARKED: Duration = Duration::from_secs(5);

/// Most of them that wait: all workers of a large cluster, before a new leader has read their nodes.
const MAX_PARKED: usize = MAX_LIVES;

/// Lives that an embedded leader gives out at once, and how long each of more is waited for. A whole cluster of a common
/// size comes back in one go; whoever asks for one name after the other is held up.
const NEWCOMERS: u32 = 1_000;
const NEWCOMER_EVERY: Duration = Duration::from_millis(20);

/// Names of which an implausible claim is shown, in one term.
const CLAIMS_SHOWN: usize = 16;

#[derive(Clone, Debug)]
pub(super) struct Parked {
    pub(super) life: Life,
    pub(super) envelope: Envelope,
    pub(super) hello: Box<Hello>,
    pub(super) until: Timestamp,
}

/// Terms that workers claim to have met.
#[derive(Clone, Debug, Default)]
struct Claims {
    /// From when on one of them ends this term.
    from: Timestamp,
    /// The highest that waits for that moment.
    due: Option<TermClaim>,
    /// Who made a claim that is not followed.
    shown: BTreeSet<WorkerId>,
}

/// What is remembered of `Hello`s.
#[derive(Clone, Debug, Default)]
pub(super) struct Greetings {
    pub(super) parked: BTreeMap<StreamId, Parked>,
    /// Highest stream each life said `Hello` on. Outlives its session: a `Hello` that was stuck in the network must not
    /// be taken for news after the stream that overtook it has ended as well.
    pub(super) newest: BTreeMap<Life, StreamNumber>,
    claims: Claims,
    /// When all lives that were given out are paid for, at one each [`NEWCOMER_EVERY`].
    newcomers: Timestamp,
}

impl Greetings {
    /// Claims of higher terms count from `claims_from` on.
    pub(super) fn new(claims_from: Timestamp) -> Self {
        Self { claims: Claims { from: claims_from, ..Claims::default() }, ..Self::default() }
    }

    pub(super) fn unpark(&mut self, conn: StreamId) {
        self.parked.remove(&conn);
    }

    /// The term that was claimed and is to be begun above by now.
    pub(super) fn claim_due(&self, now: Timestamp) -> Option<TermClaim> {
        self.claims.due.clone().filter(|_| now >= self.claims.from)
    }

    /// When a claim that waits ends this term.
    pub(super) fn wake_at(&self) -> Option<Timestamp> {
        self.claims.due.as_ref().map(|_| self.claims.from)
    }

    /// Takes the place of one more life.
    fn admit(&mut self, now: Timestamp) -> Result<(), Duration> {
        let paid = self.newcomers.max(now) + NEWCOMER_EVERY;
        let ahead = paid.since(now).saturating_sub(NEWCOMER_EVERY * NEWCOMERS);
        if !ahead.is_zero() {
            return Err(ahead);
        }
        self.newcomers = paid;
        Ok(())
    }
}

/// Who says `Hello`.
enum Speaker {
    /// A life that is known, with its secret and on a newer stream than any before.
    Known(Life),
    /// A worker that asks for a life under a name that nobody has.
    Newcomer,
}

/// Why a `Hello` does not count, or not yet.
enum Unheard {
    Refused(Refusal),
    /// No lease node of this life was read so far.
    Waits(Life),
}

impl From<Refusal> for Unheard {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Machine {
    pub(super) fn hello(&mut self, now: Timestamp, conn: StreamId, envelope: Envelope, hello: Hello) {
        if self.is_fooled(now, envelope, &hello) {
            return;
        }
        let (life, is_new) = match self.speaker_of_hello(now, envelope, &hello) {
            Ok(Speaker::Known(life)) => (life, false),
            Ok(Speaker::Newcomer) => {
                if let Err(refusal) = self.admit_newcomer(now) {
                    return self.out.close(conn, refusal);
                }
                (Life::new(hello.worker.clone(), self.epoch.next_incarnation()), true)
            }
            Err(Unheard::Refused(refusal)) => return self.out.close(conn, refusal),
            Err(Unheard::Waits(life)) => {
                return self.park(conn, Parked { life, envelope, hello: Box::new(hello), until: now + PARKED });
            }
        };
        match self.claim(now, &hello, is_new) {
            Ok(None) => self.greeted(now, conn, envelope.stream, hello, life, is_new),
            Ok(Some(claim)) => self.out.push(Action::RaiseTerm(claim)),
            Err(refusal) => self.out.close(conn, refusal),
        }
    }

    /// Only for mutants: believes what is said before it is known who says it. Whether that was all.
    fn is_fooled(&mut self, now: Timestamp, envelope: Envelope, hello: &Hello) -> bool {
        if mutant::is(Mutant::RefusedHelloBeats)
            && let Some(incarnation) = envelope.incarnation
            && self.membership.is_embedded()
        {
            self.membership.beat(now, &Life::new(hello.worker.clone(), incarnation));
        }
        if mutant::is(Mutant::ClaimOfAnybody)
            && let Some(met) = self.term_met_by(hello)
            && self.is_plausible(met)
        {
            self.out.push(Action::RaiseTerm(TermClaim { met, by: hello.worker.clone() }));
            return true;
        }
        false
    }

    /// Who speaks. Changes nothing.
    fn speaker_of_hello(&self, now: Timestamp, envelope: Envelope, hello: &Hello) -> Result<Speaker, Unheard> {
        let embedded = self.membership.is_embedded();
        let Some(incarnation) = envelope.incarnation else {
            if !embedded {
                return Err(Refusal::NoLife.into());
            }
            self.is_in_bounds(envelope.stream, StreamNumber::default())?;
            return match self.membership.any_life_of(&hello.worker) {
                None => Ok(Speaker::Newcomer),
                Some(other) => {
                    let other = Life::new(hello.worker.clone(), other);
                    Err(Refusal::NameTaken(self.membership.remaining(now, &other).unwrap_or_default()).into())
                }
            };
        };
        let life = Life::new(hello.worker.clone(), incarnation);
        let read = self.members.has_read();
        let stands =
            if embedded { self.membership.is_standing(now, &life) } else { read && self.membership.is_alive(&life) };
        if !stands {
            let settled = self.membership.is_known(&life) || self.membership.has_ended(&life);
            let waits = !embedded && (!read || !settled);
            return Err(if waits { Unheard::Waits(life) } else { Refusal::IncarnationOver.into() });
        }
        if !self.membership.is_proven(&life, hello.secret.as_ref()) {
            return Err(Refusal::NotProven.into());
        }
        let newest = self.sessions.greetings.newest.get(&life).copied().unwrap_or_default();
        self.is_in_bounds(envelope.stream, newest)?;
        Ok(Speaker::Known(life))
    }

    fn is_in_bounds(&self, stream: StreamNumber, newest: StreamNumber) -> Result<(), Refusal> {
        if stream <= newest {
            return Err(Refusal::Superseded);
        }
        if stream.get() - newest.get() > PLAUSIBLE_STREAMS {
            return Err(Refusal::ImplausibleStream(stream));
        }
        Ok(())
    }

    fn admit_newcomer(&mut self, now: Timestamp) -> Result<(), Refusal> {
        if self.membership.is_full() {
            return Err(Refusal::Crowded(PARKED));
        }
        self.sessions.greetings.admit(now).map_err(Refusal::Crowded)
    }

    fn is_plausible(&self, met: Term) -> bool {
        met.get().saturating_sub(self.epoch.term.get()) <= PLAUSIBLE_TERMS
    }

    /// The term that a worker has met and that this one does not lie above.
    fn term_met_by(&self, hello: &Hello) -> Option<Term> {
        let newest = hello.owned.iter().map(|owned| owned.token).max();
        let highest = newest.map_or(hello.highest_term, |token| hello.highest_term.max(token.term));
        // A token of this term that this leader never gave: the store was put back to an older state.
        let foreign = newest.is_some_and(|token| self.epoch.is_foreign(token));
        (highest > self.epoch.term).then_some(highest).or(foreign.then_some(self.epoch.term))
    }

    /// What becomes of a term that a worker has met: `Some` when a new one is to be begun above it now. Not more often than
    /// the shell says, since each new term interrupts every worker; until then the others are led as before, and so is this
    /// one if it has a life. A term far above this one is shown and not followed.
    fn claim(&mut self, now: Timestamp, hello: &Hello, is_new: bool) -> Result<Option<TermClaim>, Refusal> {
        let Some(met) = self.term_met_by(hello) else { return Ok(None) };
        if !self.is_plausible(met) {
            self.show_claim(&hello.worker, met);
            return if is_new { Err(Refusal::ImplausibleTerm(met)) } else { Ok(None) };
        }
        let claims = &mut self.sessions.greetings.claims;
        let claim = TermClaim { met, by: hello.worker.clone() };
        if now >= claims.from {
            return Ok(Some(claim));
        }
        if is_new {
            return Err(Refusal::TermAhead(met, claims.from.since(now)));
        }
        if claims.due.as_ref().is_none_or(|due| due.met < met) {
            claims.due = Some(claim);
        }
        Ok(None)
    }

    fn show_claim(&mut self, worker: &WorkerId, met: Term) {
        let shown = &mut self.sessions.greetings.claims.shown;
        if shown.len() < CLAIMS_SHOWN && shown.insert(worker.clone()) {
            let text = format!(
                "{worker} claims to have met {met}, more than {PLAUSIBLE_TERMS} above {}: it is not followed; if it is \
                 true, the database was put back to a very old copy, and an operator has to raise the term",
                self.epoch.term
            );
            self.violation(ViolationKind::ImplausibleTerm, text);
        }
    }

    fn park(&mut self, conn: StreamId, parked: Parked) {
        if self.sessions.greetings.parked.len() >= MAX_PARKED {
            return self.out.close(conn, Refusal::UnknownLife);
        }
        self.sessions.greetings.parked.insert(conn, parked);
    }

    /// Hears those out whose lease node is known by now.
    pub(super) fn greet_parked(&mut self, now: Timestamp) {
        if !self.members.has_read() {
            return;
        }
        let known = |life: &Life| self.membership.is_known(life) || self.membership.has_ended(life);
        let parked = &self.sessions.greetings.parked;
        let due: Vec<StreamId> = parked.iter().filter(|(_, p)| known(&p.life)).map(|(conn, _)| *conn).collect();
        for conn in due {
            if let Some(parked) = self.sessions.greetings.parked.remove(&conn) {
                self.hello(now, conn, parked.envelope, *parked.hello);
            }
        }
    }

    /// Refuses those whose lease node did not come in time.
    pub(super) fn end_parking(&mut self, now: Timestamp) {
        let parked = &self.sessions.greetings.parked;
        let late: Vec<StreamId> = parked.iter().filter(|(_, p)| p.until <= now).map(|(conn, _)| *conn).collect();
        for conn in late {
            self.sessions.greetings.unpark(conn);
            self.out.close(conn, Refusal::UnknownLife);
        }
    }

    /// A claim that had to wait ends this term when its time has come.
    pub(super) fn follow_claims(&mut self, now: Timestamp) {
        if let Some(claim) = self.sessions.greetings.claim_due(now) {
            self.out.push(Action::RaiseTerm(claim));
        }
    }
}

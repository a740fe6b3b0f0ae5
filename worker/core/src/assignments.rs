//! What this worker holds: applies what the leader says, refuses what is stale, and remembers what the leader has not
//! confirmed yet.
//!
//! Kept invariants: nothing applies between `Hello` and `Welcome`; a message of another term, life or stream is dropped; a
//! delta applies only on its base; for one appliance tokens only rise; a release or removal is said again after each
//! `Hello` until the leader confirms that the store has it.

#[cfg(feature = "canon")]
mod canon;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use common::mode::Mode;
use common::mutant::{self, Mutant};
use common::secret::LifeSecret;
use common::session::{
    Carryover, Delta, DeltaEntry, Desired, Envelope, GrantRef, Hello, OwnedDigest, OwnedGrant, Release,
};
use common::{
    ApplianceId, Digest, Edition, Incarnation, PLAUSIBLE_TERMS, Profile, StreamNumber, Term, Token, WorkerId,
};

/// Refusals for a newer token of the same term after which an appliance is given up. Steps are tried again after some
/// `fence_retry` each, so this is several times what the leader's word takes.
const REFUSALS: u8 = 10;

/// One appliance that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Under which token.
    pub token: Token,
    /// Edition known here.
    pub edition: Edition,
    /// It is being given up.
    pub releasing: bool,
    /// Whether hands are off, by the newest word of a leader.
    pub mode: Mode,
    /// How often its token was refused for a newer one of the same term.
    refused: u8,
}

/// What describes the wanted state of an appliance: it says which edition it is of.
pub trait Editioned {
    /// Its edition.
    fn edition(&self) -> Edition;
}

/// Where nothing else about the wanted state matters, as in the model.
impl Editioned for Edition {
    fn edition(&self) -> Edition {
        *self
    }
}

impl Editioned for Arc<Desired> {
    fn edition(&self) -> Edition {
        self.edition
    }
}

/// What follows from a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AssignmentEffect<D> {
    /// Start to act, and say that the offer was taken.
    Take {
        /// The appliance.
        appliance: ApplianceId,
        /// Under which token.
        token: Token,
        /// What it shall be.
        desired: D,
        /// What the last owner handed over.
        carryover: Carryover,
        /// Steps are to be announced.
        suspect: bool,
        /// Whether hands are off.
        mode: Mode,
    },
    /// Shut the gate for it, or open it again; when it is shut and nothing runs, say so.
    Mode(ApplianceId, Token, Mode),
    /// Say that the offer is refused.
    Decline(ApplianceId, Token),
    /// Let the running step end, then stop acting; the answer is a release.
    Release(ApplianceId, Token),
    /// Shut the gate for it at once, before the lease is extended: it may be somebody else's. The answer is a release.
    Fence(ApplianceId, Token),
    /// Send a release again that was sent before.
    Again(Release),
    /// Change what it shall be.
    Update {
        /// The appliance.
        appliance: ApplianceId,
        /// Under which token.
        token: Token,
        /// What it shall be.
        desired: D,
    },
    /// Probe now.
    Check(ApplianceId, Token, u64),
}

/// Why a message was not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeltaRefused {
    /// It belongs to another term, life or stream, or came before `Welcome`.
    #[error("the message belongs to another conversation")]
    Stale,
    /// It applies to a version this worker does not have: say `Hello` again.
    #[error("delta applies to version {base}, this worker has {have}")]
    Base {
        /// Version it applies to.
        base: u64,
        /// Version this worker has.
        have: u64,
    },
}

/// What this worker holds.
#[derive(Clone, Debug, Default)]
pub struct Assignments {
    incarnation: Option<Incarnation>,
    term: Term,
    stream: StreamNumber,
    welcomed: bool,
    version: u64,
    highest_term: Term,
    /// Highest term that what an appliance runs on claims to have met. It is said in `Hello`; nothing else follows from it,
    /// since it may be made up.
    claimed_term: Term,
    held: BTreeMap<ApplianceId, Assignment>,
    /// What is held and the leader did not keep: it is not in the leader's table, and ends soon.
    disowned: BTreeSet<ApplianceId>,
    /// Of everything held that is not disowned.
    digest: Digest,
    released: BTreeMap<GrantRef, Carryover>,
    removed: BTreeSet<GrantRef>,
    /// Highest token met per appliance on this stream. Messages of older streams are dropped whole, so older entries
    /// would never be asked for.
    seen: HashMap<ApplianceId, Token>,
}

impl Assignments {
    /// Opens a stream: the envelope and the first message on it. Nothing applies until the answer.
    pub fn hello(&mut self, worker: &WorkerId, profile: &Profile, secret: &LifeSecret) -> (Envelope, Hello) {
        self.stream = self.stream.next();
        self.welcomed = false;
        self.seen = self.held.iter().map(|(id, h)| (*id, h.token)).collect();
        let owned = |(id, h): (&ApplianceId, &Assignment)| OwnedGrant {
            appliance: *id,
            token: h.token,
            edition: h.edition,
            mode: h.mode,
        };
        let hello = Hello {
            worker: worker.clone(),
            profile: profile.clone(),
            owned: self.held.iter().map(owned).collect(),
            released: self.released.iter().map(|(grant, carryover)| release(*grant, carryover.clone())).collect(),
            removed: self.removed.iter().copied().collect(),
            highest_term: self.highest_term.max(self.claimed_term),
            secret: Some(secret.clone()),
            knows_modes: true,
        };
        let envelope = Envelope { term: self.highest_term, incarnation: self.incarnation, stream: self.stream };
        (envelope, hello)
    }

    /// Takes the answer to `Hello`. Whatever is held and not kept has to end at once: the leader may have given it to
    /// somebody else while this worker was fenced, and the answer is about to extend its lease.
    ///
    /// # Errors
    /// [`DeltaRefused::Stale`] when it answers another `Hello`, names another life, or comes from a leader older than one
    /// already met.
    pub fn welcome<D>(&mut self, from: Envelope, keep: &[GrantRef]) -> Result<Vec<AssignmentEffect<D>>, DeltaRefused> {
        let Some(incarnation) = from.incarnation else { return Err(DeltaRefused::Stale) };
        let known = self.incarnation.is_none_or(|own| own == incarnation);
        let old = from.term < self.highest_term && !mutant::is(Mutant::NoTermCheck);
        if self.welcomed || from.stream != self.stream || !known || old {
            return Err(DeltaRefused::Stale);
        }
        self.welcomed = true;
        self.incarnation = Some(incarnation);
        self.term = from.term;
        self.highest_term = from.term;
        self.version = 0;
        let keep: BTreeSet<_> = keep.iter().copied().collect();
        let mut effects = Vec::new();
        (self.disowned, self.digest) = (BTreeSet::new(), Digest::default());
        for (id, holding) in &mut self.held {
            if keep.contains(&GrantRef::new(*id, holding.token)) {
                self.digest.add(*id, holding.token);
            } else {
                holding.releasing = true;
                self.disowned.insert(*id);
                effects.push(AssignmentEffect::Fence(*id, holding.token));
            }
        }
        Ok(effects)
    }

    fn check(&self, from: Envelope) -> Result<(), DeltaRefused> {
        let right = self.welcomed
            && self.incarnation == from.incarnation
            && (from.term == self.term || mutant::is(Mutant::NoTermCheck))
            && from.stream == self.stream;
        if right { Ok(()) } else { Err(DeltaRefused::Stale) }
    }

    /// Whether a message belongs to a stream that was left, within this life and term.
    fn is_late(&self, from: Envelope) -> bool {
        let (life, term) = (self.incarnation == from.incarnation, from.term == self.term);
        self.welcomed && life && term && from.stream < self.stream
    }

    /// Applies a delta as a whole.
    ///
    /// # Errors
    /// [`DeltaRefused`]; nothing was applied then.
    pub fn delta<D: Editioned>(
        &mut self,
        from: Envelope,
        delta: Delta<D>,
    ) -> Result<Vec<AssignmentEffect<D>>, DeltaRefused> {
        let Delta { base, target, rebalance: _, entries } = delta;
        if mutant::is(Mutant::LateGrant) && self.is_late(from) {
            return Ok(entries.into_iter().filter_map(|entry| self.apply(entry)).collect());
        }
        self.check(from)?;
        if base != self.version || target <= base {
            return Err(DeltaRefused::Base { base, have: self.version });
        }
        self.version = target;
        Ok(entries.into_iter().filter_map(|entry| self.apply(entry)).collect())
    }

    fn apply<D: Editioned>(&mut self, entry: DeltaEntry<D>) -> Option<AssignmentEffect<D>> {
        match entry {
            DeltaEntry::Grant { appliance, token, desired, carryover, suspect, mode } => {
                let newest = self.seen.get(&appliance).copied();
                if newest.is_some_and(|seen| token <= seen) && !mutant::is(Mutant::OldTokens) {
                    // Of a token that was in force here before: acting on it again could meet its successor.
                    return None;
                }
                if self.held.contains_key(&appliance) {
                    // The leader grants only what no worker owns; until the older grant has ended this cannot start.
                    return Some(AssignmentEffect::Decline(appliance, token));
                }
                self.seen.insert(appliance, token);
                let edition = desired.edition();
                self.held.insert(appliance, Assignment { token, edition, releasing: false, mode, refused: 0 });
                self.digest.add(appliance, token);
                Some(AssignmentEffect::Take { appliance, token, desired, carryover, suspect, mode })
            }
            DeltaEntry::Mode { appliance, token, mode } => {
                let holding = self.held.get_mut(&appliance).filter(|h| h.token == token)?;
                if mode.edition < holding.mode.edition {
                    return None;
                }
                // The same edition again: its acknowledgement may have been lost with a stream.
                holding.mode = mode;
                Some(AssignmentEffect::Mode(appliance, token, mode))
            }
            DeltaEntry::Release(grant) => self.release(grant),
            DeltaEntry::Update { appliance, token, desired } => {
                let edition = desired.edition();
                let holding = self.held.get_mut(&appliance).filter(|h| h.token == token)?;
                if edition.generation <= holding.edition.generation {
                    return None;
                }
                holding.edition = edition;
                Some(AssignmentEffect::Update { appliance, token, desired })
            }
            DeltaEntry::Check { appliance, token, number } => self
                .held
                .get(&appliance)
                .filter(|h| h.token == token)
                .map(|_| AssignmentEffect::Check(appliance, token, number)),
        }
    }

    fn release<D>(&mut self, grant: GrantRef) -> Option<AssignmentEffect<D>> {
        let GrantRef { appliance, token } = grant;
        match self.held.get_mut(&appliance) {
            Some(holding) if holding.token == token => {
                if holding.releasing {
                    return None;
                }
                holding.releasing = true;
                Some(AssignmentEffect::Release(appliance, token))
            }
            _ => match self.released.get(&grant) {
                Some(carryover) => Some(AssignmentEffect::Again(release(grant, carryover.clone()))),
                None => Some(AssignmentEffect::Decline(appliance, token)),
            },
        }
    }

    /// Notes that nothing of this worker acts on an appliance any more. `false` when it was not held under this token.
    pub fn released(&mut self, appliance: ApplianceId, token: Token, carryover: Carryover) -> bool {
        let ended = self.end(appliance, token);
        if ended {
            self.released.insert(GrantRef::new(appliance, token), carryover);
        }
        ended
    }

    /// Notes that an appliance was removed to the last trace. `false` when it was not held under this token.
    pub fn removed(&mut self, appliance: ApplianceId, token: Token) -> bool {
        let ended = self.end(appliance, token);
        if ended {
            self.removed.insert(GrantRef::new(appliance, token));
        }
        ended
    }

    /// Holds an appliance no more. `false` when it was not held under this token.
    fn end(&mut self, appliance: ApplianceId, token: Token) -> bool {
        if !self.is_held(appliance, token) {
            return false;
        }
        self.held.remove(&appliance);
        if !self.disowned.remove(&appliance) {
            self.digest.remove(appliance, token);
        }
        true
    }

    /// Notes the term of a token for which ours was refused. `true` when it is above the leader's by no more than can be
    /// true: the next `Hello` says so. What an appliance runs on is no leader: a welcome of a lower term still counts.
    pub fn met(&mut self, term: Term) -> bool {
        let ahead = term.get().saturating_sub(self.term.get());
        if ahead == 0 || ahead > PLAUSIBLE_TERMS {
            return false;
        }
        self.claimed_term = self.claimed_term.max(term);
        true
    }

    /// Whether a term is above the leader's.
    #[must_use]
    pub fn is_above_the_leader(&self, term: Term) -> bool {
        term > self.term
    }

    /// Whether to give an appliance up whose token was refused for a `newer` one: only under another token can anybody
    /// act on it, and the leader is of a term that can make one. `false` also when that was said before. A newer token
    /// of the same term was given by the leader, and its word is under way; one that goes on to be refused for it waits
    /// for a word that never comes.
    pub fn give_up(&mut self, appliance: ApplianceId, token: Token, newer: Token) -> bool {
        let Some(holding) = self.held.get_mut(&appliance).filter(|h| h.token == token && !h.releasing) else {
            return false;
        };
        let of_the_same_term = token.term == newer.term && token < newer;
        holding.refused = holding.refused.saturating_add(u8::from(of_the_same_term));
        let outdated = token.term < newer.term && newer.term <= self.term;
        holding.releasing = outdated || holding.refused >= REFUSALS;
        holding.releasing
    }

    /// Notes that an offer was refused after all. `false` when it was not held under this token.
    pub fn declined(&mut self, appliance: ApplianceId, token: Token) -> bool {
        self.end(appliance, token)
    }

    /// Forgets releases and removals that the store has.
    ///
    /// # Errors
    /// [`DeltaRefused::Stale`] for a message of another conversation.
    pub fn confirm(&mut self, from: Envelope, list: &[GrantRef]) -> Result<(), DeltaRefused> {
        self.check(from)?;
        for key in list {
            self.released.remove(key);
            self.removed.remove(key);
        }
        Ok(())
    }

    /// The life is over: everything that was held belongs to others now. The next `Hello` asks for a new life, unless
    /// [`Assignments::begin_life`] brings one.
    pub fn end_life(&mut self) {
        self.begin_life(None);
    }

    /// A new life begins and holds nothing. `incarnation` is `None` when the leader gives it, in answer to `Hello`;
    /// otherwise a welcome that names another one does not count.
    pub fn begin_life(&mut self, incarnation: Option<Incarnation>) {
        let Self { highest_term, claimed_term, .. } = *self;
        *self = Self { incarnation, highest_term, claimed_term, ..Self::default() };
    }

    /// Begins to give back what is held and is not being given back yet. Each is to be released, as if the leader had
    /// asked for it.
    pub fn give_back(&mut self) -> Vec<GrantRef> {
        let kept = self.held.iter_mut().filter(|(_, holding)| !holding.releasing);
        kept.map(|(id, holding)| {
            holding.releasing = true;
            GrantRef::new(*id, holding.token)
        })
        .collect()
    }

    /// Whether nothing is held, and the leader has confirmed every release and removal.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.held.is_empty() && self.released.is_empty() && self.removed.is_empty()
    }

    /// Whether an appliance is held under this token.
    #[must_use]
    pub fn is_held(&self, appliance: ApplianceId, token: Token) -> bool {
        self.held.get(&appliance).is_some_and(|h| h.token == token)
    }

    /// Whether a token is newer than any met for its appliance on this stream, as that of an offer is.
    #[must_use]
    pub fn is_news(&self, appliance: ApplianceId, token: Token) -> bool {
        self.seen.get(&appliance).is_none_or(|seen| *seen < token)
    }

    /// Whether a message belongs to the conversation of now.
    #[must_use]
    pub fn counts(&self, from: Envelope) -> bool {
        self.check(from).is_ok()
    }

    /// The conversation of now, for what is sent; `None` between `Hello` and `Welcome`.
    #[must_use]
    pub fn envelope(&self) -> Option<Envelope> {
        let incarnation = self.incarnation.filter(|_| self.welcomed)?;
        Some(Envelope { term: self.term, incarnation: Some(incarnation), stream: self.stream })
    }

    /// Digest of what is held and was granted or kept by the leader of this stream, for it to compare with its table. It
    /// means the moment after the delta of [`Assignments::version`] and everything that was told since: it may be sent only
    /// when no answer waits, on the stream on which they went.
    #[must_use]
    pub const fn digest(&self) -> OwnedDigest {
        OwnedDigest { applied: self.version, digest: self.digest }
    }

    /// Version after the newest delta that was applied.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// The mode of a grant, as far as it was told; `None` when it is not held.
    #[must_use]
    pub fn mode(&self, appliance: ApplianceId, token: Token) -> Option<Mode> {
        self.held.get(&appliance).filter(|holding| holding.token == token).map(|holding| holding.mode)
    }

    /// Appliances that are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Everything that is held, by id.
    pub fn iter(&self) -> impl Iterator<Item = (ApplianceId, Assignment)> {
        self.held.iter().map(|(id, h)| (*id, *h))
    }
}

fn release(grant: GrantRef, carryover: Carryover) -> Release {
    Release { appliance: grant.appliance, token: grant.token, carryover }
}

#[cfg(test)]
mod tests {
    use common::{Generation, ModeEdition};

    use super::*;

    const LIFE: Incarnation = Incarnation::new(7);

    fn token(n: u64) -> Token {
        Token::new(Term::new(1), n)
    }

    fn id(n: u128) -> ApplianceId {
        ApplianceId::from_u128(n)
    }

    fn grant(n: u128, t: u64) -> DeltaEntry<Edition> {
        DeltaEntry::Grant {
            appliance: id(n),
            token: token(t),
            desired: Edition::new(Generation::new(1), Term::new(1)),
            carryover: Carryover::default(),
            suspect: false,
            mode: Mode::default(),
        }
    }

    fn say_hello(h: &mut Assignments) -> (Envelope, Hello) {
        h.hello(&WorkerId::new("w1").expect("valid"), &Profile::default(), &LifeSecret::new([1; 32]))
    }

    fn apply(
        h: &mut Assignments,
        from: Envelope,
        base: u64,
        target: u64,
        entries: Vec<DeltaEntry<Edition>>,
    ) -> Result<Vec<AssignmentEffect<Edition>>, DeltaRefused> {
        h.delta(from, Delta { base, target, rebalance: None, entries })
    }

    fn grants(of: &[(u128, u64)]) -> Vec<GrantRef> {
        of.iter().map(|(n, t)| GrantRef::new(id(*n), token(*t))).collect()
    }

    /// Assignments after `Hello` and `Welcome`, and the envelope of their stream.
    fn welcomed() -> (Assignments, Envelope) {
        let mut h = Assignments::default();
        let stream = say_hello(&mut h).0.stream;
        let from = Envelope { term: Term::new(1), incarnation: Some(LIFE), stream };
        assert_eq!(h.welcome::<Edition>(from, &[]), Ok(vec![]));
        (h, from)
    }

    #[test]
    fn nothing_applies_between_hello_and_welcome() {
        let (mut h, from) = welcomed();
        let stream = say_hello(&mut h).0.stream;
        let next = Envelope { stream, ..from };
        assert_eq!(apply(&mut h, next, 0, 1, vec![grant(1, 1)]), Err(DeltaRefused::Stale));
        assert_eq!(
            apply(&mut h, from, 0, 1, vec![grant(1, 1)]),
            Err(DeltaRefused::Stale),
            "a late message of the old stream"
        );
        h.welcome::<Edition>(next, &[]).expect("answers this hello");
        assert_eq!(apply(&mut h, next, 0, 1, vec![grant(1, 1)]).map(|e| e.len()), Ok(1));
    }

    #[test]
    fn a_delta_on_another_base_is_refused_as_a_whole() {
        let (mut h, from) = welcomed();
        assert_eq!(apply(&mut h, from, 1, 2, vec![grant(1, 1)]), Err(DeltaRefused::Base { base: 1, have: 0 }));
        assert!(h.is_empty());
    }

    #[test]
    fn an_old_token_is_refused_after_a_newer_one_was_in_force() {
        let (mut h, from) = welcomed();
        apply(&mut h, from, 0, 1, vec![grant(1, 5)]).expect("applies");
        assert!(h.released(id(1), token(5), Carryover::default()));
        assert_eq!(apply(&mut h, from, 1, 2, vec![grant(1, 4), grant(1, 5)]), Ok(vec![]));
        assert!(h.is_empty());
    }

    #[test]
    fn only_a_token_that_was_never_met_is_news() {
        let (mut h, from) = welcomed();
        apply(&mut h, from, 0, 1, vec![grant(1, 5)]).expect("applies");
        assert_eq!([4, 5, 6].map(|n| h.is_news(id(1), token(n))), [false, false, true]);
        h.released(id(1), token(5), Carryover::default());
        assert!(!h.is_news(id(1), token(5)));
        assert!(h.is_news(id(2), token(1)));
    }

    #[test]
    fn an_older_word_about_a_mode_is_ignored() {
        let (mut h, from) = welcomed();
        apply(&mut h, from, 0, 1, vec![grant(1, 5)]).expect("applies");
        let mode = |number, hands_off| Mode::new(ModeEdition::new(Term::new(1), number), hands_off);
        let word =
            |number, hands_off| DeltaEntry::Mode { appliance: id(1), token: token(5), mode: mode(number, hands_off) };
        let told = |number, hands_off| AssignmentEffect::Mode(id(1), token(5), mode(number, hands_off));
        assert_eq!(apply(&mut h, from, 1, 2, vec![word(2, true)]), Ok(vec![told(2, true)]));
        assert_eq!(apply(&mut h, from, 2, 3, vec![word(1, false)]), Ok(vec![]));
        assert_eq!(apply(&mut h, from, 3, 4, vec![word(2, true)]), Ok(vec![told(2, true)]), "said again");
        assert_eq!(say_hello(&mut h).1.owned[0].mode, mode(2, true));
        let other = DeltaEntry::Mode { appliance: id(1), token: token(4), mode: mode(9, false) };
        let next = Envelope { stream: h.stream, ..from };
        h.welcome::<Edition>(next, &grants(&[(1, 5)])).expect("answers this hello");
        assert_eq!(
            apply(&mut h, next, 0, 1, vec![other, word(3, false)]),
            Ok(vec![told(3, false)]),
            "of another grant"
        );
    }

    #[test]
    fn a_grant_of_something_held_is_declined() {
        let (mut h, from) = welcomed();
        apply(&mut h, from, 0, 1, vec![grant(1, 5)]).expect("applies");
        assert_eq!(apply(&mut h, from, 1, 2, vec![grant(1, 6)]), Ok(vec![AssignmentEffect::Decline(id(1), token(6))]));
        assert!(h.is_held(id(1), token(5)));
    }

    #[test]
    fn what_the_leader_does_not_keep_has_to_end() {
        let (mut h, from) = welcomed();
        apply(&mut h, from, 0, 1, vec![grant(1, 1), grant(2, 2)]).expect("applies");
        let stream = say_hello(&mut h).0.stream;
        let next = Envelope { stream, ..from };
        let effects = h.welcome::<Edition>(next, &grants(&[(1, 1)])).expect("answers this hello");
        assert_eq!(effects, [AssignmentEffect::Fence(id(2), token(2))]);
    }

    #[test]
    fn what_is_not_kept_is_fenced_even_while_it_is_being_released() {
        let (mut h, from) = welcomed();
        apply(&mut h, from, 0, 1, vec![grant(1, 1)]).expect("applies");
        apply(&mut h, from, 1, 2, vec![DeltaEntry::Release(GrantRef::new(id(1), token(1)))]).expect("applies");
        let stream = say_hello(&mut h).0.stream;
        let effects = h.welcome::<Edition>(Envelope { stream, ..from }, &[]).expect("answers this hello");
        assert_eq!(effects, [AssignmentEffect::Fence(id(1), token(1))]);
    }

    #[test]
    fn a_release_is_said_again_until_it_is_confirmed() {
        let (mut h, from) = welcomed();
        apply(&mut h, from, 0, 1, vec![grant(1, 1), grant(2, 2)]).expect("applies");
        h.released(id(1), token(1), Carryover::default());
        h.removed(id(2), token(2));
        let again: Vec<AssignmentEffect<Edition>> =
            apply(&mut h, from, 1, 2, vec![DeltaEntry::Release(GrantRef::new(id(1), token(1)))]).expect("applies");
        assert_eq!(again, [AssignmentEffect::Again(release(GrantRef::new(id(1), token(1)), Carryover::default()))]);
        let (envelope, hello) = say_hello(&mut h);
        assert_eq!((hello.released.len(), hello.removed.len()), (1, 1));
        let next = Envelope { stream: envelope.stream, ..from };
        h.welcome::<Edition>(next, &[]).expect("answers this hello");
        h.confirm(next, &grants(&[(1, 1), (2, 2)])).expect("counts");
        let (_, hello) = say_hello(&mut h);
        assert_eq!((hello.released.len(), hello.removed.len()), (0, 0));
    }

    #[test]
    fn a_release_of_something_never_held_is_declined() {
        let (mut h, from) = welcomed();
        let effects: Vec<AssignmentEffect<Edition>> =
            apply(&mut h, from, 0, 1, vec![DeltaEntry::Release(GrantRef::new(id(1), token(1)))]).expect("applies");
        assert_eq!(effects, [AssignmentEffect::Decline(id(1), token(1))]);
    }

    #[test]
    fn an_older_leader_is_not_listened_to() {
        let (mut h, from) = welcomed();
        let stream = say_hello(&mut h).0.stream;
        h.welcome::<Edition>(Envelope { term: Term::new(5), stream, ..from }, &[]).expect("a newer leader");
        let stream = say_hello(&mut h).0.stream;
        assert_eq!(
            h.welcome::<Edition>(Envelope { term: Term::new(4), stream, ..from }, &[]),
            Err(DeltaRefused::Stale)
        );
    }

    #[test]
    fn a_term_that_an_appliance_claims_is_said_in_hello_and_changes_nothing_else() {
        let (mut h, from) = welcomed();
        assert!(!h.met(Term::new(1)), "the leader's own is no news");
        assert!(h.met(Term::new(9)));
        assert!(h.met(Term::new(5)), "still above the leader's");
        assert!(h.counts(from), "the conversation itself goes on");
        let (envelope, hello) = say_hello(&mut h);
        assert_eq!(hello.highest_term, Term::new(9));
        let next = Envelope { stream: envelope.stream, ..from };
        h.welcome::<Edition>(next, &[]).expect("what an appliance claims is no reason to turn away from the leader");
        let (envelope, hello) = say_hello(&mut h);
        assert_eq!(hello.highest_term, Term::new(9), "it is said until a leader lies above it");
        let next = Envelope { term: Term::new(10), stream: envelope.stream, ..from };
        h.welcome::<Edition>(next, &[]).expect("above what was met");
        assert!(!h.met(Term::new(9)));
    }

    #[test]
    fn a_term_that_no_election_can_have_reached_is_not_believed() {
        let (mut h, _) = welcomed();
        assert!(!h.met(Term::new(u64::MAX)));
        assert!(!h.met(Term::new(2 + PLAUSIBLE_TERMS)));
        assert_eq!(say_hello(&mut h).1.highest_term, Term::new(1));
    }

    #[test]
    fn a_grant_refused_for_a_token_of_a_term_in_between_is_given_up_once() {
        let (mut h, from) = welcomed();
        apply(&mut h, from, 0, 1, vec![grant(1, 5)]).expect("applies");
        let newer = Token::new(Term::new(9), 3);
        assert!(!h.give_up(id(1), token(5), newer), "the leader could not make a token above it");
        let stream = say_hello(&mut h).0.stream;
        let next = Envelope { term: Term::new(10), stream, ..from };
        h.welcome::<Edition>(next, &grants(&[(1, 5)])).expect("a newer leader");
        assert!(!h.give_up(id(1), token(5), token(6)), "the leader knows of it");
        assert!(!h.give_up(id(1), token(4), newer), "not what is held");
        assert!(h.give_up(id(1), token(5), newer));
        assert!(!h.give_up(id(1), token(5), newer), "it is under way");
    }

    #[test]
    fn a_grant_refused_again_and_again_for_a_token_of_its_own_term_is_given_up() {
        let (mut h, from) = welcomed();
        apply(&mut h, from, 0, 1, vec![grant(1, 5)]).expect("applies");
        let given_up: Vec<bool> = (0..=REFUSALS).map(|_| h.give_up(id(1), token(5), token(6))).collect();
        let (last, before) = (given_up[usize::from(REFUSALS) - 1], &given_up[..usize::from(REFUSALS) - 1]);
        assert!(last && before.iter().all(|given_up| !given_up), "{given_up:?}");
        assert!(!given_up[usize::from(REFUSALS)], "it is under way");
    }

    #[test]
    fn a_new_life_holds_nothing_but_remembers_the_highest_term() {
        let (mut h, from) = welcomed();
        apply(&mut h, from, 0, 1, vec![grant(1, 1)]).expect("applies");
        h.end_life();
        let (envelope, hello) = say_hello(&mut h);
        assert_eq!((envelope.incarnation, hello.owned.len(), hello.highest_term), (None, 0, Term::new(1)));
    }

    #[test]
    fn a_life_that_has_its_incarnation_takes_no_welcome_of_another() {
        let (mut h, _) = welcomed();
        let own = Incarnation::new(9);
        h.begin_life(Some(own));
        let (envelope, hello) = say_hello(&mut h);
        assert_eq!((envelope.incarnation, hello.owned.len(), hello.highest_term), (Some(own), 0, Term::new(1)));
        let from = |incarnation| Envelope { term: Term::new(1), incarnation, stream: envelope.stream };
        assert_eq!(h.welcome::<Edition>(from(Some(LIFE)), &[]), Err(DeltaRefused::Stale));
        assert_eq!(h.welcome::<Edition>(from(Some(own)), &[]), Ok(vec![]));
    }

    #[test]
    fn the_digest_is_that_of_what_the_leader_knows_to_be_held() {
        let (mut h, from) = welcomed();
        let of = |held: &[(u128, u64)]| held.iter().map(|(n, t)| (id(*n), token(*t))).collect::<Digest>();
        apply(&mut h, from, 0, 1, vec![grant(1, 1), grant(2, 2), grant(3, 3), grant(4, 4)]).expect("applies");
        assert_eq!(h.digest().digest, of(&[(1, 1), (2, 2), (3, 3), (4, 4)]));
        apply(&mut h, from, 1, 2, vec![DeltaEntry::Release(GrantRef::new(id(1), token(1)))]).expect("applies");
        assert_eq!(h.digest().digest.count, 4, "held until it is released");
        assert!(
            h.released(id(1), token(1), Carryover::default()) && !h.released(id(1), token(1), Carryover::default())
        );
        assert!(h.removed(id(2), token(2)) && h.declined(id(3), token(3)) && !h.removed(id(4), token(5)));
        assert_eq!(h.digest().digest, of(&[(4, 4)]));

        apply(&mut h, from, 2, 3, vec![grant(5, 5)]).expect("applies");
        let next = Envelope { stream: say_hello(&mut h).0.stream, ..from };
        h.welcome::<Edition>(next, &grants(&[(5, 5), (9, 9)])).expect("answers this hello");
        assert_eq!(h.digest().digest, of(&[(5, 5)]), "what was not kept is in nobody's table");
        assert!(h.released(id(4), token(4), Carryover::default()));
        assert_eq!(h.digest().digest, of(&[(5, 5)]));
        h.end_life();
        assert_eq!(h.digest().digest, Digest::default());
    }

    #[test]
    fn what_is_given_back_is_settled_once_it_is_confirmed() {
        let (mut h, from) = welcomed();
        assert!(h.is_settled());
        apply(&mut h, from, 0, 1, vec![grant(1, 1), grant(2, 2), DeltaEntry::Release(GrantRef::new(id(1), token(1)))])
            .expect("applies");
        assert_eq!(h.give_back(), grants(&[(2, 2)]), "the other one is being released");
        assert_eq!(h.give_back(), []);
        assert!(h.released(id(1), token(1), Carryover::default()) && h.removed(id(2), token(2)));
        assert!(h.is_empty() && !h.is_settled(), "the leader may not have heard of it");
        h.confirm(from, &grants(&[(1, 1), (2, 2)])).expect("of this conversation");
        assert!(h.is_settled());
    }
}

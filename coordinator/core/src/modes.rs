//! Rules of operators that nothing is changed about some appliances, as the store has them, and what they cover.
//!
//! What follows for single appliances, who is told and when whoever set a rule is answered is decided by the machine
//! (docs/protocol.md, Hands off). A rule counts from the moment the store has it until the store has that it is cleared.

use std::collections::BTreeMap;
use std::time::Duration;

use common::mode::{ModeRule, ModeSubject};
use common::{ApplianceId, Mode, ModeEdition, ModeId, Term, Timestamp, WorkerId};

/// Most rules at a time. Every change of an owner asks each of them.
pub const MAX_RULES: usize = 1_000;

/// How far above the newest edition of a term one may be that a worker says it knows.
const PLAUSIBLE_EDITIONS: u64 = 1 << 32;

/// A rule, and how much longer it lasts: its end is stored in time of the wall, and counted down by the leader's own clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMode {
    /// The rule.
    pub rule: ModeRule,
    /// Until it ends by itself; `None` for one that does not.
    pub expires_in: Option<Duration>,
}

/// One change of the rules, to be made durable before any worker is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeOp {
    /// A rule that was not there.
    Set(ModeRule),
    /// It ends; the rule need not be there any more.
    Clear(ModeId),
}

impl ModeOp {
    /// The rule it is about.
    #[must_use]
    pub const fn id(&self) -> ModeId {
        match self {
            Self::Set(rule) => rule.id,
            Self::Clear(id) => *id,
        }
    }
}

/// How far a rule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RuleStage {
    /// It is being written and covers nothing yet.
    Setting,
    /// The store has it.
    InForce,
    /// Its end is being written. It holds until that is done.
    Clearing,
}

#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) rule: ModeRule,
    pub(crate) stage: RuleStage,
    /// When it is to be cleared.
    expires: Option<Timestamp>,
}

/// Every rule, and the editions that were given in this term.
#[derive(Clone, Debug)]
pub(crate) struct Modes {
    rules: BTreeMap<ModeId, Standing>,
    term: Term,
    /// Sequence of the next edition. 0 is given to no change: it is where a term begins.
    next: u64,
}

impl Modes {
    /// The rules that the store has when `term` begins.
    pub(crate) fn new(term: Term, now: Timestamp, stored: impl IntoIterator<Item = StoredMode>) -> Self {
        let mut this = Self { rules: BTreeMap::new(), term, next: 1 };
        for mode in stored {
            this.add(now, mode, RuleStage::InForce);
        }
        this
    }

    pub(crate) fn add(&mut self, now: Timestamp, StoredMode { rule, expires_in }: StoredMode, stage: RuleStage) {
        let expires = expires_in.map(|left| now + left);
        self.rules.insert(rule.id, Standing { rule, stage, expires });
    }

    pub(crate) fn get(&self, id: ModeId) -> Option<&Standing> {
        self.rules.get(&id)
    }

    pub(crate) fn set_stage(&mut self, id: ModeId, stage: RuleStage) {
        if let Some(standing) = self.rules.get_mut(&id) {
            standing.stage = stage;
        }
    }

    pub(crate) fn remove(&mut self, id: ModeId) -> Option<Standing> {
        self.rules.remove(&id)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.rules.len() >= MAX_RULES
    }

    /// Those that the store has.
    pub(crate) fn in_force(&self) -> impl Iterator<Item = &ModeRule> {
        self.rules.values().filter(|standing| standing.stage != RuleStage::Setting).map(|standing| &standing.rule)
    }

    /// Whether hands are off an appliance that is granted to `owner`.
    pub(crate) fn cover(&self, appliance: ApplianceId, subject: &ModeSubject, owner: Option<&WorkerId>) -> bool {
        self.in_force().any(|rule| rule.scope.covers(appliance, subject, owner))
    }

    /// Where every appliance begins in this term.
    pub(crate) const fn first(&self) -> Mode {
        Mode::new(ModeEdition::new(self.term, 0), false)
    }

    /// An edition above every one that was given.
    pub(crate) const fn next_edition(&mut self) -> ModeEdition {
        let edition = ModeEdition::new(self.term, self.next);
        self.next += 1;
        edition
    }

    /// Somebody knows an edition of this term that may not have been given in it: none that follows is below it, unless it is
    /// so far ahead that it is made up.
    pub(crate) fn skip_past(&mut self, edition: ModeEdition) {
        let ahead = edition.sequence.saturating_sub(self.next);
        if edition.term == self.term && edition.sequence >= self.next && ahead < PLAUSIBLE_EDITIONS {
            self.next = edition.sequence + 1;
        }
    }

    /// Whether an edition was given in this term.
    pub(crate) fn has_given(&self, edition: ModeEdition) -> bool {
        edition.term == self.term && edition.sequence < self.next
    }

    /// Rules whose time is over, and that are not being cleared.
    pub(crate) fn expired(&self, now: Timestamp) -> Vec<ModeId> {
        let is_over = |standing: &Standing| standing.expires.is_some_and(|at| at <= now);
        let in_force = self.rules.iter().filter(|(_, standing)| standing.stage == RuleStage::InForce);
        in_force.filter(|(_, standing)| is_over(standing)).map(|(id, _)| *id).collect()
    }

    /// When the next one is over.
    pub(crate) fn next_expiry(&self) -> Option<Timestamp> {
        let in_force = self.rules.values().filter(|standing| standing.stage == RuleStage::InForce);
        in_force.filter_map(|standing| standing.expires).min()
    }

    /// The end of a rule could not be written; one that ends by itself is tried again at this time.
    pub(crate) fn not_cleared(&mut self, id: ModeId, again_at: Timestamp) {
        if let Some(standing) = self.rules.get_mut(&id) {
            standing.stage = RuleStage::InForce;
            standing.expires = standing.expires.map(|at| at.max(again_at));
        }
    }

    #[cfg(feature = "canon")]
    pub(crate) fn canon(&self, to: &mut common::canon::Canon) {
        let Self { rules, term: _, next } = self;
        to.list(rules.iter().map(|(id, Standing { rule: _, stage, expires })| {
            // Of whom it is and why is for people; a model has no two rules of one name.
            (id.get() as u64, *stage as u32, expires.is_some())
        }));
        to.put(&ModeEdition::new(self.term, *next));
    }
}

#[cfg(test)]
mod tests {
    use common::mode::ModeScope;

    use super::*;

    fn rule(n: u128, expires_in: Option<Duration>) -> StoredMode {
        let (reason, by) = (String::new(), String::new());
        let rule = ModeRule {
            id: ModeId::new(n),
            scope: ModeScope::Global,
            reason,
            by,
            since_unix_ms: 0,
            expires_unix_ms: None,
        };
        StoredMode { rule, expires_in }
    }

    #[test]
    fn a_rule_covers_from_when_it_is_stored_until_its_end_is() {
        let (id, now) = (ApplianceId::from_u128(1), Timestamp::from_millis(5));
        let subject =
            ModeSubject { tenant: common::appliance::Name::new("t").expect("valid"), labels: BTreeMap::new() };
        let mut modes = Modes::new(Term::new(3), now, []);
        modes.add(now, rule(1, None), RuleStage::Setting);
        assert!(!modes.cover(id, &subject, None));
        modes.set_stage(ModeId::new(1), RuleStage::InForce);
        assert!(modes.cover(id, &subject, None));
        modes.set_stage(ModeId::new(1), RuleStage::Clearing);
        assert!(modes.cover(id, &subject, None));
        modes.remove(ModeId::new(1));
        assert!(!modes.cover(id, &subject, None));
    }

    #[test]
    fn a_rule_expires_once_and_is_tried_again_when_its_end_was_not_stored() {
        let now = Timestamp::from_millis(1_000);
        let mut modes = Modes::new(Term::new(3), now, [rule(1, Some(Duration::from_secs(2))), rule(2, None)]);
        let at = Timestamp::from_millis(3_000);
        assert_eq!((modes.expired(now), modes.next_expiry()), (vec![], Some(at)));
        assert_eq!(modes.expired(at), [ModeId::new(1)]);
        modes.set_stage(ModeId::new(1), RuleStage::Clearing);
        assert_eq!((modes.expired(at), modes.next_expiry()), (vec![], None));
        let later = Timestamp::from_millis(3_500);
        modes.not_cleared(ModeId::new(1), later);
        assert_eq!((modes.expired(at), modes.expired(later)), (vec![], vec![ModeId::new(1)]));
    }

    #[test]
    fn editions_rise_above_what_was_given_and_what_is_met() {
        let mut modes = Modes::new(Term::new(3), Timestamp::ZERO, []);
        assert!(modes.has_given(modes.first().edition));
        let first = modes.next_edition();
        assert!(first > modes.first().edition && modes.has_given(first));
        let foreign = ModeEdition::new(Term::new(3), 9);
        assert!(!modes.has_given(foreign) && !modes.has_given(ModeEdition::new(Term::new(2), 1)));
        modes.skip_past(foreign);
        assert!(modes.next_edition() > foreign);
        modes.skip_past(ModeEdition::new(Term::new(3), u64::MAX));
        assert!(modes.next_edition().sequence < 20, "made up");
    }
}

//! What a person should look at: found when the term began, and contradictions met since.

use std::collections::VecDeque;
use std::time::SystemTime;

use common::Term;
use coordinator_core::machine::TermClaim;
use coordinator_core::violation::ViolationCounts;
use tracing::warn;

use crate::store::Unreadable;

/// Contradictions that are shown; older ones stand in the log.
const VIOLATIONS: usize = 10;

/// What contradicted the table while this coordinator led, also in terms before the present one: a worker that ends a term
/// must not wipe out what it did.
#[derive(Clone, Debug, Default)]
pub struct Violations {
    /// How often in former terms.
    counts: ViolationCounts,
    /// The last ones.
    shown: VecDeque<String>,
    /// When something was last refused.
    last: Option<SystemTime>,
}

impl Violations {
    /// These and what the machine of the term has counted.
    pub(super) fn counts(&self, of_term: &ViolationCounts) -> ViolationCounts {
        of_term.and(&self.counts)
    }

    /// When something was last refused.
    pub(super) const fn last(&self) -> Option<SystemTime> {
        self.last
    }
}

/// What a person should look at.
#[derive(Debug, Default)]
pub(super) struct Notes {
    found: Vec<String>,
    /// The term of the database before this one.
    stored: Term,
    /// That a worker had met a later one is among them.
    rewound: bool,
    violations: Violations,
}

impl Notes {
    /// What the terms tell: the store's, the service's, and one that a worker claims to have met; and what was refused in
    /// former terms.
    pub(super) fn found(
        stored: Term,
        service: Option<Term>,
        external: bool,
        claim: Option<&TermClaim>,
        violations: Violations,
    ) -> Self {
        let mut found = Vec::new();
        match service {
            None if external && stored > Term::default() => found.push(format!(
                "the coordination service knew no term, the database was at {stored}: its data is new, or was wiped"
            )),
            Some(term) if term < stored => found.push(format!(
                "the coordination service was at {term}, the database at {stored}: its data comes from an older copy"
            )),
            // One ahead is a leader that ended between the two.
            Some(term) if term.get() > stored.get().saturating_add(1) => found.push(format!(
                "the database was at {stored}, the coordination service at {term}: the database comes from an older \
                 copy, or leaders ended before they could write to it"
            )),
            _ => {}
        }
        if let Some(TermClaim { met, by }) = claim {
            found.push(format!("this term was begun because {by} claims to have met {met}"));
        }
        for note in &found {
            warn!("{note}");
        }
        let mut notes = Self { found, stored, violations, ..Self::default() };
        if let Some(claim) = claim.filter(|claim| service.is_none_or(|term| claim.met > term)) {
            notes.met(claim.met);
        }
        notes
    }

    /// A worker had met this term of another leader. Leaders begin their term in the database before they speak to
    /// anybody, so one that the database does not know was lost with what was written in it.
    pub(super) fn met(&mut self, met: Term) {
        if met <= self.stored || self.rewound {
            return;
        }
        self.rewound = true;
        let note = format!(
            "a worker had met {met}, the database was at {}: the database comes from an older copy; what workers hold \
             under later tokens is taken from them and given anew",
            self.stored
        );
        warn!("{note}");
        self.found.push(note);
    }

    pub(super) fn unreadable(&mut self, one: &Unreadable) {
        self.found.push(format!(
            "appliance {} ({}/{}) is stored and cannot be read, so nobody looks after it: {}",
            one.id, one.tenant, one.name, one.why
        ));
    }

    /// Something was refused because it contradicts the table.
    pub(super) fn violation(&mut self, text: String, now: SystemTime) {
        let Violations { counts: _, shown, last } = &mut self.violations;
        *last = Some(now);
        if shown.contains(&text) {
            return;
        }
        if shown.len() == VIOLATIONS {
            shown.pop_front();
        }
        shown.push_back(text);
    }

    /// What was refused.
    pub(super) const fn violations(&self) -> &Violations {
        &self.violations
    }

    /// What the next term of this coordinator is told, once this one has ended with these counts.
    pub(super) fn into_violations(self, of_term: &ViolationCounts) -> Violations {
        Violations { counts: self.violations.counts(of_term), ..self.violations }
    }

    pub(super) fn list(&self) -> Vec<String> {
        self.found.iter().chain(&self.violations.shown).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use coordinator_core::violation::ViolationKind;

    use super::*;

    #[test]
    fn a_term_that_the_database_does_not_know_is_noted_once() {
        let (stored, service) = (Term::new(3), Some(Term::new(4)));
        let mut notes = Notes::found(stored, service, true, None, Violations::default());
        notes.met(Term::new(3));
        assert_eq!(notes.list(), Vec::<String>::new(), "one ahead is a leader that ended before it could write");
        notes.met(Term::new(4));
        notes.met(Term::new(4));
        let list = notes.list();
        assert!(list.len() == 1 && list[0].contains("a worker had met t4, the database was at t3"), "{list:?}");
    }
    #[test]
    fn a_term_that_a_claim_began_names_the_worker_and_keeps_what_was_refused() {
        let mut notes = Notes::found(Term::new(3), None, false, None, Violations::default());
        let mut counts = ViolationCounts::default();
        for text in ["one", "two"] {
            notes.violation(text.to_owned(), SystemTime::UNIX_EPOCH);
            counts.add(ViolationKind::ClaimedGrant);
        }
        let claim = TermClaim { met: Term::new(9), by: "w1".parse().expect("a name") };
        let mut next =
            Notes::found(Term::new(3), Some(Term::new(9)), true, Some(&claim), notes.into_violations(&counts));
        next.violation("three".to_owned(), SystemTime::UNIX_EPOCH);
        let list = next.list();
        assert!(list.contains(&"this term was begun because w1 claims to have met t9".to_owned()), "{list:?}");
        assert!(list.ends_with(&["one", "two", "three"].map(str::to_owned)), "{list:?}");
        assert_eq!(next.violations().counts(&counts).total(), 4);
    }
}

//! What a person should look at: found when the term began, and contradictions met since.

use std::collections::VecDeque;
use std::time::SystemTime;

use common::Term;
use tracing::warn;

use crate::store::Unreadable;

/// Contradictions that are shown; older ones stand in the log.
const VIOLATIONS: usize = 10;

/// What a person should look at.
#[derive(Debug, Default)]
pub(super) struct Notes {
    found: Vec<String>,
    /// The term of the database before this one.
    stored: Term,
    /// That a worker had met a later one is among them.
    rewound: bool,
    violations: VecDeque<String>,
    /// When something was last refused in this term.
    last_violation: Option<SystemTime>,
}

impl Notes {
    /// What the terms tell: the store's, the service's, and one that a worker had met.
    pub(super) fn found(stored: Term, service: Option<Term>, external: bool, met: Term) -> Self {
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
        for note in &found {
            warn!("{note}");
        }
        let mut notes = Self { found, stored, ..Self::default() };
        if service.is_none_or(|term| met > term) {
            notes.met(met);
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
        self.last_violation = Some(now);
        if self.violations.contains(&text) {
            return;
        }
        if self.violations.len() == VIOLATIONS {
            self.violations.pop_front();
        }
        self.violations.push_back(text);
    }

    /// When something was last refused in this term.
    pub(super) const fn last_violation(&self) -> Option<SystemTime> {
        self.last_violation
    }

    pub(super) fn list(&self) -> Vec<String> {
        self.found.iter().chain(&self.violations).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_that_the_database_does_not_know_is_noted_once() {
        let (stored, service) = (Term::new(3), Some(Term::new(4)));
        let mut notes = Notes::found(stored, service, true, Term::default());
        notes.met(Term::new(3));
        assert_eq!(notes.list(), Vec::<String>::new(), "one ahead is a leader that ended before it could write");
        notes.met(Term::new(4));
        notes.met(Term::new(4));
        let list = notes.list();
        assert!(list.len() == 1 && list[0].contains("a worker had met t4, the database was at t3"), "{list:?}");
    }
}

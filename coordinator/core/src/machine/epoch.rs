//! The term of a leader: its clock, and the numbers it gives, each of them once.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

use common::{ApplianceId, Incarnation, Life, Term, Timestamp, Token};

/// Newest tokens of which it is known for what they were given: 8 MiB. What is claimed under an older one is taken as
/// under a token of another term.
const REMEMBERED: usize = 1 << 20;

/// One term.
#[derive(Clone, Debug)]
pub(super) struct Epoch {
    pub(super) term: Term,
    /// Sequence of the next token.
    pub(super) next_sequence: u64,
    /// For what each of the newest tokens was given, the newest last.
    given: VecDeque<u64>,
    next_incarnation: u64,
    /// When the term began.
    pub(super) started: Timestamp,
    /// Time of the newest step; it never goes back.
    pub(super) last_step: Timestamp,
}

/// A digest of what a token is given for. Equal ones of different grants are no danger: what is claimed under such a token
/// is taken as it was before tokens were remembered.
fn purpose(appliance: ApplianceId, life: &Life) -> u64 {
    let mut hasher = DefaultHasher::new();
    (appliance, life).hash(&mut hasher);
    hasher.finish()
}

impl Epoch {
    pub(super) const fn new(term: Term, now: Timestamp) -> Self {
        Self { term, next_sequence: 1, given: VecDeque::new(), next_incarnation: 1, started: now, last_step: now }
    }

    /// A token that was never given before, for the grant of this appliance to this life.
    pub(super) fn next_token(&mut self, appliance: ApplianceId, to: &Life) -> Token {
        let token = Token::new(self.term, self.next_sequence);
        self.next_sequence += 1;
        if self.given.len() == REMEMBERED {
            self.given.pop_front();
        }
        self.given.push_back(purpose(appliance, to));
        token
    }

    /// Whether a token claims to be of this term and was not given in it.
    pub(super) fn is_foreign(&self, token: Token) -> bool {
        token.term == self.term && token.sequence >= self.next_sequence
    }

    /// Whether a token was given in this term, and for another grant than that of this appliance to this life. `false` also
    /// when that is not known any more.
    pub(super) fn gave_elsewhere(&self, token: Token, appliance: ApplianceId, life: &Life) -> bool {
        if token.term != self.term {
            return false;
        }
        let oldest = self.next_sequence - self.given.len() as u64;
        let at = token.sequence.checked_sub(oldest).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.given.get(at)).is_some_and(|given| *given != purpose(appliance, life))
    }

    /// A life that never was before, for a worker without a coordination service.
    pub(super) fn next_incarnation(&mut self) -> Incarnation {
        let number = self.next_incarnation;
        self.next_incarnation += 1;
        Incarnation::embedded(self.term, number)
    }
}

#[cfg(test)]
mod tests {
    use common::WorkerId;

    use super::*;

    #[test]
    fn the_newest_tokens_are_known_by_what_they_were_given_for() {
        let life = |name| Life::new(WorkerId::new(name).expect("valid"), Incarnation::new(1));
        let (id, w1, w2) = (ApplianceId::from_u128, life("w1"), life("w2"));
        let mut epoch = Epoch::new(Term::new(3), Timestamp::default());
        let first = epoch.next_token(id(1), &w1);
        assert!(!epoch.gave_elsewhere(first, id(1), &w1));
        assert!(epoch.gave_elsewhere(first, id(1), &w2) && epoch.gave_elsewhere(first, id(2), &w1));
        for unknown in [Token::new(Term::new(2), 1), Token::new(Term::new(3), 0), Token::new(Term::new(3), 2)] {
            assert!(!epoch.gave_elsewhere(unknown, id(1), &w2), "{unknown} was not given in this term");
        }
        (0..REMEMBERED).for_each(|_| _ = epoch.next_token(id(1), &w1));
        assert_eq!(epoch.given.len(), REMEMBERED);
        assert!(!epoch.gave_elsewhere(first, id(1), &w2), "forgotten");
        assert!(epoch.gave_elsewhere(Token::new(Term::new(3), 2), id(1), &w2), "the oldest that is remembered");
    }
}

//! The term of a leader: its clock, and the numbers it gives, each of them once.

use common::{Incarnation, Term, Timestamp, Token};

/// One term.
#[derive(Clone, Copy, Debug)]
pub(super) struct Epoch {
    pub(super) term: Term,
    /// Sequence of the next token.
    pub(super) next_sequence: u64,
    next_incarnation: u64,
    /// When the term began.
    pub(super) started: Timestamp,
    /// Time of the newest step; it never goes back.
    pub(super) last_step: Timestamp,
}

impl Epoch {
    pub(super) const fn new(term: Term, now: Timestamp) -> Self {
        Self { term, next_sequence: 1, next_incarnation: 1, started: now, last_step: now }
    }

    /// A token that was never given before.
    pub(super) const fn next_token(&mut self) -> Token {
        let token = Token::new(self.term, self.next_sequence);
        self.next_sequence += 1;
        token
    }

    /// Whether a token claims to be of this term and was not given in it.
    pub(super) fn is_foreign(&self, token: Token) -> bool {
        token.term == self.term && token.sequence >= self.next_sequence
    }

    /// A life that never was before, for a worker without a coordination service.
    pub(super) fn next_incarnation(&mut self) -> Incarnation {
        let number = self.next_incarnation;
        self.next_incarnation += 1;
        Incarnation::embedded(self.term, number)
    }
}

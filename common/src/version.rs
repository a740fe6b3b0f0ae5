//! Versions: what orders the events of the protocol. Order comes from these, never from wall clocks.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The counter at `value`.
            #[must_use]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The value as a plain number, for the wire and the store.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The value after this one.
            ///
            /// # Panics
            /// After 2^64 steps, which no running system reaches.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("a 64-bit counter does not run out"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

counter! {
    /// The leader's epoch. Grows with every election; fences store writes and stream messages. 0 is "none yet".
    Term, "t"
}
/// How far above the leader's own a term may be that a worker, or what an appliance runs on, claims to have met, for a new
/// term to be begun above it. A claim is true only where the database was put back to an older copy, and terms grow by one
/// with each election: these are one a day for more than a year. What lies further ahead is shown, and an operator decides.
pub const PLAUSIBLE_TERMS: u64 = 512;

/// How far above the newest one that the leader has heard of the number of a stream may be. A worker counts every stream
/// it opens, also to coordinators that do not lead: these are ten a second for thirteen years.
pub const PLAUSIBLE_STREAMS: u64 = 1 << 32;

counter! {
    /// Counts the changes of one appliance's spec, from 1.
    Generation, "g"
}
counter! {
    /// Numbers the session streams a worker opened within one incarnation, from 1. The newest closes the older ones.
    StreamNumber, "s"
}

/// How many terms are left out where nothing tells the highest one that was begun. A leader that lives begins one every few
/// hours at most, and a copy of a database is rarely older than weeks.
const LEFT_OUT: u64 = 1_000;

impl Term {
    /// The term to begin above `above`, where the coordination service has `found`. A service that has none while others
    /// were begun has lost it: if the database was put back as well, the terms between its copy and now are known to
    /// nobody, and one of them must not be begun a second time. `None` when there is no term left.
    #[must_use]
    pub fn following(found: Option<Self>, above: Self) -> Option<Self> {
        let left_out = if found.is_none() && above > Self::default() { LEFT_OUT } else { 0 };
        let highest = found.unwrap_or_default().max(above);
        highest.0.checked_add(1)?.checked_add(left_out).map(Self)
    }
}

/// One state of what an appliance shall be. Where a database was put back to an older copy, generations are counted on from
/// the copy, so that one number can mean two things; the term it was written in tells them apart, since every term is
/// higher than any before and writes a generation once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Edition {
    /// Its number.
    pub generation: Generation,
    /// The term it was written in.
    pub term: Term,
}

impl Edition {
    /// `generation` as written in `term`.
    #[must_use]
    pub const fn new(generation: Generation, term: Term) -> Self {
        Self { generation, term }
    }
}

impl fmt::Display for Edition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.generation, self.term)
    }
}

/// The right of one worker to act on one appliance, once. Unique, offered once, ordered by term first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Token {
    /// Term of the leader that granted it.
    pub term: Term,
    /// Number within the term, from 1, over all appliances.
    pub sequence: u64,
}

impl Token {
    /// The token `sequence` of `term`.
    #[must_use]
    pub const fn new(term: Term, sequence: u64) -> Self {
        Self { term, sequence }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.term, self.sequence)
    }
}

/// One life of a worker. Compared for equality only: with ZooKeeper it is the session that owns the member node,
/// embedded it is made of the term and a number given at `Hello`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(u128);

impl Incarnation {
    /// The incarnation with this value.
    #[must_use]
    pub const fn new(value: u128) -> Self {
        Self(value)
    }

    /// The `number`-th incarnation an embedded coordinator gave out in `term`.
    #[must_use]
    pub const fn embedded(term: Term, number: u64) -> Self {
        Self(((term.get() as u128) << 64) | number as u128)
    }

    /// The value, for the wire and the store.
    #[must_use]
    pub const fn get(self) -> u128 {
        self.0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i{:x}", self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_a_later_term_is_greater_whatever_its_sequence() {
        assert!(Token::new(Term::new(2), 1) > Token::new(Term::new(1), u64::MAX));
        assert!(Token::new(Term::new(2), 2) > Token::new(Term::new(2), 1));
    }

    #[test]
    fn embedded_incarnations_of_different_terms_differ() {
        assert_ne!(Incarnation::embedded(Term::new(1), 2), Incarnation::embedded(Term::new(2), 1));
    }
}

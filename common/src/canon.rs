//! The canonical form of a state, for the model checker: what two states that behave alike have in common.
//!
//! A part of the system writes itself down as *words*. A word is a number with its sort, and the sort says what of the
//! number matters: of a moment how far it is ahead, of tokens, streams and the like only which are equal and which is
//! greater. The checker takes the words of all parts together, puts moments in relation to its clock and numbers in
//! relation to each other, and takes states whose words are equal then for one. So a part must write whatever its
//! behaviour depends on; what it leaves out, it has to say why.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::driver::{DriverCapabilities, DriverOffers};
use crate::mode::{Mode, ModeEdition, Quiet};
use crate::secret::{LifeSeal, LifeSecret};
use crate::session::{Ack, AnnouncedStep, Carryover, Declined, Envelope, GrantRef, Hello, OwnedGrant, Release};
use crate::status::{EndCause, InstanceEnd, JournalEntry, Progress};
use crate::{
    ApplianceId, Edition, Generation, Incarnation, Life, Profile, RebalanceId, Site, StreamNumber, Term, Timestamp,
    Token, WorkerId,
};

/// A time that no run reaches: what happens after so long is left out of the canonical form.
pub const NEVER: Duration = Duration::from_secs(1 << 30);

const SORT_SHIFT: u32 = 60;
const VALUE: u64 = (1 << SORT_SHIFT) - 1;
/// Tokens and rebalances carry their term in these bits.
const TERM_SHIFT: u32 = 44;

/// Streams carry their life above these bits.
const STREAM_SHIFT: u32 = 32;

/// What of a number matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Sort {
    /// All of it.
    Plain,
    /// Microseconds since the origin: how far it is ahead; whatever has come is alike.
    Until,
    /// Order and equality among the tokens of its term.
    Token,
    /// Equality, and the order of maps.
    Life,
    /// Order and equality.
    Conn,
    /// Order and equality, within its life.
    Stream,
    /// Order and equality.
    Batch,
    /// Order and equality: a place in the chain of batches of a store.
    Place,
    /// Equality, within its term.
    Rebalance,
    /// Order and equality among the editions of modes of its term.
    Mode,
}

impl Sort {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Plain,
        Self::Until,
        Self::Token,
        Self::Life,
        Self::Conn,
        Self::Stream,
        Self::Batch,
        Self::Place,
        Self::Rebalance,
        Self::Mode,
    ];

    /// The sort of a word.
    #[must_use]
    pub const fn of(word: u64) -> Self {
        Self::ALL[(word >> SORT_SHIFT) as usize]
    }
}

/// The number of a word, without its sort; with the term, for sorts that have one.
#[must_use]
pub const fn value(word: u64) -> u64 {
    word & VALUE
}

/// The term of a word that has one.
#[must_use]
pub const fn term(word: u64) -> u64 {
    value(word) >> TERM_SHIFT
}

/// The words of one part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Canon {
    words: Vec<u64>,
}

impl Canon {
    /// The words of one part.
    #[must_use]
    pub fn of<T: Canonical + ?Sized>(part: &T) -> Self {
        let mut this = Self::default();
        part.canon(&mut this);
        this
    }

    /// Words that were written before.
    pub fn words(&mut self, words: &[u64]) {
        self.words.extend_from_slice(words);
    }

    /// The words, to be kept.
    #[must_use]
    pub fn into_words(self) -> Vec<u64> {
        self.words
    }

    fn push(&mut self, sort: Sort, value: u64) {
        debug_assert!(value <= VALUE, "{sort:?} {value} does not fit into a word");
        self.words.push((sort as u64) << SORT_SHIFT | value & VALUE);
    }

    /// A number all of which matters.
    pub fn plain(&mut self, value: u64) {
        self.push(Sort::Plain, value);
    }

    /// A text, by its hash (FNV-1a, cut to 60 bits).
    pub fn text(&mut self, text: &str) {
        let hash = text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        self.plain(hash & VALUE);
    }

    /// A moment at which something begins to hold, and goes on to.
    pub fn until(&mut self, moment: Timestamp) {
        self.push(Sort::Until, moment.as_nanos().div_ceil(1_000).min(VALUE));
    }

    /// The moment `limit` after `since`, unless that is never.
    pub fn after(&mut self, since: Timestamp, limit: Duration) {
        if limit < NEVER {
            self.until(since + limit);
        }
    }

    /// A stream of a life. Streams of different lives are never put in relation to each other.
    pub fn stream(&mut self, of: Option<Incarnation>, stream: StreamNumber) {
        let life = of.map_or(0, |life| u64::try_from(life.get()).unwrap_or(VALUE)) & (VALUE >> STREAM_SHIFT);
        self.push(Sort::Stream, life << STREAM_SHIFT | stream.get());
    }

    /// A connection, as the shell numbers them.
    pub fn conn(&mut self, conn: u64) {
        self.push(Sort::Conn, conn);
    }

    /// A group of writes.
    pub fn batch(&mut self, batch: u64) {
        self.push(Sort::Batch, batch);
    }

    /// A place in the chain of batches.
    pub fn place(&mut self, number: u64) {
        self.push(Sort::Place, number);
    }

    /// Anything that can write itself.
    pub fn put<T: Canonical + ?Sized>(&mut self, part: &T) {
        part.canon(self);
    }

    /// Every item, and where they end.
    pub fn list<T: Canonical>(&mut self, items: impl IntoIterator<Item = T>) {
        let at = self.words.len();
        self.words.push(0);
        let mut count = 0;
        for item in items {
            item.canon(self);
            count += 1;
        }
        self.words[at] = count;
    }
}

/// Can write down what its behaviour depends on.
pub trait Canonical {
    /// Writes it.
    fn canon(&self, to: &mut Canon);
}

impl<T: Canonical + ?Sized> Canonical for &T {
    fn canon(&self, to: &mut Canon) {
        (**self).canon(to);
    }
}

impl<T: Canonical + ?Sized> Canonical for Box<T> {
    fn canon(&self, to: &mut Canon) {
        (**self).canon(to);
    }
}

impl<T: Canonical> Canonical for Option<T> {
    fn canon(&self, to: &mut Canon) {
        to.list(self);
    }
}

impl<T: Canonical> Canonical for [T] {
    fn canon(&self, to: &mut Canon) {
        to.list(self);
    }
}

impl<T: Canonical> Canonical for Vec<T> {
    fn canon(&self, to: &mut Canon) {
        to.list(self);
    }
}

impl<T: Canonical> Canonical for VecDeque<T> {
    fn canon(&self, to: &mut Canon) {
        to.list(self);
    }
}

impl<T: Canonical> Canonical for BTreeSet<T> {
    fn canon(&self, to: &mut Canon) {
        to.list(self);
    }
}

impl<K: Canonical, V: Canonical> Canonical for BTreeMap<K, V> {
    fn canon(&self, to: &mut Canon) {
        to.list(self);
    }
}

impl<A: Canonical, B: Canonical> Canonical for (A, B) {
    fn canon(&self, to: &mut Canon) {
        self.0.canon(to);
        self.1.canon(to);
    }
}

impl<A: Canonical, B: Canonical, C: Canonical> Canonical for (A, B, C) {
    fn canon(&self, to: &mut Canon) {
        self.0.canon(to);
        self.1.canon(to);
        self.2.canon(to);
    }
}

impl Canonical for bool {
    fn canon(&self, to: &mut Canon) {
        to.plain(u64::from(*self));
    }
}

impl Canonical for u32 {
    fn canon(&self, to: &mut Canon) {
        to.plain(u64::from(*self));
    }
}

impl Canonical for u64 {
    fn canon(&self, to: &mut Canon) {
        to.plain(*self);
    }
}

impl Canonical for usize {
    fn canon(&self, to: &mut Canon) {
        to.plain(*self as u64);
    }
}

impl Canonical for str {
    fn canon(&self, to: &mut Canon) {
        to.text(self);
    }
}

impl Canonical for String {
    fn canon(&self, to: &mut Canon) {
        to.text(self);
    }
}

impl Canonical for Duration {
    fn canon(&self, to: &mut Canon) {
        to.plain(u64::try_from(self.as_micros()).unwrap_or(VALUE).min(VALUE));
    }
}

impl Canonical for WorkerId {
    fn canon(&self, to: &mut Canon) {
        to.text(self.as_str());
    }
}

impl Canonical for Site {
    fn canon(&self, to: &mut Canon) {
        to.text(self.as_str());
    }
}

impl Canonical for ApplianceId {
    fn canon(&self, to: &mut Canon) {
        // Models number their appliances; whoever does not is told apart by the hash all the same.
        let value = u128::from_be_bytes(*self.as_bytes());
        match u64::try_from(value) {
            Ok(small) if small <= VALUE => to.plain(small),
            _ => to.text(&self.to_string()),
        }
    }
}

impl Canonical for Generation {
    fn canon(&self, to: &mut Canon) {
        to.plain(self.get());
    }
}

impl Canonical for Edition {
    fn canon(&self, to: &mut Canon) {
        let Self { generation, term } = self;
        to.put(&(generation, term));
    }
}

impl Canonical for Term {
    fn canon(&self, to: &mut Canon) {
        to.plain(self.get());
    }
}

impl Canonical for Token {
    fn canon(&self, to: &mut Canon) {
        to.push(Sort::Token, self.term.get() << TERM_SHIFT | self.sequence);
    }
}

impl Canonical for ModeEdition {
    fn canon(&self, to: &mut Canon) {
        to.push(Sort::Mode, self.term.get() << TERM_SHIFT | self.sequence);
    }
}

impl Canonical for Mode {
    fn canon(&self, to: &mut Canon) {
        let Self { edition, hands_off } = self;
        to.put(&(edition, hands_off));
    }
}

impl Canonical for Quiet {
    fn canon(&self, to: &mut Canon) {
        let Self { appliance, token, edition, fence_delay } = self;
        to.put(&(appliance, token, edition));
        to.put(fence_delay);
    }
}

impl Canonical for RebalanceId {
    fn canon(&self, to: &mut Canon) {
        to.push(Sort::Rebalance, self.term.get() << TERM_SHIFT | self.number);
    }
}

impl Canonical for Incarnation {
    fn canon(&self, to: &mut Canon) {
        to.push(Sort::Life, u64::try_from(self.get()).unwrap_or(VALUE).min(VALUE));
    }
}

impl Canonical for Life {
    fn canon(&self, to: &mut Canon) {
        let Self { worker, incarnation } = self;
        to.put(&(worker, incarnation));
    }
}

impl Canonical for Profile {
    fn canon(&self, to: &mut Canon) {
        let Self { weight, zone, host, drivers, version, pid, process, lease } = self;
        to.put(&(weight, zone, host));
        to.put(drivers);
        to.put(&(version, pid, lease));
        to.put(&process.map(|process| process.to_string()));
    }
}

impl Canonical for DriverOffers {
    fn canon(&self, to: &mut Canon) {
        to.list(self.iter().map(|(driver, capabilities)| (driver.as_str(), capabilities)));
    }
}

impl Canonical for DriverCapabilities {
    fn canon(&self, to: &mut Canon) {
        let Self { state_dir, site, keeps_host, fence_delay, plugs_ports, judges, logs, kinds } = self;
        to.put(&(state_dir, site.map(|id| id.to_string()), keeps_host));
        to.put(&(fence_delay, plugs_ports, (judges, logs)));
        to.list(kinds.iter().map(|kind| kind.as_str()));
    }
}

impl Canonical for Progress {
    fn canon(&self, to: &mut Canon) {
        let Self { failed_boots, ends, attempts, wait, cooling, journal, last_end } = self;
        to.put(failed_boots);
        to.put(ends);
        to.put(attempts);
        to.put(wait);
        to.put(cooling);
        to.list(journal.iter().map(|JournalEntry { step, request_id }| (step, request_id)));
        to.put(last_end);
    }
}

impl Canonical for InstanceEnd {
    fn canon(&self, to: &mut Canon) {
        let Self { instance, at_unix_ms, cause, out_of_memory, last_lines } = self;
        to.put(&(instance, at_unix_ms));
        match cause {
            EndCause::Exit(status) => to.put(&(false, i64::from(*status).cast_unsigned())),
            EndCause::Signal(number) => to.put(&(true, i64::from(*number).cast_unsigned())),
        }
        to.put(out_of_memory);
        to.put(last_lines);
    }
}

impl Canonical for Envelope {
    fn canon(&self, to: &mut Canon) {
        let Self { term, incarnation, stream } = self;
        to.put(&(term, incarnation));
        to.stream(*incarnation, *stream);
    }
}

impl Canonical for GrantRef {
    fn canon(&self, to: &mut Canon) {
        let Self { appliance, token } = self;
        to.put(&(appliance, token));
    }
}

impl Canonical for OwnedGrant {
    fn canon(&self, to: &mut Canon) {
        let Self { appliance, token, edition, mode } = self;
        to.put(&(appliance, token, edition));
        to.put(mode);
    }
}

impl Canonical for Carryover {
    fn canon(&self, to: &mut Canon) {
        let Self { progress, fence_delay } = self;
        to.put(&(progress, fence_delay));
    }
}

impl Canonical for Release {
    fn canon(&self, to: &mut Canon) {
        let Self { appliance, token, carryover } = self;
        to.put(&(appliance, token, carryover));
    }
}

impl Canonical for Declined {
    fn canon(&self, to: &mut Canon) {
        // The reason is for people.
        let Self { appliance, token, reason: _ } = self;
        to.put(&(appliance, token));
    }
}

impl Canonical for AnnouncedStep {
    fn canon(&self, to: &mut Canon) {
        let Self { appliance, token, number } = self;
        to.put(&(appliance, token, number));
    }
}

impl Canonical for Hello {
    fn canon(&self, to: &mut Canon) {
        let Self { worker, profile, owned, released, removed, highest_term, secret, knows_modes } = self;
        to.put(worker);
        to.put(profile);
        to.put(owned);
        to.put(released);
        to.put(removed);
        to.put(highest_term);
        to.put(&secret.as_ref().map(LifeSecret::seal));
        to.put(knows_modes);
    }
}

impl Canonical for LifeSeal {
    fn canon(&self, to: &mut Canon) {
        to.text(&self.to_string());
    }
}

impl Canonical for Ack {
    fn canon(&self, to: &mut Canon) {
        let Self { applied, granted, declined, released, removed, begun, ended, quiet } = self;
        to.put(&(applied, granted, declined));
        to.put(&(released, removed));
        to.put(&(begun, ended, quiet));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_keeps_sort_term_and_order() {
        let words = Canon::of(&[Token::new(Term::new(2), 5), Token::new(Term::new(2), 6)][..]).into_words();
        assert_eq!(words[0], 2, "how many there are");
        assert!(words[1] < words[2]);
        assert_eq!((Sort::of(words[1]), term(words[1])), (Sort::Token, 2));
    }

    #[test]
    fn what_never_comes_is_left_out() {
        let mut canon = Canon::default();
        canon.after(Timestamp::ZERO, NEVER);
        assert_eq!(canon, Canon::default());
        canon.after(Timestamp::from_millis(1), Duration::from_nanos(1));
        assert_eq!(canon.into_words().into_iter().map(value).collect::<Vec<_>>(), [1_001], "rounded up");
    }
}

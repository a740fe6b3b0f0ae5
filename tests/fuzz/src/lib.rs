//! Fuzzing of every decoder: what comes from the wire, from ZooKeeper, from the database, from files and from appliances is parsed
//! and never trusted.
//!
//! It runs on a stable compiler and needs no instrumentation. Each [`Target`] has seeds: valid inputs made by the code that writes
//! them, and what was found once ([`corpus`]). [`mutate`] changes them; an input whose *outcome* is new (which error of which
//! field, which shape of a value) joins the seeds of that run, which leads deeper into a decoder as coverage would
//! ([decision 37](../../../docs/decisions/0037-fuzzing-on-stable.md)). For each input [`run`] checks:
//!
//! - no panic, also of arithmetic, since it runs with checks on;
//! - memory: at most [`memory::allowed`] bytes at a time, which grows with the length of the input and nothing else;
//! - time: no input takes longer than [`run::SLOW`];
//! - what parses and is written again parses to the same (each target says of what).

pub mod corpus;
pub mod memory;
pub mod mutate;
pub mod run;
pub mod targets;

/// One decoder.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, also of its folder in the corpus.
    pub name: &'static str,
    /// Valid inputs, made by the code that writes them.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Feeds it one input, and checks what is specific to it by panicking.
    pub feed: fn(&[u8]) -> Outcome,
}

/// What an input came to: equal for inputs that take the same way, as far as that can be told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outcome(u64);

impl Outcome {
    /// An input that was refused. Digits and what is quoted do not count: a message is the same whatever value it names.
    #[must_use]
    pub fn refused(text: &str) -> Self {
        let mut quoted = false;
        let kept = text.bytes().take(200).filter(|byte| {
            quoted ^= matches!(byte, b'`' | b'"');
            !quoted && !byte.is_ascii_digit()
        });
        Self(kept.fold(0xcbf2_9ce4_8422_2325, hash))
    }

    /// An input that was read as something of this shape.
    #[must_use]
    pub fn read(shape: &impl std::fmt::Debug) -> Self {
        Self(format!("{shape:?}").bytes().fold(0x9ae1_6a3b_2f90_404f, hash))
    }
}

fn hash(sum: u64, byte: u8) -> u64 {
    (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
}

/// The power of two a number is next to: numbers of the same size count as the same shape.
#[must_use]
pub const fn size(number: usize) -> u32 {
    usize::BITS - number.leading_zeros()
}

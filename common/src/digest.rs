//! What a worker holds, as one number that two sides can compare.
//!
//! A digest is the number of grants and the sum, modulo 2^128, of the MD5 of each of them (appliance and token). A sum
//! can be kept up to date: a change costs one hash, whatever is held, and the order of changes leaves no trace. A grant
//! that was lost, one too many, or one under another token changes it for certain when it is the only difference, and but
//! for one chance in 2^128 otherwise; a plain exclusive or of the tokens would not see two that were swapped. MD5 is what
//! the ring uses already, the same everywhere, and mixes well. That it can be forged does not matter: a worker that
//! wanted to deceive could simply say what the leader expects.

use md5::{Digest as _, Md5};

use crate::{ApplianceId, Token};

/// A set of grants; equal sets have equal digests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest {
    /// Grants.
    pub count: u64,
    /// Sum of their hashes.
    pub sum: u128,
}

impl Digest {
    /// Takes a grant in.
    pub fn add(&mut self, appliance: ApplianceId, token: Token) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(hash(appliance, token));
    }

    /// Takes a grant out that is in.
    pub fn remove(&mut self, appliance: ApplianceId, token: Token) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(hash(appliance, token));
    }

    /// Whether nothing is in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl FromIterator<(ApplianceId, Token)> for Digest {
    fn from_iter<I: IntoIterator<Item = (ApplianceId, Token)>>(grants: I) -> Self {
        let mut digest = Self::default();
        for (appliance, token) in grants {
            digest.add(appliance, token);
        }
        digest
    }
}

/// Of the appliance's 16 bytes, then term and sequence, each as 8 bytes with the highest first.
fn hash(appliance: ApplianceId, token: Token) -> u128 {
    let mut text = [0; 32];
    text[..16].copy_from_slice(appliance.as_bytes());
    text[16..24].copy_from_slice(&token.term.get().to_be_bytes());
    text[24..].copy_from_slice(&token.sequence.to_be_bytes());
    u128::from_be_bytes(Md5::digest(text).into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Term;

    fn grant(n: u128, sequence: u64) -> (ApplianceId, Token) {
        (ApplianceId::from_u128(n), Token::new(Term::new(3), sequence))
    }

    #[test]
    fn the_hash_is_the_one_on_the_wire() {
        let digest: Digest = [grant(1, 2)].into_iter().collect();
        // md5 of 15 zero bytes, 1, 7 zero bytes, 3, 7 zero bytes, 2.
        assert_eq!((digest.count, format!("{:032x}", digest.sum)), (1, "8f42e51f812cccc9b743c97e9daa4cee".to_owned()));
    }

    #[test]
    fn a_lost_an_additional_and_a_swapped_grant_show() {
        let whole: Digest = (1..=100).map(|n| grant(n, n as u64)).collect();
        let lost: Digest = (1..100).map(|n| grant(n, n as u64)).collect();
        let more: Digest = (1..=101).map(|n| grant(n, n as u64)).collect();
        let newer: Digest = (1..=100).map(|n| grant(n, n as u64 + u64::from(n == 7))).collect();
        let swapped = (1..=100).map(|n| grant(n, if n < 3 { 3 - n as u64 } else { n as u64 })).collect();
        for other in [lost, more, newer, swapped] {
            assert_ne!(whole, other);
        }
    }

    proptest! {
        #[test]
        fn what_is_kept_step_by_step_is_that_of_the_set(changes in prop::collection::vec((0_u128..20, 0_u64..5), 0..200)) {
            let mut held = std::collections::BTreeMap::new();
            let mut kept = Digest::default();
            for (n, sequence) in changes {
                let (id, token) = grant(n, sequence);
                if let Some(before) = held.insert(id, token) {
                    kept.remove(id, before);
                }
                kept.add(id, token);
                if sequence == 4 {
                    held.remove(&id);
                    kept.remove(id, token);
                }
            }
            prop_assert_eq!(kept, held.into_iter().collect::<Digest>());
        }
    }
}

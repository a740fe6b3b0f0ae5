//! What proves that a stream belongs to a life.
//!
//! Name and incarnation of a life are public: clients read them, and in ZooKeeper they are names and numbers of nodes. So
//! a worker draws a random [`LifeSecret`] for each life and says it in every `Hello`; what is kept of it, beside the life,
//! is its [`LifeSeal`], from which the secret cannot be found (docs/protocol.md, Streams and Hello).

use std::fmt;

use sha2::{Digest, Sha256};

/// Bytes of a secret and of its seal.
pub const SECRET_BYTES: usize = 32;

/// The secret of one life, known to its worker alone. It is sent in `Hello`, and neither stored nor printed.
#[derive(Clone)]
pub struct LifeSecret([u8; SECRET_BYTES]);

impl LifeSecret {
    /// The secret with these bytes, which have to come from a random source of the operating system.
    #[must_use]
    pub const fn new(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes, for the wire.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }

    /// What may be kept and shown of it.
    #[must_use]
    pub fn seal(&self) -> LifeSeal {
        LifeSeal(Sha256::digest(self.0).into())
    }
}

impl PartialEq for LifeSecret {
    fn eq(&self, other: &Self) -> bool {
        equal(&self.0, &other.0)
    }
}

impl Eq for LifeSecret {}

impl fmt::Debug for LifeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LifeSecret(..)")
    }
}

/// What a life is sealed with: the SHA-256 of its secret.
#[derive(Clone, Copy)]
pub struct LifeSeal([u8; SECRET_BYTES]);

impl LifeSeal {
    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }

    /// Reads what [`fmt::Display`] writes: 64 hexadecimal digits. `None` for anything else.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 2 * SECRET_BYTES {
            return None;
        }
        let mut bytes = [0; SECRET_BYTES];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |at: usize| pair.get(at).and_then(|c| char::from(*c).to_digit(16));
            *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
        }
        Some(Self(bytes))
    }
}

impl PartialEq for LifeSeal {
    fn eq(&self, other: &Self) -> bool {
        equal(&self.0, &other.0)
    }
}

impl Eq for LifeSeal {}

impl fmt::Display for LifeSeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LifeSeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LifeSeal({self})")
    }
}

/// Compares in a time that does not depend on where the two differ, so that nobody can find bytes one by one.
fn equal(one: &[u8; SECRET_BYTES], other: &[u8; SECRET_BYTES]) -> bool {
    let differ = one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b));
    std::hint::black_box(differ) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_tells_secrets_apart_and_is_read_as_it_is_written() {
        let (one, other) = (LifeSecret::new([7; 32]), LifeSecret::new([8; 32]));
        assert!(one == one.clone() && one != other);
        assert!(one.seal() == one.seal() && one.seal() != other.seal());
        let text = one.seal().to_string();
        assert_eq!(LifeSeal::from_hex(&text), Some(one.seal()));
        for wrong in ["", &text[1..], &text.replace(|c: char| c.is_ascii_digit(), "+"), &format!("{text}0")] {
            assert_eq!(LifeSeal::from_hex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_seal_is_the_sha_256_of_its_secret() {
        // Of 32 zero bytes, as sha256sum prints it.
        let expected = "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925";
        assert_eq!(LifeSecret::new([0; 32]).seal().to_string(), expected);
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", LifeSecret::new([7; 32])), "LifeSecret(..)");
    }
}

//! Identifiers. Each is a newtype with a private field, parsed once at the edge and trusted afterwards.
//!
//! Member names (workers, coordinators) become ZooKeeper node names in a tooz group, so they follow what python-tooz
//! can carry: printable ASCII without `/`, and neither `leader` nor `locks`, which tooz uses for its own nodes.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::version::Term;

/// Longest member name in bytes; keeps node names and log lines readable and far below ZooKeeper's own limits.
pub const MAX_MEMBER_NAME: usize = 128;

/// Identity of one appliance, for all of its life and unique for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ApplianceId(Uuid);

impl ApplianceId {
    /// Wraps a UUID that the caller chose.
    #[must_use]
    pub const fn new(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The identity made of `n`, for tests and simulations that need many distinct, ordered ids.
    #[must_use]
    pub const fn from_u128(n: u128) -> Self {
        Self(Uuid::from_u128(n))
    }

    /// The UUID itself.
    #[must_use]
    pub const fn uuid(self) -> Uuid {
        self.0
    }

    /// The sixteen bytes used on the wire and in packed rows.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The identity with these sixteen bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for ApplianceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for ApplianceId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self).map_err(|e| InvalidId::Uuid(text.chars().take(64).collect(), e.to_string()))
    }
}

/// Why a text is not an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Not a UUID; carries the start of the text and the parser's reason.
    #[error("`{0}` is not a UUID: {1}")]
    Uuid(String, String),
    /// A member name of no characters.
    #[error("a member name must not be empty")]
    Empty,
    /// Longer than [`MAX_MEMBER_NAME`] bytes.
    #[error("a member name has at most {MAX_MEMBER_NAME} bytes, this one has {0}")]
    TooLong(usize),
    /// A character that a ZooKeeper node name in a tooz group cannot carry; carries its place, from 1. The text itself may
    /// be a password that was set in place of the name.
    #[error("a member name has only printable ASCII characters without `/`, which character {0} is not")]
    Character(usize),
    /// A name that tooz or ZooKeeper keeps for itself.
    #[error("a member name must not be `leader`, `locks`, `.` or `..`, which are reserved")]
    Reserved,
}

fn check_member_name(text: &str) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty);
    }
    if text.len() > MAX_MEMBER_NAME {
        return Err(InvalidId::TooLong(text.len()));
    }
    if let Some(before) = text.chars().position(|c| !c.is_ascii_graphic() || c == '/') {
        return Err(InvalidId::Character(before + 1));
    }
    if matches!(text, "leader" | "locks" | "." | "..") {
        return Err(InvalidId::Reserved);
    }
    Ok(())
}

macro_rules! member_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and wraps a name.
            ///
            /// # Errors
            /// [`InvalidId`] says which rule the text breaks.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                check_member_name(text)?;
                Ok(Self(Arc::from(text)))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }
    };
}

member_name! {
    /// Stable name of a worker; the same over all of its incarnations.
    WorkerId
}
member_name! {
    /// Stable name of a coordinator.
    CoordinatorId
}

/// Identity of one rebalance: the term of the leader that made it and its number within that term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RebalanceId {
    /// Term of the leader that made the plan.
    pub term: Term,
    /// Number within the term, from 1.
    pub number: u64,
}

impl fmt::Display for RebalanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}-{}", self.term.get(), self.number)
    }
}

impl FromStr for RebalanceId {
    type Err = InvalidRebalanceId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (term, number) = text.strip_prefix('r')?.split_once('-')?;
            Some(Self { term: Term::new(term.parse().ok()?), number: number.parse().ok()? })
        };
        parse().ok_or_else(|| InvalidRebalanceId(text.chars().take(64).collect()))
    }
}

/// The text is not of the form `r<term>-<number>`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a rebalance id like `r3-17`")]
pub struct InvalidRebalanceId(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_names_that_tooz_cannot_carry_are_refused() {
        for text in ["", "a/b", "leader", "locks", "..", "ä", "a b", &"x".repeat(129)] {
            assert!(WorkerId::new(text).is_err(), "{text:?} was accepted");
        }
        assert_eq!(WorkerId::new("rug-host-1:4711").expect("valid").to_string(), "rug-host-1:4711");
    }

    #[test]
    fn rebalance_ids_read_back_what_they_print() {
        let id = RebalanceId { term: Term::new(3), number: 17 };
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("r3".parse::<RebalanceId>().is_err());
    }
}

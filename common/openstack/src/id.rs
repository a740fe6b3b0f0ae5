//! Ids of objects, as services give them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest id, in bytes.
const MAX_ID: usize = 64;

/// The id of an object: a UUID mostly, of projects and users 32 to 64 hexadecimal digits. It becomes part of paths, so that nothing else
/// than letters, digits, `-` and `_` is accepted of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResourceId(Box<str>);

/// The text is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not the id of an object: 1 to {MAX_ID} letters, digits, - and _")]
pub struct InvalidId;

impl ResourceId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ResourceId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
        if (1..=MAX_ID).contains(&text.len()) && text.bytes().all(inner) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidId)
        }
    }
}

impl TryFrom<String> for ResourceId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ResourceId> for String {
    fn from(id: ResourceId) -> Self {
        id.0.into()
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_cannot_leave_its_place_in_a_path() {
        for text in ["", ".", "..", "a/b", "a?b", "a b", "%2e", "é", &"x".repeat(65)] {
            assert_eq!(text.parse::<ResourceId>(), Err(InvalidId), "{text}");
        }
        assert!(serde_json::from_str::<ResourceId>("\"6e97d14a-93b4-4daa-a307-36c1761e1b76\"").is_ok());
        assert!(serde_json::from_str::<ResourceId>("7").is_err());
    }
}

//! Names that people give to appliances and tenants.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest appliance or tenant name, in bytes (that of a DNS label, so that names can become host names).
pub const MAX_NAME: usize = 63;

/// Name of an appliance or tenant: 1 to 63 of `a-z 0-9 - . _`, starting and ending with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

/// The text is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a name: 1 to 63 of a-z 0-9 - . _ that start and end with a letter or digit")]
pub struct InvalidName(String);

impl Name {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`InvalidName`] with the start of the text.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let bytes = text.as_bytes();
        let valid = bytes.len() <= MAX_NAME
            && bytes.first().copied().is_some_and(ok)
            && bytes.last().copied().is_some_and(ok)
            && bytes.iter().all(|&c| ok(c) || matches!(c, b'-' | b'.' | b'_'));
        if valid { Ok(Self(Arc::from(text))) } else { Err(InvalidName(text.chars().take(80).collect())) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().to_owned()
    }
}

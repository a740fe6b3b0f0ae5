//! Pages of lists. A token identifies where the next page begins, by name and not by number, so that it stays valid
//! while entries come and go; clients must treat it as opaque.

use std::fmt::Write as _;

use common::appliance::{FieldViolation, Name};
use tonic::Status;
use uuid::Uuid;

use super::status;
use crate::catalog::Filter;
use crate::views::ApplianceKey;

/// Default size of a page.
const DEFAULT: usize = 100;
/// Most entries of one page.
const MOST: usize = 1000;

/// Parses a page size; values above the maximum mean the maximum.
pub(super) fn size(size: i32) -> Result<usize, Status> {
    match usize::try_from(size) {
        Ok(0) => Ok(DEFAULT),
        Ok(n) => Ok(n.min(MOST)),
        Err(_) => Err(status::invalid(&[FieldViolation::new("page_size", format!("must be 0 to {MOST}, is {size}"))])),
    }
}

/// Where a page of appliances begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PageStart {
    /// Last entry of the page before.
    pub(super) after: ApplianceKey,
    /// Matches on all pages, as counted for the first one: counting again for each page would make reading all pages
    /// quadratic.
    pub(super) total: u64,
}

impl PageStart {
    pub(super) fn token(&self, filter: &Filter) -> String {
        seal(&format!("{}/{}/{}/{}", digest(filter), self.total, self.after.0, self.after.1))
    }

    pub(super) fn read(token: &str, filter: &Filter) -> Result<Option<Self>, Status> {
        if token.is_empty() {
            return Ok(None);
        }
        let text = open(token).ok_or_else(odd)?;
        let parts: Vec<_> = text.split('/').collect();
        let [made_for, total, tenant, name] = parts.as_slice() else { return Err(odd()) };
        if *made_for != digest(filter) {
            return Err(other_filter());
        }
        let key = Name::new(tenant).ok().zip(Name::new(name).ok());
        let (after, total) = key.zip(total.parse().ok()).ok_or_else(odd)?;
        Ok(Some(Self { after, total }))
    }
}

/// Reads a token and makes it anew; `None` when it is refused or empty. For the fuzz tests, as is [`make_token`].
pub fn reseal(token: &str, filter: &Filter) -> Option<String> {
    PageStart::read(token, filter).ok().flatten().map(|start| start.token(filter))
}

/// The token of the page after an appliance.
pub fn make_token(tenant: Name, name: Name, total: u64, filter: &Filter) -> String {
    PageStart { after: (tenant, name), total }.token(filter)
}

/// Makes a token of a plain text.
pub(super) fn seal(text: &str) -> String {
    text.bytes().fold(String::with_capacity(2 * text.len()), |mut token, byte| {
        let _ = write!(token, "{byte:02x}");
        token
    })
}

/// The text of a token made by [`seal`].
pub(super) fn open(token: &str) -> Option<String> {
    if !token.len().is_multiple_of(2) || token.len() > 1024 || !token.is_ascii() {
        return None;
    }
    let bytes = (0..token.len()).step_by(2).map(|i| u8::from_str_radix(&token[i..i + 2], 16).ok());
    String::from_utf8(bytes.collect::<Option<Vec<_>>>()?).ok()
}

/// The error for a token that was not made here.
pub(super) fn odd() -> Status {
    status::invalid(&[FieldViolation::new("page_token", "was not made by this API")])
}

/// The error for the token of a list with another filter.
pub(super) fn other_filter() -> Status {
    status::invalid(&[FieldViolation::new("page_token", "belongs to a list with another filter")])
}

fn digest(filter: &Filter) -> String {
    let digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{filter:?}").as_bytes());
    seal_bytes(&digest.as_bytes()[..4])
}

fn seal_bytes(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).expect("a valid name")
    }

    #[test]
    fn a_token_reads_back_and_only_with_its_filter() {
        let filter = Filter { tenant: Some(name("a")), ..Filter::default() };
        let position = PageStart { after: (name("a"), name("web-1")), total: 17 };
        let token = position.token(&filter);
        assert_eq!(PageStart::read(&token, &filter).expect("just made"), Some(position));
        assert!(PageStart::read(&token, &Filter::default()).is_err());
    }

    #[test]
    fn invalid_tokens_are_refused_without_a_panic() {
        for token in ["x", "zz", "ä", "61", "612f622f63", &"00".repeat(600)] {
            assert!(PageStart::read(token, &Filter::default()).is_err(), "{token:?}");
        }
    }

    #[test]
    fn page_sizes_have_bounds() {
        assert_eq!([0, 1, 5000].map(|n| size(n).expect("not negative")), [100, 1, 1000]);
        assert!(size(-1).is_err());
    }
}

//! The one place where wire messages become domain types and back.
//!
//! The wire is untrusted. Two kinds of sender meet here, and each gets the errors it can use:
//!
//! - users ([`admin`], [`patch`]): everything that is wrong is collected as [`FieldViolation`]s with the API's own field
//!   paths (`appliance.spec.replicas`), so that one answer names every mistake of a document;
//! - workers and coordinators ([`up`], [`down`]): the first thing that is wrong is a [`WireError`] that names message and
//!   field; the stream it came from ends. Entries that only one appliance depends on are set aside instead.
//!
//! Sizes are checked before anything is built from them. Defaults that the `.proto` files promise ("default" when empty)
//! are filled in here and nowhere else. Nothing past this module handles raw requests.

pub mod admin;
pub mod down;
pub mod patch;
pub mod scalar;
mod spec;
pub mod up;
mod worker;

#[cfg(test)]
mod tests;

use common::appliance::FieldViolation;

pub use spec::{spec_from_wire, spec_to_wire, take_maps};
pub use worker::{MAX_ENTRIES_PER_MESSAGE, WireError};

/// Most violations one answer carries. A document with more is broken as a whole, and an answer has to fit into the
/// metadata of a gRPC status.
pub const MAX_VIOLATIONS: usize = 32;

/// Collects what is wrong with a document.
#[derive(Debug, Default)]
pub(crate) struct Found(Vec<FieldViolation>);

impl Found {
    pub(crate) fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        let violation = FieldViolation::new(field, description);
        if self.0.len() < MAX_VIOLATIONS && !self.0.contains(&violation) {
            self.0.push(violation);
        }
    }

    /// Adds `violation` unless its field is named already: a field that could not be read has a placeholder, and what
    /// a later check says about that would only confuse.
    pub(crate) fn add_if_new(&mut self, violation: FieldViolation) {
        if self.0.len() < MAX_VIOLATIONS && !self.0.iter().any(|v| v.field == violation.field) {
            self.0.push(violation);
        }
    }

    /// Takes the value, or notes at `field` why there is none.
    pub(crate) fn take<T, E: std::fmt::Display>(&mut self, field: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|e| self.add(field, e.to_string())).ok()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn into_result<T>(self, value: Option<T>) -> Result<T, Vec<FieldViolation>> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self.0),
        }
    }
}

//! Limits of a specification, and what is reported of a field that exceeds them.

use std::fmt;

/// Most instances one appliance can ask for.
pub const MAX_REPLICAS: u16 = 16;
/// Most arguments, environment variables, listeners and members (each) of one spec.
pub const MAX_ENTRIES: usize = 256;
/// Longest single text in a spec, in bytes.
pub const MAX_TEXT: usize = 4096;
/// Largest spec, in bytes of its JSON form. Anything larger is refused before it is stored.
pub const MAX_SPEC: usize = 256 * 1024;
/// One thing that is wrong with a document, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field in the API's spelling, such as `spec.loadbalancer.listeners[0].port`.
    pub field: String,
    /// What is wrong, lower case, without a final stop.
    pub description: String,
}

impl FieldViolation {
    /// A violation of `field`.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }

    /// The same violation, seen from a document that has this one in its field `section`.
    #[must_use]
    pub fn within(self, section: &str) -> Self {
        Self { field: format!("{section}.{}", self.field), description: self.description }
    }

    /// The violations of a document's sections, seen from the document.
    pub fn of_sections<'a>(sections: impl IntoIterator<Item = (&'a str, Vec<Self>)>) -> impl Iterator<Item = Self> {
        sections.into_iter().flat_map(|(section, found)| found.into_iter().map(move |one| one.within(section)))
    }
}

impl fmt::Display for FieldViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.description)
    }
}

/// Most violations one answer carries. A document with more is broken as a whole, and an answer has to fit into the
/// metadata of a gRPC status.
pub const MAX_VIOLATIONS: usize = 32;

/// Collects what is wrong with a document.
#[derive(Debug, Default)]
pub struct Violations(Vec<FieldViolation>);

impl Violations {
    /// Adds what is wrong with `field`, unless that was said already or there are [`MAX_VIOLATIONS`].
    pub fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        let violation = FieldViolation::new(field, description);
        if self.0.len() < MAX_VIOLATIONS && !self.0.contains(&violation) {
            self.0.push(violation);
        }
    }

    /// Adds `violation` unless its field is named already: a field that could not be read has a placeholder, and what
    /// a later check says about that would only confuse.
    pub fn add_if_new(&mut self, violation: FieldViolation) {
        if self.0.len() < MAX_VIOLATIONS && !self.0.iter().any(|v| v.field == violation.field) {
            self.0.push(violation);
        }
    }

    /// Takes the value, or notes at `field` why there is none.
    pub fn take<T, E: fmt::Display>(&mut self, field: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|e| self.add(field, e.to_string())).ok()
    }

    /// Whether nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value, if there is one and nothing was found.
    ///
    /// # Errors
    /// Everything that was found.
    pub fn into_result<T>(self, value: Option<T>) -> Result<T, Vec<FieldViolation>> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self.0),
        }
    }

    /// Everything that was found.
    #[must_use]
    pub fn into_vec(self) -> Vec<FieldViolation> {
        self.0
    }
}

pub(crate) fn check_text(found: &mut Vec<FieldViolation>, field: &str, text: &str, least: usize) {
    if text.len() < least {
        found.push(FieldViolation::new(field, "must not be empty"));
    }
    if text.len() > MAX_TEXT {
        found.push(FieldViolation::new(field, format!("has {} bytes, at most {MAX_TEXT} are allowed", text.len())));
    }
    if text.contains('\0') {
        found.push(FieldViolation::new(field, "must not hold a NUL character"));
    }
}

pub(crate) fn check_count(found: &mut Vec<FieldViolation>, field: &str, count: usize) {
    if count > MAX_ENTRIES {
        found.push(FieldViolation::new(field, format!("has {count} entries, at most {MAX_ENTRIES} are allowed")));
    }
}

pub(crate) fn check_port(found: &mut Vec<FieldViolation>, field: &str, port: u16, replicas: u16) {
    if port == 0 {
        found.push(FieldViolation::new(field, "must be 1 to 65535"));
    } else if port.checked_add(replicas.saturating_sub(1)).is_none() {
        found.push(FieldViolation::new(field, format!("{port} + {replicas} replicas goes beyond 65535")));
    }
}

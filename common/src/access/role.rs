//! What somebody may be, as text and as a value.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::appliance::Name;
use crate::{CoordinatorId, WorkerId};

/// What its holder may do. Printed and parsed as `admin`, `operator`, `editor:<tenant>`, `viewer`, `worker:<name>`,
/// `coordinator:<name>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Role {
    /// Everything that clients of the admin API can do.
    Admin,
    /// Looks after the fleet: reads everything but secrets, evicts, pauses, rebuilds; changes no specification.
    Operator,
    /// Reads and changes the appliances of one tenant, secrets included; sees nothing else.
    Editor(Name),
    /// Reads everything but secrets.
    Viewer,
    /// Is this worker, and no other.
    Worker(WorkerId),
    /// Is this coordinator: workers and clients talk to it, and it forwards calls of others in their name.
    Coordinator(CoordinatorId),
}

/// The text is not a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRole {
    /// None of the roles there are.
    #[error("`{0}` is not a role: admin, operator, viewer, editor:<tenant>, worker:<name> or coordinator:<name>")]
    Unknown(String),
    /// The part after the colon is not what it must be.
    #[error("`{role}` is not a role: {problem}")]
    Name {
        /// The start of the text.
        role: String,
        /// What is wrong with the name.
        problem: String,
    },
    /// A `*` that stands for nothing.
    #[error("`{0}`: the name that the rule matches has no `*`, so that there is nothing to put here")]
    NothingCaptured(String),
}

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let start = || text.chars().take(80).collect::<String>();
        let named = |problem: &dyn fmt::Display| InvalidRole::Name { role: start(), problem: problem.to_string() };
        match text.split_once(':') {
            None => match text {
                "admin" => Ok(Self::Admin),
                "operator" => Ok(Self::Operator),
                "viewer" => Ok(Self::Viewer),
                _ => Err(InvalidRole::Unknown(start())),
            },
            Some(("editor", tenant)) => Name::new(tenant).map(Self::Editor).map_err(|e| named(&e)),
            Some(("worker", name)) => WorkerId::new(name).map(Self::Worker).map_err(|e| named(&e)),
            Some(("coordinator", name)) => CoordinatorId::new(name).map(Self::Coordinator).map_err(|e| named(&e)),
            Some(_) => Err(InvalidRole::Unknown(start())),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin => f.write_str("admin"),
            Self::Operator => f.write_str("operator"),
            Self::Editor(tenant) => write!(f, "editor:{tenant}"),
            Self::Viewer => f.write_str("viewer"),
            Self::Worker(name) => write!(f, "worker:{name}"),
            Self::Coordinator(name) => write!(f, "coordinator:{name}"),
        }
    }
}

impl From<Role> for String {
    fn from(role: Role) -> Self {
        role.to_string()
    }
}

impl TryFrom<String> for Role {
    type Error = InvalidRole;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// A role in which one `*` may stand for what the rule's name captured: `worker:*`, or `*` for a role that is named as a
/// whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct RoleTemplate(String);

impl RoleTemplate {
    /// A template of this text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether it could ever be a role; `captures` says whether the name it belongs to has a `*`.
    ///
    /// # Errors
    /// [`InvalidRole`].
    pub fn check(&self, captures: bool) -> Result<(), InvalidRole> {
        if !self.0.contains('*') {
            return self.0.parse::<Role>().map(drop);
        }
        if !captures {
            return Err(InvalidRole::NothingCaptured(self.0.chars().take(80).collect()));
        }
        // Every kind of role takes one of these two in place of the `*`.
        self.fill("admin").map(drop).or_else(|_| self.fill("a").map(drop))
    }

    /// The role, with `captured` in place of the `*`. What was captured comes from a certificate or token: it may not be
    /// a name at all.
    ///
    /// # Errors
    /// [`InvalidRole`].
    pub fn fill(&self, captured: &str) -> Result<Role, InvalidRole> {
        self.0.replacen('*', captured, 1).parse()
    }
}

impl fmt::Display for RoleTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_printed_as_they_are_parsed() {
        for text in ["admin", "operator", "viewer", "editor:web", "worker:w-1", "coordinator:c1"] {
            assert_eq!(text.parse::<Role>().expect("a role").to_string(), text);
        }
        for text in
            ["", "Admin", "root", "editor", "editor:", "editor:A b", "worker:", "worker:a/b", "viewer:web", "a:b:c"]
        {
            assert!(text.parse::<Role>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_template_takes_up_what_was_captured_and_nothing_that_is_no_name() {
        let worker = RoleTemplate::new("worker:*");
        assert_eq!(worker.check(true), Ok(()));
        assert_eq!(worker.fill("w1").expect("a role").to_string(), "worker:w1");
        assert!(worker.fill("a/b").is_err() && worker.fill("").is_err());
        assert!(matches!(worker.check(false), Err(InvalidRole::NothingCaptured(_))));
        let whole = RoleTemplate::new("*");
        assert_eq!(whole.check(true), Ok(()));
        assert_eq!(whole.fill("operator"), Ok(Role::Operator));
        assert!(RoleTemplate::new("king:*").check(true).is_err());
        // What is captured cannot bring a second `*` to life.
        assert!(RoleTemplate::new("editor:*").fill("*").is_err());
    }
}

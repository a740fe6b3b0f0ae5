//! The rules of a coordinator, as they are applied to certificates.

use common::access::{NameRule, SubjectName, built_in_rules};

use super::config::{Config, OpenService};
use super::{Grants, Permission};

/// What is applied to each call.
#[derive(Clone, Debug)]
pub struct Policy {
    rules: Vec<NameRule>,
    anonymous: Vec<OpenService>,
}

impl Policy {
    /// The policy of a configuration that [`Config::validate`] accepts; rules that it would not accept are left out.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let rules = match config.rules.as_slice() {
            [] => built_in_rules(),
            rules => rules.iter().filter_map(|rule| rule.parse().ok()).collect(),
        };
        Self { rules, anonymous: config.anonymous.clone() }
    }

    /// The roles of a certificate with these names.
    #[must_use]
    pub fn grants<'a>(&self, names: impl IntoIterator<Item = SubjectName<'a>>) -> Grants {
        Grants::of(names.into_iter().flat_map(|name| self.rules.iter().flat_map(move |rule| rule.roles_of(name))))
    }

    /// Whether everybody may make calls that need this, without any role.
    #[must_use]
    pub fn is_open(&self, permission: Permission) -> bool {
        self.anonymous.iter().any(|open| match open {
            OpenService::Health => permission == Permission::Health,
            OpenService::Reflection => permission == Permission::Reflection,
        })
    }
}

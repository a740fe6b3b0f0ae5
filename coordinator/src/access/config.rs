//! `[authorization]`: which names have which roles.

use common::access::{NamePattern, NameRule, RoleTemplate};
use common::appliance::FieldViolation;
use serde::{Deserialize, Serialize};

use super::tokens;

/// Most rules.
const MAX_RULES: usize = 1_000;

/// Who may do what. Without this section the rules of
/// [`built_in_rules`](common::access::built_in_rules) apply once TLS is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What peers without any role may call.
    pub anonymous: Vec<OpenService>,
    /// Which names in certificates have which roles, in place of the built-in rules. All rules that match count.
    pub rules: Vec<RuleConfig>,
    /// Tokens of clients that have no certificate.
    pub tokens: tokens::Config,
}

/// A service that can be open to everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OpenService {
    /// Whether a coordinator serves, and whether it leads.
    Health,
    /// Which calls there are: what the `.proto` files say.
    Reflection,
}

/// Gives roles to certificates with a name; exactly one of the three names is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RuleConfig {
    /// URI among the alternative names. One `*` stands for one segment.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uri: String,
    /// DNS name among the alternative names. One `*` stands for one label.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dns: String,
    /// Common name of the subject. One `*` stands for any text without `/`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub common_name: String,
    /// The roles. A `*` in one is what the `*` in the name stood for.
    pub roles: Vec<RoleTemplate>,
}

impl Default for Config {
    fn default() -> Self {
        Self { anonymous: vec![OpenService::Health], rules: Vec::new(), tokens: tokens::Config::default() }
    }
}

impl Config {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        if self.rules.len() > MAX_RULES {
            found.push(FieldViolation::new("rules", format!("must be {MAX_RULES} at most, are {}", self.rules.len())));
        }
        for (n, rule) in self.rules.iter().enumerate() {
            if let Err((field, problem)) = rule.parse() {
                found.push(FieldViolation::new(format!("rules[{n}].{field}"), problem));
            }
        }
        found.extend(FieldViolation::of_sections([("tokens", self.tokens.validate())]));
        found
    }
}

impl RuleConfig {
    /// The rule.
    ///
    /// # Errors
    /// Field, and what is wrong with it.
    pub(super) fn parse(&self) -> Result<NameRule, (&'static str, String)> {
        let name = match (self.uri.as_str(), self.dns.as_str(), self.common_name.as_str()) {
            (uri, "", "") if !uri.is_empty() => NamePattern::uri(uri).map_err(|e| ("uri", e.to_string())),
            ("", dns, "") if !dns.is_empty() => NamePattern::dns(dns).map_err(|e| ("dns", e.to_string())),
            ("", "", name) if !name.is_empty() => {
                NamePattern::common_name(name).map_err(|e| ("common_name", e.to_string()))
            }
            _ => Err(("uri", "exactly one of uri, dns and common_name must be set".to_owned())),
        }?;
        check_roles(&self.roles, name.captures())?;
        Ok(NameRule { name, roles: self.roles.clone() })
    }
}

/// Checks the roles of a rule; `captures` says whether its name has a `*`.
pub(super) fn check_roles(roles: &[RoleTemplate], captures: bool) -> Result<(), (&'static str, String)> {
    if roles.is_empty() {
        return Err(("roles", "must name at least one".to_owned()));
    }
    roles.iter().try_for_each(|role| role.check(captures)).map_err(|e| ("roles", e.to_string()))
}

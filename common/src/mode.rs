//! Debug modes: rules of operators that nothing is changed about some appliances (*hands off*), and how leader and owners
//! agree on what holds for each (docs/protocol.md, Hands off).
//!
//! A [`ModeRule`] is what an operator sets; what it covers only the leader judges. A [`Mode`] is what follows for one
//! appliance, and all that its owner is told.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::selector::LabelSelector;
use crate::{ApplianceId, Term, Token, WorkerId};

/// Most entries of what an owner would have done about one appliance.
pub const MAX_WOULD_HAVE: usize = 16;

/// Orders what a leader says about the mode of one appliance, by term first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModeEdition {
    /// Term of the leader that said it.
    pub term: Term,
    /// Number within the term, over all appliances; 0 is what holds where no rule ever was.
    pub sequence: u64,
}

impl ModeEdition {
    /// The edition `sequence` of `term`.
    #[must_use]
    pub const fn new(term: Term, sequence: u64) -> Self {
        Self { term, sequence }
    }
}

impl fmt::Display for ModeEdition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.sequence)
    }
}

/// What holds for one appliance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mode {
    /// Of which edition this is.
    pub edition: ModeEdition,
    /// Nothing is to be changed about it.
    pub hands_off: bool,
}

impl Mode {
    /// Hands off, or on, as of `edition`.
    #[must_use]
    pub const fn new(edition: ModeEdition, hands_off: bool) -> Self {
        Self { edition, hands_off }
    }
}

/// Its owner has shut the gate for an appliance, and nothing that it began there is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quiet {
    /// The appliance.
    pub appliance: ApplianceId,
    /// Token it is owned under.
    pub token: Token,
    /// The edition that this acknowledges.
    pub edition: ModeEdition,
    /// For how long calls that had started may still take effect though no token fences them.
    pub fence_delay: Duration,
}

/// Names a rule. Whoever sets one makes it up, and may set the same one again: that is one rule. As text it has 32 hexadecimal
/// digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModeId(u128);

impl ModeId {
    /// The rule of this number.
    #[must_use]
    pub const fn new(value: u128) -> Self {
        Self(value)
    }

    /// The number, for the wire and the store.
    #[must_use]
    pub const fn get(self) -> u128 {
        self.0
    }
}

impl fmt::Display for ModeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A text that names no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a rule is named by 32 hexadecimal digits")]
pub struct InvalidModeId;

impl FromStr for ModeId {
    type Err = InvalidModeId;

    fn from_str(text: &str) -> Result<Self, InvalidModeId> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        value.map(Self).ok_or(InvalidModeId)
    }
}

impl TryFrom<String> for ModeId {
    type Error = InvalidModeId;

    fn try_from(text: String) -> Result<Self, InvalidModeId> {
        text.parse()
    }
}

impl From<ModeId> for String {
    fn from(id: ModeId) -> Self {
        id.to_string()
    }
}

/// What rules go by about an appliance, besides its id and its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeSubject {
    /// Its tenant.
    pub tenant: Name,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// Which appliances a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModeScope {
    /// All of them.
    Global,
    /// Those of a tenant.
    Tenant(Name),
    /// What this worker owns, or is being granted. What moves away from it is covered no longer.
    Worker(WorkerId),
    /// One appliance.
    Appliance(ApplianceId),
    /// Those that a selector of labels selects.
    Labels(LabelSelector),
}

impl ModeScope {
    /// Whether an appliance is covered that is granted to `owner`.
    #[must_use]
    pub fn covers(&self, appliance: ApplianceId, subject: &ModeSubject, owner: Option<&WorkerId>) -> bool {
        match self {
            Self::Global => true,
            Self::Tenant(tenant) => subject.tenant == *tenant,
            Self::Worker(worker) => owner == Some(worker),
            Self::Appliance(id) => appliance == *id,
            Self::Labels(selector) => selector.selects(&subject.labels),
        }
    }
}

impl fmt::Display for ModeScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.write_str("everything"),
            Self::Tenant(tenant) => write!(f, "tenant {tenant}"),
            Self::Worker(worker) => write!(f, "what worker {worker} owns"),
            Self::Appliance(id) => write!(f, "appliance {id}"),
            Self::Labels(selector) => write!(f, "labels {selector}"),
        }
    }
}

/// A rule, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModeRule {
    /// Its name.
    pub id: ModeId,
    /// What it covers.
    pub scope: ModeScope,
    /// Why it was set.
    pub reason: String,
    /// Who set it.
    pub by: String,
    /// When that was, by the clock of who led then.
    pub since_unix_ms: u64,
    /// When it ends by itself, by the clock of whoever leads then; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_unix_ms: Option<u64>,
}

/// Something that an owner would have done if hands were on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WouldHave {
    /// The step, for people.
    pub step: String,
    /// Why, as far as it is known.
    pub reason: String,
    /// How long ago that was decided last.
    pub ago: Duration,
    /// How often in a row.
    pub times: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(tenant: &str, labels: &[(&str, &str)]) -> ModeSubject {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        ModeSubject { tenant: Name::new(tenant).expect("valid"), labels }
    }

    #[test]
    fn each_scope_covers_what_it_names_and_nothing_else() {
        let (id, other) = (ApplianceId::from_u128(1), ApplianceId::from_u128(2));
        let (w1, w2) = (WorkerId::new("w1").expect("valid"), WorkerId::new("w2").expect("valid"));
        let red = subject("red", &[("env", "prod")]);
        let covers = |scope: &ModeScope, id, owner| scope.covers(id, &red, owner);
        assert!(covers(&ModeScope::Global, id, None));
        assert!(covers(&ModeScope::Tenant(Name::new("red").expect("valid")), id, None));
        assert!(!covers(&ModeScope::Tenant(Name::new("blue").expect("valid")), id, None));
        assert!(covers(&ModeScope::Appliance(id), id, None) && !covers(&ModeScope::Appliance(id), other, None));
        let labels = |text: &str| ModeScope::Labels(text.parse().expect("a selector"));
        assert!(covers(&labels("env=prod"), id, None) && !covers(&labels("env=test"), id, None));
        assert!(!covers(&labels(""), id, None), "an empty selector is not one for everything");
        let of_w1 = ModeScope::Worker(w1.clone());
        assert!(covers(&of_w1, id, Some(&w1)));
        assert!(!covers(&of_w1, id, Some(&w2)) && !covers(&of_w1, id, None), "what nobody owns is no worker's");
    }

    #[test]
    fn a_rule_survives_json_and_editions_are_ordered_by_term() {
        let rule = ModeRule {
            id: ModeId::new(u128::MAX),
            scope: ModeScope::Labels("env=prod".parse().expect("a selector")),
            reason: "maintenance".into(),
            by: "op".into(),
            since_unix_ms: 7,
            expires_unix_ms: None,
        };
        let text = serde_json::to_string(&rule).expect("plain data");
        assert_eq!(serde_json::from_str::<ModeRule>(&text).expect("round trip"), rule);
        for wrong in ["", "7", "+0000000000000000000000000000000", "g0000000000000000000000000000000"] {
            assert_eq!(wrong.parse::<ModeId>(), Err(InvalidModeId), "{wrong}");
        }
        assert!(ModeEdition::new(Term::new(2), 0) > ModeEdition::new(Term::new(1), u64::MAX));
    }
}

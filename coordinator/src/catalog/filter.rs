//! Which appliances a list or a watch is about.

use std::collections::BTreeMap;

use common::appliance::Name;
use common::driver::DriverName;
use common::selector::LabelSelector;
use common::status::Phase;

use crate::access::Scope;
use crate::views::{ApplianceKey, CatalogEntry};

/// Conditions that all must hold; absent ones hold for every appliance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this tenant.
    pub tenant: Option<Name>,
    /// Of the kind with this name.
    pub kind: Option<String>,
    /// With this driver.
    pub driver: Option<DriverName>,
    /// Held by, or being offered to, this worker.
    pub worker: Option<String>,
    /// In any of these phases; all when empty.
    pub phases: Vec<Phase>,
    /// With all of these labels.
    pub labels: BTreeMap<String, String>,
    /// With labels that it selects; all when absent.
    pub selector: Option<LabelSelector>,
    /// With names that start so.
    pub name_prefix: String,
    /// Within what the caller may see.
    pub scope: Scope,
}

impl Filter {
    /// Whether it holds for every appliance.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether `entry` fulfils all conditions.
    #[must_use]
    pub fn matches(&self, entry: &CatalogEntry) -> bool {
        let record = &entry.record;
        self.scope.contains(&record.tenant)
            && self.tenant.as_ref().is_none_or(|t| *t == record.tenant)
            && self.driver.as_ref().is_none_or(|d| *d == record.driver)
            && self.kind.as_ref().is_none_or(|k| k == record.spec.kind.name())
            && self.worker.as_ref().is_none_or(|w| entry.assignment.worker.as_ref().is_some_and(|o| o.as_str() == w))
            && (self.phases.is_empty() || self.phases.contains(&entry.phase()))
            && self.labels.iter().all(|(k, v)| record.labels.get(k) == Some(v))
            && self.selector.as_ref().is_none_or(|selector| selector.selects(&record.labels))
            && record.name.as_str().starts_with(&self.name_prefix)
    }

    /// The first name that can match, for filters of one tenant.
    pub(super) fn first_name(&self) -> Option<Name> {
        // "0" is the least of all names: `-`, `.` and `_` cannot come first.
        Name::new(&self.name_prefix).or_else(|_| Name::new("0")).ok()
    }

    /// Whether no appliance from `key` on can match, in the order of lists.
    pub(super) fn is_past(&self, key: &ApplianceKey) -> bool {
        self.tenant.as_ref().is_some_and(|tenant| {
            let prefix = self.name_prefix.as_str();
            key.0 > *tenant || (key.0 == *tenant && key.1.as_str() > prefix && !key.1.as_str().starts_with(prefix))
        })
    }
}

//! Settings of this source.

use common::appliance::FieldViolation;
use kubernetes::ClientConfig;
use serde::{Deserialize, Serialize};

use crate::sources::worker_pods;

/// Most namespaces that can be named. Each has a watch of its own.
const MAX_NAMESPACES: usize = 64;

/// Settings of what is read from Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Make appliances of the custom resources `Appliance` (`rug.dev/v1alpha1`).
    pub appliances: bool,
    /// Namespaces they are read from; all when empty.
    pub namespaces: Vec<String>,
    /// Take the tenant that a resource names, also where it is not its namespace. Whoever may write resources in one namespace
    /// can then have appliances in every tenant.
    pub any_tenant: bool,
    /// The pods that workers run in, whose ends tell of the ends of workers.
    pub workers: worker_pods::Config,
    /// How the API server is reached.
    pub client: ClientConfig,
}

impl Config {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found: Vec<_> =
            self.client.validate().into_iter().map(|violation| violation.within("client")).collect();
        found.extend(self.workers.validate().into_iter().map(|violation| violation.within("workers")));
        let is_label = |name: &String| {
            let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
            let (first, last) = (name.bytes().next(), name.bytes().last());
            name.len() <= 63
                && first.is_some_and(ok)
                && last.is_some_and(ok)
                && name.bytes().all(|c| ok(c) || c == b'-')
        };
        if let Some(wrong) = self.namespaces.iter().find(|name| !is_label(name)) {
            found.push(FieldViolation::new("namespaces", format!("`{wrong}` is not the name of a namespace")));
        }
        if self.namespaces.len() > MAX_NAMESPACES {
            let count = self.namespaces.len();
            let text = format!("has {count} entries, at most {MAX_NAMESPACES} are allowed; leave it empty for all");
            found.push(FieldViolation::new("namespaces", text));
        }
        let mut sorted = self.namespaces.clone();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            found.push(FieldViolation::new("namespaces", format!("names `{}` twice", twice[0])));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_have_names_and_are_named_once() {
        let of = |names: &[&str]| Config {
            namespaces: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Config::default()
        };
        assert_eq!(Config::default().validate(), []);
        assert_eq!(of(&["shop", "web-1"]).validate(), []);
        for (names, part) in
            [(&["Shop"][..], "not the name"), (&[""], "not the name"), (&["a", "b", "a"], "names `a` twice")]
        {
            let found = of(names).validate();
            assert!(found.len() == 1 && found[0].description.contains(part), "{found:?}");
        }
    }
}

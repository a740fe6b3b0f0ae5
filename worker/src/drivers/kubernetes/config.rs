//! Settings of the driver.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::appliance::{FieldViolation, Name};
use kubernetes::ClientConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::names;
use super::template::TemplateRight;
use crate::drivers::Error;

/// What stands for the tenant in `tenant_namespace`.
const TENANT: &str = "{tenant}";

/// Settings of the driver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The client.
    pub client: ClientConfig,
    /// Namespace of the anchors, and of pods whose tenant has none of its own; that of the service account or the context when empty.
    /// The same for every worker of a cluster.
    pub namespace: String,
    /// Namespaces of tenants. They have to exist.
    pub tenants: BTreeMap<String, String>,
    /// Namespace of tenants that are not in `tenants`, such as `rug-{tenant}`; `namespace` when empty. With it pods of all namespaces are
    /// watched.
    pub tenant_namespace: String,
    /// Image of appliances whose specification names none.
    pub image: String,
    /// Image of the reference appliance; has to have `rug-appliance` in its `PATH`.
    pub appliance_image: String,
    /// Secrets that images are pulled with.
    pub image_pull_secrets: Vec<String>,
    /// Service account of pods; that of their namespace when empty. No token of it is mounted.
    pub service_account_name: String,
    /// What templates of specifications may ask for beyond what any pod may have. Whoever writes specifications has it then, with the
    /// rights of the service account and the nodes.
    pub template_allow: BTreeSet<TemplateRight>,
    /// Labels of every pod beside Rug's own.
    pub labels: BTreeMap<String, String>,
    /// Annotations of every pod.
    pub annotations: BTreeMap<String, String>,
    /// Labels of the nodes that pods may run on.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that pods tolerate, as in a pod.
    pub tolerations: Vec<Value>,
    /// Resources of the appliance's container, as in a pod, unless the specification has others.
    pub resources: Value,
    /// Security context of pods, as in a pod. The default is what the profile `restricted` asks for.
    pub pod_security_context: Value,
    /// Security context of the appliance's container, as in a pod.
    pub security_context: Value,
    /// Port of appliances that name none and are probed at one; what `{port}` stands for.
    pub default_port: u16,
    /// Port of the REST contract of load balancers.
    pub management_port: u16,
    /// Type of the Services of load balancers.
    pub service_type: String,
    /// How long instances may take to end, unless their specification says so.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub stop_grace: Duration,
    /// How long pods may not have been heard of before what is known of them counts as out of date. The API server says something
    /// about every minute.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub watch_stale_after: Duration,
    /// Age of pods that never were released to run, and that no anchor names, after which they are removed; 0 s to leave them.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub orphan_age: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            client: ClientConfig::default(),
            namespace: String::new(),
            tenants: BTreeMap::new(),
            tenant_namespace: String::new(),
            image: String::new(),
            appliance_image: String::new(),
            image_pull_secrets: Vec::new(),
            service_account_name: String::new(),
            template_allow: BTreeSet::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            resources: json!({}),
            pod_security_context: json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}),
            security_context: json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}),
            default_port: 8080,
            management_port: 8079,
            service_type: "ClusterIP".to_owned(),
            stop_grace: Duration::from_secs(30),
            watch_stale_after: Duration::from_secs(150),
            orphan_age: Duration::from_secs(3_600),
        }
    }
}

impl Config {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found: Vec<_> = self.client.validate().into_iter().map(|v| v.within("client")).collect();
        let mut namespace = |field: String, name: &str| {
            if !names::is_namespace(name) {
                found.push(FieldViolation::new(field, names::NAMESPACE_RULE));
            }
        };
        if !self.namespace.is_empty() {
            namespace("namespace".to_owned(), &self.namespace);
        }
        for (tenant, name) in &self.tenants {
            namespace(format!("tenants[{tenant}]"), name);
        }
        if !self.tenant_namespace.is_empty() && !self.tenant_namespace.contains(TENANT) {
            found.push(FieldViolation::new("tenant_namespace", format!("must have {TENANT} in it")));
        }
        for (field, map) in [("labels", &self.labels), ("annotations", &self.annotations)] {
            for key in map.keys().filter(|key| names::is_own(key)) {
                found.push(FieldViolation::new(format!("{field}[{key}]"), "is set by Rug"));
            }
        }
        for (field, value) in [
            ("resources", &self.resources),
            ("pod_security_context", &self.pod_security_context),
            ("security_context", &self.security_context),
        ] {
            if !value.is_object() {
                found.push(FieldViolation::new(field, "must be a table"));
            }
        }
        if let Some(i) = self.tolerations.iter().position(|toleration| !toleration.is_object()) {
            found.push(FieldViolation::new(format!("tolerations[{i}]"), "must be a table"));
        }
        for (field, port) in [("default_port", self.default_port), ("management_port", self.management_port)] {
            if port == 0 {
                found.push(FieldViolation::new(field, "must be 1 to 65535"));
            }
        }
        let hour = Duration::from_secs(3_600);
        if self.stop_grace > hour || self.stop_grace < Duration::from_secs(1) {
            found.push(FieldViolation::new("stop_grace", "must be 1s to 1h"));
        }
        // The API server says something about every minute.
        if !(Duration::from_secs(70)..=hour).contains(&self.watch_stale_after) {
            found.push(FieldViolation::new("watch_stale_after", "must be 70s to 1h"));
        }
        if !self.orphan_age.is_zero() && self.orphan_age < Duration::from_secs(300) {
            found.push(FieldViolation::new("orphan_age", "must be 0s or at least 5m"));
        }
        found
    }

    /// Where pods of a tenant are made.
    ///
    /// # Errors
    /// [`Error::Refused`] when the tenant's name makes no namespace.
    pub(super) fn namespace_of(&self, tenant: &Name, default: &str) -> Result<String, Error> {
        let namespace = match self.tenants.get(tenant.as_str()) {
            Some(namespace) => namespace.clone(),
            None if self.tenant_namespace.is_empty() => default.to_owned(),
            None => self.tenant_namespace.replace(TENANT, tenant.as_str()),
        };
        if names::is_namespace(&namespace) {
            return Ok(namespace);
        }
        Err(Error::Refused(format!("the namespace {namespace:?} of tenant {tenant} {}", names::NAMESPACE_RULE)))
    }

    /// Whether pods are made in this namespace.
    pub(super) fn makes_pods_in(&self, namespace: &str, default: &str) -> bool {
        self.tenants.values().any(|own| own == namespace) || self.tenant_namespace.is_empty() && namespace == default
    }

    /// Where pods may be.
    pub(super) fn scope(&self, default: &str) -> WatchScope {
        if self.tenant_namespace.is_empty() {
            WatchScope::Namespaces(self.tenants.values().cloned().chain([default.to_owned()]).collect())
        } else {
            WatchScope::All
        }
    }
}

/// Which pods are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WatchScope {
    /// Those of all namespaces.
    All,
    /// Those of these.
    Namespaces(BTreeSet<String>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_its_namespace_and_a_bad_one_is_refused() {
        let tenant = |name: &str| Name::new(name).expect("a name");
        let tenants = BTreeMap::from([("t1".to_owned(), "ns1".to_owned())]);
        let config = Config { tenants: tenants.clone(), ..Config::default() };
        assert_eq!(config.validate(), []);
        assert_eq!(config.namespace_of(&tenant("t1"), "rug").expect("valid"), "ns1");
        assert_eq!(config.namespace_of(&tenant("t2"), "rug").expect("valid"), "rug");
        assert_eq!(config.scope("rug"), WatchScope::Namespaces(["ns1".to_owned(), "rug".to_owned()].into()));
        let config = Config { tenants, tenant_namespace: "rug-{tenant}".to_owned(), ..Config::default() };
        assert_eq!(config.namespace_of(&tenant("t2"), "rug").expect("valid"), "rug-t2");
        assert_eq!(config.scope("rug"), WatchScope::All);
        let long = tenant(&"x".repeat(63));
        assert!(matches!(config.namespace_of(&long, "rug"), Err(Error::Refused(_))));
    }

    #[test]
    fn a_bad_value_is_named() {
        let labels = BTreeMap::from([("rug.dev/x".to_owned(), String::new())]);
        let config = Config {
            namespace: "No".to_owned(),
            tenant_namespace: "x".to_owned(),
            labels,
            resources: json!(1),
            default_port: 0,
            watch_stale_after: Duration::from_secs(60),
            ..Config::default()
        };
        let fields: Vec<_> = config.validate().into_iter().map(|violation| violation.field).collect();
        assert_eq!(
            fields,
            ["namespace", "tenant_namespace", "labels[rug.dev/x]", "resources", "default_port", "watch_stale_after"]
        );
    }
}

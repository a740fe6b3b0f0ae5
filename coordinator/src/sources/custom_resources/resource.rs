//! One custom resource as it was read, and what it asks for.

use std::cmp::Ordering;
use std::fmt;

use common::ApplianceId;
use common::appliance::{FieldViolation, Name};
use common::change::ApplianceUpdate;
use common::cluster::ClusterIdentity;
use common::kind::KindSpec;
use common::manager::{InvalidManager, Manager};
use kubernetes::kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use proto::admin::v1 as wire;
use proto::convert::patch::update_from_wire;
use proto::document::tree::{Field, Node, ReadReport, Value as DocumentValue};
use proto::document::{DocumentDefaults, appliance, document_field};
use serde_json::Value;

use super::SOURCE;
use super::status::ResourceStatus;

/// Group of the custom resources.
pub(super) const GROUP: &str = "rug.dev";
/// Version that is read and written.
pub(super) const VERSION: &str = "v1alpha1";
/// Their kind.
pub(super) const KIND: &str = "Appliance";
/// Their name in paths.
pub(super) const PLURAL: &str = "appliances";
/// Keeps an object until its appliance is gone.
pub(super) const FINALIZER: &str = "rug.dev/appliance";
/// Annotation: `"true"` takes over an appliance of that name that nobody manages.
pub(super) const ADOPT: &str = "rug.dev/adopt";
/// Annotation: `retain` lets the appliance live on without the object.
pub(super) const DELETION_POLICY: &str = "rug.dev/deletion-policy";

/// Stands for a value that was hidden from its reader.
const HIDDEN: &str = "<hidden>";

/// The resource as the client names it.
pub(super) fn api_resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, KIND), PLURAL)
}

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ResourceKey {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl ResourceKey {
    /// Who manages the appliance of this object.
    pub(super) fn manager(&self) -> Result<Manager, InvalidManager> {
        Manager::object(SOURCE, &self.namespace, &self.name)
    }

    /// The object that manages an appliance, if one does.
    pub(super) fn managing(manager: Option<&Manager>) -> Option<Self> {
        let (namespace, name) = manager?.object_of(SOURCE)?;
        Some(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Resource {
    pub(super) key: ResourceKey,
    /// Tells one from another of the same name.
    pub(super) uid: String,
    /// What writes are conditional on.
    pub(super) version: String,
    /// Counts changes of `spec`.
    pub(super) generation: i64,
    pub(super) finalizers: Vec<String>,
    /// It is to be deleted.
    pub(super) deleting: bool,
    /// It may take an appliance over.
    pub(super) adopt: bool,
    /// Its appliance lives on without it.
    pub(super) retain: bool,
    pub(super) spec: Value,
    pub(super) status: ResourceStatus,
}

impl Resource {
    /// Reads an object; `None` if it lacks what the API server gives every one.
    pub(super) fn read(object: DynamicObject) -> Option<Self> {
        let DynamicObject { types: _, metadata, mut data } = object;
        let annotations = metadata.annotations.unwrap_or_default();
        let says = |annotation: &str, value: &str| annotations.get(annotation).is_some_and(|said| said == value);
        let mut take = |field: &str| data.get_mut(field).map(Value::take).unwrap_or_default();
        // What nobody but us writes and cannot be read is written anew.
        let status = serde_json::from_value(take("status")).unwrap_or_default();
        Some(Self {
            key: ResourceKey { namespace: metadata.namespace?, name: metadata.name? },
            uid: metadata.uid?,
            version: metadata.resource_version?,
            generation: metadata.generation.unwrap_or_default(),
            finalizers: metadata.finalizers.unwrap_or_default(),
            deleting: metadata.deletion_timestamp.is_some(),
            adopt: says(ADOPT, "true"),
            retain: says(DELETION_POLICY, "retain"),
            spec: take("spec"),
            status,
        })
    }

    /// Whether it is earlier or later than another reading of the same object. `None` if that cannot be told.
    pub(super) fn order(&self, other: &Self) -> Option<Ordering> {
        let number = |resource: &Self| resource.version.parse::<u64>().ok();
        (self.uid == other.uid).then(|| Some(number(self)?.cmp(&number(other)?))).flatten()
    }

    /// Whether it waits for its appliance to be gone.
    pub(super) fn is_held(&self) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
    }

    /// What it asks for of this cluster. Unless `any_tenant`, its namespace is the only tenant it may name.
    pub(super) fn wanted(&self, cluster: &ClusterIdentity, any_tenant: bool) -> Wanted {
        let (name, tenant) = match (Name::new(&self.key.name), self.key.manager()) {
            (Ok(name), Ok(_)) => (name, self.key.namespace.as_str()),
            (Err(error), _) => return Wanted::refused("metadata.name", error.to_string()),
            (_, Err(error)) => return Wanted::refused("metadata.name", error.to_string()),
        };
        let mut report = ReadReport::default();
        let field = Field { path: "spec".to_owned(), node: tree(&self.spec) };
        let read = appliance(field, DocumentDefaults { name: Some(&name), tenant }, &mut report);
        let Some((message, meant)) = read.filter(|_| report.problems.is_empty()) else {
            let problems = report.problems.into_iter();
            return Wanted::Refused(problems.map(|p| FieldViolation::new(p.field, p.message)).collect());
        };
        if meant.is_some_and(|meant| !cluster.is(&meant)) {
            return Wanted::Elsewhere;
        }
        if message.tenant != tenant && !any_tenant {
            let problem =
                format!("must be the namespace, `{tenant}`, or left away, unless kubernetes.any_tenant is set");
            return Wanted::refused("spec.tenant", problem);
        }
        let id = message.id.parse().ok();
        let request = wire::UpdateApplianceRequest {
            appliance: Some(message),
            allow_missing: true,
            ..wire::UpdateApplianceRequest::default()
        };
        match update_from_wire(request) {
            Err(violations) => Wanted::Refused(shown_fields(violations)),
            Ok(update) => match hidden(&update) {
                Some(violation) => Wanted::Refused(vec![violation]),
                None => Wanted::Appliance(Box::new(WantedAppliance { update, id })),
            },
        }
    }
}

/// What an object asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// An appliance of another cluster: nothing is done about the object.
    Elsewhere,
    /// What is wrong with it.
    Refused(Vec<FieldViolation>),
    /// An appliance.
    Appliance(Box<WantedAppliance>),
}

/// The appliance that an object asks for, as an update that makes it if there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WantedAppliance {
    pub(super) update: ApplianceUpdate,
    /// The identity it shall have, if the object says one.
    pub(super) id: Option<ApplianceId>,
}

impl Wanted {
    fn refused(field: &str, problem: String) -> Self {
        Self::Refused(vec![FieldViolation::new(field, problem)])
    }
}

/// The violations with the fields of the object in place of those of the API.
pub(super) fn shown_fields(violations: Vec<FieldViolation>) -> Vec<FieldViolation> {
    let shown = |v: FieldViolation| FieldViolation::new(format!("spec.{}", document_field(&v.field)), v.description);
    violations.into_iter().map(shown).collect()
}

/// Whoever copied what was shown to somebody who sees no secrets would overwrite them.
fn hidden(update: &ApplianceUpdate) -> Option<FieldViolation> {
    let spec = update.patch.spec.as_ref()?;
    let variable = match &spec.kind {
        KindSpec::Custom(custom) => custom.env.iter().find(|(_, value)| *value == HIDDEN),
        KindSpec::Loadbalancer(_) | KindSpec::Router(_) => None,
    };
    let in_pod = || spec.pod.as_ref().filter(|pod| pod.as_str().contains(&format!("\"{HIDDEN}\"")));
    let field = match variable {
        Some((name, _)) => format!("spec.spec.env.{name}"),
        None => in_pod().map(|_| "spec.pod".to_owned())?,
    };
    Some(FieldViolation::new(field, "stands for a value that was hidden from its reader; give the value itself"))
}

/// JSON as the reader of documents takes it. There are no lines.
pub(super) fn tree(value: &Value) -> Node {
    let value = match value {
        Value::Null => DocumentValue::Null,
        Value::Bool(value) => DocumentValue::Bool(*value),
        Value::Number(number) => number.as_i128().map_or(DocumentValue::Float, DocumentValue::Int),
        Value::String(text) => DocumentValue::Text(text.clone()),
        Value::Array(entries) => DocumentValue::List(entries.iter().map(tree).collect()),
        Value::Object(fields) => {
            DocumentValue::Map(fields.iter().map(|(name, value)| (name.clone(), 0, tree(value))).collect())
        }
    };
    Node { line: 0, value }
}

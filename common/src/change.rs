//! Changes of appliances as they are asked for: a complete draft, or the fields to change and what they shall be.
//!
//! A change is read without knowing the appliance it is about; [`AppliancePatch::apply`] then makes the new specification
//! out of the present one. So only the leader has to look at both, and a patch of `spec.replicas` never writes back a
//! stale copy of the other fields.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::appliance::{FieldViolation, Name, Spec, SpecTime, Violations};
use crate::driver::DriverName;
use crate::kind::KindSpec;
use crate::network_port::NetworkPort;
use crate::pod::PodTemplate;
use crate::{ApplianceId, Generation};

/// A complete appliance as a user describes it, before it has been given what the server gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplianceDraft {
    /// The identity the user chose.
    pub id: Option<ApplianceId>,
    /// Unique within the tenant.
    pub name: Name,
    /// Owner in the sense of the business.
    pub tenant: Name,
    /// Where instances run.
    pub driver: DriverName,
    /// What the ring hashes; the id when absent.
    pub placement_key: Option<String>,
    /// Free labels for filters.
    pub labels: BTreeMap<String, String>,
    /// What it shall be.
    pub spec: Spec,
}

/// Which appliance is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplianceTarget {
    /// The one with this identity.
    Id(ApplianceId),
    /// The one of this tenant with this name.
    Name(Name, Name),
}

impl fmt::Display for ApplianceTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Name(tenant, name) => write!(f, "{tenant}/{name}"),
        }
    }
}

/// Fields to change. `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliancePatch {
    /// New name.
    pub name: Option<Name>,
    /// New labels, as a whole.
    pub labels: Option<BTreeMap<String, String>>,
    /// New specification, as a whole.
    pub spec: Option<Spec>,
    /// Fields of the specification.
    pub fields: SpecPatch,
    /// What the request says of fields that cannot change; a difference is refused.
    pub fixed: FixedFields,
}

/// Fields of a specification to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecPatch {
    /// `spec.replicas`.
    pub replicas: Option<u16>,
    /// Times such as `spec.probe_interval`; `None` is the default.
    pub times: BTreeMap<SpecTime, Option<Duration>>,
    /// `spec.image`; inner `None` is no image.
    pub image: Option<Option<String>>,
    /// `spec.pod`, as a whole; inner `None` is none.
    pub pod: Option<Option<PodTemplate>>,
    /// `spec.ports`, as a whole.
    pub ports: Option<Vec<NetworkPort>>,
    /// The kind as a whole, such as `spec.custom`.
    pub kind: Option<KindSpec>,
    /// Fields of the kind, such as `spec.custom.port`.
    pub of_kind: Option<KindPatch>,
}

/// Fields of a kind to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindPatch {
    /// Has the new values.
    pub source: KindSpec,
    /// Which fields are taken from it.
    pub names: BTreeSet<&'static str>,
}

/// Fields that cannot change, where the request names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FixedFields {
    /// Tenant.
    pub tenant: Option<Name>,
    /// Driver.
    pub driver: Option<DriverName>,
    /// Placement key.
    pub placement_key: Option<String>,
}

/// An `Update` as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplianceUpdate {
    /// Which appliance.
    pub target: ApplianceTarget,
    /// What changes.
    pub patch: AppliancePatch,
    /// Generation it must have.
    pub expected: Option<Generation>,
    /// What to create when there is none; `None` when that was not asked for.
    pub create: Option<ApplianceDraft>,
}

impl AppliancePatch {
    /// The specification that comes out of `current`, checked as a whole.
    ///
    /// # Errors
    /// Every violation of the result, with paths below `appliance.spec`.
    pub fn apply(&self, current: &Spec) -> Result<Spec, Vec<FieldViolation>> {
        if self.fields == SpecPatch::default() {
            // A whole specification was checked when it was read.
            return Ok(self.spec.as_ref().unwrap_or(current).clone());
        }
        let mut spec = self.spec.as_ref().unwrap_or(current).clone();
        let fields = &self.fields;
        let mut found = Violations::default();
        if let Some(replicas) = fields.replicas {
            spec.replicas = replicas;
        }
        for (time, value) in &fields.times {
            *spec.time_mut(*time) = *value;
        }
        if let Some(image) = &fields.image {
            spec.image.clone_from(image);
        }
        if let Some(pod) = &fields.pod {
            spec.pod.clone_from(pod);
        }
        if let Some(ports) = &fields.ports {
            spec.ports.clone_from(ports);
        }
        if let Some(kind) = &fields.kind {
            spec.kind = kind.clone();
        }
        if let Some(KindPatch { source, names }) = &fields.of_kind {
            if spec.kind.name() == source.name() {
                match spec.kind.with_fields(source, names) {
                    Ok(kind) => spec.kind = kind,
                    Err(error) => found.add("update_mask", error.to_string()),
                }
            } else {
                let text = format!("names fields of spec.{}, but the kind is {}", source.name(), spec.kind.name());
                found.add("update_mask", text);
            }
        }
        spec.validate_at("appliance.spec", &mut found);
        found.into_result(Some(spec))
    }
}

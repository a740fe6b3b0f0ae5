//! Reads an update: which fields of an appliance are to change, and to what.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use common::Generation;
use common::appliance::{FieldViolation, Name, SpecTime, Violations};
use common::change::{AppliancePatch, ApplianceTarget, ApplianceUpdate, FixedFields, KindPatch, SpecPatch};
use common::kind;

use super::admin::{chosen_texts, draft_from_wire, id_or_none, labels, placement_key, tenant};
use super::scalar::clip;
use super::{pod, spec};
use crate::admin::v1 as wire;

/// Path of the specification.
const AT: &str = "appliance.spec";
/// Most paths of one mask; there are not that many fields.
const MAX_PATHS: usize = 64;

/// Reads an `Update`.
///
/// # Errors
/// Every violation, with the API's paths.
pub fn update_from_wire(request: wire::UpdateApplianceRequest) -> Result<ApplianceUpdate, Vec<FieldViolation>> {
    let mut found = Violations::default();
    let Some(a) = request.appliance else {
        found.add("appliance", "is missing");
        return Err(found.into_vec());
    };
    let mask = request.update_mask.map(|m| m.paths).filter(|paths| !paths.is_empty());
    // An upsert needs a complete document, so one without a mask is read once, as a draft, and patched from it.
    let create = match (request.allow_missing, &mask) {
        (true, None) => Some(draft_from_wire(Some(a.clone()))?),
        (true, Some(_)) => {
            draft_from_wire(Some(a.clone())).map_err(|v| v.into_iter().for_each(|v| found.add_if_new(v))).ok()
        }
        (false, _) => None,
    };
    let id = id_or_none("appliance.id", &a.id, &mut found);
    let tenant = tenant("appliance.tenant", &a.tenant, &mut found);
    let name = if a.name.is_empty() { None } else { found.take("appliance.name", Name::new(&a.name)) };
    let target = match (id, tenant.clone(), name.clone()) {
        (Some(id), ..) => Some(ApplianceTarget::Id(id)),
        (None, Some(tenant), Some(name)) => Some(ApplianceTarget::Name(tenant, name)),
        _ => {
            if a.id.is_empty() && a.name.is_empty() {
                found.add("appliance.name", "is missing: give an id, or a tenant and a name");
            }
            None
        }
    };
    let fixed = FixedFields {
        tenant: tenant.filter(|_| !a.tenant.is_empty()),
        driver: if a.driver.is_empty() { None } else { found.take("appliance.driver", a.driver.parse()) },
        placement_key: placement_key(a.placement_key, &mut found),
    };
    if let Some(spec) = &a.spec {
        chosen_texts(spec, AT, &mut found);
    }
    let mut patch = AppliancePatch { fixed, ..AppliancePatch::default() };
    match (mask, &create) {
        (None, Some(draft)) => {
            patch.name = name;
            patch.labels = Some(draft.labels.clone());
            patch.spec = Some(draft.spec.clone());
        }
        (None, None) => {
            patch.name = name;
            patch.labels = Some(labels("appliance.labels", a.labels, &mut found));
            match a.spec {
                Some(spec) => patch.spec = spec::read(spec, "appliance.spec", &mut found),
                None => found.add("appliance.spec", "is missing"),
            }
        }
        (Some(paths), _) => {
            let source = PatchSource { name, labels: a.labels, spec: a.spec.unwrap_or_default() };
            masked(&paths, source, &mut patch, &mut found);
        }
    }
    let expected = (request.expected_generation > 0).then(|| Generation::new(request.expected_generation));
    found.into_result(target.map(|target| ApplianceUpdate { target, patch, expected, create }))
}

/// The fields a mask can pick from.
struct PatchSource {
    name: Option<Name>,
    labels: std::collections::HashMap<String, String>,
    spec: wire::Spec,
}

fn masked(paths: &[String], source: PatchSource, patch: &mut AppliancePatch, found: &mut Violations) {
    if paths.len() > MAX_PATHS {
        found.add("update_mask", format!("has {} paths, at most {MAX_PATHS} are allowed", paths.len()));
        return;
    }
    if !spec::fits(&source.spec, AT, found) {
        return;
    }
    for path in paths {
        let fields = &mut patch.fields;
        match path.as_str() {
            "name" if source.name.is_none() => found.add("appliance.name", "must not be empty"),
            "name" => patch.name.clone_from(&source.name),
            "labels" => patch.labels = Some(labels("appliance.labels", source.labels.clone(), found)),
            "spec" => patch.spec = spec::read(source.spec.clone(), AT, found),
            "spec.replicas" => fields.replicas = source.spec.replicas.map_or(Some(1), |n| spec::replicas(n, AT, found)),
            "spec.image" => {
                fields.image = Some((!source.spec.image.is_empty()).then(|| source.spec.image.clone()));
            }
            "spec.pod" => fields.pod = Some(pod::read_pod(source.spec.pod.clone(), AT, found)),
            "spec.ports" => fields.ports = Some(spec::read_ports(source.spec.ports.clone(), AT, found)),
            other => match (time_of(other), field_of_kind(other)) {
                (Some(time), _) => drop(fields.times.insert(time, spec::read_time(time, &source.spec, AT, found))),
                (None, Some((kind, field))) => masked_kind(kind, field, &source.spec, fields, found),
                (None, None) => {
                    let known = known_paths();
                    found.add("update_mask", format!("`{}` cannot be updated; known are {known}", clip(other, 64)));
                }
            },
        }
    }
}

/// Paths an update mask may name.
fn known_paths() -> String {
    let mut known = "name, labels, spec, spec.replicas, spec.image, spec.ports, spec.pod".to_owned();
    for time in SpecTime::ALL {
        let _ = write!(known, ", spec.{}", time.name());
    }
    for kind in kind::REGISTRY {
        let _ = write!(known, ", spec.{}", kind.name);
        for field in kind.fields {
            let _ = write!(known, ", spec.{}.{field}", kind.name);
        }
    }
    known
}

/// The time that a path names.
fn time_of(path: &str) -> Option<SpecTime> {
    let name = path.strip_prefix("spec.")?;
    SpecTime::ALL.into_iter().find(|time| time.name() == name)
}

/// The kind a path names and, unless it names the kind as a whole, the field of it. The only field of a kind is the kind as
/// a whole.
fn field_of_kind(path: &str) -> Option<(&'static str, Option<&'static str>)> {
    let path = path.strip_prefix("spec.")?;
    let (name, field) = path.split_once('.').map_or((path, None), |(name, field)| (name, Some(field)));
    let kind = kind::REGISTRY.iter().find(|kind| kind.name == name)?;
    let Some(field) = field else { return Some((kind.name, None)) };
    let field = kind.fields.iter().find(|known| **known == field)?;
    Some((kind.name, Some(*field).filter(|_| kind.fields.len() > 1)))
}

/// Notes that the mask names a kind, or a field of it.
fn masked_kind(
    kind: &'static str,
    field: Option<&'static str>,
    source: &wire::Spec,
    fields: &mut SpecPatch,
    found: &mut Violations,
) {
    let at = format!("{AT}.{kind}");
    let given = source.kind.clone().filter(|given| spec::kind_name(given) == kind);
    let Some(field) = field else {
        match given {
            Some(_) => fields.kind = spec::read_kind(given, AT, found),
            None => found.add(at, "is missing though the mask names it"),
        }
        return;
    };
    // Only what is said about the named field counts.
    let mut notes = Violations::default();
    let source = spec::read_kind(given.or_else(|| spec::empty_kind(kind)), AT, &mut notes);
    let below = format!("{at}.{field}");
    notes.into_vec().into_iter().filter(|note| note.field.starts_with(&below)).for_each(|note| found.add_if_new(note));
    match (&mut fields.of_kind, source) {
        (Some(of_kind), _) if of_kind.source.name() == kind => drop(of_kind.names.insert(field)),
        (Some(_), _) => found.add("update_mask", "names fields of two kinds"),
        (none, Some(source)) => *none = Some(KindPatch { source, names: BTreeSet::from([field]) }),
        (None, None) => {}
    }
}

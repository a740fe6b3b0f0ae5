//! Reads what users ask for (drafts, references), and writes and reads what they are shown (status, phases).

use std::collections::{BTreeMap, HashMap};

use common::appliance::{FieldViolation, MAX_TEXT, Name, Violations};
use common::change::{ApplianceDraft, ApplianceTarget};
use common::driver::DriverName;
use common::network_port::MAX_NETWORK_PORTS;
use common::status::{Details, EndCause, InstanceEnd, InstanceStatus, PID_DETAIL, Phase, Status};
use common::{ApplianceId, Generation, text};

use super::scalar::{clip, unix_ms_from_wire, unix_ms_to_wire};
use super::spec;
use crate::admin::v1 as wire;

/// Tenant of an appliance that names none.
pub const DEFAULT_TENANT: &str = "default";
/// Most labels of one appliance.
pub const MAX_LABELS: usize = 64;
/// Longest key and longest value of a label, in bytes.
pub const MAX_LABEL_TEXT: usize = 256;
/// Longest placement key, in bytes.
pub const MAX_PLACEMENT_KEY: usize = 256;
/// Most instances one status can tell of: twice the replicas, for a replacement that is under way.
pub const MAX_INSTANCES: usize = 2 * common::appliance::MAX_REPLICAS as usize;

/// Reads the appliance of a `Create`.
///
/// # Errors
/// Every violation, with paths below `appliance`.
pub fn draft_from_wire(appliance: Option<wire::Appliance>) -> Result<ApplianceDraft, Vec<FieldViolation>> {
    let mut found = Violations::default();
    let Some(a) = appliance else {
        found.add("appliance", "is missing");
        return Err(found.into_vec());
    };
    let id = id_or_none("appliance.id", &a.id, &mut found);
    let name = found.take("appliance.name", Name::new(&a.name));
    let tenant = tenant("appliance.tenant", &a.tenant, &mut found);
    let driver = if a.driver.is_empty() {
        Some(DriverName::process())
    } else {
        found.take("appliance.driver", a.driver.parse())
    };
    let placement_key = placement_key(a.placement_key, &mut found);
    let labels = labels("appliance.labels", a.labels, &mut found);
    let spec = match a.spec {
        Some(spec) if !chosen_texts(&spec, "appliance.spec", &mut found) => None,
        Some(spec) => spec::read(spec, "appliance.spec", &mut found),
        None => {
            found.add("appliance.spec", "is missing");
            None
        }
    };
    let draft = name.zip(tenant).zip(driver).zip(spec).map(|(((name, tenant), driver), spec)| ApplianceDraft {
        id,
        name,
        tenant,
        driver,
        placement_key,
        labels,
        spec,
    });
    found.into_result(draft)
}

/// Reads which appliance a request means; `at` is the path of the reference.
///
/// # Errors
/// Every violation.
pub fn target_from_wire(
    reference: Option<wire::ApplianceRef>,
    at: &str,
) -> Result<ApplianceTarget, Vec<FieldViolation>> {
    let mut found = Violations::default();
    let target = match reference.and_then(|r| r.by) {
        None => {
            found.add(at, "is missing: give an id, or a tenant and a name");
            None
        }
        Some(wire::appliance_ref::By::Id(id)) => found.take(&format!("{at}.id"), id.parse()).map(ApplianceTarget::Id),
        Some(wire::appliance_ref::By::Name(full)) => {
            let tenant = tenant(&format!("{at}.name.tenant"), &full.tenant, &mut found);
            let name = found.take(&format!("{at}.name.name"), Name::new(&full.name));
            tenant.zip(name).map(|(tenant, name)| ApplianceTarget::Name(tenant, name))
        }
    };
    found.into_result(target)
}

pub(super) fn id_or_none(at: &str, text: &str, found: &mut Violations) -> Option<ApplianceId> {
    if text.is_empty() { None } else { found.take(at, text.parse()) }
}

pub(super) fn tenant(at: &str, text: &str, found: &mut Violations) -> Option<Name> {
    found.take(at, Name::new(if text.is_empty() { DEFAULT_TENANT } else { text }))
}

pub(super) fn placement_key(key: String, found: &mut Violations) -> Option<String> {
    found.take("appliance.placement_key", text::check(&key, MAX_PLACEMENT_KEY))?;
    (!key.is_empty()).then_some(key)
}

/// Checks the characters of texts of a specification that are shown as they are; how long they may be is the specification's
/// own rule. Only where users set them: what is stored already, by a
/// version that took more, goes on. `false` when one was refused.
pub(super) fn chosen_texts(spec: &wire::Spec, at: &str, found: &mut Violations) -> bool {
    let image = (format!("{at}.image"), &spec.image);
    let networks = spec.ports.iter().enumerate().map(|(i, port)| (format!("{at}.ports[{i}].network"), &port.network));
    let custom = match &spec.kind {
        Some(wire::spec::Kind::Custom(custom)) => Some(custom),
        _ => None,
    };
    let command = custom.map(|custom| (format!("{at}.custom.command"), &custom.command));
    let names = custom.into_iter().flat_map(|custom| custom.env.keys().map(|name| (format!("{at}.custom.env"), name)));
    let texts = std::iter::once(image).chain(networks).chain(command).chain(names);
    let refused: Vec<_> =
        texts.filter_map(|(field, text)| Some((field, text::check(text, usize::MAX).err()?))).collect();
    let fine = refused.is_empty();
    refused.into_iter().for_each(|(field, problem)| found.add(field, problem.to_string()));
    fine
}

/// Reads labels, in order of their keys.
pub(super) fn labels(at: &str, wire: HashMap<String, String>, found: &mut Violations) -> BTreeMap<String, String> {
    if wire.len() > MAX_LABELS {
        found.add(at, format!("has {} entries, at most {MAX_LABELS} are allowed", wire.len()));
        return BTreeMap::new();
    }
    let labels: BTreeMap<_, _> = wire.into_iter().collect();
    for (key, value) in &labels {
        if key.is_empty() {
            found.add(at, "a key must not be empty");
        }
        for text in [key, value] {
            if let Err(problem) = text::check(text, MAX_LABEL_TEXT) {
                let key = clip(key, 64);
                found.add(format!("{at}[{key:?}]"), problem.to_string());
            }
        }
    }
    labels
}

/// Writes a phase.
#[must_use]
pub const fn phase_to_wire(phase: Phase) -> wire::Phase {
    match phase {
        Phase::Down => wire::Phase::Down,
        Phase::Booting => wire::Phase::Booting,
        Phase::Up => wire::Phase::Up,
        Phase::Configured => wire::Phase::Configured,
        Phase::Degraded => wire::Phase::Degraded,
        Phase::Replugging => wire::Phase::Replugging,
        Phase::Restarting => wire::Phase::Restarting,
        Phase::Error => wire::Phase::Error,
        Phase::Deleting => wire::Phase::Deleting,
        Phase::Gone => wire::Phase::Gone,
    }
}

/// Reads a phase; `None` for a number this version does not know.
#[must_use]
pub fn phase_from_wire(number: i32) -> Option<Phase> {
    Some(match wire::Phase::try_from(number).ok()? {
        wire::Phase::Unspecified => return None,
        wire::Phase::Down => Phase::Down,
        wire::Phase::Booting => Phase::Booting,
        wire::Phase::Up => Phase::Up,
        wire::Phase::Configured => Phase::Configured,
        wire::Phase::Degraded => Phase::Degraded,
        wire::Phase::Replugging => Phase::Replugging,
        wire::Phase::Restarting => Phase::Restarting,
        wire::Phase::Error => Phase::Error,
        wire::Phase::Deleting => Phase::Deleting,
        wire::Phase::Gone => Phase::Gone,
    })
}

/// Writes a status; `report_time` is for the caller to set.
#[must_use]
pub fn status_to_wire(status: &Status) -> wire::Status {
    wire::Status {
        phase: phase_to_wire(status.phase).into(),
        observed_generation: status.observed_generation.get(),
        instances: status.instances.iter().map(instance_to_wire).collect(),
        // It may have grown since it was clipped, by what was put before it.
        last_error: status.last_error.as_deref().map(|text| clip(text, MAX_TEXT)).unwrap_or_default(),
        failed_boots: status.failed_boots,
        last_end: status.last_end.as_deref().map(end_to_wire),
        report_time: None,
    }
}

/// Writes how an instance ended.
pub(super) fn end_to_wire(end: &InstanceEnd) -> wire::InstanceEnd {
    wire::InstanceEnd {
        instance: end.instance.clone(),
        time: Some(unix_ms_to_wire(end.at_unix_ms)),
        cause: Some(match end.cause {
            EndCause::Exit(status) => wire::instance_end::Cause::ExitStatus(status),
            EndCause::Signal(number) => wire::instance_end::Cause::Signal(number),
        }),
        out_of_memory: end.out_of_memory,
        last_lines: end.last_lines.clone(),
    }
}

/// Reads how an instance ended. Texts are cut and escaped; an end without a cause is none.
///
/// # Errors
/// The field, below the end, that cannot be read, and why.
pub(super) fn end_from_wire(wire: wire::InstanceEnd) -> Result<Option<Box<InstanceEnd>>, FieldViolation> {
    let at_unix_ms = wire.time.as_ref().map_or(Ok(0), unix_ms_from_wire);
    let at_unix_ms = at_unix_ms.map_err(|e| FieldViolation::new("time", e.to_string()))?;
    let cause = match wire.cause {
        None => return Ok(None),
        Some(wire::instance_end::Cause::ExitStatus(status)) => EndCause::Exit(status),
        Some(wire::instance_end::Cause::Signal(number)) => EndCause::Signal(number),
    };
    let wire::InstanceEnd { instance, out_of_memory, last_lines, .. } = wire;
    let end = InstanceEnd { instance, at_unix_ms, cause, out_of_memory, last_lines };
    Ok(Some(Box::new(end.bounded())))
}

fn instance_to_wire(instance: &InstanceStatus) -> wire::Instance {
    wire::Instance {
        ordinal: u32::from(instance.ordinal),
        name: instance.name.clone(),
        alive: instance.alive,
        // Readers of earlier versions know no details.
        pid: instance.details.pid(),
        start_time: Some(unix_ms_to_wire(instance.started_at_unix_ms)),
        address: instance.address.map(|a| a.to_string()).unwrap_or_default(),
        configured_generation: instance.configured.map_or(0, Generation::get),
        details: instance.details.iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect(),
        ports: instance.ports.iter().map(ToString::to_string).collect(),
    }
}

/// Reads a status as a worker reports it. Long texts are clipped: an error message is not worth a lost report.
///
/// # Errors
/// The field, below the status, that cannot be read, and why.
pub fn status_from_wire(wire: wire::Status) -> Result<Status, FieldViolation> {
    let phase = phase_from_wire(wire.phase)
        .ok_or_else(|| FieldViolation::new("phase", format!("{} is not a phase", wire.phase)))?;
    if wire.instances.len() > MAX_INSTANCES {
        let count = wire.instances.len();
        return Err(FieldViolation::new("instances", format!("has {count} entries, at most {MAX_INSTANCES} can be")));
    }
    let instances = wire.instances.into_iter().enumerate().map(|(i, instance)| {
        instance_from_wire(instance)
            .map_err(|v| FieldViolation::new(format!("instances[{i}].{}", v.field), v.description))
    });
    Ok(Status {
        phase,
        observed_generation: Generation::new(wire.observed_generation),
        instances: instances.collect::<Result<_, _>>()?,
        last_error: (!wire.last_error.is_empty()).then(|| clip(&wire.last_error, MAX_TEXT)),
        failed_boots: wire.failed_boots,
        last_end: wire.last_end.map_or(Ok(None), end_from_wire).map_err(|v| v.within("last_end"))?,
    })
}

fn instance_from_wire(wire: wire::Instance) -> Result<InstanceStatus, FieldViolation> {
    let ordinal = u16::try_from(wire.ordinal)
        .map_err(|_| FieldViolation::new("ordinal", format!("{} is too large", wire.ordinal)))?;
    let started = wire.start_time.as_ref().map_or(Ok(0), unix_ms_from_wire);
    let address = if wire.address.is_empty() { None } else { Some(wire.address.parse()) };
    if wire.ports.len() > MAX_NETWORK_PORTS {
        let count = wire.ports.len();
        return Err(FieldViolation::new("ports", format!("has {count} entries, at most {MAX_NETWORK_PORTS} can be")));
    }
    // Workers of earlier versions tell the process id alone.
    let pid = wire.pid.filter(|_| !wire.details.contains_key(PID_DETAIL));
    let pid = pid.map(|pid| (PID_DETAIL.to_owned(), pid.to_string()));
    let details: Details = wire.details.into_iter().chain(pid).collect();
    let ports = wire.ports.iter().map(|name| Name::new(name).map_err(|e| FieldViolation::new("ports", e.to_string())));
    Ok(InstanceStatus {
        ordinal,
        name: clip(&wire.name, 256),
        alive: wire.alive,
        details,
        started_at_unix_ms: started.map_err(|e| FieldViolation::new("start_time", e.to_string()))?,
        address: address
            .transpose()
            .map_err(|_| FieldViolation::new("address", format!("`{}` is not host:port", clip(&wire.address, 64))))?,
        configured: (wire.configured_generation > 0).then(|| Generation::new(wire.configured_generation)),
        ports: ports.collect::<Result<_, _>>()?,
    })
}

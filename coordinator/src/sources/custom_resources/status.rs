//! What is shown in a custom resource: made from what the leader knows, written only where it differs.

use std::time::SystemTime;

use common::appliance::{FieldViolation, MAX_VIOLATIONS};
use common::status::Phase;
use serde::{Deserialize, Serialize};

use super::resource::Resource;
use crate::views::CatalogEntry;

/// Longest text that is shown, in bytes.
const MAX_SHOWN: usize = 2_048;

/// The condition that says whether what is asked for was taken.
pub(super) const ACCEPTED: &str = "Accepted";
/// The condition that says whether the worker of the appliance knows it.
pub(super) const SYNCED: &str = "Synced";
/// The condition that says whether the appliance is as asked for, and serves.
pub(super) const READY: &str = "Ready";

/// The status of a custom resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct ResourceStatus {
    /// Generation of this resource that the rest is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) observed_generation: Option<i64>,
    /// Whether what is asked for was taken (Accepted), whether the worker of the appliance knows it (Synced), and whether the
    /// appliance is as asked for and serves (Ready).
    #[cfg_attr(test, schemars(extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["type"],
        "maxItems" = 16,
    )))]
    pub(super) conditions: Vec<Condition>,
    /// Id of the appliance in Rug.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    /// Generation of the appliance in Rug.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) generation: Option<i64>,
    /// Phase of the appliance, as its worker last saw it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) phase: Option<String>,
    /// Worker that has the appliance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) worker: Option<String>,
    /// Instances that run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) replicas: Option<i32>,
    /// Instances that run and have been configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ready: Option<i32>,
    /// What last went wrong with the appliance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_error: Option<String>,
}

/// One condition, in the form that all of Kubernetes has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(extend("required" = ["type", "status", "lastTransitionTime", "reason", "message"])))]
pub(super) struct Condition {
    /// Which condition.
    #[serde(rename = "type")]
    #[cfg_attr(test, schemars(length(min = 1, max = 63)))]
    pub(super) kind: String,
    /// Whether it holds.
    #[cfg_attr(test, schemars(extend("enum" = ["True", "False", "Unknown"])))]
    pub(super) status: String,
    /// Generation of this resource that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) observed_generation: Option<i64>,
    /// When `status` last changed.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub(super) last_transition_time: String,
    /// Why, in one word.
    #[cfg_attr(test, schemars(length(min = 1, max = 63)))]
    pub(super) reason: String,
    /// Why, in a sentence.
    #[cfg_attr(test, schemars(length(max = 2048)))]
    pub(super) message: String,
}

impl ResourceStatus {
    /// One of the conditions.
    pub(super) fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }

    /// Whether a condition is there and holds.
    pub(super) fn holds(&self, kind: &str) -> bool {
        self.condition(kind).is_some_and(|condition| condition.status == "True")
    }
}

/// Why what an object asks for was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefusedBecause {
    /// Of its fields.
    Invalid,
    /// Somebody else manages an appliance of this name or identity.
    Conflict,
    /// Nobody manages the appliance of this name, and the object does not say that it is to be taken over.
    NotAdopted,
    /// The former appliance of this object is not gone yet.
    BeingDeleted,
    /// There are too many appliances.
    LimitReached,
}

impl RefusedBecause {
    /// The reason of the condition, and of the event.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Invalid => "Invalid",
            Self::Conflict => "Conflict",
            Self::NotAdopted => "NotAdopted",
            Self::BeingDeleted => "BeingDeleted",
            Self::LimitReached => "LimitReached",
        }
    }
}

/// Whether what an object asks for was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Acceptance {
    /// It was.
    Accepted,
    /// It was not, and why.
    Refused(RefusedBecause, String),
    /// The object is to be deleted, and its appliance is.
    Deleting,
}

impl Acceptance {
    /// Refused because of fields.
    pub(super) fn invalid(violations: &[FieldViolation]) -> Self {
        let mut text = violations.iter().take(MAX_VIOLATIONS).map(ToString::to_string).collect::<Vec<_>>().join("; ");
        if text.is_empty() {
            "the specification cannot be read".clone_into(&mut text);
        }
        Self::Refused(RefusedBecause::Invalid, text)
    }
}

/// What is to be shown in an object at `now`, given its appliance.
pub(super) fn status(
    resource: &Resource,
    acceptance: &Acceptance,
    appliance: Option<&CatalogEntry>,
    now: SystemTime,
) -> ResourceStatus {
    let verdicts = [accepted(acceptance), synced(acceptance, appliance), ready(acceptance, appliance)];
    let condition = |Verdict { kind, status, reason, message }: Verdict| {
        let former = resource.status.condition(kind).filter(|former| former.status == status);
        let since = former.map_or_else(|| time(now), |former| former.last_transition_time.clone());
        Condition {
            kind: kind.to_owned(),
            status: status.to_owned(),
            observed_generation: Some(resource.generation),
            last_transition_time: since,
            reason,
            message: clipped(message),
        }
    };
    let seen = appliance.and_then(|entry| entry.status.as_ref()).map(|(status, _)| status);
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let alive = |configured: bool| {
        let instances = seen.map(|status| status.instances.as_slice()).unwrap_or_default().iter();
        count(instances.filter(|i| i.alive == Some(true) && (!configured || i.configured.is_some())).count())
    };
    ResourceStatus {
        observed_generation: Some(resource.generation),
        conditions: verdicts.into_iter().map(condition).collect(),
        id: appliance.map(|entry| entry.record.id.to_string()),
        generation: appliance.map(|entry| entry.record.generation.get().cast_signed()),
        phase: appliance.map(|entry| entry.phase().name().to_owned()),
        worker: appliance.and_then(|entry| entry.assignment.worker.as_ref()).map(ToString::to_string),
        replicas: appliance.map(|_| alive(false)),
        ready: appliance.map(|_| alive(true)),
        last_error: seen.and_then(|status| status.last_error.clone()).map(clipped),
    }
}

/// A condition without what the object says about it.
struct Verdict {
    kind: &'static str,
    status: &'static str,
    reason: String,
    message: String,
}

fn verdict(kind: &'static str, holds: bool, reason: &str, message: impl Into<String>) -> Verdict {
    let status = if holds { "True" } else { "False" };
    Verdict { kind, status, reason: reason.to_owned(), message: message.into() }
}

fn accepted(acceptance: &Acceptance) -> Verdict {
    match acceptance {
        Acceptance::Accepted => verdict(ACCEPTED, true, "Accepted", "Rug has taken this generation."),
        Acceptance::Deleting => verdict(ACCEPTED, true, "Deleting", "The appliance is being deleted."),
        Acceptance::Refused(because, message) => verdict(ACCEPTED, false, because.name(), message),
    }
}

fn synced(acceptance: &Acceptance, appliance: Option<&CatalogEntry>) -> Verdict {
    let no = |reason: &str, message: &str| verdict(SYNCED, false, reason, message);
    match (acceptance, appliance) {
        (Acceptance::Refused(..), None) => no("NotAccepted", "There is no appliance."),
        (Acceptance::Refused(..), Some(_)) => no("NotAccepted", "The appliance goes on as it was accepted last."),
        (Acceptance::Deleting, _) => no("Deleting", "The appliance is being deleted."),
        (Acceptance::Accepted, None) => no("Pending", "The appliance is not shown yet."),
        (Acceptance::Accepted, Some(entry)) if is_observed(entry) => {
            verdict(SYNCED, true, "Observed", "The worker of the appliance has taken this generation.")
        }
        (Acceptance::Accepted, Some(entry)) if entry.assignment.worker.is_none() => {
            verdict(SYNCED, false, "Unplaced", format!("No worker has the appliance: {}", entry.assignment.reason))
        }
        (Acceptance::Accepted, Some(_)) => {
            no("Pending", "The worker of the appliance has not taken this generation yet.")
        }
    }
}

fn ready(acceptance: &Acceptance, appliance: Option<&CatalogEntry>) -> Verdict {
    let no = |reason: &str, message: String| verdict(READY, false, reason, message);
    let Some(entry) = appliance else {
        return match acceptance {
            Acceptance::Deleting => no("Deleting", "The appliance is being deleted.".into()),
            _ => no("NoAppliance", "There is no appliance.".into()),
        };
    };
    let phase = entry.phase();
    let last_error = || {
        let said = entry.status.as_ref().and_then(|(status, _)| status.last_error.clone());
        said.unwrap_or_else(|| format!("The appliance is {phase}."))
    };
    match acceptance {
        Acceptance::Refused(..) => no(
            "NotAccepted",
            format!("The last generation was not accepted; the appliance goes on as it was, {phase}."),
        ),
        Acceptance::Deleting => no("Deleting", "The appliance is being deleted.".into()),
        Acceptance::Accepted if entry.assignment.quarantined => {
            no("Quarantined", format!("No worker is granted the appliance: {}", entry.assignment.reason))
        }
        Acceptance::Accepted if entry.assignment.worker.is_none() => {
            no("Unplaced", format!("No worker has the appliance: {}", entry.assignment.reason))
        }
        Acceptance::Accepted if !is_observed(entry) => {
            no("Pending", "The worker of the appliance has not taken this generation yet.".into())
        }
        Acceptance::Accepted if phase == Phase::Configured => {
            verdict(READY, true, phase.name(), "The appliance is as asked for.")
        }
        Acceptance::Accepted => no(phase.name(), last_error()),
    }
}

/// Whether the worker knows the present generation.
fn is_observed(entry: &CatalogEntry) -> bool {
    let observed = entry.status.as_ref().map(|(status, _)| status.observed_generation);
    observed.is_some_and(|observed| observed >= entry.record.generation)
}

/// A time as the API has it.
pub(super) fn time(at: SystemTime) -> String {
    prost_types::Timestamp { nanos: 0, ..at.into() }.to_string()
}

/// A text that is shown, cut if it is too long.
fn clipped(text: impl Into<String>) -> String {
    let mut text = text.into();
    text.truncate(text.floor_char_boundary(MAX_SHOWN));
    text
}

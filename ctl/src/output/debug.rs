//! Debug modes as they are printed.

use proto::admin::v1;
use proto::admin::v1::debug_scope::What;
use serde::Serialize;

use crate::text::one_line;

/// An appliance by tenant and name, or by its id once it is gone.
pub(crate) fn names(tenant: &str, name: &str, id: &str) -> String {
    if name.is_empty() { one_line(id) } else { one_line(&format!("{tenant}/{name}")) }
}

/// What a mode covers, in a few words.
pub(crate) fn scope_text(mode: &v1::DebugMode) -> String {
    match mode.scope.as_ref().and_then(|scope| scope.what.as_ref()) {
        Some(What::Global(_)) => "everything".to_owned(),
        Some(What::Tenant(tenant)) => format!("tenant {}", one_line(tenant)),
        Some(What::Worker(worker)) => format!("worker {}", one_line(worker)),
        Some(What::Appliance(reference)) => match &reference.by {
            Some(v1::appliance_ref::By::Name(full)) => format!("appliance {}", names(&full.tenant, &full.name, "")),
            Some(v1::appliance_ref::By::Id(id)) => format!("appliance {}", one_line(id)),
            None => "?".to_owned(),
        },
        Some(What::Selector(selector)) => format!("labels {}", one_line(selector)),
        None => "?".to_owned(),
    }
}

/// A debug mode, as it is printed.
#[derive(Debug, Serialize)]
pub(crate) struct Mode {
    id: String,
    scope: String,
    reason: String,
    by: String,
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expire_time: Option<String>,
    /// Absent where nobody counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    covered: Option<u64>,
    waiting_count: u64,
    waiting: Vec<Waiting>,
    late_count: u64,
    late: Vec<Late>,
}

#[derive(Debug, Serialize)]
struct Waiting {
    appliance: String,
    name: String,
    reason: String,
}

#[derive(Debug, Serialize)]
struct Late {
    appliance: String,
    name: String,
    left_seconds: f64,
}

impl From<&v1::DebugMode> for Mode {
    fn from(mode: &v1::DebugMode) -> Self {
        let seconds = |left: Option<prost_types::Duration>| {
            left.and_then(|left| proto::convert::scalar::duration_from_wire(&left).ok())
                .unwrap_or_default()
                .as_secs_f64()
        };
        let waiting = mode.waiting.iter().map(|wait| Waiting {
            appliance: wait.appliance.clone(),
            name: names(&wait.tenant, &wait.name, &wait.appliance),
            reason: wait.reason.clone(),
        });
        let late = mode.late.iter().map(|late| Late {
            appliance: late.appliance.clone(),
            name: names(&late.tenant, &late.name, &late.appliance),
            left_seconds: seconds(late.left),
        });
        Self {
            id: mode.id.clone(),
            scope: scope_text(mode),
            reason: mode.reason.clone(),
            by: mode.by.clone(),
            since: mode.since.map(|at| at.to_string()),
            expire_time: mode.expire_time.map(|at| at.to_string()),
            covered: mode.covered,
            waiting_count: mode.waiting_count,
            waiting: waiting.collect(),
            late_count: mode.late_count,
            late: late.collect(),
        }
    }
}

/// A step that was not made, as it is printed.
#[derive(Debug, Serialize)]
pub(crate) struct Step {
    step: String,
    reason: String,
    last_time: Option<String>,
    times: u32,
}

impl From<&v1::WithheldStep> for Step {
    fn from(step: &v1::WithheldStep) -> Self {
        let v1::WithheldStep { step, reason, last_time, times } = step.clone();
        Self { step, reason, last_time: last_time.map(|at| at.to_string()), times }
    }
}

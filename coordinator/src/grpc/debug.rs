//! The service `Debug`: modes in which hands are off some appliances.

use std::time::Duration;

use common::appliance::{FieldViolation, Name, Violations};
use common::mode::{ModeRule, ModeScope};
use common::selector::LabelSelector;
use common::{ApplianceId, ModeId, WorkerId};
use proto::admin::v1 as wire;
use proto::convert::scalar::{duration_from_wire, duration_to_wire, time_to_wire, unix_ms_to_wire};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::call::{Caller, access, context, reason};
use super::{Access, page, status};
use crate::catalog::Catalog;
use crate::commands::NewMode;
use crate::views::ModeView;

/// Default and largest size of a page.
const DEFAULT_PAGE: usize = 50;
const MAX_PAGE: usize = 100;
/// Least and longest time after which a mode expires.
const MIN_EXPIRY: Duration = Duration::from_secs(1);
const MAX_EXPIRY: Duration = Duration::from_secs(3_653 * 86_400);

pub(super) struct DebugService {
    caller: Caller,
}

impl DebugService {
    pub(super) const fn new(caller: Caller) -> Self {
        Self { caller }
    }
}

#[tonic::async_trait]
impl wire::debug_server::Debug for DebugService {
    async fn set(&self, request: Request<wire::SetDebugModeRequest>) -> Result<Response<wire::DebugMode>, Status> {
        let (context, access) = (context(&request)?, access(&request)?);
        let wire::SetDebugModeRequest { id, scope, reason: why, expires_in, wait } = request.into_inner();
        let reason = reason(why)?;
        let mut found = Violations::default();
        let id = if id.is_empty() { Some(Uuid::new_v4()) } else { found.take("id", Uuid::parse_str(&id)) };
        let expires_in = expires_in.and_then(|lasts| found.take("expires_in", duration_from_wire(&lasts)));
        if expires_in.is_some_and(|lasts| !(MIN_EXPIRY..=MAX_EXPIRY).contains(&lasts)) {
            found.add("expires_in", "must be 1 s to 10 years");
        }
        let wait = wait.and_then(|wait| found.take("wait", duration_from_wire(&wait)));
        let id = found.into_result(id).map_err(|found| status::invalid(&found))?;
        let scope = self.scope(&access, scope)?;
        let until = wait.and_then(|wait| Instant::now().checked_add(wait)).unwrap_or(context.deadline);
        let mode = NewMode { id: ModeId::new(id.as_u128()), scope, expires_in };
        let view = self.caller.commands.set_mode(&context, mode, reason, until).await;
        Ok(Response::new(view_to_wire(&view.map_err(|e| status::from_command(&e))?, &self.caller.catalog)))
    }

    async fn clear(
        &self,
        request: Request<wire::ClearDebugModeRequest>,
    ) -> Result<Response<wire::ClearDebugModeResponse>, Status> {
        let context = context(&request)?;
        let wire::ClearDebugModeRequest { id, reason: why } = request.into_inner();
        let (id, reason) = (mode_id(&id)?, reason(why)?);
        self.caller.commands.clear_mode(&context, id, reason).await.map_err(|e| status::from_command(&e))?;
        Ok(Response::new(wire::ClearDebugModeResponse {}))
    }

    async fn get(&self, request: Request<wire::GetDebugModeRequest>) -> Result<Response<wire::DebugMode>, Status> {
        let context = context(&request)?;
        let id = mode_id(&request.into_inner().id)?;
        let view = self.caller.commands.mode(&context, id).await.map_err(|e| status::from_command(&e))?;
        Ok(Response::new(view_to_wire(&view, &self.caller.catalog)))
    }

    async fn list(
        &self,
        request: Request<wire::ListDebugModesRequest>,
    ) -> Result<Response<wire::ListDebugModesResponse>, Status> {
        let context = context(&request)?;
        let wire::ListDebugModesRequest { page_size, page_token } = request.into_inner();
        let size = match page::size(page_size)? {
            _ if page_size == 0 => DEFAULT_PAGE,
            size => size.min(MAX_PAGE),
        };
        let after = if page_token.is_empty() { None } else { Some(page_start(&page_token)?) };
        let list = self.caller.commands.modes(&context, after, size).await.map_err(|e| status::from_command(&e))?;
        let last = list.modes.last().filter(|_| list.more);
        Ok(Response::new(wire::ListDebugModesResponse {
            next_page_token: last.map(|last| page::seal(&last.rule.id.to_string())).unwrap_or_default(),
            modes: list.modes.iter().map(|view| view_to_wire(view, &self.caller.catalog)).collect(),
            total_size: list.total,
        }))
    }

    async fn would_have(
        &self,
        request: Request<wire::WouldHaveRequest>,
    ) -> Result<Response<wire::WouldHaveResponse>, Status> {
        let access = access(&request)?;
        let entry = self.caller.find(&access, request.into_inner().appliance)?;
        let steps = withheld_to_wire(&self.caller.catalog, entry.record.id);
        Ok(Response::new(wire::WouldHaveResponse { steps }))
    }
}

impl DebugService {
    /// What a mode is to cover. An appliance has to be there; a tenant, a worker or labels need not, yet.
    fn scope(&self, access: &Access, scope: Option<wire::DebugScope>) -> Result<ModeScope, Status> {
        use wire::debug_scope::What;
        let invalid = |field: &str, problem: String| Err(status::invalid(&[FieldViolation::new(field, problem)]));
        match scope.and_then(|scope| scope.what) {
            Some(What::Global(true)) => Ok(ModeScope::Global),
            Some(What::Global(false)) => invalid("scope.global", "must be true".to_owned()),
            Some(What::Tenant(tenant)) => match Name::new(&tenant) {
                Ok(tenant) => Ok(ModeScope::Tenant(tenant)),
                Err(problem) => invalid("scope.tenant", problem.to_string()),
            },
            Some(What::Worker(worker)) => match WorkerId::new(&worker) {
                Ok(worker) => Ok(ModeScope::Worker(worker)),
                Err(problem) => invalid("scope.worker", problem.to_string()),
            },
            Some(What::Appliance(reference)) => {
                let entry = self.caller.find(access, Some(reference))?;
                Ok(ModeScope::Appliance(entry.record.id))
            }
            Some(What::Selector(text)) => match text.parse::<LabelSelector>() {
                Ok(selector) if selector.is_empty() => invalid("scope.selector", "has no condition".to_owned()),
                Ok(selector) => Ok(ModeScope::Labels(selector)),
                Err(problem) => invalid("scope.selector", problem.to_string()),
            },
            None => {
                let problem = "is missing: give global, a tenant, a worker, an appliance or a selector";
                invalid("scope", problem.to_owned())
            }
        }
    }
}

fn mode_id(text: &str) -> Result<ModeId, Status> {
    let id = Uuid::parse_str(text)
        .map_err(|problem| status::invalid(&[FieldViolation::new("id", format!("is not a UUID: {problem}"))]))?;
    Ok(ModeId::new(id.as_u128()))
}

fn page_start(token: &str) -> Result<ModeId, Status> {
    page::open(token).and_then(|text| text.parse().ok()).ok_or_else(page::odd)
}

/// A rule, without how far it is.
pub(super) fn rule_to_wire(rule: &ModeRule, catalog: &Catalog) -> wire::DebugMode {
    use wire::debug_scope::What;
    let what = match &rule.scope {
        ModeScope::Global => What::Global(true),
        ModeScope::Tenant(tenant) => What::Tenant(tenant.to_string()),
        ModeScope::Worker(worker) => What::Worker(worker.to_string()),
        ModeScope::Appliance(id) => {
            use wire::appliance_ref::By;
            let by = match names(*id, catalog) {
                Some((tenant, name)) => By::Name(wire::TenantName { tenant, name }),
                None => By::Id(id.to_string()),
            };
            What::Appliance(wire::ApplianceRef { by: Some(by) })
        }
        ModeScope::Labels(selector) => What::Selector(selector.to_string()),
    };
    wire::DebugMode {
        id: rule.id.to_string(),
        scope: Some(wire::DebugScope { what: Some(what) }),
        reason: rule.reason.clone(),
        by: rule.by.clone(),
        since: Some(unix_ms_to_wire(rule.since_unix_ms)),
        expire_time: rule.expires_unix_ms.map(unix_ms_to_wire),
        ..wire::DebugMode::default()
    }
}

fn view_to_wire(view: &ModeView, catalog: &Catalog) -> wire::DebugMode {
    let names = |id| names(id, catalog).unwrap_or_default();
    let waiting = view.waiting.iter().map(|(id, why)| {
        let (tenant, name) = names(*id);
        wire::DebugWait { appliance: id.to_string(), tenant, name, reason: why.clone() }
    });
    let late = view.late.iter().map(|(id, left)| {
        let (tenant, name) = names(*id);
        wire::DebugLate { appliance: id.to_string(), tenant, name, left: Some(duration_to_wire(*left)) }
    });
    wire::DebugMode {
        covered: view.covered,
        waiting: waiting.collect(),
        waiting_count: view.waiting_count,
        late: late.collect(),
        late_count: view.late_count,
        ..rule_to_wire(&view.rule, catalog)
    }
}

/// Tenant and name of an appliance, if it is still there.
fn names(id: ApplianceId, catalog: &Catalog) -> Option<(String, String)> {
    let entry = catalog.get(&common::change::ApplianceTarget::Id(id))?;
    Some((entry.record.tenant.to_string(), entry.record.name.to_string()))
}

/// What the owner of an appliance would have done.
pub(super) fn withheld_to_wire(catalog: &Catalog, id: ApplianceId) -> Vec<wire::WithheldStep> {
    let steps = catalog.withheld(id).unwrap_or_default();
    let to_wire = |step: &crate::views::WithheldStep| wire::WithheldStep {
        step: step.step.clone(),
        reason: step.reason.clone(),
        last_time: Some(time_to_wire(step.last)),
        times: step.times,
    };
    steps.iter().map(to_wire).collect()
}

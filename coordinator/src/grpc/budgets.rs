//! The service `Budgets`: how many appliances may be unavailable for another one to be made unavailable on purpose.

use common::appliance::{Name, Violations};
use common::kind::KindName;
use coordinator_core::budget::{Budget, BudgetGroup, BudgetScope, MaxUnavailable};
use coordinator_core::orders::OrderOp;
use proto::admin::v1 as wire;
use proto::convert::scalar::time_to_wire;
use tonic::{Request, Response, Status};

use super::call::{Caller, context, reason};
use super::status;
use crate::views::BudgetStatus;

/// Longest name of a zone, in bytes.
const MAX_ZONE: usize = 128;

pub(super) struct BudgetsService {
    caller: Caller,
}

impl BudgetsService {
    pub(super) const fn new(caller: Caller) -> Self {
        Self { caller }
    }
}

#[tonic::async_trait]
impl wire::budgets_server::Budgets for BudgetsService {
    async fn set(&self, request: Request<wire::SetBudgetRequest>) -> Result<Response<wire::Budget>, Status> {
        let context = context(&request)?;
        let message = request.into_inner();
        let reason = reason(message.reason.clone())?;
        let mut found = Violations::default();
        let name = found.take("name", Name::new(&message.name));
        let budget = budget(message, &mut found);
        let (Some(name), Some(budget)) = (name, budget.filter(|_| found.is_empty())) else {
            return Err(status::invalid(&found.into_vec()));
        };
        let order = OrderOp::Budget { name: name.clone(), budget: Some(budget) };
        let ordered = self.caller.commands.order(&context, vec![order], false, reason).await;
        ordered.map_err(|e| status::from_command(&e))?;
        let all = self.caller.commands.budgets(&context).await.map_err(|e| status::from_command(&e))?;
        let set = all.iter().find(|status| status.view.name == name);
        // Somebody may have cleared it meanwhile.
        let set = set.ok_or_else(|| status::not_found("budget", name.as_str()))?;
        Ok(Response::new(to_wire(set)))
    }

    async fn clear(
        &self,
        request: Request<wire::ClearBudgetRequest>,
    ) -> Result<Response<wire::ClearBudgetResponse>, Status> {
        let context = context(&request)?;
        let wire::ClearBudgetRequest { name, reason: why } = request.into_inner();
        let reason = reason(why)?;
        let mut found = Violations::default();
        let name = found.take("name", Name::new(&name));
        let name = found.into_result(name).map_err(|found| status::invalid(&found))?;
        let order = OrderOp::Budget { name, budget: None };
        let ordered = self.caller.commands.order(&context, vec![order], false, reason).await;
        ordered.map_err(|e| status::from_command(&e))?;
        Ok(Response::new(wire::ClearBudgetResponse {}))
    }

    async fn list(
        &self,
        request: Request<wire::ListBudgetsRequest>,
    ) -> Result<Response<wire::ListBudgetsResponse>, Status> {
        let all = self.caller.commands.budgets(&context(&request)?).await.map_err(|e| status::from_command(&e))?;
        Ok(Response::new(wire::ListBudgetsResponse { budgets: all.iter().map(to_wire).collect() }))
    }
}

fn budget(message: wire::SetBudgetRequest, found: &mut Violations) -> Option<Budget> {
    use wire::set_budget_request::MaxUnavailable as Most;
    let wire::BudgetScope { tenant, kind, zone, selector } = message.scope.unwrap_or_default();
    let given = |text: String| (!text.is_empty()).then_some(text);
    let tenant = given(tenant).and_then(|tenant| found.take("scope.tenant", Name::new(&tenant)));
    let kind = given(kind).and_then(|kind| {
        let known = KindName::find(&kind);
        if known.is_none() {
            found.add("scope.kind", format!("there is no kind `{kind}`"));
        }
        known
    });
    let zone = given(zone);
    if let Some(zone) = &zone
        && let Err(problem) = common::text::check(zone, MAX_ZONE)
    {
        found.add("scope.zone", problem.to_string());
    }
    let labels = given(selector).and_then(|selector| found.take("scope.selector", selector.parse()));
    let per = match message.per.as_str() {
        "" => Some(BudgetGroup::All),
        word => BudgetGroup::ALL.into_iter().find(|group| group.name() == word),
    };
    if per.is_none() {
        found.add("per", "must be `all`, `tenant`, `kind` or `zone`");
    }
    let max_unavailable = match message.max_unavailable {
        Some(Most::Count(count)) => Some(MaxUnavailable::Count(count)),
        Some(Most::Percent(percent)) => match u8::try_from(percent) {
            Ok(percent @ 1..=100) => Some(MaxUnavailable::Percent(percent)),
            _ => {
                found.add("max_unavailable.percent", "must be 1 to 100");
                None
            }
        },
        None => {
            found.add("max_unavailable", "give a count or a percentage");
            None
        }
    };
    let scope = BudgetScope { tenant, kind, zone, labels };
    Some(Budget { scope, per: per?, max_unavailable: max_unavailable? })
}

fn to_wire(status: &BudgetStatus) -> wire::Budget {
    use wire::budget::MaxUnavailable as Most;
    let BudgetStatus { view, note } = status;
    let BudgetScope { tenant, kind, zone, labels } = &view.budget.scope;
    wire::Budget {
        name: view.name.to_string(),
        scope: Some(wire::BudgetScope {
            tenant: tenant.as_ref().map(ToString::to_string).unwrap_or_default(),
            kind: kind.map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
            zone: zone.clone().unwrap_or_default(),
            selector: labels.as_ref().map(ToString::to_string).unwrap_or_default(),
        }),
        per: view.budget.per.name().to_owned(),
        max_unavailable: Some(match view.budget.max_unavailable {
            MaxUnavailable::Count(count) => Most::Count(count),
            MaxUnavailable::Percent(percent) => Most::Percent(percent.into()),
        }),
        reason: note.reason.clone(),
        by: note.by.clone(),
        since: Some(time_to_wire(note.since)),
        covered: view.covered,
        down: view.down,
        groups: view.groups,
        spent: view.spent,
        held: view.held,
    }
}

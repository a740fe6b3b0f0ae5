//! The service `Rollouts`: one command over many appliances, a few at a time.

use std::time::Duration;

use common::appliance::{FieldViolation, Violations};
use common::text;
use coordinator_core::rollout::{MAX_ITEMS, MAX_WAVES, RolloutAction, RolloutOrder, RolloutPolicy, RolloutState};
use proto::admin::v1 as wire;
use proto::convert::scalar::{duration_from_wire, duration_to_wire, time_to_wire};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::call::{Caller, access, context, reason};
use super::{status, wire as to_wire};
use crate::access::Permission;
use crate::catalog::Filter;
use crate::commands::{CommandError, NewRollout};
use crate::views::RolloutView;

/// How long an appliance may take, unless somebody says otherwise.
const ITEM_TIMEOUT: Duration = Duration::from_secs(600);
const MIN_ITEM_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_ITEM_TIMEOUT: Duration = Duration::from_secs(86_400);
/// Longest image, in bytes.
const MAX_IMAGE: usize = 1024;
/// Rollouts in one answer; there are never more.
const MAX_LIST: usize = 100;

pub(super) struct RolloutsService {
    caller: Caller,
}

impl RolloutsService {
    pub(super) const fn new(caller: Caller) -> Self {
        Self { caller }
    }

    async fn order(
        &self,
        request: Request<wire::OrderRolloutRequest>,
        order: RolloutOrder,
    ) -> Result<Response<wire::Rollout>, Status> {
        let (context, access) = (context(&request)?, access(&request)?);
        let wire::OrderRolloutRequest { id, reason: why } = request.into_inner();
        let (id, reason) = (rollout_id(&id)?, reason(why)?);
        if matches!(order, RolloutOrder::Resume | RolloutOrder::Rollback) {
            let view = self.caller.commands.rollout(&context, id).await.map_err(|e| status::from_command(&e))?;
            access.narrowed(permission(&view.record.action))?;
        }
        let view = self.caller.commands.order_rollout(&context, id, order, reason).await;
        Ok(Response::new(view_to_wire(&view.map_err(|e| status::from_command(&e))?)))
    }
}

#[tonic::async_trait]
impl wire::rollouts_server::Rollouts for RolloutsService {
    async fn start(&self, request: Request<wire::StartRolloutRequest>) -> Result<Response<wire::Rollout>, Status> {
        let (context, access) = (context(&request)?, access(&request)?);
        let message = request.into_inner();
        let reason = reason(message.reason)?;
        let mut found = Violations::default();
        let id =
            if message.id.is_empty() { Some(Uuid::new_v4()) } else { found.take("id", Uuid::parse_str(&message.id)) };
        let action = action(message.action, message.image, &mut found);
        let policy = policy(message.policy.unwrap_or_default(), &mut found);
        let (id, action, policy) = match (id, action, policy) {
            (Some(id), Some(action), Some(policy)) if found.is_empty() => (id, action, policy),
            _ => return Err(status::invalid(&found.into_vec())),
        };
        // Whoever may not do it to one appliance may not do it to many.
        let access = access.narrowed(permission(&action))?;
        let filter = to_wire::filter(message.filter, &access)?;
        let selection = described(&filter);
        if selection.is_empty() && !message.all {
            let problem = "selects everything; say so with `all`";
            return Err(status::invalid(&[FieldViolation::new("filter", problem)]));
        }
        let selection = if selection.is_empty() { "all".to_owned() } else { selection };
        let items = self.select(&filter).await?;
        if items.is_empty() {
            return Err(status::invalid(&[FieldViolation::new("filter", "selects no appliance")]));
        }
        let new = NewRollout { id, action, policy, selection, force: message.force, items };
        let view = self.caller.commands.start_rollout(&context, new, reason).await;
        Ok(Response::new(view_to_wire(&view.map_err(|e| status::from_command(&e))?)))
    }

    async fn get(&self, request: Request<wire::GetRolloutRequest>) -> Result<Response<wire::Rollout>, Status> {
        let context = context(&request)?;
        let id = rollout_id(&request.into_inner().id)?;
        let view = self.caller.commands.rollout(&context, id).await.map_err(|e| status::from_command(&e))?;
        Ok(Response::new(view_to_wire(&view)))
    }

    async fn list(
        &self,
        request: Request<wire::ListRolloutsRequest>,
    ) -> Result<Response<wire::ListRolloutsResponse>, Status> {
        let views = self.caller.commands.rollouts(&context(&request)?).await.map_err(|e| status::from_command(&e))?;
        let rollout = |view: &RolloutView| wire::Rollout { under_way: Vec::new(), ..view_to_wire(view) };
        Ok(Response::new(wire::ListRolloutsResponse { rollouts: views.iter().take(MAX_LIST).map(rollout).collect() }))
    }

    async fn pause(&self, request: Request<wire::OrderRolloutRequest>) -> Result<Response<wire::Rollout>, Status> {
        self.order(request, RolloutOrder::Pause).await
    }

    async fn resume(&self, request: Request<wire::OrderRolloutRequest>) -> Result<Response<wire::Rollout>, Status> {
        self.order(request, RolloutOrder::Resume).await
    }

    async fn abort(&self, request: Request<wire::OrderRolloutRequest>) -> Result<Response<wire::Rollout>, Status> {
        self.order(request, RolloutOrder::Abort).await
    }

    async fn rollback(&self, request: Request<wire::OrderRolloutRequest>) -> Result<Response<wire::Rollout>, Status> {
        self.order(request, RolloutOrder::Rollback).await
    }
}

impl RolloutsService {
    /// The appliances that match, in the order of tenant and name.
    async fn select(&self, filter: &Filter) -> Result<Vec<common::ApplianceId>, Status> {
        let mut items = Vec::new();
        let mut from = None;
        loop {
            from = self.caller.catalog.scan(filter, from.as_ref(), |entry| {
                if !entry.record.deleting {
                    items.push(entry.record.id);
                }
                items.len() <= MAX_ITEMS
            });
            if items.len() > MAX_ITEMS {
                return Err(status::from_command(&CommandError::RolloutTooLarge(MAX_ITEMS)));
            }
            if from.is_none() {
                return Ok(items);
            }
            // Yields during a long scan, so that other calls on this thread proceed.
            tokio::task::yield_now().await;
        }
    }
}

/// What doing it to one appliance needs.
const fn permission(action: &RolloutAction) -> Permission {
    match action {
        RolloutAction::Rebuild => Permission::RebuildAppliances,
        RolloutAction::Check => Permission::CheckAppliances,
        RolloutAction::SetImage(_) | RolloutAction::Delete => Permission::EditAppliances,
    }
}

fn rollout_id(text: &str) -> Result<Uuid, Status> {
    Uuid::parse_str(text)
        .map_err(|problem| status::invalid(&[FieldViolation::new("id", format!("is not a UUID: {problem}"))]))
}

fn action(action: i32, image: String, found: &mut Violations) -> Option<RolloutAction> {
    use wire::RolloutAction as W;
    let action = W::try_from(action).unwrap_or_default();
    if action != W::SetImage && !image.is_empty() {
        found.add("image", "is only for SET_IMAGE");
    }
    match action {
        W::Rebuild => Some(RolloutAction::Rebuild),
        W::Check => Some(RolloutAction::Check),
        W::Delete => Some(RolloutAction::Delete),
        W::SetImage if image.is_empty() => {
            found.add("image", "is missing");
            None
        }
        W::SetImage => found.take("image", text::check(&image, MAX_IMAGE)).map(|()| RolloutAction::SetImage(image)),
        W::Unspecified => {
            found.add("action", "must be REBUILD, SET_IMAGE, CHECK or DELETE");
            None
        }
    }
}

fn policy(policy: wire::RolloutPolicy, found: &mut Violations) -> Option<RolloutPolicy> {
    let wire::RolloutPolicy { max_unavailable, max_failures, canary, waves, item_timeout, keep_failed_canary } = policy;
    let item_timeout = match item_timeout {
        None => Some(ITEM_TIMEOUT),
        Some(timeout) => found.take("policy.item_timeout", duration_from_wire(&timeout)),
    }?;
    if !(MIN_ITEM_TIMEOUT..=MAX_ITEM_TIMEOUT).contains(&item_timeout) {
        found.add("policy.item_timeout", "must be 1 s to 24 h");
    }
    if waves.len() > MAX_WAVES {
        found.add("policy.waves", format!("has {} entries, at most {MAX_WAVES} are allowed", waves.len()));
    }
    let percent = |wave: &u32| u8::try_from(*wave).ok().filter(|percent| (1..=100).contains(percent));
    let rising = waves.is_sorted_by(|a, b| a < b);
    let Some(waves) = waves.iter().map(percent).collect::<Option<Vec<u8>>>().filter(|_| rising) else {
        found.add("policy.waves", "must be rising percentages, 1 to 100");
        return None;
    };
    Some(RolloutPolicy {
        max_unavailable: max_unavailable.max(1),
        max_failures: max_failures.unwrap_or(1),
        canary,
        waves,
        item_timeout,
        rollback: !keep_failed_canary,
    })
}

/// A filter in a few words; empty when it matches everything.
fn described(filter: &Filter) -> String {
    let mut parts: Vec<String> = Vec::new();
    parts.extend(filter.tenant.as_ref().map(|tenant| format!("tenant {tenant}")));
    parts.extend(filter.kind.as_ref().map(|kind| format!("kind {kind}")));
    parts.extend(filter.driver.as_ref().map(|driver| format!("driver {driver}")));
    parts.extend(filter.worker.as_ref().map(|worker| format!("on {worker}")));
    if !filter.phases.is_empty() {
        let phases: Vec<_> = filter.phases.iter().map(|phase| phase.name()).collect();
        parts.push(format!("phase {}", phases.join(" or ")));
    }
    parts.extend(filter.labels.iter().map(|(key, value)| format!("{key}={value}")));
    parts.extend(filter.selector.as_ref().map(ToString::to_string));
    parts.extend((!filter.name_prefix.is_empty()).then(|| format!("named {}*", filter.name_prefix)));
    parts.join(", ")
}

fn view_to_wire(view: &RolloutView) -> wire::Rollout {
    use wire::{RolloutAction as A, RolloutState as S};
    let RolloutView { record, counts, wave, waves, wave_end, under_way, waits } = view;
    let (action, image) = match &record.action {
        RolloutAction::Rebuild => (A::Rebuild, String::new()),
        RolloutAction::SetImage(image) => (A::SetImage, image.clone()),
        RolloutAction::Check => (A::Check, String::new()),
        RolloutAction::Delete => (A::Delete, String::new()),
    };
    let state = match record.state {
        RolloutState::Running => S::Running,
        RolloutState::Paused => S::Paused,
        RolloutState::Stopped => S::Stopped,
        RolloutState::RollingBack => S::RollingBack,
        RolloutState::Completed => S::Completed,
        RolloutState::Aborted => S::Aborted,
        RolloutState::RolledBack => S::RolledBack,
    };
    let policy = &record.policy;
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let under_way = under_way.iter().map(|item| wire::RolloutAppliance {
        appliance: item.appliance.to_string(),
        name: item.name.clone(),
        detail: item.phase.map(|phase| phase.name().to_owned()).unwrap_or_default(),
    });
    let failures = record.failures.iter().map(|failure| wire::RolloutAppliance {
        appliance: failure.appliance.to_string(),
        name: failure.name.clone(),
        detail: failure.why.clone(),
    });
    wire::Rollout {
        id: record.id.to_string(),
        action: action.into(),
        image,
        policy: Some(wire::RolloutPolicy {
            max_unavailable: policy.max_unavailable,
            max_failures: Some(policy.max_failures),
            canary: policy.canary,
            waves: policy.waves.iter().map(|percent| u32::from(*percent)).collect(),
            item_timeout: Some(duration_to_wire(policy.item_timeout)),
            keep_failed_canary: !policy.rollback,
        }),
        state: state.into(),
        selection: record.selection.clone(),
        reason: record.reason.clone(),
        by: record.by.clone(),
        start_time: Some(time_to_wire(record.started)),
        end_time: record.ended.map(time_to_wire),
        note: record.note.clone(),
        waits: waits.clone(),
        total: record.items,
        waiting: counts.waiting as u64,
        begun: counts.begun as u64,
        done: counts.done as u64,
        failed: counts.failed as u64,
        skipped: counts.skipped as u64,
        returned: counts.returned as u64,
        wave: number(*wave + 1),
        waves: number(*waves),
        wave_end: *wave_end as u64,
        under_way: under_way.collect(),
        failures: failures.collect(),
    }
}

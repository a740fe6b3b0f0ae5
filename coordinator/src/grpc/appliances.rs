//! The service `Appliances`.

use std::sync::Arc;

use common::change::ApplianceTarget;
use futures::stream::{self, BoxStream, StreamExt};
use prost::Message;
use proto::admin::v1 as wire;
use proto::convert::admin::draft_from_wire;
use proto::convert::patch::update_from_wire;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status, Streaming};

use super::call::{Caller, MAX_PAGE_BYTES, access, canonical, context, request_key, target};
use super::logs::LogReader;
use super::page::{self, PageStart};
use super::wire as to_wire;
use super::{Access, debug, exec, status};
use crate::access::Permission;
use crate::catalog::{ApplianceChange, Filter};
use crate::commands::{Change, ChangeOrigin, Changed, CommandContext, RequestKey};
use crate::views::CatalogEntry;

/// Moves of one appliance that `Explain` shows.
const EXPLAINED_MOVES: usize = 20;

pub(super) struct AppliancesService {
    caller: Caller,
}

impl AppliancesService {
    pub(super) const fn new(caller: Caller) -> Self {
        Self { caller }
    }
}

/// The appliance after a change. Only a `Delete` of a missing one has none, and answers with [`gone`].
fn changed(changed: &Changed, access: &Access) -> wire::Appliance {
    changed.entry.as_deref().map(|entry| to_wire::appliance(entry, access)).unwrap_or_default()
}

/// Response for an appliance that does not exist any more: the reference of the caller, marked as deleting.
fn gone(target: ApplianceTarget) -> wire::Appliance {
    let (id, tenant, name) = match target {
        ApplianceTarget::Id(id) => (id.to_string(), String::new(), String::new()),
        ApplianceTarget::Name(tenant, name) => (String::new(), tenant.to_string(), name.to_string()),
    };
    wire::Appliance { id, tenant, name, deleting: true, ..wire::Appliance::default() }
}

#[tonic::async_trait]
impl wire::appliances_server::Appliances for AppliancesService {
    async fn create(
        &self,
        request: Request<wire::CreateApplianceRequest>,
    ) -> Result<Response<wire::Appliance>, Status> {
        let (context, access) = (context(&request)?, access(&request)?);
        let mut message = request.into_inner();
        let id = std::mem::take(&mut message.request_id);
        let key = request_key(&id, &access, || canonical("Create", message.clone(), |m| m.appliance.as_mut()))?;
        let draft = draft_from_wire(message.appliance).map_err(|v| status::invalid(&v))?;
        access.check_tenant(&draft.tenant)?;
        to_wire::check_hidden(&draft.spec)?;
        let change = Change::create(draft);
        let done = self.change(&context, client(&access, false), change, message.validate_only, key).await?;
        Ok(Response::new(changed(&done, &access)))
    }

    async fn get(&self, request: Request<wire::GetApplianceRequest>) -> Result<Response<wire::Appliance>, Status> {
        let access = access(&request)?;
        let entry = self.caller.find(&access, request.into_inner().appliance)?;
        Ok(Response::new(to_wire::appliance(&entry, &access)))
    }

    async fn list(
        &self,
        request: Request<wire::ListAppliancesRequest>,
    ) -> Result<Response<wire::ListAppliancesResponse>, Status> {
        let access = access(&request)?;
        let message = request.into_inner();
        let size = page::size(message.page_size)?;
        let filter = to_wire::filter(message.filter, &access)?;
        let position = PageStart::read(&message.page_token, &filter)?;
        Ok(Response::new(self.page(&filter, position, size, &access).await))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateApplianceRequest>,
    ) -> Result<Response<wire::UpdateApplianceResponse>, Status> {
        let (context, access) = (context(&request)?, access(&request)?);
        let mut message = request.into_inner();
        let id = std::mem::take(&mut message.request_id);
        let key = request_key(&id, &access, || canonical("Update", message.clone(), |m| m.appliance.as_mut()))?;
        let (validate_only, origin) = (message.validate_only, client(&access, message.force));
        let update = update_from_wire(message).map_err(|v| status::invalid(&v))?;
        self.caller.check_target(&access, &update.target)?;
        if let Some(draft) = &update.create {
            access.check_tenant(&draft.tenant)?;
        }
        update.patch.spec.iter().try_for_each(to_wire::check_hidden)?;
        let change = Change::update(update);
        let done = self.change(&context, origin, change, validate_only, key).await?;
        Ok(Response::new(wire::UpdateApplianceResponse {
            appliance: Some(changed(&done, &access)),
            outcome: to_wire::outcome(done.outcome).into(),
            warnings: done.warning.into_iter().collect(),
        }))
    }

    async fn delete(
        &self,
        request: Request<wire::DeleteApplianceRequest>,
    ) -> Result<Response<wire::Appliance>, Status> {
        let (context, access) = (context(&request)?, access(&request)?);
        let mut message = request.into_inner();
        let id = std::mem::take(&mut message.request_id);
        let key = request_key(&id, &access, || canonical("Delete", message.clone(), |_| None))?;
        let expected = message.expected_generation;
        let target = target(message.appliance)?;
        match self.caller.check_target(&access, &target) {
            // As one that does not exist, which is what it is for this caller.
            Err(status) if message.allow_missing && status.code() == tonic::Code::NotFound => {
                return Ok(Response::new(gone(target)));
            }
            checked => checked?,
        }
        let change = Change::Delete {
            target: target.clone(),
            expected: (expected > 0).then(|| common::Generation::new(expected)),
            allow_missing: message.allow_missing,
            at_once: message.at_once,
        };
        let done = self.change(&context, client(&access, message.force), change, message.validate_only, key).await?;
        let shown = |entry| to_wire::appliance(entry, &access);
        Ok(Response::new(done.entry.as_deref().map_or_else(|| gone(target), shown)))
    }

    async fn rebuild(
        &self,
        request: Request<wire::RebuildApplianceRequest>,
    ) -> Result<Response<wire::Appliance>, Status> {
        let (context, access) = (context(&request)?, access(&request)?);
        let mut message = request.into_inner();
        let id = std::mem::take(&mut message.request_id);
        let key = request_key(&id, &access, || canonical("Rebuild", message.clone(), |_| None))?;
        let image = (!message.image.is_empty()).then_some(message.image);
        let target = target(message.appliance)?;
        // Another image is another specification.
        let access = if image.is_some() { access.narrowed(Permission::EditAppliances)? } else { access };
        self.caller.check_target(&access, &target)?;
        let change = Change::Rebuild { target, image, force: message.force };
        let done = self.change(&context, client(&access, false), change, false, key).await?;
        Ok(Response::new(changed(&done, &access)))
    }

    async fn check(&self, request: Request<wire::CheckApplianceRequest>) -> Result<Response<wire::Appliance>, Status> {
        let (context, access) = (context(&request)?, access(&request)?);
        let entry = self.caller.find(&access, request.into_inner().appliance)?;
        let id = entry.record.id;
        self.caller.commands.check(&context, id).await.map_err(|e| status::from_command(&e))?;
        // Current state: the owner's response is in the catalog before the command is answered.
        let reference = wire::ApplianceRef { by: Some(wire::appliance_ref::By::Id(id.to_string())) };
        Ok(Response::new(to_wire::appliance(&*self.caller.find(&access, Some(reference))?, &access)))
    }

    type WatchStream = BoxStream<'static, Result<wire::ApplianceEvent, Status>>;

    async fn watch(
        &self,
        request: Request<wire::WatchAppliancesRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let access = access(&request)?;
        let filter = to_wire::filter(request.into_inner().filter, &access)?;
        let (current, changes) = self.caller.catalog.watch(&filter);
        let synced = stream::once(std::future::ready(Ok(event(Kind::Synced, None, &access))));
        let changes = live(filter, changes, access.clone());
        let current = stream::iter(current).map(move |e| Ok(event(Kind::Current, Some(&e), &access)));
        Ok(Response::new(current.chain(synced).chain(changes).boxed()))
    }

    type LogsStream = BoxStream<'static, Result<wire::LogChunk, Status>>;

    async fn logs(&self, request: Request<wire::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let access = access(&request)?;
        let actor = access.actor().to_owned();
        let message = request.into_inner();
        let entry = self.caller.find(&access, message.appliance.clone())?;
        let reader = LogReader::new(&self.caller, &entry, actor, message)?;
        Ok(Response::new(reader.stream().await?))
    }

    type ExecStream = BoxStream<'static, Result<wire::ExecResponse, Status>>;

    async fn exec(&self, request: Request<Streaming<wire::ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        let access = access(&request)?;
        exec::serve(&self.caller, &access, request.into_inner()).await.map(Response::new)
    }

    async fn explain(
        &self,
        request: Request<wire::ExplainApplianceRequest>,
    ) -> Result<Response<wire::ExplainApplianceResponse>, Status> {
        let (context, access) = (context(&request)?, access(&request)?);
        let entry = self.caller.find(&access, request.into_inner().appliance)?;
        let id = entry.record.id;
        let explained = self.caller.commands.explain(&context, id).await;
        let explanation = explained.map_err(|e| status::from_command(&e))?;
        let ended = self.caller.history.moves_of(id, EXPLAINED_MOVES as u64).await;
        let ended = ended.map_err(|e| status::from_history(&e))?;
        // The store has moves that have ended; those in flight are in memory.
        let views = self.caller.catalog.rebalances(None);
        let under_way = views.iter().flat_map(|view| to_wire::moves_under_way(view, id));
        let moves = under_way.chain(ended.iter().map(to_wire::move_record)).take(EXPLAINED_MOVES);
        Ok(Response::new(wire::ExplainApplianceResponse {
            appliance: Some(to_wire::appliance(&entry, &access)),
            ring_position: to_wire::position(explanation.position),
            summary: explanation.summary,
            candidates: explanation.candidates.into_iter().map(to_wire::candidate).collect(),
            moves: moves.collect(),
            debug_modes: explanation.modes.iter().map(|rule| debug::rule_to_wire(rule, &self.caller.catalog)).collect(),
            would_have: debug::withheld_to_wire(&self.caller.catalog, id),
        }))
    }
}

impl AppliancesService {
    async fn change(
        &self,
        context: &CommandContext,
        origin: ChangeOrigin,
        change: Change,
        validate_only: bool,
        request: Option<RequestKey>,
    ) -> Result<Changed, Status> {
        let changed = self.caller.commands.change(context, origin, change, validate_only, request).await;
        changed.map_err(|e| status::from_command(&e))
    }

    /// One page, of at most `size` appliances and about [`MAX_PAGE_BYTES`].
    async fn page(
        &self,
        filter: &Filter,
        position: Option<PageStart>,
        size: usize,
        access: &Access,
    ) -> wire::ListAppliancesResponse {
        let catalog = &self.caller.catalog;
        let (mut from, counted) = position.map_or((None, None), |p| (Some(p.after), Some(p.total)));
        // Only the first page of a filtered list has to scan everything.
        let counted = counted.or_else(|| filter.is_empty().then(|| catalog.len() as u64));
        let mut found: Vec<Arc<CatalogEntry>> = Vec::with_capacity(size.min(128));
        let mut matches = 0;
        loop {
            from = catalog.scan(filter, from.as_ref(), |entry| {
                matches += 1;
                // One more than fits shows that there is another page.
                if found.len() <= size {
                    found.push(Arc::clone(entry));
                }
                counted.is_none() || found.len() <= size
            });
            if from.is_none() {
                break;
            }
            // Yields during a long scan, so that other calls on this thread proceed.
            tokio::task::yield_now().await;
        }
        let total = counted.unwrap_or(matches);
        let mut bytes = 0;
        let mut appliances = Vec::with_capacity(found.len().min(size));
        for entry in found.iter().take(size) {
            let appliance = to_wire::appliance(entry, access);
            bytes += appliance.encoded_len();
            if bytes > MAX_PAGE_BYTES && !appliances.is_empty() {
                break;
            }
            appliances.push(appliance);
        }
        let shown = appliances.len();
        let more = (shown < found.len()).then(|| shown.checked_sub(1).and_then(|last| found.get(last))).flatten();
        let next_page_token = more.map(|last| PageStart { after: last.key(), total }.token(filter)).unwrap_or_default();
        wire::ListAppliancesResponse { appliances, next_page_token, total_size: total }
    }
}

/// A client of this API, which changes what sources manage only by `force`.
fn client(access: &Access, force: bool) -> ChangeOrigin {
    ChangeOrigin::Client { force, scope: access.scope().clone() }
}

use wire::appliance_event::Type as Kind;

fn event(kind: Kind, entry: Option<&Arc<CatalogEntry>>, access: &Access) -> wire::ApplianceEvent {
    wire::ApplianceEvent { r#type: kind.into(), appliance: entry.map(|e| to_wire::appliance(e, access)) }
}

/// The event of a change for a watcher with `filter`; none when it matches neither before nor after.
fn seen(filter: &Filter, change: &ApplianceChange, access: &Access) -> Option<wire::ApplianceEvent> {
    let event = |kind, entry| Some(event(kind, Some(entry), access));
    let matching = |entry: &Option<Arc<CatalogEntry>>| entry.clone().filter(|e| filter.matches(e));
    match (matching(&change.before), matching(&change.after)) {
        (None, Some(after)) if change.before.is_none() => event(Kind::Created, &after),
        (_, Some(after)) => event(Kind::Changed, &after),
        (Some(before), None) => event(Kind::Gone, change.after.as_ref().unwrap_or(&before)),
        (None, None) => None,
    }
}

/// Stream of changes. Ends with `ABORTED` when the client reads too slowly, with `UNAVAILABLE` when this coordinator
/// stops leading; the client then opens a new watch.
fn live(
    filter: Filter,
    changes: Receiver<ApplianceChange>,
    access: Access,
) -> impl futures::Stream<Item = Result<wire::ApplianceEvent, Status>> + Send {
    stream::unfold(Some((filter, changes, access)), |state| async move {
        let (filter, mut changes, access) = state?;
        loop {
            match changes.recv().await {
                Ok(change) => {
                    if let Some(event) = seen(&filter, &change, &access) {
                        return Some((Ok(event), Some((filter, changes, access))));
                    }
                }
                Err(RecvError::Lagged(missed)) => return Some((Err(status::lagged(missed)), None)),
                Err(RecvError::Closed) => return Some((Err(status::watch_over()), None)),
            }
        }
    })
}

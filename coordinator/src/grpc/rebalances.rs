//! The service `Rebalances`: recent ones from memory, including those in progress, older ones from the store.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use common::RebalanceId;
use common::appliance::FieldViolation;
use futures::stream::{self, BoxStream, StreamExt};
use proto::admin::v1 as wire;
use runtime::telemetry::TRACE_ID;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status};

use super::call::{Caller, context, reason};
use super::wire as to_wire;
use super::{page, status};
use crate::views::RebalanceView;

pub(super) struct RebalancesService {
    caller: Caller,
}

impl RebalancesService {
    pub(super) const fn new(caller: Caller) -> Self {
        Self { caller }
    }

    fn linked(&self, rebalance: wire::Rebalance) -> wire::Rebalance {
        linked(&self.caller, rebalance)
    }
}

/// With the address of its trace, if it is known how such addresses are made.
fn linked(caller: &Caller, mut rebalance: wire::Rebalance) -> wire::Rebalance {
    if !rebalance.trace_id.is_empty() {
        rebalance.trace_url = caller.trace_url.replace(TRACE_ID, &rebalance.trace_id);
    }
    rebalance
}

#[tonic::async_trait]
impl wire::rebalances_server::Rebalances for RebalancesService {
    async fn list(
        &self,
        request: Request<wire::ListRebalancesRequest>,
    ) -> Result<Response<wire::ListRebalancesResponse>, Status> {
        let message = request.into_inner();
        let size = page::size(message.page_size)?;
        let before: Option<RebalanceId> = match message.page_token.as_str() {
            "" => None,
            token => Some(page::open(token).and_then(|t| t.parse().ok()).ok_or_else(page::odd)?),
        };
        let stored = self.caller.history.rebalances(before, size as u64 + 1).await;
        let stored = stored.map_err(|e| status::from_history(&e))?;
        let mut found: BTreeMap<RebalanceId, wire::Rebalance> =
            stored.iter().map(|r| (r.id, to_wire::rebalance_record(r))).collect();
        // Memory is newer than the store. A rebalance between two stored ones is in the store.
        for view in self.caller.catalog.rebalances(before) {
            found.insert(view.record.id, to_wire::rebalance_record(&view.record));
        }
        let mut rebalances = Vec::with_capacity(size.min(found.len()));
        let mut last = None;
        let more = found.len() > size;
        for (id, rebalance) in found.into_iter().rev().take(size) {
            rebalances.push(self.linked(rebalance));
            last = Some(id);
        }
        let next_page_token = last.filter(|_| more).map(|id| page::seal(&id.to_string())).unwrap_or_default();
        Ok(Response::new(wire::ListRebalancesResponse { rebalances, next_page_token }))
    }

    async fn get(&self, request: Request<wire::GetRebalanceRequest>) -> Result<Response<wire::Rebalance>, Status> {
        let wire::GetRebalanceRequest { id: text, page_size, page_token } = request.into_inner();
        let size = if page_size == 0 { to_wire::MAX_MOVES } else { page::size(page_size)? };
        let first: usize = match page_token.as_str() {
            "" => 0,
            token => page::open(token).and_then(|t| t.parse().ok()).ok_or_else(page::odd)?,
        };
        let id: RebalanceId = text.parse().map_err(|e: common::id::InvalidRebalanceId| {
            status::invalid(&[FieldViolation::new("id", e.to_string())])
        })?;
        let in_memory = self.caller.catalog.rebalance(id);
        let members = if first == 0 { self.caller.history.members_of(id).await } else { Ok(Vec::new()) };
        let members = members.map_err(|e| status::from_history(&e))?.iter().map(to_wire::member_then).collect();
        // The history knows every move that has ended, also those of former leaders, and what came after.
        let stored = self.caller.history.rebalance(id).await.map_err(|e| status::from_history(&e))?;
        if let Some(view) = in_memory.as_ref().filter(|view| view.record.ended.is_none()) {
            let mut rebalance = to_wire::rebalance(view);
            let made = stored.map(|(_, moves)| moves).unwrap_or_default();
            let known: HashSet<_> = view.moves.iter().map(|it| it.appliance).collect();
            let further = made.iter().filter(|it| !known.contains(&it.appliance)).map(to_wire::move_record);
            let room = to_wire::MAX_MOVES.saturating_sub(rebalance.r#move.len());
            rebalance.r#move.extend(further.take(room));
            rebalance.members = members;
            return Ok(Response::new(self.linked(rebalance)));
        }
        let stored = stored.filter(|(record, _)| record.ended.is_some() || in_memory.is_none());
        match (stored, in_memory) {
            (Some((record, moves)), _) => {
                let mut rebalance = to_wire::stored_rebalance(&record, &moves, first, size);
                let next = first.saturating_add(size);
                if next < moves.len() {
                    rebalance.next_page_token = page::seal(&next.to_string());
                }
                rebalance.members = members;
                Ok(Response::new(self.linked(rebalance)))
            }
            (None, Some(view)) => Ok(Response::new(self.linked(to_wire::rebalance(&view)))),
            (None, None) => Err(status::not_found("rebalance", &id.to_string())),
        }
    }

    async fn abort(&self, request: Request<wire::AbortRebalanceRequest>) -> Result<Response<wire::Rebalance>, Status> {
        let context = context(&request)?;
        let wire::AbortRebalanceRequest { id, reason: why } = request.into_inner();
        let reason = reason(why)?;
        let id = match id.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|e: common::id::InvalidRebalanceId| {
                status::invalid(&[FieldViolation::new("id", e.to_string())])
            })?),
        };
        let aborted = self.caller.commands.abort_rebalance(&context, id, reason).await;
        let id = aborted.map_err(|e| status::from_command(&e))?;
        let view = self.caller.catalog.rebalance(id).ok_or_else(|| status::not_found("rebalance", &id.to_string()))?;
        Ok(Response::new(self.linked(to_wire::rebalance(&view))))
    }

    type WatchStream = BoxStream<'static, Result<wire::Rebalance, Status>>;

    async fn watch(
        &self,
        request: Request<wire::WatchRebalancesRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let message: fn(&RebalanceView) -> wire::Rebalance = match request.into_inner().summary {
            true => |view: &RebalanceView| to_wire::rebalance_record(&view.record),
            false => to_wire::rebalance,
        };
        let (running, changes) = self.caller.catalog.watch_rebalances();
        let running = stream::iter(running).map(move |view| Ok(message(&view)));
        let links = self.caller.clone();
        Ok(Response::new(
            running.chain(live(changes, message)).map(move |next| next.map(|it| linked(&links, it))).boxed(),
        ))
    }
}

/// Rebalances as they begin, progress and end; ends like a watch of appliances.
fn live(
    changes: Receiver<Arc<RebalanceView>>,
    message: fn(&RebalanceView) -> wire::Rebalance,
) -> impl futures::Stream<Item = Result<wire::Rebalance, Status>> + Send {
    stream::unfold(Some(changes), move |changes| async move {
        let mut changes = changes?;
        match changes.recv().await {
            Ok(view) => Some((Ok(message(&view)), Some(changes))),
            Err(RecvError::Lagged(missed)) => Some((Err(status::lagged(missed)), None)),
            Err(RecvError::Closed) => Some((Err(status::watch_over()), None)),
        }
    })
}

//! The service `Workers`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use common::WorkerId;
use common::appliance::FieldViolation;
use coordinator_core::orders::OrderOp;
use futures::stream::{self, BoxStream, StreamExt};
use proto::admin::v1 as wire;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::{Request, Response, Status};

use super::call::{Caller, context, reason};
use super::wire as to_wire;
use super::{page, status};
use crate::catalog::{Catalog, PhaseCounts, WorkerChange};
use crate::commands::CommandContext;
use wire::worker_event::Type as Kind;

/// Interval at which a watch checks whether workers own more or fewer appliances. The counts change far too often to
/// send each change.
const COUNTS_EVERY: Duration = Duration::from_secs(1);

pub(super) struct WorkersService {
    caller: Caller,
}

impl WorkersService {
    pub(super) const fn new(caller: Caller) -> Self {
        Self { caller }
    }
}

fn worker_id(field: &str, text: &str) -> Result<WorkerId, Status> {
    WorkerId::new(text).map_err(|e| status::invalid(&[FieldViolation::new(field, e.to_string())]))
}

#[tonic::async_trait]
impl wire::workers_server::Workers for WorkersService {
    async fn list(
        &self,
        request: Request<wire::ListWorkersRequest>,
    ) -> Result<Response<wire::ListWorkersResponse>, Status> {
        let message = request.into_inner();
        let size = page::size(message.page_size)?;
        let from = match message.page_token.as_str() {
            "" => None,
            token => Some(page::open(token).and_then(|t| WorkerId::new(&t).ok()).ok_or_else(page::odd)?),
        };
        let found = self.caller.catalog.workers(from.as_ref(), size + 1);
        let last = found.get(size - 1).filter(|_| found.len() > size);
        Ok(Response::new(wire::ListWorkersResponse {
            next_page_token: last.map(|(w, _)| page::seal(w.id.as_str())).unwrap_or_default(),
            workers: found.iter().take(size).map(|(w, counts)| to_wire::worker(w, counts)).collect(),
        }))
    }

    async fn get(&self, request: Request<wire::GetWorkerRequest>) -> Result<Response<wire::Worker>, Status> {
        let id = worker_id("id", &request.into_inner().id)?;
        let (worker, counts) =
            self.caller.catalog.worker(&id).ok_or_else(|| status::not_found("worker", id.as_str()))?;
        Ok(Response::new(to_wire::worker(&worker, &counts)))
    }

    type WatchStream = BoxStream<'static, Result<wire::WorkerEvent, Status>>;

    async fn watch(&self, _request: Request<wire::WatchWorkersRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(WorkersWatch::stream(Arc::clone(&self.caller.catalog)).boxed()))
    }

    async fn evict(&self, request: Request<wire::EvictWorkerRequest>) -> Result<Response<wire::Worker>, Status> {
        let context = context(&request)?;
        let message = request.into_inner();
        let id = worker_id("id", &message.id)?;
        let reason = reason(message.reason)?;
        let find = || self.caller.catalog.worker(&id).ok_or_else(|| status::not_found("worker", id.as_str()));
        let incarnation = find()?.0.incarnation;
        if !message.incarnation.is_empty() && incarnation.map(|i| i.to_string()) != Some(message.incarnation) {
            return Err(status::other_life(&id, incarnation));
        }
        // The incarnation is always given: a newer one that begins meanwhile must not be evicted.
        let evicted = self.caller.commands.evict(&context, id.clone(), incarnation, reason).await;
        evicted.map_err(|e| status::from_command(&e))?;
        let (worker, counts) = find()?;
        Ok(Response::new(to_wire::worker(&worker, &counts)))
    }

    async fn forget(
        &self,
        request: Request<wire::ForgetWorkerRequest>,
    ) -> Result<Response<wire::ForgetWorkerResponse>, Status> {
        let context = context(&request)?;
        let message = request.into_inner();
        let (id, reason) = (worker_id("id", &message.id)?, reason(message.reason)?);
        self.caller.commands.forget(&context, id, reason).await.map_err(|e| status::from_command(&e))?;
        Ok(Response::new(wire::ForgetWorkerResponse {}))
    }

    async fn cordon(&self, request: Request<wire::CordonWorkerRequest>) -> Result<Response<wire::Worker>, Status> {
        let context = context(&request)?;
        let wire::CordonWorkerRequest { id, reason } = request.into_inner();
        self.order(&context, &id, reason, false, |worker| OrderOp::Cordon { worker, set: true }).await
    }

    async fn uncordon(&self, request: Request<wire::UncordonWorkerRequest>) -> Result<Response<wire::Worker>, Status> {
        let context = context(&request)?;
        let wire::UncordonWorkerRequest { id, reason } = request.into_inner();
        self.order(&context, &id, reason, false, |worker| OrderOp::Cordon { worker, set: false }).await
    }

    async fn drain(&self, request: Request<wire::DrainWorkerRequest>) -> Result<Response<wire::Worker>, Status> {
        let context = context(&request)?;
        let wire::DrainWorkerRequest { id, reason, force } = request.into_inner();
        self.order(&context, &id, reason, force, |worker| OrderOp::Drain { worker, set: true }).await
    }

    async fn undrain(&self, request: Request<wire::UndrainWorkerRequest>) -> Result<Response<wire::Worker>, Status> {
        let context = context(&request)?;
        let wire::UndrainWorkerRequest { id, reason } = request.into_inner();
        self.order(&context, &id, reason, false, |worker| OrderOp::Drain { worker, set: false }).await
    }

    async fn set_weight(
        &self,
        request: Request<wire::SetWorkerWeightRequest>,
    ) -> Result<Response<wire::Worker>, Status> {
        let context = context(&request)?;
        let wire::SetWorkerWeightRequest { id, weight, reason } = request.into_inner();
        self.order(&context, &id, reason, false, |worker| OrderOp::Weight { worker, weight }).await
    }
}

impl WorkersService {
    /// Gives an order about a worker, or takes it back; answers with the worker as it is then.
    async fn order(
        &self,
        context: &CommandContext,
        id: &str,
        why: String,
        force: bool,
        order: impl FnOnce(WorkerId) -> OrderOp,
    ) -> Result<Response<wire::Worker>, Status> {
        let (id, reason) = (worker_id("id", id)?, reason(why)?);
        let ordered = self.caller.commands.order(context, vec![order(id.clone())], force, reason).await;
        ordered.map_err(|e| status::from_command(&e))?;
        Ok(Response::new(match self.caller.catalog.worker(&id) {
            Some((worker, counts)) => to_wire::worker(&worker, &counts),
            // One that is away, and of which nothing else is known.
            None => wire::Worker { id: id.to_string(), ..wire::Worker::default() },
        }))
    }
}

/// One watch: pending events, and the counts that its client has.
struct WorkersWatch {
    catalog: Arc<Catalog>,
    changes: Receiver<WorkerChange>,
    counts: BTreeMap<WorkerId, PhaseCounts>,
    /// At most one event per worker and interval.
    due: VecDeque<wire::WorkerEvent>,
    ticks: Interval,
    over: bool,
}

fn event(kind: Kind, worker: Option<wire::Worker>) -> wire::WorkerEvent {
    wire::WorkerEvent { r#type: kind.into(), worker }
}

impl WorkersWatch {
    fn stream(catalog: Arc<Catalog>) -> impl futures::Stream<Item = Result<wire::WorkerEvent, Status>> + Send {
        let (workers, changes) = catalog.watch_workers();
        let mut due: VecDeque<_> =
            workers.iter().map(|(w, counts)| event(Kind::Current, Some(to_wire::worker(w, counts)))).collect();
        due.push_back(event(Kind::Synced, None));
        let counts = workers.into_iter().map(|(w, counts)| (w.id.clone(), counts)).collect();
        let mut ticks = interval(COUNTS_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watch = Self { catalog, changes, counts, due, ticks, over: false };
        stream::unfold(watch, |mut watch| async move { watch.next().await.map(|item| (item, watch)) })
    }

    async fn next(&mut self) -> Option<Result<wire::WorkerEvent, Status>> {
        loop {
            if let Some(event) = self.due.pop_front() {
                return Some(Ok(event));
            }
            if self.over {
                return None;
            }
            let error = tokio::select! {
                change = self.changes.recv() => match change {
                    Ok(change) => {
                        self.tell(change);
                        continue;
                    }
                    Err(RecvError::Lagged(missed)) => status::lagged(missed),
                    Err(RecvError::Closed) => status::watch_over(),
                },
                _ = self.ticks.tick() => {
                    self.look();
                    continue;
                }
            };
            self.over = true;
            return Some(Err(error));
        }
    }

    fn tell(&mut self, change: WorkerChange) {
        let (kind, worker) = match change {
            WorkerChange::Joined(worker) => (Kind::Joined, worker),
            WorkerChange::Changed(worker) => (Kind::Changed, worker),
            WorkerChange::Gone(worker) => {
                self.counts.remove(&worker.id);
                return self.due.push_back(event(Kind::Gone, Some(to_wire::worker(&worker, &PhaseCounts::default()))));
            }
        };
        let counts = self.catalog.held_by(&worker.id);
        self.counts.insert(worker.id.clone(), counts);
        self.due.push_back(event(kind, Some(to_wire::worker(&worker, &counts))));
    }

    /// Adds events for workers whose counts differ from what the client has.
    fn look(&mut self) {
        for (worker, counts) in self.catalog.workers(None, usize::MAX) {
            // An event for a worker that is new to the client is pending already.
            if let Some(known) = self.counts.get_mut(&worker.id).filter(|known| **known != counts) {
                *known = counts;
                self.due.push_back(event(Kind::Changed, Some(to_wire::worker(&worker, &counts))));
            }
        }
    }
}

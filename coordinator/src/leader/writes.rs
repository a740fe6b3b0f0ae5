//! Writes under way: what was submitted to the store and has not ended, and what the leader does about each that ends.
//!
//! The leader never waits for the disk. It submits, goes on, and takes the outcome as an input like any other. Writing
//! over a lease node is no write to the store, but ends as they do.

use std::sync::Arc;

use common::{Life, RebalanceId, Term};
use coordinator_core::machine::{BatchId, Commit, StreamId};
use coordinator_core::rollout::RolloutItem;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use runtime::{log_limited, telemetry};
use tracing::instrument::Instrument;
use tracing::{Span, info_span};
use uuid::Uuid;

use super::rebalances::StoredRebalance;
use crate::admission::AdmittedChange;
use crate::commands::{Changed, CommandError, Reply};
use crate::record::{AuditEvent, OrderRecord, PauseRecord, RolloutRecord, RunRecord, StoredRollout};
use crate::store::{self, Store, StoreWrite};
use crate::views::RolloutView;

/// An operator stops all planning, or lets it go on.
#[derive(Debug)]
pub(super) struct PauseChange {
    /// The order of these changes is that of their numbers.
    pub(super) number: u64,
    /// `None`: planning goes on.
    pub(super) pause: Option<PauseRecord>,
    pub(super) audit: AuditEvent,
    pub(super) reply: PauseReply,
}

/// Whoever waits for a change of a pause.
#[derive(Debug)]
pub(super) enum PauseReply {
    /// It is about the pause.
    Paused(Reply<()>),
    /// It is about this rebalance.
    Aborted(RebalanceId, Reply<RebalanceId>),
}

impl PauseReply {
    /// Whether nobody waits any more.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Paused(reply) => reply.is_closed(),
            Self::Aborted(_, reply) => reply.is_closed(),
        }
    }

    pub(super) fn send(self, result: Result<(), CommandError>) {
        match self {
            Self::Paused(reply) => drop(reply.send(result)),
            Self::Aborted(id, reply) => drop(reply.send(result.map(|()| id))),
        }
    }
}

/// Operators give orders about placement, or take them back: all of them at once.
#[derive(Debug)]
pub(super) struct OrderChange {
    pub(super) records: Vec<OrderRecord>,
    pub(super) audit: Vec<AuditEvent>,
    pub(super) reply: Reply<()>,
}

/// A new rollout, or an operator's order about one.
#[derive(Debug)]
pub(super) struct RolloutChange {
    pub(super) stored: Box<StoredRollout>,
    /// Its items, of a new one.
    pub(super) parts: Vec<(usize, Vec<RolloutItem>)>,
    /// Rollouts that are kept no longer.
    pub(super) removes: Vec<Uuid>,
    pub(super) audit: AuditEvent,
    pub(super) reply: Reply<RolloutView>,
}

/// How far a rollout is.
#[derive(Debug)]
pub(super) struct RolloutProgress {
    pub(super) id: Uuid,
    /// Parts of its items that are stored with it.
    pub(super) parts: Vec<usize>,
    /// Items of them whose calls are made once this is stored.
    pub(super) begun: Vec<usize>,
}

/// How a write ended.
#[derive(Debug)]
enum Ended {
    Rollout(Box<RolloutChange>, Result<(), store::Error>),
    RolloutProgress(RolloutProgress, Result<(), store::Error>),
    Batch(BatchId, Result<(), store::Error>),
    Change(Box<AdmittedChange>, Span, Reply<Changed>, Result<(), store::Error>),
    Pause(Box<PauseChange>, Result<(), store::Error>),
    Order(Box<OrderChange>, Result<(), store::Error>),
    History(&'static str, Result<(), store::Error>),
    Rebalance(Box<StoredRebalance>, Result<(), store::Error>),
    Runs(StreamId, u64, Result<(), store::Error>),
    Eviction(Life, Result<(), coordination::Error>),
}

/// What the leader has to do about a write that ended.
#[derive(Debug)]
pub(super) enum WriteOutcome {
    /// The store has a batch of the machine.
    Durable(BatchId),
    /// The store surely does not have a batch of the machine, which makes it anew.
    Undone(BatchId),
    /// The store has a change of an appliance, which this call has asked for.
    Changed(Box<AdmittedChange>, Span, Reply<Changed>),
    /// It does not have it; whoever asked for it is to be told why.
    Unchanged(Box<AdmittedChange>, Reply<Changed>, store::Error),
    /// The store has that planning is paused, or that it is not.
    Paused(Box<PauseChange>),
    /// It does not have it; whoever asked for it is to be told why.
    NotPaused(Box<PauseChange>, store::Error),
    /// The store has orders about placement.
    Ordered(Box<OrderChange>),
    /// It does not have them; whoever gave them is to be told why.
    NotOrdered(Box<OrderChange>, store::Error),
    /// The store has a rollout, or an operator's order about one.
    RolloutChanged(Box<RolloutChange>),
    /// It does not have it; whoever asked for it is to be told why.
    RolloutNotChanged(Box<RolloutChange>, store::Error),
    /// The store has how a rollout goes on: what was begun may be carried out.
    RolloutStored(RolloutProgress),
    /// The store does not have how a rollout goes on; it is to be offered again.
    RolloutNotStored(RolloutProgress),
    /// The store does not have how a rebalance goes on; it is to be offered again.
    NotStored(Box<StoredRebalance>),
    /// The store has the runs of this batch, which came on this stream.
    RunsStored(StreamId, u64),
    /// Something else is stored, or was not stored and is not missed.
    Nothing,
    /// The store is lost to another term, or an outcome cannot be found out: the term is over.
    TermOver(store::Error),
}

impl Ended {
    fn outcome(self) -> WriteOutcome {
        match self {
            Self::Batch(batch, Ok(())) => WriteOutcome::Durable(batch),
            Self::Batch(_, Err(error)) if error.ends_term() => WriteOutcome::TermOver(error),
            Self::Batch(batch, Err(error)) => {
                log_limited!(warn, "a change of ownership was not stored and will be made anew: {error}");
                WriteOutcome::Undone(batch)
            }
            Self::Change(change, caller, reply, Ok(())) => WriteOutcome::Changed(change, caller, reply),
            Self::Change(change, _, reply, Err(error)) => WriteOutcome::Unchanged(change, reply, error),
            Self::Pause(change, Ok(())) => WriteOutcome::Paused(change),
            Self::Pause(change, Err(error)) => WriteOutcome::NotPaused(change, error),
            Self::Order(change, Ok(())) => WriteOutcome::Ordered(change),
            Self::Order(change, Err(error)) => WriteOutcome::NotOrdered(change, error),
            Self::Rollout(change, Ok(())) => WriteOutcome::RolloutChanged(change),
            Self::Rollout(change, Err(error)) => WriteOutcome::RolloutNotChanged(change, error),
            Self::RolloutProgress(progress, Ok(())) => WriteOutcome::RolloutStored(progress),
            Self::RolloutProgress(_, Err(error)) if error.ends_term() => WriteOutcome::TermOver(error),
            Self::RolloutProgress(progress, Err(error)) => {
                log_limited!(warn, rollout = %progress.id, "progress of a rollout was not stored and will be stored later: {error}");
                WriteOutcome::RolloutNotStored(progress)
            }
            Self::History(_, Ok(())) | Self::Eviction(_, Ok(())) => WriteOutcome::Nothing,
            Self::Rebalance(rebalance, Ok(())) => {
                // Only now: whoever cannot store that it has ended does not end it.
                if let Some(root) = rebalance.root {
                    root.export();
                }
                WriteOutcome::Nothing
            }
            Self::Rebalance(_, Err(error)) if error.ends_term() => WriteOutcome::TermOver(error),
            Self::Rebalance(rebalance, Err(error)) => {
                log_limited!(warn, "a rebalance was not stored and will be stored later: {error}");
                WriteOutcome::NotStored(rebalance)
            }
            Self::Runs(stream, batch, Ok(())) => WriteOutcome::RunsStored(stream, batch),
            Self::Runs(_, _, Err(error)) if error.ends_term() => WriteOutcome::TermOver(error),
            Self::Runs(_, _, Err(error)) => {
                log_limited!(warn, "runs were not stored; their worker tells them again: {error}");
                WriteOutcome::Nothing
            }
            Self::History(what, Err(error)) => {
                log_limited!(warn, "history ({what}) was not stored: {error}");
                if error.ends_term() { WriteOutcome::TermOver(error) } else { WriteOutcome::Nothing }
            }
            Self::Eviction(life, Err(error)) => {
                // The machine asks again.
                log_limited!(warn, worker = %life.worker, "the lease node cannot be written over: {error}");
                WriteOutcome::Nothing
            }
        }
    }
}

/// The writes that have not ended.
#[derive(Debug)]
pub(super) struct PendingWrites {
    store: Store,
    pending: FuturesUnordered<BoxFuture<'static, Ended>>,
}

impl PendingWrites {
    pub(super) fn new(store: Store) -> Self {
        Self { store, pending: FuturesUnordered::new() }
    }

    /// Whether the store is still led by this term, as far as it knows.
    pub(super) fn leads(&self, term: Term) -> bool {
        self.store.leads(term)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// The next write that ends; `None` when there is none under way.
    pub(super) async fn next(&mut self) -> Option<WriteOutcome> {
        self.pending.next().await.map(Ended::outcome)
    }

    /// A write that has ended already.
    pub(super) fn try_next(&mut self) -> Option<WriteOutcome> {
        self.pending.next().now_or_never().flatten().map(Ended::outcome)
    }

    /// Writes a batch of the machine, with the lines of the audit trail about it. Batches are committed in the order of these
    /// calls.
    pub(super) fn commit(&self, batch: BatchId, commit: Commit, events: Vec<AuditEvent>) {
        let mut writes = store_writes(commit);
        writes.extend(events.iter().cloned().map(StoreWrite::Event));
        let pending = self.store.submit(writes);
        self.pending.push(Box::pin(async move {
            let result = pending.await;
            if result.is_ok() {
                events.iter().for_each(AuditEvent::log);
            }
            Ended::Batch(batch, result)
        }));
    }

    /// Writes a change of an appliance that `caller` has asked for.
    pub(super) fn change(&self, change: AdmittedChange, caller: &Span, reply: Reply<Changed>) {
        let mut writes = Vec::with_capacity(3);
        writes.extend(change.record().map(|record| StoreWrite::PutAppliance(Arc::clone(record))));
        writes.extend(change.audit().cloned().map(StoreWrite::Event));
        writes.extend(change.request().cloned().map(StoreWrite::Request));
        let span = info_span!(
            parent: caller,
            "store",
            otel.name = "store transaction",
            otel.kind = "client",
            db.system.name = self.store.system(),
            db.operation.name = "transaction",
            db.operation.batch.size = writes.len(),
        );
        let pending = self.store.submit(writes);
        let (change, caller) = (Box::new(change), caller.clone());
        let ended = async move {
            let result = pending.await;
            if let Err(error) = &result {
                telemetry::fail(&Span::current(), &error.to_string());
            }
            Ended::Change(change, caller, reply, result)
        };
        self.pending.push(Box::pin(ended.instrument(span)));
    }

    /// Writes that planning is paused, or that it is not.
    pub(super) fn pause(&self, change: PauseChange) {
        let writes = vec![StoreWrite::Pause(change.pause.clone()), StoreWrite::Event(change.audit.clone())];
        let pending = self.store.submit(writes);
        let change = Box::new(change);
        self.pending.push(Box::pin(async move {
            let result = pending.await;
            Ended::Pause(change, result)
        }));
    }

    /// Writes orders about placement.
    pub(super) fn order(&self, change: OrderChange) {
        let records = change.records.iter().cloned().map(StoreWrite::Order);
        let pending = self.store.submit(records.chain(change.audit.iter().cloned().map(StoreWrite::Event)).collect());
        let change = Box::new(change);
        self.pending.push(Box::pin(async move {
            let result = pending.await;
            Ended::Order(change, result)
        }));
    }

    /// Writes a rollout, or an operator's order about one.
    pub(super) fn rollout(&self, change: RolloutChange) {
        let mut writes: Vec<StoreWrite> = change.removes.iter().map(|id| StoreWrite::RemoveRollout(*id)).collect();
        writes.push(StoreWrite::PutRollout(Box::new(change.stored.record.clone()), change.parts.clone()));
        writes.push(StoreWrite::Event(change.audit.clone()));
        let pending = self.store.submit(writes);
        let change = Box::new(change);
        self.pending.push(Box::pin(async move {
            let result = pending.await;
            Ended::Rollout(change, result)
        }));
    }

    /// Writes how far a rollout is.
    pub(super) fn rollout_progress(
        &self,
        record: RolloutRecord,
        parts: Vec<(usize, Vec<RolloutItem>)>,
        begun: Vec<usize>,
    ) {
        let progress = RolloutProgress { id: record.id, parts: parts.iter().map(|(part, _)| *part).collect(), begun };
        let pending = self.store.submit(vec![StoreWrite::PutRollout(Box::new(record), parts)]);
        self.pending.push(Box::pin(async move { Ended::RolloutProgress(progress, pending.await) }));
    }

    /// Writes history that nobody waits for; `what` names it in the log.
    pub(super) fn history(&self, what: &'static str, write: StoreWrite) {
        let pending = self.store.submit(vec![write]);
        self.pending.push(Box::pin(async move { Ended::History(what, pending.await) }));
    }

    /// Writes runs that were told on this stream in this batch.
    pub(super) fn runs(&self, stream: StreamId, batch: u64, runs: Vec<RunRecord>) {
        let pending = self.store.submit(vec![StoreWrite::Runs(runs)]);
        self.pending.push(Box::pin(async move { Ended::Runs(stream, batch, pending.await) }));
    }

    /// Writes a rebalance, and exports its root, if it has one, once that is done.
    pub(super) fn rebalance(&self, rebalance: StoredRebalance) {
        let pending = self.store.submit(vec![StoreWrite::PutRebalance(rebalance.record.clone())]);
        let rebalance = Box::new(rebalance);
        self.pending.push(Box::pin(async move {
            let result = pending.await;
            Ended::Rebalance(rebalance, result)
        }));
    }

    /// Waits for the lease node of `life` to be written over.
    pub(super) fn evict(&self, life: Life, evicted: BoxFuture<'static, Result<(), coordination::Error>>) {
        let span = info_span!(
            parent: None,
            "coordination",
            otel.name = "overwrite lease",
            otel.kind = "client",
            rpc.system = "zookeeper",
            worker = %life.worker,
        );
        let ended = async move {
            let result = evicted.await;
            if let Err(error) = &result {
                telemetry::fail(&Span::current(), &error.to_string());
            }
            Ended::Eviction(life, result)
        };
        self.pending.push(Box::pin(ended.instrument(span)));
    }
}

fn store_writes(commit: Commit) -> Vec<StoreWrite> {
    let Commit { grants, put_members, remove_members, modes } = commit;
    let mut writes: Vec<StoreWrite> = modes.into_iter().map(StoreWrite::Mode).collect();
    writes.extend(remove_members.into_iter().map(|life| StoreWrite::RemoveMember(life.worker, life.incarnation)));
    writes.extend(put_members.into_iter().map(StoreWrite::PutMember));
    if !grants.is_empty() {
        writes.push(StoreWrite::Grants(grants));
    }
    writes
}

//! Content of one transaction: the changes of a group, merged per table.
//!
//! Of several writes to one row only the last is kept, since all become visible together. The result is one statement
//! per table for up to [`ROWS`] rows, because a statement costs more than a row.

use std::collections::{BTreeMap, BTreeSet};

use common::ApplianceId;
use coordinator_core::grants::GrantOp;
use coordinator_core::modes::ModeOp;
use sea_orm::entity::prelude::*;
use sea_orm::sea_query::OnConflict;
use sea_orm::{ActiveModelTrait, ConnectionTrait, IntoActiveModel, Iterable, PrimaryKeyToColumn, Set};

use super::StoreWrite;
use super::entities::{
    appliances, budgets, debug_modes, events, grants, leadership, members, moves, pauses, pins, progress,
    rebalance_members, rebalances, requests, rollout_items, rollouts, runs, statuses, worker_orders, workers,
};
use super::ledger::{self, LogPacker, LogPosition};
use super::load::{self, Keep};
use super::rollouts as rollout_rows;
use super::rows::{self, OrderRow};
use super::runs as run_rows;
use crate::record::{AdoptionRecord, MoveRecord};

/// Rows per statement: times the widest table's fourteen columns well below the 32,766 parameters of SQLite.
const ROWS: usize = 512;
/// Bytes of long texts per statement, about: well below the 16 MiB of one packet that MariaDB takes by default.
const BYTES: usize = 2 * 1024 * 1024;

/// A [`StoreWrite`] converted to rows; the submitters do this work, so that the single writer does not have to.
#[derive(Debug)]
pub(super) enum PreparedWrite {
    PutAppliance(Box<appliances::Model>),
    Grants(Vec<GrantOp>),
    PutMember(members::Model),
    RemoveMember {
        worker: String,
        incarnation: String,
    },
    PutRebalance(Box<rebalances::Model>),
    Moves(Vec<MoveRecord>),
    Members(rebalance_members::Model),
    Adoptions(Vec<AdoptionRecord>),
    Runs(Vec<runs::ActiveModel>),
    Pause(Option<pauses::Model>),
    /// With the row, unless the rule ends.
    Mode(String, Option<debug_modes::Model>),
    Order(OrderRow),
    Rollout(rollouts::Model, Vec<rollout_items::Model>),
    NoRollout(String),
    Event(Box<events::ActiveModel>),
    Request(requests::Model),
}

impl From<StoreWrite> for PreparedWrite {
    fn from(write: StoreWrite) -> Self {
        match write {
            StoreWrite::PutAppliance(record) => Self::PutAppliance(Box::new(rows::from_record(&record))),
            StoreWrite::Grants(ops) => Self::Grants(ops),
            StoreWrite::PutMember(member) => Self::PutMember(rows::from_member(&member)),
            StoreWrite::RemoveMember(worker, incarnation) => Self::RemoveMember {
                worker: worker.as_str().to_owned(),
                incarnation: rows::incarnation_text(incarnation),
            },
            StoreWrite::PutRebalance(record) => Self::PutRebalance(Box::new(rows::from_rebalance(&record))),
            StoreWrite::Moves(moves) => Self::Moves(moves),
            StoreWrite::Members(id, members) => Self::Members(rows::from_members(id, &members)),
            StoreWrite::Adoptions(adoptions) => Self::Adoptions(adoptions),
            StoreWrite::Runs(runs) => Self::Runs(runs.into_iter().map(run_rows::to_row).collect()),
            StoreWrite::Pause(pause) => Self::Pause(pause.as_ref().map(rows::from_pause)),
            StoreWrite::Mode(op) => {
                let row = match &op {
                    ModeOp::Set(rule) => Some(rows::from_mode(rule)),
                    ModeOp::Clear(_) => None,
                };
                Self::Mode(op.id().to_string(), row)
            }
            StoreWrite::Order(record) => Self::Order(rows::from_order(&record)),
            StoreWrite::PutRollout(record, parts) => {
                let part = |(part, items): &(usize, Vec<_>)| rollout_rows::from_items(record.id, *part, items);
                Self::Rollout(rollout_rows::from_record(&record), parts.iter().map(part).collect())
            }
            StoreWrite::RemoveRollout(id) => Self::NoRollout(id.simple().to_string()),
            StoreWrite::Event(event) => Self::Event(Box::new(rows::from_event(&event))),
            StoreWrite::Request(request) => Self::Request(rows::from_request(&request)),
        }
    }
}

impl PreparedWrite {
    /// Its cost, in rows.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Grants(ops) => ops.len(),
            Self::Moves(moves) => moves.len() / 8 + 1,
            Self::Adoptions(adoptions) => adoptions.len() / 8 + 1,
            Self::Runs(runs) => runs.len(),
            Self::Rollout(_, parts) => 1 + 16 * parts.len(),
            _ => 1,
        }
    }
}

/// Rows of one table by key; `None` is a row to delete.
type RowChanges<K, M> = BTreeMap<K, Option<M>>;

/// Rows that may have long texts.
trait Bulky {
    /// Bytes of those texts.
    fn bytes(&self) -> usize {
        0
    }
}

impl Bulky for appliances::Model {
    fn bytes(&self) -> usize {
        self.spec.len() + self.labels.len() + self.placement_key.len()
    }
}

impl Bulky for statuses::Model {
    fn bytes(&self) -> usize {
        let texts = [&self.last_error, &self.last_end];
        self.instances.len() + texts.into_iter().flatten().map(String::len).sum::<usize>()
    }
}

impl Bulky for progress::Model {
    fn bytes(&self) -> usize {
        self.progress.len()
    }
}

impl Bulky for members::Model {
    fn bytes(&self) -> usize {
        self.profile.len()
    }
}

impl Bulky for events::ActiveModel {
    fn bytes(&self) -> usize {
        [&self.actor, &self.action, &self.subject, &self.detail].into_iter().map(|text| text.as_ref().len()).sum()
    }
}

impl Bulky for runs::ActiveModel {
    fn bytes(&self) -> usize {
        [&self.error, &self.detail].into_iter().map(|text| text.as_ref().len()).sum()
    }
}

impl Bulky for workers::Model {}
impl Bulky for rebalances::Model {}
impl Bulky for pauses::Model {}

impl Bulky for debug_modes::Model {
    fn bytes(&self) -> usize {
        self.rule.len()
    }
}

impl Bulky for worker_orders::Model {}
impl Bulky for pins::Model {}

impl Bulky for rebalance_members::Model {
    fn bytes(&self) -> usize {
        self.members.len()
    }
}

impl Bulky for budgets::Model {
    fn bytes(&self) -> usize {
        self.rule.len()
    }
}

impl Bulky for rollouts::Model {
    fn bytes(&self) -> usize {
        self.record.len()
    }
}

impl Bulky for rollout_items::Model {
    fn bytes(&self) -> usize {
        self.data.len()
    }
}

impl Bulky for requests::Model {}

/// Content of one transaction.
#[derive(Debug, Default)]
pub(super) struct Batch {
    appliances: RowChanges<Uuid, appliances::Model>,
    statuses: RowChanges<Uuid, statuses::Model>,
    progress: RowChanges<Uuid, progress::Model>,
    members: RowChanges<(String, String), members::Model>,
    workers: RowChanges<String, workers::Model>,
    rebalances: RowChanges<(i64, i64), rebalances::Model>,
    rebalance_members: RowChanges<(i64, i64), rebalance_members::Model>,
    pauses: RowChanges<i32, pauses::Model>,
    debug_modes: RowChanges<String, debug_modes::Model>,
    worker_orders: RowChanges<(String, String), worker_orders::Model>,
    pins: RowChanges<Uuid, pins::Model>,
    budgets: RowChanges<String, budgets::Model>,
    rollouts: RowChanges<String, rollouts::Model>,
    rollout_items: RowChanges<(String, i32), rollout_items::Model>,
    requests: RowChanges<Uuid, requests::Model>,
    moves: Vec<(i64, i64, Vec<u8>)>,
    events: Vec<events::ActiveModel>,
    runs: Vec<runs::ActiveModel>,
    grants: Vec<(u8, Vec<u8>)>,
    housekeeping: Option<Housekeeping>,
    /// Nobody waits for it.
    background: bool,
}

/// Deletes obsolete rows in bounded parts. It takes a position in the chain like every other write.
#[derive(Clone, Copy, Debug)]
pub(super) enum Housekeeping {
    /// Rows of the log that a snapshot covers.
    DeleteCovered(LogPosition),
    /// History that is too old.
    Prune(Keep),
}

impl Batch {
    /// The changes of a group, in order.
    pub(super) fn of<'a>(changes: impl IntoIterator<Item = &'a PreparedWrite>) -> Self {
        let mut batch = Self::default();
        let mut log = LogPacker::default();
        let (mut moves, mut adoptions, mut told) = (Vec::new(), Vec::new(), BTreeSet::new());
        for change in changes {
            match change {
                PreparedWrite::PutAppliance(row) => drop(batch.appliances.insert(row.id, Some((**row).clone()))),
                PreparedWrite::Grants(ops) => ops.iter().for_each(|op| batch.grant(op, &mut log)),
                PreparedWrite::PutMember(row) => {
                    batch.members.insert((row.worker.clone(), row.incarnation.clone()), Some(row.clone()));
                }
                PreparedWrite::RemoveMember { worker, incarnation } => {
                    batch.members.insert((worker.clone(), incarnation.clone()), None);
                }
                PreparedWrite::PutRebalance(row) => {
                    batch.rebalances.insert((row.term, row.number), Some((**row).clone()));
                }
                PreparedWrite::Moves(some) => moves.extend(some),
                PreparedWrite::Members(row) => {
                    batch.rebalance_members.insert((row.term, row.number), Some(row.clone()));
                }
                PreparedWrite::Adoptions(some) => adoptions.extend(some),
                // One statement must not have a row twice.
                PreparedWrite::Runs(some) => {
                    batch.runs.extend(some.iter().filter(|run| told.insert(*run.run.as_ref())).cloned());
                }
                PreparedWrite::Pause(row) => drop(batch.pauses.insert(pauses::ROW, row.clone())),
                PreparedWrite::Mode(id, row) => drop(batch.debug_modes.insert(id.clone(), row.clone())),
                PreparedWrite::Order(OrderRow::Worker(key, row)) => {
                    batch.worker_orders.insert(key.clone(), row.clone());
                }
                PreparedWrite::Order(OrderRow::Pin(key, row)) => drop(batch.pins.insert(*key, row.clone())),
                PreparedWrite::Order(OrderRow::Budget(key, row)) => {
                    batch.budgets.insert(key.clone(), row.clone());
                }
                PreparedWrite::Rollout(row, parts) => {
                    batch.rollouts.insert(row.id.clone(), Some(row.clone()));
                    let parts = parts.iter().map(|part| ((part.rollout.clone(), part.part), Some(part.clone())));
                    batch.rollout_items.extend(parts);
                }
                PreparedWrite::NoRollout(id) => {
                    batch.rollouts.insert(id.clone(), None);
                    batch.rollout_items.retain(|(rollout, _), _| rollout != id);
                }
                PreparedWrite::Event(row) => batch.events.push((**row).clone()),
                PreparedWrite::Request(row) => drop(batch.requests.insert(row.id, Some(row.clone()))),
            }
        }
        let moves = rows::from_moves(moves, adoptions).into_iter();
        batch.moves = moves.map(|(id, d)| (id.term.get().cast_signed(), id.number.cast_signed(), d)).collect();
        batch.grants = log.finish().into_iter().map(|row| (ledger::LOG, row)).collect();
        batch
    }

    /// One row of a snapshot.
    pub(super) fn of_chunk(format: u8, data: Vec<u8>) -> Self {
        Self { grants: vec![(format, data)], background: true, ..Self::default() }
    }

    /// One step of housekeeping.
    pub(super) fn of_housekeeping(step: Housekeeping) -> Self {
        Self { housekeeping: Some(step), background: true, ..Self::default() }
    }

    /// Observations.
    pub(super) fn of_observations(
        statuses: impl IntoIterator<Item = statuses::Model>,
        seen: impl IntoIterator<Item = workers::Model>,
    ) -> Self {
        Self {
            statuses: statuses.into_iter().map(|row| (row.appliance, Some(row))).collect(),
            workers: seen.into_iter().map(|row| (row.worker.clone(), Some(row))).collect(),
            background: true,
            ..Self::default()
        }
    }

    /// Whether it is written for its own sake, and no change waits for it.
    pub(super) const fn is_background(&self) -> bool {
        self.background
    }

    /// Number of bytes it adds to the grant log.
    pub(super) fn log_bytes(&self) -> u64 {
        self.grants.iter().map(|(_, row)| row.len() as u64).sum()
    }

    fn grant(&mut self, op: &GrantOp, log: &mut LogPacker) {
        match op {
            GrantOp::Grant { .. } => log.push(op),
            GrantOp::Free { appliance, progress, fence_delay }
            | GrantOp::Unbind { appliance, progress, fence_delay } => {
                log.push(op);
                let row = rows::from_progress(*appliance, progress, *fence_delay);
                self.progress.insert(row.appliance, Some(row));
            }
            GrantOp::Remove { appliance } => self.remove(*appliance, log),
        }
    }

    fn remove(&mut self, appliance: ApplianceId, log: &mut LogPacker) {
        log.push(&GrantOp::Remove { appliance });
        let key = appliance.uuid();
        self.appliances.insert(key, None);
        self.statuses.insert(key, None);
        self.progress.insert(key, None);
        self.pins.insert(key, None);
    }

    /// Writes everything as batch `batch` of `term`, in a transaction that the caller began; returns whether its
    /// housekeeping has more to do.
    pub(super) async fn write<C: ConnectionTrait>(&self, db: &C, term: i64, batch: i64) -> Result<bool, DbErr> {
        // Appliances have a second unique key, so an upsert would be wrong: MariaDB would replace the row of another
        // appliance with the same name.
        let keys: Vec<_> = self.appliances.keys().copied().collect();
        delete::<appliances::Entity, _>(db, appliances::Column::Id, &keys).await?;
        insert::<appliances::ActiveModel>(db, self.appliances.values().flatten().cloned(), None).await?;

        delete::<statuses::Entity, _>(db, statuses::Column::Appliance, &gone(&self.statuses)).await?;
        upsert::<statuses::ActiveModel, _>(db, &self.statuses).await?;
        delete::<progress::Entity, _>(db, progress::Column::Appliance, &gone(&self.progress)).await?;
        upsert::<progress::ActiveModel, _>(db, &self.progress).await?;
        for (worker, incarnation) in gone(&self.members) {
            members::Entity::delete_by_id((worker, incarnation)).exec(db).await?;
        }
        upsert::<members::ActiveModel, _>(db, &self.members).await?;
        upsert::<workers::ActiveModel, _>(db, &self.workers).await?;
        upsert::<rebalances::ActiveModel, _>(db, &self.rebalances).await?;
        upsert::<rebalance_members::ActiveModel, _>(db, &self.rebalance_members).await?;
        for row in gone(&self.pauses) {
            pauses::Entity::delete_by_id(row).exec(db).await?;
        }
        upsert::<pauses::ActiveModel, _>(db, &self.pauses).await?;
        for row in gone(&self.debug_modes) {
            debug_modes::Entity::delete_by_id(row).exec(db).await?;
        }
        upsert::<debug_modes::ActiveModel, _>(db, &self.debug_modes).await?;
        for (worker, order) in gone(&self.worker_orders) {
            worker_orders::Entity::delete_by_id((worker, order)).exec(db).await?;
        }
        upsert::<worker_orders::ActiveModel, _>(db, &self.worker_orders).await?;
        delete::<pins::Entity, _>(db, pins::Column::Appliance, &gone(&self.pins)).await?;
        upsert::<pins::ActiveModel, _>(db, &self.pins).await?;
        for name in gone(&self.budgets) {
            budgets::Entity::delete_by_id(name).exec(db).await?;
        }
        upsert::<budgets::ActiveModel, _>(db, &self.budgets).await?;
        for id in gone(&self.rollouts) {
            let items = rollout_items::Entity::delete_many().filter(rollout_items::Column::Rollout.eq(id.as_str()));
            items.exec(db).await?;
            rollouts::Entity::delete_by_id(id).exec(db).await?;
        }
        upsert::<rollouts::ActiveModel, _>(db, &self.rollouts).await?;
        upsert::<rollout_items::ActiveModel, _>(db, &self.rollout_items).await?;
        upsert::<requests::ActiveModel, _>(db, &self.requests).await?;
        insert::<events::ActiveModel>(db, self.events.iter().cloned(), None).await?;
        insert::<runs::ActiveModel>(db, self.runs.iter().cloned(), Some(run_rows::told_twice())).await?;
        for (term, number, data) in &self.moves {
            let row = moves::ActiveModel {
                id: sea_orm::ActiveValue::NotSet,
                term: Set(*term),
                number: Set(*number),
                data: Set(data.clone()),
            };
            moves::Entity::insert(row).exec_without_returning(db).await?;
        }
        // One statement each: these rows are large.
        for (part, (format, data)) in (0..).zip(&self.grants) {
            let row = grants::Model { term, batch, part, format: i32::from(*format), data: data.clone() };
            grants::Entity::insert(row.into_active_model()).exec_without_returning(db).await?;
        }
        match self.housekeeping {
            Some(Housekeeping::DeleteCovered(place)) => ledger::delete_covered(db, place).await,
            Some(Housekeeping::Prune(keep)) => load::prune(db, keep).await,
            None => Ok(false),
        }
    }
}

/// Takes the next position in the chain; `false` when it is gone: a later term is in the store.
pub(super) async fn take_place<C: ConnectionTrait>(db: &C, term: i64, batch: i64) -> Result<bool, DbErr> {
    let done = leadership::Entity::update_many()
        .col_expr(leadership::Column::Batch, Expr::value(batch))
        .filter(leadership::Column::Id.eq(leadership::ROW))
        .filter(leadership::Column::Term.eq(term))
        .filter(leadership::Column::Batch.eq(batch - 1))
        .exec(db)
        .await?;
    Ok(done.rows_affected == 1)
}

fn gone<K: Clone, M>(rows: &RowChanges<K, M>) -> Vec<K> {
    rows.iter().filter(|(_, row)| row.is_none()).map(|(key, _)| key.clone()).collect()
}

async fn delete<E, C>(db: &C, column: E::Column, keys: &[Uuid]) -> Result<(), DbErr>
where
    E: EntityTrait,
    C: ConnectionTrait,
{
    for keys in keys.chunks(ROWS) {
        E::delete_many().filter(column.is_in(keys.iter().copied())).exec(db).await?;
    }
    Ok(())
}

/// Inserts rows, or replaces those with the same primary key.
async fn upsert<A, K>(
    db: &impl ConnectionTrait,
    rows: &RowChanges<K, <A::Entity as EntityTrait>::Model>,
) -> Result<(), DbErr>
where
    A: ActiveModelTrait + Send,
    <A::Entity as EntityTrait>::Model: IntoActiveModel<A> + Bulky + Clone,
{
    let keys: Vec<_> = <A::Entity as EntityTrait>::PrimaryKey::iter().map(|k| k.into_column()).collect();
    let is_key = |c: &<A::Entity as EntityTrait>::Column| keys.iter().any(|k| k.as_str() == c.as_str());
    let others: Vec<_> = <A::Entity as EntityTrait>::Column::iter().filter(|c| !is_key(c)).collect();
    let conflict = OnConflict::columns(keys.iter().copied()).update_columns(others).to_owned();
    insert::<A>(db, rows.values().flatten().cloned(), Some(conflict)).await
}

async fn insert<A>(
    db: &impl ConnectionTrait,
    rows: impl IntoIterator<Item = impl IntoActiveModel<A> + Bulky>,
    conflict: Option<OnConflict>,
) -> Result<(), DbErr>
where
    A: ActiveModelTrait + Send,
{
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let (mut some, mut bytes) = (Vec::<A>::new(), 0);
        while some.len() < ROWS
            && let Some(row) = rows.next_if(|row| some.is_empty() || bytes + row.bytes() <= BYTES)
        {
            bytes += row.bytes();
            some.push(row.into_active_model());
        }
        let mut statement = A::Entity::insert_many(some);
        if let Some(conflict) = &conflict {
            statement = statement.on_conflict(conflict.clone());
        }
        statement.exec_without_returning(db).await?;
    }
    Ok(())
}

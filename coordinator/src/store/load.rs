//! Reads: everything at the begin of a term, and lists that are not kept in memory.

use std::collections::HashMap;
use std::time::SystemTime;

use common::mode::ModeRule;
use common::status::Status;
use common::{ApplianceId, RebalanceId, Term};
use coordinator_core::grants::{StoredGrant, StoredMember};
use sea_orm::entity::prelude::*;
use sea_orm::sea_query::Query;
use sea_orm::{Condition, ConnectionTrait, DeleteMany, QueryOrder, QuerySelect};

use super::dialect::failure;
use super::entities::{
    appliances, budgets, clusters, debug_modes, events, leadership, members, moves, pauses, pins, progress,
    rebalance_members, rebalances, requests, runs, statuses, worker_orders,
};
use super::error::Error;
use super::ledger::ReplayedLog;
use super::rows;
use crate::record::{
    AuditFilter, AuditPart, MemberThen, MoveRecord, NumberedEvent, OrderRecord, PauseRecord, RebalanceOutcome,
    RebalanceRecord, Record, RequestRecord, StoredRollout,
};

/// Rebalances that are kept in memory by a leader.
const RECENT_REBALANCES: u64 = 100;
/// Rows of moves that are searched for one appliance; each has up to some 8,000 moves.
const MOVE_ROWS: u64 = 1_000;
/// Most rebalances that have not ended whose moves are read; more than two at once are rare.
const MAX_RUNNING: usize = 16;
/// Rows of moves read at once.
const MOVE_PAGE: u64 = 32;
/// Newest idempotent calls that a leader reads; clients choose how many there are.
pub(super) const MAX_REQUESTS: u64 = 1_000_000;
/// Most entries one list returns.
pub(super) const MAX_LIST: u64 = 1_000;

/// An appliance whose rows cannot be parsed. The rows and its owner are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Which.
    pub id: ApplianceId,
    /// Its owner, as stored.
    pub tenant: String,
    /// Its name, as stored. It stays reserved in its tenant.
    pub name: String,
    /// What is wrong.
    pub why: String,
}

/// State that a new leader begins with: everything in the store, read in the transaction that raised the term.
#[derive(Debug, Default)]
pub struct StoredState {
    /// The id of the cluster.
    pub cluster: Uuid,
    /// The term before the one that begins, as the transaction found it.
    pub former: Term,
    /// Appliances, in no order.
    pub records: Vec<Record>,
    /// Stored appliances that cannot be parsed. Their grants are in `grants` nevertheless.
    pub unreadable: Vec<Unreadable>,
    /// Last reported statuses, and when they were reported. One that cannot be parsed is missing. May be some hundred
    /// milliseconds behind what users saw.
    pub statuses: HashMap<ApplianceId, (Status, SystemTime)>,
    /// Owners, with site, progress and fence delay. An appliance that is missing was never granted.
    pub grants: HashMap<ApplianceId, StoredGrant>,
    /// The last live members.
    pub members: Vec<StoredMember>,
    /// Idempotent calls that are still remembered, the newest million at most, oldest first.
    pub requests: Vec<RequestRecord>,
    /// The newest rebalances, newest first.
    pub rebalances: Vec<RebalanceRecord>,
    /// The moves of those that have not ended.
    pub unfinished: HashMap<RebalanceId, Vec<MoveRecord>>,
    /// An operator's stop of all planning, if there is one.
    pub pause: Option<PauseRecord>,
    /// Rules of debug modes.
    pub modes: Vec<ModeRule>,
    /// Rollouts, in no order.
    pub rollouts: Vec<StoredRollout>,
    /// Operators' orders about placement, in no order.
    pub orders: Vec<OrderRecord>,
}

/// Reads everything for the leader after `former`, and the length of the grant log.
pub(super) async fn everything<C: ConnectionTrait>(db: &C, former: Term) -> Result<(StoredState, ReplayedLog), Error> {
    let mut ledger = ReplayedLog::read(db).await?;
    let mut grants = std::mem::take(&mut ledger.table);
    let mut odd_progress = HashMap::new();
    for row in progress::Entity::find().all(db).await.map_err(|e| failure("read progress", &e))? {
        match rows::to_progress(&row) {
            Ok((appliance, progress, fence_delay)) => {
                let grant = grants.entry(appliance).or_default();
                grant.progress = progress;
                // While it is granted, the fence delay of the grant applies.
                if grant.granted.is_none() {
                    grant.fence_delay = fence_delay;
                }
            }
            Err(error) => drop(odd_progress.insert(row.appliance, error)),
        }
    }
    let stored = appliances::Entity::find().all(db).await.map_err(|e| failure("read appliances", &e))?;
    let statuses = statuses::Entity::find().all(db).await.map_err(|e| failure("read statuses", &e))?;
    let members = members::Entity::find().all(db).await.map_err(|e| failure("read members", &e))?;
    let mut requests = requests::Entity::find()
        .order_by_desc(requests::Column::TimeNs)
        .limit(MAX_REQUESTS)
        .all(db)
        .await
        .map_err(|e| failure("read requests", &e))?;
    // They are forgotten in the order in which they are remembered.
    requests.reverse();
    let rebalances = rebalances_before(db, None, RECENT_REBALANCES).await?;
    let mut unfinished = HashMap::new();
    for record in rebalances.iter().filter(|record| record.outcome == RebalanceOutcome::Running).take(MAX_RUNNING) {
        // History that cannot be read keeps nobody from leading.
        match rebalance(db, record.id).await {
            Ok(found) => drop(unfinished.insert(record.id, found.map(|(_, moves)| moves).unwrap_or_default())),
            Err(error) => tracing::warn!(rebalance = %record.id, "the moves it made are not known: {error}"),
        }
    }
    let pause = pauses::Entity::find_by_id(pauses::ROW).one(db).await.map_err(|e| failure("read the pause", &e))?;
    let modes = debug_modes::Entity::find().all(db).await.map_err(|e| failure("read debug modes", &e))?;
    let orders = worker_orders::Entity::find().all(db).await.map_err(|e| failure("read orders", &e))?;
    let pins = pins::Entity::find().all(db).await.map_err(|e| failure("read pins", &e))?;
    let budgets = budgets::Entity::find().all(db).await.map_err(|e| failure("read budgets", &e))?;
    let orders = orders.into_iter().map(rows::to_worker_order).chain(pins.into_iter().map(rows::to_pin));
    let orders = orders.chain(budgets.into_iter().map(rows::to_budget));
    let (mut records, mut unreadable) = (Vec::with_capacity(stored.len()), Vec::new());
    for row in stored {
        let (id, tenant, name) = (ApplianceId::new(row.id), row.tenant.clone(), row.name.clone());
        let record = match odd_progress.remove(&row.id) {
            Some(error) => Err(error),
            None => rows::to_record(row),
        };
        match record {
            Ok(record) => records.push(record),
            Err(error) => unreadable.push(Unreadable { id, tenant, name, why: error.to_string() }),
        }
    }
    let understood = |row| {
        let status = rows::to_status(row);
        status.inspect_err(|error| tracing::warn!("ignoring stored status until the next report: {error}")).ok()
    };
    let loaded = StoredState {
        cluster: cluster(db).await?,
        former,
        records,
        unreadable,
        statuses: statuses.into_iter().filter_map(understood).map(|(id, s, t)| (id, (s, t))).collect(),
        grants,
        members: members.iter().map(rows::to_member).collect::<Result<_, _>>()?,
        requests: requests.into_iter().map(rows::to_request).collect::<Result<_, _>>()?,
        rebalances,
        unfinished,
        pause: pause.map(rows::to_pause),
        modes: modes.iter().map(rows::to_mode).collect::<Result<_, _>>()?,
        orders: orders.collect::<Result<_, _>>()?,
        rollouts: super::rollouts::read(db).await?,
    };
    Ok((loaded, ledger))
}

/// Deletes rows of removed appliances: a status may have been queued when its appliance was removed.
pub(super) async fn sweep<C: ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    orphaned_statuses().exec(db).await?;
    Ok(())
}

/// The statement that deletes statuses without an appliance. `NOT EXISTS`, never `NOT IN`: PostgreSQL plans the former as
/// an anti join, while it goes through the whole list of the latter once per row as soon as that does not fit into
/// `work_mem`, and no term begins any more.
pub(super) fn orphaned_statuses() -> DeleteMany<statuses::Entity> {
    use sea_orm::ExprTrait;

    let mut same = Query::select();
    same.expr(Expr::value(1)).from(appliances::Entity).and_where(
        Expr::col(appliances::Column::Id.as_column_ref()).equals(statuses::Column::Appliance.as_column_ref()),
    );
    statuses::Entity::delete_many().filter(Expr::exists(same).not())
}

/// Term and batch as they are in the store.
pub(super) async fn place<C: ConnectionTrait>(db: &C) -> Result<(Term, u64), Error> {
    let row = leadership::Entity::find_by_id(leadership::ROW).one(db).await;
    let row = row.map_err(|e| failure("read the term", &e))?.ok_or_else(|| Error::Corrupt {
        what: "leadership",
        key: leadership::ROW.to_string(),
        reason: "the row is missing".to_owned(),
    })?;
    let term = u64::try_from(row.term).map_err(|_| Error::Corrupt {
        what: "leadership",
        key: leadership::ROW.to_string(),
        reason: format!("{} is no term", row.term),
    })?;
    Ok((Term::new(term), row.batch.cast_unsigned()))
}

/// The id of the cluster.
async fn cluster<C: ConnectionTrait>(db: &C) -> Result<Uuid, Error> {
    let row = clusters::Entity::find_by_id(clusters::ROW).one(db).await;
    let row = row.map_err(|e| failure("read the id of the cluster", &e))?.ok_or_else(|| Error::Corrupt {
        what: "clusters",
        key: clusters::ROW.to_string(),
        reason: "the row is missing".to_owned(),
    })?;
    Ok(row.cluster)
}

/// Rebalances before one, newest first.
pub(super) async fn rebalances_before<C: ConnectionTrait>(
    db: &C,
    before: Option<RebalanceId>,
    limit: u64,
) -> Result<Vec<RebalanceRecord>, Error> {
    let mut query = rebalances::Entity::find();
    if let Some(id) = before {
        let term = id.term.get().cast_signed();
        let same = Condition::all()
            .add(rebalances::Column::Term.eq(term))
            .add(rebalances::Column::Number.lt(id.number.cast_signed()));
        query = query.filter(Condition::any().add(rebalances::Column::Term.lt(term)).add(same));
    }
    let found = query
        .order_by_desc(rebalances::Column::Term)
        .order_by_desc(rebalances::Column::Number)
        .limit(limit.min(MAX_LIST))
        .all(db)
        .await
        .map_err(|e| failure("read rebalances", &e))?;
    found.into_iter().map(rows::to_rebalance).collect()
}

/// One rebalance with its moves, in the order they ended.
pub(super) async fn rebalance<C: ConnectionTrait>(
    db: &C,
    id: RebalanceId,
) -> Result<Option<(RebalanceRecord, Vec<MoveRecord>)>, Error> {
    let (term, number) = (id.term.get().cast_signed(), id.number.cast_signed());
    let found = rebalances::Entity::find_by_id((term, number)).one(db).await;
    let Some(row) = found.map_err(|e| failure("read a rebalance", &e))? else { return Ok(None) };
    let packed = moves::Entity::find()
        .filter(moves::Column::Term.eq(term))
        .filter(moves::Column::Number.eq(number))
        .order_by_asc(moves::Column::Id)
        .all(db)
        .await
        .map_err(|e| failure("read moves", &e))?;
    let (mut all, mut adoptions) = (Vec::new(), Vec::new());
    for row in &packed {
        let (moves, seen) = rows::to_moves(row)?;
        all.extend(moves);
        adoptions.extend(seen);
    }
    rows::with_adoptions(&mut all, &adoptions);
    Ok(Some((rows::to_rebalance(row)?, all)))
}

/// Who was there when a rebalance began.
pub(super) async fn members_of<C: ConnectionTrait>(db: &C, id: RebalanceId) -> Result<Vec<MemberThen>, Error> {
    let key = (id.term.get().cast_signed(), id.number.cast_signed());
    let found = rebalance_members::Entity::find_by_id(key).one(db).await;
    let found = found.map_err(|e| failure("read the members of a rebalance", &e))?;
    found.as_ref().map_or_else(|| Ok(Vec::new()), rows::to_members)
}

/// The last moves of one appliance, newest first, from the newest rows of moves.
pub(super) async fn moves_of<C: ConnectionTrait>(
    db: &C,
    appliance: ApplianceId,
    limit: u64,
) -> Result<Vec<MoveRecord>, Error> {
    let limit = usize::try_from(limit.min(MAX_LIST)).unwrap_or(usize::MAX);
    let (mut found, mut adoptions) = (Vec::new(), Vec::new());
    let mut before = i64::MAX;
    'rows: for _ in 0..MOVE_ROWS / MOVE_PAGE {
        let page = moves::Entity::find()
            .filter(moves::Column::Id.lt(before))
            .order_by_desc(moves::Column::Id)
            .limit(MOVE_PAGE)
            .all(db)
            .await
            .map_err(|e| failure("read moves", &e))?;
        let Some(last) = page.last() else { break };
        before = last.id;
        for row in &page {
            // Adoptions are in later rows than their moves, and so are read before them.
            let (moves, seen) = rows::to_moves(row)?;
            adoptions.extend(seen.into_iter().filter(|seen| seen.appliance == appliance));
            found.extend(moves.into_iter().rev().filter(|m| m.appliance == appliance));
            if found.len() >= limit {
                found.truncate(limit);
                break 'rows;
            }
        }
    }
    rows::with_adoptions(&mut found, &adoptions);
    Ok(found)
}

/// Events of the audit trail.
pub(super) async fn events<C: ConnectionTrait>(
    db: &C,
    filter: &AuditFilter,
    part: AuditPart,
    limit: u64,
) -> Result<Vec<NumberedEvent>, Error> {
    use sea_orm::sea_query::LikeExpr;

    let AuditFilter { since, until, actor, action, subject } = filter;
    let mut query = events::Entity::find();
    query = match part {
        AuditPart::Before(None) => query.order_by_desc(events::Column::Id),
        AuditPart::Before(Some(number)) => {
            query.filter(events::Column::Id.lt(number.cast_signed())).order_by_desc(events::Column::Id)
        }
        AuditPart::After(number) => {
            query.filter(events::Column::Id.gt(number.cast_signed())).order_by_asc(events::Column::Id)
        }
    };
    if let Some(since) = since {
        query = query.filter(events::Column::TimeNs.gte(rows::nanos(*since)));
    }
    if let Some(until) = until {
        query = query.filter(events::Column::TimeNs.lt(rows::nanos(*until)));
    }
    if let Some(actor) = actor {
        query = query.filter(events::Column::Actor.eq(actor.as_str()));
    }
    if let Some(action) = action {
        query = query.filter(events::Column::Action.eq(action.as_str()));
    }
    if let Some(subject) = subject {
        let escaped = subject.replace('|', "||").replace('%', "|%").replace('_', "|_");
        let begins = || LikeExpr::new(format!("{escaped} %")).escape('|');
        let mut any = Condition::any().add(events::Column::Subject.eq(subject.as_str()));
        // That of `unbind` goes on with the site.
        any = any.add(events::Column::Subject.like(begins()));
        if subject.contains('/') {
            // The detail of an appliance's event begins with its tenant and name.
            any = any.add(events::Column::Detail.like(begins()));
        }
        query = query.filter(any);
    }
    let found = query.limit(limit.min(MAX_LIST + 1)).all(db).await;
    Ok(found.map_err(|e| failure("read the audit trail", &e))?.into_iter().map(rows::to_event).collect())
}

/// Limits of the history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keep {
    pub(super) events: u64,
    pub(super) rebalances: u64,
    pub(super) runs: u64,
    /// What ended before this is deleted as well.
    pub(super) since_ns: i64,
    /// Requests older than this are deleted,
    pub(super) requests_since_ns: i64,
    /// and those beyond this many.
    pub(super) requests: u64,
}

/// Rows deleted in one go, so that no transaction of the housekeeping is long.
const PRUNE_ROWS: u64 = 2_000;

/// Rebalances deleted in one go: each has as many moves as the appliances it was about.
const PRUNE_REBALANCES: u64 = 8;

/// Deletes a bounded part of the rows of a table that are beyond its newest `keep`, by their numbers, or whose `time` is before `since_ns`;
/// returns whether there are more. Numbers and times rise together, so that only the oldest rows are looked at.
async fn prune_numbered<E: EntityTrait, C: ConnectionTrait>(
    db: &C,
    (id, time): (E::Column, E::Column),
    keep: u64,
    since_ns: i64,
) -> Result<bool, DbErr> {
    let newest = E::find().select_only().column_as(id.max(), "newest").into_tuple::<Option<i64>>().one(db).await?;
    let oldest = E::find().select_only().column_as(id.min(), "oldest").into_tuple::<Option<i64>>().one(db).await?;
    let (Some(newest), Some(oldest)) = (newest.flatten(), oldest.flatten()) else { return Ok(false) };
    let first = E::find().select_only().columns([id, time]).order_by_asc(id).limit(PRUNE_ROWS);
    let first: Vec<(i64, i64)> = first.into_tuple().all(db).await?;
    let expired = first.iter().take_while(|(_, time)| *time < since_ns).last();
    let is_all = expired.is_some() && expired == first.last() && first.len() as u64 == PRUNE_ROWS;
    let beyond = newest.saturating_sub(i64::try_from(keep).unwrap_or(i64::MAX));
    let due = expired.map_or(beyond, |(id, _)| beyond.max(*id));
    let upto = due.min(oldest.saturating_add(PRUNE_ROWS.cast_signed()));
    if upto < oldest {
        return Ok(false);
    }
    E::delete_many().filter(id.lte(upto)).exec(db).await?;
    Ok(upto < due || is_all)
}

/// The newest of the next few rebalances that are not kept any more, and whether there may be more of them.
async fn rebalances_due<C: ConnectionTrait>(db: &C, keep: Keep) -> Result<(Option<(i64, i64)>, bool), DbErr> {
    use rebalances::Column::{EndedNs, Number, Term};

    let key = || rebalances::Entity::find().select_only().columns([Term, Number]);
    let newest = key().order_by_desc(Term).order_by_desc(Number).offset(keep.rebalances).limit(1);
    let beyond: Option<(i64, i64)> = newest.into_tuple().one(db).await?;
    let first = key().column(EndedNs).order_by_asc(Term).order_by_asc(Number).limit(PRUNE_REBALANCES);
    let first: Vec<(i64, i64, Option<i64>)> = first.into_tuple().all(db).await?;
    let is_due = |(term, number, ended): &&(i64, i64, Option<i64>)| {
        beyond.is_some_and(|beyond| (*term, *number) <= beyond) || ended.is_some_and(|ended| ended < keep.since_ns)
    };
    let due = first.iter().take_while(is_due).last().map(|(term, number, _)| (*term, *number));
    let is_all = first.iter().all(|row| is_due(&row)) && first.len() as u64 == PRUNE_REBALANCES;
    Ok((due, is_all))
}

/// Deletes a bounded part of the old history; returns whether more may be left.
pub(super) async fn prune<C: ConnectionTrait>(db: &C, keep: Keep) -> Result<bool, DbErr> {
    let mut more = prune_numbered::<events::Entity, _>(
        db,
        (events::Column::Id, events::Column::TimeNs),
        keep.events,
        keep.since_ns,
    )
    .await?;
    more |=
        prune_numbered::<runs::Entity, _>(db, (runs::Column::Id, runs::Column::FinishedNs), keep.runs, keep.since_ns)
            .await?;
    let edge: Option<i64> = requests::Entity::find()
        .select_only()
        .column(requests::Column::TimeNs)
        .order_by_desc(requests::Column::TimeNs)
        .offset(keep.requests)
        .limit(1)
        .into_tuple()
        .one(db)
        .await?;
    let since = edge.map_or(keep.requests_since_ns, |edge| keep.requests_since_ns.max(edge.saturating_add(1)));
    let old: Vec<Uuid> = requests::Entity::find()
        .select_only()
        .column(requests::Column::Id)
        .filter(requests::Column::TimeNs.lt(since))
        .limit(PRUNE_ROWS)
        .into_tuple()
        .all(db)
        .await?;
    if !old.is_empty() {
        more |= old.len() as u64 == PRUNE_ROWS;
        requests::Entity::delete_many().filter(requests::Column::Id.is_in(old)).exec(db).await?;
    }
    let (edge, is_all) = rebalances_due(db, keep).await?;
    more |= is_all;
    if let Some((term, number)) = edge {
        let same = |t: Expr, n: Expr| Condition::all().add(t).add(n);
        let old = Condition::any()
            .add(rebalances::Column::Term.lt(term))
            .add(same(rebalances::Column::Term.eq(term), rebalances::Column::Number.lte(number)));
        rebalances::Entity::delete_many().filter(old).exec(db).await?;
        let old = Condition::any()
            .add(moves::Column::Term.lt(term))
            .add(same(moves::Column::Term.eq(term), moves::Column::Number.lte(number)));
        moves::Entity::delete_many().filter(old).exec(db).await?;
        let old = Condition::any()
            .add(rebalance_members::Column::Term.lt(term))
            .add(same(rebalance_members::Column::Term.eq(term), rebalance_members::Column::Number.lte(number)));
        rebalance_members::Entity::delete_many().filter(old).exec(db).await?;
    }
    Ok(more)
}

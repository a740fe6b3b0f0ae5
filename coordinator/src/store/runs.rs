//! Rows of what workers did about appliances.

use std::time::SystemTime;

use common::appliance::Name;
use common::run::{PhaseChange, RunOutcome, RunStep};
use common::{ApplianceId, Generation, WorkerId};
use sea_orm::entity::prelude::*;
use sea_orm::sea_query::OnConflict;
use sea_orm::{ConnectionTrait, QueryOrder, QuerySelect};
use serde::{Deserialize, Serialize};

use super::dialect::failure;
use super::entities::runs::{ActiveModel, Column, Entity, Model};
use super::error::Error;
use super::load::MAX_LIST;
use super::rows::{RowName, json, nanos, plain, time};
use crate::record::{AuditPart, NumberedRun, RunFilter, RunRecord};

/// What is not searched for.
#[derive(Serialize, Deserialize)]
struct Detail {
    steps: Vec<RunStep>,
    changes: Vec<PhaseChange>,
}

pub(super) fn to_row(run: RunRecord) -> ActiveModel {
    use sea_orm::ActiveValue::{NotSet, Set};

    ActiveModel {
        id: NotSet,
        run: Set(Uuid::from_u128(run.id)),
        appliance: Set(run.appliance.uuid()),
        tenant: Set(run.tenant.to_string()),
        name: Set(run.name.to_string()),
        generation: Set(run.generation.get().cast_signed()),
        worker: Set(run.worker.as_str().to_owned()),
        cause: Set(plain(&run.cause)),
        outcome: Set(run.outcome.name().to_owned()),
        error: Set(plain(&run.error)),
        began_ns: Set(nanos(run.began)),
        finished_ns: Set(nanos(run.ended)),
        detail: Set(json(&Detail { steps: run.steps, changes: run.changes })),
    }
}

fn from_row(row: Model) -> Result<NumberedRun, Error> {
    let key = row.id;
    let at = RowName { what: "runs", key: &key };
    let name = |text: &str| Name::new(text).map_err(|e| at.corrupt(e));
    let outcome = RunOutcome::of_name(&row.outcome);
    let Detail { steps, changes } = serde_json::from_str(&row.detail).map_err(|e| at.corrupt(e))?;
    let run = RunRecord {
        id: row.run.as_u128(),
        appliance: ApplianceId::new(row.appliance),
        tenant: name(&row.tenant)?,
        name: name(&row.name)?,
        generation: Generation::new(row.generation.cast_unsigned()),
        worker: WorkerId::new(&row.worker).map_err(|e| at.corrupt(e))?,
        cause: row.cause,
        outcome: outcome.ok_or_else(|| at.corrupt(format_args!("outcome `{}` is not known", row.outcome)))?,
        error: row.error,
        began: time(row.began_ns),
        ended: time(row.finished_ns),
        steps,
        changes,
    };
    Ok(NumberedRun { number: row.id.cast_unsigned(), run })
}

/// Leaves a run that is stored already as it is. Written so that every database takes it: none has the same words for doing nothing.
pub(super) fn told_twice() -> OnConflict {
    OnConflict::column(Column::Run).update_column(Column::Run).to_owned()
}

/// Runs that match.
pub(super) async fn find<C: ConnectionTrait>(
    db: &C,
    filter: &RunFilter,
    part: AuditPart,
    limit: u64,
) -> Result<Vec<NumberedRun>, Error> {
    let RunFilter { since, until, appliance, name, tenants, worker, outcome, with_steps } = filter;
    let mut query = Entity::find();
    query = match part {
        AuditPart::Before(None) => query.order_by_desc(Column::Id),
        AuditPart::Before(Some(number)) => query.filter(Column::Id.lt(number.cast_signed())).order_by_desc(Column::Id),
        AuditPart::After(number) => query.filter(Column::Id.gt(number.cast_signed())).order_by_asc(Column::Id),
    };
    let moment = |time: &SystemTime| nanos(*time);
    if let Some(since) = since {
        query = query.filter(Column::FinishedNs.gte(moment(since)));
    }
    if let Some(until) = until {
        query = query.filter(Column::FinishedNs.lt(moment(until)));
    }
    if let Some(appliance) = appliance {
        query = query.filter(Column::Appliance.eq(appliance.uuid()));
    }
    if let Some(name) = name {
        query = query.filter(Column::Name.eq(name.as_str()));
    }
    if let Some(tenants) = tenants {
        query = query.filter(Column::Tenant.is_in(tenants.iter().map(Name::as_str)));
    }
    if let Some(worker) = worker {
        query = query.filter(Column::Worker.eq(worker.as_str()));
    }
    if let Some(outcome) = outcome {
        query = query.filter(Column::Outcome.eq(outcome.name()));
    }
    if *with_steps {
        query = query.filter(Column::Outcome.ne(RunOutcome::Observed.name()));
    }
    let found = query.limit(limit.min(MAX_LIST + 1)).all(db).await;
    found.map_err(|e| failure("read the runs of workers", &e))?.into_iter().map(from_row).collect()
}

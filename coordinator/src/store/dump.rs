//! Readable dump of the store: `rug-coordinator store dump`.

use std::io::{self, Write};

use common::Site;
use sea_orm::ConnectionTrait;
use sea_orm::entity::prelude::*;

use super::dialect::failure;
use super::entities::{
    appliances, budgets, clusters, debug_modes, events, grants, leadership, members, moves, pauses, pins, progress,
    rebalance_members, rebalances, requests, rollouts, runs, statuses, worker_orders, workers,
};
use super::error::Error;
use super::ledger::{self, Chunk, GrantLogEntry, LogPosition, Pages};

/// Why a dump ended early.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] Error),
    /// What was read could not be written.
    #[error("write the dump: {0}")]
    Output(#[from] io::Error),
}

/// Writes the leader, the number of rows of each table, and the grant log. A row that cannot be read is named, and the
/// dump continues after it.
pub(super) async fn dump(db: &impl ConnectionTrait, out: &mut impl Write) -> Result<(), DumpError> {
    if let Some(row) = clusters::Entity::find_by_id(clusters::ROW).one(db).await.map_err(|e| reading(&e))? {
        writeln!(out, "cluster {}", row.cluster)?;
    }
    if let Some(row) = leadership::Entity::find_by_id(leadership::ROW).one(db).await.map_err(|e| reading(&e))? {
        writeln!(out, "term {} batch {} coordinator {}", row.term, row.batch, row.coordinator)?;
    }
    count::<appliances::Entity>(db, out).await?;
    count::<statuses::Entity>(db, out).await?;
    count::<progress::Entity>(db, out).await?;
    count::<members::Entity>(db, out).await?;
    count::<workers::Entity>(db, out).await?;
    count::<rebalances::Entity>(db, out).await?;
    count::<moves::Entity>(db, out).await?;
    count::<rebalance_members::Entity>(db, out).await?;
    count::<events::Entity>(db, out).await?;
    count::<runs::Entity>(db, out).await?;
    count::<requests::Entity>(db, out).await?;
    count::<pauses::Entity>(db, out).await?;
    count::<debug_modes::Entity>(db, out).await?;
    count::<rollouts::Entity>(db, out).await?;
    count::<worker_orders::Entity>(db, out).await?;
    count::<pins::Entity>(db, out).await?;
    count::<budgets::Entity>(db, out).await?;
    count::<grants::Entity>(db, out).await?;
    let mut pages = Pages::after(LogPosition::default(), &[ledger::LOG, ledger::CHUNK, ledger::LAST_CHUNK]);
    while let Some(rows) = pages.next(db).await? {
        for row in rows {
            describe(&row, out)?;
        }
    }
    Ok(())
}

fn reading(error: &DbErr) -> Error {
    failure("read the store", error)
}

async fn count<E: EntityTrait + EntityName>(db: &impl ConnectionTrait, out: &mut impl Write) -> Result<(), DumpError> {
    let select = sea_orm::sea_query::Query::select()
        .expr_as(Expr::cust("COUNT(*)"), "n")
        .from(E::default().table_ref())
        .to_owned();
    let row = db.query_one(&select).await.map_err(|e| reading(&e))?;
    let count: i64 = row.map(|row| row.try_get("", "n")).transpose().map_err(|e| reading(&e))?.unwrap_or(0);
    writeln!(out, "{:<14}{count:>8}", E::default().table_name())?;
    Ok(())
}

fn describe(row: &grants::Model, out: &mut impl Write) -> io::Result<()> {
    write!(out, "\nterm {} batch {} part {}: {} bytes", row.term, row.batch, row.part, row.data.len())?;
    let mut lines = Vec::new();
    match ledger::read_row(&row.data, |entry| lines.push(line(&entry))) {
        Ok(None) => writeln!(out, ", log, {} entries", lines.len())?,
        Ok(Some(Chunk { covers, index })) => {
            let last = if row.format == i32::from(ledger::LAST_CHUNK) { ", the last" } else { "" };
            let LogPosition { term, batch } = covers;
            writeln!(out, ", chunk {index}{last} of the snapshot up to term {term} batch {batch}")?;
        }
        Err(reason) => writeln!(out, ", CANNOT BE READ: {}", reason.0)?,
    }
    lines.iter().try_for_each(|line| writeln!(out, "  {line}"))
}

fn line(entry: &GrantLogEntry) -> String {
    let on = |site: &Option<Site>| site.as_ref().map(|site| format!(" on {site}")).unwrap_or_default();
    match entry {
        GrantLogEntry::Grant { appliance, to, site, fence_delay } => {
            let held =
                if fence_delay.is_zero() { String::new() } else { format!(", with a fence delay of {fence_delay:?}") };
            format!("{appliance} granted to {} {} with {}{}{held}", to.worker, to.incarnation, to.token, on(site))
        }
        GrantLogEntry::Free { appliance } => format!("{appliance} free"),
        GrantLogEntry::Remove { appliance } => format!("{appliance} removed"),
        GrantLogEntry::FreeOnSite { appliance, site } => format!("{appliance} free{}", on(site)),
    }
}

//! The grant log: how ownership is packed, replayed, and reduced to a snapshot.
//!
//! Rows are ordered by chain position, `(term, batch, part)`. A *log* row contains changes; a *chunk* row contains a
//! part of a snapshot, which is the state after all rows up to the batch it *covers*. Chunks are written between log
//! rows while the leader keeps working, and take effect when their last one, of another format, is in the chain. Then
//! everything up to the covered batch is redundant and is deleted, possibly in steps.
//!
//! | format | row | header |
//! |---|---|---|
//! | 1 | log | |
//! | 2 | chunk | covered term, covered batch, index |
//! | 3 | last chunk | the same |
//!
//! A grant carries the fence delay that its successor has to wait if the owner is lost. Progress and fence delay of a
//! release are stored in another table.

use std::collections::HashMap;
use std::time::Duration;

use common::{ApplianceId, Incarnation, Site, Term, Token, WorkerId};
use coordinator_core::grants::{GrantOp, Granted, StoredGrant};
use sea_orm::entity::prelude::*;
use sea_orm::{Condition, ConnectionTrait, QueryOrder, QuerySelect};

use super::codec::{self, Odd, Packer, ROW_BYTES, Unpacker};
use super::dialect;
use super::entities::grants;
use super::error::Error;

/// Format of a row of changes.
pub(super) const LOG: u8 = 1;
/// Format of a part of a snapshot.
pub(super) const CHUNK: u8 = 2;
/// Format of the last part of a snapshot, which makes it count.
pub(super) const LAST_CHUNK: u8 = 3;

const GRANT: u8 = 1;
const FREE: u8 = 2;
const REMOVE: u8 = 3;
const FREE_ON_SITE: u8 = 4;
/// A grant with a fence delay; most have none.
const GRANT_WITH_FENCE_DELAY: u8 = 5;

/// Rows read at once: bounds the memory of reading to some 8 MiB.
const PAGE: u64 = 32;

/// Position of a batch in the chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LogPosition {
    pub(super) term: i64,
    pub(super) batch: i64,
}

/// Owners by appliance. Holds of appliances without owner are not part of it.
pub(super) type GrantTable = HashMap<ApplianceId, StoredGrant>;

/// Packs changes into log rows of bounded size.
#[derive(Debug, Default)]
pub(super) struct LogPacker {
    packer: Packer,
    rows: Vec<Vec<u8>>,
}

impl LogPacker {
    /// Appends one change.
    pub(super) fn push(&mut self, op: &GrantOp) {
        match op {
            GrantOp::Grant { appliance, to, site, fence_delay } => {
                put_grant(&mut self.packer, *appliance, to, site.as_ref(), *fence_delay);
            }
            GrantOp::Free { appliance, .. } => {
                self.packer.entry(FREE).bytes(appliance.as_bytes());
            }
            GrantOp::Unbind { appliance, .. } => put_free(&mut self.packer, *appliance, None),
            GrantOp::Remove { appliance } => {
                self.packer.entry(REMOVE).bytes(appliance.as_bytes());
            }
        }
        if self.packer.len() >= ROW_BYTES {
            self.rows.push(std::mem::take(&mut self.packer).seal(LOG, &[]));
        }
    }

    /// The rows.
    pub(super) fn finish(mut self) -> Vec<Vec<u8>> {
        if !self.packer.is_empty() {
            self.rows.push(self.packer.seal(LOG, &[]));
        }
        self.rows
    }
}

fn put_grant(packer: &mut Packer, appliance: ApplianceId, to: &Granted, site: Option<&Site>, fence_delay: Duration) {
    // Worker and incarnation form one name: a worker has one incarnation in most rows, which saves sixteen bytes per
    // entry.
    let mut holder = to.incarnation.get().to_le_bytes().to_vec();
    holder.extend_from_slice(to.worker.as_str().as_bytes());
    packer
        .entry(if fence_delay.is_zero() { GRANT } else { GRANT_WITH_FENCE_DELAY })
        .bytes(appliance.as_bytes())
        .name(&holder)
        .number(to.token.term.get())
        .number(to.token.sequence)
        .optional_name(site.map(|site| site.as_str().as_bytes()));
    if !fence_delay.is_zero() {
        packer.number(u64::try_from(fence_delay.as_nanos()).unwrap_or(u64::MAX));
    }
}

fn put_free(packer: &mut Packer, appliance: ApplianceId, site: Option<&Site>) {
    packer.entry(FREE_ON_SITE).bytes(appliance.as_bytes()).optional_name(site.map(|site| site.as_str().as_bytes()));
}

/// One entry of a row, as printed and applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum GrantLogEntry {
    Grant { appliance: ApplianceId, to: Granted, site: Option<Site>, fence_delay: Duration },
    Free { appliance: ApplianceId },
    Remove { appliance: ApplianceId },
    FreeOnSite { appliance: ApplianceId, site: Option<Site> },
}

impl GrantLogEntry {
    fn apply(self, table: &mut GrantTable) {
        match self {
            Self::Grant { appliance, to, site, fence_delay } => {
                let grant = table.entry(appliance).or_default();
                grant.granted = Some(to);
                grant.site = site;
                grant.fence_delay = fence_delay;
            }
            Self::Free { appliance } => {
                let grant = table.entry(appliance).or_default();
                grant.granted = None;
                grant.fence_delay = Duration::ZERO;
            }
            Self::Remove { appliance } => drop(table.remove(&appliance)),
            Self::FreeOnSite { appliance, site } => {
                let grant = table.entry(appliance).or_default();
                grant.granted = None;
                grant.fence_delay = Duration::ZERO;
                grant.site = site;
            }
        }
    }
}

/// What the header of a snapshot's chunk says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) covers: LogPosition,
    pub(super) index: u64,
}

/// Reads a row, entry by entry. Without a chunk header it is a log row.
pub(super) fn read_row(data: &[u8], mut each: impl FnMut(GrantLogEntry)) -> Result<Option<Chunk>, Odd> {
    let (chunk, mut it) = match data.first() {
        Some(&(CHUNK | LAST_CHUNK)) => {
            let (_, [term, batch, index], it) = Unpacker::open(data, &[CHUNK, LAST_CHUNK])?;
            let covers = LogPosition { term: term.cast_signed(), batch: batch.cast_signed() };
            (Some(Chunk { covers, index }), it)
        }
        _ => {
            let (_, [], it) = Unpacker::open(data, &[LOG])?;
            (None, it)
        }
    };
    // Names are checked once per row and shared by its entries.
    let mut holders: Vec<Option<(WorkerId, Incarnation)>> = vec![None; it.names().len()];
    while let Some(tag) = it.next_entry()? {
        let appliance = ApplianceId::from_bytes(it.array()?);
        each(match tag {
            GRANT | GRANT_WITH_FENCE_DELAY => {
                let holder = it.name_index()?;
                let (worker, incarnation) = match &holders[holder] {
                    Some(known) => known.clone(),
                    None => holders[holder].insert(read_holder(it.names()[holder])?).clone(),
                };
                let token = Token::new(Term::new(it.number()?), it.number()?);
                let site = read_site(&mut it)?;
                let fence_delay = if tag == GRANT { Duration::ZERO } else { Duration::from_nanos(it.number()?) };
                GrantLogEntry::Grant { appliance, to: Granted { worker, incarnation, token }, site, fence_delay }
            }
            FREE => GrantLogEntry::Free { appliance },
            REMOVE => GrantLogEntry::Remove { appliance },
            FREE_ON_SITE => GrantLogEntry::FreeOnSite { appliance, site: read_site(&mut it)? },
            _ => return Err(Odd(format!("entry of unknown kind {tag}"))),
        });
    }
    Ok(chunk)
}

/// A row of each sort, with an entry of each sort. For the fuzz tests.
pub(crate) fn sample_rows() -> Vec<Vec<u8>> {
    let appliance = ApplianceId::from_u128(7);
    let worker = WorkerId::new("worker-1").expect("a name");
    let to = Granted { worker, incarnation: Incarnation::new(9), token: Token::new(Term::new(3), 300) };
    let grant = |site, fence_delay| GrantOp::Grant { appliance, to: to.clone(), site, fence_delay };
    let mut log = LogPacker::default();
    log.push(&grant(Some(Site::new("host", "/var/lib/rug")), Duration::ZERO));
    log.push(&grant(None, Duration::from_secs(5)));
    log.push(&GrantOp::Free { appliance, progress: common::status::Progress::default(), fence_delay: Duration::ZERO });
    log.push(&GrantOp::Remove { appliance });
    let mut chunk = Packer::default();
    put_free(&mut chunk, appliance, Some(&Site::new("host", "/var/lib/rug")));
    put_grant(&mut chunk, appliance, &to, None, Duration::ZERO);
    let mut rows = log.finish();
    rows.push(chunk.seal(LAST_CHUNK, &[3, 4, 0]));
    rows
}

/// Reads a row after its checksum was put right, and counts its entries. For the fuzz tests.
pub(crate) fn read_mended_row(row: &[u8]) -> Result<usize, String> {
    let mut entries = 0;
    read_row(&codec::mended(row), |_| entries += 1).map(|_| entries).map_err(|odd| odd.0)
}

fn read_holder(name: &[u8]) -> Result<(WorkerId, Incarnation), Odd> {
    let (incarnation, worker) =
        name.split_first_chunk::<16>().ok_or_else(|| Odd::new("an owner has no incarnation"))?;
    let worker = WorkerId::new(codec::text(worker)?).map_err(|e| Odd(e.to_string()))?;
    Ok((worker, Incarnation::new(u128::from_le_bytes(*incarnation))))
}

fn read_site(it: &mut Unpacker<'_>) -> Result<Option<Site>, Odd> {
    let Some(at) = it.optional_name_index()? else { return Ok(None) };
    Ok(Some(codec::text(it.names()[at])?.into()))
}

/// State after replaying the log.
#[derive(Debug, Default)]
pub(super) struct ReplayedLog {
    pub(super) table: GrantTable,
    /// The newest batch that was read.
    pub(super) last: LogPosition,
    /// Bytes of the snapshot it began with.
    pub(super) snapshot_bytes: u64,
    /// Bytes of the log rows after it.
    pub(super) log_bytes: u64,
}

impl ReplayedLog {
    /// Reads the newest complete snapshot and the log after it. Correct also while rows are appended and redundant ones
    /// are deleted: rows never change, and what is appended meanwhile is read or not, batch by batch.
    pub(super) async fn read<C: ConnectionTrait>(db: &C) -> Result<Self, Error> {
        let mut ledger = Self::default();
        let newest = grants::Entity::find()
            .filter(grants::Column::Format.eq(i32::from(LAST_CHUNK)))
            .order_by_desc(grants::Column::Term)
            .order_by_desc(grants::Column::Batch)
            .order_by_desc(grants::Column::Part)
            .one(db)
            .await
            .map_err(|e| dialect::failure("read the newest snapshot of grants", &e))?;
        let mut covered = LogPosition::default();
        if let Some(row) = newest {
            let last = read_row(&row.data, drop).map_err(|e| corrupt(&row, &e))?;
            let last = last.ok_or_else(|| corrupt(&row, &Odd::new("it is no chunk of a snapshot")))?;
            covered = last.covers;
            ledger.read_snapshot(db, &row, last).await?;
        }
        ledger.read_log(db, covered).await?;
        Ok(ledger)
    }

    async fn read_snapshot<C: ConnectionTrait>(
        &mut self,
        db: &C,
        last_row: &grants::Model,
        last: Chunk,
    ) -> Result<(), Error> {
        let mut pages = Pages::after(last.covers, &[CHUNK, LAST_CHUNK]);
        let mut expected = 0;
        while let Some(rows) = pages.next(db).await? {
            for row in rows {
                let mut entries = Vec::new();
                let chunk = read_row(&row.data, |e| entries.push(e)).map_err(|e| corrupt(&row, &e))?;
                let Some(chunk) = chunk.filter(|chunk| chunk.covers == last.covers) else { continue };
                if chunk.index != expected {
                    let reason = format!("found chunk {}, expected {expected}", chunk.index);
                    return Err(corrupt(&row, &Odd(reason)));
                }
                expected += 1;
                self.snapshot_bytes += row.data.len() as u64;
                entries.into_iter().for_each(|e| e.apply(&mut self.table));
            }
        }
        if expected != last.index + 1 {
            return Err(corrupt(last_row, &Odd(format!("{} chunks precede it, {expected} were found", last.index))));
        }
        Ok(())
    }

    async fn read_log<C: ConnectionTrait>(&mut self, db: &C, covered: LogPosition) -> Result<(), Error> {
        // Chunk rows are read as well (and skipped), so that `last` is the newest row of all.
        let mut pages = Pages::after(covered, &[LOG, CHUNK, LAST_CHUNK]);
        self.last = covered;
        while let Some(rows) = pages.next(db).await? {
            for row in rows {
                self.last = LogPosition { term: row.term, batch: row.batch };
                if row.format != i32::from(LOG) {
                    continue;
                }
                let table = &mut self.table;
                match read_row(&row.data, |e| e.apply(table)).map_err(|e| corrupt(&row, &e))? {
                    None => self.log_bytes += row.data.len() as u64,
                    Some(_) => return Err(corrupt(&row, &Odd::new("a chunk of a snapshot is filed as log"))),
                }
            }
        }
        Ok(())
    }

    /// The chunks of a snapshot that covers everything read here, of about `size` bytes each. At least one.
    pub(super) fn snapshot(&self, size: usize) -> Vec<Vec<u8>> {
        let mut ids: Vec<_> = self.table.keys().copied().collect();
        ids.sort_unstable();
        let mut packers = vec![Packer::default()];
        for id in ids {
            if packers.last().is_some_and(|p| p.len() >= size) {
                packers.push(Packer::default());
            }
            let (Some(packer), Some(grant)) = (packers.last_mut(), self.table.get(&id)) else { continue };
            match &grant.granted {
                Some(to) => put_grant(packer, id, to, grant.site.as_ref(), grant.fence_delay),
                None => put_free(packer, id, grant.site.as_ref()),
            }
        }
        let count = packers.len();
        let (term, batch) = (self.last.term.cast_unsigned(), self.last.batch.cast_unsigned());
        let seal = |(i, packer): (usize, Packer)| {
            packer.seal(if i + 1 == count { LAST_CHUNK } else { CHUNK }, &[term, batch, i as u64])
        };
        packers.into_iter().enumerate().map(seal).collect()
    }
}

/// Rows after a batch, page by page.
pub(super) struct Pages {
    formats: Vec<i32>,
    after: Option<(LogPosition, i32)>,
    done: bool,
}

impl Pages {
    /// The rows of these formats that lie after `place`.
    pub(super) fn after(place: LogPosition, formats: &[u8]) -> Self {
        let formats = formats.iter().map(|f| i32::from(*f)).collect();
        Self { formats, after: Some((place, i32::MAX)), done: false }
    }

    pub(super) async fn next<C: ConnectionTrait>(&mut self, db: &C) -> Result<Option<Vec<grants::Model>>, Error> {
        if self.done {
            return Ok(None);
        }
        let mut query = grants::Entity::find().filter(grants::Column::Format.is_in(self.formats.iter().copied()));
        if let Some((place, part)) = self.after {
            let same = Condition::all()
                .add(grants::Column::Term.eq(place.term))
                .add(grants::Column::Batch.eq(place.batch))
                .add(grants::Column::Part.gt(part));
            query = query.filter(Condition::any().add(after(place)).add(same));
        }
        let rows = query
            .order_by_asc(grants::Column::Term)
            .order_by_asc(grants::Column::Batch)
            .order_by_asc(grants::Column::Part)
            .limit(PAGE)
            .all(db)
            .await
            .map_err(|e| dialect::failure("read the log of grants", &e))?;
        self.done = (rows.len() as u64) < PAGE;
        self.after = rows.last().map(|row| (LogPosition { term: row.term, batch: row.batch }, row.part)).or(self.after);
        Ok(Some(rows))
    }
}

fn after(place: LogPosition) -> Condition {
    Condition::any()
        .add(grants::Column::Term.gt(place.term))
        .add(Condition::all().add(grants::Column::Term.eq(place.term)).add(grants::Column::Batch.gt(place.batch)))
}

fn up_to(place: LogPosition) -> Condition {
    Condition::any()
        .add(grants::Column::Term.lt(place.term))
        .add(Condition::all().add(grants::Column::Term.eq(place.term)).add(grants::Column::Batch.lte(place.batch)))
}

/// Deletes up to a page of the rows that a snapshot covers, oldest first; returns whether more may be left.
pub(super) async fn delete_covered<C: ConnectionTrait>(db: &C, covers: LogPosition) -> Result<bool, DbErr> {
    let page: Vec<(i64, i64)> = grants::Entity::find()
        .select_only()
        .columns([grants::Column::Term, grants::Column::Batch])
        .filter(up_to(covers))
        .order_by_asc(grants::Column::Term)
        .order_by_asc(grants::Column::Batch)
        .limit(PAGE)
        .into_tuple()
        .all(db)
        .await?;
    let Some(&(term, batch)) = page.last() else { return Ok(false) };
    grants::Entity::delete_many().filter(up_to(LogPosition { term, batch })).exec(db).await?;
    Ok(page.len() as u64 == PAGE)
}

/// The error of a row that cannot be read.
pub(super) fn corrupt(row: &grants::Model, reason: &Odd) -> Error {
    Error::Corrupt {
        what: "grants",
        key: format!("(term {}, batch {}, part {})", row.term.cast_unsigned(), row.batch.cast_unsigned(), row.part),
        reason: reason.0.clone(),
    }
}

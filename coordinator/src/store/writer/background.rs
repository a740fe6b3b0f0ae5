//! Background work of the writer: observations, snapshots of the grants, pruning. Each step is a short transaction, and
//! each may be repeated without harm, since its outcome may stay unknown for a while.

use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::batch::{Batch, Housekeeping};
use super::super::codec::ROW_BYTES;
use super::super::dialect::{self, sqlite};
use super::super::error::Error;
use super::super::ledger::{self, LogPosition, ReplayedLog};
use super::super::load::{Keep, MAX_REQUESTS};
use super::super::readers::Readers;
use super::super::rows;
use super::Writer;

/// Observations in one transaction: a millisecond or two, since a hand-off may have to wait for one while its appliance
/// has no owner.
const OBSERVATIONS: usize = 32;
/// Idle time before background work is done: a hand-off is a sequence of submissions.
const QUIET: Duration = Duration::from_millis(20);
/// Longest wait for such idle time; after that it alternates with groups until it has caught up.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a file's log from which it is emptied when nothing is written: a copy into the main file costs two syncs.
const LARGE_LOG: u64 = 256 * 1024;
/// How long nothing was written by then.
const LOG_QUIET: Duration = Duration::from_secs(1);
/// How often its size is looked at.
const LOG_LOOK: Duration = Duration::from_secs(5);
/// How often old history is looked for though nothing was written: request ids grow old by themselves.
const PRUNE_IDLE: Duration = Duration::from_secs(3_600);
/// Pause of background work after a failure.
const BACKGROUND_PAUSE: Duration = Duration::from_secs(1);

/// Progress of compacting the log.
pub(super) enum Compaction {
    Idle,
    Reading(JoinHandle<Result<SnapshotDraft, Error>>),
    Writing { covers: LogPosition, chunks: std::vec::IntoIter<Vec<u8>>, bytes: u64, log_before: u64 },
    Deleting(LogPosition),
}

/// A snapshot that is to be written.
pub(super) struct SnapshotDraft {
    covers: LogPosition,
    chunks: Vec<Vec<u8>>,
}

/// What background work there is, and when it is due.
pub(super) struct Background {
    /// Bytes of the newest snapshot of grants.
    pub(super) snapshot_bytes: u64,
    /// Bytes of the log of grants after that snapshot.
    pub(super) log_bytes: u64,
    pub(super) compaction: Compaction,
    pub(super) due_at: Instant,
    /// It was postponed for too long and alternates with groups now.
    catching_up: bool,
    /// When a group was written last.
    written_at: Instant,
    /// When the size of the log was looked at last.
    log_looked_at: Instant,
    /// When old history was last deleted, and when a group had been written last by then.
    pruned: Option<(Instant, Instant)>,
    /// Whoever asked for old history to be deleted, until that is done.
    pub(super) pruning: Option<oneshot::Sender<Result<(), Error>>>,
}

impl Background {
    /// Nothing to be done, and nothing known of the log.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            snapshot_bytes: 0,
            log_bytes: 0,
            compaction: Compaction::Idle,
            due_at: now,
            catching_up: false,
            written_at: now,
            log_looked_at: now,
            pruned: None,
            pruning: None,
        }
    }
}

impl Writer {
    /// Cancels a snapshot that is being made.
    pub(super) fn end_compaction(&mut self) {
        if let Compaction::Reading(task) = std::mem::replace(&mut self.background.compaction, Compaction::Idle) {
            task.abort();
        }
    }

    /// When the next step of background work may be done, if nothing is submitted until then.
    pub(super) fn next_background(&self) -> Instant {
        self.background.due_at.max(self.background.written_at + QUIET)
    }

    /// After a group: does a step if it has been postponed for too long.
    pub(super) async fn background_in_turn(&mut self) {
        self.background.written_at = Instant::now();
        self.background.catching_up |= self.background.due_at + PATIENCE < self.background.written_at;
        if self.background.catching_up && self.chain.is_some() && self.outage.is_none() {
            self.background().await;
        }
    }

    /// One step of each kind of background work that is due.
    pub(super) async fn background(&mut self) {
        let started = Instant::now();
        let result = async {
            self.check_file()?;
            let more = self.write_observations().await?;
            let more = self.compact().await? | more;
            let more = self.prune().await? | more;
            if !more {
                self.empty_log().await?;
            }
            Ok::<_, Error>(more)
        };
        let result = result.await;
        self.background.catching_up &= matches!(result, Ok(true));
        let pause = match result {
            Ok(true) => Duration::ZERO,
            Ok(false) => self.config.observation_interval,
            Err(error) => {
                if !matches!(error, Error::Unavailable(_) | Error::Deposed { .. }) {
                    tracing::error!(%error, "background work of the store failed");
                }
                BACKGROUND_PAUSE
            }
        };
        self.background.due_at = started + pause;
    }

    /// Writes some of the waiting observations; returns whether there are more.
    pub(super) async fn write_observations(&mut self) -> Result<bool, Error> {
        let (statuses, seen) = self.shared.observations().take(OBSERVATIONS);
        if statuses.is_empty() && seen.is_empty() {
            return Ok(false);
        }
        let batch = Batch::of_observations(
            statuses.iter().map(|(id, (status, time))| rows::from_status(*id, status, *time)),
            seen.iter().map(|(worker, time)| rows::from_seen(worker, *time)),
        );
        let result = self.commit(&batch).await;
        if matches!(result, Err(Error::Unavailable(_))) {
            self.shared.observations().put_back(statuses, seen);
        }
        result?;
        Ok(self.shared.observations().has_any_of(OBSERVATIONS))
    }

    /// Keeps the log of a file small while nothing else is to be done: then the main file alone is nearly as new.
    async fn empty_log(&mut self) -> Result<(), Error> {
        let Some(path) = self.target.path() else { return Ok(()) };
        let now = Instant::now();
        if now.duration_since(self.background.written_at) < LOG_QUIET || now < self.background.log_looked_at + LOG_LOOK
        {
            return Ok(());
        }
        self.background.log_looked_at = now;
        if sqlite::log_bytes(path) < LARGE_LOG {
            return Ok(());
        }
        let db = self.connection().await?;
        sqlite::empty_log(&db).await.map_err(|e| dialect::failure("empty the log of the store", &e))
    }

    /// One step of compacting the log; returns whether the next one can follow at once.
    async fn compact(&mut self) -> Result<bool, Error> {
        match std::mem::replace(&mut self.background.compaction, Compaction::Idle) {
            Compaction::Idle => {
                if self.background.log_bytes > self.config.snapshot_after.max(2 * self.background.snapshot_bytes) {
                    let readers = self.readers.clone();
                    self.background.compaction =
                        Compaction::Reading(tokio::spawn(async move { draft(&readers).await }));
                }
                Ok(false)
            }
            Compaction::Reading(task) if !task.is_finished() => {
                self.background.compaction = Compaction::Reading(task);
                Ok(false)
            }
            Compaction::Reading(task) => {
                let draft = task.await.unwrap_or_else(|e| {
                    Err(Error::Database { doing: "make a snapshot of the grants", reason: e.to_string() })
                });
                // Data that cannot be read now will hardly be readable in a second: the next attempt waits for as much
                // log again.
                let draft = draft.inspect_err(|_| self.background.log_bytes = 0)?;
                let bytes = draft.chunks.iter().map(|c| c.len() as u64).sum();
                let (covers, chunks) = (draft.covers, draft.chunks.into_iter());
                self.background.compaction =
                    Compaction::Writing { covers, chunks, bytes, log_before: self.background.log_bytes };
                Ok(true)
            }
            Compaction::Writing { covers, mut chunks, bytes, log_before } => {
                // An error ends this attempt: its chunks remain without a last one, and the next snapshot covers them.
                if let Some(chunk) = chunks.next() {
                    let format = chunk.first().copied().unwrap_or(ledger::CHUNK);
                    self.commit(&Batch::of_chunk(format, chunk)).await?;
                }
                self.background.compaction = if chunks.len() > 0 {
                    Compaction::Writing { covers, chunks, bytes, log_before }
                } else {
                    self.background.snapshot_bytes = bytes;
                    self.background.log_bytes = self.background.log_bytes.saturating_sub(log_before);
                    Compaction::Deleting(covers)
                };
                Ok(true)
            }
            Compaction::Deleting(covers) => {
                let more = self.commit(&Batch::of_housekeeping(Housekeeping::DeleteCovered(covers))).await?;
                if more {
                    self.background.compaction = Compaction::Deleting(covers);
                }
                Ok(more)
            }
        }
    }

    /// Deletes a part of the old history, if somebody asked for that; returns whether there is more.
    async fn prune(&mut self) -> Result<bool, Error> {
        let Some(asked) = self.background.pruning.take().filter(|asked| !asked.is_closed()) else { return Ok(false) };
        let written_at = self.background.written_at;
        if self.background.pruned.is_some_and(|(at, seen)| seen == written_at && at.elapsed() < PRUNE_IDLE) {
            // Even finding nothing takes a place in the chain, which is a write.
            let _ = asked.send(Ok(()));
            return Ok(false);
        }
        let since = SystemTime::now().checked_sub(self.config.keep_requests).unwrap_or(SystemTime::UNIX_EPOCH);
        let oldest = SystemTime::now().checked_sub(self.config.retention).unwrap_or(SystemTime::UNIX_EPOCH);
        let keep = Keep {
            since_ns: rows::nanos(oldest),
            events: self.config.keep_events,
            rebalances: self.config.keep_rebalances,
            runs: self.config.keep_runs,
            requests_since_ns: rows::nanos(since),
            requests: MAX_REQUESTS,
        };
        let pruned = self.commit(&Batch::of_housekeeping(Housekeeping::Prune(keep))).await;
        match &pruned {
            Ok(true) => self.background.pruning = Some(asked),
            Ok(false) => {
                self.background.pruned = Some((Instant::now(), written_at));
                drop(asked.send(Ok(())));
            }
            Err(error) => drop(asked.send(Err(error.clone()))),
        }
        pruned
    }
}

async fn draft(readers: &Readers) -> Result<SnapshotDraft, Error> {
    let ledger = readers.read(|db| async move { ReplayedLog::read(&db).await }).await?;
    let covers = ledger.last;
    // A million grants take a good part of a second to sort and pack.
    let chunks = tokio::task::spawn_blocking(move || ledger.snapshot(ROW_BYTES)).await;
    let chunks =
        chunks.map_err(|e| Error::Database { doing: "pack a snapshot of the grants", reason: e.to_string() })?;
    Ok(SnapshotDraft { covers, chunks })
}

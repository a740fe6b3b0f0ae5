//! The task that owns the writing connection and the chain of batches.
//!
//! It takes what has been submitted by now as one group, writes it in one transaction, and acknowledges it; meanwhile the
//! next group gathers. So one submission alone waits for one sync of the disk, and a thousand at once share one.
//!
//! | transaction ends with | then |
//! |---|---|
//! | commit | every change of the group is acknowledged |
//! | a unique rule broken | the group is halved and each half tried, until the change that breaks it is alone and refused |
//! | no place in the chain | `Deposed`: nothing is written until the next term |
//! | the database refuses | the group, and what waited behind it, is `Unavailable`; the connection is made anew |
//! | commit not answered | the chain is read back: it was stored or it was not. If that cannot be found out in bounded time, `Unresolved`, for good |
//!
//! Background work (observations, snapshots, pruning) is done when nothing is submitted, in short transactions of its
//! own, and once per interval when something always is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use common::{CoordinatorId, Term};
use sea_orm::{DatabaseConnection, DbErr, EntityTrait, Set, SqlErr, Unchanged};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::batch::{Batch, Housekeeping, Prepared, take_place};
use super::codec::ROW_BYTES;
use super::dialect::{self, Target};
use super::entities::leadership;
use super::error::{Cause, Error};
use super::ledger::{self, Ledger, Place};
use super::load::{self, Keep, Loaded};
use super::{Config, Shared, rows};

/// Rows in one group: bounds how long the newest submission waits behind others.
const GROUP_WEIGHT: usize = 20_000;
/// Changes in one group.
const GROUP_CHANGES: usize = 2_048;
/// Observations in one transaction: some ten milliseconds, which is what a grant may have to wait for one.
const OBSERVATIONS: usize = 1_000;
/// Longest a write transaction may take before its outcome counts as unknown.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest the begin of a term may take; it reads the whole store.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest a connection may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Tries to find out what became of a commit, with growing pauses: some ten seconds in all, on top of the database's own.
const RESOLVE_TRIES: u32 = 7;
/// Time between two rounds of pruning.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
/// Pause of background work after a failure.
const BACKGROUND_PAUSE: Duration = Duration::from_secs(1);

/// A change and who waits for it.
pub(super) struct Submission {
    pub(super) term: Term,
    pub(super) change: Vec<Prepared>,
    pub(super) done: oneshot::Sender<Result<(), Error>>,
}

/// What the task is asked to do.
pub(super) enum Command {
    Change(Submission),
    Begin { coordinator: CoordinatorId, term: Term, reply: oneshot::Sender<Result<Loaded, Error>> },
    Close(oneshot::Sender<()>),
}

/// How far the cutting down of the log has come.
enum Compaction {
    Idle,
    Reading(JoinHandle<Result<Draft, Error>>),
    Writing { covers: Place, chunks: std::vec::IntoIter<Vec<u8>>, bytes: u64, log_before: u64 },
    Deleting(Place),
}

/// A snapshot that is to be written.
struct Draft {
    covers: Place,
    chunks: Vec<Vec<u8>>,
}

/// How a transaction ended.
enum Outcome {
    /// `true`: its housekeeping has more to do.
    Committed(bool),
    /// Rolled back; the connection is sound.
    Refused(Error),
    /// Not committed; the connection may be broken.
    Failed(Error),
    /// Nobody knows.
    Unknown(Cause),
}

/// The task's state. Only it writes to the database.
pub(super) struct Writer {
    target: Target,
    config: Config,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    readers: DatabaseConnection,
    db: Option<DatabaseConnection>,
    /// Term and number of the last batch, while this store leads.
    chain: Option<(Term, u64)>,
    /// The outcome of a batch is not known; nothing is done any more.
    unresolved: bool,
    failing: bool,
    snapshot_bytes: u64,
    log_bytes: u64,
    compaction: Compaction,
    background_at: Instant,
    prune_at: Instant,
}

impl Writer {
    pub(super) fn new(
        target: Target,
        config: Config,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        readers: DatabaseConnection,
        db: DatabaseConnection,
    ) -> Self {
        let now = Instant::now();
        Self {
            target,
            config,
            shared,
            commands,
            readers,
            db: Some(db),
            chain: None,
            unresolved: false,
            failing: false,
            snapshot_bytes: 0,
            log_bytes: 0,
            compaction: Compaction::Idle,
            background_at: now,
            prune_at: now + PRUNE_INTERVAL,
        }
    }

    /// Runs until the store is closed or nobody can submit any more; what was submitted before is written.
    pub(super) async fn run(mut self) {
        let mut next = None;
        let closed = loop {
            let command = match next.take() {
                Some(command) => Some(command),
                None => {
                    let has_work = self.chain.is_some();
                    tokio::select! {
                        biased;
                        command = self.commands.recv() => command,
                        () = sleep_until(self.background_at), if has_work => {
                            self.background().await;
                            continue;
                        }
                    }
                }
            };
            match command {
                None => break None,
                Some(Command::Close(reply)) => break Some(reply),
                Some(Command::Begin { coordinator, term, reply }) => {
                    let _ = reply.send(self.begin(&coordinator, term).await);
                }
                Some(Command::Change(first)) => {
                    // Those who were woken by the last commit get to submit before the next one begins.
                    tokio::task::yield_now().await;
                    let (group, other) = self.gather(first);
                    next = other;
                    next = self.write_group(group).await.or(next);
                }
            }
            if self.chain.is_some() && self.background_at + 2 * self.config.observation_interval < Instant::now() {
                self.background().await;
            }
        };
        self.stop(closed).await;
    }

    async fn stop(&mut self, reply: Option<oneshot::Sender<()>>) {
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Change(submission) => drop(submission.done.send(Err(Error::Closed))),
                Command::Begin { reply, .. } => drop(reply.send(Err(Error::Closed))),
                Command::Close(reply) => drop(reply.send(())),
            }
        }
        if self.chain.is_some() {
            while self.shared.observations().has_any() && self.write_observations().await.is_ok() {}
        }
        if let Compaction::Reading(task) = &self.compaction {
            task.abort();
        }
        self.disconnect().await;
        let _ = timeout(CLOSE_TIMEOUT, self.readers.clone().close()).await;
        if let Some(reply) = reply {
            let _ = reply.send(());
        }
    }

    /// Everything that is submitted by now, up to a bound and to the next command of another kind.
    fn gather(&mut self, first: Submission) -> (Vec<Submission>, Option<Command>) {
        let mut weight: usize = first.change.iter().map(Prepared::weight).sum();
        let mut group = vec![first];
        while weight < GROUP_WEIGHT && group.len() < GROUP_CHANGES {
            match self.commands.try_recv() {
                Ok(Command::Change(next)) => {
                    weight += next.change.iter().map(Prepared::weight).sum::<usize>();
                    group.push(next);
                }
                Ok(other) => return (group, Some(other)),
                Err(_) => break,
            }
        }
        (group, None)
    }

    /// Writes a group and tells everybody. A command of another kind that was met while turning away those behind a
    /// failure is handed back.
    async fn write_group(&mut self, group: Vec<Submission>) -> Option<Command> {
        let (group, refused): (Vec<_>, Vec<_>) = group.into_iter().partition(|s| self.refusal(s.term).is_none());
        for submission in refused {
            let error = self.refusal(submission.term).unwrap_or(Error::NotLeading);
            let _ = submission.done.send(Err(error));
        }
        // The last part of this stack is the next to be tried: halves are tried in the order of submission.
        let mut parts = if group.is_empty() { vec![] } else { vec![group] };
        while let Some(mut part) = parts.pop() {
            let batch = Batch::of(part.iter().flat_map(|submission| &submission.change));
            match self.commit(&batch).await {
                Ok(_) => {
                    self.log_bytes += batch.log_bytes();
                    part.into_iter().for_each(|s| drop(s.done.send(Ok(()))));
                }
                Err(Error::Conflict(_)) if part.len() > 1 => {
                    let later = part.split_off(part.len() / 2);
                    parts.push(later);
                    parts.push(part);
                }
                Err(error @ Error::Conflict(_)) => part.into_iter().for_each(|s| drop(s.done.send(Err(error.clone())))),
                Err(error) => {
                    let rest = parts.into_iter().rev().flatten();
                    part.into_iter().chain(rest).for_each(|s| drop(s.done.send(Err(error.clone()))));
                    return self.turn_away(&error);
                }
            }
        }
        None
    }

    /// Why a change of this term cannot be written, if it cannot.
    fn refusal(&self, term: Term) -> Option<Error> {
        match self.chain {
            _ if self.unresolved => Some(Error::Unresolved),
            _ if term == Term::default() => Some(Error::NotLeading),
            Some((current, _)) if current == term => None,
            _ => Some(Error::Deposed { term }),
        }
    }

    /// After a failure: what was submitted behind it may build on it, and is turned away with it.
    fn turn_away(&mut self, error: &Error) -> Option<Command> {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Change(submission) => drop(submission.done.send(Err(error.clone()))),
                other => return Some(other),
            }
        }
        None
    }

    /// Writes one batch at the next place of the chain; says whether its housekeeping, if it has any, has more to do.
    async fn commit(&mut self, batch: &Batch) -> Result<bool, Error> {
        let Some((term, last)) = self.chain else { return Err(Error::NotLeading) };
        let result = match self.connection().await {
            Ok(db) => {
                let outcome = timeout(WRITE_TIMEOUT, write(&db, term, last + 1, batch)).await;
                let outcome = outcome.unwrap_or(Outcome::Unknown(Cause::TimedOut));
                #[cfg(test)]
                let outcome = self.target.faults.distort(outcome);
                self.settle(term, last + 1, outcome).await
            }
            Err(error) => Err(error),
        };
        match &result {
            Ok(_) => self.chain = Some((term, last + 1)),
            Err(Error::Deposed { .. } | Error::Unresolved) => self.step_down(),
            Err(_) => {}
        }
        self.note(&result);
        result
    }

    async fn settle(&mut self, term: Term, batch: u64, outcome: Outcome) -> Result<bool, Error> {
        match outcome {
            Outcome::Committed(more) => Ok(more),
            Outcome::Refused(error) => Err(error),
            Outcome::Failed(error) => {
                self.disconnect().await;
                Err(error)
            }
            Outcome::Unknown(cause) => self.resolve(term, batch, cause).await.map(|()| true),
        }
    }

    /// Logs the begin and the end of an outage, once each.
    fn note(&mut self, result: &Result<bool, Error>) {
        match result {
            Err(error @ Error::Unavailable(_)) if !self.failing => {
                self.failing = true;
                tracing::warn!(store = %self.target.name(), %error, "the store takes no changes; each one tries it anew");
            }
            Ok(_) if self.failing => {
                self.failing = false;
                tracing::info!(store = %self.target.name(), "the store takes changes again");
            }
            _ => {}
        }
    }

    fn step_down(&mut self) {
        self.chain = None;
        self.shared.deposed.store(true, Ordering::Release);
        self.shared.observations().clear();
        if let Compaction::Reading(task) = std::mem::replace(&mut self.compaction, Compaction::Idle) {
            task.abort();
        }
    }

    /// Finds out whether `batch` was stored, once the connection that wrote it is gone.
    async fn resolve(&mut self, term: Term, batch: u64, cause: Cause) -> Result<(), Error> {
        let mut pause = Duration::from_millis(50);
        for attempt in 0..RESOLVE_TRIES {
            if attempt > 0 {
                sleep(pause).await;
                pause *= 2;
            }
            self.disconnect().await;
            let Ok(db) = self.connection().await else { continue };
            let Ok(Ok(found)) = timeout(WRITE_TIMEOUT, settled_place(&db)).await else { continue };
            return match found {
                (t, b) if t == term && b == batch => Ok(()),
                (t, b) if t == term && b + 1 == batch => Err(Error::Unavailable(cause)),
                _ => Err(Error::Deposed { term }),
            };
        }
        self.unresolved = true;
        tracing::error!(store = %self.target.name(), %term, batch, "cannot find out whether a batch was stored");
        Err(Error::Unresolved)
    }

    async fn begin(&mut self, coordinator: &CoordinatorId, term: Term) -> Result<Loaded, Error> {
        if self.unresolved {
            return Err(Error::Unresolved);
        }
        self.step_down();
        let db = self.connection().await?;
        let began = timeout(BEGIN_TIMEOUT, begin(&db, coordinator, term)).await;
        match began.unwrap_or(Err(Error::Unavailable(Cause::TimedOut))) {
            Ok((loaded, ledger)) => {
                self.chain = Some((term, 0));
                self.snapshot_bytes = ledger.snapshot_bytes;
                self.log_bytes = ledger.log_bytes;
                self.background_at = Instant::now() + self.config.observation_interval;
                self.shared.term.store(term.get(), Ordering::Release);
                self.shared.deposed.store(false, Ordering::Release);
                Ok(loaded)
            }
            Err(error) => {
                // Should the commit have gone through after all, a term was skipped; nothing was written in it.
                self.disconnect().await;
                Err(error)
            }
        }
    }

    async fn connection(&mut self) -> Result<DatabaseConnection, Error> {
        if let Some(db) = &self.db {
            return Ok(db.clone());
        }
        let db = self.target.connect_writer().await.map_err(|e| dialect::failure("connect to the store", &e))?;
        self.db = Some(db.clone());
        Ok(db)
    }

    async fn disconnect(&mut self) {
        if let Some(db) = self.db.take()
            && timeout(CLOSE_TIMEOUT, db.close()).await.is_err()
        {
            tracing::warn!(store = %self.target.name(), "a connection of the store did not close in time");
        }
    }

    // --------------------------------------------------------------------------------------------- background work

    /// One step of each kind of background work that is due.
    async fn background(&mut self) {
        let started = Instant::now();
        let result = async {
            let more = self.write_observations().await?;
            let more = self.compact().await? | more;
            Ok::<_, Error>(self.prune().await? | more)
        };
        let pause = match result.await {
            Ok(true) => Duration::ZERO,
            Ok(false) => self.config.observation_interval,
            Err(error) => {
                if !matches!(error, Error::Unavailable(_) | Error::Deposed { .. }) {
                    tracing::error!(%error, "background work of the store failed");
                }
                BACKGROUND_PAUSE
            }
        };
        self.background_at = started + pause;
    }

    /// Writes some of the observations that wait; says whether there are more.
    async fn write_observations(&mut self) -> Result<bool, Error> {
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

    /// One step of cutting down the log; says whether the next one can follow at once.
    async fn compact(&mut self) -> Result<bool, Error> {
        match std::mem::replace(&mut self.compaction, Compaction::Idle) {
            Compaction::Idle => {
                if self.log_bytes > self.config.snapshot_after.max(2 * self.snapshot_bytes) {
                    let readers = self.readers.clone();
                    self.compaction = Compaction::Reading(tokio::spawn(async move { draft(&readers).await }));
                }
                Ok(false)
            }
            Compaction::Reading(task) if !task.is_finished() => {
                self.compaction = Compaction::Reading(task);
                Ok(false)
            }
            Compaction::Reading(task) => {
                let draft = task.await.unwrap_or_else(|e| {
                    Err(Error::Database { doing: "make a snapshot of the grants", reason: e.to_string() })
                });
                // What cannot be read now will hardly be in a second: the next try waits for as much log again.
                let draft = draft.inspect_err(|_| self.log_bytes = 0)?;
                let bytes = draft.chunks.iter().map(|c| c.len() as u64).sum();
                let (covers, chunks) = (draft.covers, draft.chunks.into_iter());
                self.compaction = Compaction::Writing { covers, chunks, bytes, log_before: self.log_bytes };
                Ok(true)
            }
            Compaction::Writing { covers, mut chunks, bytes, log_before } => {
                // An error ends this attempt: its chunks stay without a last one, and the next snapshot covers them.
                if let Some(chunk) = chunks.next() {
                    let format = chunk.first().copied().unwrap_or(ledger::CHUNK);
                    self.commit(&Batch::of_chunk(format, chunk)).await?;
                }
                self.compaction = if chunks.len() > 0 {
                    Compaction::Writing { covers, chunks, bytes, log_before }
                } else {
                    self.snapshot_bytes = bytes;
                    self.log_bytes = self.log_bytes.saturating_sub(log_before);
                    Compaction::Deleting(covers)
                };
                Ok(true)
            }
            Compaction::Deleting(covers) => {
                let more = self.commit(&Batch::of_housekeeping(Housekeeping::DeleteCovered(covers))).await?;
                if more {
                    self.compaction = Compaction::Deleting(covers);
                }
                Ok(more)
            }
        }
    }

    async fn prune(&mut self) -> Result<bool, Error> {
        if Instant::now() < self.prune_at {
            return Ok(false);
        }
        let since = SystemTime::now().checked_sub(self.config.keep_requests).unwrap_or(SystemTime::UNIX_EPOCH);
        let keep = Keep {
            events: self.config.keep_events,
            rebalances: self.config.keep_rebalances,
            requests_since_ns: rows::nanos(since),
        };
        let more = self.commit(&Batch::of_housekeeping(Housekeeping::Prune(keep))).await?;
        if !more {
            self.prune_at = Instant::now() + PRUNE_INTERVAL;
        }
        Ok(more)
    }
}

/// One write transaction.
async fn write(db: &DatabaseConnection, term: Term, number: u64, batch: &Batch) -> Outcome {
    let failed = |e: &DbErr| Outcome::Failed(dialect::failure("write a batch", e));
    let tx = match dialect::begin_write(db).await {
        Ok(tx) => tx,
        Err(e) => return failed(&e),
    };
    let (t, n) = (term.get().cast_signed(), number.cast_signed());
    let written = match take_place(&tx, t, n).await {
        Ok(true) => batch.write(&tx, t, n).await,
        Ok(false) => {
            return match tx.rollback().await {
                Ok(()) => Outcome::Refused(Error::Deposed { term }),
                Err(_) => Outcome::Failed(Error::Deposed { term }),
            };
        }
        Err(e) => Err(e),
    };
    match written {
        Ok(more) => match tx.commit().await {
            Ok(()) => Outcome::Committed(more),
            Err(e) => Outcome::Unknown(dialect::cause(&e).unwrap_or_else(|| Cause::Lost(e.to_string()))),
        },
        // SQLite rolls back by itself on some failures, and the connection then counts its transactions wrong; so
        // whatever is not an ordinary refusal costs the connection.
        Err(e) => match (e.sql_err(), tx.rollback().await) {
            (Some(SqlErr::UniqueConstraintViolation(rule)), Ok(())) => Outcome::Refused(Error::Conflict(rule)),
            _ => failed(&e),
        },
    }
}

/// Where the chain stands, once no transaction of a connection that was given up can change it any more: whoever holds
/// the write lock has ended by the time this one has it.
async fn settled_place(db: &DatabaseConnection) -> Result<(Term, u64), Error> {
    let failed = |e: &DbErr| dialect::failure("lock the chain", e);
    let tx = dialect::begin_write(db).await.map_err(|e| failed(&e))?;
    match dialect::lock_chain(&tx).await {
        Ok(()) => {}
        // Nobody at all can write, so nothing can change.
        Err(e) if dialect::cause(&e) == Some(Cause::ReadOnly) => {}
        Err(e) => return Err(failed(&e)),
    }
    let found = load::place(&tx).await?;
    let _ = tx.rollback().await;
    Ok(found)
}

/// Raises the term and reads everything, in one transaction.
async fn begin(
    db: &DatabaseConnection,
    coordinator: &CoordinatorId,
    term: Term,
) -> Result<(Loaded, Ledger), Error> {
    // The signed range is as far as the store can order terms.
    let signed = i64::try_from(term.get()).map_err(|_| Error::TermsExhausted(term))?;
    let failed = |e: &DbErr| dialect::failure("begin a term", e);
    let tx = dialect::begin_write(db).await.map_err(|e| failed(&e))?;
    dialect::lock_chain(&tx).await.map_err(|e| failed(&e))?;
    let stored = load::place(&tx).await?.0;
    if stored >= term {
        return Err(Error::Deposed { term: stored });
    }
    let row = leadership::ActiveModel {
        id: Unchanged(leadership::ROW),
        term: Set(signed),
        batch: Set(0),
        coordinator: Set(coordinator.as_str().to_owned()),
        since_ns: Set(rows::nanos(SystemTime::now())),
    };
    leadership::Entity::update(row).exec(&tx).await.map_err(|e| failed(&e))?;
    load::sweep(&tx).await.map_err(|e| failed(&e))?;
    let (loaded, ledger) = load::everything(&tx).await?;
    tx.commit().await.map_err(|e| failed(&e))?;
    Ok((loaded, ledger))
}

#[cfg(test)]
impl dialect::Faults {
    fn distort(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Committed(_) if self.lose_answers.load(Ordering::SeqCst) => {
                Outcome::Unknown(Cause::Lost("a test took the answer".to_owned()))
            }
            other => other,
        }
    }
}

async fn draft(readers: &DatabaseConnection) -> Result<Draft, Error> {
    let ledger = Ledger::read(readers).await?;
    let covers = ledger.last;
    // A million grants take a good part of a second to sort and pack.
    let chunks = tokio::task::spawn_blocking(move || ledger.snapshot(ROW_BYTES)).await;
    let chunks =
        chunks.map_err(|e| Error::Database { doing: "pack a snapshot of the grants", reason: e.to_string() })?;
    Ok(Draft { covers, chunks })
}

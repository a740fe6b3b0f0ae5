//! The task that owns the writing connection and the chain of batches.
//!
//! It takes all changes submitted so far as one group, writes it in one transaction, and acknowledges it; meanwhile the
//! next group gathers. So a single submission waits for one sync of the disk, and a thousand concurrent ones share one.
//!
//! | transaction ends with | then |
//! |---|---|
//! | commit | every change of the group is acknowledged |
//! | a unique key violated | the group is halved and each half tried, until the offending change is alone and refused |
//! | no position in the chain | `Deposed`: nothing is written until the next term |
//! | the database refuses | the group, and the changes queued behind it, are `Unavailable`; the writer reconnects |
//! | the database is unavailable | the same, and until it is back every change is refused at once ([`outage`]) |
//! | commit not answered | the group waits until the chain, read back, shows whether it was stored; everything behind
//! it is `Unavailable` |
//!
//! Background work ([`background`]) is done when nothing is submitted, and alternates with groups under constant load.

mod background;
mod outage;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::backoff::Backoff;
use common::{CoordinatorId, Term};
use runtime::folder::FileLock;
use runtime::retry::Retries;
use sea_orm::DatabaseConnection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::background::{Background, Compaction};
use self::outage::StoreOutage;
use super::batch::{Batch, PreparedWrite};
use super::dialect::sqlite::FileIdentity;
use super::dialect::{self, DatabaseTarget};
use super::error::{Error, OutageCause};
use super::load::StoredState;
use super::readers::Readers;
use super::transaction::{self, Begun, ChainPosition, TransactionOutcome};
use super::{Config, StoreShared, error, schema};
use crate::metrics;

/// Rows in one group: bounds how long the newest submission waits behind others.
const GROUP_WEIGHT: usize = 20_000;
/// Changes in one group.
const GROUP_CHANGES: usize = 2_048;
/// How long the writer waits in place for a database that failed: most failures are over by then, and submitters notice
/// nothing but a pause.
const ON_THE_SPOT: Duration = Duration::from_millis(500);
/// First pause before a lock that timed out is tried again.
const LOCK_PAUSE: Backoff = Backoff { base: Duration::from_millis(50), cap: Duration::from_millis(500) };
/// How long after a change failed the success of a write of the background does not mean that changes succeed again.
const CHANGES_FAIL: Duration = Duration::from_secs(10);
/// How long a closing store waits for the database, if the outcome of a commit is unknown.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// A change and its acknowledgement.
pub(super) struct Submission {
    pub(super) term: Term,
    pub(super) change: Vec<PreparedWrite>,
    pub(super) done: oneshot::Sender<Result<(), Error>>,
}

/// Requests to the task.
pub(super) enum WriterCommand {
    Change(Submission),
    /// Old history is to be deleted, in steps of the background work.
    Prune(oneshot::Sender<Result<(), Error>>),
    Begin {
        coordinator: CoordinatorId,
        term: Term,
        reply: oneshot::Sender<Result<StoredState, Error>>,
    },
    Close(oneshot::Sender<()>),
}

/// The task's state. Only it writes to the database.
pub(super) struct Writer {
    target: DatabaseTarget,
    config: Config,
    shared: Arc<StoreShared>,
    commands: mpsc::Receiver<WriterCommand>,
    readers: Readers,
    db: Option<DatabaseConnection>,
    /// Term and number of the last batch, while this store leads.
    chain: Option<ChainPosition>,
    /// The outage, while the database is unavailable.
    outage: Option<StoreOutage>,
    /// The end of the last outage has been logged, or there was none.
    failing: bool,
    /// When a change failed last, since the store accepted one.
    change_failed_at: Option<Instant>,
    background: Background,
    /// The file that is open; `None` of a server.
    file: Option<FileIdentity>,
    _lock: Option<FileLock>,
}

impl Writer {
    pub(super) fn new(
        target: DatabaseTarget,
        config: Config,
        shared: Arc<StoreShared>,
        commands: mpsc::Receiver<WriterCommand>,
        readers: Readers,
        (db, lock): (DatabaseConnection, Option<FileLock>),
    ) -> Self {
        Self {
            file: target.path().and_then(FileIdentity::of),
            target,
            config,
            shared,
            commands,
            readers,
            db: Some(db),
            chain: None,
            outage: None,
            failing: false,
            change_failed_at: None,
            background: Background::new(),
            _lock: lock,
        }
    }

    /// Runs until the store is closed or all handles are dropped; changes submitted before are written.
    pub(super) async fn run(mut self) {
        let mut next = None;
        let closed = loop {
            let command = match next.take() {
                Some(command) => Some(command),
                None => {
                    let background_at = self.next_background();
                    let has_work = self.chain.is_some() && self.outage.is_none();
                    tokio::select! {
                        biased;
                        (db, found) = outage::back(&mut self.outage) => {
                            self.end_outage(db, found);
                            continue;
                        }
                        command = self.commands.recv() => command,
                        () = sleep_until(background_at), if has_work => {
                            self.background().await;
                            continue;
                        }
                    }
                }
            };
            match command {
                None => break None,
                Some(WriterCommand::Close(reply)) => break Some(reply),
                Some(WriterCommand::Begin { coordinator, term, reply }) => {
                    let _ = reply.send(self.begin(&coordinator, term).await);
                }
                Some(WriterCommand::Prune(reply)) => self.background.pruning = Some(reply),
                Some(WriterCommand::Change(first)) => {
                    // Submitters that were woken by the last commit get to submit before the next one begins.
                    tokio::task::yield_now().await;
                    let (group, other) = self.gather(first);
                    next = other;
                    next = self.write_group(group).await.or(next);
                    self.background_in_turn().await;
                }
            }
        };
        self.stop(closed).await;
    }

    async fn stop(&mut self, reply: Option<oneshot::Sender<()>>) {
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                WriterCommand::Change(submission) => drop(submission.done.send(Err(Error::Closed))),
                WriterCommand::Begin { reply, .. } => drop(reply.send(Err(Error::Closed))),
                WriterCommand::Prune(reply) => drop(reply.send(Err(Error::Closed))),
                WriterCommand::Close(reply) => drop(reply.send(())),
            }
        }
        if let Some(outage) = &self.outage
            && outage.is_awaited()
            && let Ok((db, found)) = timeout(CLOSE_WAIT, outage::back(&mut self.outage)).await
        {
            self.end_outage(db, found);
        }
        if let Some(outage) = self.outage.take() {
            outage.give_up(&Error::Unresolved);
        } else if self.chain.is_some() {
            while self.shared.observations().has_any() && self.write_observations().await.is_ok() {}
        }
        if let Compaction::Reading(task) = &self.background.compaction {
            task.abort();
        }
        self.disconnect().await;
        self.readers.close().await;
        if let Some(reply) = reply {
            let _ = reply.send(());
        }
    }

    /// Everything submitted by now, up to a bound and to the next command of another kind.
    fn gather(&mut self, first: Submission) -> (Vec<Submission>, Option<WriterCommand>) {
        let mut weight: usize = first.change.iter().map(PreparedWrite::weight).sum();
        let mut group = vec![first];
        while weight < GROUP_WEIGHT && group.len() < GROUP_CHANGES {
            match self.commands.try_recv() {
                Ok(WriterCommand::Change(next)) => {
                    weight += next.change.iter().map(PreparedWrite::weight).sum::<usize>();
                    group.push(next);
                }
                Ok(other) => return (group, Some(other)),
                Err(_) => break,
            }
        }
        (group, None)
    }

    /// Writes a group and acknowledges it. Returns a command of another kind that was received while refusing the
    /// changes behind a failure.
    async fn write_group(&mut self, group: Vec<Submission>) -> Option<WriterCommand> {
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
                    self.background.log_bytes += batch.log_bytes();
                    metrics::batch_committed(part.len());
                    part.into_iter().for_each(|s| drop(s.done.send(Ok(()))));
                }
                Err(Error::Conflict(_)) if part.len() > 1 => {
                    let later = part.split_off(part.len() / 2);
                    parts.push(later);
                    parts.push(part);
                }
                Err(error @ Error::Conflict(_)) => part.into_iter().for_each(|s| drop(s.done.send(Err(error.clone())))),
                Err(error) => {
                    // Only the first part was sent to the database; its outcome may not be known yet.
                    match self.outage.as_mut().filter(|outage| outage.is_unknown()) {
                        Some(outage) => outage.wait(part, batch.log_bytes()),
                        None => part.into_iter().for_each(|s| drop(s.done.send(Err(error.clone())))),
                    }
                    parts.into_iter().rev().flatten().for_each(|s| drop(s.done.send(Err(error.clone()))));
                    return self.turn_away(&error);
                }
            }
        }
        None
    }

    /// Why a change of this term cannot be written, if it cannot.
    fn refusal(&self, term: Term) -> Option<Error> {
        match (self.chain, &self.outage) {
            _ if term == Term::default() => Some(Error::NotLeading),
            (Some((current, _)), Some(outage)) if current == term => Some(Error::Unavailable(outage.cause().clone())),
            (Some((current, _)), None) if current == term => None,
            _ => Some(Error::Deposed { term }),
        }
    }

    /// After a failure: changes queued behind it may build on it, and are refused with it.
    fn turn_away(&mut self, error: &Error) -> Option<WriterCommand> {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                WriterCommand::Change(submission) => drop(submission.done.send(Err(error.clone()))),
                other => return Some(other),
            }
        }
        None
    }

    /// Writes one batch at the next position of the chain; returns whether its housekeeping, if any, has more to do.
    ///
    /// # Errors [`Error::Unavailable`] also when the outcome is not known yet; the outage records that then.
    async fn commit(&mut self, batch: &Batch) -> Result<bool, Error> {
        let Some((term, last)) = self.chain else { return Err(Error::NotLeading) };
        self.check_file()?;
        let began = Instant::now();
        let result = match self.connection().await {
            Ok(db) => {
                let outcome = transaction::write(&self.target, &db, (term, last + 1), batch).await;
                #[cfg(test)]
                let outcome = self.target.faults.distort(outcome);
                self.settle((term, last + 1), outcome).await
            }
            Err(error) => self.fail(error, None).await,
        };
        match &result {
            // Already recorded when it was read back from the chain.
            Ok(_) => self.chain = Some((term, last + 1)),
            Err(Error::Deposed { .. }) => self.step_down(),
            Err(_) => {}
        }
        self.note(result.as_ref().err(), batch.is_background());
        metrics::committed(batch.is_background(), error::outcome_name(&result), began.elapsed());
        result
    }

    async fn settle(&mut self, position: ChainPosition, outcome: TransactionOutcome) -> Result<bool, Error> {
        match outcome {
            TransactionOutcome::Committed(more) => Ok(more),
            TransactionOutcome::Refused(error) => Err(error),
            TransactionOutcome::Failed(error) => {
                self.disconnect().await;
                self.fail(error, None).await
            }
            TransactionOutcome::Unknown(cause) => {
                self.disconnect().await;
                self.fail(Error::Unavailable(cause), Some(position.1)).await
            }
        }
    }

    /// After a failure: if the database may be unavailable, or the outcome of batch `unknown` is open, waits a moment
    /// for it and otherwise begins an outage.
    async fn fail(&mut self, error: Error, unknown: Option<u64>) -> Result<bool, Error> {
        let Error::Unavailable(cause) = error else { return Err(error) };
        let cause = self.target.judge(cause);
        let error = Error::Unavailable(cause.clone());
        // A file that is full, locked or read-only responds; each change tries it anew.
        let answers =
            matches!(cause, OutageCause::Full | OutageCause::Locked | OutageCause::ReadOnly | OutageCause::Io(_));
        if unknown.is_none() && answers && !self.target.is_server() {
            return Err(error);
        }
        self.outage = Some(StoreOutage::begin(&self.target, &self.shared, cause.clone(), unknown));
        match timeout(ON_THE_SPOT, outage::back(&mut self.outage)).await {
            Ok((db, found)) => {
                let result = self.take_back(db, found);
                self.outage = None;
                result.unwrap_or(Err(error))
            }
            Err(_) => {
                self.shared.set_outage(Some(cause));
                Err(error)
            }
        }
    }

    /// The database is back, with its chain at `found`: determines the outcome of the unknown batch, if there is one.
    fn take_back(&mut self, db: DatabaseConnection, found: ChainPosition) -> Option<Result<bool, Error>> {
        let unknown = self.outage.as_ref().and_then(StoreOutage::unknown);
        self.db = Some(db);
        let (term, last) = self.chain?;
        match found {
            (t, n) if t == term && Some(n) == unknown => Some(Ok(true)),
            (t, n) if t == term && n == last => None,
            _ => Some(Err(Error::Deposed { term })),
        }
    }

    /// The database is back: waiting changes are answered, and writing continues.
    fn end_outage(&mut self, db: DatabaseConnection, found: ChainPosition) {
        let result = self.take_back(db, found);
        self.shared.set_outage(None);
        let Some(outage) = self.outage.take() else { return };
        self.background.due_at = Instant::now();
        match result {
            Some(Ok(_)) => {
                if let Some((_, last)) = &mut self.chain {
                    *last += 1;
                }
                self.background.log_bytes += outage.acknowledge();
            }
            None => {
                let cause = outage.cause().clone();
                outage.give_up(&Error::Unavailable(cause));
            }
            Some(Err(error)) => {
                outage.give_up(&error);
                self.step_down();
                return;
            }
        }
        self.note(None, false);
    }

    /// Shows a problem until a write succeeds, and logs the begin and the end of an outage, once each.
    /// Small writes of the background may still fit on a full disk where changes do not: they end no problem that a change
    /// has just met.
    fn note(&mut self, error: Option<&Error>, background: bool) {
        match error {
            Some(error @ Error::Unavailable(cause)) => {
                self.shared.failed(cause);
                if !background {
                    self.change_failed_at = Some(Instant::now());
                }
                if !self.failing {
                    self.failing = true;
                    tracing::warn!(store = %self.target.name(), %error, "changes are refused until it can be written again");
                }
            }
            None if background && self.change_failed_at.is_some_and(|at| at.elapsed() < CHANGES_FAIL) => {}
            None if self.failing => {
                self.failing = false;
                self.change_failed_at = None;
                self.shared.succeeded();
                tracing::info!(store = %self.target.name(), "the store accepts changes again");
            }
            _ => {}
        }
    }

    fn step_down(&mut self) {
        self.chain = None;
        self.shared.deposed.store(true, Ordering::Release);
        self.shared.observations().clear();
        self.end_compaction();
    }

    async fn begin(&mut self, coordinator: &CoordinatorId, term: Term) -> Result<StoredState, Error> {
        // During an outage, only its search task knows the state of the database.
        let before = self.outage.as_ref().map(|outage| outage.cause().clone());
        if let Some(cause) = before {
            match timeout(ON_THE_SPOT, outage::back(&mut self.outage)).await {
                Ok((db, found)) => self.end_outage(db, found),
                Err(_) => return Err(Error::Unavailable(cause)),
            }
        }
        let (started, mut retries) = (Instant::now(), Retries::new(LOCK_PAUSE));
        // Twice as long as a leader paused in a transaction can hold the lock.
        let patience = if self.target.is_server() { 2 * self.target.statement_timeout() } else { Duration::ZERO };
        loop {
            let result = match self.connection().await {
                Ok(db) => self.begin_on(&db, coordinator, term).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(begun) => return Ok(self.led(term, begun)),
                Err(error) => {
                    // If the commit succeeded after all, a term was skipped; nothing was written in it, and the chain
                    // of the former one ends with its next batch.
                    self.disconnect().await;
                    if error == Error::Unavailable(OutageCause::Locked) && started.elapsed() < patience {
                        sleep(retries.next_delay()).await;
                        continue;
                    }
                    if matches!(error, Error::Deposed { .. }) {
                        self.step_down();
                    }
                    return Err(error);
                }
            }
        }
    }

    async fn begin_on(&self, db: &DatabaseConnection, coordinator: &CoordinatorId, term: Term) -> Result<Begun, Error> {
        if self.target.is_server() {
            // A copy that was restored meanwhile may be older than an upgrade.
            schema::migrate(db, &self.target).await.map_err(|error| match error {
                Error::Open { cause, .. } => Error::Unavailable(cause),
                other => other,
            })?;
        }
        transaction::begin(&self.target, db, coordinator, term).await
    }

    fn led(&mut self, term: Term, begun: Begun) -> StoredState {
        let Begun { loaded, ledger } = begun;
        self.step_down();
        self.chain = Some((term, 0));
        self.background.snapshot_bytes = ledger.snapshot_bytes;
        self.background.log_bytes = ledger.log_bytes;
        self.background.due_at = Instant::now() + self.config.observation_interval;
        self.shared.term.store(term.get(), Ordering::Release);
        self.shared.deposed.store(false, Ordering::Release);
        self.note(None, false);
        loaded
    }

    /// Whether the path still leads to the file that is open; otherwise nothing is written any more.
    fn check_file(&mut self) -> Result<(), Error> {
        let Some((path, opened)) = self.target.path().zip(self.file) else { return Ok(()) };
        if FileIdentity::of(path) == Some(opened) {
            return Ok(());
        }
        let error = Error::Unavailable(OutageCause::Deleted);
        if self.shared.outage() != Some(OutageCause::Deleted) {
            tracing::error!(store = self.target.name(), "{error}");
            self.shared.failed(&OutageCause::Deleted);
            // From now on changes are refused at once.
            self.shared.set_outage(Some(OutageCause::Deleted));
        }
        Err(error)
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
        if let Some(db) = self.db.take() {
            self.target.close(db).await;
        }
    }
}

#[cfg(test)]
impl dialect::Faults {
    fn distort(&self, outcome: TransactionOutcome) -> TransactionOutcome {
        match outcome {
            TransactionOutcome::Committed(_) if self.lose_answers.load(Ordering::SeqCst) => {
                TransactionOutcome::Unknown(OutageCause::Lost("a test took the answer".to_owned()))
            }
            other => other,
        }
    }
}

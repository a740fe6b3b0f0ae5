//! The store: all state that survives the coordinator, through sea-orm. No other module uses SQL.
//!
//! Writes are grouped into changes, each atomic, queued in the order of [`Store::submit`] and acknowledged once they
//! are durable; changes that wait at the same time share a transaction. Every transaction takes the next position in a
//! chain `(term, batch)`, which the row `leadership` stores: a store whose term has ended, or whose last batch arrives
//! late, finds no position and writes nothing. A new leader raises the term and reads everything in one transaction.
//!
//! Grants are a log of packed rows ([`ledger`]); observations (statuses, times) are merged and written in the
//! background. A failed write yields an error that says whether to retry. During an outage of the database changes are
//! refused at once, except those whose commit was not answered: they wait until the chain shows whether they were
//! stored. [`dialect`] explains why this holds on SQLite, PostgreSQL and MariaDB alike.

mod backup;
mod batch;
mod codec;
mod dialect;
mod dump;
mod entities;
mod error;
mod ledger;
mod load;
mod observations;
mod readers;
mod rollouts;
mod rows;
mod runs;
mod schema;
mod timed;
mod transaction;
mod url;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use common::appliance::FieldViolation;
use common::status::Status;
use common::{ApplianceId, CoordinatorId, Incarnation, RebalanceId, Term, WorkerId};
use coordinator_core::grants::{GrantOp, StoredMember};
use coordinator_core::modes::ModeOp;
use coordinator_core::rollout::RolloutItem;
use sea_orm::DatabaseConnection;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

pub use self::backup::BackupError;
use self::batch::PreparedWrite;
use self::dialect::DatabaseTarget;
pub use self::dump::DumpError;
pub use self::error::{Error, OutageCause, StoreProblem};
pub(crate) use self::ledger::{read_mended_row, sample_rows};
pub use self::load::{StoredState, Unreadable};
use self::observations::Observations;
use self::readers::Readers;
pub(crate) use self::rollouts::PART as ROLLOUT_PART;
pub use self::url::{check as check_url, shown_url};
use self::writer::{Submission, Writer, WriterCommand};
use crate::metrics;
use crate::record::{
    AdoptionRecord, AuditEvent, AuditFilter, AuditPart, MemberThen, MoveRecord, NumberedEvent, NumberedRun,
    OrderRecord, PauseRecord, RebalanceRecord, Record, RequestRecord, RolloutRecord, RunFilter, RunRecord,
};

/// Settings of the store.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// URL: `sqlite:<path>` (relative paths start at the working directory; the directory must exist),
    /// `postgres://user:password@host/database` or `mariadb://user:password@host/database`. Several coordinators need
    /// one of the latter two.
    pub url: String,
    /// Deadline of a statement, after which its connection is given up. A shorter one detects a database that hangs
    /// sooner; it has to be longer than the database's worst pause. A leader that is paused inside a transaction blocks
    /// the next leader for about as long.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub statement_timeout: Duration,
    /// Changes that may wait; beyond it submissions are refused as [`Error::Busy`]. A larger queue bridges longer
    /// pauses of the disk at the price of memory and latency.
    pub queue: usize,
    /// Time between two writes of observations. A longer one merges more of them; after a crash, observations of that
    /// period are missing until workers report again.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub observation_interval: Duration,
    /// Size of the grant log, in bytes, from which a snapshot is made, provided that it is also twice the size of the
    /// last snapshot. A smaller value makes the next leader start faster and writes more.
    pub snapshot_after: u64,
    /// How long events, rebalances and runs are kept, as far as the numbers below allow.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub retention: Duration,
    /// Audit events that are kept.
    pub keep_events: u64,
    /// Rebalances that are kept, with their moves.
    pub keep_rebalances: u64,
    /// Runs of workers and changes of phases that are kept; about 1 KiB each.
    pub keep_runs: u64,
    /// How long request ids are remembered.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub keep_requests: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: "sqlite:rug.db".to_owned(),
            statement_timeout: Duration::from_secs(10),
            queue: 16_384,
            observation_interval: Duration::from_millis(250),
            snapshot_after: 1024 * 1024,
            retention: Duration::from_secs(90 * 24 * 60 * 60),
            keep_events: 100_000,
            keep_rebalances: 10_000,
            keep_runs: 100_000,
            keep_requests: Duration::from_secs(24 * 60 * 60),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may contain a password.
        let Self {
            url: _,
            statement_timeout,
            queue,
            observation_interval,
            snapshot_after,
            retention,
            keep_events,
            keep_rebalances,
            keep_runs,
            keep_requests,
        } = self;
        f.debug_struct("Config")
            .field("url", &self.shown())
            .field("statement_timeout", statement_timeout)
            .field("queue", queue)
            .field("observation_interval", observation_interval)
            .field("snapshot_after", snapshot_after)
            .field("retention", retention)
            .field("keep_events", keep_events)
            .field("keep_rebalances", keep_rebalances)
            .field("keep_runs", keep_runs)
            .field("keep_requests", keep_requests)
            .finish()
    }
}

impl Config {
    /// The URL without credentials, for messages and logs.
    #[must_use]
    pub fn shown(&self) -> String {
        shown_url(&self.url)
    }

    /// Whether several coordinators can share the store: it is a database server, not a file.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        !self.url.starts_with("sqlite:")
    }

    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let url = match DatabaseTarget::parse(self) {
            Ok(_) => None,
            Err(Error::Url { url, reason }) => Some(FieldViolation::new("url", format!("`{url}`: {reason}"))),
            Err(error) => Some(FieldViolation::new("url", error.to_string())),
        };
        let mut found: Vec<_> = url.into_iter().collect();
        let mut within = |field, ok: bool, description: &str| {
            if !ok {
                found.push(FieldViolation::new(field, description));
            }
        };
        within("queue", (1..=1_000_000).contains(&self.queue), "must be 1 to 1000000");
        let timeout = Duration::from_secs(1)..=Duration::from_secs(600);
        within("statement_timeout", timeout.contains(&self.statement_timeout), "must be 1s to 10m");
        let interval = Duration::from_millis(10)..=Duration::from_secs(60);
        within("observation_interval", interval.contains(&self.observation_interval), "must be 10ms to 60s");
        within("snapshot_after", self.snapshot_after > 0, "must be at least 1");
        within("retention", self.retention >= Duration::from_secs(60), "must be at least 1m");
        within("keep_events", self.keep_events > 0, "must be at least 1");
        within("keep_rebalances", self.keep_rebalances > 0, "must be at least 1");
        within("keep_runs", self.keep_runs > 0, "must be at least 1");
        within("keep_requests", self.keep_requests >= Duration::from_secs(60), "must be at least 1m");
        found
    }
}

/// One write; several make a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreWrite {
    /// Stores an appliance, new or changed.
    PutAppliance(Arc<Record>),
    /// Changes of ownership, in order. Progress and hold of a [`GrantOp::Free`] replace the stored ones; the host is
    /// kept. A [`GrantOp::Remove`] removes the appliance with its status, progress and grant.
    Grants(Vec<GrantOp>),
    /// Stores a live member.
    PutMember(StoredMember),
    /// Removes one incarnation of a member.
    RemoveMember(WorkerId, Incarnation),
    /// Stores a rebalance, new or changed.
    PutRebalance(RebalanceRecord),
    /// Moves that have ended.
    Moves(Vec<MoveRecord>),
    /// Stores who was there when a rebalance began, or was gone on with.
    Members(RebalanceId, Vec<MemberThen>),
    /// New owners have seen what was moved to them.
    Adoptions(Vec<AdoptionRecord>),
    /// What workers did. One that is stored already is left as it is.
    Runs(Vec<RunRecord>),
    /// Stores that planning is paused, or that it is not.
    Pause(Option<PauseRecord>),
    /// A change of the rules of debug modes.
    Mode(ModeOp),
    /// Stores an order about placement in the place of the former one of its sort, or removes that where it takes it back.
    Order(OrderRecord),
    /// Stores a rollout, new or changed, and parts of its items, by their numbers.
    PutRollout(Box<RolloutRecord>, Vec<(usize, Vec<RolloutItem>)>),
    /// Removes a rollout and its items.
    RemoveRollout(Uuid),
    /// A line of the audit trail.
    Event(AuditEvent),
    /// An idempotent call that is carried out by this change.
    Request(RequestRecord),
}

/// Resolves when a change is durable. Dropping it does not cancel the change.
#[derive(Debug)]
#[must_use = "a change must not be reported before it is stored"]
pub struct PendingWrite(PendingState);

#[derive(Debug)]
enum PendingState {
    /// Since when it waits.
    Waiting(oneshot::Receiver<Result<(), Error>>, Instant),
    Refused(Error),
}

impl Future for PendingWrite {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            // The writer drops the sender only while the runtime shuts down.
            PendingState::Waiting(done, since) => Pin::new(done).poll(context).map(|done| {
                let result = done.unwrap_or(Err(Error::Closed));
                metrics::stored(error::outcome_name(&result), since.elapsed());
                result
            }),
            PendingState::Refused(error) => Poll::Ready(Err(error.clone())),
        }
    }
}

/// What submitters and the writer share.
#[derive(Debug, Default)]
struct StoreShared {
    /// The term that changes are submitted in; 0 before the first.
    term: AtomicU64,
    /// That term has ended.
    deposed: AtomicBool,
    /// Why the database is unavailable, during an outage.
    outage: Mutex<Option<OutageCause>>,
    /// Why the last write failed, if it did.
    problem: Mutex<Option<StoreProblem>>,
    observations: Mutex<Observations>,
}

impl StoreShared {
    fn observations(&self) -> MutexGuard<'_, Observations> {
        // No code under the lock panics; even if it did, what is left is a valid set of observations.
        self.observations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outage(&self) -> Option<OutageCause> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_outage(&self, cause: Option<OutageCause>) {
        *self.outage.lock().unwrap_or_else(PoisonError::into_inner) = cause;
    }

    /// Updates the cause of an outage, if there is one.
    fn update_outage(&self, cause: &OutageCause) {
        if let Some(known) = &mut *self.outage.lock().unwrap_or_else(PoisonError::into_inner) {
            known.clone_from(cause);
            self.failed(cause);
        }
    }

    /// Notes that a write failed.
    fn failed(&self, cause: &OutageCause) {
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let since = problem.as_ref().map_or_else(SystemTime::now, |known| known.since);
        *problem = Some(StoreProblem { cause: cause.clone(), since });
    }

    /// Notes that a write succeeded.
    fn succeeded(&self) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Handle of the store. Clones share the store; it ends, after everything submitted is written, with [`Store::close`]
/// or with the last clone.
#[derive(Clone, Debug)]
pub struct Store {
    commands: mpsc::Sender<WriterCommand>,
    shared: Arc<StoreShared>,
    readers: Readers,
    /// It is a database server.
    is_shared: bool,
    /// Which database it is, by the semantic conventions.
    system: &'static str,
}

impl Store {
    /// Which database it is, as traces call it.
    #[must_use]
    pub const fn system(&self) -> &'static str {
        self.system
    }

    /// Connects, brings the schema up to date and checks that the database can be written. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`Error::Url`] and [`Error::Setting`] for the configuration, [`Error::Open`] with its [`OutageCause`] when the database
    /// cannot be used, [`Error::InUse`] when another process has the file, [`Error::SchemaTooNew`], [`Error::Database`]
    /// when it is no database or damaged.
    pub async fn open(config: &Config) -> Result<Self, Error> {
        let target = DatabaseTarget::parse(config)?;
        if let Some(violation) = config.validate().into_iter().next() {
            return Err(Error::Setting(violation));
        }
        // Boxed: with all that sea-orm awaits inside, the types around it nest deeper than the compiler follows.
        Box::pin(Self::open_target(config, target)).await
    }

    async fn open_target(config: &Config, target: DatabaseTarget) -> Result<Self, Error> {
        let open = |doing| {
            let path = target.name().to_owned();
            move |e: sea_orm::DbErr| match dialect::cause(&e) {
                Some(cause) => Error::Open { path: path.clone(), cause },
                None => Error::Database { doing, reason: format!("{path}: {e}") },
            }
        };
        let lock = target.lock()?;
        let db = target.connect_writer().await.map_err(open("open the store"))?;
        if let Err(error) = Self::prepare(&db, &target).await {
            target.close(db).await;
            return Err(error);
        }
        let readers = target.connect_readers().await.map_err(open("open the store for reading"))?;
        let (commands, receiver) = mpsc::channel(config.queue);
        metrics::watch_queue("store", &commands);
        let shared = Arc::new(StoreShared::default());
        let readers = Readers::new(target.clone(), shared.clone(), readers);
        let (is_shared, system) = (target.is_server(), target.system());
        let writer = Writer::new(target, config.clone(), shared.clone(), receiver, readers.clone(), (db, lock));
        tokio::spawn(writer.run());
        Ok(Self { commands, shared, readers, is_shared, system })
    }

    /// Brings the schema up to date and finds out whether the database can be written.
    async fn prepare(db: &DatabaseConnection, target: &DatabaseTarget) -> Result<(), Error> {
        schema::migrate(db, target).await?;
        // Opening succeeds on a read-only database as well; this write, which is rolled back, finds that out before the
        // first change.
        let probe = async {
            let probe = target.begin(db, target.limits(target.statement_timeout())).await?;
            match dialect::lock_chain(&probe).await {
                // Another leader holds the lock, working or paused: so the database can be written.
                Err(e) if target.is_server() && dialect::cause(&e) == Some(OutageCause::Locked) => {}
                locked => locked?,
            }
            dialect::rollback(probe).await
        };
        probe.await.map_err(|e| match dialect::cause(&e) {
            Some(cause) => Error::Open { path: target.name().to_owned(), cause },
            None => Error::Database { doing: "write to the store", reason: format!("{}: {e}", target.name()) },
        })
    }

    /// The highest term that was ever begun in the store; 0 if none. Another coordinator may begin a higher one at any
    /// moment.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Corrupt`].
    pub async fn highest_term(&self) -> Result<Term, Error> {
        self.readers.read(|db| async move { Ok(load::place(&db).await?.0) }).await
    }

    /// Begins exactly `term` and reads everything in the same transaction. Changes that were submitted earlier and are
    /// not written yet are refused, also when this fails: the former term has ended.
    ///
    /// # Errors
    /// [`Error::Deposed`] names the stored term when that is `term` or a higher one; [`Error::Unavailable`];
    /// [`Error::Corrupt`] names the row that cannot be read; [`Error::TermsExhausted`] when `term` is beyond what can be
    /// stored.
    pub async fn begin_term(&self, coordinator: &CoordinatorId, term: Term) -> Result<StoredState, Error> {
        let (reply, answer) = oneshot::channel();
        let command = WriterCommand::Begin { coordinator: coordinator.clone(), term, reply };
        self.commands.send(command).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Queues one atomic change and returns at once; changes are written in the order of these calls. The future
    /// resolves when the change is durable.
    ///
    /// # Errors Of the future: [`Error::Busy`] when [`Config::queue`] changes wait already (this one is not accepted);
    /// [`Error::Unavailable`] when the database fails, for this change and all that wait behind it, and at once during
    /// a known outage; [`Error::Conflict`] for this change alone; [`Error::NotLeading`], [`Error::Deposed`],
    /// [`Error::Unresolved`] and [`Error::Closed`] are final. A change whose commit was not answered stays pending
    /// until its outcome is known.
    pub fn submit(&self, change: Vec<StoreWrite>) -> PendingWrite {
        let term = Term::new(self.shared.term.load(Ordering::Acquire));
        if let Some(cause) = self.shared.outage() {
            return PendingWrite(PendingState::Refused(Error::Unavailable(cause)));
        }
        self.forget_removed(&change);
        let change = change.into_iter().map(PreparedWrite::from).collect();
        let (done, waiting) = oneshot::channel();
        match self.commands.try_send(WriterCommand::Change(Submission { term, change, done })) {
            Ok(()) => PendingWrite(PendingState::Waiting(waiting, Instant::now())),
            Err(mpsc::error::TrySendError::Full(_)) => {
                metrics::queue_full("store");
                PendingWrite(PendingState::Refused(Error::Busy))
            }
            Err(mpsc::error::TrySendError::Closed(_)) => PendingWrite(PendingState::Refused(Error::Closed)),
        }
    }

    fn forget_removed(&self, change: &[StoreWrite]) {
        for write in change {
            let StoreWrite::Grants(ops) = write else { continue };
            for op in ops {
                if let GrantOp::Remove { appliance } = op {
                    self.shared.observations().forget(*appliance);
                }
            }
        }
    }

    /// Deletes history beyond [`Config::keep_events`], [`Config::keep_rebalances`], [`Config::keep_runs`] and
    /// [`Config::keep_requests`], in short transactions while nothing is submitted. Dropping it gives up what is left.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Deposed`], [`Error::Closed`].
    pub async fn prune(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(WriterCommand::Prune(reply)).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Whether the term that was begun here is still the store's, as far as known: a leader that submits nothing learns
    /// from this that another one took over, since observations are written continually.
    #[must_use]
    pub fn leads(&self, term: Term) -> bool {
        self.shared.term.load(Ordering::Acquire) == term.get() && !self.shared.deposed.load(Ordering::Acquire)
    }

    /// Why the store takes no changes, until a write succeeds: an outage of its server, or a file that is full,
    /// read-only or locked and is tried anew by each change.
    #[must_use]
    pub fn problem(&self) -> Option<StoreProblem> {
        self.shared.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the database is unavailable, during an outage; changes are refused with it.
    #[cfg(test)]
    fn outage(&self) -> Option<OutageCause> {
        self.shared.outage()
    }

    /// Queues the last observed statuses of appliances. They are merged per appliance and written within a few
    /// [`Config::observation_interval`]s, after everything that is submitted, without an acknowledgement.
    pub fn submit_statuses(&self, statuses: impl IntoIterator<Item = (ApplianceId, Status, SystemTime)>) {
        self.shared.observations().add_statuses(statuses);
    }

    /// How often it is worth storing when workers were seen. A database server is written to for its own sake, which is how
    /// a leader that changes nothing learns of a later term; a file has one coordinator, and each write of it is a write of
    /// the disk.
    #[must_use]
    pub fn seen_interval(&self) -> Duration {
        Duration::from_secs(if self.is_shared { 1 } else { 300 })
    }

    /// Queues when a worker was last seen, like [`Store::submit_statuses`]. Operators find it in the table `workers`; no
    /// coordinator reads it. These writes are also how a leader that changes nothing learns of a later term: see
    /// [`Store::leads`].
    pub fn submit_seen(&self, worker: WorkerId, time: SystemTime) {
        self.shared.observations().add_seen(worker, time);
    }

    /// The newest rebalances before `before`, newest first; at most 1,000.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Corrupt`].
    pub async fn rebalances(&self, before: Option<RebalanceId>, limit: u64) -> Result<Vec<RebalanceRecord>, Error> {
        self.readers.read(|db| async move { load::rebalances_before(&db, before, limit).await }).await
    }

    /// One rebalance and its moves, in the order they ended.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Corrupt`].
    pub async fn rebalance(&self, id: RebalanceId) -> Result<Option<(RebalanceRecord, Vec<MoveRecord>)>, Error> {
        self.readers.read(|db| async move { load::rebalance(&db, id).await }).await
    }

    /// Who was there when a rebalance began; empty where that is not known.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Corrupt`].
    pub async fn members_of(&self, id: RebalanceId) -> Result<Vec<MemberThen>, Error> {
        self.readers.read(|db| async move { load::members_of(&db, id).await }).await
    }

    /// The last moves of an appliance, newest first; at most 1,000, from the newest thousand rows of moves.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Corrupt`].
    pub async fn moves_of(&self, appliance: ApplianceId, limit: u64) -> Result<Vec<MoveRecord>, Error> {
        self.readers.read(|db| async move { load::moves_of(&db, appliance, limit).await }).await
    }

    /// Events of the audit trail; at most 1,001, so that a full page shows whether there is another one.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn audit(&self, filter: &AuditFilter, part: AuditPart, limit: u64) -> Result<Vec<NumberedEvent>, Error> {
        self.readers.read(|db| async move { load::events(&db, filter, part, limit).await }).await
    }

    /// Runs of workers; at most 1,001, so that a full page shows whether there is another one.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Corrupt`].
    pub async fn runs(&self, filter: &RunFilter, part: AuditPart, limit: u64) -> Result<Vec<NumberedRun>, Error> {
        self.readers.read(|db| async move { runs::find(&db, filter, part, limit).await }).await
    }

    /// The newest events of the audit trail, newest first.
    #[cfg(test)]
    async fn events(&self, limit: u64) -> Result<Vec<AuditEvent>, Error> {
        let found = self.audit(&AuditFilter::default(), AuditPart::Before(None), limit).await?;
        Ok(found.into_iter().map(|numbered| numbered.event).collect())
    }

    /// Prints table counts and the log of grants, for people.
    ///
    /// # Errors
    /// [`DumpError`]: the store cannot be read, or the output not written.
    pub async fn dump(&self, mut out: impl io::Write) -> Result<(), DumpError> {
        dump::dump(&self.readers.unhurried(), &mut out).await
    }

    /// [`Store::dump`] of a store that another process may have open: nothing is created, changed or locked.
    ///
    /// # Errors
    /// As [`Store::open`] and [`Store::dump`].
    pub async fn inspect(config: &Config, mut out: impl io::Write) -> Result<(), DumpError> {
        let target = DatabaseTarget::parse(config)?;
        if target.path().is_some_and(|path| !path.exists()) {
            return Err(Error::Open { path: target.name().to_owned(), cause: OutageCause::CannotOpen }.into());
        }
        let db = target.connect_readers().await.map_err(|e| match dialect::cause(&e) {
            Some(cause) => Error::Open { path: target.name().to_owned(), cause },
            None => Error::Database { doing: "open the store", reason: e.to_string() },
        })?;
        let readers = Readers::new(target, Arc::default(), db);
        let result = dump::dump(&readers.unhurried(), &mut out).await;
        readers.close().await;
        result
    }

    /// Copies a store that is a file, which a coordinator may use meanwhile; returns the size of the copy in bytes.
    ///
    /// # Errors
    /// [`BackupError`]; nothing is left then.
    pub async fn backup(config: &Config, to: &Path) -> Result<u64, BackupError> {
        // Boxed as in `open`.
        Box::pin(backup::backup(config, to)).await
    }

    /// Writes what was submitted, then ends the store and its connections. Later submissions are [`Error::Closed`].
    pub async fn close(self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(WriterCommand::Close(reply)).await.is_ok() {
            let _ = done.await;
        }
    }
}

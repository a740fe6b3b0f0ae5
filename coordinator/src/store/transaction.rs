//! The three transactions of the writing connection: a batch, reading the chain, and the begin of a term.
//! [`super::dialect`] explains why they are correct on every database.

use std::time::{Duration, SystemTime};

use common::{CoordinatorId, Term};
use sea_orm::{DatabaseConnection, DbErr, EntityTrait, Set, SqlErr, Unchanged};

use super::batch::{Batch, take_place};
use super::dialect::{self, DatabaseTarget};
use super::entities::leadership;
use super::error::{Error, OutageCause};
use super::ledger::ReplayedLog;
use super::load::{self, StoredState};
use super::rows;
use super::timed::Limits;

/// Deadline of a write transaction, all its statements together.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Deadline of the begin of a term, which reads the whole store.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(120);

/// Term and number of a batch.
pub(super) type ChainPosition = (Term, u64);

/// How a write transaction ended.
pub(super) enum TransactionOutcome {
    /// `true`: its housekeeping has more to do.
    Committed(bool),
    /// Rolled back; the connection is usable.
    Refused(Error),
    /// Not committed; the connection may be broken.
    Failed(Error),
    /// `COMMIT` was sent and not answered: the outcome is unknown.
    Unknown(OutageCause),
}

/// Writes one batch.
pub(super) async fn write(
    target: &DatabaseTarget,
    db: &DatabaseConnection,
    (term, number): ChainPosition,
    batch: &Batch,
) -> TransactionOutcome {
    let failed = |e: &DbErr| TransactionOutcome::Failed(dialect::failure("write a batch", e));
    let tx = match target.begin(db, target.limits(WRITE_TIMEOUT)).await {
        Ok(tx) => tx,
        Err(e) => return failed(&e),
    };
    let (t, n) = (term.get().cast_signed(), number.cast_signed());
    let written = match take_place(&tx, t, n).await {
        Ok(true) => batch.write(&tx, t, n).await,
        Ok(false) => {
            return match dialect::rollback(tx).await {
                Ok(()) => TransactionOutcome::Refused(Error::Deposed { term }),
                Err(_) => TransactionOutcome::Failed(Error::Deposed { term }),
            };
        }
        Err(e) => Err(e),
    };
    match written {
        Ok(more) => match dialect::commit(tx).await {
            Ok(()) => TransactionOutcome::Committed(more),
            Err(e) => {
                TransactionOutcome::Unknown(dialect::cause(&e).unwrap_or_else(|| OutageCause::Lost(e.to_string())))
            }
        },
        // SQLite rolls back by itself on some failures, and the connection then miscounts its transactions; so any
        // failure but an ordinary refusal costs the connection.
        Err(e) => {
            let rule = match e.sql_err() {
                Some(SqlErr::UniqueConstraintViolation(rule)) => Some(rule),
                _ => dialect::is_bad_value(&e).then(|| e.to_string()),
            };
            match (rule, dialect::rollback(tx).await) {
                (Some(rule), Ok(())) => TransactionOutcome::Refused(Error::Conflict(rule)),
                _ => failed(&e),
            }
        }
    }
}

/// The position of the chain, once no transaction of a closed connection can change it any more: any former holder of
/// the write lock has ended when this one gets it.
pub(super) async fn settled_place(target: &DatabaseTarget, db: &DatabaseConnection) -> Result<ChainPosition, Error> {
    let failed = |e: &DbErr| dialect::failure("lock the chain", e);
    let tx = target.begin(db, target.limits(WRITE_TIMEOUT)).await.map_err(|e| failed(&e))?;
    match dialect::lock_chain(&tx).await {
        Ok(()) => {}
        // No process can write this file, so nothing can change. A read-only server is different: it may be a replica
        // that replaced the primary.
        Err(e) if !target.is_server() && dialect::cause(&e) == Some(OutageCause::ReadOnly) => {}
        Err(e) => return Err(failed(&e)),
    }
    let found = load::place(&tx).await?;
    dialect::rollback(tx).await.map_err(|e| failed(&e))?;
    Ok(found)
}

/// How the begin of a term ended.
pub(super) struct Begun {
    pub(super) loaded: StoredState,
    pub(super) ledger: ReplayedLog,
}

/// Raises the term and reads everything, in one transaction.
pub(super) async fn begin(
    target: &DatabaseTarget,
    db: &DatabaseConnection,
    coordinator: &CoordinatorId,
    term: Term,
) -> Result<Begun, Error> {
    // The store can only order terms of the signed range.
    let signed = i64::try_from(term.get()).map_err(|_| Error::TermsExhausted(term))?;
    let failed = |e: &DbErr| dialect::failure("begin a term", e);
    // Tables are read whole, each by one statement.
    let limits = Limits::new(BEGIN_TIMEOUT, BEGIN_TIMEOUT);
    let tx = target.begin(db, limits).await.map_err(|e| failed(&e))?;
    dialect::lock_chain(&tx).await.map_err(|e| failed(&e))?;
    let (stored, _) = load::place(&tx).await?;
    if stored >= term {
        return Err(Error::Deposed { term: stored });
    }
    dialect::allow_idle(&tx, BEGIN_TIMEOUT).await.map_err(|e| failed(&e))?;
    let row = leadership::ActiveModel {
        id: Unchanged(leadership::ROW),
        term: Set(signed),
        batch: Set(0),
        coordinator: Set(coordinator.as_str().to_owned()),
        since_ns: Set(rows::nanos(SystemTime::now())),
    };
    leadership::Entity::update(row).exec(&tx).await.map_err(|e| failed(&e))?;
    load::sweep(&tx).await.map_err(|e| failed(&e))?;
    let (loaded, ledger) = load::everything(&tx, stored).await?;
    dialect::commit(tx).await.map_err(|e| failed(&e))?;
    dialect::end_idle(target, db).await;
    Ok(Begun { loaded, ledger })
}

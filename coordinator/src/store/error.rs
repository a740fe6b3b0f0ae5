//! Errors of the store, by what a caller can do about them.
//!
//! Three kinds matter to a leader: *try again* ([`Error::Unavailable`], [`Error::Busy`]), *this change is wrong*
//! ([`Error::Conflict`]) and *step down* ([`Error::Deposed`]). Everything else ends the process or
//! the command with its message.

use std::fmt;
use std::time::SystemTime;

use common::Term;
use common::appliance::FieldViolation;

/// Why the database does not execute writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutageCause {
    /// The file, or the file system below it, cannot be written.
    ReadOnly,
    /// No space is left.
    Full,
    /// Another process holds the database for longer than the store waits.
    Locked,
    /// The file cannot be opened or made: its directory is missing or forbidden.
    CannotOpen,
    /// The file was deleted, or another one put in its place, while it was open: what is written to it is lost.
    Deleted,
    /// Reading or writing failed.
    Io(String),
    /// The connection broke.
    Lost(String),
    /// No response within the deadline.
    TimedOut,
    /// The server refuses the connection: starting up, out of connections, wrong password, no such database.
    Refused(String),
}

impl OutageCause {
    /// Every name, for metrics.
    pub const NAMES: [&str; 9] =
        ["read_only", "full", "locked", "cannot_open", "deleted", "io", "lost", "timed_out", "refused"];

    /// Its name in metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ReadOnly => "read_only",
            Self::Full => "full",
            Self::Locked => "locked",
            Self::CannotOpen => "cannot_open",
            Self::Deleted => "deleted",
            Self::Io(_) => "io",
            Self::Lost(_) => "lost",
            Self::TimedOut => "timed_out",
            Self::Refused(_) => "refused",
        }
    }
}

/// What a write came to, as metrics have it.
pub(super) const fn outcome_name<T>(result: &Result<T, Error>) -> &'static str {
    match result {
        Ok(_) => "committed",
        Err(Error::Conflict(_)) => "conflict",
        Err(Error::Busy) => "busy",
        Err(Error::Unavailable(_)) => "unavailable",
        Err(Error::Deposed { .. } | Error::NotLeading) => "deposed",
        Err(_) => "failed",
    }
}

/// Why the store takes no changes, from the first write that failed until one succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreProblem {
    /// What the last failed write came to.
    pub cause: OutageCause,
    /// When the first one failed.
    pub since: SystemTime,
}

impl fmt::Display for StoreProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = prost_types::Timestamp { nanos: 0, ..self.since.into() };
        write!(f, "{} (since {since})", self.cause)
    }
}

impl fmt::Display for OutageCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReadOnly => f.write_str("it is read-only"),
            Self::Full => f.write_str("no space is left on its disk"),
            Self::Locked => f.write_str("another process holds its lock"),
            Self::CannotOpen => {
                f.write_str("it cannot be opened or created; does its directory exist and may it be written?")
            }
            Self::Deleted => f.write_str(
                "its file was deleted or replaced while it was open, so that what is written would be lost; \
                 stop the coordinator, put the state directory back, start it again",
            ),
            Self::Io(reason) => write!(f, "reading or writing failed: {reason}"),
            Self::Lost(reason) => write!(f, "the connection broke: {reason}"),
            Self::TimedOut => f.write_str("it did not answer in time"),
            Self::Refused(reason) => write!(f, "it refuses the connection: {reason}"),
        }
    }
}

/// Why the store did not execute a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The URL is invalid, or names a database that this version has no driver for.
    #[error("store url `{url}`: {reason}")]
    Url {
        /// The URL, without credentials.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting is out of range.
    #[error("store.{0}")]
    Setting(FieldViolation),
    /// The database cannot be used at all.
    #[error("open store {path}: {cause}")]
    Open {
        /// Which.
        path: String,
        /// Why.
        cause: OutageCause,
    },
    /// Another process has this file open as its store.
    #[error("store {path} is in use by {by}")]
    InUse {
        /// Which.
        path: String,
        /// Who has it.
        by: String,
    },
    /// A later version of Rug has changed the schema.
    #[error("store {path} was changed by a later version of rug: migration `{migration}` is not known")]
    SchemaTooNew {
        /// Which.
        path: String,
        /// The first migration this version does not know.
        migration: String,
    },
    /// No term was begun with this store.
    #[error("this coordinator has begun no term in the store")]
    NotLeading,
    /// A later term is in the store. Unacknowledged changes of the former term may or may not be stored; the new leader
    /// has read them if they are.
    #[error("another coordinator leads in the store, at {term} or later, or the store was put back to an older state")]
    Deposed {
        /// For a change: its term, which has ended. For the begin of a term: the stored term, which is not lower than
        /// the one to begin.
        term: Term,
    },
    /// The store cannot represent this term: it was not made by a coordinator.
    #[error("{0} exceeds the range of the store")]
    TermsExhausted(Term),
    /// The queue is full; this change was not accepted.
    #[error("too many changes wait for the store")]
    Busy,
    /// The database cannot be written now. The store reconnects by itself.
    #[error("the store accepts no changes: {0}")]
    Unavailable(OutageCause),
    /// A unique key is violated, or a value does not fit into its column. Only this change is refused.
    #[error("the change conflicts with stored data: {0}")]
    Conflict(String),
    /// The store was closed during an outage, before the outcome of this change was known. The next leader reads it if
    /// it was stored.
    #[error("it is unknown whether the change was stored")]
    Unresolved,
    /// Stored data is invalid.
    #[error("stored {what} {key} cannot be read: {reason}")]
    Corrupt {
        /// Kind of row.
        what: &'static str,
        /// Which one.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The database refused a statement: a mistake in this program or a damaged file.
    #[error("{doing}: {reason}")]
    Database {
        /// What was done.
        doing: &'static str,
        /// The database's words.
        reason: String,
    },
}

impl Error {
    /// Whether the term is over for the store: another one may have begun there, or an outcome cannot be found out.
    #[must_use]
    pub const fn ends_term(&self) -> bool {
        matches!(self, Self::Deposed { .. } | Self::Unresolved | Self::NotLeading | Self::Closed)
    }
}

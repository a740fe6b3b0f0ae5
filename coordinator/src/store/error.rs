//! What can go wrong in the store, as situations a caller tells apart.
//!
//! Three kinds matter to a leader: *try again* ([`Error::Unavailable`], [`Error::Busy`]), *this change is wrong*
//! ([`Error::Conflict`]) and *step down* ([`Error::Deposed`]). Everything else ends the process or
//! the command with its message.

use std::fmt;

use common::Term;
use common::retry::Retryable;

/// Why the database does not do what is asked of it.
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
    /// Reading or writing failed.
    Io(String),
    /// The connection broke.
    Lost(String),
    /// No answer within the deadline.
    TimedOut,
    /// It answers, and does not let this user in: starting up, out of connections, wrong password, no such database.
    Refused(String),
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
            Self::Io(reason) => write!(f, "reading or writing failed: {reason}"),
            Self::Lost(reason) => write!(f, "the connection broke: {reason}"),
            Self::TimedOut => f.write_str("it did not answer in time"),
            Self::Refused(reason) => write!(f, "it refuses: {reason}"),
        }
    }
}

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The URL cannot be understood, or names a database this version has no driver for.
    #[error("store url `{url}`: {reason}")]
    Url {
        /// The URL, without credentials.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting is out of range.
    #[error("store.{field}: {reason}")]
    Setting {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
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
    #[error("store {path} was changed by a later version of rug: migration `{migration}` is not known here")]
    SchemaTooNew {
        /// Which.
        path: String,
        /// The first migration this version does not know.
        migration: String,
    },
    /// No term was begun with this store.
    #[error("this coordinator has begun no term in the store")]
    NotLeading,
    /// A later term is in the store. What of the former one is not acknowledged by now may or may not be stored; the
    /// new leader has read it if it is.
    #[error("another coordinator leads in the store, at {term} or later, or the store was put back to an older state")]
    Deposed {
        /// Of a change: the term it was for, which is over. Of the begin of a term: the term the store has, which is no
        /// lower than the one that was to begin.
        term: Term,
    },
    /// The store cannot hold this term: somebody sent nonsense.
    #[error("no store can hold {0}")]
    TermsExhausted(Term),
    /// So many changes wait that this one was not taken.
    #[error("too many changes wait for the store")]
    Busy,
    /// The database cannot be written now. What was lost is connected to again by itself.
    #[error("the store takes no changes: {0}")]
    Unavailable(OutageCause),
    /// A unique rule is broken, or a value has no place in its column. Only this change is refused.
    #[error("the change contradicts what is stored: {0}")]
    Conflict(String),
    /// The store was closed, with its database away, before it was found out whether this change was stored. Whoever
    /// leads next reads it if it is.
    #[error("it could not be found out whether a change was stored")]
    Unresolved,
    /// Something stored cannot be understood.
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

impl Retryable for Error {
    fn is_retryable(&self) -> bool {
        matches!(self, Self::Busy | Self::Unavailable(_))
    }
}

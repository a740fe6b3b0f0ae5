//! Meaning of database errors, by error code.

use sea_orm::{DbErr, RuntimeErr, SqlxError, SqlxMySqlError, SqlxPostgresError, SqlxSqliteError};

use runtime::tls;

use super::super::error::{Error, OutageCause};

/// The outage cause of an error, if the environment and not the statement is at fault.
pub(in crate::store) fn cause(error: &DbErr) -> Option<OutageCause> {
    let error = match error {
        DbErr::Conn(e) | DbErr::Exec(e) | DbErr::Query(e) => sqlx(e)?,
        DbErr::ConnectionAcquire(_) => return Some(OutageCause::TimedOut),
        _ => return None,
    };
    match error {
        SqlxError::Database(e) => {
            if let Some(e) = e.try_downcast_ref::<SqlxPostgresError>() {
                postgres(e.code(), e.message())
            } else if let Some(e) = e.try_downcast_ref::<SqlxMySqlError>() {
                mysql(e.number(), e.message())
            } else {
                sqlite(e.try_downcast_ref::<SqlxSqliteError>().and(e.code())?.parse().ok()?, e.message())
            }
        }
        SqlxError::Io(e) if e.kind() == std::io::ErrorKind::StorageFull => Some(OutageCause::Full),
        SqlxError::Io(e) => {
            let words = e.to_string();
            Some(OutageCause::Lost(tls::unresolved(&words).map_or(words, str::to_owned)))
        }
        SqlxError::Tls(e) => Some(OutageCause::Refused(format!("TLS: {e}"))),
        SqlxError::Configuration(e) => Some(OutageCause::Refused(e.to_string())),
        SqlxError::PoolTimedOut => Some(OutageCause::TimedOut),
        SqlxError::Protocol(_) | SqlxError::PoolClosed | SqlxError::WorkerCrashed | SqlxError::BeginFailed => {
            Some(OutageCause::Lost(error.to_string()))
        }
        _ => None,
    }
}

/// Whether a value was refused (too long, a character the database cannot store): the fault of one change.
pub(in crate::store) fn is_bad_value(error: &DbErr) -> bool {
    let (DbErr::Exec(e) | DbErr::Query(e)) = error else { return false };
    let Some(SqlxError::Database(e)) = sqlx(e) else { return false };
    if let Some(e) = e.try_downcast_ref::<SqlxPostgresError>() {
        // Class 22, data exception; 54000 and its kin, beyond a limit.
        return e.code().starts_with("22") || e.code().starts_with("54");
    }
    // Out of range, wrong value for its column, too long.
    e.try_downcast_ref::<SqlxMySqlError>().is_some_and(|e| matches!(e.number(), 1264 | 1366 | 1406))
}

fn sqlx(error: &RuntimeErr) -> Option<&SqlxError> {
    match error {
        RuntimeErr::SqlxError(e) => Some(e),
        RuntimeErr::Internal(_) => None,
    }
}

/// The low byte is the primary result code, see sqlite.org/rescode.html.
fn sqlite(code: i32, message: &str) -> Option<OutageCause> {
    match code & 0xff {
        5 | 6 => Some(OutageCause::Locked),
        8 => Some(OutageCause::ReadOnly),
        10 => Some(OutageCause::Io(message.to_owned())),
        13 => Some(OutageCause::Full),
        14 => Some(OutageCause::CannotOpen),
        _ => None,
    }
}

/// See appendix A of PostgreSQL's manual.
fn postgres(code: &str, message: &str) -> Option<OutageCause> {
    let words = || message.to_owned();
    Some(match code {
        // Lock timeout, deadlock, serialization.
        "55P03" | "40P01" | "40001" => OutageCause::Locked,
        "57014" => OutageCause::TimedOut,
        "25006" => OutageCause::ReadOnly,
        "53100" => OutageCause::Full,
        // Starting up or shutting down, and sessions that were idle inside a transaction.
        "57P01" | "57P02" | "25P02" | "25P03" | "25P04" | "57P05" => OutageCause::Lost(words()),
        // Not yet supported, disk full, out of memory, no such role, password or database, no privilege.
        "57P03" | "53000" | "53200" | "53300" | "53400" | "28000" | "28P01" | "3D000" | "42501" => {
            OutageCause::Refused(words())
        }
        _ if code.starts_with("08") => OutageCause::Lost(words()),
        _ if code.starts_with("58") && is_full(message) => OutageCause::Full,
        _ if code.starts_with("58") || code == "XX001" || code == "XX002" => OutageCause::Io(words()),
        _ => return None,
    })
}

/// See MariaDB's list of error codes; MySQL shares those below 1900.
fn mysql(number: u16, message: &str) -> Option<OutageCause> {
    let words = || message.to_owned();
    Some(match number {
        // Lock wait timeout, deadlock, changed since it was read.
        1205 | 1213 | 1020 => OutageCause::Locked,
        // Statement times of MariaDB and MySQL.
        1969 | 3024 => OutageCause::TimedOut,
        1036 | 1290 | 1792 | 1836 => OutageCause::ReadOnly,
        1021 | 1114 => OutageCause::Full,
        3 | 1026 | 1030 if is_full(message) => OutageCause::Full,
        3 | 1026 | 1030 => OutageCause::Io(words()),
        // Shutting down, killed, idle for too long, broken off.
        1053 | 1077 | 1152 | 1158..=1161 | 1184 | 1317 | 1927 | 1928 | 1429 | 4031 => OutageCause::Lost(words()),
        // Disk full, no such user, password or database, no privilege, not part of its cluster.
        1040 | 1041 | 1044 | 1045 | 1047 | 1049 | 1129 | 1130 | 1142 | 1203 | 1226 | 1698 => {
            OutageCause::Refused(words())
        }
        _ => return None,
    })
}

/// Whether the system's words for a full disk are part of a message.
fn is_full(message: &str) -> bool {
    message.contains("No space left on device") || message.contains("Disk quota exceeded")
}

/// The store error for a database error during the operation.
pub(in crate::store) fn failure(doing: &'static str, error: &DbErr) -> Error {
    match cause(error) {
        Some(cause) => Error::Unavailable(cause),
        None => Error::Database { doing, reason: error.to_string() },
    }
}

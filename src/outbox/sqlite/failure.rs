//! The meaning of an error of SQLite, in words for a user.

use std::borrow::Borrow;
use std::error::Error as StdError;
use std::time::Duration;

use rusqlite::ErrorCode;

use crate::outbox::OutboxError;

/// The longest wait for another process that holds the write lock (SQLite's busy time-out).
pub(super) const BUSY: Duration = Duration::from_secs(10);

pub(super) fn full(path: &str) -> String {
    format!("the disk of {path} is full; what is in it is untouched, and it goes on once there is room")
}

pub(super) fn read_only(path: &str) -> String {
    format!("{path} or its directory cannot be written")
}

/// The outbox's error for an error of SQLite.
pub(super) fn failure(
    path: &str,
    error: impl Borrow<rusqlite::Error> + StdError + Send + Sync + 'static,
) -> OutboxError {
    let code = error.borrow().sqlite_error_code();
    let source = Some(error.into());
    let what = match code {
        Some(ErrorCode::DiskFull) => return OutboxError::Full { what: full(path), source },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            let what = format!("{path} is damaged, or no outbox; save it and restore it from a copy");
            return OutboxError::Damaged { what, source };
        }
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => read_only(path),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            format!("{path} was locked by another process for longer than {BUSY:?}")
        }
        _ => format!("{path} cannot be read or written"),
    };
    OutboxError::Storage { what, source }
}

//! The failures of a file, in words for a user.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::ErrorCode;

use crate::outbox::OutboxError;

/// Why a file could not be read or changed.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Sqlite(Arc<rusqlite::Error>),
    /// The disk did not confirm that it has what was written.
    Disk(Arc<io::Error>),
    /// Others had it locked for so long.
    Locked(Duration),
    /// Its own bound is reached, of so many bytes.
    Bound(u64),
    /// The reserve could not be restored.
    Reserve(Arc<io::Error>),
    /// The destination was removed.
    Removed,
    /// A destination gives lanes by another rule, so that a message cannot be pushed, or the rule
    /// not become the wanted one.
    OtherRule {
        destination: String,
        known: String,
        wanted: Option<String>,
    },
    /// Another file has its place, or none.
    Moved,
    /// It lacks entries that were in it.
    Older,
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Failure {
        Failure::Sqlite(Arc::new(error))
    }
}

impl Failure {
    pub(super) fn from_disk(error: io::Error) -> Failure {
        Failure::Disk(Arc::new(error))
    }

    fn code(&self) -> Option<ErrorCode> {
        match self {
            Failure::Sqlite(error) => error.sqlite_error_code(),
            _ => None,
        }
    }

    /// Whether another has the file locked at this moment.
    pub(super) fn is_busy(&self) -> bool {
        self.code() == Some(ErrorCode::DatabaseBusy)
    }

    pub(super) fn is_disk_full(&self) -> bool {
        self.code() == Some(ErrorCode::DiskFull)
    }
}

pub(super) fn full(path: &str) -> String {
    format!("the disk of {path} is full; what is in it is untouched, and it goes on once there is room")
}

pub(super) fn read_only(path: &str) -> String {
    format!("{path} or its directory cannot be written")
}

/// The outbox's error for a failure.
pub(super) fn failure(path: &str, failure: Failure) -> OutboxError {
    let code = failure.code();
    let error = match failure {
        Failure::Sqlite(error) => error,
        Failure::Disk(error) => {
            let what =
                format!("the disk of {path} did not confirm that it has what was written; whether it has is unknown");
            return OutboxError::Storage { what, source: Some(error.into()) };
        }
        Failure::Locked(limit) => {
            let what = format!(
                "{path} was in use for longer than {limit:?}, by another process or a long write of this one; try again, or \
                 set a longer timeout"
            );
            return OutboxError::Storage { what, source: None };
        }
        Failure::Bound(bytes) => {
            let what = format!("{path} has reached its bound of {bytes} bytes; it goes on once messages are delivered");
            return OutboxError::Full { what, source: None };
        }
        Failure::Reserve(error) if error.kind() == io::ErrorKind::StorageFull => {
            return OutboxError::Full { what: full(path), source: None };
        }
        Failure::Reserve(error) => {
            let what = format!("the reserve of {path} (the file {path}-reserve) cannot be written");
            return OutboxError::Storage { what, source: Some(error.into()) };
        }
        Failure::Removed => {
            let what = format!("this destination was removed from {path}; open it again to make it anew");
            return OutboxError::Config(what);
        }
        Failure::OtherRule { destination, known, wanted } => {
            let what = match wanted {
                Some(wanted) => format!(
                    "the lane rule of {destination:?} in {path} cannot change from {known:?} to {wanted:?} while messages wait or \
                     are held that were given their lanes by it: open it without lane_key, deliver or discard them, then \
                     open it with the new rule"
                ),
                None => format!(
                    "the message is not stored: {destination:?} in {path} has the lane rule {known:?}, which this handle was not \
                     opened with; open it with that rule (lane_key), and push again"
                ),
            };
            return OutboxError::Config(what);
        }
        Failure::Moved => {
            let what = format!(
                "{path} is not the file any more that this program has opened: it was moved away, removed or replaced; \
                 open it again"
            );
            return OutboxError::StorageReplaced { what };
        }
        Failure::Older => {
            let what = format!(
                "{path} lacks messages that were in it, as if an older copy had taken its place; push again what is missing, \
                 then open it again or tell it to go on"
            );
            return OutboxError::StorageReplaced { what };
        }
    };
    let source = Some(error.into());
    let what = match code {
        Some(ErrorCode::DiskFull) => return OutboxError::Full { what: full(path), source },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            let what = format!(
                "{path} is no outbox, or damaged: if the path is right, save the file and restore it from a copy"
            );
            return OutboxError::Damaged { what, source };
        }
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => read_only(path),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => format!("{path} is locked by another process"),
        _ => format!("{path} cannot be read or written"),
    };
    OutboxError::Storage { what, source }
}

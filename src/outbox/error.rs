//! The failures of an outbox.

use std::error::Error as StdError;

use super::entry::Summary;
use crate::hl7::MessageError;

type Cause = Box<dyn StdError + Send + Sync>;

/// A failed call of an [`Outbox`](super::Outbox).
///
/// `Display` says what this library knows, without message content; the cause beneath it, where
/// there is one, is [`source()`](StdError::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// A setting that cannot be, or a storage that holds something else. Correct it.
    #[error("configuration: {0}")]
    Config(String),
    /// The message could never be delivered, and is not stored. Mend it.
    #[error("the message cannot be sent")]
    InvalidMessage(#[source] MessageError),
    /// There is no room: the outbox's own bound is reached, the disk is full, or the server out of
    /// memory. The entries in the outbox are untouched; it goes on once there is room.
    #[error("{what}")]
    Full {
        /// The storage that is full.
        what: String,
        /// The storage's own error.
        #[source]
        source: Option<Cause>,
    },
    /// The storage cannot be read as it was written. Restore or repair it.
    #[error("{what}")]
    Damaged {
        /// The storage that is damaged.
        what: String,
        /// The storage's own error.
        #[source]
        source: Option<Cause>,
    },
    /// The storage cannot be reached, read or written. It may be possible again later.
    #[error("{what}")]
    Storage {
        /// The call that was not possible.
        what: String,
        /// The storage's own error.
        #[source]
        source: Option<Cause>,
    },
    /// The storage is not the one that this handle has written to: the server came back empty, or
    /// without the last messages; the file was moved away, removed or replaced. Find out what
    /// is missing and push it again; then open the outbox again, or tell this handle to
    /// [go on](super::Outbox::go_on).
    #[error("{what}")]
    StorageReplaced {
        /// The storage, and what is known to be missing.
        what: String,
    },
    /// From [`claim`](super::Outbox::claim): the outbox has stopped the entry at the head, and says
    /// so once. It is held, since its holder ended while it was being sent, or dead, since its
    /// message is damaged.
    #[error(
        "the outbox has stopped {:?} (number {}), which is {} now: {}",
        entry.control_id, entry.id, entry.state.as_str(), entry.last_failure.as_deref().unwrap_or_default()
    )]
    Stopped {
        /// The entry.
        entry: Box<Summary>,
    },
    /// This outbox has no such call or option.
    #[error("{0} is not supported by this outbox")]
    Unsupported(&'static str),
    /// The claim is no more: it was settled or released, its entry was discarded or (before it was
    /// sent) held, or its time had passed and another holder has taken over.
    #[error(
        "the claim is no more: it was settled or given up, its message was discarded or held, or another holder has taken over"
    )]
    ClaimLost,
}

impl OutboxError {
    /// The same without the storage's own error, to be returned to one more caller.
    pub(super) fn retold(&self) -> OutboxError {
        match self {
            OutboxError::Config(what) => OutboxError::Config(what.clone()),
            OutboxError::Full { what, .. } => OutboxError::Full { what: what.clone(), source: None },
            OutboxError::Damaged { what, .. } => OutboxError::Damaged { what: what.clone(), source: None },
            OutboxError::StorageReplaced { what } => OutboxError::StorageReplaced { what: what.clone() },
            other => OutboxError::Storage { what: other.to_string(), source: None },
        }
    }
}

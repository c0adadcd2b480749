//! The failures of an outbox.

use std::error::Error as StdError;

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
    /// There is no room: the bound of a [`MemoryOutbox`](super::MemoryOutbox) is reached, the disk
    /// is full, or the server out of memory. The entries in the outbox are untouched; it goes
    /// on once there is room.
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
    /// The claim is no more: it was settled or released, or its time had passed and another holder
    /// has taken over.
    #[error("the claim is no more: it was settled or given up, or another holder has taken over")]
    ClaimLost,
}

//! An entry of an outbox, and what becomes of it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::frame::Framing;
use crate::hl7::MessageError;
use crate::hl7::header::Header;

/// A message in an outbox. Its `Debug` shows no content.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Its number: larger than that of every entry pushed to this destination before.
    pub id: u64,
    /// The name of its destination, empty where the outbox has none.
    pub destination: Arc<str>,
    /// The message's control ID (MSH-10; of a batch FHS-11 or BHS-11).
    pub control_id: String,
    /// The message, as it was pushed.
    pub message: Vec<u8>,
    /// When it was pushed.
    pub pushed_at: SystemTime,
    /// The state that decides what is done with it.
    pub state: EntryState,
    /// How many attempts to deliver it were settled since it was queued.
    pub attempts: u32,
    /// How many of them the receiver refused, and another attempt followed or is to follow.
    pub refusals: u32,
    /// The same of attempts of which it is not known whether the receiver has it.
    pub unknowns: u32,
    /// How it failed at last, in words without content.
    pub last_failure: Option<String>,
}

impl Entry {
    /// A message that has just been pushed and got this number.
    ///
    /// # Errors
    ///
    /// If it could never be delivered: it is empty, no HL7, without a control ID, or has a framing
    /// byte of MLLP in it (0x0B, 0x1C).
    pub fn new(id: u64, message: impl Into<Vec<u8>>) -> Result<Entry, MessageError> {
        let message = message.into();
        let control_id = Entry::control_id_of(&message)?;
        Ok(Entry {
            id,
            destination: Arc::default(),
            control_id,
            message,
            pushed_at: SystemTime::now(),
            state: EntryState::Waiting,
            attempts: 0,
            refusals: 0,
            unknowns: 0,
            last_failure: None,
        })
    }

    /// The entry's fields after this settlement of its claim. `held`: somebody has held it while it
    /// was being sent. Storages that see that only when they write the fields do the same then.
    pub(super) fn settled<'w>(&self, outcome: Settlement<'w>, held: bool) -> AfterSettlement<'w> {
        let (state, rest) = match outcome {
            Settlement::Delivered => (None, None),
            Settlement::Retry { .. } | Settlement::Unknown { .. } if held => (Some(EntryState::Held), None),
            Settlement::Retry { after, .. } | Settlement::Unknown { after, .. } => {
                (Some(EntryState::Waiting), Some(after))
            }
            Settlement::Held { .. } => (Some(EntryState::Held), None),
            Settlement::Dead { .. } => (Some(EntryState::Dead), None),
        };
        let refused = matches!(outcome, Settlement::Retry { refused: true, .. });
        let unknown = matches!(outcome, Settlement::Unknown { .. });
        AfterSettlement {
            state,
            attempts: self.attempts.saturating_add(1),
            refusals: self.refusals.saturating_add(refused.into()),
            unknowns: self.unknowns.saturating_add(unknown.into()),
            last_failure: outcome.why(),
            rest,
        }
    }

    /// Takes over the fields after a settlement.
    pub(super) fn apply(&mut self, settled: &AfterSettlement<'_>) {
        self.state = settled.state.unwrap_or(self.state);
        self.attempts = settled.attempts;
        self.refusals = settled.refusals;
        self.unknowns = settled.unknowns;
        self.last_failure = settled.last_failure.map(str::to_owned);
    }

    /// The fields of an entry whose holder ended while it was being sent: it is held.
    pub(super) fn orphaned(&self) -> AfterSettlement<'static> {
        self.settled(Settlement::Held { why: ORPHANED }, false)
    }

    /// It waits again, and nothing of its attempts is known any more but how the last one failed.
    pub(super) fn begin_anew(&mut self) {
        self.state = EntryState::Waiting;
        (self.attempts, self.refusals, self.unknowns) = (0, 0, 0);
    }

    /// The control ID of a message, if it can be sent at all.
    pub(super) fn control_id_of(message: &[u8]) -> Result<String, MessageError> {
        Framing::default().check(message)?;
        Ok(String::from_utf8_lossy(Header::read(message)?.control_id).into_owned())
    }

    /// The same of a message that a storage takes up to this size; one that is larger is not read.
    #[cfg(any(feature = "redis", feature = "sqlite"))]
    pub(super) fn control_id_within(limit: usize, message: &[u8]) -> Result<String, MessageError> {
        let size = message.len();
        if size > limit { Err(MessageError::TooLarge { size, limit }) } else { Entry::control_id_of(message) }
    }

    /// All but the message, for [`Outbox::list`](super::Outbox::list) and
    /// [`OutboxError::Stopped`](super::OutboxError::Stopped).
    pub fn summary(&self) -> Summary {
        Summary {
            id: self.id,
            destination: Arc::clone(&self.destination),
            control_id: self.control_id.clone(),
            size: self.message.len() as u64,
            pushed_at: self.pushed_at,
            state: self.state,
            attempts: self.attempts,
            refusals: self.refusals,
            unknowns: self.unknowns,
            last_failure: self.last_failure.clone(),
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("id", &self.id)
            .field("destination", &self.destination)
            .field("control_id", &self.control_id)
            .field("len", &self.message.len())
            .field("pushed_at", &self.pushed_at)
            .field("state", &self.state)
            .field("attempts", &self.attempts)
            .field("refusals", &self.refusals)
            .field("unknowns", &self.unknowns)
            .field("last_failure", &self.last_failure)
            .finish()
    }
}

/// An [`Entry`] without its message, from [`Outbox::list`](super::Outbox::list).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Its number.
    pub id: u64,
    /// The name of its destination, empty where the outbox has none.
    pub destination: Arc<str>,
    /// The message's control ID (MSH-10; of a batch FHS-11 or BHS-11).
    pub control_id: String,
    /// The length of the message in bytes.
    pub size: u64,
    /// When it was pushed.
    pub pushed_at: SystemTime,
    /// The state that decides what is done with it.
    pub state: EntryState,
    /// How many attempts to deliver it were settled since it was queued.
    pub attempts: u32,
    /// How many of them the receiver refused, and another attempt followed or is to follow.
    pub refusals: u32,
    /// The same of attempts of which it is not known whether the receiver has it.
    pub unknowns: u32,
    /// How it failed at last, in words without content.
    pub last_failure: Option<String>,
}

/// The state of an [`Entry`], which decides what is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EntryState {
    /// It waits for its turn.
    Waiting,
    /// It is being sent by a holder that must not send it twice
    /// ([`Outbox::begin`](super::Outbox::begin)).
    Sending,
    /// It is not sent before somebody has decided: since it may have arrived, since a limit was
    /// reached, or since somebody has held it. It keeps its place, and what is younger waits behind
    /// it.
    Held,
    /// It is not sent again, and the others go on without it.
    Dead,
}

impl EntryState {
    /// The word for this state that storages keep: `waiting`, `sending`, `held`, `dead`.
    pub fn as_str(self) -> &'static str {
        match self {
            EntryState::Waiting => "waiting",
            EntryState::Sending => "sending",
            EntryState::Held => "held",
            EntryState::Dead => "dead",
        }
    }

    /// The state of this word.
    pub fn from_word(word: &str) -> Option<EntryState> {
        use EntryState::*;
        [Waiting, Sending, Held, Dead].into_iter().find(|state| state.as_str() == word)
    }
}

/// The fields of an entry after a settlement of its claim.
pub(super) struct AfterSettlement<'w> {
    /// `None` once it is delivered, and leaves the outbox.
    pub(super) state: Option<EntryState>,
    pub(super) attempts: u32,
    pub(super) refusals: u32,
    pub(super) unknowns: u32,
    pub(super) last_failure: Option<&'w str>,
    /// The time for which it is not handed out again.
    pub(super) rest: Option<Duration>,
}

/// The result of a claimed entry, for [`Outbox::settle`](super::Outbox::settle).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settlement<'a> {
    /// The receiver has it.
    Delivered,
    /// It waits on, and is the head: it is not handed out again before so much time has passed, by
    /// the clock of this holder. A holder that comes after this one may have it at once.
    Retry {
        /// The time.
        after: Duration,
        /// Whether the receiver refused it.
        refused: bool,
        /// How it failed, in words without content.
        why: &'a str,
    },
    /// As `Retry`, after an attempt of which it is not known whether the receiver has the message.
    Unknown {
        /// The time.
        after: Duration,
        /// How it failed, in words without content.
        why: &'a str,
    },
    /// It is not sent again before somebody has decided, and those behind it wait.
    Held {
        /// How it failed, in words without content.
        why: &'a str,
    },
    /// It is not sent again, and those behind it go on.
    Dead {
        /// How it failed, in words without content.
        why: &'a str,
    },
}

/// The failure of an entry whose holder ended while it was being sent.
const ORPHANED: &str = "its forwarder ended while it was being sent; whether the receiver has it is unknown: ask there, then queue \
                        it again or discard it";

impl<'a> Settlement<'a> {
    /// The words of the failure.
    pub fn why(self) -> Option<&'a str> {
        match self {
            Settlement::Delivered => None,
            Settlement::Retry { why, .. }
            | Settlement::Unknown { why, .. }
            | Settlement::Held { why }
            | Settlement::Dead { why } => Some(why),
        }
    }
}

/// 128 bits of the system's randomness, in hexadecimal digits: what no storage gives out twice.
/// Empty for what was stored without.
pub(super) type Identity = String;

//! The contract between an outbox, which keeps messages, and a forwarder, which delivers them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::hl7::MessageError;
use crate::hl7::header::Header;
use crate::outbox::OutboxError;

/// Messages that wait for one destination, in order, and what became of those that could not be
/// delivered.
///
/// [`MemoryOutbox`](super::MemoryOutbox), `SqliteOutbox` and `RedisOutbox` are three; implement it
/// for a storage of your own, and run `testing::OutboxSuite` on it. A handle is for one
/// destination, and is shared by threads: those that push, and the one that forwards.
///
/// # Contract
///
/// - **Order.** Entries are numbered in the order in which `push` stored them, and handed out by
///   `claim` in the order of their numbers. The oldest waiting entry is the *head*; no entry
///   overtakes it.
/// - **One claim.** At most one entry of a destination is claimed at a time, over all handles,
///   processes and machines that share the storage. A claim ends by `settle`, by `release`, or with
///   its holder: one that is killed must not keep the line for ever.
/// - **Nothing is lost.** An entry leaves the queue by `settle` alone, as delivered or dead; not by
///   being claimed. What is dead or held is kept until somebody asks for it to be queued again or
///   discarded.
/// - **Nothing is mixed.** Each destination has its own queue, its own claim and its own dead.
/// - **Nothing is changed.** An entry's bytes are those that were pushed.
/// - **Content stays inside.** Message content appears in no error, no `Debug` and no log record.
pub trait Outbox: Send + Sync {
    /// Puts a message at the end of the queue and returns its number. When it returns, the message
    /// survives what this outbox promises to survive.
    ///
    /// # Errors
    ///
    /// [`OutboxError::InvalidMessage`], or any failure to store it. Then the message is not stored,
    /// unless the error says that this is not known.
    fn push(&self, message: &[u8]) -> Result<u64, OutboxError>;

    /// Claims the head, and hands it out. `None` if there is nothing for this handle to do now:
    /// nothing waits, the head is claimed already (through this handle or another), is held, or
    /// was settled to be retried later.
    ///
    /// A head for which [`begin`](Outbox::begin) was called and whose holder ended before it was
    /// settled is held from now on.
    ///
    /// # Errors
    ///
    /// Any failure of the storage. Nothing is claimed then.
    fn claim(&self) -> Result<Option<Claim>, OutboxError>;

    /// Records that the claimed entry is about to be sent, and must not be sent again should its
    /// holder end before it is settled.
    ///
    /// # Errors
    ///
    /// As [`settle`](Outbox::settle).
    fn begin(&self, claim: &Claim) -> Result<(), OutboxError>;

    /// Records what became of the claimed entry, and ends the claim. When it returns, that survives
    /// as a pushed message does.
    ///
    /// The entry's attempts grow by one from those that the claim names, so that settling once more
    /// after a failure does not count twice.
    ///
    /// # Errors
    ///
    /// [`OutboxError::ClaimLost`] if the claim is no more: it was settled before, or another holder
    /// has taken over. Nothing is changed then. After any other failure the claim stays, and
    /// can be settled again.
    fn settle(&self, claim: &Claim, outcome: Settlement<'_>) -> Result<(), OutboxError>;

    /// Gives up the claim of this handle, if it has one, and with it the right to the next one:
    /// another holder can claim at once. The entry waits on, as if its holder had ended.
    fn release(&self);

    /// How much waits, and how much is dead.
    ///
    /// # Errors
    ///
    /// Any failure of the storage.
    fn pending(&self) -> Result<Pending, OutboxError>;

    /// The entries that are held or dead, in the order of their numbers: at most so many, of those
    /// with numbers above `after`.
    ///
    /// # Errors
    ///
    /// Any failure of the storage.
    fn stopped(&self, after: u64, limit: usize) -> Result<Vec<Entry>, OutboxError>;

    /// Lets a held or dead entry wait again, at its old place: it is older than what waits, and so
    /// goes next. Its refusals are forgotten. `false` if no held or dead entry has this number.
    ///
    /// # Errors
    ///
    /// Any failure of the storage.
    fn requeue(&self, id: u64) -> Result<bool, OutboxError>;

    /// Removes a held or dead entry for good. `false` if none has this number.
    ///
    /// # Errors
    ///
    /// Any failure of the storage.
    fn discard(&self, id: u64) -> Result<bool, OutboxError>;

    /// Waits until there may be something new to claim, at most for so long. It may return early.
    fn wait(&self, limit: Duration);
}

impl<O: Outbox + ?Sized> Outbox for Arc<O> {
    fn push(&self, message: &[u8]) -> Result<u64, OutboxError> {
        (**self).push(message)
    }

    fn claim(&self) -> Result<Option<Claim>, OutboxError> {
        (**self).claim()
    }

    fn begin(&self, claim: &Claim) -> Result<(), OutboxError> {
        (**self).begin(claim)
    }

    fn settle(&self, claim: &Claim, outcome: Settlement<'_>) -> Result<(), OutboxError> {
        (**self).settle(claim, outcome)
    }

    fn release(&self) {
        (**self).release();
    }

    fn pending(&self) -> Result<Pending, OutboxError> {
        (**self).pending()
    }

    fn stopped(&self, after: u64, limit: usize) -> Result<Vec<Entry>, OutboxError> {
        (**self).stopped(after, limit)
    }

    fn requeue(&self, id: u64) -> Result<bool, OutboxError> {
        (**self).requeue(id)
    }

    fn discard(&self, id: u64) -> Result<bool, OutboxError> {
        (**self).discard(id)
    }

    fn wait(&self, limit: Duration) {
        (**self).wait(limit);
    }
}

/// A message in an outbox. Its `Debug` shows no content.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Its number: larger than that of every entry pushed to this destination before.
    pub id: u64,
    /// The message's control ID (MSH-10; of a batch FHS-11 or BHS-11).
    pub control_id: String,
    /// The message, as it was pushed.
    pub message: Vec<u8>,
    /// When it was pushed.
    pub pushed_at: SystemTime,
    /// The state that decides what is done with it.
    pub state: EntryState,
    /// How often delivering it has failed.
    pub attempts: u32,
    /// How often of those the receiver refused it, since it was queued.
    pub refusals: u32,
    /// How it failed at last, in words without content.
    pub last_failure: Option<String>,
}

impl Entry {
    /// A message that has just been pushed and got this number.
    ///
    /// # Errors
    ///
    /// If nothing could be known of its acknowledgment: it is empty, no HL7, or without a control
    /// ID.
    pub fn new(id: u64, message: impl Into<Vec<u8>>) -> Result<Entry, MessageError> {
        let message = message.into();
        let control_id = Entry::control_id_of(&message)?;
        Ok(Entry {
            id,
            control_id,
            message,
            pushed_at: SystemTime::now(),
            state: EntryState::Waiting,
            attempts: 0,
            refusals: 0,
            last_failure: None,
        })
    }

    /// The entry's fields after this settlement of its claim. Storages only store them.
    pub(super) fn settled<'w>(&self, outcome: Settlement<'w>) -> AfterSettlement<'w> {
        let (state, rest) = match outcome {
            Settlement::Delivered => (None, None),
            Settlement::Retry { after, .. } => (Some(EntryState::Waiting), Some(after)),
            Settlement::Held { .. } => (Some(EntryState::Held), None),
            Settlement::Dead { .. } => (Some(EntryState::Dead), None),
        };
        let refused = matches!(outcome, Settlement::Retry { refused: true, .. });
        AfterSettlement {
            state,
            attempts: self.attempts.saturating_add(1),
            refusals: self.refusals.saturating_add(refused.into()),
            last_failure: outcome.why(),
            rest,
        }
    }

    /// Takes over the fields after a settlement.
    pub(super) fn apply(&mut self, settled: &AfterSettlement<'_>) {
        self.state = settled.state.unwrap_or(self.state);
        self.attempts = settled.attempts;
        self.refusals = settled.refusals;
        self.last_failure = settled.last_failure.map(str::to_owned);
    }

    /// The fields of an entry whose holder ended while it was being sent: it is held.
    pub(super) fn orphaned(&self) -> AfterSettlement<'static> {
        self.settled(Settlement::Held { why: ORPHANED })
    }

    /// The control ID of a message, if it can be sent at all.
    pub(super) fn control_id_of(message: &[u8]) -> Result<String, MessageError> {
        if message.is_empty() {
            return Err(MessageError::Empty);
        }
        Ok(String::from_utf8_lossy(Header::read(message)?.control_id).into_owned())
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("id", &self.id)
            .field("control_id", &self.control_id)
            .field("len", &self.message.len())
            .field("pushed_at", &self.pushed_at)
            .field("state", &self.state)
            .field("attempts", &self.attempts)
            .field("refusals", &self.refusals)
            .field("last_failure", &self.last_failure)
            .finish()
    }
}

/// The state of an [`Entry`], which decides what is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EntryState {
    /// It waits for its turn.
    Waiting,
    /// It is being sent by a holder that must not send it twice ([`Outbox::begin`]).
    Sending,
    /// It may have arrived, and is not sent again before somebody has decided. It keeps its place,
    /// and what is younger waits behind it.
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

/// The right to send one entry, from [`Outbox::claim`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claim {
    /// The entry.
    pub entry: Entry,
    /// When the claim expires; `None` if it lasts as long as the outbox handle that holds it. After
    /// this instant nothing of the entry may be sent, since another holder may have claimed it.
    pub until: Option<Instant>,
    /// A token by which the outbox distinguishes this claim from those of earlier and later
    /// holders.
    pub token: u64,
    /// What the entry is known by where its number may be given out twice; empty where it may not.
    pub(super) identity: String,
}

impl Claim {
    /// A claim that lasts as long as its holder.
    pub fn new(entry: Entry) -> Claim {
        Claim { entry, until: None, token: 0, identity: String::new() }
    }
}

/// The fields of an entry after a settlement of its claim.
pub(super) struct AfterSettlement<'w> {
    /// `None` once it is delivered, and leaves the outbox.
    pub(super) state: Option<EntryState>,
    pub(super) attempts: u32,
    pub(super) refusals: u32,
    pub(super) last_failure: Option<&'w str>,
    /// The time for which it is not handed out again.
    pub(super) rest: Option<Duration>,
}

/// The result of a claimed entry, for [`Outbox::settle`].
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
const ORPHANED: &str = "its forwarder ended while it was being sent; whether the receiver has it is unknown";

impl<'a> Settlement<'a> {
    /// The words of the failure.
    pub fn why(self) -> Option<&'a str> {
        match self {
            Settlement::Delivered => None,
            Settlement::Retry { why, .. } | Settlement::Held { why } | Settlement::Dead { why } => Some(why),
        }
    }
}

/// How much is in an outbox, from [`Outbox::pending`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pending {
    /// How many entries have not been delivered and are not dead; those that are claimed or held
    /// are among them.
    pub waiting: u64,
    /// When the oldest of them was pushed.
    pub oldest: Option<SystemTime>,
    /// How many are dead.
    pub dead: u64,
}

impl Pending {
    /// Counts: entries that wait, the time since which the oldest of them waits, and dead entries.
    pub fn new(waiting: u64, oldest: Option<SystemTime>, dead: u64) -> Pending {
        Pending { waiting, oldest, dead }
    }
}

//! The contract between an outbox, which keeps messages, and a forwarder, which delivers them.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::OutboxError;
use super::entry::{Entry, EntryState, Identity, Settlement, Summary};
use super::lane::Lane;

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
///   `claim` in the order of their numbers, as far as they are in one [lane](super::Lane). Without
///   lane keys all are in one. The oldest waiting entry of a lane is its *head*; no entry of the
///   lane overtakes it. A barrier is handed out only when it is the oldest entry of the
///   destination, and no younger one is handed out until the barrier has left the queue.
/// - **One claim.** At any moment an entry has at most one claim, a lane has at most one claimed
///   entry, and the destination has at most [`lanes`](Outbox::lanes) claimed entries, counted over
///   all handles, processes and machines that share the storage. A claim ends by `settle`, by
///   `release`, or with its holder: one that is killed must not keep the lane for ever.
/// - **Nothing is lost.** An entry leaves the queue by `settle`, as delivered or dead, or because
///   somebody discards it; not by being claimed. What is dead or held is kept until somebody asks
///   for it to be queued again or discarded.
/// - **Nothing is mixed.** Each destination has its own queue, its own claim and its own dead.
/// - **Nothing is changed.** An entry's bytes are those that were pushed.
/// - **Content stays inside.** Message content appears in no error, no `Debug` and no log record.
pub trait Outbox: Send + Sync {
    /// The name of its destination, for logs and events. Defaults to none: the empty text.
    fn destination(&self) -> &str {
        ""
    }

    /// Puts a message at the end of the queue and returns its number. When it returns, the message
    /// survives what this outbox promises to survive.
    ///
    /// # Errors
    ///
    /// [`OutboxError::InvalidMessage`]; [`OutboxError::Config`] where the destination has another
    /// rule for [lanes](super::LaneKey) than this handle was opened with; or any failure to
    /// store it. Then the message is not stored, unless the error says that this is not known.
    fn push(&self, message: &[u8]) -> Result<u64, OutboxError>;

    /// Claims the oldest head that can be had, and hands it out. `None` if there is nothing for
    /// this handle to do now: nothing waits, or each head is claimed already (through this
    /// handle or another), is held, was settled to be retried later, or waits for a barrier; as
    /// many are claimed as may be; or the destination is paused.
    ///
    /// # Errors
    ///
    /// [`OutboxError::Stopped`], once, for a head that it has stopped: one for which
    /// [`begin`](Outbox::begin) was called and whose holder ended before it was settled is held
    /// from now on; one whose message is not as it was pushed is dead.
    ///
    /// Any failure of the storage. Nothing is claimed then.
    fn claim(&self) -> Result<Option<Claim>, OutboxError>;

    /// Records that the claimed entry is about to be sent, and must not be sent again should its
    /// holder end before it is settled.
    ///
    /// # Errors
    ///
    /// As [`settle`](Outbox::settle); [`OutboxError::ClaimLost`] also if somebody has held the
    /// entry meanwhile, which is not to be sent then.
    fn begin(&self, claim: &Claim) -> Result<(), OutboxError>;

    /// Records what became of the claimed entry, and ends the claim. When it returns, that survives
    /// as a pushed message does.
    ///
    /// The entry's attempts grow by one from those that the claim names, so that settling once more
    /// after a failure does not count twice.
    ///
    /// # Errors
    ///
    /// [`OutboxError::ClaimLost`] if the claim is no more: it was settled before, another holder
    /// has taken over, or the entry was discarded. Nothing is changed then. After any other
    /// failure the claim stays, and can be settled again.
    fn settle(&self, claim: &Claim, outcome: Settlement<'_>) -> Result<(), OutboxError>;

    /// Gives up the claims of this handle, if it has any, and with them the right to the next ones:
    /// another holder can claim at once. The entries wait on, as if their holder had ended.
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

    /// Lets a held or dead entry wait again, at its old place: it goes next in its lane, as soon as
    /// that is free. Its attempts, refusals and unknown results are forgotten. `false` if no held
    /// or dead entry has this number.
    ///
    /// # Errors
    ///
    /// Any failure of the storage.
    fn requeue(&self, id: u64) -> Result<bool, OutboxError>;

    /// Removes an entry for good, whether it waits, is being sent, is held or is dead; not one that
    /// is delivered and kept. `false` if none has this number.
    ///
    /// One that is being sent at this moment may arrive all the same; its holder's settlement is
    /// then [`OutboxError::ClaimLost`].
    ///
    /// # Errors
    ///
    /// Any failure of the storage.
    fn discard(&self, id: u64) -> Result<bool, OutboxError>;

    /// Waits until there may be something new to claim, at most for so long. It may return early.
    fn wait(&self, limit: Duration);

    /// Ends a [`wait`](Outbox::wait) of this handle at once, and says whether it can. Defaults to
    /// `false`: then the forwarder waits for short times only.
    fn wake(&self) -> bool {
        false
    }

    /// How long a claim lasts, where it is a lease; `None`, the default, where it lasts as long as
    /// its holder.
    fn claim_lasts(&self) -> Option<Duration> {
        None
    }

    /// The most entries of this destination that may be claimed at the same time, over all handles.
    /// Defaults to 1.
    fn lanes(&self) -> usize {
        1
    }

    /// Puts a message at the end of the queue as [`push`](Outbox::push) does, with options.
    ///
    /// # Errors
    ///
    /// As `push`; [`OutboxError::Unsupported`] for an option that this outbox does not have, which
    /// is the default for all.
    fn push_with(&self, message: &[u8], options: &PushOptions<'_>) -> Result<u64, OutboxError> {
        match options {
            PushOptions { key: Some(_), .. } => Err(OutboxError::Unsupported("pushing under a key")),
            PushOptions { lane: Some(_), .. } => Err(OutboxError::Unsupported("pushing into a lane")),
            PushOptions { .. } => self.push(message),
        }
    }

    /// The entries in this state, or with `None` all in the queue (that is all but the dead), in
    /// the order of their numbers and without their messages: at most so many, of those with
    /// numbers above `after`.
    ///
    /// # Errors
    ///
    /// Any failure of the storage; [`OutboxError::Unsupported`] is the default.
    fn list(&self, state: Option<EntryState>, after: u64, limit: usize) -> Result<Vec<Summary>, OutboxError> {
        let _ = (state, after, limit);
        Err(OutboxError::Unsupported("listing"))
    }

    /// The entry of this number with its message, whether it waits, is being sent, is held or is
    /// dead; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Any failure of the storage; [`OutboxError::Unsupported`] is the default.
    fn show(&self, id: u64) -> Result<Option<Entry>, OutboxError> {
        let _ = id;
        Err(OutboxError::Unsupported("showing an entry"))
    }

    /// Holds an entry that waits: it keeps its place, is not sent, and those behind it in its lane
    /// wait. An
    /// attempt under way goes on; if it does not deliver the message, the entry is held after it.
    /// `false` if no entry that waits or is being sent has this number.
    ///
    /// # Errors
    ///
    /// Any failure of the storage; [`OutboxError::Unsupported`] is the default.
    fn hold(&self, id: u64) -> Result<bool, OutboxError> {
        let _ = id;
        Err(OutboxError::Unsupported("holding an entry"))
    }

    /// Lets a held entry wait again, with all that is known of its attempts. `false` if no held
    /// entry has this number.
    ///
    /// # Errors
    ///
    /// Any failure of the storage; [`OutboxError::Unsupported`] is the default.
    fn unhold(&self, id: u64) -> Result<bool, OutboxError> {
        let _ = id;
        Err(OutboxError::Unsupported("letting a held entry go on"))
    }

    /// Lets the heads that rest before they are tried again be claimed at once, whichever instance
    /// has tried them.
    ///
    /// # Errors
    ///
    /// Any failure of the storage; [`OutboxError::Unsupported`] is the default.
    fn try_now(&self) -> Result<(), OutboxError> {
        Err(OutboxError::Unsupported("ending the rest before an attempt"))
    }

    /// Pushes a delivered entry once more, where delivered entries are kept: a new entry with the
    /// same bytes, at the end of the queue. The number of the delivered one is that which `push`
    /// has returned, and the view `show_delivered` of `SqliteOutbox` shows. Returns the new
    /// number; `None` if no delivered entry has this one.
    ///
    /// # Errors
    ///
    /// Any failure of the storage; [`OutboxError::Unsupported`] is the default.
    fn resend(&self, id: u64) -> Result<Option<u64>, OutboxError> {
        let _ = id;
        Err(OutboxError::Unsupported("sending again what was delivered"))
    }

    /// Pauses the destination, or lets it go on: while it is paused, `claim` hands out nothing,
    /// to any handle. The storage keeps it. [`Pending::paused`] tells it.
    ///
    /// # Errors
    ///
    /// Any failure of the storage; [`OutboxError::Unsupported`] is the default.
    fn set_paused(&self, paused: bool) -> Result<(), OutboxError> {
        let _ = paused;
        Err(OutboxError::Unsupported("pausing a destination"))
    }

    /// Accepts the storage as it is after [`OutboxError::StorageReplaced`], as opening it again
    /// would. The default does nothing.
    ///
    /// # Errors
    ///
    /// Any failure of the storage; `StorageReplaced` still where the file has been moved away or
    /// replaced: open the outbox again.
    fn go_on(&self) -> Result<(), OutboxError> {
        Ok(())
    }

    /// Discards all entries in this state, or with `None` in the queue, that match; says how many.
    /// Entries that are pushed meanwhile may be among them, or may not.
    ///
    /// # Errors
    ///
    /// As [`list`](Outbox::list) and [`discard`](Outbox::discard). Some may be discarded then.
    fn discard_all(&self, state: Option<EntryState>, matches: &dyn Fn(&Summary) -> bool) -> Result<u64, OutboxError> {
        let (mut after, mut count, begun) = (0, 0, SystemTime::now());
        loop {
            let page = self.list(state, after, 256)?;
            let Some(last) = page.last() else { return Ok(count) };
            // What is pushed from now on is not its business, and might never end.
            if page.iter().all(|entry| entry.pushed_at > begun) {
                return Ok(count);
            }
            after = last.id;
            for entry in page.iter().filter(|entry| matches(entry)) {
                count += u64::from(self.discard(entry.id)?);
            }
        }
    }
}

impl<O: Outbox + ?Sized> Outbox for Arc<O> {
    fn destination(&self) -> &str {
        (**self).destination()
    }

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

    fn wake(&self) -> bool {
        (**self).wake()
    }

    fn claim_lasts(&self) -> Option<Duration> {
        (**self).claim_lasts()
    }

    fn lanes(&self) -> usize {
        (**self).lanes()
    }

    fn push_with(&self, message: &[u8], options: &PushOptions<'_>) -> Result<u64, OutboxError> {
        (**self).push_with(message, options)
    }

    fn list(&self, state: Option<EntryState>, after: u64, limit: usize) -> Result<Vec<Summary>, OutboxError> {
        (**self).list(state, after, limit)
    }

    fn show(&self, id: u64) -> Result<Option<Entry>, OutboxError> {
        (**self).show(id)
    }

    fn hold(&self, id: u64) -> Result<bool, OutboxError> {
        (**self).hold(id)
    }

    fn unhold(&self, id: u64) -> Result<bool, OutboxError> {
        (**self).unhold(id)
    }

    fn try_now(&self) -> Result<(), OutboxError> {
        (**self).try_now()
    }

    fn resend(&self, id: u64) -> Result<Option<u64>, OutboxError> {
        (**self).resend(id)
    }

    fn set_paused(&self, paused: bool) -> Result<(), OutboxError> {
        (**self).set_paused(paused)
    }

    fn go_on(&self) -> Result<(), OutboxError> {
        (**self).go_on()
    }

    fn discard_all(&self, state: Option<EntryState>, matches: &dyn Fn(&Summary) -> bool) -> Result<u64, OutboxError> {
        (**self).discard_all(state, matches)
    }
}

/// Options of a push, for [`Outbox::push_with`].
///
/// ```
/// use mllp_client::outbox::{MemoryOutbox, Outbox, PushOptions};
///
/// let outbox = MemoryOutbox::new(1_000, 64 * 1024 * 1024);
/// let message = b"MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5\r";
/// let options = PushOptions::new().key("result 4711, version 2");
/// let first = outbox.push_with(message, &options)?;
/// assert_eq!(outbox.push_with(message, &options)?, first);
/// assert_eq!(outbox.pending()?.waiting, 1);
/// # Ok::<(), mllp_client::outbox::OutboxError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct PushOptions<'a> {
    pub(super) key: Option<&'a str>,
    pub(super) lane: Option<&'a Lane>,
}

impl<'a> PushOptions<'a> {
    /// No options: the same as [`Outbox::push`].
    pub fn new() -> PushOptions<'a> {
        PushOptions::default()
    }

    /// A key that makes a repeated push harmless (not that of a lane, which is
    /// [`lane`](PushOptions::lane)): while the outbox knows an entry of this destination that was
    /// pushed under it, a push under the same key stores nothing and returns that entry's
    /// number. So a program that was killed before it knew whether a push succeeded can repeat
    /// it. The outbox says how long it knows a key. It is stored as it is, so it ought not to
    /// name a patient.
    pub fn key(self, key: &'a str) -> PushOptions<'a> {
        PushOptions { key: Some(key), ..self }
    }

    /// The lane of this message, whatever the rule that the outbox was opened with says.
    pub fn lane(self, lane: &'a Lane) -> PushOptions<'a> {
        PushOptions { lane: Some(lane), ..self }
    }

    /// The key, if one was given, for an outbox of your own.
    pub fn given_key(&self) -> Option<&'a str> {
        self.key
    }

    /// The lane, if one was given, for an outbox of your own.
    pub fn given_lane(&self) -> Option<&'a Lane> {
        self.lane
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
    /// `true`: no other entry of the destination can be claimed as long as this one is, also none
    /// that is pushed meanwhile. `false`: perhaps one can, and a forwarder of several lanes has
    /// another thread look for it. A wrong `true` leaves lanes idle.
    pub is_alone: bool,
    /// What the entry is known by where its number may be given out twice; empty where it may not.
    pub(super) identity: Identity,
    /// Its number among the claims of its handle.
    pub(super) serial: u64,
}

impl Claim {
    /// A claim that lasts as long as its holder, beside which nothing can be claimed.
    pub fn new(entry: Entry) -> Claim {
        Claim { entry, until: None, token: 0, is_alone: true, identity: String::new(), serial: 0 }
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
    /// How many of them are held.
    pub held: u64,
    /// How many are dead.
    pub dead: u64,
    /// How many lanes have a first entry that is held or rests before it is tried again; that of
    /// messages without a key and that of barriers count as one each. Lanes that wait for a barrier
    /// are not counted.
    pub blocked: u64,
    /// Whether the destination is paused.
    pub paused: bool,
}

impl Pending {
    /// Counts: entries that wait, the time since which the oldest of them waits, and dead entries.
    /// None is held, no lane is blocked, and the destination is not paused; set these fields where
    /// it is otherwise.
    pub fn new(waiting: u64, oldest: Option<SystemTime>, dead: u64) -> Pending {
        Pending { waiting, oldest, held: 0, dead, blocked: 0, paused: false }
    }
}

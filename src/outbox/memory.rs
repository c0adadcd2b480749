//! Messages in memory, bounded.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::local_claim::LocalClaim;
use super::wake_up::WakeUp;
use super::{Claim, Entry, EntryState, Outbox, OutboxError, Pending, Settlement};
use crate::deadline::Deadline;
use crate::hl7::MessageError;
use crate::locks::lock;

/// An [`Outbox`] in memory, bounded by count and bytes. It survives nothing but its receiver: what
/// it holds is gone with the process.
///
/// Clones share its content. What is held or dead counts towards the bounds, until it is discarded
/// or delivered.
///
/// # Examples
///
/// ```
/// use mllp_client::outbox::{MemoryOutbox, Outbox};
///
/// let outbox = MemoryOutbox::new(1_000, 64 * 1024 * 1024);
/// outbox.push(b"MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5\r")?;
/// assert_eq!(outbox.pending()?.waiting, 1);
/// # Ok::<(), mllp_client::outbox::OutboxError>(())
/// ```
#[derive(Clone)]
pub struct MemoryOutbox {
    max_entries: usize,
    max_bytes: usize,
    when_full: WhenFull,
    shared: Arc<MemoryShared>,
}

#[derive(Clone, Copy, Debug)]
enum WhenFull {
    Wait(Duration),
    DropOldest,
}

#[derive(Default)]
struct MemoryShared {
    queue: Mutex<MemoryQueue>,
    room: Condvar,
    wake_up: WakeUp,
}

#[derive(Default)]
struct MemoryQueue {
    last_id: u64,
    waiting: BTreeMap<u64, Entry>,
    dead: BTreeMap<u64, Entry>,
    bytes: usize,
    dropped: u64,
    local_claim: LocalClaim,
}

impl MemoryOutbox {
    /// An empty outbox for at most so many entries and so many bytes of messages. When it is full,
    /// `push` says so at once.
    pub fn new(max_entries: usize, max_bytes: usize) -> MemoryOutbox {
        MemoryOutbox { max_entries, max_bytes, when_full: WhenFull::Wait(Duration::ZERO), shared: Arc::default() }
    }

    /// This handle's `push` waits for room, at most for so long. Defaults to not at all.
    pub fn wait_when_full(self, limit: Duration) -> MemoryOutbox {
        MemoryOutbox { when_full: WhenFull::Wait(limit), ..self }
    }

    /// This handle's `push` makes room by throwing away the oldest entries that wait: those
    /// messages are **lost**. An entry that is being sent, is held or is dead is never thrown
    /// away. Defaults to not.
    pub fn drop_oldest_when_full(self) -> MemoryOutbox {
        MemoryOutbox { when_full: WhenFull::DropOldest, ..self }
    }

    /// How many entries were thrown away to make room.
    pub fn dropped(&self) -> u64 {
        self.shared.lock().dropped
    }

    fn has_room_for(&self, queue: &MemoryQueue, size: usize) -> bool {
        queue.waiting.len() + queue.dead.len() < self.max_entries && queue.bytes + size <= self.max_bytes
    }

    /// Makes room for a message of this size as `when_full` says: waits, or drops the oldest
    /// entries. Whether there is room afterwards is for the caller to look at.
    fn make_room(&self, size: usize) -> MutexGuard<'_, MemoryQueue> {
        let mut queue = self.shared.lock();
        match self.when_full {
            WhenFull::DropOldest => {
                // Nothing is thrown away for a message that would not fit all the same.
                let kept = || queue.waiting.values().filter(|entry| !queue.may_drop(entry)).chain(queue.dead.values());
                let bytes: usize = kept().map(|entry| entry.message.len()).sum();
                if kept().count() < self.max_entries && bytes + size <= self.max_bytes {
                    while !self.has_room_for(&queue, size) && queue.drop_oldest() {}
                }
                queue
            }
            WhenFull::Wait(limit) => {
                let deadline = Deadline::after(limit);
                while !self.has_room_for(&queue, size) {
                    let Some(left) = deadline.remaining() else { break };
                    queue = self.shared.room.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
                }
                queue
            }
        }
    }
}

impl MemoryShared {
    fn lock(&self) -> MutexGuard<'_, MemoryQueue> {
        lock(&self.queue)
    }
}

impl MemoryQueue {
    fn drop_oldest(&mut self) -> bool {
        let oldest = self.waiting.values().find(|entry| self.may_drop(entry));
        let Some(id) = oldest.map(|entry| entry.id) else { return false };
        let entry = self.waiting.remove(&id);
        self.forget(entry);
        self.dropped += 1;
        log::warn!("an outbox in memory is full and has thrown away its entry {id}, as it was told to");
        true
    }

    fn may_drop(&self, entry: &Entry) -> bool {
        entry.state == EntryState::Waiting && Some(entry.id) != self.local_claim.claimed()
    }

    fn forget(&mut self, entry: Option<Entry>) -> bool {
        self.bytes -= entry.as_ref().map_or(0, |entry| entry.message.len());
        entry.is_some()
    }

    fn is_held(&self, id: u64) -> bool {
        self.waiting.get(&id).is_some_and(|entry| entry.state == EntryState::Held)
    }
}

impl Outbox for MemoryOutbox {
    fn push(&self, message: &[u8]) -> Result<u64, OutboxError> {
        let entry = Entry::new(0, message).map_err(OutboxError::InvalidMessage)?;
        if message.len() > self.max_bytes {
            let error = MessageError::TooLarge { size: message.len(), limit: self.max_bytes };
            return Err(OutboxError::InvalidMessage(error));
        }
        let mut queue = self.make_room(message.len());
        if !self.has_room_for(&queue, message.len()) {
            let (entries, dead, bytes) = (queue.waiting.len(), queue.dead.len(), queue.bytes);
            let what = format!("the outbox is full: {entries} entries waiting and {dead} dead, of {bytes} bytes");
            return Err(OutboxError::Full { what, source: None });
        }
        queue.last_id += 1;
        let id = queue.last_id;
        queue.bytes += message.len();
        queue.waiting.insert(id, Entry { id, ..entry });
        drop(queue);
        self.shared.wake_up.notify();
        Ok(id)
    }

    fn claim(&self) -> Result<Option<Claim>, OutboxError> {
        let mut queue = self.shared.lock();
        let MemoryQueue { waiting, local_claim, .. } = &mut *queue;
        let Some(mut head) = waiting.first_entry().filter(|_| local_claim.claimed().is_none()) else { return Ok(None) };
        let entry = head.get_mut();
        match entry.state {
            EntryState::Waiting if local_claim.resting() == Some(entry.id) => Ok(None),
            EntryState::Waiting => {
                local_claim.begin(entry.id);
                Ok(Some(Claim::new(entry.clone())))
            }
            EntryState::Sending => {
                entry.apply(&entry.orphaned());
                Ok(None)
            }
            EntryState::Held | EntryState::Dead => Ok(None),
        }
    }

    fn begin(&self, claim: &Claim) -> Result<(), OutboxError> {
        let mut queue = self.shared.lock();
        let id = claim.entry.id;
        if queue.local_claim.claimed() != Some(id) {
            return Err(OutboxError::ClaimLost);
        }
        let entry = queue.waiting.get_mut(&id).ok_or(OutboxError::ClaimLost)?;
        entry.state = EntryState::Sending;
        Ok(())
    }

    fn settle(&self, claim: &Claim, outcome: Settlement<'_>) -> Result<(), OutboxError> {
        let mut queue = self.shared.lock();
        let id = claim.entry.id;
        if queue.local_claim.claimed() != Some(id) {
            return Err(OutboxError::ClaimLost);
        }
        let settled = claim.entry.settled(outcome);
        queue.local_claim.end(settled.rest);
        let mut entry = queue.waiting.remove(&id).ok_or(OutboxError::ClaimLost)?;
        entry.apply(&settled);
        match settled.state {
            None => {
                queue.forget(Some(entry));
            }
            Some(state) => {
                let entries = if state == EntryState::Dead { &mut queue.dead } else { &mut queue.waiting };
                entries.insert(id, entry);
            }
        }
        drop(queue);
        self.shared.room.notify_all();
        Ok(())
    }

    fn release(&self) {
        self.shared.lock().local_claim.end(None);
        self.shared.wake_up.notify();
    }

    fn pending(&self) -> Result<Pending, OutboxError> {
        let queue = self.shared.lock();
        let oldest = queue.waiting.first_key_value().map(|(_, entry)| entry.pushed_at);
        Ok(Pending::new(queue.waiting.len() as u64, oldest, queue.dead.len() as u64))
    }

    fn stopped(&self, after: u64, limit: usize) -> Result<Vec<Entry>, OutboxError> {
        let queue = self.shared.lock();
        let held = queue.waiting.values().filter(|entry| entry.state == EntryState::Held);
        let mut stopped: Vec<Entry> =
            held.chain(queue.dead.values()).filter(|entry| entry.id > after).cloned().collect();
        stopped.sort_by_key(|entry| entry.id);
        stopped.truncate(limit);
        Ok(stopped)
    }

    fn requeue(&self, id: u64) -> Result<bool, OutboxError> {
        let mut queue = self.shared.lock();
        let stopped = if queue.is_held(id) { queue.waiting.remove(&id) } else { queue.dead.remove(&id) };
        let Some(entry) = stopped else { return Ok(false) };
        queue.waiting.insert(id, Entry { state: EntryState::Waiting, refusals: 0, ..entry });
        queue.local_claim.end_rest(id);
        drop(queue);
        self.shared.wake_up.notify();
        Ok(true)
    }

    fn discard(&self, id: u64) -> Result<bool, OutboxError> {
        let mut queue = self.shared.lock();
        let stopped = if queue.is_held(id) { queue.waiting.remove(&id) } else { queue.dead.remove(&id) };
        let discarded = queue.forget(stopped);
        drop(queue);
        self.shared.room.notify_all();
        self.shared.wake_up.notify();
        Ok(discarded)
    }

    fn wait(&self, limit: Duration) {
        self.shared.wake_up.wait(limit);
    }
}

impl fmt::Debug for MemoryOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.shared.lock();
        f.debug_struct("MemoryOutbox")
            .field("waiting", &queue.waiting.len())
            .field("dead", &queue.dead.len())
            .field("bytes", &queue.bytes)
            .finish_non_exhaustive()
    }
}

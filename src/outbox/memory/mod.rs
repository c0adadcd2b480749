//! Messages in memory, bounded.

mod lanes;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::local_claim::LocalClaims;
use super::wake_up::WakeUp;
use super::{Claim, Entry, EntryState, LaneKey, Outbox, OutboxError, Pending, PushOptions, Settlement, Summary};
use crate::deadline::Deadline;
use crate::hl7::MessageError;
use crate::locks::lock;
use lanes::Lanes;

/// An [`Outbox`] in memory, bounded by count and bytes. It survives nothing but its receiver: what
/// it holds is gone with the process.
///
/// Clones share its content. What is held or dead counts towards the bounds, until it is discarded
/// or delivered. A key under which a message was pushed is known as long as the message is there.
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
    lane_key: LaneKey,
    lanes: usize,
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
    /// All but the dead.
    entries: BTreeMap<u64, Entry>,
    dead: BTreeMap<u64, Entry>,
    /// Which of the entries are held.
    held: BTreeSet<u64>,
    /// Which of them were begun to be sent, and not settled since.
    begun: BTreeSet<u64>,
    /// Which of them may be thrown away, with their sizes, and these together.
    droppable: BTreeMap<u64, usize>,
    droppable_bytes: usize,
    /// The numbers of entries by the keys under which they were pushed, and the other way.
    by_key: HashMap<String, u64>,
    keys: HashMap<u64, String>,
    bytes: usize,
    dropped: u64,
    paused: bool,
    local_claims: LocalClaims,
    lanes: Lanes,
}

impl MemoryOutbox {
    /// An empty outbox for at most so many entries and so many bytes of messages. When it is full,
    /// `push` says so at once.
    pub fn new(max_entries: usize, max_bytes: usize) -> MemoryOutbox {
        let when_full = WhenFull::Wait(Duration::ZERO);
        MemoryOutbox {
            max_entries,
            max_bytes,
            when_full,
            lane_key: LaneKey::default(),
            lanes: 1,
            shared: Arc::default(),
        }
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

    /// The rule that gives the messages that this handle pushes their lanes. Set it before cloning:
    /// nothing refuses that clones have different rules, and give one patient two lanes. Defaults
    /// to [`LaneKey::Destination`].
    pub fn lane_key(self, rule: LaneKey) -> MemoryOutbox {
        MemoryOutbox { lane_key: rule, ..self }
    }

    /// The most entries that may be claimed at the same time, over all clones. Defaults to 1; 0 is
    /// treated as 1.
    pub fn lanes(self, count: usize) -> MemoryOutbox {
        MemoryOutbox { lanes: count.max(1), ..self }
    }

    /// How many entries were thrown away to make room.
    pub fn dropped(&self) -> u64 {
        self.shared.lock().dropped
    }

    /// Whether a message of this size fits beside what is kept in any case: so many entries, of so
    /// many bytes.
    fn fits(&self, size: usize, (entries, bytes): (usize, usize)) -> bool {
        entries < self.max_entries && bytes + size <= self.max_bytes
    }

    /// Makes room for a message of this size as `when_full` says: waits, or drops the oldest
    /// entries. Whether there is room afterwards is for the caller to look at.
    fn make_room(&self, size: usize) -> MutexGuard<'_, MemoryQueue> {
        let mut queue = self.shared.lock();
        match self.when_full {
            WhenFull::DropOldest => {
                // Nothing is thrown away for a message that would not fit all the same.
                if self.fits(size, queue.undroppable()) {
                    while !self.fits(size, queue.all()) && queue.drop_oldest() {}
                }
                queue
            }
            WhenFull::Wait(limit) => {
                let deadline = Deadline::after(limit);
                while !self.fits(size, queue.all()) {
                    let Some(left) = deadline.remaining() else { break };
                    queue = self.shared.room.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
                }
                queue
            }
        }
    }
}

impl MemoryOutbox {
    /// Does to an entry what an operator has asked for; `false` if there is none that it concerns.
    fn operate(
        &self,
        order: &str,
        id: u64,
        change: impl FnOnce(&mut MemoryQueue) -> bool,
    ) -> Result<bool, OutboxError> {
        let is_done = self.shared.change(change);
        if is_done {
            log::info!("an outbox in memory: {order}, entry {id}");
        }
        Ok(is_done)
    }
}

impl MemoryShared {
    fn lock(&self) -> MutexGuard<'_, MemoryQueue> {
        lock(&self.queue)
    }

    /// Makes a change after which there may be room, or something to claim.
    fn change<T>(&self, change: impl FnOnce(&mut MemoryQueue) -> T) -> T {
        let changed = change(&mut self.lock());
        self.room.notify_all();
        self.wake_up.notify();
        changed
    }
}

impl MemoryQueue {
    /// How many entries there are, and of how many bytes.
    fn all(&self) -> (usize, usize) {
        (self.entries.len() + self.dead.len(), self.bytes)
    }

    /// The same of those that may not be thrown away.
    fn undroppable(&self) -> (usize, usize) {
        let (entries, bytes) = self.all();
        (entries - self.droppable.len(), bytes - self.droppable_bytes)
    }

    fn drop_oldest(&mut self) -> bool {
        let Some((&id, _)) = self.droppable.first_key_value() else { return false };
        let control_id = self.remove(id).map(|entry| entry.control_id).unwrap_or_default();
        self.dropped += 1;
        log::warn!("an outbox in memory is full and has thrown away {control_id:?} (number {id}), as it was told to");
        true
    }

    /// Takes an entry out for good.
    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.entries.remove(&id).or_else(|| self.dead.remove(&id))?;
        self.bytes -= entry.message.len();
        self.begun.remove(&id);
        if let Some(key) = self.keys.remove(&id) {
            self.by_key.remove(&key);
        }
        self.reindex(id);
        self.lanes.forget(id);
        Some(entry)
    }

    /// Puts an entry where its state says.
    fn put(&mut self, entry: Entry) {
        let id = entry.id;
        let entries = if entry.state == EntryState::Dead { &mut self.dead } else { &mut self.entries };
        entries.insert(id, entry);
        self.reindex(id);
    }

    /// Notes anew whether an entry is held, can be claimed, and may be thrown away.
    fn reindex(&mut self, id: u64) {
        let found = self.entries.get(&id).map(|entry| (entry.state, entry.message.len()));
        self.held.remove(&id);
        self.droppable_bytes -= self.droppable.remove(&id).unwrap_or_default();
        match found {
            Some((EntryState::Held, _)) => {
                self.held.insert(id);
            }
            Some((EntryState::Waiting, size)) if !self.lanes.is_claimed(id) => {
                self.droppable.insert(id, size);
                self.droppable_bytes += size;
            }
            _ => {}
        }
        self.lanes.refresh(id, &self.entries);
    }

    /// Ends the claim of an entry. It is to rest for so long, if it is to be tried again.
    fn end_claim(&mut self, id: u64, rest: Option<Duration>) {
        self.local_claims.end(id);
        self.lanes.end_claim(id, rest, &self.entries);
        self.reindex(id);
    }

    /// The entry of a claim, if it is there and the claim is this one.
    fn claimed(&mut self, claim: &Claim) -> Result<&mut Entry, OutboxError> {
        let id = claim.entry.id;
        if !self.local_claims.is(claim) {
            return Err(OutboxError::ClaimLost);
        }
        if !self.entries.contains_key(&id) {
            self.end_claim(id, None);
        }
        self.entries.get_mut(&id).ok_or(OutboxError::ClaimLost)
    }

    /// Changes an entry that is in one of these states; says whether there is one.
    fn change(&mut self, id: u64, from: &[EntryState], change: impl FnOnce(&mut Entry)) -> bool {
        let entry = self.entries.get(&id).or_else(|| self.dead.get(&id));
        if entry.is_none_or(|entry| !from.contains(&entry.state)) {
            return false;
        }
        let Some(mut entry) = self.entries.remove(&id).or_else(|| self.dead.remove(&id)) else { return false };
        change(&mut entry);
        self.put(entry);
        true
    }
}

impl Outbox for MemoryOutbox {
    fn push(&self, message: &[u8]) -> Result<u64, OutboxError> {
        self.push_with(message, &PushOptions::new())
    }

    fn push_with(&self, message: &[u8], options: &PushOptions<'_>) -> Result<u64, OutboxError> {
        let entry = Entry::new(0, message).map_err(OutboxError::InvalidMessage)?;
        if message.len() > self.max_bytes {
            let error = MessageError::TooLarge { size: message.len(), limit: self.max_bytes };
            return Err(OutboxError::InvalidMessage(error));
        }
        let lane = options.lane.cloned().unwrap_or_else(|| self.lane_key.lane_of(message));
        let known = |queue: &MemoryQueue| options.key.and_then(|key| queue.by_key.get(key).copied());
        if let Some(id) = known(&self.shared.lock()) {
            return Ok(id);
        }
        let mut queue = self.make_room(message.len());
        // Another may have pushed it while this one waited for room.
        if let Some(id) = known(&queue) {
            return Ok(id);
        }
        if !self.fits(message.len(), queue.all()) {
            let (entries, dead, bytes) = (queue.entries.len(), queue.dead.len(), queue.bytes);
            let what =
                format!("the outbox is full: it has {entries} entries waiting and {dead} dead, together {bytes} bytes");
            return Err(OutboxError::Full { what, source: None });
        }
        queue.last_id += 1;
        let id = queue.last_id;
        queue.bytes += message.len();
        let lane = queue.lanes.id(&lane);
        queue.lanes.add(id, lane);
        queue.put(Entry { id, ..entry });
        if let Some(key) = options.key {
            queue.by_key.insert(key.to_owned(), id);
            queue.keys.insert(id, key.to_owned());
        }
        drop(queue);
        self.shared.wake_up.notify();
        Ok(id)
    }

    fn claim(&self) -> Result<Option<Claim>, OutboxError> {
        let mut queue = self.shared.lock();
        let queue = &mut *queue;
        queue.lanes.end_due_rests(&queue.entries);
        if queue.paused || queue.local_claims.count() >= self.lanes {
            return Ok(None);
        }
        let Some(id) = queue.lanes.next(&queue.entries) else { return Ok(None) };
        let Some(entry) = queue.entries.get(&id) else { return Ok(None) };
        if entry.state == EntryState::Sending {
            queue.change(id, &[EntryState::Sending], |entry| entry.apply(&entry.orphaned()));
            queue.begun.remove(&id);
            let entry = queue.entries.get(&id).map(Entry::summary);
            return entry.map_or(Ok(None), |entry| Err(OutboxError::Stopped { entry: Box::new(entry) }));
        }
        let claim = Claim::new(entry.clone());
        let serial = queue.local_claims.begin(id);
        queue.lanes.claim(id);
        queue.reindex(id);
        let has_one = matches!(self.lane_key, LaneKey::Destination) && !queue.lanes.are_used();
        let is_alone = self.lanes == 1 || has_one;
        Ok(Some(Claim { serial, token: serial, is_alone, ..claim }))
    }

    fn begin(&self, claim: &Claim) -> Result<(), OutboxError> {
        let mut queue = self.shared.lock();
        let entry = queue.claimed(claim)?;
        // One that was held meanwhile is not sent.
        if entry.state == EntryState::Held {
            queue.end_claim(claim.entry.id, None);
            return Err(OutboxError::ClaimLost);
        }
        entry.state = EntryState::Sending;
        queue.begun.insert(claim.entry.id);
        Ok(())
    }

    fn settle(&self, claim: &Claim, outcome: Settlement<'_>) -> Result<(), OutboxError> {
        let id = claim.entry.id;
        self.shared.change(|queue| {
            let held = queue.claimed(claim)?.state == EntryState::Held;
            let settled = claim.entry.settled(outcome, held);
            queue.end_claim(id, settled.rest);
            queue.begun.remove(&id);
            if settled.state.is_none() {
                queue.remove(id);
            } else if let Some(mut entry) = queue.entries.remove(&id) {
                entry.apply(&settled);
                queue.put(entry);
            }
            Ok(())
        })
    }

    fn release(&self) {
        self.shared.change(|queue| {
            queue.local_claims.end_all().into_iter().for_each(|id| queue.end_claim(id, None));
            queue.lanes.end_all_rests(&queue.entries);
        });
    }

    fn pending(&self) -> Result<Pending, OutboxError> {
        let queue = self.shared.lock();
        let oldest = queue.entries.first_key_value().map(|(_, entry)| entry.pushed_at);
        let pending = Pending::new(queue.entries.len() as u64, oldest, queue.dead.len() as u64);
        let (held, blocked) = (queue.held.len() as u64, queue.lanes.blocked() as u64);
        Ok(Pending { held, blocked, paused: queue.paused, ..pending })
    }

    fn stopped(&self, after: u64, limit: usize) -> Result<Vec<Entry>, OutboxError> {
        let queue = self.shared.lock();
        let range = (Bound::Excluded(after), Bound::Unbounded);
        let held = queue.held.range(range).take(limit).filter_map(|id| queue.entries.get(id));
        let dead = queue.dead.range(range).take(limit).map(|(_, entry)| entry);
        let mut stopped: Vec<&Entry> = held.chain(dead).collect();
        stopped.sort_by_key(|entry| entry.id);
        Ok(stopped.into_iter().take(limit).cloned().collect())
    }

    fn requeue(&self, id: u64) -> Result<bool, OutboxError> {
        self.operate("requeue", id, |queue| {
            queue.change(id, &[EntryState::Held, EntryState::Dead], Entry::begin_anew) && {
                queue.begun.remove(&id);
                queue.lanes.end_rest(id, &queue.entries);
                true
            }
        })
    }

    fn discard(&self, id: u64) -> Result<bool, OutboxError> {
        self.operate("discard", id, |queue| queue.remove(id).is_some())
    }

    fn wait(&self, limit: Duration) {
        let rest =
            self.shared.lock().lanes.next_rest_ends().map(|until| until.saturating_duration_since(Instant::now()));
        self.shared.wake_up.wait(limit.min(rest.unwrap_or(limit)));
    }

    fn wake(&self) -> bool {
        self.shared.wake_up.notify();
        true
    }

    fn lanes(&self) -> usize {
        self.lanes
    }

    fn list(&self, state: Option<EntryState>, after: u64, limit: usize) -> Result<Vec<Summary>, OutboxError> {
        let queue = self.shared.lock();
        let range = (Bound::Excluded(after), Bound::Unbounded);
        let entries = if state == Some(EntryState::Dead) { &queue.dead } else { &queue.entries };
        let listed = entries.range(range).map(|(_, entry)| entry);
        let listed = listed.filter(|entry| state.is_none_or(|state| entry.state == state));
        Ok(listed.take(limit).map(Entry::summary).collect())
    }

    fn show(&self, id: u64) -> Result<Option<Entry>, OutboxError> {
        let queue = self.shared.lock();
        Ok(queue.entries.get(&id).or_else(|| queue.dead.get(&id)).cloned())
    }

    fn hold(&self, id: u64) -> Result<bool, OutboxError> {
        let states = [EntryState::Waiting, EntryState::Sending];
        self.operate("hold", id, |queue| queue.change(id, &states, |entry| entry.state = EntryState::Held))
    }

    fn unhold(&self, id: u64) -> Result<bool, OutboxError> {
        self.operate("unhold", id, |queue| {
            // What was being sent when it was held may be so still.
            let state = if queue.begun.contains(&id) { EntryState::Sending } else { EntryState::Waiting };
            queue.change(id, &[EntryState::Held], |entry| entry.state = state) && {
                queue.lanes.end_rest(id, &queue.entries);
                true
            }
        })
    }

    fn try_now(&self) -> Result<(), OutboxError> {
        self.shared.change(|queue| queue.lanes.end_all_rests(&queue.entries));
        Ok(())
    }

    fn set_paused(&self, paused: bool) -> Result<(), OutboxError> {
        self.shared.change(|queue| queue.paused = paused);
        Ok(())
    }
}

impl fmt::Debug for MemoryOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.shared.lock();
        f.debug_struct("MemoryOutbox")
            .field("waiting", &queue.entries.len())
            .field("dead", &queue.dead.len())
            .field("bytes", &queue.bytes)
            .finish_non_exhaustive()
    }
}

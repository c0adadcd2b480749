//! The claims of a destination that a handle has: they are numbered, and each is a lock of its own
//! ([`ClaimLock`]).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::claim_lock::ClaimLock;
use super::group::Kind;
use super::lanes;
use super::storage::Storage;
use crate::deadline::Deadline;
use crate::locks::lock;
use crate::outbox::OutboxError;

/// The time between two looks for claims whose holder has ended.
const LOOK_FOR_ENDED: Duration = Duration::from_millis(500);

pub(super) struct Slots {
    storage: Arc<Storage>,
    destination: i64,
    /// The name of this handle, different from that of all others.
    holder: String,
    slots: Mutex<Vec<Slot>>,
    /// When to look again for claims whose holder has ended.
    next_look: Mutex<Option<Deadline>>,
}

/// One of the claims.
struct Slot {
    /// It is away while a thread claims by it.
    lock: Option<ClaimLock>,
    /// The entry that is claimed by it.
    claimed: Option<u64>,
}

impl Slot {
    fn is_in_use(&self) -> bool {
        self.lock.is_none() || self.claimed.is_some()
    }
}

/// A slot that a thread claims by. It goes back when it is dropped.
pub(super) struct TakenSlot<'s> {
    slots: &'s Slots,
    number: usize,
    lock: Option<ClaimLock>,
    claimed: Option<u64>,
}

impl Slots {
    pub(super) fn new(storage: &Arc<Storage>, destination: i64, holder: String) -> Slots {
        let (slots, next_look) = Default::default();
        Slots { storage: Arc::clone(storage), destination, holder, slots, next_look }
    }

    fn lock_of(&self, slot: usize) -> ClaimLock {
        ClaimLock::new(&self.storage, self.destination, slot, self.holder.clone())
    }

    /// Takes one of so many slots that is not in use, and is this handle's: the first, if possible,
    /// by which alone can be claimed what has no lane. `None` if there is none.
    pub(super) fn take_free(&self, count: usize, deadline: &Deadline) -> Result<Option<TakenSlot<'_>>, OutboxError> {
        let mut free: Vec<(bool, bool, usize)> = {
            let mut slots = lock(&self.slots);
            for number in slots.len()..count {
                slots.push(Slot { lock: Some(self.lock_of(number)), claimed: None });
            }
            let free = slots.iter().enumerate().take(count).filter(|(_, slot)| !slot.is_in_use());
            let has_file = |slot: &Slot| slot.lock.as_ref().is_some_and(ClaimLock::has_file);
            free.map(|(number, slot)| (number > 0, !has_file(slot), number)).collect()
        };
        // Then those that it has already.
        free.sort_unstable();
        for (_, _, number) in free {
            if let Some(mut taken) = self.take(number)
                && taken.is_held(deadline)?
            {
                return Ok(Some(taken));
            }
        }
        Ok(None)
    }

    /// Takes a slot, if it is there and not in use.
    fn take(&self, number: usize) -> Option<TakenSlot<'_>> {
        let mut slots = lock(&self.slots);
        let slot = slots.get_mut(number).filter(|slot| !slot.is_in_use())?;
        Some(TakenSlot { slots: self, number, lock: slot.lock.take(), claimed: None })
    }

    /// By which slot an entry is claimed.
    pub(super) fn of_entry(&self, id: u64) -> Option<usize> {
        lock(&self.slots).iter().position(|slot| slot.claimed == Some(id))
    }

    /// The claim of an entry has ended.
    pub(super) fn end(&self, id: u64) {
        lock(&self.slots).iter_mut().filter(|slot| slot.claimed == Some(id)).for_each(|slot| slot.claimed = None);
    }

    /// Leaves those that are not in use to other handles, but for the first.
    pub(super) fn leave_to_others(&self) {
        let mut slots = lock(&self.slots);
        let idle = slots.iter_mut().skip(1).filter(|slot| !slot.is_in_use());
        idle.filter_map(|slot| slot.lock.as_mut()).for_each(ClaimLock::lose);
    }

    /// Gives all up.
    pub(super) fn release(&self, deadline: &Deadline) {
        let slots = std::mem::take(&mut *lock(&self.slots));
        slots.into_iter().filter_map(|slot| slot.lock).for_each(|mut lock| lock.release(deadline));
    }

    /// Frees what is in flight by slots whose holder has ended, now and then; says whether there
    /// was anything. `own` is the caller's.
    pub(super) fn free_ended(&self, in_flight: &[usize], own: usize, deadline: &Deadline) -> Result<bool, OutboxError> {
        let suspects: Vec<usize> = {
            let slots = lock(&self.slots);
            let is_own = |number: usize| number == own || slots.get(number).is_some_and(Slot::is_in_use);
            in_flight.iter().copied().filter(|number| !is_own(*number)).collect()
        };
        let mut next_look = lock(&self.next_look);
        if suspects.is_empty() || next_look.is_some_and(|next| next.remaining().is_some()) {
            return Ok(false);
        }
        *next_look = Some(Deadline::after(LOOK_FOR_ENDED));
        drop(next_look);
        let mut freed = 0;
        for number in suspects {
            let destination = self.destination;
            let free = || {
                let free = move |writer: &rusqlite::Connection| lanes::free(writer, destination, number as i64);
                self.storage.change(Kind::Claim, deadline, free)
            };
            if let Some(mut taken) = self.take(number) {
                if taken.is_held(deadline)? {
                    freed += free()?;
                }
                continue;
            }
            // One of a handle that was opened for more.
            let mut lock = self.lock_of(number);
            if lock.is_held(deadline)? {
                freed += free()?;
                lock.release(deadline);
            }
        }
        Ok(freed > 0)
    }
}

impl TakenSlot<'_> {
    pub(super) fn number(&self) -> usize {
        self.number
    }

    fn is_held(&mut self, deadline: &Deadline) -> Result<bool, OutboxError> {
        self.lock.as_mut().map_or(Ok(false), |lock| lock.is_held(deadline))
    }

    /// Somebody else holds it: by the database, whatever this handle has locked.
    pub(super) fn lose(&mut self) {
        self.lock.iter_mut().for_each(ClaimLock::lose);
    }

    /// An entry is claimed by it.
    pub(super) fn claims(&mut self, id: u64) {
        self.claimed = Some(id);
    }
}

impl Drop for TakenSlot<'_> {
    fn drop(&mut self) {
        // It is not there any more where all were released meanwhile.
        if let Some(slot) = lock(&self.slots.slots).get_mut(self.number) {
            *slot = Slot { lock: self.lock.take(), claimed: self.claimed };
        }
    }
}

//! Which entries can be claimed: the head of each lane, unless it is held, rests or is claimed, or
//! a barrier stands before it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use crate::outbox::{Entry, EntryState, Lane};

/// A lane, by a digest of its key. Two keys of one digest would share a lane, no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum LaneId {
    Destination,
    Key(u64),
    Barrier,
}

#[derive(Default)]
pub(super) struct Lanes {
    hasher: RandomState,
    /// Whether an entry was ever pushed into another lane than the destination's.
    are_used: bool,
    /// The lane of each entry, the dead as well.
    of: HashMap<u64, LaneId>,
    /// The entries of each lane that are in the queue.
    queues: HashMap<LaneId, BTreeSet<u64>>,
    /// The claimed entries, which may have been discarded meanwhile, and their lanes.
    claimed: BTreeMap<u64, LaneId>,
    /// The lanes that these are in.
    busy: HashSet<LaneId>,
    /// The heads that can be claimed, if no barrier stands before them.
    ready: BTreeSet<u64>,
    /// The entries that rest, in the order in which their rests end, and by their numbers.
    rests: BTreeSet<(Instant, u64)>,
    resting: HashMap<u64, Instant>,
    /// The lanes whose head is held or rests.
    blocked: HashSet<LaneId>,
}

impl Lanes {
    pub(super) fn id(&self, lane: &Lane) -> LaneId {
        match lane {
            Lane::Destination => LaneId::Destination,
            Lane::Key(key) => LaneId::Key(self.hasher.hash_one(key)),
            Lane::Barrier => LaneId::Barrier,
        }
    }

    /// An entry is new in the outbox.
    pub(super) fn add(&mut self, id: u64, lane: LaneId) {
        self.are_used |= lane != LaneId::Destination;
        self.of.insert(id, lane);
    }

    /// An entry has left the outbox.
    pub(super) fn forget(&mut self, id: u64, entries: &BTreeMap<u64, Entry>) {
        self.refresh(id, entries);
        self.of.remove(&id);
    }

    /// Looks anew at an entry that has changed, or is in the queue no more, and at its lane.
    pub(super) fn refresh(&mut self, id: u64, entries: &BTreeMap<u64, Entry>) {
        let Some(&lane) = self.of.get(&id) else { return };
        let is_there = entries.contains_key(&id);
        let queue = self.queues.entry(lane).or_default();
        if is_there {
            queue.insert(id);
        } else {
            queue.remove(&id);
            self.ready.remove(&id);
            self.end_rest(id);
        }
        self.refresh_lane(lane, entries);
    }

    fn refresh_lane(&mut self, lane: LaneId, entries: &BTreeMap<u64, Entry>) {
        self.blocked.remove(&lane);
        let Some(queue) = self.queues.get(&lane) else { return };
        // If one that is queued again comes first now, the former head is none any more.
        let mut first = queue.iter().take(2);
        let (head, next) = (first.next(), first.next());
        if let Some(next) = next {
            self.ready.remove(next);
        }
        let Some(head) = head else {
            self.queues.remove(&lane);
            return;
        };
        let is_held = entries.get(head).is_some_and(|head| head.state == EntryState::Held);
        let is_blocked = is_held || self.resting.contains_key(head);
        if is_blocked {
            self.blocked.insert(lane);
        }
        if is_blocked || self.busy.contains(&lane) {
            self.ready.remove(head);
        } else {
            self.ready.insert(*head);
        }
    }

    /// Ends the rests whose time has come.
    pub(super) fn end_due_rests(&mut self, entries: &BTreeMap<u64, Entry>) {
        while let Some(&(until, id)) = self.rests.first() {
            if until > Instant::now() {
                return;
            }
            self.end_rest(id);
            self.refresh(id, entries);
        }
    }

    /// The oldest entry that can be claimed now.
    pub(super) fn next(&self, entries: &BTreeMap<u64, Entry>) -> Option<u64> {
        let ready = self.ready.first().copied()?;
        let barrier = self.queues.get(&LaneId::Barrier).and_then(|barriers| barriers.first().copied());
        let can_be_claimed = match barrier {
            _ if self.busy.contains(&LaneId::Barrier) => false,
            Some(barrier) if barrier == ready => {
                self.claimed.is_empty() && entries.first_key_value().is_some_and(|(first, _)| *first == ready)
            }
            Some(barrier) => ready < barrier,
            None => true,
        };
        can_be_claimed.then_some(ready)
    }

    /// Until when the next of the resting entries rests.
    pub(super) fn next_rest_ends(&self) -> Option<Instant> {
        self.rests.first().map(|(until, _)| *until)
    }

    pub(super) fn claim(&mut self, id: u64, entries: &BTreeMap<u64, Entry>) {
        let Some(&lane) = self.of.get(&id) else { return };
        self.claimed.insert(id, lane);
        self.busy.insert(lane);
        self.refresh_lane(lane, entries);
    }

    /// The claim of an entry has ended. It is to rest for so long, if it is to be tried again.
    pub(super) fn end_claim(&mut self, id: u64, rest: Option<Duration>, entries: &BTreeMap<u64, Entry>) {
        let Some(lane) = self.claimed.remove(&id) else { return };
        self.busy.remove(&lane);
        if let Some(until) = rest.filter(|rest| !rest.is_zero()).and_then(|rest| Instant::now().checked_add(rest)) {
            self.resting.insert(id, until);
            self.rests.insert((until, id));
        }
        self.refresh_lane(lane, entries);
    }

    pub(super) fn is_claimed(&self, id: u64) -> bool {
        self.claimed.contains_key(&id)
    }

    pub(super) fn end_rest(&mut self, id: u64) {
        if let Some(until) = self.resting.remove(&id) {
            self.rests.remove(&(until, id));
        }
    }

    pub(super) fn end_all_rests(&mut self, entries: &BTreeMap<u64, Entry>) {
        self.rests.clear();
        for id in std::mem::take(&mut self.resting).into_keys() {
            self.refresh(id, entries);
        }
    }

    /// Whether there are, or were, other lanes than the destination's.
    pub(super) fn are_used(&self) -> bool {
        self.are_used
    }

    /// How many lanes wait for their head.
    pub(super) fn blocked(&self) -> usize {
        self.blocked.len()
    }
}

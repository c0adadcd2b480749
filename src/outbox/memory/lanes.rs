//! Which entries can be claimed: the head of each lane, unless it is held, rests or is claimed, or
//! a barrier stands before it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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

/// The entries of one lane that are in the queue.
#[derive(Default)]
struct Queue {
    ids: BTreeSet<u64>,
    /// Whether one of them is claimed, which may have been discarded meanwhile.
    is_busy: bool,
    /// Whether the head is held or rests.
    is_blocked: bool,
}

#[derive(Default)]
pub(super) struct Lanes {
    hasher: RandomState,
    /// Whether an entry was ever pushed into another lane than the destination's.
    are_used: bool,
    /// The lane of each entry that is not in the destination's, the dead as well.
    of: HashMap<u64, LaneId>,
    own: Queue,
    barriers: Queue,
    keyed: HashMap<u64, Queue>,
    /// The claimed entries, which may have been discarded meanwhile, and their lanes.
    claimed: BTreeMap<u64, LaneId>,
    /// The heads that can be claimed, if no barrier stands before them.
    ready: BTreeSet<u64>,
    /// The entries that rest, in the order in which their rests end, and by their numbers.
    rests: BTreeSet<(Instant, u64)>,
    resting: HashMap<u64, Instant>,
    /// How many lanes have a head that is held or rests.
    blocked: usize,
}

impl Lanes {
    pub(super) fn id(&self, lane: &Lane) -> LaneId {
        match lane {
            Lane::Destination => LaneId::Destination,
            Lane::Key(key) => LaneId::Key(self.hasher.hash_one(key)),
            Lane::Barrier => LaneId::Barrier,
        }
    }

    fn queue(&mut self, lane: LaneId) -> &mut Queue {
        match lane {
            LaneId::Destination => &mut self.own,
            LaneId::Barrier => &mut self.barriers,
            LaneId::Key(key) => self.keyed.entry(key).or_default(),
        }
    }

    /// An entry is new in the outbox.
    pub(super) fn add(&mut self, id: u64, lane: LaneId) {
        if lane != LaneId::Destination {
            self.are_used = true;
            self.of.insert(id, lane);
        }
    }

    fn lane_of(&self, id: u64) -> LaneId {
        // Common case: no entry has a lane of its own.
        if self.of.is_empty() { LaneId::Destination } else { self.of.get(&id).copied().unwrap_or(LaneId::Destination) }
    }

    /// An entry has left the outbox, and its lane was looked at since.
    pub(super) fn forget(&mut self, id: u64) {
        self.of.remove(&id);
    }

    /// Looks anew at an entry that has changed, or is in the queue no more, and at its lane.
    pub(super) fn refresh(&mut self, id: u64, entries: &BTreeMap<u64, Entry>) {
        let lane = self.lane_of(id);
        if entries.contains_key(&id) {
            self.queue(lane).ids.insert(id);
        } else {
            self.queue(lane).ids.remove(&id);
            self.ready.remove(&id);
            self.forget_rest(id);
        }
        self.refresh_lane(lane, entries);
    }

    fn refresh_lane(&mut self, lane: LaneId, entries: &BTreeMap<u64, Entry>) {
        let queue = self.queue(lane);
        // If one that is queued again comes first now, the former head is none any more.
        let mut first = queue.ids.iter().copied().take(2);
        let (head, next) = (first.next(), first.next());
        let (is_busy, was_blocked) = (queue.is_busy, queue.is_blocked);
        if let Some(next) = next {
            self.ready.remove(&next);
        }
        let is_held = |id: u64| entries.get(&id).is_some_and(|entry| entry.state == EntryState::Held);
        let is_blocked = head.is_some_and(|head| is_held(head) || self.resting.contains_key(&head));
        match head {
            Some(head) if is_blocked || is_busy => drop(self.ready.remove(&head)),
            Some(head) => drop(self.ready.insert(head)),
            None => {}
        }
        if is_blocked != was_blocked {
            self.queue(lane).is_blocked = is_blocked;
            self.blocked = if is_blocked { self.blocked + 1 } else { self.blocked - 1 };
        }
        if let LaneId::Key(key) = lane
            && head.is_none()
            && !is_busy
        {
            self.keyed.remove(&key);
        }
    }

    /// Ends the rests whose time has come.
    pub(super) fn end_due_rests(&mut self, entries: &BTreeMap<u64, Entry>) {
        while let Some(&(until, id)) = self.rests.first() {
            if until > Instant::now() {
                return;
            }
            self.end_rest(id, entries);
        }
    }

    /// The oldest entry that can be claimed now.
    pub(super) fn next(&self, entries: &BTreeMap<u64, Entry>) -> Option<u64> {
        let ready = self.ready.first().copied()?;
        let can_be_claimed = match self.barriers.ids.first() {
            _ if self.barriers.is_busy => false,
            Some(barrier) if *barrier == ready => {
                self.claimed.is_empty() && entries.first_key_value().is_some_and(|(first, _)| *first == ready)
            }
            Some(barrier) => ready < *barrier,
            None => true,
        };
        can_be_claimed.then_some(ready)
    }

    /// Until when the next of the resting entries rests.
    pub(super) fn next_rest_ends(&self) -> Option<Instant> {
        self.rests.first().map(|(until, _)| *until)
    }

    /// An entry is claimed; its lane is to be looked at anew.
    pub(super) fn claim(&mut self, id: u64) {
        let lane = self.lane_of(id);
        self.claimed.insert(id, lane);
        self.queue(lane).is_busy = true;
    }

    /// The claim of an entry has ended. It is to rest for so long, if it is to be tried again.
    pub(super) fn end_claim(&mut self, id: u64, rest: Option<Duration>, entries: &BTreeMap<u64, Entry>) {
        let Some(lane) = self.claimed.remove(&id) else { return };
        self.queue(lane).is_busy = false;
        let is_there = entries.contains_key(&id);
        let until = rest.filter(|rest| is_there && !rest.is_zero()).and_then(|rest| Instant::now().checked_add(rest));
        if let Some(until) = until {
            self.resting.insert(id, until);
            self.rests.insert((until, id));
        }
        self.refresh_lane(lane, entries);
    }

    pub(super) fn is_claimed(&self, id: u64) -> bool {
        self.claimed.contains_key(&id)
    }

    fn forget_rest(&mut self, id: u64) {
        if !self.resting.is_empty()
            && let Some(until) = self.resting.remove(&id)
        {
            self.rests.remove(&(until, id));
        }
    }

    /// An entry need not rest any longer.
    pub(super) fn end_rest(&mut self, id: u64, entries: &BTreeMap<u64, Entry>) {
        self.forget_rest(id);
        self.refresh(id, entries);
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
        self.blocked
    }
}

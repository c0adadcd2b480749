//! A hard cap on connections: a fixed number of slots, handed over in order of arrival and by a
//! deadline. No thread.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use super::sync::{self, Condvar, Mutex, MutexGuard};
use crate::deadline::Deadline;

/// A fixed number of slots, each empty or filled. What is in a slot stays there for whoever
/// acquires it next.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    most: usize,
    state: Mutex<Occupancy<T>>,
}

#[derive(Debug)]
struct Occupancy<T> {
    /// The contents of the filled slots that nobody holds; the last returned stands at the end.
    idle: Vec<T>,
    /// How many slots are held. Together with the idle ones never more than `most`.
    taken: usize,
    /// How many of those are filled.
    filled: usize,
    /// Those that wait, in order of arrival. Only the first may acquire a slot, and is notified
    /// when there is one.
    waiting: VecDeque<Arc<Condvar>>,
    closed: bool,
}

/// Why a call gets no slot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Closed,
    TooLate,
}

/// A view of the filled slots.
#[derive(Debug)]
pub(crate) enum Look<'s, T> {
    /// A filled slot is held.
    InUse,
    /// No filled slot is held. This is one of the idle ones.
    Idle(Slot<'s, T>),
    /// No slot is filled.
    Nothing,
}

impl<T> Slots<T> {
    pub(crate) fn new(most: usize) -> Self {
        let (idle, waiting) = (Vec::new(), VecDeque::new());
        Slots { most, state: Mutex::new(Occupancy { idle, taken: 0, filled: 0, waiting, closed: false }) }
    }

    /// How many there are, filled or not.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// Acquires a slot, preferably the filled one that was returned last. Waits in order of
    /// arrival, until the deadline.
    pub(crate) fn acquire(&self, deadline: &Deadline) -> Result<Slot<'_, T>, Refusal> {
        let state = self.lock();
        if state.closed {
            return Err(Refusal::Closed);
        }
        if state.waiting.is_empty() && state.taken < self.most {
            return Ok(self.lend(state));
        }
        self.wait(state, deadline)
    }

    /// Takes every filled slot that nobody holds.
    pub(crate) fn take_idle(&self) -> Vec<Slot<'_, T>> {
        let mut state = self.lock();
        let idle = mem::take(&mut state.idle);
        state.taken += idle.len();
        state.filled += idle.len();
        drop(state);
        idle.into_iter().map(|content| Slot { slots: self, content: Some(content) }).collect()
    }

    pub(crate) fn look(&self) -> Look<'_, T> {
        let state = self.lock();
        if state.filled > 0 && !state.closed {
            Look::InUse
        } else if state.idle.is_empty() {
            Look::Nothing
        } else {
            Look::Idle(self.lend(state))
        }
    }

    /// Refuses all later calls, and returns what is in the slots that nobody holds.
    pub(crate) fn close(&self) -> Vec<T> {
        let mut state = self.lock();
        state.closed = true;
        state.waiting.iter().for_each(|waiter| waiter.notify_one());
        mem::take(&mut state.idle)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn wait<'s>(
        &'s self,
        mut state: MutexGuard<'s, Occupancy<T>>,
        deadline: &Deadline,
    ) -> Result<Slot<'s, T>, Refusal> {
        let waiter = state.join();
        loop {
            if state.closed {
                state.leave(&waiter);
                return Err(Refusal::Closed);
            }
            if state.is_first(&waiter) && state.taken < self.most {
                state.leave(&waiter);
                return Ok(self.lend(state));
            }
            let Some(left) = deadline.remaining() else {
                self.give_up(state, &waiter);
                return Err(Refusal::TooLate);
            };
            state = sync::wait(&waiter, state, left);
        }
    }

    /// Leaves without a slot. There may be a free one for the next.
    fn give_up(&self, mut state: MutexGuard<'_, Occupancy<T>>, waiter: &Arc<Condvar>) {
        state.leave(waiter);
        self.wake_the_first(&state);
    }

    /// Hands over a slot that is free.
    fn lend(&self, mut state: MutexGuard<'_, Occupancy<T>>) -> Slot<'_, T> {
        let content = state.idle.pop();
        state.taken += 1;
        state.filled += usize::from(content.is_some());
        // Several may have come free before the first of those who wait was there to take one.
        self.wake_the_first(&state);
        drop(state);
        Slot { slots: self, content }
    }

    /// Where nobody waits nobody is notified, since that would be a system call.
    fn wake_the_first(&self, state: &Occupancy<T>) {
        if let Some(waiter) = state.waiting.front().filter(|_| state.taken < self.most) {
            waiter.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Occupancy<T>> {
        sync::lock(&self.state)
    }
}

impl<T> Occupancy<T> {
    fn join(&mut self) -> Arc<Condvar> {
        let waiter = Arc::new(Condvar::new());
        self.waiting.push_back(Arc::clone(&waiter));
        waiter
    }

    fn is_first(&self, waiter: &Arc<Condvar>) -> bool {
        self.waiting.front().is_some_and(|first| Arc::ptr_eq(first, waiter))
    }

    fn leave(&mut self, waiter: &Arc<Condvar>) {
        self.waiting.retain(|other| !Arc::ptr_eq(other, waiter));
    }
}

/// A guard for a slot in use. Dropping it returns the slot, and the connection in it, to the pool.
#[derive(Debug)]
pub(crate) struct Slot<'s, T> {
    slots: &'s Slots<T>,
    content: Option<T>,
}

impl<T> Slot<'_, T> {
    pub(crate) fn content(&mut self) -> Option<&mut T> {
        self.content.as_mut()
    }

    /// Fills the slot, and drops what was in it.
    pub(crate) fn fill(&mut self, content: T) -> &mut T {
        self.empty();
        self.slots.lock().filled += 1;
        self.content.insert(content)
    }

    /// Drops what there is.
    pub(crate) fn empty(&mut self) {
        if let Some(content) = self.content.take() {
            self.slots.lock().filled -= 1;
            // Outside the lock. The slot stays taken for as long as what was in it exists.
            drop(content);
        }
    }
}

impl<T> Drop for Slot<'_, T> {
    fn drop(&mut self) {
        let mut state = self.slots.lock();
        if state.closed {
            drop(state);
            self.empty();
            state = self.slots.lock();
        }
        state.filled -= usize::from(self.content.is_some());
        state.idle.extend(self.content.take());
        state.taken -= 1;
        self.slots.wake_the_first(&state);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_millis(50))
    }

    fn late() -> Deadline {
        Deadline::after(Duration::from_secs(20))
    }

    #[test]
    fn the_last_returned_is_the_next_taken() {
        let slots = Slots::new(3);
        let mut held = [(); 3].map(|()| slots.acquire(&soon()).unwrap());
        assert_eq!(slots.acquire(&soon()).unwrap_err(), Refusal::TooLate);
        for (number, slot) in held.iter_mut().enumerate() {
            assert_eq!(slot.content(), None);
            *slot.fill(9) = number;
        }
        assert!(matches!(slots.look(), Look::InUse));
        held.into_iter().for_each(drop);
        let Look::Idle(mut idle) = slots.look() else { panic!("one is idle") };
        assert_eq!(idle.content(), Some(&mut 2));
        drop(idle);
        let mut last = slots.acquire(&soon()).unwrap();
        assert_eq!(last.content(), Some(&mut 2));
        last.empty();
        drop(last);
        assert_eq!(slots.acquire(&soon()).unwrap().content(), Some(&mut 1));
        let mut idle = slots.take_idle();
        assert_eq!(idle.len(), 2);
        let held = slots.acquire(&soon()).unwrap();
        assert_eq!(slots.acquire(&soon()).unwrap_err(), Refusal::TooLate, "what is taken out has its slot still");
        idle.pop().unwrap().empty();
        drop((idle, held));
        assert_eq!(slots.close(), [0]);
        assert!(matches!(slots.look(), Look::Nothing));
    }

    #[test]
    fn nobody_overtakes() {
        let slots = Slots::<u8>::new(1);
        let held = slots.acquire(&soon()).unwrap();
        let (served, order) = mpsc::channel();
        thread::scope(|scope| {
            for number in 0..8 {
                let (slots, served) = (&slots, served.clone());
                scope.spawn(move || {
                    let _slot = slots.acquire(&late()).unwrap();
                    served.send(number).unwrap();
                });
                while slots.lock().waiting.len() <= number {
                    thread::yield_now();
                }
            }
            drop(held);
        });
        assert_eq!(order.try_iter().collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
    }

    #[test]
    fn closing_lets_nobody_in_and_keeps_nothing() {
        let slots = Slots::new(1);
        let mut held = slots.acquire(&soon()).unwrap();
        let kept = Arc::new(());
        held.fill(Arc::clone(&kept));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| slots.acquire(&late()).map(drop));
            while slots.lock().waiting.is_empty() {
                thread::yield_now();
            }
            assert!(slots.close().is_empty());
            assert_eq!(waiting.join().unwrap(), Err(Refusal::Closed));
        });
        assert_eq!(slots.acquire(&late()).map(drop), Err(Refusal::Closed));
        assert!(slots.is_closed() && matches!(slots.look(), Look::Nothing));
        drop(held);
        assert_eq!(Arc::strong_count(&kept), 1, "what comes back late is dropped");
        let state = slots.lock();
        assert_eq!((state.taken, state.filled, state.idle.len()), (0, 0, 0));
    }
}

/// Every interleaving of a few threads, by `RUSTFLAGS="--cfg loom" cargo test --lib pool`. A
/// wake-up that is lost is a deadlock, which the model reports.
#[cfg(all(test, loom))]
mod model {
    use std::time::Duration;

    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::thread;

    use super::*;

    /// The model's clock stands still: a call waits until it is notified.
    fn far() -> Deadline {
        Deadline::after(Duration::MAX)
    }

    /// A stand-in for a socket, counted as long as it exists.
    struct CountedSocket(Arc<AtomicUsize>);

    impl CountedSocket {
        fn open(count: &Arc<AtomicUsize>, most: usize) -> CountedSocket {
            assert!(count.fetch_add(1, Ordering::SeqCst) < most, "more than the cap");
            CountedSocket(Arc::clone(count))
        }
    }

    impl Drop for CountedSocket {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    struct SlotsModel {
        slots: Slots<CountedSocket>,
        sockets: Arc<AtomicUsize>,
        most: usize,
    }

    impl SlotsModel {
        /// Runs what threads do with so many slots, and looks whether the slots are all free at the
        /// end.
        fn check(most: usize, threads: &'static [fn(&SlotsModel)]) {
            // More switches than the threads ask for themselves find nothing new, and take minutes.
            let mut explorer = loom::model::Builder::new();
            explorer.preemption_bound = Some(4);
            explorer.check(move || {
                let model = Arc::new(SlotsModel { slots: Slots::new(most), sockets: Arc::default(), most });
                sync::run_together(&model, threads);
                let state = model.slots.lock();
                assert_eq!((state.taken, state.filled, state.waiting.len()), (0, 0, 0));
                assert_eq!(state.idle.len(), model.sockets.load(Ordering::SeqCst));
                // The model wants its own objects dropped inside.
                drop(state);
            });
        }

        /// Takes a slot, as an exchange does: with the connection that is in it, or with a new one.
        fn exchange(&self) {
            let Ok(mut slot) = self.slots.acquire(&far()) else { return };
            if slot.content().is_none() {
                slot.fill(CountedSocket::open(&self.sockets, self.most));
            }
        }

        /// An exchange that ends its connection.
        fn fail(&self) {
            if let Ok(mut slot) = self.slots.acquire(&far()) {
                slot.empty();
                slot.fill(CountedSocket::open(&self.sockets, self.most));
                slot.empty();
            }
        }

        /// Waits, and leaves by its deadline, whatever has happened between the two.
        fn leave(&self) {
            let mut state = self.slots.lock();
            let waiter = state.join();
            drop(state);
            thread::yield_now();
            let state = self.slots.lock();
            self.slots.give_up(state, &waiter);
        }

        fn close(&self) {
            drop(self.slots.close());
        }

        /// Ends what is idle.
        fn clear(&self) {
            self.slots.take_idle().iter_mut().for_each(Slot::empty);
        }

        fn look(&self) {
            drop(self.slots.look());
        }
    }

    #[test]
    fn one_slot_for_three() {
        SlotsModel::check(1, &[SlotsModel::exchange, SlotsModel::exchange, SlotsModel::exchange]);
    }

    #[test]
    fn two_slots_for_three() {
        SlotsModel::check(2, &[SlotsModel::exchange, SlotsModel::fail, SlotsModel::exchange]);
    }

    #[test]
    fn what_is_idle_has_its_slot_until_it_has_ended() {
        SlotsModel::check(1, &[SlotsModel::exchange, SlotsModel::clear, SlotsModel::exchange]);
        SlotsModel::check(2, &[SlotsModel::exchange, SlotsModel::clear, SlotsModel::exchange]);
    }

    #[test]
    fn one_that_gives_up_lets_the_next_go_first() {
        SlotsModel::check(1, &[SlotsModel::exchange, SlotsModel::leave, SlotsModel::exchange]);
        SlotsModel::check(1, &[SlotsModel::fail, SlotsModel::leave, SlotsModel::exchange]);
    }

    #[test]
    fn closing_releases_everybody() {
        SlotsModel::check(1, &[SlotsModel::close, SlotsModel::exchange, SlotsModel::exchange]);
        SlotsModel::check(1, &[SlotsModel::close, SlotsModel::leave, SlotsModel::exchange]);
    }

    #[test]
    fn no_slot_is_left_free_while_somebody_waits() {
        loom::model(|| {
            let slots = Arc::new(Slots::<()>::new(2));
            let held = [slots.acquire(&far()).unwrap(), slots.acquire(&far()).unwrap()];
            let waiting = thread::spawn({
                let slots = Arc::clone(&slots);
                move || {
                    let other = thread::spawn({
                        let slots = Arc::clone(&slots);
                        move || drop(slots.acquire(&far()).unwrap())
                    });
                    let slot = slots.acquire(&far()).unwrap();
                    other.join().unwrap();
                    drop(slot);
                }
            });
            held.into_iter().for_each(drop);
            waiting.join().unwrap();
        });
    }

    #[test]
    fn closing_does_not_wait_for_who_holds_a_slot() {
        loom::model(|| {
            let slots = Arc::new(Slots::<()>::new(1));
            let held = slots.acquire(&far()).unwrap();
            let waiting = thread::spawn({
                let slots = Arc::clone(&slots);
                move || slots.acquire(&far()).map(drop)
            });
            slots.close();
            assert_eq!(waiting.join().unwrap(), Err(Refusal::Closed));
            drop(held);
        });
    }

    #[test]
    fn looking_takes_nothing_away() {
        SlotsModel::check(1, &[SlotsModel::look, SlotsModel::exchange, SlotsModel::exchange]);
    }
}

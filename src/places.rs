//! A fixed number of places, handed over in order of arrival and by a deadline; no thread.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, PoisonError};

#[cfg(all(test, loom))]
use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(all(test, loom)))]
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::deadline::Deadline;

/// At most so many places, each empty or filled. What is in a place stays there for whoever takes it next.
#[derive(Debug)]
pub(crate) struct Places<T> {
    most: usize,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    /// What is in the filled places that nobody holds, the last returned at the end.
    idle: Vec<T>,
    /// How many places are held. Together with the idle ones never more than there are.
    taken: usize,
    /// How many of those are filled.
    filled: usize,
    /// Who waits, in order of arrival. Only the first may take a place, and is told when there is one.
    waiting: VecDeque<Arc<Condvar>>,
    closed: bool,
}

/// Why nobody gets a place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Closed,
    TooLate,
}

/// What can be seen of the filled places.
#[derive(Debug)]
pub(crate) enum Look<'p, T> {
    /// Somebody holds one.
    InUse,
    /// Nobody holds one; here is one to look into.
    Idle(Place<'p, T>),
    /// There is none.
    Nothing,
}

impl<T> Places<T> {
    pub(crate) fn new(most: usize) -> Self {
        let (idle, waiting) = (Vec::new(), VecDeque::new());
        Places { most, state: Mutex::new(State { idle, taken: 0, filled: 0, waiting, closed: false }) }
    }

    /// Takes a place, the one filled last if there is a choice; waits for it, behind those who came before.
    pub(crate) fn take(&self, deadline: &Deadline) -> Result<Place<'_, T>, Refusal> {
        let state = self.lock();
        if state.closed {
            return Err(Refusal::Closed);
        }
        if state.waiting.is_empty() && state.taken < self.most {
            return Ok(self.lend(state));
        }
        self.wait(state, deadline)
    }

    /// Takes every filled place that nobody holds.
    pub(crate) fn take_idle(&self) -> Vec<Place<'_, T>> {
        let mut state = self.lock();
        let idle = mem::take(&mut state.idle);
        state.taken += idle.len();
        state.filled += idle.len();
        drop(state);
        idle.into_iter().map(|content| Place { places: self, content: Some(content) }).collect()
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

    /// Lets nobody in any more; what nobody holds is handed out.
    pub(crate) fn close(&self) -> Vec<T> {
        let mut state = self.lock();
        state.closed = true;
        state.waiting.iter().for_each(|turn| turn.notify_one());
        mem::take(&mut state.idle)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn wait<'p>(&'p self, mut state: MutexGuard<'p, State<T>>, deadline: &Deadline) -> Result<Place<'p, T>, Refusal> {
        let turn = state.join();
        loop {
            if state.closed {
                state.leave(&turn);
                return Err(Refusal::Closed);
            }
            if state.is_first(&turn) && state.taken < self.most {
                state.leave(&turn);
                return Ok(self.lend(state));
            }
            let Some(left) = deadline.remaining() else {
                self.give_up(state, &turn);
                return Err(Refusal::TooLate);
            };
            state = turn.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Leaves without a place; the next may have to be told of one that is free.
    fn give_up(&self, mut state: MutexGuard<'_, State<T>>, turn: &Arc<Condvar>) {
        state.leave(turn);
        self.tell_the_first(&state);
    }

    /// Hands over a place that is free.
    fn lend(&self, mut state: MutexGuard<'_, State<T>>) -> Place<'_, T> {
        let content = state.idle.pop();
        state.taken += 1;
        state.filled += usize::from(content.is_some());
        // Several may have come free before the first of those who wait was there to take one.
        self.tell_the_first(&state);
        drop(state);
        Place { places: self, content }
    }

    /// Where nobody waits nobody is told, since that would be a system call.
    fn tell_the_first(&self, state: &State<T>) {
        if state.taken < self.most
            && let Some(turn) = state.waiting.front()
        {
            turn.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Every change of the state is a few assignments, so that a panic cannot leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn join(&mut self) -> Arc<Condvar> {
        let turn = Arc::new(Condvar::new());
        self.waiting.push_back(Arc::clone(&turn));
        turn
    }

    fn is_first(&self, turn: &Arc<Condvar>) -> bool {
        self.waiting.front().is_some_and(|first| Arc::ptr_eq(first, turn))
    }

    fn leave(&mut self, turn: &Arc<Condvar>) {
        self.waiting.retain(|other| !Arc::ptr_eq(other, turn));
    }
}

/// A place that somebody holds; dropping it makes it free again, with what is in it.
#[derive(Debug)]
pub(crate) struct Place<'p, T> {
    places: &'p Places<T>,
    content: Option<T>,
}

impl<T> Place<'_, T> {
    pub(crate) fn content(&mut self) -> Option<&mut T> {
        self.content.as_mut()
    }

    /// Puts something in the place of what there was.
    pub(crate) fn fill(&mut self, content: T) -> &mut T {
        self.empty();
        self.places.lock().filled += 1;
        self.content.insert(content)
    }

    /// Drops what there is.
    pub(crate) fn empty(&mut self) {
        if let Some(content) = self.content.take() {
            self.places.lock().filled -= 1;
            // Outside the lock. The place stays taken for as long as what was in it exists.
            drop(content);
        }
    }
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        if state.closed {
            drop(state);
            self.empty();
            state = self.places.lock();
        }
        state.filled -= usize::from(self.content.is_some());
        state.idle.extend(self.content.take());
        state.taken -= 1;
        self.places.tell_the_first(&state);
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
        let places = Places::new(3);
        let mut held = [(); 3].map(|()| places.take(&soon()).unwrap());
        assert_eq!(places.take(&soon()).unwrap_err(), Refusal::TooLate);
        for (number, place) in held.iter_mut().enumerate() {
            assert_eq!(place.content(), None);
            *place.fill(9) = number;
        }
        assert!(matches!(places.look(), Look::InUse));
        held.into_iter().for_each(drop);
        let Look::Idle(mut idle) = places.look() else { panic!("one is idle") };
        assert_eq!(idle.content(), Some(&mut 2));
        drop(idle);
        let mut last = places.take(&soon()).unwrap();
        assert_eq!(last.content(), Some(&mut 2));
        last.empty();
        drop(last);
        assert_eq!(places.take(&soon()).unwrap().content(), Some(&mut 1));
        let mut idle = places.take_idle();
        assert_eq!(idle.len(), 2);
        let held = places.take(&soon()).unwrap();
        assert_eq!(places.take(&soon()).unwrap_err(), Refusal::TooLate, "what is taken out has its place still");
        idle.pop().unwrap().empty();
        drop((idle, held));
        assert_eq!(places.close(), [0]);
        assert!(matches!(places.look(), Look::Nothing));
    }

    #[test]
    fn nobody_overtakes() {
        let places = Places::<u8>::new(1);
        let held = places.take(&soon()).unwrap();
        let (served, order) = mpsc::channel();
        thread::scope(|scope| {
            for number in 0..8 {
                let (places, served) = (&places, served.clone());
                scope.spawn(move || {
                    let _place = places.take(&late()).unwrap();
                    served.send(number).unwrap();
                });
                while places.lock().waiting.len() <= number {
                    thread::yield_now();
                }
            }
            drop(held);
        });
        assert_eq!(order.try_iter().collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
    }

    #[test]
    fn closing_lets_nobody_in_and_keeps_nothing() {
        let places = Places::new(1);
        let mut held = places.take(&soon()).unwrap();
        let kept = Arc::new(());
        held.fill(Arc::clone(&kept));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| places.take(&late()).map(drop));
            while places.lock().waiting.is_empty() {
                thread::yield_now();
            }
            assert!(places.close().is_empty());
            assert_eq!(waiting.join().unwrap(), Err(Refusal::Closed));
        });
        assert_eq!(places.take(&late()).map(drop), Err(Refusal::Closed));
        assert!(places.is_closed() && matches!(places.look(), Look::Nothing));
        drop(held);
        assert_eq!(Arc::strong_count(&kept), 1, "what comes back late is dropped");
        let state = places.lock();
        assert_eq!((state.taken, state.filled, state.idle.len()), (0, 0, 0));
    }
}

/// Every interleaving of a few threads, by `RUSTFLAGS="--cfg loom" cargo test --lib --release places`. A wake-up that is lost
/// is a deadlock, which the model reports.
#[cfg(all(test, loom))]
mod model {
    use std::time::Duration;

    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::thread;

    use super::*;

    /// The model's clock stands still: who waits by it waits until told.
    fn far() -> Deadline {
        Deadline::after(Duration::MAX)
    }

    /// What stands for a socket, counted as long as it exists.
    struct Socket(Arc<AtomicUsize>);

    impl Socket {
        fn open(count: &Arc<AtomicUsize>, most: usize) -> Socket {
            assert!(count.fetch_add(1, Ordering::SeqCst) < most, "more than the cap");
            Socket(Arc::clone(count))
        }
    }

    impl Drop for Socket {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    struct Model {
        places: Places<Socket>,
        sockets: Arc<AtomicUsize>,
        most: usize,
    }

    impl Model {
        /// Runs what threads do with so many places, and looks whether the places are all free at the end.
        fn check(most: usize, threads: &'static [fn(&Model)]) {
            // More switches than the threads ask for themselves find nothing new, and take minutes.
            let mut explorer = loom::model::Builder::new();
            explorer.preemption_bound = Some(4);
            explorer.check(move || {
                let model = Arc::new(Model { places: Places::new(most), sockets: Arc::default(), most });
                let others: Vec<_> = threads[1..]
                    .iter()
                    .map(|&run| {
                        let model = Arc::clone(&model);
                        thread::spawn(move || run(&model))
                    })
                    .collect();
                threads[0](&model);
                others.into_iter().for_each(|thread| thread.join().unwrap());
                let state = model.places.lock();
                assert_eq!((state.taken, state.filled, state.waiting.len()), (0, 0, 0));
                assert_eq!(state.idle.len(), model.sockets.load(Ordering::SeqCst));
                // The model wants its own objects dropped inside.
                drop(state);
            });
        }

        /// An exchange on the connection there is, or on one opened for it.
        fn exchange(&self) {
            if let Ok(mut place) = self.places.take(&far())
                && place.content().is_none()
            {
                place.fill(Socket::open(&self.sockets, self.most));
            }
        }

        /// An exchange that ends its connection.
        fn fail(&self) {
            if let Ok(mut place) = self.places.take(&far()) {
                place.empty();
                place.fill(Socket::open(&self.sockets, self.most));
                place.empty();
            }
        }

        /// Waits, and leaves by its deadline, whatever has happened between the two.
        fn leave(&self) {
            let mut state = self.places.lock();
            let turn = state.join();
            drop(state);
            thread::yield_now();
            let state = self.places.lock();
            self.places.give_up(state, &turn);
        }

        fn close(&self) {
            drop(self.places.close());
        }

        /// Ends what is idle.
        fn clear(&self) {
            self.places.take_idle().iter_mut().for_each(Place::empty);
        }

        fn look(&self) {
            drop(self.places.look());
        }
    }

    #[test]
    fn one_place_for_three() {
        Model::check(1, &[Model::exchange, Model::exchange, Model::exchange]);
    }

    #[test]
    fn two_places_for_three() {
        Model::check(2, &[Model::exchange, Model::fail, Model::exchange]);
    }

    #[test]
    fn what_is_idle_has_its_place_until_it_has_ended() {
        Model::check(1, &[Model::exchange, Model::clear, Model::exchange]);
        Model::check(2, &[Model::exchange, Model::clear, Model::exchange]);
    }

    #[test]
    fn one_that_gives_up_passes_its_turn_on() {
        Model::check(1, &[Model::exchange, Model::leave, Model::exchange]);
        Model::check(1, &[Model::fail, Model::leave, Model::exchange]);
    }

    #[test]
    fn closing_releases_everybody() {
        Model::check(1, &[Model::close, Model::exchange, Model::exchange]);
        Model::check(1, &[Model::close, Model::leave, Model::exchange]);
    }

    #[test]
    fn no_place_is_left_free_while_somebody_waits() {
        loom::model(|| {
            let places = Arc::new(Places::<()>::new(2));
            let held = [places.take(&far()).unwrap(), places.take(&far()).unwrap()];
            let waiting = thread::spawn({
                let places = Arc::clone(&places);
                move || {
                    let other = thread::spawn({
                        let places = Arc::clone(&places);
                        move || drop(places.take(&far()).unwrap())
                    });
                    let place = places.take(&far()).unwrap();
                    other.join().unwrap();
                    drop(place);
                }
            });
            held.into_iter().for_each(drop);
            waiting.join().unwrap();
        });
    }

    #[test]
    fn closing_does_not_wait_for_who_holds_a_place() {
        loom::model(|| {
            let places = Arc::new(Places::<()>::new(1));
            let held = places.take(&far()).unwrap();
            let waiting = thread::spawn({
                let places = Arc::clone(&places);
                move || places.take(&far()).map(drop)
            });
            places.close();
            assert_eq!(waiting.join().unwrap(), Err(Refusal::Closed));
            drop(held);
        });
    }

    #[test]
    fn looking_takes_nothing_away() {
        Model::check(1, &[Model::look, Model::exchange, Model::exchange]);
    }
}

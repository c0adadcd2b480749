//! Who tries to reach a receiver that may be away, and when; the others wait for what becomes of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::deadline::Deadline;
use crate::error::{Error, ErrorKind, Phase};
use crate::reconnect::Reconnect;

/// For so long a failure that is not to be followed by another attempt speaks for the receiver as it is now.
const NEWS: Duration = Duration::from_secs(1);

/// What is known of whether the receiver can be reached.
#[derive(Debug)]
pub(crate) struct Outage {
    policy: Reconnect,
    state: Mutex<State>,
    changed: Condvar,
    /// How many attempts have failed ever. Beside the lock, since every call asks for it.
    failures: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// Whether it ever was reached.
    reached: bool,
    /// Whether it may be away: nobody has reached it since a connection was lost. Only one call at a time tries then.
    doubtful: bool,
    /// Whether one does.
    trying: bool,
    /// How many wait for that one, or for the time of the next attempt.
    waiting: usize,
    /// How many attempts have failed, one after the other.
    attempts: u32,
    /// The last of them.
    last: Option<Failure>,
    closed: bool,
}

#[derive(Debug)]
struct Failure {
    error: Error,
    /// When to try again, if at all.
    next: Option<Deadline>,
    news_until: Deadline,
}

/// A moment in the history of failures. Those after it are failures of a call that began then, whoever tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(u64);

/// A failed attempt, as the call that made it sees it.
#[derive(Debug)]
pub(crate) struct FailedAttempt<'a> {
    pub(crate) error: &'a Error,
    pub(crate) number: u32,
    pub(crate) retry_in: Option<Duration>,
}

impl Outage {
    pub(crate) fn new(policy: Reconnect) -> Self {
        let state =
            State { reached: false, doubtful: true, trying: false, waiting: 0, attempts: 0, last: None, closed: false };
        Outage { policy, state: Mutex::new(state), changed: Condvar::new(), failures: AtomicU64::new(0) }
    }

    pub(crate) fn now(&self) -> Moment {
        Moment(self.failures.load(Ordering::Relaxed))
    }

    /// A connection was lost: the receiver may be away.
    pub(crate) fn suspect(&self) {
        self.lock().doubtful = true;
    }

    /// The last failure of a call that began at this moment, if the receiver has not been reached since.
    pub(crate) fn failure_since(&self, began: Moment) -> Option<Error> {
        let state = self.lock();
        let last = state.last.as_ref().filter(|_| self.has_failed_since(began));
        last.map(|failure| failure.error.shared())
    }

    /// Ends the waiting, for good.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Reaches the receiver for a call that began at this moment, by attempts of its own or after those of others.
    pub(crate) fn reach<T>(
        &self,
        began: Moment,
        deadline: &Deadline,
        mut attempt: impl FnMut() -> Result<T, Error>,
        tell: impl Fn(FailedAttempt<'_>),
    ) -> Result<T, Error> {
        let mut waits = None;
        loop {
            let trial = self.turn(began, deadline)?;
            drop(waits);
            let error = match attempt() {
                Ok(reached) => {
                    trial.succeeded();
                    return Ok(reached);
                }
                Err(error) => error,
            };
            let (number, retry) = trial.failed(&error, deadline);
            let retry_in = retry.as_ref().map(|(retry_in, _)| *retry_in);
            tell(FailedAttempt { error: &error, number, retry_in });
            match retry {
                Some((_, waiter)) => waits = Some(waiter),
                None => return Err(error),
            }
        }
    }

    /// Waits until the call may try.
    fn turn(&self, began: Moment, deadline: &Deadline) -> Result<Trial<'_>, Error> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return Err(Error::before_sending(ErrorKind::Closed));
            }
            if !state.doubtful {
                return Ok(Trial { outage: self, alone: false });
            }
            let Some(pause) = state.pause(self.has_failed_since(began), deadline)? else {
                state.trying = true;
                return Ok(Trial { outage: self, alone: true });
            };
            state.waiting += 1;
            state = self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
        }
    }

    fn has_failed_since(&self, began: Moment) -> bool {
        self.failures.load(Ordering::Relaxed) > began.0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is a few assignments, so that a panic cannot leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// How long a call has to wait before it looks again; not at all if it is to try now.
    fn pause(&mut self, failed_since: bool, deadline: &Deadline) -> Result<Option<Duration>, Error> {
        let Some(left) = deadline.remaining() else {
            return Err(match &self.last {
                Some(failure) if failed_since => failure.error.shared(),
                _ => {
                    let kind = ErrorKind::Timeout { phase: Phase::Connect, limit: deadline.limit() };
                    Error::before_sending(kind)
                }
            });
        };
        match &self.last {
            _ if self.trying => Ok(Some(left)),
            Some(Failure { next: Some(next), .. }) if next.precedes(deadline) && (failed_since || self.waiting > 0) => {
                Ok(next.remaining())
            }
            Some(failure) if failed_since && failure.news_until.remaining().is_some() => Err(failure.error.shared()),
            _ => {
                // Nobody has tried of late, and nobody is about to.
                self.attempts = 0;
                Ok(None)
            }
        }
    }
}

/// The right to make one attempt.
struct Trial<'o> {
    outage: &'o Outage,
    alone: bool,
}

impl<'o> Trial<'o> {
    fn succeeded(self) {
        let mut state = self.outage.lock();
        state.reached = true;
        state.doubtful = false;
        state.attempts = 0;
        state.last = None;
    }

    /// Which attempt it was, and in what time the same call makes the next one, for which it waits from now on.
    fn failed(self, error: &Error, deadline: &Deadline) -> (u32, Option<(Duration, Waiter<'o>)>) {
        let mut state = self.outage.lock();
        if deadline.remaining().is_none() || matches!(error.kind(), ErrorKind::Closed) {
            // Cut short, which says nothing about the receiver.
            return (state.attempts.saturating_add(1), None);
        }
        // Of several that tried together, thinking that the receiver is there, the first to fail has told the others' news.
        if self.alone || state.last.is_none() {
            state.attempts = state.attempts.saturating_add(1);
            let delay = self.outage.policy.delay_after(state.attempts, error.kind()).filter(|_| state.reached);
            let (next, news_until) = (delay.map(Deadline::after), Deadline::after(NEWS));
            state.last = Some(Failure { error: error.shared(), next, news_until });
            state.doubtful = true;
            self.outage.failures.fetch_add(1, Ordering::Relaxed);
        }
        let next = state.last.as_ref().and_then(|failure| failure.next).filter(|next| next.precedes(deadline));
        let retry = next.map(|next| {
            state.waiting += 1;
            (next.remaining().unwrap_or_default(), Waiter { outage: self.outage })
        });
        (state.attempts, retry)
    }
}

/// A call between two of its attempts, counted among those who wait.
struct Waiter<'o> {
    outage: &'o Outage,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.outage.lock().waiting -= 1;
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if self.alone {
            self.outage.lock().trying = false;
        }
        self.outage.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn refused() -> Error {
        let source = io::ErrorKind::ConnectionRefused.into();
        Error::before_sending(ErrorKind::Connect { address: None, source })
    }

    fn hasty(attempts: u32) -> Reconnect {
        Reconnect::attempts(attempts).initial_delay(Duration::from_millis(2))
    }

    /// An outage of a receiver that was reached before.
    fn lost(policy: Reconnect) -> Outage {
        let outage = Outage::new(policy);
        outage.reach(outage.now(), &Deadline::after(LONG), || Ok(()), |_| ()).unwrap();
        outage.suspect();
        outage
    }

    /// What one call does: how its attempts ended, and how it did.
    fn call(outage: &Outage, limit: Duration, mut attempts: impl FnMut() -> Result<(), Error>) -> (Vec<bool>, bool) {
        let told = RefCell::new(Vec::new());
        let result = outage.reach(outage.now(), &Deadline::after(limit), &mut attempts, |failed| {
            assert_eq!(failed.number as usize, told.borrow().len() + 1);
            told.borrow_mut().push(failed.retry_in.is_some());
        });
        (told.into_inner(), result.is_ok())
    }

    #[test]
    fn a_receiver_never_reached_is_tried_once() {
        assert_eq!(call(&Outage::new(hasty(10)), LONG, || Err(refused())), (vec![false], false));
    }

    #[test]
    fn attempts_are_made_until_one_succeeds_or_they_are_used_up() {
        for (name, attempts, succeeds, expected) in [
            ("at once", 10, 1, (vec![], true)),
            ("the third", 10, 3, (vec![true, true], true)),
            ("the last", 3, 3, (vec![true, true], true)),
            ("never", 3, 99, (vec![true, true, false], false)),
            ("no second", 1, 99, (vec![false], false)),
        ] {
            let outage = lost(hasty(attempts));
            // The same again, since what one call went through is no burden to the next.
            for _ in 0..2 {
                let mut made = 0;
                let attempt = || {
                    made += 1;
                    if made < succeeds { Err(refused()) } else { Ok(()) }
                };
                assert_eq!(call(&outage, LONG, attempt), expected, "{name}");
                outage.suspect();
            }
        }
    }

    #[test]
    fn no_attempt_is_waited_for_that_comes_after_the_limit() {
        let outage = lost(Reconnect::attempts(10).initial_delay(LONG).max_delay(LONG));
        assert_eq!(call(&outage, LONG / 2, || Err(refused())), (vec![false], false));
        // Nobody waits for that time, so that the next call need not either.
        assert_eq!(call(&outage, LONG * 2, || Ok(())), (vec![], true));
    }

    #[test]
    fn what_does_not_pass_is_not_tried_again() {
        let source = || io::ErrorKind::PermissionDenied.into();
        let unusable = || Error::before_sending(ErrorKind::Connect { address: None, source: source() });
        assert_eq!(call(&lost(hasty(10)), LONG, || Err(unusable())), (vec![false], false));
    }

    #[test]
    fn closing_wakes_who_waits_for_the_next_attempt() {
        let outage = lost(Reconnect::attempts(10).initial_delay(LONG));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                outage.reach(outage.now(), &Deadline::after(LONG * 2), || Err::<(), _>(refused()), |_| ()).unwrap_err()
            });
            while outage.lock().waiting == 0 {
                thread::yield_now();
            }
            outage.close();
            assert!(matches!(waiting.join().unwrap().kind(), ErrorKind::Closed));
        });
    }

    #[test]
    fn who_waits_for_another_is_not_kept_beyond_its_limit() {
        let outage = lost(hasty(10));
        let trial = outage.turn(outage.now(), &Deadline::after(LONG)).unwrap();
        let limit = Duration::from_millis(30);
        let error = outage.reach(outage.now(), &Deadline::after(limit), || Ok(()), |_| ()).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Timeout { phase: Phase::Connect, limit: named } if *named == limit));
        drop(trial);
        assert_eq!(call(&outage, LONG, || Ok(())), (vec![], true));
    }

    #[test]
    fn many_share_the_attempts_of_one() {
        for (name, succeeds, expected) in [("it is away", 99, 4), ("it comes back", 3, 2 + 16)] {
            let outage = lost(hasty(4));
            let made = AtomicUsize::new(0);
            let began = outage.now();
            // Held until all are there.
            let first = outage.turn(began, &Deadline::after(LONG)).unwrap();
            let attempt = || {
                let number = made.fetch_add(1, Ordering::Relaxed) + 1;
                if number < succeeds { Err(refused()) } else { Ok(()) }
            };
            let results: Vec<_> = thread::scope(|scope| {
                let calls: Vec<_> = (0..16)
                    .map(|_| scope.spawn(|| outage.reach(began, &Deadline::after(LONG), attempt, |_| ())))
                    .collect();
                while outage.lock().waiting < 16 {
                    thread::yield_now();
                }
                drop(first);
                calls.into_iter().map(|call| call.join().unwrap()).collect()
            });
            assert_eq!(made.load(Ordering::Relaxed), expected, "{name}");
            for result in results {
                assert_eq!(result.is_ok(), succeeds < 99, "{name}");
                if let Err(error) = result {
                    assert_eq!(error.to_string(), refused().to_string());
                }
            }
        }
    }

    #[test]
    fn of_several_that_try_together_one_counts() {
        let outage = lost(hasty(3));
        outage.reach(outage.now(), &Deadline::after(LONG), || Ok(()), |_| ()).unwrap();
        let (began, deadline) = (outage.now(), Deadline::after(LONG));
        let trials: Vec<_> = (0..5).map(|_| outage.turn(began, &deadline).unwrap()).collect();
        for trial in trials {
            assert!(matches!(trial.failed(&refused(), &deadline), (1, Some(_))));
        }
        let told = RefCell::new(Vec::new());
        let attempt = || Err::<(), _>(refused());
        outage.reach(began, &deadline, attempt, |failed| told.borrow_mut().push(failed.number)).unwrap_err();
        assert_eq!(told.into_inner(), [2, 3]);
        assert!(outage.failure_since(began).is_some() && outage.failure_since(outage.now()).is_none());
    }

    #[test]
    fn who_is_about_to_wait_counts_as_waiting() {
        let outage = lost(hasty(2));
        let deadline = Deadline::after(LONG);
        let tries_too = |_: FailedAttempt<'_>| {
            // Another call, while the first tells of its failure.
            let mut state = outage.lock();
            assert!(matches!(state.pause(false, &deadline), Ok(Some(_))), "it waits for the next attempt, too");
            assert_eq!(state.attempts, 1);
        };
        let attempts = AtomicUsize::new(0);
        let attempt = || if attempts.fetch_add(1, Ordering::Relaxed) == 0 { Err(refused()) } else { Ok(()) };
        outage.reach(outage.now(), &deadline, attempt, tries_too).unwrap();
        assert_eq!(outage.lock().waiting, 0);
    }

    #[test]
    fn a_failure_is_news_only_for_a_while() {
        let outage = lost(hasty(1));
        let began = outage.now();
        assert_eq!(call(&outage, LONG, || Err(refused())), (vec![false], false));
        let again = || outage.reach(began, &Deadline::after(LONG), || Ok(()), |_| ());
        assert!(again().is_err(), "another has just tried");
        outage.lock().last.as_mut().unwrap().news_until = Deadline::after(Duration::ZERO);
        assert!(again().is_ok(), "that was long ago");
        assert!(outage.failure_since(began).is_none(), "it was reached since");
    }

    #[test]
    fn an_attempt_cut_short_by_its_call_is_nobody_elses() {
        let outage = lost(hasty(1));
        let began = outage.now();
        let passed = Deadline::after(Duration::ZERO);
        let trial = outage.turn(began, &Deadline::after(LONG)).unwrap();
        assert!(matches!(trial.failed(&refused(), &passed), (1, None)));
        assert!(outage.reach(began, &Deadline::after(LONG), || Ok(()), |_| ()).is_ok());
    }
}

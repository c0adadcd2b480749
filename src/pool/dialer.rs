//! Which call tries to connect while the receiver may be unreachable, and when. The other calls
//! wait for its result.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::reconnect::Reconnect;
use super::sync::{self, AtomicU64, Condvar, Mutex, MutexGuard};
use crate::deadline::Deadline;
use crate::error::{Error, ErrorKind, Phase};

/// How long a final failure is also the result of the calls that were waiting for it.
const RECENT: Duration = Duration::from_secs(1);

/// The knowledge of all calls together: whether the receiver can be reached.
#[derive(Debug)]
pub(crate) struct Dialer {
    policy: Reconnect,
    state: Mutex<Reachability>,
    changed: Condvar,
    /// How many attempts have failed ever. Outside the lock, since every call asks for it.
    failures: AtomicU64,
}

#[derive(Debug)]
struct Reachability {
    /// Whether the receiver was ever reached.
    reached: bool,
    /// Whether the receiver may be unreachable: at first, and after a connection was lost. Only one
    /// call at a time tries then.
    doubtful: bool,
    /// Whether a call is trying.
    trying: bool,
    /// How many calls wait for that one, or for the time of the next attempt.
    waiting: usize,
    /// How many attempts have failed, one after the other.
    attempts: u32,
    /// The last of them.
    last: Option<LastFailure>,
    closed: bool,
}

#[derive(Debug)]
struct LastFailure {
    error: Error,
    /// When to try again, if at all.
    next: Option<Deadline>,
    recent_until: Deadline,
}

/// The number of failures when a call began. Later ones are failures of that call too, whichever
/// call tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epoch(u64);

/// A failed attempt, as the call that made it sees it.
#[derive(Debug)]
pub(crate) struct FailedAttempt<'a> {
    pub(crate) error: &'a Error,
    pub(crate) number: u32,
    pub(crate) retry_in: Option<Duration>,
}

impl Dialer {
    pub(crate) fn new(policy: Reconnect) -> Self {
        let state = Reachability {
            reached: false,
            doubtful: true,
            trying: false,
            waiting: 0,
            attempts: 0,
            last: None,
            closed: false,
        };
        Dialer { policy, state: Mutex::new(state), changed: Condvar::new(), failures: AtomicU64::new(0) }
    }

    pub(crate) fn now(&self) -> Epoch {
        Epoch(self.failures.load(Ordering::Relaxed))
    }

    /// A connection was lost: the receiver may be away.
    pub(crate) fn suspect(&self) {
        self.lock().doubtful = true;
    }

    /// The last failure of a call that began at this moment, if the receiver has not been reached
    /// since.
    pub(crate) fn failure_since(&self, began: Epoch) -> Option<Error> {
        let state = self.lock();
        let last = state.last.as_ref().filter(|_| self.has_failed_since(began));
        last.map(|failure| failure.error.shared())
    }

    /// Ends the waiting, for good.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Reaches the receiver for a call that began at this moment, by attempts of its own or after
    /// those of others.
    pub(crate) fn reach<T>(
        &self,
        began: Epoch,
        deadline: &Deadline,
        mut attempt: impl FnMut() -> Result<T, Error>,
        report: impl Fn(FailedAttempt<'_>),
    ) -> Result<T, Error> {
        let mut waits = None;
        loop {
            let permit = self.permit(began, deadline)?;
            drop(waits);
            let error = match attempt() {
                Ok(reached) => {
                    permit.succeeded();
                    return Ok(reached);
                }
                Err(error) => error,
            };
            let (number, retry) = permit.failed(&error, deadline);
            let retry_in = retry.as_ref().map(|(retry_in, _)| *retry_in);
            report(FailedAttempt { error: &error, number, retry_in });
            match retry {
                Some((_, waiter)) => waits = Some(waiter),
                None => return Err(error),
            }
        }
    }

    /// Waits until the call may try.
    fn permit(&self, began: Epoch, deadline: &Deadline) -> Result<Permit<'_>, Error> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return Err(Error::before_sending(ErrorKind::Closed));
            }
            if !state.doubtful {
                return Ok(Permit { dialer: self, alone: false });
            }
            let Some(pause) = state.pause(self.has_failed_since(began), deadline)? else {
                state.trying = true;
                return Ok(Permit { dialer: self, alone: true });
            };
            state.waiting += 1;
            state = sync::wait(&self.changed, state, pause);
            state.waiting -= 1;
        }
    }

    fn has_failed_since(&self, began: Epoch) -> bool {
        self.failures.load(Ordering::Relaxed) > began.0
    }

    fn lock(&self) -> MutexGuard<'_, Reachability> {
        sync::lock(&self.state)
    }
}

impl Reachability {
    /// How long a call has to wait before it looks again; `None` if it is to try now.
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
            Some(LastFailure { next: Some(next), .. })
                if next.precedes(deadline) && (failed_since || self.waiting > 0) =>
            {
                Ok(next.remaining())
            }
            Some(failure) if failed_since && failure.recent_until.remaining().is_some() => Err(failure.error.shared()),
            _ => {
                // There is no failure since this call began to wait for or to return: it begins a new series of
                // attempts.
                self.attempts = 0;
                Ok(None)
            }
        }
    }
}

/// The right to make one attempt.
struct Permit<'d> {
    dialer: &'d Dialer,
    alone: bool,
}

impl<'d> Permit<'d> {
    fn succeeded(self) {
        let mut state = self.dialer.lock();
        state.reached = true;
        state.doubtful = false;
        state.attempts = 0;
        state.last = None;
    }

    /// Which attempt it was, and the delay until the same call makes the next one, for which it
    /// waits from now on.
    fn failed(self, error: &Error, deadline: &Deadline) -> (u32, Option<(Duration, Waiter<'d>)>) {
        let mut state = self.dialer.lock();
        if deadline.remaining().is_none() || matches!(error.kind(), ErrorKind::Closed) {
            // Cut short, which says nothing about the receiver.
            return (state.attempts.saturating_add(1), None);
        }
        // Several calls may have tried at the same time. Only the first failure is counted.
        if self.alone || state.last.is_none() {
            state.attempts = state.attempts.saturating_add(1);
            let delay = self.dialer.policy.delay_after(state.attempts, error).filter(|_| state.reached);
            let (next, recent_until) = (delay.map(Deadline::after), Deadline::after(RECENT));
            state.last = Some(LastFailure { error: error.shared(), next, recent_until });
            state.doubtful = true;
            self.dialer.failures.fetch_add(1, Ordering::Relaxed);
        }
        let next = state.last.as_ref().and_then(|failure| failure.next).filter(|next| next.precedes(deadline));
        let retry = next.map(|next| {
            state.waiting += 1;
            (next.remaining().unwrap_or_default(), Waiter { dialer: self.dialer })
        });
        (state.attempts, retry)
    }
}

/// A call between two of its attempts, counted among those who wait.
struct Waiter<'d> {
    dialer: &'d Dialer,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.dialer.lock().waiting -= 1;
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.alone {
            self.dialer.lock().trying = false;
        }
        self.dialer.changed.notify_all();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::RefCell;
    use std::io;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn refused() -> Error {
        let source = io::ErrorKind::ConnectionRefused.into();
        Error::before_sending(ErrorKind::connect(None, source))
    }

    fn hasty(attempts: u32) -> Reconnect {
        Reconnect::attempts(attempts).initial_delay(Duration::from_millis(2))
    }

    /// A dialer of a receiver that was reached before.
    fn lost(policy: Reconnect) -> Dialer {
        let dialer = Dialer::new(policy);
        dialer.reach(dialer.now(), &Deadline::after(LONG), || Ok(()), |_| ()).unwrap();
        dialer.suspect();
        dialer
    }

    /// The steps of one call: how its attempts ended, and how the call did.
    fn call(dialer: &Dialer, limit: Duration, mut attempts: impl FnMut() -> Result<(), Error>) -> (Vec<bool>, bool) {
        let reported = RefCell::new(Vec::new());
        let result = dialer.reach(dialer.now(), &Deadline::after(limit), &mut attempts, |failed| {
            assert_eq!(failed.number as usize, reported.borrow().len() + 1);
            reported.borrow_mut().push(failed.retry_in.is_some());
        });
        (reported.into_inner(), result.is_ok())
    }

    #[test]
    fn a_receiver_never_reached_is_tried_once() {
        assert_eq!(call(&Dialer::new(hasty(10)), LONG, || Err(refused())), (vec![false], false));
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
            let dialer = lost(hasty(attempts));
            // The same again, since what one call went through is no burden to the next.
            for _ in 0..2 {
                let mut made = 0;
                let attempt = || {
                    made += 1;
                    if made < succeeds { Err(refused()) } else { Ok(()) }
                };
                assert_eq!(call(&dialer, LONG, attempt), expected, "{name}");
                dialer.suspect();
            }
        }
    }

    #[test]
    fn no_attempt_is_waited_for_that_comes_after_the_limit() {
        let dialer = lost(Reconnect::attempts(10).initial_delay(LONG).max_delay(LONG));
        assert_eq!(call(&dialer, LONG / 2, || Err(refused())), (vec![false], false));
        // Nobody waits for that time, so that the next call need not either.
        assert_eq!(call(&dialer, LONG * 2, || Ok(())), (vec![], true));
    }

    #[test]
    fn what_does_not_pass_is_not_tried_again() {
        let source = || io::ErrorKind::PermissionDenied.into();
        let unusable = || Error::before_sending(ErrorKind::connect(None, source()));
        assert_eq!(call(&lost(hasty(10)), LONG, || Err(unusable())), (vec![false], false));
    }

    #[test]
    fn closing_wakes_who_waits_for_the_next_attempt() {
        let dialer = lost(Reconnect::attempts(10).initial_delay(LONG));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                dialer.reach(dialer.now(), &Deadline::after(LONG * 2), || Err::<(), _>(refused()), |_| ()).unwrap_err()
            });
            while dialer.lock().waiting == 0 {
                thread::yield_now();
            }
            dialer.close();
            assert!(matches!(waiting.join().unwrap().kind(), ErrorKind::Closed));
        });
    }

    #[test]
    fn who_waits_for_another_is_not_kept_beyond_its_limit() {
        let dialer = lost(hasty(10));
        let permit = dialer.permit(dialer.now(), &Deadline::after(LONG)).unwrap();
        let limit = Duration::from_millis(30);
        let error = dialer.reach(dialer.now(), &Deadline::after(limit), || Ok(()), |_| ()).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Timeout { phase: Phase::Connect, limit: named } if *named == limit));
        drop(permit);
        assert_eq!(call(&dialer, LONG, || Ok(())), (vec![], true));
    }

    #[test]
    fn many_share_the_attempts_of_one() {
        for (name, succeeds, expected) in [("it is away", 99, 4), ("it comes back", 3, 2 + 16)] {
            let dialer = lost(hasty(4));
            let made = AtomicUsize::new(0);
            let began = dialer.now();
            // Held until all are there.
            let first = dialer.permit(began, &Deadline::after(LONG)).unwrap();
            let attempt = || {
                let number = made.fetch_add(1, Ordering::Relaxed) + 1;
                if number < succeeds { Err(refused()) } else { Ok(()) }
            };
            let results: Vec<_> = thread::scope(|scope| {
                let calls: Vec<_> = (0..16)
                    .map(|_| scope.spawn(|| dialer.reach(began, &Deadline::after(LONG), attempt, |_| ())))
                    .collect();
                while dialer.lock().waiting < 16 {
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
        let dialer = lost(hasty(3));
        dialer.reach(dialer.now(), &Deadline::after(LONG), || Ok(()), |_| ()).unwrap();
        let (began, deadline) = (dialer.now(), Deadline::after(LONG));
        let permits: Vec<_> = (0..5).map(|_| dialer.permit(began, &deadline).unwrap()).collect();
        for permit in permits {
            assert!(matches!(permit.failed(&refused(), &deadline), (1, Some(_))));
        }
        let reported = RefCell::new(Vec::new());
        let attempt = || Err::<(), _>(refused());
        dialer.reach(began, &deadline, attempt, |failed| reported.borrow_mut().push(failed.number)).unwrap_err();
        assert_eq!(reported.into_inner(), [2, 3]);
        assert!(dialer.failure_since(began).is_some() && dialer.failure_since(dialer.now()).is_none());
    }

    #[test]
    fn who_is_about_to_wait_counts_as_waiting() {
        let dialer = lost(hasty(2));
        let deadline = Deadline::after(LONG);
        let tries_too = |_: FailedAttempt<'_>| {
            // Another call, while the first reports its failure.
            let mut state = dialer.lock();
            assert!(matches!(state.pause(false, &deadline), Ok(Some(_))), "it waits for the next attempt, too");
            assert_eq!(state.attempts, 1);
        };
        let attempts = AtomicUsize::new(0);
        let attempt = || if attempts.fetch_add(1, Ordering::Relaxed) == 0 { Err(refused()) } else { Ok(()) };
        dialer.reach(dialer.now(), &deadline, attempt, tries_too).unwrap();
        assert_eq!(dialer.lock().waiting, 0);
    }

    #[test]
    fn a_failure_is_news_only_for_a_while() {
        let dialer = lost(hasty(1));
        let began = dialer.now();
        assert_eq!(call(&dialer, LONG, || Err(refused())), (vec![false], false));
        let again = || dialer.reach(began, &Deadline::after(LONG), || Ok(()), |_| ());
        assert!(again().is_err(), "another has just tried");
        dialer.lock().last.as_mut().unwrap().recent_until = Deadline::after(Duration::ZERO);
        assert!(again().is_ok(), "that was long ago");
        assert!(dialer.failure_since(began).is_none(), "it was reached since");
    }

    #[test]
    fn an_attempt_cut_short_by_its_call_is_nobody_elses() {
        let dialer = lost(hasty(1));
        let began = dialer.now();
        let passed = Deadline::after(Duration::ZERO);
        let permit = dialer.permit(began, &Deadline::after(LONG)).unwrap();
        assert!(matches!(permit.failed(&refused(), &passed), (1, None)));
        assert!(dialer.reach(began, &Deadline::after(LONG), || Ok(()), |_| ()).is_ok());
    }
}

/// Every interleaving of a few calls, by `RUSTFLAGS="--cfg loom" cargo test --lib pool`. A wake-up
/// that is lost is a deadlock, which the model reports.
#[cfg(all(test, loom))]
mod model {
    use std::sync::Arc;

    use loom::sync::atomic::AtomicUsize;

    use super::*;

    /// The model's clock stands still: a call waits until it is notified.
    fn far() -> Deadline {
        Deadline::after(Duration::MAX)
    }

    struct DialerModel {
        dialer: Dialer,
        /// How many attempts fail before the receiver is there.
        away: AtomicUsize,
        /// How many attempts are under way.
        dialling: AtomicUsize,
        /// How many connections were lost since.
        lost: AtomicUsize,
    }

    impl DialerModel {
        /// Runs what threads do with a receiver that was lost and is away for this many attempts,
        /// and looks at what is left.
        fn check(away: usize, attempts: u32, threads: &'static [fn(&DialerModel)]) {
            let mut explorer = loom::model::Builder::new();
            explorer.preemption_bound = Some(3);
            explorer.check(move || {
                // Without a delay, since the model's time does not pass.
                let policy = Reconnect::attempts(attempts).initial_delay(Duration::ZERO);
                let model = Arc::new(DialerModel {
                    dialer: Dialer::new(policy),
                    away: AtomicUsize::new(0),
                    dialling: AtomicUsize::new(0),
                    lost: AtomicUsize::new(0),
                });
                model.call().unwrap();
                model.dialer.suspect();
                model.away.store(away, Ordering::SeqCst);
                sync::run_together(&model, threads);
                let state = model.dialer.lock();
                assert!(!state.trying && state.waiting == 0);
                assert_eq!(model.dialling.load(Ordering::SeqCst), 0);
                // The model wants its own objects dropped inside.
                drop(state);
            });
        }

        fn call(&self) -> Result<(), Error> {
            let attempt = || {
                // While it is not known whether the receiver is there, one call at a time tries. Where a connection
                // is lost meanwhile, others may have begun before.
                let doubtful = self.dialer.lock().doubtful && self.lost.load(Ordering::SeqCst) == 0;
                let others = self.dialling.fetch_add(1, Ordering::SeqCst);
                assert!(!doubtful || others == 0, "two dial at a time");
                let failures = self.away.load(Ordering::SeqCst);
                self.away.store(failures.saturating_sub(1), Ordering::SeqCst);
                self.dialling.fetch_sub(1, Ordering::SeqCst);
                if failures == 0 { Ok(()) } else { Err(refused()) }
            };
            self.dialer.reach(self.dialer.now(), &far(), attempt, |_| ())
        }

        fn reaches(&self) {
            self.call().unwrap();
        }

        /// It may succeed or not, and ends.
        fn ends(&self) {
            let _ = self.call();
        }

        fn loses(&self) {
            self.lost.fetch_add(1, Ordering::SeqCst);
            self.dialer.suspect();
        }

        fn closes(&self) {
            self.dialer.close();
        }
    }

    fn refused() -> Error {
        Error::before_sending(ErrorKind::connect(None, std::io::ErrorKind::ConnectionRefused.into()))
    }

    #[test]
    fn calls_that_share_an_attempt_all_go_on() {
        DialerModel::check(0, 3, &[DialerModel::reaches, DialerModel::reaches, DialerModel::reaches]);
    }

    #[test]
    fn a_receiver_that_comes_back_is_reached_by_all() {
        DialerModel::check(1, 4, &[DialerModel::reaches, DialerModel::reaches]);
    }

    #[test]
    fn a_receiver_that_stays_away_fails_all() {
        DialerModel::check(99, 2, &[DialerModel::ends, DialerModel::ends]);
    }

    #[test]
    fn a_connection_lost_meanwhile_leaves_nobody_waiting() {
        DialerModel::check(0, 2, &[DialerModel::ends, DialerModel::loses, DialerModel::ends]);
    }

    #[test]
    fn closing_leaves_nobody_waiting() {
        DialerModel::check(1, 3, &[DialerModel::ends, DialerModel::closes, DialerModel::ends]);
    }
}

//! The only clock.

use std::time::{Duration, Instant};

/// A limit longer than this is no limit in practice; it keeps the arithmetic on instants from
/// overflowing.
const FAR: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 10);

/// One instant by which a whole call must end, with the limit it came from, so that an error can
/// name it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    started: Instant,
    at: Instant,
    limit: Duration,
}

impl Deadline {
    /// The clock of a call starts here.
    pub(crate) fn after(limit: Duration) -> Self {
        let started = now();
        Deadline { started, at: started + limit.min(FAR), limit }
    }

    /// The same, but for an instant that comes first.
    pub(crate) fn no_later_than(self, end: Option<Instant>) -> Self {
        match end {
            Some(end) if end < self.at => {
                Deadline { at: end, limit: end.saturating_duration_since(self.started), ..self }
            }
            _ => self,
        }
    }

    /// The limit as it was set.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// The time that is left; `None` once it has passed.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        self.at.checked_duration_since(now()).filter(|left| !left.is_zero())
    }

    /// Whether it passes before another does.
    pub(crate) fn precedes(&self, other: &Deadline) -> bool {
        self.at < other.at
    }

    /// Time since the call began.
    pub(crate) fn elapsed(&self) -> Duration {
        now().saturating_duration_since(self.started)
    }

    /// This deadline, or the one of a step that begins now and may take `limit`: whichever comes
    /// first.
    pub(crate) fn or_within(&self, limit: Duration) -> Deadline {
        let step = Deadline::after(limit);
        if step.precedes(self) { step } else { *self }
    }

    /// A fair part of what is left, where `parts` steps have yet to share it. It still names the
    /// whole limit.
    pub(crate) fn share(&self, parts: usize) -> Deadline {
        let now = now();
        let left = self.at.saturating_duration_since(now);
        let parts = u32::try_from(parts.max(1)).unwrap_or(u32::MAX);
        Deadline { at: now + left / parts, ..*self }
    }
}

/// Now. A simulation has a clock of its own.
fn now() -> Instant {
    #[cfg(any(test, fuzzing))]
    if let Some(now) = crate::simulation::now() {
        return now;
    }
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_limit_of_any_length_is_taken() {
        let deadline = Deadline::after(Duration::MAX);
        assert_eq!(deadline.limit(), Duration::MAX);
        let ten_years = Duration::from_secs(10 * 365 * 86_400);
        assert!(deadline.remaining().is_some_and(|left| left > ten_years - HOUR && left <= ten_years));
        assert!(deadline.or_within(Duration::MAX).share(3).remaining().is_some());
    }

    #[test]
    fn a_passed_deadline_has_nothing_left() {
        let deadline = Deadline::after(Duration::ZERO);
        assert_eq!(deadline.remaining(), None);
        assert_eq!(deadline.share(2).remaining(), None);
    }

    #[test]
    fn the_time_since_the_call_began_runs() {
        let call = Deadline::after(HOUR);
        while Instant::now() == call.started {}
        let between = call.elapsed();
        assert!(!between.is_zero() && between <= call.started.elapsed());
    }

    #[test]
    fn the_sooner_of_two_limits_counts_and_is_named() {
        let call = Deadline::after(HOUR);
        assert_eq!(call.or_within(HOUR / 2).limit(), HOUR / 2);
        assert_eq!(call.or_within(HOUR * 2).limit(), HOUR);
        assert!(call.share(2).precedes(&call) && !call.precedes(&call));
    }

    #[test]
    fn an_instant_that_comes_first_counts() {
        let call = Deadline::after(HOUR);
        let now = Instant::now();
        assert_eq!(call.no_later_than(None).limit(), HOUR);
        assert_eq!(call.no_later_than(Some(now + HOUR * 2)).limit(), HOUR);
        let sooner = call.no_later_than(Some(now + HOUR / 2));
        assert!(sooner.remaining().is_some_and(|left| left <= HOUR / 2));
        assert_eq!(sooner.limit(), now + HOUR / 2 - call.started);
        assert_eq!(call.no_later_than(Some(now)).remaining(), None);
        let endless = Deadline::after(Duration::MAX);
        assert_eq!(endless.no_later_than(Some(endless.at)).limit(), Duration::MAX, "no instant came first");
    }

    #[test]
    fn a_share_is_a_part_of_what_is_left() {
        let share = Deadline::after(HOUR).share(4);
        assert_eq!(share.limit(), HOUR);
        let left = share.remaining().unwrap();
        assert!(left <= HOUR / 4 && left > HOUR / 5, "{left:?}");
    }
}

//! Delays that double from attempt to attempt.

use std::time::Duration;

/// The delay after `times` doublings of the initial one, but no more than the longest.
pub(crate) fn doubled(initial: Duration, times: u32, longest: Duration) -> Duration {
    let factor = 1_u32.checked_shl(times).unwrap_or(u32::MAX);
    initial.saturating_mul(factor).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let delay = |times| doubled(Duration::from_millis(100), times, Duration::from_secs(1)).as_millis();
        assert_eq!([0, 1, 2, 3, 4, 31, 32, u32::MAX].map(delay), [100, 200, 400, 800, 1000, 1000, 1000, 1000]);
        assert_eq!(doubled(Duration::MAX, 2, Duration::MAX), Duration::MAX);
    }
}

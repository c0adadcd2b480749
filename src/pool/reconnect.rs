//! How often and after what time a connection is tried again, and after which failures at all.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use crate::backoff::doubled;
use crate::error::{Advice, Error};

/// How a [`Client`](crate::Client) that has reached its receiver before tries to reach it again: at
/// once, then after a delay that doubles from attempt to attempt, always inside the limit of the
/// call that needs the connection.
///
/// The delays are shortened at random by up to a quarter, so that senders which lost the same
/// receiver do not come back in step. A call whose limit would pass before the next attempt ends
/// with the last attempt's failure. Failures that trying again does not mend (a certificate that is
/// not trusted, a connection that this machine's rules forbid) are reported at once, and so is any
/// failure of a client that has never reached its receiver: its address is probably wrong.
///
/// Calls that need a connection at the same time share the attempts: one tries, the others wait for
/// what becomes of it.
///
/// Defaults to 10 attempts with delays from 1 to 30 seconds.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use mllp_client::{Client, Reconnect};
///
/// let patient = Reconnect::attempts(20).initial_delay(Duration::from_millis(200)).max_delay(Duration::from_secs(5));
/// let client = Client::builder("mllp://127.0.0.1:2575").reconnect(patient).timeout(Duration::from_secs(60)).build()?;
/// # Ok::<(), mllp_client::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconnect {
    attempts: u32,
    initial_delay: Duration,
    max_delay: Duration,
}

impl Default for Reconnect {
    fn default() -> Self {
        Reconnect { attempts: 10, initial_delay: Duration::from_secs(1), max_delay: Duration::from_secs(30) }
    }
}

impl Reconnect {
    /// One attempt, whose failure is the call's. A connection that has ended is still replaced
    /// before the next message.
    pub fn never() -> Self {
        Reconnect::attempts(1)
    }

    /// At most so many attempts, the one that is made at once included; 0 is taken for 1.
    pub fn attempts(n: u32) -> Self {
        Reconnect { attempts: n, ..Reconnect::default() }
    }

    /// The delay before the second attempt; each further one is twice as long. Defaults to 1
    /// second.
    pub fn initial_delay(self, delay: Duration) -> Self {
        Reconnect { initial_delay: delay, ..self }
    }

    /// No delay is longer than this. Defaults to 30 seconds.
    pub fn max_delay(self, delay: Duration) -> Self {
        Reconnect { max_delay: delay, ..self }
    }

    /// How long to wait after so many attempts have failed with this at last; `None` if there is to
    /// be no further one.
    pub(crate) fn delay_after(&self, attempts: u32, failure: &Error) -> Option<Duration> {
        (attempts < self.attempts && failure.advice() == Advice::Retry).then(|| {
            // Unlike any other hasher, and so as good as random.
            let number = RandomState::new().build_hasher().finish();
            let longest = self.longest_delay_after(attempts);
            longest - (longest / 4).mul_f64(number as f64 / u64::MAX as f64)
        })
    }

    fn longest_delay_after(&self, attempts: u32) -> Duration {
        doubled(self.initial_delay, attempts.saturating_sub(1), self.max_delay)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::error::{ErrorKind, Phase};

    fn refused() -> Error {
        Error::before_sending(ErrorKind::connect(None, io::ErrorKind::ConnectionRefused.into()))
    }

    #[test]
    fn delays_double_to_the_longest_and_end() {
        let usual = Reconnect::default();
        for (after, seconds) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 30), (9, 30)] {
            let longest = Duration::from_secs(seconds);
            for _ in 0..100 {
                let delay = usual.delay_after(after, &refused()).unwrap();
                assert!(delay <= longest && delay >= longest.mul_f64(0.7499), "{delay:?} after {after}");
            }
        }
        for after in [10, 11, u32::MAX] {
            assert_eq!(usual.delay_after(after, &refused()), None);
        }
        for initial in [Duration::ZERO, Duration::from_millis(1), Duration::MAX] {
            let boundless = Reconnect::attempts(u32::MAX).initial_delay(initial).max_delay(Duration::MAX);
            for after in [1, 32, 33, 64, 1000] {
                assert!(boundless.delay_after(after, &refused()).is_some(), "{initial:?} after {after}");
            }
        }
        let delays: Vec<_> = (0..20).map(|_| usual.delay_after(1, &refused())).collect();
        assert!(delays.iter().any(|delay| *delay != delays[0]), "no jitter");
    }

    #[test]
    fn never_is_once() {
        for policy in [Reconnect::never(), Reconnect::attempts(0), Reconnect::attempts(1)] {
            assert_eq!(policy.delay_after(1, &refused()), None, "{policy:?}");
        }
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let connect = |kind: io::ErrorKind| ErrorKind::connect(None, kind.into());
        let timeout = ErrorKind::Timeout { phase: Phase::TlsHandshake, limit: Duration::from_secs(1) };
        for (failure, expected) in [
            (connect(io::ErrorKind::ConnectionRefused), true),
            (connect(io::ErrorKind::HostUnreachable), true),
            (connect(io::ErrorKind::Other), true),
            (timeout, true),
            (connect(io::ErrorKind::AddrNotAvailable), true),
            (connect(io::ErrorKind::PermissionDenied), false),
            (ErrorKind::Config(String::new()), false),
        ] {
            let failure = Error::before_sending(failure);
            assert_eq!(Reconnect::default().delay_after(1, &failure).is_some(), expected, "{failure:?}");
        }
    }
}

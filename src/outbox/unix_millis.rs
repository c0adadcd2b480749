//! Times as storages keep them: milliseconds since the beginning of 1970, UTC.

use std::time::{Duration, SystemTime};

pub(super) fn now() -> i64 {
    of(SystemTime::now())
}

pub(super) fn of(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn time(millis: i64) -> SystemTime {
    let since = Duration::from_millis(u64::try_from(millis).unwrap_or(0));
    SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
}

//! A wake-up for the thread that waits for something to claim, within one process.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::locks::lock;

#[derive(Debug, Default)]
pub(super) struct WakeUp {
    is_due: Mutex<bool>,
    notified: Condvar,
}

impl WakeUp {
    pub(super) fn notify(&self) {
        *lock(&self.is_due) = true;
        self.notified.notify_all();
    }

    /// Waits until it is notified, unless it has been since the last time; returns whether it was.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let is_due = lock(&self.is_due);
        let waited = self.notified.wait_timeout_while(is_due, limit, |is_due| !*is_due);
        std::mem::take(&mut *waited.unwrap_or_else(PoisonError::into_inner).0)
    }
}

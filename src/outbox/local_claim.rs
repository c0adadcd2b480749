//! A handle's knowledge of its own claim: the entry that it holds, and the one that rests before it
//! is tried again.

use std::time::Duration;

use crate::deadline::Deadline;

#[derive(Debug, Default)]
pub(super) struct LocalClaim {
    claimed: Option<u64>,
    resting: Option<(u64, Deadline)>,
}

impl LocalClaim {
    /// The entry that is claimed.
    pub(super) fn claimed(&self) -> Option<u64> {
        self.claimed
    }

    /// The entry that rests, until the time has come to try it again.
    pub(super) fn resting(&self) -> Option<u64> {
        self.resting.as_ref().filter(|(_, until)| until.remaining().is_some()).map(|(id, _)| *id)
    }

    pub(super) fn begin(&mut self, id: u64) {
        *self = LocalClaim { claimed: Some(id), resting: None };
    }

    /// The claim has ended; its entry is to rest for so long, if it is to be tried again.
    pub(super) fn end(&mut self, rest: Option<Duration>) {
        self.resting = self.claimed.take().zip(rest.map(Deadline::after));
    }

    /// Somebody has decided that the entry that rests need not.
    pub(super) fn end_rest(&mut self) {
        self.resting = None;
    }
}

//! A handle's knowledge of its own claim: the entry that it holds, and the one that rests before it
//! is tried again.

use std::time::Duration;

use super::Claim;
use crate::deadline::Deadline;

#[derive(Debug, Default)]
pub(super) struct LocalClaim {
    /// How many claims there were, by which they differ.
    serial: u64,
    claimed: Option<u64>,
    resting: Option<(u64, Deadline)>,
}

impl LocalClaim {
    /// The entry that is claimed.
    pub(super) fn claimed(&self) -> Option<u64> {
        self.claimed
    }

    /// Whether this is the claim that there is, and not an earlier one on the same entry.
    pub(super) fn is(&self, claim: &Claim) -> bool {
        self.claimed == Some(claim.entry.id) && self.serial == claim.serial
    }

    /// The entry that rests, until the time has come to try it again.
    pub(super) fn resting(&self) -> Option<u64> {
        self.resting.as_ref().filter(|(_, until)| until.remaining().is_some()).map(|(id, _)| *id)
    }

    /// Begins a claim; returns its serial number.
    pub(super) fn begin(&mut self, id: u64) -> u64 {
        *self = LocalClaim { serial: self.serial + 1, claimed: Some(id), resting: None };
        self.serial
    }

    /// The claim has ended; its entry is to rest for so long, if it is to be tried again.
    pub(super) fn end(&mut self, rest: Option<Duration>) {
        self.resting = self.claimed.take().zip(rest.map(Deadline::after));
    }

    /// The same, if this is the claim that there is.
    #[cfg(any(feature = "redis", feature = "sqlite"))]
    pub(super) fn end_if(&mut self, claim: &Claim, rest: Option<Duration>) {
        if self.is(claim) {
            self.end(rest);
        }
    }

    /// Somebody has decided that the entry that rests need not.
    pub(super) fn end_rest(&mut self) {
        self.resting = None;
    }
}

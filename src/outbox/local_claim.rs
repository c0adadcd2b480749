//! A handle's knowledge of its own claims, and of the head that rests before it is tried again.

use std::collections::BTreeMap;
#[cfg(any(feature = "redis", feature = "sqlite"))]
use std::time::Duration;

use super::Claim;
#[cfg(any(feature = "redis", feature = "sqlite"))]
use crate::deadline::Deadline;

#[derive(Debug, Default)]
pub(super) struct LocalClaims {
    /// How many claims there were, by which they differ.
    serial: u64,
    /// The claimed entries, and the serial number of each claim.
    claims: BTreeMap<u64, u64>,
    /// The head that rests, where one claim at a time is all there is.
    #[cfg(any(feature = "redis", feature = "sqlite"))]
    resting: Option<(u64, Deadline)>,
}

impl LocalClaims {
    pub(super) fn count(&self) -> usize {
        self.claims.len()
    }

    /// Whether this is a claim that there is, and not an earlier one on the same entry.
    pub(super) fn is(&self, claim: &Claim) -> bool {
        self.claims.get(&claim.entry.id) == Some(&claim.serial)
    }

    /// Begins a claim; returns its serial number.
    pub(super) fn begin(&mut self, id: u64) -> u64 {
        self.serial += 1;
        self.claims.insert(id, self.serial);
        self.serial
    }

    /// The claim of an entry has ended.
    pub(super) fn end(&mut self, id: u64) {
        self.claims.remove(&id);
    }

    /// All claims have ended; returns their entries.
    pub(super) fn end_all(&mut self) -> Vec<u64> {
        #[cfg(any(feature = "redis", feature = "sqlite"))]
        (self.resting = None);
        std::mem::take(&mut self.claims).into_keys().collect()
    }
}

#[cfg(feature = "redis")]
impl LocalClaims {
    /// How many claims there were.
    pub(super) fn serial(&self) -> u64 {
        self.serial
    }
}

#[cfg(any(feature = "redis", feature = "sqlite"))]
impl LocalClaims {
    /// The entry that rests, until the time has come to try it again.
    pub(super) fn resting(&self) -> Option<u64> {
        self.resting.as_ref().filter(|(_, until)| until.remaining().is_some()).map(|(id, _)| *id)
    }

    /// This claim has ended, if it is one; its entry is to rest for so long, if it is to be tried
    /// again.
    pub(super) fn end_if(&mut self, claim: &Claim, rest: Option<Duration>) {
        if self.is(claim) {
            self.end(claim.entry.id);
            self.resting = rest.map(|rest| (claim.entry.id, Deadline::after(rest)));
        }
    }
}

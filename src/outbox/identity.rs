//! Names that nobody else has.

use super::OutboxError;
use super::entry::Identity;

/// 128 bits of the system's randomness.
pub(super) fn unique() -> Result<Identity, OutboxError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| OutboxError::Storage {
        what: "the system has no randomness to give".to_owned(),
        source: Some(error.into()),
    })?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

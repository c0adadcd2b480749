//! What this crate's fuzzers and tests see of the inside.

#[cfg(fuzzing)]
pub mod inside;
pub mod oracle;
pub mod trial;

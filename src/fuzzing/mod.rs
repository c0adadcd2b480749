//! The inside of this crate, as far as fuzzers and tests see it.

#[cfg(fuzzing)]
pub mod inside;
pub mod oracle;
pub mod trial;

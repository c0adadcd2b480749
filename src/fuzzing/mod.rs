//! What fuzzers and tests see of the inside: nothing of it is in a crate that is built for use.

#[cfg(fuzzing)]
pub mod inside;
pub mod oracle;
#[cfg(fuzzing)]
pub mod world;

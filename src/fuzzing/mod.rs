//! What this crate's fuzzers and tests see of the inside. Nothing of it is in what others build, even to fuzz it.

#[cfg(all(fuzzing, feature = "_world"))]
pub mod inside;
pub mod oracle;
#[cfg(all(fuzzing, feature = "_world"))]
pub mod world;

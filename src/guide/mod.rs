//! Pages for those who connect systems: how sites behave, and what to set.

#[doc = include_str!("sites.md")]
pub mod sites {}

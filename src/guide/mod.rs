//! Pages for those who connect systems: how sites behave and what to set, what outboxes promise,
//! and which messages stay in order.

#[doc = include_str!("sites.md")]
pub mod sites {}

#[doc = include_str!("storages.md")]
pub mod storages {}

#[doc = include_str!("lanes.md")]
pub mod lanes {}

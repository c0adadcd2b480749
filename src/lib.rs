//! Sends HL7 v2 messages over MLLP.

#![forbid(unsafe_code)]
#![deny(missing_docs, missing_debug_implementations)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod ack;
mod builder;
mod client;
mod connection;
mod deadline;
mod endpoint;
mod error;
mod event;
pub mod frame;
mod header;
mod inbox;
mod outcome;
mod pool;
mod segment;
mod stream;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;

pub use ack::{Ack, AckCode, AckParseError, ErrorDetail};
pub use builder::ClientBuilder;
pub use client::{Client, Request};
pub use connection::Connection;
pub use endpoint::Endpoint;
pub use error::{Delivery, Error, ErrorKind, MessageError, Phase};
pub use event::{Event, Stats};
pub use stream::ShutdownHandle;

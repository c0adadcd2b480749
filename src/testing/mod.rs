//! A receiver to test against, for programs that use this crate as for the crate itself (feature
//! `testing`).
//!
//! It listens on 127.0.0.1 on a port of the system's choice, reads MLLP frames, and does what it is
//! told: accept everything, answer by a closure, or play a script of [`Step`]s, the well-behaved
//! and the others. It says what it received, and when it is dropped it ends its connections and
//! joins its threads, whatever its peers do. With the feature `testing-tls` it speaks TLS
//! 1.2 and 1.3 too.
//!
//! # Examples
//!
//! ```
//! use mllp_client::testing::{Receiver, Step};
//! use mllp_client::{AckCode, Client, Delivery};
//!
//! let receiver = Receiver::scripted([
//!     Step::refuse(AckCode::ApplicationError, "unknown ward"),
//!     Step::silence().close(),
//!     Step::accept(),
//! ])?;
//! let client = Client::new(&receiver.endpoint())?;
//! let message = "MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5\rPID|1||42\r";
//!
//! let refused = client.send(message).unwrap_err();
//! assert_eq!(refused.nak().unwrap().text().as_deref(), Some("unknown ward"));
//! assert_eq!(client.send(message).unwrap_err().delivery(), Delivery::Unknown);
//! assert!(client.send(message).is_ok());
//! assert_eq!(receiver.received().len(), 3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod outbox;
mod receiver;
mod served;
mod step;
#[cfg(feature = "testing-tls")]
mod tls;

pub use outbox::{BrokenContract, OutboxSuite};
pub use receiver::{Receiver, ReceiverBuilder};
pub use step::Step;
#[cfg(feature = "testing-tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing-tls")))]
pub use tls::ServerTls;

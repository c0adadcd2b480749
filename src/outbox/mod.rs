//! Store and forward: a message that an outbox has taken is delivered, also if the receiver is away
//! for the night, the machine restarts, or the program is killed between sending and the answer, as
//! far as the outbox survives that.
//!
//! ```
//! # use mllp_client::testing::Receiver;
//! # let receiver = Receiver::accepting()?;
//! # let endpoint = receiver.endpoint();
//! use std::time::Duration;
//! use mllp_client::Client;
//! use mllp_client::outbox::{Forwarder, MemoryOutbox, Outbox};
//!
//! let outbox = MemoryOutbox::new(1_000, 64 * 1024 * 1024); // or SqliteOutbox::open("outbox.db", "ehr")
//! let forwarder = Forwarder::builder(outbox.clone(), Client::new(&endpoint)?).start()?;
//! outbox.push(b"MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5\rPID|1||42\r")?; // from here on it is the outbox's
//! println!("{:?}", forwarder.status()?);
//! # assert!(forwarder.drain(Duration::from_secs(10))?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! An [`Outbox`] keeps messages for one destination, in order; a [`Forwarder`] is the thread that
//! drains it through a [`Client`](crate::Client).
//!
//! | outbox | feature | survives | for |
//! |---|---|---|---|
//! | [`MemoryOutbox`] | | nothing but a receiver that is away | what can be had again, or may be lost with the process |
//! | `SqliteOutbox` | `sqlite` | the end of the process and of the machine | one machine: the usual choice |
//! | `RedisOutbox` | `redis` | what its server survives, see there | several machines |
//! | your own | | what you say | see [`Outbox`], and `testing::OutboxSuite` |
//!
//! The features `sqlite` and `redis` take a later Rust than the rest of this crate, as their
//! libraries do: 1.89.
//!
//! # What is promised
//!
//! - **At least once.** A message whose [`push`](Outbox::push) has returned is sent until the
//!   receiver has acknowledged it, or until it is dead or held, and then it is there to read and to
//!   queue again. Nothing is removed before its acknowledgment, unless somebody discards it. What a
//!   storage itself has lost is told, by an error and an event.
//! - **In order.** The receiver sees the messages of a destination in the order in which they were
//!   pushed, one after the other: the next is sent when the one before it is delivered or dead.
//!   What threads push at the same time has the order in which it was stored. With
//!   [lanes](crate::guide::lanes), which are asked for, this holds for each patient, or whatever
//!   the [key](LaneKey) is, and many messages are under way at a time.
//! - **Per destination.** Each destination has its own queue, its own forwarder, its own dead. One
//!   that is away does not hold up the others.
//! - **The same bytes.** A message that is sent again is the same, with the same control ID
//!   (MSH-10).
//!
//! # What is not promised
//!
//! **Exactly once.** Where the answer does not come, nobody on this side can know whether the
//! receiver has the message (it was received and the answer lost, or it was not), and after a crash
//! between sending and recording nobody knows either. A forwarder sends it again; so the receiver
//! may see it again, once for each crash and each lost answer. With
//! [`OnUnknown::Hold`] it does not, and asks a person instead.
//!
//! # How a receiver recognises a repeated message
//!
//! By its control ID: HL7 v2 asks that MSH-10 identify a message uniquely for its sender (MSH-3 and
//! MSH-4), and that an acknowledgment name it in MSA-2. A receiver keeps the control IDs of each
//! sender for as long as a message may be repeated, a few days for instance, in the same
//! transaction as what the message changes. One that comes again, with the same bytes, is
//! acknowledged as the first time and changes nothing. This needs a sender whose control IDs do not
//! begin anew; interface engines have a setting for it.
//!
//! # What went wrong
//!
//! [`Forwarder::status`] shows what waits, how old the oldest is, what failed last and how much is
//! held or dead, also while the storage is away; [`ForwarderBuilder::on_event`] reports each step.
//! What each outbox promises when its storage fails: [`guide::storages`](crate::guide::storages).
//!
//! # For who has to step in
//!
//! | to | call |
//! |---|---|
//! | see what waits, is held or is dead, a page at a time and without messages | [`Outbox::list`] |
//! | see one with its message | [`Outbox::show`] |
//! | keep a message from being sent, and those behind it in its lane; let it go on | [`Outbox::hold`], [`Outbox::unhold`] |
//! | send what is held or dead after all, at its old place | [`Outbox::requeue`] |
//! | take a message out for good, whatever its state; all that match | [`Outbox::discard`], [`Outbox::discard_all`] |
//! | try what rests now, not after its rest | [`Outbox::try_now`] |
//! | send once more what was delivered | [`Outbox::resend`] (SQLite) |
//! | pause a destination for every instance, and let it go on | [`Outbox::set_paused`], [`Forwarder::pause`], [`Forwarder::resume`] |
//! | go on after the storage came back without some messages | [`Outbox::go_on`] |
//!
//! A message that is never answered, or makes the receiver fall over, holds up those behind it
//! until somebody discards or holds it, or until a limit is reached:
//! [`unknown_attempts`](ForwarderBuilder::unknown_attempts),
//! [`max_age`](ForwarderBuilder::max_age).

mod contract;
mod entry;
mod error;
mod forward_event;
mod forwarder;
#[cfg(any(feature = "redis", feature = "sqlite"))]
mod identity;
mod lane;
mod local_claim;
mod memory;
mod policy;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sqlite")]
mod sqlite;
mod status;
#[cfg(any(feature = "redis", feature = "sqlite"))]
mod unix_millis;
mod wake_up;

pub use contract::{Claim, Outbox, Pending, PushOptions};
pub use entry::{Entry, EntryState, Settlement, Summary};
pub use error::OutboxError;
pub use forward_event::ForwardEvent;
pub use forwarder::{Forwarder, ForwarderBuilder};
pub use lane::{Lane, LaneKey, LaneRule};
pub use memory::MemoryOutbox;
pub use policy::{AtLimit, OnUnknown};
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use redis::RedisOutbox;
#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
pub use sqlite::SqliteOutbox;
pub use status::{Counters, Status, StorageDown};

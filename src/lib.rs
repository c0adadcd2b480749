//! Sends HL7 v2 messages over MLLP and returns the acknowledgment: synchronous, blocking, from
//! ordinary threads.
//!
//! ```
//! # use mllp_client::testing::Receiver;
//! # let receiver = Receiver::accepting()?;
//! # let endpoint = receiver.endpoint();
//! use mllp_client::Client;
//!
//! let client = Client::new(&endpoint)?; // as "mllp://127.0.0.1:2575"
//! let ack = client.send("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5\rPID|1||42\r")?;
//! println!("{} {}", ack.code(), ack.control_id()); // AA MSG1
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Three things it holds to, in this order:
//!
//! 1. **An acknowledgment is never given to the wrong message.** One message at a time is under way
//!    on a connection, its answer must carry its control ID, and whatever casts doubt on a
//!    connection ends it: a time-out, a malformed frame, bytes that belong to no exchange. An
//!    answer that comes too late finds its connection closed.
//! 2. **Every failure says what became of the message**, see below.
//! 3. **It costs what the network costs.** One write, one read, no copy of a large message, no
//!    task, no thread.
//!
//! # What do I do with the message now?
//!
//! [`Error::advice`] answers it after any failure:
//!
//! | [`Advice`] | means | [`Delivery`] |
//! |---|---|---|
//! | [`Retry`](Advice::Retry) | nobody has it, and the cause may pass: send the same bytes again, later | [`NotSent`](Delivery::NotSent) |
//! | [`FixMessage`](Advice::FixMessage) | nobody has it, and these bytes cannot be sent: they fail again | [`NotSent`](Delivery::NotSent) |
//! | [`FixSetup`](Advice::FixSetup) | nobody has it; an endpoint, a certificate or a setting has to change first | [`NotSent`](Delivery::NotSent) |
//! | [`SeeRefusal`](Advice::SeeRefusal) | the receiver said no; [`Error::nak`] has its reasons | [`Refused`](Delivery::Refused) |
//! | [`FindOut`](Advice::FindOut) | it left, and no usable answer came: ask, or send it again only where a repeated control ID is recognised | [`Unknown`](Delivery::Unknown) |
//! | [`DoNotResend`](Advice::DoNotResend) | a commit accept (CA) came before the failure: the receiver has it, only the application's verdict is missing | [`Committed`](Delivery::Committed) |
//!
//! [`Error::kind`] says what happened, and its documentation what to do about it. Nothing is ever
//! sent twice by itself once the End Block may have left. Before that, on a connection that turns
//! out to be dead, a [`Client`] connects anew and sends: nobody has seen the message.
//!
//! # Limits of time
//!
//! A call has one deadline, [`timeout`](ClientBuilder::timeout), 30 seconds by default, counted
//! from its beginning and asked before every system call: waiting for a connection, connecting,
//! sending, and waiting for the acknowledgment share it, and a peer that sends byte by byte does
//! not extend it. One attempt to connect has a limit of its own inside it,
//! [`connect_timeout`](ClientBuilder::connect_timeout), 10 seconds, shared between the addresses of
//! the host. The one thing that a deadline cannot cut short is the system's name resolver; it is
//! asked right after. An error names the limit that passed and the [`Phase`] in which it did.
//!
//! # Threads
//!
//! A [`Client`] is `Send`, `Sync` and cheap to clone; clones share its connections, one by default,
//! up to [`max_connections`](ClientBuilder::max_connections). It has no thread of its own:
//! everything happens on the threads that call it. A connection is opened by the call that finds
//! none free. Beyond that calls wait their turn, inside their own deadlines ([`Phase::Checkout`]),
//! and are served in order of arrival.
//!
//! *What is ordered.* Over one connection a message is sent when the answer to the one before it
//! has come, so that the receiver sees messages in the order in which the calls got their turn:
//! those of one thread in its order, those of different threads in between each other. With more
//! connections messages of different threads overtake each other; those of one thread still do not.
//! What must arrive in order, such as the messages for one patient, goes through one thread or one
//! connection.
//!
//! A thread of a pool (rayon's, for instance) that sends is blocked until its answer has come, like
//! any other; as many threads as connections are enough. [`Client::close`] is final, and ends what
//! is under way on other threads at once. Dropping the last clone closes the connections. An
//! observer is called in the middle of a call, on its thread: one that is slow holds up that call
//! and those that wait for its connection, and one that panics is caught. A [`Connection`] is for
//! one thread; its [`ShutdownHandle`] for another.
//!
//! # Reconnecting
//!
//! Before each use a connection is looked at. One that the receiver has closed, that TCP's
//! keepalive has given up ([`keepalive`](ClientBuilder::keepalive)), that holds bytes belonging to
//! no exchange or has grown too old ([`idle_timeout`](ClientBuilder::idle_timeout),
//! [`max_connection_age`](ClientBuilder::max_connection_age)) is replaced, and the message goes out
//! on the new one.
//!
//! *What is tried again* is connecting, by a client that has reached its receiver before: at once,
//! then after delays of about 1, 2, 4 and up to 30 seconds, at most 10 times and inside the call's
//! deadline ([`Reconnect`]). The name is resolved anew each time. Calls that find the receiver away
//! at the same time share the attempts: one tries, and the others go on, or fail, with what becomes
//! of it. So a receiver that restarts within the limit of a call is no failure to messages that
//! have not been sent yet; one that was under way ends as [`Unknown`](Delivery::Unknown). A client
//! that has never reached its receiver reports a failure at once.
//!
//! *What is never tried again*: a message whose End Block may have left; a certificate that is not
//! trusted, or another failure that trying again does not mend; anything on a [`Connection`], which
//! is one socket.
//!
//! # Acknowledgments
//!
//! MSH-15 and MSH-16 of the message decide which acknowledgment is awaited (HL7 v2.5, chapter 2.9).
//! Both empty is the *original mode*: the application acknowledgment (AA, AE, AR) ends the call,
//! and a commit accept (CA) before it is remembered. Otherwise it is the *enhanced mode*: the
//! commit acknowledgment, the application acknowledgment, or both, as they ask; an application
//! acknowledgment ends the call in any case. A message for which both are `NE` has no answer to
//! wait for; see [`Request::send_unacknowledged`]. [`AckMode`], in the builder or a [`Request`],
//! overrides the header.
//!
//! Where both are awaited, [`application_timeout`](ClientBuilder::application_timeout) gives the
//! application a limit of its own, counted from the commit accept. A failure after that accept is
//! [`Committed`](Delivery::Committed), and carries it ([`Error::commit`]). [`Request::acks`] hands
//! out each acknowledgment as it comes.
//!
//! A connection remembers the control IDs it has carried. An acknowledgment that comes late on it,
//! where the call had ended at the commit accept ([`AckMode::Commit`]), or that comes a second
//! time, is recognised by its control ID, reported to the observer as [`Event::LateAck`], and never
//! taken for the next message's. The connection stays in use. So that this holds, a message with a
//! control ID that the connection has carried before goes over another one; see
//! [`allow_repeated_control_ids`](ClientBuilder::allow_repeated_control_ids) for senders that give
//! every message the same.
//!
//! [`release2`](ClientBuilder::release2) speaks MLLP release 2, whose commit blocks say that the
//! receiver has stored a message before any HL7 acknowledgment does.
//!
//! # Batches and files
//!
//! [`messages::split`] cuts a file into the messages in it, whatever its shape, and
//! [`Client::send_all`] sends them one by one, in order. A [`Batch`] goes out in one frame, and
//! [`Client::send_batch`] says what became of each of its messages, from one acknowledgment for
//! each, from a batch of them, or from a single one for the whole.
//!
//! # Sites with habits of their own
//!
//! Receivers close after each answer, leave out bytes, answer twice or with a commit accept alone.
//! [Sites and their habits](guide::sites) lists how each habit shows, and what to set.
//!
//! Text in other character sets than UTF-8 takes the feature `charset`: `Client::send_text` encodes
//! by MSH-18 or by the builder's `charset`, and acknowledgments are read in theirs. `send` sends
//! bytes as they are, in whatever set.
//!
//! # Store and forward
//!
//! [`outbox`] keeps messages until they are acknowledged, in memory, in a file or in Redis, and
//! forwards them in order. Its page says what is promised (at least once, in order, for each
//! destination), what is not (exactly once), and how a receiver recognises a repeated message.
//!
//! # TLS
//!
//! An `mllps://` endpoint is MLLP inside TLS 1.2 or 1.3, by the system's TLS library (feature
//! `tls`, on by default). [`TlsConfig`], given to the builder's `tls`, says whom to trust and who
//! to be:
//!
//! - **Trust.** By default the system's trust store, and a certificate for the endpoint's host: a
//!   name against the DNS names in the certificate, an address against its IP addresses.
//!   `server_name` sets another name, behind a tunnel for instance.
//! - **A private certificate authority**, as hospitals have: `root_certificates_pem`, in addition
//!   to the system's store, or with `system_roots(false)` in its place.
//! - **Mutual TLS**, where the receiver wants to know who sends: `identity_pem` (a chain and a key
//!   in PEM), `identity_pem_encrypted` or `identity_pkcs12`. A receiver that refuses the
//!   certificate is [`ErrorKind::Tls`]. Under TLS 1.3 this shows only when the first answer is
//!   awaited, so that the delivery is [`Unknown`](Delivery::Unknown) then, although a receiver that
//!   keeps to the protocol has read nothing.
//! - **What the dangerous switches give up.** `danger_accept_invalid_hostnames`: whoever holds any
//!   certificate of a trusted authority can stand in for the receiver.
//!   `danger_accept_invalid_certs`: anybody can. Both are warned about in the log, once for each
//!   client.
//!
//! A new connection costs a handshake: about a millisecond of computing and two round trips (TLS
//! 1.2) or one (1.3) on top of TCP's, each time, since the system's library is not asked to resume
//! sessions. Loading the trust store takes tens of milliseconds more, once for each client. Keep
//! the client.
//!
//! # What is logged
//!
//! Through the [`log`] crate. Endpoints, addresses, lengths, codes and control IDs appear; content
//! never does, in no log record, no `Debug` and no `Display`.
//!
//! | level | what |
//! |---|---|
//! | `error` | a panic of your observer |
//! | `warn` | bytes that belong to no exchange; an attempt to connect that failed and will be repeated; the dangerous switches of TLS; a forwarder's messages that are dead or held, its outbox that failed; a full outbox in memory that drops |
//! | `debug` | connections opened and ended; addresses that did not answer; attempts to connect that failed for good; failed calls; a forwarder's attempts that failed |
//! | `trace` | every frame sent, every acceptance, every delivery |
//!
//! # Features
//!
//! - `tls` (on by default): `mllps://` endpoints, through the `native-tls` crate: OpenSSL on Linux,
//!   whose headers have to be installed, Secure Transport or SChannel elsewhere. Without it, an
//!   `mllps://` endpoint is an [`ErrorKind::Config`].
//! - `tls-vendored`: the same with an OpenSSL that is built from source, where its headers cannot
//!   be installed.
//! - `charset`: text in the character sets of HL7 Table 0211, by the `encoding_rs` crate.
//! - `sqlite`: an outbox in a file, by the `rusqlite` crate and the SQLite that comes with it.
//!   Takes Rust 1.89.
//! - `redis`: an outbox in Redis, by the `redis` crate; over TLS where `tls` is on as well. Takes
//!   Rust 1.88.
//! - `testing`: a scripted receiver to test against, in the module of that name, and the contract
//!   of an outbox to try on your own.
//! - `testing-tls`: TLS for that receiver, by the `rustls` crate.

#![forbid(unsafe_code)]
#![deny(missing_docs, missing_debug_implementations)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backoff;
mod builder;
mod client;
mod connection;
mod deadline;
mod endpoint;
mod error;
mod event;
mod exchange;
pub mod frame;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod guide;
mod hl7;
#[cfg(feature = "tls")]
mod key_files;
mod locks;
mod net;
pub mod outbox;
mod pool;
mod settings;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod simulation;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;
#[cfg_attr(not(feature = "tls"), path = "tls_config_off.rs")]
mod tls_config;

pub use builder::ClientBuilder;
pub use client::{Acks, Client, Request, SendAll};
pub use connection::Connection;
pub use endpoint::Endpoint;
pub use error::{Advice, Delivery, Error, ErrorKind, Phase};
pub use event::{Event, Stats};
pub use hl7::ack::{Ack, AckCode, AckMode, AckParseError, ErrorDetail};
pub use hl7::batch::Batch;
pub use hl7::{MessageError, messages};
pub use net::{ShutdownHandle, TlsError};
pub use pool::Reconnect;
#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
pub use tls_config::{TlsConfig, TlsVersion};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

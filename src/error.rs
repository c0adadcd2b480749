//! What went wrong, and what became of the message.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::ack::{Ack, AckParseError};
use crate::frame::FrameError;
use crate::tls::TlsError;

/// A failed call: what happened ([`kind`](Error::kind)), what became of the message ([`delivery`](Error::delivery)), and
/// the evidence.
///
/// `Display` says what this library knows, in one line and without message content; the cause beneath it, where there is
/// one, is [`source()`](std::error::Error::source).
///
/// # Examples
///
/// ```no_run
/// # fn keep_for_later() {} fn follow_up() {} fn ask_whether_it_arrived() {}
/// use mllp_client::{Client, Delivery};
///
/// let client = Client::new("mllp://127.0.0.1:2575")?;
/// if let Err(error) = client.send("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5\rPID|1||42\r") {
///     match error.delivery() {
///         Delivery::NotSent => keep_for_later(),
///         Delivery::Committed => follow_up(),
///         Delivery::Unknown => ask_whether_it_arrived(),
///         Delivery::Refused => {
///             if let Some(nak) = error.nak() {
///                 eprintln!("{} {:?}", nak.code(), nak.errors().next().and_then(|detail| detail.code()));
///             }
///         }
///     }
/// }
/// # Ok::<(), mllp_client::Error>(())
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    delivery: Delivery,
    commit: Option<Ack>,
    response: Option<Vec<u8>>,
    heard: Option<Heard>,
}

/// What had come of an answer when the time was over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    pub(crate) bytes: usize,
    pub(crate) start_block: bool,
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes;
        match self.start_block {
            true => write!(f, "{bytes} bytes of an answer had come, without its end"),
            false => write!(f, "{bytes} bytes had come, no Start Block: the receiver answers without MLLP framing"),
        }
    }
}

/// What became of a message whose call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// The End Block never left for the operating system, so no conforming receiver has the message: send it again.
    NotSent,
    /// It left, and no usable answer came: the receiver may have it or not. Send it again only to a receiver that
    /// recognises a repeated control ID.
    Unknown,
    /// A commit accept (CA), or a commit block of MLLP release 2, came before the failure: the receiver has it. Do not send it
    /// again; only the application's verdict is missing.
    Committed,
    /// The receiver said no. Mend the message, or the receiver's set-up, first.
    Refused,
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Delivery::NotSent => "the message was not sent",
            Delivery::Unknown => "whether the receiver has the message is unknown",
            Delivery::Committed => "the receiver has committed the message",
            Delivery::Refused => "the receiver refused the message",
        })
    }
}

/// Where in a call something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Waiting for one of the client's connections while other threads use them.
    Checkout,
    /// Looking up the endpoint's host name.
    Resolve,
    /// Opening the TCP connection.
    Connect,
    /// The TLS handshake.
    TlsHandshake,
    /// Writing the frame.
    Send,
    /// Waiting for the commit acknowledgment that MSH-15 asks for, or for the commit block of MLLP release 2.
    CommitAck,
    /// Waiting for the application acknowledgment.
    ApplicationAck,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Checkout => "waiting for a free connection",
            Phase::Resolve => "resolving the host name",
            Phase::Connect => "connecting",
            Phase::TlsHandshake => "in the TLS handshake",
            Phase::Send => "sending the message",
            Phase::CommitAck => "waiting for the commit acknowledgment",
            Phase::ApplicationAck => "waiting for the application acknowledgment",
        })
    }
}

/// The kinds of failure. Each says when it is raised and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An endpoint or a setting that cannot be. Correct the configuration; nothing was opened.
    #[error("configuration: {0}")]
    Config(String),
    /// The message cannot be sent as it is. Mend it; nothing was opened and no connection was touched.
    #[error("the message cannot be sent")]
    InvalidMessage(#[source] MessageError),
    /// No connection: the name is unknown, or the address refused or cannot be reached. Check the address and whether the
    /// receiver runs.
    #[error("cannot connect{}", address.map(|address| format!(" to {address}")).unwrap_or_default())]
    Connect {
        /// The address that was tried last; `None` if the name did not resolve.
        address: Option<SocketAddr>,
        /// The system's reason.
        source: io::Error,
    },
    /// The TLS session could not be made, or broke: an untrusted or expired certificate, another name, a peer that does not speak
    /// TLS. A client certificate that the receiver refuses shows in the handshake (not sent) or, under TLS 1.3, on the first
    /// read (unknown). Trying again does not help, unless the peer has just ended the connection in the handshake, as a proxy does whose
    /// receiver is away.
    #[error("TLS failed")]
    Tls(#[source] TlsError),
    /// The deadline passed. The phase says where the time went: a receiver that is slow to answer
    /// ([`ApplicationAck`](Phase::ApplicationAck)), a network that is slow to take the message ([`Send`](Phase::Send)). Where a part
    /// of an answer had come, the error's `Display` says how much, and whether it had a Start Block.
    #[error("timed out after {limit:?} while {phase}")]
    Timeout {
        /// What the call was doing.
        phase: Phase,
        /// The limit that passed, as it was set.
        limit: Duration,
    },
    /// The peer closed or reset the connection.
    #[error("the connection ended while {phase}{}", received_so_far(*received))]
    Disconnected {
        /// What the call was doing.
        phase: Phase,
        /// How many bytes of an answer had come.
        received: usize,
        /// The system's reason; `None` for an orderly end of stream.
        source: Option<io::Error>,
    },
    /// On a [`Connection`](crate::Connection): bytes had come that belong to no exchange. Open another connection; a
    /// [`Client`](crate::Client) does so by itself.
    #[error("{stale} bytes had come that belong to no exchange, so the connection was closed")]
    Desync {
        /// How many bytes, on the wire.
        stale: usize,
    },
    /// The answer breaks the MLLP grammar. [`FrameError::NoStartBlock`] tells a peer that does not frame its answers.
    #[error("the answer is not an MLLP frame")]
    MalformedFrame(#[source] FrameError),
    /// The answer's content is longer than [`max_ack_size`](crate::ClientBuilder::max_ack_size).
    #[error("the answer is longer than {limit} bytes")]
    AckTooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The answer is a frame, but no acknowledgment. [`Error::response`] has it.
    #[error("the answer is not an acknowledgment")]
    MalformedAck(#[source] AckParseError),
    /// The answer acknowledges another message: its MSA-2 is not our MSH-10. [`Error::response`] has it.
    #[error("the answer acknowledges another message, with control ID {:?}", .0.control_id_in_short())]
    UnmatchedAck(Ack),
    /// The receiver refuses the message: AE, AR, CE or CR. [`Error::nak`] has the reasons; the connection stays open.
    #[error("the receiver answered {}", .0.code())]
    Nak(Ack),
    /// MLLP release 2: the receiver says that it has not stored the message, as often as it was sent. The connection stays open.
    #[error("the receiver did not store the message, {sendings} times (negative commit block)")]
    NotStored {
        /// How often it was sent.
        sendings: u32,
    },
    /// [`Client::close`](crate::Client::close), a [`ShutdownHandle`](crate::ShutdownHandle), or an earlier failure of this
    /// [`Connection`](crate::Connection) ended it.
    #[error("the connection is closed")]
    Closed,
}

impl ErrorKind {
    /// The same again, for another whom it concerns. What the system said keeps its number, or its kind and words.
    pub(crate) fn copy(&self) -> ErrorKind {
        let again = |source: &io::Error| match source.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(source.kind(), source.to_string()),
        };
        match self {
            ErrorKind::Config(problem) => ErrorKind::Config(problem.clone()),
            ErrorKind::InvalidMessage(error) => ErrorKind::InvalidMessage(*error),
            ErrorKind::Connect { address, source } => ErrorKind::Connect { address: *address, source: again(source) },
            ErrorKind::Tls(error) => ErrorKind::Tls(error.clone()),
            ErrorKind::Timeout { phase, limit } => ErrorKind::Timeout { phase: *phase, limit: *limit },
            ErrorKind::Disconnected { phase, received, source } => {
                let source = source.as_ref().map(again);
                ErrorKind::Disconnected { phase: *phase, received: *received, source }
            }
            ErrorKind::Desync { stale } => ErrorKind::Desync { stale: *stale },
            ErrorKind::MalformedFrame(error) => ErrorKind::MalformedFrame(*error),
            ErrorKind::AckTooLarge { limit } => ErrorKind::AckTooLarge { limit: *limit },
            ErrorKind::MalformedAck(error) => ErrorKind::MalformedAck(*error),
            ErrorKind::UnmatchedAck(ack) => ErrorKind::UnmatchedAck(ack.clone()),
            ErrorKind::Nak(ack) => ErrorKind::Nak(ack.clone()),
            ErrorKind::NotStored { sendings } => ErrorKind::NotStored { sendings: *sendings },
            ErrorKind::Closed => ErrorKind::Closed,
        }
    }
}

fn received_so_far(received: usize) -> String {
    if received == 0 { String::new() } else { format!(", after {received} bytes of an answer") }
}

/// Why a message is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It holds a byte that would end the frame or begin another. A message that is framed already has 0x0B at offset 0: hand
    /// over the content alone.
    #[error("framing byte 0x{byte:02X} at offset {offset}")]
    FramingByte {
        /// The byte.
        byte: u8,
        /// Its place in the message.
        offset: usize,
    },
    /// It is longer than [`max_message_size`](crate::ClientBuilder::max_message_size).
    #[error("{size} bytes are more than the limit of {limit}")]
    TooLarge {
        /// Its length in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// It does not begin with an MSH, BHS or FHS segment. [`exchange`](crate::Client::exchange) sends any payload.
    #[error("it does not begin with an MSH, BHS or FHS segment")]
    NotHl7,
    /// It has no Message Control ID (MSH-10), by which its acknowledgment is known.
    #[error("it has no Message Control ID (MSH-10)")]
    NoControlId,
    /// On a [`Connection`](crate::Connection): the acknowledgment of an earlier message may still come, and the answer to this one could not
    /// be told from it, since their control IDs are the same or none is compared. Send it on another connection, as a
    /// [`Client`](crate::Client) does by itself.
    #[error("an earlier acknowledgment is owed on this connection that its own could not be told from")]
    AckOwed,
    /// A batch's trailer (BTS-1, FTS-1) counts other than what is there: something is missing.
    #[error("the trailer counts {said}, and there are {found}")]
    WrongCount {
        /// What the trailer says.
        said: usize,
        /// What was found.
        found: usize,
    },
    /// A character that the message's character set (MSH-18, or the builder's) does not have.
    #[error("the character at offset {offset} is not in the character set {charset}")]
    Unencodable {
        /// Its place in the text, in bytes.
        offset: usize,
        /// The character set.
        charset: &'static str,
    },
    /// A character set of Table 0211 that a message cannot be sent in.
    #[error("the character set {charset} cannot be used: {reason}")]
    UnsupportedCharset {
        /// Its name.
        charset: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// MSH-18 names a character set that is none of Table 0211.
    #[error("the character set in MSH-18 is not known")]
    UnknownCharset,
    /// It asks for no acknowledgment (MSH-15 and MSH-16 are `NE`), so that none can be awaited. See
    /// [`send_unacknowledged`](crate::Request::send_unacknowledged).
    #[error("it asks for no acknowledgment (MSH-15 and MSH-16 are NE)")]
    NoAckRequested,
}

impl Error {
    /// A failure before any byte of the End Block can have left.
    pub(crate) fn before_sending(kind: ErrorKind) -> Error {
        Error::judged(kind, false, None)
    }

    /// A failure of an exchange. `left` tells whether the End Block may have left, `commit` is the CA that had come.
    pub(crate) fn judged(kind: ErrorKind, left: bool, commit: Option<Ack>) -> Error {
        let delivery = match kind {
            ErrorKind::Nak(_) | ErrorKind::NotStored { .. } => Delivery::Refused,
            _ if commit.is_some() => Delivery::Committed,
            _ if left => Delivery::Unknown,
            _ => Delivery::NotSent,
        };
        Error(Box::new(Inner { kind, delivery, commit, response: None, heard: None }))
    }

    /// The same failure to connect, for another call that waited for what became of the attempt.
    pub(crate) fn shared(&self) -> Error {
        Error::before_sending(self.0.kind.copy())
    }

    /// Puts a better reason, if there is one, in the place of what was first seen.
    pub(crate) fn because(mut self, reason: Option<ErrorKind>) -> Error {
        self.0.kind = reason.unwrap_or(self.0.kind);
        self
    }

    /// Adds the reply that was the problem.
    pub(crate) fn with_response(mut self, response: &[u8]) -> Error {
        self.0.response = Some(response.to_vec());
        self
    }

    /// The same failure, after a commit block.
    pub(crate) fn once_stored(mut self, stored: bool) -> Error {
        if stored && self.0.delivery == Delivery::Unknown {
            self.0.delivery = Delivery::Committed;
        }
        self
    }

    /// Adds what had come of an answer.
    pub(crate) fn with_heard(mut self, heard: Heard) -> Error {
        self.0.heard = Some(heard);
        self
    }

    /// What happened.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// What became of the message: whether it may be sent again.
    pub fn delivery(&self) -> Delivery {
        self.0.delivery
    }

    /// The refusal, if the receiver answered AE, AR, CE or CR.
    pub fn nak(&self) -> Option<&Ack> {
        match &self.0.kind {
            ErrorKind::Nak(ack) => Some(ack),
            _ => None,
        }
    }

    /// The commit accept (CA) that had come before the failure.
    pub fn commit(&self) -> Option<&Ack> {
        self.0.commit.as_ref()
    }

    /// The reply's content, where one was received and was the problem: a refusal, an answer to another message, an answer
    /// that is no acknowledgment. For a malformed frame, the bytes that had come. It may hold a patient's data.
    pub fn response(&self) -> Option<&[u8]> {
        match &self.0.kind {
            ErrorKind::Nak(ack) | ErrorKind::UnmatchedAck(ack) => Some(ack.raw()),
            _ => self.0.response.as_deref(),
        }
    }

    /// Where it happened, for a time-out and an ended connection.
    pub fn phase(&self) -> Option<Phase> {
        match self.0.kind {
            ErrorKind::Timeout { phase, .. } | ErrorKind::Disconnected { phase, .. } => Some(phase),
            _ => None,
        }
    }

    /// Whether a deadline passed.
    pub fn is_timeout(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Timeout { .. })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.kind)?;
        if let Some(heard) = &self.0.heard {
            write!(f, "; {heard}")?;
        }
        match (&self.0.kind, self.0.delivery) {
            // These say it themselves.
            (
                ErrorKind::Config(_) | ErrorKind::InvalidMessage(_) | ErrorKind::Nak(_) | ErrorKind::NotStored { .. },
                _,
            ) => Ok(()),
            (_, delivery) => write!(f, "; {delivery}"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("delivery", &self.0.delivery)
            .field("commit", &self.0.commit)
            .field("response_len", &self.0.response.as_ref().map(Vec::len))
            .field("heard", &self.0.heard)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.0.kind)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    fn ack(code: &str) -> Ack {
        Ack::parse(format!("MSH|^~\\&|\rMSA|{code}|1|Marker\r")).unwrap()
    }

    #[test]
    fn an_error_is_one_pointer() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        assert_eq!(size_of::<Result<(), Error>>(), size_of::<usize>());
    }

    #[test]
    fn delivery_follows_from_what_left_and_what_came() {
        let timeout = || ErrorKind::Timeout { phase: Phase::Send, limit: Duration::from_secs(1) };
        for (name, error, expected) in [
            ("nothing left", Error::judged(timeout(), false, None), Delivery::NotSent),
            ("left", Error::judged(timeout(), true, None), Delivery::Unknown),
            ("committed", Error::judged(timeout(), true, Some(ack("CA"))), Delivery::Committed),
            ("refused", Error::judged(ErrorKind::Nak(ack("AE")), true, None), Delivery::Refused),
            ("refused early", Error::judged(ErrorKind::Nak(ack("AR")), false, None), Delivery::Refused),
            ("refused late", Error::judged(ErrorKind::Nak(ack("AE")), true, Some(ack("CA"))), Delivery::Refused),
        ] {
            assert_eq!(error.delivery(), expected, "{name}");
        }
    }

    #[test]
    fn evidence() {
        let nak = Error::judged(ErrorKind::Nak(ack("AE")), true, None);
        assert_eq!(nak.nak(), Some(&ack("AE")));
        assert_eq!(nak.response(), Some(ack("AE").raw()));
        let unmatched = Error::judged(ErrorKind::UnmatchedAck(ack("AA")), true, Some(ack("CA")));
        assert_eq!(unmatched.response(), Some(ack("AA").raw()));
        assert_eq!(unmatched.commit(), Some(&ack("CA")));
        assert!(unmatched.nak().is_none());
        let garbage =
            Error::judged(ErrorKind::MalformedAck(AckParseError::NotHl7), true, None).with_response(b"Marker");
        assert_eq!(garbage.response(), Some(&b"Marker"[..]));
        for error in [nak, unmatched, garbage] {
            assert!(!format!("{error} {error:?} {error:#?}").contains("Marker"), "{error:?}");
        }
    }

    #[test]
    fn what_is_said() {
        let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
        let limit = Duration::from_secs(30);
        for (error, said, cause) in [
            (Error::before_sending(ErrorKind::Config("x".into())), "configuration: x", None),
            (
                Error::before_sending(ErrorKind::InvalidMessage(MessageError::Empty)),
                "the message cannot be sent",
                Some("it is empty".to_owned()),
            ),
            (
                Error::before_sending(ErrorKind::Connect {
                    address: Some(([127, 0, 0, 1], 99).into()),
                    source: reset(),
                }),
                "cannot connect to 127.0.0.1:99; the message was not sent",
                Some(reset().to_string()),
            ),
            (
                Error::before_sending(ErrorKind::Connect { address: None, source: reset() }),
                "cannot connect; the message was not sent",
                Some(reset().to_string()),
            ),
            (
                Error::judged(ErrorKind::Timeout { phase: Phase::ApplicationAck, limit }, true, None),
                "timed out after 30s while waiting for the application acknowledgment; whether the receiver has the \
                 message is unknown",
                None,
            ),
            (
                Error::judged(
                    ErrorKind::Disconnected { phase: Phase::CommitAck, received: 7, source: Some(reset()) },
                    true,
                    None,
                ),
                "the connection ended while waiting for the commit acknowledgment, after 7 bytes of an answer; whether \
                 the receiver has the message is unknown",
                Some(reset().to_string()),
            ),
            (
                Error::judged(ErrorKind::MalformedFrame(FrameError::NoStartBlock { first: b'M' }), true, None),
                "the answer is not an MLLP frame; whether the receiver has the message is unknown",
                Some(FrameError::NoStartBlock { first: b'M' }.to_string()),
            ),
            (
                Error::judged(ErrorKind::UnmatchedAck(ack("AA")), true, Some(ack("CA"))),
                "the answer acknowledges another message, with control ID \"1\"; the receiver has committed the message",
                None,
            ),
            (Error::judged(ErrorKind::Nak(ack("CR")), true, None), "the receiver answered CR", None),
        ] {
            assert_eq!(error.to_string(), said);
            assert_eq!(error.source().map(ToString::to_string), cause);
        }
    }
}

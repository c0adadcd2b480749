//! Errors: the kind of failure, and whether the receiver has the message.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::endpoint::Endpoint;
use crate::frame::FrameError;
use crate::hl7::MessageError;
use crate::hl7::ack::{Ack, AckParseError};
use crate::net::{Halt, OpenError, Opening, TlsError};

/// A failed call: what happened ([`kind`](Error::kind)), what became of the message
/// ([`delivery`](Error::delivery)), and the evidence.
///
/// `{error}` is one line without message content, and without the cause beneath it, which is
/// [`source()`](std::error::Error::source). `{error:#}` adds the endpoint, the control ID and all
/// causes; `{error:?}` is the same, since it is what a `main` that returns a `Result` prints.
/// `{error:#?}` shows the fields.
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
    evidence: Evidence,
    control_id: Option<String>,
    endpoint: Option<Endpoint>,
}

/// The parts of an error, beside its kind, that `Display` and [`Error::response`] show.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    /// The answer that was the problem. Shared, since one answer may be about many messages.
    pub(crate) response: Option<Arc<[u8]>>,
    pub(crate) hint: Option<Hint>,
}

/// The probable reason of a failure, and the setting that helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hint {
    /// This many bytes of an answer had come, with a Start Block and without an end.
    HalfAnAnswer { bytes: usize },
    /// This many bytes had come, and no Start Block among them.
    NoStartBlock { bytes: usize },
    /// An answer had come whole but for the Carriage Return behind its End Block.
    NoCarriageReturn,
    /// A commit accept had come that the message does not ask for, or that is the only answer it is
    /// sure to get.
    CommitAcceptAlone,
    /// A TLS session ended before the peer's first answer, as under TLS 1.3 after a client
    /// certificate that was refused or missing.
    ClientCertificate,
    /// The peer was silent in the TLS handshake.
    NoTls,
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hint::HalfAnAnswer { bytes } => write!(f, "{bytes} bytes of an answer had come, but no End Block"),
            Hint::NoStartBlock { bytes } => {
                write!(f, "{bytes} bytes had come, but no Start Block: the receiver answers without MLLP framing")
            }
            Hint::NoCarriageReturn => {
                f.write_str("an answer lacks only its last Carriage Return (Framing::allow_missing_carriage_return)")
            }
            Hint::CommitAcceptAlone => {
                f.write_str("only a commit accept (CA) came; for a receiver that sends no more, set AckMode::Commit")
            }
            Hint::ClientCertificate => {
                f.write_str("does the receiver want a client certificate, or another one (TlsConfig::identity_pem)?")
            }
            Hint::NoTls => f.write_str("does the peer speak TLS at all?"),
        }
    }
}

/// Whether the receiver has a message whose call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// The receiver does not have the message: its End Block was never handed to the operating
    /// system; or (MLLP release 2) the last commit block was negative, and the call failed before
    /// it sent the message again. It is safe to send it.
    NotSent,
    /// It left, and no usable answer came: the receiver may have it or not. Send it again only to a
    /// receiver that recognises a repeated control ID.
    Unknown,
    /// A commit accept (CA), or a commit block of MLLP release 2, came before the failure: the
    /// receiver has it. Do not send it again; only the application's verdict is missing.
    Committed,
    /// The receiver refused the message (AE, AR, CE, CR), or said as often as it was sent that it
    /// did not store it (MLLP release 2). [`Error::nak`] has the reasons of a refusal. Correct
    /// the message, or the receiver's configuration, unless the reason will pass.
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

/// What to do with a message whose call failed, from [`Error::advice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Advice {
    /// Nobody has the message, and the cause may pass: send the same bytes again, later.
    Retry,
    /// Nobody has the message, and these bytes cannot be sent: they fail again. Correct them.
    FixMessage,
    /// Nobody has the message, and an endpoint, a certificate or a setting has to change before any
    /// message can be sent.
    FixSetup,
    /// The receiver refused the message; [`Error::nak`] has its reasons. The same bytes will
    /// probably be refused again.
    SeeRefusal,
    /// The receiver may have the message: ask, or send it again only where a repeated control ID is
    /// recognised.
    FindOut,
    /// The receiver has the message; only its verdict is missing.
    DoNotResend,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Advice::Retry => "send it again later",
            Advice::FixMessage => "correct the message",
            Advice::FixSetup => "correct the set-up, then send it again",
            Advice::SeeRefusal => "see the reasons of the refusal",
            Advice::FindOut => "find out whether the receiver has it before you send it again",
            Advice::DoNotResend => "do not send it again",
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
    /// Waiting for the commit acknowledgment that MSH-15 asks for, or for the commit block of MLLP
    /// release 2.
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
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The endpoint or a setting is invalid. Correct the configuration; nothing was opened.
    #[error("configuration: {0}")]
    Config(String),
    /// The message cannot be sent as it is. Mend it; nothing was opened and no connection was
    /// touched.
    #[error("the message cannot be sent")]
    InvalidMessage(#[source] MessageError),
    /// No connection: the name is unknown, or the address refused or cannot be reached. Check the
    /// address and whether the receiver runs.
    #[error("cannot connect{}", address.map(|address| format!(" to {address}")).unwrap_or_default())]
    #[non_exhaustive]
    Connect {
        /// The address that was tried last; `None` if the name did not resolve.
        address: Option<SocketAddr>,
        /// The system's reason.
        source: Arc<io::Error>,
    },
    /// The TLS session could not be made, or broke: an untrusted or expired certificate, another
    /// name, a peer that does not speak TLS. A client certificate that the receiver refuses
    /// shows in the handshake (not sent) or, under TLS 1.3, on the first read (unknown). Trying
    /// again does not help, unless the peer has just ended the connection in the handshake, as a
    /// proxy does whose receiver is away.
    #[error("TLS failed")]
    Tls(#[source] TlsError),
    /// The deadline passed. The phase says where the time went: a receiver that is slow to answer
    /// ([`ApplicationAck`](Phase::ApplicationAck)), a network that is slow to take the message
    /// ([`Send`](Phase::Send)). Where a part of an answer had come, the error's `Display` says
    /// how much, and whether it had a Start Block; where a setting helps, it names it.
    #[error("timed out after {limit:?} while {phase}")]
    #[non_exhaustive]
    Timeout {
        /// The step of the call in which it happened.
        phase: Phase,
        /// The limit that passed, as it was set.
        limit: Duration,
    },
    /// The peer closed or reset the connection.
    #[error("the connection ended while {phase}{}", received_so_far(*received))]
    #[non_exhaustive]
    Disconnected {
        /// The step of the call in which it happened.
        phase: Phase,
        /// How many bytes of an answer had come.
        received: usize,
        /// The system's reason; `None` for an orderly end of stream.
        source: Option<Arc<io::Error>>,
    },
    /// Bytes had come that belong to no exchange: before a [`Connection`](crate::Connection) was
    /// used again, or before a fresh connection was used at all (not sent); or the answer had
    /// begun to come before the message left (unknown). Open another connection. A
    /// [`Client`](crate::Client) replaces a connection that it has used before by itself; a
    /// receiver that sends something as soon as it is connected needs
    /// [`allow_leading_bytes`](crate::frame::Framing::allow_leading_bytes).
    #[error("{stale} bytes had come that belong to no exchange, so the connection was closed")]
    #[non_exhaustive]
    Desync {
        /// How many bytes, on the wire.
        stale: usize,
    },
    /// The answer breaks the MLLP grammar. [`FrameError::NoStartBlock`] shows a peer that does not
    /// frame its answers.
    #[error("the answer is not an MLLP frame")]
    MalformedFrame(#[source] FrameError),
    /// The answer's content, or all acknowledgments that a call keeps together, are longer than
    /// [`max_ack_size`](crate::ClientBuilder::max_ack_size).
    #[error("the answer needs more than {limit} bytes, the limit set by max_ack_size")]
    #[non_exhaustive]
    AckTooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The answer is a frame, but no acknowledgment, or one that contradicts itself.
    /// [`Error::response`] has it.
    #[error("the answer is not an acknowledgment")]
    MalformedAck(#[source] AckParseError),
    /// The answer acknowledges another message: its MSA-2 is not our MSH-10. [`Error::response`]
    /// has it.
    #[error("the answer acknowledges another message, with control ID {}", quoted(&.0.control_id()))]
    UnmatchedAck(Ack),
    /// The receiver refuses the message: AE, AR, CE or CR. [`Error::nak`] has the reasons. The
    /// connection stays open, unless the refusal names no message (MSA-2 is empty).
    #[error("the receiver answered {}", .0.code())]
    Nak(Ack),
    /// MLLP release 2: each time the message was sent, the receiver answered that it did not store
    /// it. The connection stays open.
    #[error("the receiver did not store the message, {sendings} times (negative commit block)")]
    #[non_exhaustive]
    NotStored {
        /// How often it was sent.
        sendings: u32,
    },
    /// MLLP release 2: a frame came where a commit block was awaited
    /// ([`release2`](crate::ClientBuilder::release2)). The receiver seems to speak release 1.
    #[error(
        "the answer came without a commit block of MLLP release 2 before it: the receiver seems to speak release 1"
    )]
    NoCommitBlock,
    /// MLLP release 2: an unexpected commit block came, so that the next one could not be matched
    /// to a message.
    #[error("a commit block of MLLP release 2 came that belongs to no sending")]
    StrayCommitBlock,
    /// [`Client::close`](crate::Client::close), a [`ShutdownHandle`](crate::ShutdownHandle), or an
    /// earlier failure of this [`Connection`](crate::Connection) ended it.
    #[error("the connection is closed")]
    Closed,
}

impl ErrorKind {
    /// A failure to connect, for the system's reason.
    pub(crate) fn connect(address: Option<SocketAddr>, source: io::Error) -> ErrorKind {
        ErrorKind::Connect { address, source: Arc::new(source) }
    }

    /// The kind of failure for a read or a write that failed in this phase. `received` bytes of an
    /// answer had come before; `limit` is the call's, for a time-out to name.
    pub(crate) fn halted(halt: Halt, phase: Phase, received: usize, limit: Duration) -> ErrorKind {
        match halt {
            Halt::Deadline => ErrorKind::Timeout { phase, limit },
            Halt::Shutdown => ErrorKind::Closed,
            Halt::Tls(error) => ErrorKind::Tls(error),
            Halt::Peer(source) => ErrorKind::Disconnected { phase, received, source: source.map(Arc::new) },
        }
    }
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Error {
        let hint = matches!(&error, OpenError::Deadline { during: Opening::TlsHandshake, .. }).then_some(Hint::NoTls);
        let kind = match error {
            OpenError::Deadline { during, limit } => {
                let phase = match during {
                    Opening::Resolve => Phase::Resolve,
                    Opening::Connect => Phase::Connect,
                    Opening::TlsHandshake => Phase::TlsHandshake,
                };
                ErrorKind::Timeout { phase, limit }
            }
            OpenError::Shutdown => ErrorKind::Closed,
            OpenError::Tls(error) => ErrorKind::Tls(error),
            OpenError::Connect { address, source } => ErrorKind::connect(address, source),
        };
        Error::new(kind, Delivery::NotSent, None, Evidence { response: None, hint })
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    /// # Errors
    ///
    /// [`ErrorKind::Config`] for anything but a scheme, a host and a port.
    fn from_str(text: &str) -> Result<Endpoint, Error> {
        Endpoint::parse(text).map_err(|problem| Error::before_sending(ErrorKind::Config(problem)))
    }
}

fn received_so_far(received: usize) -> String {
    if received == 0 { String::new() } else { format!(", after {received} bytes of an answer") }
}

impl Error {
    /// A failure before any byte of the End Block can have left.
    pub(crate) fn before_sending(kind: ErrorKind) -> Error {
        Error::new(kind, Delivery::NotSent, None, Evidence::default())
    }

    /// A failure, what became of the message, and what shows both.
    pub(crate) fn new(kind: ErrorKind, delivery: Delivery, commit: Option<Ack>, evidence: Evidence) -> Error {
        Error(Box::new(Inner { kind, delivery, commit, evidence, control_id: None, endpoint: None }))
    }

    /// The same failure to connect, for another call that waited for the same attempt.
    pub(crate) fn shared(&self) -> Error {
        let mut shared = Error::new(self.0.kind.clone(), Delivery::NotSent, None, self.0.evidence.clone());
        shared.0.endpoint = self.0.endpoint.clone();
        shared
    }

    /// The same, of the message with this control ID, unless it names one already.
    pub(crate) fn about(mut self, control_id: Option<&[u8]>) -> Error {
        if self.0.control_id.is_none() {
            self.0.control_id = control_id.map(|control_id| String::from_utf8_lossy(control_id).into_owned());
        }
        self
    }

    /// The same, on a client of this endpoint.
    pub(crate) fn at(mut self, endpoint: &Endpoint) -> Error {
        self.0.endpoint.get_or_insert_with(|| endpoint.clone());
        self
    }

    /// The one line, and all causes beneath it.
    pub(crate) fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// The advice for the message: what a program or a person does with it now.
    pub fn advice(&self) -> Advice {
        match (self.0.delivery, &self.0.kind) {
            (Delivery::Refused, _) => Advice::SeeRefusal,
            (Delivery::Unknown, _) => Advice::FindOut,
            (Delivery::Committed, _) => Advice::DoNotResend,
            (Delivery::NotSent, ErrorKind::InvalidMessage(_)) => Advice::FixMessage,
            (Delivery::NotSent, ErrorKind::Config(_)) => Advice::FixSetup,
            (Delivery::NotSent, ErrorKind::Tls(error)) if !error.is_broken_off() => Advice::FixSetup,
            // A rule of this machine forbids it.
            (Delivery::NotSent, ErrorKind::Connect { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported
                ) =>
            {
                Advice::FixSetup
            }
            (Delivery::NotSent, _) => Advice::Retry,
        }
    }

    /// The control ID of the message (MSH-10; of a batch BHS-11 or FHS-11), in which bytes that are
    /// no UTF-8 are replaced. `None` where there was no message, or it has none.
    pub fn control_id(&self) -> Option<&str> {
        self.0.control_id.as_deref()
    }

    /// The endpoint of the client that it happened on. `None` if the error comes from
    /// building the client.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        self.0.endpoint.as_ref()
    }

    /// The kind of failure.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// Whether the receiver has the message, and so whether it may be sent again.
    pub fn delivery(&self) -> Delivery {
        self.0.delivery
    }

    /// The refusal, if the receiver answered AE, AR, CE or CR. (Not the negative commit block of
    /// MLLP release 2, which has no content.)
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

    /// The reply's content, where one was received and was the problem: a refusal, an answer to
    /// another message, an answer that is no acknowledgment. For a malformed frame, the bytes
    /// that had come. It may hold a patient's data.
    pub fn response(&self) -> Option<&[u8]> {
        match &self.0.kind {
            ErrorKind::Nak(ack) | ErrorKind::UnmatchedAck(ack) => Some(ack.raw()),
            _ => self.0.evidence.response.as_deref(),
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

/// A text of somebody else's choice in quotation marks, cut where it is long.
fn quoted(text: &str) -> String {
    /// The most characters that are shown, as they are escaped.
    const SHOWN: usize = 60;
    let mut escaped = text.escape_debug();
    let shown: String = escaped.by_ref().take(SHOWN).collect();
    format!("\"{shown}\"{}", if escaped.next().is_some() { "…" } else { "" })
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            if let Some(endpoint) = &self.0.endpoint {
                write!(f, "{endpoint}: ")?;
            }
            if let Some(control_id) = &self.0.control_id {
                write!(f, "message {}: ", quoted(control_id))?;
            }
            return f.write_str(&self.with_causes());
        }
        write!(f, "{}", self.0.kind)?;
        match &self.0.kind {
            // These say it themselves.
            ErrorKind::Config(_) | ErrorKind::InvalidMessage(_) | ErrorKind::Nak(_) | ErrorKind::NotStored { .. } => {}
            _ => write!(f, "; {}", self.0.delivery)?,
        }
        self.0.evidence.hint.iter().try_for_each(|hint| write!(f, "; {hint}"))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return write!(f, "{self:#}");
        }
        f.debug_struct("Error")
            .field("endpoint", &self.0.endpoint)
            .field("control_id", &self.0.control_id)
            .field("kind", &self.0.kind)
            .field("delivery", &self.0.delivery)
            .field("commit", &self.0.commit)
            .field("response_len", &self.0.evidence.response.as_ref().map(|response| response.len()))
            .field("hint", &self.0.evidence.hint)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0.kind {
            // The system's own error, so that it can be downcast.
            ErrorKind::Connect { source, .. } | ErrorKind::Disconnected { source: Some(source), .. } => Some(&**source),
            kind => std::error::Error::source(kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    /// A failure after the frame has left, and perhaps after a commit accept.
    fn sent(kind: ErrorKind, commit: Option<Ack>) -> Error {
        let delivery = match (&kind, &commit) {
            (ErrorKind::Nak(_), _) => Delivery::Refused,
            (_, Some(_)) => Delivery::Committed,
            (_, None) => Delivery::Unknown,
        };
        Error::new(kind, delivery, commit, Evidence::default())
    }

    fn ack(code: &str) -> Ack {
        Ack::parse(format!("MSH|^~\\&|\rMSA|{code}|1|Marker\r")).unwrap()
    }

    #[test]
    fn an_error_is_one_pointer() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        assert_eq!(size_of::<Result<(), Error>>(), size_of::<usize>());
    }

    #[test]
    fn evidence() {
        let nak = sent(ErrorKind::Nak(ack("AE")), None);
        assert_eq!(nak.nak(), Some(&ack("AE")));
        assert_eq!(nak.response(), Some(ack("AE").raw()));
        let unmatched = sent(ErrorKind::UnmatchedAck(ack("AA")), Some(ack("CA")));
        assert_eq!(unmatched.response(), Some(ack("AA").raw()));
        assert_eq!(unmatched.commit(), Some(&ack("CA")));
        assert!(unmatched.nak().is_none());
        let garbage = Error::new(
            ErrorKind::MalformedAck(AckParseError::NotHl7),
            Delivery::Unknown,
            None,
            Evidence { response: Some(b"Marker"[..].into()), hint: None },
        );
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
                    source: reset().into(),
                }),
                "cannot connect to 127.0.0.1:99; the message was not sent",
                Some(reset().to_string()),
            ),
            (
                Error::before_sending(ErrorKind::Connect { address: None, source: reset().into() }),
                "cannot connect; the message was not sent",
                Some(reset().to_string()),
            ),
            (
                sent(ErrorKind::Timeout { phase: Phase::ApplicationAck, limit }, None),
                "timed out after 30s while waiting for the application acknowledgment; whether the receiver has the \
                 message is unknown",
                None,
            ),
            (
                sent(
                    ErrorKind::Disconnected { phase: Phase::CommitAck, received: 7, source: Some(reset().into()) },
                    None,
                ),
                "the connection ended while waiting for the commit acknowledgment, after 7 bytes of an answer; whether \
                 the receiver has the message is unknown",
                Some(reset().to_string()),
            ),
            (
                sent(ErrorKind::MalformedFrame(FrameError::NoStartBlock { first: b'M' }), None),
                "the answer is not an MLLP frame; whether the receiver has the message is unknown",
                Some(FrameError::NoStartBlock { first: b'M' }.to_string()),
            ),
            (
                sent(ErrorKind::UnmatchedAck(ack("AA")), Some(ack("CA"))),
                "the answer acknowledges another message, with control ID \"1\"; the receiver has committed the message",
                None,
            ),
            (sent(ErrorKind::Nak(ack("CR")), None), "the receiver answered CR", None),
        ] {
            assert_eq!(error.to_string(), said);
            assert_eq!(error.source().map(ToString::to_string), cause);
        }
    }

    /// Every kind of failure, its advice, and its one line.
    #[test]
    fn an_error_says_what_to_do() {
        use Advice::{DoNotResend, FindOut, FixMessage, FixSetup, Retry, SeeRefusal};

        let io = |kind: io::ErrorKind| Arc::new(io::Error::from(kind));
        let timeout = |phase| ErrorKind::Timeout { phase, limit: Duration::from_secs(30) };
        let ended = |received| ErrorKind::Disconnected { phase: Phase::ApplicationAck, received, source: None };
        let address = Some(SocketAddr::from(([127, 0, 0, 1], 2575)));
        let connect = |kind| ErrorKind::Connect { address, source: io(kind) };
        let before = Error::before_sending;
        let hinted =
            |kind, hint| Error::new(kind, Delivery::Unknown, None, Evidence { response: None, hint: Some(hint) });
        let stored = |kind| Error::new(kind, Delivery::Committed, None, Evidence::default());
        let rows = [
            (before(ErrorKind::Config("no port".to_owned())), FixSetup, "configuration: no port"),
            (
                before(ErrorKind::InvalidMessage(MessageError::NoControlId)),
                FixMessage,
                "the message cannot be sent: it has no usable control ID (MSH-10; of a batch BHS-11 or FHS-11)",
            ),
            (
                before(connect(io::ErrorKind::ConnectionRefused)),
                Retry,
                "cannot connect to 127.0.0.1:2575; the message was not sent: connection refused",
            ),
            (
                before(connect(io::ErrorKind::PermissionDenied)),
                FixSetup,
                "cannot connect to 127.0.0.1:2575; the message was not sent: permission denied",
            ),
            (before(timeout(Phase::Connect)), Retry, "timed out after 30s while connecting; the message was not sent"),
            (
                sent(timeout(Phase::ApplicationAck), None),
                FindOut,
                "timed out after 30s while waiting for the application acknowledgment; whether the receiver has the \
                 message is unknown",
            ),
            (
                sent(timeout(Phase::ApplicationAck), Some(ack("CA"))),
                DoNotResend,
                "timed out after 30s while waiting for the application acknowledgment; the receiver has committed the \
                 message",
            ),
            (
                sent(ended(12), None),
                FindOut,
                "the connection ended while waiting for the application acknowledgment, after 12 bytes of an answer; \
                 whether the receiver has the message is unknown",
            ),
            (
                before(ended(0)),
                Retry,
                "the connection ended while waiting for the application acknowledgment; the message was not sent",
            ),
            (
                before(ErrorKind::Desync { stale: 4 }),
                Retry,
                "4 bytes had come that belong to no exchange, so the connection was closed; the message was not sent",
            ),
            (
                sent(ErrorKind::MalformedFrame(FrameError::NoStartBlock { first: b'M' }), None),
                FindOut,
                "the answer is not an MLLP frame; whether the receiver has the message is unknown: byte 0x4D where the \
                 Start Block was expected: the peer does not speak MLLP, or frames otherwise",
            ),
            (
                sent(ErrorKind::AckTooLarge { limit: 10 }, None),
                FindOut,
                "the answer needs more than 10 bytes, the limit set by max_ack_size; whether the receiver has the \
                 message is unknown",
            ),
            (
                sent(ErrorKind::MalformedAck(AckParseError::NoMsa), None),
                FindOut,
                "the answer is not an acknowledgment; whether the receiver has the message is unknown: the answer has no MSA segment",
            ),
            (
                sent(ErrorKind::UnmatchedAck(ack("AA")), None),
                FindOut,
                "the answer acknowledges another message, with control ID \"1\"; whether the receiver has the message \
                 is unknown",
            ),
            (sent(ErrorKind::Nak(ack("AE")), None), SeeRefusal, "the receiver answered AE"),
            (
                Error::new(ErrorKind::NotStored { sendings: 3 }, Delivery::Refused, None, Evidence::default()),
                SeeRefusal,
                "the receiver did not store the message, 3 times (negative commit block)",
            ),
            (
                sent(ErrorKind::NoCommitBlock, None),
                FindOut,
                "the answer came without a commit block of MLLP release 2 before it: the receiver seems to speak \
                 release 1; whether the receiver has the message is unknown",
            ),
            (
                stored(ErrorKind::StrayCommitBlock),
                DoNotResend,
                "a commit block of MLLP release 2 came that belongs to no sending; the receiver has committed the \
                 message",
            ),
            (
                hinted(timeout(Phase::ApplicationAck), Hint::HalfAnAnswer { bytes: 70 }),
                FindOut,
                "timed out after 30s while waiting for the application acknowledgment; whether the receiver has the \
                 message is unknown; 70 bytes of an answer had come, but no End Block",
            ),
            (
                hinted(timeout(Phase::ApplicationAck), Hint::NoStartBlock { bytes: 70 }),
                FindOut,
                "timed out after 30s while waiting for the application acknowledgment; whether the receiver has the \
                 message is unknown; 70 bytes had come, but no Start Block: the receiver answers without MLLP framing",
            ),
            (
                hinted(ended(70), Hint::NoCarriageReturn),
                FindOut,
                "the connection ended while waiting for the application acknowledgment, after 70 bytes of an answer; \
                 whether the receiver has the message is unknown; an answer lacks only its last Carriage Return \
                 (Framing::allow_missing_carriage_return)",
            ),
            (
                hinted(timeout(Phase::ApplicationAck), Hint::CommitAcceptAlone),
                FindOut,
                "timed out after 30s while waiting for the application acknowledgment; whether the receiver has the \
                 message is unknown; only a commit accept (CA) came; for a receiver that sends no more, set AckMode::Commit",
            ),
            (
                hinted(ended(0), Hint::ClientCertificate),
                FindOut,
                "the connection ended while waiting for the application acknowledgment; whether the receiver has the \
                 message is unknown; does the receiver want a client certificate, or another one \
                 (TlsConfig::identity_pem)?",
            ),
            (
                OpenError::Deadline { during: Opening::TlsHandshake, limit: Duration::from_secs(10) }.into(),
                Retry,
                "timed out after 10s while in the TLS handshake; the message was not sent; does the peer speak TLS at all?",
            ),
            (before(ErrorKind::Closed), Retry, "the connection is closed; the message was not sent"),
            (
                sent(ErrorKind::Closed, None),
                FindOut,
                "the connection is closed; whether the receiver has the message is unknown",
            ),
        ];
        let endpoint: Endpoint = "mllp://ehr.example.org:2575".parse().unwrap();
        for (error, advice, line) in rows {
            assert_eq!(error.advice(), advice, "{line}");
            assert_eq!((error.control_id(), error.endpoint()), (None, None));
            assert_eq!(format!("{error:#}"), line);
            assert!(line.starts_with(&error.to_string()), "{error}");
            // A control ID as long as HL7 before v2.9 lets it be.
            let prefix = format!("{endpoint}: message {:?}: ", "x".repeat(20));
            assert!(prefix.len() + line.len() <= 300, "{} {line}", prefix.len() + line.len());
            let error = error.at(&endpoint).about(Some(b"MSG\"1"));
            assert_eq!((error.control_id(), error.endpoint()), (Some("MSG\"1"), Some(&endpoint)));
            let named = format!("mllp://ehr.example.org:2575: message \"MSG\\\"1\": {line}");
            assert_eq!((format!("{error:#}"), format!("{error:?}")), (named.clone(), named));
            assert!(format!("{error:#?}").starts_with("Error {\n"));
            let error = error.about(Some(b"another")).at(&"mllp://other:1".parse().unwrap());
            assert_eq!((error.control_id(), error.endpoint()), (Some("MSG\"1"), Some(&endpoint)), "the first counts");
            let long = Error::before_sending(error.kind().clone()).at(&endpoint).about(Some(&[b'x'; 10_000]));
            assert!(format!("{long:#}").chars().count() <= 300, "{long:#}");
        }
    }
}

//! HL7 text: segments, headers, acknowledgments, batches, character sets, files of messages. No
//! network.

pub(crate) mod ack;
pub(crate) mod batch;
#[cfg_attr(not(feature = "charset"), path = "charset_off.rs")]
pub(crate) mod charset;
pub(crate) mod header;
mod lines;
pub mod messages;
pub(crate) mod segment;

use crate::frame::PayloadError;

/// The reason why a message cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It holds a byte that would end the frame or begin another. A message that is framed already
    /// has 0x0B at offset 0: hand over the content alone.
    #[error("framing byte 0x{byte:02X} at offset {offset}")]
    #[non_exhaustive]
    FramingByte {
        /// The byte.
        byte: u8,
        /// Its place in the message.
        offset: usize,
    },
    /// It is longer than [`max_message_size`](crate::ClientBuilder::max_message_size).
    #[error("{size} bytes are more than the limit of {limit}")]
    #[non_exhaustive]
    TooLarge {
        /// Its length in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// It does not begin with an MSH, BHS or FHS segment. [`exchange`](crate::Client::exchange)
    /// sends any payload.
    #[error("it does not begin with an MSH, BHS or FHS segment")]
    NotHl7,
    /// It is UTF-16 text, in which HL7 is not sent over MLLP. Convert the file, to UTF-8 for
    /// instance (`iconv -f UTF-16 -t UTF-8`), and name the character set in MSH-18.
    #[error("it is UTF-16 text; convert it, for instance to UTF-8, before it is sent")]
    Utf16,
    /// A line of it does not begin like a segment, with three letters or digits and the field
    /// separator: a comment, a line of dashes, an indented segment, the rest of a line that was
    /// wrapped. Returned by the functions that read files, [`send_all`](crate::Client::send_all)
    /// and [`Batch::parse`](crate::Batch::parse); [`messages::locate`] says which line of the
    /// file it is. [`send`](crate::Client::send) sends the message as it is.
    #[error(
        "the line at offset {offset} is no segment: it does not begin with three letters or digits and the field separator"
    )]
    #[non_exhaustive]
    NotASegment {
        /// Where the line begins, in bytes.
        offset: usize,
    },
    /// A text read as a batch does not begin with BHS or FHS.
    #[error("it does not begin with a BHS or FHS segment")]
    NotABatch,
    /// A segment stands where a batch cannot have it: a header inside a message, a trailer without
    /// its header, a segment that belongs to no message.
    #[error(
        "the segment at offset {offset} is misplaced: it is a header inside a message, a trailer without its header, or \
         outside of any message"
    )]
    #[non_exhaustive]
    MisplacedSegment {
        /// Where the segment begins, in bytes.
        offset: usize,
    },
    /// It has no control ID (MSH-10; of a batch BHS-11 or FHS-11), by which its acknowledgment is
    /// known, or one that a batch cannot have: with a delimiter or a control character in it.
    #[error("it has no usable control ID (MSH-10; of a batch BHS-11 or FHS-11)")]
    NoControlId,
    /// On a [`Connection`](crate::Connection): it has carried a message with this control ID
    /// before, so that a late acknowledgment of that one could be taken for this one's. Send it
    /// on another connection, as a [`Client`](crate::Client) does by itself. For senders that
    /// give all messages the same control ID, see
    /// [`allow_repeated_control_ids`](crate::ClientBuilder::allow_repeated_control_ids).
    #[error(
        "this connection has already carried a message with this control ID; use another control ID or another \
         connection, or see ClientBuilder::allow_repeated_control_ids"
    )]
    ControlIdInUse,
    /// A batch has a control ID twice: two of its messages, or a message and the batch or file, so
    /// that an acknowledgment could be meant for either.
    #[error("two parts of the batch have the same control ID; give each message, batch and file its own")]
    RepeatedControlId,
    /// The count in a batch's trailer (BTS-1 for messages, FTS-1 for batches) differs from the
    /// number found: the batch may be incomplete.
    #[error("the trailer (BTS-1 or FTS-1) says {said}, and {found} were found")]
    #[non_exhaustive]
    WrongCount {
        /// The count in the trailer.
        said: usize,
        /// The count that was found.
        found: usize,
    },
    /// A character that the message's character set (MSH-18, or the builder's) does not have.
    #[error("the character at offset {offset} is not in the character set {charset}")]
    #[non_exhaustive]
    Unencodable {
        /// Its place in the text, in bytes.
        offset: usize,
        /// The character set.
        charset: &'static str,
    },
    /// A character set of Table 0211 that a message cannot be sent in.
    #[error("the character set {charset} cannot be used: {reason}")]
    #[non_exhaustive]
    UnsupportedCharset {
        /// Its name.
        charset: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// MSH-18 names a character set that is not in Table 0211.
    #[error("the character set in MSH-18 is not known")]
    UnknownCharset,
    /// It asks for no acknowledgment (MSH-15 and MSH-16 are `NE`), so that none can be awaited. See
    /// [`send_unacknowledged`](crate::Request::send_unacknowledged).
    #[error("it asks for no acknowledgment (MSH-15 and MSH-16 are NE)")]
    NoAckRequested,
}

impl From<PayloadError> for MessageError {
    fn from(error: PayloadError) -> MessageError {
        match error {
            PayloadError::Empty => MessageError::Empty,
            PayloadError::FramingByte { byte, offset } => MessageError::FramingByte { byte, offset },
        }
    }
}

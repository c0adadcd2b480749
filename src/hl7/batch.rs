//! Batches: messages between BHS and BTS, batches between FHS and FTS (HL7 v2.5, chapter 2.10.3).

use std::fmt;
use std::ops::Range;

use crate::frame::Framing;
use crate::hl7::MessageError;
use crate::hl7::header::{self, Header};
use crate::hl7::messages::{Piece, Pieces};
use crate::hl7::segment::{Delimiters, has_reserved_name, offset_of, segments, without_mark};

/// Messages that are sent together in one frame
/// ([`Client::send_batch`](crate::Client::send_batch)), between BHS and BTS; several such batches
/// between FHS and FTS.
///
/// # Examples
///
/// ```
/// use mllp_client::Batch;
///
/// let mut batch = Batch::new("B1")?;
/// batch.push("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|1|P|2.5\rPID|1||42\r")?;
/// let text = String::from_utf8(batch.to_bytes()).unwrap();
/// assert_eq!(text.lines().count(), 1);
/// assert!(text.starts_with("BHS|^~\\&|LAB|H|EHR|H|20260101||||B1\rMSH|") && text.ends_with("\rBTS|1\r"));
/// assert_eq!(Batch::parse(text.as_bytes())?.messages().count(), 1);
/// # Ok::<(), mllp_client::MessageError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Batch {
    /// FHS-11, if there are FHS and FTS.
    file: Option<String>,
    batches: Vec<BatchPart>,
}

#[derive(Clone, PartialEq, Eq)]
struct BatchPart {
    /// BHS-11, if there are BHS and BTS.
    control_id: Option<String>,
    messages: Vec<Vec<u8>>,
}

impl Batch {
    /// An empty batch with this Batch Control ID (BHS-11).
    ///
    /// # Errors
    ///
    /// [`MessageError::NoControlId`] if it is empty, or holds a delimiter or a control character.
    pub fn new(control_id: &str) -> Result<Batch, MessageError> {
        let control_id = Some(checked(control_id)?);
        Ok(Batch { file: None, batches: vec![BatchPart { control_id, messages: Vec::new() }] })
    }

    /// Puts FHS and FTS around, with this File Control ID (FHS-11).
    ///
    /// # Errors
    ///
    /// As [`new`](Batch::new).
    pub fn in_file(self, control_id: &str) -> Result<Batch, MessageError> {
        Ok(Batch { file: Some(checked(control_id)?), ..self })
    }

    /// Ends the batch so far and begins another, in the same file.
    ///
    /// # Errors
    ///
    /// As [`new`](Batch::new).
    pub fn begin(&mut self, control_id: &str) -> Result<(), MessageError> {
        let control_id = Some(checked(control_id)?);
        self.batches.push(BatchPart { control_id, messages: Vec::new() });
        Ok(())
    }

    /// Adds a message, unchanged but for a Carriage Return after its last segment where there is
    /// none.
    ///
    /// # Errors
    ///
    /// Any [`MessageError`] that would keep it from being sent alone;
    /// [`MessageError::MisplacedSegment`] if it is not one message, or holds a header or trailer of
    /// a batch (FHS, BHS, BTS, FTS).
    pub fn push(&mut self, message: impl AsRef<[u8]>) -> Result<(), MessageError> {
        let message = message.as_ref();
        Framing::default().check(message)?;
        Header::read(message)?;
        let mut lines = segments(message);
        let header = lines.next().unwrap_or_default();
        // Also one that is malformed, or indented: receivers differ in what they make of it.
        let is_reserved = |line: &&[u8]| {
            let line = without_mark(line.trim_ascii_start());
            has_reserved_name(line) && (line.len() == 3 || line.get(3) == header.get(3))
        };
        let reserved = if header.starts_with(b"MSH") { lines.find(is_reserved) } else { Some(header) };
        let reserved = reserved.map(|line| offset_of(line, message));
        let second = Pieces::of(message).nth(1).map(|piece| piece.offset());
        if let Some(offset) = reserved.into_iter().chain(second).min() {
            return Err(MessageError::MisplacedSegment { offset });
        }
        let mut message = message.to_vec();
        if !message.ends_with(b"\r") && !message.ends_with(b"\n") {
            message.push(b'\r');
        }
        if let Some(last) = self.batches.last_mut() {
            last.messages.push(message);
        }
        Ok(())
    }

    /// Parses a batch: a text that begins with FHS or BHS. It takes it in every shape that
    /// [`messages::split`](crate::messages::split) does: with any ends of lines, byte-order marks,
    /// blank lines, in frames. The segments of the messages end in Carriage Returns afterwards.
    ///
    /// # Errors
    ///
    /// Offsets are those in the text.
    ///
    /// - [`MessageError::NotABatch`] if it begins otherwise, [`MessageError::Empty`] if there is
    ///   nothing in it, [`MessageError::Utf16`].
    /// - [`MessageError::NotASegment`] for a line that is none, [`MessageError::MisplacedSegment`]
    ///   for a segment that belongs to no message, or a trailer without its header.
    /// - [`MessageError::WrongCount`] if BTS-1 or FTS-1 says other than what is there. See
    ///   [`parse_ignoring_counts`](Batch::parse_ignoring_counts).
    /// - [`MessageError::NoControlId`] if a control ID of the batch holds a delimiter.
    pub fn parse(text: &[u8]) -> Result<Batch, MessageError> {
        Batch::read(text, verify)
    }

    /// Parses a batch as [`parse`](Batch::parse) does, and ignores the counts in its trailers: for
    /// senders whose BTS-1 or FTS-1 is wrong. A truncated batch can then not be distinguished from
    /// a complete one.
    /// [`to_bytes`](Batch::to_bytes) writes the right numbers.
    ///
    /// # Errors
    ///
    /// As [`parse`](Batch::parse), but for [`MessageError::WrongCount`].
    pub fn parse_ignoring_counts(text: &[u8]) -> Result<Batch, MessageError> {
        Batch::read(text, |_, _| Ok(()))
    }

    fn read(text: &[u8], verify: fn(&[u8], usize) -> Result<(), MessageError>) -> Result<Batch, MessageError> {
        let mut batch = Batch { file: None, batches: Vec::new() };
        let mut is_open = false;
        let mut is_first = true;
        let mut has_ended = false;
        for piece in Pieces::of(text) {
            let misplaced = Err(MessageError::MisplacedSegment { offset: piece.offset() });
            match piece {
                _ if has_ended => return misplaced,
                Piece::Message(_) if header::is_utf16(text) => return Err(MessageError::Utf16),
                Piece::Message(_) if is_first => return Err(MessageError::NotABatch),
                Piece::Message(message) => {
                    if let Some(offset) = message.stray_line {
                        return Err(MessageError::NotASegment { offset });
                    }
                    if message.separator.is_none() {
                        return misplaced;
                    }
                    if !is_open && batch.file.is_none() {
                        return misplaced;
                    }
                    if !is_open {
                        // BHS and BTS may be left out in a file.
                        batch.batches.push(BatchPart { control_id: None, messages: Vec::new() });
                        is_open = true;
                    }
                    let message = message.to_be_sent(text);
                    Framing::default().check(&message)?;
                    if let Some(part) = batch.batches.last_mut() {
                        part.messages.push(message.into_owned());
                    }
                }
                Piece::Wrapper(segment, _) => match &segment[..3] {
                    b"FHS" if is_first => batch.file = Some(control_id(segment)?),
                    b"BHS" => {
                        batch.batches.push(BatchPart { control_id: Some(control_id(segment)?), messages: Vec::new() });
                        is_open = true;
                    }
                    b"BTS" if is_open => {
                        is_open = false;
                        verify(segment, batch.batches.last().map_or(0, |part| part.messages.len()))?;
                    }
                    b"FTS" if batch.file.is_some() => {
                        (is_open, has_ended) = (false, true);
                        // Without BHS, HL7 does not define what FTS-1 counts.
                        if batch.batches.iter().all(|part| part.control_id.is_some()) {
                            verify(segment, batch.batches.len())?;
                        }
                    }
                    _ if is_first => return Err(MessageError::NotABatch),
                    _ => return misplaced,
                },
            }
            is_first = false;
        }
        if is_first { Err(MessageError::Empty) } else { Ok(batch) }
    }

    /// The messages, in order.
    pub fn messages(&self) -> impl Iterator<Item = &[u8]> {
        self.batches.iter().flat_map(|part| &part.messages).map(Vec::as_slice)
    }

    /// The complete batch as it is sent: with BHS-3 to BHS-7 (and FHS-3 to FHS-7) as in the first
    /// message's MSH, the number of messages of each batch in its BTS-1 and the number of
    /// batches in FTS-1.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.messages().map(<[u8]>::len).sum::<usize>() + 512);
        let from_to = self.messages().next().and_then(from_to).unwrap_or([b""; 5]).join(&b'|');
        let header = |name: &[u8], control_id: &str| {
            [name, b"|^~\\&|", &from_to, b"||||", control_id.as_bytes(), b"\r"].concat()
        };
        if let Some(file) = &self.file {
            text.extend(header(b"FHS", file));
        }
        for part in &self.batches {
            if let Some(control_id) = &part.control_id {
                text.extend(header(b"BHS", control_id));
            }
            part.messages.iter().for_each(|message| text.extend_from_slice(message));
            if part.control_id.is_some() {
                text.extend(format!("BTS|{}\r", part.messages.len()).bytes());
            }
        }
        if self.file.is_some() {
            let batches = self.batches.iter().filter(|part| part.control_id.is_some()).count();
            text.extend(format!("FTS|{batches}\r").bytes());
        }
        text
    }

    /// The control IDs that an acknowledgment of many messages may carry, each with the messages
    /// that it is for: the file's, and that of each batch.
    pub(crate) fn wholes(&self) -> impl Iterator<Item = (&[u8], Range<usize>)> {
        let mut end = 0;
        let batches = self.batches.iter().filter_map(move |part| {
            let start = end;
            end += part.messages.len();
            part.control_id.as_ref().map(|control_id| (control_id, start..end))
        });
        let file = self.file.iter().map(|control_id| (control_id, 0..self.messages().count()));
        let wholes = file.chain(batches).map(|(control_id, messages)| (control_id.as_bytes(), messages));
        wholes.filter(|(control_id, _)| !control_id.is_empty())
    }
}

/// Shows numbers, not content.
impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("batches", &self.batches.len())
            .field("messages", &self.messages().count())
            .finish_non_exhaustive()
    }
}

fn checked(control_id: &str) -> Result<String, MessageError> {
    let plain = |c: char| !c.is_control() && !matches!(c, '|' | '^' | '~' | '\\' | '&');
    if control_id.trim().is_empty() || !control_id.chars().all(plain) {
        return Err(MessageError::NoControlId);
    }
    Ok(control_id.trim().to_owned())
}

/// FHS-11 or BHS-11; empty where there is none.
fn control_id(header: &[u8]) -> Result<String, MessageError> {
    let delimiters = Delimiters::of_header(header).ok_or(MessageError::NotHl7)?;
    let [control_id] = delimiters.header_fields(header, [11]);
    match std::str::from_utf8(control_id.trim_ascii()) {
        Ok("") => Ok(String::new()),
        Ok(control_id) => checked(control_id),
        Err(_) => Err(MessageError::NoControlId),
    }
}

/// Compares the count in a trailer's first field, if there is one, with the number found.
fn verify(trailer: &[u8], found: usize) -> Result<(), MessageError> {
    let separator = trailer.get(3).copied().unwrap_or(b'|');
    let count = trailer.split(|&byte| byte == separator).nth(1).unwrap_or_default().trim_ascii();
    let said = std::str::from_utf8(count).ok().and_then(|count| count.parse::<usize>().ok());
    match said {
        Some(said) if said != found => Err(MessageError::WrongCount { said, found }),
        _ => Ok(()),
    }
}

/// MSH-3 to MSH-7, where they can be copied as they are.
fn from_to(message: &[u8]) -> Option<[&[u8]; 5]> {
    let header = segments(message).next()?;
    if !header.starts_with(b"MSH|^~\\&|") {
        return None;
    }
    Some(Delimiters::of_header(header)?.header_fields(header, [3, 4, 5, 6, 7]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "|^~\\&|LAB|N|EHR|S|20260101";

    fn message(control_id: &str) -> String {
        format!("MSH{HEAD}||ORU^R01|{control_id}|P|2.5\rPID|1||42\r")
    }

    fn text(batch: &Batch) -> String {
        String::from_utf8(batch.to_bytes()).unwrap()
    }

    #[test]
    fn batches_are_built_and_read_back() {
        let mut batch = Batch::new("B1").unwrap();
        assert_eq!(text(&batch), "BHS|^~\\&|||||||||B1\rBTS|0\r");
        batch.push(message("1")).unwrap();
        batch.push(message("2").trim_end()).unwrap();
        let [one, two] = ["1", "2"].map(message);
        assert_eq!(text(&batch), format!("BHS{HEAD}||||B1\r{one}{two}BTS|2\r"));
        assert!(Batch::parse(&batch.to_bytes()).unwrap() == batch);

        let mut file = batch.in_file("F1").unwrap();
        file.begin("B2").unwrap();
        file.push(message("3")).unwrap();
        let three = message("3");
        let expected =
            format!("FHS{HEAD}||||F1\rBHS{HEAD}||||B1\r{one}{two}BTS|2\rBHS{HEAD}||||B2\r{three}BTS|1\rFTS|2\r");
        assert_eq!(text(&file), expected);
        assert!(Batch::parse(&file.to_bytes()).unwrap() == file);
        assert!(Batch::parse(expected.replace('\r', "\n").as_bytes()).unwrap() == file);
        let wholes: Vec<_> = file.wholes().collect();
        assert_eq!(wholes, [(&b"F1"[..], 0..3), (b"B1", 0..2), (b"B2", 2..3)]);
        assert_eq!(format!("{file:?}"), "Batch { batches: 2, messages: 3, .. }");
    }

    #[test]
    fn what_is_no_batch() {
        let one = message("1");
        for (name, text, expected) in [
            ("nothing", String::new(), MessageError::Empty),
            ("blank lines", "\r\n\r".into(), MessageError::Empty),
            ("a message", one.clone(), MessageError::NotABatch),
            ("text", "hello\r".into(), MessageError::NotABatch),
            ("a trailer", "BTS|1\r".into(), MessageError::NotABatch),
            ("UTF-16", "\0B\0H\0S\0|".replacen('\0', "\0M\0S\0H", 1), MessageError::Utf16),
            ("text in it", format!("BHS|^~\\&\rhello\r{one}"), MessageError::MisplacedSegment { offset: 9 }),
            ("a segment in it", format!("BHS|^~\\&\rPID|1\r{one}"), MessageError::MisplacedSegment { offset: 9 }),
            (
                "text in a message",
                format!("BHS|^~\\&\r{one}hello\r"),
                MessageError::NotASegment { offset: 9 + one.len() },
            ),
            (
                "text behind",
                format!("BHS|^~\\&\r{one}BTS|1\rhello\r"),
                MessageError::MisplacedSegment { offset: 15 + one.len() },
            ),
            ("no delimiters", format!("BHS\r{one}"), MessageError::NotABatch),
            (
                "a trailer without its header",
                format!("BHS|^~\\&\r{one}BTS|1\rFTS|1\r"),
                MessageError::MisplacedSegment { offset: 15 + one.len() },
            ),
            (
                "a message behind the trailer",
                format!("BHS|^~\\&\r{one}BTS|1\r{one}"),
                MessageError::MisplacedSegment { offset: 15 + one.len() },
            ),
            (
                "a batch behind the file",
                format!("FHS|^~\\&\r{one}FTS|1\rBHS|^~\\&\r{one}"),
                MessageError::MisplacedSegment { offset: 15 + one.len() },
            ),
            (
                "a malformed header",
                format!("BHS|^~\\&\r{one}msh|^~\\&\r"),
                MessageError::NotASegment { offset: 9 + one.len() },
            ),
            (
                "a Start Block in a message",
                format!("BHS|^~\\&\r{one}OBX|\x0B\r"),
                MessageError::FramingByte { byte: 0x0B, offset: one.len() + 4 },
            ),
            (
                "a count that is none",
                format!("BHS|^~\\&\r{one}BTS|two\r"),
                MessageError::NotASegment { offset: 9 + one.len() },
            ),
            ("two file headers", format!("FHS|^~\\&\rFHS|^~\\&\r{one}"), MessageError::MisplacedSegment { offset: 9 }),
            ("a delimiter in a control ID", format!("BHS$%*!@$$$$$$$$$a|b\r{one}"), MessageError::NoControlId),
            ("one missing", format!("BHS|^~\\&\r{one}BTS|2\r"), MessageError::WrongCount { said: 2, found: 1 }),
            (
                "a batch missing",
                format!("FHS|^~\\&\rBHS|^~\\&\r{one}BTS|1\rFTS|2\r"),
                MessageError::WrongCount { said: 2, found: 1 },
            ),
        ] {
            assert_eq!(Batch::parse(text.as_bytes()), Err(expected), "{name}");
            let is_count = matches!(expected, MessageError::WrongCount { .. });
            assert_eq!(Batch::parse_ignoring_counts(text.as_bytes()).is_ok(), is_count, "{name}");
        }
        for (name, text, messages) in [
            ("no trailer", format!("BHS|^~\\&\r{one}"), 1),
            ("no count", format!("BHS|^~\\&\r{one}BTS\r"), 1),
            ("no BHS", format!("FHS|^~\\&\r{one}{one}FTS|1\r"), 2),
        ] {
            assert_eq!(Batch::parse(text.as_bytes()).unwrap().messages().count(), messages, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_part_of_one() {
        for id in ["", " ", "a|b", "a\rb", "a^b", "a&b"] {
            assert_eq!(Batch::new(id), Err(MessageError::NoControlId), "{id:?}");
        }
        let mut batch = Batch::new("B1").unwrap();
        let end = message("1").len();
        for (message, expected) in [
            (message("1") + &message("2"), MessageError::MisplacedSegment { offset: end }),
            ("BHS|^~\\&|||||||||B2\r".to_owned() + &message("1"), MessageError::MisplacedSegment { offset: 0 }),
            (message("1") + "BTS|1\r", MessageError::MisplacedSegment { offset: end }),
            (message("1") + "BTS\rFTS|1\r", MessageError::MisplacedSegment { offset: end }),
            (message("1") + "OBX|a\nBTS|1\r", MessageError::MisplacedSegment { offset: end + 6 }),
            (message("1") + "BHS|^~\\&|||||||||B2\r", MessageError::MisplacedSegment { offset: end }),
            (message("1") + "FHS|^~\\&\n", MessageError::MisplacedSegment { offset: end }),
            ("PID|1\r".to_owned(), MessageError::NotHl7),
            (message(""), MessageError::NoControlId),
            (String::new(), MessageError::Empty),
            ("MSH|\x0B".into(), MessageError::FramingByte { byte: 0x0B, offset: 4 }),
        ] {
            assert_eq!(batch.push(message), Err(expected));
        }
        assert_eq!(batch.messages().count(), 0);
    }
}

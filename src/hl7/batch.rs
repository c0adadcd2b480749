//! Batches: messages between BHS and BTS, batches between FHS and FTS (HL7 v2.5, chapter 2.10.3).

use std::fmt;
use std::ops::Range;

use crate::frame::Framing;
use crate::hl7::MessageError;
use crate::hl7::header::Header;
use crate::hl7::messages;
use crate::hl7::segment::{Delimiters, segments};

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
    /// Any [`MessageError`] that would keep it from being sent alone; [`MessageError::NotHl7`] also
    /// if it is not one message, or holds a header or trailer of a batch (FHS, BHS, BTS, FTS).
    pub fn push(&mut self, message: impl AsRef<[u8]>) -> Result<(), MessageError> {
        let message = message.as_ref();
        Framing::default().check(message)?;
        Header::read(message)?;
        let is_wrapper = |segment: &[u8]| messages::is_named(segment, &messages::WRAPPERS);
        if !message.starts_with(b"MSH") || messages::split(message).count() != 1 || segments(message).any(is_wrapper) {
            return Err(MessageError::NotHl7);
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

    /// Reads what begins with FHS or BHS back into messages. Segments may end in CR, LF or CRLF;
    /// those of the messages end in Carriage Returns afterwards.
    ///
    /// # Errors
    ///
    /// [`MessageError::NotHl7`] if it begins otherwise or holds text that belongs to no message,
    /// [`MessageError::WrongCount`] if BTS-1 or FTS-1 says other than what is there,
    /// [`MessageError::NoControlId`] if a control ID holds a delimiter.
    pub fn parse(text: &[u8]) -> Result<Batch, MessageError> {
        let mut batch = Batch { file: None, batches: Vec::new() };
        let mut is_open = false;
        for (index, segment) in segments(text).enumerate() {
            let name = segment.get(..3).unwrap_or_default();
            if index == 0 && !matches!(name, b"FHS" | b"BHS") {
                return Err(MessageError::NotHl7);
            }
            match name {
                b"FHS" if index == 0 => batch.file = Some(control_id(segment)?),
                b"BHS" => {
                    batch.batches.push(BatchPart { control_id: Some(control_id(segment)?), messages: Vec::new() });
                    is_open = true;
                }
                b"MSH" => {
                    if !is_open {
                        // BHS and BTS may be left out in a file.
                        batch.batches.push(BatchPart { control_id: None, messages: Vec::new() });
                        is_open = true;
                    }
                    if let Some(part) = batch.batches.last_mut() {
                        part.messages.push([segment, b"\r"].concat());
                    }
                }
                b"BTS" if is_open => {
                    is_open = false;
                    verify(segment, batch.batches.last().map_or(0, |part| part.messages.len()))?;
                }
                b"FTS" if batch.file.is_some() => {
                    is_open = false;
                    // Where BHS is left out, what is counted is not said.
                    if batch.batches.iter().all(|part| part.control_id.is_some()) {
                        verify(segment, batch.batches.len())?;
                    }
                }
                b"FHS" | b"BTS" | b"FTS" => return Err(MessageError::NotHl7),
                _ => {
                    let part = batch.batches.last_mut().filter(|_| is_open);
                    let message = part.and_then(|part| part.messages.last_mut()).ok_or(MessageError::NotHl7)?;
                    message.extend_from_slice(segment);
                    message.push(b'\r');
                }
            }
        }
        match (text.is_empty(), &batch) {
            (true, _) => Err(MessageError::Empty),
            (false, Batch { file: None, batches }) if batches.is_empty() => Err(MessageError::NotHl7),
            _ => Ok(batch),
        }
    }

    /// The messages, in order.
    pub fn messages(&self) -> impl Iterator<Item = &[u8]> {
        self.batches.iter().flat_map(|part| &part.messages).map(Vec::as_slice)
    }

    /// The whole as it is sent: with BHS-3 to BHS-7 (and FHS-3 to FHS-7) as in the first message's
    /// MSH, the numbers of messages in BTS-1 and the number of batches in FTS-1.
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

/// Holds the count in a trailer's first field, if there is one, against what was found.
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
            ("a message", one.clone(), MessageError::NotHl7),
            ("text", "hello\r".into(), MessageError::NotHl7),
            ("text in it", format!("BHS|^~\\&\rhello\r{one}"), MessageError::NotHl7),
            ("text behind", format!("BHS|^~\\&\r{one}BTS|1\rhello\r"), MessageError::NotHl7),
            ("no delimiters", format!("BHS\r{one}"), MessageError::NotHl7),
            ("blank lines", "\r\n\r".into(), MessageError::NotHl7),
            ("a trailer without its header", format!("BHS|^~\\&\r{one}BTS|1\rFTS|1\r"), MessageError::NotHl7),
            ("two file headers", format!("FHS|^~\\&\rFHS|^~\\&\r{one}"), MessageError::NotHl7),
            ("a delimiter in a control ID", format!("BHS$%*!@$$$$$$$$$a|b\r{one}"), MessageError::NoControlId),
            ("one missing", format!("BHS|^~\\&\r{one}BTS|2\r"), MessageError::WrongCount { said: 2, found: 1 }),
            (
                "a batch missing",
                format!("FHS|^~\\&\rBHS|^~\\&\r{one}BTS|1\rFTS|2\r"),
                MessageError::WrongCount { said: 2, found: 1 },
            ),
        ] {
            assert_eq!(Batch::parse(text.as_bytes()), Err(expected), "{name}");
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
        for (message, expected) in [
            (message("1") + &message("2"), MessageError::NotHl7),
            ("BHS|^~\\&|||||||||B2\r".to_owned() + &message("1"), MessageError::NotHl7),
            (message("1") + "BTS|1\r", MessageError::NotHl7),
            (message("1") + "BTS\rFTS|1\r", MessageError::NotHl7),
            (message("1") + "BHS|^~\\&|||||||||B2\r", MessageError::NotHl7),
            (message("1") + "FHS|^~\\&\n", MessageError::NotHl7),
            (message(""), MessageError::NoControlId),
            (String::new(), MessageError::Empty),
            ("MSH|\x0B".into(), MessageError::FramingByte { byte: 0x0B, offset: 4 }),
        ] {
            assert_eq!(batch.push(message), Err(expected));
        }
        assert_eq!(batch.messages().count(), 0);
    }
}

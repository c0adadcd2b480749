//! Splits files into messages: one or many, framed or not, with any line ends.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use memchr::{memchr, memchr2};

use super::MessageError;
use super::header::{self, Header};
use super::lines::{LineEnd, LineKind, Lines, is_batch_header, is_blank, is_header, is_trailer};
use super::segment::has_reserved_name;
use crate::frame::{CARRIAGE_RETURN, Framing};

/// Cuts a file's bytes into the messages in it, ready to be sent: each from its MSH segment on,
/// every segment ended by one Carriage Return.
///
/// It takes what is found in practice: one message or many; bare or in MLLP frames; lines ended by
/// CR, LF or CRLF; byte-order marks (UTF-8), form feeds and blank lines; batches, whose FHS, BHS,
/// BTS and FTS segments are passed over. A message in which nothing has to be changed is borrowed.
///
/// It cuts only where HL7 does:
///
/// - Where a message's header ends in CR or CRLF, a lone line feed or form feed in the message is
///   content.
/// - A line is a header only if a field separator and encoding characters follow its name (`MSH
///   angle 12` and `MSH: 3` are text), and a trailer only if it has no more than a count, and no
///   segment behind it.
/// - A Start Block begins a frame only before a header, and an End Block ends one only where one
///   has begun. In a bare message both stay where they are, and `send` refuses the whole with the
///   offset.
/// - A file of one message a line is cut at the line feeds before headers, though its segments end
///   in Carriage Returns. A message that a report quotes, whose lines end in line feeds, is
///   content.
///
/// - A line that cannot be a segment (a comment, a line of dashes, an indented segment, the rest of
///   a line that was wrapped) stays in its message.
///
/// Nothing is lost: text that belongs to no message is an item of its own. What cannot be sent as
/// it stands is refused by [`Client::send_all`](crate::Client::send_all) ([`MessageError::NotHl7`],
/// [`MessageError::Utf16`], [`MessageError::NotASegment`]); [`locate`] says where it is in the
/// file.
///
/// # Examples
///
/// ```
/// let file = b"MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|1|P|2.5\nPID|1||42\n\nMSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|2|P|2.5\n";
/// let messages: Vec<_> = mllp_client::messages::split(file).collect();
/// assert_eq!(messages.len(), 2);
/// assert!(messages[0].ends_with(b"|2.5\rPID|1||42\r"));
/// ```
pub fn split(text: &[u8]) -> Split<'_> {
    Split { pieces: Pieces::of(text) }
}

/// Cuts a file's bytes into messages as [`split`] does, and says for each where it stands and what
/// keeps it from being sent.
///
/// # Examples
///
/// ```
/// let file = b"MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|1|P|2.5\n\nPID|1||42\n-- checked --\n";
/// let found = mllp_client::messages::locate(file).next().unwrap();
/// assert_eq!(found.line, 1);
/// let problem = found.problem.unwrap();
/// assert_eq!(problem.line, 4);
/// assert!(problem.error.to_string().contains("no segment"));
/// // To send it regardless, pass `found.message` to `Client::send`.
/// ```
pub fn locate(text: &[u8]) -> Locate<'_> {
    Locate { pieces: Pieces::of(text), lines: LineCount { text, at: 0, line: 1 } }
}

/// The control ID that an acknowledgment of this message will carry (MSH-10; of a batch FHS-11 or
/// BHS-11). Bytes that are no UTF-8 are replaced.
///
/// # Errors
///
/// [`MessageError::NotHl7`] or [`MessageError::NoControlId`], as `Client::send` returns them.
///
/// # Examples
///
/// ```
/// let message = b"MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5\rPID|1||42\r";
/// assert_eq!(mllp_client::messages::control_id(message)?, "MSG1");
/// # Ok::<(), mllp_client::MessageError>(())
/// ```
pub fn control_id(message: &[u8]) -> Result<Cow<'_, str>, MessageError> {
    Ok(String::from_utf8_lossy(Header::read(message)?.control_id))
}

/// The messages in a text, in order. See [`split`].
#[derive(Clone)]
pub struct Split<'t> {
    pieces: Pieces<'t>,
}

impl<'t> Iterator for Split<'t> {
    type Item = Cow<'t, [u8]>;

    fn next(&mut self) -> Option<Cow<'t, [u8]>> {
        self.pieces.next_message().map(|gathered| gathered.to_be_sent(self.pieces.lines.text()))
    }
}

/// Shows the number of bytes left, not their content.
impl fmt::Debug for Split<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Split").field("left", &self.pieces.lines.left()).finish()
    }
}

/// The messages in a text with their places, in order. See [`locate`].
#[derive(Clone)]
pub struct Locate<'t> {
    pieces: Pieces<'t>,
    lines: LineCount<'t>,
}

/// A message in a text, and where it stands.
#[derive(Clone)]
#[non_exhaustive]
pub struct Located<'t> {
    /// Its bytes, as [`split`] yields them.
    pub message: Cow<'t, [u8]>,
    /// The line of the text on which it begins, counted from 1. A line ends in CR, LF or CRLF.
    pub line: usize,
    /// What keeps it from being sent; `None` if nothing does.
    pub problem: Option<Problem>,
}

/// What keeps a message of a text from being sent, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The reason, as [`Client::send_all`](crate::Client::send_all) gives it with the framing that
    /// the specification asks for. Its offset counts from the start of `message`, not of the
    /// file.
    pub error: MessageError,
    /// The line of the text that is the reason, counted from 1; for a missing control ID that of
    /// the header.
    pub line: usize,
}

impl<'t> Iterator for Locate<'t> {
    type Item = Located<'t>;

    fn next(&mut self) -> Option<Located<'t>> {
        let text = self.pieces.lines.text();
        let gathered = self.pieces.next_message()?;
        let message = gathered.to_be_sent(text);
        let line = self.lines.number_at(gathered.at.start);
        let problem = problem_of(&message).map(|error| {
            let at = match error {
                MessageError::FramingByte { byte, .. } => {
                    memchr(byte, &text[gathered.at.clone()]).map(|offset| gathered.at.start + offset)
                }
                MessageError::NotASegment { .. } => gathered.stray_line,
                _ => None,
            };
            Problem { error, line: at.map_or(line, |at| self.lines.number_at(at)) }
        });
        Some(Located { message, line, problem })
    }
}

impl fmt::Debug for Locate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locate").field("left", &self.pieces.lines.left()).finish()
    }
}

/// Shows the length of the message, not its content.
impl fmt::Debug for Located<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Located")
            .field("len", &self.message.len())
            .field("line", &self.line)
            .field("problem", &self.problem)
            .finish()
    }
}

/// What keeps a message of a file from being sent.
fn problem_of(message: &[u8]) -> Option<MessageError> {
    let checked = Framing::default().check(message).map_err(MessageError::from);
    checked.and_then(|()| Header::read(message)).and_then(|_| check_segments(message)).err()
}

/// Whether every line of a message is a segment: three letters or digits and the field separator
/// (HL7 v2.5, chapter 2.5.2). Where the header ends in a Carriage Return, line feeds are content.
pub(crate) fn check_segments(message: &[u8]) -> Result<(), MessageError> {
    let Some(&outermost) = message.get(3) else { return Ok(()) };
    // A batch may separate fields otherwise than the messages in it.
    let mut separator = outermost;
    let is_batch = !message.starts_with(b"MSH");
    let feeds_are_content = memchr2(b'\r', b'\n', message).is_some_and(|end| message[end] == b'\r');
    let mut from = 0;
    while from < message.len() {
        let rest = &message[from..];
        let end = if feeds_are_content { memchr(b'\r', rest) } else { memchr2(b'\r', b'\n', rest) };
        let whole = &rest[..end.unwrap_or(rest.len())];
        // Blank lines, and the second half of CRLF.
        let blank = whole.iter().take_while(|&&byte| byte == b'\n').count();
        let line = &whole[blank..];
        let is_known = |byte: u8| byte == separator || byte == outermost;
        let ends_batch = || is_batch && is_trailer(line) && line.get(3).is_none_or(|&byte| is_known(byte));
        if is_header(line, b"MSH") || is_batch && is_batch_header(line) {
            separator = line[3];
        } else if !is_blank(line) && !ends_batch() && !is_segment(line, separator) && !is_segment(line, outermost) {
            return Err(MessageError::NotASegment { offset: from + blank });
        }
        from += whole.len() + 1;
    }
    Ok(())
}

/// Whether a line can be a segment of a message with this field separator. A header or trailer is
/// none of its segments, even if it is malformed.
fn is_segment(line: &[u8], separator: u8) -> bool {
    let Some((name, fields)) = line.split_at_checked(3) else { return false };
    name.iter().all(u8::is_ascii_alphanumeric)
        && (fields.first() == Some(&separator) || is_blank(fields))
        && !has_reserved_name(name)
}

/// A part of a text of messages.
pub(super) enum Piece<'t> {
    /// A header or trailer of a batch (FHS, BHS, BTS, FTS), and its offset.
    Wrapper(&'t [u8], usize),
    /// A message, or text that belongs to none.
    Message(Gathered),
}

impl Piece<'_> {
    /// Where it begins in the text.
    pub(super) fn offset(&self) -> usize {
        match self {
            Piece::Wrapper(_, offset) => *offset,
            Piece::Message(gathered) => gathered.at.start,
        }
    }
}

/// The messages of a text and what stands around them, in order.
#[derive(Clone)]
pub(super) struct Pieces<'t> {
    lines: Lines<'t>,
}

impl<'t> Pieces<'t> {
    pub(super) fn of(text: &'t [u8]) -> Pieces<'t> {
        Pieces { lines: Lines::of_text(text) }
    }

    fn next_message(&mut self) -> Option<Gathered> {
        self.find_map(|piece| match piece {
            Piece::Wrapper(..) => None,
            Piece::Message(gathered) => Some(gathered),
        })
    }
}

impl<'t> Iterator for Pieces<'t> {
    type Item = Piece<'t>;

    fn next(&mut self) -> Option<Piece<'t>> {
        let text = self.lines.text();
        if self.lines.left() == text.len() && header::is_utf16(text) {
            self.lines.end();
            return Some(Piece::Message(Gathered::whole(text)));
        }
        let mut message: Option<Gathered> = None;
        while let Some(line) = self.lines.next() {
            let segment = &text[line.segment.clone()];
            match (is_blank(segment), &mut message) {
                (false, Some(_)) if line.kind != LineKind::Other => {
                    self.lines.go_back_to(line);
                    break;
                }
                (false, None) if line.kind == LineKind::Wrapper => {
                    return Some(Piece::Wrapper(segment, line.segment.start));
                }
                (false, None) => {
                    message = Some(Gathered {
                        at: line.segment.clone(),
                        after: line.after,
                        feeds_are_content: line.feeds_are_content,
                        separator: (line.kind == LineKind::Header).then(|| segment[3]),
                        stray_line: None,
                        can_be_borrowed: line.end == LineEnd::Return,
                    });
                }
                (false, Some(message)) => {
                    message.can_be_borrowed &= message.after == line.segment.start && line.end == LineEnd::Return;
                    message.at.end = line.segment.end;
                    message.after = line.after;
                    if message.separator.is_some_and(|separator| !is_segment(segment, separator)) {
                        message.stray_line.get_or_insert(line.segment.start);
                    }
                }
                (true, _) => {}
            }
            if line.end == LineEnd::Frame && message.is_some() {
                break;
            }
        }
        message.map(Piece::Message)
    }
}

/// A message that is being put together from its lines.
pub(super) struct Gathered {
    /// From the beginning of its first segment to the end of its last.
    pub(super) at: Range<usize>,
    /// Offset of the line after it.
    after: usize,
    /// Whether line feeds were content where it begins.
    feeds_are_content: bool,
    /// The field separator of its header; `None` for text that has none.
    pub(super) separator: Option<u8>,
    /// Where the first line begins that is no segment.
    pub(super) stray_line: Option<usize>,
    /// Whether its lines follow each other as they are to be sent.
    can_be_borrowed: bool,
}

impl Gathered {
    /// A text that is not cut.
    fn whole(text: &[u8]) -> Gathered {
        let at = 0..text.len();
        Gathered {
            at,
            after: text.len(),
            feeds_are_content: false,
            separator: None,
            stray_line: None,
            can_be_borrowed: true,
        }
    }

    /// Its bytes, every segment ended by one Carriage Return.
    pub(super) fn to_be_sent<'t>(&self, text: &'t [u8]) -> Cow<'t, [u8]> {
        if self.can_be_borrowed {
            return Cow::Borrowed(&text[self.at.start..self.after]);
        }
        let text = &text[self.at.clone()];
        let mut mended = Vec::with_capacity(text.len() + 1);
        for line in Lines::of_content(text, self.feeds_are_content) {
            let segment = &text[line.segment];
            if !is_blank(segment) {
                mended.extend_from_slice(segment);
                mended.push(CARRIAGE_RETURN);
            }
        }
        Cow::Owned(mended)
    }
}

/// Counts the lines of a text, forwards.
#[derive(Clone)]
struct LineCount<'t> {
    text: &'t [u8],
    at: usize,
    /// The number of the line at `at`, from 1.
    line: usize,
}

impl LineCount<'_> {
    /// The number of the line at this offset, which is not before the last one asked for.
    fn number_at(&mut self, offset: usize) -> usize {
        let is_end = |at: usize| match self.text[at] {
            b'\n' => true,
            b'\r' => self.text.get(at + 1) != Some(&b'\n'),
            _ => false,
        };
        self.line += (self.at..offset).filter(|&at| is_end(at)).count();
        self.at = offset;
        self.line
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::START_BLOCK;

    const ONE: &str = "MSH|^~\\&|LAB|||||||1\rPID|1||42\r";
    const TWO: &str = "MSH|^~\\&|LAB|||||||2\rOBX|1\r";

    fn found(text: &[u8]) -> Vec<String> {
        split(text).map(|message| String::from_utf8_lossy(&message).into_owned()).collect()
    }

    #[test]
    fn shapes() {
        let [one, two] = [ONE, TWO];
        let with = |end: &str| ONE.replace('\r', end);
        let both = |end: &str| (ONE.to_owned() + TWO).replace('\r', end);
        let framed = |message: &str| format!("\x0B{message}\x1C\r");
        for (name, text, expected) in [
            ("nothing", String::new(), vec![]),
            ("blank", " \r\n\t\n\0\x1A".into(), vec![]),
            ("a byte-order mark alone", "\u{FEFF}".into(), vec![]),
            ("as it is sent", one.into(), vec![one]),
            ("two as they are sent", both("\r"), vec![one, two]),
            ("LF", with("\n"), vec![one]),
            ("two with LF", both("\n"), vec![one, two]),
            ("CRLF", with("\r\n"), vec![one]),
            ("two with CRLF", both("\r\n"), vec![one, two]),
            ("LF CR", with("\n\r"), vec![one]),
            ("mixed ends", format!("{}{two}", with("\n")), vec![one, two]),
            ("no end of line at the end", one.trim_end().into(), vec![one]),
            ("two without one at the end", both("\n").trim_end().into(), vec![one, two]),
            ("blank lines between segments", with("\n\n"), vec![one]),
            ("blank lines between messages", format!("{}\n \n{}", with("\n"), two), vec![one, two]),
            ("blank lines around", format!("\n\n{one}\n\n"), vec![one]),
            ("a byte-order mark", format!("\u{FEFF}{one}"), vec![one]),
            ("two byte-order marks", format!("\u{FEFF}\u{FEFF}{one}"), vec![one]),
            ("two files with one each, put together", format!("\u{FEFF}{one}\u{FEFF}{two}"), vec![one, two]),
            ("a form feed between", format!("{one}\x0C{two}"), vec![one, two]),
            ("form feeds on lines of their own", format!("\x0C\n{one}\x0C\r\n{two}\x0C"), vec![one, two]),
            ("a DOS end of file", format!("{}\x1A", with("\r\n")), vec![one]),
            ("a frame", framed(one), vec![one]),
            ("two frames", framed(one) + &framed(two), vec![one, two]),
            ("frames on lines of their own", framed(one) + "\n" + &framed(two) + "\n", vec![one, two]),
            (
                "a line feed in a field of a frame",
                framed("MSH|^~\\&|LAB\rOBX|a\nb\x0Cc\r"),
                vec!["MSH|^~\\&|LAB\rOBX|a\nb\x0Cc\r"],
            ),
            (
                "the same without the last Carriage Return",
                with("\n") + &framed("MSH|^~\\&|LAB\rOBX|a\nb") + two,
                vec![one, "MSH|^~\\&|LAB\rOBX|a\nb\r", two],
            ),
            ("a frame of LF", framed(&with("\n")), vec![one]),
            ("a frame with a byte-order mark", framed(&format!("\u{FEFF}{one}")), vec![one]),
            ("a frame without the last Carriage Return", framed(one.trim_end()), vec![one]),
            ("a frame with two", framed(&both("\r")), vec![one, two]),
            ("an End Block alone", format!("\x0B{one}\x1C\x0B{two}\x1C"), vec![one, two]),
            ("a frame cut off", format!("\x0B{one}"), vec![one]),
            ("a bare one and a frame", format!("{one}{}", framed(two)), vec![one, two]),
            ("a batch", format!("BHS|^~\\&|LAB\r{one}{two}BTS|2\r"), vec![one, two]),
            ("a file", format!("FHS|^~\\&\nBHS|^~\\&\n{one}BTS|1\nBHS|^~\\&\n{two}BTS\nFTS|2\n"), vec![one, two]),
            ("a framed batch", framed(&format!("BHS|^~\\&|LAB\r{one}{two}BTS|2\r")), vec![one, two]),
            ("an empty batch", "FHS|^~\\&\rBHS|^~\\&\rBTS|0\rFTS|1\r".into(), vec![]),
            ("other delimiters", "MSH$%*!@$LAB\nPID$1\n".into(), vec!["MSH$%*!@$LAB\rPID$1\r"]),
            ("text before", format!("Dear all,\n{one}"), vec!["Dear all,\r", one]),
            ("text after a frame", format!("{}yours\n", framed(one)), vec![one, "yours\r"]),
            ("text alone", "hello".into(), vec!["hello\r"]),
            ("a line feed in a field", "MSH|^~\\&|LAB\rOBX|a\nb\x0Cc\r".into(), vec!["MSH|^~\\&|LAB\rOBX|a\nb\x0Cc\r"]),
            ("the same with CRLF", "MSH|^~\\&|LAB\r\nOBX|a\nb\r\n".into(), vec!["MSH|^~\\&|LAB\rOBX|a\nb\r"]),
            (
                "a report line named MSH",
                "MSH|^~\\&|LAB\rOBX|a\nMSH angle\rOBX|b\r".into(),
                vec!["MSH|^~\\&|LAB\rOBX|a\nMSH angle\rOBX|b\r"],
            ),
            (
                "a line named MSH",
                "MSH|^~\\&|LAB\nMSH angle\nMSH: 3\nMSH-3\nOBX|b\n".into(),
                vec!["MSH|^~\\&|LAB\rMSH angle\rMSH: 3\rMSH-3\rOBX|b\r"],
            ),
            (
                "lines named as trailers",
                "MSH|^~\\&|LAB\nBTS - bus\nFTS: 3\nBHSX|\n".into(),
                vec!["MSH|^~\\&|LAB\rBTS - bus\rFTS: 3\rBHSX|\r"],
            ),
            (
                "a Start Block in a field",
                "MSH|^~\\&|LAB\rOBX|a\x0Bb\rOBX|c\r".into(),
                vec!["MSH|^~\\&|LAB\rOBX|a\x0Bb\rOBX|c\r"],
            ),
            (
                "an End Block in a field",
                "MSH|^~\\&|LAB\rOBX|a\x1C\rOBX|c\r".into(),
                vec!["MSH|^~\\&|LAB\rOBX|a\x1C\rOBX|c\r"],
            ),
            (
                "an End Block in a field of a frame",
                framed("MSH|^~\\&|LAB\rOBX|a\x1Cb\r"),
                vec!["MSH|^~\\&|LAB\rOBX|a\x1Cb\r"],
            ),
            (
                "a Start Block in a field of a frame",
                framed("MSH|^~\\&|LAB\rOBX|a\x0Bb\r"),
                vec!["MSH|^~\\&|LAB\rOBX|a\x0Bb\r"],
            ),
            (
                "a remark, then one with LF",
                format!("{one}a remark\n{}", TWO.replace('\r', "\n")),
                vec![&format!("{one}a remark\r"), two],
            ),
            ("a frame whose beginning is missing", format!("{one}\x1C\r{two}"), vec![&format!("{one}\x1C\r"), two]),
            (
                "a line named MSH with a colon",
                format!("{one}OBX|1|TX|||a\nMSH:\n12\r"),
                vec![&format!("{one}OBX|1|TX|||a\nMSH:\n12\r")],
            ),
            (
                "a report that quotes a message",
                format!("{one}OBX|1|TX|||refused:\n{}PID|1\rOBX|2\r{two}", ONE.replace('\r', "\n")),
                vec![&format!("{one}OBX|1|TX|||refused:\n{}PID|1\rOBX|2\r", ONE.replace('\r', "\n")), two],
            ),
            (
                "a frame with such a report",
                framed(&format!("{one}OBX|1|TX|||refused:\n{two}PID|1\r")),
                vec![&format!("{one}OBX|1|TX|||refused:\n{two}PID|1\r")],
            ),
            ("one message a line", format!("{one}\n{two}\n").replace("\r\n", "\n"), vec![one, two]),
            (
                "one message a line, in a batch",
                format!("BHS|^~\\&|L\n{one}\n{two}\nBTS|2\nBHS|^~\\&|L\n{one}\nBTS|1\n").replace("\r\n", "\n"),
                vec![one, two, one],
            ),
            ("a file with CR and one with LF", format!("{one}\n{}", TWO.replace('\r', "\n")), vec![one, two]),
            ("the same with a byte-order mark", format!("{}\n\u{feff}{two}", one.trim_end()), vec![one, two]),
            ("a last line feed", format!("{}\n", one.trim_end()), vec![one]),
            ("a last line feed and a DOS end of file", format!("{}\n\x1A", one.trim_end()), vec![one]),
            ("a DOS end of file before a message", format!("{one}\n\x1A{two}"), vec![one, two]),
            ("frames ended oddly", format!("\x0B{one}\x1C\x1A\x0B{two}\x1C\0\x0B{one}\x1C \r"), vec![one, two, one]),
            (
                "an encoding that is escaped twice",
                format!("MSH|^~\\&amp;|LAB\r{two}MSH|^~\\& |LAB\r"),
                vec!["MSH|^~\\&amp;|LAB\r", two, "MSH|^~\\& |LAB\r"],
            ),
            (
                "a Start Block before a segment",
                "MSH|^~\\&|LAB\nOBX|a\n\x0BOBX|b\n".into(),
                vec!["MSH|^~\\&|LAB\rOBX|a\r\x0BOBX|b\r"],
            ),
            (
                "a frame that was cut off",
                format!("\x0B{one}OBX|a\r\x0B{two}\x1C\r"),
                vec![&format!("{one}OBX|a\r\x0B{two}")],
            ),
            (
                "a word that is the name of a trailer",
                "MSH|^~\\&|LAB\nOBX|he took the\nBTS\nto work\n".into(),
                vec!["MSH|^~\\&|LAB\rOBX|he took the\rBTS\rto work\r"],
            ),
            (
                "text that begins as a trailer",
                format!("BTS: please\n{}", TWO.replace('\r', "\n")),
                vec!["BTS: please\r", two],
            ),
            (
                "an End Block and a space in a field of a frame",
                framed("MSH|^~\\&|LAB\rOBX|a\x1C b\r"),
                vec!["MSH|^~\\&|LAB\rOBX|a\x1C b\r"],
            ),
            ("a remark behind a trailer", format!("BHS|^~\\&|\r{one}BTS|1\rthe end\r"), vec![one, "the end\r"]),
            ("text in a batch with CR", "BHS|^~\\&\r\nOBX|a\nb\r\n".into(), vec!["OBX|a\nb\r"]),
            ("UTF-16", "\0M\0S\0H\0|\0\n".into(), vec!["\0M\0S\0H\0|\0\n"]),
            ("no header, but the like", "MSHARP|1\r".into(), vec!["MSHARP|1\r"]),
            ("a header inside of a line", "NTE|1||MSH|x\r".into(), vec!["NTE|1||MSH|x\r"]),
        ] {
            assert_eq!(found(text.as_bytes()), expected, "{name}");
        }
    }

    #[test]
    fn what_can_be_sent_as_it_is_is_borrowed() {
        for (name, text, borrowed) in [
            ("as it is sent", ONE.to_owned() + TWO, [true, true]),
            ("framed", format!("\x0B{ONE}\x1C\r\x0B{TWO}\x1C\r"), [true, true]),
            ("a batch", format!("BHS|^~\\&\r{ONE}{TWO}BTS\r"), [true, true]),
            ("one of two with LF", format!("{ONE}{}", TWO.replace('\r', "\n")), [true, false]),
            ("blank lines in one of two", format!("{}{TWO}", ONE.replace('\r', "\r\r")), [false, true]),
        ] {
            let found: Vec<_> = split(text.as_bytes()).map(|message| matches!(message, Cow::Borrowed(_))).collect();
            assert_eq!(found, borrowed, "{name}");
        }
    }

    proptest! {
        #[test]
        fn what_was_joined_comes_back(
            messages in prop::collection::vec(prop::collection::vec("[A-Z]{2}[0-9]\\|[ -~\u{e4}\u{4e00}]{0,20}", 0..5), 1..6),
            returns in prop::collection::vec(prop::sample::select(vec!["\r", "\r\n", "\r\r", "\r \n", "\r\x0C"]), 1..8),
            feeds in prop::collection::vec(prop::sample::select(vec!["\n", "\n\n", "\n\x0C"]), 1..8),
            modes in prop::collection::vec(any::<bool>(), 1..4),
            wraps in prop::collection::vec(prop::sample::select(vec![["", ""], ["\x0B", "\x1C\r"], ["\u{FEFF}", ""],
                ["BHS|^~\\&\n", "BTS|1\n"], ["\n\n", "\x0C\n"]]), 1..4),
        ) {
            let (mut returns, mut feeds) = (returns.iter().cycle(), feeds.iter().cycle());
            let (mut modes, mut wraps) = (modes.iter().cycle(), wraps.iter().cycle());
            let mut joined = String::new();
            let mut expected = Vec::new();
            for (number, segments) in messages.iter().enumerate() {
                let header = format!("MSH|^~\\&|LAB|||||||{number}");
                let [before, after] = wraps.next().unwrap();
                joined.push_str(before);
                // Inside of a frame segments end in one way.
                let mode = *modes.next().unwrap();
                let mut end = || if mode { *returns.next().unwrap() } else { *feeds.next().unwrap() };
                let framed = before.contains('\u{b}').then(|| end().trim_matches([' ', '\u{c}']));
                for segment in [&header].into_iter().chain(segments) {
                    joined.push_str(segment);
                    joined.push_str(match framed {
                        Some("\r \n") => "\r",
                        Some(end) => end,
                        None => end(),
                    });
                }
                joined.push_str(after);
                expected.push([&header].into_iter().chain(segments).map(|segment| format!("{segment}\r")).collect::<String>());
            }
            prop_assert_eq!(found(joined.as_bytes()), expected);
        }

        #[test]
        fn any_bytes_are_cut_somehow(pieces in prop::collection::vec(prop::sample::select(vec![
            &b"MSH|^~\\&||||||||1"[..], b"MSH#^&########2", b"BHS|^~|", b"BTS|1", b"FTS", b"OBX|", b"PID", b"MSH", b"|", b"#", b"x", b"1", b"\r", b"\n",
            b"\r\n", b"\x0B", b"\x1C", b"\x0C", b"\0", b" ", b"\xEF\xBB\xBF", b"\x1A",
        ]), 0..40)) {
            let text = pieces.concat();
            for piece in Pieces::of(&text) {
                if let Piece::Message(gathered) = piece
                    && gathered.separator.is_some()
                {
                    let problem = check_segments(&gathered.to_be_sent(&text)).is_err();
                    prop_assert_eq!(gathered.stray_line.is_some(), problem, "both find a line that is no segment");
                }
            }
            let whole: Vec<u8> = split(&text).flat_map(|message| message.into_owned()).collect();
            prop_assert!(split(&text).all(|message| message.ends_with(b"\r") && !is_blank(&message[..message.len() - 1])));
            // Cutting again what can be sent changes nothing, unless it has content like a header in it.
            let is_quoted = whole.windows(4).any(|bytes| matches!(bytes, b"\nMSH" | b"\nBHS" | b"\x0CMSH" | b"\x0CBHS"));
            if !text.contains(&START_BLOCK) && !is_quoted && locate(&text).all(|found| found.problem.is_none()) {
                let again: Vec<u8> = split(&whole).flat_map(|message| message.into_owned()).collect();
                prop_assert_eq!(again, whole);
            }
        }
    }
}

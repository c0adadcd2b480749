//! Messages as people have them: in files, one or many, framed or not, with whatever ends their
//! lines.

use std::borrow::Cow;
use std::ops::Range;

use super::MessageError;
use super::header::{self, Header};
use crate::frame::{CARRIAGE_RETURN, END_BLOCK, START_BLOCK};

/// The bytes that some editors put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
const FORM_FEED: u8 = 0x0C;
/// The byte that some systems put at a file's end.
const SUBSTITUTE: u8 = 0x1A;

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
/// - A line is a header or a trailer only if a field separator follows its name (`MSH angle 12` is
///   text).
/// - A Start Block begins a frame only at the beginning of a line, and an End Block ends one only
///   where one has begun, or alone on its line. In the middle of a bare message both stay where they are, and `send`
///   refuses the whole with the offset.
///
/// Nothing is lost: text that belongs to no message is an item of its own, which `send` refuses
/// ([`MessageError::NotHl7`], [`MessageError::Utf16`]).
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
    Split { lines: Lines { text, at: 0, is_content: false, framed: false, returns: false } }
}

/// The control ID that an acknowledgment of this message will carry (MSH-10; of a batch FHS-11 or
/// BHS-11). Bytes that are no UTF-8 are replaced.
///
/// # Errors
///
/// [`MessageError::NotHl7`] or [`MessageError::NoControlId`], as sending it would say.
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
    lines: Lines<'t>,
}

impl<'t> Iterator for Split<'t> {
    type Item = Cow<'t, [u8]>;

    fn next(&mut self) -> Option<Cow<'t, [u8]>> {
        let text = self.lines.text;
        if self.lines.at == 0 && header::is_utf16(text) {
            self.lines.at = text.len();
            return Some(Cow::Borrowed(text));
        }
        let mut message: Option<Gathered> = None;
        while let Some(line) = self.lines.next() {
            let segment = &text[line.segment.clone()];
            match (is_blank(segment), &mut message) {
                (false, Some(message)) if line.is_header || message.is_wrapper(segment) => {
                    if line.is_header {
                        self.lines.go_back_to(line);
                    }
                    break;
                }
                (false, None) if is_named(segment, &WRAPPERS) => continue,
                (false, None) => {
                    message = Some(Gathered {
                        at: line.segment.start..line.after,
                        last: line.segment.end,
                        returns: line.returns,
                        separator: line.is_header.then(|| segment[3]),
                        as_it_is: line.end == LineEnd::Return,
                    });
                }
                (false, Some(message)) => {
                    message.as_it_is &= message.at.end == line.segment.start && line.end == LineEnd::Return;
                    message.at.end = line.after;
                    message.last = line.segment.end;
                }
                (true, _) => {}
            }
            if line.end == LineEnd::Frame && message.is_some() {
                break;
            }
        }
        let Gathered { at, last, returns, as_it_is, .. } = message?;
        if as_it_is {
            return Some(Cow::Borrowed(&text[at]));
        }
        let text = &text[at.start..last];
        let mut mended = Vec::with_capacity(text.len() + 1);
        for line in (Lines { text, at: 0, is_content: true, framed: false, returns }) {
            let segment = &text[line.segment];
            if !is_blank(segment) {
                mended.extend_from_slice(segment);
                mended.push(CARRIAGE_RETURN);
            }
        }
        Some(Cow::Owned(mended))
    }
}

/// A message that is being put together from its lines.
struct Gathered {
    at: Range<usize>,
    /// Where its last segment ends.
    last: usize,
    /// Whether line feeds were content where it begins.
    returns: bool,
    /// The field separator of its header; `None` for text that has none.
    separator: Option<u8>,
    /// Whether its lines follow each other as they are to be sent.
    as_it_is: bool,
}

impl Gathered {
    /// Whether a segment is a header or trailer of a batch, and so the end of this message.
    fn is_wrapper(&self, segment: &[u8]) -> bool {
        let is_own = |byte| self.separator.is_none_or(|separator| separator == byte);
        is_named(segment, &WRAPPERS) && segment.get(3).is_none_or(|&byte| is_own(byte))
    }
}

/// Shows how much is left, not what.
impl std::fmt::Debug for Split<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Split").field("left", &(self.lines.text.len() - self.lines.at)).finish()
    }
}

/// The names of the segments that make up batches and files around messages.
pub(crate) const WRAPPERS: [&[u8; 3]; 4] = [b"FHS", b"BHS", b"BTS", b"FTS"];

/// Whether a segment has one of these names.
pub(crate) fn is_named(segment: &[u8], names: &[&[u8; 3]]) -> bool {
    begins_with_name(segment, names, &[CARRIAGE_RETURN, b'\n'])
}

/// Whether a text begins with one of these names. A field separator follows it; a trailer may have
/// no field, so that one of these ends of a line, or nothing, may follow as well.
fn begins_with_name(text: &[u8], names: &[&[u8; 3]], ends: &[u8]) -> bool {
    let follows = |byte: &u8| is_separator(*byte) || ends.contains(byte);
    names.iter().any(|name| text.starts_with(*name)) && text.get(3).is_none_or(follows)
}

/// Whether a byte can separate fields.
fn is_separator(byte: u8) -> bool {
    byte > b' ' && !byte.is_ascii_alphanumeric()
}

/// Whether a text begins with the header of a message: its name, a field separator (MSH-1) and
/// encoding characters (MSH-2).
fn is_msh(text: &[u8]) -> bool {
    let Some(rest) = text.strip_prefix(b"MSH") else { return false };
    let encoding = |separator| rest[1..].iter().take_while(move |&&byte| byte != separator && byte >= b' ').take(8);
    rest.first()
        .is_some_and(|&separator| is_separator(separator) && encoding(separator).all(|&byte| is_separator(byte)))
}

/// Whether a text begins with the header or trailer of a batch.
fn is_wrapper(text: &[u8]) -> bool {
    begins_with_name(text, &WRAPPERS, &[CARRIAGE_RETURN, b'\n', FORM_FEED, END_BLOCK])
}

fn is_blank(segment: &[u8]) -> bool {
    segment.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\n' | 0 | &FORM_FEED | &SUBSTITUTE))
}

/// The end of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineEnd {
    /// One Carriage Return, as it is to be sent.
    Return,
    /// A byte that belongs to a frame.
    Frame,
    /// Something else, or nothing.
    Other,
}

struct Line {
    segment: Range<usize>,
    end: LineEnd,
    /// Whether it is the header of a message (MSH).
    is_header: bool,
    /// Whether it stands in a frame.
    framed: bool,
    /// Whether line feeds were content where it begins.
    returns: bool,
    /// Where the next line begins.
    after: usize,
}

#[derive(Clone)]
struct Lines<'t> {
    text: &'t [u8],
    at: usize,
    /// Whether it is the content of one message, in which no frame begins or ends.
    is_content: bool,
    /// Whether a Start Block has come, and its End Block has not.
    framed: bool,
    /// Whether the last header ended in a Carriage Return, so that line feeds and form feeds are
    /// content.
    returns: bool,
}

impl Lines<'_> {
    /// Lets this line be the next again.
    fn go_back_to(&mut self, line: Line) {
        (self.at, self.framed) = (line.segment.start, line.framed);
    }

    /// Whether a byte ends the line that it stands in. `names_itself`: a header or trailer, in
    /// which a line feed is no content.
    fn is_end(&self, from: usize, at: usize, names_itself: bool) -> bool {
        match self.text[at] {
            CARRIAGE_RETURN => true,
            b'\n' | FORM_FEED => names_itself || !self.returns || is_msh(&self.text[at + 1..]),
            // Alone on its line it is one of a frame whose beginning is missing.
            END_BLOCK => {
                !self.is_content
                    && (self.framed || at == from)
                    && matches!(
                        self.text.get(at + 1),
                        None | Some(&(CARRIAGE_RETURN | b'\n' | FORM_FEED | START_BLOCK))
                    )
            }
            _ => false,
        }
    }
}

impl Iterator for Lines<'_> {
    type Item = Line;

    fn next(&mut self) -> Option<Line> {
        let mut from = self.at;
        loop {
            match self.text[from..] {
                [START_BLOCK, ..] if !self.is_content => {
                    (self.at, self.framed, self.returns) = (from + 1, true, false);
                    let segment = from..from;
                    return Some(Line {
                        segment,
                        end: LineEnd::Frame,
                        is_header: false,
                        framed: true,
                        returns: false,
                        after: self.at,
                    });
                }
                [] => return None,
                ref rest if rest.starts_with(BYTE_ORDER_MARK) => from += BYTE_ORDER_MARK.len(),
                ref rest => {
                    // A blank line that ends in a line feed is one in any mode.
                    let blank = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | 0)).count();
                    match rest.get(blank) {
                        Some(&(b'\n' | FORM_FEED)) => from += blank + 1,
                        _ => break,
                    }
                }
            }
        }
        let (framed, returns) = (self.framed, self.returns);
        let is_header = is_msh(&self.text[from..]);
        let names_itself = is_header || is_wrapper(&self.text[from..]);
        let to = (from..self.text.len()).find(|&at| self.is_end(from, at, names_itself)).unwrap_or(self.text.len());
        let (end, length) = match self.text[to..] {
            [CARRIAGE_RETURN, b'\n', ..] => (LineEnd::Other, 2),
            [CARRIAGE_RETURN, ..] => (LineEnd::Return, 1),
            [END_BLOCK, ..] => (LineEnd::Frame, 1),
            [_, ..] => (LineEnd::Other, 1),
            [] => (LineEnd::Other, 0),
        };
        if names_itself {
            self.returns = self.text.get(to) == Some(&CARRIAGE_RETURN);
        }
        if end == LineEnd::Frame {
            (self.framed, self.returns) = (false, false);
        }
        self.at = to + length;
        Some(Line { segment: from..to, end, is_header, framed, returns, after: self.at })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
            ("a frame whose beginning is missing", format!("{one}\x1C\r{two}"), vec![one, two]),
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
        fn any_bytes_are_cut_somehow(text in prop::collection::vec(prop::sample::select(
            b"MSHBTF|^\r\n\x0B\x1C\x0C\0 \xEF\xBB\xBF\x1Ax".to_vec()), 0..80))
        {
            let whole: Vec<u8> = split(&text).flat_map(|message| message.into_owned()).collect();
            prop_assert!(split(&text).all(|message| message.ends_with(b"\r") && !is_blank(&message[..message.len() - 1])));
            // Cutting again what was cut changes nothing, unless it was a line feed that a frame had made content.
            if !text.contains(&START_BLOCK) {
                let again: Vec<u8> = split(&whole).flat_map(|message| message.into_owned()).collect();
                prop_assert_eq!(again, whole);
            }
        }
    }
}

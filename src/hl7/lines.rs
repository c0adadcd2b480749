//! The lines of a file of messages: where each ends, and which is a header or trailer.

use std::ops::Range;

use memchr::memchr;

use super::segment::{is_separator, without_mark};
use crate::frame::{BYTE_ORDER_MARK, CARRIAGE_RETURN, END_BLOCK, START_BLOCK};

const FORM_FEED: u8 = 0x0C;
/// The byte that some systems put at a file's end.
const SUBSTITUTE: u8 = 0x1A;

/// The end of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineEnd {
    /// One Carriage Return, as it is to be sent.
    Return,
    /// A byte that belongs to a frame.
    Frame,
    /// Something else, or nothing.
    Other,
}

/// The kind of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineKind {
    /// The header of a message (MSH).
    Header,
    /// A header or trailer of a batch or file (BHS, FHS, BTS, FTS).
    Wrapper,
    /// Any other.
    Other,
}

pub(super) struct Line {
    pub(super) segment: Range<usize>,
    pub(super) end: LineEnd,
    pub(super) kind: LineKind,
    /// Whether it stands in a frame.
    pub(super) framed: bool,
    /// Whether line feeds were content where it begins.
    pub(super) feeds_are_content: bool,
    /// Where the next line begins.
    pub(super) after: usize,
}

#[derive(Clone)]
pub(super) struct Lines<'t> {
    text: &'t [u8],
    at: usize,
    /// Whether it is the content of one message, in which nothing else begins or ends.
    is_content: bool,
    /// Whether a Start Block has come, and its End Block has not.
    framed: bool,
    /// Whether the last header ended in a Carriage Return, so that line feeds and form feeds are
    /// content.
    feeds_are_content: bool,
    /// The first Carriage Return after the beginning of the line last read, or the end of the text.
    next_return: Option<usize>,
    /// The field separators of the last headers, of a batch and of a message.
    separators: [Option<u8>; 2],
    /// Whether the last header of a batch ended in a line feed, as where each message is one line.
    has_batch_by_feeds: bool,
}

impl<'t> Lines<'t> {
    /// The lines of a whole text.
    pub(super) fn of_text(text: &'t [u8]) -> Lines<'t> {
        Lines {
            text,
            at: 0,
            is_content: false,
            framed: false,
            feeds_are_content: false,
            next_return: None,
            separators: [None; 2],
            has_batch_by_feeds: false,
        }
    }

    /// The lines of one message's content. `feeds_are_content`: whether line feeds are content in
    /// its first line.
    pub(super) fn of_content(text: &'t [u8], feeds_are_content: bool) -> Lines<'t> {
        Lines { is_content: true, feeds_are_content, ..Lines::of_text(text) }
    }

    pub(super) fn text(&self) -> &'t [u8] {
        self.text
    }

    /// The number of bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.text.len() - self.at
    }

    /// Passes over all that is left.
    pub(super) fn end(&mut self) {
        self.at = self.text.len();
    }

    /// Lets this line be the next again.
    pub(super) fn go_back_to(&mut self, line: Line) {
        (self.at, self.framed) = (line.segment.start, line.framed);
    }

    /// The kind of the line that begins here.
    fn kind(&self, from: usize) -> LineKind {
        let rest = &self.text[from..];
        if is_header(rest, b"MSH") {
            LineKind::Header
        } else if !self.is_content && (is_batch_header(rest) || self.is_trailer(rest) && !is_amid_segments(rest)) {
            LineKind::Wrapper
        } else {
            LineKind::Other
        }
    }

    /// Whether a text begins with a trailer whose field separator is known.
    fn is_trailer(&self, text: &[u8]) -> bool {
        let is_known = |byte| match self.separators {
            [None, None] => byte == b'|',
            known => known.contains(&Some(byte)),
        };
        is_trailer(text) && text.get(3).is_none_or(|&byte| byte < b' ' || is_known(byte))
    }

    /// Whether a line feed ends the line that it stands in, where line feeds are content: one does
    /// before the next message or wrapper of a file that has one message a line. `has_return`:
    /// whether a Carriage Return follows somewhere.
    fn is_end_of_message(&self, at: usize, has_return: bool) -> bool {
        if self.framed || self.is_content {
            return false;
        }
        let next = without_mark(&self.text[at + 1..]);
        let is_header = is_any_header(next);
        if !is_header && !self.is_trailer(next) {
            return false;
        }
        let end = next.iter().find(|byte| b"\r\n".contains(byte));
        if !is_header {
            // Alone on its line, as such a file has it.
            return self.has_batch_by_feeds && end != Some(&CARRIAGE_RETURN) && ends_batch(next);
        }
        // A report may quote a message. The segments of the quotation end in line feeds.
        !has_return || end == Some(&CARRIAGE_RETURN)
    }

    /// Whether a Start Block begins a frame here: a header follows it. Inside a frame, or before
    /// anything else, it is a byte of a message that cannot be sent.
    fn begins_frame(&self, at: usize) -> bool {
        let content = &self.text[at + 1..];
        let blank = content.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0)).count();
        let content = without_mark(&content[blank..]);
        !self.is_content && !self.framed && is_any_header(content)
    }

    /// Whether an End Block ends a frame here: the end of a line, the next frame or the end of the
    /// text follows, perhaps after some padding.
    fn is_end_of_frame(&self, at: usize) -> bool {
        const MOST_PADDING: usize = 16;
        let behind = &self.text[at + 1..];
        let is_padding = |byte: &&u8| matches!(**byte, b' ' | 0 | SUBSTITUTE) || BYTE_ORDER_MARK.contains(*byte);
        let padding = behind.iter().take(MOST_PADDING).take_while(is_padding).count();
        self.framed && behind.get(padding).is_none_or(|&byte| matches!(byte, b'\r' | b'\n' | FORM_FEED | START_BLOCK))
    }

    /// Where the line that begins here ends.
    fn end_of(&mut self, from: usize, kind: LineKind) -> usize {
        // A text without Carriage Returns is searched for them once.
        if self.next_return.is_none_or(|at| at < from) {
            let next = memchr(CARRIAGE_RETURN, &self.text[from..]);
            self.next_return = Some(next.map_or(self.text.len(), |length| from + length));
        }
        let feeds_are_content = self.feeds_are_content && kind == LineKind::Other;
        let to = self.next_return.unwrap_or(self.text.len());
        let is_end = |at: &usize| match self.text[*at] {
            b'\n' | FORM_FEED => !feeds_are_content || self.is_end_of_message(*at, to < self.text.len()),
            END_BLOCK => self.is_end_of_frame(*at),
            _ => false,
        };
        (from..to).find(is_end).unwrap_or(to)
    }
}

impl Iterator for Lines<'_> {
    type Item = Line;

    fn next(&mut self) -> Option<Line> {
        let mut from = self.at;
        loop {
            let rest = &self.text[from..];
            // A blank line that ends in a line feed is skipped even where line feeds are content, and
            // what remains of a blank one before a header.
            let blank = rest.iter().take_while(|byte| matches!(**byte, b' ' | b'\t' | 0 | SUBSTITUTE)).count();
            match rest.get(blank) {
                None if blank == 0 => return None,
                Some(&START_BLOCK) if self.begins_frame(from + blank) => {
                    from += blank;
                    (self.at, self.framed, self.feeds_are_content) = (from + 1, true, false);
                    return Some(Line {
                        segment: from..from,
                        end: LineEnd::Frame,
                        kind: LineKind::Other,
                        framed: false,
                        feeds_are_content: false,
                        after: self.at,
                    });
                }
                _ if rest.starts_with(BYTE_ORDER_MARK) => from += BYTE_ORDER_MARK.len(),
                Some(&(b'\n' | FORM_FEED)) => from += blank + 1,
                Some(_) if rest[..blank].contains(&SUBSTITUTE) && is_header(&rest[blank..], b"MSH") => from += blank,
                _ => break,
            }
        }
        let (framed, feeds_are_content) = (self.framed, self.feeds_are_content);
        let kind = self.kind(from);
        let to = self.end_of(from, kind);
        let (end, length) = match self.text[to..] {
            [CARRIAGE_RETURN, b'\n', ..] => (LineEnd::Other, 2),
            [CARRIAGE_RETURN, ..] => (LineEnd::Return, 1),
            [END_BLOCK, ..] => (LineEnd::Frame, 1),
            [_, ..] => (LineEnd::Other, 1),
            [] => (LineEnd::Other, 0),
        };
        if kind != LineKind::Other {
            match self.text[from..to] {
                [b'M', b'S', b'H', separator, ..] => self.separators[1] = Some(separator),
                [_, b'H', b'S', separator, ..] => {
                    self.separators[0] = Some(separator);
                    self.has_batch_by_feeds = self.text.get(to) == Some(&b'\n');
                }
                _ => {}
            }
            self.feeds_are_content = self.text.get(to) == Some(&CARRIAGE_RETURN);
        }
        if end == LineEnd::Frame {
            (self.framed, self.feeds_are_content) = (false, false);
        }
        self.at = to + length;
        let mut segment = from..to;
        if !framed && !self.is_content && self.text.get(to) != Some(&CARRIAGE_RETURN) {
            // The end of a text, or of a message in it, is no content of the last field.
            let line = &self.text[segment.clone()];
            let padding = |byte: &&u8| matches!(**byte, b'\n' | FORM_FEED | SUBSTITUTE | 0);
            segment.end -= line.iter().rev().take_while(padding).count();
        }
        Some(Line { segment, end, kind, framed, feeds_are_content, after: self.at })
    }
}

/// Whether a text begins with a header of this name: the field separator follows it (MSH-1), then
/// encoding characters (MSH-2) and the separator again. What stands behind the encoding characters
/// of some senders (`^~\& `, `^~\&amp;`) is passed over.
pub(super) fn is_header(text: &[u8], name: &[u8; 3]) -> bool {
    /// The most bytes of MSH-2.
    const LONGEST: usize = 12;
    let Some([separator, rest @ ..]) = text.strip_prefix(name) else { return false };
    let encoding = rest.iter().take(LONGEST + 1).take_while(|byte| *byte != separator && **byte >= b' ').count();
    let begins_with_delimiters = encoding > 0 && rest[..encoding.min(2)].iter().all(|&byte| is_separator(byte));
    is_separator(*separator)
        && begins_with_delimiters
        && encoding <= LONGEST
        && rest.get(encoding).is_none_or(|byte| byte == separator || *byte < b' ')
}

/// Whether a text begins with the header of a batch or file.
pub(super) fn is_batch_header(text: &[u8]) -> bool {
    is_header(text, b"BHS") || is_header(text, b"FHS")
}

/// Whether a text begins with the header of a message, a batch or a file.
fn is_any_header(text: &[u8]) -> bool {
    is_header(text, b"MSH") || is_batch_header(text)
}

/// Whether a text begins with the trailer of a batch or file: nothing, or a field separator and
/// perhaps a count, follows its name.
pub(super) fn is_trailer(text: &[u8]) -> bool {
    let Some(rest) = text.strip_prefix(b"BTS").or_else(|| text.strip_prefix(b"FTS")) else { return false };
    let Some((&separator, fields)) = rest.split_first().filter(|(first, _)| **first >= b' ') else { return true };
    let count = fields.iter().take_while(|byte| byte.is_ascii_digit() || **byte == b' ').take(20).count();
    is_separator(separator) && fields.get(count).is_none_or(|&byte| byte == separator || byte < b' ')
}

/// What follows the line that a text begins with, without blank lines and bytes of frames.
fn what_follows(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|byte| b"\r\n".contains(byte)).unwrap_or(text.len());
    let between = |byte: &&u8| {
        matches!(**byte, b' ' | b'\t' | b'\r' | b'\n' | 0 | FORM_FEED | SUBSTITUTE | START_BLOCK | END_BLOCK)
            || BYTE_ORDER_MARK.contains(*byte)
    };
    let next = &text[end..];
    &next[next.iter().take_while(between).count()..]
}

/// Whether what follows the trailer that begins here can follow one: a header, the trailer of the
/// file, or the end of the text.
fn ends_batch(trailer: &[u8]) -> bool {
    let next = what_follows(trailer);
    let ends_file = trailer.starts_with(b"BTS") && next.starts_with(b"FTS") && is_trailer(next);
    next.is_empty() || is_any_header(next) || ends_file
}

/// Whether the trailer that begins here is rather a line of a message: its segments go on behind
/// it, or any text if the line has no field.
fn is_amid_segments(trailer: &[u8]) -> bool {
    let next = what_follows(trailer);
    let is_segment = |separator: &u8| next.get(3) == Some(separator) && next[..3].iter().all(u8::is_ascii_alphanumeric);
    !ends_batch(trailer) && trailer.get(3).filter(|byte| **byte >= b' ').is_none_or(is_segment)
}

pub(super) fn is_blank(segment: &[u8]) -> bool {
    segment.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\n' | 0 | &FORM_FEED | &SUBSTITUTE))
}

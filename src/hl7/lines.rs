//! The lines of a file of messages: where each ends, and whether it is a header.

use std::ops::Range;

use super::segment::{WRAPPERS, begins_with_name, is_separator};
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

pub(super) struct Line {
    pub(super) segment: Range<usize>,
    pub(super) end: LineEnd,
    /// Whether it is the header of a message (MSH).
    pub(super) is_header: bool,
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
    /// Whether it is the content of one message, in which no frame begins or ends.
    is_content: bool,
    /// Whether a Start Block has come, and its End Block has not.
    framed: bool,
    /// Whether the last header ended in a Carriage Return, so that line feeds and form feeds are
    /// content.
    feeds_are_content: bool,
}

impl<'t> Lines<'t> {
    /// The lines of a whole text.
    pub(super) fn of_text(text: &'t [u8]) -> Lines<'t> {
        Lines { text, at: 0, is_content: false, framed: false, feeds_are_content: false }
    }

    /// The lines of one message's content. `feeds_are_content`: whether line feeds are content in
    /// its first line.
    pub(super) fn of_content(text: &'t [u8], feeds_are_content: bool) -> Lines<'t> {
        Lines { text, at: 0, is_content: true, framed: false, feeds_are_content }
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

    /// Whether a byte ends the line that it stands in. In a header or trailer a line feed is no
    /// content.
    fn is_end(&self, from: usize, at: usize, is_header_or_trailer: bool) -> bool {
        match self.text[at] {
            CARRIAGE_RETURN => true,
            b'\n' | FORM_FEED => is_header_or_trailer || !self.feeds_are_content || is_msh(&self.text[at + 1..]),
            // An End Block alone on a line ends a frame whose Start Block is missing.
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
                    (self.at, self.framed, self.feeds_are_content) = (from + 1, true, false);
                    let segment = from..from;
                    return Some(Line {
                        segment,
                        end: LineEnd::Frame,
                        is_header: false,
                        framed: true,
                        feeds_are_content: false,
                        after: self.at,
                    });
                }
                [] => return None,
                ref rest if rest.starts_with(BYTE_ORDER_MARK) => from += BYTE_ORDER_MARK.len(),
                ref rest => {
                    // A blank line that ends in a line feed is skipped even where line feeds are content.
                    let blank = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | 0)).count();
                    match rest.get(blank) {
                        Some(&(b'\n' | FORM_FEED)) => from += blank + 1,
                        _ => break,
                    }
                }
            }
        }
        let (framed, feeds_are_content) = (self.framed, self.feeds_are_content);
        let is_header = is_msh(&self.text[from..]);
        let is_header_or_trailer = is_header || is_wrapper(&self.text[from..]);
        let to =
            (from..self.text.len()).find(|&at| self.is_end(from, at, is_header_or_trailer)).unwrap_or(self.text.len());
        let (end, length) = match self.text[to..] {
            [CARRIAGE_RETURN, b'\n', ..] => (LineEnd::Other, 2),
            [CARRIAGE_RETURN, ..] => (LineEnd::Return, 1),
            [END_BLOCK, ..] => (LineEnd::Frame, 1),
            [_, ..] => (LineEnd::Other, 1),
            [] => (LineEnd::Other, 0),
        };
        if is_header_or_trailer {
            self.feeds_are_content = self.text.get(to) == Some(&CARRIAGE_RETURN);
        }
        if end == LineEnd::Frame {
            (self.framed, self.feeds_are_content) = (false, false);
        }
        self.at = to + length;
        Some(Line { segment: from..to, end, is_header, framed, feeds_are_content, after: self.at })
    }
}

/// Whether a text begins with the header of a message: its name, a field separator (MSH-1) and
/// encoding characters (MSH-2).
pub(super) fn is_msh(text: &[u8]) -> bool {
    let Some(rest) = text.strip_prefix(b"MSH") else { return false };
    let encoding = |separator| rest[1..].iter().take_while(move |&&byte| byte != separator && byte >= b' ').take(8);
    rest.first()
        .is_some_and(|&separator| is_separator(separator) && encoding(separator).all(|&byte| is_separator(byte)))
}

/// Whether a text begins with the header or trailer of a batch.
fn is_wrapper(text: &[u8]) -> bool {
    begins_with_name(text, &WRAPPERS, &[CARRIAGE_RETURN, b'\n', FORM_FEED, END_BLOCK])
}

pub(super) fn is_blank(segment: &[u8]) -> bool {
    segment.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\n' | 0 | &FORM_FEED | &SUBSTITUTE))
}

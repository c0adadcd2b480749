//! The MLLP frame: Start Block, content, End Block, Carriage Return.
//!
//! ```text
//! 0x0B  content  0x1C 0x0D
//! ```
//!
//! This is the block format of the *Minimal Lower Layer Protocol* (HL7 version 3 transport
//! specification, MLLP release 1; HL7 version 2 implementation guide, appendix C). The
//! specification allows 0x0D and 0x20 to 0xFF as content; line feeds and tabs occur in the field
//! and pass. The two framing bytes can never be content, which is what lets a reader find the end
//! of a message without a length.
//!
//! Nothing here touches a socket: a [`Framing`] says how frames look, [`Framing::encode`] makes
//! one, and a [`Scanner`] finds them in what has been received, however it was cut.
//!
//! ```
//! use mllp_client::frame::{Framing, Scanner};
//!
//! let frame = Framing::default().encode(b"MSH|^~\\&|\r")?;
//! let mut scanner = Scanner::new(Framing::default(), 1024);
//! assert_eq!(scanner.scan(&frame[..5])?, None);                    // more is needed
//! assert_eq!(scanner.scan(&frame)?.unwrap().payload, b"MSH|^~\\&|\r");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;

use memchr::memchr2;
use memchr::memmem::{self, Finder};

/// The byte before every message: `<SB>`, ASCII vertical tab.
pub const START_BLOCK: u8 = 0x0B;
/// The first byte after every message: `<EB>`, ASCII file separator.
pub const END_BLOCK: u8 = 0x1C;
/// The byte that follows the End Block: `<CR>`.
pub const CARRIAGE_RETURN: u8 = 0x0D;

/// The bytes that some writers of UTF-8 put before everything else (U+FEFF).
pub(crate) const BYTE_ORDER_MARK: &[u8] = &[0xEF, 0xBB, 0xBF];

/// The content of a commit block that says that the receiver has stored the message (MLLP release
/// 2): ASCII ACK.
pub(crate) const STORED: &[u8] = &[0x06];
/// The content of one that says that it has not: ASCII NAK.
pub(crate) const NOT_STORED: &[u8] = &[0x15];

/// The largest number of bytes before a Start Block, so that a peer that sends nothing else cannot
/// fill the memory.
pub(crate) const MAX_SKIPPED: usize = 64 * 1024;

/// The longest sequence a site may choose for the start or the end of its frames.
const MAX_MARKER: usize = 8;

/// How a frame begins and ends, and what is forgiven. The default is MLLP, strictly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framing {
    start: Marker,
    end: Marker,
    missing_carriage_return: bool,
    leading_bytes: bool,
}

impl Default for Framing {
    fn default() -> Self {
        Framing {
            start: Marker::literal(&[START_BLOCK]),
            end: Marker::literal(&[END_BLOCK, CARRIAGE_RETURN]),
            missing_carriage_return: false,
            leading_bytes: false,
        }
    }
}

impl Framing {
    /// Frames for a site that uses header and footer bytes of its own, 1 to 8 each.
    ///
    /// Content may then hold any byte that does not make up one of the two sequences.
    ///
    /// # Errors
    ///
    /// [`BadFraming`] if a sequence is empty or longer than 8 bytes, or if one of the two contains
    /// the other, which would leave the end of a frame undecided.
    pub fn custom(start: &[u8], end: &[u8]) -> Result<Framing, BadFraming> {
        let within = |outer: &[u8], inner: &[u8]| outer.windows(inner.len()).any(|window| window == inner);
        let fits = |marker: &[u8]| (1..=MAX_MARKER).contains(&marker.len());
        if !fits(start) || !fits(end) || within(start, end) || within(end, start) {
            return Err(BadFraming);
        }
        Ok(Framing { start: Marker::literal(start), end: Marker::literal(end), ..Framing::default() })
    }

    /// Accepts frames that end without the Carriage Return.
    ///
    /// The frame then ends at the End Block at once: waiting for the next byte would wait for ever
    /// on a peer that never sends it. A Carriage Return that is there already belongs to the
    /// frame, one that comes later is filler. Concerns what is received; what is sent is always
    /// complete. Defaults to `false`.
    #[must_use]
    pub fn allow_missing_carriage_return(self, allow: bool) -> Framing {
        Framing { missing_carriage_return: allow, ..self }
    }

    /// Skips bytes of any kind before the Start Block, up to 64 KiB, as the specification lets a
    /// receiver do.
    ///
    /// Carriage Returns, line feeds, NULs, spaces and byte-order marks (UTF-8) are skipped in any
    /// case. Defaults to `false`:
    /// an answer that does not begin with a Start Block is [`FrameError::NoStartBlock`].
    #[must_use]
    pub fn allow_leading_bytes(self, allow: bool) -> Framing {
        Framing { leading_bytes: allow, ..self }
    }

    /// Makes one frame of a payload.
    ///
    /// # Errors
    ///
    /// [`PayloadError::Empty`], or [`PayloadError::FramingByte`] if the payload holds bytes that
    /// would end the frame or begin another.
    pub fn encode(&self, payload: &[u8]) -> Result<Vec<u8>, PayloadError> {
        self.check(payload)?;
        Ok([self.head(), payload, self.tail()].concat())
    }

    /// Whether a payload can stand in a frame.
    pub(crate) fn check(&self, payload: &[u8]) -> Result<(), PayloadError> {
        if payload.is_empty() {
            return Err(PayloadError::Empty);
        }
        let (start, end) = (self.start.bytes(), self.terminator());
        let found = if let ([start], [end]) = (start, end) {
            memchr2(*start, *end, payload)
        } else {
            let first = |sequence| memmem::find(payload, sequence);
            first(start).into_iter().chain(first(end)).min().or_else(|| self.found_across_the_end(payload))
        };
        match found {
            Some(offset) => Err(PayloadError::FramingByte { byte: payload[offset], offset }),
            None => Ok(()),
        }
    }

    /// Where a payload's last bytes make up a sequence together with the end of the frame.
    fn found_across_the_end(&self, payload: &[u8]) -> Option<usize> {
        let kept = payload.len().min(MAX_MARKER);
        let seam = [&payload[payload.len() - kept..], self.end.bytes()].concat();
        let begins = |sequence: &[u8]| seam.windows(sequence.len()).position(|window| window == sequence);
        let first = begins(self.terminator()).into_iter().chain(begins(self.start.bytes())).min()?;
        (first < kept).then(|| payload.len() - kept + first)
    }

    /// The bytes before a payload.
    pub(crate) fn head(&self) -> &[u8] {
        self.start.bytes()
    }

    /// The bytes after a payload.
    pub(crate) fn tail(&self) -> &[u8] {
        self.end.bytes()
    }

    /// Whether bytes outside any frame mean nothing: peers end their frames with line ends and
    /// padding of their own, and begin them with a byte-order mark.
    pub(crate) fn is_filler(mut bytes: &[u8]) -> bool {
        loop {
            match Framing::filler(bytes) {
                0 => return bytes.is_empty(),
                length => bytes = &bytes[length..],
            }
        }
    }

    /// The length of the first piece of filler that these bytes begin with; 0 if they begin
    /// otherwise.
    fn filler(bytes: &[u8]) -> usize {
        match bytes {
            [CARRIAGE_RETURN | b'\n' | b'\0' | b' ', ..] => 1,
            _ if bytes.starts_with(BYTE_ORDER_MARK) => BYTE_ORDER_MARK.len(),
            _ => 0,
        }
    }

    /// The bytes that end the content. A Carriage Return after MLLP's own End Block is looked at
    /// apart, as is one that may be missing.
    fn terminator(&self) -> &[u8] {
        match self.end.bytes() {
            [end @ .., CARRIAGE_RETURN] if !end.is_empty() && self.carriage_return() != Return::None => end,
            end => end,
        }
    }

    fn carriage_return(&self) -> Return {
        match self.end.bytes() {
            [_, .., CARRIAGE_RETURN] if self.missing_carriage_return => Return::Optional,
            [END_BLOCK, CARRIAGE_RETURN] => Return::Required,
            _ => Return::None,
        }
    }
}

/// The bytes that are to follow the terminator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Return {
    None,
    Optional,
    Required,
}

/// A short sequence, kept in place.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Marker {
    bytes: [u8; MAX_MARKER],
    length: usize,
}

impl Marker {
    fn literal(bytes: &[u8]) -> Marker {
        let mut marker = Marker { bytes: [0; MAX_MARKER], length: bytes.len() };
        marker.bytes[..bytes.len()].copy_from_slice(bytes);
        marker
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl fmt::Debug for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02X?}", self.bytes())
    }
}

/// One frame among received bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Frame<'b> {
    /// The content, without the framing bytes.
    pub payload: &'b [u8],
    /// How many of the received bytes are used up: all up to and with the frame's end.
    pub end: usize,
    /// How many bytes stood before the Start Block.
    pub skipped: usize,
}

/// Shows lengths only: the content may be a patient's.
impl fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Frame { payload, end, skipped } = self;
        f.debug_struct("Frame").field("len", &payload.len()).field("end", end).field("skipped", skipped).finish()
    }
}

/// Finds frames in received bytes, whatever pieces they come in, looking at each byte once.
///
/// After a frame or an error the scanner is as new: go on with what follows the frame's
/// [`end`](Frame::end).
#[derive(Clone, Debug)]
pub struct Scanner {
    framing: Framing,
    max_payload: usize,
    search: Search,
    /// The length of the terminator, and what is to follow it.
    terminator: usize,
    carriage_return: Return,
    /// Where the content begins, once the Start Block has been found.
    content: Option<usize>,
    /// How far the received bytes need not be looked at again.
    looked: usize,
}

impl Scanner {
    /// A scanner for frames of at most `max_payload` bytes of content.
    pub fn new(framing: Framing, max_payload: usize) -> Self {
        let search = match (framing.start.bytes(), framing.terminator()) {
            ([start], [end]) => Search::Bytes { start: *start, end: *end },
            (start, end) => {
                Search::Sequences(Box::new((Finder::new(start).into_owned(), Finder::new(end).into_owned())))
            }
        };
        Scanner {
            max_payload,
            search,
            terminator: framing.terminator().len(),
            carriage_return: framing.carriage_return(),
            framing,
            content: None,
            looked: 0,
        }
    }

    /// Looks for one frame in `received`: all that has come and is not used up, which only grows
    /// from call to call.
    ///
    /// `None` means that more is needed. Bytes that became fewer are taken for new ones.
    ///
    /// # Errors
    ///
    /// A [`FrameError`] as soon as the bytes cannot become a frame.
    pub fn scan<'b>(&mut self, received: &'b [u8]) -> Result<Option<Frame<'b>>, FrameError> {
        if received.len() < self.looked {
            self.reset();
        }
        let result = self.advance(received);
        if !matches!(result, Ok(None)) {
            self.reset();
        }
        result
    }

    /// Whether a Start Block has been found, and not yet the end.
    pub(crate) fn is_inside_a_frame(&self) -> bool {
        self.content.is_some()
    }

    /// Whether these bytes outside any frame mean nothing, and none of them may begin a Start
    /// Block.
    pub(crate) fn is_filler(&self, bytes: &[u8]) -> bool {
        let start = self.framing.start.bytes()[0];
        Framing::is_filler(bytes) && !bytes.contains(&start)
    }

    /// Whether all these bytes were skipped: none of them begins a frame, and what follows them
    /// may.
    pub(crate) fn skips_all(&self, received: &[u8]) -> bool {
        self.content.is_none() && self.looked == received.len()
    }

    /// Whether the frame that these bytes begin is whole but for the Carriage Return behind its End
    /// Block.
    pub(crate) fn lacks_only_its_return(&self, received: &[u8]) -> bool {
        self.content.is_some()
            && self.carriage_return == Return::Required
            && received.ends_with(self.framing.terminator())
    }

    /// Forgets a frame that will not be finished.
    pub(crate) fn reset(&mut self) {
        self.content = None;
        self.looked = 0;
    }

    fn advance<'b>(&mut self, received: &'b [u8]) -> Result<Option<Frame<'b>>, FrameError> {
        let content = match self.content {
            Some(content) => content,
            None => match self.find_start(received)? {
                Some(content) => content,
                None => return Ok(None),
            },
        };
        let Some(length) = self.find_end(&received[content..], self.looked - content)? else {
            return Ok(None);
        };
        let after = content + length + self.terminator;
        let returns = self.carriage_return != Return::None && received.get(after) == Some(&CARRIAGE_RETURN);
        Ok(Some(Frame {
            payload: &received[content..content + length],
            end: after + usize::from(returns),
            skipped: content - self.framing.start.length,
        }))
    }

    /// Where the content begins.
    fn find_start(&mut self, received: &[u8]) -> Result<Option<usize>, FrameError> {
        let start = self.framing.start.bytes();
        // Common case: nothing stands before the frame.
        if self.looked == 0 && received.first() == Some(&start[0]) && start.len() == 1 {
            self.looked = 1;
            self.content = Some(1);
            return Ok(self.content);
        }
        while let Some(&first) = received.get(self.looked) {
            let rest = &received[self.looked..];
            if rest.starts_with(start) {
                self.looked += start.len();
                self.content = Some(self.looked);
                break;
            }
            if start.starts_with(rest) {
                break;
            }
            self.looked += match Framing::filler(rest) {
                _ if self.framing.leading_bytes => 1,
                0 if BYTE_ORDER_MARK.starts_with(rest) => break,
                0 => return Err(FrameError::NoStartBlock { first }),
                length => length,
            };
            if self.looked > MAX_SKIPPED {
                return Err(FrameError::NoFrame { limit: MAX_SKIPPED });
            }
        }
        Ok(self.content)
    }

    /// The length of the content, of which the first `looked` bytes have been seen to hold no end.
    fn find_end(&mut self, content: &[u8], looked: usize) -> Result<Option<usize>, FrameError> {
        let limit = self.max_payload;
        let farthest = limit.saturating_add(self.terminator);
        // No further than where the end of the largest content would be.
        let unseen = &content[looked..content.len().min(farthest)];
        let (start, end) = self.search.find(unseen);
        if let Some(at) = start {
            return Err(FrameError::StartBlockInContent { offset: looked + at });
        }
        let Some(length) = end.map(|at| looked + at) else {
            if content.len() >= farthest {
                return Err(FrameError::TooLarge { limit });
            }
            // The last bytes may be the beginning of a sequence that is still to come.
            let partial = self.terminator.max(self.framing.start.length) - 1;
            self.looked += unseen.len().saturating_sub(partial);
            return Ok(None);
        };
        match (self.carriage_return, content.get(length + self.terminator)) {
            (Return::Required, None) => {
                self.looked += length - looked;
                Ok(None)
            }
            (Return::Required, Some(&byte)) if byte != CARRIAGE_RETURN => {
                Err(FrameError::EndBlockWithoutCarriageReturn { offset: length })
            }
            _ => Ok(Some(length)),
        }
    }
}

/// The start and the end of frames, as they are searched for in a frame's content.
#[derive(Clone, Debug)]
enum Search {
    Bytes { start: u8, end: u8 },
    Sequences(Box<(Finder<'static>, Finder<'static>)>),
}

impl Search {
    /// Where a start and where an end first stand; only one of the two if it is whole before the
    /// other.
    fn find(&self, bytes: &[u8]) -> (Option<usize>, Option<usize>) {
        match self {
            Search::Bytes { start, end } => match memchr2(*start, *end, bytes) {
                Some(at) if bytes[at] == *start => (Some(at), None),
                found => (None, found),
            },
            Search::Sequences(finders) => {
                let (start, end) = &**finders;
                let ends = end.find(bytes);
                // A start that is whole no later than the end is counts first, as it would had the bytes come one
                // by one. Both can be whole at once where a Carriage Return may be missing, and
                // then it may be a frame that was cut off.
                let before = ends.map_or(bytes.len(), |at| at + end.needle().len());
                (start.find(&bytes[..before]), ends)
            }
        }
    }
}

/// Why bytes are not a frame. Offsets count from the content's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The bytes do not begin with a Start Block: the peer answers without MLLP framing, or is not
    /// an MLLP receiver.
    #[error("byte 0x{first:02X} where the Start Block was expected: {}", unframed(*first))]
    #[non_exhaustive]
    NoStartBlock {
        /// The byte that stood in its place.
        first: u8,
    },
    /// A Start Block inside the content: a frame was cut off and a new one begins.
    #[error("Start Block inside the content at offset {offset}: a truncated frame is followed by another")]
    #[non_exhaustive]
    StartBlockInContent {
        /// Where in the content.
        offset: usize,
    },
    /// An End Block that no Carriage Return follows. Some peers never send it; see
    /// [`Framing::allow_missing_carriage_return`].
    #[error(
        "End Block without Carriage Return at offset {offset}; Framing::allow_missing_carriage_return accepts that"
    )]
    #[non_exhaustive]
    EndBlockWithoutCarriageReturn {
        /// Where in the content.
        offset: usize,
    },
    /// The content is longer than the limit.
    #[error("no end of the frame within {limit} bytes")]
    #[non_exhaustive]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// Nothing but filler, or other bytes that are skipped, and no Start Block.
    #[error("no Start Block within {limit} bytes")]
    #[non_exhaustive]
    NoFrame {
        /// The limit in bytes.
        limit: usize,
    },
}

/// The likely meaning of the first byte of a peer that sends no frame.
fn unframed(first: u8) -> &'static str {
    match first {
        // RFC 8446, section 5.1: the record type of an alert.
        0x15 => "so begins a TLS alert; does the peer speak TLS? try mllps://",
        _ => "the peer does not speak MLLP, or frames otherwise",
    }
}

/// Why a payload cannot stand in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// There is nothing in it.
    #[error("the payload is empty")]
    Empty,
    /// It holds a byte that would end the frame or begin another.
    #[error("framing byte 0x{byte:02X} at offset {offset}")]
    #[non_exhaustive]
    FramingByte {
        /// The byte.
        byte: u8,
        /// Where in the payload.
        offset: usize,
    },
}

/// Framing bytes that cannot be: 1 to 8 are allowed at each end, and neither sequence may contain
/// the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("framing bytes must be 1 to 8 at each end, and neither sequence may contain the other")]
#[non_exhaustive]
pub struct BadFraming;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::oracle;

    /// The findings of a scanner in a stream of bytes: contents with their skipped bytes, then an
    /// error or the unused rest.
    type Found = (Vec<(Vec<u8>, usize)>, Result<Vec<u8>, FrameError>);

    /// Feeds the wire in pieces that end at `cuts`, as a connection does, until the wire ends or
    /// breaks.
    fn feed(framing: &Framing, limit: usize, wire: &[u8], cuts: impl IntoIterator<Item = usize>) -> Found {
        let mut scanner = Scanner::new(framing.clone(), limit);
        let mut found = Vec::new();
        let mut used = 0;
        for cut in cuts.into_iter().chain([wire.len()]) {
            loop {
                match scanner.scan(&wire[used..cut]) {
                    Ok(None) => break,
                    Ok(Some(frame)) => {
                        found.push((frame.payload.to_vec(), frame.skipped));
                        used += frame.end;
                    }
                    Err(error) => return (found, Err(error)),
                }
            }
        }
        (found, Ok(wire[used..].to_vec()))
    }

    /// At once, in two pieces at every place, and byte by byte: the same must be found.
    fn check(name: &str, framing: &Framing, limit: usize, wire: &[u8], expected: &Found) {
        let shown = |found: &Found| format!("{found:?}");
        assert_eq!(shown(&feed(framing, limit, wire, [])), shown(expected), "{name}, at once");
        assert_eq!(shown(&feed(framing, limit, wire, 0..wire.len())), shown(expected), "{name}, byte by byte");
        for cut in 0..wire.len() {
            assert_eq!(shown(&feed(framing, limit, wire, [cut])), shown(expected), "{name}, cut at {cut}");
        }
    }

    fn frames(contents: &[(&[u8], usize)], end: Result<&[u8], FrameError>) -> Found {
        (contents.iter().map(|(content, skipped)| (content.to_vec(), *skipped)).collect(), end.map(<[u8]>::to_vec))
    }

    #[test]
    fn mllp_at_every_split() {
        use FrameError::*;
        let strict = Framing::default();
        let limit = 8;
        type Row<'t> = (&'t str, &'t [u8], &'t [(&'t [u8], usize)], Result<&'t [u8], FrameError>);
        let rows: &[Row<'_>] = &[
            ("nothing", b"", &[], Ok(b"")),
            ("one frame", b"\x0BMSH|\x1C\r", &[(b"MSH|", 0)], Ok(b"")),
            ("empty content", b"\x0B\x1C\r", &[(b"", 0)], Ok(b"")),
            ("two frames", b"\x0Ba\x1C\r\x0Bb\x1C\r", &[(b"a", 0), (b"b", 0)], Ok(b"")),
            ("line ends between", b"\x0Ba\x1C\r\r\n\x0Bb\x1C\r", &[(b"a", 0), (b"b", 2)], Ok(b"")),
            ("filler before", b"\r\n\0 \x0Ba\x1C\r", &[(b"a", 4)], Ok(b"")),
            ("a byte-order mark before", b"\xEF\xBB\xBF\x0Ba\x1C\r", &[(b"a", 3)], Ok(b"")),
            ("byte-order marks and filler", b"\r\xEF\xBB\xBF\xEF\xBB\xBF\n\x0Ba\x1C\r", &[(b"a", 8)], Ok(b"")),
            ("half a byte-order mark", b"\xEF\xBB", &[], Ok(b"\xEF\xBB")),
            ("a byte-order mark that is none", b"\xEF\xBB\x0B", &[], Err(NoStartBlock { first: 0xEF })),
            ("filler alone", b"\r\n\0 ", &[], Ok(b"\r\n\0 ")),
            ("LF and TAB inside", b"\x0Ba\n\tb\x1C\r", &[(b"a\n\tb", 0)], Ok(b"")),
            ("CR inside", b"\x0Ba\rb\r\x1C\r", &[(b"a\rb\r", 0)], Ok(b"")),
            ("high bytes inside", b"\x0B\xFF\x80\xE9\x1C\r", &[(b"\xFF\x80\xE9", 0)], Ok(b"")),
            ("half a frame", b"\x0Babc", &[], Ok(b"\x0Babc")),
            ("without the last CR", b"\x0Babc\x1C", &[], Ok(b"\x0Babc\x1C")),
            ("as long as may be", b"\x0B12345678\x1C\r", &[(b"12345678", 0)], Ok(b"")),
            ("one byte more", b"\x0B123456789\x1C\r", &[], Err(TooLarge { limit })),
            ("without end", b"\x0B123456789012345", &[], Err(TooLarge { limit })),
            ("no Start Block", b"MSH|\x1C\r", &[], Err(NoStartBlock { first: b'M' })),
            ("filler, no Start Block", b"\r\nMSH|", &[], Err(NoStartBlock { first: b'M' })),
            ("End Block first", b"\x1C\r", &[], Err(NoStartBlock { first: 0x1C })),
            ("unframed after a frame", b"\x0Ba\x1C\rMSA", &[(b"a", 0)], Err(NoStartBlock { first: b'M' })),
            ("truncated, then another", b"\x0Bab\x0Bc\x1C\r", &[], Err(StartBlockInContent { offset: 2 })),
            ("two Start Blocks", b"\x0B\x0Ba\x1C\r", &[], Err(StartBlockInContent { offset: 0 })),
            ("End Block and LF", b"\x0Bab\x1C\n", &[], Err(EndBlockWithoutCarriageReturn { offset: 2 })),
            ("two End Blocks", b"\x0Bab\x1C\x1C\r", &[], Err(EndBlockWithoutCarriageReturn { offset: 2 })),
            ("End Block and Start Block", b"\x0Ba\x1C\x0Bb", &[], Err(EndBlockWithoutCarriageReturn { offset: 1 })),
            (
                "breaks after a frame",
                b"\x0Ba\x1C\r\x0B\x1Cx",
                &[(b"a", 0)],
                Err(EndBlockWithoutCarriageReturn { offset: 0 }),
            ),
        ];
        for (name, wire, contents, end) in rows {
            check(name, &strict, limit, wire, &frames(contents, *end));
        }
    }

    #[test]
    fn what_is_forgiven_at_every_split() {
        use FrameError::*;
        let rows: &[(&str, Framing, &[u8], Found)] = &[
            (
                "leading bytes",
                Framing::default().allow_leading_bytes(true),
                b"220 ready\r\n\x0Ba\x1C\rjunk\x0Bb\x1C\r",
                frames(&[(b"a", 11), (b"b", 4)], Ok(b"")),
            ),
            (
                "leading End Block",
                Framing::default().allow_leading_bytes(true),
                b"\x1C\r\x0Ba\x1C\r",
                frames(&[(b"a", 2)], Ok(b"")),
            ),
            (
                "leading bytes, custom start",
                Framing::custom(b"<<", b">>").unwrap().allow_leading_bytes(true),
                b"<a<<b>>",
                frames(&[(b"b", 2)], Ok(b"")),
            ),
            (
                "missing Carriage Return at the wire's end",
                Framing::default().allow_missing_carriage_return(true),
                b"\x0Ba\x1C",
                frames(&[(b"a", 0)], Ok(b"")),
            ),
            (
                "missing Carriage Return between frames",
                Framing::default().allow_missing_carriage_return(true),
                b"\x0Ba\x1C\x0Bb\x1C",
                frames(&[(b"a", 0), (b"b", 0)], Ok(b"")),
            ),
            (
                "Start Block inside, still",
                Framing::default().allow_missing_carriage_return(true),
                b"\x0Ba\x0Bb\x1C",
                frames(&[], Err(StartBlockInContent { offset: 1 })),
            ),
            (
                "what may be a start or an end",
                Framing::custom(b"<-", b"-\r").unwrap().allow_missing_carriage_return(true),
                b"<-a-<-b<-c-",
                frames(&[(b"a", 0)], Err(StartBlockInContent { offset: 1 })),
            ),
            (
                "missing Carriage Return of a custom end",
                Framing::custom(b"\x02", b"\x03\x04\r").unwrap().allow_missing_carriage_return(true),
                b"\x02a\x03\x04\x02b\x03c\x03\x04",
                frames(&[(b"a", 0), (b"b\x03c", 0)], Ok(b"")),
            ),
        ];
        for (name, framing, wire, expected) in rows {
            check(name, framing, 32, wire, expected);
        }
    }

    #[test]
    fn a_carriage_return_that_may_be_missing_belongs_to_the_frame_only_if_it_is_there() {
        for framing in [Framing::default(), Framing::custom(b"<<", b">>\r").unwrap()] {
            let framing = framing.allow_missing_carriage_return(true);
            let wire = framing.encode(b"a").unwrap();
            let mut scanner = Scanner::new(framing.clone(), 8);
            assert_eq!(scanner.scan(&wire).unwrap().unwrap().end, wire.len());
            let early = scanner.scan(&wire[..wire.len() - 1]).unwrap().unwrap();
            assert_eq!(early.end, wire.len() - 1);
            assert!(Framing::is_filler(&wire[early.end..]));
        }
    }

    #[test]
    fn custom_frames_at_every_split() {
        use FrameError::*;
        let limit = 8;
        let rows: &[(&str, &[u8], &[u8], &[u8], Found)] = &[
            ("STX and ETX", b"\x02", b"\x03", b"\x02a\x03\x02b\x03", frames(&[(b"a", 0), (b"b", 0)], Ok(b""))),
            ("STX, MLLP's end", b"\x02", b"\x1C\r", b"\x02a\x1C\r", frames(&[(b"a", 0)], Ok(b""))),
            (
                "MLLP's end is strict under any start",
                b"\x02\x02",
                b"\x1C\r",
                b"\x02\x02a\x1Cb",
                frames(&[], Err(EndBlockWithoutCarriageReturn { offset: 1 })),
            ),
            ("MLLP's bytes are data", b"<", b">", b"<\x0B\x1C\r>", frames(&[(b"\x0B\x1C\r", 0)], Ok(b""))),
            ("a part of the end is data", b"<<", b">>\r", b"<<a>b>>c>>\r", frames(&[(b"a>b>>c", 0)], Ok(b""))),
            ("repeated end bytes", b"<<", b"--!", b"<<a---!", frames(&[(b"a-", 0)], Ok(b""))),
            ("half a start", b"<<", b">>", b"<a", frames(&[], Err(NoStartBlock { first: b'<' }))),
            ("start inside", b"<<", b">>", b"<<a<<b>>", frames(&[], Err(StartBlockInContent { offset: 1 }))),
            ("half a start inside", b"<<", b">>", b"<<a<b>>", frames(&[(b"a<b", 0)], Ok(b""))),
            ("start across the end", b"AB", b"BC", b"ABxABC", frames(&[], Err(StartBlockInContent { offset: 1 }))),
            ("as long as may be", b"<<", b">>", b"<<12345678>>", frames(&[(b"12345678", 0)], Ok(b""))),
            ("one byte more", b"<<", b">>", b"<<123456789>>", frames(&[], Err(TooLarge { limit }))),
            ("eight bytes each", b"12345678", b"abcdefgh", b"12345678xabcdefgh", frames(&[(b"x", 0)], Ok(b""))),
            ("filler as start", b"\r\n", b"\n\n", b" \r\na\n\n", frames(&[(b"a", 1)], Ok(b""))),
        ];
        for (name, start, end, wire, expected) in rows {
            check(name, &Framing::custom(start, end).unwrap(), limit, wire, expected);
        }
    }

    #[test]
    fn what_may_be_sent() {
        let mllp = Framing::default;
        let custom = |start: &[u8], end: &[u8]| Framing::custom(start, end).unwrap();
        let at = |byte, offset| Err(PayloadError::FramingByte { byte, offset });
        let rows: &[(&str, Framing, &[u8], Result<&[u8], PayloadError>)] = &[
            ("usual", mllp(), b"MSH|\r", Ok(b"\x0BMSH|\r\x1C\r")),
            ("forgiving is for receiving", mllp().allow_missing_carriage_return(true), b"a", Ok(b"\x0Ba\x1C\r")),
            ("empty", mllp(), b"", Err(PayloadError::Empty)),
            ("framed already", mllp(), b"\x0BMSH|\x1C\r", at(0x0B, 0)),
            ("Start Block inside", mllp(), b"MSH|\x0B", at(0x0B, 4)),
            ("End Block inside", mllp(), b"MS\x1CH\x0B", at(0x1C, 2)),
            ("custom", custom(b"<<", b">>"), b"\x0B<>\x1C", Ok(b"<<\x0B<>\x1C>>")),
            ("custom start inside", custom(b"<<", b">>"), b"a<<", at(b'<', 1)),
            ("custom end inside", custom(b"<<", b">>"), b"a>>b<<", at(b'>', 1)),
            ("an end too early", custom(b"<<", b">>"), b"a>", at(b'>', 1)),
            ("an end too early, longer", custom(b"<<", b"--!--"), b"a--!", at(b'-', 1)),
            ("a start at the seam", custom(b"AB", b"BC"), b"xA", at(b'A', 1)),
            ("one byte", custom(b"\x02", b"\x03"), b"a\x03", at(0x03, 1)),
        ];
        for (name, framing, payload, expected) in rows {
            assert_eq!(framing.encode(payload), expected.map(<[u8]>::to_vec), "{name}");
            if let Ok(wire) = expected {
                assert_eq!(feed(framing, 64, wire, []), frames(&[(payload, 0)], Ok(b"")), "{name}");
            }
        }
    }

    #[test]
    fn what_is_no_framing() {
        for (start, end) in
            [("", ">"), ("<", ""), ("123456789", ">"), ("<", "123456789"), ("<", "a<b"), ("a>b", ">"), ("<", "<")]
        {
            let framing = Framing::custom(start.as_bytes(), end.as_bytes());
            assert_eq!(framing, Err(BadFraming), "{start:?} {end:?}");
        }
        assert_eq!(Framing::custom(&[START_BLOCK], &[END_BLOCK, CARRIAGE_RETURN]), Ok(Framing::default()));
    }

    #[test]
    fn skipping_has_an_end() {
        for (framing, filler) in [(Framing::default(), b'\n'), (Framing::default().allow_leading_bytes(true), b'x')] {
            let mut wire = vec![filler; MAX_SKIPPED];
            wire.extend_from_slice(b"\x0Ba\x1C\r");
            assert_eq!(feed(&framing, 8, &wire, [7, 70_000 - 9_000]), frames(&[(b"a", MAX_SKIPPED)], Ok(b"")));
            wire.insert(0, filler);
            let no_frame = FrameError::NoFrame { limit: MAX_SKIPPED };
            assert_eq!(feed(&framing, 8, &wire, [1000]), frames(&[], Err(no_frame)));
        }
    }

    #[test]
    fn debug_shows_no_content() {
        let mut scanner = Scanner::new(Framing::default(), 64);
        let frame = scanner.scan(b"\x0BMarker\x1C\r").unwrap().unwrap();
        assert_eq!(format!("{frame:?}"), "Frame { len: 6, end: 9, skipped: 0 }");
        assert!(format!("{:?}", Framing::default()).contains("[0B]"));
    }

    #[test]
    fn fewer_bytes_begin_anew() {
        let mut scanner = Scanner::new(Framing::default(), 64);
        assert_eq!(scanner.scan(b"\x0Babcdef"), Ok(None));
        assert_eq!(scanner.scan(b"\x0Ba\x1C\r").unwrap().unwrap().payload, b"a");
        assert_eq!(scanner.scan(b"\r\n\r\n"), Ok(None));
        assert_eq!(scanner.scan(b""), Ok(None));
    }

    /// Bytes that were looked at, and change against the rules, are not seen to have changed.
    #[test]
    fn no_byte_is_looked_at_twice() {
        let custom = Framing::custom(b"<<", b"->").unwrap();
        for (name, framing, first, then) in [
            ("no more than before", Framing::default(), &b"\n\n"[..], &b"xx"[..]),
            ("before the start", Framing::default(), b"\n\n", b"xx\n"),
            ("the start", Framing::default(), b"\x0Bab", b"xab"),
            ("content", Framing::default(), b"\x0Bab", b"\x0Ba\x1C\r"),
            ("content but for the beginning of an end", custom, b"<<xy", b"<<->"),
        ] {
            let mut scanner = Scanner::new(framing, 64);
            assert_eq!((scanner.scan(first), scanner.scan(then)), (Ok(None), Ok(None)), "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_the_grammar_however_it_is_cut(
            wire in proptest::collection::vec(proptest::sample::select(&b"\x0B\x1C\r\n <>-a"[..]), 0..48),
            cuts in proptest::collection::vec(0usize..48, 0..6),
            kind in 0usize..6,
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| cut <= wire.len()).collect();
            cuts.sort_unstable();
            let (framing, grammar) = oracle::framing(kind);
            let expected = grammar.frames(6, &wire);
            let used = expected.contents.last().map_or(0, |(_, end)| *end);
            let rest = expected.error.map_or(Ok(wire[used..].to_vec()), Err);
            let contents = expected.contents.into_iter().map(|(content, _)| content);
            let expected: Found = (contents.zip(expected.skipped).collect(), rest);
            proptest::prop_assert_eq!(&feed(&framing, 6, &wire, []), &expected);
            let cut = feed(&framing, 6, &wire, cuts);
            if grammar.missing_carriage_return {
                // A Carriage Return that comes late is filler.
                let contents = |found: &Found| found.0.iter().map(|(content, _)| content.clone()).collect::<Vec<_>>();
                proptest::prop_assert_eq!((contents(&cut), cut.1.err()), (contents(&expected), expected.1.err()));
            } else {
                proptest::prop_assert_eq!(cut, expected);
            }
        }

        #[test]
        fn any_bytes_are_scanned_somehow(wire: Vec<u8>, start: Vec<u8>, end: Vec<u8>, limit in 0usize..40) {
            let own = Framing::custom(&start, &end);
            for framing in [Framing::default(), Framing::default().allow_leading_bytes(true)].into_iter().chain(own) {
                let mut scanner = Scanner::new(framing, limit);
                for end in 0..=wire.len() {
                    if let Ok(Some(frame)) = scanner.scan(&wire[..end]) {
                        proptest::prop_assert!(frame.payload.len() <= limit && frame.end <= end);
                    }
                }
            }
        }
    }
}

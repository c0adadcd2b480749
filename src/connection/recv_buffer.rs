//! The receive buffer: reused from answer to answer, growing only as far as an answer may, and
//! shrinking again.

use std::fmt;
use std::ops::Range;

use crate::error::Hint;
use crate::frame::{FrameError, Framing, MAX_SKIPPED, Scanner};

/// The size at rest in bytes. What a larger answer needed is given back.
const SMALL: usize = 16 * 1024;

/// The bytes that may surround a content of the largest size: filler before it, and the framing
/// bytes.
const AROUND: usize = MAX_SKIPPED + 64;

/// Bytes received and not yet used up, and the scanner that looks at them.
pub(crate) struct RecvBuffer {
    scanner: Scanner,
    bytes: Vec<u8>,
    used: usize,
    filled: usize,
    /// The length of what stands before a content.
    head: usize,
    /// The largest content of an answer.
    max_content: usize,
}

impl RecvBuffer {
    /// A buffer for answers of at most `max_content` bytes.
    pub(crate) fn new(framing: Framing, max_content: usize) -> Self {
        RecvBuffer {
            head: framing.head().len(),
            scanner: Scanner::new(framing, max_content),
            bytes: vec![0; SMALL],
            used: 0,
            filled: 0,
            max_content,
        }
    }

    /// Drops what has been used up and filler behind it, and goes back to the small size.
    pub(crate) fn tidy(&mut self) {
        if self.has_rest() {
            return;
        }
        self.used = 0;
        self.filled = 0;
        self.scanner.reset();
        if self.bytes.len() > SMALL {
            self.bytes.truncate(SMALL);
            self.bytes.shrink_to_fit();
        }
    }

    /// Room for the next bytes, at least one; [`received`](RecvBuffer::received) says how many
    /// came.
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLarge`] where what has come fills the buffer to its bound and is no frame
    /// yet.
    pub(crate) fn space(&mut self) -> Result<&mut [u8], FrameError> {
        if self.filled == self.bytes.len() {
            let bound = self.max_content.saturating_add(AROUND);
            if self.used > 0 {
                self.bytes.copy_within(self.used..self.filled, 0);
                self.filled -= self.used;
                self.used = 0;
            } else if self.filled < bound {
                let size = (2 * self.filled).min(bound);
                // Exactly, since a vector of its own accord would take room for twice as much.
                self.bytes.reserve_exact(size - self.filled);
                self.bytes.resize(size, 0);
            } else {
                return Err(FrameError::TooLarge { limit: self.max_content });
            }
        }
        Ok(&mut self.bytes[self.filled..])
    }

    /// Takes in this many bytes of the [`space`](RecvBuffer::space).
    pub(crate) fn received(&mut self, count: usize) {
        self.filled += count;
    }

    /// Where the next frame's content stands, once it is whole. It stays there until more space is
    /// asked for, or the buffer is tidied or moved out.
    pub(crate) fn frame(&mut self) -> Result<Option<Range<usize>>, FrameError> {
        if self.used == self.filled {
            return Ok(None);
        }
        let Some(frame) = self.scanner.scan(&self.bytes[self.used..self.filled])? else { return Ok(None) };
        let from = self.used + frame.skipped + self.head;
        let to = from + frame.payload.len();
        self.used += frame.end;
        Ok(Some(from..to))
    }

    /// The content found by [`frame`](RecvBuffer::frame).
    pub(crate) fn content(&self, at: Range<usize>) -> &[u8] {
        &self.bytes[at]
    }

    /// Moves the buffer out, up to the end of the content found last, if that content is large.
    /// What follows it goes into a new buffer.
    pub(crate) fn take_out(&mut self, at: &Range<usize>) -> Option<Vec<u8>> {
        if at.len() < SMALL {
            return None;
        }
        let mut other = vec![0; SMALL.max(self.rest().len())];
        let rest = self.rest().len();
        other[..rest].copy_from_slice(self.rest());
        (self.used, self.filled) = (0, rest);
        let mut bytes = std::mem::replace(&mut self.bytes, other);
        bytes.truncate(at.end);
        // An allocator may copy it for that, and then has both for a moment.
        if at.end <= self.max_content / 4 {
            bytes.shrink_to_fit();
        }
        Some(bytes)
    }

    /// The bytes that have come and belong to no frame yet.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.used..self.filled]
    }

    /// Whether anything but filler has come that belongs to no frame yet.
    pub(crate) fn has_rest(&self) -> bool {
        self.used < self.filled && !self.scanner.is_filler(self.rest())
    }

    /// Whether what has come is no more than bytes that are skipped before a Start Block, so that a
    /// frame may follow that has not begun.
    pub(crate) fn is_skipped(&self) -> bool {
        self.scanner.skips_all(self.rest())
    }

    /// The hint that an unfinished answer gives about its receiver; `None` if nothing but filler
    /// has come.
    pub(crate) fn hint(&self) -> Option<Hint> {
        let bytes = self.rest().len();
        if self.scanner.lacks_only_its_return(self.rest()) {
            Some(Hint::NoCarriageReturn)
        } else if self.scanner.is_inside_a_frame() {
            Some(Hint::HalfAnAnswer { bytes })
        } else {
            self.has_rest().then_some(Hint::NoStartBlock { bytes })
        }
    }
}

impl fmt::Debug for RecvBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvBuffer").field("unused", &self.rest().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameError;

    fn buffer(max_content: usize) -> RecvBuffer {
        RecvBuffer::new(Framing::default(), max_content)
    }

    /// Receives bytes in pieces of this size; the contents of the frames found.
    fn receive(buffer: &mut RecvBuffer, mut bytes: &[u8], piece: usize) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let space = buffer.space()?;
            let count = space.len().min(piece).min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            buffer.received(count);
            bytes = &bytes[count..];
            while let Some(at) = buffer.frame()? {
                found.push(buffer.content(at).to_vec());
            }
        }
        Ok(found)
    }

    #[test]
    fn frames_come_out_as_they_went_in() {
        let contents: Vec<Vec<u8>> = [1, 100, SMALL - 3, SMALL, 5 * SMALL, 2].map(|size| vec![b'x'; size]).into();
        let wire: Vec<u8> = contents.iter().flat_map(|content| Framing::default().encode(content).unwrap()).collect();
        for piece in [1, 7, 1460, SMALL, usize::MAX] {
            let mut buffer = buffer(1 << 20);
            assert_eq!(receive(&mut buffer, &wire, piece).unwrap(), contents, "{piece}");
            assert_eq!(buffer.rest(), b"");
        }
    }

    #[test]
    fn what_is_moved_out_takes_no_more_room_than_it_needs() {
        let mut buffer = buffer(1 << 20);
        let wire = Framing::default().encode(&vec![b'x'; SMALL + 100]).unwrap();
        for bytes in wire.chunks(SMALL) {
            buffer.space().unwrap()[..bytes.len()].copy_from_slice(bytes);
            buffer.received(bytes.len());
        }
        let at = buffer.frame().unwrap().unwrap();
        let bytes = buffer.take_out(&at).unwrap();
        assert_eq!((bytes.len(), bytes.capacity()), (at.end, at.end));
    }

    #[test]
    fn a_byte_that_may_begin_a_start_block_is_no_filler() {
        for start in [&b"\0"[..], b" ", b"\n\n"] {
            let framing = Framing::custom(start, b"\x03").unwrap();
            let wire = framing.encode(b"content").unwrap();
            let mut buffer = RecvBuffer::new(framing, 100);
            assert!(receive(&mut buffer, &wire[..1], 1).unwrap().is_empty());
            assert!(buffer.has_rest());
            buffer.tidy();
            assert_eq!(receive(&mut buffer, &wire[1..], 1).unwrap(), [b"content"]);
        }
    }

    #[test]
    fn the_buffer_is_bounded_and_given_back() {
        let limit = 3 * SMALL;
        let mut endless = vec![b'x'; 10 * SMALL];
        endless[0] = 0x0B;
        let mut buffer = buffer(limit);
        assert_eq!(receive(&mut buffer, &endless, 1000), Err(FrameError::TooLarge { limit }));
        assert!(buffer.bytes.capacity() <= limit + AROUND);

        // Whoever does not look for frames meets the bound all the same.
        let mut buffer = self::buffer(limit);
        while let Ok(space) = buffer.space() {
            let count = space.len();
            buffer.received(count);
        }
        assert_eq!(buffer.rest().len(), limit + AROUND);

        let mut buffer = self::buffer(1 << 20);
        let wire = Framing::default().encode(&vec![b'x'; 5 * SMALL]).unwrap();
        receive(&mut buffer, &[&wire[..], b"\x0Bhalf"].concat(), 1000).unwrap();
        buffer.tidy();
        assert_eq!(buffer.rest(), b"\x0Bhalf", "what is not used up stays");
        receive(&mut buffer, b"\x1C\r\n", 1000).unwrap();
        buffer.tidy();
        assert_eq!((buffer.bytes.len(), buffer.rest().len()), (SMALL, 0));
        assert!(buffer.bytes.capacity() < 2 * SMALL);
    }

    #[test]
    fn many_small_frames_need_no_more_room_than_one() {
        let wire = Framing::default().encode(b"0123456789").unwrap().repeat(10_000);
        let mut buffer = buffer(1 << 20);
        assert_eq!(receive(&mut buffer, &wire, 4096).unwrap().len(), 10_000);
        assert_eq!(buffer.bytes.len(), SMALL);
    }
}

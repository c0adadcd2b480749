//! The receive buffer: reused from answer to answer, growing only as far as an answer may.

use std::fmt;
use std::ops::Range;

use crate::frame::{FrameError, Framing, MAX_SKIPPED, Scanner};

/// The size at rest; what a big answer needed beyond it is given back.
const MODEST: usize = 16 * 1024;

/// What surrounds a content of the largest size: filler before it, and the framing bytes.
const AROUND: usize = MAX_SKIPPED + 64;

/// Bytes received and not yet used up, and the scanner that looks at them.
pub(crate) struct Inbox {
    scanner: Scanner,
    bytes: Vec<u8>,
    used: usize,
    filled: usize,
    /// The length of what stands before a content.
    head: usize,
    limit: usize,
}

impl Inbox {
    /// A buffer for answers of at most `max_content` bytes.
    pub(crate) fn new(framing: Framing, max_content: usize) -> Self {
        Inbox {
            head: framing.head().len(),
            scanner: Scanner::new(framing, max_content),
            bytes: vec![0; MODEST],
            used: 0,
            filled: 0,
            limit: max_content.saturating_add(AROUND),
        }
    }

    /// Goes back to the modest size, once all is used up but filler.
    pub(crate) fn tidy(&mut self) {
        if !Framing::is_filler(self.rest()) {
            return;
        }
        self.used = 0;
        self.filled = 0;
        self.scanner.reset();
        if self.bytes.len() > MODEST {
            self.bytes.truncate(MODEST);
            self.bytes.shrink_to_fit();
        }
    }

    /// Room for the next bytes; [`received`](Inbox::received) tells how many came.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.filled == self.bytes.len() {
            if self.used > 0 {
                self.bytes.copy_within(self.used..self.filled, 0);
                self.filled -= self.used;
                self.used = 0;
            } else {
                // The scanner has its verdict before the limit is reached, so there is always room for one byte.
                let larger = (self.bytes.len() * 2).min(self.limit).max(self.bytes.len() + 1);
                self.bytes.resize(larger, 0);
            }
        }
        &mut self.bytes[self.filled..]
    }

    /// Takes in so many bytes of the [`space`](Inbox::space).
    pub(crate) fn received(&mut self, count: usize) {
        self.filled += count;
    }

    /// Where the next frame's content stands, once it is whole. It stays there until more space is asked for.
    pub(crate) fn frame(&mut self) -> Result<Option<Range<usize>>, FrameError> {
        let Some(frame) = self.scanner.scan(&self.bytes[self.used..self.filled])? else { return Ok(None) };
        let from = self.used + frame.skipped + self.head;
        let to = from + frame.payload.len();
        self.used += frame.end;
        Ok(Some(from..to))
    }

    /// The content found by [`frame`](Inbox::frame).
    pub(crate) fn content(&self, place: Range<usize>) -> &[u8] {
        &self.bytes[place]
    }

    /// Whether the beginning of a frame has come, and not yet its end.
    pub(crate) fn is_inside_a_frame(&self) -> bool {
        self.scanner.is_inside_a_frame()
    }

    /// What has come and belongs to no frame yet.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.used..self.filled]
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("unused", &self.rest().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameError;

    fn inbox(max_content: usize) -> Inbox {
        Inbox::new(Framing::default(), max_content)
    }

    /// Receives bytes in pieces of this size; the contents of the frames found.
    fn receive(inbox: &mut Inbox, mut bytes: &[u8], piece: usize) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let space = inbox.space();
            let count = space.len().min(piece).min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            inbox.received(count);
            bytes = &bytes[count..];
            while let Some(place) = inbox.frame()? {
                found.push(inbox.content(place).to_vec());
            }
        }
        Ok(found)
    }

    #[test]
    fn frames_come_out_as_they_went_in() {
        let contents: Vec<Vec<u8>> = [1, 100, MODEST - 3, MODEST, 5 * MODEST, 2].map(|size| vec![b'x'; size]).into();
        let wire: Vec<u8> = contents.iter().flat_map(|content| Framing::default().encode(content).unwrap()).collect();
        for piece in [1, 7, 1460, MODEST, usize::MAX] {
            let mut inbox = inbox(1 << 20);
            assert_eq!(receive(&mut inbox, &wire, piece).unwrap(), contents, "{piece}");
            assert_eq!(inbox.rest(), b"");
        }
    }

    #[test]
    fn the_buffer_is_bounded_and_given_back() {
        let limit = 3 * MODEST;
        let mut endless = vec![b'x'; 10 * MODEST];
        endless[0] = 0x0B;
        let mut inbox = inbox(limit);
        assert_eq!(receive(&mut inbox, &endless, 1000), Err(FrameError::TooLarge { limit }));
        assert!(inbox.bytes.len() <= limit + AROUND);

        let mut inbox = self::inbox(1 << 20);
        let wire = Framing::default().encode(&vec![b'x'; 5 * MODEST]).unwrap();
        receive(&mut inbox, &[&wire[..], b"\x0Bhalf"].concat(), 1000).unwrap();
        inbox.tidy();
        assert_eq!(inbox.rest(), b"\x0Bhalf", "what is not used up stays");
        receive(&mut inbox, b"\x1C\r\n", 1000).unwrap();
        inbox.tidy();
        assert_eq!((inbox.bytes.len(), inbox.rest().len()), (MODEST, 0));
        assert!(inbox.bytes.capacity() < 2 * MODEST);
    }

    #[test]
    fn many_small_frames_need_no_more_room_than_one() {
        let wire = Framing::default().encode(b"0123456789").unwrap().repeat(10_000);
        let mut inbox = inbox(1 << 20);
        assert_eq!(receive(&mut inbox, &wire, 4096).unwrap().len(), 10_000);
        assert_eq!(inbox.bytes.len(), MODEST);
    }
}

//! The bytes that have come on a connection: the frame that is awaited, a late acknowledgment,
//! filler, surplus; and which commit blocks are due for it.

use std::mem;
use std::ops::Range;
use std::sync::Arc;

use super::history::{History, REMEMBERED};
use super::recv_buffer::RecvBuffer;
use crate::error::{ErrorKind, Hint};
use crate::event::Event;
use crate::exchange::{self, After, Answer, Awaited, Decided, Effect};
use crate::frame::{self, FrameError};
use crate::hl7::ack::Layout;
use crate::settings::Settings;

/// The largest number of acknowledgments of earlier messages in one frame outside of an exchange:
/// as many as are remembered, twice. It bounds the time that passing them over takes.
const MOST_PASSED_OVER: usize = 2 * REMEMBERED;

/// The receiving half of a connection, without its socket.
#[derive(Debug)]
pub(super) struct Intake {
    buffer: RecvBuffer,
    history: History,
    /// MLLP release 2: how many acknowledgments have come for which a commit block has not been
    /// written.
    pub(super) commit_blocks_due: usize,
    /// Bytes behind the last answer that belong to no exchange.
    pub(super) surplus: usize,
    /// Whether the frame that comes next had begun before the message under way left, so that it
    /// cannot be its answer.
    is_early: bool,
}

/// The kind of bytes that have come outside of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// Filler only, or nothing.
    Filler,
    /// Acknowledgments of earlier messages.
    PassedOver,
    /// An incomplete frame that may be one of these. Complete ones may stand before it.
    Unfinished,
    /// This many bytes of the kind that a site's framing allows before a Start Block.
    Skipped(usize),
    /// This many bytes that belong to no exchange.
    Surplus(usize),
}

impl Intake {
    pub(super) fn new(settings: &Settings) -> Self {
        Intake {
            buffer: RecvBuffer::new(settings.framing.clone(), settings.max_ack_size),
            history: History::new(settings.allow_repeated_control_ids),
            commit_blocks_due: 0,
            surplus: 0,
            is_early: false,
        }
    }

    /// Room for bytes to be received.
    pub(super) fn space(&mut self) -> Result<&mut [u8], FrameError> {
        self.buffer.space()
    }

    /// Takes in this many bytes of the [`space`](Intake::space).
    pub(super) fn received(&mut self, count: usize) {
        self.buffer.received(count);
    }

    /// Frees the memory of a large answer.
    pub(super) fn tidy(&mut self) {
        self.buffer.tidy();
    }

    /// Whether the answer to what is about to be sent could be distinguished from all that may
    /// still come for earlier messages.
    pub(super) fn is_recognisable<A: Awaited>(&self, awaited: &A) -> bool {
        // A payload that is not read may repeat the control ID of another such: its sender distinguishes
        // the replies.
        let is_remembered = |control_id| self.history.remembers(control_id, !A::IS_READ);
        self.history.is_empty() || !awaited.control_ids().any(is_remembered)
    }

    /// Whether the connection may carry another message: not if something would have to be
    /// forgotten whose acknowledgment may still come.
    pub(super) fn may_go_on(&self) -> bool {
        !self.history.is_full()
    }

    /// A message is about to leave. What has come before it is not its answer.
    pub(super) fn begin(&mut self) {
        self.is_early = self.buffer.has_rest() && !self.buffer.is_skipped();
    }

    /// The next frame that has come whole, as it may be the answer to the message under way.
    pub(super) fn frame(&mut self, settings: &Settings) -> Result<Option<Range<usize>>, ErrorKind> {
        loop {
            let frame = self.take_frame(settings).map_err(malformed)?;
            match frame {
                Some(at) if mem::take(&mut self.is_early) => {
                    let stale = settings.framing.head().len() + at.len() + settings.framing.tail().len();
                    if !self.pass_over(at, settings) {
                        return Err(ErrorKind::Desync { stale });
                    }
                }
                frame => return Ok(frame),
            }
        }
    }

    /// The content of a frame found last.
    pub(super) fn content(&self, at: Range<usize>) -> &[u8] {
        self.buffer.content(at)
    }

    /// Passes an answer, from this byte on, to the exchange that awaits it.
    pub(super) fn accept<A: Awaited>(
        &mut self,
        awaited: &mut A,
        at: Range<usize>,
        frame: Option<&Arc<Vec<u8>>>,
        from: usize,
        settings: &Settings,
    ) -> Result<Effect, ErrorKind> {
        let answer = Answer {
            content: frame.map_or_else(|| self.buffer.content(at.clone()), |frame| &frame[at.clone()]),
            frame,
            from,
            may_be_earlier: self.history.has_read(),
            is_alone: !self.history.may_be_nameless(),
        };
        let history = &mut self.history;
        awaited.accept(answer, &mut |raw, layout| recognise(history, raw, layout, settings))
    }

    /// The bytes of a large answer, where one may hold many acknowledgments.
    pub(super) fn take_out<A: Awaited>(&mut self, at: &Range<usize>) -> Option<Arc<Vec<u8>>> {
        if A::HOLDS_MANY { self.buffer.take_out(at).map(Arc::new) } else { None }
    }

    /// Remembers a control ID whose exchange has ended. `false` if the connection is not to be used
    /// again.
    pub(super) fn remember(&mut self, decided: &Decided<'_>, settings: &Settings) -> bool {
        if decided.after == After::Doubt {
            return false;
        }
        if settings.verify_control_id {
            self.history.add(decided.control_id, decided.after);
        }
        true
    }

    /// Remembers all control IDs of a payload that the receiver has not stored.
    pub(super) fn remember_all(&mut self, awaited: &impl Awaited, settings: &Settings) {
        for control_id in awaited.control_ids() {
            self.remember(&Decided { control_id, verdict: None, after: After::Answered }, settings);
        }
    }

    /// Takes in what has come outside of an exchange.
    pub(super) fn settle(&mut self, settings: &Settings) -> Settled {
        let mut settled = Settled::Filler;
        while self.buffer.has_rest() {
            let bytes = self.buffer.rest().len();
            match self.take_frame(settings) {
                Ok(Some(at)) if self.pass_over(at.clone(), settings) => settled = Settled::PassedOver,
                // It was an empty frame.
                Ok(None) if !self.buffer.has_rest() => {}
                Ok(None) if self.buffer.is_skipped() => return Settled::Skipped(bytes),
                // It may be the beginning of an acknowledgment that is still to come.
                Ok(None) if self.history.is_awaiting() => return Settled::Unfinished,
                Ok(_) | Err(_) => return Settled::Surplus(bytes),
            }
        }
        settled
    }

    /// The bytes that have come and belong to no frame yet.
    pub(super) fn rest(&self) -> &[u8] {
        self.buffer.rest()
    }

    /// How many bytes of an answer have come that is not whole.
    pub(super) fn unfinished(&self) -> usize {
        if self.buffer.has_rest() { self.buffer.rest().len() } else { 0 }
    }

    /// The hint for an error about an unfinished answer.
    pub(super) fn hint(&self) -> Option<Hint> {
        self.buffer.hint()
    }

    /// The next frame that holds anything. An empty one says nothing; some peers send them to keep
    /// a connection alive.
    fn take_frame(&mut self, settings: &Settings) -> Result<Option<Range<usize>>, FrameError> {
        while let Some(at) = self.buffer.frame()? {
            match self.buffer.content(at.clone()) {
                b"" => self.is_early = false,
                frame::STORED | frame::NOT_STORED => return Ok(Some(at)),
                _ => {
                    // MLLP release 2 has each acknowledgment answered.
                    self.commit_blocks_due += usize::from(settings.release2);
                    return Ok(Some(at));
                }
            }
        }
        Ok(None)
    }

    /// Whether a frame holds only acknowledgments of earlier messages. `LateAck` is emitted for
    /// each, up to the first that is not recognised.
    pub(super) fn pass_over(&mut self, at: Range<usize>, settings: &Settings) -> bool {
        if !self.history.has_read() {
            return false;
        }
        let content = self.buffer.content(at);
        let (mut from, mut found) = (0, false);
        let mut count = 0;
        while let Some(at) = exchange::next_acknowledgment(content, from) {
            from = at.end;
            count += 1;
            if count > MOST_PASSED_OVER {
                return false;
            }
            let raw = &content[at];
            found = Layout::read(raw).is_ok_and(|layout| recognise(&mut self.history, raw, &layout, settings));
            if !found {
                return false;
            }
        }
        found
    }
}

/// Whether an acknowledgment is for an earlier message; the observer learns of it.
fn recognise(history: &mut History, raw: &[u8], layout: &Layout, settings: &Settings) -> bool {
    let recognised = settings.verify_control_id && history.recognise(layout.control_id(raw), layout.code());
    if recognised {
        let ack = layout.to_ack(raw).in_charset(settings.charset);
        settings.monitor.emit(&Event::LateAck {
            endpoint: &settings.endpoint,
            control_id: &ack.control_id(),
            code: ack.code(),
            ack: &ack,
        });
    }
    recognised
}

/// The kind of failure when the bytes received cannot become a frame.
pub(super) fn malformed(error: FrameError) -> ErrorKind {
    match error {
        FrameError::TooLarge { limit } => ErrorKind::AckTooLarge { limit },
        error => ErrorKind::MalformedFrame(error),
    }
}

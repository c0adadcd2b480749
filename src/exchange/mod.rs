//! The protocol of one exchange, without I/O and without a clock: what is awaited, which answer
//! changes what, and what a failure means for the message.
//!
//! ```text
//!              whole frame written        commit block 0x06 (release 2)
//!   NotSent ───────────────────────▶ Sent ───────────────────────────▶ Stored
//!      ▲                              │ │                                 │
//!      └── 0x15: 3 sendings at most ──┘ └────────────────┬────────────────┘
//!                                                        ▼        CA, and the application's is awaited too
//!                                                    awaiting ◀───────────────────────────┐
//!                                                     │   └──▶ Committed ─────────────────┘
//!                            AA CA* AE AR CE CR       ▼   time-out, end of stream, bad frame, another's control ID
//!                                         ended ─▶ kept │ doubt ─▶ closed
//!
//!   a failure says:  NotSent → NotSent    Sent → Unknown    Stored, Committed → Committed    a refusal → Refused
//! ```
//!
//! Above the line `awaiting` it is [`Progress`] that advances, driven by
//! `connection/conversation.rs`. Below it, an [`Awaited`] takes answers: [`Message`] for one
//! message, [`Batched`] for the messages of a batch, [`AnyFrame`] for a payload that is not read.
//! `CA*` is a commit accept where no application acknowledgment is awaited.

mod batch;
mod message;

use std::ops::Range;
use std::sync::Arc;

pub(crate) use batch::Batched;
use memchr::memchr2;
pub(crate) use message::Message;

use crate::error::{Delivery, Error, ErrorKind, Evidence, Hint, Phase};
use crate::hl7::ack::{Ack, AckCode, AckMode, AckParseError, Layout};
use crate::hl7::charset::Charset;
use crate::hl7::header::{self, Asked, Header};
use crate::hl7::segment;

/// The number of acknowledgments of one answer that are read between two looks at the deadline.
const STRIDE: usize = 256;

/// One answer holds two verdicts that contradict each other.
const CONTRADICTORY: ErrorKind = ErrorKind::MalformedAck(AckParseError::Contradictory);

/// How acknowledgments are read, for all messages of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AckRules {
    pub(crate) mode: AckMode,
    /// Whether an acknowledgment must carry the control ID.
    pub(crate) verify: bool,
    /// The character set of acknowledgments that name none.
    pub(crate) charset: Charset,
    /// How many bytes of acknowledgments are kept at most, all together.
    pub(crate) max_kept: usize,
}

/// How far a message has come. It only advances, except that the negative commit block of MLLP
/// release 2 takes it back to the beginning.
#[derive(Clone, Debug)]
pub(crate) enum Progress {
    /// The End Block has not left, or the receiver has reported that it did not store the message.
    NotSent,
    /// The End Block may have left.
    Sent,
    /// MLLP release 2: a commit block says that the receiver has stored it.
    Stored,
    /// A commit accept says that the receiver has stored it.
    Committed(Ack),
}

impl Progress {
    /// The error for a message that has come this far.
    pub(crate) fn fail(self, kind: ErrorKind, evidence: Evidence) -> Error {
        let delivery = match (&kind, &self) {
            (ErrorKind::Nak(_) | ErrorKind::NotStored { .. }, _) => Delivery::Refused,
            (_, Progress::NotSent) => Delivery::NotSent,
            (_, Progress::Sent) => Delivery::Unknown,
            (_, Progress::Stored | Progress::Committed(_)) => Delivery::Committed,
        };
        let commit = match self {
            Progress::Committed(commit) => Some(commit),
            _ => None,
        };
        Error::new(kind, delivery, commit, evidence)
    }
}

/// Why an exchange ended before everything that was awaited had come.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    /// How far the payload as a whole had come.
    pub(crate) progress: Progress,
    pub(crate) evidence: Evidence,
    /// Whether it happened before answers were awaited, so that it concerns the payload as a whole.
    pub(crate) while_sending: bool,
}

impl Default for Failure {
    /// The exchange was given up.
    fn default() -> Self {
        Failure {
            kind: ErrorKind::Closed,
            progress: Progress::Sent,
            evidence: Evidence::default(),
            while_sending: false,
        }
    }
}

impl Failure {
    fn into_error(self) -> Error {
        self.progress.fail(self.kind, self.evidence)
    }

    /// The same for one message, of which perhaps a commit accept had come. A time-out names what
    /// this one was waiting for.
    fn of_message(self, asks: &Asks<'_>, commit: Option<Ack>) -> Error {
        let Failure { mut kind, mut progress, mut evidence, .. } = self;
        if let ErrorKind::Timeout { phase, .. } = &mut kind {
            *phase = asks.phase(commit.is_some());
            evidence.hint = evidence.hint.or(asks.hint(commit.is_some()));
        }
        if let Some(commit) = commit {
            progress = Progress::Committed(commit);
        }
        progress.fail(kind, evidence).about(Some(asks.control_id))
    }
}

/// An answer's content, as far as it is not taken yet.
#[derive(Clone, Copy)]
pub(crate) struct Answer<'a> {
    pub(crate) content: &'a [u8],
    /// The bytes that the content stands in, where they can be kept without a copy.
    pub(crate) frame: Option<&'a Arc<Vec<u8>>>,
    /// Where what has not been taken begins.
    pub(crate) from: usize,
    /// Whether the connection has carried messages before, of which an acknowledgment may come
    /// again.
    pub(crate) may_be_earlier: bool,
    /// Whether no earlier message awaits an acknowledgment, so that a refusal of no message in
    /// particular is for this exchange.
    pub(crate) is_alone: bool,
}

/// Whether an acknowledgment that is for none of the awaited messages is for an earlier one, and
/// has been passed over.
pub(crate) type PassOver<'p> = dyn FnMut(&[u8], &Layout) -> bool + 'p;

/// The effect of an answer, or of a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It goes on with what stands from here on in the same answer.
    Partly(usize),
    /// The answer was for earlier messages.
    PassedOver,
    /// Another answer is awaited.
    GoesOn,
    /// Another answer is awaited, and a message has been committed that had not been before.
    Commits,
    /// Everything has come that was awaited.
    Ends,
}

/// A verdict on a message or on a batch as a whole, by the answer that was taken last.
#[derive(Debug)]
pub(crate) struct Decided<'d> {
    pub(crate) control_id: &'d [u8],
    /// The verdict; `None` for the batch itself, whose messages have theirs.
    pub(crate) verdict: Option<&'d Ack>,
    pub(crate) after: After,
}

/// The acknowledgments that may still come for a message once its exchange has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// No more than the same again.
    Answered,
    /// No more than the same again, for a payload that was not read.
    Unread,
    /// The application acknowledgment.
    ApplicationAck,
    /// An acknowledgment that could not be distinguished from the answer to the next message: the
    /// connection is closed.
    Doubt,
}

/// The acknowledgments that an exchange waits for once its payload has left.
pub(crate) trait Awaited {
    /// The result that the caller gets.
    type End;

    /// Whether answers are read, and recognised by their control ID.
    const IS_READ: bool = true;

    /// Whether one answer may hold many acknowledgments, so that its bytes are better kept than
    /// copied.
    const HOLDS_MANY: bool = false;

    /// The control ID of the payload as a whole, if it has one.
    fn control_id(&self) -> Option<&[u8]>;

    /// The control IDs that acknowledgments of the payload may carry.
    fn control_ids(&self) -> impl Iterator<Item = &[u8]>;

    /// The phase of waiting for the next answer.
    fn phase(&self) -> Phase;

    /// Whether an acknowledgment has come for every message, so that the limit of the application
    /// acknowledgments counts.
    fn is_committed(&self) -> bool;

    /// Takes the next answer, or a part of it. An error is doubt, never a refusal.
    fn accept(&mut self, answer: Answer<'_>, pass_over: &mut PassOver<'_>) -> Result<Effect, ErrorKind>;

    /// Calls this for each verdict that the answer taken last has brought.
    fn decided(&mut self, each: impl FnMut(Decided<'_>));

    /// How many bytes of answers are kept.
    fn kept(&self) -> usize;

    /// The caller's result, after all answers or after a failure. An early refusal counts although
    /// sending had failed.
    fn end(self, failure: Option<Failure>) -> Result<Self::End, Error>;
}

/// The control ID of one message, the acknowledgments that it asks for, and those that are awaited.
#[derive(Clone, Copy, Debug)]
struct Asks<'m> {
    control_id: &'m [u8],
    header: Asked,
    /// Which acknowledgments are awaited.
    commit: bool,
    application: bool,
}

impl<'m> Asks<'m> {
    fn of(header: &Header<'m>, mode: AckMode) -> Self {
        let Header { control_id, asked } = *header;
        let (commit, application) = match mode {
            AckMode::FromHeader => (asked.commit, asked.application),
            AckMode::Application => (asked.commit, true),
            AckMode::Commit => (true, false),
        };
        Asks { control_id, header: asked, commit, application }
    }

    /// Whether this acknowledgment ends the exchange. The only other one is a commit accept before
    /// the application's.
    fn ends_with(&self, code: AckCode) -> bool {
        code != AckCode::CommitAccept || !self.application
    }

    fn phase(&self, is_committed: bool) -> Phase {
        if self.commit && !is_committed { Phase::CommitAck } else { Phase::ApplicationAck }
    }

    /// The acknowledgments that may still come after the one that has ended the exchange.
    fn after(&self, code: AckCode, verify: bool) -> After {
        match (code, self.header.application) {
            (AckCode::CommitAccept, true) if verify => After::ApplicationAck,
            (AckCode::CommitAccept, true) => After::Doubt,
            _ => After::Answered,
        }
    }

    /// The hint for an application acknowledgment that did not come: a receiver that goes by the
    /// header need not send one, or has sent a commit accept that the header does not ask for.
    fn hint(&self, is_committed: bool) -> Option<Hint> {
        let both = self.header.commit && self.header.application && !self.header.conditional;
        (is_committed && !both).then_some(Hint::CommitAcceptAlone)
    }
}

/// Holds a second acknowledgment of a message against the verdict of the same answer: where they
/// contradict each other, neither counts.
fn hold_against(verdict: &mut Option<Ack>, code: AckCode) -> Result<(), ErrorKind> {
    if verdict.as_ref().is_some_and(|verdict| verdict.code().is_accept() != code.is_accept()) {
        *verdict = None;
        return Err(CONTRADICTORY);
    }
    Ok(())
}

/// The first frame that comes, whatever it holds. Acknowledgments of earlier messages are passed
/// over.
#[derive(Debug)]
pub(crate) struct AnyFrame<'p> {
    /// That of the payload, if it is HL7 and has one.
    control_id: Option<&'p [u8]>,
    /// Those of all messages in it, if it holds more than one, in order for a binary search.
    others: Vec<&'p [u8]>,
    is_over: bool,
}

impl<'p> AnyFrame<'p> {
    /// The reply to this payload.
    pub(crate) fn after(payload: &'p [u8]) -> Self {
        let control_id = header::control_id(payload);
        let many = control_id.is_some() && header::holds_many(payload);
        let mut others = Vec::new();
        if many {
            others.extend(header::control_ids(payload).filter(|&other| Some(other) != control_id));
            others.sort_unstable();
            others.dedup();
        }
        AnyFrame { control_id, others, is_over: false }
    }
}

impl Awaited for AnyFrame<'_> {
    type End = ();

    const IS_READ: bool = false;

    fn control_id(&self) -> Option<&[u8]> {
        self.control_id
    }

    fn control_ids(&self) -> impl Iterator<Item = &[u8]> {
        self.control_id.into_iter().chain(self.others.iter().copied())
    }

    fn phase(&self) -> Phase {
        Phase::ApplicationAck
    }

    fn is_committed(&self) -> bool {
        false
    }

    fn accept(&mut self, answer: Answer<'_>, pass_over: &mut PassOver<'_>) -> Result<Effect, ErrorKind> {
        let Answer { content, mut from, .. } = answer;
        let is_own =
            |control_id: &[u8]| self.control_id == Some(control_id) || self.others.binary_search(&control_id).is_ok();
        let mut is_earlier = |raw: &[u8]| {
            Layout::read(raw).is_ok_and(|layout| !is_own(layout.control_id(raw)) && pass_over(raw, &layout))
        };
        for _ in 0..STRIDE {
            let next = if answer.may_be_earlier { next_acknowledgment(content, from) } else { None };
            match next {
                Some(at) if is_earlier(&content[at.clone()]) => from = at.end,
                None if from > 0 => return Ok(Effect::PassedOver),
                _ => {
                    self.is_over = true;
                    return Ok(Effect::Ends);
                }
            }
        }
        Ok(Effect::Partly(from))
    }

    fn decided(&mut self, mut each: impl FnMut(Decided<'_>)) {
        if self.is_over {
            let control_ids = self.control_ids();
            control_ids.for_each(|control_id| each(Decided { control_id, verdict: None, after: After::Unread }));
        }
    }

    fn kept(&self) -> usize {
        0
    }

    fn end(self, failure: Option<Failure>) -> Result<(), Error> {
        failure.map_or(Ok(()), |failure| Err(failure.into_error()))
    }
}

/// Where the next acknowledgment stands in an answer: from its first segment to the next header, or
/// to a header or trailer of a batch.
pub(crate) fn next_acknowledgment(content: &[u8], from: usize) -> Option<Range<usize>> {
    let mut start = None;
    let mut at = from;
    while at < content.len() {
        let length = memchr2(b'\r', b'\n', &content[at..]).map_or(content.len() - at, |length| length + 1);
        let segment = segment::without_mark(&content[at..at + length]);
        let is_wrapper = segment::is_named(segment, &segment::WRAPPERS);
        match start {
            None if is_wrapper || segment.trim_ascii().is_empty() => {}
            None => start = Some(at),
            Some(start) if is_wrapper || segment::is_named(segment, &[b"MSH"]) => return Some(start..at),
            Some(_) => {}
        }
        at += length;
    }
    start.map(|start| start..content.len())
}

/// Takes a whole answer. Acknowledgments of `0` are for an earlier message.
#[cfg(test)]
fn take(awaited: &mut impl Awaited, content: &[u8]) -> Result<Effect, ErrorKind> {
    let mut from = 0;
    loop {
        let answer = Answer { content, frame: None, from, may_be_earlier: true, is_alone: true };
        match awaited.accept(answer, &mut |raw, layout| layout.control_id(raw) == b"0")? {
            Effect::Partly(next) => {
                assert!(next > from && next <= content.len());
                from = next;
            }
            step => return Ok(step),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: &str) -> String {
        format!("MSH|^~\\&|||||||ORU|{id}|P\r")
    }

    fn acks(ids: &str) -> String {
        ids.split_whitespace().map(|id| format!("MSH|^~\\&|\rMSA|AA|{id}\r")).collect()
    }

    #[test]
    fn a_payload_that_is_not_read_ends_with_the_first_frame_that_is_not_only_for_earlier_ones() {
        let (one, nought) = (message("1"), message("0"));
        for (name, payload, answer, expected) in [
            ("its own acknowledgment", &one, acks("1"), Effect::Ends),
            ("that of an earlier one", &one, acks("0"), Effect::PassedOver),
            ("those of many earlier ones", &one, acks(&"0 ".repeat(3 * STRIDE)), Effect::PassedOver),
            ("an earlier one and its own", &one, acks("0 1"), Effect::Ends),
            ("an earlier one and another", &one, acks("0 2"), Effect::Ends),
            ("no acknowledgment", &one, "hello".to_owned(), Effect::Ends),
            ("nothing", &one, String::new(), Effect::Ends),
            ("its own, of an ID that is used again", &nought, acks("0"), Effect::Ends),
            ("one of its messages", &[&*one, &*nought].concat(), acks("0"), Effect::Ends),
            ("an earlier one, for no HL7", &"hello".to_owned(), acks("0"), Effect::PassedOver),
        ] {
            let mut frame = AnyFrame::after(payload.as_bytes());
            assert_eq!(take(&mut frame, answer.as_bytes()).unwrap(), expected, "{name}");
            assert_eq!((frame.is_over, frame.is_committed(), frame.kept()), (expected == Effect::Ends, false, 0));
        }
    }

    #[test]
    fn control_ids_of_a_payload_are_those_of_all_its_messages_once() {
        let of = |payload: String| {
            let frame = AnyFrame::after(payload.as_bytes());
            frame.control_ids().map(|id| String::from_utf8_lossy(id).into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of("hello".to_owned()), "");
        assert_eq!(of(message("1")), "1");
        assert_eq!(of(message("2") + &message("1") + &message("2") + &message("1")), "2 1");
        assert_eq!(of(format!("BHS|^~\\&|||||||||B\r{}BTS|1\r", message("1"))), "B 1");
    }

    #[test]
    fn acknowledgments_are_found_one_by_one() {
        for (content, expected) in [
            ("", &[][..]),
            ("\r\n", &[]),
            ("BHS|\rBTS|\r", &[]),
            ("MSH|\rMSA|", &["MSH|\rMSA|"]),
            ("MSH|\rMSA|\r", &["MSH|\rMSA|\r"]),
            ("MSH|\nMSA|\nMSH|\nMSA|\n", &["MSH|\nMSA|\n", "MSH|\nMSA|\n"]),
            ("BHS|\rMSH|\rMSA|\rBTS|\rFTS|\r", &["MSH|\rMSA|\r"]),
            ("\rMSH|1\r\rMSH|2\r", &["MSH|1\r\r", "MSH|2\r"]),
            ("hello", &["hello"]),
        ] {
            let (mut from, mut found) = (0, Vec::new());
            while let Some(at) = next_acknowledgment(content.as_bytes(), from) {
                found.push(&content[at.clone()]);
                from = at.end;
            }
            assert_eq!(found, expected, "{content:?}");
        }
    }
}

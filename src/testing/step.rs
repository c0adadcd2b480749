//! The steps by which the receiver answers one message.

use std::borrow::Cow;
use std::time::Duration;

use crate::frame::{self, Framing};
use crate::hl7::ack::AckCode;
use crate::hl7::header::Header;
use crate::hl7::segment::{Delimiters, is_named, segments};

/// The steps of a [`Receiver`](super::Receiver) after it has read a message.
///
/// A step is an answer, how it is sent, and what follows: `Step::accept().after(delay)`,
/// `Step::accept().half().close()`, `Step::accept().then(Step::accept())`. Answers that nothing
/// separates leave in one write.
#[derive(Clone, Debug)]
#[must_use = "a step does nothing until a receiver plays it"]
pub struct Step {
    pub(super) parts: Vec<Part>,
    pub(super) ending: Ending,
}

/// One answer and how it is sent.
#[derive(Clone)]
pub(super) struct Part {
    answer: Reply,
    half: bool,
    /// Time that passes before it.
    pub(super) delay: Duration,
    /// Time that passes before each of its bytes but the first.
    pub(super) drip: Option<Duration>,
}

/// Shows no content.
impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Part { half, delay, drip, .. } = self;
        f.debug_struct("Part").field("half", half).field("delay", delay).field("drip", drip).finish_non_exhaustive()
    }
}

#[derive(Clone)]
enum Reply {
    Acknowledge { code: AckCode, text: String, other_message: bool },
    Frame(Vec<u8>),
    Bytes(Vec<u8>),
}

/// The treatment of the connection after the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Keep,
    Close,
    Reset,
}

impl Step {
    /// Accepts the message: AA. As with every step that acknowledges, nothing is sent where the
    /// message is an acknowledgment itself.
    pub fn accept() -> Step {
        Step::acknowledge(AckCode::ApplicationAccept)
    }

    /// Acknowledges the message with this code.
    pub fn acknowledge(code: AckCode) -> Step {
        Step::of(Reply::Acknowledge { code, text: String::new(), other_message: false })
    }

    /// Refuses the message with a code and a text, which stands in MSA-3 and in ERR-8.
    pub fn refuse(code: AckCode, text: &str) -> Step {
        Step::of(Reply::Acknowledge { code, text: text.to_owned(), other_message: false })
    }

    /// Accepts another message: the control ID is wrong.
    pub fn wrong_control_id() -> Step {
        let code = AckCode::ApplicationAccept;
        Step::of(Reply::Acknowledge { code, text: String::new(), other_message: true })
    }

    /// Answers with this content in a frame.
    pub fn frame(content: impl Into<Vec<u8>>) -> Step {
        Step::of(Reply::Frame(content.into()))
    }

    /// Answers with these bytes as they are.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Step {
        Step::of(Reply::Bytes(bytes.into()))
    }

    /// Does not answer.
    pub fn silence() -> Step {
        Step { parts: Vec::new(), ending: Ending::Keep }
    }

    fn of(answer: Reply) -> Step {
        let part = Part { answer, half: false, delay: Duration::ZERO, drip: None };
        Step { parts: vec![part], ending: Ending::Keep }
    }

    /// Waits before it answers.
    pub fn after(self, delay: Duration) -> Step {
        self.each(|part| part.delay = part.delay.saturating_add(delay))
    }

    /// Sends the answer byte by byte, waiting so long between them.
    pub fn drip(self, interval: Duration) -> Step {
        self.each(|part| part.drip = Some(interval))
    }

    /// Sends only the first half of the answer's bytes.
    pub fn half(self) -> Step {
        self.each(|part| part.half = true)
    }

    fn each(mut self, change: impl FnMut(&mut Part)) -> Step {
        self.parts.iter_mut().for_each(change);
        self
    }

    /// Does another step after this one, without waiting for a message: a second answer, or bytes
    /// while the client is idle.
    pub fn then(mut self, next: Step) -> Step {
        self.parts.extend(next.parts);
        Step { ending: next.ending, ..self }
    }

    /// Closes the connection afterwards.
    pub fn close(self) -> Step {
        Step { ending: Ending::Close, ..self }
    }

    /// Resets the connection afterwards.
    pub fn reset(self) -> Step {
        Step { ending: Ending::Reset, ..self }
    }
}

impl Part {
    /// The bytes that leave, as the answer to this message.
    pub(super) fn render(&self, message: &[u8], framing: &Framing) -> Vec<u8> {
        let frame = |content: &[u8]| [framing.head(), content, framing.tail()].concat();
        let mut bytes = match &self.answer {
            // Two ends that acknowledge acknowledgments never come to an end.
            Reply::Acknowledge { .. } if acknowledges(message) => return Vec::new(),
            Reply::Acknowledge { code, text, other_message } => {
                frame(&acknowledgment(message, *code, text, *other_message))
            }
            Reply::Frame(content) => frame(content),
            Reply::Bytes(bytes) => bytes.clone(),
        };
        if self.half {
            bytes.truncate(bytes.len() / 2);
        }
        bytes
    }
}

/// An acknowledgment in the message's own delimiters, back to where it came from (HL7 v2.5, chapter
/// 2.9.2). Its time is the message's, so that a test sees the same bytes each time.
/// Whether a frame acknowledges something: it is a commit block of MLLP release 2, or holds an MSA
/// segment, by itself or in a batch.
fn acknowledges(content: &[u8]) -> bool {
    matches!(content, frame::STORED | frame::NOT_STORED)
        || segments(content).any(|segment| is_named(segment, &[b"MSA"]))
}

fn acknowledgment(message: &[u8], code: AckCode, text: &str, other_message: bool) -> Vec<u8> {
    let (Ok(header), Some(delimiters)) = (Header::read(message), Delimiters::of_header(message)) else {
        return b"MSH|^~\\&|||||||ACK|0|P|2.5\rMSA|AR||no HL7 message\r".to_vec();
    };
    // HL7 text is ASCII unless MSH-18 says otherwise.
    let charset = if text.is_ascii() { "" } else { "||||||UNICODE UTF-8" };
    let msh = segments(message).find(|segment| segment.starts_with(b"MSH")).unwrap_or(message);
    let field = |number| String::from_utf8_lossy(delimiters.header_fields(msh, [number])[0]);
    let control_id = String::from_utf8_lossy(header.control_id);
    let control_id: Cow<'_, str> = if other_message { format!("{control_id}-OTHER").into() } else { control_id };
    let trigger = field(9);
    let component = char::from(delimiters.component);
    let trigger = trigger.split(component).nth(1).map(|event| format!("{component}{event}")).unwrap_or_default();
    let text = escaped(text, delimiters);
    let mut segments = vec![
        format!(
            "MSH|{}|{}|{}|{}|{}|{}||ACK{trigger}|{control_id}-ACK|{}|{}{charset}",
            field(2),
            field(5),
            field(6),
            field(3),
            field(4),
            field(7),
            field(11),
            field(12)
        ),
        format!("MSA|{code}|{control_id}{}{text}", if text.is_empty() { "" } else { "|" }),
    ];
    if !code.is_accept() {
        segments.push(format!("ERR|||207{component}Application internal error{component}HL70357|E||||{text}"));
    }
    let mut acknowledgment: Vec<u8> =
        segments.iter().flat_map(|segment| [segment.as_bytes(), b"\r"].concat()).collect();
    if delimiters.field != b'|' {
        acknowledgment.iter_mut().filter(|byte| **byte == b'|').for_each(|byte| *byte = delimiters.field);
    }
    acknowledgment
}

/// A text in which every delimiter is escaped, and what could break a segment or a frame is gone.
fn escaped(text: &str, delimiters: Delimiters) -> String {
    let escape = char::from(delimiters.escape);
    let letter = |character: char| {
        let byte = u8::try_from(character).ok()?;
        [
            (delimiters.field, 'F'),
            (delimiters.component, 'S'),
            (delimiters.subcomponent, 'T'),
            (delimiters.repetition, 'R'),
            (delimiters.escape, 'E'),
            (b'|', 'F'),
        ]
        .into_iter()
        .find_map(|(delimiter, letter)| (delimiter == byte).then_some(letter))
    };
    text.chars().filter(|character| !character.is_control()).fold(String::new(), |mut plain, character| {
        match letter(character) {
            Some(letter) => plain.extend([escape, letter, escape]),
            None => plain.push(character),
        }
        plain
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hl7::ack::Ack;

    const MESSAGE: &[u8] = b"MSH|^~\\&|LAB|H1|EHR|H2|20260101||ORU^R01^ORU_R01|MSG1|P|2.5\rPID|1\r";

    fn rendered(step: &Step, message: &[u8]) -> String {
        let parts: Vec<_> = step.parts.iter().flat_map(|part| part.render(message, &Framing::default())).collect();
        String::from_utf8(parts).unwrap()
    }

    #[test]
    fn answers() {
        let header = "\x0BMSH|^~\\&|EHR|H2|LAB|H1|20260101||ACK^R01|";
        for (name, step, expected) in [
            ("accept", Step::accept(), format!("{header}MSG1-ACK|P|2.5\rMSA|AA|MSG1\r\x1C\r")),
            (
                "refuse",
                Step::refuse(AckCode::ApplicationReject, "a|b"),
                format!(
                    "{header}MSG1-ACK|P|2.5\rMSA|AR|MSG1|a\\F\\b\rERR|||207^Application internal error^HL70357|E||||a\\F\\b\r\x1C\r"
                ),
            ),
            (
                "wrong control ID",
                Step::wrong_control_id(),
                format!("{header}MSG1-OTHER-ACK|P|2.5\rMSA|AA|MSG1-OTHER\r\x1C\r"),
            ),
            (
                "a text that is not ASCII",
                Step::refuse(AckCode::ApplicationReject, "fehlt für 7"),
                format!(
                    "{header}MSG1-ACK|P|2.5||||||UNICODE UTF-8\rMSA|AR|MSG1|fehlt für 7\rERR|||207^Application internal \
                     error^HL70357|E||||fehlt für 7\r\x1C\r"
                ),
            ),
            ("frame", Step::frame("x"), "\x0Bx\x1C\r".into()),
            ("bytes", Step::bytes("x\r\n"), "x\r\n".into()),
            ("half", Step::bytes("1234").half(), "12".into()),
            ("silence", Step::silence(), String::new()),
            ("two", Step::bytes("1").then(Step::frame("2")), "1\x0B2\x1C\r".into()),
        ] {
            assert_eq!(rendered(&step, MESSAGE), expected, "{name}");
        }
    }

    #[test]
    fn an_acknowledgment_is_not_acknowledged() {
        for ack in [
            &b"MSH|^~\\&|EHR|H2|LAB|H1|20260101||ACK|1|P|2.5\rMSA|AA|MSG1\r"[..],
            b"MSH|^~\\&|EHR\rMSA||MSG1\r",
            b"MSH|^~\\&|EHR\rMSA|XX|MSG1\r",
            b"BHS|^~\\&|||||||||B1\rMSH|^~\\&|EHR|||||ACK|1\rMSA|AA|MSG1\rBTS|1\r",
            b"\x06",
            b"\x15",
        ] {
            for step in [Step::accept(), Step::refuse(AckCode::CommitError, "x"), Step::wrong_control_id()] {
                assert_eq!(rendered(&step, ack), "");
            }
            assert_eq!(rendered(&Step::frame("x"), ack), "\x0Bx\x1C\r");
        }
    }

    #[test]
    fn other_delimiters_and_no_hl7() {
        let custom =
            rendered(&Step::refuse(AckCode::CommitError, "$|%"), b"MSH$%*!@$LAB$H1$EHR$H2$$$ADT%A01$7$P$2.5\r");
        let ack = Ack::parse(custom.trim_matches(['\x0B', '\x1C', '\r'])).unwrap();
        assert_eq!((ack.code(), &*ack.control_id()), (AckCode::CommitError, "7"));
        assert_eq!(ack.text().as_deref(), Some("$$%"));
        assert!(rendered(&Step::accept(), b"hello").contains("MSA|AR||"));
    }
}

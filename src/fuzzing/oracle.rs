//! The right answers, found without any care for speed: the grammar of frames, the reading of
//! headers and acknowledgments, and the rules by which an acknowledgment ends an exchange. Written
//! apart from the code that it is compared with.

use crate::frame::{FrameError, Framing};
use crate::hl7::MessageError;
use crate::hl7::ack::{AckCode, AckMode, AckParseError};

/// The largest number of bytes before a Start Block.
const MOST_SKIPPED: usize = 65_536;

/// How frames look and what is forgiven.
#[derive(Clone, Debug)]
pub struct Grammar {
    /// The bytes before a content.
    pub start: Vec<u8>,
    /// The bytes behind it.
    pub end: Vec<u8>,
    /// Whether a Carriage Return at the very end may be missing.
    pub missing_carriage_return: bool,
    /// Whether bytes of any kind may come before.
    pub leading_bytes: bool,
}

/// The frames at the beginning of a wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frames {
    /// The contents, each with where its frame ends on the wire.
    pub contents: Vec<(Vec<u8>, usize)>,
    /// How many bytes stood before each.
    pub skipped: Vec<usize>,
    /// The error in the bytes that follow them.
    pub error: Option<FrameError>,
}

impl Grammar {
    /// MLLP as it is written.
    pub fn mllp() -> Grammar {
        Grammar { start: vec![0x0B], end: vec![0x1C, 0x0D], missing_carriage_return: false, leading_bytes: false }
    }

    /// Reads a wire byte by byte, as if each came alone.
    pub fn frames(&self, limit: usize, wire: &[u8]) -> Frames {
        let mut found = Frames::default();
        let mut at = 0;
        while let Some((length, skipped, content)) = match self.frame(limit, &wire[at..]) {
            Ok(frame) => frame,
            Err(error) => {
                found.error = Some(error);
                None
            }
        } {
            at += length;
            found.contents.push((content, at));
            found.skipped.push(skipped);
        }
        found
    }

    /// The first frame: how long it is with all before it, how much that is, and what it holds.
    fn frame(&self, limit: usize, wire: &[u8]) -> Result<Option<(usize, usize, Vec<u8>)>, FrameError> {
        let return_required = self.end == [0x1C, 0x0D] && !self.missing_carriage_return;
        let return_optional = self.missing_carriage_return && self.end.len() > 1 && self.end.ends_with(b"\r");
        let end = match return_required || return_optional {
            true => &self.end[..self.end.len() - 1],
            false => &self.end[..],
        };
        let (mut skipped, mut content) = (0, None::<Vec<u8>>);
        let mut before = Vec::new();
        for (at, &byte) in wire.iter().enumerate() {
            let Some(content) = &mut content else {
                before.push(byte);
                while !before.is_empty() && !self.start.starts_with(&before) {
                    let mark = [0xEF, 0xBB, 0xBF];
                    if !self.leading_bytes && before == mark {
                        before.clear();
                        skipped += 3;
                    } else if !self.leading_bytes && mark.starts_with(&before) {
                        break;
                    } else {
                        let first = before.remove(0);
                        if !self.leading_bytes && !b"\r\n\0 ".contains(&first) {
                            return Err(FrameError::NoStartBlock { first });
                        }
                        skipped += 1;
                    }
                    if skipped > MOST_SKIPPED {
                        return Err(FrameError::NoFrame { limit: MOST_SKIPPED });
                    }
                }
                if before == self.start {
                    content = Some(Vec::new());
                }
                continue;
            };
            content.push(byte);
            if content.ends_with(&self.start) {
                return Err(FrameError::StartBlockInContent { offset: content.len() - self.start.len() });
            }
            if content.ends_with(end) {
                content.truncate(content.len() - end.len());
                let follows = wire.get(at + 1);
                return match follows {
                    _ if !return_required && !return_optional => Ok(Some((at + 1, skipped, content.clone()))),
                    Some(b'\r') => Ok(Some((at + 2, skipped, content.clone()))),
                    _ if return_optional => Ok(Some((at + 1, skipped, content.clone()))),
                    Some(_) => Err(FrameError::EndBlockWithoutCarriageReturn { offset: content.len() }),
                    None => Ok(None),
                };
            }
            if content.len() == limit + end.len() {
                return Err(FrameError::TooLarge { limit });
            }
        }
        Ok(None)
    }
}

/// The kinds of frames to try, by a number of any size, as the client and as this module know them.
pub fn framing(kind: usize) -> (Framing, Grammar) {
    let custom = |start: &[u8], end: &[u8]| {
        let framing = Framing::custom(start, end).unwrap_or_default();
        (framing, Grammar { start: start.to_vec(), end: end.to_vec(), ..Grammar::mllp() })
    };
    let missing = |(framing, grammar): (Framing, Grammar)| {
        (framing.allow_missing_carriage_return(true), Grammar { missing_carriage_return: true, ..grammar })
    };
    match kind % 6 {
        0 => (Framing::default(), Grammar::mllp()),
        1 => missing((Framing::default(), Grammar::mllp())),
        2 => (Framing::default().allow_leading_bytes(true), Grammar { leading_bytes: true, ..Grammar::mllp() }),
        3 => custom(b"<<", b"->"),
        4 => missing(custom(b"<-", b"-\r")),
        _ => custom(b"<", b">"),
    }
}

/// The parts of an acknowledgment that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledgment {
    /// MSA-1.
    pub code: AckCode,
    /// MSA-2.
    pub control_id: Vec<u8>,
    /// MSA-3 as it stands.
    pub text: Vec<u8>,
}

/// Reads one.
pub fn acknowledgment(raw: &[u8]) -> Result<Acknowledgment, AckParseError> {
    if raw == [0x06] || raw == [0x15] {
        return Err(AckParseError::CommitBlock);
    }
    let mut segments = lines(raw);
    if let Some(header) = segments.first_mut() {
        *header = unmarked(std::mem::take(header));
    }
    let (field, component, _) = segments
        .first()
        .filter(|first| first.starts_with(b"MSH"))
        .and_then(|first| delimiters(first))
        .ok_or(AckParseError::NotHl7)?;
    let msa = segments[1..]
        .iter()
        .find(|segment| segment.starts_with(b"MSA") && segment.get(3).is_none_or(|&next| next == field))
        .ok_or(AckParseError::NoMsa)?;
    let fields = split(msa, field);
    let part = |number: usize| fields.get(number).cloned().unwrap_or_default();
    let code = match &split(&part(1), component)[0].trim_ascii().to_ascii_uppercase()[..] {
        b"" => return Err(AckParseError::NoCode),
        b"AA" => AckCode::ApplicationAccept,
        b"AE" => AckCode::ApplicationError,
        b"AR" => AckCode::ApplicationReject,
        b"CA" => AckCode::CommitAccept,
        b"CE" => AckCode::CommitError,
        b"CR" => AckCode::CommitReject,
        _ => return Err(AckParseError::UnknownCode),
    };
    let control_id = match part(2).trim_ascii() {
        b"\"\"" => Vec::new(),
        control_id => control_id.to_vec(),
    };
    Ok(Acknowledgment { code, control_id, text: part(3) })
}

/// Whether an answer is one acknowledgment at most: it has no second header, and no batch around.
pub fn is_one(raw: &[u8]) -> bool {
    let lines: Vec<_> = lines(raw).into_iter().map(unmarked).collect();
    let headers = lines.iter().filter(|line| line.starts_with(b"MSH")).count();
    let wrappers: [&[u8]; 4] = [b"FHS", b"BHS", b"BTS", b"FTS"];
    headers <= 1 && !lines.iter().any(|line| wrappers.iter().any(|name| line.starts_with(name)))
}

/// Whether another MSA segment of an acknowledgment is about the same message, or about none, and
/// says the opposite.
pub fn is_contradicted(raw: &[u8]) -> bool {
    let Ok(first) = acknowledgment(raw) else { return false };
    let mut segments = lines(raw);
    let header = unmarked(segments.remove(0));
    let is_named =
        |segment: &Vec<u8>| segment.starts_with(b"MSA") && segment.get(3).is_none_or(|&next| next == header[3]);
    segments.retain(is_named);
    segments.into_iter().skip(1).any(|segment| {
        let other = acknowledgment(&[&header[..], b"\r", &segment].concat());
        other.is_ok_and(|other| {
            let same = other.control_id.is_empty() || other.control_id == first.control_id;
            same && other.code.is_accept() != first.code.is_accept()
        })
    })
}

/// The parts of a message's header that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NaiveHeader {
    /// MSH-10, or that of the outermost header.
    pub control_id: Vec<u8>,
    /// Whether a commit acknowledgment is asked for.
    pub commit: bool,
    /// Whether an application acknowledgment is.
    pub application: bool,
}

/// Reads one.
pub fn header(message: &[u8]) -> Result<NaiveHeader, MessageError> {
    let is_utf16 = matches!(message, [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] | [b'M', 0, b'S', 0, b'H', 0, ..])
        || message.starts_with(&[0, b'M', 0, b'S', 0, b'H']);
    let not_hl7 = || if is_utf16 { MessageError::Utf16 } else { MessageError::NotHl7 };
    if message.first().is_none_or(|first| b"\r\n".contains(first)) {
        return Err(not_hl7());
    }
    for segment in lines(message) {
        let (field, component, repetition) = delimiters(&segment).ok_or_else(not_hl7)?;
        let fields = split(&segment, field);
        // The separator itself is the first field of a header.
        let part = |number: usize| match fields.get(number - 1) {
            Some(field) if field != b"\"\"" => field.clone(),
            _ => Vec::new(),
        };
        let id = |number| match part(number).trim_ascii() {
            b"\"\"" => Vec::new(),
            id => id.to_vec(),
        };
        match &segment[..3] {
            b"FHS" | b"BHS" if id(11).is_empty() => {}
            b"FHS" | b"BHS" => return Ok(NaiveHeader { control_id: id(11), commit: false, application: true }),
            b"MSH" if id(10).is_empty() => return Err(MessageError::NoControlId),
            b"MSH" => {
                let condition = |number| match split(&split(&part(number), repetition)[0], component)[0].trim_ascii() {
                    b"\"\"" => Vec::new(),
                    condition => condition.to_ascii_uppercase(),
                };
                let (accept, application) = (condition(15), condition(16));
                let asks = |condition: &[u8]| !condition.is_empty() && condition != b"NE";
                let original = accept.is_empty() && application.is_empty();
                return Ok(NaiveHeader {
                    control_id: id(10),
                    commit: asks(&accept),
                    application: original || asks(&application),
                });
            }
            _ => return Err(not_hl7()),
        }
    }
    Err(MessageError::NoControlId)
}

/// The meaning of an acknowledgment for an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Another is awaited; the receiver has the message.
    GoesOn,
    /// The exchange ends well.
    Ends,
    /// It ends with a refusal.
    Refused,
    /// It is another message's, or nobody's.
    Doubt,
}

/// The meaning by code, control ID, mode and the conditions of the message, where nothing else is
/// outstanding.
pub fn meaning(header: &NaiveHeader, mode: AckMode, verify: bool, code: AckCode, control_id: &[u8]) -> Meaning {
    let application_is_awaited = match mode {
        AckMode::FromHeader => header.application,
        AckMode::Application => true,
        AckMode::Commit => false,
    };
    match code.as_str() {
        "AE" | "AR" | "CE" | "CR" if verify && control_id.is_empty() => Meaning::Refused,
        _ if verify && control_id != header.control_id => Meaning::Doubt,
        "AA" => Meaning::Ends,
        "CA" if application_is_awaited => Meaning::GoesOn,
        "CA" => Meaning::Ends,
        _ => Meaning::Refused,
    }
}

/// Lines that are not empty, whatever ends them.
fn lines(text: &[u8]) -> Vec<Vec<u8>> {
    let text: Vec<u8> = text.iter().map(|&byte| if byte == b'\n' { b'\r' } else { byte }).collect();
    split(&text, b'\r').into_iter().filter(|line| !line.is_empty()).collect()
}

/// A line without the byte-order marks at its beginning.
fn unmarked(mut line: Vec<u8>) -> Vec<u8> {
    while line.starts_with(b"\xEF\xBB\xBF") {
        line.drain(..3);
    }
    line
}

/// The field separator, the component separator and the repetition separator that a header names.
fn delimiters(header: &[u8]) -> Option<(u8, u8, u8)> {
    let field = *header.get(3)?;
    let usable = field > 0x20 && !field.is_ascii_alphanumeric();
    let encoding = split(&header[4..], field)[0].clone();
    usable.then(|| (field, *encoding.first().unwrap_or(&b'^'), *encoding.get(1).unwrap_or(&b'~')))
}

fn split(text: &[u8], separator: u8) -> Vec<Vec<u8>> {
    text.split(|&byte| byte == separator).map(<[u8]>::to_vec).collect()
}

/// Texts made of these pieces, for property tests.
#[cfg(test)]
pub(crate) fn pieces(pieces: &'static [&'static [u8]]) -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
    use proptest::strategy::Strategy;
    proptest::collection::vec(proptest::sample::select(pieces), 0..12).prop_map(|chosen| chosen.concat())
}

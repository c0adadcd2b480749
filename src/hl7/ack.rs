//! Reading an acknowledgment: MSA and ERR.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::frame;
use crate::hl7::charset::Charset;
use crate::hl7::header::absent_if_null;
use crate::hl7::segment::{Delimiters, nth, offset_of, segments, without_mark};

/// The Acknowledgment Code of MSA-1 (HL7 Table 0008).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AckCode {
    /// `AA`: the receiving application took the message.
    ApplicationAccept,
    /// `AE`: the application found an error in it.
    ApplicationError,
    /// `AR`: the application rejects it.
    ApplicationReject,
    /// `CA`: the receiving system has stored the message safely; the application's verdict may
    /// follow.
    CommitAccept,
    /// `CE`: the receiving system could not take it.
    CommitError,
    /// `CR`: the receiving system rejects it.
    CommitReject,
}

impl AckCode {
    /// The two letters of Table 0008.
    pub fn as_str(self) -> &'static str {
        match self {
            AckCode::ApplicationAccept => "AA",
            AckCode::ApplicationError => "AE",
            AckCode::ApplicationReject => "AR",
            AckCode::CommitAccept => "CA",
            AckCode::CommitError => "CE",
            AckCode::CommitReject => "CR",
        }
    }

    /// Whether it is AA or CA.
    pub fn is_accept(self) -> bool {
        matches!(self, AckCode::ApplicationAccept | AckCode::CommitAccept)
    }

    /// Whether it is CA, CE or CR: a commit acknowledgment of the enhanced mode.
    pub fn is_commit(self) -> bool {
        matches!(self, AckCode::CommitAccept | AckCode::CommitError | AckCode::CommitReject)
    }

    fn read(text: &[u8]) -> Option<AckCode> {
        let &[first, second] = text else { return None };
        Some(match [first, second].map(|letter| letter.to_ascii_uppercase()) {
            [b'A', b'A'] => AckCode::ApplicationAccept,
            [b'A', b'E'] => AckCode::ApplicationError,
            [b'A', b'R'] => AckCode::ApplicationReject,
            [b'C', b'A'] => AckCode::CommitAccept,
            [b'C', b'E'] => AckCode::CommitError,
            [b'C', b'R'] => AckCode::CommitReject,
            _ => return None,
        })
    }
}

impl fmt::Display for AckCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which acknowledgment ends an exchange. See
/// [`ClientBuilder::ack_mode`](crate::ClientBuilder::ack_mode).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AckMode {
    /// The acknowledgments that MSH-15 and MSH-16 of the message ask for (HL7 v2.5, chapter 2.9;
    /// Table 0155). Both empty is the original mode: the application acknowledgment. Otherwise
    /// the enhanced mode: the commit acknowledgment, the application acknowledgment or both. An
    /// application acknowledgment ends it in any case.
    #[default]
    FromHeader,
    /// The application acknowledgment, whatever the header asks for. A commit accept before it is
    /// remembered.
    Application,
    /// The first acknowledgment, whatever the header asks for. An application acknowledgment that
    /// comes after a commit accept is reported to the observer
    /// ([`Event::LateAck`](crate::Event::LateAck)).
    Commit,
}

/// An acknowledgment: the receiver's answer to a message, as it came.
///
/// The text views decode UTF-8 (with the feature `charset` the character set of its own MSH-18, or
/// the builder's), with U+FFFD for what is none, and replace HL7's escape sequences;
/// [`raw`](Ack::raw) has the bytes. `Debug` shows code, control ID and length only, since an answer
/// may repeat a patient's data.
///
/// # Examples
///
/// ```
/// use mllp_client::{Ack, AckCode};
///
/// let ack = Ack::parse("MSH|^~\\&|EHR|H|LAB|H|20260101||ACK|1|P|2.5\rMSA|AE|MSG1|PID is missing\r")?;
/// assert_eq!(ack.code(), AckCode::ApplicationError);
/// assert_eq!(ack.control_id(), "MSG1");
/// assert_eq!(ack.text().as_deref(), Some("PID is missing"));
/// # Ok::<(), mllp_client::AckParseError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Ack {
    raw: Raw,
    /// The same in UTF-8, where it came in another character set.
    decoded: Option<Arc<[u8]>>,
    /// Of the text that the views are of.
    layout: Layout,
}

impl Ack {
    /// Reads an acknowledgment from a frame's content. Segments may end in CR, LF or CRLF, and the
    /// delimiters are those of its own MSH. MSH-9 need not be `ACK`: the response to a query
    /// carries an MSA segment too.
    ///
    /// # Errors
    ///
    /// An [`AckParseError`] where there is no code to go by. A missing control ID (MSA-2) is
    /// accepted, and empty then.
    pub fn parse(raw: impl Into<Vec<u8>>) -> Result<Ack, AckParseError> {
        let raw = raw.into();
        let layout = Layout::read(&raw)?;
        Ok(Ack { raw: Raw::Whole(raw.into()), decoded: None, layout }.in_charset(Charset::UTF_8))
    }

    /// The acknowledgment with its views in the character set that its own MSH-18 names, or else in
    /// this one.
    pub(crate) fn in_charset(self, charset: Charset) -> Ack {
        let Some(decoded) = charset.decode(self.raw()) else { return self };
        match Layout::read(&decoded) {
            // The exchange went by the bytes as they came.
            Ok(layout) if self.says_the_same(&layout, &decoded) => {
                Ack { decoded: Some(decoded.into()), layout, ..self }
            }
            _ => self,
        }
    }

    /// Whether the decoded text holds the same verdict on the same message.
    fn says_the_same(&self, layout: &Layout, decoded: &[u8]) -> bool {
        let control_id = self.layout.control_id(self.raw());
        layout.code == self.layout.code && (!control_id.is_ascii() || control_id == layout.control_id(decoded))
    }

    fn plain(&self) -> &[u8] {
        self.decoded.as_deref().unwrap_or_else(|| self.raw())
    }

    /// The Acknowledgment Code (MSA-1).
    pub fn code(&self) -> AckCode {
        self.layout.code
    }

    /// The control ID of the message that is acknowledged (MSA-2).
    pub fn control_id(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.layout.control_id.of(self.plain()))
    }

    /// The control ID as far as one may be long (199 characters, HL7 v2.6), for messages and logs:
    /// what stands in its place is the peer's choice.
    pub(crate) fn control_id_in_short(&self) -> Cow<'_, str> {
        let whole = self.control_id();
        match whole.char_indices().nth(199) {
            Some((end, _)) => format!("{}…", &whole[..end]).into(),
            None => whole,
        }
    }

    /// The Text Message (MSA-3), if there is one.
    pub fn text(&self) -> Option<Cow<'_, str>> {
        let text = self.layout.text.of(self.plain());
        (!text.is_empty()).then(|| self.layout.delimiters.unescape(text))
    }

    /// The reason of a refusal as the receiver gives it, from the first of these places that has
    /// one: the User Message (ERR-8), the Diagnostic Information (ERR-7), the original text of
    /// the error code (ERR-3.9, or ERR-1.4.5 before HL7 v2.5, where HAPI puts its own), the
    /// Text Message (MSA-3), the name of the error code (ERR-3.2, or ERR-1.4.2 before HL7
    /// v2.5), the Error Condition (MSA-6), a comment (NTE-3).
    ///
    /// # Examples
    ///
    /// ```
    /// let ack = mllp_client::Ack::parse(
    ///     "MSH|^~\\&|EHR|H|LAB|H|20260101||ACK|1|P|2.5\rMSA|AE|MSG1\rERR|||207^Internal error^HL70357^^^^^^no such ward|E\r",
    /// )?;
    /// assert_eq!(ack.reason().as_deref(), Some("no such ward"));
    /// # Ok::<(), mllp_client::AckParseError>(())
    /// ```
    pub fn reason(&self) -> Option<Cow<'_, str>> {
        let delimiters = self.layout.delimiters;
        let field = |name, number| {
            let named = segments(self.plain()).filter(move |segment| is_named(segment, name, delimiters));
            named.map(|segment| delimiters.field(segment, number)).find(|found| !is_absent(found))
        };
        let condition = |field| match delimiters.component(field, 2) {
            b"" => delimiters.component(field, 1),
            text => text,
        };
        let reason = self
            .of_error(ErrorDetail::user_message)
            .or_else(|| self.of_error(ErrorDetail::diagnostics))
            .or_else(|| self.of_error(ErrorDetail::original_text))
            .or_else(|| field(b"MSA", 3))
            .or_else(|| self.of_error(ErrorDetail::code_name))
            .or_else(|| field(b"MSA", 6).map(condition))
            .or_else(|| field(b"NTE", 3))?;
        Some(delimiters.unescape(reason))
    }

    /// A part of the first error that has it; what is a warning or an information (ERR-4) comes
    /// last.
    fn of_error<'a>(&'a self, part: fn(ErrorDetail<'a>) -> &'a [u8]) -> Option<&'a [u8]> {
        let is_mild = |detail: &ErrorDetail<'_>| matches!(detail.segment_field(4).trim_ascii(), b"W" | b"I");
        let errors = self.errors().filter(|detail| !is_mild(detail)).chain(self.errors().filter(is_mild));
        errors.map(part).find(|found| !is_absent(found))
    }

    /// The receiver's reasons: one item for each ERR segment, and one for each repetition of ERR-1,
    /// the form used before HL7 v2.5.
    pub fn errors(&self) -> impl Iterator<Item = ErrorDetail<'_>> {
        let delimiters = self.layout.delimiters;
        segments(self.plain())
            .filter(move |segment| is_named(segment, b"ERR", delimiters))
            .flat_map(move |segment| ErrorDetail::of_segment(segment, delimiters))
    }

    /// The acknowledgment as it came, without its framing.
    pub fn raw(&self) -> &[u8] {
        self.raw.bytes()
    }

    /// The bytes of memory that this acknowledgment alone keeps; the frame that it stands in, and
    /// shares with others, is not counted.
    pub(crate) fn kept(&self) -> usize {
        let raw = if let Raw::Whole(raw) = &self.raw { raw.len() } else { 0 };
        raw + self.decoded.as_ref().map_or(0, |decoded| decoded.len())
    }
}

impl fmt::Debug for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ack")
            .field("code", &self.code())
            .field("control_id", &self.control_id_in_short())
            .field("len", &self.raw().len())
            .finish()
    }
}

/// An acknowledgment's bytes. Shared by clones: one acknowledgment may be for many messages.
#[derive(Clone)]
enum Raw {
    Whole(Arc<[u8]>),
    /// A part of a frame that holds many.
    Part {
        frame: Arc<Vec<u8>>,
        at: Span,
    },
}

impl Raw {
    fn bytes(&self) -> &[u8] {
        match self {
            Raw::Whole(raw) => raw,
            Raw::Part { frame, at } => at.of(frame),
        }
    }
}

impl PartialEq for Raw {
    fn eq(&self, other: &Raw) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Raw {}

/// Where the parts of an acknowledgment stand in its bytes: it is read in place, and copied only
/// when it is handed out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    delimiters: Delimiters,
    code: AckCode,
    control_id: Span,
    text: Span,
    msa_end: usize,
}

impl Layout {
    pub(crate) fn read(raw: &[u8]) -> Result<Layout, AckParseError> {
        if raw == frame::STORED || raw == frame::NOT_STORED {
            return Err(AckParseError::CommitBlock);
        }
        let mut segments = segments(raw);
        let header = segments.next().map(without_mark).filter(|first| first.starts_with(b"MSH"));
        let header = header.ok_or(AckParseError::NotHl7)?;
        let delimiters = Delimiters::of_header(header).ok_or(AckParseError::NotHl7)?;
        let msa = segments.find(|segment| is_named(segment, b"MSA", delimiters)).ok_or(AckParseError::NoMsa)?;
        let [code, control_id, text] = delimiters.fields(msa, [1, 2, 3]);
        let code = delimiters.component(code, 1).trim_ascii();
        if code.is_empty() {
            return Err(AckParseError::NoCode);
        }
        Ok(Layout {
            delimiters,
            code: AckCode::read(code).ok_or(AckParseError::UnknownCode)?,
            control_id: Span::within(raw, absent_if_null(control_id.trim_ascii())),
            text: Span::within(raw, text),
            msa_end: Span::within(raw, msa).to,
        })
    }

    pub(crate) fn code(&self) -> AckCode {
        self.code
    }

    /// Whether nothing stands behind the MSA segment.
    pub(crate) fn ends_with_msa(&self, raw: &[u8]) -> bool {
        raw[self.msa_end..].trim_ascii().is_empty()
    }

    /// Whether another MSA segment of the same bytes is about the same message, or names none, and
    /// says the opposite.
    pub(crate) fn is_contradicted(&self, raw: &[u8]) -> bool {
        let opposite = |msa: &[u8]| {
            let [code, control_id] = self.delimiters.fields(msa, [1, 2]);
            let (code, control_id) = (self.delimiters.component(code, 1).trim_ascii(), control_id.trim_ascii());
            (control_id.is_empty() || control_id == self.control_id(raw))
                && AckCode::read(code).is_some_and(|code| code.is_accept() != self.code.is_accept())
        };
        segments(&raw[self.msa_end..]).any(|segment| is_named(segment, b"MSA", self.delimiters) && opposite(segment))
    }

    /// MSA-2 as it stands in the bytes that this layout was read from.
    pub(crate) fn control_id<'r>(&self, raw: &'r [u8]) -> &'r [u8] {
        self.control_id.of(raw)
    }

    /// The acknowledgment with a copy of its bytes.
    pub(crate) fn to_ack(self, raw: &[u8]) -> Ack {
        Ack { raw: Raw::Whole(raw.into()), decoded: None, layout: self }
    }

    /// The acknowledgment as a part of the bytes that it stands in, without a copy.
    pub(crate) fn to_part(self, frame: &Arc<Vec<u8>>, raw: &[u8]) -> Ack {
        let at = Span::within(frame, raw);
        Ack { raw: Raw::Part { frame: Arc::clone(frame), at }, decoded: None, layout: self }
    }
}

/// A part of an acknowledgment's bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Span {
    from: usize,
    to: usize,
}

impl Span {
    /// `part` is a slice of `whole`.
    fn within(whole: &[u8], part: &[u8]) -> Span {
        if part.is_empty() {
            return Span { from: 0, to: 0 };
        }
        let from = offset_of(part, whole);
        Span { from, to: from + part.len() }
    }

    fn of(self, whole: &[u8]) -> &[u8] {
        &whole[self.from..self.to]
    }
}

/// Whether a field says nothing: it is blank, or HL7's null (`""`).
fn is_absent(field: &[u8]) -> bool {
    absent_if_null(field.trim_ascii()).is_empty()
}

fn is_named(segment: &[u8], name: &[u8; 3], delimiters: Delimiters) -> bool {
    segment.strip_prefix(name).is_some_and(|rest| rest.first().is_none_or(|&next| next == delimiters.field))
}

/// One error that a receiver reports, from an ERR segment.
///
/// Its `Debug` shows which fields are there, not what they hold.
#[derive(Clone, Copy)]
pub struct ErrorDetail<'a> {
    delimiters: Delimiters,
    source: DetailSource<'a>,
}

#[derive(Clone, Copy)]
enum DetailSource<'a> {
    /// A whole ERR segment of HL7 v2.5 or later.
    Segment(&'a [u8]),
    /// A repetition of ERR-1, type ELD: segment ^ sequence ^ field ^ code & text.
    Eld(&'a [u8]),
}

impl<'a> ErrorDetail<'a> {
    fn of_segment(segment: &'a [u8], delimiters: Delimiters) -> impl Iterator<Item = ErrorDetail<'a>> {
        let old = delimiters.field(segment, 1);
        // HL7 v2.5 and later require ERR-3.
        let old_form = !old.is_empty() && delimiters.field(segment, 3).is_empty();
        let repetitions = if old_form { old } else { &[] };
        let detail = move |source| ErrorDetail { delimiters, source };
        (!old_form).then(|| detail(DetailSource::Segment(segment))).into_iter().chain(
            repetitions
                .split(move |&byte| byte == delimiters.repetition)
                .filter(|repetition| !repetition.is_empty())
                .map(move |repetition| detail(DetailSource::Eld(repetition))),
        )
    }

    /// The HL7 Error Code: the first component of ERR-3 (Table 0357), or the code of ERR-1.
    pub fn code(&self) -> Option<Cow<'a, str>> {
        self.view(match self.source {
            DetailSource::Segment(_) => self.delimiters.component(self.segment_field(3), 1),
            DetailSource::Eld(eld) => self.eld_code(eld, 0),
        })
    }

    /// The Severity: ERR-4 (Table 0516: `E` error, `W` warning, `I` information, `F` fatal).
    pub fn severity(&self) -> Option<Cow<'a, str>> {
        self.view(self.segment_field(4))
    }

    /// The Error Location: ERR-2 as it stands, as `PID^1^5`, or the same components of ERR-1.
    pub fn location(&self) -> Option<Cow<'a, str>> {
        self.view(match self.source {
            DetailSource::Segment(segment) => self.delimiters.field(segment, 2),
            DetailSource::Eld(eld) => {
                let code = self.delimiters.component(eld, 4);
                let location = if code.is_empty() { eld } else { &eld[..Span::within(eld, code).from] };
                let separators = location.iter().rev().take_while(|&&byte| byte == self.delimiters.component).count();
                &location[..location.len() - separators]
            }
        })
    }

    /// What this error says for people, from the first of these places that has something: the User
    /// Message (ERR-8), the Diagnostic Information (ERR-7), the original text of the error code
    /// (ERR-3.9), its name (ERR-3.2); in the form before HL7 v2.5 ERR-1.4.5, then ERR-1.4.2.
    pub fn text(&self) -> Option<Cow<'a, str>> {
        let places = [self.user_message(), self.diagnostics(), self.original_text(), self.code_name()];
        self.view(places.into_iter().find(|place| !is_absent(place)).unwrap_or_default())
    }

    fn user_message(self) -> &'a [u8] {
        self.segment_field(8)
    }

    fn diagnostics(self) -> &'a [u8] {
        self.segment_field(7)
    }

    /// HAPI's own text; before HL7 v2.5 it is the fifth subcomponent of ERR-1.4.
    fn original_text(self) -> &'a [u8] {
        match self.source {
            DetailSource::Segment(_) => self.delimiters.component(self.segment_field(3), 9),
            DetailSource::Eld(eld) => self.eld_code(eld, 4),
        }
    }

    fn code_name(self) -> &'a [u8] {
        match self.source {
            DetailSource::Segment(_) => self.delimiters.component(self.segment_field(3), 2),
            DetailSource::Eld(eld) => self.eld_code(eld, 1),
        }
    }

    /// A field of the form of HL7 v2.5 and later; empty in the older one.
    fn segment_field(&self, number: usize) -> &'a [u8] {
        match self.source {
            DetailSource::Segment(segment) => self.delimiters.field(segment, number),
            DetailSource::Eld(_) => &[],
        }
    }

    /// A subcomponent (from 0) of ELD-4.
    fn eld_code(&self, eld: &'a [u8], index: usize) -> &'a [u8] {
        nth(self.delimiters.component(eld, 4), self.delimiters.subcomponent, index)
    }

    fn view(&self, part: &'a [u8]) -> Option<Cow<'a, str>> {
        (!part.is_empty()).then(|| self.delimiters.unescape(part))
    }
}

impl fmt::Debug for ErrorDetail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrorDetail")
            .field("code", &self.code().is_some())
            .field("severity", &self.severity().is_some())
            .field("location", &self.location().is_some())
            .field("text", &self.text().is_some())
            .finish()
    }
}

/// Why an answer cannot be read as an acknowledgment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AckParseError {
    /// It does not begin with an MSH segment.
    #[error("the answer does not begin with an MSH segment")]
    NotHl7,
    /// It is a commit block of MLLP release 2, which this client is not set to expect: see
    /// [`release2`](crate::ClientBuilder::release2).
    #[error("the answer is a commit block of MLLP release 2")]
    CommitBlock,
    /// It has no MSA segment.
    #[error("the answer has no MSA segment")]
    NoMsa,
    /// The Acknowledgment Code (MSA-1) is empty or absent.
    #[error("the answer has no Acknowledgment Code (MSA-1)")]
    NoCode,
    /// MSA-1 is none of AA, AE, AR, CA, CE, CR.
    #[error("the Acknowledgment Code (MSA-1) is none of AA, AE, AR, CA, CE, CR")]
    UnknownCode,
    /// MSA-2 is empty or absent, so that it names no message.
    #[error("the answer does not say which message it acknowledges (MSA-2 is empty)")]
    NoControlId,
    /// It holds two verdicts on one message, of which one accepts it and the other does not.
    #[error("the answer both accepts and refuses the message")]
    Contradictory,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::oracle;

    const MSH: &str = "MSH|^~\\&|EHR|H|LAB|H|20260101||ACK^R01|1|P|2.5\r";

    fn ack(rest: &str) -> Ack {
        Ack::parse(format!("{MSH}{rest}")).unwrap()
    }

    #[test]
    fn the_six_codes() {
        for (text, code, accept, commit) in [
            ("AA", AckCode::ApplicationAccept, true, false),
            ("AE", AckCode::ApplicationError, false, false),
            ("AR", AckCode::ApplicationReject, false, false),
            ("CA", AckCode::CommitAccept, true, true),
            ("CE", AckCode::CommitError, false, true),
            ("CR", AckCode::CommitReject, false, true),
        ] {
            let read = ack(&format!("MSA|{text}|1\r")).code();
            assert_eq!((read, read.is_accept(), read.is_commit()), (code, accept, commit));
            assert_eq!(read.to_string(), text);
        }
    }

    #[test]
    fn acknowledgments_as_receivers_write_them() {
        for (name, raw, code, control_id, text) in [
            ("usual", format!("{MSH}MSA|AA|MSG1\r"), "AA", "MSG1", None),
            ("text", format!("{MSH}MSA|AE|MSG1|wrong ward\r"), "AE", "MSG1", Some("wrong ward")),
            ("escaped text", format!("{MSH}MSA|AE|1|R\\T\\D\\F\\x\r"), "AE", "1", Some("R&D|x")),
            ("no end", format!("{MSH}MSA|AA|1"), "AA", "1", None),
            ("LF", format!("{MSH}MSA|AA|1\n").replace('\r', "\n"), "AA", "1", None),
            ("CRLF", format!("{MSH}MSA|AA|1\r").replace('\r', "\r\n"), "AA", "1", None),
            ("lower case", format!("{MSH}MSA|aa|1\r"), "AA", "1", None),
            ("spaces", format!("{MSH}MSA| AA | 1 \r"), "AA", "1", None),
            ("components in MSA-1", format!("{MSH}MSA|AA^x|1\r"), "AA", "1", None),
            ("no control ID", format!("{MSH}MSA|AA\r"), "AA", "", None),
            ("MSA later on", format!("{MSH}SFT|x\rUAC|y\rMSA|AR|1\r"), "AR", "1", None),
            ("a segment named alike", format!("{MSH}MSAX|AA|9\rMSA|AR|1\r"), "AR", "1", None),
            ("a query response", "MSH|^~\\&|||||||RSP^K22|9\rMSA|AA|Q1\rQAK|1\r".into(), "AA", "Q1", None),
            ("other delimiters", "MSH$%*!@$$$$$$$ACK$9\rMSA$AE$1$a!F!b\r".into(), "AE", "1", Some("a$b")),
            ("leading line ends", format!("\r\n{MSH}MSA|AA|1\r"), "AA", "1", None),
            ("a byte-order mark", format!("\u{feff}{MSH}MSA|AE|1|wrong ward\r"), "AE", "1", Some("wrong ward")),
            ("two byte-order marks", format!("\r\u{feff}\u{feff}{MSH}MSA|AA|1\r"), "AA", "1", None),
        ] {
            let ack = Ack::parse(raw.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!((ack.code().as_str(), &*ack.control_id()), (code, control_id), "{name}");
            assert_eq!(ack.text().as_deref(), text, "{name}");
            assert_eq!(ack.raw(), raw.as_bytes(), "{name}");
        }
    }

    #[test]
    fn answers_that_are_none() {
        for (name, raw, expected) in [
            ("empty", String::new(), AckParseError::NotHl7),
            ("line ends", "\r\n\r".into(), AckParseError::NotHl7),
            ("prose", "Connection refused by policy".into(), AckParseError::NotHl7),
            ("a name alone", "MSH".into(), AckParseError::NotHl7),
            ("MSA first", format!("MSA|AA|1\r{MSH}"), AckParseError::NotHl7),
            ("no MSA", MSH.into(), AckParseError::NoMsa),
            ("MSA inside a field", format!("{MSH}NTE|1|MSA|AA|1\r"), AckParseError::NoMsa),
            ("MSA alone", format!("{MSH}MSA\r"), AckParseError::NoCode),
            ("empty code", format!("{MSH}MSA||1\r"), AckParseError::NoCode),
            ("blank code", format!("{MSH}MSA|  |1\r"), AckParseError::NoCode),
            ("unknown code", format!("{MSH}MSA|OK|1\r"), AckParseError::UnknownCode),
            ("longer code", format!("{MSH}MSA|AAA|1\r"), AckParseError::UnknownCode),
            ("shorter code", format!("{MSH}MSA|A|1\r"), AckParseError::UnknownCode),
        ] {
            assert_eq!(Ack::parse(raw).map(|ack| ack.code()), Err(expected), "{name}");
        }
    }

    #[test]
    fn error_details() {
        type Row<'t> = (Option<&'t str>, Option<&'t str>, Option<&'t str>, Option<&'t str>);
        let cases: &[(&str, &str, &[Row<'_>])] = &[
            ("none", "", &[]),
            (
                "2.5",
                "ERR||PID^1^5|101^Required field missing^HL70357|E||||Give a name\r",
                &[(Some("101"), Some("E"), Some("PID^1^5"), Some("Give a name"))],
            ),
            (
                "without a user message",
                "ERR||PID^1|101^Required field missing|W\r",
                &[(Some("101"), Some("W"), Some("PID^1"), Some("Required field missing"))],
            ),
            ("code alone", "ERR|||207\r", &[(Some("207"), None, None, None)]),
            (
                "two segments",
                "ERR|||100|E\rNTE|1\rERR|||102|W\r",
                &[(Some("100"), Some("E"), None, None), (Some("102"), Some("W"), None, None)],
            ),
            (
                "ERR-1, repeated",
                "ERR|PID^1^5^101&Required field missing&HL70357~OBX^2^^103\r",
                &[
                    (Some("101"), None, Some("PID^1^5"), Some("Required field missing")),
                    (Some("103"), None, Some("OBX^2"), None),
                ],
            ),
            ("ERR-1 with a location alone", "ERR|PID^1^5\r", &[(None, None, Some("PID^1^5"), None)]),
            ("ERR-1 with a code alone", "ERR|^^^207&Internal\r", &[(Some("207"), None, None, Some("Internal"))]),
            (
                "both forms",
                "ERR|PID^1^5^101|PID^1^5|101^Missing|E\r",
                &[(Some("101"), Some("E"), Some("PID^1^5"), Some("Missing"))],
            ),
            (
                "HAPI's original text",
                "ERR|||207^Application internal error^HL70357^^^^^^no such ward|E\r",
                &[(Some("207"), Some("E"), None, Some("no such ward"))],
            ),
            ("diagnostics", "ERR|||207^Internal|E|||line 7\r", &[(Some("207"), Some("E"), None, Some("line 7"))]),
            ("escapes", "ERR|||207|E||||a\\F\\b \\X41\\\r", &[(Some("207"), Some("E"), None, Some("a|b A"))]),
            ("empty", "ERR\r", &[(None, None, None, None)]),
            ("named alike", "ERRX|||207\r", &[]),
        ];
        for (name, segments, expected) in cases {
            let ack = ack(&format!("MSA|AE|1\r{segments}"));
            let found: Vec<_> =
                ack.errors().map(|error| (error.code(), error.severity(), error.location(), error.text())).collect();
            let found: Vec<_> =
                found.iter().map(|(a, b, c, d)| (a.as_deref(), b.as_deref(), c.as_deref(), d.as_deref())).collect();
            assert_eq!(found, *expected, "{name}");
        }
    }

    #[test]
    fn acknowledgments_are_equal_if_their_bytes_are() {
        assert_eq!(ack("MSA|AA|1\r"), ack("MSA|AA|1\r"));
        assert_ne!(ack("MSA|AA|1\rZZZ|1\r"), ack("MSA|AA|1\rZZZ|2\r"));
        assert_ne!(ack("MSA|AA|1\r"), ack("MSA|AE|1\r"));
    }

    #[test]
    fn the_best_reason_is_given() {
        // Each line lacks what the one before it had.
        for (segments, expected) in [
            (
                "MSA|AE|1|three|||six\rERR|||207^name^^^^^^^original|E|||diagnostics|user\\T\\message\r",
                Some("user&message"),
            ),
            ("MSA|AE|1|three\rERR|||207|E\rERR|||207^name|E||||second\r", Some("second")),
            ("MSA|AE|1|three|||six\rERR|||207^name^^^^^^^original|E|||diagnostics\r", Some("diagnostics")),
            ("MSA|AE|1|three|||six\rERR|||207^name^^^^^^^original|E\r", Some("original")),
            ("MSA|AE|1|three|||six\rERR|||207^name|E\r", Some("three")),
            ("MSA|AE|1||||six\rERR|||207^name|E\r", Some("name")),
            ("MSA|AE|1||||six\rERR|PID^1^5^101&old name\r", Some("old name")),
            ("MSA|AE|1|three\rERR|PID^1^5^207&old name&HL70357&&HAPI's\r", Some("HAPI's")),
            ("MSA|AE|1||||207^six^HL70357\rERR|||207|E\rNTE|1||note\r", Some("six")),
            ("MSA|AE|1||||six\r", Some("six")),
            ("MSA|AE|1\rNTE|1\rNTE|2||note\r", Some("note")),
            ("MSA|AE|1|three\rERR|||207|E||||\"\"\rERR|||207|E|||  \r", Some("three")),
            ("MSA|AE|1\rERR|||0|I||||mild\rERR|||207|E||||severe\r", Some("severe")),
            ("MSA|AE|1\rERR|||0|W||||mild\r", Some("mild")),
            ("MSA|AE|1\rERR|PID^1^5^101&Missing|PID^1\r", Some("Missing")),
            ("MSA|AE|1\r", None),
        ] {
            assert_eq!(ack(segments).reason().as_deref(), expected, "{segments:?}");
        }
    }

    #[test]
    fn an_endless_control_id_is_shown_in_short() {
        let endless = ack(&format!("MSA|AE|{}\r", "é".repeat(1_000_000)));
        assert_eq!(endless.control_id_in_short().chars().count(), 200);
        assert!(format!("{endless:?}").len() < 500);
    }

    #[test]
    fn debug_shows_no_content() {
        let ack = ack("MSA|AE|MSG1|Marker\rERR||PID|101^Marker|E||||Marker\r");
        assert_eq!(
            format!("{ack:?}"),
            format!("Ack {{ code: ApplicationError, control_id: \"MSG1\", len: {} }}", ack.raw().len())
        );
        for detail in ack.errors() {
            assert_eq!(format!("{detail:?}"), "ErrorDetail { code: true, severity: true, location: true, text: true }");
        }
    }

    /// Reads and looks at everything there is.
    fn look(raw: &[u8]) {
        if let Ok(ack) = Ack::parse(raw) {
            let _ = (ack.code(), ack.control_id(), ack.control_id_in_short(), ack.text(), format!("{ack:?}"));
            for detail in ack.errors() {
                let _ = (detail.code(), detail.severity(), detail.location(), detail.text(), format!("{detail:?}"));
            }
        }
    }

    #[test]
    fn any_byte_at_any_place_is_read_somehow() {
        let sample =
            format!("{MSH}MSA|AE|MSG1|a\\F\\b\rERR||PID^1|207^x|E||||\\X41\\\rERR|PID^1^^102&y~OBX\r").into_bytes();
        for place in 0..sample.len() {
            for byte in 0..=u8::MAX {
                let mut changed = sample.clone();
                changed[place] = byte;
                look(&changed);
                changed.insert(place, sample[place]);
                look(&changed);
            }
            look(&sample[..place]);
            look(&sample[place..]);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_somehow(raw: Vec<u8>, rest: Vec<u8>) {
            look(&raw);
            look(&[MSH.as_bytes(), b"MSA|AA|1|", &raw, b"\rERR|", &rest].concat());
        }

        #[test]
        fn a_naive_reading_reads_the_same(raw in oracle::pieces(&[
            b"MSH|^~\\&|", b"MSH$%", b"MSA|AA|1", b"MSA$CE$", b"MSA", b"\r", b"\n", b"|", b"$", b"^", b"ca", b" 1", b"\x06", b"ERR|",
        ])) {
            let read = Ack::parse(&raw[..]).map(|ack| (ack.code(), ack.control_id().into_owned()));
            let expected = oracle::acknowledgment(&raw)
                .map(|ack| (ack.code, String::from_utf8_lossy(&ack.control_id).into_owned()));
            proptest::prop_assert_eq!(read, expected);
        }
    }
}

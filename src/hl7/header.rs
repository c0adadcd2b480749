//! Reading the header of a message that is about to be sent: what it is called, and what it asks
//! for in return.

use memchr::{memchr2, memchr2_iter};

use crate::hl7::MessageError;
use crate::hl7::segment::{self, Delimiters};

/// The parts of a message's header that the client needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header<'m> {
    /// The Message Control ID (MSH-10); of a batch, that of its outermost header (FHS-11, BHS-11)
    /// that has one.
    pub(crate) control_id: &'m [u8],
    /// The acknowledgments that MSH-15 and MSH-16 ask for.
    pub(crate) asked: Asked,
}

/// Which acknowledgments are awaited (HL7 v2.5, chapter 2.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The commit acknowledgment: CA, CE or CR.
    pub(crate) commit: bool,
    /// The application acknowledgment: AA, AE or AR.
    pub(crate) application: bool,
    /// Whether the application acknowledgment comes only on an error (ER) or only on success (SU).
    pub(crate) conditional: bool,
}

impl<'m> Header<'m> {
    pub(crate) fn read(message: &'m [u8]) -> Result<Self, MessageError> {
        let not_hl7 = || if is_utf16(message) { MessageError::Utf16 } else { MessageError::NotHl7 };
        let mut segments = segment::segments(message).peekable();
        // HL7 begins at the first byte: a receiver's parser sees nothing before MSH.
        if segments.peek().is_none_or(|first| !message.starts_with(first)) {
            return Err(not_hl7());
        }
        for segment in segments {
            // Each header names its own.
            let delimiters = Delimiters::of_header(segment).ok_or_else(not_hl7)?;
            let (control_id, asked) = match segment.get(..3) {
                Some(b"MSH") => {
                    let [control_id, accept, application] = delimiters.header_fields(segment, [10, 15, 16]);
                    (control_id, Some(Asked::read(accept, application, delimiters)))
                }
                Some(b"FHS" | b"BHS") => (delimiters.header_fields(segment, [11])[0], None),
                _ => return Err(not_hl7()),
            };
            match (absent_if_null(control_id.trim_ascii()), asked) {
                (b"", None) => {}
                (b"", Some(_)) => break,
                (control_id, asked) => return Ok(Header { control_id, asked: asked.unwrap_or(Asked::ORIGINAL) }),
            }
        }
        Err(MessageError::NoControlId)
    }
}

/// Whether a text is UTF-16, by its byte-order mark or by the header's letters.
pub(crate) fn is_utf16(text: &[u8]) -> bool {
    [&b"\xFF\xFE"[..], b"\xFE\xFF", b"M\0S\0H\0", b"\0M\0S\0H"].iter().any(|start| text.starts_with(start))
}

/// The control ID of what a payload is, if it is HL7 and has one: as [`Header::read`] reads it, and
/// no more than that.
pub(crate) fn control_id(payload: &[u8]) -> Option<&[u8]> {
    if !payload.starts_with(b"MSH") {
        return Header::read(payload).ok().map(|header| header.control_id);
    }
    let delimiters = Delimiters::of_header(payload)?;
    let [control_id] = delimiters.header_fields(payload, [10]);
    if control_id.is_empty() {
        return None;
    }
    // The separators were counted without a look at where the segment ends.
    let end = segment::offset_of(control_id, payload);
    let control_id = match memchr2(b'\r', b'\n', payload.get(..end + control_id.len())?) {
        None => control_id,
        Some(segment_end) if segment_end >= end => &payload[end..segment_end],
        Some(_) => return None,
    };
    Some(absent_if_null(control_id.trim_ascii())).filter(|control_id| !control_id.is_empty())
}

/// Whether a payload holds more than one header: it is a batch, or several messages without the
/// headers of one.
pub(crate) fn holds_many(payload: &[u8]) -> bool {
    let is_before_header = |end: usize| payload[end + 1..].starts_with(b"MSH");
    !payload.starts_with(b"MSH") || memchr2_iter(b'\r', b'\n', payload).any(is_before_header)
}

/// The control IDs of a batch and of all messages in it (FHS-11, BHS-11, MSH-10).
pub(crate) fn control_ids(batch: &[u8]) -> impl Iterator<Item = &[u8]> {
    segment::segments(batch).filter_map(|segment| {
        let number = match segment.get(..3)? {
            b"MSH" => 10,
            b"FHS" | b"BHS" => 11,
            _ => return None,
        };
        let [control_id] = Delimiters::of_header(segment)?.header_fields(segment, [number]);
        Some(absent_if_null(control_id.trim_ascii())).filter(|control_id| !control_id.is_empty())
    })
}

impl Asked {
    /// Original mode: one application acknowledgment.
    const ORIGINAL: Asked = Asked { commit: false, application: true, conditional: false };

    /// MSH-15 and MSH-16 (Table 0155). Both empty is the original mode; otherwise an empty one
    /// counts as NE. What is conditional (ER, SU) is waited for, since its condition is not
    /// known beforehand.
    fn read(accept: &[u8], application: &[u8], delimiters: Delimiters) -> Asked {
        let [accept, application] = [accept, application].map(|field| absent_if_null(delimiters.first(field)));
        if accept.is_empty() && application.is_empty() {
            return Asked::ORIGINAL;
        }
        let awaited = |condition: &[u8]| !condition.is_empty() && !condition.eq_ignore_ascii_case(b"NE");
        let conditional = [&b"ER"[..], b"SU"].iter().any(|condition| application.eq_ignore_ascii_case(condition));
        Asked { commit: awaited(accept), application: awaited(application), conditional }
    }

    /// Whether there is nothing to wait for.
    pub(crate) fn nothing(self) -> bool {
        !self.commit && !self.application
    }
}

/// `""` is HL7's explicit null: the field is there and says nothing.
pub(crate) fn absent_if_null(field: &[u8]) -> &[u8] {
    if field == b"\"\"" { &[] } else { field }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::oracle;

    const ORIGINAL: Asked = Asked::ORIGINAL;

    fn asked(commit: bool, application: bool) -> Asked {
        Asked { commit, application, conditional: false }
    }

    #[test]
    fn control_ids() {
        for (name, message, expected) in [
            ("usual", "MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5\rPID|1\r", Ok("MSG1")),
            ("header alone", "MSH|^~\\&|||||||ACK|7", Ok("7")),
            ("LF", "MSH|^~\\&|||||||ADT|A-1\nPID|1\n", Ok("A-1")),
            ("trimmed", "MSH|^~\\&|||||||ADT|  A 1 |P", Ok("A 1")),
            ("other delimiters", "MSH$%*!@$$$$$$$ADT$X1$P", Ok("X1")),
            ("a caret belongs to it", "MSH|^~\\&|||||||ADT|a^b|P", Ok("a^b")),
            ("file", "FHS|^~\\&|||||||||F1\rBHS|^~\\&|||||||||B1\rMSH|^~\\&|||||||ADT|M1\r", Ok("F1")),
            ("batch", "FHS|^~\\&\rBHS|^~\\&|||||||||B1\rMSH|^~\\&|||||||ADT|M1\r", Ok("B1")),
            ("batch without one", "FHS|^~\\&\rBHS|^~\\&\rMSH|^~\\&|||||||ADT|M1\r", Ok("M1")),
            ("empty", "MSH|^~\\&|||||||ADT||P\r", Err(MessageError::NoControlId)),
            ("null", "MSH|^~\\&|||||||ADT|\"\"|P\r", Err(MessageError::NoControlId)),
            ("blank", "MSH|^~\\&|||||||ADT|  |P\r", Err(MessageError::NoControlId)),
            ("absent", "MSH|^~\\&|LAB\rPID|1|2|3|4|5|6|7|8|9|10\r", Err(MessageError::NoControlId)),
            ("a message with its own delimiters", "BHS|^~\\&\rMSH$%*!@$$$$$$$ADT$X1$P\r", Ok("X1")),
            ("only wrappers", "FHS|^~\\&\rBHS|^~\\&\r", Err(MessageError::NoControlId)),
            ("batch of something else", "BHS|^~\\&\rPID|1\r", Err(MessageError::NotHl7)),
            ("no header", "PID|1||42\r", Err(MessageError::NotHl7)),
            ("XML", "<ORU_R01/>", Err(MessageError::NotHl7)),
            ("short", "MS", Err(MessageError::NotHl7)),
            ("a name alone", "MSH", Err(MessageError::NotHl7)),
            ("lower case", "msh|^~\\&|||||||ADT|1\r", Err(MessageError::NotHl7)),
            ("a blank line first", "\rMSH|^~\\&|||||||ADT|1\r", Err(MessageError::NotHl7)),
            ("a byte-order mark", "\u{FEFF}MSH|^~\\&|||||||ADT|1\r", Err(MessageError::NotHl7)),
        ] {
            let read = Header::read(message.as_bytes()).map(|header| header.control_id);
            assert_eq!(read, expected.map(str::as_bytes), "{name}");
            assert_eq!(super::control_id(message.as_bytes()), read.ok(), "{name}");
        }
    }

    #[test]
    fn acknowledgments_asked_for() {
        for (conditions, expected) in [
            ("", ORIGINAL),
            ("||||", ORIGINAL),
            ("|||\"\"|\"\"", ORIGINAL),
            ("|||||AL", ORIGINAL), // MSH-17 is the country
            ("|||AL|AL", asked(true, true)),
            ("|||AL|NE", asked(true, false)),
            ("|||NE|AL", asked(false, true)),
            ("|||NE|NE", asked(false, false)),
            ("|||AL|", asked(true, false)),
            ("|||AL", asked(true, false)),
            ("||||AL", asked(false, true)),
            ("|||ER|SU", Asked { conditional: true, ..asked(true, true) }),
            ("|||AL|er", Asked { conditional: true, ..asked(true, true) }),
            ("|||NE|", asked(false, false)),
            ("||| al ^x~NE|ne", asked(true, false)),
            ("|||\"\"|AL", asked(false, true)),
        ] {
            let message = format!("MSH|^~\\&|||||||ORU|1|P|2.5{conditions}\rPID|AL|AL\r");
            let header = Header::read(message.as_bytes()).unwrap();
            assert_eq!(header.asked, expected, "{conditions}");
            assert_eq!(header.asked.nothing(), expected == asked(false, false), "{conditions}");
        }
    }

    #[test]
    fn any_byte_at_any_place_is_read_somehow() {
        let sample = b"FHS|^~\\&\rBHS|^~\\&|||||||||\rMSH|^~\\&|LAB|||||||1|P|2.5|||AL|NE~x^y\rPID|1\r";
        for place in 0..sample.len() {
            for byte in 0..=u8::MAX {
                let mut changed = sample.to_vec();
                changed[place] = byte;
                let _ = Header::read(&changed);
                changed.insert(place, sample[place]);
                let _ = Header::read(&changed);
            }
            let _ = (Header::read(&sample[..place]), Header::read(&sample[place..]));
        }
    }

    #[test]
    fn control_ids_of_a_batch() {
        for (name, text, expected) in [
            (
                "a file",
                "FHS|^~\\&|||||||||F\rBHS$%*!@$$$$$$$$$B\rMSH|^~\\&|||||||ADT| 1 |P\rPID|1\rMSH|^~\\&|||||||ADT|2\rBTS|2\rFTS|1\r",
                "F B 1 2",
            ),
            ("without its own", "BHS|^~\\&\nMSH|^~\\&|||||||ADT|1\nMSH|^~\\&|||||||ADT|\"\"\n", "1"),
            ("nothing", "", ""),
        ] {
            let found: Vec<_> = super::control_ids(text.as_bytes()).map(String::from_utf8_lossy).collect();
            assert_eq!(found.join(" "), expected, "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_somehow(raw: Vec<u8>, rest: Vec<u8>) {
            let _ = Header::read(&raw);
            let _ = Header::read(&[b"MSH|", &raw[..], b"|||", &rest].concat());
        }

        #[test]
        fn a_naive_reading_reads_the_same(message in oracle::pieces(&[
            b"MSH|^~\\&|||||||A|", b"MSH$%*$$$$$$$A$1", b"FHS|^~\\&", b"BHS|^~\\&|||||||||", b"|P|2.5|||", b"AL", b"NE", b"\r", b"\n",
            b"|", b"$", b"^", b"~", b"\"\"", b" 1 ",
        ])) {
            let read = Header::read(&message).map(|header| oracle::NaiveHeader {
                control_id: header.control_id.to_vec(),
                commit: header.asked.commit,
                application: header.asked.application,
            });
            let control_id = read.as_ref().ok().map(|header| &header.control_id[..]);
            proptest::prop_assert_eq!(super::control_id(&message), control_id);
            proptest::prop_assert_eq!(read, oracle::header(&message));
        }
    }
}

//! Character sets: the names of HL7 Table 0211, text to bytes and back; the only file that names
//! `encoding_rs`.

use encoding_rs::{
    BIG5, EUC_KR, EncoderResult, Encoding, GB18030, ISO_2022_JP, ISO_8859_2, ISO_8859_3, ISO_8859_4, ISO_8859_5,
    ISO_8859_6, ISO_8859_7, ISO_8859_8, ISO_8859_15, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1254,
};
use memchr::memchr;

use crate::hl7::MessageError;
use crate::hl7::segment::{Delimiters, segments};

/// A character set that text can be sent in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Charset {
    /// Its name in Table 0211, or that of the encoding.
    name: &'static str,
    code: Code,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Utf8,
    /// One byte for each of the first so many characters of Unicode: ASCII, Latin-1.
    First(u32),
    /// Windows-1254 without what Windows put in the place of control characters: ISO 8859-9.
    Latin5,
    Other(&'static Encoding),
}

/// The names of Table 0211 that text can be sent in.
const TABLE: [(&str, Code); 17] = [
    ("ASCII", Code::First(0x80)),
    ("ISO IR6", Code::First(0x80)),
    ("8859/1", Code::First(0x100)),
    ("8859/2", Code::Other(ISO_8859_2)),
    ("8859/3", Code::Other(ISO_8859_3)),
    ("8859/4", Code::Other(ISO_8859_4)),
    ("8859/5", Code::Other(ISO_8859_5)),
    ("8859/6", Code::Other(ISO_8859_6)),
    ("8859/7", Code::Other(ISO_8859_7)),
    ("8859/8", Code::Other(ISO_8859_8)),
    ("8859/9", Code::Latin5),
    ("8859/15", Code::Other(ISO_8859_15)),
    (JIS_X_0208, Code::Other(ISO_2022_JP)),
    ("GB 18030-2000", Code::Other(GB18030)),
    ("KS X 1001", Code::Other(EUC_KR)),
    ("BIG-5", Code::Other(BIG5)),
    ("UNICODE UTF-8", Code::Utf8),
];

/// Kanji, beside ASCII, with the escape sequences of ISO 2022 between them.
const JIS_X_0208: &str = "ISO IR87";

const WIDE: &str = "its bytes include those of the frame, so that MLLP excludes it";
const NOT_COVERED: &str = "no encoder for it is at hand";

/// The names of Table 0211 that it cannot be sent in, and why.
const REFUSED: [(&str, &str); 6] = [
    ("ISO IR14", NOT_COVERED),
    ("ISO IR159", NOT_COVERED),
    ("CNS 11643-1992", NOT_COVERED),
    ("UNICODE", "it does not say which encoding of Unicode is meant; UNICODE UTF-8 does"),
    ("UNICODE UTF-16", WIDE),
    ("UNICODE UTF-32", WIDE),
];

impl Charset {
    pub(crate) const UTF_8: Charset = Charset { name: "UNICODE UTF-8", code: Code::Utf8 };

    /// The character set of this name in Table 0211, or by another name that is in use, as
    /// `windows-1252` or `ISO-8859-1`.
    pub(crate) fn named(name: &str) -> Result<Charset, MessageError> {
        let name = name.trim();
        let is = |known: &str| known.eq_ignore_ascii_case(name);
        if let Some(&(name, code)) = TABLE.iter().find(|(known, _)| is(known)) {
            return Ok(Charset { name, code });
        }
        if let Some(&(charset, reason)) = REFUSED.iter().find(|(known, _)| is(known)) {
            return Err(MessageError::UnsupportedCharset { charset, reason });
        }
        // By the names of the web, these two are the larger sets of Windows.
        for (standard, first, part) in [("8859/1", "ISO-8859-1", "ISO8859-1"), ("8859/9", "ISO-8859-9", "ISO8859-9")] {
            if is(first) || is(part) {
                return Charset::named(standard);
            }
        }
        match Encoding::for_label_no_replacement(name.as_bytes()) {
            Some(encoding) if encoding == UTF_8 => Ok(Charset::UTF_8),
            Some(encoding) if encoding == UTF_16LE || encoding == UTF_16BE => {
                Err(MessageError::UnsupportedCharset { charset: encoding.name(), reason: WIDE })
            }
            Some(encoding) => Ok(Charset { name: encoding.name(), code: Code::Other(encoding) }),
            None => Err(MessageError::UnknownCharset),
        }
    }

    /// The character set that MSH-18 of a message names; `None` if it names none.
    pub(crate) fn of_message(message: &[u8]) -> Option<Result<Charset, MessageError>> {
        let header = segments(message).next().filter(|header| header.starts_with(b"MSH"))?;
        let delimiters = Delimiters::of_header(header)?;
        let [field] = delimiters.header_fields(header, [18]);
        let named = |name: &&[u8]| !name.is_empty();
        let mut names = field.split(|&byte| byte == delimiters.repetition).map(<[u8]>::trim_ascii).filter(named);
        let first = names.next()?;
        // Japanese messages name ASCII first, or nothing, and change over by escape sequences.
        let name = names.find(|name| *name == JIS_X_0208.as_bytes()).unwrap_or(first);
        Some(std::str::from_utf8(name).map_err(|_| MessageError::UnknownCharset).and_then(Charset::named))
    }

    /// Text as it is sent. A character that the set does not have is an error, and none is
    /// replaced.
    pub(crate) fn encode(self, text: &str) -> Result<Vec<u8>, MessageError> {
        let lacks = |offset: usize| MessageError::Unencodable { offset, charset: self.name };
        let encoding = match self.code {
            Code::Utf8 => return Ok(text.as_bytes().to_vec()),
            Code::First(end) => {
                let byte = |(offset, c): (usize, char)| {
                    u8::try_from(u32::from(c)).ok().filter(|_| u32::from(c) < end).ok_or(lacks(offset))
                };
                return text.char_indices().map(byte).collect();
            }
            Code::Latin5 => WINDOWS_1254,
            Code::Other(encoding) => encoding,
        };
        let mut encoder = encoding.new_encoder();
        let room = encoder.max_buffer_length_from_utf8_without_replacement(text.len()).unwrap_or(usize::MAX / 2);
        let mut bytes = Vec::with_capacity(room);
        let (result, read) = encoder.encode_from_utf8_to_vec_without_replacement(text, &mut bytes, true);
        match result {
            EncoderResult::InputEmpty => {}
            EncoderResult::Unmappable(c) => return Err(lacks(read - c.len_utf8())),
            // There is room for the longest.
            EncoderResult::OutputFull => return Err(lacks(read)),
        }
        if self.code == Code::Latin5 {
            let of_windows = |(c, byte): (char, &u8)| (0x80..0xA0).contains(byte) && u32::from(c) != u32::from(*byte);
            if let Some(index) = text.chars().zip(&bytes).position(of_windows) {
                return Err(lacks(text.char_indices().nth(index).map_or(0, |(offset, _)| offset)));
            }
        }
        Ok(bytes)
    }

    /// An answer's text in UTF-8, by its own MSH-18 or else in this set; `None` where that changes
    /// nothing.
    pub(crate) fn decode(self, answer: &[u8]) -> Option<Vec<u8>> {
        // Without escape sequences ASCII is the same in all of them.
        if answer.is_ascii() && memchr(0x1B, answer).is_none() {
            return None;
        }
        match Charset::of_message(answer).and_then(Result::ok).unwrap_or(self).code {
            Code::Utf8 | Code::First(0x80) => None,
            Code::First(_) => Some(answer.iter().map(|&byte| char::from(byte)).collect::<String>().into_bytes()),
            Code::Latin5 => Some(WINDOWS_1254.decode_without_bom_handling(answer).0.into_owned().into_bytes()),
            Code::Other(encoding) => Some(encoding.decode_without_bom_handling(answer).0.into_owned().into_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text that the set of each name has, beside ASCII.
    const SAMPLES: [(&str, &str, &[u8]); 20] = [
        ("ASCII", "~", b"~"),
        ("ISO IR6", "~", b"~"),
        ("8859/1", "\u{e4}\u{ff}", b"\xE4\xFF"),
        ("8859/2", "\u{142}\u{17e}", b"\xB3\xBE"),
        ("8859/3", "\u{127}", b"\xB1"),
        ("8859/4", "\u{101}", b"\xE0"),
        ("8859/5", "\u{416}\u{451}", b"\xB6\xF1"),
        ("8859/6", "\u{628}", b"\xC8"),
        ("8859/7", "\u{3b1}", b"\xE1"),
        ("8859/8", "\u{5d0}", b"\xE0"),
        ("8859/9", "\u{11f}\u{131}", b"\xF0\xFD"),
        ("8859/15", "\u{20ac}", b"\xA4"),
        ("ISO IR87", "\u{65e5}", b"\x1B$BF|\x1B(B"),
        ("GB 18030-2000", "\u{4e2d}\u{1f600}", b"\xD6\xD0\x94\x39\xFC\x36"),
        ("KS X 1001", "\u{ac00}", b"\xB0\xA1"),
        ("BIG-5", "\u{4e2d}", b"\xA4\xA4"),
        ("UNICODE UTF-8", "\u{4e2d}", "\u{4e2d}".as_bytes()),
        ("windows-1252", "\u{20ac}", b"\x80"),
        ("Shift_JIS", "\u{8868}\u{30fc}", b"\x95\\\x81["),
        ("iso-8859-1", "\u{80}\u{e9}", b"\x80\xE9"),
    ];

    fn message(name: &str, text: &str) -> String {
        format!("MSH|^~\\&|||||||ACK|1|P|2.5||||||{name}\rMSA|AA|1|{text}\r")
    }

    #[test]
    fn every_set_goes_and_comes_back() {
        for (name, text, bytes) in SAMPLES {
            let charset = Charset::named(name).unwrap();
            assert_eq!(charset.encode(text).unwrap(), bytes, "{name}");
            let message = message(name, text);
            let sent = Charset::of_message(message.as_bytes()).unwrap().unwrap();
            assert_eq!(sent, charset, "{name}");
            let wire = sent.encode(&message).unwrap();
            let plain = Charset::UTF_8.decode(&wire).unwrap_or(wire);
            assert_eq!(String::from_utf8(plain).unwrap(), message, "{name}");
        }
        let covered: Vec<_> = SAMPLES.iter().map(|(name, ..)| *name).collect();
        assert!(TABLE.iter().all(|(name, _)| covered.contains(name)), "each has a sample");
    }

    #[test]
    fn the_verdict_is_that_of_the_bytes() {
        for (code, other) in [("AE", "AA"), ("AA", "AE")] {
            let escaped =
                format!("MSH|^~\\&|EHR||||||ACK|1|P|2.5||||||ISO IR87|\x1B$B\rMSA|{code}|1\r\x1B(B\rMSA|{other}|2\r");
            let ack = crate::Ack::parse(escaped).unwrap();
            assert_eq!((ack.code().as_str(), &*ack.control_id()), (code, "1"));
        }
    }

    #[test]
    fn what_a_set_lacks_is_told_with_its_place() {
        for (name, text, offset) in [
            ("ASCII", "ab\u{e4}", 2),
            ("8859/1", "\u{e4}\u{20ac}", 2),
            ("8859/5", "\u{416}x\u{e4}", 3),
            ("8859/9", "\u{11f}\u{20ac}", 2),
            ("8859/15", "x\u{a4}", 1),
            ("windows-1252", "\u{416}", 0),
            ("Shift_JIS", "\u{65e5}\u{1f600}", 3),
            ("ISO IR87", "a\u{ac00}", 1),
            ("KS X 1001", "\u{1f600}", 0),
        ] {
            let charset = Charset::named(name).unwrap();
            let error = charset.encode(text).unwrap_err();
            assert_eq!(error, MessageError::Unencodable { offset, charset: charset.name }, "{name}");
        }
    }

    #[test]
    fn names() {
        for (name, expected) in [
            ("unicode utf-8", Ok("UNICODE UTF-8")),
            ("UTF-8", Ok("UNICODE UTF-8")),
            (" 8859/1 ", Ok("8859/1")),
            ("latin1", Ok("windows-1252")),
            ("ISO8859-9", Ok("8859/9")),
            ("cp1252", Ok("windows-1252")),
            ("sjis", Ok("Shift_JIS")),
            ("ISO IR14", Err(MessageError::UnsupportedCharset { charset: "ISO IR14", reason: NOT_COVERED })),
            ("ISO IR159", Err(MessageError::UnsupportedCharset { charset: "ISO IR159", reason: NOT_COVERED })),
            (
                "CNS 11643-1992",
                Err(MessageError::UnsupportedCharset { charset: "CNS 11643-1992", reason: NOT_COVERED }),
            ),
            ("UNICODE UTF-16", Err(MessageError::UnsupportedCharset { charset: "UNICODE UTF-16", reason: WIDE })),
            ("UNICODE UTF-32", Err(MessageError::UnsupportedCharset { charset: "UNICODE UTF-32", reason: WIDE })),
            ("utf-16", Err(MessageError::UnsupportedCharset { charset: "UTF-16LE", reason: WIDE })),
            ("8859/99", Err(MessageError::UnknownCharset)),
            ("replacement", Err(MessageError::UnknownCharset)),
            ("", Err(MessageError::UnknownCharset)),
        ] {
            assert_eq!(Charset::named(name).map(|charset| charset.name), expected, "{name}");
        }
        assert!(Charset::named("UNICODE").is_err());
    }

    #[test]
    fn what_a_header_names() {
        for (field, expected) in [
            ("", None),
            ("8859/1", Some("8859/1")),
            ("~ISO IR87", Some("ISO IR87")),
            ("ASCII~ISO IR87", Some("ISO IR87")),
            ("ISO IR87", Some("ISO IR87")),
            ("8859/15~8859/1", Some("8859/15")),
        ] {
            let found = Charset::of_message(message(field, "").as_bytes()).map(|named| named.unwrap().name);
            assert_eq!(found, expected, "{field}");
        }
        assert_eq!(Charset::of_message(b"PID|1\r"), None);
        assert_eq!(Charset::of_message(message("nothing", "").as_bytes()), Some(Err(MessageError::UnknownCharset)));
    }
}

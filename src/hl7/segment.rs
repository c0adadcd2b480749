//! Cutting HL7 v2 text into segments, fields and components, by the delimiters that the text itself
//! names.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

use crate::frame::BYTE_ORDER_MARK;

/// The delimiters of one message: MSH-1 and MSH-2 (HL7 v2.5, chapter 2.5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delimiters {
    pub(crate) field: u8,
    pub(crate) component: u8,
    pub(crate) repetition: u8,
    pub(crate) escape: u8,
    pub(crate) subcomponent: u8,
}

impl Delimiters {
    /// Reads them from a header segment (MSH, BHS, FHS), which begins with its three-letter name.
    /// What MSH-2 leaves out is as HL7 recommends it.
    pub(crate) fn of_header(segment: &[u8]) -> Option<Delimiters> {
        let field = *segment.get(3)?;
        if !is_separator(field) {
            return None;
        }
        let encoding = nth(&segment[4..], field, 0);
        let character = |index: usize, usual: u8| encoding.get(index).copied().unwrap_or(usual);
        Some(Delimiters {
            field,
            component: character(0, b'^'),
            repetition: character(1, b'~'),
            escape: character(2, b'\\'),
            subcomponent: character(3, b'&'),
        })
    }

    /// The field with this number of an ordinary segment; empty where there is none.
    pub(crate) fn field<'m>(&self, segment: &'m [u8], number: usize) -> &'m [u8] {
        nth(segment, self.field, number)
    }

    /// The fields with these ascending numbers of an ordinary segment; empty where there are none.
    pub(crate) fn fields<'m, const N: usize>(&self, segment: &'m [u8], numbers: [usize; N]) -> [&'m [u8]; N] {
        // Done for every message and every acknowledgment: one pass, as far as needed, and byte by byte,
        // since a vectorised search would take longer to begin than to end.
        let mut found: [&[u8]; N] = [&[]; N];
        let (mut slot, mut passed, mut from) = (0, 0, 0);
        for (at, &byte) in segment.iter().enumerate() {
            if byte == self.field {
                if passed == numbers[slot] {
                    found[slot] = &segment[from..at];
                    slot += 1;
                    if slot == N {
                        return found;
                    }
                }
                passed += 1;
                from = at + 1;
            }
        }
        if passed == numbers[slot] {
            found[slot] = &segment[from..];
        }
        found
    }

    /// The fields with these ascending numbers of a header segment, where the first field is the
    /// separator itself.
    pub(crate) fn header_fields<'m, const N: usize>(&self, segment: &'m [u8], numbers: [usize; N]) -> [&'m [u8]; N] {
        self.fields(segment, numbers.map(|number| number - 1))
    }

    /// The component with this number (from 1) of a field.
    pub(crate) fn component<'m>(&self, field: &'m [u8], number: usize) -> &'m [u8] {
        nth(field, self.component, number - 1)
    }

    /// The first component of the first repetition, trimmed.
    pub(crate) fn first<'m>(&self, field: &'m [u8]) -> &'m [u8] {
        self.component(nth(field, self.repetition, 0), 1).trim_ascii()
    }

    /// Text with its escape sequences replaced (HL7 v2.5, chapter 2.7): `\F\ \S\ \T\ \R\ \E\`, and
    /// `\Xdd..\` by the bytes it stands for. Sequences that stand for formatting or another
    /// character set are left as they are.
    pub(crate) fn unescape<'m>(&self, text: &'m [u8]) -> Cow<'m, str> {
        if memchr(self.escape, text).is_none() {
            return String::from_utf8_lossy(text);
        }
        let mut plain = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(from) = memchr(self.escape, rest) {
            plain.extend_from_slice(&rest[..from]);
            rest = &rest[from..];
            let Some(length) = memchr(self.escape, &rest[1..]) else { break };
            let sequence = &rest[1..=length];
            if self.replace(sequence, &mut plain) {
                rest = &rest[length + 2..];
            } else {
                // The second escape character stays to open a sequence of its own.
                plain.extend_from_slice(&rest[..=length]);
                rest = &rest[length + 1..];
            }
        }
        plain.extend_from_slice(rest);
        Cow::Owned(String::from_utf8_lossy(&plain).into_owned())
    }

    /// Appends what an escape sequence stands for, or itself if it formats; `false` if it is none.
    fn replace(&self, sequence: &[u8], plain: &mut Vec<u8>) -> bool {
        match sequence {
            b"F" => plain.push(self.field),
            b"S" => plain.push(self.component),
            b"T" => plain.push(self.subcomponent),
            b"R" => plain.push(self.repetition),
            b"E" => plain.push(self.escape),
            [b'X', digits @ ..] if !digits.is_empty() && digits.len() % 2 == 0 => {
                let nibble = |digit: u8| char::from(digit).to_digit(16);
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return false;
                }
                plain.extend(digits.chunks_exact(2).filter_map(|pair| {
                    let value = nibble(pair[0])? << 4 | nibble(pair[1])?;
                    u8::try_from(value).ok()
                }));
            }
            [b'.' | b'C' | b'M' | b'Z', ..] | b"H" | b"N" => {
                plain.push(self.escape);
                plain.extend_from_slice(sequence);
                plain.push(self.escape);
            }
            _ => return false,
        }
        true
    }
}

/// The names of the segments that make up batches and files around messages.
pub(crate) const WRAPPERS: [&[u8; 3]; 4] = [b"FHS", b"BHS", b"BTS", b"FTS"];

/// Whether a segment has one of these names. A field separator follows it; a trailer may have no
/// field, so that the end of a line, or nothing, may follow as well.
pub(crate) fn is_named(segment: &[u8], names: &[&[u8; 3]]) -> bool {
    let follows = |byte: &u8| is_separator(*byte) || b"\r\n".contains(byte);
    names.iter().any(|name| segment.starts_with(*name)) && segment.get(3).is_none_or(follows)
}

/// Whether a line begins with the name of a header or trailer, in letters of any case.
pub(crate) fn has_reserved_name(line: &[u8]) -> bool {
    let is_own = |name: &&[u8; 3]| line.get(..3).is_some_and(|own| own.eq_ignore_ascii_case(*name));
    WRAPPERS.iter().chain(&[b"MSH"]).any(is_own)
}

/// Whether a byte can separate fields.
pub(crate) fn is_separator(byte: u8) -> bool {
    byte > b' ' && !byte.is_ascii_alphanumeric()
}

/// The segments of a message in order, without their ends (CR, LF or CRLF) and without empty ones.
pub(crate) fn segments(message: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = message;
    std::iter::from_fn(move || {
        loop {
            if rest.is_empty() {
                return None;
            }
            let end = memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
            let segment = &rest[..end];
            rest = rest.get(end + 1..).unwrap_or_default();
            if !segment.is_empty() {
                return Some(segment);
            }
        }
    })
}

/// A text without the byte-order marks (UTF-8) at its beginning.
pub(crate) fn without_mark(mut text: &[u8]) -> &[u8] {
    while let Some(rest) = text.strip_prefix(BYTE_ORDER_MARK) {
        text = rest;
    }
    text
}

/// Where a part of a text begins in it.
pub(crate) fn offset_of(part: &[u8], text: &[u8]) -> usize {
    part.as_ptr().addr() - text.as_ptr().addr()
}

/// The part with this index (from 0) of what a separator cuts; empty where there is none.
pub(crate) fn nth(text: &[u8], separator: u8, index: usize) -> &[u8] {
    text.split(|&byte| byte == separator).nth(index).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delimiters() {
        let usual = Delimiters { field: b'|', component: b'^', repetition: b'~', escape: b'\\', subcomponent: b'&' };
        for (name, header, expected) in [
            ("usual", &b"MSH|^~\\&|LAB"[..], Some(usual)),
            ("bare", b"MSH|", Some(usual)),
            ("short MSH-2", b"MSH|^~|LAB", Some(usual)),
            ("no MSH-2", b"MSH||LAB", Some(usual)),
            (
                "a site's own",
                b"MSH$%*!@$LAB",
                Some(Delimiters { field: b'$', component: b'%', repetition: b'*', escape: b'!', subcomponent: b'@' }),
            ),
            ("ends after the name", b"MSH", None),
            ("a letter", b"MSHX^~\\&X", None),
            ("a digit", b"MSH1^~\\&1", None),
            ("a space", b"MSH ^~\\&", None),
            ("a tab", b"MSH\t^~\\&", None),
        ] {
            assert_eq!(Delimiters::of_header(header), expected, "{name}");
        }
    }

    #[test]
    fn segments_end_as_people_end_them() {
        let expected: [&[u8]; 3] = [b"MSH|1", b"MSA|2", b"ERR"];
        for (name, text) in [
            ("CR", &b"MSH|1\rMSA|2\rERR\r"[..]),
            ("LF", b"MSH|1\nMSA|2\nERR\n"),
            ("CRLF", b"MSH|1\r\nMSA|2\r\nERR\r\n"),
            ("no last end", b"MSH|1\rMSA|2\rERR"),
            ("blank lines", b"\r\rMSH|1\r\r\nMSA|2\n\nERR\r\r"),
        ] {
            assert!(segments(text).eq(expected), "{name}");
        }
        assert_eq!(segments(b"").count(), 0);
        assert_eq!(segments(b"\r\n\r").count(), 0);
    }

    #[test]
    fn parts() {
        for (text, index, expected) in
            [("a|b|c", 0, "a"), ("a|b|c", 1, "b"), ("a|b|c", 2, "c"), ("a|b|c", 3, ""), ("", 0, ""), ("|", 1, "")]
        {
            assert_eq!(nth(text.as_bytes(), b'|', index), expected.as_bytes(), "{text} {index}");
        }
    }

    #[test]
    fn fields() {
        let delimiters = Delimiters::of_header(b"MSH|^~\\&|").unwrap();
        let segment = b"ERR|a||c|";
        assert_eq!(delimiters.fields(segment, [0, 1, 2, 3, 4, 5]), [&b"ERR"[..], b"a", b"", b"c", b"", b""]);
        assert_eq!(delimiters.fields(segment, [1, 3, 9]), [&b"a"[..], b"c", b""]);
        assert_eq!(delimiters.header_fields(b"MSH|^~\\&|LAB", [2, 3, 4]), [&b"^~\\&"[..], b"LAB", b""]);
        assert_eq!(delimiters.fields(b"", [0, 1]), [b"", b""]);
    }

    proptest::proptest! {
        #[test]
        fn fields_are_what_a_split_finds(segment in proptest::collection::vec(proptest::sample::select(&b"|ab\x7C\xFC\0"[..]), 0..40)) {
            let delimiters = Delimiters::of_header(b"MSH|^~\\&|").unwrap();
            let naive: Vec<&[u8]> = segment.split(|&byte| byte == b'|').collect();
            let field = |number: usize| naive.get(number).copied().unwrap_or_default();
            let numbers = [0, 1, 2, 5, 9];
            proptest::prop_assert_eq!(delimiters.fields(&segment, numbers), numbers.map(field));
        }
    }

    #[test]
    fn escapes() {
        let delimiters = Delimiters::of_header(b"MSH|^~\\&|").unwrap();
        for (text, expected) in [
            ("plain", "plain"),
            (r"a\F\b\S\c\T\d\R\e\E\f", r"a|b^c&d~e\f"),
            (r"\X41\\X4243\", "ABC"),
            (r"\XC3A9\", "é"),
            (r"\Xc3a9\", "é"),
            (r"\X4\", r"\X4\"),
            (r"\X\", r"\X\"),
            (r"\Xgg\", r"\Xgg\"),
            (r"\.br\", r"\.br\"),
            (r"\.br\F\", r"\.br\F\"),
            (r"\H\bold\N\", r"\H\bold\N\"),
            (r"a\", r"a\"),
            (r"a\Fb", r"a\Fb"),
            (r"\\", r"\\"),
            (r"\\F\", r"\|"),
            (r"C:\dir\F\", r"C:\dir|"),
        ] {
            assert_eq!(delimiters.unescape(text.as_bytes()), expected, "{text}");
        }
        assert!(matches!(delimiters.unescape(b"plain"), Cow::Borrowed("plain")));
        assert_eq!(delimiters.unescape(b"caf\xE9"), "caf\u{FFFD}");
    }
}

//! Whatever bytes are cut into messages: nothing is lost, and each is as it is sent.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mllp_client::{MessageError, messages};

/// The names of what stands around messages and is left out.
const WRAPPERS: [&[u8]; 4] = [b"FHS", b"BHS", b"BTS", b"FTS"];

fuzz_target!(|text: &[u8]| {
    let found: Vec<_> = messages::split(text).collect();
    let located: Vec<_> = messages::locate(text).collect();
    assert!(located.iter().map(|it| &it.message).eq(&found));
    let lines = located.iter().flat_map(|it| [it.line, it.problem.map_or(it.line, |problem| problem.line)]);
    let last = 1 + text.iter().filter(|byte| b"\r\n".contains(byte)).count();
    assert!(lines.is_sorted() && located.iter().all(|it| (1..=last).contains(&it.line)));
    for it in &located {
        if let Some(MessageError::NotASegment { offset, .. }) = it.problem.map(|problem| problem.error) {
            let line = it.message[offset..].split(|&byte| byte == b'\r').next().unwrap();
            let separator = it.message[3];
            let name = line.get(..3).unwrap_or_default().to_ascii_uppercase();
            let is_reserved = name == b"MSH" || WRAPPERS.contains(&&name[..]);
            let is_named = name.len() == 3 && name.iter().all(u8::is_ascii_alphanumeric) && !is_reserved;
            assert!(!is_named || line.get(3).is_some_and(|&byte| byte != separator), "a segment is called none");
        }
    }
    if [&b"\xFF\xFE"[..], b"\xFE\xFF", b"M\0S\0H\0", b"\0M\0S\0H"].iter().any(|start| text.starts_with(start)) {
        assert_eq!(found, [text]);
        return;
    }
    for message in &found {
        assert!(message.ends_with(b"\r") && message.iter().any(|byte| !b" \t\0\x1A\r\n\x0C".contains(byte)));
        let headers = message.split(|&byte| byte == b'\r').skip(1).filter(|segment| segment.starts_with(b"MSH|^~\\&|"));
        assert_eq!(headers.count(), 0, "a header inside of a message");
    }
    let whole = found.concat();
    if !text.windows(3).any(|name| WRAPPERS.contains(&name)) {
        assert_eq!(kept(&whole), kept(text), "something is lost");
    }
    // Bytes of frames may have been content, what cannot be sent is kept as it was, and whether a message
    // is quoted depends on what stands around it.
    let quotes = whole.windows(4).any(|bytes| matches!(bytes, [b'\n' | 0x0C, b'M' | b'B' | b'F', _, b'H' | b'S']));
    if !quotes && located.iter().all(|it| it.problem.is_none()) && !text.iter().any(|byte| b"\x0B\x1C".contains(byte)) {
        assert_eq!(messages::split(&whole).collect::<Vec<_>>().concat(), whole);
    }
});

/// All bytes but those of which blank lines, line ends, frames and byte-order marks are made.
fn kept(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|byte| !b" \t\0\x1A\r\n\x0C\x0B\x1C\xEF\xBB\xBF".contains(byte)).collect()
}

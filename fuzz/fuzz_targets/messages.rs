//! Whatever bytes are cut into messages: nothing is lost, and each is as it is sent.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mllp_client::messages;

fuzz_target!(|text: &[u8]| {
    let found: Vec<_> = messages::split(text).collect();
    for message in &found {
        assert!(message.ends_with(b"\r") && !message.contains(&0x0B) && !message.contains(&0x1C));
        let segments: Vec<_> = message.split(|&byte| byte == b'\r').filter(|segment| !segment.is_empty()).collect();
        assert!(!segments.is_empty() && segments[1..].iter().all(|segment| !is_named(segment, &[b"MSH"])));
    }
    // Inside of a frame line feeds may be content.
    if !text.contains(&0x0B) {
        assert_eq!(found.concat(), lines(text));
        let again: Vec<_> = found.iter().flat_map(|message| messages::split(message)).collect();
        assert_eq!(again, found);
    }
});

/// All lines that are to be sent, each ended by a Carriage Return.
fn lines(text: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    for line in text.split(|byte| b"\r\n\x0C\x1C".contains(byte)) {
        let line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        if !line.iter().all(|byte| b" \t\0\x1A".contains(byte)) && !is_named(line, &[b"FHS", b"BHS", b"BTS", b"FTS"]) {
            kept.extend_from_slice(line);
            kept.push(b'\r');
        }
    }
    kept
}

fn is_named(segment: &[u8], names: &[&[u8; 3]]) -> bool {
    names.iter().any(|name| segment.starts_with(*name)) && !segment.get(3).is_some_and(u8::is_ascii_alphanumeric)
}

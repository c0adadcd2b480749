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
    // Inside of a frame line feeds and form feeds may be content.
    if !text.contains(&0x0B) || !text.iter().any(|byte| b"\n\x0C".contains(byte)) {
        assert_eq!(found, expected(text));
        let whole = found.concat();
        assert_eq!(messages::split(&whole).collect::<Vec<_>>().concat(), whole);
    }
});

/// The messages in a text in which each of these bytes ends a line.
fn expected(text: &[u8]) -> Vec<Vec<u8>> {
    let mut messages: Vec<Vec<u8>> = Vec::new();
    let mut goes_on = false;
    for line in text.split_inclusive(|byte| b"\r\n\x0B\x0C\x1C".contains(byte)) {
        let (line, frame_ends) = match line {
            [line @ .., 0x0B | 0x1C] => (line, true),
            [line @ .., b'\r' | b'\n' | 0x0C] => (line, false),
            line => (line, false),
        };
        let mut line = line;
        while let Some(rest) = line.strip_prefix(b"\xEF\xBB\xBF") {
            line = rest;
        }
        let blank = line.iter().all(|byte| b" \t\0\x1A".contains(byte));
        let wraps = is_named(line, &[b"FHS", b"BHS", b"BTS", b"FTS"]);
        goes_on &= !wraps && !is_named(line, &[b"MSH"]);
        if !blank && !wraps {
            if !goes_on {
                messages.push(Vec::new());
            }
            goes_on = true;
            let message = messages.last_mut().unwrap();
            message.extend_from_slice(line);
            message.push(b'\r');
        }
        goes_on &= !frame_ends;
    }
    messages
}

fn is_named(segment: &[u8], names: &[&[u8; 3]]) -> bool {
    names.iter().any(|name| segment.starts_with(*name)) && !segment.get(3).is_some_and(u8::is_ascii_alphanumeric)
}

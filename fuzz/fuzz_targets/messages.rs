//! Whatever bytes are cut into messages: nothing is lost, and each is as it is sent.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mllp_client::messages;

/// The names of what stands around messages and is left out.
const WRAPPERS: [&[u8]; 4] = [b"FHS", b"BHS", b"BTS", b"FTS"];

fuzz_target!(|text: &[u8]| {
    let found: Vec<_> = messages::split(text).collect();
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
    // Bytes of frames may have been content, and in text without a header it depends on what stood before.
    let have_headers = found.iter().all(|message| message.starts_with(b"MSH|^~\\&|"));
    if have_headers && !text.iter().any(|byte| b"\x0B\x1C".contains(byte)) {
        assert_eq!(messages::split(&whole).collect::<Vec<_>>().concat(), whole);
    }
});

/// All bytes but those of which blank lines, line ends, frames and byte-order marks are made.
fn kept(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|byte| !b" \t\0\x1A\r\n\x0C\x0B\x1C\xEF\xBB\xBF".contains(byte)).collect()
}

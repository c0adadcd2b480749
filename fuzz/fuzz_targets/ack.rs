//! Whatever bytes come as an acknowledgment, reading it and every view of it ends without a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mllp_client::Ack;

fuzz_target!(|raw: &[u8]| {
    let Ok(ack) = Ack::parse(raw) else { return };
    assert_eq!(ack.raw(), raw);
    let _ = (ack.code(), ack.control_id(), ack.text(), format!("{ack:?}"));
    for detail in ack.errors() {
        let _ = (detail.code(), detail.severity(), detail.location(), detail.text(), format!("{detail:?}"));
    }
});

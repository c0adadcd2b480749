//! Whatever bytes come as an acknowledgment: they are read as a naive reading reads them, the same each time, and no view of them panics.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mllp_client::Ack;
use mllp_client::fuzzing::oracle;

fuzz_target!(|raw: &[u8]| {
    let ack = match (Ack::parse(raw), oracle::acknowledgment(raw)) {
        (Ok(ack), Ok(expected)) => {
            assert_eq!(ack.code(), expected.code);
            assert_eq!(ack.control_id(), String::from_utf8_lossy(&expected.control_id));
            assert_eq!(ack.text().is_some(), !expected.text.is_empty());
            ack
        }
        (Err(error), Err(expected)) => return assert_eq!(error, expected),
        (read, expected) => panic!("{read:?}, and not {expected:?}"),
    };
    assert_eq!(ack.raw(), raw);
    assert!(Ack::parse(ack.raw()) == Ok(ack.clone()));
    let shown = format!("{ack:?}");
    assert!(shown.len() < 4096, "an acknowledgment's Debug is bounded");
    for detail in ack.errors() {
        let _ = (detail.code(), detail.severity(), detail.location(), detail.text(), format!("{detail:?}"));
    }
});

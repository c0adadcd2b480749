//! Whatever bytes come, and however they are cut, the scanner finds the same frames and keeps its limit.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mllp_client::frame::{FrameError, Framing, Scanner};

type Found = (Vec<Vec<u8>>, Option<FrameError>);

fuzz_target!(|input: (u8, u8, Vec<u8>, Vec<u8>)| {
    let (kind, limit, cuts, wire) = input;
    let framing = match kind % 5 {
        0 => Framing::default(),
        1 => Framing::default().allow_missing_carriage_return(true),
        2 => Framing::default().allow_leading_bytes(true),
        3 => Framing::custom(b"<<", b"->").unwrap(),
        _ => Framing::custom(b"\x02", b"\x03").unwrap(),
    };
    let limit = usize::from(limit);
    let whole = scan(&framing, limit, &wire, []);
    let mut at = 0;
    let cuts = cuts.iter().map(|&step| {
        at = (at + usize::from(step)).min(wire.len());
        at
    });
    assert_eq!(scan(&framing, limit, &wire, cuts.collect::<Vec<_>>()), whole);
    for content in &whole.0 {
        assert!(content.len() <= limit);
    }
});

fn scan(framing: &Framing, limit: usize, wire: &[u8], cuts: impl IntoIterator<Item = usize>) -> Found {
    let mut scanner = Scanner::new(framing.clone(), limit);
    let (mut found, mut used) = (Vec::new(), 0);
    for cut in cuts.into_iter().chain([wire.len()]) {
        loop {
            match scanner.scan(&wire[used..cut.max(used)]) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    found.push(frame.payload.to_vec());
                    used += frame.end;
                }
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

//! Whatever bytes come, and however they are cut, the scanner finds what a naive reading finds, keeps its limit, and looks at nothing twice.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mllp_client::frame::{FrameError, Framing, Scanner};
use mllp_client::fuzzing::oracle::{self, Frames};

/// No marker is longer; so many bytes may be looked at again, since they may be the beginning of one.
const MAX_MARKER: usize = 8;

fuzz_target!(|input: (u8, u16, Vec<u8>, Vec<u8>)| {
    let (kind, limit, steps, wire) = input;
    let limit = usize::from(limit % 1024);
    let (framing, grammar) = oracle::framing(kind.into());
    let expected = grammar.frames(limit, &wire);
    let mut at = 0;
    let cuts: Vec<usize> = steps
        .iter()
        .map(|&step| {
            at = (at + usize::from(step)).min(wire.len());
            at
        })
        .collect();
    for cuts in [Vec::new(), cuts.clone(), (0..wire.len()).collect()] {
        let found = scan(&framing, limit, &wire, &cuts);
        assert!(found.contents.iter().all(|(content, _)| content.len() <= limit));
        if cuts.is_empty() || !grammar.missing_carriage_return {
            assert_eq!(found, expected);
        } else {
            // A Carriage Return that comes late is filler before the next frame.
            let contents =
                |frames: &Frames| frames.contents.iter().map(|(content, _)| content.clone()).collect::<Vec<_>>();
            assert_eq!((contents(&found), found.error), (contents(&expected), expected.error));
        }
    }
    look_once(&framing, limit, &wire, &cuts);
});

fn scan(framing: &Framing, limit: usize, wire: &[u8], cuts: &[usize]) -> Frames {
    let mut scanner = Scanner::new(framing.clone(), limit);
    let (mut found, mut used) = (Frames::default(), 0);
    for cut in cuts.iter().copied().chain([wire.len()]) {
        loop {
            match scanner.scan(&wire[used..cut.max(used)]) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    used += frame.end;
                    found.contents.push((frame.payload.to_vec(), used));
                    found.skipped.push(frame.skipped);
                }
                Err(error) => return Frames { error: Some(error), ..found },
            }
        }
    }
    found
}

/// Bytes that were looked at and are then made into something else make no difference: the work is linear, however the bytes come.
fn look_once(framing: &Framing, limit: usize, wire: &[u8], cuts: &[usize]) {
    let mut plain = Scanner::new(framing.clone(), limit);
    let mut spoilt = Scanner::new(framing.clone(), limit);
    let spoil = framing.encode(b"x").unwrap_or_default();
    let mut bytes = wire.to_vec();
    for &cut in cuts.iter().chain([&wire.len()]) {
        let of = |result: Result<Option<mllp_client::frame::Frame<'_>>, FrameError>| {
            result.map(|frame| frame.map(|frame| (frame.payload.len(), frame.end, frame.skipped)))
        };
        let result = of(plain.scan(&wire[..cut]));
        assert_eq!(of(spoilt.scan(&bytes[..cut])), result);
        if !matches!(result, Ok(None)) {
            break;
        }
        for (place, byte) in bytes[..cut.saturating_sub(MAX_MARKER)].iter_mut().zip(spoil.iter().cycle()) {
            *place = *byte;
        }
    }
}

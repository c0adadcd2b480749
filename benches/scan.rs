//! How fast a frame's end is found, beside `memchr` alone on the same bytes, and beside the decoder
//! of hl7-mllp-codec, in the same run.
//!
//! `memchr` looks for the End Block only; the scanner looks for a Start Block as well, as a
//! truncated frame would show one. `memchr2`, which looks for both, is the limit of that.

mod common;

use std::hint::black_box;
use std::time::Instant;

use bytes::BytesMut;
use common::{median, note};
use hl7_mllp_codec::MllpCodec;
use memchr::{memchr, memchr2};
use mllp_client::frame::{END_BLOCK, Framing, START_BLOCK, Scanner};
use tokio_util::codec::Decoder;

const ROUNDS: usize = 31;
const PIECE: usize = 1_460;

fn main() {
    println!(
        "\n{:<10}{:>14}{:>14}{:>14}{:>9}{:>9}{:>20}{:>14}",
        "GB/s", "memchr", "memchr2", "scanner", "/1", "/2", "1 460-byte pieces", "codec"
    );
    for (name, size) in [("1 KB", 1_000), ("64 KB", 64_000), ("10 MB", 10_000_000)] {
        let content = vec![b'x'; size];
        let frame = Framing::default().encode(&content).expect("the content has no framing byte");
        let mut scanner = Scanner::new(Framing::default(), usize::MAX);
        let repeats = (50_000_000 / size).max(3);
        let mut rates = [const { Vec::new() }; 5];
        for _ in 0..ROUNDS {
            let taken = [
                rate(size, repeats, || memchr(END_BLOCK, black_box(&frame[1..]))),
                rate(size, repeats, || memchr2(START_BLOCK, END_BLOCK, black_box(&frame[1..]))),
                rate(size, repeats, || scanner.scan(black_box(&frame)).expect("it is a frame").map(|found| found.end)),
                rate(size, repeats, || in_pieces(&mut scanner, black_box(&frame))),
                by_codec(size, repeats.min(20_000), &frame),
            ];
            rates.iter_mut().zip(taken).for_each(|(rates, rate)| rates.push(rate));
        }
        let [one, two, scanned, pieces, codec] = rates.map(|rates| median(rates.into_iter()));
        println!(
            "{name:<10}{one:>14.1}{two:>14.1}{scanned:>14.1}{:>9.2}{:>9.2}{pieces:>20.1}{codec:>14.1}",
            scanned / one,
            scanned / two
        );
        note("Finding a frame's end, beside memchr", name, "scan", one / scanned);
        note("Finding a frame's end, beside memchr", name, "hl7-mllp-codec", one / codec);
    }
}

/// It takes its bytes away, so that there are some for each time.
fn by_codec(size: usize, repeats: usize, frame: &[u8]) -> f64 {
    let mut received = vec![BytesMut::from(frame); repeats + 1];
    let mut codec = MllpCodec::new();
    rate(size, repeats, || {
        let mut received = black_box(received.pop()?);
        codec.decode(&mut received).expect("it is a frame").map(|content| content.len())
    })
}

/// The frame as it comes from a network: each call sees everything so far.
fn in_pieces(scanner: &mut Scanner, frame: &[u8]) -> Option<usize> {
    (PIECE..frame.len())
        .step_by(PIECE)
        .chain([frame.len()])
        .find_map(|length| scanner.scan(&frame[..length]).expect("it is a frame").map(|found| found.end))
}

/// Gigabytes a second, once the bytes are where the last level of the cache has them, if it has
/// room.
fn rate(size: usize, repeats: usize, mut work: impl FnMut() -> Option<usize>) -> f64 {
    assert!(black_box(work()).is_some());
    let begun = Instant::now();
    for _ in 0..repeats {
        assert!(black_box(work()).is_some());
    }
    (size * repeats) as f64 / begun.elapsed().as_secs_f64() / 1e9
}

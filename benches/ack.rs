//! What reading an acknowledgment costs, beside what cannot be left out: a look at each of its
//! bytes for the ends of segments and fields.

mod common;

use std::hint::black_box;

use common::{compare_runs, note};
use mllp_client::Ack;

const REPEATS: usize = 20_000;

fn main() {
    let header = "MSH|^~\\&|EHR|NORTH|LAB|NORTH|20260101120000||ACK^R01^ACK|1|P|2.5\r";
    let refused = "ERR||PID^1^5|101^Required field missing^HL70357|E||||the name is missing\r";
    println!("{:<28}{:>12}{:>12}{:>8}", "", "a look", "parse", "");
    for (name, raw) in [
        ("accepted", format!("{header}MSA|AA|MSG00001\r")),
        ("refused, 3 errors", format!("{header}MSA|AE|MSG00001|no\r{}", refused.repeat(3))),
        ("refused, 1000 errors", format!("{header}MSA|AE|MSG00001|no\r{}", refused.repeat(1000))),
    ] {
        let repeats = REPEATS / raw.len().div_ceil(1000);
        let ([look, parse], [_, ratio]) = compare_runs([
            &mut || {
                for _ in 0..repeats {
                    // The bytes are the caller's own, as those that are parsed are.
                    let raw = black_box(raw.as_bytes()).to_vec();
                    black_box(memchr::memchr2_iter(b'\r', b'|', &raw).count());
                }
            },
            &mut || {
                for _ in 0..repeats {
                    let ack = Ack::parse(black_box(raw.as_bytes())).expect("it is an acknowledgment");
                    black_box((ack.code(), ack.control_id(), ack.errors().filter_map(|error| error.code()).count()));
                }
            },
        ]);
        let each = |run: f64| run * 1e9 / repeats as f64;
        println!("{name:<28}{:>9.0} ns{:>9.0} ns{ratio:>8.2}", each(look), each(parse));
        note("Reading an acknowledgment, beside a look at its bytes", name, "parse", ratio);
    }
}

//! A connection, or a client with one, and peers that say anything at any time and take what they are sent in any way: what holds is
//! in the crate's `fuzzing/trial.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mllp_client::fuzzing::trial;

fuzz_target!(|bytes: &[u8]| trial::play(bytes, |work| allocation_counter::measure(work).bytes_max));

//! Whatever bytes are to be sent, their header is read as a naive reading reads it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mllp_client::fuzzing::{inside, oracle};

fuzz_target!(|message: &[u8]| {
    assert_eq!(inside::header(message), oracle::header(message));
});

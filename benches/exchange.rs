//! What an exchange costs beside a bare `write` and `read` on the same kind of socket, in the same run.
//!
//! The three take turns, so that whatever else the machine does meets all of them, and a ratio is the median of the rounds'
//! own. The bare socket is set up as the client's: TCP_NODELAY, and a time-out for reading and writing. The table is printed
//! twice: with the ends on a core each, and with both on one (the only table under `taskset -c 0`), where waking the other core
//! does not hide what the client costs.

mod common;

use std::hint::black_box;

use common::{compare, connect, exchange_bare, message, placements, run_on, serve};
use mllp_client::{Client, frame::Framing};

const SIZES: [(&str, usize); 5] =
    [("200 B", 200), ("1 KB", 1_000), ("64 KB", 64_000), ("1 MB", 1_000_000), ("10 MB", 10_000_000)];

fn main() {
    for (title, here, there) in placements() {
        run_on(here);
        println!("\n{title:<24}{:>12}{:>12}{:>8}{:>12}{:>8}", "bare", "exchange", "", "send", "");
        for (name, size) in SIZES {
            let message = message(size);
            let frame = Framing::default().encode(&message).expect("the message has no framing byte");
            let address = serve(3, there, |stream| stream);
            let mut bare = connect(address);
            let endpoint = format!("mllp://{address}");
            let mut connection = Client::builder(&endpoint).connect().expect("the receiver listens");
            let client = Client::new(&endpoint).expect("the endpoint is one");
            let ([bare, exchange, send], [_, exchange_ratio, send_ratio]) = compare(
                size,
                [
                    &mut || exchange_bare(&mut bare, &frame),
                    &mut || {
                        black_box(connection.exchange(&message).expect("it is answered"));
                    },
                    &mut || {
                        black_box(client.send(&message).expect("it is accepted"));
                    },
                ],
            );
            println!("{name:<24}{bare:>9.2} us{exchange:>9.2} us{exchange_ratio:>8.3}{send:>9.2} us{send_ratio:>8.3}");
        }
    }
}

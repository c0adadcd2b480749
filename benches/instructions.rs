//! Makes a number of warm exchanges of 1 KB, for `instructions.sh`, which counts what they take.
//!
//! `instructions serve` prints the address of a receiver; `instructions KIND ADDRESS COUNT`
//! exchanges with it, by `exchange` or `send`.

mod common;

use std::hint::black_box;
use std::{env, thread};

use common::{Messages, serve_anywhere};
use mllp_client::Client;

const SIZE: usize = 1_000;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve"] => {
            println!("{}", serve_anywhere(16));
            thread::park();
        }
        ["exchange", address, count] => {
            let endpoint = format!("mllp://{address}");
            let mut connection = Client::builder(&endpoint).connect().expect("the receiver listens");
            exchange(count, |message| {
                black_box(connection.exchange(message).expect("it is answered"));
            });
        }
        ["send", address, count] => {
            let client = Client::new(&format!("mllp://{address}")).expect("the endpoint is one");
            exchange(count, |message| {
                black_box(client.send(message).expect("it is accepted"));
            });
        }
        _ => println!("see benches/instructions.sh"),
    }
}

fn exchange(count: &str, mut exchange: impl FnMut(&[u8])) {
    let mut messages = Messages::new(SIZE);
    for _ in 0..count.parse::<usize>().expect("a count is a number") {
        exchange(messages.next());
    }
}

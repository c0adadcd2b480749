//! What an exchange costs beside a bare `write` and `read` on the same kind of socket, in the same run.
//!
//! The three take turns, so that whatever else the machine does meets all of them, and a ratio is the median of the rounds'
//! own. The bare socket is set up as the client's: TCP_NODELAY, and a time-out for reading and writing. The table is printed
//! twice: with the ends on a core each, and with both on one (the only table under `taskset -c 0`), where waking the other core
//! does not hide what the client costs.

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use mllp_client::{Client, frame::Framing};

const ROUNDS: usize = 41;
const SIZES: [(&str, usize); 5] =
    [("200 B", 200), ("1 KB", 1_000), ("64 KB", 64_000), ("1 MB", 1_000_000), ("10 MB", 10_000_000)];

fn main() {
    let cores = core_affinity::get_core_ids().expect("the system tells its cores");
    if let [first, second, ..] = cores[..] {
        table("a core for each end", first, second);
    }
    table("both ends on one core", cores[0], cores[0]);
}

fn table(title: &str, here: CoreId, there: CoreId) {
    assert!(core_affinity::set_for_current(here), "this thread may run there");
    println!("\n{title:<24}{:>12}{:>12}{:>8}{:>12}{:>8}", "bare", "exchange", "", "send", "");
    for (name, size) in SIZES {
        let message = message(size);
        let frame = Framing::default().encode(&message).expect("the message has no framing byte");
        let address = serve(there);
        let mut bare = TcpStream::connect(address).expect("the receiver listens");
        let limit = Some(Duration::from_secs(30));
        bare.set_nodelay(true).expect("a TCP socket takes it");
        bare.set_read_timeout(limit).expect("a TCP socket takes it");
        bare.set_write_timeout(limit).expect("a TCP socket takes it");
        let endpoint = format!("mllp://{address}");
        let mut connection = Client::builder(&endpoint).connect().expect("the receiver listens");
        let client = Client::new(&endpoint).expect("the endpoint is one");
        let mut reply = [0; 4096];

        let mut rounds = Vec::new();
        let repeats = (10_000_000 / size).clamp(8, 2_000);
        // The first round warms up.
        for round in 0..=ROUNDS {
            let taken = [
                time(repeats, || exchange_bare(&mut bare, &frame, &mut reply)),
                time(repeats, || {
                    black_box(connection.exchange(&message).expect("it is answered"));
                }),
                time(repeats, || {
                    black_box(client.send(&message).expect("it is accepted"));
                }),
            ];
            if round > 0 {
                rounds.push(taken);
            }
        }
        let [bare, exchange, send] = [0, 1, 2].map(|which| median(rounds.iter().map(|round| round[which])));
        let [exchange_ratio, send_ratio] =
            [1, 2].map(|which| median(rounds.iter().map(|round| round[which] / round[0])));
        println!("{name:<24}{bare:>9.2} us{exchange:>9.2} us{exchange_ratio:>8.3}{send:>9.2} us{send_ratio:>8.3}");
    }
}

fn message(size: usize) -> Vec<u8> {
    let mut message = b"MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5\rOBX|1|TX|".to_vec();
    message.resize(size - 1, b'x');
    message.push(b'\r');
    message
}

/// A receiver that does no more than it must; one thread for each connection.
fn serve(core: CoreId) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for connection in listener.incoming().take(3) {
            let mut connection = connection.expect("it connected");
            thread::spawn(move || {
                assert!(core_affinity::set_for_current(core), "this thread may run there");
                connection.set_nodelay(true).expect("a TCP socket takes it");
                let answer = b"\x0BMSH|^~\\&|EHR|H|LAB|H|20260101||ACK^R01|1|P|2.5\rMSA|AA|MSG1\r\x1C\r";
                let mut buffer = vec![0; 256 * 1024];
                while let Ok(count @ 1..) = connection.read(&mut buffer) {
                    if buffer[..count].ends_with(b"\x1C\r") {
                        connection.write_all(answer).expect("the client reads");
                    }
                }
            });
        }
    });
    address
}

fn exchange_bare(stream: &mut TcpStream, frame: &[u8], reply: &mut [u8]) {
    stream.write_all(frame).expect("the receiver reads");
    let mut received = 0;
    while !reply[..received].ends_with(b"\x1C\r") {
        received += stream.read(&mut reply[received..]).expect("the receiver answers");
    }
    black_box(&reply[..received]);
}

/// Microseconds for one of `repeats`.
fn time(repeats: usize, mut work: impl FnMut()) -> f64 {
    let begun = Instant::now();
    for _ in 0..repeats {
        work();
    }
    begun.elapsed().as_secs_f64() * 1e6 / repeats as f64
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

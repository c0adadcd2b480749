//! What a batch takes for each of its messages, and each of the bytes that answer it, as both
//! become more: the work is linear in both, so that the columns stay the same.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use common::median;
use mllp_client::{Batch, Client};

/// The messages of the smallest batch, and the bytes of each acknowledgment.
const MESSAGES: usize = 5_000;
const ANSWER: usize = 500;
const ROUNDS: usize = 9;

fn main() {
    println!("{:<44}{:>12}{:>16}{:>16}", "", "in all", "each message", "each KB");
    for (shape, answers) in
        [("a frame for each", Answers::Each), ("one frame", Answers::Together), ("CA, AA for all", Answers::Whole)]
    {
        for times in [1, 2, 4] {
            let messages = times * MESSAGES;
            let batch = batch(messages);
            let bytes = answers.to(messages);
            let received = bytes.len();
            let client = serve(bytes);
            let seconds = median((0..ROUNDS).map(|_| {
                let begun = Instant::now();
                let results = client.send_batch(&batch).expect("it is answered");
                assert!(results.iter().all(Result::is_ok));
                begun.elapsed().as_secs_f64()
            }));
            let name = format!("{messages} messages, {} KB, {shape}", received / 1_000);
            let (each, kilobyte) = (seconds * 1e9 / messages as f64, seconds * 1e9 / received as f64 * 1_000.0);
            println!("{name:<44}{:>9.2} ms{each:>13.0} ns{kilobyte:>13.0} ns", seconds * 1e3);
        }
    }
}

enum Answers {
    Each,
    Together,
    /// As many commit accepts of the whole as there are messages, and then one acceptance.
    Whole,
}

impl Answers {
    fn to(&self, messages: usize) -> Vec<u8> {
        let content = |code: &str, id: &str| {
            let mut content = format!("MSH|^~\\&|EHR|H|LAB|H|20260101||ACK^R01|1|P|2.5\rMSA|{code}|{id}|").into_bytes();
            content.resize(ANSWER, b'x');
            content.push(b'\r');
            content
        };
        let frame = |content: &[u8]| [b"\x0B", content, b"\x1C\r"].concat();
        let each = |index: usize| content("AA", &index.to_string());
        match self {
            Answers::Each => (0..messages).flat_map(|index| frame(&each(index))).collect(),
            Answers::Together => frame(&(0..messages).flat_map(each).collect::<Vec<_>>()),
            Answers::Whole => [frame(&content("CA", "B").repeat(messages)), frame(&content("AA", "B"))].concat(),
        }
    }
}

fn batch(messages: usize) -> Batch {
    let mut batch = Batch::new("B").expect("it is a control ID");
    for index in 0..messages {
        let message = format!("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|{index}|P|2.5\rPID|1||42\r");
        batch.push(message).expect("it is a message");
    }
    batch
}

/// A client of a receiver that answers each batch so. The control IDs come again with each.
fn serve(answers: Vec<u8>) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let endpoint = format!("mllp://{}", listener.local_addr().expect("it is bound"));
    thread::spawn(move || {
        let (mut connection, _) = listener.accept().expect("it connects");
        let mut buffer = vec![0; 256 * 1024];
        while let Ok(count @ 1..) = connection.read(&mut buffer) {
            if buffer[..count].ends_with(b"\x1C\r") {
                connection.write_all(&answers).expect("the client reads");
            }
        }
    });
    let builder = Client::builder(&endpoint).timeout(Duration::from_secs(60)).allow_repeated_control_ids(true);
    builder.max_ack_size(64 * 1024 * 1024).build().expect("the settings are sound")
}

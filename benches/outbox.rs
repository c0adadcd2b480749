//! What durability costs: `push` and forwarding of 1 KB messages with an outbox in a file, beside
//! the floor of the same disk in the same run: a bare file to which 1 KB is appended and which is
//! synchronised, each time. All take turns, and a ratio is the median of the rounds' own.
//!
//! Then the same with a million messages waiting.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use common::{Messages, median, note, serve_anywhere};
use mllp_client::Client;
use mllp_client::outbox::{Forwarder, Outbox, Settlement, SqliteOutbox};

const SIZE: usize = 1_000;
const EACH: usize = 300;
const ROUNDS: usize = 15;
const MANY: usize = 1_000_000;
const EACH_OF_MANY: usize = 2_000;
const LONG: Duration = Duration::from_secs(600);

fn main() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("outbox-bench");
    fs::remove_dir_all(&directory).unwrap_or_default();
    fs::create_dir_all(&directory).expect("the target directory can be written");
    let mut messages = Messages::new(SIZE);
    let unchanging = messages.next().to_vec();
    let mut bare = File::create(directory.join("bare")).expect("the disk has room");
    let mut floor = || {
        for _ in 0..EACH {
            bare.write_all(&unchanging).expect("the disk has room");
            bare.sync_data().expect("the disk has room");
        }
    };

    let outbox = SqliteOutbox::open(directory.join("few.db"), "bench").expect("the disk has room");
    let mut senders: Vec<_> = (1..=16).map(|sender| Messages::of_sender(sender, SIZE)).collect();
    let address = serve_anywhere(4);
    let forwarder = forwarder(&outbox, &format!("mllp://{address}"));
    let rounds: Vec<[f64; 4]> = (0..=ROUNDS)
        .map(|_| {
            forwarder.pause();
            let floor = time(&mut floor);
            let one = time(|| push(&outbox, &mut messages, EACH));
            let sixteen = time(|| push_by_threads(&outbox, &mut senders, EACH / 4)) / 4.0;
            let forwarded = time(|| {
                forwarder.resume();
                assert!(forwarder.drain(LONG).expect("the disk works"), "it is drained");
            });
            [floor, one, sixteen, forwarded * EACH as f64 / (EACH * 5) as f64]
        })
        .skip(1)
        .collect();
    assert!(forwarder.stop(LONG), "nothing is under way");
    let each = |index: usize| median(rounds.iter().map(|round| round[index])) * 1e6 / EACH as f64;
    println!("{:<44}{:>12.1} us", "bare file, append and synchronise", each(0));
    let ratio = |index: usize, to: usize| median(rounds.iter().map(|round| round[to] / round[index]));
    println!("{:<44}{:>12.1} us{:>8.2} of the floor", "push, one thread", each(1), ratio(1, 0));
    println!("{:<44}{:>12.1} us{:>8.2} times one thread", "push, 16 threads", each(2), ratio(2, 1));
    println!("{:<44}{:>12.1} us{:>8.2} of the floor", "forwarding, each settled", each(3), ratio(3, 0));

    let chart = "Outbox in SQLite, beside a bare file";
    note(chart, "push, one thread", "1 KB", 1.0 / ratio(1, 0));
    note(chart, "push, 16 threads", "1 KB", 1.0 / ratio(2, 0));
    note(chart, "forward and settle", "1 KB", 1.0 / ratio(3, 0));

    many(&directory.join("many.db"), &mut floor);
    fs::remove_dir_all(&directory).expect("it is there");
}

fn many(path: &Path, floor: &mut impl FnMut()) {
    let mut senders: Vec<_> = (0..MANY / EACH_OF_MANY).map(|sender| Messages::of_sender(sender % 100, SIZE)).collect();
    let outbox = SqliteOutbox::open(path, "bench").expect("the disk has room").keep_delivered(None);
    push_by_threads(&outbox, &mut senders, EACH_OF_MANY);
    drop(outbox);
    let begun = Instant::now();
    let outbox = SqliteOutbox::open(path, "bench").expect("it is an outbox");
    let claim = outbox.claim().expect("the disk works").expect("much waits");
    println!("{:<44}{:>12.1} ms", format!("open, claim: {MANY} waiting"), begun.elapsed().as_secs_f64() * 1e3);
    outbox.settle(&claim, Settlement::Delivered).expect("the disk works");
    let rounds: Vec<[f64; 3]> = (0..ROUNDS)
        .map(|_| {
            [
                time(&mut *floor),
                time(|| push(&outbox, &mut senders[0], EACH)),
                time(|| {
                    for _ in 0..EACH {
                        let claim = outbox.claim().expect("the disk works").expect("much waits");
                        outbox.settle(&claim, Settlement::Delivered).expect("the disk works");
                    }
                }),
            ]
        })
        .collect();
    for (index, name) in [(1, "push, one thread"), (2, "claim and settle")] {
        let each = median(rounds.iter().map(|round| round[index])) * 1e6 / EACH as f64;
        let ratio = median(rounds.iter().map(|round| round[0] / round[index]));
        println!("{:<44}{each:>12.1} us{ratio:>8.2} of the floor", format!("{name}: {MANY} waiting"));
    }
}

fn forwarder(outbox: &SqliteOutbox, endpoint: &str) -> Forwarder {
    let client = Client::new(endpoint).expect("the endpoint is one");
    Forwarder::builder(outbox.clone(), client).start().expect("there is a thread to have")
}

fn push(outbox: &SqliteOutbox, messages: &mut Messages, count: usize) {
    for _ in 0..count {
        outbox.push(messages.next()).expect("the disk has room");
    }
}

/// Each sender pushes this many messages, on a thread of its own.
fn push_by_threads(outbox: &SqliteOutbox, senders: &mut [Messages], each: usize) {
    thread::scope(|scope| {
        for messages in senders {
            scope.spawn(move || push(outbox, messages, each));
        }
    });
}

fn time(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

//! What durability costs: `push` and forwarding of 1 KB messages with an outbox in a file, beside
//! the floor of the same disk in the same run: a bare file to which 1 KB is appended and which is
//! synchronised, each time. All take turns, and a ratio is the median of the rounds' own.
//!
//! Then forwarding while other processes push to the same file without a pause, beside forwarding
//! alone; the same with a million messages waiting; and, with the feature `redis`, a server at a
//! distance of one millisecond, beside a bare round trip to it.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{self, Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

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
    if let Some(path) = env::var_os(PUSHER) {
        return push_without_a_pause(Path::new(&path));
    }
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
            forwarder.pause().expect("the disk works");
            let floor = time(&mut floor);
            let one = time(|| push(&outbox, &mut messages, EACH));
            let sixteen = time(|| push_by_threads(&outbox, &mut senders, EACH / 4)) / 4.0;
            let forwarded = time(|| {
                forwarder.resume().expect("the disk works");
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

    beside_pushers(&directory);
    many(&directory.join("many.db"), &mut floor);
    #[cfg(feature = "redis")]
    redis::far_away();
    fs::remove_dir_all(&directory).expect("it is there");
}

/// The variable by which this program knows that it is to push to a file, as another process.
const PUSHER: &str = "MLLP_BENCH_PUSHER";

/// How long processes push at a time.
const PUSHING: Duration = Duration::from_secs(5);

/// Says how often it has pushed, how often that failed, and how many seconds the slowest took.
fn push_without_a_pause(path: &Path) {
    let outbox = SqliteOutbox::open(path, "bench").expect("it is an outbox");
    let mut messages = Messages::of_sender(process::id() as usize % 100, SIZE);
    let begun = Instant::now();
    let (mut pushed, mut failed, mut slowest) = (0, 0, 0.0_f64);
    while begun.elapsed() < PUSHING {
        slowest = slowest.max(time(|| match outbox.push(messages.next()) {
            Ok(_) => pushed += 1,
            Err(_) => failed += 1,
        }));
    }
    println!("{pushed} {failed} {slowest}");
}

/// Forwarding, alone and while 1, 4 and 16 processes push to the same file, where messages wait and
/// where none does.
fn beside_pushers(directory: &Path) {
    const WAITING: usize = 40_000;
    let mut alone = 0.0;
    println!();
    for (pushers, waiting) in [(0, WAITING), (1, 0), (1, WAITING), (4, 0), (4, WAITING), (16, 0), (16, WAITING)] {
        let path = directory.join(format!("beside-{pushers}-{waiting}.db"));
        let outbox = SqliteOutbox::open(&path, "bench").expect("the disk has room");
        let mut senders: Vec<_> = (0..50).map(|sender| Messages::of_sender(sender, SIZE)).collect();
        push_by_threads(&outbox, &mut senders, waiting / 50);
        let children = (0..pushers).map(|_| {
            let mut child = Command::new(env::current_exe().expect("it runs"));
            child.env(PUSHER, &path).stdout(Stdio::piped()).spawn().expect("it can be started again")
        });
        let children: Vec<Child> = children.collect();
        let forwarder = forwarder(&outbox, &format!("mllp://{}", serve_anywhere(1)));
        let begun = Instant::now();
        thread::sleep(if pushers == 0 { PUSHING } else { Duration::ZERO });
        let counts: Vec<[f64; 3]> = children.into_iter().map(counts).collect();
        let status = forwarder.status().expect("there is a thread to have");
        let rate = status.delivered as f64 / begun.elapsed().as_secs_f64();
        assert!(forwarder.stop(LONG), "nothing is under way for long");
        let name = format!("forwarding, {pushers} push, {waiting} waiting before");
        if pushers == 0 {
            alone = rate;
            println!("{name:<44}{:>12.1} us", 1e6 / rate);
            continue;
        }
        let each = counts.iter().map(|[pushed, ..]| *pushed);
        let (sum, least) = (each.clone().sum::<f64>(), each.fold(f64::MAX, f64::min));
        let (failed, slowest) = counts
            .iter()
            .fold((0.0, 0.0_f64), |(failed, slowest), [_, more, slow]| (failed + more, slowest.max(*slow)));
        println!(
            "{name:<44}{:>12.1} us{:>8.2} of alone (0.50 at least), {} left; least share {:.2}, {failed} failed, slowest \
             {slowest:.2} s",
            1e6 / rate,
            rate / alone,
            status.waiting,
            least * counts.len() as f64 / sum,
        );
    }
    println!();
}

/// What a process says that has pushed.
fn counts(child: Child) -> [f64; 3] {
    let output = child.wait_with_output().expect("it ends by itself").stdout;
    let words = String::from_utf8_lossy(&output);
    let mut numbers = words.split_whitespace().map(|word| word.parse().expect("it says numbers"));
    [0; 3].map(|_| numbers.next().expect("it says three"))
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

#[cfg(feature = "redis")]
mod redis {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use mllp_client::outbox::RedisOutbox;

    use super::*;
    use common::redis::{AWAY, Server, at_a_distance};

    const MESSAGES: usize = 1_000;

    /// Pushing and forwarding with a server that is a millisecond away.
    pub fn far_away() {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("outbox-bench-redis");
        fs::create_dir_all(&directory).expect("the target directory can be written");
        let Some(server) = Server::start(&directory) else {
            println!("there is no redis-server here");
            return;
        };
        let port = at_a_distance(server.port, AWAY);
        let outbox = RedisOutbox::open(&format!("redis://127.0.0.1:{port}/"), "bench").expect("the server answers");
        let mut line = TcpStream::connect(("127.0.0.1", port)).expect("the server listens");
        line.set_nodelay(true).expect("a TCP socket takes it");
        let address = serve_anywhere(4);
        let client = Client::new(&format!("mllp://{address}")).expect("the endpoint is one");
        let mut messages = Messages::new(SIZE);
        let mut senders: Vec<_> = (1..=16).map(|sender| Messages::of_sender(sender, SIZE)).collect();
        let forwarder = Forwarder::builder(outbox.clone(), client.clone()).start().expect("there is a thread to have");
        let rounds: Vec<[f64; 4]> = (0..5)
            .map(|_| {
                forwarder.pause().expect("the server answers");
                let bare = time(|| {
                    for _ in 0..MESSAGES {
                        line.write_all(b"PING\r\n").expect("the server is there");
                        line.read_exact(&mut [0; 7]).expect("the server is there");
                        client.send(messages.next()).expect("the receiver is there");
                    }
                });
                let one = time(|| push_all(&outbox, &mut messages, MESSAGES / 4)) * 4.0;
                let sixteen = time(|| {
                    thread::scope(|scope| {
                        for messages in &mut senders {
                            let outbox = &outbox;
                            scope.spawn(move || push_all(outbox, messages, MESSAGES / 16));
                        }
                    });
                });
                let waiting = MESSAGES / 4 + MESSAGES / 16 * 16;
                let forwarded = time(|| {
                    forwarder.resume().expect("the server answers");
                    assert!(forwarder.drain(LONG).expect("the server answers"), "it is drained");
                });
                [bare, one, sixteen, forwarded * MESSAGES as f64 / waiting as f64]
            })
            .collect();
        assert!(forwarder.stop(LONG), "nothing is under way");
        let each = |index: usize| median(rounds.iter().map(|round| round[index])) * 1e6 / MESSAGES as f64;
        let ratio = |index: usize, to: usize| median(rounds.iter().map(|round| round[to] / round[index]));
        println!("{:<44}{:>12.1} us", "Redis 1 ms away: round trip and exchange", each(0));
        println!("{:<44}{:>12.1} us{:>8.2} of that (0.90 at least)", "forwarding, each settled", each(3), ratio(3, 0));
        println!("{:<44}{:>12.1} us", "push, one thread", each(1));
        println!("{:<44}{:>12.1} us{:>8.2} times one thread (8 at least)", "push, 16 threads", each(2), ratio(2, 1));
    }

    fn push_all(outbox: &RedisOutbox, messages: &mut Messages, count: usize) {
        for _ in 0..count {
            outbox.push(messages.next()).expect("the server answers");
        }
    }
}

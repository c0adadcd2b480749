//! Lanes: how much more is delivered over several, at a receiver that takes 20 ms for an answer;
//! what claiming and settling costs with a million entries in a hundred thousand lanes of which
//! nine in ten are blocked, beside a hundred in ten; and forwarding without lanes, where the outbox
//! has none and where it has some.

mod common;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use common::{Messages, median, serve_after, serve_anywhere};
use mllp_client::Client;
use mllp_client::outbox::{Forwarder, Lane, MemoryOutbox, Outbox, PushOptions, Settlement, SqliteOutbox};

const SIZE: usize = 1_000;
const ANSWERS_AFTER: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(600);
const MANY: usize = 1_000_000;
const THREADS: usize = 50;

fn main() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lanes-bench");
    fs::remove_dir_all(&directory).unwrap_or_default();
    fs::create_dir_all(&directory).expect("the target directory can be written");
    let sqlite = |name: &str| SqliteOutbox::open(directory.join(name), "bench").expect("the disk has room");

    at_a_slow_receiver("memory", &[8], |lanes| MemoryOutbox::new(MANY * 2, usize::MAX).lanes(lanes));
    at_a_slow_receiver("SQLite", &[8], |lanes| sqlite("slow.db").lanes(lanes));
    #[cfg(feature = "redis")]
    let server = common::redis::Server::start(&directory).expect("redis-server is installed");
    #[cfg(feature = "redis")]
    let redis = |name: &str, port: u16| {
        let outbox = mllp_client::outbox::RedisOutbox::open(&format!("redis://127.0.0.1:{port}/"), name);
        outbox.expect("the server answers")
    };
    #[cfg(feature = "redis")]
    {
        let port = common::redis::at_a_distance(server.port, common::redis::AWAY);
        at_a_slow_receiver("Redis 1 ms away", &[4, 8], |lanes| redis("slow", port).lanes(lanes));
    }
    println!();
    without_lanes("memory", |_, lanes| MemoryOutbox::new(MANY * 2, usize::MAX).lanes(lanes));
    without_lanes("SQLite", |name, lanes| sqlite(&format!("{name}.db")).lanes(lanes));
    #[cfg(feature = "redis")]
    without_lanes("Redis", |name, lanes| redis(name, server.port).lanes(lanes));
    println!();
    many("memory", |_| MemoryOutbox::new(MANY * 2, usize::MAX).lanes(2));
    many("SQLite", |name| sqlite(&format!("{name}.db")).keep_delivered(None).lanes(2));
    #[cfg(feature = "redis")]
    many("Redis", |name| redis(name, server.port).lanes(2));
    fs::remove_dir_all(&directory).expect("it is there");
}

fn push_into(outbox: &impl Outbox, message: &[u8], lane: usize) -> u64 {
    let lane = Lane::key(lane.to_string());
    outbox.push_with(message, &PushOptions::new().lane(&lane)).expect("the storage has room")
}

fn forwarder(outbox: impl Outbox + 'static, address: std::net::SocketAddr, lanes: usize) -> Forwarder {
    let client = Client::builder(&format!("mllp://{address}")).max_connections(lanes).build();
    let builder = Forwarder::builder(outbox, client.expect("the endpoint is one")).lanes(lanes);
    builder.start().expect("there is a thread to have")
}

/// The rate of several lanes beside that of one.
fn at_a_slow_receiver<O: Outbox + Clone + 'static>(name: &str, several: &[usize], open: impl Fn(usize) -> O) {
    const OF_ONE: usize = 60;
    let mut messages = Messages::new(SIZE);
    let mut each = |lanes: usize| {
        let outbox = open(lanes);
        let count = OF_ONE * lanes;
        for number in 0..count {
            push_into(&outbox, messages.next(), number % 97);
        }
        let forwarder = forwarder(outbox, serve_after(ANSWERS_AFTER, lanes), lanes);
        let begun = Instant::now();
        assert!(forwarder.drain(LONG).expect("the storage works"), "it is drained");
        let time = begun.elapsed().as_secs_f64() / count as f64;
        assert!(forwarder.stop(LONG), "nothing is under way");
        time
    };
    for &lanes in several {
        let rounds: Vec<(f64, f64)> = (0..3).map(|_| (each(1), each(lanes))).collect();
        let one = median(rounds.iter().map(|(one, _)| *one)) * 1e3;
        let ratio = median(rounds.iter().map(|(one, many)| one / many));
        let least = if lanes == 8 { 7.5 } else { 3.8 };
        println!("{:<44}{one:>12.2} ms with one", format!("{name}, answers after 20 ms"));
        println!("{:<44}{ratio:>12.2} times that ({least} at least)", format!("{name}, {lanes} lanes"));
    }
}

/// Forwarding of messages without lanes, by an outbox and a forwarder that have four.
fn without_lanes<O: Outbox + Clone + 'static>(name: &str, open: impl Fn(&str, usize) -> O) {
    const COUNT: usize = 2_000;
    let mut messages = Messages::new(SIZE);
    let forwarders = [("one", 1), ("four", 4)].map(|(name, lanes)| {
        let outbox = open(name, lanes);
        let forwarder = forwarder(outbox.clone(), serve_anywhere(lanes), lanes);
        forwarder.pause().expect("the storage works");
        (outbox, forwarder)
    });
    let mut each = |(outbox, forwarder): &(O, Forwarder)| {
        forwarder.pause().expect("the storage works");
        for _ in 0..COUNT {
            outbox.push(messages.next()).expect("the storage has room");
        }
        let begun = Instant::now();
        forwarder.resume().expect("the storage works");
        assert!(forwarder.drain(LONG).expect("the storage works"), "it is drained");
        let time = begun.elapsed().as_secs_f64() / COUNT as f64;
        forwarder.pause().expect("the storage works");
        time
    };
    let rounds: Vec<(f64, f64)> = (0..9).map(|_| (each(&forwarders[0]), each(&forwarders[1]))).collect();
    let one = median(rounds.iter().map(|(one, _)| *one)) * 1e6;
    let ratio = median(rounds.iter().map(|(one, four)| one / four));
    println!("{:<44}{one:>12.1} us", format!("{name}, one order, opened for one lane"));
    println!("{:<44}{ratio:>12.2} times that (0.97 at least)", format!("{name}, one order, opened for four"));
    for (_, forwarder) in forwarders {
        assert!(forwarder.stop(LONG), "nothing is under way");
    }
}

/// Claiming and settling with few entries and with many, of which most are blocked.
fn many<O: Outbox + Sync + 'static>(name: &str, open: impl Fn(&str) -> O) {
    const ROUNDS: usize = 15;
    const EACH: usize = 300;
    let fill = |outbox: &O, entries: usize, lanes: usize, blocked: usize| {
        thread::scope(|scope| {
            let threads = THREADS.min(lanes);
            for thread in 0..threads {
                scope.spawn(move || {
                    let mut messages = Messages::of_sender(thread, SIZE);
                    // Each thread has lanes of its own.
                    let own: Vec<usize> = (0..lanes).filter(|lane| lane % threads == thread).collect();
                    for number in 0..entries / threads {
                        let lane = own[number % own.len()];
                        let id = push_into(outbox, messages.next(), lane);
                        if number < own.len() && lane < blocked {
                            assert!(outbox.hold(id).expect("the storage works"), "it waits");
                        }
                    }
                });
            }
        });
    };
    let (few, many) = (open("few"), open("many"));
    fill(&few, 100, 10, 0);
    fill(&many, MANY, MANY / 10, MANY / 10 / 10 * 9);
    let pending = many.pending().expect("the storage works");
    let mut messages = Messages::new(SIZE);
    // The first time there are as many as are settled in a round.
    for number in 0..EACH {
        push_into(&few, messages.next(), number % 10);
    }
    let mut each = |outbox: &O| {
        let begun = Instant::now();
        for _ in 0..EACH {
            let claim = outbox.claim().expect("the storage works").expect("something waits");
            outbox.settle(&claim, Settlement::Delivered).expect("the storage works");
        }
        let time = begun.elapsed().as_secs_f64() / EACH as f64;
        for number in 0..EACH {
            push_into(outbox, messages.next(), MANY + number % 10);
        }
        time
    };
    let rounds: Vec<(f64, f64)> = (0..ROUNDS).map(|_| (each(&few), each(&many))).collect();
    let one = median(rounds.iter().map(|(few, _)| *few)) * 1e6;
    let ratio = median(rounds.iter().map(|(few, many)| many / few));
    println!("{:<44}{one:>12.1} us", format!("{name}, claim and settle, few waiting"));
    let text = format!("{name}, {} waiting, {} lanes blocked", pending.waiting, pending.blocked);
    println!("{text:<44}{ratio:>12.2} times that");
}

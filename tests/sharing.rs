//! Many threads and one client: who gets which answer, how many connections there are, and what
//! every failure says.

mod common;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use common::{LONG, Tidy, eventually, message};
use mllp_client::testing::{Receiver, Step};
use mllp_client::{Client, Delivery, Error, ErrorKind, Event, Phase, Reconnect};

const THREADS: usize = 64;
const EACH: usize = 120;
const SEEDS: [u64; 2] = [20_260_101, 7];

/// The control IDs of the messages that came, in order.
type Log = Arc<Mutex<Vec<String>>>;

fn control_id(message: &[u8]) -> String {
    String::from_utf8_lossy(message).split('|').nth(9).unwrap_or_default().to_owned()
}

/// A receiver that keeps a log and answers after a time of its own for each message, at most a
/// fifth of a millisecond.
fn receiver(seed: u64, address: &str, log: &Log) -> std::io::Result<Receiver> {
    let log = Arc::clone(log);
    Receiver::builder().address(address)?.answering(move |message| {
        let id = control_id(message);
        let mut hasher = DefaultHasher::new();
        (seed, &id).hash(&mut hasher);
        log.lock().unwrap().push(id);
        match hasher.finish() % 4 {
            0 => Step::accept().after(Duration::from_micros(hasher.finish() / 4 % 200)),
            _ => Step::accept(),
        }
    })
}

/// A client, and the most connections it ever told of at a time.
fn capped(endpoint: &str, most: usize) -> (Client, Arc<AtomicUsize>) {
    let (open, highest) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let patient = Reconnect::attempts(u32::MAX).initial_delay(Duration::from_millis(1));
    let client = Client::builder(endpoint)
        .timeout(LONG)
        .max_connections(most)
        .reconnect(patient.max_delay(Duration::from_millis(20)))
        .on_event({
            let highest = Arc::clone(&highest);
            move |event| match event {
                Event::Connected { .. } => {
                    highest.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                }
                Event::Disconnected { .. } => drop(open.fetch_sub(1, Ordering::SeqCst)),
                _ => {}
            }
        })
        .build()
        .unwrap();
    (client, highest)
}

/// Sends every thread's messages, each thread's own in order; what became of each.
fn send_all(client: &Client) -> Vec<(String, Result<String, Error>)> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    let send = |number| {
                        let id = format!("T{thread}N{number}");
                        let result = client.send(message(&id)).map(|ack| ack.control_id().into_owned());
                        (id, result)
                    };
                    (0..EACH).map(send).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

fn times_seen(log: &Log) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    log.lock().unwrap().iter().for_each(|id| *seen.entry(id.clone()).or_default() += 1);
    seen
}

#[test]
fn every_answer_belongs_to_its_message() {
    let _tidy = Tidy::up();
    for seed in SEEDS {
        for most in [1, 4, 16] {
            let log = Log::default();
            let receiver = receiver(seed, "127.0.0.1:0", &log).unwrap();
            let (client, highest) = capped(&receiver.endpoint(), most);
            for (id, result) in send_all(&client) {
                assert_eq!(result.unwrap(), id);
            }
            assert!(receiver.connections() <= most && highest.load(Ordering::SeqCst) <= most);
            let seen = times_seen(&log);
            assert!(seen.len() == THREADS * EACH && seen.values().all(|&times| times == 1), "each once");
            let stats = client.stats();
            let all = (THREADS * EACH) as u64;
            assert_eq!((stats.sent, stats.acknowledged, stats.refused, stats.failed), (all, all, 0, 0));
            assert_eq!(stats.connections_opened, receiver.connections() as u64);
        }
    }
}

#[test]
fn a_receiver_that_restarts_agrees_with_every_failure() {
    let _tidy = Tidy::up();
    const RESTARTS: usize = 10;
    for seed in SEEDS {
        for most in [1, 4, 16] {
            let log = Log::default();
            let running = receiver(seed, "127.0.0.1:0", &log).unwrap();
            let endpoint = running.endpoint();
            let address = endpoint.strip_prefix("mllp://").unwrap();
            let (client, highest) = capped(&endpoint, most);
            client.connect().unwrap();
            let (results, running) = thread::scope(|scope| {
                let mut running = running;
                let sending = scope.spawn(|| send_all(&client));
                for restart in 1..=RESTARTS {
                    let due = restart * THREADS * EACH / (RESTARTS + 2);
                    eventually("some more have come", || log.lock().unwrap().len() >= due);
                    // It hangs up on nobody while it runs, so that each of its connections is another.
                    assert!(running.connections() <= most, "{} connections of {most}", running.connections());
                    drop(running);
                    let mut again = None;
                    eventually("the port is free again", || {
                        again = receiver(seed, address, &log).ok();
                        again.is_some()
                    });
                    running = again.unwrap();
                }
                (sending.join().unwrap(), running)
            });
            assert!(running.connections() <= most && highest.load(Ordering::SeqCst) <= most);
            let seen = times_seen(&log);
            assert!(seen.values().all(|&times| times == 1), "no message twice");
            let mut counted = [0; 2];
            for (id, result) in &results {
                let came = seen.contains_key(id);
                match result {
                    Ok(acknowledged) => {
                        assert!(acknowledged == id && came, "{id}: {acknowledged}, and the receiver saw it: {came}");
                        counted[0] += 1;
                    }
                    Err(error) => {
                        match error.delivery() {
                            Delivery::NotSent => assert!(!came, "{id}: {error:?}, and the receiver saw it"),
                            Delivery::Unknown => {}
                            other => panic!("{id}: {other:?}"),
                        }
                        counted[1] += 1;
                    }
                }
            }
            let stats = client.stats();
            assert_eq!([stats.acknowledged, stats.failed], counted);
            assert!(counted[0] + counted[1] == (THREADS * EACH) as u64 && stats.connections_opened > 10);
            // At each restart no more can have been lost, on each connection, than what was under way, what the
            // receiver accepted while it stopped, and what waited in its queue then.
            assert!(counted[1] <= ((RESTARTS + 1) * 3 * most) as u64, "{counted:?}");
        }
    }
}

#[test]
fn connections_are_opened_when_they_are_needed() {
    let _tidy = Tidy::up();
    let all_there = Arc::new(Barrier::new(3));
    let receiver = Receiver::answering({
        let all_there = Arc::clone(&all_there);
        move |message| {
            if !control_id(message).starts_with("ALONE") {
                all_there.wait();
            }
            Step::accept()
        }
    })
    .unwrap();
    let (client, _) = capped(&receiver.endpoint(), 8);
    for number in 0..3 {
        client.send(message(&format!("ALONE{number}"))).unwrap();
    }
    assert_eq!(receiver.connections(), 1);
    for round in 0..3 {
        thread::scope(|scope| {
            for number in 0..3 {
                let client = &client;
                scope.spawn(move || client.send(message(&format!("M{round}{number}"))).unwrap());
            }
        });
        assert_eq!(receiver.connections(), 3, "as many as there were messages at the same time");
    }
    client.reconnect().unwrap();
    client.send(message("ALONE")).unwrap();
    assert_eq!(receiver.connections(), 4, "the idle ones were dropped, and one was opened");
}

#[test]
fn replacing_connections_keeps_to_the_cap() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    for (most, builder) in [
        (1, Client::builder(&receiver.endpoint()).idle_timeout(Duration::from_micros(200))),
        (2, Client::builder(&receiver.endpoint()).max_connection_age(Duration::from_micros(500))),
        (4, Client::builder(&receiver.endpoint())),
    ] {
        let (open, highest) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
        let client = builder
            .timeout(LONG)
            .max_connections(most)
            .on_event({
                let highest = Arc::clone(&highest);
                move |event| match event {
                    Event::Connected { .. } => {
                        highest.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    }
                    Event::Disconnected { .. } => {
                        open.fetch_sub(1, Ordering::SeqCst);
                        // While this one ends, the others that are to end are open.
                        common::pass(Duration::from_millis(1));
                    }
                    _ => {}
                }
            })
            .build()
            .unwrap();
        thread::scope(|scope| {
            for thread in 0..2 * most {
                let client = &client;
                scope.spawn(move || {
                    for number in 0..50 {
                        common::pass(Duration::from_millis(1));
                        if most == 4 && number % 10 == thread {
                            client.reconnect().unwrap();
                        }
                        client.send(message(&format!("T{thread}N{number}"))).unwrap();
                    }
                });
            }
        });
        assert!(client.stats().connections_opened > most as u64, "none was replaced");
        assert!(highest.load(Ordering::SeqCst) <= most, "{} of {most}", highest.load(Ordering::SeqCst));
    }
}

#[test]
fn a_full_pool_is_waited_for_as_long_as_the_limit_says() {
    let _tidy = Tidy::up();
    let receiver = Receiver::answering(|message| match &*control_id(message) {
        "LAST" => Step::accept(),
        _ => Step::silence(),
    })
    .unwrap();
    let (client, _) = capped(&receiver.endpoint(), 2);
    thread::scope(|scope| {
        let held: Vec<_> = ["A", "B"].map(|id| scope.spawn(|| client.send(message(id)).unwrap_err())).into();
        assert!(receiver.wait_for(2, LONG));
        let error =
            common::limited(common::SHORT, || client.request(&message("C")).timeout(common::SHORT).send().unwrap_err());
        assert!(matches!(error.kind(), ErrorKind::Timeout { phase: Phase::Checkout, .. }), "{error:?}");
        assert_eq!(error.delivery(), Delivery::NotSent);
        assert!(client.is_connected());
        receiver.hang_up();
        assert!(held.into_iter().all(|call| call.join().unwrap().delivery() == Delivery::Unknown));
    });
    client.send(message("LAST")).unwrap();
    assert_eq!(receiver.received().len(), 3);
}

#[test]
fn a_slow_or_panicking_observer_holds_nobody_else_up() {
    let _tidy = Tidy::up();
    for slow_in in ["connected", "acknowledged"] {
        let receiver = Receiver::accepting().unwrap();
        let (stuck, waiting) = (Arc::new(Barrier::new(2)), Arc::new(AtomicUsize::new(0)));
        let client = Client::builder(&receiver.endpoint())
            .timeout(LONG)
            .max_connections(2)
            .on_event({
                let (stuck, waiting) = (Arc::clone(&stuck), Arc::clone(&waiting));
                move |event| {
                    let now = match event {
                        Event::Connected { .. } => "connected",
                        Event::Acknowledged { .. } => "acknowledged",
                        _ => "",
                    };
                    // The first one's thread stays here until the test has done with the others.
                    if now == slow_in && waiting.fetch_add(1, Ordering::SeqCst) == 0 {
                        stuck.wait();
                    }
                    panic!("on purpose");
                }
            })
            .build()
            .unwrap();
        thread::scope(|scope| {
            let first = scope.spawn(|| client.send(message("SLOW")).unwrap());
            eventually("the observer is slow", || waiting.load(Ordering::SeqCst) == 1);
            assert!(client.is_connected());
            for number in 0..20 {
                let id = format!("M{number}");
                assert_eq!(client.send(message(&id)).unwrap().control_id(), id);
            }
            stuck.wait();
            assert_eq!(first.join().unwrap().control_id(), "SLOW");
        });
        assert_eq!((receiver.connections(), client.stats().acknowledged), (2, 21), "{slow_in}");
    }
}

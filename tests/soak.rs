//! A long run: threads that share clients, messages of any size, answers of any kind, a network
//! that fails at any byte, receivers that restart. What every call says is compared with what the
//! receiver saw, and memory, descriptors and threads stay what they are.
//!
//! It takes three seconds, or `MLLP_SOAK_SECONDS`.

mod common;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use common::proxy::{Direction, Fault, Proxy};
use common::{Seeded, Transport, eventually, message_of, pass};
use mllp_client::testing::{Receiver, Step};
use mllp_client::{AckCode, Client, Delivery, Error, Event, Reconnect};

const THREADS: usize = 8;
const CONNECTIONS: usize = 3;
const LARGEST: usize = 1024 * 1024;
const TIMEOUT: Duration = Duration::from_millis(400);
/// So long a receiver lives.
const EPOCH: Duration = Duration::from_secs(1);
/// What the allocator may keep back, in MB, and the least that a leak would have to be.
const PLAY: usize = 24;

fn main() {
    if env::args().any(|argument| argument == "--list") {
        return println!("soak: test");
    }
    if !Path::new("/proc/self/status").exists() {
        return println!("skipped: there is no /proc to count memory, descriptors and threads in");
    }
    let seconds = env::var("MLLP_SOAK_SECONDS").map_or(3, |seconds| seconds.parse().expect("a number of seconds"));
    for &transport in Transport::ALL {
        soak(transport, Duration::from_secs(seconds) / u32::try_from(Transport::ALL.len()).unwrap());
    }
    println!("{} passed, 0 failed", Transport::ALL.len());
}

fn soak(transport: Transport, time: Duration) {
    let before = Usage::now();
    let witness = Arc::new(Witness::default());
    let mut receiver = receiver(transport, "127.0.0.1:0", &witness);
    let endpoint = receiver.endpoint();
    let address = endpoint.split("://").nth(1).unwrap();
    let proxy = Proxy::to(&endpoint);
    let (connected, disconnected) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let client = transport
        .builder(&proxy.endpoint())
        .timeout(TIMEOUT)
        .max_connections(CONNECTIONS)
        .reconnect(Reconnect::default().initial_delay(Duration::from_millis(10)).max_delay(Duration::from_millis(50)))
        .on_event({
            let (connected, disconnected) = (Arc::clone(&connected), Arc::clone(&disconnected));
            move |event| match event {
                Event::Connected { .. } => drop(connected.fetch_add(1, Ordering::Relaxed)),
                Event::Disconnected { .. } => drop(disconnected.fetch_add(1, Ordering::Relaxed)),
                _ => {}
            }
        })
        .build()
        .unwrap();
    client.connect().unwrap();

    let begun = Instant::now();
    let mut random = Seeded(20_260_101);
    let mut usages = Vec::new();
    while begun.elapsed() < time {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (client, witness, over) = (&client, &witness, &over);
                let mut random = Seeded(random.below(usize::MAX) as u64);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        send_one(client, witness, thread, &mut random);
                    }
                });
            }
            let epoch = Instant::now();
            while epoch.elapsed() < EPOCH {
                let direction = if random.below(2) == 0 { Direction::ToReceiver } else { Direction::ToClient };
                let fault = match random.below(10) {
                    0 => Fault::Stall,
                    1..4 => Fault::Cut,
                    4..7 => Fault::Reset,
                    _ => Fault::Split,
                };
                let reach = if random.below(2) == 0 { 1000 } else { LARGEST };
                proxy.arm(direction, random.below(reach), fault);
                pass(Duration::from_millis(random.below(50) as u64));
            }
            proxy.disarm();
            over.store(true, Ordering::Relaxed);
        });
        drop(receiver);
        // All is at rest: the proxy has a thread, and one more and two sockets for each of the client's
        // idle connections.
        let [threads, descriptors] = [before.threads + 1 + CONNECTIONS, before.descriptors + 1 + 3 * CONNECTIONS];
        eventually("the threads of the epoch have ended", || Usage::now().threads <= threads);
        eventually("its connections are closed", || Usage::now().descriptors <= descriptors);
        usages.push(Usage::now());
        let wrong = witness.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "came twice, or though it was not sent: {wrong:?}");
        receiver = self::receiver(transport, address, &witness);
    }
    // What the client says of itself agrees.
    let stats = client.stats();
    let counts = witness.counts.lock().unwrap();
    assert_eq!((stats.acknowledged, stats.refused, stats.failed), (counts.accepted, counts.refused, counts.failed()));
    assert_eq!(stats.connections_opened, connected.load(Ordering::Relaxed));
    assert!(counts.accepted > 0 && counts.unknown > 0, "{counts:?}");
    client.close();
    assert_eq!(connected.load(Ordering::Relaxed), disconnected.load(Ordering::Relaxed));

    // What stays of a receiver's record and of the allocator's caches differs from epoch to epoch: the
    // median of each quarter counts.
    let quarters: Vec<usize> = usages
        .chunks(usages.len().div_ceil(4))
        .map(|quarter| {
            let mut memory: Vec<_> = quarter.iter().map(|usage| usage.memory).collect();
            memory.sort_unstable();
            memory[memory.len() / 2] / 1_000_000
        })
        .collect();
    println!(
        "{transport:?}: {counts:?}, {} connections, {} receivers, MB at rest by quarters of the time {quarters:?}",
        stats.connections_opened,
        usages.len(),
    );
    match quarters[..] {
        // The first fills caches and arenas.
        [_, early, .., late] if usages.len() >= 8 => {
            assert!(late <= early + PLAY, "memory grows from {early} MB to {late} MB");
        }
        _ => println!("memory is not compared: that takes some more seconds"),
    }
}

/// What the receiver saw of each thread's messages, which are numbered.
#[derive(Default)]
struct Witness {
    threads: [Mutex<Messages>; THREADS],
    counts: Mutex<Counts>,
    /// What should not have come.
    wrong: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Messages {
    /// The number of the last that was sent, and of the last that came.
    last: u64,
    seen: u64,
    /// Those of which nobody knows whether they come. A receiver may read one long after the client
    /// has given it up.
    unknown: BTreeSet<u64>,
}

impl Messages {
    /// Whether a message may come now.
    fn come(&mut self, number: u64) -> bool {
        if number == self.last && self.seen < number {
            self.seen = number;
            return true;
        }
        self.unknown.remove(&number)
    }
}

#[derive(Debug, Default)]
struct Counts {
    accepted: u64,
    refused: u64,
    not_sent: u64,
    unknown: u64,
    committed: u64,
}

impl Counts {
    fn failed(&self) -> u64 {
        self.not_sent + self.unknown + self.committed
    }
}

/// Sends a thread's next message, and compares what is said of it with what was seen.
fn send_one(client: &Client, witness: &Witness, thread: usize, random: &mut Seeded) {
    let messages = || witness.threads[thread].lock().unwrap();
    let number = {
        let mut messages = messages();
        messages.last += 1;
        messages.last
    };
    let id = format!("T{thread}N{number}");
    // Small ones are the rule.
    let most = 1 << random.below(21);
    let size = random.below(most);
    let result = client.send(message_of(&id, size));
    let mut messages = messages();
    let seen = messages.seen == number;
    let agrees = match &result {
        Ok(ack) => ack.control_id() == id && ack.code().is_accept() && seen,
        Err(error) => match error.delivery() {
            Delivery::NotSent => !seen,
            Delivery::Unknown => seen || messages.unknown.insert(number),
            Delivery::Committed => seen && error.commit().is_some_and(|commit| commit.control_id() == id),
            Delivery::Refused => seen && error.nak().is_some_and(|nak| nak.control_id() == id),
        },
    };
    // What has not come of the next thousands will not.
    let old = number.saturating_sub(10_000);
    messages.unknown = messages.unknown.split_off(&old);
    // No more of this one: it has come, or is among the unknown, or must not come.
    messages.seen = number;
    drop(messages);
    assert!(agrees, "{id}: {result:?}, and the receiver saw it: {seen}");
    let mut counts = witness.counts.lock().unwrap();
    match result.as_ref().map_err(Error::delivery) {
        Ok(_) => counts.accepted += 1,
        Err(Delivery::Refused) => counts.refused += 1,
        Err(Delivery::NotSent) => counts.not_sent += 1,
        Err(Delivery::Unknown) => counts.unknown += 1,
        Err(Delivery::Committed) => counts.committed += 1,
    }
}

/// A receiver that answers most messages as it should, and the others in some other way.
fn receiver(transport: Transport, address: &str, witness: &Arc<Witness>) -> Receiver {
    let witness = Arc::clone(witness);
    let respond = move |message: &[u8]| {
        let id = message.split(|&byte| byte == b'|').nth(9).unwrap_or_default();
        let id = std::str::from_utf8(id).unwrap();
        let (thread, number) = id[1..].split_once('N').unwrap();
        let (thread, number): (usize, u64) = (thread.parse().unwrap(), number.parse().unwrap());
        if !witness.threads[thread].lock().unwrap().come(number) {
            witness.wrong.lock().unwrap().push(id.to_owned());
        }
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        match hasher.finish() % 1000 {
            0 => Step::silence(),
            1 => Step::accept().after(TIMEOUT),
            2 => Step::accept().half().close(),
            3 => Step::accept().then(Step::accept()),
            4 => Step::wrong_control_id(),
            5 => Step::bytes("busy"),
            6 => Step::accept().close(),
            7 => Step::accept().reset(),
            8 => Step::accept().drip(Duration::from_micros(100)),
            9 => Step::acknowledge(AckCode::CommitAccept).then(Step::accept()),
            10 => Step::acknowledge(AckCode::CommitAccept).close(),
            11..50 => Step::refuse(AckCode::ApplicationError, "no"),
            _ => Step::accept(),
        }
    };
    let mut started = None;
    eventually("the port is free", || {
        started = transport.receiver().address(address).unwrap().answering(respond.clone()).ok();
        started.is_some()
    });
    started.unwrap()
}

/// What the process has of the system's.
#[derive(Clone, Copy, Debug)]
struct Usage {
    memory: usize,
    descriptors: usize,
    threads: usize,
}

impl Usage {
    fn now() -> Usage {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').split_whitespace().next().unwrap().parse::<usize>().unwrap()
        };
        let descriptors = fs::read_dir("/proc/self/fd").unwrap().count();
        Usage { memory: number("VmRSS") * 1024, descriptors, threads: number("Threads") }
    }
}

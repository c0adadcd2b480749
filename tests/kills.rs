//! Nothing is lost and nothing overtaken, whoever is killed: a process that pushes and forwards,
//! its receiver, and the Redis server.
//!
//! The process is this program, started again as a child. It is killed by SIGKILL at moments that a
//! seed chooses, among the messages as they reach the receiver.

mod common;

use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use common::lanes::{Numbered, Seen};
use common::{LONG, Seeded, eventually, message};
use mllp_client::Client;
use mllp_client::outbox::{Forwarder, Outbox, OutboxError};
use mllp_client::testing::{Receiver, Step};

/// How many messages a scene has, if nothing else is said.
const MESSAGES: usize = 5_000;
const KILLS: usize = 100;
const RESTARTS: usize = 10;

/// So many wait at most, so that pushing lasts as long as forwarding.
const AHEAD: u64 = 50;

/// The lanes of the scenes that have some.
const LANES: usize = 4;

#[allow(dead_code, reason = "without a storage that survives there is no scene")]
fn messages() -> usize {
    env::var("MLLP_KILLS_MESSAGES").map_or(MESSAGES, |count| count.parse().expect("a number of messages"))
}

/// The messages of the scenes that have lanes.
#[allow(dead_code, reason = "without a storage that survives there are no lanes")]
fn messages_in_lanes() -> Numbered {
    Numbered { patients: messages() / 40 }
}

#[derive(Clone, Copy, Debug)]
enum Blow {
    Child,
    Receiver,
    Server,
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        #[cfg(feature = "sqlite")]
        ["child", "sqlite", path, endpoint] => sqlite::child(path, endpoint),
        #[cfg(feature = "sqlite")]
        ["child", work @ ("sqlite-lanes" | "sqlite-lanes-beside"), path, endpoint] => {
            sqlite::in_lanes(path, endpoint, work == "sqlite-lanes");
        }
        #[cfg(feature = "redis")]
        ["child", "redis", url, endpoint] => redis::child(url, endpoint),
        #[cfg(feature = "redis")]
        ["child", work @ ("redis-lanes" | "redis-lanes-beside"), url, endpoint] => {
            redis::in_lanes(url, endpoint, work == "redis-lanes");
        }
        #[cfg(feature = "redis")]
        ["child", "redis-forward", url, endpoint] => redis::forward(url, endpoint),
        // So that test runners which ask for a list get one.
        [.., "--list"] | ["--list", ..] => SCENES.iter().for_each(|(name, _)| println!("{name}: test")),
        // Whatever else the test runner was given concerns the tests of other programs.
        _ => {
            let scenes: Vec<_> = SCENES.iter().map(|(name, play)| (name, thread::spawn(play))).collect();
            for (name, scene) in scenes {
                // What it panics with has been printed.
                scene.join().unwrap_or_else(|_| process::exit(1));
                println!("{name} ... ok");
            }
            println!("{} passed, 0 failed", SCENES.len());
        }
    }
}

const SCENES: &[(&str, fn())] = &[
    #[cfg(feature = "sqlite")]
    ("sqlite_survives_kills", sqlite::survives_kills),
    #[cfg(feature = "sqlite")]
    ("sqlite_lanes_survive_kills", sqlite::lanes_survive_kills),
    #[cfg(feature = "redis")]
    ("redis_survives_kills", redis::survives_kills),
    #[cfg(feature = "redis")]
    ("redis_lanes_survive_kills", redis::lanes_survive_kills),
    #[cfg(feature = "redis")]
    ("who_was_paused_sends_nothing_more", redis::who_was_paused_sends_nothing_more),
];

/// Pushes what has not been pushed yet, or lets another push, and forwards until nothing waits. A
/// storage that is away is waited for.
#[allow(dead_code, reason = "without a storage that survives there is no child")]
fn push_and_forward(
    outbox: impl Outbox + Clone + 'static,
    endpoint: &str,
    exchange: Duration,
    pushed: impl Fn() -> Option<usize>,
    numbered: Option<fn(usize) -> Vec<u8>>,
) {
    let lanes = outbox.lanes();
    let client = Client::builder(endpoint).timeout(exchange).max_connections(lanes).build().unwrap();
    let moment = Duration::from_millis(5);
    let forwarder = Forwarder::builder(outbox.clone(), client).initial_delay(moment).max_delay(moment * 4).lanes(lanes);
    let forwarder = forwarder.start().unwrap();
    loop {
        // An error leaves it open whether the message is stored, so the storage is asked.
        match pushed() {
            Some(number) if number >= messages() => break,
            Some(number) => match numbered.map_or(Ok(0), |numbered| outbox.push(&numbered(number))) {
                Ok(0) => thread::park_timeout(moment),
                Ok(_) | Err(OutboxError::Storage { .. }) => {}
                Err(error) => panic!("{error:?}"),
            },
            None => {}
        }
        while outbox.pending().map_or(true, |pending| pending.waiting > AHEAD) {
            thread::park_timeout(moment / 5);
        }
    }
    while !matches!(forwarder.drain(LONG), Ok(true)) {}
    assert!(forwarder.stop(LONG));
}

#[allow(dead_code, reason = "without a storage that survives there is no child")]
fn numbered(number: usize) -> Vec<u8> {
    message(&format!("N{number}")).into_bytes()
}

/// All messages are there in their order, and one that is repeated is one of the last. Returns how
/// many are repeated.
#[allow(dead_code, reason = "without a storage that survives there is no scene")]
fn in_order(record: &[Vec<u8>]) -> usize {
    let mut next = 0;
    for message in record {
        if *message == numbered(next) {
            next += 1;
        } else {
            let known = (0..next).rev().take(3).any(|number| *message == numbered(number));
            assert!(known, "after {next} messages comes one that is neither the next nor one of the last");
        }
    }
    assert_eq!(next, messages());
    record.len() - next
}

/// All messages are there, and in each lane in their order. Returns how many are repeated.
#[allow(dead_code, reason = "without a storage that survives there are no lanes")]
fn in_order_of_lanes(record: &[Vec<u8>]) -> usize {
    let mut seen = Seen::nothing_of(messages_in_lanes(), messages());
    for message in record {
        let (number, _) = seen.sees(message);
        seen.accepts(number);
    }
    assert!(seen.all_accepted());
    seen.repeats
}

/// Plays a scene: the children at work, and the blows that fall on them and on those they work
/// with.
#[allow(dead_code, reason = "without a storage that survives there is no scene")]
fn play(
    seed: u64,
    (children, at): (&[&str], &str),
    repeats_of: fn(&[Vec<u8>]) -> usize,
    mut restart_server: Option<&mut dyn FnMut()>,
) {
    let record = Arc::new(Mutex::new(Vec::<Vec<u8>>::new()));
    let listen = |address: &str| {
        let record = Arc::clone(&record);
        Receiver::builder().address(address).unwrap().answering(move |message| {
            record.lock().unwrap().push(message.to_vec());
            Step::accept()
        })
    };
    let mut receiver = listen("127.0.0.1:0").unwrap();
    let endpoint = receiver.endpoint();
    let start = |child: &&str| -> Child {
        let program = env::current_exe().unwrap();
        let mut child_process = Command::new(program);
        child_process.args(["child", child, at, &endpoint]).stdin(Stdio::null()).spawn().unwrap()
    };

    let mut chance = Seeded(seed);
    let mut blows: Vec<(usize, Blow)> = (0..KILLS).map(|_| (chance.below(messages() - 100), Blow::Child)).collect();
    blows.extend((0..RESTARTS).map(|_| (chance.below(messages() - 100), Blow::Receiver)));
    if restart_server.is_some() {
        blows.extend((0..RESTARTS).map(|_| (chance.below(messages() - 100), Blow::Server)));
    }
    blows.sort_by_key(|(moment, _)| *moment);
    let mut running: Vec<Child> = children.iter().map(start).collect();
    for (moment, blow) in &blows {
        let mut begun = (Instant::now(), 0);
        loop {
            let come = record.lock().unwrap().len();
            if come > begun.1 {
                begun = (Instant::now(), come);
            }
            if come >= *moment {
                break;
            }
            assert!(begun.0.elapsed() < 2 * LONG, "no progress after {come} messages");
            let has_ended = running.iter_mut().any(|child| child.try_wait().unwrap().is_some());
            assert!(!has_ended, "a child ended after {come} messages");
            thread::park_timeout(Duration::from_micros(500));
        }
        // Somewhere within an exchange or the record of it.
        thread::park_timeout(Duration::from_micros(chance.below(3_000) as u64));
        match (blow, &mut restart_server) {
            (Blow::Receiver, _) => {
                drop(receiver);
                let address = endpoint.trim_start_matches("mllp://");
                let mut listening = None;
                eventually("the port is free again", || {
                    listening = listen(address).ok();
                    listening.is_some()
                });
                receiver = listening.unwrap();
            }
            (Blow::Server, Some(restart)) => restart(),
            _ => {
                let struck = chance.below(children.len());
                running[struck].kill().unwrap();
                running[struck].wait().unwrap();
                running[struck] = start(&children[struck]);
            }
        }
    }
    assert!(running.iter_mut().all(|child| child.wait().unwrap().success()), "the last children deliver the rest");
    drop(receiver);

    let repeats = repeats_of(&record.lock().unwrap());
    println!("{children:?}: {} blows, {repeats} repeats", blows.len());
    assert!(repeats <= blows.len() * LANES, "{repeats} repeats");
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use super::*;
    use mllp_client::outbox::{LaneKey, SqliteOutbox};
    use rusqlite::Connection;

    pub fn child(path: &str, endpoint: &str) {
        push_and_forward(SqliteOutbox::open(path, "kills").unwrap(), endpoint, LONG, pushed(path), Some(numbered));
    }

    pub fn in_lanes(path: &str, endpoint: &str, pushes: bool) {
        let outbox = SqliteOutbox::open(path, "kills").unwrap().lane_key(LaneKey::PatientId).unwrap().lanes(LANES);
        let numbered: Option<fn(usize) -> Vec<u8>> = Some(|number| messages_in_lanes().message(number));
        push_and_forward(outbox, endpoint, LONG, pushed(path), numbered.filter(|_| pushes));
    }

    fn pushed(path: &str) -> impl Fn() -> Option<usize> {
        let reader = Connection::open(path).unwrap();
        move || {
            let query = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'message'";
            reader.query_row(query, [], |row| row.get::<_, i64>(0)).ok().map(|count| count as usize)
        }
    }

    pub fn survives_kills() {
        survive(1, &["sqlite"], in_order);
    }

    pub fn lanes_survive_kills() {
        survive(4, &["sqlite-lanes", "sqlite-lanes-beside"], in_order_of_lanes);
    }

    fn survive(seed: u64, children: &[&str], repeats_of: fn(&[Vec<u8>]) -> usize) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outbox.db");
        play(seed, (children, path.to_str().unwrap()), repeats_of, None);
        let outbox = SqliteOutbox::open(&path, "kills").unwrap();
        assert_eq!((outbox.claim().unwrap(), outbox.pending().unwrap().dead), (None, 0));
    }
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;
    use common::redis::Redis;
    use mllp_client::outbox::{LaneKey, RedisOutbox};

    const EXCHANGE: Duration = Duration::from_millis(400);

    fn open(url: &str) -> RedisOutbox {
        let mut opened = None;
        eventually("the server answers", || {
            opened = RedisOutbox::open(url, "kills").ok();
            opened.is_some()
        });
        // Whoever is killed is waited for this long; no exchange takes it.
        opened.unwrap().lease(EXCHANGE * 6 / 5)
    }

    pub fn child(url: &str, endpoint: &str) {
        push_and_forward(open(url), endpoint, EXCHANGE, pushed(url), Some(numbered));
    }

    pub fn in_lanes(url: &str, endpoint: &str, pushes: bool) {
        let outbox = open(url);
        let mut in_lanes = None;
        eventually("the server answers", || {
            in_lanes = outbox.clone().lane_key(LaneKey::PatientId).ok();
            in_lanes.is_some()
        });
        let numbered: Option<fn(usize) -> Vec<u8>> = Some(|number| messages_in_lanes().message(number));
        push_and_forward(in_lanes.unwrap().lanes(LANES), endpoint, EXCHANGE, pushed(url), numbered.filter(|_| pushes));
    }

    fn pushed(url: &str) -> impl Fn() -> Option<usize> {
        let server = ::redis::Client::open(url).unwrap();
        let connection = Mutex::new(None);
        move || {
            let mut connection = connection.lock().unwrap();
            if connection.is_none() {
                *connection = server.get_connection_with_timeout(LONG).ok();
            }
            let get = ::redis::cmd("GET").arg("mllp-outbox:{kills}:last").query(connection.as_mut()?);
            let count: Result<Option<usize>, _> = get;
            if count.is_err() {
                *connection = None;
            }
            Some(count.ok()?.unwrap_or(0))
        }
    }

    pub fn survives_kills() {
        survive(2, &["redis"], in_order);
    }

    pub fn lanes_survive_kills() {
        survive(5, &["redis-lanes", "redis-lanes-beside"], in_order_of_lanes);
    }

    fn survive(seed: u64, children: &[&str], repeats_of: fn(&[Vec<u8>]) -> usize) {
        let Some(mut redis) = Redis::start() else { return };
        let url = redis.url();
        play(
            seed,
            (children, &url),
            repeats_of,
            Some(&mut || {
                redis.kill();
                redis.restart().unwrap();
            }),
        );
        let outbox = open(&redis.url());
        let pending = outbox.pending().unwrap();
        assert_eq!((pending.waiting, pending.dead), (0, 0));
    }

    /// Forwards until nothing waits, or stands by while another does.
    pub fn forward(url: &str, endpoint: &str) {
        let client = Client::builder(endpoint).timeout(PAUSE * 4 / 5).build().unwrap();
        let outbox = RedisOutbox::open(url, "pauses").unwrap().lease(PAUSE);
        let forwarder = Forwarder::builder(outbox, client).start().unwrap();
        while !matches!(forwarder.drain(LONG), Ok(true)) {}
        assert!(forwarder.stop(LONG));
    }

    const PAUSE: Duration = Duration::from_secs(1);

    pub fn who_was_paused_sends_nothing_more() {
        const WAITING: usize = 3_000;
        const PAUSES: usize = 6;
        let Some(redis) = Redis::start() else { return };
        let outbox = RedisOutbox::open(&redis.url(), "pauses").unwrap();
        for number in 0..WAITING {
            outbox.push(&numbered(number)).unwrap();
        }
        let record = Arc::new(Mutex::new(Vec::<(usize, Vec<u8>)>::new()));
        // Each has a receiver of its own, so that it is seen who sends.
        let receivers = [0, 1].map(|who| {
            let record = Arc::clone(&record);
            Receiver::answering(move |message| {
                record.lock().unwrap().push((who, message.to_vec()));
                Step::accept()
            })
        });
        let receivers = receivers.map(Result::unwrap);
        let mut forwarders = [0, 1].map(|who: usize| {
            let mut forwarder = Command::new(env::current_exe().unwrap());
            forwarder.args(["child", "redis-forward", &redis.url(), &receivers[who].endpoint()]).spawn().unwrap()
        });
        let signal = |forwarder: &Child, name: &str| {
            let sent = Command::new("kill").args([name, &forwarder.id().to_string()]).status().unwrap();
            assert!(sent.success());
        };
        let come = || record.lock().unwrap().len();
        let sender = || record.lock().unwrap().last().unwrap().0;
        let mut chance = Seeded(3);
        for _ in 0..PAUSES {
            let wanted = come() + 100 + chance.below(100);
            eventually("they send", || come() >= wanted);
            thread::park_timeout(Duration::from_micros(chance.below(3_000) as u64));
            let paused = sender();
            signal(&forwarders[paused], "-STOP");
            // What was under way may have arrived by now, and then nothing more comes from there.
            eventually("the other takes over", || sender() != paused);
            let wanted = come() + 50;
            eventually("the other goes on", || come() >= wanted);
            signal(&forwarders[paused], "-CONT");
        }
        assert!(forwarders.iter_mut().all(|forwarder| forwarder.wait().unwrap().success()));
        let record = record.lock().unwrap();
        let mut next = 0;
        let mut changes = 0;
        for (place, (who, message)) in record.iter().enumerate() {
            let changed = place > 0 && record[place - 1].0 != *who;
            changes += usize::from(changed);
            if *message == numbered(next) {
                next += 1;
            } else {
                // It had left before the other took over, who could not know.
                assert!(changed && *message == numbered(next - 1), "at {place}, {changes} changes");
            }
        }
        println!("paused: {next} messages, {changes} changes of hands, {} repeats", record.len() - next);
        assert_eq!((next, changes), (WAITING, PAUSES));
    }
}

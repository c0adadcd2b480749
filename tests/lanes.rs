//! Lanes: what is sent at the same time, and what never overtakes what.

mod common;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, thread};

use common::lanes::{InLane, Numbered, Seen};
use common::{LONG, Seeded, Tidy, eventually, message, pass};
use mllp_client::outbox::{
    Claim, Entry, ForwardEvent, Forwarder, ForwarderBuilder, Lane, LaneKey, MemoryOutbox, Outbox, OutboxError, Pending,
    PushOptions, Settlement,
};
use mllp_client::testing::{OutboxSuite, Receiver, Step};
use mllp_client::{AckCode, Client};

const MOMENT: Duration = Duration::from_millis(1);

fn client_of(receiver: &Receiver, connections: usize) -> Client {
    Client::builder(&receiver.endpoint()).timeout(LONG).max_connections(connections).build().unwrap()
}

fn builder(outbox: impl Outbox + 'static, receiver: &Receiver, lanes: usize) -> ForwarderBuilder {
    let builder = Forwarder::builder(outbox, client_of(receiver, lanes)).lanes(lanes);
    builder.initial_delay(MOMENT).max_delay(MOMENT * 4).refusals(u32::MAX).rejections(u32::MAX)
}

/// A receiver that accepts most, at its own pace, refuses some, and loses some answers. It takes
/// one message of a lane at a time, and so many altogether.
fn moody(seen: &Arc<Mutex<Seen>>, seed: u64, most: usize) -> Receiver {
    let (seen, chance) = (Arc::clone(seen), Mutex::new(Seeded(seed)));
    let open = Mutex::new(HashSet::<InLane>::new());
    Receiver::answering(move |bytes| {
        let (number, lane) = seen.lock().unwrap().sees(bytes);
        {
            let mut open = open.lock().unwrap();
            assert!(open.insert(lane), "{number} comes beside another of {lane:?}");
            assert!(open.len() <= most, "{} at a time", open.len());
        }
        let (mood, pace) = {
            let mut chance = chance.lock().unwrap();
            (chance.below(100), chance.below(600))
        };
        pass(Duration::from_micros(pace as u64));
        let step = match mood {
            0..3 => Step::refuse(AckCode::ApplicationError, "an invented refusal"),
            3..5 => Step::silence().close(),
            _ => {
                seen.lock().unwrap().accepts(number);
                if mood == 5 { Step::silence().close() } else { Step::accept() }
            }
        };
        open.lock().unwrap().remove(&lane);
        step
    })
    .unwrap()
}

/// Pushes numbered messages while they are forwarded by each of these handles, over so many lanes.
fn delivers_in_order<O: Outbox + Clone + 'static>(name: &str, handles: &[O], lanes: usize) {
    let count = env::var("MLLP_LANES_MESSAGES").map_or(1_000, |count| count.parse().expect("a number of messages"));
    let messages = Numbered { patients: (count / 40).max(20) };
    let seen = Arc::new(Mutex::new(Seen::nothing_of(messages, count)));
    let receiver = moody(&seen, lanes as u64, lanes);
    let forwarders = handles.iter().map(|handle| builder(handle.clone(), &receiver, lanes).start().unwrap());
    let forwarders: Vec<Forwarder> = forwarders.collect();
    let pusher = &handles[0];
    for number in 0..count {
        pusher.push(&messages.message(number)).unwrap();
    }
    let all = |seen: &Mutex<Seen>| seen.lock().unwrap().all_accepted();
    while !all(&seen) {
        assert!(!seen.is_poisoned(), "{name}, {lanes} lanes");
        let before = seen.lock().unwrap().count();
        let drained = forwarders[0].drain(LONG).unwrap();
        assert!(drained || seen.lock().unwrap().count() > before, "{name}, {lanes} lanes: no progress after {before}");
    }
    for forwarder in &forwarders {
        assert!(forwarder.drain(LONG).unwrap(), "{name}, {lanes} lanes");
        let status = forwarder.status().unwrap();
        assert_eq!((status.waiting, status.dead, status.blocked, status.in_flight.len()), (0, 0, 0, 0), "{name}");
        assert!(forwarder.stop(LONG), "{name}");
    }
    let repeats = seen.lock().unwrap().repeats;
    println!("{name}, {lanes} lanes, {} forwarders: {count} messages, {repeats} repeats", forwarders.len());
    assert!(repeats < count / 8, "{name}: {repeats} repeats");
}

#[test]
fn nothing_is_overtaken_in_memory() {
    let _tidy = Tidy::up();
    for lanes in [1, 2, 4, 16] {
        let outbox = MemoryOutbox::new(1_000_000, usize::MAX).lane_key(LaneKey::PatientId).lanes(lanes);
        delivers_in_order("memory", &[outbox], lanes);
    }
}

#[cfg(feature = "sqlite")]
#[test]
fn nothing_is_overtaken_in_sqlite() {
    use mllp_client::outbox::SqliteOutbox;
    let _tidy = Tidy::up();
    for lanes in [1, 2, 4, 16] {
        let directory = tempfile::tempdir().unwrap();
        let open = || {
            let outbox = SqliteOutbox::open(directory.path().join("outbox.db"), "lanes").unwrap();
            outbox.lane_key(LaneKey::PatientId).unwrap().lanes(lanes)
        };
        delivers_in_order("SQLite", &[open(), open()], lanes);
    }
}

#[cfg(feature = "redis")]
#[test]
fn nothing_is_overtaken_in_redis() {
    use common::redis::Redis;
    use mllp_client::outbox::RedisOutbox;
    let Some(redis) = Redis::start() else { return };
    for lanes in [1, 2, 4, 16] {
        let open = || {
            let outbox = RedisOutbox::open(&redis.url(), &format!("lanes-{lanes}")).unwrap();
            outbox.lane_key(LaneKey::PatientId).unwrap().lanes(lanes)
        };
        delivers_in_order("Redis", &[open(), open()], lanes);
    }
}

/// A way to break the contract of lanes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    ClaimsTwoOfOneKey,
    OvertakesBarriers,
    BlockedKeyBlocksAll,
    ForgetsTheBound,
}

/// An outbox in memory with a fault.
struct Faulty {
    fault: Fault,
    inner: MemoryOutbox,
    lanes: usize,
    pushes: AtomicU64,
}

impl Outbox for Faulty {
    fn push(&self, message: &[u8]) -> Result<u64, OutboxError> {
        self.inner.push(message)
    }

    fn push_with(&self, message: &[u8], options: &PushOptions<'_>) -> Result<u64, OutboxError> {
        let alone = Lane::key(format!("alone {}", self.pushes.fetch_add(1, Ordering::Relaxed)));
        let is_meant = match options.given_lane() {
            Some(Lane::Key(_)) => self.fault == Fault::ClaimsTwoOfOneKey,
            Some(Lane::Barrier) => self.fault == Fault::OvertakesBarriers,
            _ => false,
        };
        let faulty = options.lane(&alone);
        self.inner.push_with(message, if is_meant { &faulty } else { options })
    }

    fn claim(&self) -> Result<Option<Claim>, OutboxError> {
        let has_lanes = self.pushes.load(Ordering::Relaxed) > 0;
        if self.fault == Fault::BlockedKeyBlocksAll && has_lanes && self.inner.pending()?.blocked > 0 {
            return Ok(None);
        }
        self.inner.claim()
    }

    fn begin(&self, claim: &Claim) -> Result<(), OutboxError> {
        self.inner.begin(claim)
    }

    fn settle(&self, claim: &Claim, outcome: Settlement<'_>) -> Result<(), OutboxError> {
        self.inner.settle(claim, outcome)
    }

    fn release(&self) {
        self.inner.release();
    }

    fn pending(&self) -> Result<Pending, OutboxError> {
        self.inner.pending()
    }

    fn stopped(&self, after: u64, limit: usize) -> Result<Vec<Entry>, OutboxError> {
        self.inner.stopped(after, limit)
    }

    fn requeue(&self, id: u64) -> Result<bool, OutboxError> {
        self.inner.requeue(id)
    }

    fn discard(&self, id: u64) -> Result<bool, OutboxError> {
        self.inner.discard(id)
    }

    fn wait(&self, limit: Duration) {
        self.inner.wait(limit);
    }

    fn lanes(&self) -> usize {
        self.lanes
    }
}

#[test]
fn what_breaks_the_contract_of_lanes_is_found_out() {
    let _tidy = Tidy::up();
    let rows = [
        (Fault::ClaimsTwoOfOneKey, "lanes: while an entry is claimed, the head of another lane is claimed next"),
        (Fault::OvertakesBarriers, "barrier: a barrier waits for all before it"),
        (Fault::BlockedKeyBlocksAll, "lane-blocked: what waits can be claimed"),
        (Fault::ForgetsTheBound, "lanes-bound: no more entries are claimed than lanes() says"),
    ];
    let find_out = |(fault, finding): (Fault, &str)| {
        let storage = Mutex::new(HashMap::<String, MemoryOutbox>::new());
        let open = |destination: &str| {
            let mut storage = storage.lock().unwrap();
            let new = || MemoryOutbox::new(1_000, 100_000_000).lanes(4);
            let inner = storage.entry(destination.to_owned()).or_insert_with(new).clone();
            let lanes = if fault == Fault::ForgetsTheBound { 3 } else { 4 };
            Faulty { fault, inner, lanes, pushes: AtomicU64::new(0) }
        };
        let broken = OutboxSuite::new(open).volatile().run().unwrap_err();
        assert!(broken.findings.iter().any(|found| found == finding), "{fault:?}: {:?}", broken.findings);
    };
    thread::scope(|scope| {
        for row in rows {
            scope.spawn(move || find_out(row));
        }
    });
}

/// A receiver that answers when it is told to, and what it has: the control IDs, in order.
struct Patient {
    receiver: Receiver,
    come: Arc<Mutex<Vec<String>>>,
    goes_on: Arc<Mutex<HashSet<String>>>,
}

impl Patient {
    fn new() -> Patient {
        let (come, goes_on): (Arc<Mutex<Vec<String>>>, Arc<Mutex<HashSet<String>>>) = Default::default();
        let (coming, let_go) = (Arc::clone(&come), Arc::clone(&goes_on));
        let receiver = Receiver::answering(move |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let id = text.split('|').nth(9).unwrap().to_owned();
            coming.lock().unwrap().push(id.clone());
            eventually("it may answer", || let_go.lock().unwrap().contains(&id));
            Step::accept()
        });
        Patient { receiver: receiver.unwrap(), come, goes_on }
    }

    fn answers(&self, ids: &str) {
        self.goes_on.lock().unwrap().extend(ids.chars().map(String::from));
    }
}

fn push_into(outbox: &impl Outbox, id: &str, lane: &Lane) -> u64 {
    outbox.push_with(message(id).as_bytes(), &PushOptions::new().lane(lane)).unwrap()
}

#[test]
fn lanes_are_busy_at_the_same_time() {
    let _tidy = Tidy::up();
    let patient = Patient::new();
    let outbox = MemoryOutbox::new(1_000, usize::MAX).lanes(3);
    let forwarder = builder(outbox.clone(), &patient.receiver, 3).start().unwrap();
    let [a, b, c, d] = ["A", "B", "C", "D"].map(Lane::key);
    for (id, lane) in [("1", &a), ("2", &a), ("3", &b)] {
        push_into(&outbox, id, lane);
    }
    eventually("two have come", || patient.come.lock().unwrap().len() == 2);
    // One that comes while others are under way is sent at once, as long as there are connections.
    push_into(&outbox, "4", &c);
    push_into(&outbox, "5", &d);
    eventually("three have come", || patient.come.lock().unwrap().len() == 3);
    let status = forwarder.status().unwrap();
    let mut come = patient.come.lock().unwrap().clone();
    come.sort();
    assert_eq!((come.concat().as_str(), status.in_flight.concat().as_str()), ("134", "134"));
    assert_eq!((status.waiting, status.blocked), (5, 0));
    patient.answers("4");
    eventually("the next has come", || patient.come.lock().unwrap().len() == 4);
    // The oldest whose lane is free.
    assert_eq!(patient.come.lock().unwrap().last().unwrap(), "5");
    patient.answers("12345");
    assert!(forwarder.drain(LONG).unwrap());
    assert_eq!(patient.receiver.connections(), 3);
    assert!(forwarder.stop(LONG));
    assert_eq!(patient.receiver.received().len(), 5);
}

#[test]
fn without_lanes_there_is_one_thread_and_one_connection() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    for (name, rule) in [("the destination's", LaneKey::Destination), ("each patient's", LaneKey::PatientId)] {
        let outbox = MemoryOutbox::new(1_000, usize::MAX).lanes(4).lane_key(rule);
        let threads = Arc::new(Mutex::new(HashSet::new()));
        let seen = Arc::clone(&threads);
        let observe = move |_: &ForwardEvent<'_>| {
            let _ = seen.lock().unwrap().insert(thread::current().id());
        };
        let forwarder = builder(outbox.clone(), &receiver, 4).on_event(observe).start().unwrap();
        let before = receiver.connections();
        for number in 0..50 {
            outbox.push(message(&number.to_string()).as_bytes()).unwrap();
        }
        assert!(forwarder.drain(LONG).unwrap(), "{name}");
        assert!(forwarder.stop(LONG));
        assert_eq!(receiver.connections() - before, 1, "{name}: one patient, one order");
        if name == "the destination's" {
            assert_eq!(threads.lock().unwrap().len(), 1, "{name}");
        }
    }
}

#[test]
fn what_is_held_holds_up_its_own_lane() {
    let _tidy = Tidy::up();
    let refuses = Arc::new(Mutex::new(true));
    let still = Arc::clone(&refuses);
    let receiver = Receiver::answering(move |bytes| {
        let is_poison = bytes.windows(7).any(|part| part == b"|POISON");
        if is_poison && *still.lock().unwrap() {
            Step::refuse(AckCode::ApplicationError, "an invented refusal")
        } else {
            Step::accept()
        }
    })
    .unwrap();
    let outbox = MemoryOutbox::new(1_000, usize::MAX).lanes(2);
    let (a, b) = (Lane::key("A"), Lane::key("B"));
    let held = push_into(&outbox, "1", &a);
    assert!(outbox.hold(held).unwrap());
    push_into(&outbox, "2", &a);
    push_into(&outbox, "POISON", &b);
    push_into(&outbox, "4", &b);
    for number in 0..40 {
        push_into(&outbox, &format!("C{number}"), &Lane::key(format!("C{}", number % 7)));
    }
    let forwarder = builder(outbox.clone(), &receiver, 2).start().unwrap();
    eventually("the other lanes are delivered", || forwarder.status().unwrap().delivered == 40);
    let status = forwarder.status().unwrap();
    assert_eq!((status.waiting, status.held), (4, 1));
    *refuses.lock().unwrap() = false;
    assert!(outbox.unhold(held).unwrap());
    assert!(forwarder.drain(LONG).unwrap());
    assert!(forwarder.stop(LONG));
    let ids: Vec<String> = receiver
        .received()
        .iter()
        .map(|bytes| String::from_utf8_lossy(bytes).split('|').nth(9).unwrap().to_owned())
        .collect();
    let place = |id: &str| ids.iter().rposition(|known| known == id).unwrap();
    assert!(place("1") < place("2") && place("POISON") < place("4"), "{ids:?}");
}

#[test]
fn as_many_lanes_as_there_are() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    for (name, lanes, connections, claims, why) in [
        ("none", 0, 4, 4, "at least one"),
        ("more than connections", 4, 3, 4, "set max_connections(4)"),
        ("more than the outbox has", 4, 4, 3, "open it with lanes(4)"),
    ] {
        let outbox = MemoryOutbox::new(1_000, usize::MAX).lanes(claims);
        let started = Forwarder::builder(outbox, client_of(&receiver, connections)).lanes(lanes).start();
        let refused = matches!(&started, Err(OutboxError::Config(what)) if what.contains(why));
        assert!(refused, "{name}: {started:?}");
    }
}

#[test]
fn pausing_and_stopping_are_about_all_lanes() {
    let _tidy = Tidy::up();
    let patient = Patient::new();
    let outbox = MemoryOutbox::new(1_000, usize::MAX).lanes(4);
    for id in ["1", "2", "3", "4", "5", "6"] {
        push_into(&outbox, id, &Lane::key(id));
    }
    let forwarder = builder(outbox.clone(), &patient.receiver, 4).start().unwrap();
    eventually("four have come", || patient.come.lock().unwrap().len() == 4);
    forwarder.pause().unwrap();
    patient.answers("1234");
    eventually("they are delivered", || forwarder.status().unwrap().delivered == 4);
    assert!(!forwarder.drain(Duration::ZERO).unwrap());
    assert_eq!(patient.come.lock().unwrap().len(), 4);
    forwarder.resume().unwrap();
    eventually("the others have come", || patient.come.lock().unwrap().len() == 6);
    // Two are under way.
    assert!(!forwarder.stop(Duration::ZERO));
    assert_eq!(outbox.pending().unwrap().waiting, 2);
    let again = outbox.claim().unwrap().unwrap();
    let other = outbox.claim().unwrap().unwrap();
    assert_eq!((again.entry.control_id.as_str(), other.entry.control_id.as_str()), ("5", "6"));
    patient.answers("56");
}

/// What a storage knows of the rule by which messages are given lanes. `with` opens a destination
/// with a rule.
#[cfg(any(feature = "redis", feature = "sqlite"))]
fn the_rule_is_the_destinations<O: Outbox>(
    open: impl Fn(&str) -> O,
    with: impl Fn(O, LaneKey) -> Result<O, OutboxError>,
) {
    let of_patient = |id: &str, patient: &str| message(id).replace("42^^^NORTH", patient);
    let push = |outbox: &O, id: &str, patient: &str| outbox.push(of_patient(id, patient).as_bytes());
    let config = |result: Result<(), OutboxError>, known: &str| match result {
        Err(OutboxError::Config(what)) => assert!(what.contains(known), "{what}"),
        other => panic!("{known}: {other:?}"),
    };
    let claims = |outbox: &O| {
        let claims = std::iter::from_fn(|| outbox.claim().unwrap());
        claims.take(4).collect::<Vec<Claim>>()
    };
    let ids = |claims: &[Claim]| claims.iter().map(|claim| claim.entry.control_id.clone()).collect::<String>();
    let deliver = |outbox: &O, claims: Vec<Claim>| {
        claims.iter().for_each(|claim| outbox.settle(claim, Settlement::Delivered).unwrap());
    };

    // What waits since there were no lanes goes first, in its order.
    let outbox = open("rules");
    let dead = push(&outbox, "0", "A").unwrap();
    let refused = Settlement::Dead { why: "an invented refusal" };
    claims(&outbox).iter().for_each(|claim| outbox.settle(claim, refused).unwrap());
    push(&outbox, "1", "A").unwrap();
    push(&outbox, "2", "B").unwrap();
    let outbox = with(outbox, LaneKey::PatientId).unwrap();
    push(&outbox, "3", "A").unwrap();
    push(&outbox, "4", "C").unwrap();
    for id in ["1", "2"] {
        let first = claims(&outbox);
        assert_eq!(ids(&first), id);
        assert!(first[0].is_alone);
        deliver(&outbox, first);
    }
    let both = claims(&outbox);
    assert_eq!(ids(&both), "34");
    assert!(!both[0].is_alone);
    deliver(&outbox, both);

    // Who opens it without a rule pushes by it.
    let other = open("rules");
    for (id, patient) in [("5", "A"), ("6", "A"), ("7", "B"), ("8", "")] {
        push(&other, id, patient).unwrap();
    }
    // And who opens it with another is told, as long as messages wait.
    config(with(open("rules"), LaneKey::Destination).map(drop), "patient-id");
    config(with(open("rules"), LaneKey::by("device", |_| Lane::Barrier)).map(drop), "patient-id");
    let several = claims(&outbox);
    assert_eq!(ids(&several), "578");
    deliver(&outbox, several);
    let last = claims(&outbox);
    assert_eq!(ids(&last), "6");
    config(with(open("rules"), LaneKey::Destination).map(drop), "patient-id");
    deliver(&outbox, last);
    outbox.release();

    let by_device = with(open("rules"), LaneKey::by("device", |_| Lane::Barrier)).unwrap();
    config(push(&outbox, "9", "A").map(drop), "rule");
    config(push(&other, "9", "A").map(drop), "rule");
    let given = PushOptions::new();
    let lane = Lane::key("given");
    other.push_with(of_patient("9", "A").as_bytes(), &given.lane(&lane)).unwrap();
    push(&by_device, "X", "A").unwrap();
    let first = claims(&by_device);
    assert_eq!(ids(&first), "9");
    deliver(&by_device, first);
    deliver(&by_device, claims(&by_device));

    // What is older than the lanes waits for what is under way, if it is queued again.
    let aside = by_device.push_with(of_patient("Y", "A").as_bytes(), &given.lane(&lane)).unwrap();
    assert!(by_device.requeue(dead).unwrap() && by_device.pending().unwrap().waiting == 2);
    let first = claims(&by_device);
    assert_eq!(ids(&first), "0");
    by_device.settle(&first[0], Settlement::Dead { why: "x" }).unwrap();
    let beside = claims(&by_device);
    assert_eq!((ids(&beside).as_str(), beside[0].entry.id), ("Y", aside));
    assert!(by_device.requeue(dead).unwrap());
    assert_eq!(ids(&claims(&by_device)), "");
    assert_eq!(ids(&claims(&open("rules"))), "");
    deliver(&by_device, beside);
    deliver(&by_device, claims(&by_device));
    by_device.release();
    assert_eq!(by_device.pending().unwrap().waiting, 0);

    // Back to one order.
    let one_order = with(open("rules"), LaneKey::Destination).unwrap();
    push(&one_order, "1", "A").unwrap();
    push(&open("rules"), "2", "B").unwrap();
    for id in ["1", "2"] {
        let next = claims(&one_order);
        assert_eq!(ids(&next), id);
        assert!(next[0].is_alone);
        deliver(&one_order, next);
    }
    assert_eq!(one_order.pending().unwrap().waiting, 0);
}

#[cfg(feature = "sqlite")]
#[test]
fn the_rule_is_the_destinations_in_sqlite() {
    use mllp_client::outbox::SqliteOutbox;
    let _tidy = Tidy::up();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("outbox.db");
    let open = |destination: &str| SqliteOutbox::open(&path, destination).unwrap().lanes(4);
    // The handles of this test claim one after the other.
    the_rule_is_the_destinations(open, SqliteOutbox::lane_key);
    let kept = rusqlite::Connection::open(&path).unwrap();
    let lanes = "SELECT count(*) FROM delivered WHERE lane IS NOT NULL AND length(lane) NOT IN (1, 32)";
    assert_eq!(kept.query_row(lanes, [], |row| row.get::<_, i64>(0)).unwrap(), 0, "digests alone are kept");
}

/// A head that rests for an hour is claimed as soon as `set_back` has made as if that had begun in
/// the future, by the clock of the storage.
#[cfg(any(feature = "redis", feature = "sqlite"))]
fn a_clock_that_was_set_back_ends_rests(outbox: &impl Outbox, set_back: impl Fn(u64)) {
    let lane = Lane::key("A");
    let id = push_into(outbox, "1", &lane);
    push_into(outbox, "2", &Lane::Barrier);
    let hour = Settlement::Retry { after: Duration::from_secs(3_600), refused: false, why: "x" };
    outbox.settle(&outbox.claim().unwrap().unwrap(), hour).unwrap();
    assert_eq!(outbox.claim().unwrap(), None);
    assert_eq!(outbox.pending().unwrap().blocked, 1);
    set_back(id);
    let again = outbox.claim().unwrap().unwrap();
    assert_eq!((again.entry.id, again.entry.attempts), (id, 1));
    outbox.settle(&again, Settlement::Delivered).unwrap();
    assert_eq!(outbox.claim().unwrap().unwrap().entry.control_id, "2");
}

#[cfg(feature = "sqlite")]
#[test]
fn a_clock_that_was_set_back_ends_rests_in_sqlite() {
    let _tidy = Tidy::up();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("outbox.db");
    let outbox = mllp_client::outbox::SqliteOutbox::open(&path, "lanes").unwrap().lanes(2);
    let file = rusqlite::Connection::open(&path).unwrap();
    a_clock_that_was_set_back_ends_rests(&outbox, |id| {
        let later = "UPDATE waiting SET retry_at = retry_at + 7200000, rested_at = rested_at + 7200000 WHERE id = ?1";
        assert_eq!(file.execute(later, [id as i64]).unwrap(), 1);
    });
}

#[cfg(feature = "redis")]
#[test]
fn a_clock_that_was_set_back_ends_rests_in_redis() {
    let Some(redis) = common::redis::Redis::start() else { return };
    let outbox = mllp_client::outbox::RedisOutbox::open(&redis.url(), "lanes").unwrap().lanes(2);
    let mut connection = ::redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
    let connection = std::cell::RefCell::new(&mut connection);
    a_clock_that_was_set_back_ends_rests(&outbox, |id| {
        for set in ["rests", "rested"] {
            let mut later = ::redis::cmd("ZINCRBY");
            later.arg(format!("mllp-outbox:{{lanes}}:{set}")).arg(7_200_000).arg(id);
            later.exec(&mut **connection.borrow_mut()).unwrap();
        }
    });
}

#[cfg(feature = "redis")]
#[test]
fn the_rule_is_the_destinations_in_redis() {
    use common::redis::Redis;
    use mllp_client::outbox::RedisOutbox;
    let Some(redis) = Redis::start() else { return };
    let open = |destination: &str| RedisOutbox::open(&redis.url(), destination).unwrap().lanes(4);
    the_rule_is_the_destinations(open, RedisOutbox::lane_key);
}

/// The outboxes of this test, in lanes by the patient.
fn in_lanes_by_patient(test: impl Fn(&str, Box<dyn Outbox>)) {
    let memory = MemoryOutbox::new(1_000, usize::MAX).lane_key(LaneKey::PatientId).lanes(4);
    test("memory", Box::new(memory));
    #[cfg(feature = "sqlite")]
    {
        let directory = tempfile::tempdir().unwrap();
        let outbox = mllp_client::outbox::SqliteOutbox::open(directory.path().join("outbox.db"), "lanes").unwrap();
        test("SQLite", Box::new(outbox.lane_key(LaneKey::PatientId).unwrap().lanes(4)));
    }
    #[cfg(feature = "redis")]
    if let Some(redis) = common::redis::Redis::start() {
        let outbox = mllp_client::outbox::RedisOutbox::open(&redis.url(), "lanes").unwrap();
        test("Redis", Box::new(outbox.lane_key(LaneKey::PatientId).unwrap().lanes(4)));
    }
}

#[test]
fn a_message_without_a_key_holds_up_no_other() {
    let _tidy = Tidy::up();
    in_lanes_by_patient(|name, outbox| {
        let patient = Patient::new();
        let outbox: Arc<dyn Outbox> = Arc::from(outbox);
        let forwarder = builder(Arc::clone(&outbox), &patient.receiver, 4).start().unwrap();
        let no_key = message("1").replace("42^^^NORTH", "");
        outbox.push(no_key.as_bytes()).unwrap();
        eventually("it has come", || patient.come.lock().unwrap().len() == 1);
        outbox.push(message("2").as_bytes()).unwrap();
        eventually("the other has come", || patient.come.lock().unwrap().len() == 2);
        patient.answers("12");
        assert!(forwarder.drain(LONG).unwrap(), "{name}");
        // The same where it is held.
        let held = outbox.push(no_key.as_bytes()).unwrap();
        assert!(outbox.hold(held).unwrap() || forwarder.drain(LONG).unwrap(), "{name}");
        outbox.push(message("2").as_bytes()).unwrap();
        eventually("the other is delivered", || {
            patient.come.lock().unwrap().iter().filter(|id| *id == "2").count() == 2
        });
        outbox.unhold(held).unwrap();
        assert!(forwarder.drain(LONG).unwrap(), "{name}");
        assert!(forwarder.stop(LONG), "{name}");
    });
}

#[test]
fn a_retry_comes_in_its_time() {
    let _tidy = Tidy::up();
    in_lanes_by_patient(|name, outbox| {
        let attempts = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&attempts);
        let receiver = Receiver::answering(move |_| {
            let mut seen = seen.lock().unwrap();
            seen.push(Instant::now());
            // Long enough for another thread to wait for the outbox.
            pass(Duration::from_millis(30));
            if seen.len() == 1 {
                Step::refuse(AckCode::ApplicationError, "an invented refusal")
            } else {
                Step::accept()
            }
        })
        .unwrap();
        let outbox: Arc<dyn Outbox> = Arc::from(outbox);
        let forwarder =
            builder(Arc::clone(&outbox), &receiver, 4).initial_delay(Duration::from_millis(50)).start().unwrap();
        outbox.push(message("1").as_bytes()).unwrap();
        assert!(forwarder.drain(LONG).unwrap(), "{name}");
        assert!(forwarder.stop(LONG), "{name}");
        let attempts = attempts.lock().unwrap();
        let between = attempts[1].duration_since(attempts[0]);
        // A poll, or a wait of the server, would take a second or five.
        assert!(between < Duration::from_millis(900), "{name}: {between:?}");
    });
}

#[cfg(feature = "redis")]
#[test]
fn an_entry_that_the_server_has_lost_stops_its_lane_alone() {
    let Some(redis) = common::redis::Redis::start() else { return };
    let outbox = mllp_client::outbox::RedisOutbox::open(&redis.url(), "lanes").unwrap().lanes(4);
    let (a, b) = (Lane::key("A"), Lane::key("B"));
    let lost = [push_into(&outbox, "1", &a), push_into(&outbox, "2", &a), push_into(&outbox, "3", &b)];
    push_into(&outbox, "4", &a);
    push_into(&outbox, "5", &b);
    let mut connection = ::redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
    for id in lost {
        ::redis::cmd("DEL").arg(format!("mllp-outbox:{{lanes}}:entry:{id}")).exec(&mut connection).unwrap();
    }
    let mut told = 0;
    let mut ids = String::new();
    for _ in 0..6 {
        match outbox.claim() {
            Ok(Some(claim)) => {
                ids += &claim.entry.control_id;
                outbox.settle(&claim, Settlement::Delivered).unwrap();
            }
            Ok(None) => {}
            Err(OutboxError::Stopped { .. }) => told += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((ids.as_str(), told, outbox.pending().unwrap().waiting), ("45", 3, 0));
}

#[cfg(feature = "redis")]
#[test]
fn a_claim_whose_answer_was_lost_is_made_again() {
    let Some(redis) = common::redis::Redis::start() else { return };
    let outbox = mllp_client::outbox::RedisOutbox::open(&redis.url(), "lanes").unwrap().lanes(2);
    push_into(&outbox, "1", &Lane::Barrier);
    let claim = outbox.claim().unwrap().unwrap();
    // As if nothing had been heard of it: the server knows of the claim, and nobody else.
    let mut connection = ::redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
    let busy = "mllp-outbox:{lanes}:busy";
    let by: String = ::redis::cmd("HGET").arg(busy).arg("!").query(&mut connection).unwrap();
    outbox.settle(&claim, Settlement::Delivered).unwrap();
    push_into(&outbox, "2", &Lane::Barrier);
    let entry = by.replacen(&claim.entry.id.to_string(), &(claim.entry.id + 1).to_string(), 1);
    ::redis::cmd("HSET").arg(busy).arg("!").arg(entry).exec(&mut connection).unwrap();
    ::redis::cmd("ZADD").arg("mllp-outbox:{lanes}:flight").arg(i64::MAX).arg("!").exec(&mut connection).unwrap();
    assert_eq!(outbox.claim().unwrap().unwrap().entry.control_id, "2");
}

#[cfg(feature = "sqlite")]
#[test]
fn what_is_sent_again_has_its_lane() {
    use mllp_client::outbox::SqliteOutbox;
    let _tidy = Tidy::up();
    let directory = tempfile::tempdir().unwrap();
    let outbox = SqliteOutbox::open(directory.path().join("outbox.db"), "lanes").unwrap().lanes(4);
    let deliver =
        |outbox: &SqliteOutbox| outbox.settle(&outbox.claim().unwrap().unwrap(), Settlement::Delivered).unwrap();
    let without_lanes = outbox.push(message("1").as_bytes()).unwrap();
    deliver(&outbox);
    let outbox = outbox.lane_key(LaneKey::PatientId).unwrap();
    let given = push_into(&outbox, "2", &Lane::key("given"));
    deliver(&outbox);
    // Delivered before there were lanes, it is in that of its patient now.
    outbox.push(message("3").as_bytes()).unwrap();
    outbox.resend(without_lanes).unwrap().unwrap();
    outbox.resend(given).unwrap().unwrap();
    push_into(&outbox, "4", &Lane::key("given"));
    let claims: Vec<Claim> = std::iter::from_fn(|| outbox.claim().unwrap()).collect();
    let ids: Vec<&str> = claims.iter().map(|claim| &*claim.entry.control_id).collect();
    assert_eq!(ids, ["3", "2"]);
}

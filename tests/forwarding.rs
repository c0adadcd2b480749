//! The forwarder: what follows each outcome, its order, and how it is stopped.

mod common;

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::{LONG, SHORT, Tidy, client, dead_endpoint, eventually, limited, message, prompt};
use mllp_client::AckCode;
use mllp_client::outbox::{
    AtLimit, Claim, Entry, EntryState, ForwardEvent, Forwarder, ForwarderBuilder, MemoryOutbox, OnUnknown, Outbox,
    OutboxError, Pending, Settlement, Summary,
};
use mllp_client::testing::{Receiver, Step};

const MOMENT: Duration = Duration::from_millis(1);

fn outbox() -> MemoryOutbox {
    MemoryOutbox::new(1_000, 10_000_000)
}

fn builder(outbox: impl Outbox + 'static, receiver: &Receiver) -> ForwarderBuilder {
    Forwarder::builder(outbox, client(&receiver.endpoint(), LONG)).initial_delay(MOMENT).max_delay(MOMENT * 4)
}

/// What an observer was told, a word for each event.
fn observed(builder: ForwarderBuilder) -> (ForwarderBuilder, Arc<Mutex<Vec<String>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let builder = builder.on_event(move |event| {
        let word = match event {
            ForwardEvent::Delivered { entry, ack } => {
                format!("delivered {} {}", entry.control_id, ack.map_or("-", |ack| ack.code().as_str()))
            }
            ForwardEvent::Retrying { entry, .. } => format!("retrying {}", entry.control_id),
            ForwardEvent::Held { entry, .. } => format!("held {}", entry.control_id),
            ForwardEvent::Dead { entry, .. } => format!("dead {}", entry.control_id),
            ForwardEvent::Stopped { entry } => format!("{} {} by the outbox", entry.state.as_str(), entry.control_id),
            ForwardEvent::Paused { .. } => "paused".to_owned(),
            ForwardEvent::Resumed { .. } => "resumed".to_owned(),
            ForwardEvent::OutboxFailed { .. } => "outbox failed".to_owned(),
            other => format!("{other:?}"),
        };
        tell.lock().unwrap().push(word);
    });
    (builder, told)
}

#[test]
fn each_outcome_has_its_consequence() {
    let _tidy = Tidy::up();
    let refuse = |code| Step::refuse(code, "Marker of an invented patient");
    let commit = || Step::acknowledge(AckCode::CommitAccept);
    let ae = || refuse(AckCode::ApplicationError);
    let (ar, cr) = (|| refuse(AckCode::ApplicationReject), || refuse(AckCode::CommitReject));
    for (name, steps, ids_received, told) in [
        ("accepted", vec![], "12", "delivered 1 AA, delivered 2 AA"),
        ("committed, then silence", vec![commit().close()], "12", "delivered 1 CA, delivered 2 AA"),
        ("unknown", vec![Step::silence().close()], "112", "retrying 1, delivered 1 AA, delivered 2 AA"),
        (
            "unmatched",
            vec![Step::frame(b"MSH|^~\\&|\rMSA|AA|X\r")],
            "112",
            "retrying 1, delivered 1 AA, delivered 2 AA",
        ),
        ("AE once", vec![ae()], "112", "retrying 1, delivered 1 AA, delivered 2 AA"),
        ("CE once", vec![refuse(AckCode::CommitError)], "112", "retrying 1, delivered 1 AA, delivered 2 AA"),
        ("AE for ever", vec![ae(), ae(), ae()], "1112", "retrying 1, retrying 1, dead 1, delivered 2 AA"),
        ("AR once", vec![ar()], "112", "retrying 1, delivered 1 AA, delivered 2 AA"),
        ("AR for ever", vec![ar(), ar()], "112", "retrying 1, dead 1, delivered 2 AA"),
        ("CR for ever", vec![cr(), cr()], "112", "retrying 1, dead 1, delivered 2 AA"),
        (
            // Attempts that were no refusals do not count as such.
            "unknown, AE, unknown, AE",
            vec![Step::silence().close(), ae(), Step::silence().close(), ae()],
            "111112",
            "retrying 1, retrying 1, retrying 1, retrying 1, delivered 1 AA, delivered 2 AA",
        ),
    ] {
        let receiver = Receiver::scripted(steps).unwrap();
        let outbox = outbox();
        let (builder, events) = observed(builder(outbox.clone(), &receiver).refusals(2).rejections(1));
        for id in ["1", "2"] {
            outbox.push(message(id).as_bytes()).unwrap();
        }
        let forwarder = builder.start().unwrap();
        assert!(forwarder.drain(LONG).unwrap(), "{name}");
        let status = forwarder.status().unwrap();
        assert!(forwarder.stop(LONG), "{name}");
        assert_eq!(events.lock().unwrap().join(", "), told, "{name}");
        let expected: Vec<_> = ids_received.chars().map(|id| message(&id.to_string()).into_bytes()).collect();
        assert_eq!(receiver.received(), expected, "{name}: order, and the same bytes");
        let dead = outbox.stopped(0, 10).unwrap();
        assert_eq!(status.dead, dead.len() as u64, "{name}");
        assert_eq!((status.waiting, status.last_failure, status.in_flight), (0, None, vec![]), "{name}");
        for entry in dead {
            let why = entry.last_failure.clone().unwrap();
            assert!(why.contains("the receiver answered") && why.contains("error 207"), "{name}: {why}");
            assert!(!format!("{why} {entry:?}").contains("Marker"), "{name}: {why}");
        }
    }
}

#[test]
fn a_message_without_an_answer_is_dead_after_so_many_attempts() {
    let _tidy = Tidy::up();
    let silent = || Step::silence().close();
    let receiver =
        Receiver::scripted([silent(), silent(), Step::accept(), silent(), silent(), Step::accept()]).unwrap();
    let outbox = outbox();
    let (builder, events) = observed(builder(outbox.clone(), &receiver));
    let forwarder = builder.unknown_attempts(NonZeroU32::new(2).unwrap()).start().unwrap();
    let ids = ["1", "2"].map(|id| outbox.push(message(id).as_bytes()).unwrap());
    assert!(forwarder.drain(LONG).unwrap());
    // Queued again, it has as many attempts as at first.
    assert!(outbox.requeue(ids[0]).unwrap());
    assert!(forwarder.drain(LONG).unwrap());
    assert!(outbox.requeue(ids[0]).unwrap());
    assert!(forwarder.drain(LONG).unwrap());
    assert!(forwarder.stop(LONG));
    let told = ["retrying 1", "dead 1", "delivered 2 AA", "retrying 1", "dead 1", "delivered 1 AA"];
    assert_eq!(*events.lock().unwrap(), told);
}

#[test]
fn what_is_given_up_is_dead_or_held() {
    let _tidy = Tidy::up();
    let silent = || Step::silence().close();
    let refuse = || Step::refuse(AckCode::ApplicationError, "no");
    let by_attempts: fn(ForwarderBuilder) -> ForwarderBuilder =
        |builder| builder.unknown_attempts(NonZeroU32::new(2).unwrap());
    let by_refusals: fn(ForwarderBuilder) -> ForwarderBuilder = |builder| builder.refusals(1);
    let by_age: fn(ForwarderBuilder) -> ForwarderBuilder = |builder| builder.max_age(Duration::ZERO);
    for (name, steps, limits, attempts) in [
        ("unknown, attempts", vec![silent(), silent()], by_attempts, 2),
        ("unknown, age", vec![silent()], by_age, 1),
        ("refused, attempts", vec![refuse(), refuse()], by_refusals, 2),
        ("refused, age", vec![refuse()], by_age, 1),
    ] {
        for at_limit in [AtLimit::Dead, AtLimit::Hold] {
            let receiver = Receiver::scripted(steps.clone()).unwrap();
            let outbox = outbox();
            let (builder, events) = observed(limits(builder(outbox.clone(), &receiver)).at_limit(at_limit));
            let ids = ["1", "2"].map(|id| outbox.push(message(id).as_bytes()).unwrap());
            let forwarder = builder.start().unwrap();
            eventually("it is given up", || !outbox.stopped(0, 1).unwrap().is_empty());
            let entry = outbox.stopped(0, 1).unwrap().remove(0);
            let is_held = at_limit == AtLimit::Hold;
            let state = if is_held { EntryState::Held } else { EntryState::Dead };
            assert_eq!((entry.id, entry.state, entry.attempts), (ids[0], state, attempts), "{name}");
            assert_eq!(forwarder.drain(if is_held { SHORT } else { LONG }).unwrap(), !is_held, "{name}");
            let status = forwarder.status().unwrap();
            assert_eq!((status.held, status.dead), (u64::from(is_held), u64::from(!is_held)), "{name}");
            let counters = status.counters;
            let counted = (counters.held, counters.dead, counters.retries);
            assert_eq!(counted, (u64::from(is_held), u64::from(!is_held), u64::from(attempts) - 1), "{name}");
            // Whoever has looked lets it go on.
            assert!(outbox.requeue(ids[0]).unwrap());
            assert!(forwarder.drain(LONG).unwrap(), "{name}");
            let told = events.lock().unwrap().join(", ");
            assert!(told.contains(if is_held { "held 1" } else { "dead 1" }), "{name}: {told}");
        }
    }
}

#[test]
fn a_lease_that_is_too_short_is_refused() {
    let start = |timeout: u64, application: Option<u64>| {
        let mut client = mllp_client::Client::builder(&dead_endpoint()).timeout(Duration::from_secs(timeout));
        if let Some(limit) = application {
            client = client.application_timeout(Duration::from_secs(limit));
        }
        let leased = Odd { lasts: Some(Duration::from_secs(3)), ..Odd::of(outbox()) };
        Forwarder::builder(leased, client.build().unwrap()).start().map(drop)
    };
    for (timeout, application, is_taken) in [(2, None, true), (3, None, false), (1, Some(1), true), (2, Some(1), false)]
    {
        match start(timeout, application) {
            Ok(()) => assert!(is_taken, "{timeout} {application:?}"),
            Err(OutboxError::Config(said)) => assert!(!is_taken && said.contains("a claim lasts 3s"), "{said}"),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_pause_holds_for_every_instance_and_is_kept() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    let outbox = outbox();
    let (builder, events) = observed(self::builder(outbox.clone(), &receiver));
    let first = builder.start().unwrap();
    first.pause().unwrap();
    eventually("it is told", || !events.lock().unwrap().is_empty());
    assert!(first.stop(LONG));
    outbox.push(message("1").as_bytes()).unwrap();
    let second = self::builder(outbox, &receiver).start().unwrap();
    assert!(!limited(SHORT, || second.drain(SHORT)).unwrap());
    assert!(second.status().unwrap().paused && receiver.received().is_empty());
    second.resume().unwrap();
    assert!(second.drain(LONG).unwrap() && !second.status().unwrap().paused);
    assert_eq!(*events.lock().unwrap(), ["paused"]);
}

#[test]
fn what_its_holder_left_behind_is_told() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    let outbox = outbox();
    outbox.push(message("1").as_bytes()).unwrap();
    outbox.begin(&outbox.claim().unwrap().unwrap()).unwrap();
    outbox.release();
    let (builder, events) = observed(builder(outbox.clone(), &receiver).unknown(OnUnknown::Hold));
    let forwarder = builder.start().unwrap();
    eventually("it is told", || !events.lock().unwrap().is_empty());
    let status = forwarder.status().unwrap();
    assert_eq!((status.held, status.counters.held, status.waiting), (1, 1, 1));
    assert!(status.head.unwrap().last_failure.unwrap().contains("unknown"));
    assert!(outbox.unhold(1).unwrap());
    assert!(forwarder.drain(LONG).unwrap());
    assert_eq!(*events.lock().unwrap(), ["held 1 by the outbox", "delivered 1 AA"]);
}

#[test]
fn an_operator_takes_a_message_out_of_the_way() {
    let _tidy = Tidy::up();
    // On the first message the receiver falls over.
    let receiver = Receiver::answering(|message| {
        if String::from_utf8_lossy(message).contains("|1|P|") { Step::bytes("").reset() } else { Step::accept() }
    })
    .unwrap();
    for way in ["discard", "hold, discard", "try now, discard all"] {
        let outbox = outbox();
        let forwarder = builder(outbox.clone(), &receiver).max_delay(MOMENT * 50).start().unwrap();
        let before = receiver.received().len();
        let ids = ["1", "2"].map(|id| outbox.push(message(id).as_bytes()).unwrap());
        eventually("it is tried", || outbox.list(None, 0, 1).unwrap()[0].attempts > 2);
        match way {
            "discard" => assert!(outbox.discard(ids[0]).unwrap()),
            "hold, discard" => {
                assert!(outbox.hold(ids[0]).unwrap());
                eventually("it is held", || {
                    forwarder.status().unwrap().head.is_some_and(|head| head.state == EntryState::Held)
                });
                assert!(!limited(SHORT, || forwarder.drain(SHORT)).unwrap());
                assert!(outbox.discard(ids[0]).unwrap());
            }
            _ => {
                outbox.try_now().unwrap();
                assert_eq!(outbox.discard_all(None, &|entry| entry.unknowns > 0).unwrap(), 1);
            }
        }
        assert!(forwarder.drain(LONG).unwrap(), "{way}");
        assert!(forwarder.stop(LONG), "{way}");
        assert_eq!(receiver.received().last().unwrap(), message("2").as_bytes(), "{way}");
        assert!(receiver.received().len() > before + 3, "{way}");
    }
}

#[test]
fn each_who_stops_it_has_its_own_limit() {
    let _tidy = Tidy::up();
    let receiver = Receiver::scripted([Step::silence()]).unwrap();
    let outbox = outbox();
    outbox.push(message("1").as_bytes()).unwrap();
    let forwarder = builder(outbox, &receiver).start().unwrap();
    assert!(receiver.wait_for(1, LONG));
    std::thread::scope(|scope| {
        let patient = scope.spawn(|| forwarder.stop(LONG));
        assert!(!limited(SHORT, || forwarder.stop(SHORT)));
        assert!(prompt(|| patient.join().unwrap()), "the exchange was cut short, and then it ended");
    });
}

#[test]
fn what_is_discarded_while_it_is_refused_pauses_nothing() {
    let _tidy = Tidy::up();
    let outbox = outbox();
    let discards = outbox.clone();
    let receiver = Receiver::answering(move |message| {
        if String::from_utf8_lossy(message).contains("|1|P|") {
            assert!(discards.discard(1).unwrap());
            Step::refuse(AckCode::ApplicationReject, "no")
        } else {
            Step::accept()
        }
    })
    .unwrap();
    for id in ["1", "2"] {
        outbox.push(message(id).as_bytes()).unwrap();
    }
    let (builder, events) = observed(builder(outbox, &receiver).rejections(0).pause_on_dead(true));
    let forwarder = builder.start().unwrap();
    assert!(forwarder.drain(LONG).unwrap());
    let status = forwarder.status().unwrap();
    assert_eq!((status.dead, status.paused, status.counters.claims_lost), (0, false, 1));
    assert!(forwarder.stop(LONG));
    let told = events.lock().unwrap();
    assert!(told[0].starts_with("ClaimLost") && told[1..] == ["paused", "resumed", "delivered 2 AA"], "{told:?}");
}

#[test]
fn an_observer_may_stop_it() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    let outbox = outbox();
    let slot = Arc::new(Mutex::new(None::<Forwarder>));
    let (own, stopped) = (Arc::clone(&slot), Arc::new(Mutex::new(Vec::new())));
    let answers = Arc::clone(&stopped);
    let builder = builder(outbox.clone(), &receiver).on_event(move |_| {
        if let Some(forwarder) = &*own.lock().unwrap() {
            answers.lock().unwrap().push(prompt(|| forwarder.stop(LONG)));
        }
    });
    *slot.lock().unwrap() = Some(builder.start().unwrap());
    for id in ["1", "2"] {
        outbox.push(message(id).as_bytes()).unwrap();
    }
    eventually("it is stopped", || !stopped.lock().unwrap().is_empty());
    let forwarder = slot.lock().unwrap().take().unwrap();
    assert!(prompt(|| forwarder.stop(LONG)) && !forwarder.status().unwrap().running);
    assert_eq!((stopped.lock().unwrap().len(), outbox.pending().unwrap().waiting), (1, 1));
}

#[test]
fn a_status_is_to_be_had_while_the_storage_is_not() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    let outbox = outbox();
    outbox.set_paused(true).unwrap();
    outbox.push(message("1").as_bytes()).unwrap();
    let odd = Odd::of(outbox.clone());
    let gate = Arc::clone(&odd.answers);
    let forwarder = builder(odd, &receiver).start().unwrap();
    let first = forwarder.status().unwrap();
    assert_eq!((first.waiting, first.head.unwrap().control_id.as_str()), (1, "1"));
    *gate.0.lock().unwrap() = false;
    let late = limited(SHORT, || forwarder.status()).unwrap();
    assert!(late.waiting == 1 && late.counted.unwrap() >= SHORT && late.oldest_age > first.oldest_age, "{late:?}");
    assert!(!limited(SHORT, || forwarder.drain(SHORT)).unwrap());
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    outbox.set_paused(false).unwrap();
    assert!(forwarder.drain(LONG).unwrap());
}

#[test]
fn what_cannot_be_sent_is_dead_and_the_others_go_on() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    let outbox = outbox();
    let limit = message("2").len();
    outbox.push(&common::message_of("1", limit + 1)).unwrap();
    outbox.push(message("2").as_bytes()).unwrap();
    let client = mllp_client::Client::builder(&receiver.endpoint()).max_message_size(limit).build().unwrap();
    let (builder, events) = observed(Forwarder::builder(outbox.clone(), client));
    let forwarder = builder.pause_on_dead(true).start().unwrap();
    eventually("it pauses", || forwarder.status().unwrap().paused);
    assert!(!limited(SHORT, || forwarder.drain(SHORT)).unwrap());
    assert_eq!((receiver.received().len(), forwarder.status().unwrap().dead), (0, 1));
    assert!(forwarder.status().unwrap().last_failure.unwrap().contains("more than the limit"));
    // The destination is paused, for whoever forwards.
    assert!(outbox.pending().unwrap().paused);
    forwarder.resume().unwrap();
    assert!(forwarder.drain(LONG).unwrap());
    assert!(forwarder.stop(LONG));
    assert_eq!(*events.lock().unwrap(), ["dead 1", "paused", "resumed", "delivered 2 AA"]);
}

#[test]
fn a_receiver_that_is_away_is_waited_for() {
    let _tidy = Tidy::up();
    let endpoint = dead_endpoint();
    let outbox = outbox();
    let (builder, events) = observed(
        Forwarder::builder(outbox.clone(), client(&endpoint, LONG)).initial_delay(MOMENT).max_delay(MOMENT * 20),
    );
    let forwarder = builder.refusals(0).start().unwrap();
    for id in ["1", "2"] {
        outbox.push(message(id).as_bytes()).unwrap();
    }
    eventually("it has tried some times", || events.lock().unwrap().len() > 5);
    let status = forwarder.status().unwrap();
    assert!(status.waiting == 2 && status.oldest_age.is_some() && status.delivered == 0, "{status:?}");
    assert!(status.last_failure.unwrap().contains("cannot connect"));
    let address = endpoint.trim_start_matches("mllp://");
    let receiver = Receiver::builder().address(address).unwrap().answering(|_| Step::accept()).unwrap();
    assert!(forwarder.drain(LONG).unwrap());
    assert_eq!(forwarder.status().unwrap().delivered, 2);
    assert!(forwarder.stop(LONG));
    assert_eq!(receiver.received(), ["1", "2"].map(|id| message(id).into_bytes()));
}

#[test]
fn what_may_have_arrived_is_held_if_so_chosen() {
    let _tidy = Tidy::up();
    let outbox = outbox();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (states, looked_at) = (Arc::clone(&seen), outbox.clone());
    let turns = AtomicUsize::new(0);
    let receiver = Receiver::answering(move |_| {
        // While it is under way, nobody can queue it again.
        states.lock().unwrap().push(looked_at.requeue(1).unwrap());
        if turns.fetch_add(1, Ordering::Relaxed) == 0 { Step::silence().close() } else { Step::accept() }
    })
    .unwrap();
    let (builder, events) = observed(builder(outbox.clone(), &receiver).unknown(OnUnknown::Hold));
    let forwarder = builder.start().unwrap();
    let ids = ["1", "2"].map(|id| outbox.push(message(id).as_bytes()).unwrap());
    eventually("it is held", || !outbox.stopped(0, 10).unwrap().is_empty());
    assert!(!limited(SHORT, || forwarder.drain(SHORT)).unwrap());
    assert_eq!((outbox.stopped(0, 10).unwrap()[0].id, receiver.received().len()), (ids[0], 1));
    assert!(outbox.requeue(ids[0]).unwrap());
    assert!(forwarder.drain(LONG).unwrap());
    assert!(forwarder.stop(LONG));
    assert_eq!(*events.lock().unwrap(), ["held 1", "delivered 1 AA", "delivered 2 AA"]);
    assert_eq!(*seen.lock().unwrap(), [false; 3]);
}

#[test]
fn it_pauses_goes_on_and_stops() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    let outbox = outbox();
    let forwarder = builder(outbox.clone(), &receiver).start().unwrap();
    assert!(forwarder.drain(LONG).unwrap(), "nothing waits");
    forwarder.pause().unwrap();
    // The one claim it may have been about to make finds nothing.
    common::pass(SHORT);
    outbox.push(message("1").as_bytes()).unwrap();
    assert!(!limited(SHORT, || forwarder.drain(SHORT)).unwrap());
    assert!(forwarder.status().unwrap().paused && receiver.received().is_empty());
    forwarder.resume().unwrap();
    assert!(forwarder.drain(LONG).unwrap());
    assert!(prompt(|| forwarder.stop(LONG)), "nothing is under way");
    outbox.push(message("2").as_bytes()).unwrap();
    // Another goes on where the first has stopped.
    let second = builder(outbox, &receiver).start().unwrap();
    assert!(second.drain(LONG).unwrap());
    drop(second);
    assert_eq!(receiver.received().len(), 2);
}

#[test]
fn stopping_finishes_the_exchange_inside_its_limit() {
    let _tidy = Tidy::up();
    for (name, step, finishes) in [("late", Step::accept().after(SHORT), true), ("silent", Step::silence(), false)] {
        let receiver = Receiver::scripted([step]).unwrap();
        let outbox = outbox();
        let forwarder = builder(outbox.clone(), &receiver).start().unwrap();
        outbox.push(message("1").as_bytes()).unwrap();
        assert!(receiver.wait_for(1, LONG));
        assert_eq!(forwarder.status().unwrap().in_flight, ["1"], "{name}");
        let limit = if finishes { LONG } else { SHORT };
        let stopped = prompt(|| forwarder.stop(limit));
        assert_eq!(stopped, finishes, "{name}");
        assert_eq!(outbox.pending().unwrap().waiting, u64::from(!finishes), "{name}");
        if !finishes {
            // It is there for the next, which knows of the attempt.
            let claim = eventually_claimed(&outbox);
            assert_eq!(claim.entry.attempts, 1, "{name}");
        }
    }
}

fn eventually_claimed(outbox: &impl Outbox) -> Claim {
    let mut claimed = None;
    eventually("it can be claimed", || {
        claimed = outbox.claim().unwrap();
        claimed.is_some()
    });
    claimed.unwrap()
}

/// An outbox in memory with something odd about it.
struct Odd {
    inner: MemoryOutbox,
    /// How often settling fails, as on a full disk.
    failures: AtomicUsize,
    /// How long its claims last.
    lasts: Option<Duration>,
    /// Whether it says what waits, or leaves one waiting for that.
    answers: Arc<(Mutex<bool>, Condvar)>,
}

impl Odd {
    fn of(inner: MemoryOutbox) -> Odd {
        let answers = Arc::new((Mutex::new(true), Condvar::new()));
        Odd { inner, failures: AtomicUsize::new(0), lasts: None, answers }
    }

    fn fail(&self) -> Result<(), OutboxError> {
        let left = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match left {
            Ok(_) => Err(OutboxError::Full { what: "an invented disk is full".into(), source: None }),
            Err(_) => Ok(()),
        }
    }
}

impl Outbox for Odd {
    fn push(&self, message: &[u8]) -> Result<u64, OutboxError> {
        self.inner.push(message)
    }
    fn claim(&self) -> Result<Option<Claim>, OutboxError> {
        self.inner.claim()
    }
    fn begin(&self, claim: &Claim) -> Result<(), OutboxError> {
        self.inner.begin(claim)
    }
    fn settle(&self, claim: &Claim, outcome: Settlement<'_>) -> Result<(), OutboxError> {
        self.fail()?;
        self.inner.settle(claim, outcome)
    }
    fn release(&self) {
        self.inner.release();
    }
    fn pending(&self) -> Result<Pending, OutboxError> {
        let (answers, changed) = &*self.answers;
        drop(changed.wait_while(answers.lock().unwrap(), |answers| !*answers).unwrap());
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
    fn claim_lasts(&self) -> Option<Duration> {
        self.lasts
    }
    fn list(&self, state: Option<EntryState>, after: u64, limit: usize) -> Result<Vec<Summary>, OutboxError> {
        self.inner.list(state, after, limit)
    }
}

#[test]
fn what_was_sent_is_recorded_when_the_storage_works_again() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    let failing = Arc::new(Odd { failures: AtomicUsize::new(3), ..Odd::of(outbox()) });
    failing.push(message("1").as_bytes()).unwrap();
    let (builder, events) = observed(builder(Arc::clone(&failing), &receiver));
    let forwarder = builder.start().unwrap();
    assert!(forwarder.drain(LONG).unwrap());
    assert!(forwarder.stop(LONG));
    assert_eq!(receiver.received().len(), 1, "it is not sent again for that");
    let failed = "outbox failed";
    assert_eq!(*events.lock().unwrap(), [failed, failed, failed, "delivered 1 AA"]);
    // Where it never works again, stopping does not wait for it.
    failing.failures.store(usize::MAX, Ordering::SeqCst);
    failing.push(message("2").as_bytes()).unwrap();
    let forwarder = self::builder(Arc::clone(&failing), &receiver).max_delay(LONG).initial_delay(LONG).start().unwrap();
    assert!(receiver.wait_for(2, LONG));
    eventually("it has failed", || forwarder.status().unwrap().last_failure.is_some());
    assert!(prompt(|| forwarder.stop(LONG)));
    assert_eq!(failing.pending().unwrap().waiting, 1);
}

#[test]
fn an_observer_that_panics_decides_over_nothing() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    let outbox = outbox();
    outbox.push(message("1").as_bytes()).unwrap();
    let forwarder = builder(outbox, &receiver).on_event(|_| panic!("on purpose")).start().unwrap();
    assert!(forwarder.drain(LONG).unwrap());
    assert!(forwarder.status().unwrap().running);
    assert!(!format!("{forwarder:?}").contains("PROBE"));
    assert!(forwarder.stop(LONG));
}

//! MLLP release 2: commit blocks after each message, in both directions.

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{LONG, SHORT, Tidy, Transport, acknowledgment, eventually, limited, message, message_of};
use mllp_client::frame::FrameError;
use mllp_client::testing::{Receiver, Step};
use mllp_client::{AckMode, AckParseError, Client, ClientBuilder, Delivery, ErrorKind, Event, Phase};

const STORED: &[u8] = b"\x0B\x06\x1C\r";
const NOT_STORED: &[u8] = b"\x0B\x15\x1C\r";

/// A receiver that plays these steps for what is no commit block, and keeps silent after those that
/// are.
fn receiver(transport: Transport, steps: impl IntoIterator<Item = Step>) -> Receiver {
    let steps = Mutex::new(steps.into_iter().collect::<std::collections::VecDeque<_>>());
    let answer = move |message: &[u8]| match message {
        [_] => Step::silence(),
        _ => steps.lock().unwrap().pop_front().unwrap_or_else(|| positive().then(Step::accept())),
    };
    transport.receiver().answering(answer).unwrap()
}

fn positive() -> Step {
    Step::bytes(STORED)
}

fn negative() -> Step {
    Step::bytes(NOT_STORED)
}

/// Stored, and then the commit accept.
fn committed(control_id: &str) -> Step {
    positive().then(Step::bytes(acknowledgment("CA", control_id)))
}

fn release2(transport: Transport, receiver: &Receiver) -> ClientBuilder {
    transport.builder(&receiver.endpoint()).timeout(LONG).release2(true)
}

#[test]
fn a_message_and_its_acknowledgment_are_committed_in_turn() {
    let _tidy = Tidy::up();
    for &transport in Transport::ALL {
        let receiver = receiver(transport, []);
        let client = release2(transport, &receiver).build().unwrap();
        let large = message_of("2", 100_000);
        assert_eq!(client.send(message("1")).unwrap().control_id(), "1");
        assert_eq!(client.send(&large).unwrap().control_id(), "2");
        assert!(client.exchange(message("3")).unwrap().starts_with(b"MSH"));
        assert!(receiver.wait_for(6, LONG), "what comes over another connection has an order of its own");
        let mut connection = release2(transport, &receiver).connect().unwrap();
        assert_eq!(connection.send(message("4").as_bytes()).unwrap().control_id(), "4");
        assert!(receiver.wait_for(8, LONG));
        let commit = b"\x06".to_vec();
        let sent = ["1", "3", "4"].map(|id| message(id).into_bytes());
        let [one, three, four] = sent;
        assert_eq!(
            receiver.received(),
            [one, commit.clone(), large, commit.clone(), three, commit.clone(), four, commit]
        );
        assert_eq!(receiver.connections(), 2);
    }
}

#[test]
fn the_bytes_of_a_querys_answer_and_its_commit_block() {
    let _tidy = Tidy::up();
    common::with_peer(
        |mut stream| {
            use std::io::Write;
            let query = common::read_frame(&stream);
            assert_eq!(query, [b"\x0B", message("Q1").as_bytes(), b"\x1C\r"].concat());
            stream.write_all(STORED).unwrap();
            stream.write_all(&acknowledgment("AA", "Q1")).unwrap();
            assert_eq!(common::read_frame(&stream), STORED);
            assert_eq!(common::drain(&stream), 0, "and nothing else");
        },
        |endpoint| {
            let client = Client::builder(&endpoint).timeout(LONG).release2(true).build().unwrap();
            assert_eq!(client.send(message("Q1")).unwrap().control_id(), "Q1");
        },
    );
}

#[test]
fn what_was_not_stored_is_sent_again_a_few_times() {
    let _tidy = Tidy::up();
    let half_a_second = Duration::from_millis(500);
    for (name, steps, expected, sendings) in [
        ("once", vec![negative()], Ok("1"), 2),
        (
            "once, and much filler",
            vec![negative().then(Step::bytes(vec![b'\n'; 200_000]).after(SHORT / 8))],
            Ok("1"),
            2,
        ),
        ("for ever", vec![negative(), negative(), negative(), negative()], Err(3), 3),
    ] {
        let receiver = receiver(Transport::Plain, steps);
        let client = release2(Transport::Plain, &receiver).build().unwrap();
        let begun = Instant::now();
        let result = client.send(message("1"));
        assert!(begun.elapsed() >= half_a_second * (sendings as u32 - 1), "{name}: no delay");
        match (&result, expected) {
            (Ok(ack), Ok(id)) => assert_eq!(ack.control_id(), id, "{name}"),
            (Err(error), Err(times)) => {
                assert!(
                    matches!(error.kind(), ErrorKind::NotStored { sendings, .. } if *sendings == times),
                    "{error:?}"
                );
                assert_eq!(error.delivery(), Delivery::Refused);
                assert_eq!((client.stats().refused, client.stats().failed), (1, 0));
                assert!(client.is_connected(), "a refusal is no doubt");
            }
            other => panic!("{name}: {other:?}"),
        }
        let same = receiver.received().iter().filter(|sent| **sent == message("1").into_bytes()).count();
        assert_eq!((same, receiver.connections()), (sendings, 1), "{name}");
    }
}

#[test]
fn every_failure_says_whether_the_receiver_has_the_message() {
    let _tidy = Tidy::up();
    let timeout =
        |phase| move |kind: &ErrorKind| matches!(kind, ErrorKind::Timeout { phase: found, .. } if *found == phase);
    type Matches = Box<dyn Fn(&ErrorKind) -> bool>;
    let no_block = |kind: &ErrorKind| matches!(kind, ErrorKind::NoCommitBlock);
    let stray = |kind: &ErrorKind| matches!(kind, ErrorKind::StrayCommitBlock);
    let cases: Vec<(&str, Step, Matches, Delivery)> = vec![
        ("none", Step::silence(), Box::new(timeout(Phase::CommitAck)), Delivery::Unknown),
        (
            "late",
            positive().after(SHORT * 2).then(Step::accept()),
            Box::new(timeout(Phase::CommitAck)),
            Delivery::Unknown,
        ),
        ("release 1", Step::accept(), Box::new(no_block), Delivery::Unknown),
        ("another block", Step::bytes(b"\x0B\x07\x1C\r"), Box::new(no_block), Delivery::Unknown),
        (
            "garbage",
            Step::bytes(b"hello"),
            Box::new(|kind| matches!(kind, ErrorKind::MalformedFrame(FrameError::NoStartBlock { .. }))),
            Delivery::Unknown,
        ),
        ("half a block", Step::bytes(b"\x0B\x06"), Box::new(timeout(Phase::CommitAck)), Delivery::Unknown),
        (
            "closed",
            Step::silence().close(),
            Box::new(|kind| matches!(kind, ErrorKind::Disconnected { phase: Phase::CommitAck, .. })),
            Delivery::Unknown,
        ),
        ("stored, no answer", positive(), Box::new(timeout(Phase::ApplicationAck)), Delivery::Committed),
        (
            "stored, closed",
            positive().close(),
            Box::new(|kind| matches!(kind, ErrorKind::Disconnected { .. })),
            Delivery::Committed,
        ),
        (
            "stored, another's answer",
            positive().then(Step::wrong_control_id()),
            Box::new(|kind| matches!(kind, ErrorKind::UnmatchedAck(_))),
            Delivery::Committed,
        ),
        (
            "stored, garbage",
            positive().then(Step::bytes(b"hello")),
            Box::new(|kind| matches!(kind, ErrorKind::MalformedFrame(_))),
            Delivery::Committed,
        ),
        (
            "stored, refused",
            positive().then(Step::refuse(mllp_client::AckCode::ApplicationError, "")),
            Box::new(|kind| matches!(kind, ErrorKind::Nak(_))),
            Delivery::Refused,
        ),
        ("not stored, twice at once", negative().then(negative()), Box::new(stray), Delivery::Unknown),
        ("not stored, and stored", negative().then(positive()), Box::new(stray), Delivery::Unknown),
        (
            "not stored, stored a little later",
            negative().then(positive().after(SHORT / 4)),
            Box::new(stray),
            Delivery::Unknown,
        ),
        (
            "not stored, closed",
            negative().close(),
            Box::new(|kind| matches!(kind, ErrorKind::Disconnected { .. })),
            Delivery::NotSent,
        ),
    ];
    for (name, step, matches, delivery) in cases {
        let receiver = receiver(Transport::Plain, [step]);
        let client = release2(Transport::Plain, &receiver).timeout(SHORT).build().unwrap();
        let error = client.send(message("1")).unwrap_err();
        assert!(matches(error.kind()) && error.delivery() == delivery, "{name}: {error:?}");
        assert_eq!(client.is_connected(), delivery == Delivery::Refused, "{name}");
        let request = client.request(&message("2")).timeout(LONG).send().unwrap();
        assert_eq!(request.control_id(), "2", "{name}");
        let first = receiver.received().iter().filter(|sent| **sent == message("1").into_bytes()).count();
        assert_eq!(first, 1, "{name}: nothing is sent again by itself");
    }
}

#[test]
fn the_time_between_two_sendings_is_inside_the_limit() {
    let _tidy = Tidy::up();
    let receiver = receiver(Transport::Plain, [negative()]);
    let client = release2(Transport::Plain, &receiver).timeout(SHORT).build().unwrap();
    let error = limited(SHORT, || client.send(message("1"))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout { phase: Phase::CommitAck, .. }), "{error:?}");
    assert_eq!(error.delivery(), Delivery::NotSent, "the receiver said that it does not have it");
}

#[test]
fn a_late_acknowledgment_is_committed_too() {
    let _tidy = Tidy::up();
    let late = |id| Step::bytes(acknowledgment("AA", id)).after(SHORT / 4);
    let receiver = receiver(Transport::Plain, [committed("1"), committed("2").then(late("1")).then(late("2"))]);
    let told = Arc::new(Mutex::new(0));
    let builder = release2(Transport::Plain, &receiver).ack_mode(AckMode::Commit).on_event({
        let told = Arc::clone(&told);
        move |event| *told.lock().unwrap() += u32::from(matches!(event, Event::LateAck { .. }))
    });
    let client = builder.build().unwrap();
    client.send(message("1")).unwrap();
    client.send(message("2")).unwrap();
    eventually("both have come", || client.is_connected() && *told.lock().unwrap() == 2);
    client.send(message("3")).unwrap();
    assert!(receiver.wait_for(8, LONG));
    let [one, two, three] = ["1", "2", "3"].map(|id| message(id).into_bytes());
    let commit = || b"\x06".to_vec();
    assert_eq!(receiver.received(), [one, commit(), two, commit(), commit(), commit(), three, commit()]);
    assert_eq!(receiver.connections(), 1);
}

/// A peer to which a commit block cannot be written has ended the connection, so that a look before
/// the next use finds the same: no test tells whether it was given up at once.
#[test]
fn each_late_acknowledgment_has_one_commit_block() {
    let _tidy = Tidy::up();
    let late = Step::bytes(acknowledgment("AA", "2"));
    let steps = [committed("1"), committed("2"), negative(), late.then(committed("3"))];
    let receiver = receiver(Transport::Plain, steps);
    let client = release2(Transport::Plain, &receiver).ack_mode(AckMode::Commit).build().unwrap();
    let [one, two, three] = ["1", "2", "3"].map(|id| message(id).into_bytes());
    for message in [&one, &two, &three] {
        client.send(message).unwrap();
    }
    assert!(receiver.wait_for(8, LONG));
    let commit = || b"\x06".to_vec();
    assert_eq!(receiver.received(), [one, commit(), two, commit(), three.clone(), three, commit(), commit()]);
}

#[test]
fn half_a_late_acknowledgment_behind_a_commit_block_might_be_another() {
    let _tidy = Tidy::up();
    let late = acknowledgment("AA", "1");
    let half = Step::bytes([NOT_STORED, &late[..late.len() / 2]].concat());
    let receiver = receiver(Transport::Plain, [committed("1"), half]);
    let client = release2(Transport::Plain, &receiver).ack_mode(AckMode::Commit).build().unwrap();
    client.send(message("1")).unwrap();
    let error = client.send(message("2")).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::StrayCommitBlock), "{error:?}");
    assert_eq!((error.delivery(), client.is_connected()), (Delivery::Unknown, false));
}

#[test]
fn a_message_without_an_acknowledgment_waits_for_its_commit_block() {
    let _tidy = Tidy::up();
    let silent = "MSH|^~\\&|||||||ORU|1|P|2.5|||NE|NE\r";
    let receiver = receiver(Transport::Plain, [positive(), Step::silence()]);
    let client = release2(Transport::Plain, &receiver).timeout(SHORT).build().unwrap();
    client.request(silent).send_unacknowledged().unwrap();
    let error = client.request(silent).send_unacknowledged().unwrap_err();
    assert!(error.is_timeout() && error.delivery() == Delivery::Unknown, "{error:?}");
}

#[test]
fn without_the_option_a_commit_block_names_itself() {
    let _tidy = Tidy::up();
    for step in [positive(), negative()] {
        let receiver = receiver(Transport::Plain, [step]);
        let error = common::client(&receiver.endpoint(), LONG).send(message("1")).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::MalformedAck(AckParseError::CommitBlock)), "{error:?}");
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("MLLP release 2"));
    }
}

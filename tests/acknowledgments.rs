//! The whole of HL7's acknowledgments over real sockets: modes, limits of their own, and those that
//! come after the call.

mod common;

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{LONG, SHORT, Tidy, acknowledgment, eventually, limited, message};
use mllp_client::testing::{Receiver, Step};
use mllp_client::{
    AckCode, AckMode, Batch, Client, ClientBuilder, Delivery, Error, ErrorKind, Event, MessageError, Phase,
};

use AckCode::{ApplicationAccept, ApplicationError, CommitAccept, CommitError, CommitReject};

/// A message with MSH-15 and MSH-16.
fn asking(control_id: &str, commit: &str, application: &str) -> String {
    message(control_id).replacen("|2.5\r", &format!("|2.5|||{commit}|{application}\r"), 1)
}

/// The late acknowledgments and the surplus that were told of.
type Told = Arc<Mutex<Vec<String>>>;

fn watched(endpoint: &str) -> (ClientBuilder, Told) {
    let told = Told::default();
    let builder = Client::builder(endpoint).timeout(LONG).on_event({
        let told = Arc::clone(&told);
        move |event| match event {
            Event::LateAck { control_id, code, ack, .. } => {
                assert_eq!((ack.control_id().as_ref(), ack.code()), (*control_id, *code));
                told.lock().unwrap().push(format!("{code} {control_id}"));
            }
            Event::Surplus { stale, .. } => told.lock().unwrap().push(format!("surplus {stale}")),
            _ => {}
        }
    });
    (builder, told)
}

fn control_id(message: &[u8]) -> String {
    String::from_utf8_lossy(message).split('|').nth(9).unwrap_or_default().to_owned()
}

#[test]
fn what_the_header_asks_for_is_awaited() {
    let _tidy = Tidy::up();
    let commit = || Step::acknowledge(CommitAccept);
    for (commit_asked, application_asked, step, expected) in [
        ("AL", "AL", commit().then(Step::accept()), "AA"),
        ("AL", "AL", commit(), "Timeout in ApplicationAck, Committed"),
        ("AL", "AL", Step::refuse(CommitError, ""), "CE"),
        ("AL", "AL", Step::refuse(CommitReject, ""), "CR"),
        ("AL", "AL", Step::silence(), "Timeout in CommitAck, Unknown"),
        ("AL", "AL", Step::accept(), "AA"),
        ("AL", "AL", commit().then(Step::refuse(ApplicationError, "")), "AE after CA"),
        ("AL", "AL", commit().then(commit()).then(Step::accept()), "AA"),
        ("AL", "AL", commit().then(Step::refuse(CommitError, "")), "CE after CA"),
        ("AL", "AL", commit().then(Step::wrong_control_id()), "UnmatchedAck, Committed"),
        ("AL", "NE", commit(), "CA"),
        ("AL", "", commit(), "CA"),
        ("AL", "NE", Step::refuse(CommitReject, ""), "CR"),
        ("AL", "NE", Step::silence(), "Timeout in CommitAck, Unknown"),
        ("NE", "AL", Step::accept(), "AA"),
        ("NE", "AL", Step::refuse(ApplicationError, ""), "AE"),
        ("NE", "AL", commit().then(Step::accept()), "AA"),
        ("NE", "AL", Step::silence(), "Timeout in ApplicationAck, Unknown"),
        ("ER", "AL", Step::refuse(CommitError, ""), "CE"),
        ("ER", "SU", commit().then(Step::accept()), "AA"),
        ("SU", "NE", commit(), "CA"),
        ("", "AL", Step::accept(), "AA"),
        ("", "", commit().then(Step::accept()), "AA"),
        ("", "", commit(), "Timeout in ApplicationAck, Committed"),
        ("NE", "NE", Step::accept(), "InvalidMessage"),
        ("NE", "", Step::accept(), "InvalidMessage"),
    ] {
        let receiver = Receiver::scripted([step]).unwrap();
        let limit = if expected.starts_with("Timeout") { SHORT } else { LONG };
        let client = common::client(&receiver.endpoint(), limit);
        let found = match client.send(asking("1", commit_asked, application_asked)) {
            Ok(ack) => ack.code().to_string(),
            Err(error) => described(&error),
        };
        assert_eq!(found, expected, "{commit_asked}/{application_asked}");
    }
}

fn described(error: &Error) -> String {
    assert_eq!(error.commit().is_some(), error.delivery() == Delivery::Committed || described_commit(error));
    match error.kind() {
        ErrorKind::Nak(nak) if error.commit().is_some() => format!("{} after CA", nak.code()),
        ErrorKind::Nak(nak) => nak.code().to_string(),
        ErrorKind::InvalidMessage(_) => "InvalidMessage".into(),
        ErrorKind::Timeout { phase, .. } => format!("Timeout in {phase:?}, {:?}", error.delivery()),
        ErrorKind::UnmatchedAck(_) => format!("UnmatchedAck, {:?}", error.delivery()),
        other => format!("{other:?}"),
    }
}

/// Whether a refusal came after a commit accept.
fn described_commit(error: &Error) -> bool {
    error.nak().is_some() && error.commit().is_some()
}

#[test]
fn a_mode_of_the_callers_choice_overrides_the_header() {
    let _tidy = Tidy::up();
    for (mode, header, step, expected) in [
        (AckMode::Commit, ("", ""), Step::acknowledge(CommitAccept), CommitAccept),
        (AckMode::Commit, ("", ""), Step::accept(), ApplicationAccept),
        (AckMode::Commit, ("AL", "AL"), Step::acknowledge(CommitAccept), CommitAccept),
        (AckMode::Commit, ("NE", "NE"), Step::acknowledge(CommitAccept), CommitAccept),
        (AckMode::Application, ("AL", "NE"), Step::acknowledge(CommitAccept).then(Step::accept()), ApplicationAccept),
        (AckMode::Application, ("NE", "NE"), Step::accept(), ApplicationAccept),
    ] {
        let receiver = Receiver::answering(move |_| step.clone()).unwrap();
        let by_builder = Client::builder(&receiver.endpoint()).timeout(LONG).ack_mode(mode).build().unwrap();
        let message = asking("1", header.0, header.1);
        assert_eq!(by_builder.send(&message).unwrap().code(), expected, "{mode:?} {header:?}");
        let by_request = common::client(&receiver.endpoint(), LONG);
        assert_eq!(by_request.request(&message).ack_mode(mode).send().unwrap().code(), expected, "{mode:?} {header:?}");
        let mut connection = Client::builder(&receiver.endpoint()).timeout(LONG).ack_mode(mode).connect().unwrap();
        assert_eq!(connection.send(message.as_bytes()).unwrap().code(), expected, "{mode:?} {header:?}");
    }
}

#[test]
fn the_application_acknowledgment_has_a_limit_of_its_own() {
    let _tidy = Tidy::up();
    let limit = Duration::from_millis(200);
    let commit_at = |time: Duration| Step::acknowledge(CommitAccept).after(time);
    let both = asking("1", "AL", "AL");

    // Longer together than the call's own limit, and each inside its own.
    let receiver =
        Receiver::answering(move |_| commit_at(limit / 2).then(Step::accept().after(limit * 3 / 4))).unwrap();
    let builder = || Client::builder(&receiver.endpoint()).timeout(limit).application_timeout(limit);
    assert_eq!(builder().build().unwrap().send(&both).unwrap().code(), ApplicationAccept);
    assert_eq!(builder().connect().unwrap().send(both.as_bytes()).unwrap().code(), ApplicationAccept);
    let client = common::client(&receiver.endpoint(), limit);
    assert_eq!(client.request(&both).application_timeout(limit).send().unwrap().code(), ApplicationAccept);
    // Without it the call's limit covers both.
    let error = limited(limit, || client.send(&both)).unwrap_err();
    assert_eq!(described(&error), "Timeout in ApplicationAck, Committed");

    // A commit accept and then nothing: counted from the accept, and it is named.
    let receiver = Receiver::answering(move |_| commit_at(limit * 9 / 10)).unwrap();
    let builder = Client::builder(&receiver.endpoint()).timeout(limit).application_timeout(limit);
    let client = builder.build().unwrap();
    let error = limited(limit * 19 / 10, || client.send(&both)).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Timeout { phase: Phase::ApplicationAck, limit: named, .. } if *named == limit)
    );
    assert_eq!(error.delivery(), Delivery::Committed);
    assert_eq!(error.commit().unwrap().control_id(), "1");
    // Repeated, it gains no time: in a batch, too.
    let repeated = move |_: &[u8]| (0..20).fold(Step::silence(), |step, _| step.then(commit_at(limit / 4)));
    let receiver = Receiver::answering(repeated).unwrap();
    let builder = Client::builder(&receiver.endpoint()).timeout(LONG).application_timeout(limit);
    let client = builder.build().unwrap();
    let mut batch = Batch::new("B1").unwrap();
    batch.push(&both).unwrap();
    let results = limited(limit * 5 / 4, || client.send_batch(&batch)).unwrap();
    assert_eq!(described(results[0].as_ref().unwrap_err()), "Timeout in ApplicationAck, Committed");
    // No commit accept: the call's limit.
    let silent = Receiver::answering(|_| Step::silence()).unwrap();
    let builder = Client::builder(&silent.endpoint()).timeout(SHORT).application_timeout(LONG);
    let error = limited(SHORT, || builder.build().unwrap().send(&both)).unwrap_err();
    assert_eq!(described(&error), "Timeout in CommitAck, Unknown");
}

#[test]
fn acknowledgments_one_by_one() {
    let _tidy = Tidy::up();
    let commit = || Step::acknowledge(CommitAccept);
    let slow = || Step::accept().after(SHORT);
    for (name, step, expected) in [
        ("both", commit().then(slow()), &["CA", "AA"][..]),
        ("at once", commit().then(Step::accept()), &["CA", "AA"]),
        ("the application's alone", Step::accept(), &["AA"]),
        ("committed twice", commit().then(commit()).then(Step::accept()), &["CA", "CA", "AA"]),
        ("refused by the system", Step::refuse(CommitError, ""), &["CE"]),
        ("refused by the application", commit().then(Step::refuse(ApplicationError, "")), &["CA", "AE after CA"]),
        ("closed in between", commit().close(), &["CA", "Committed"]),
        ("closed", Step::silence().close(), &["Unknown"]),
    ] {
        let receiver = Receiver::scripted([step]).unwrap();
        let client = common::client(&receiver.endpoint(), LONG);
        let message = asking("1", "AL", "AL");
        let mut acks = client.request(&message).acks().unwrap();
        let found: Vec<_> = acks
            .by_ref()
            .map(|ack| match ack {
                Ok(ack) => ack.code().to_string(),
                Err(error) if error.nak().is_some() => described(&error),
                Err(error) => format!("{:?}", error.delivery()),
            })
            .collect();
        assert_eq!(found, expected, "{name}");
        assert!(acks.next().is_none(), "{name}");
        drop(acks);
        // What was complete leaves the connection as it was.
        let closed = found.last().unwrap().len() > 3 && !found.last().unwrap().contains("after");
        client.send(common::message("2")).unwrap();
        assert_eq!(receiver.connections(), 1 + usize::from(closed), "{name}");
        let stats = client.stats();
        assert_eq!(stats.acknowledged + stats.refused + stats.failed, 2, "{name}");
    }
    let error = common::client(&common::dead_endpoint(), LONG).request("MSH|^~\\&|||||||ORU|1\r").acks().unwrap_err();
    assert_eq!(error.delivery(), Delivery::NotSent);
}

#[test]
fn acknowledgments_that_nobody_waits_for_close_the_connection() {
    let _tidy = Tidy::up();
    let receiver = Receiver::scripted([Step::acknowledge(CommitAccept)]).unwrap();
    let client = common::client(&receiver.endpoint(), LONG);
    let message = asking("1", "AL", "AL");
    let mut acks = client.request(&message).acks().unwrap();
    assert_eq!(acks.next().unwrap().unwrap().code(), CommitAccept);
    assert!(client.is_connected(), "in use");
    drop(acks);
    assert!(!client.is_connected());
    client.send(common::message("2")).unwrap();
    assert_eq!(receiver.connections(), 2);
}

#[test]
fn a_thousand_late_acknowledgments_reach_nobody_but_the_observer() {
    let _tidy = Tidy::up();
    const MESSAGES: usize = 1000;
    let receiver =
        Receiver::answering(|_| Step::acknowledge(CommitAccept).then(Step::accept().after(Duration::from_millis(1))))
            .unwrap();
    let (builder, told) = watched(&receiver.endpoint());
    let client = builder.ack_mode(AckMode::Commit).build().unwrap();
    let ids: Vec<_> = (0..MESSAGES).map(|number| format!("M{number}")).collect();
    for id in &ids {
        let ack = client.send(asking(id, "AL", "AL")).unwrap();
        assert_eq!((ack.code(), ack.control_id().as_ref()), (CommitAccept, &**id));
    }
    // The last ones are still to come; a look at the connection takes them in.
    eventually("all have come", || client.is_connected() && told.lock().unwrap().len() == MESSAGES);
    assert_eq!(*told.lock().unwrap(), ids.iter().map(|id| format!("AA {id}")).collect::<Vec<_>>());
    assert_eq!(receiver.connections(), 1);
    let stats = client.stats();
    assert_eq!((stats.acknowledged, stats.failed), (MESSAGES as u64, 0));
}

#[test]
fn a_late_acknowledgment_in_front_of_an_answer_is_passed_over() {
    let _tidy = Tidy::up();
    let late = |id: &str, code: &str| acknowledgment(code, id);
    let commit = |id: &str| acknowledgment("CA", id);
    let empty = || b"\x0B\x1C\r".to_vec();
    // What comes with the second message's answer, and what becomes of it.
    for (name, second, expected, told_of) in [
        ("in front", [late("1", "AA"), commit("2")].concat(), "CA", vec!["AA 1"]),
        ("a refusal, in front", [late("1", "AE"), commit("2")].concat(), "CA", vec!["AE 1"]),
        ("behind", [commit("2"), late("1", "AA")].concat(), "CA", vec!["AA 1"]),
        ("both", [late("1", "AA"), commit("2"), late("2", "AR")].concat(), "CA", vec!["AA 1", "AR 2"]),
        ("twice", [late("1", "AA"), late("1", "AA"), commit("2")].concat(), "CA", vec!["AA 1", "AA 1"]),
        ("a refusal after it", [late("1", "AA"), late("1", "AE"), commit("2")].concat(), "CA", vec!["AA 1", "AE 1"]),
        ("a commit again", [commit("1"), commit("2")].concat(), "CA", vec!["CA 1"]),
        ("its own, twice", [commit("2"), commit("2")].concat(), "CA", vec!["CA 2"]),
        (
            "empty frames around it",
            [empty(), late("1", "AA"), empty(), commit("2"), empty()].concat(),
            "CA",
            vec!["AA 1"],
        ),
        ("of another", [late("9", "AA"), commit("2")].concat(), "Unknown", vec![]),
        ("no acknowledgment", b"\x0BNTE|1\r\x1C\r".to_vec(), "Unknown", vec![]),
    ] {
        for split in [false, true] {
            let mut step = Step::silence();
            if split {
                for byte in &second {
                    step = step.then(Step::bytes([*byte]));
                }
            } else {
                step = Step::bytes(second.clone());
            }
            let receiver = Receiver::scripted([Step::bytes(commit("1")), step]).unwrap();
            let (builder, told) = watched(&receiver.endpoint());
            let client = builder.ack_mode(AckMode::Commit).build().unwrap();
            client.send(message("1")).unwrap();
            let found = match client.send(message("2")) {
                Ok(ack) => ack.code().to_string(),
                Err(error) => format!("{:?}", error.delivery()),
            };
            assert_eq!(found, expected, "{name}");
            eventually(name, || {
                client.is_connected();
                told.lock().unwrap().len() >= told_of.len()
            });
            assert_eq!(*told.lock().unwrap(), told_of, "{name}");
        }
    }
}

#[test]
fn half_a_late_acknowledgment_does_not_hold_the_next_message_up() {
    let _tidy = Tidy::up();
    for cut in 1..acknowledgment("AA", "1").len() {
        let whole = acknowledgment("AA", "1");
        let rest = [&whole[cut..], &acknowledgment("CA", "2")].concat();
        let receiver = Receiver::scripted([Step::bytes(acknowledgment("CA", "1")), Step::bytes(rest)]).unwrap();
        let (builder, told) = watched(&receiver.endpoint());
        let client = builder.ack_mode(AckMode::Commit).build().unwrap();
        client.send(message("1")).unwrap();
        receiver.push(&whole[..cut]).unwrap();
        assert!(client.is_connected());
        assert_eq!(client.send(message("2")).unwrap().control_id(), "2", "cut at {cut}");
        assert_eq!((receiver.connections(), &*told.lock().unwrap()), (1, &vec!["AA 1".to_owned()]), "cut at {cut}");
    }
}

#[test]
fn a_large_late_acknowledgment_is_taken_in_however_many_pieces() {
    let _tidy = Tidy::up();
    let receiver = Receiver::scripted([Step::bytes(acknowledgment("CA", "1"))]).unwrap();
    let (builder, told) = watched(&receiver.endpoint());
    let client = builder.ack_mode(AckMode::Commit).build().unwrap();
    client.send(message("1")).unwrap();
    let mut late = acknowledgment("AA", "1");
    late.splice(late.len() - 2..late.len() - 2, vec![b'x'; 5_000_000]);
    thread::scope(|scope| {
        scope.spawn(|| receiver.push(&late).unwrap());
        eventually("it has come", || client.is_connected() && *told.lock().unwrap() == ["AA 1"]);
    });
    client.send(message("2")).unwrap();
    assert_eq!(receiver.connections(), 1);
}

#[test]
fn the_messages_of_a_batch_may_be_answered_late_too() {
    let _tidy = Tidy::up();
    let answers = [("CA", "1"), ("CA", "2"), ("AA", "2"), ("AE", "1")];
    let answers = answers.map(|(code, id)| Step::bytes(acknowledgment(code, id)));
    let receiver =
        Receiver::scripted([answers.into_iter().reduce(|first, next| first.then(next.after(SHORT / 8))).unwrap()])
            .unwrap();
    let (builder, told) = watched(&receiver.endpoint());
    let client = builder.ack_mode(AckMode::Commit).build().unwrap();
    let mut batch = Batch::new("B1").unwrap();
    ["1", "2"].iter().for_each(|id| batch.push(message(id)).unwrap());
    let results = client.send_batch(&batch).unwrap();
    assert!(results.iter().all(|result| result.as_ref().is_ok_and(|ack| ack.code() == AckCode::CommitAccept)));
    eventually("both have come", || client.is_connected() && *told.lock().unwrap() == ["AA 2", "AE 1"]);
    client.send(message("3")).unwrap();
    assert_eq!(receiver.connections(), 1);
}

#[test]
fn what_is_not_owed_stays_a_surplus() {
    let _tidy = Tidy::up();
    let answer = acknowledgment("AA", "1");
    let several = |ids: &[&str]| {
        let bare = |id: &&str| acknowledgment("AA", id)[1..].strip_suffix(b"\x1C\r").unwrap().to_vec();
        [&b"\x0BBHS|^~\\&\r"[..], &ids.iter().flat_map(bare).collect::<Vec<_>>(), b"BTS|2\r\x1C\r"].concat()
    };
    for (name, first, pushed, expected) in [
        ("owed", "CA", answer.clone(), "AA 1"),
        ("the same again", "AA", answer.clone(), "AA 1"),
        ("an error after it", "AA", acknowledgment("AE", "1"), "AE 1"),
        ("another's", "CA", acknowledgment("AA", "2"), "surplus"),
        ("another's, after an end", "AA", acknowledgment("AA", "2"), "surplus"),
        ("half of the same again", "AA", answer[..9].to_vec(), "surplus"),
        ("a commit accept again", "CA", acknowledgment("CA", "1"), "CA 1"),
        ("an empty frame, and more", "CA", b"\x0B\x1C\rhello".to_vec(), "surplus"),
        ("several in a frame", "CA", several(&["1", "1"]), "AA 1, AA 1"),
        ("another's among several", "CA", several(&["1", "2"]), "AA 1, surplus"),
        ("no frame", "CA", b"hello".to_vec(), "surplus"),
        ("owed, and more", "CA", [&answer[..], b"hello"].concat(), "AA 1, surplus"),
    ] {
        let receiver = Receiver::scripted([Step::bytes(acknowledgment(first, "1"))]).unwrap();
        let (builder, told) = watched(&receiver.endpoint());
        let client = builder.ack_mode(AckMode::Commit).build().unwrap();
        client.send(message("1")).unwrap();
        receiver.push(&pushed).unwrap();
        eventually(name, || {
            client.is_connected();
            told.lock().unwrap().len() > expected.matches(',').count()
        });
        let found: Vec<_> = told.lock().unwrap().iter().map(|event| event.replace(char::is_numeric, "")).collect();
        let expected = expected.replace(char::is_numeric, "");
        assert!(found.join(", ").trim_end().starts_with(expected.trim_end()), "{name}: {found:?}");
        client.send(message("2")).unwrap();
        assert_eq!(receiver.connections(), 1 + usize::from(expected.contains("surplus")), "{name}");
    }
}

#[test]
fn a_raw_reply_is_not_mistaken_for_a_late_acknowledgment_nor_the_other_way_round() {
    let _tidy = Tidy::up();
    let reply = [&acknowledgment("AA", "1")[..], b"\x0Breply\x1C\r"].concat();
    let receiver = Receiver::scripted([Step::bytes(acknowledgment("CA", "1")), Step::bytes(reply)]).unwrap();
    let (builder, told) = watched(&receiver.endpoint());
    let client = builder.ack_mode(AckMode::Commit).build().unwrap();
    client.send(message("1")).unwrap();
    assert_eq!(client.exchange("query").unwrap(), b"reply");
    assert_eq!(*told.lock().unwrap(), ["AA 1"]);
}

#[test]
fn what_could_not_be_told_from_what_is_owed_goes_over_another_connection() {
    let _tidy = Tidy::up();
    // On the first connection the late verdict on the first message comes in front of everything else.
    let receiver = || {
        let first = std::sync::atomic::AtomicBool::new(true);
        Receiver::answering(move |_| match first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            true => Step::bytes(acknowledgment("CA", "1")),
            false => Step::bytes(acknowledgment("AE", "1")),
        })
        .unwrap()
    };
    let late = acknowledgment("AA", "1");
    let mut batch = Batch::new("1").unwrap();
    batch.push(message("2")).unwrap();
    let sends: [(&str, fn(&Client, &Batch) -> String); 3] = [
        ("the same message again", |client, _| {
            client.send(message("1")).unwrap_err().nak().unwrap().code().to_string()
        }),
        ("a raw exchange of it", |client, _| {
            String::from_utf8(client.exchange(message("1")).unwrap())
                .unwrap()
                .split('|')
                .rev()
                .nth(1)
                .unwrap()
                .to_owned()
        }),
        ("a batch of that ID", |client, batch| {
            client.send_batch(batch).unwrap()[0].as_ref().unwrap_err().nak().unwrap().code().to_string()
        }),
    ];
    for (name, send) in sends {
        let receiver = receiver();
        let (builder, told) = watched(&receiver.endpoint());
        let client = builder.ack_mode(AckMode::Commit).build().unwrap();
        client.send(message("1")).unwrap();
        assert_eq!(send(&client, &batch), "AE", "{name}");
        assert_eq!(receiver.connections(), 2, "{name}");
        assert!(told.lock().unwrap().is_empty());
    }
    // A connection of one's own says so, and stays. Once the late one has come, it is not the same for
    // all.
    let receiver = receiver();
    let (builder, told) = watched(&receiver.endpoint());
    let builder = builder.ack_mode(AckMode::Commit).allow_repeated_control_ids(true);
    let mut connection = builder.connect().unwrap();
    connection.send(message("1").as_bytes()).unwrap();
    let error = connection.send(message("1").as_bytes()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::InvalidMessage(MessageError::ControlIdInUse)), "{error:?}");
    assert!(connection.is_open());
    receiver.push(&late).unwrap();
    eventually("the late one has come", || {
        let error = connection.send(message("1").as_bytes()).unwrap_err();
        error.nak().is_some() && told.lock().unwrap().len() == 1
    });
}

#[test]
fn a_frame_begun_before_a_raw_exchange_is_not_its_reply() {
    let _tidy = Tidy::up();
    for (id, expected) in [("1", Ok(&b"reply"[..])), ("2", Err(Delivery::Unknown))] {
        let late = acknowledgment("AA", id);
        let (half, rest) = late.split_at(late.len() / 2);
        let receiver = Receiver::scripted([
            Step::bytes([&acknowledgment("CA", "1")[..], half].concat()),
            Step::bytes(rest).then(Step::frame(b"reply")),
        ])
        .unwrap();
        let client = Client::builder(&receiver.endpoint()).timeout(LONG).ack_mode(AckMode::Commit).build().unwrap();
        client.send(message("1")).unwrap();
        let reply = client.exchange("query");
        assert_eq!(reply.as_deref().map_err(Error::delivery), expected, "{id}");
        if let Err(error) = reply {
            assert!(matches!(error.kind(), ErrorKind::Desync { .. }), "{error:?}");
        }
        assert_eq!(receiver.connections(), 1);
    }
}

#[test]
fn without_control_ids_nothing_is_left_that_could_be_mistaken() {
    let _tidy = Tidy::up();
    for (message, connections) in [(asking("1", "AL", "AL"), 2), (asking("1", "AL", "NE"), 1)] {
        let receiver = Receiver::answering(|message| match control_id(message).as_str() {
            "1" => Step::bytes(acknowledgment("CA", "other")),
            _ => Step::accept(),
        })
        .unwrap();
        let builder = Client::builder(&receiver.endpoint()).timeout(LONG).ack_mode(AckMode::Commit);
        let client = builder.verify_control_id(false).build().unwrap();
        client.send(message).unwrap();
        client.send(common::message("2")).unwrap();
        assert_eq!(receiver.connections(), connections);
    }
}

#[test]
fn waiting_ends_when_the_client_is_closed() {
    let _tidy = Tidy::up();
    let receiver = Receiver::answering(|_| Step::acknowledge(CommitAccept)).unwrap();
    let client = common::client(&receiver.endpoint(), LONG);
    let message = asking("1", "AL", "AL");
    let begun = Instant::now();
    thread::scope(|scope| {
        let mut acks = client.request(&message).acks().unwrap();
        acks.next().unwrap().unwrap();
        scope.spawn(|| client.close());
        let error = acks.next().unwrap().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Closed) && error.delivery() == Delivery::Committed, "{error:?}");
    });
    assert!(begun.elapsed() < LONG / 2);
}

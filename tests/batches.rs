//! Batches and runs of messages: what becomes of each message, however the receiver answers.

mod common;

use common::{LONG, SHORT, Tidy, Transport, acknowledgment, dead_endpoint, limited, message};
use mllp_client::testing::{Receiver, Step};
use mllp_client::{
    AckMode, AckParseError, Batch, Client, ClientBuilder, Delivery, Error, ErrorKind, MessageError, messages,
};

fn batch(size: usize) -> Batch {
    let mut batch = Batch::new("B1").unwrap();
    (1..=size).for_each(|number| batch.push(message(&number.to_string())).unwrap());
    batch
}

/// The bare acknowledgment, without its frame.
fn bare(code: &str, control_id: &str) -> Vec<u8> {
    let frame = acknowledgment(code, control_id);
    frame[1..frame.len() - 2].to_vec()
}

fn frames(answers: impl IntoIterator<Item = (&'static str, String)>) -> Step {
    Step::bytes(answers.into_iter().flat_map(|(code, id)| acknowledgment(code, &id)).collect::<Vec<_>>())
}

/// A batch of acknowledgments, in one frame.
fn together(answers: impl IntoIterator<Item = (&'static str, String)>) -> Step {
    let answers: Vec<u8> = answers.into_iter().flat_map(|(code, id)| bare(code, &id)).collect();
    Step::frame([b"BHS|^~\\&|EHR|||||||||B1\r", &answers[..], b"BTS|1\r"].concat())
}

fn accepted(ids: impl IntoIterator<Item = usize>) -> Vec<(&'static str, String)> {
    ids.into_iter().map(|id| ("AA", id.to_string())).collect()
}

fn described(result: &Result<mllp_client::Ack, Error>) -> String {
    match result {
        Ok(ack) => format!("{} {}", ack.code(), ack.control_id()),
        Err(error) if error.nak().is_some() => format!("{:?} {}", error.delivery(), error.nak().unwrap().code()),
        Err(error) => format!("{:?}", error.delivery()),
    }
}

#[test]
fn each_message_gets_its_answer_in_whatever_shape() {
    let _tidy = Tidy::up();
    for &transport in Transport::ALL {
        for size in [1, 2, 1000] {
            let single = Step::bytes(acknowledgment("AA", "B1"));
            for (name, step) in [
                ("a frame for each", frames(accepted(1..=size))),
                ("a batch", together(accepted(1..=size))),
                ("one for all", single),
                ("in the other order", frames(accepted((1..=size).rev()))),
                ("a batch in the other order", together(accepted((1..=size).rev()))),
                ("half and half", frames(accepted(1..=size / 2)).then(together(accepted(size / 2 + 1..=size)))),
            ] {
                let receiver = transport.receiver().scripted([step]).unwrap();
                let client = transport.builder(&receiver.endpoint()).timeout(LONG).build().unwrap();
                let batch = batch(size);
                let results = client.send_batch(&batch).unwrap();
                assert_eq!(results.len(), size, "{name}");
                for (index, result) in results.iter().enumerate() {
                    let expected = if name == "one for all" { "B1".to_owned() } else { (index + 1).to_string() };
                    assert_eq!(described(result), format!("AA {expected}"), "{name} of {size}");
                }
                assert_eq!(receiver.received(), [batch.to_bytes()], "in one frame");
                let stats = client.stats();
                assert_eq!((stats.sent, stats.acknowledged, stats.failed), (1, size as u64, 0));
                client.send(message("NEXT")).unwrap();
                assert_eq!(receiver.connections(), 1, "{name} of {size}");
            }
        }
    }
}

#[test]
fn what_is_missing_or_wrong_is_told_by_message() {
    let _tidy = Tidy::up();
    let one = |code, id: &str| (code, id.to_owned());
    let commit_then = |step: Step| frames([one("CA", "1"), one("CA", "2"), one("CA", "3")]).then(step);
    for (name, step, expected, again) in [
        ("one missing", frames(accepted([1, 3])), ["AA 1", "Unknown", "AA 3"], 2),
        ("one missing in a batch", together(accepted([1, 3])), ["AA 1", "Unknown", "AA 3"], 2),
        ("none", Step::silence(), ["Unknown"; 3], 2),
        ("closed after one", frames(accepted([2])).close(), ["Unknown", "AA 2", "Unknown"], 2),
        ("one refused", frames([one("AA", "1"), one("AE", "2"), one("AA", "3")]), ["AA 1", "Refused AE", "AA 3"], 1),
        (
            "one refused in a batch",
            together([one("AR", "1"), one("AA", "2"), one("AA", "3")]),
            ["Refused AR", "AA 2", "AA 3"],
            1,
        ),
        ("all refused at once", frames([one("AR", "B1")]), ["Refused AR"; 3], 1),
        (
            "one, then all the others at once",
            frames([one("AA", "2"), one("AE", "B1")]),
            ["Refused AE", "AA 2", "Refused AE"],
            1,
        ),
        ("an unknown one", frames([one("AA", "1"), one("AA", "9"), one("AA", "2")]), ["AA 1", "Unknown", "Unknown"], 2),
        ("one twice", frames([one("AA", "1"), one("AA", "1")]), ["AA 1", "Unknown", "Unknown"], 2),
        ("committed, and no more", commit_then(Step::silence()), ["Committed"; 3], 2),
        ("committed, then accepted", commit_then(frames(accepted([3, 1, 2]))), ["AA 1", "AA 2", "AA 3"], 1),
        ("committed, one missing", commit_then(frames(accepted([3, 1]))), ["AA 1", "Committed", "AA 3"], 2),
        ("committed all at once", frames([one("CA", "B1"), one("AA", "B1")]), ["AA B1"; 3], 1),
        ("no control ID", frames([one("AA", "")]), ["Unknown"; 3], 2),
        ("a commit block", Step::bytes(b"\x0B\x06\x1C\r"), ["Unknown"; 3], 2),
        ("garbage", Step::bytes(b"hello"), ["Unknown"; 3], 2),
        ("no acknowledgment", Step::frame(b"NTE|1\r"), ["Unknown"; 3], 2),
    ] {
        let receiver = Receiver::scripted([step]).unwrap();
        let client = common::client(&receiver.endpoint(), SHORT);
        let results = client.send_batch(&batch(3)).unwrap();
        assert_eq!(results.iter().map(described).collect::<Vec<_>>(), expected, "{name}");
        let stats = client.stats();
        let count = |what: &str| expected.iter().filter(|result| result.starts_with(what)).count() as u64;
        assert_eq!((stats.acknowledged, stats.refused), (count("AA"), count("Refused")), "{name}");
        assert_eq!(stats.failed, 3 - stats.acknowledged - stats.refused, "{name}");
        client.request(&message("NEXT")).timeout(LONG).send().unwrap();
        assert_eq!(receiver.connections(), again, "{name}");
    }
}

#[test]
fn a_batch_waits_no_longer_than_its_limit() {
    let _tidy = Tidy::up();
    let receiver = Receiver::answering(|_| frames(accepted([1]))).unwrap();
    let client = common::client(&receiver.endpoint(), SHORT);
    let results = limited(SHORT, || client.send_batch(&batch(2))).unwrap();
    let error = results[1].as_ref().unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    let builder = Client::builder(&receiver.endpoint()).timeout(LONG).ack_mode(AckMode::Commit);
    assert_eq!(described(&builder.build().unwrap().send_batch(&batch(1)).unwrap()[0]), "AA 1");
}

#[test]
fn a_batch_without_an_id_is_not_acknowledged_by_none() {
    let _tidy = Tidy::up();
    let text = format!("BHS|^~\\&\r{}BTS|1\r", message("1"));
    let batch = Batch::parse(text.as_bytes()).unwrap();
    let receiver = Receiver::scripted([frames([("AA", String::new())])]).unwrap();
    let results = common::client(&receiver.endpoint(), LONG).send_batch(&batch).unwrap();
    let error = results[0].as_ref().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::MalformedAck(AckParseError::NoControlId)), "{error:?}");
}

#[test]
fn a_batch_in_which_a_control_id_stands_twice_is_not_sent() {
    let _tidy = Tidy::up();
    let of = |batch: &str, file: Option<&str>, ids: &[&str]| {
        let mut batch = Batch::new(batch).unwrap();
        ids.iter().for_each(|id| batch.push(message(id)).unwrap());
        file.map_or(Ok(batch.clone()), |file| batch.in_file(file)).unwrap()
    };
    let mut two_batches = of("B1", Some("F"), &["1"]);
    two_batches.begin("B1").unwrap();
    two_batches.push(message("2")).unwrap();
    let receiver = Receiver::accepting().unwrap();
    for (name, batch) in [
        ("two messages", of("B1", None, &["1", "2", "1"])),
        ("the batch and a message", of("1", None, &["1", "2"])),
        ("the file and a message", of("B1", Some("2"), &["1", "2"])),
        ("the file and the batch", of("B1", Some("B1"), &["1"])),
        ("two batches of a file", two_batches),
    ] {
        for set in [|builder| builder, |builder: ClientBuilder| builder.allow_repeated_control_ids(true)] {
            let client = set(Client::builder(&receiver.endpoint()).timeout(LONG)).build().unwrap();
            let error = client.send_batch(&batch).unwrap_err();
            let repeated = matches!(error.kind(), ErrorKind::InvalidMessage(MessageError::RepeatedControlId));
            assert!(repeated && error.delivery() == Delivery::NotSent, "{name}: {error:?}");
        }
    }
    assert_eq!(receiver.connections(), 0);
}

#[test]
fn the_applications_limit_waits_until_all_are_committed() {
    let _tidy = Tidy::up();
    let commit = |id: &str| Step::bytes(acknowledgment("CA", id));
    let receiver = Receiver::scripted([commit("1").then(commit("2").after(SHORT * 2))]).unwrap();
    let builder = Client::builder(&receiver.endpoint()).timeout(LONG).application_timeout(SHORT);
    let results = limited(SHORT * 3, || builder.build().unwrap().send_batch(&batch(2))).unwrap();
    assert_eq!(results.iter().map(described).collect::<Vec<_>>(), ["Committed"; 2]);
}

#[test]
fn a_batch_refused_early_is_not_sent_again() {
    let _tidy = Tidy::up();
    let mut batch = Batch::new("B1").unwrap();
    (1..=2).for_each(|number| batch.push(common::message_of(&number.to_string(), 16 * 1024 * 1024)).unwrap());
    for (name, answers, expected) in [
        ("all of it", &[("AR", "B1")][..], Ok(["Refused AR"; 2])),
        ("each message by itself", &[("AR", "1"), ("AR", "2")], Ok(["Refused AR"; 2])),
        ("a part of it", &[("AR", "1")], Err(Delivery::NotSent)),
        ("another", &[("AR", "B2")], Err(Delivery::NotSent)),
        ("accepted", &[("AA", "B1")], Err(Delivery::NotSent)),
    ] {
        let answers: Vec<u8> = answers.iter().flat_map(|(code, id)| acknowledgment(code, id)).collect();
        common::with_peer(
            |mut stream| {
                use std::io::{Read, Write};
                stream.read_exact(&mut [0; 1000]).unwrap();
                stream.write_all(&answers).unwrap();
            },
            |endpoint| {
                let results = common::client(&endpoint, LONG).send_batch(&batch);
                let found = results.map(|results| results.iter().map(described).collect::<Vec<_>>());
                let expected = expected.map(|each| each.map(str::to_owned).to_vec());
                assert_eq!(found.map_err(|error| error.delivery()), expected, "{name}");
            },
        );
    }
}

#[test]
fn a_long_run_keeps_its_connection() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    let client = Client::builder(&receiver.endpoint()).timeout(LONG).idle_timeout(SHORT / 2).build().unwrap();
    client.send(message("0")).unwrap();
    let slowly = (1..=4).map(|number| {
        common::pass(SHORT / 4);
        message(&number.to_string())
    });
    assert!(client.send_all(slowly).all(|result| result.is_ok()));
    assert_eq!(receiver.connections(), 1);
}

#[test]
fn without_control_ids_the_order_decides() {
    let _tidy = Tidy::up();
    let answers = [("AA", "x".to_owned()), ("AE", String::new()), ("AA", "2".to_owned())];
    let receiver = Receiver::scripted([frames(answers)]).unwrap();
    let builder = Client::builder(&receiver.endpoint()).timeout(LONG).verify_control_id(false);
    let results = builder.build().unwrap().send_batch(&batch(3)).unwrap();
    // The last one names the second message, which is answered, and so is for the next.
    assert_eq!(results.iter().map(described).collect::<Vec<_>>(), ["AA x", "Refused AE", "AA 2"]);
}

#[test]
fn a_batch_that_was_not_sent_is_one_error() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    let client = common::client(&receiver.endpoint(), LONG);
    let mut silent = batch(1);
    silent.push("MSH|^~\\&|||||||ORU|2|P|2.5|||NE|NE\r").unwrap();
    for (batch, expected) in [(Batch::new("B1").unwrap(), MessageError::Empty), (silent, MessageError::NoAckRequested)]
    {
        let error = client.send_batch(&batch).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidMessage(found) if *found == expected), "{error:?}");
    }
    assert_eq!((receiver.connections(), client.stats().failed), (0, 2));
    let error = common::client(&dead_endpoint(), LONG).send_batch(&batch(2)).unwrap_err();
    assert_eq!(error.delivery(), Delivery::NotSent);
}

#[test]
fn messages_one_by_one() {
    let _tidy = Tidy::up();
    let refuse = |message: &[u8]| match String::from_utf8_lossy(message).contains("|M3|") {
        true => Step::refuse(mllp_client::AckCode::ApplicationError, ""),
        false => Step::accept(),
    };
    let ids: Vec<String> = (1..=5).map(|number| format!("M{number}")).collect();
    let file: String = ids.iter().map(|id| message(id)).collect();
    for (keep_going, expected) in
        [(false, &["AA M1", "AA M2", "Refused AE"][..]), (true, &["AA M1", "AA M2", "Refused AE", "AA M4", "AA M5"])]
    {
        let receiver = Receiver::answering(refuse).unwrap();
        let client = Client::builder(&receiver.endpoint()).timeout(LONG).max_connections(4).build().unwrap();
        let sending = client.send_all(messages::split(file.as_bytes()));
        assert_eq!(receiver.connections(), 0, "nothing is sent before it is asked for");
        let sending = if keep_going { sending.keep_going() } else { sending };
        assert_eq!(sending.map(|result| described(&result)).collect::<Vec<_>>(), expected);
        assert_eq!((receiver.connections(), receiver.received().len()), (1, expected.len()));
        assert!(client.is_connected());
    }
    // A connection that ends is replaced; what the receiver may have is not sent again.
    let receiver = Receiver::scripted([Step::accept(), Step::silence().close()]).unwrap();
    let client = common::client(&receiver.endpoint(), LONG);
    let results: Vec<_> = client
        .send_all(&ids[..0])
        .chain(client.send_all(ids.iter().map(|id| message(id))).keep_going())
        .map(|result| described(&result))
        .collect();
    assert_eq!(results, ["AA M1", "Unknown", "AA M3", "AA M4", "AA M5"]);
    assert_eq!((receiver.connections(), receiver.received().len()), (2, 5));
    // What cannot be sent is an error like others, and touches nothing.
    let mut sending = client.send_all(["hello".to_owned(), message("M1")]).keep_going();
    assert!(matches!(sending.next().unwrap().unwrap_err().kind(), ErrorKind::InvalidMessage(_)));
    assert_eq!(described(&sending.next().unwrap()), "AA M1");
    assert!(sending.next().is_none() && sending.next().is_none());
}

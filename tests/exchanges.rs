//! One exchange against every kind of answer, on a connection and through a client: what the error
//! says, what became of the message, what becomes of the connection, and that the next message gets
//! its own acknowledgment.

mod common;

use std::thread;
use std::time::Duration;

use common::{LONG, SHORT, Transport, acknowledgment, client, connected, connection, eventually, limited, message};
use mllp_client::frame::{FrameError, Framing};
use mllp_client::testing::{Receiver, Step};
use mllp_client::{Ack, AckCode, AckParseError, Client, ClientBuilder, Delivery, Error, ErrorKind, Phase};

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Stays,
    Ends,
}

struct Case {
    name: &'static str,
    answer: fn() -> Step,
    expected: fn(Result<Ack, Error>) -> bool,
    then: Then,
    set: fn(ClientBuilder) -> ClientBuilder,
}

const USUAL: fn(ClientBuilder) -> ClientBuilder = |builder| builder;

fn accepted(result: Result<Ack, Error>) -> bool {
    result.is_ok_and(|ack| ack.code() == AckCode::ApplicationAccept && ack.control_id() == "FIRST")
}

fn fails(result: Result<Ack, Error>, delivery: Delivery, kind: impl FnOnce(&ErrorKind) -> bool) -> bool {
    result.is_err_and(|error| error.delivery() == delivery && kind(error.kind()))
}

fn refused(result: Result<Ack, Error>, code: AckCode) -> bool {
    fails(result, Delivery::Refused, |kind| matches!(kind, ErrorKind::Nak(ack) if ack.code() == code))
}

fn unknown(result: Result<Ack, Error>, kind: impl FnOnce(&ErrorKind) -> bool) -> bool {
    fails(result, Delivery::Unknown, kind)
}

fn malformed(result: Result<Ack, Error>, expected: &str) -> bool {
    unknown(result, |kind| matches!(kind, ErrorKind::MalformedFrame(error) if format!("{error:?}") == expected))
}

fn no_acknowledgment(result: Result<Ack, Error>, expected: AckParseError) -> bool {
    unknown(result, |kind| matches!(kind, ErrorKind::MalformedAck(error) if *error == expected))
}

fn cut_off(result: Result<Ack, Error>, bytes: usize) -> bool {
    unknown(
        result,
        |kind| matches!(kind, ErrorKind::Disconnected { phase: Phase::ApplicationAck, received, .. } if *received == bytes),
    )
}

fn short(builder: ClientBuilder) -> ClientBuilder {
    builder.timeout(SHORT)
}

fn cases() -> Vec<Case> {
    let case = |name, answer, expected, then| Case { name, answer, expected, then, set: USUAL };
    let with = |name, set, answer, expected, then| Case { name, answer, expected, then, set };
    vec![
        case("accepted", Step::accept, accepted, Then::Stays),
        case("accepted byte by byte", || Step::accept().drip(Duration::from_micros(50)), accepted, Then::Stays),
        case("accepted, after filler", || Step::bytes("\r\n\0 ").then(Step::accept()), accepted, Then::Stays),
        case(
            "accepted, after a byte-order mark",
            || Step::bytes(b"\xEF\xBB\xBF").then(Step::accept()),
            accepted,
            Then::Stays,
        ),
        case(
            "accepted, with a byte-order mark in the frame",
            || Step::frame("\u{feff}MSH|^~\\&|\rMSA|AA|FIRST\r"),
            accepted,
            Then::Stays,
        ),
        case("accepted, and one LF", || Step::accept().then(Step::bytes("\n")), accepted, Then::Stays),
        case("accepted, and padding", || Step::accept().then(Step::bytes("\r\n\0\0  ")), accepted, Then::Stays),
        case("accepted with LF segments", || Step::frame("MSH|^~\\&|\nMSA|AA|FIRST\n"), accepted, Then::Stays),
        case("accepted, control ID padded", || Step::frame("MSH|^~\\&|\rMSA|AA| FIRST \r"), accepted, Then::Stays),
        case(
            "accepted by a query response",
            || Step::frame("MSH|^~\\&|||||||RSP^K22\rMSA|AA|FIRST\rQAK|1\r"),
            accepted,
            Then::Stays,
        ),
        case(
            "committed, then accepted",
            || Step::acknowledge(AckCode::CommitAccept).then(Step::accept()),
            accepted,
            Then::Stays,
        ),
        case("two answers in one packet", || Step::accept().then(Step::accept()), accepted, Then::Stays),
        case(
            "accepted and refused in one packet",
            || Step::accept().then(Step::refuse(AckCode::ApplicationError, "")),
            accepted,
            Then::Stays,
        ),
        case(
            "accepted, and another in one packet",
            || Step::accept().then(Step::wrong_control_id()),
            accepted,
            Then::Ends,
        ),
        case("accepted, then half a frame", || Step::accept().then(Step::accept().half()), accepted, Then::Ends),
        case("accepted, then junk", || Step::accept().then(Step::bytes("OK")), accepted, Then::Ends),
        case("accepted, then closed", || Step::accept().close(), accepted, Then::Ends),
        case(
            "error",
            || Step::refuse(AckCode::ApplicationError, "no such ward"),
            |result| refused(result, AckCode::ApplicationError),
            Then::Stays,
        ),
        case(
            "reject",
            || Step::refuse(AckCode::ApplicationReject, ""),
            |result| refused(result, AckCode::ApplicationReject),
            Then::Stays,
        ),
        case(
            "commit error",
            || Step::refuse(AckCode::CommitError, ""),
            |result| refused(result, AckCode::CommitError),
            Then::Stays,
        ),
        case(
            "commit reject",
            || Step::refuse(AckCode::CommitReject, ""),
            |result| refused(result, AckCode::CommitReject),
            Then::Stays,
        ),
        case(
            "committed, then refused",
            || Step::acknowledge(AckCode::CommitAccept).then(Step::refuse(AckCode::ApplicationError, "")),
            |result| {
                let error = result.unwrap_err();
                error.commit().is_some() && error.nak().is_some() && error.delivery() == Delivery::Refused
            },
            Then::Stays,
        ),
        case(
            "a TLS alert",
            || Step::bytes(b"\x15\x03\x01\0\x02\x02\x46"),
            |result| malformed(result, "NoStartBlock { first: 21 }"),
            Then::Ends,
        ),
        case(
            "another message's",
            Step::wrong_control_id,
            |result| {
                unknown(
                    result,
                    |kind| matches!(kind, ErrorKind::UnmatchedAck(ack) if ack.control_id() == "FIRST-OTHER"),
                )
            },
            Then::Ends,
        ),
        case(
            "a control ID that begins alike",
            || Step::frame("MSH|^~\\&|\rMSA|AA|FIRST2\r"),
            |result| unknown(result, |kind| matches!(kind, ErrorKind::UnmatchedAck(_))),
            Then::Ends,
        ),
        case(
            "another message's refusal",
            || Step::frame("MSH|^~\\&|\rMSA|AE|SECOND\r"),
            |result| unknown(result, |kind| matches!(kind, ErrorKind::UnmatchedAck(_))),
            Then::Ends,
        ),
        case(
            "committed, then another message's",
            || Step::acknowledge(AckCode::CommitAccept).then(Step::wrong_control_id()),
            |result| fails(result, Delivery::Committed, |kind| matches!(kind, ErrorKind::UnmatchedAck(_))),
            Then::Ends,
        ),
        case(
            "unframed",
            || Step::bytes("MSH|^~\\&|\rMSA|AA|FIRST\r"),
            |result| malformed(result, "NoStartBlock { first: 77 }"),
            Then::Ends,
        ),
        case(
            "a frame cut off by another",
            || Step::accept().half().then(Step::accept()),
            |result| {
                unknown(result, |kind| {
                    matches!(kind, ErrorKind::MalformedFrame(FrameError::StartBlockInContent { offset: 1.., .. }))
                })
            },
            Then::Ends,
        ),
        case(
            "without the Carriage Return",
            || Step::bytes("\x0BMSH|^~\\&|\rMSA|AA|FIRST\r\x1C\n"),
            |result| malformed(result, "EndBlockWithoutCarriageReturn { offset: 23 }"),
            Then::Ends,
        ),
        case("an empty frame, then accepted", || Step::frame("").then(Step::accept()), accepted, Then::Stays),
        case("accepted, then an empty frame", || Step::accept().then(Step::frame("")), accepted, Then::Stays),
        case(
            "a refusal that names no message",
            || Step::frame("MSH|^~\\&|\rMSA|AR||cannot parse\r"),
            |result| refused(result, AckCode::ApplicationReject),
            Then::Ends,
        ),
        case(
            "accepted and refused in one answer",
            || Step::frame("MSH|^~\\&|\rMSA|AA|FIRST\rMSA|AE|FIRST\r"),
            |result| no_acknowledgment(result, AckParseError::Contradictory),
            Then::Ends,
        ),
        case("prose", || Step::frame("OK"), |result| no_acknowledgment(result, AckParseError::NotHl7), Then::Ends),
        case(
            "no MSA",
            || Step::frame("MSH|^~\\&|LAB\r"),
            |result| no_acknowledgment(result, AckParseError::NoMsa),
            Then::Ends,
        ),
        case(
            "no code",
            || Step::frame("MSH|^~\\&|\rMSA||FIRST\r"),
            |result| no_acknowledgment(result, AckParseError::NoCode),
            Then::Ends,
        ),
        case(
            "unknown code",
            || Step::frame("MSH|^~\\&|\rMSA|OK|FIRST\r"),
            |result| no_acknowledgment(result, AckParseError::UnknownCode),
            Then::Ends,
        ),
        case(
            "no control ID",
            || Step::frame("MSH|^~\\&|\rMSA|AA\r"),
            |result| no_acknowledgment(result, AckParseError::NoControlId),
            Then::Ends,
        ),
        case("closed without an answer", || Step::silence().close(), |result| cut_off(result, 0), Then::Ends),
        case(
            "reset without an answer",
            || Step::silence().reset(),
            |result| {
                unknown(result, |kind| matches!(kind, ErrorKind::Disconnected { received: 0, source: Some(_), .. }))
            },
            Then::Ends,
        ),
        case(
            "half an answer, then closed",
            || Step::bytes("\x0BMSH|^~\\&|").close(),
            |result| cut_off(result, 10),
            Then::Ends,
        ),
        case(
            "all but the last byte, then closed",
            || Step::bytes("\x0BMSH|^~\\&|\rMSA|AA|FIRST\r\x1C").close(),
            |result| cut_off(result, 25),
            Then::Ends,
        ),
        case(
            "committed, then closed",
            || Step::acknowledge(AckCode::CommitAccept).close(),
            |result| {
                let error = result.unwrap_err();
                error.commit().is_some_and(|ack| ack.code() == AckCode::CommitAccept)
                    && error.delivery() == Delivery::Committed
                    && error.phase() == Some(Phase::ApplicationAck)
            },
            Then::Ends,
        ),
        with(
            "larger than may be",
            |builder| builder.max_ack_size(100),
            || Step::frame([b'x'; 101]),
            |result| unknown(result, |kind| matches!(kind, ErrorKind::AckTooLarge { limit: 100, .. })),
            Then::Ends,
        ),
        with(
            "endless",
            |builder| builder.max_ack_size(100_000),
            || Step::bytes([&[0x0B][..], &[b'x'; 1_000_000]].concat()),
            |result| unknown(result, |kind| matches!(kind, ErrorKind::AckTooLarge { limit: 100_000, .. })),
            Then::Ends,
        ),
        case(
            "filler without end",
            || Step::bytes([b'\n'; 70_000]),
            |result| malformed(result, "NoFrame { limit: 65536 }"),
            Then::Ends,
        ),
        with(
            "as large as may be",
            |builder| builder.max_ack_size(100),
            || Step::frame(format!("{:x<100}", "MSH|^~\\&|\rMSA|AA|FIRST|")),
            accepted,
            Then::Stays,
        ),
        with(
            "too late",
            short,
            || Step::accept().after(SHORT + SHORT / 2),
            |result| {
                unknown(
                    result,
                    |kind| matches!(kind, ErrorKind::Timeout { phase: Phase::ApplicationAck, limit, .. } if *limit == SHORT),
                )
            },
            Then::Ends,
        ),
        with(
            "committed, then too late",
            short,
            || Step::acknowledge(AckCode::CommitAccept),
            |result| fails(result, Delivery::Committed, |kind| matches!(kind, ErrorKind::Timeout { .. })),
            Then::Ends,
        ),
        with(
            "any control ID",
            |builder| builder.verify_control_id(false),
            || Step::frame("MSH|^~\\&|\rMSA|AA|ANY\r"),
            |result| result.is_ok_and(|ack| ack.control_id() == "ANY"),
            Then::Stays,
        ),
        with(
            "no control ID, not verified",
            |builder| builder.verify_control_id(false),
            || Step::frame("MSH|^~\\&|\rMSA|AA\r"),
            |result| result.is_ok_and(|ack| ack.control_id() == ""),
            Then::Stays,
        ),
        with(
            "without the Carriage Return, allowed",
            |builder| builder.framing(Framing::default().allow_missing_carriage_return(true)),
            || Step::bytes("\x0BMSH|^~\\&|\rMSA|AA|FIRST\r\x1C"),
            accepted,
            Then::Stays,
        ),
        with(
            "its Carriage Return comes later",
            |builder| builder.framing(Framing::default().allow_missing_carriage_return(true)),
            || Step::bytes("\x0BMSH|^~\\&|\rMSA|AA|FIRST\r\x1C").then(Step::bytes("\r").after(SHORT / 10)),
            accepted,
            Then::Stays,
        ),
        with(
            "leading bytes, allowed",
            |builder| builder.framing(Framing::default().allow_leading_bytes(true)),
            || Step::bytes("ready ").then(Step::accept()),
            accepted,
            Then::Stays,
        ),
    ]
}

/// Every case over every transport, which take their time beside each other.
fn everywhere(check: fn(Transport, Case)) {
    thread::scope(|scope| {
        for &transport in Transport::ALL {
            for half in [0, 1] {
                let some = cases().into_iter().skip(half).step_by(2);
                scope.spawn(move || some.for_each(|case| check(transport, case)));
            }
        }
    });
}

#[test]
fn on_a_connection() {
    everywhere(|transport, Case { name, answer, expected, then, set }| {
        let name = &*format!("{name}, {transport:?}");
        let receiver = transport.receiver().scripted([answer()]).unwrap();
        let (mut connection, attempts) =
            connected(|| set(transport.builder(&receiver.endpoint()).timeout(LONG)).connect());
        let result = connection.send(message("FIRST").as_bytes());
        let told = format!("{result:?}");
        assert!(expected(result), "{name}: {told}");

        // A TLS session's last word cannot be seen without reading it.
        let seen = transport == Transport::Plain;
        if then == Then::Ends && seen {
            eventually("the connection has ended", || !connection.is_open());
        }
        let next = connection.send(message("SECOND").as_bytes());
        match then {
            Then::Stays => {
                assert_eq!(next.unwrap_or_else(|error| panic!("{name}: {error}")).control_id(), "SECOND");
                assert!(connection.is_open());
            }
            Then::Ends => {
                let error = next.expect_err(name);
                let too_late = !seen && name.starts_with("accepted, then closed");
                assert!(error.delivery() == Delivery::NotSent || too_late, "{name}: {error}");
                let again = connection.send(message("THIRD").as_bytes()).unwrap_err();
                assert!(matches!(again.kind(), ErrorKind::Closed), "{name}: {again}");
                assert!(!connection.is_open() && connection.shutdown_handle().is_err() && connection.close().is_err());
                assert_eq!(receiver.received().len(), 1, "{name}");
            }
        }
        assert_eq!(receiver.received()[0], message("FIRST").as_bytes(), "{name}");
        assert_eq!(receiver.connections(), attempts, "{name}");
    });
}

#[test]
fn through_a_client_the_next_message_gets_its_own() {
    everywhere(|transport, Case { name, answer, expected, then, set }| {
        let name = &*format!("{name}, {transport:?}");
        let receiver = transport.receiver().scripted([answer()]).unwrap();
        let client = set(transport.builder(&receiver.endpoint()).timeout(LONG)).build().unwrap();
        let ((), attempts) = connected(|| client.connect());
        let result = client.send(message("FIRST"));
        let told = format!("{result:?}");
        assert!(expected(result), "{name}: {told}");
        if !name.starts_with("no control ID, not verified") && !name.starts_with("any control ID") {
            // Where IDs are not verified, nothing else is promised.
            if then == Then::Ends {
                eventually("the connection has ended", || !client.is_connected());
            }
            for id in ["SECOND", "THIRD"] {
                let ack = client.send(message(id)).unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!(ack.control_id(), id, "{name}");
            }
            let seen: Vec<_> = receiver.received();
            assert_eq!(seen, ["FIRST", "SECOND", "THIRD"].map(|id| message(id).into_bytes()), "{name}");
        }
        assert_eq!(receiver.connections(), attempts + usize::from(then == Then::Ends), "{name}");
    });
}

#[test]
fn a_second_answer_is_a_desync_once() {
    let receiver = Receiver::scripted([Step::accept().then(Step::bytes("\n12"))]).unwrap();
    let mut connection = connection(&receiver.endpoint(), LONG);
    connection.send(message("FIRST").as_bytes()).unwrap();
    let error = connection.send(message("SECOND").as_bytes()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Desync { stale: 3, .. }), "{error:?}");
    assert!(matches!(connection.send(b"").unwrap_err().kind(), ErrorKind::Closed));
}

#[test]
fn evidence_is_at_hand() {
    let prose = "nobody is here";
    for (name, step, response) in [
        ("refusal", Step::refuse(AckCode::ApplicationError, "why"), None),
        ("prose", Step::frame(prose), Some(prose)),
        ("unmatched", Step::frame("MSH|^~\\&|\rMSA|AA|2\r"), Some("MSH|^~\\&|\rMSA|AA|2\r")),
        ("unframed", Step::bytes(prose), Some(prose)),
    ] {
        let receiver = Receiver::scripted([step]).unwrap();
        let error = client(&receiver.endpoint(), LONG).send(message("FIRST")).unwrap_err();
        match response {
            Some(expected) => assert_eq!(error.response(), Some(expected.as_bytes()), "{name}"),
            None => {
                let nak = error.nak().unwrap();
                assert_eq!(error.response(), Some(nak.raw()), "{name}");
                assert_eq!(nak.text().as_deref(), Some("why"));
                assert_eq!(nak.errors().next().unwrap().text().as_deref(), Some("why"));
            }
        }
    }
}

#[test]
fn any_payload_is_exchanged_as_it_is() {
    let receiver = Receiver::answering(|payload| Step::frame([b"<", payload, b">"].concat())).unwrap();
    let client = client(&receiver.endpoint(), LONG);
    let mut connection = connection(&receiver.endpoint(), LONG);
    for payload in [&b"ping"[..], b"\xFF\x80\0\r\n", &[b'x'; 100_000]] {
        let expected = [b"<", payload, b">"].concat();
        assert_eq!(client.exchange(payload).unwrap(), expected);
        assert_eq!(connection.exchange(payload).unwrap(), expected);
    }
    let refusal = Receiver::scripted([Step::refuse(AckCode::ApplicationReject, "")]).unwrap();
    let reply = common::client(&refusal.endpoint(), LONG).exchange(message("1")).unwrap();
    assert_eq!(Ack::parse(reply).unwrap().code(), AckCode::ApplicationReject);
}

#[test]
fn an_answer_may_have_10_mebibytes() {
    let receiver = Receiver::answering(|payload| {
        let size: usize = std::str::from_utf8(payload).unwrap().parse().unwrap();
        Step::frame(vec![b'x'; size])
    })
    .unwrap();
    let client = client(&receiver.endpoint(), LONG);
    assert_eq!(client.exchange("10485760").unwrap().len(), 10_485_760);
    let error = client.exchange("10485761").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::AckTooLarge { limit: 10_485_760, .. }), "{error:?}");
}

#[test]
fn enhanced_mode_waits_for_what_the_header_asks() {
    let asking = |conditions: &str| format!("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|1|P|2.5|||{conditions}\r");
    let commit = || Step::acknowledge(AckCode::CommitAccept);
    for (name, conditions, step, code) in [
        ("commit only", "AL|NE", commit(), AckCode::CommitAccept),
        ("application only", "NE|AL", Step::accept(), AckCode::ApplicationAccept),
        ("both", "AL|AL", commit().then(Step::accept().after(SHORT / 10)), AckCode::ApplicationAccept),
        ("both, in one packet", "AL|AL", commit().then(Step::accept()), AckCode::ApplicationAccept),
    ] {
        let receiver = Receiver::scripted([step]).unwrap();
        let ack = client(&receiver.endpoint(), LONG).send(asking(conditions)).unwrap();
        assert_eq!(ack.code(), code, "{name}");
    }
    let receiver = Receiver::scripted([Step::silence(), commit()]).unwrap();
    let client = client(&receiver.endpoint(), SHORT);
    let first = limited(SHORT, || client.send(asking("AL|AL"))).unwrap_err();
    assert_eq!((first.phase(), first.delivery()), (Some(Phase::CommitAck), Delivery::Unknown));
    let second = limited(SHORT, || client.send(asking("AL|AL"))).unwrap_err();
    assert_eq!((second.phase(), second.delivery()), (Some(Phase::ApplicationAck), Delivery::Committed));
    assert_eq!(second.commit().map(Ack::code), Some(AckCode::CommitAccept));
}

#[test]
fn custom_frames_go_both_ways() {
    let framing = Framing::custom(b"\x02\x02", b"\x03\x04").unwrap();
    let receiver = Receiver::builder().framing(framing.clone()).answering(|_| Step::accept()).unwrap();
    let client = Client::builder(&receiver.endpoint()).framing(framing).timeout(LONG).build().unwrap();
    for id in ["1", "2"] {
        assert_eq!(client.send(message(id)).unwrap().control_id(), id);
    }
    assert_eq!(receiver.received(), ["1", "2"].map(|id| message(id).into_bytes()));
}

#[test]
fn every_split_of_an_answer_is_read() {
    for transport in Transport::ALL {
        every_split(*transport);
    }
}

fn every_split(transport: Transport) {
    let answer = |cut: usize| acknowledgment("AA", &format!("{cut:03}"));
    let receiver = {
        let count = std::sync::atomic::AtomicUsize::new(1);
        transport
            .receiver()
            .answering(move |_| {
                let cut = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let answer = answer(cut);
                let (head, tail) = answer.split_at(cut);
                Step::bytes(head).then(Step::bytes(tail).after(Duration::from_micros(300)))
            })
            .unwrap()
    };
    let client = transport.builder(&receiver.endpoint()).timeout(LONG).build().unwrap();
    for cut in 1..answer(0).len() {
        assert!(client.send(message(&format!("{cut:03}"))).is_ok(), "cut at {cut}");
    }
    assert_eq!(receiver.connections(), 1);
}

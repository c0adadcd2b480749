//! Every limit on both sides: not before it, not much after it, in every phase, with a peer that
//! does its worst.

mod common;

use std::io::Write;
use std::net::Shutdown;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{
    Deaf, LONG, SHORT, Unreachable, acknowledgment, client, connection, dead_endpoint, drain, limited, message,
    message_of, prompt, read_frame, with_peer,
};
use mllp_client::frame::Framing;
use mllp_client::testing::{Receiver, Step};
use mllp_client::{Client, Delivery, Error, ErrorKind, Phase};

fn timed_out(error: &Error, phase: Phase, limit: Duration, delivery: Delivery) {
    let as_expected =
        matches!(error.kind(), ErrorKind::Timeout { phase: at, limit: after, .. } if *at == phase && *after == limit);
    assert!(as_expected && error.is_timeout() && error.phase() == Some(phase), "{error:?}");
    assert_eq!(error.delivery(), delivery, "{error:?}");
}

#[test]
fn waiting_for_an_answer() {
    let rows = [
        ("silence", Step::silence()),
        ("half an answer", Step::accept().half()),
        ("a drip at half the limit", Step::accept().drip(SHORT / 2)),
        ("a faster drip", Step::accept().drip(SHORT / 10)),
        ("filler for ever", Step::bytes([b'\n'; 200]).drip(SHORT / 20)),
    ];
    thread::scope(|scope| {
        for (name, step) in rows {
            scope.spawn(move || {
                let receiver = Receiver::answering(move |_| step.clone()).unwrap();
                let client = client(&receiver.endpoint(), SHORT);
                let message = message("1");
                let expect = |limit, result: Result<(), Error>| {
                    timed_out(&result.expect_err(name), Phase::ApplicationAck, limit, Delivery::Unknown);
                };
                expect(SHORT, limited(SHORT, || client.send(&message).map(drop)));
                expect(SHORT, limited(SHORT, || client.exchange("ping").map(drop)));
                expect(
                    SHORT * 2,
                    limited(SHORT * 2, || client.request("ping").timeout(SHORT * 2).exchange().map(drop)),
                );
                let mut connection = connection(&receiver.endpoint(), SHORT);
                let error = limited(SHORT, || connection.send(message.as_bytes())).unwrap_err();
                timed_out(&error, Phase::ApplicationAck, SHORT, Delivery::Unknown);
            });
        }
    });
}

#[test]
fn what_had_come_is_told() {
    let lenient = || Framing::default().allow_leading_bytes(true);
    for (name, framing, answer, expected) in [
        ("nothing", Framing::default(), &b""[..], None),
        ("filler", Framing::default(), b"\r\n", None),
        (
            "half a frame",
            Framing::default(),
            b"\x0BMSH|PROBE",
            Some("10 bytes of an answer had come, but no End Block"),
        ),
        (
            "no framing",
            lenient(),
            b"MSH|^~\\&|PROBE\rMSA|AA|1\r",
            Some("24 bytes had come, but no Start Block: the receiver answers"),
        ),
    ] {
        let receiver = Receiver::scripted([Step::bytes(answer)]).unwrap();
        let client = Client::builder(&receiver.endpoint()).timeout(SHORT).framing(framing).build().unwrap();
        let error = limited(SHORT, || client.send(message("1"))).unwrap_err();
        timed_out(&error, Phase::ApplicationAck, SHORT, Delivery::Unknown);
        let said = error.to_string();
        match expected {
            Some(expected) => assert!(said.contains(expected), "{name}: {said}"),
            None => assert!(!said.contains("had come"), "{name}: {said}"),
        }
        assert!(!format!("{said}{error:?}").contains("PROBE"), "{name}");
    }
}

#[test]
fn a_limit_far_below_the_timers_grain() {
    let receiver = Receiver::answering(|_| Step::silence()).unwrap();
    let limit = Duration::from_millis(3);
    let client = client(&receiver.endpoint(), LONG);
    client.connect().unwrap();
    let error = limited(limit, || client.request(&message("1")).timeout(limit).send()).unwrap_err();
    timed_out(&error, Phase::ApplicationAck, limit, Delivery::Unknown);
}

#[test]
fn sending_to_a_peer_that_never_reads() {
    let deaf = Deaf::new();
    let message = message_of("1", 64 * 1024 * 1024);
    let error = limited(SHORT, || client(&deaf.endpoint(), SHORT).send(&message)).unwrap_err();
    timed_out(&error, Phase::Send, SHORT, Delivery::NotSent);
    let mut connection = connection(&deaf.endpoint(), SHORT);
    let error = limited(SHORT, || connection.exchange(&message).map(<[u8]>::len)).unwrap_err();
    timed_out(&error, Phase::Send, SHORT, Delivery::NotSent);
    assert!(matches!(connection.send(&message).unwrap_err().kind(), ErrorKind::Closed));
}

#[test]
fn sending_to_a_peer_that_reads_in_drops() {
    let (stop, stopped) = mpsc::channel::<()>();
    with_peer(
        move |stream| {
            // Takes a little every few milliseconds, so that the socket is always about to take more.
            while stopped.recv_timeout(SHORT / 50).is_err_and(|error| error == mpsc::RecvTimeoutError::Timeout) {
                let mut buffer = [0; 4096];
                if !matches!(std::io::Read::read(&mut &stream, &mut buffer), Ok(1..)) {
                    break;
                }
            }
        },
        |endpoint| {
            let message = message_of("1", 64 * 1024 * 1024);
            let error = limited(SHORT, || client(&endpoint, SHORT).send(&message)).unwrap_err();
            timed_out(&error, Phase::Send, SHORT, Delivery::NotSent);
            drop(stop);
        },
    );
}

#[test]
fn connecting_to_an_address_that_does_not_answer() {
    let unreachable = Unreachable::new();
    let endpoint = unreachable.endpoint();
    let quick = Client::builder(&endpoint).connect_timeout(SHORT).timeout(LONG);
    let error = limited(SHORT, || quick.build().unwrap().send(message("1"))).unwrap_err();
    timed_out(&error, Phase::Connect, SHORT, Delivery::NotSent);

    let error = limited(SHORT, || client(&endpoint, SHORT).send(message("1"))).unwrap_err();
    timed_out(&error, Phase::Connect, SHORT, Delivery::NotSent);

    let error = limited(SHORT, || Client::builder(&endpoint).connect_timeout(SHORT).connect()).unwrap_err();
    timed_out(&error, Phase::Connect, SHORT, Delivery::NotSent);

    let error = limited(SHORT, || client(&endpoint, SHORT).connect()).unwrap_err();
    timed_out(&error, Phase::Connect, SHORT, Delivery::NotSent);
}

#[test]
fn waiting_for_a_connection_that_another_thread_uses() {
    let (busy, begun) = mpsc::channel();
    let receiver = Receiver::answering(move |_| {
        busy.send(()).unwrap();
        Step::accept().after(SHORT * 3)
    })
    .unwrap();
    let client = client(&receiver.endpoint(), LONG);
    thread::scope(|scope| {
        let first = scope.spawn(|| client.send(message("FIRST")));
        begun.recv().unwrap();
        let error = limited(SHORT, || client.request(&message("SECOND")).timeout(SHORT).send()).unwrap_err();
        timed_out(&error, Phase::Checkout, SHORT, Delivery::NotSent);
        assert_eq!(first.join().unwrap().unwrap().control_id(), "FIRST");
    });
    assert_eq!(receiver.received().len(), 1);
}

#[test]
fn the_limit_covers_waiting_and_the_exchange_together() {
    let (busy, begun) = mpsc::channel();
    let receiver = Receiver::answering(move |message| {
        busy.send(()).unwrap();
        if message.windows(5).any(|part| part == b"FIRST") { Step::accept().after(SHORT) } else { Step::silence() }
    })
    .unwrap();
    let client = client(&receiver.endpoint(), LONG);
    thread::scope(|scope| {
        scope.spawn(|| client.send(message("FIRST")).unwrap());
        begun.recv().unwrap();
        let limit = SHORT * 2;
        let error = limited(limit, || client.request(&message("SECOND")).timeout(limit).send()).unwrap_err();
        timed_out(&error, Phase::ApplicationAck, limit, Delivery::Unknown);
    });
}

#[test]
fn what_cannot_connect_says_so_at_once() {
    for (name, endpoint, named) in
        [("refused", dead_endpoint(), true), ("a name that does not resolve", "mllp://-:2575".to_owned(), false)]
    {
        let client = client(&endpoint, LONG);
        for error in [
            prompt(|| client.send(message("1"))).map(|_| ()).unwrap_err(),
            prompt(|| client.connect()).unwrap_err(),
            prompt(|| Client::builder(&endpoint).connect()).map(|_| ()).unwrap_err(),
        ] {
            let ErrorKind::Connect { address, .. } = error.kind() else { panic!("{name}: {error:?}") };
            assert_eq!(address.map(|address| format!("mllp://{address}")), named.then(|| endpoint.clone()), "{name}");
            assert_eq!(error.delivery(), Delivery::NotSent);
            assert!(std::error::Error::source(&error).is_some());
        }
        assert!(!client.is_connected());
    }
}

#[test]
fn the_local_address_is_used_or_the_failure_says_why() {
    let receiver = Receiver::accepting().unwrap();
    let builder = || Client::builder(&receiver.endpoint()).timeout(LONG);
    assert!(builder().local_address([127, 0, 0, 1].into()).build().unwrap().send(message("1")).is_ok());
    for local in ["::1", "192.0.2.1"] {
        let error = builder().local_address(local.parse().unwrap()).connect().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Connect { address: Some(_), .. }), "{local}: {error:?}");
    }
    let ipv6 = Receiver::builder().address("[::1]:0").and_then(|builder| builder.answering(|_| Step::accept()));
    match ipv6 {
        Ok(ipv6) => assert!(client(&ipv6.endpoint(), LONG).send(message("1")).is_ok()),
        Err(error) => println!("IPv6 not tried, since this machine has none: {error}"),
    }
}

#[test]
fn an_early_refusal_is_what_the_error_tells() {
    let message = message_of("1", 64 * 1024 * 1024);
    for (name, answer, refused) in [
        ("refusal", acknowledgment("AR", "1"), true),
        ("refusal, without the last byte", acknowledgment("AR", "1").split_last().unwrap().1.to_vec(), false),
        ("an acceptance cannot be meant", acknowledgment("AA", "1"), false),
        ("another's refusal", acknowledgment("AR", "2"), false),
    ] {
        for keeps_open in [false, true] {
            let (done, finished) = mpsc::channel::<()>();
            let answer = answer.clone();
            let error = with_peer(
                move |mut stream| {
                    let mut first = [0; 1000];
                    std::io::Read::read_exact(&mut stream, &mut first).unwrap();
                    stream.write_all(&answer).unwrap();
                    if keeps_open {
                        // It never reads on, so that the write can only end by its limit.
                        assert!(finished.recv().is_err());
                    }
                },
                |endpoint| {
                    let limit = if keeps_open { SHORT } else { LONG };
                    let error = client(&endpoint, limit).send(&message).unwrap_err();
                    drop(done);
                    error
                },
            );
            if refused {
                assert!(error.nak().is_some() && error.delivery() == Delivery::Refused, "{name}: {error:?}");
            } else {
                let kind = error.kind();
                let ended = match keeps_open {
                    true => matches!(kind, ErrorKind::Timeout { phase: Phase::Send, .. }),
                    false => matches!(kind, ErrorKind::Disconnected { phase: Phase::Send, .. }),
                };
                assert!(ended && error.delivery() == Delivery::NotSent, "{name}: {error:?}");
            }
        }
    }
    // A frame that comes before a raw payload has left whole is no reply to it either.
    let error = with_peer(
        |mut stream| {
            std::io::Read::read_exact(&mut stream, &mut [0; 1000]).unwrap();
            stream.write_all(b"\x0Btoo large\x1C\r").unwrap();
        },
        |endpoint| connection(&endpoint, LONG).exchange(&message).map(<[u8]>::len).unwrap_err(),
    );
    assert!(matches!(error.kind(), ErrorKind::Disconnected { phase: Phase::Send, .. }), "{error:?}");
    assert_eq!((error.delivery(), error.response()), (Delivery::NotSent, Some(&b"too large"[..])));
}

#[test]
fn a_peer_that_babbles_while_it_does_not_read() {
    with_peer(
        |mut stream| {
            stream.set_nodelay(true).unwrap();
            // Once the message has begun to come.
            std::io::Read::read_exact(&mut stream, &mut [0; 1]).unwrap();
            stream.write_all(b"\x0B").unwrap();
            while stream.write_all(b"xx").is_ok() {}
        },
        |endpoint| {
            let large = message_of("1", 64 * 1024 * 1024);
            let error = limited(SHORT, || client(&endpoint, SHORT).send(&large)).unwrap_err();
            timed_out(&error, Phase::Send, SHORT, Delivery::NotSent);
        },
    );
}

#[test]
fn a_large_message_goes_out_whole_and_its_answer_comes_back() {
    let receiver = Receiver::answering(|payload| Step::frame(payload)).unwrap();
    let builder = || Client::builder(&receiver.endpoint()).timeout(LONG).max_ack_size(80 * 1024 * 1024);
    let payload = message_of("1", 64 * 1024 * 1024);
    assert!(builder().build().unwrap().exchange(&payload).unwrap() == payload);
    let mut connection = builder().connect().unwrap();
    assert!(connection.exchange(&payload).unwrap() == payload);
    assert_eq!(connection.exchange(b"small").unwrap(), b"small");
}

#[test]
fn a_peer_that_stops_writing_is_not_waited_for_after_its_end_of_stream() {
    with_peer(
        |stream| {
            read_frame(&stream);
            stream.shutdown(Shutdown::Write).unwrap();
            drain(&stream);
        },
        |endpoint| {
            let error = prompt(|| client(&endpoint, LONG).send(message("1"))).unwrap_err();
            let kind = error.kind();
            assert!(matches!(kind, ErrorKind::Disconnected { received: 0, source: None, .. }), "{error:?}");
            assert_eq!(error.delivery(), Delivery::Unknown);
        },
    );
}

#[test]
fn what_cannot_be_sent_touches_nothing() {
    let receiver = Receiver::accepting().unwrap();
    let builder = || Client::builder(&receiver.endpoint()).timeout(LONG).max_message_size(1000);
    let client = builder().build().unwrap();
    let mut connection = builder().connect().unwrap();
    let no_acknowledgment = "MSH|^~\\&|||||||ORU|1|P|2.5|||NE|NE\r";
    for (message, expected) in [
        (&b""[..], "Empty"),
        (b"\x0BMSH|^~\\&|", "FramingByte { byte: 11, offset: 0 }"),
        (b"MSH|\x1C\r", "FramingByte { byte: 28, offset: 4 }"),
        (b"PID|1\r", "NotHl7"),
        (b"MSH|^~\\&|\r", "NoControlId"),
        (no_acknowledgment.as_bytes(), "NoAckRequested"),
        (&[b'x'; 1001], "TooLarge { size: 1001, limit: 1000 }"),
    ] {
        for error in [client.send(message).unwrap_err(), connection.send(message).unwrap_err()] {
            let ErrorKind::InvalidMessage(found) = error.kind() else { panic!("{error:?}") };
            assert_eq!(format!("{found:?}"), expected);
            assert_eq!((error.delivery(), error.phase()), (Delivery::NotSent, None));
            assert!(!error.is_timeout());
        }
    }
    for payload in [&b""[..], b"\x1C", &[b'x'; 1001]] {
        assert!(client.exchange(payload).is_err() && connection.exchange(payload).is_err());
        assert!(client.request(payload).send_unacknowledged().is_err());
    }
    let largest = message_of("1", 1000);
    assert_eq!(largest.len(), 1000);
    assert!(connection.send(&largest).is_ok(), "the connection is as it was");
    assert_eq!(receiver.connections(), 1, "the client opened nothing");
    assert_eq!(receiver.received(), [largest]);
}

#[test]
fn what_cannot_be_set_is_said_at_build() {
    let zero = Duration::ZERO;
    let receiver = Receiver::accepting().unwrap();
    let endpoint = receiver.endpoint();
    let usual = || Client::builder(&endpoint);
    for (name, builder) in [
        ("endpoint", Client::builder("127.0.0.1:2575")),
        ("timeout", usual().timeout(zero)),
        ("connect_timeout", usual().connect_timeout(zero)),
        ("keepalive", usual().keepalive(Some(zero))),
        ("keepalive", usual().keepalive(Some(Duration::from_secs(32_768)))),
        ("keepalive", usual().keepalive(Some(Duration::MAX))),
        ("max_ack_size", usual().max_ack_size(0)),
        ("max_message_size", usual().max_message_size(0)),
        ("max_connections", usual().max_connections(0)),
        ("idle_timeout", usual().idle_timeout(zero)),
        ("max_connection_age", usual().max_connection_age(zero)),
    ] {
        let error = builder.build().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Config(said) if said.contains(name)), "{name}: {error}");
        assert_eq!(error.delivery(), Delivery::NotSent);
    }
    let client = usual().keepalive(None).timeout(Duration::MAX).connect_timeout(Duration::MAX).build().unwrap();
    let error = client.request(&message("1")).timeout(zero).send().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Config(_)), "{error}");
    assert_eq!(receiver.connections(), 0);
    assert!(client.send(message("1")).is_ok(), "a limit may be as long as one likes");
    for idle in [Duration::from_millis(1), Duration::from_secs(32_767)] {
        assert!(usual().keepalive(Some(idle)).connect().is_ok(), "{idle:?}");
    }
}

//! A client over time: its connection reused, replaced, shared, observed and closed.

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use common::{
    LONG, Transport, acknowledgment, client, connection, dead_endpoint, eventually, message, message_of, read_frame,
};
use mllp_client::testing::{Receiver, Step};
use mllp_client::{AckCode, Client, ClientBuilder, Delivery, ErrorKind, Event, Phase, Reconnect, Stats};

fn assert_send_sync<T: Send + Sync>() {}
fn assert_send<T: Send>() {}

#[test]
fn what_may_cross_threads() {
    assert_send_sync::<Client>();
    assert_send_sync::<mllp_client::ShutdownHandle>();
    assert_send_sync::<mllp_client::Error>();
    assert_send::<mllp_client::Connection>();
}

/// A client whose events are written down, a word each.
fn observed(transport: Transport, endpoint: &str) -> (ClientBuilder, Arc<Mutex<Vec<String>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let builder = transport.builder(endpoint).timeout(LONG).on_event({
        let told = Arc::clone(&told);
        move |event| {
            told.lock().unwrap().push(match event {
                Event::Connected { endpoint, .. } => format!("connected {endpoint}"),
                Event::ConnectFailed { attempt, retry_in: None, .. } => format!("connect failed {attempt}"),
                Event::Sent { bytes, .. } => format!("sent {bytes}"),
                Event::Acknowledged { code, .. } => format!("acknowledged {code}"),
                Event::Failed { error, .. } => format!("failed {:?}", error.delivery()),
                Event::Surplus { stale, .. } => format!("surplus {stale}"),
                Event::Disconnected { .. } => "disconnected".to_owned(),
                other => format!("{other:?}"),
            });
        }
    });
    (builder, told)
}

fn counted(stats: Stats) -> [u64; 5] {
    [stats.connections_opened, stats.sent, stats.acknowledged, stats.refused, stats.failed]
}

#[test]
fn one_connection_serves_many_messages() {
    Transport::ALL.iter().for_each(|&transport| one_connection_serves_many_messages_over(transport));
}

fn one_connection_serves_many_messages_over(transport: Transport) {
    let receiver = transport.receiver().scripted([]).unwrap();
    let client = transport.builder(&receiver.endpoint()).timeout(LONG).build().unwrap();
    assert!(!client.is_connected(), "nothing is opened before it is needed");
    for number in 0..500 {
        let id = format!("M{number}");
        assert_eq!(client.send(message(&id)).unwrap().control_id(), id);
    }
    assert!(client.is_connected());
    assert_eq!(receiver.connections(), 1);
    assert_eq!(counted(client.stats()), [1, 500, 500, 0, 0]);
}

#[test]
fn a_connection_that_ended_while_idle_is_replaced_without_a_word() {
    Transport::ALL
        .iter()
        .for_each(|&transport| a_connection_that_ended_while_idle_is_replaced_without_a_word_over(transport));
}

fn a_connection_that_ended_while_idle_is_replaced_without_a_word_over(transport: Transport) {
    let receiver = transport.receiver().scripted([]).unwrap();
    let (builder, told) = observed(transport, &receiver.endpoint());
    let client = builder.build().unwrap();
    client.send(message("1")).unwrap();
    receiver.hang_up();
    eventually("the end of stream is seen", || !client.is_connected());
    client.send(message("2")).unwrap();
    receiver.hang_up();
    // Not asked beforehand: the probe finds it, or the write, or (where the end came later than both)
    // the answer is missing.
    eventually("another connection", || receiver.connections() == 2);
    match client.send(message("3")) {
        Ok(ack) => assert_eq!(ack.control_id(), "3"),
        Err(error) => assert_eq!(error.delivery(), Delivery::Unknown, "{error:?}"),
    }
    let ids: Vec<_> = receiver.received();
    assert_eq!(ids, ["1", "2", "3"].map(|id| message(id).into_bytes())[..ids.len()]);
    assert!(!told.lock().unwrap().iter().any(|event| event.starts_with("surplus")));
}

#[test]
fn bytes_while_idle_end_the_connection_and_harm_no_message() {
    Transport::ALL
        .iter()
        .for_each(|&transport| bytes_while_idle_end_the_connection_and_harm_no_message_over(transport));
}

fn bytes_while_idle_end_the_connection_and_harm_no_message_over(transport: Transport) {
    let receiver = transport.receiver().scripted([]).unwrap();
    let (builder, told) = observed(transport, &receiver.endpoint());
    let client = builder.build().unwrap();
    client.send(message("1")).unwrap();
    receiver.push(&acknowledgment("AA", "2")).unwrap();
    eventually("the bytes have come", || !client.is_connected());
    assert_eq!(client.send(message("2")).unwrap().control_id(), "2");
    assert_eq!((receiver.connections(), receiver.received().len()), (2, 2));
    let told = told.lock().unwrap();
    let endpoint = receiver.endpoint();
    let sent = message("1").len() + 3;
    assert_eq!(
        *told,
        [
            &format!("connected {endpoint}"),
            &format!("sent {sent}"),
            "acknowledged AA",
            &format!("surplus {}", acknowledgment("AA", "2").len()),
            "disconnected",
            &format!("connected {endpoint}"),
            &format!("sent {sent}"),
            "acknowledged AA",
        ]
    );
}

#[test]
fn filler_while_idle_is_nothing() {
    Transport::ALL.iter().for_each(|&transport| filler_while_idle_is_nothing_over(transport));
}

fn filler_while_idle_is_nothing_over(transport: Transport) {
    let receiver = transport.receiver().scripted([]).unwrap();
    let client = transport.builder(&receiver.endpoint()).timeout(LONG).build().unwrap();
    let mut connection = transport.builder(&receiver.endpoint()).timeout(LONG).connect().unwrap();
    for id in ["1", "2", "3"] {
        client.send(message(id)).unwrap();
        connection.send(message(id).as_bytes()).unwrap();
        receiver.push(b"\r\n\0 ").unwrap();
    }
    assert_eq!(receiver.connections(), 2);
}

/// How much is too much is a choice, so that one read more or less is not noticed; that there is an
/// end to it is not.
#[test]
fn filler_without_end_while_idle_ends_the_connection() {
    common::with_peer(
        |mut stream| {
            read_frame(&stream);
            stream.write_all(&acknowledgment("AA", "1")).unwrap();
            while stream.write_all(&[b'\n'; 16 * 1024]).is_ok() {}
        },
        |endpoint| {
            let (builder, told) = observed(Transport::Plain, &endpoint);
            let client = builder.build().unwrap();
            client.send(message("1")).unwrap();
            eventually("enough has come", || !client.is_connected());
            let told = told.lock().unwrap();
            let [.., surplus, ended] = &told[..] else { panic!("{told:?}") };
            let stale: usize = surplus.strip_prefix("surplus ").unwrap().parse().unwrap();
            assert!(stale > 1 && ended == "disconnected", "{told:?}");
        },
    );
}

#[test]
fn anothers_answer_behind_the_first_ends_the_connection_with_the_exchange() {
    common::with_peer(
        |mut stream| {
            read_frame(&stream);
            stream.write_all(&[acknowledgment("AA", "1"), acknowledgment("AA", "0")].concat()).unwrap();
            assert_eq!(common::drain(&stream), 0);
        },
        |endpoint| {
            let (builder, told) = observed(Transport::Plain, &endpoint);
            let client = builder.build().unwrap();
            client.send(message("1")).unwrap();
            let surplus = format!("surplus {}", acknowledgment("AA", "1").len());
            assert!(
                told.lock().unwrap().ends_with(&[surplus, "disconnected".to_owned()]),
                "before anything else is sent"
            );
        },
    );
}

#[test]
fn a_connection_is_told_of_bytes_while_idle() {
    let receiver = Receiver::accepting().unwrap();
    let (builder, told) = observed(Transport::Plain, &receiver.endpoint());
    let mut connection = builder.connect().unwrap();
    connection.send(message("1").as_bytes()).unwrap();
    receiver.push(b"late").unwrap();
    let mut result = connection.send(message("2").as_bytes());
    if result.is_ok() {
        // The bytes came after the probe and the answer; the next call finds them.
        result = connection.send(message("2").as_bytes());
    }
    let error = result.unwrap_err();
    match error.kind() {
        ErrorKind::Desync { stale: 4, .. } => assert_eq!(error.delivery(), Delivery::NotSent),
        // They came between the probe and the answer.
        ErrorKind::MalformedFrame(_) => assert_eq!(error.delivery(), Delivery::Unknown),
        other => panic!("{other:?}"),
    }
    assert!(told.lock().unwrap().contains(&"disconnected".to_owned()));
}

#[test]
fn a_late_answer_is_given_to_nobody() {
    Transport::ALL.iter().for_each(|&transport| a_late_answer_is_given_to_nobody_over(transport));
}

fn a_late_answer_is_given_to_nobody_over(transport: Transport) {
    let receiver = transport
        .receiver()
        .scripted([Step::accept().after(common::SHORT * 2), Step::silence(), Step::accept()])
        .unwrap();
    let client = transport.builder(&receiver.endpoint()).timeout(LONG).build().unwrap();
    let timed = |id: &str| client.request(&message(id)).timeout(common::SHORT).send().unwrap_err();
    for id in ["1", "2"] {
        assert_eq!(timed(id).delivery(), Delivery::Unknown);
    }
    assert_eq!(client.send(message("3")).unwrap().control_id(), "3");
    assert_eq!(receiver.connections(), 3);
    assert_eq!(counted(client.stats()), [3, 3, 1, 0, 2]);
}

#[test]
fn events_come_in_order_and_are_counted() {
    Transport::ALL.iter().for_each(|&transport| events_come_in_order_and_are_counted_over(transport));
}

fn events_come_in_order_and_are_counted_over(transport: Transport) {
    let receiver = transport
        .receiver()
        .scripted([
            Step::accept(),
            Step::refuse(AckCode::ApplicationError, ""),
            Step::silence().close(),
            Step::acknowledge(AckCode::CommitAccept).then(Step::accept()),
        ])
        .unwrap();
    let (builder, told) = observed(transport, &receiver.endpoint());
    let client = builder.build().unwrap();
    client.connect().unwrap();
    client.connect().unwrap();
    client.send(message("1")).unwrap();
    client.send(message("2")).unwrap_err();
    client.send(message("3")).unwrap_err();
    client.send(message("4")).unwrap();
    client.send("no message").unwrap_err();
    let endpoint = receiver.endpoint();
    let (connected, sent) = (format!("connected {endpoint}"), format!("sent {}", message("1").len() + 3));
    let expected = [
        &connected,
        &sent,
        "acknowledged AA",
        &sent,
        "failed Refused",
        &sent,
        "disconnected",
        "failed Unknown",
        &connected,
        &sent,
        "acknowledged AA",
        "failed NotSent",
    ];
    assert_eq!(*told.lock().unwrap(), expected);
    assert_eq!(counted(client.stats()), [2, 4, 2, 1, 2]);
    let clone = client.clone();
    drop(client);
    assert_eq!(counted(clone.stats()), [2, 4, 2, 1, 2]);
    drop(clone);
    assert_eq!(told.lock().unwrap().last().unwrap(), "disconnected");
}

#[test]
fn a_failure_to_connect_is_told() {
    let (builder, told) = observed(Transport::Plain, &dead_endpoint());
    let client = builder.build().unwrap();
    client.send(message("1")).unwrap_err();
    assert_eq!(*told.lock().unwrap(), ["connect failed 1", "failed NotSent"]);
    assert_eq!(counted(client.stats()), [0, 0, 0, 0, 1]);
}

#[test]
fn an_observer_that_panics_harms_nobody() {
    let receiver = Receiver::accepting().unwrap();
    let client =
        Client::builder(&receiver.endpoint()).timeout(LONG).on_event(|_| panic!("on purpose")).build().unwrap();
    for id in ["1", "2"] {
        assert_eq!(client.send(message(id)).unwrap().control_id(), id);
    }
    assert_eq!((receiver.connections(), counted(client.stats())), (1, [1, 2, 2, 0, 0]));
}

#[test]
fn an_observer_may_ask_its_client() {
    let receiver = Receiver::accepting().unwrap();
    let asked: Arc<Mutex<Option<Client>>> = Arc::default();
    let client = Client::builder(&receiver.endpoint())
        .timeout(LONG)
        .on_event({
            let asked = Arc::clone(&asked);
            move |_| {
                if let Some(client) = &*asked.lock().unwrap() {
                    client.is_connected();
                    client.stats();
                }
            }
        })
        .build()
        .unwrap();
    *asked.lock().unwrap() = Some(client.clone());
    client.send(message("1")).unwrap();
    receiver.hang_up();
    eventually("the end is seen", || !client.is_connected());
    client.send(message("2")).unwrap();
    client.close();
    asked.lock().unwrap().take();
}

#[test]
fn connect_and_reconnect() {
    Transport::ALL.iter().for_each(|&transport| connect_and_reconnect_over(transport));
}

fn connect_and_reconnect_over(transport: Transport) {
    let receiver = transport.receiver().scripted([]).unwrap();
    let builder = transport.builder(&receiver.endpoint()).timeout(LONG).reconnect(Reconnect::never());
    let client = builder.build().unwrap();
    client.connect().unwrap();
    client.connect().unwrap();
    eventually("one connection", || receiver.connections() == 1);
    assert!(client.is_connected());
    client.reconnect().unwrap();
    client.send(message("1")).unwrap();
    assert_eq!(receiver.connections(), 2);
    drop(receiver);
    eventually("the end is seen", || !client.is_connected());
    let error = client.send(message("2")).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Connect { .. }) && error.delivery() == Delivery::NotSent, "{error:?}");
    let failed = client.stats().failed;
    assert!(client.connect().is_err() && client.reconnect().is_err());
    assert_eq!(client.stats().failed, failed + 2);
}

#[test]
fn unacknowledged_messages_leave_and_end_their_connection() {
    Transport::ALL.iter().for_each(|&transport| unacknowledged_messages_leave_and_end_their_connection_over(transport));
}

fn unacknowledged_messages_leave_and_end_their_connection_over(transport: Transport) {
    let receiver = transport.receiver().scripted([]).unwrap();
    let client = transport.builder(&receiver.endpoint()).timeout(LONG).build().unwrap();
    let silent = "MSH|^~\\&|||||||ORU|1|P|2.5|||NE|NE\r";
    client.request(silent).send_unacknowledged().unwrap();
    client.request(silent).send_unacknowledged().unwrap();
    assert!(receiver.wait_for(2, LONG));
    assert!(!client.is_connected());
    assert_eq!(client.send(message("2")).unwrap().control_id(), "2");
    assert_eq!((receiver.connections(), receiver.received().len()), (3, 3));
}

#[test]
fn threads_share_a_client() {
    Transport::ALL.iter().for_each(|&transport| threads_share_a_client_over(transport));
}

fn threads_share_a_client_over(transport: Transport) {
    let receiver = transport.receiver().scripted([]).unwrap();
    let client = transport.builder(&receiver.endpoint()).timeout(LONG).build().unwrap();
    thread::scope(|scope| {
        for thread in 0..8 {
            let client = client.clone();
            scope.spawn(move || {
                for number in 0..50 {
                    let id = format!("T{thread}N{number}");
                    assert_eq!(client.send(message(&id)).unwrap().control_id(), id);
                }
            });
        }
    });
    let received = receiver.received();
    assert_eq!((receiver.connections(), received.len()), (1, 400));
    assert_eq!(received.into_iter().collect::<BTreeSet<_>>().len(), 400, "each once");
    assert_eq!(counted(client.stats()), [1, 400, 400, 0, 0]);
}

#[test]
fn a_message_for_a_dead_connection_goes_out_once_on_a_fresh_one() {
    Transport::ALL
        .iter()
        .for_each(|&transport| a_message_for_a_dead_connection_goes_out_once_on_a_fresh_one_over(transport));
}

fn a_message_for_a_dead_connection_goes_out_once_on_a_fresh_one_over(transport: Transport) {
    // The receiver closes right after each answer, so that the next message meets every state of a
    // dying connection.
    let receiver = transport.receiver().answering(|_| Step::accept().close()).unwrap();
    let client = transport.builder(&receiver.endpoint()).timeout(LONG).build().unwrap();
    let mut accepted = BTreeSet::new();
    let mut unknown = 0;
    for number in 0..300 {
        let id = format!("M{number}");
        match client.send(message(&id)) {
            Ok(ack) => {
                assert_eq!(ack.control_id(), id);
                accepted.insert(message(&id).into_bytes());
            }
            Err(error) => {
                assert_eq!(error.delivery(), Delivery::Unknown, "{error:?}");
                assert!(matches!(error.phase(), Some(Phase::ApplicationAck)), "{error:?}");
                unknown += 1;
            }
        }
    }
    let received = receiver.received();
    let distinct: BTreeSet<_> = received.iter().cloned().collect();
    assert_eq!(distinct.len(), received.len(), "no message twice");
    assert!(accepted.is_subset(&distinct), "what was accepted was received");
    assert_eq!(accepted.len() + unknown, 300);
}

/// A peer that answers one message, reads the beginning of the next, says this and goes; a second
/// connection is answered.
fn dies_in_the_second_message(last_words: &[u8]) -> (Result<mllp_client::Ack, mllp_client::Error>, Stats) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("mllp://{}", listener.local_addr().unwrap());
    let client = client(&endpoint, LONG);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut first, _) = listener.accept().unwrap();
            read_frame(&first);
            first.write_all(&acknowledgment("AA", "1")).unwrap();
            first.read_exact(&mut [0; 1000]).unwrap();
            first.write_all(last_words).unwrap();
            drop(first);
            let (mut second, _) = listener.accept().unwrap();
            if drain_to_the_end_of_a_frame(&second) {
                second.write_all(&acknowledgment("AA", "2")).unwrap();
            }
        });
        client.send(message("1")).unwrap();
        let result = client.send(message_of("2", 64 * 1024 * 1024));
        let stats = client.stats();
        client.close();
        // Where the client did not connect again.
        drop(TcpStream::connect(endpoint.strip_prefix("mllp://").unwrap()));
        (result, stats)
    })
}

fn drain_to_the_end_of_a_frame(mut stream: &TcpStream) -> bool {
    let mut buffer = vec![0; 256 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if buffer[..count].ends_with(b"\x1C\r") {
            return true;
        }
    }
    false
}

#[test]
fn a_connection_that_dies_before_the_end_left_is_replaced() {
    let (result, stats) = dies_in_the_second_message(b"");
    assert_eq!(result.unwrap().control_id(), "2");
    assert_eq!(counted(stats), [2, 2, 2, 0, 0]);
}

#[test]
fn a_peer_that_answered_before_it_died_is_not_asked_again() {
    for (last_words, refused) in [(acknowledgment("AR", "2"), true), (acknowledgment("AA", "2"), false)] {
        let (result, stats) = dies_in_the_second_message(&last_words);
        let error = result.unwrap_err();
        assert_eq!(error.delivery(), if refused { Delivery::Refused } else { Delivery::NotSent }, "{error:?}");
        assert_eq!(stats.connections_opened, 1);
    }
}

#[test]
fn debug_tells_where_not_what() {
    let receiver = Receiver::accepting().unwrap();
    let client = client(&receiver.endpoint(), LONG);
    client.send(message("1")).unwrap();
    let text = message("PROBE");
    let shown = format!("{client:?}");
    let port = receiver.endpoint().rsplit(':').next().unwrap().to_owned();
    assert!(shown.contains(&port) && shown.contains("sent: 1"), "{shown}");
    let shown = format!("{:?}", connection(&receiver.endpoint(), LONG));
    assert!(shown.contains(&port) && shown.contains("open: true"), "{shown}");
    let shown = format!("{:#?}", client.send("PID|PROBE\r").unwrap_err());
    assert!(shown.contains("NotHl7") && shown.contains("NotSent") && !shown.contains("PROBE"), "{shown}");
    let shown = format!("{client:?} {:?}", client.request(&text));
    assert!(!shown.contains("PROBE"), "{shown}");
}

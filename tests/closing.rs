//! Closing, from another thread, whatever a call is doing.

mod common;

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::{Deaf, LONG, SHORT, Tidy, Transport, Unreachable, eventually, message, message_of, pass, prompt};
use mllp_client::testing::{Receiver, Step};
use mllp_client::{Client, ClientBuilder, Delivery, Error, ErrorKind, Event, Phase};

/// Closing, and every call that it ends, takes no longer than this.
const AT_ONCE: Duration = Duration::from_millis(100);

/// So often a machine that is busy with other things gets another chance.
const CHANCES: usize = 5;

/// A client that tells when a connection is open, and when one could not be.
fn told(builder: ClientBuilder) -> (Client, mpsc::Receiver<&'static str>) {
    let (tell, told) = mpsc::channel();
    let client = builder.timeout(LONG).on_event(move |event| {
        let what = match event {
            Event::Connected { .. } => "connected",
            Event::Sent { .. } => "sent",
            Event::ConnectFailed { .. } => "failed",
            _ => return,
        };
        // Nobody may listen any more.
        let _ = tell.send(what);
    });
    (client.build().unwrap(), told)
}

/// Closes while so many calls are under way, once they have come as far as is wanted; how they
/// ended, and how long that took.
fn close(client: &Client, message: &[u8], calls: usize, underway: impl FnOnce()) -> (Duration, Vec<Error>) {
    let (errors, begun, ended) = thread::scope(|scope| {
        let calls: Vec<_> =
            (0..calls).map(|_| scope.spawn(|| (client.send(message).unwrap_err(), Instant::now()))).collect();
        underway();
        let begun = Instant::now();
        client.close();
        let mut ended = Instant::now();
        let errors: Vec<_> = calls
            .into_iter()
            .map(|call| {
                let (error, at) = call.join().unwrap();
                ended = ended.max(at);
                error
            })
            .collect();
        (errors, begun, ended)
    });
    for error in &errors {
        assert!(matches!(error.kind(), ErrorKind::Closed), "{error:?}");
    }
    let error = client.send(message).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Closed) && error.delivery() == Delivery::NotSent, "{error:?}");
    assert!(!client.is_connected() && client.connect().is_err() && client.reconnect().is_err());
    (ended - begun, errors)
}

/// Lets a scene be played until it took no longer than it may.
fn at_once(name: &str, scene: impl Fn() -> Duration) {
    let taken: Vec<_> = (0..CHANCES).map(|_| scene()).take_while(|&taken| taken > AT_ONCE).collect();
    assert!(taken.len() < CHANCES, "{name} took {taken:?}");
}

#[test]
fn while_waiting_for_a_connection() {
    let _tidy = Tidy::up();
    let receiver = Receiver::answering(|_| Step::silence()).unwrap();
    at_once("waiting for a connection", || {
        let before = receiver.received().len();
        let (client, _told) = told(Client::builder(&receiver.endpoint()).max_connections(2));
        let (taken, errors) = close(&client, message("1").as_bytes(), 8, || {
            assert!(receiver.wait_for(before + 2, LONG));
            // The others find no connection, whether they are there already or come later.
            pass(SHORT / 10);
        });
        let unknown = errors.iter().filter(|error| error.delivery() == Delivery::Unknown).count();
        assert_eq!((unknown, receiver.received().len()), (2, before + 2));
        taken
    });
}

#[test]
fn while_connecting() {
    let _tidy = Tidy::up();
    let unreachable = Unreachable::new();
    at_once("connecting", || {
        let (client, _told) = told(Client::builder(&unreachable.endpoint()).max_connections(4));
        // One tries, the others wait for it.
        let (taken, errors) = close(&client, message("1").as_bytes(), 4, || pass(SHORT / 4));
        assert!(errors.iter().all(|error| error.delivery() == Delivery::NotSent));
        taken
    });
}

#[test]
#[cfg(feature = "tls")]
fn while_in_the_handshake() {
    let _tidy = Tidy::up();
    let deaf = Deaf::new();
    let endpoint = deaf.endpoint().replace("mllp:", "mllps:");
    at_once("the handshake", || {
        let (client, _told) = told(Transport::Tls13.builder(&endpoint));
        let (taken, errors) = close(&client, message("1").as_bytes(), 1, || pass(SHORT / 4));
        assert_eq!(errors[0].delivery(), Delivery::NotSent);
        taken
    });
}

#[test]
fn while_sending_to_a_peer_that_does_not_read() {
    let _tidy = Tidy::up();
    let large = message_of("1", 64 * 1024 * 1024);
    let deaf = Deaf::new();
    at_once("sending", || {
        let (client, told) = told(Client::builder(&deaf.endpoint()));
        let (taken, errors) = close(&client, &large, 1, || {
            assert_eq!(told.recv(), Ok("connected"));
            pass(SHORT / 4);
        });
        assert_eq!(errors[0].delivery(), Delivery::NotSent);
        taken
    });
}

#[test]
#[cfg(feature = "tls")]
fn while_sending_over_tls() {
    let _tidy = Tidy::up();
    let large = message_of("1", 64 * 1024 * 1024);
    at_once("sending", || {
        // Accepts, and reads no more.
        let step = Step::accept().then(Step::bytes(*b"\n").after(LONG));
        let receiver = Transport::Tls13.receiver().scripted([step]).unwrap();
        let (client, told) = told(Transport::Tls13.builder(&receiver.endpoint()));
        client.send(message("0")).unwrap();
        assert_eq!([told.recv(), told.recv()], [Ok("connected"), Ok("sent")]);
        let (taken, errors) = close(&client, &large, 1, || pass(SHORT / 4));
        assert_eq!(errors[0].delivery(), Delivery::NotSent);
        taken
    });
}

#[test]
fn while_waiting_for_an_answer() {
    let _tidy = Tidy::up();
    for &transport in Transport::ALL {
        for (phase, asked, answer) in [
            (Phase::ApplicationAck, "", Step::silence()),
            (Phase::CommitAck, "|||AL|AL", Step::silence()),
            (Phase::ApplicationAck, "|||AL|AL", Step::acknowledge(mllp_client::AckCode::CommitAccept)),
        ] {
            let committed = !asked.is_empty() && phase == Phase::ApplicationAck;
            let message = message("1").replacen("|2.5\r", &format!("|2.5{asked}\r"), 1);
            let receiver = transport.receiver().answering(move |_| answer.clone()).unwrap();
            at_once("waiting for an answer", || {
                let before = receiver.received().len();
                let (client, _told) = told(transport.builder(&receiver.endpoint()));
                let (taken, errors) = close(&client, message.as_bytes(), 1, || {
                    assert!(receiver.wait_for(before + 1, LONG));
                    pass(SHORT / 10);
                });
                let expected = if committed { Delivery::Committed } else { Delivery::Unknown };
                assert_eq!(
                    (errors[0].delivery(), errors[0].commit().is_some()),
                    (expected, committed),
                    "{transport:?}"
                );
                taken
            });
        }
    }
}

#[test]
fn while_waiting_for_the_next_attempt() {
    let _tidy = Tidy::up();
    at_once("sleeping between attempts", || {
        let receiver = Receiver::accepting().unwrap();
        let (client, told) = told(Client::builder(&receiver.endpoint()).max_connections(4));
        client.send(message("1")).unwrap();
        drop(receiver);
        let (taken, errors) = close(&client, message("2").as_bytes(), 6, || {
            eventually("an attempt has failed", || told.recv() == Ok("failed"));
        });
        assert!(errors.iter().all(|error| error.delivery() == Delivery::NotSent));
        taken
    });
}

#[test]
fn from_an_observer() {
    let _tidy = Tidy::up();
    // An answer that is there already would be taken.
    let receiver = Receiver::answering(|_| Step::silence()).unwrap();
    let itself: Arc<Mutex<Option<Client>>> = Arc::default();
    let builder = Client::builder(&receiver.endpoint()).timeout(LONG).on_event({
        let itself = Arc::clone(&itself);
        move |event| {
            if let (Event::Sent { .. }, Some(client)) = (event, &*itself.lock().unwrap()) {
                client.close();
            }
        }
    });
    let client = builder.build().unwrap();
    *itself.lock().unwrap() = Some(client.clone());
    let error = prompt(|| client.send(message("1"))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Closed) && error.delivery() == Delivery::Unknown, "{error:?}");
    itself.lock().unwrap().take();
}

#[test]
fn by_dropping_the_last_clone() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    let client = common::client(&receiver.endpoint(), LONG);
    let clone = client.clone();
    client.send(message("1")).unwrap();
    drop(client);
    clone.send(message("2")).unwrap();
    assert_eq!(receiver.connections(), 1);
    drop(clone);
}

#[test]
fn by_a_shutdown_handle() {
    let _tidy = Tidy::up();
    Transport::ALL.iter().for_each(|&transport| by_a_shutdown_handle_over(transport));
}

fn by_a_shutdown_handle_over(transport: Transport) {
    let receiver = transport.receiver().answering(|_| Step::silence()).unwrap();
    let mut waiting = transport.builder(&receiver.endpoint()).timeout(LONG).connect().unwrap();
    let handle = waiting.shutdown_handle().unwrap();
    let error = prompt(|| {
        thread::scope(|scope| {
            let call = scope.spawn(|| waiting.send(message("1").as_bytes()));
            assert!(receiver.wait_for(1, LONG));
            handle.shutdown();
            call.join().unwrap()
        })
    })
    .unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Closed) && error.delivery() == Delivery::Unknown, "{error:?}");
    handle.shutdown();

    let mut idle = transport.builder(&receiver.endpoint()).timeout(LONG).connect().unwrap();
    idle.shutdown_handle().unwrap().shutdown();
    assert!(!idle.is_open());
    let error = idle.send(message("2").as_bytes()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Closed) && error.delivery() == Delivery::NotSent, "{error:?}");
    assert_eq!(receiver.received().len(), 1);
}

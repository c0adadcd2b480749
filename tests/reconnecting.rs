//! Receivers that go away and come back, connections that grow old: who tries, how often, and what
//! the calls say.

mod common;

use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{LONG, SHORT, Tidy, dead_endpoint, eventually, limited, message, pass};
use mllp_client::testing::{Receiver, ReceiverBuilder, Step};
use mllp_client::{Client, ClientBuilder, Delivery, Error, ErrorKind, Event, Phase, Reconnect};

/// What was told of attempts that failed: which one, and when the next comes.
type Attempts = Arc<Mutex<Vec<(u32, Option<Duration>)>>>;

fn watched(builder: ClientBuilder) -> (Client, Attempts) {
    let attempts = Attempts::default();
    let watched = builder.timeout(LONG).on_event({
        let attempts = Arc::clone(&attempts);
        move |event| {
            if let Event::ConnectFailed { attempt, retry_in, .. } = event {
                attempts.lock().unwrap().push((*attempt, *retry_in));
            }
        }
    });
    (watched.build().unwrap(), attempts)
}

/// Starts a receiver where another has just been.
fn again(endpoint: &str, builder: impl Fn() -> ReceiverBuilder) -> Receiver {
    let address = endpoint.split_once("//").unwrap().1;
    let mut receiver = None;
    eventually("the port is free again", || {
        receiver = builder().address(address).unwrap().answering(|_| Step::accept()).ok();
        receiver.is_some()
    });
    receiver.unwrap()
}

/// A client with as many open connections as it may have, all at once in use.
fn fill(client: &Client, connections: usize) {
    thread::scope(|scope| {
        for number in 0..connections {
            scope.spawn(move || client.send(message(&format!("FILL{number}"))).unwrap());
        }
    });
}

/// A receiver that answers nobody before so many are there, the first time.
fn rendezvous(connections: usize) -> Receiver {
    let all = Barrier::new(connections);
    Receiver::answering(move |message| {
        if message.windows(4).any(|window| window == b"FILL") {
            all.wait();
        }
        Step::accept()
    })
    .unwrap()
}

fn refused(error: &Error) {
    assert!(matches!(error.kind(), ErrorKind::Connect { address: Some(_), .. }), "{error:?}");
    assert_eq!(error.delivery(), Delivery::NotSent);
}

#[test]
fn messages_sent_while_the_receiver_is_away_arrive_when_it_is_back() {
    let _tidy = Tidy::up();
    for connections in [1, 10] {
        let receiver = rendezvous(connections);
        let endpoint = receiver.endpoint();
        let first_delay = Duration::from_millis(150);
        let (client, attempts) = watched(
            Client::builder(&endpoint)
                .max_connections(connections)
                .reconnect(Reconnect::default().initial_delay(first_delay)),
        );
        fill(&client, connections);
        drop(receiver);
        thread::scope(|scope| {
            let calls: Vec<_> = (0..10)
                .map(|number| {
                    let client = &client;
                    scope.spawn(move || client.send(message(&format!("M{number}"))).unwrap().control_id().into_owned())
                })
                .collect();
            pass(first_delay * 2);
            let receiver = again(&endpoint, Receiver::builder);
            for (number, call) in calls.into_iter().enumerate() {
                assert_eq!(call.join().unwrap(), format!("M{number}"));
            }
            assert_eq!(receiver.received().len(), 10);
            assert!(receiver.connections() <= connections);
        });
        // At once, after 150 ms (or three quarters of it), after 300 ms more: no more than three, whoever
        // made them.
        let attempts = attempts.lock().unwrap();
        assert!((1..=3).contains(&attempts.len()), "{attempts:?}");
        for (index, &(number, retry_in)) in attempts.iter().enumerate() {
            let longest = first_delay * (1 << index);
            let retry_in = retry_in.unwrap();
            assert_eq!(number as usize, index + 1);
            assert!(retry_in <= longest && retry_in >= longest.mul_f64(0.749), "{attempts:?}");
        }
        assert_eq!(client.stats().failed, 0);
    }
}

#[test]
fn ten_threads_make_the_attempts_of_one() {
    let _tidy = Tidy::up();
    // With a connection each, and with one for all.
    for connections in [10, 1] {
        let receiver = rendezvous(connections);
        let policy = Reconnect::attempts(3).initial_delay(Duration::from_millis(200));
        let builder = Client::builder(&receiver.endpoint()).max_connections(connections).reconnect(policy);
        let (client, attempts) = watched(builder);
        fill(&client, connections);
        drop(receiver);
        let together = Barrier::new(10);
        thread::scope(|scope| {
            for number in 0..10 {
                let (client, together) = (&client, &together);
                scope.spawn(move || {
                    together.wait();
                    refused(&client.send(message(&format!("M{number}"))).unwrap_err());
                });
            }
        });
        let numbers: Vec<_> =
            attempts.lock().unwrap().iter().map(|(number, retry)| (*number, retry.is_some())).collect();
        assert_eq!(numbers, [(1, true), (2, true), (3, false)], "{connections} connections");
        assert_eq!(client.stats().failed, 10);
        // What was given up is begun anew by the next call.
        refused(&client.send(message("LATER")).unwrap_err());
        assert_eq!(attempts.lock().unwrap().len(), 6);
    }
}

#[test]
fn who_comes_while_an_attempt_is_told_of_shares_it() {
    let _tidy = Tidy::up();
    let receiver = rendezvous(10);
    let numbers: Arc<Mutex<Vec<u32>>> = Arc::default();
    let policy = Reconnect::attempts(3).initial_delay(Duration::from_millis(300));
    let client = Client::builder(&receiver.endpoint())
        .timeout(LONG)
        .max_connections(10)
        .reconnect(policy)
        .on_event({
            let numbers = Arc::clone(&numbers);
            move |event| {
                if let Event::ConnectFailed { attempt, .. } = event {
                    numbers.lock().unwrap().push(*attempt);
                    pass(Duration::from_millis(100));
                }
            }
        })
        .build()
        .unwrap();
    fill(&client, 10);
    drop(receiver);
    thread::scope(|scope| {
        for number in 0..10 {
            let client = &client;
            scope.spawn(move || {
                // One after the other, all before the second attempt.
                pass(Duration::from_millis(15) * number);
                refused(&client.send(message(&format!("M{number}"))).unwrap_err());
            });
        }
    });
    assert_eq!(*numbers.lock().unwrap(), [1, 2, 3]);
}

#[test]
fn without_reconnecting_a_failure_is_told_at_once() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    let endpoint = receiver.endpoint();
    let (client, attempts) = watched(Client::builder(&endpoint).reconnect(Reconnect::never()));
    client.send(message("1")).unwrap();
    drop(receiver);
    refused(&limited(Duration::ZERO, || client.send(message("2"))).unwrap_err());
    assert_eq!(*attempts.lock().unwrap(), [(1, None)]);
    let receiver = again(&endpoint, Receiver::builder);
    client.send(message("3")).unwrap();
    assert_eq!(receiver.received(), [message("3").into_bytes()], "a connection that ended is replaced all the same");
}

#[test]
fn an_address_that_was_never_reached_is_not_tried_again() {
    let _tidy = Tidy::up();
    let (client, attempts) = watched(Client::builder(&dead_endpoint()));
    refused(&limited(Duration::ZERO, || client.send(message("1"))).unwrap_err());
    refused(&limited(Duration::ZERO, || client.connect()).unwrap_err());
    assert_eq!(*attempts.lock().unwrap(), [(1, None), (1, None)]);
}

#[test]
fn the_limit_of_the_call_ends_the_attempts() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    let policy =
        Reconnect::attempts(1000).initial_delay(Duration::from_millis(20)).max_delay(Duration::from_millis(40));
    let (client, attempts) = watched(Client::builder(&receiver.endpoint()).reconnect(policy));
    client.send(message("1")).unwrap();
    drop(receiver);
    let begun = Instant::now();
    let error = client.request(&message("2")).timeout(SHORT * 2).send().unwrap_err();
    refused(&error);
    let taken = begun.elapsed();
    assert!(taken < SHORT * 2 + Duration::from_millis(250), "{taken:?}");
    let attempts = attempts.lock().unwrap();
    assert!((5..=25).contains(&attempts.len()), "{attempts:?}");
    assert!(attempts.iter().rev().skip(1).all(|(_, retry_in)| retry_in.is_some()), "{attempts:?}");
    // It ends when the next attempt would come too late, or when waiting for that took longer than it
    // should have.
    assert!(attempts.last().unwrap().1.is_none() || taken >= SHORT * 2, "{attempts:?}");
}

#[test]
fn who_waits_for_anothers_attempt_keeps_its_own_limit() {
    let _tidy = Tidy::up();
    let receiver = rendezvous(2);
    let endpoint = receiver.endpoint();
    let policy = Reconnect::default().initial_delay(Duration::from_millis(10));
    let (client, _) = watched(Client::builder(&endpoint).max_connections(2).reconnect(policy));
    fill(&client, 2);
    drop(receiver);
    // A listener whose queue is full: an attempt gets no answer for as long as it lasts.
    let full = common::Unreachable::at(endpoint.split_once("//").unwrap().1);
    thread::scope(|scope| {
        let patient = scope.spawn(|| client.request(&message("1")).timeout(SHORT * 4).send().unwrap_err());
        let hasty = scope.spawn(|| limited(SHORT, || client.request(&message("2")).timeout(SHORT).send().unwrap_err()));
        for (call, limit) in [(hasty, SHORT), (patient, SHORT * 4)] {
            let error = call.join().unwrap();
            let kind = error.kind();
            assert!(
                matches!(kind, ErrorKind::Timeout { phase: Phase::Connect, limit: l, .. } if *l == limit),
                "{error:?}"
            );
        }
    });
    drop(full);
}

#[test]
fn who_waits_for_a_connection_learns_why_there_is_none() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    let policy = Reconnect::attempts(1000).max_delay(Duration::from_millis(20));
    let (client, attempts) = watched(Client::builder(&receiver.endpoint()).reconnect(policy));
    client.send(message("1")).unwrap();
    drop(receiver);
    thread::scope(|scope| {
        let patient = scope.spawn(|| client.request(&message("2")).timeout(SHORT * 4).send().unwrap_err());
        eventually("the only connection is taken", || !attempts.lock().unwrap().is_empty());
        refused(&client.request(&message("3")).timeout(SHORT).send().unwrap_err());
        refused(&patient.join().unwrap());
    });
}

#[test]
fn an_old_connection_is_replaced_before_it_is_used() {
    let _tidy = Tidy::up();
    let receiver = Receiver::accepting().unwrap();
    let builder = || Client::builder(&receiver.endpoint()).timeout(LONG);
    let mut opened = 0;
    for (name, builder, expected) in [
        ("as it is", builder(), 1),
        ("not idle for so long", builder().idle_timeout(LONG), 1),
        ("not so old", builder().max_connection_age(LONG), 1),
        ("idle for too long", builder().idle_timeout(SHORT / 4), 2),
        ("too old", builder().max_connection_age(SHORT / 4), 2),
    ] {
        let client = builder.build().unwrap();
        client.send(message("1")).unwrap();
        pass(SHORT / 2);
        client.send(message("2")).unwrap();
        opened += expected;
        assert_eq!(receiver.connections(), opened, "{name}");
        assert_eq!(client.stats().failed, 0);
    }
}

#[test]
fn looking_at_a_connection_is_no_use_of_it() {
    let _tidy = Tidy::up();
    let looks: [fn(&Client) -> bool; 2] = [Client::is_connected, |client| client.connect().is_ok()];
    for look in looks {
        let receiver = Receiver::accepting().unwrap();
        let client = Client::builder(&receiver.endpoint()).timeout(LONG).idle_timeout(SHORT).build().unwrap();
        client.send(message("1")).unwrap();
        for _ in 0..8 {
            pass(SHORT / 5);
            look(&client);
        }
        client.send(message("2")).unwrap();
        // On a busy machine the second may have been idle for too long as well.
        assert!(receiver.connections() >= 2, "{} connections", receiver.connections());
        assert_eq!(client.stats().failed, 0);
    }
}

#[test]
fn a_connection_grows_old_while_it_is_used() {
    let _tidy = Tidy::up();
    let receiver = Receiver::answering(|_| Step::accept().after(SHORT)).unwrap();
    let builder = Client::builder(&receiver.endpoint()).timeout(LONG).max_connection_age(SHORT / 4);
    let client = builder.build().unwrap();
    client.send(message("1")).unwrap();
    assert!(!client.is_connected(), "it is not kept");
    client.send(message("2")).unwrap();
    assert_eq!(receiver.connections(), 2);
}

#[cfg(feature = "tls")]
mod tls {
    use std::net::{SocketAddr, TcpListener};

    use super::*;
    use common::Transport;
    use common::certificates::{Authority, NAME, Validity};

    #[test]
    fn a_certificate_that_is_not_trusted_is_not_tried_again() {
        let _tidy = Tidy::up();
        let receiver = Transport::Tls13.receiver().answering(|_| Step::accept()).unwrap();
        let endpoint = receiver.endpoint();
        let (client, attempts) = watched(Transport::Tls13.builder(&endpoint));
        client.send(message("1")).unwrap();
        drop(receiver);
        let stranger = Authority::new("Stranger").issue(&[NAME, "127.0.0.1"], Validity::Now);
        let receiver = again(&endpoint, || Receiver::builder().tls(stranger.server()));
        let error = limited(Duration::ZERO, || client.send(message("2"))).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Tls(_)) && error.delivery() == Delivery::NotSent, "{error:?}");
        assert_eq!(*attempts.lock().unwrap(), [(1, None)]);
        assert!(receiver.received().is_empty());
    }

    /// A proxy goes on taking connections while its receiver is away, and drops them. It counts
    /// them.
    #[test]
    fn a_handshake_that_is_broken_off_is_tried_again() {
        let _tidy = Tidy::up();
        let receiver = Transport::Tls12.receiver().answering(|_| Step::accept()).unwrap();
        let endpoint = receiver.endpoint();
        let policy = Reconnect::attempts(4).initial_delay(Duration::from_millis(5));
        let (client, attempts) = watched(Transport::Tls12.builder(&endpoint).reconnect(policy));
        client.send(message("1")).unwrap();
        drop(receiver);
        let address: SocketAddr = endpoint.split_once("//").unwrap().1.parse().unwrap();
        let mut proxy = None;
        eventually("the port is free again", || {
            proxy = TcpListener::bind(address).ok();
            proxy.is_some()
        });
        let proxy = proxy.unwrap();
        let error = thread::scope(|scope| {
            let dropping = scope.spawn(|| (0..4).for_each(|_| drop(proxy.accept().unwrap())));
            let error = client.send(message("2")).unwrap_err();
            dropping.join().unwrap();
            error
        });
        assert!(matches!(error.kind(), ErrorKind::Tls(_)) && error.delivery() == Delivery::NotSent, "{error:?}");
        let retried: Vec<_> = attempts.lock().unwrap().iter().map(|(_, retry_in)| retry_in.is_some()).collect();
        assert_eq!(retried, [true, true, true, false]);
        proxy.set_nonblocking(true).unwrap();
        assert!(proxy.accept().is_err(), "no attempt besides");
        drop(proxy);
        let receiver = again(&endpoint, || Transport::Tls12.receiver());
        client.send(message("3")).unwrap();
        assert_eq!(receiver.connections(), 1);
    }
}

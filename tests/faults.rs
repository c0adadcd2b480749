//! A network that fails at every byte of an exchange: the call ends within its limit, says what
//! became of the message, and the receiver's record agrees. The next message gets its own answer.

mod common;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::proxy::{Direction, Fault, Proxy};
use common::{LONG, Tidy, Transport, eventually, limited, message_of, prompt};
use mllp_client::testing::{Receiver, Step};
use mllp_client::{Client, Delivery, Error, ErrorKind, Phase};

/// What a stalled call is allowed.
const LIMIT: Duration = Duration::from_millis(120);

/// How many calls are under way at the same time: many where they wait for their limit, and few
/// where they need a core.
const WAITING: usize = 48;
const WORKING: usize = 3;

/// The message's frame: three framing bytes are around the payload.
const FRAME: usize = 300;

type Log = Arc<Mutex<HashSet<Vec<u8>>>>;

#[test]
fn a_cut() {
    at_every_offset(Fault::Cut);
}

#[test]
fn a_reset() {
    at_every_offset(Fault::Reset);
}

#[test]
fn a_stall() {
    at_every_offset(Fault::Stall);
}

#[test]
fn a_split() {
    at_every_offset(Fault::Split);
}

/// Every offset of the exchange in both directions, and behind its last byte.
fn at_every_offset(fault: Fault) {
    let _tidy = Tidy::up();
    for &transport in Transport::ALL {
        let log = Log::default();
        let receiver = receiver(transport, &log);
        let [there, back] = size_of_an_exchange(transport, &receiver);
        assert!(there >= FRAME && back > 80, "{there} and {back} bytes");
        assert!(transport != Transport::Plain || there == FRAME);
        let places: Vec<_> = [(Direction::ToReceiver, there), (Direction::ToClient, back)]
            .into_iter()
            .flat_map(|(direction, size)| {
                (0..=size).map(move |offset| Place { direction, offset, behind: offset == size, fault })
            })
            .collect();
        let next = AtomicUsize::new(0);
        let expected = thread::scope(|scope| {
            let work = || {
                let mut trial = Trial::new(transport, &receiver);
                let mut expected = Vec::new();
                while let Some(place) = places.get(next.fetch_add(1, Ordering::Relaxed)) {
                    expected.extend(trial.play(place));
                }
                expected
            };
            let workers = if fault == Fault::Stall { WAITING } else { WORKING };
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
        });
        // Whatever was still on its way has come, or never will.
        drop(receiver);
        let log = log.lock().unwrap();
        for (name, message, came) in &expected {
            assert!(came.is_none_or(|came| came == log.contains(message)), "{name}: came: {}", log.contains(message));
        }
        let uncertain = expected.iter().filter(|(_, _, came)| came.is_none()).count();
        assert!(expected.len() == 2 * places.len() && uncertain <= 1, "{uncertain} of {}", expected.len());
    }
}

fn receiver(transport: Transport, log: &Log) -> Receiver {
    let log = Arc::clone(log);
    let record = move |message: &[u8]| {
        assert!(log.lock().unwrap().insert(message.to_vec()), "a message came twice");
        Step::accept()
    };
    transport.receiver().answering(record).unwrap()
}

/// How many bytes an exchange is in each direction, on a connection that is in use.
fn size_of_an_exchange(transport: Transport, receiver: &Receiver) -> [usize; 2] {
    let mut trial = Trial::new(transport, receiver);
    trial.send_undisturbed();
    trial.proxy.disarm();
    trial.send_undisturbed();
    trial.proxy.passed()
}

/// Where the network fails, and how.
struct Place {
    direction: Direction,
    offset: usize,
    /// Whether that is behind the last byte.
    behind: bool,
    fault: Fault,
}

impl Place {
    /// Whether the answer reaches the client nevertheless.
    fn does_no_harm(&self) -> bool {
        self.fault == Fault::Split || (self.direction == Direction::ToClient && self.behind)
    }
}

/// A client behind a proxy of its own.
struct Trial {
    transport: Transport,
    proxy: Proxy,
    client: Client,
}

/// What was sent, and whether the receiver must have it, or must not, where that is certain.
type Expected = (String, Vec<u8>, Option<bool>);

impl Trial {
    fn new(transport: Transport, receiver: &Receiver) -> Trial {
        let proxy = Proxy::to(&receiver.endpoint());
        let client = transport.builder(&proxy.endpoint()).timeout(LONG).build().unwrap();
        Trial { transport, proxy, client }
    }

    /// All control IDs are of one length, and so are all exchanges.
    fn next_message() -> (String, Vec<u8>) {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let id = format!("M{:06}", COUNT.fetch_add(1, Ordering::Relaxed));
        let message = message_of(&id, FRAME - 3);
        (id, message)
    }

    fn send_undisturbed(&mut self) -> Vec<u8> {
        let (id, message) = Trial::next_message();
        assert_eq!(self.client.send(&message).unwrap().control_id(), id);
        message
    }

    fn play(&mut self, place: &Place) -> [Expected; 2] {
        let &Place { direction, offset, fault, .. } = place;
        let name = format!("{:?}, {fault:?} at {offset} {direction:?}", self.transport);
        // The answer that an earlier one may still have coming would show here.
        let undisturbed = self.send_undisturbed();
        self.proxy.arm(direction, offset, fault);
        let (id, message) = Trial::next_message();
        let came = if place.does_no_harm() {
            let result = prompt(|| self.client.send(&message));
            assert_eq!(result.unwrap_or_else(|error| panic!("{name}: {error:?}")).control_id(), id, "{name}");
            Some(true)
        } else {
            let limit = if fault == Fault::Stall { LIMIT } else { LONG };
            let send = || self.client.request(&message).timeout(limit).send();
            let result = if fault == Fault::Stall { limited(limit, send) } else { prompt(send) };
            self.judge(&name, &result.expect_err(&name), place)
        };
        eventually("the fault has happened", || !self.proxy.is_armed());
        [(name.clone(), undisturbed, Some(true)), (name, message, came)]
    }

    /// Whether the receiver has the message, by what happened. The failure must say so.
    fn judge(&self, name: &str, error: &Error, place: &Place) -> Option<bool> {
        // All of it had left this machine, whatever became of it.
        assert_eq!(error.delivery(), Delivery::Unknown, "{name}: {error:?}");
        assert_eq!(error.phase(), Some(Phase::ApplicationAck), "{name}: {error:?}");
        let heard = match (place.direction, self.transport) {
            (Direction::ToClient, Transport::Plain) => place.offset,
            // Half a record is nothing.
            _ => 0,
        };
        match (place.fault, error.kind()) {
            (Fault::Stall, ErrorKind::Timeout { limit, .. }) => assert_eq!(*limit, LIMIT, "{name}"),
            (Fault::Cut, ErrorKind::Disconnected { received, source: None, .. }) => {
                assert_eq!(*received, heard, "{name}");
            }
            // A reset may overtake what is before it.
            (Fault::Reset, ErrorKind::Disconnected { received, .. }) => {
                assert!(*received <= heard, "{name}: {error:?}");
            }
            _ => panic!("{name}: {error:?}"),
        }
        match (place.direction, place.fault) {
            (Direction::ToClient, _) => Some(true),
            (Direction::ToReceiver, Fault::Reset) if place.behind => None,
            (Direction::ToReceiver, _) => Some(place.behind),
        }
    }
}

//! Taking and returning connections: which are spent, opening another, closing for good. No thread.

mod dialer;
mod reconnect;
mod slots;
mod sync;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub use reconnect::Reconnect;

use crate::connection::{self, Connection, Fitness};
use crate::deadline::Deadline;
use crate::error::{Error, ErrorKind, Phase};
use crate::event::Event;
use crate::locks::lock;
use crate::net::ShutdownHandle;
use crate::settings::Settings;
use dialer::{Dialer, Epoch};
use slots::{Look, Refusal, Slot, Slots};

/// How long a probe may last for which no call waits.
const PROBE_LIMIT: Duration = Duration::from_millis(25);

/// How connections are kept.
#[derive(Debug)]
pub(crate) struct PoolOptions {
    pub(crate) max_connections: usize,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) max_connection_age: Option<Duration>,
    pub(crate) messages_per_connection: Option<u32>,
    pub(crate) reconnect: Reconnect,
}

/// A client's connections.
#[derive(Debug)]
pub(crate) struct Pool {
    settings: Arc<Settings>,
    idle_timeout: Option<Duration>,
    max_connection_age: Option<Duration>,
    messages_per_connection: Option<u32>,
    slots: Slots<Box<Kept>>,
    dialer: Dialer,
    /// The handles that end the connections which are open or being opened.
    handles: Mutex<Vec<ShutdownHandle>>,
}

/// A connection, and until when it may be used. Boxed, since it moves between the pool and a lease
/// for every message.
#[derive(Debug)]
struct Kept {
    connection: Connection,
    idle_until: Option<Deadline>,
    young_until: Option<Deadline>,
    /// How many more messages it may carry.
    messages_left: Option<u32>,
}

impl Kept {
    /// Whether it is to be replaced although nothing is wrong with it.
    fn is_spent(&self) -> bool {
        let passed = |limit: &Option<Deadline>| limit.is_some_and(|limit| limit.remaining().is_none());
        self.messages_left == Some(0) || passed(&self.idle_until) || passed(&self.young_until)
    }
}

impl Pool {
    pub(crate) fn new(settings: Arc<Settings>, options: PoolOptions) -> Self {
        Pool {
            settings,
            idle_timeout: options.idle_timeout,
            max_connection_age: options.max_connection_age,
            messages_per_connection: options.messages_per_connection,
            slots: Slots::new(options.max_connections),
            dialer: Dialer::new(options.reconnect),
            handles: Mutex::default(),
        }
    }

    pub(crate) fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// The most connections at a time.
    pub(crate) fn max_connections(&self) -> usize {
        self.slots.most()
    }

    /// Waits for a slot, until the deadline.
    pub(crate) fn acquire(&self, deadline: &Deadline) -> Result<Lease<'_>, Error> {
        let began = self.dialer.now();
        match self.slots.acquire(deadline) {
            Ok(slot) => Ok(self.lease(slot, began)),
            Err(Refusal::Closed) => Err(closed()),
            // If the calls that hold the slots could not connect, their failure is what this one waited for.
            Err(Refusal::TooLate) => Err(self.dialer.failure_since(began).unwrap_or_else(|| {
                let kind = ErrorKind::Timeout { phase: Phase::Checkout, limit: deadline.limit() };
                Error::before_sending(kind)
            })),
        }
    }

    /// Ends the connections that nobody uses.
    pub(crate) fn drop_idle(&self) {
        self.dialer.suspect();
        self.slots.take_idle().iter_mut().for_each(Slot::empty);
    }

    /// Whether a connection is open. If none is in use, the idle ones are probed.
    pub(crate) fn is_connected(&self) -> bool {
        let deadline = Deadline::after(PROBE_LIMIT);
        loop {
            match self.slots.look() {
                Look::InUse => return true,
                Look::Nothing => return false,
                // One that is busy when the time is over is open.
                Look::Idle(slot) => match self.lease(slot, self.dialer.now()).is_fit(&deadline) {
                    Ok(true) | Err(_) => return true,
                    Ok(false) => {}
                },
            }
        }
    }

    /// Closes for good: ends the calls under way and refuses all later ones.
    pub(crate) fn close(&self) {
        let idle = self.slots.close();
        self.dialer.close();
        // Whoever adds a handle later looks afterwards whether the pool is closed.
        let handles = std::mem::take(&mut *self.handles());
        handles.iter().for_each(ShutdownHandle::shutdown);
        drop(idle);
    }

    fn lease<'p>(&'p self, slot: Slot<'p, Box<Kept>>, began: Epoch) -> Lease<'p> {
        Lease { pool: self, slot, began, is_used: false }
    }

    fn open(&self, deadline: &Deadline) -> Result<Box<Kept>, Error> {
        let handle = ShutdownHandle::new();
        let mut handles = self.handles();
        // A handle that no connection holds any more ends nothing.
        handles.retain(ShutdownHandle::is_shared);
        handles.push(handle.clone());
        drop(handles);
        if self.slots.is_closed() {
            return Err(closed());
        }
        Ok(Box::new(Kept {
            connection: Connection::open(&self.settings, deadline, handle)?,
            idle_until: None,
            young_until: self.max_connection_age.map(Deadline::after),
            messages_left: self.messages_per_connection,
        }))
    }

    fn handles(&self) -> MutexGuard<'_, Vec<ShutdownHandle>> {
        lock(&self.handles)
    }
}

fn closed() -> Error {
    Error::before_sending(ErrorKind::Closed)
}

/// A slot, and the connection in it; both go back when it is dropped.
#[derive(Debug)]
pub(crate) struct Lease<'p> {
    pool: &'p Pool,
    slot: Slot<'p, Box<Kept>>,
    began: Epoch,
    /// Whether the connection has been used since it was idle. A probe is no use of it, since it
    /// sends nothing.
    is_used: bool,
}

impl Lease<'_> {
    /// Whether there is a connection that can be used. One that cannot is ended.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Timeout`] if the deadline passed while acknowledgments of earlier messages were
    /// coming in.
    pub(crate) fn is_fit(&mut self, deadline: &Deadline) -> Result<bool, Error> {
        let Some(kept) = self.slot.content() else { return Ok(false) };
        if kept.is_spent() {
            self.slot.empty();
            return Ok(false);
        }
        match kept.connection.probe(deadline) {
            Fitness::Fit => return Ok(true),
            Fitness::Busy => return Err(connection::busy(deadline)),
            Fitness::Surplus(stale) => kept.connection.end_for_surplus(stale),
            Fitness::Ended(_) => {}
        }
        self.lose();
        Ok(false)
    }

    /// Marks the start of another call on this lease.
    pub(crate) fn renew(&mut self) {
        self.began = self.pool.dialer.now();
    }

    /// The connection, if there is one, as it is.
    pub(crate) fn connection(&mut self) -> Option<&mut Connection> {
        self.slot.content().map(|kept| &mut kept.connection)
    }

    /// A fresh connection, which replaces the one there was, after as many attempts as the deadline
    /// and the policy allow.
    pub(crate) fn connect(&mut self, deadline: &Deadline) -> Result<&mut Connection, Error> {
        self.slot.empty();
        let Settings { endpoint, monitor, .. } = &*self.pool.settings;
        let opened = self.pool.dialer.reach(
            self.began,
            deadline,
            || self.pool.open(deadline),
            |failed| {
                let (error, attempt, retry_in) = (failed.error, failed.number, failed.retry_in);
                monitor.emit(&Event::ConnectFailed { endpoint, error, attempt, retry_in });
            },
        )?;
        self.is_used = true;
        let connection = &mut self.slot.fill(opened).connection;
        connection.emit_connected();
        Ok(connection)
    }

    /// Counts an exchange that was begun on the connection.
    pub(crate) fn count_exchange(&mut self) {
        self.is_used = true;
        if let Some(kept) = self.slot.content() {
            kept.messages_left = kept.messages_left.map(|left| left.saturating_sub(1));
        }
    }

    /// After an exchange: the connection is idle from now on, or ends if it is not to be used
    /// again.
    pub(crate) fn rest(&mut self) {
        let idle_timeout = self.pool.idle_timeout;
        let is_used = std::mem::take(&mut self.is_used);
        let Some(kept) = self.slot.content() else { return };
        if !kept.connection.rest() {
            self.lose();
            return;
        }
        if is_used {
            kept.idle_until = idle_timeout.map(Deadline::after);
        }
        if kept.is_spent() {
            self.slot.empty();
        }
    }

    /// Closes a connection that must not be used again. Until another one is open, the receiver
    /// counts as possibly unreachable.
    pub(crate) fn lose(&mut self) {
        self.slot.empty();
        self.pool.dialer.suspect();
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.rest();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::simulation::{Peer, Says, Simulation};
    use crate::{Client, ClientBuilder, Delivery};

    const TICK: Duration = Duration::from_millis(10);

    fn message(number: usize) -> Vec<u8> {
        format!("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|M{number}|P|2.5\r").into_bytes()
    }

    /// A receiver that accepts the messages from this number on, as they come.
    fn accepting(from: usize) -> Peer {
        let ack = |number: usize| format!("\x0BMSH|^~\\&|EHR|H\rMSA|AA|M{number}\r\x1C\r").into_bytes();
        Peer::answering((from..from + 20).map(|number| vec![(Duration::ZERO, ack(number))]))
    }

    fn client(set: impl FnOnce(ClientBuilder) -> ClientBuilder) -> Client {
        set(Client::builder("mllp://receiver:2575")).build().unwrap()
    }

    #[test]
    fn a_connection_is_spent_by_messages_by_age_and_by_idleness() {
        type Set = fn(ClientBuilder) -> ClientBuilder;
        let cases: [(&str, Set, Duration, &[usize]); 6] = [
            ("no limit", |builder| builder, TICK, &[6]),
            ("one message each", |builder| builder.messages_per_connection(1), TICK, &[1; 6]),
            ("four messages each", |builder| builder.messages_per_connection(4), TICK, &[4, 2]),
            ("idle too long", |builder| builder.idle_timeout(TICK), TICK, &[1; 6]),
            ("not idle long enough", |builder| builder.idle_timeout(TICK * 2), TICK, &[6]),
            ("too old", |builder| builder.max_connection_age(TICK * 2), TICK, &[2, 2, 2]),
        ];
        for (name, set, pause, expected) in cases {
            for all in [false, true] {
                let mut from = 0;
                let peers = expected.iter().map(|&carried| {
                    from += carried;
                    accepting(from - carried)
                });
                let simulation = Simulation::begin(peers.collect(), 4096);
                let client = client(set);
                if all {
                    let messages = (0..6).map(|number| {
                        if number > 0 {
                            simulation.pass(pause);
                        }
                        message(number)
                    });
                    client.send_all(messages).for_each(|result| drop(result.unwrap()));
                } else {
                    for number in 0..6 {
                        client.send(message(number)).unwrap_or_else(|error| panic!("{name}: {error:?}"));
                        simulation.pass(pause);
                    }
                }
                let carried = simulation.with_records(|records| {
                    let messages = |sent: &[u8]| sent.iter().filter(|&&byte| byte == 0x0B).count();
                    records.iter().map(|record| messages(&record.sent)).collect::<Vec<_>>()
                });
                assert_eq!(carried, expected, "{name}, {all}");
                if name == "one message each" {
                    assert!(!client.is_connected(), "it is closed when its last message is answered");
                }
                drop((client, simulation));
            }
        }
    }

    #[test]
    fn a_receiver_that_was_lost_is_tried_again_after_growing_delays() {
        for (name, away, limit, expected, attempts) in [
            ("back at once", 0, 60, Ok(()), 0),
            ("back after one attempt", 1, 60, Ok(()), 1),
            ("back after four", 4, 60, Ok(()), 4),
            ("not back inside the limit", 9, 10, Err(Delivery::NotSent), 4),
        ] {
            let mut lost = accepting(0);
            lost.says.truncate(1);
            lost.says.push_back((TICK, Says::End));
            let peers = [lost]
                .into_iter()
                .chain((0..away).map(|_| Peer { refuses: true, ..Peer::default() }))
                .chain([accepting(1)]);
            let simulation = Simulation::begin(peers.collect(), 4096);
            let delays = Arc::new(Mutex::new(Vec::new()));
            let client = client(|builder| {
                let delays = Arc::clone(&delays);
                builder.timeout(Duration::from_secs(limit)).on_event(move |event| {
                    if let Event::ConnectFailed { retry_in, attempt, .. } = event {
                        let mut delays = delays.lock().unwrap();
                        delays.push(*retry_in);
                        assert_eq!(*attempt as usize, delays.len());
                    }
                })
            });
            client.send(message(0)).unwrap();
            simulation.pass(TICK);
            let begun = simulation.elapsed();
            let result = client.send(message(1)).map(drop).map_err(|error| error.delivery());
            assert_eq!(result, expected, "{name}");
            let delays = std::mem::take(&mut *delays.lock().unwrap());
            assert_eq!(delays.len(), attempts, "{name}: {delays:?}");
            // Each twice as long as the one before, and up to a quarter shorter by chance.
            for (delay, longest) in delays.iter().zip([1, 2, 4, 8, 16, 30]) {
                let longest = Duration::from_secs(longest);
                assert!(delay.is_none_or(|delay| delay <= longest && delay >= longest * 3 / 4), "{name}: {delays:?}");
            }
            let waited: Duration = delays.iter().flatten().sum();
            assert_eq!(simulation.elapsed() - begun, waited, "{name}");
            drop((client, simulation));
        }
    }

    #[test]
    fn the_connection_is_given_back_with_the_last_acknowledgment() {
        let simulation = Simulation::begin(vec![accepting(0)], 4096);
        let client = client(|builder| builder);
        let first = message(0);
        let mut acks = client.request(&first).acks().unwrap();
        assert_eq!(acks.next().unwrap().unwrap().control_id(), "M0");
        // With one connection at most, this would wait for the iterator to be dropped.
        assert_eq!(client.send(message(1)).unwrap().control_id(), "M1");
        assert!(acks.next().is_none());
        drop(acks);
        drop((client, simulation));
    }
}

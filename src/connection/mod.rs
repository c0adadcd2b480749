//! One live connection: fit for use, kept, ended.

mod conversation;
mod history;
mod intake;
mod recv_buffer;

use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use conversation::Conversation;
#[cfg(feature = "testing")]
pub(crate) use recv_buffer::RecvBuffer;

use crate::deadline::Deadline;
use crate::error::{Error, ErrorKind, Phase};
use crate::event::Event;
use crate::net::{Halt, ShutdownHandle, Stream};
use crate::settings::Settings;
use intake::{Intake, Settled};

/// After this many reads of nothing but filler, an idle connection counts as out of sync.
const MAX_FILLER_READS: usize = 8;

/// One connection to a receiver: one socket, one message at a time, no reconnecting.
///
/// For those who manage connections themselves; most programs want a [`Client`](crate::Client). It
/// is opened by [`ClientBuilder::connect`](crate::ClientBuilder::connect).
///
/// A failure closes the connection, since later bytes on it could not be trusted. It stays open
/// after a refusal that names the message ([`ErrorKind::Nak`]), after [`ErrorKind::NotStored`],
/// after a message that could not be sent at all ([`ErrorKind::InvalidMessage`]), and after an
/// [`ErrorKind::Timeout`] that passed before anything was written. Every call on a
/// closed connection is [`ErrorKind::Closed`].
///
/// A connection remembers 1 024 control IDs. It is also closed when the next one would displace
/// that of a message whose application acknowledgment may still come.
///
/// # Examples
///
/// ```no_run
/// use mllp_client::Client;
///
/// let mut connection = Client::builder("mllp://127.0.0.1:2575").connect()?;
/// let ack = connection.send(b"MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|MSG1|P|2.5\rPID|1||42\r")?;
/// assert_eq!(ack.control_id(), "MSG1");
/// connection.close()?;
/// # Ok::<(), mllp_client::Error>(())
/// ```
pub struct Connection {
    settings: Arc<Settings>,
    /// Absent once the connection has ended, and while an exchange is under way: what does not come
    /// back from an exchange is closed, for whatever reason.
    live: Option<Box<Live>>,
    handle: ShutdownHandle,
    peer: SocketAddr,
    intake: Intake,
    /// Whether nothing has been sent yet.
    is_fresh: bool,
    opened_in: Duration,
}

/// A stream whose end is reported.
struct Live {
    stream: Stream,
    settings: Arc<Settings>,
}

impl Drop for Live {
    fn drop(&mut self) {
        // It fails where the peer was quicker.
        let _ = self.stream.close();
        self.settings.monitor.emit(&Event::Disconnected { endpoint: &self.settings.endpoint });
    }
}

/// Whether a connection can be used again.
#[derive(Debug)]
pub(crate) enum Fitness {
    /// Nothing is left to read: it can be used.
    Fit,
    /// This many bytes wait that belong to no exchange.
    Surplus(usize),
    /// The peer, or a shutdown, has ended it.
    Ended(Halt),
    /// Acknowledgments of earlier messages were still coming in when the time was over.
    Busy,
}

impl Connection {
    /// Opens a connection. The caller emits [`Event::Connected`] or [`Event::ConnectFailed`].
    pub(crate) fn open(settings: &Arc<Settings>, deadline: &Deadline, handle: ShutdownHandle) -> Result<Self, Error> {
        let begun = Deadline::after(settings.stream.connect_timeout);
        let opened = Stream::open(&settings.endpoint, &settings.stream, deadline, handle.clone());
        let stream = opened.map_err(|error| Error::from(error).at(&settings.endpoint))?;
        Ok(Connection {
            peer: stream.peer_addr(),
            live: Some(Box::new(Live { stream, settings: Arc::clone(settings) })),
            handle,
            intake: Intake::new(settings),
            is_fresh: true,
            opened_in: begun.elapsed(),
            settings: Arc::clone(settings),
        })
    }

    pub(crate) fn emit_connected(&self) {
        let Settings { endpoint, monitor, .. } = &*self.settings;
        monitor.emit(&Event::Connected { endpoint, elapsed: self.opened_in });
    }

    /// Whether the connection can take another message, as far as can be seen without reading:
    /// `false` is certain, `true` may be outdated by the time it is used.
    pub fn is_open(&self) -> bool {
        self.intake.surplus == 0 && self.live.as_ref().is_some_and(|live| live.stream.seems_open())
    }

    /// The receiver's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// A handle by which another thread can end this connection and the call under way on it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] if the connection has ended.
    pub fn shutdown_handle(&self) -> Result<ShutdownHandle, Error> {
        self.still_open().map(|()| self.handle.clone())
    }

    /// Closes the connection, as dropping it does, and reports whether that went well.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] if it had ended before, [`ErrorKind::Disconnected`] if the peer turns
    /// out to have ended it.
    pub fn close(mut self) -> Result<(), Error> {
        self.still_open()?;
        let ended = self.live.take().map_or(Ok(()), |mut live| live.stream.close());
        ended.map_err(|source| {
            let kind = ErrorKind::Disconnected { phase: Phase::Send, received: 0, source: Some(source.into()) };
            Error::before_sending(kind)
        })
    }

    fn still_open(&self) -> Result<(), Error> {
        if self.live.is_none() || self.handle.is_shut() { Err(closed()) } else { Ok(()) }
    }

    /// Looks whether the connection has anything left to say before it is used again. It waits for
    /// nothing; what comes in without end is looked at until the deadline.
    pub(crate) fn probe(&mut self, deadline: &Deadline) -> Fitness {
        let Some(live) = &mut self.live else { return Fitness::Ended(Halt::Shutdown) };
        if self.intake.surplus > 0 {
            return Fitness::Surplus(self.intake.surplus);
        }
        let (mut filler, mut filler_reads) = (0, 0);
        while filler_reads < MAX_FILLER_READS {
            self.intake.tidy();
            let Ok(space) = self.intake.space() else { return Fitness::Surplus(self.intake.rest().len()) };
            match live.stream.try_read(space) {
                Ok(None) => return Fitness::Fit,
                Err(halt) => return Fitness::Ended(halt),
                Ok(Some(count)) => {
                    self.intake.received(count);
                    match self.intake.settle(&self.settings) {
                        // A greeting, which `allow_leading_bytes` permits on a fresh connection.
                        Settled::Skipped(stale) if self.is_fresh => (filler, filler_reads) = (stale, filler_reads + 1),
                        Settled::Skipped(stale) | Settled::Surplus(stale) => return Fitness::Surplus(stale),
                        Settled::Filler => (filler, filler_reads) = (filler + count, filler_reads + 1),
                        Settled::PassedOver | Settled::Unfinished if deadline.remaining().is_none() => {
                            return Fitness::Busy;
                        }
                        Settled::PassedOver | Settled::Unfinished => {}
                    }
                }
            }
        }
        Fitness::Surplus(filler)
    }

    /// Ends a connection that had bytes to read where none were due.
    pub(crate) fn end_for_surplus(&mut self, stale: usize) {
        self.settings.monitor.emit(&Event::Surplus { endpoint: &self.settings.endpoint, stale });
        self.live = None;
    }

    /// After an exchange: whether the connection may serve another.
    pub(crate) fn rest(&mut self) -> bool {
        self.intake.tidy();
        if self.intake.surplus > 0 {
            self.end_for_surplus(self.intake.surplus);
        }
        self.live.is_some()
    }

    /// Makes sure that the connection is fit for an exchange, or ends it.
    pub(crate) fn make_fit(&mut self, deadline: &Deadline) -> Result<(), Error> {
        let kind = match self.probe(deadline) {
            Fitness::Fit => return Ok(()),
            // It stays: all that has come is accounted for.
            Fitness::Busy => return Err(busy(deadline)),
            Fitness::Surplus(stale) => {
                self.end_for_surplus(stale);
                ErrorKind::Desync { stale }
            }
            Fitness::Ended(halt) => {
                self.live = None;
                ErrorKind::halted(halt, Phase::Send, 0, deadline.limit())
            }
        };
        Err(Error::before_sending(kind))
    }

    /// The content of a reply found by an exchange just made.
    pub(crate) fn reply(&self, at: Range<usize>) -> &[u8] {
        self.intake.content(at)
    }
}

/// The time was over while acknowledgments of earlier messages were coming in.
pub(crate) fn busy(deadline: &Deadline) -> Error {
    Error::before_sending(ErrorKind::Timeout { phase: Phase::Send, limit: deadline.limit() })
}

/// The connection has ended, or is under way.
fn closed() -> Error {
    Error::before_sending(ErrorKind::Closed)
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("endpoint", &self.settings.endpoint)
            .field("peer_addr", &self.peer)
            .field("open", &self.is_open())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::simulation::{Peer, Says, Simulation};
    use crate::{AckMode, Client, MessageError};

    const TICK: Duration = Duration::from_millis(10);

    fn message(id: &str) -> Vec<u8> {
        format!("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|{id}|P|2.5\r").into_bytes()
    }

    fn ack(code: &str, id: &str) -> Vec<u8> {
        format!("\x0BMSH|^~\\&|EHR|H\rMSA|{code}|{id}\r\x1C\r").into_bytes()
    }

    fn at_once(answers: impl IntoIterator<Item = Vec<u8>>) -> Peer {
        Peer::answering(answers.into_iter().map(|answer| vec![(Duration::ZERO, answer)]))
    }

    #[test]
    fn a_connection_ends_when_it_can_remember_no_more() {
        let ids: Vec<String> = (0..1100).map(|number| format!("M{number}")).collect();
        let peer = at_once(ids.iter().map(|id| ack("CA", id)));
        let simulation = Simulation::begin(vec![peer], 100_000);
        let builder = Client::builder("mllp://receiver:2575").ack_mode(AckMode::Commit);
        let mut connection = builder.connect().unwrap();
        let carried = ids.iter().take_while(|id| connection.send(&message(id)).is_ok()).count();
        assert_eq!(carried, 1024);
        assert!(!connection.is_open());
        assert!(matches!(connection.send(&message("X")).unwrap_err().kind(), ErrorKind::Closed));
        drop((connection, simulation));
    }

    #[test]
    fn a_control_id_is_carried_once() {
        let not_again = |error: &Error| {
            matches!(error.kind(), ErrorKind::InvalidMessage(MessageError::ControlIdInUse))
                && error.delivery() == crate::Delivery::NotSent
        };
        for (name, first) in [("accepted", "AA"), ("refused", "AE"), ("committed alone", "CR")] {
            let simulation = Simulation::begin(vec![at_once([ack(first, "1"), ack("AA", "2"), ack("AA", "3")])], 4096);
            let mut connection = Client::builder("mllp://receiver:2575").connect().unwrap();
            drop(connection.send(&message("1")));
            assert!(not_again(&connection.send(&message("1")).unwrap_err()), "{name}");
            assert!(not_again(&connection.exchange(&message("1")).map(<[u8]>::len).unwrap_err()), "{name}");
            assert!(connection.is_open(), "{name}");
            // Unread payloads may repeat a control ID. A message may not repeat that of an unread payload.
            assert!(connection.exchange(&message("2")).is_ok());
            assert!(not_again(&connection.send(&message("2")).unwrap_err()), "{name}");
            assert!(connection.exchange(&message("2")).is_ok());
            drop((connection, simulation));
        }
    }

    #[test]
    fn a_refusal_that_names_no_message_counts_where_nothing_else_is_outstanding() {
        let nameless = b"\x0BMSH|^~\\&|\rMSA|AE|\r\x1C\r".to_vec();
        for (name, asks, before, expected) in [
            ("the first message", None, None, true),
            ("an answered one before", Some(""), Some("AA"), true),
            ("a committed one before", Some("|||AL|AL"), Some("CA"), false),
            ("one that was not read before", None, Some("AA"), false),
        ] {
            let answers = before.map(|code| ack(code, "1")).into_iter().chain([nameless.clone()]);
            let simulation = Simulation::begin(vec![at_once(answers)], 4096);
            let builder = Client::builder("mllp://receiver:2575").ack_mode(AckMode::Commit);
            let mut connection = builder.connect().unwrap();
            let first = [&message("1")[..message("1").len() - 1], asks.unwrap_or("").as_bytes(), b"\r"].concat();
            match (before, asks) {
                (Some(_), Some(_)) => drop(connection.send(&first).unwrap()),
                (Some(_), None) => assert!(!connection.exchange(&first).unwrap().is_empty()),
                (None, _) => {}
            }
            let error = connection.send(&message("2")).unwrap_err();
            assert_eq!(matches!(error.kind(), ErrorKind::Nak(_)), expected, "{name}: {error:?}");
            assert!(expected || error.delivery() == crate::Delivery::Unknown, "{name}: {error:?}");
            assert!(!connection.is_open(), "{name}");
            drop((connection, simulation));
        }
    }

    #[test]
    fn the_replies_to_payloads_that_are_not_read_are_handed_out_as_they_come() {
        let simulation = Simulation::begin(vec![at_once([ack("AA", "1"), ack("AA", "1")])], 4096);
        let mut connection = Client::builder("mllp://receiver:2575").connect().unwrap();
        let reply = connection.exchange(&message("1")).unwrap().to_vec();
        assert_eq!(connection.exchange(&message("2")).unwrap(), reply);
        drop((connection, simulation));
    }

    #[test]
    fn what_comes_before_a_fresh_connection_is_used_is_no_answer() {
        let lenient = crate::frame::Framing::default().allow_leading_bytes(true);
        for (name, early, framing, expected) in [
            ("an answer", ack("AA", "1"), crate::frame::Framing::default(), false),
            ("half an answer", ack("AA", "1")[..20].to_vec(), crate::frame::Framing::default(), false),
            ("a greeting", b"ready".to_vec(), crate::frame::Framing::default(), false),
            ("a greeting that is allowed", b"ready".to_vec(), lenient.clone(), true),
            ("an answer, where a greeting is allowed", ack("AA", "1"), lenient.clone(), false),
            ("a greeting and half an answer", b"ready \x0BMSH".to_vec(), lenient, false),
            ("filler", b"\r\n".to_vec(), crate::frame::Framing::default(), true),
            ("an empty frame", b"\x0B\x1C\r".to_vec(), crate::frame::Framing::default(), true),
        ] {
            let mut peer = at_once([ack("AE", "1")]);
            peer.says.push_front((Duration::ZERO, Says::Bytes(early)));
            let simulation = Simulation::begin(vec![peer], 4096);
            let client = Client::builder("mllp://receiver:2575").framing(framing).build().unwrap();
            let error = client.send(message("1")).unwrap_err();
            assert_eq!(error.nak().is_some(), expected, "{name}: {error:?}");
            if !expected {
                assert!(matches!(error.kind(), ErrorKind::Desync { .. }), "{name}: {error:?}");
                assert_eq!(error.delivery(), crate::Delivery::NotSent, "{name}");
            }
            drop((client, simulation));
        }
    }

    #[test]
    fn a_probe_ends_by_the_deadline_while_late_acknowledgments_stream_in() {
        // The commit accept again and again. The application's acknowledgment may still come, so that half
        // of one is no surplus.
        let mut peer = at_once([ack("CA", "1")]);
        peer.says.extend((0..100_000).map(|_| (Duration::from_micros(1), Says::Bytes(ack("CA", "1")))));
        let late = Arc::new(Mutex::new(0));
        let simulation = Simulation::begin(vec![peer], 4096);
        let builder = Client::builder("mllp://receiver:2575").ack_mode(AckMode::Commit).timeout(TICK).on_event({
            let late = Arc::clone(&late);
            move |event| {
                // Each takes a while.
                if matches!(event, Event::LateAck { .. }) {
                    *late.lock().unwrap() += 1;
                    crate::simulation::wait(Duration::from_micros(2));
                }
            }
        });
        let mut connection = builder.connect().unwrap();
        connection.send(&message("1")).unwrap();
        simulation.pass(TICK);
        let begun = simulation.elapsed();
        let error = connection.send(&message("2")).unwrap_err();
        assert!(error.is_timeout() && error.delivery() == crate::Delivery::NotSent, "{error:?}");
        assert!(simulation.elapsed() - begun < TICK * 2, "{:?}", simulation.elapsed() - begun);
        assert!(connection.is_open() && *late.lock().unwrap() > 100);
        drop((connection, simulation));
    }
}

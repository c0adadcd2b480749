//! One live connection: write a frame, read the answer; any doubt ends it.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::ack::{Ack, AckCode, AckMode};
use crate::charset::Charset;
use crate::deadline::Deadline;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Heard, MessageError, Phase};
use crate::event::{Event, Monitor};
use crate::frame::{self, FrameError, Framing};
use crate::header::Header;
use crate::inbox::Inbox;
use crate::outcome::{Outcome, Outcomes, Rules, Verdict};
use crate::owed::Owed;
use crate::socket::ShutdownHandle;
use crate::stream::{self, Halt, Stream};

/// So many times filler is taken from an idle connection before that counts as surplus too.
const MAX_FILLER_READS: usize = 8;

/// So many times what a peer said early is read, when the call should have ended already.
const MAX_EARLY_READS: usize = 64;

/// MLLP release 2: so often a message is sent that the receiver says it has not stored, and after so long a time.
const MAX_SENDINGS: u32 = 3;
const RESEND_DELAY: Duration = Duration::from_millis(500);

/// The limit of writing a commit block for what came between two exchanges. Its five bytes wait for nobody who reads at all.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);

/// What a connection is told once.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) endpoint: Endpoint,
    pub(crate) stream: stream::Options,
    pub(crate) timeout: Duration,
    pub(crate) framing: Framing,
    pub(crate) max_ack_size: usize,
    pub(crate) max_message_size: usize,
    pub(crate) verify_control_id: bool,
    pub(crate) charset: Charset,
    pub(crate) release2: bool,
    pub(crate) terms: Terms,
    pub(crate) monitor: Monitor,
}

/// What a call waits for, and for how long at last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) ack_mode: AckMode,
    /// The limit of waiting for the application acknowledgment after a commit accept; that of the call if there is none.
    pub(crate) application_timeout: Option<Duration>,
}

impl Settings {
    pub(crate) fn rules(&self, terms: &Terms) -> Rules {
        Rules { mode: terms.ack_mode, verify: self.verify_control_id, charset: self.charset }
    }

    /// Whether a payload can be sent at all.
    pub(crate) fn check_payload(&self, payload: &[u8]) -> Result<(), Error> {
        let (size, limit) = (payload.len(), self.max_message_size);
        let checked =
            if size > limit { Err(MessageError::TooLarge { size, limit }) } else { self.framing.check(payload) };
        checked.map_err(|error| Error::before_sending(ErrorKind::InvalidMessage(error)))
    }

    /// Whether a message can be sent and its acknowledgment awaited.
    pub(crate) fn check_message<'m>(&self, message: &'m [u8], mode: AckMode) -> Result<Header<'m>, Error> {
        self.check_payload(message)?;
        match Header::read(message) {
            Ok(header) if mode == AckMode::FromHeader && header.asked.nothing() => Err(MessageError::NoAckRequested),
            read => read,
        }
        .map_err(|error| Error::before_sending(ErrorKind::InvalidMessage(error)))
    }

    /// In MLLP release 2: tells the receiver that so many of its messages have come; whether that went well.
    fn confirm(&self, line: &mut Line, messages: usize, deadline: &Deadline) -> bool {
        let parts = [self.framing.head(), frame::STORED, self.framing.tail()];
        let messages = if self.release2 { messages } else { 0 };
        (0..messages).all(|_| line.stream.write_frame(parts, deadline).is_ok())
    }
}

/// One connection to a receiver: one socket, one message at a time, no reconnecting.
///
/// For those who manage connections themselves; most programs want a [`Client`](crate::Client). It is opened by
/// [`ClientBuilder::connect`](crate::ClientBuilder::connect).
///
/// After any failure but a refusal ([`ErrorKind::Nak`]) or a message that could not be sent at all
/// ([`ErrorKind::InvalidMessage`]) the connection is closed, since what comes next on it could not be trusted; every further
/// call is [`ErrorKind::Closed`].
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
    /// Absent once the connection has ended, and while an exchange is under way: what does not come back from an exchange
    /// is closed, for whatever reason.
    line: Option<Line>,
    handle: ShutdownHandle,
    peer: SocketAddr,
    inbox: Inbox,
    /// Bytes that came after the last answer and belong to no exchange.
    surplus: usize,
    /// The application acknowledgments that may still come, of messages whose exchange a commit accept has ended.
    owed: Owed,
    opened_in: Duration,
}

/// An exchange under way. What does not end well ends its line.
pub(crate) struct Exchange<'m> {
    line: Option<Line>,
    outcome: Outcome<'m>,
    began: Deadline,
    deadline: Deadline,
    application_timeout: Option<Duration>,
}

impl Exchange<'_> {
    /// The commit accept that has come so far.
    pub(crate) fn commit(&self) -> Option<&Ack> {
        self.outcome.commit()
    }
}

/// A stream whose end is told.
struct Line {
    stream: Stream,
    settings: Arc<Settings>,
}

impl Drop for Line {
    fn drop(&mut self) {
        // It fails where the peer was quicker.
        let _ = self.stream.close();
        self.settings.monitor.tell(&Event::Disconnected { endpoint: &self.settings.endpoint });
    }
}

/// What a connection is found to be before it is used again.
#[derive(Debug)]
pub(crate) enum Health {
    /// Nothing to read: it can be used.
    Sound,
    /// Bytes wait that belong to no exchange.
    Surplus(usize),
    /// The peer, or a shutdown, has ended it.
    Ended(Halt),
}

impl Connection {
    /// Opens one. Who has it opened tells of it.
    pub(crate) fn open(settings: &Arc<Settings>, deadline: &Deadline, handle: ShutdownHandle) -> Result<Self, Error> {
        let begun = Deadline::after(settings.stream.connect_timeout);
        let stream = Stream::open(&settings.endpoint, &settings.stream, deadline, handle.clone())?;
        Ok(Connection {
            peer: stream.peer_addr(),
            line: Some(Line { stream, settings: Arc::clone(settings) }),
            handle,
            inbox: Inbox::new(settings.framing.clone(), settings.max_ack_size),
            surplus: 0,
            owed: Owed::nothing(settings.charset),
            opened_in: begun.elapsed(),
            settings: Arc::clone(settings),
        })
    }

    pub(crate) fn tell_connected(&self) {
        let Settings { endpoint, monitor, .. } = &*self.settings;
        monitor.tell(&Event::Connected { endpoint, elapsed: self.opened_in });
    }

    /// Sends a message and waits for the acknowledgment that ends its exchange, at most the builder's
    /// [`timeout`](crate::ClientBuilder::timeout).
    ///
    /// # Errors
    ///
    /// Any [`ErrorKind`] but those of connecting. A message that could not be sent leaves the connection untouched.
    pub fn send(&mut self, message: &[u8]) -> Result<Ack, Error> {
        let deadline = Deadline::after(self.settings.timeout);
        let settings = Arc::clone(&self.settings);
        let terms = &settings.terms;
        let result =
            self.still_open().and_then(|()| settings.check_message(message, terms.ack_mode)).and_then(|header| {
                self.ready(&deadline).and_then(|()| self.send_within(message, &header, terms, &deadline))
            });
        settings.monitor.conclude(result, &deadline)
    }

    /// Sends any payload and returns the content of the first frame that comes back, as it came, borrowed from the
    /// connection's buffer. Nothing is read in either: no header, no acknowledgment code. What a peer answers before the payload
    /// has left whole is no reply to it; it is [`Error::response`] then.
    ///
    /// # Errors
    ///
    /// As [`send`](Connection::send), but those that concern HL7.
    pub fn exchange(&mut self, payload: &[u8]) -> Result<&[u8], Error> {
        let deadline = Deadline::after(self.settings.timeout);
        let result = self
            .still_open()
            .and_then(|()| self.settings.check_payload(payload))
            .and_then(|()| self.ready(&deadline))
            .and_then(|()| self.exchange_within(payload, &deadline));
        let reply = self.settings.monitor.conclude(result, &deadline)?;
        Ok(self.reply(reply))
    }

    /// Whether the connection can take another message, as far as can be seen without reading: `false` is certain, `true`
    /// may be outdated by the time it is used.
    pub fn is_open(&self) -> bool {
        self.surplus == 0 && self.line.as_ref().is_some_and(|line| line.stream.seems_open())
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

    /// Closes the connection, as dropping it does, and tells whether that went well.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] if it had ended before, [`ErrorKind::Disconnected`] if the peer turns out to have ended it.
    pub fn close(mut self) -> Result<(), Error> {
        self.still_open()?;
        match self.line.take() {
            Some(mut line) => line.stream.close().map_err(|source| {
                let kind = ErrorKind::Disconnected { phase: Phase::Send, received: 0, source: Some(source) };
                Error::before_sending(kind)
            }),
            None => Ok(()),
        }
    }

    fn still_open(&self) -> Result<(), Error> {
        if self.line.is_none() || self.handle.is_shut() {
            return Err(Error::before_sending(ErrorKind::Closed));
        }
        Ok(())
    }

    /// Looks, without waiting, whether the connection has anything left to say before it is used again.
    pub(crate) fn health(&mut self) -> Health {
        let Some(line) = &mut self.line else { return Health::Ended(Halt::Shutdown) };
        if self.surplus > 0 {
            return Health::Surplus(self.surplus);
        }
        let (mut filler, mut reads) = (0, 0);
        while reads < MAX_FILLER_READS {
            self.inbox.tidy();
            match line.stream.read_waiting(self.inbox.space()) {
                Ok(None) => return Health::Sound,
                Ok(Some(count)) => {
                    self.inbox.received(count);
                    let owed = self.owed.len();
                    let stale = self.owed.settle(&mut self.inbox, &self.settings.monitor);
                    if !self.settings.confirm(line, owed - self.owed.len(), &Deadline::after(CONFIRM_TIMEOUT)) {
                        return Health::Ended(Halt::Peer(None));
                    }
                    if stale > 0 {
                        return Health::Surplus(stale);
                    }
                    // What is owed ends by itself.
                    if self.owed.len() == owed && Framing::is_filler(self.inbox.rest()) {
                        (filler, reads) = (filler + count, reads + 1);
                    }
                }
                Err(halt) => return Health::Ended(halt),
            }
        }
        Health::Surplus(filler)
    }

    /// Ends a connection that had bytes to read where none were due.
    pub(crate) fn end_for_surplus(&mut self, stale: usize) {
        self.settings.monitor.tell(&Event::Surplus { endpoint: &self.settings.endpoint, stale });
        self.line = None;
    }

    /// After an exchange: whether the connection may serve another.
    pub(crate) fn rest(&mut self) -> bool {
        self.inbox.tidy();
        if self.surplus > 0 {
            self.end_for_surplus(self.surplus);
        }
        self.line.is_some()
    }

    /// Makes sure that the connection is fit for an exchange, or ends it.
    fn ready(&mut self, deadline: &Deadline) -> Result<(), Error> {
        let kind = match self.health() {
            Health::Sound => return Ok(()),
            Health::Surplus(stale) => {
                self.end_for_surplus(stale);
                ErrorKind::Desync { stale }
            }
            Health::Ended(halt) => {
                self.line = None;
                halt.into_kind(Phase::Send, 0, deadline.limit())
            }
        };
        Err(Error::before_sending(kind))
    }

    /// One exchange of a checked message, on a connection found sound.
    pub(crate) fn send_within(
        &mut self,
        message: &[u8],
        header: &Header<'_>,
        terms: &Terms,
        deadline: &Deadline,
    ) -> Result<Ack, Error> {
        let mut exchange = self.begin(message, header, terms, deadline)?;
        loop {
            if let Verdict::Ends(ack) = self.hear(&mut exchange)? {
                return Ok(ack);
            }
        }
    }

    /// Whether the answer to what has one of these control IDs, or is recognised by none, could be told from what may still come
    /// for earlier messages.
    fn tells_apart<'c>(&self, mut control_ids: impl Iterator<Item = &'c [u8]>, verified: bool) -> Result<(), Error> {
        let owed = !self.owed.is_empty()
            && (control_ids.any(|control_id| self.owed.holds(control_id))
                || (!verified && !Framing::is_filler(self.inbox.rest())));
        if owed { Err(Error::before_sending(ErrorKind::InvalidMessage(MessageError::AckOwed))) } else { Ok(()) }
    }

    /// Writes a checked message.
    pub(crate) fn begin<'m>(
        &mut self,
        message: &[u8],
        header: &Header<'m>,
        terms: &Terms,
        deadline: &Deadline,
    ) -> Result<Exchange<'m>, Error> {
        let mut outcome = Outcome::of(header, self.settings.rules(terms));
        self.tells_apart([outcome.control_id()].into_iter(), self.settings.verify_control_id)?;
        let mut line = self.take_line()?;
        if let Err(failure) = self.write(&mut line, message, deadline) {
            return Err(match self.early_answer(&mut line) {
                Err(refusal) => failure.because(refusal),
                Ok(answer) => match outcome.take(self.inbox.content(answer.clone())) {
                    Err(refusal @ ErrorKind::Nak(_)) => Error::judged(refusal, true, outcome.commit().cloned()),
                    // Nothing but a refusal can be meant for a message that the peer has seen only a part of.
                    _ => failure.with_response(self.inbox.content(answer)),
                },
            });
        }
        let line = self.stored(line, message, deadline)?;
        let application_timeout = terms.application_timeout;
        Ok(Exchange { line: Some(line), outcome, began: *deadline, deadline: *deadline, application_timeout })
    }

    /// Waits for the next acknowledgment of an exchange, and decides on it.
    pub(crate) fn hear(&mut self, exchange: &mut Exchange<'_>) -> Result<Verdict, Error> {
        let Exchange { line, outcome, began, deadline, application_timeout } = exchange;
        let mut line = line.take().ok_or_else(|| Error::before_sending(ErrorKind::Closed))?;
        // In MLLP release 2 no exchange is begun whose message a commit block has not said to be stored.
        let stored = self.settings.release2;
        let answer = match self.read(&mut line, outcome.phase(), deadline) {
            Ok(answer) => answer,
            Err(kind) => return Err(self.doubt(kind, outcome.commit().cloned()).once_stored(stored)),
        };
        let answer = self.inbox.content(answer);
        let was_committed = outcome.commit().is_some();
        let verdict = match outcome.take(answer) {
            Ok(verdict) => verdict,
            Err(refusal @ ErrorKind::Nak(_)) => {
                let confirmed = self.settings.confirm(&mut line, 1, deadline);
                self.keep_if(confirmed, line);
                return Err(Error::judged(refusal, true, outcome.commit().cloned()));
            }
            Err(kind) => {
                let failure = Error::judged(kind, true, outcome.commit().cloned());
                return Err(failure.once_stored(stored).with_response(answer));
            }
        };
        let confirmed = self.settings.confirm(&mut line, 1, deadline);
        match &verdict {
            Verdict::GoesOn => {
                // Counted from the first; a peer that repeats it gains no time.
                if !was_committed {
                    *deadline = application_timeout.map_or(*deadline, Deadline::after);
                }
                exchange.line = Some(line);
            }
            Verdict::Ends(ack) => {
                if ack.code() == AckCode::CommitAccept {
                    self.owed.add(outcome.control_id());
                }
                self.keep_if(confirmed && outcome.leaves_no_doubt(ack), line);
                self.settings.monitor.tell(&Event::Acknowledged { code: ack.code(), elapsed: began.elapsed() });
            }
        }
        Ok(verdict)
    }

    /// One exchange of a checked batch, on a connection found sound: what became of each message. An error where nothing became of any.
    pub(crate) fn send_batch_within(
        &mut self,
        batch: &[u8],
        mut outcomes: Outcomes<'_>,
        terms: &Terms,
        deadline: &Deadline,
    ) -> Result<Vec<Result<Ack, Error>>, Error> {
        self.tells_apart(outcomes.control_ids(), self.settings.verify_control_id)?;
        let mut line = self.take_line()?;
        let mut confirmed = true;
        let mut until = *deadline;
        let failure = match self.write(&mut line, batch, deadline) {
            Ok(()) => {
                line = self.stored(line, batch, deadline)?;
                loop {
                    if outcomes.are_complete() {
                        break None;
                    }
                    // As long as nothing has come for some, the call's own limit counts for all.
                    let limit = if outcomes.are_committed() { &until } else { deadline };
                    let place = match self.read(&mut line, outcomes.phase(), limit) {
                        Ok(place) => place,
                        Err(kind) => break Some(kind),
                    };
                    match outcomes.take(self.inbox.content(place)) {
                        Ok(committed) => {
                            confirmed &= self.settings.confirm(&mut line, 1, limit);
                            if committed {
                                until = terms.application_timeout.map_or(*deadline, Deadline::after);
                            }
                        }
                        Err(kind) => break Some(kind),
                    }
                }
            }
            Err(failure) => match self.early_answer(&mut line) {
                Err(refusal) => return Err(failure.because(refusal)),
                Ok(answer) => {
                    let answer = self.inbox.content(answer);
                    let taken = outcomes.take(answer);
                    // Nothing but a refusal of all of it can be meant for a batch that the peer has seen only a part of.
                    if taken.is_err() || !outcomes.are_refused() {
                        return Err(failure.with_response(answer));
                    }
                    confirmed = false;
                    None
                }
            },
        };
        let mut undoubted = failure.is_none() && confirmed;
        // Where nothing failed, everything was answered.
        let unanswered = failure.unwrap_or(ErrorKind::Closed);
        let mut results = Vec::new();
        for (outcome, verdict) in outcomes.into_each() {
            let commit = outcome.commit().cloned();
            let verdict = verdict.unwrap_or_else(|| {
                Err(match unanswered.copy() {
                    ErrorKind::Timeout { limit, .. } => ErrorKind::Timeout { phase: outcome.phase(), limit },
                    other => other,
                })
            });
            if let Ok(ack) = &verdict {
                if ack.code() == AckCode::CommitAccept {
                    self.owed.add(outcome.control_id());
                }
                undoubted &= outcome.leaves_no_doubt(ack);
                self.settings.monitor.tell(&Event::Acknowledged { code: ack.code(), elapsed: deadline.elapsed() });
            }
            results.push(verdict.map_err(|kind| Error::judged(kind, true, commit).once_stored(self.settings.release2)));
        }
        self.keep_if(undoubted, line);
        Ok(results)
    }

    /// One exchange of a checked payload, on a connection found sound; where the reply stands in the buffer.
    pub(crate) fn exchange_within(&mut self, payload: &[u8], deadline: &Deadline) -> Result<Range<usize>, Error> {
        if !self.owed.is_empty() {
            let header = Header::read(payload).ok();
            self.tells_apart(header.iter().map(|header| header.control_id), false)?;
        }
        let mut line = self.take_line()?;
        if let Err(failure) = self.write(&mut line, payload, deadline) {
            return Err(match self.early_answer(&mut line) {
                Err(refusal) => failure.because(refusal),
                // It cannot be the reply to a payload that the peer has seen only a part of.
                Ok(reply) => failure.with_response(self.inbox.content(reply)),
            });
        }
        line = self.stored(line, payload, deadline)?;
        match self.read(&mut line, Phase::ApplicationAck, deadline) {
            Ok(reply) => {
                let confirmed = self.settings.confirm(&mut line, 1, deadline);
                self.keep_if(confirmed, line);
                Ok(reply)
            }
            Err(kind) => Err(self.doubt(kind, None).once_stored(self.settings.release2)),
        }
    }

    /// Writes a checked payload, awaits nothing, and ends the connection: an answer that is not awaited would be taken for
    /// the next one's.
    pub(crate) fn send_unacknowledged(&mut self, payload: &[u8], deadline: &Deadline) -> Result<(), Error> {
        let mut line = self.take_line()?;
        self.write(&mut line, payload, deadline)?;
        line = self.stored(line, payload, deadline)?;
        line.stream.finish(deadline);
        Ok(())
    }

    /// The content of a reply found by an exchange just made.
    pub(crate) fn reply(&self, place: Range<usize>) -> &[u8] {
        self.inbox.content(place)
    }

    fn take_line(&mut self) -> Result<Line, Error> {
        self.line.take().ok_or_else(|| Error::before_sending(ErrorKind::Closed))
    }

    /// Ends an exchange that was complete; the connection stays if nothing else casts doubt on it.
    fn keep_if(&mut self, undoubted: bool, mut line: Line) {
        if undoubted {
            let owed = self.owed.len();
            self.surplus = self.owed.settle(&mut self.inbox, &self.settings.monitor);
            if self.settings.confirm(&mut line, owed - self.owed.len(), &Deadline::after(CONFIRM_TIMEOUT)) {
                self.line = Some(line);
            }
        }
    }

    /// In MLLP release 2: waits until the receiver says that it has stored a message just written, and sends it again where it
    /// says that it has not.
    fn stored(&mut self, mut line: Line, message: &[u8], deadline: &Deadline) -> Result<Line, Error> {
        if !self.settings.release2 {
            return Ok(line);
        }
        let mut sendings = 1;
        loop {
            let place = match self.read(&mut line, Phase::CommitAck, deadline) {
                Ok(place) => place,
                Err(kind) => return Err(self.doubt(kind, None)),
            };
            match self.inbox.content(place) {
                frame::STORED => return Ok(line),
                frame::NOT_STORED => {}
                other => {
                    let kind = ErrorKind::MalformedFrame(FrameError::NoCommitBlock);
                    return Err(Error::judged(kind, true, None).with_response(other));
                }
            }
            self.nothing_more(&mut line)?;
            if sendings == MAX_SENDINGS {
                self.keep_if(true, line);
                return Err(Error::judged(ErrorKind::NotStored { sendings }, true, None));
            }
            let pause = deadline.or_within(RESEND_DELAY);
            loop {
                // The receiver does not have it, so that whatever ends the pause the message is as if it had not been sent.
                match line.stream.read(self.inbox.space(), &pause) {
                    Ok(count) => self.inbox.received(count),
                    Err(Halt::Deadline) if deadline.remaining().is_some() => break,
                    Err(halt) => {
                        let kind = halt.into_kind(Phase::CommitAck, 0, deadline.limit());
                        return Err(Error::before_sending(kind));
                    }
                }
                self.nothing_more(&mut line)?;
            }
            self.write(&mut line, message, deadline)?;
            sendings += 1;
        }
    }

    /// In MLLP release 2: a commit block does not say which sending it is for, so that no other may have come behind one. Filler
    /// may, any amount of it, and takes no room.
    fn nothing_more(&mut self, line: &mut Line) -> Result<(), Error> {
        let owed = self.owed.len();
        let clean = self.owed.settle(&mut self.inbox, &self.settings.monitor) == 0
            && Framing::is_filler(self.inbox.rest())
            && self.settings.confirm(line, owed - self.owed.len(), &Deadline::after(CONFIRM_TIMEOUT));
        if !clean {
            return Err(Error::judged(ErrorKind::MalformedFrame(FrameError::StrayCommitBlock), true, None));
        }
        self.inbox.tidy();
        Ok(())
    }

    /// Writes one frame.
    fn write(&mut self, line: &mut Line, payload: &[u8], deadline: &Deadline) -> Result<(), Error> {
        let Settings { framing, monitor, .. } = &*self.settings;
        let (head, tail) = (framing.head(), framing.tail());
        let bytes = head.len() + payload.len() + tail.len();
        match line.stream.write_frame([head, payload, tail], deadline) {
            Ok(()) => {
                monitor.tell(&Event::Sent { bytes });
                Ok(())
            }
            Err((written, halt)) => {
                let left = end_may_have_left(written, bytes, tail.len());
                Err(Error::judged(halt.into_kind(Phase::Send, 0, deadline.limit()), left, None))
            }
        }
    }

    /// Reads until a frame is whole that is not owed to an earlier exchange; where its content stands.
    fn read(&mut self, line: &mut Line, phase: Phase, deadline: &Deadline) -> Result<Range<usize>, ErrorKind> {
        loop {
            let owed = self.owed.len();
            let frame = self.frame().map_err(malformed)?;
            if !self.settings.confirm(line, owed - self.owed.len(), deadline) {
                return Err(ErrorKind::Disconnected { phase, received: 0, source: None });
            }
            if let Some(place) = frame {
                return Ok(place);
            }
            match line.stream.read(self.inbox.space(), deadline) {
                Ok(count) => self.inbox.received(count),
                Err(halt) => return Err(halt.into_kind(phase, self.inbox.rest().len(), deadline.limit())),
            }
        }
    }

    /// The next frame that has come whole, those passed over that were owed to an earlier exchange.
    fn frame(&mut self) -> Result<Option<Range<usize>>, FrameError> {
        while let Some(place) = self.inbox.frame()? {
            if !self.owed.take(self.inbox.content(place.clone()), &self.settings.monitor) {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    /// The answer of a peer that did not wait for the whole message, if one lies in the socket already; or its refusal of the TLS
    /// session, which is then why writing failed.
    fn early_answer(&mut self, line: &mut Line) -> Result<Range<usize>, Option<ErrorKind>> {
        for _ in 0..MAX_EARLY_READS {
            match line.stream.read_waiting(self.inbox.space()) {
                Ok(Some(count)) => self.inbox.received(count),
                Err(Halt::Tls(error)) => return Err(Some(ErrorKind::Tls(error))),
                Ok(None) | Err(_) => break,
            }
            if let Some(place) = self.frame().map_err(|_| None)? {
                return Ok(place);
            }
        }
        Err(None)
    }

    /// The failure of an exchange whose frame had left, with what had come of an answer.
    fn doubt(&self, kind: ErrorKind, commit: Option<Ack>) -> Error {
        let rest = self.inbox.rest();
        let unreadable = matches!(kind, ErrorKind::MalformedFrame(_));
        let late = matches!(kind, ErrorKind::Timeout { .. }) && !Framing::is_filler(rest);
        let error = Error::judged(kind, true, commit);
        if unreadable {
            error.with_response(rest)
        } else if late {
            error.with_heard(Heard { bytes: rest.len(), start_block: self.inbox.is_inside_a_frame() })
        } else {
            error
        }
    }
}

impl Halt {
    fn into_kind(self, phase: Phase, received: usize, limit: Duration) -> ErrorKind {
        match self {
            Halt::Deadline => ErrorKind::Timeout { phase, limit },
            Halt::Shutdown => ErrorKind::Closed,
            Halt::Tls(error) => ErrorKind::Tls(error),
            Halt::Peer(source) => ErrorKind::Disconnected { phase, received, source },
        }
    }
}

/// Whether a receiver may have the message after so many bytes of a frame were written: from the first byte of its end on, a
/// lenient one takes the frame for whole.
fn end_may_have_left(written: usize, frame: usize, tail: usize) -> bool {
    written > frame - tail
}

fn malformed(error: FrameError) -> ErrorKind {
    match error {
        FrameError::TooLarge { limit } => ErrorKind::AckTooLarge { limit },
        error => ErrorKind::MalformedFrame(error),
    }
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
    use super::*;

    #[test]
    fn the_end_leaves_with_its_first_byte() {
        for (name, written, expected) in [
            ("nothing", 0, false),
            ("the Start Block", 1, false),
            ("half the content", 51, false),
            ("all but the last byte of the content", 100, false),
            ("the content", 101, false),
            ("the End Block", 102, true),
            ("all", 103, true),
        ] {
            assert_eq!(end_may_have_left(written, 103, 2), expected, "{name}");
        }
    }
}

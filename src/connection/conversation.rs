//! The one blocking script that every kind of exchange runs: write, commit block, next answer. A
//! deadline ends every wait.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::intake::{Settled, malformed};
use super::{Connection, Live, closed};
use crate::deadline::Deadline;
use crate::error::{Error, ErrorKind, Evidence, Hint, Phase};
use crate::event::Event;
use crate::exchange::{AnyFrame, Awaited, Effect, Failure, Message, Progress};
use crate::frame;
use crate::hl7::MessageError;
use crate::hl7::ack::Ack;
use crate::net::Halt;
use crate::settings::{AckPolicy, Settings};

/// The largest number of reads for an answer that the peer sent before it had the whole message.
const MAX_EARLY_READS: usize = 64;

/// MLLP release 2: how many times a message is sent in all while the receiver answers 0x15, and the
/// pause before each repetition.
const MAX_SENDINGS: u32 = 3;
const RESEND_DELAY: Duration = Duration::from_millis(500);

/// How long bytes that have already come are still read after the deadline.
const LAST_LOOK: Duration = Duration::from_millis(50);

/// One exchange, from before its payload is written to its end. Dropped earlier, it closes its
/// connection, since an answer is outstanding.
pub(crate) struct Conversation<A> {
    awaited: A,
    /// The connection, until the exchange is over.
    live: Option<Box<Live>>,
    progress: Progress,
    failure: Option<Box<Failure>>,
    wait: Wait,
    call: Deadline,
    /// The limit of the application acknowledgments once a commit accept has come; the call's if
    /// there is none of its own.
    application_timeout: Option<Duration>,
    application: Deadline,
    /// Whether the connection is not to be used again, although the exchange ended well.
    leaves_doubt: bool,
    /// Where the content of the last answer stands.
    answer: Range<usize>,
}

/// Why an exchange failed, and its evidence.
struct Cause(Box<(ErrorKind, Evidence)>);

impl Cause {
    fn new(kind: ErrorKind, evidence: Evidence) -> Cause {
        Cause(Box::new((kind, evidence)))
    }
}

impl From<ErrorKind> for Cause {
    fn from(kind: ErrorKind) -> Cause {
        Cause::new(kind, Evidence::default())
    }
}

/// Waiting for what the peer sends.
struct Wait {
    until: Deadline,
    /// Whether anything has been received since the payload left.
    has_received: bool,
    /// Set once `until` has passed: how long what lies in the socket is still taken in.
    last_look: Option<Deadline>,
}

impl<A: Awaited> Conversation<A> {
    /// One that is about to begin.
    pub(crate) fn new(awaited: A, policy: &AckPolicy, deadline: &Deadline) -> Self {
        Conversation {
            awaited,
            live: None,
            progress: Progress::NotSent,
            failure: None,
            wait: Wait { until: *deadline, has_received: false, last_look: None },
            call: *deadline,
            application_timeout: policy.application_timeout,
            application: *deadline,
            leaves_doubt: false,
            answer: 0..0,
        }
    }

    /// The awaited acknowledgments, and those that have come.
    pub(crate) fn awaited(&self) -> &A {
        &self.awaited
    }

    /// The deadline that counts: as long as nothing has come for some message, the call's own
    /// counts for all.
    fn until(&self) -> Deadline {
        if self.awaited.is_committed() { self.application } else { self.call }
    }

    /// Whether the exchange has ended or failed. Valid once it was begun.
    pub(crate) fn is_over(&self) -> bool {
        self.live.is_none()
    }

    /// The caller's result, once it is over.
    pub(crate) fn end(self) -> Result<A::End, Error> {
        let Conversation { awaited, failure, .. } = self;
        awaited.end(failure.map(|failure| *failure))
    }

    fn fail(&mut self, cause: Cause, while_sending: bool) {
        let (kind, evidence) = *cause.0;
        let progress = self.progress.clone();
        self.failure = Some(Box::new(Failure { kind, progress, evidence, while_sending }));
    }
}

impl Connection {
    /// Sends a message and waits for the acknowledgment that ends its exchange, at most the
    /// builder's [`timeout`](crate::ClientBuilder::timeout).
    ///
    /// # Errors
    ///
    /// Any [`ErrorKind`] but those of connecting. A message that could not be sent leaves the
    /// connection untouched, as one does whose control ID it has carried before
    /// ([`MessageError::ControlIdInUse`](crate::MessageError::ControlIdInUse)).
    pub fn send(&mut self, message: &[u8]) -> Result<Ack, Error> {
        let settings = Arc::clone(&self.settings);
        let deadline = Deadline::after(settings.timeout);
        let policy = &settings.ack_policy;
        let result = self.still_open().and_then(|()| settings.check_message(message, policy.mode)).and_then(|header| {
            self.make_fit(&deadline)?;
            self.converse(message, Message::new(message, &header, settings.ack_rules(policy)), policy, &deadline)
        });
        settings.conclude(result, Some(message), &deadline)
    }

    /// Sends any payload and returns the content of the first frame that comes back, as it came,
    /// borrowed from the connection's buffer. Neither is checked as HL7, so that a refusal is a
    /// reply like any other.
    ///
    /// Control IDs are read all the same, for two things: an acknowledgment of a message that was
    /// sent before by [`send`](Connection::send) is not the reply, and a payload with the
    /// control ID of such a message is refused. Replies to other payloads are the caller's to
    /// distinguish. Where the payload could not be sent whole, an answer that came before is no
    /// reply to it, but [`Error::response`].
    ///
    /// # Errors
    ///
    /// As [`send`](Connection::send), but those that concern HL7.
    pub fn exchange(&mut self, payload: &[u8]) -> Result<&[u8], Error> {
        let deadline = Deadline::after(self.settings.timeout);
        let result = self
            .still_open()
            .and_then(|()| self.settings.check_payload(payload))
            .and_then(|()| self.make_fit(&deadline))
            .and_then(|()| self.converse_unread(payload, &deadline));
        let reply = self.settings.conclude(result, Some(payload), &deadline)?;
        Ok(self.intake.content(reply))
    }

    /// Runs a whole exchange of a checked payload, on a connection that was found fit for use.
    pub(crate) fn converse<A: Awaited>(
        &mut self,
        payload: &[u8],
        awaited: A,
        policy: &AckPolicy,
        deadline: &Deadline,
    ) -> Result<A::End, Error> {
        let mut conversation = Conversation::new(awaited, policy, deadline);
        self.begin(&mut conversation, payload)?;
        self.finish(conversation)
    }

    /// Waits for all answers of an exchange that was begun.
    pub(crate) fn finish<A: Awaited>(&mut self, mut conversation: Conversation<A>) -> Result<A::End, Error> {
        self.take_all(&mut conversation);
        conversation.end()
    }

    fn take_all<A: Awaited>(&mut self, conversation: &mut Conversation<A>) {
        while !conversation.is_over() {
            self.next_answer(conversation);
        }
    }

    /// Runs a whole exchange of which any frame is the end. Returns where the content of that frame
    /// stands.
    pub(crate) fn converse_unread(&mut self, payload: &[u8], deadline: &Deadline) -> Result<Range<usize>, Error> {
        let mut conversation = Conversation::new(AnyFrame::after(payload), &AckPolicy::default(), deadline);
        self.begin(&mut conversation, payload)?;
        self.take_all(&mut conversation);
        let answer = conversation.answer.clone();
        conversation.end().map(|()| answer)
    }

    /// Writes a checked payload, awaits nothing, and ends the connection: an answer that is not
    /// awaited would be taken for the next one's.
    pub(crate) fn send_unacknowledged(&mut self, payload: &[u8], deadline: &Deadline) -> Result<(), Error> {
        let mut conversation = Conversation::new(AnyFrame::after(payload), &AckPolicy::default(), deadline);
        self.begin(&mut conversation, payload)?;
        if let Some(mut live) = conversation.live.take() {
            live.stream.finish(deadline);
        }
        conversation.end()
    }

    /// Writes a checked payload, and in MLLP release 2 waits until the receiver has stored it. A
    /// failure from the first byte on is kept in the conversation, which is over then.
    ///
    /// # Errors
    ///
    /// [`MessageError::ControlIdInUse`], which leaves the connection as it is, or
    /// [`ErrorKind::Closed`].
    pub(crate) fn begin<A: Awaited>(
        &mut self,
        conversation: &mut Conversation<A>,
        payload: &[u8],
    ) -> Result<(), Error> {
        if !self.intake.is_recognisable(&conversation.awaited) {
            return Err(Error::before_sending(ErrorKind::InvalidMessage(MessageError::ControlIdInUse)));
        }
        let mut live = self.live.take().ok_or_else(closed)?;
        self.is_fresh = false;
        match self.deliver(conversation, &mut live, payload) {
            Ok(()) => conversation.live = Some(live),
            Err(failure) => {
                let not_stored = matches!(failure.0.0, ErrorKind::NotStored { .. });
                conversation.fail(failure, true);
                if not_stored {
                    self.keep(conversation, live);
                }
            }
        }
        Ok(())
    }

    /// Takes answers until one is for this exchange. Acknowledgments of earlier messages are passed
    /// over.
    pub(crate) fn next_answer<A: Awaited>(&mut self, conversation: &mut Conversation<A>) {
        let Some(mut live) = conversation.live.take() else { return };
        match self.take_answer(conversation, &mut live) {
            Ok(Effect::Ends) if conversation.leaves_doubt => {}
            Ok(Effect::Ends) => self.keep(conversation, live),
            Ok(_) => conversation.live = Some(live),
            Err(failure) => conversation.fail(failure, false),
        }
    }

    /// Sends a payload, again if the receiver of release 2 says that it has not stored it.
    fn deliver<A: Awaited>(
        &mut self,
        conversation: &mut Conversation<A>,
        live: &mut Live,
        payload: &[u8],
    ) -> Result<(), Cause> {
        let deadline = conversation.call;
        self.write_commit_blocks(live, &deadline)?;
        self.intake.begin();
        for sendings in 1..=MAX_SENDINGS {
            self.write(conversation, live, payload)?;
            if !self.settings.release2 {
                return Ok(());
            }
            if self.is_stored(conversation, live)? {
                conversation.progress = Progress::Stored;
                return Ok(());
            }
            self.expect_nothing_more(live, &deadline)?;
            if sendings == MAX_SENDINGS {
                return Err(ErrorKind::NotStored { sendings }.into());
            }
            self.pause(conversation, live)?;
        }
        Ok(())
    }

    /// Writes one frame.
    fn write<A: Awaited>(
        &mut self,
        conversation: &mut Conversation<A>,
        live: &mut Live,
        payload: &[u8],
    ) -> Result<(), Cause> {
        let Settings { endpoint, framing, monitor, .. } = &*self.settings;
        let (head, tail) = (framing.head(), framing.tail());
        let bytes = head.len() + payload.len() + tail.len();
        match live.stream.write_frame([head, payload, tail], &conversation.call) {
            Ok(()) => {
                conversation.progress = Progress::Sent;
                let control_id = conversation.awaited.control_id().map(String::from_utf8_lossy);
                monitor.emit(&Event::Sent { endpoint, control_id: control_id.as_deref(), bytes });
                Ok(())
            }
            Err((written, halt)) => {
                if end_may_have_left(written, bytes, tail.len()) {
                    conversation.progress = Progress::Sent;
                }
                let kind = ErrorKind::halted(halt, Phase::Send, 0, conversation.call.limit());
                Err(self.look_for_early_answer(conversation, live, kind))
            }
        }
    }

    /// MLLP release 2: waits for the commit block of what was written. Whether it says that the
    /// receiver has stored it.
    fn is_stored<A: Awaited>(&mut self, conversation: &mut Conversation<A>, live: &mut Live) -> Result<bool, Cause> {
        loop {
            let at = self.next_frame(&mut conversation.wait, live, Phase::CommitAck, 0)?;
            match self.intake.content(at.clone()) {
                frame::STORED => return Ok(true),
                frame::NOT_STORED => return Ok(false),
                _ => {}
            }
            if !self.intake.pass_over(at.clone(), &self.settings) {
                let kind = ErrorKind::NoCommitBlock;
                return Err(Cause::new(kind, self.response(self.intake.content(at), 0)));
            }
            conversation.wait.check(live, Phase::CommitAck)?;
        }
    }

    /// MLLP release 2: waits before the message is sent again. The receiver has reported that it
    /// does not have it, so that a time-out or an end of the connection means `NotSent`.
    /// Unexpected bytes mean `Unknown`.
    fn pause<A: Awaited>(&mut self, conversation: &mut Conversation<A>, live: &mut Live) -> Result<(), Cause> {
        let deadline = conversation.call;
        let pause = deadline.or_within(RESEND_DELAY);
        loop {
            let space = self.intake.space().map_err(malformed)?;
            match live.stream.read(space, &pause) {
                Ok(count) => self.intake.received(count),
                Err(halt) => {
                    conversation.progress = Progress::NotSent;
                    return match halt {
                        Halt::Deadline if deadline.remaining().is_some() => Ok(()),
                        halt => Err(ErrorKind::halted(halt, Phase::CommitAck, 0, deadline.limit()).into()),
                    };
                }
            }
            self.expect_nothing_more(live, &deadline)?;
        }
    }

    /// MLLP release 2: a commit block does not name its message, so that a second one would make
    /// the next ambiguous. Only filler and acknowledgments of earlier messages may follow.
    fn expect_nothing_more(&mut self, live: &mut Live, deadline: &Deadline) -> Result<(), ErrorKind> {
        if !matches!(self.intake.settle(&self.settings), Settled::Filler | Settled::PassedOver) {
            return Err(ErrorKind::StrayCommitBlock);
        }
        self.intake.tidy();
        self.write_commit_blocks(live, deadline)
    }

    /// Takes answers until one is for this exchange.
    fn take_answer<A: Awaited>(
        &mut self,
        conversation: &mut Conversation<A>,
        live: &mut Live,
    ) -> Result<Effect, Cause> {
        loop {
            conversation.wait.until = conversation.until();
            let (phase, kept) = (conversation.awaited.phase(), conversation.awaited.kept());
            let at = self.next_frame(&mut conversation.wait, live, phase, kept)?;
            conversation.answer = at.clone();
            let step = self.take_whole(conversation, live, at)?;
            self.report(conversation);
            match step {
                Effect::Ends => return Ok(step),
                Effect::Commits => {
                    // Counted from here, so that a peer that repeats its commit accept gains no time.
                    let application = conversation.application_timeout.map(Deadline::after);
                    conversation.application = application.unwrap_or(conversation.call);
                    conversation.wait.last_look = None;
                }
                Effect::Partly(_) | Effect::PassedOver | Effect::GoesOn => {}
            }
            conversation.wait.until = conversation.until();
            self.write_commit_blocks(live, &conversation.wait.until)?;
            conversation.wait.check(live, phase)?;
            if step != Effect::PassedOver {
                return Ok(step);
            }
        }
    }

    /// Takes one answer, asking the clock between its parts.
    fn take_whole<A: Awaited>(
        &mut self,
        conversation: &mut Conversation<A>,
        live: &Live,
        at: Range<usize>,
    ) -> Result<Effect, Cause> {
        let Conversation { awaited, wait, .. } = conversation;
        let frame = self.intake.take_out::<A>(&at);
        let mut from = 0;
        loop {
            let taken = match self.intake.accept(awaited, at.clone(), frame.as_ref(), from, &self.settings) {
                Ok(Effect::Partly(next)) => {
                    from = next;
                    wait.check(live, awaited.phase())
                }
                Ok(step) => return Ok(step),
                Err(kind) => Err(kind),
            };
            if let Err(kind) = taken {
                let content =
                    frame.as_ref().map_or_else(|| self.intake.content(at.clone()), |frame| &frame[at.clone()]);
                let evidence = self.response(content, awaited.kept());
                self.report(conversation);
                return Err(Cause::new(kind, evidence));
            }
        }
    }

    /// Emits `Acknowledged` for each accepting verdict of the last answer, and remembers the
    /// control IDs of all its verdicts.
    fn report<A: Awaited>(&mut self, conversation: &mut Conversation<A>) {
        let Conversation { awaited, call, leaves_doubt, .. } = conversation;
        let settings = &*self.settings;
        awaited.decided(|decided| {
            if let Some(verdict) = decided.verdict.filter(|verdict| verdict.code().is_accept()) {
                settings.monitor.emit(&Event::Acknowledged {
                    endpoint: &settings.endpoint,
                    control_id: &String::from_utf8_lossy(decided.control_id),
                    code: verdict.code(),
                    elapsed: call.elapsed(),
                });
            }
            *leaves_doubt |= !self.intake.remember(&decided, settings);
        });
    }

    /// Reads until a frame is whole that may be the answer; where its content stands.
    fn next_frame(
        &mut self,
        wait: &mut Wait,
        live: &mut Live,
        phase: Phase,
        kept: usize,
    ) -> Result<Range<usize>, Cause> {
        let found = loop {
            match self.intake.frame(&self.settings) {
                Ok(Some(at)) => return Ok(at),
                Ok(None) => {}
                Err(kind) => break kind,
            }
            // Acknowledgments of earlier messages may just have been passed over. They are to be answered.
            if let Err(kind) = self.write_commit_blocks(live, &wait.until) {
                break kind;
            }
            let space = match self.intake.space() {
                Ok(space) => space,
                Err(error) => break malformed(error),
            };
            match wait.read(live, space) {
                Ok(count) => self.intake.received(count),
                Err(halt) => break ErrorKind::halted(halt, phase, self.intake.unfinished(), wait.until.limit()),
            }
        };
        let mut evidence = match &found {
            ErrorKind::MalformedFrame(_) => self.response(self.intake.rest(), kept),
            _ => Evidence::default(),
        };
        let hint = self.intake.hint();
        evidence.hint = match &found {
            ErrorKind::Timeout { .. } => hint,
            ErrorKind::Disconnected { .. } if live.stream.is_silent_tls() => Some(Hint::ClientCertificate),
            ErrorKind::Disconnected { .. } => hint.filter(|hint| *hint == Hint::NoCarriageReturn),
            _ => None,
        };
        Err(Cause::new(found, evidence))
    }

    /// After writing has failed: reads, without waiting, an early answer of the peer, or its
    /// refusal of the TLS session, which explains the failure better.
    fn look_for_early_answer<A: Awaited>(
        &mut self,
        conversation: &mut Conversation<A>,
        live: &mut Live,
        kind: ErrorKind,
    ) -> Cause {
        let mut evidence = None;
        for _ in 0..MAX_EARLY_READS {
            let Ok(space) = self.intake.space() else { break };
            match live.stream.try_read(space) {
                Ok(Some(count)) => self.intake.received(count),
                Err(Halt::Tls(error)) if matches!(kind, ErrorKind::Disconnected { .. }) => {
                    return ErrorKind::Tls(error).into();
                }
                Ok(None) | Err(_) => break,
            }
            while let Ok(Some(at)) = self.intake.frame(&self.settings) {
                let response = self.response(self.intake.content(at.clone()), 0);
                // The exchange decides what this answer means for a message of which the peer has only a part.
                match self.take_whole(conversation, live, at) {
                    Ok(Effect::PassedOver) => {}
                    Ok(Effect::Partly(_) | Effect::GoesOn | Effect::Commits) => evidence = evidence.or(Some(response)),
                    Ok(Effect::Ends) | Err(_) => return Cause::new(kind, evidence.unwrap_or(response)),
                }
            }
        }
        let mut evidence = evidence.unwrap_or_default();
        if matches!(kind, ErrorKind::Disconnected { .. }) && live.stream.is_silent_tls() {
            evidence.hint = Some(Hint::ClientCertificate);
        }
        Cause::new(kind, evidence)
    }

    /// Ends an exchange that leaves the connection usable: a complete one, or one whose message was
    /// not stored. With surplus bytes the connection is kept only for the surplus to be
    /// reported before the next use. One that can remember no more is closed.
    fn keep<A: Awaited>(&mut self, conversation: &Conversation<A>, mut live: Box<Live>) {
        if conversation.failure.is_some() {
            self.intake.remember_all(&conversation.awaited, &self.settings);
        }
        if let Settled::Skipped(stale) | Settled::Surplus(stale) = self.intake.settle(&self.settings) {
            self.intake.surplus = stale;
        }
        if self.write_commit_blocks(&mut live, &conversation.wait.until).is_err() {
            return;
        }
        if self.intake.surplus > 0 || self.intake.may_go_on() {
            self.live = Some(live);
        }
    }

    /// MLLP release 2: writes the commit blocks that are due for acknowledgments that have come.
    /// One that cannot be written is doubt.
    fn write_commit_blocks(&mut self, live: &mut Live, deadline: &Deadline) -> Result<(), ErrorKind> {
        while self.intake.commit_blocks_due > 0 {
            let framing = &self.settings.framing;
            let parts = [framing.head(), frame::STORED, framing.tail()];
            live.stream
                .write_frame(parts, deadline)
                .map_err(|(_, halt)| ErrorKind::halted(halt, Phase::Send, 0, deadline.limit()))?;
            self.intake.commit_blocks_due -= 1;
        }
        Ok(())
    }

    /// An answer as evidence, as far as there is room beside what is kept already.
    fn response(&self, content: &[u8], kept: usize) -> Evidence {
        let room = self.settings.max_ack_size.saturating_sub(kept);
        Evidence { response: Some(content[..content.len().min(room)].into()), hint: None }
    }
}

impl Wait {
    /// Reads some bytes. Once the time is over, only those that have already come.
    fn read(&mut self, live: &mut Live, space: &mut [u8]) -> Result<usize, Halt> {
        if self.last_look.is_none() {
            if self.has_received {
                // A peer that sends its answer in pieces may wait for TCP's acknowledgment of the first before it
                // sends the next.
                live.stream.acknowledge_now();
            }
            match live.stream.read(space, &self.until) {
                Ok(count) => {
                    self.has_received = true;
                    return Ok(count);
                }
                Err(Halt::Deadline) => self.last_look = Some(Deadline::after(LAST_LOOK)),
                Err(halt) => return Err(halt),
            }
        }
        match live.stream.try_read(space) {
            Ok(Some(count)) if self.is_within_last_look() => Ok(count),
            Err(Halt::Shutdown) => Err(Halt::Shutdown),
            Ok(_) | Err(_) => Err(Halt::Deadline),
        }
    }

    /// Asks the clock, and whether the connection was ended by another thread, where much is taken
    /// in without reading.
    fn check(&mut self, live: &Live, phase: Phase) -> Result<(), ErrorKind> {
        if live.stream.is_shut() {
            return Err(ErrorKind::Closed);
        }
        if self.until.remaining().is_none() {
            self.last_look.get_or_insert_with(|| Deadline::after(LAST_LOOK));
        }
        if self.is_within_last_look() {
            return Ok(());
        }
        Err(ErrorKind::Timeout { phase, limit: self.until.limit() })
    }

    fn is_within_last_look(&self) -> bool {
        self.last_look.is_none_or(|last_look| last_look.remaining().is_some())
    }
}

/// Whether a receiver may have the message after so many bytes of a frame were written: from the
/// first byte of its end on, a lenient one takes the frame for whole.
fn end_may_have_left(written: usize, frame: usize, tail: usize) -> bool {
    written > frame - tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::{Peer, Simulation};
    use crate::{AckMode, Client, ClientBuilder};

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

    const TICK: Duration = Duration::from_millis(10);
    const STORED: &[u8] = b"\x0B\x06\x1C\r";
    const NOT_STORED: &[u8] = b"\x0B\x15\x1C\r";

    fn message(id: &str, asks: &str) -> Vec<u8> {
        format!("MSH|^~\\&|LAB|H|EHR|H|20260101||ORU^R01|{id}|P|2.5{asks}\r").into_bytes()
    }

    fn ack(code: &str, id: &str) -> Vec<u8> {
        format!("\x0BMSH|^~\\&|EHR|H\rMSA|{code}|{id}\r\x1C\r").into_bytes()
    }

    /// A connection to a peer that answers so, and its simulation, which is to be dropped last.
    fn connected(
        answers: Vec<Vec<(Duration, Vec<u8>)>>,
        set: impl FnOnce(ClientBuilder) -> ClientBuilder,
    ) -> (Connection, Simulation) {
        let simulation = Simulation::begin(vec![Peer::answering(answers)], 4096);
        (set(Client::builder("mllp://receiver:2575")).connect().unwrap(), simulation)
    }

    /// The end of a call, in a word or two.
    fn in_words(result: &Result<crate::Ack, Error>) -> String {
        match result {
            Ok(ack) => ack.code().to_string(),
            Err(error) => match error.kind() {
                ErrorKind::Nak(ack) => format!("refused {}", ack.code()),
                ErrorKind::Timeout { phase, .. } => format!("{:?} after {phase:?}", error.delivery()),
                ErrorKind::MalformedFrame(kind) => format!("{:?}, {kind:?}", error.delivery()),
                ErrorKind::NotStored { sendings } => format!("not stored, {sendings}"),
                kind => format!("{:?}, {kind:?}", error.delivery()),
            },
        }
    }

    #[test]
    fn what_was_not_stored_is_sent_again_after_half_a_second_a_few_times() {
        let now = |bytes: &[u8]| vec![(Duration::ZERO, bytes.to_vec())];
        let accepted = || vec![(Duration::ZERO, STORED.to_vec()), (TICK, ack("AA", "1"))];
        for (name, answers, limit, expected, sendings, took) in [
            ("at once", vec![accepted()], 3000, "AA", 1, 10),
            ("once", vec![now(NOT_STORED), accepted()], 3000, "AA", 2, 510),
            ("twice", vec![now(NOT_STORED), now(NOT_STORED), accepted()], 3000, "AA", 3, 1010),
            ("for ever", vec![now(NOT_STORED); 4], 3000, "not stored, 3", 3, 1000),
            ("inside the limit", vec![now(NOT_STORED), accepted()], 300, "NotSent after CommitAck", 1, 300),
            (
                "filler in the pause",
                vec![vec![(Duration::ZERO, NOT_STORED.to_vec()), (40 * TICK, vec![b'\n'; 70_000])], accepted()],
                3000,
                "AA",
                2,
                510,
            ),
            (
                "another block in the pause",
                vec![vec![(Duration::ZERO, NOT_STORED.to_vec()), (40 * TICK, STORED.to_vec())]],
                3000,
                "Unknown, StrayCommitBlock",
                1,
                400,
            ),
            ("no block", vec![vec![]], 300, "Unknown after CommitAck", 1, 300),
            ("an answer in its place", vec![now(&ack("AA", "1"))], 3000, "Unknown, NoCommitBlock", 1, 0),
            ("stored, and no answer", vec![now(STORED)], 300, "Committed after ApplicationAck", 1, 300),
        ] {
            let limit = Duration::from_millis(limit);
            let (mut connection, simulation) = connected(answers, |builder| builder.release2(true).timeout(limit));
            assert_eq!(in_words(&connection.send(&message("1", ""))), expected, "{name}");
            assert_eq!(simulation.elapsed(), Duration::from_millis(took), "{name}");
            let sent = simulation.with_records(|records| {
                let messages = records[0].sent.split(|&byte| byte == 0x0B).filter(|frame| frame.starts_with(b"MSH"));
                messages.count()
            });
            assert_eq!(sent, sendings, "{name}");
            drop(connection);
        }
    }

    #[test]
    fn a_frame_that_began_before_the_message_left_is_not_its_answer() {
        let whole = |code: &str, id: &str| ack(code, id);
        for (name, early, at, then, expected) in [
            ("a late acknowledgment", whole("AA", "1"), 20, Some(whole("CA", "2")), "CA"),
            ("one that refuses", whole("AE", "1"), 20, Some(whole("CA", "2")), "CA"),
            ("one byte of one", whole("AA", "1"), 1, Some(whole("CA", "2")), "CA"),
            ("all but its last byte", whole("AA", "1"), whole("AA", "1").len() - 1, Some(whole("CA", "2")), "CA"),
            ("one that names the message", whole("CA", "2"), 20, None, "Unknown, Desync { stale: 27 }"),
            ("a refusal that names it", whole("CE", "2"), 20, None, "Unknown, Desync { stale: 27 }"),
            ("one that names nobody", whole("CA", "9"), 20, None, "Unknown, Desync { stale: 27 }"),
            ("half an empty frame", b"\x0B\x1C\r".to_vec(), 1, Some(whole("CA", "2")), "CA"),
        ] {
            let (half, rest) = early.split_at(at);
            let first = vec![(Duration::ZERO, [&ack("CA", "1"), half].concat())];
            let mut second = vec![(Duration::ZERO, rest.to_vec())];
            second.extend(then.map(|bytes| (TICK, bytes)));
            let (mut connection, simulation) =
                connected(vec![first, second], |builder| builder.timeout(TICK * 10).ack_mode(AckMode::Commit));
            connection.send(&message("1", "|||AL|AL")).unwrap();
            assert_eq!(in_words(&connection.send(&message("2", "|||AL|AL"))), expected, "{name}");
            assert_eq!(connection.is_open(), expected == "CA", "{name}");
            drop((connection, simulation));
        }
    }

    #[test]
    fn each_acknowledgment_of_release_2_is_answered_by_a_commit_block() {
        for (name, answer, expected) in [
            ("one", vec![(TICK, ack("AA", "1"))], 1),
            ("both", vec![(TICK, ack("CA", "1")), (TICK, ack("AA", "1"))], 2),
            ("both in one packet", vec![(TICK, [ack("CA", "1"), ack("AA", "1")].concat())], 2),
            ("a refusal", vec![(TICK, ack("AE", "1"))], 1),
        ] {
            let answers = [vec![(Duration::ZERO, STORED.to_vec())], answer].concat();
            let (mut connection, simulation) = connected(vec![answers], |builder| builder.release2(true));
            drop(connection.send(&message("1", "|||AL|AL")));
            assert!(connection.is_open(), "{name}");
            let blocks = simulation.with_records(|records| {
                records[0].sent.windows(STORED.len()).filter(|window| *window == STORED).count()
            });
            assert_eq!(blocks, expected, "{name}");
            drop((connection, simulation));
        }
    }

    #[test]
    fn the_application_acknowledgment_has_a_limit_of_its_own() {
        let at = |ticks: u32, code: &str| (TICK * ticks, ack(code, "1"));
        for (name, answer, timeout, application, expected, took) in [
            ("both in time", vec![at(15, "CA"), at(22, "AA")], 30, Some(30), "AA", 37),
            ("longer together than the call's", vec![at(29, "CA"), at(29, "AA")], 30, Some(30), "AA", 58),
            ("without it the call's covers both", vec![at(15, "CA"), at(16, "AA")], 30, None, "Committed", 30),
            ("counted from the commit accept", vec![at(27, "CA")], 100, Some(30), "Committed", 57),
            ("although the call's is over", vec![at(27, "CA")], 30, Some(30), "Committed", 57),
            (
                "a commit accept again gains no time",
                vec![at(10, "CA"), at(20, "CA"), at(20, "CA")],
                100,
                Some(30),
                "Committed",
                40,
            ),
            ("none before the commit accept", vec![], 30, Some(100), "Unknown", 30),
            ("refused late", vec![at(15, "CA"), at(22, "AE")], 30, Some(30), "refused AE", 37),
        ] {
            let (mut connection, simulation) = connected(vec![answer], |builder| {
                let builder = builder.timeout(TICK * timeout);
                match application {
                    Some(limit) => builder.application_timeout(TICK * limit),
                    None => builder,
                }
            });
            let end = in_words(&connection.send(&message("1", "|||AL|AL")));
            assert!(end.starts_with(expected), "{name}: {end}");
            assert_eq!(simulation.elapsed(), TICK * took, "{name}");
            drop(connection);
        }
    }

    #[test]
    fn what_has_come_when_the_time_is_over_is_taken() {
        let whole = ack("AA", "1");
        let (half, rest) = whole.split_at(20);
        for (name, answer, expected) in [
            ("before", vec![(TICK * 9, whole.clone())], "AA"),
            ("with the last instant", vec![(TICK * 10, whole.clone())], "AA"),
            ("in two pieces", vec![(TICK * 5, half.to_vec()), (TICK * 5, rest.to_vec())], "AA"),
            ("half of it", vec![(TICK * 10, half.to_vec())], "Unknown after ApplicationAck"),
            ("a refusal", vec![(TICK * 10, ack("AE", "1"))], "refused AE"),
            ("after it", vec![(TICK * 10 + Duration::from_micros(1), whole.clone())], "Unknown after ApplicationAck"),
            ("a commit accept", vec![(TICK * 10, ack("CA", "1"))], "Committed after ApplicationAck"),
        ] {
            let (mut connection, simulation) = connected(vec![answer], |builder| builder.timeout(TICK * 10));
            assert_eq!(in_words(&connection.send(&message("1", ""))), expected, "{name}");
            assert!(simulation.elapsed() <= TICK * 10, "{name}: {:?}", simulation.elapsed());
            drop(connection);
        }
    }

    #[test]
    fn what_comes_late_leaves_the_next_message_its_own_answer() {
        let commit = |id| ack("CA", id);
        let framed = |content: &[u8]| [b"\x0B", content, b"\x1C\r"].concat();
        let bare = |code: &str, id: &str| format!("MSH|^~\\&|EHR|H\rMSA|{code}|{id}\r").into_bytes();
        let both = |code| framed(&[bare("AA", "1"), bare(code, "2")].concat());
        let in_batch = framed(&[&b"BHS|^~\\&|\r"[..], &bare("AA", "1"), b"BTS|1\r"].concat());
        for (name, mode, first, second, expected) in [
            (
                "an empty frame in two halves",
                AckMode::Commit,
                [commit("1"), b"\x0B".to_vec()].concat(),
                [&b"\x1C\r"[..], &commit("2")].concat(),
                "CA",
            ),
            ("again, beside the refusal", AckMode::FromHeader, ack("AA", "1"), both("AE"), "refused AE"),
            ("again, beside the acceptance", AckMode::FromHeader, ack("AA", "1"), both("AA"), "AA"),
            ("in a batch", AckMode::Commit, commit("1"), [in_batch, commit("2")].concat(), "CA"),
        ] {
            let answers = [first, second].map(|bytes| vec![(Duration::ZERO, bytes)]);
            let (mut connection, simulation) =
                connected(answers.into(), |builder| builder.timeout(TICK * 10).ack_mode(mode));
            let asks = if mode == AckMode::Commit { "|||AL|AL" } else { "" };
            connection.send(&message("1", asks)).unwrap();
            assert_eq!(in_words(&connection.send(&message("2", asks))), expected, "{name}");
            drop((connection, simulation));
        }
    }

    #[test]
    fn a_frame_of_late_acknowledgments_takes_no_longer_than_there_are_messages() {
        let late = |count| [b"\x0B", &b"MSH|^~\\&|EHR|H\rMSA|CA|1\r".repeat(count)[..], b"\x1C\r"].concat();
        for (count, expected) in [(2000, "CA"), (3000, "NotSent, Desync")] {
            let answers = [[ack("CA", "1"), late(count)].concat(), ack("CA", "2")];
            let answers = answers.map(|bytes| vec![(Duration::ZERO, bytes)]);
            let (mut connection, simulation) =
                connected(answers.into(), |builder| builder.timeout(TICK * 10).ack_mode(AckMode::Commit));
            connection.send(&message("1", "|||AL|AL")).unwrap();
            let found = in_words(&connection.send(&message("2", "|||AL|AL")));
            assert!(found.starts_with(expected), "{count}: {found}");
            drop((connection, simulation));
        }
    }

    #[test]
    fn what_a_payload_held_is_remembered_message_by_message() {
        let message = |id| message(id, "");
        let bare = [message("1"), message("2")].concat();
        let wrapped = [&b"BHS|^~\\&|||||||||B\r"[..], &bare, b"BTS|2\r"].concat();
        for (name, payload, is_read, answered) in [
            ("a batch", &wrapped, true, "B"),
            ("a batch that is not read", &wrapped, false, "B"),
            ("two messages", &bare, true, "1"),
            ("two messages that are not read", &bare, false, "1"),
        ] {
            let (mut connection, simulation) =
                connected(vec![vec![(Duration::ZERO, ack("AA", answered))]], |builder| builder);
            if is_read {
                connection.send(payload).unwrap();
            } else {
                connection.exchange(payload).unwrap();
            }
            let error = connection.send(&message("2")).unwrap_err();
            assert!(
                matches!(error.kind(), ErrorKind::InvalidMessage(MessageError::ControlIdInUse)),
                "{name}: {error:?}"
            );
            drop((connection, simulation));
        }
    }

    #[test]
    fn a_time_out_says_what_probably_lies_behind_it() {
        let commit = "set AckMode::Commit";
        for (asks, answer, expected) in [
            ("", ack("CA", "1"), Some(commit)),
            ("|||NE|AL", ack("CA", "1"), Some(commit)),
            ("|||AL|ER", ack("CA", "1"), Some(commit)),
            ("|||AL|SU", ack("CA", "1"), Some(commit)),
            ("|||AL|AL", ack("CA", "1"), None),
            ("|||AL|ER", vec![], None),
            ("", ack("AA", "1")[..20].to_vec(), Some("but no End Block")),
            ("", ack("AA", "1").split_last().unwrap().1.to_vec(), Some("allow_missing_carriage_return")),
            ("", b"\r\n".to_vec(), None),
        ] {
            let (mut connection, simulation) =
                connected(vec![vec![(TICK, answer.clone())]], |builder| builder.timeout(TICK * 10));
            let said = connection.send(&message("1", asks)).unwrap_err().to_string();
            match expected {
                Some(expected) => assert!(said.contains(expected), "{asks}: {said}"),
                None => assert!(said.matches(';').count() == 1, "{asks}: {said}"),
            }
            drop((connection, simulation));
        }
    }
}
